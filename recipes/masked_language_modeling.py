"""Train a language model to fill in masked letters: from scratch, or further on other sequences.

In: sequences, without labels. Out: a run directory that other recipes take as --backbone, with its
language-model head; loss, accuracy and perplexity of the masked letters of each row.

    python recipes/masked_language_modeling.py              # seconds, CPU, bundled data
    python recipes/masked_language_modeling.py --backbone esm2_8m --data sequences.fasta
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.data.targets.masking import Masking, check_masking, letter_counts, masked
from mgen.metrics.language import guess_sums, language_metrics, token_sums
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Masked language modelling."""

    backbone: Backbone = backbone("dna_tiny")
    adapter: Adapter = adapter("lm_head")
    data: Table = table("paired_sites_tiny")
    train: Train = Train(lr=5e-3, epochs=10)
    masking_rate: float = 0.15  # share of a row's letters that are selected, at least one of them
    masking: Masking = (
        "mask"  # selected ones are masked; bert: 80 %, 10 % another letter, 10 % kept
    )
    loss_on: Literal["masked", "all"] = "masked"  # all: every token, padding too, as published


class MaskedLanguageModeling(Task):
    views = ("augment",)
    length = 0  # no adapter of tokens has weights per position

    def learn(self, rows, splits) -> None:
        check_masking(self.tokenizer, self.cfg.masking_rate)
        self.cfg.adapter.check_gives("per token")
        if "train" in splits:
            counts = letter_counts(rows, rows.splits["train"], self.tokenizer).sum(0)
            self.facts["letters"] = (counts / max(counts.sum(), 1)).tolist()

    def build(self) -> None:
        if self.backbone.is_causal:
            raise InputError(
                f"{self.cfg.backbone.name} predicts the next token from those before it, so it "
                "cannot fill in masks; choose a masked language model"
            )
        self.head = self.make_head(self.backbone.config.vocab_size)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        batch = masked(batch, self.tokenizer, self.cfg.masking_rate, self.cfg.masking)
        if self.cfg.loss_on == "all":
            batch["selected"] = torch.ones_like(batch["selected"])
        return batch

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, L, V)
        return self.head(self.backbone(batch), batch["attention_mask"])

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        chosen = batch["selected"]
        return F.cross_entropy(outputs[chosen].float(), batch["targets"][chosen], reduction="none")

    def metrics(self) -> dict:
        return language_metrics()

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # (B, 3) sums
        return token_sums(outputs, batch["targets"], batch["selected"])

    def scores(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sums = self.values(outputs, batch)
        return sums, sums[:, 2]

    def columns(self, values: Tensor) -> dict[str, Tensor]:
        loss, accuracy = values[:, 0] / values[:, 2], values[:, 1] / values[:, 2]
        counts = {"masked": values[:, 2].long()}
        return {"loss": loss, "perplexity": loss.exp(), "accuracy": accuracy, **counts}

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        counts = torch.from_numpy(letter_counts(rows, indices, self.tokenizer))
        sums = guess_sums(counts, torch.tensor(self.facts["letters"]))
        return {"training letters": (sums, sums[:, 2])}


if __name__ == "__main__":
    run(MaskedLanguageModeling, Config)
