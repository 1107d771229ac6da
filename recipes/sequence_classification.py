"""Assign sequences to classes: two, many, or several labels at once.

In: a table of sequences with a column of class names or numbers, or with one 0/1 column per label.
Out: metrics, predictions with class names and probabilities, a confusion matrix, ROC curves.

    python recipes/sequence_classification.py               # seconds, CPU, bundled data
    python recipes/sequence_classification.py --backbone esm2_8m --data peptides_tiny
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.checking import check
from mgen.data.targets.facts import class_facts, class_yardsticks, targets
from mgen.figures import classification_figures
from mgen.metrics import classification_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sequence classification."""

    backbone: Backbone = backbone("aido_dna_debug")
    adapter: Adapter = adapter("mean_pool_mlp")
    data: Table = table("promoter_classes_tiny")
    train: Train = Train(lr=2e-3, epochs=3)
    classes: int = 0  # number of classes 0, 1, ...; 0: the classes found in the training rows
    multilabel: bool = False  # several 0/1 columns (--data.y-cols a b c), any number of them 1
    class_weights: bool = False  # weigh rows by the inverse frequency of their class in training
    special_tokens: bool = True  # pool over [CLS] and the like too, as published heads do


class SequenceClassification(Task):
    views = ("augment", "average")

    @property
    def kind(self) -> str:
        return "labels" if self.cfg.multilabel else "classes"

    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        self.per_position = cfg.adapter.per_position
        cfg.adapter.check_pools(has_start=bool(self.tokenizer.style.start))
        self.facts = class_facts(rows, splits, cfg.classes, cfg.multilabel, self.facts)
        if cfg.multilabel or "train" not in splits:
            return []
        return check.classes(rows, self.facts["classes"])

    def build(self) -> None:
        outputs = len(self.facts["classes"])
        self.head = self.make_head(outputs)

    def pooling(self) -> str:
        return self.cfg.adapter.pools

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = targets(rows, self.cfg.data.y_cols, self.facts["classes"], self.cfg.multilabel)
        return batch if labels is None else {**batch, "labels": labels}  # (B,) or (B, K)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, K)
        return self.head(self.backbone(batch), self.pooled(batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        if self.cfg.multilabel:
            labels = batch["labels"].float()
            return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none")
        losses = F.cross_entropy(outputs, batch["labels"], reduction="none")
        if not self.cfg.class_weights:
            return losses
        return losses, outputs.new_tensor(self.facts["weights"])[batch["labels"]]

    def metrics(self) -> dict:
        names = self.facts["classes"]
        return classification_metrics(len(names), self.cfg.multilabel, names)

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # probabilities (B, K)
        logits = outputs.float()
        return torch.sigmoid(logits) if self.cfg.multilabel else torch.softmax(logits, -1)

    def columns(self, values: Tensor) -> dict:
        names = self.facts["classes"]
        columns = {f"probability_{name}": values[:, k] for k, name in enumerate(names)}
        if self.cfg.multilabel:
            chosen = values > 0.5
            return {f"predicted_{name}": chosen[:, k] for k, name in enumerate(names)} | columns
        return {"predicted": [names[k] for k in values.argmax(1).tolist()]} | columns

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return class_yardsticks(rows, indices, self.facts, self.cfg.multilabel)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        names = self.facts["classes"]
        return classification_figures(folder, labels.numpy(), predictions.numpy(), names)


if __name__ == "__main__":
    run(SequenceClassification, Config)
