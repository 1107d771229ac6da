"""Assign each residue to a class, e.g. secondary structure, binding sites, modifications.

In: a table of sequences with a column of one letter per residue, or of lists of classes.
Out: metrics over residues, predictions as text, a confusion matrix and ROC curves.

    python recipes/token_classification.py                  # seconds, CPU, bundled data
    python recipes/token_classification.py --backbone esm2_8m --data proteins.tsv --data.y-cols ss3
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.targets.token_labels import (
    IGNORED,
    ResidueLabels,
    token_columns,
    token_facts,
    token_targets,
    token_yardsticks,
)
from mgen.figures import classification_figures
from mgen.metrics import classification_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Token classification."""

    backbone: Backbone = backbone("dna_onehot")
    adapter: Adapter = adapter("token_cnn")
    data: Table = table("hairpins_tiny")
    train: Train = Train(lr=5e-3, epochs=3)
    classes: tuple[str, ...] = ()  # classes in the order of outputs; none: those that occur
    multilabel: bool = False  # 0/1 columns (--data.y-cols a b c), or one column of 0/1 vectors
    mask_col: str = ""  # column that says which residues count, one letter each; empty: all do
    mask_keep: str = "1"  # letters of that column that count
    ignore: str = ""  # letters of the labels that do not count
    class_weights: bool = False  # weigh residues by the inverse frequency of their class
    special_tokens: bool = True  # adapters that look at neighbours see [CLS] and the like too
    probabilities: bool = False  # predictions hold the probabilities of every residue too

    @property
    def labels(self) -> ResidueLabels:
        marks = (self.mask_col, self.mask_keep, self.ignore)
        return ResidueLabels(self.data.y_cols, self.multilabel, *marks)


class TokenClassification(Task):
    @property
    def kind(self) -> str:  # of `forward`'s logits
        return "labels" if self.cfg.multilabel else "classes"

    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        cfg.adapter.check_gives("per token")
        self.facts, notes = token_facts(
            rows, splits, cfg.labels, self.tokenizer, cfg.classes, self.facts
        )
        return notes

    def build(self) -> None:
        self.head = self.make_head(len(self.facts["classes"]))

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        if self.labelled:  # (B, L) or (B, L, K)
            names, cut = self.facts["classes"], self.tokenizer.truncate
            batch["labels"] = token_targets(rows, self.cfg.labels, names, batch, cut)
        return batch

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, L, C)
        return self.head(self.backbone(batch), self.pooled(batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        counted = self.counted(batch)
        logits, labels = outputs[counted], batch["labels"][counted]  # (N, C); (N,) or (N, K)
        if self.cfg.multilabel:
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        losses = F.cross_entropy(logits, labels, reduction="none")
        if not self.cfg.class_weights:
            return losses
        return losses, logits.new_tensor(self.facts["weights"])[labels]

    def metrics(self) -> dict:
        names = self.facts["classes"]
        return classification_metrics(len(names), self.cfg.multilabel, names)

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # (B, L, C)
        logits = outputs.float()
        return torch.sigmoid(logits) if self.cfg.multilabel else torch.softmax(logits, -1)

    def scores(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        counted = self.counted(batch)
        owner = counted.nonzero()[:, 0]
        return self.values(outputs, batch)[counted], batch["labels"][counted], owner

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        residues = batch["special_tokens_mask"] == 0  # (B, L)
        values = self.values(outputs, batch).cpu()
        rows = [row[kept] for row, kept in zip(values, residues.cpu(), strict=True)]  # (L_i, C)
        columns = token_columns(rows, self.facts["classes"], self.cfg.multilabel)
        return columns | ({"probabilities": rows} if self.cfg.probabilities else {})

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return token_yardsticks(rows, indices, self.cfg.labels, self.facts)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        names = self.facts["classes"]
        compared = labels.numpy(), predictions.numpy()
        return classification_figures(folder, *compared, names, "residues")

    def counted(self, batch: dict[str, Tensor]) -> Tensor:  # residues that count, bool (B, L)
        labels = batch["labels"]
        return (labels[..., 0] if self.cfg.multilabel else labels) != IGNORED


if __name__ == "__main__":
    run(TokenClassification, Config)
