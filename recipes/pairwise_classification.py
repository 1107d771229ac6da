"""Predict which residues pair: contacts of a protein, base pairs of an RNA.

In: a table of sequences with a column of pairs [i, j], of matrices, or of dot-bracket structures.
Out: precision of the top L, L/2, L/5 and L/10 pairs, the best pairs of each row, maps.

    python recipes/pairwise_classification.py               # seconds, CPU, bundled data
    python recipes/pairwise_classification.py --backbone esm2_8m --data contacts.jsonl \\
        --data.y-cols pairs --train.batch-size 1
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.data.targets.pair_labels import pair_facts, pair_targets, residue_spans
from mgen.figures.contacts import contact_map
from mgen.metrics.contacts import contact_metrics, contact_statistics, eligible, top_pairs
from mgen.predictions import read
from mgen.task import Task
from mgen.train import Train, run

DRAWN = 4  # rows of which a map is drawn


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pairwise classification."""

    backbone: Backbone = backbone("dna_onehot")
    adapter: Adapter = adapter("pair_resnet", channels=24)
    data: Table = table("hairpins_tiny", y_cols=("pairs",))
    train: Train = Train(lr=3e-3, epochs=3, batch_size=8)
    min_separation: int = 6  # metrics and predictions: pairs with |i - j| above it
    positive_weight: float = 1.0  # weight in the loss of residues that pair
    ordered: bool = False  # loss over all L x L pairs as published, not over those with i < j
    channels: int = 1  # outputs per pair, of which the last is used; published heads have 2
    maps: bool = False  # predictions hold all L x L probabilities, row after row, in half precision
    special_tokens: bool = False  # [CLS] and the like never pair


class PairwiseClassification(Task):
    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        cfg.adapter.check_gives("per pair")
        for flag, value, least in (
            ("--min-separation", cfg.min_separation, 0),
            ("--channels", cfg.channels, 1),
            ("--positive-weight", cfg.positive_weight, 0),
        ):
            if not least <= value < np.inf:
                raise InputError(f"{flag} {value}: expected {least} or more")
        self.facts, notes = pair_facts(rows, splits, self.tokenizer, self.facts)
        return notes

    def build(self) -> None:
        self.head = self.make_head(self.cfg.channels)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        inputs = self.cfg.data.inputs(rows)
        batch = self.backbone.tokenize(inputs)
        spans = residue_spans(inputs, self.tokenizer, batch["special_tokens_mask"])
        batch["first"], batch["length"] = spans[:, 0], spans[:, 1]  # of the residues read (B,)
        if self.labelled:
            cells = [row[self.cfg.data.y_cols[0]] for row in rows]
            batch["labels"] = pair_targets(cells, spans)  # (B, l, l)
        return batch

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, l, l), residues alone
        hidden, special = self.backbone(batch), batch["special_tokens_mask"]
        longest = int(batch["length"].max())
        residues = special.argsort(dim=1, stable=True)[:, :longest]  # (B, l)
        hidden = hidden.gather(1, residues[..., None].expand(-1, -1, hidden.shape[-1]))
        mask = torch.arange(longest, device=hidden.device) < batch["length"][:, None]
        return self.head(hidden, mask)[..., -1]

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        kept = labels >= 0 if self.cfg.ordered else (labels >= 0).triu(1)
        weights = kept / kept.sum((1, 2), keepdim=True).clamp(min=1)  # every row counts alike
        weight = outputs.new_tensor(self.cfg.positive_weight)
        losses = F.binary_cross_entropy_with_logits(
            outputs, labels.clamp(min=0).to(outputs.dtype), reduction="none", pos_weight=weight
        )
        return losses, weights

    def metrics(self) -> dict:
        return contact_metrics()

    def scores(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        length, apart = batch["length"], self.cfg.min_separation
        return contact_statistics(outputs, batch["labels"], length, apart), length

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        lengths, size = batch["length"], outputs.shape[1]
        best, places = top_pairs(outputs, eligible(lengths, size, self.cfg.min_separation))
        pairs = torch.stack([places // size, places % size], dim=-1) + batch["first"][:, None, None]
        columns = {"first": batch["first"], "length": lengths, "pairs": [], "probability": []}
        for i, length in enumerate(lengths.tolist()):
            kept = best[i, :length].isfinite()
            columns["pairs"].append(pairs[i, :length][kept].tolist())
            columns["probability"].append(best[i, :length][kept].sigmoid().tolist())
        if self.cfg.maps:
            rows = zip(outputs.sigmoid().half().cpu(), lengths.tolist(), strict=True)
            columns["map"] = [row[:length, :length].flatten() for row, length in rows]
        return columns

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        share = torch.tensor(self.facts["by_distance"])
        statistics, lengths = [], []
        for index in indices:
            batch = self.collate(rows.take([index]))
            places = torch.arange(int(batch["length"]))
            distances = (places[:, None] - places).abs().clamp(max=len(share) - 1)
            scores = share[distances].logit(1e-6)[None]
            statistics.append(self.scores(scores, batch)[0])
            lengths.append(batch["length"])
        return {"by distance": (torch.cat(statistics), torch.cat(lengths))}

    def finish(self, file: Path, rows, indices: np.ndarray) -> list[Path]:
        folder, drawn = file.parent.parent / "figures" / file.stem, []
        given = rows.take(indices[:DRAWN])
        for row, predicted in zip(given, read(file), strict=False):
            first, length = int(predicted["first"]), int(predicted["length"])
            true = None
            if self.labelled:
                true = (self.collate([row])["labels"][0] == 1).triu(1).nonzero() + first
            name = str(row[rows.id_col]) if rows.id_col else rows.where(int(predicted["row"]))
            path, span = folder / f"map_{len(drawn) + 1}.png", (first, first + length)
            pairs, scores = predicted["pairs"], predicted["probability"]
            drawn.append(contact_map(path, span, pairs, scores, true, name))
        return drawn


if __name__ == "__main__":
    run(PairwiseClassification, Config)
