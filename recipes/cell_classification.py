"""Assign cells to classes: cell types, drugs, niches of a tissue.

In: counts of genes (.h5ad) with a column of obs that holds class names or numbers.
Out: metrics, predictions with class names and probabilities, a confusion matrix, ROC curves.

    python recipes/cell_classification.py                 # CPU, simulated cells
    python recipes/cell_classification.py --backbone aido_cell_3m --data.path cells.h5ad
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
    """Cell classification."""

    backbone: Backbone = backbone("aido_cell_debug")
    adapter: Adapter = adapter("max_pool_linear")
    data: Table = table("cells_tiny")
    train: Train = Train(lr=3e-3, epochs=12, batch_tokens=0, monitor="f1")
    classes: int = 0  # number of classes 0, 1, ...; 0: the classes found in the training rows
    class_weights: bool = False  # weigh rows by the inverse frequency of their class in training
    special_tokens: bool = False  # pool over the two depth tokens too


class CellClassification(Task):
    kind = "classes"

    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        self.per_position = cfg.adapter.per_position
        cfg.adapter.check_pools(has_start=bool(self.tokenizer.style.start))
        self.facts = class_facts(rows, splits, cfg.classes, False, self.facts)
        return check.classes(rows, self.facts["classes"]) if "train" in splits else []

    def build(self) -> None:
        outputs = len(self.facts["classes"])
        self.head = self.make_head(outputs)

    def pooling(self) -> str:
        return self.cfg.adapter.pools

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = targets(rows, self.cfg.data.y_cols, self.facts["classes"], False)
        return batch if labels is None else {**batch, "labels": labels}  # (B,)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, K)
        return self.head(self.backbone(batch), self.pooled(batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        losses = F.cross_entropy(outputs, batch["labels"], reduction="none")
        if not self.cfg.class_weights:
            return losses
        return losses, outputs.new_tensor(self.facts["weights"])[batch["labels"]]

    def metrics(self) -> dict:
        names = self.facts["classes"]
        return classification_metrics(len(names), False, names)

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # probabilities (B, K)
        return torch.softmax(outputs.float(), -1)

    def columns(self, values: Tensor) -> dict:
        names = self.facts["classes"]
        columns = {f"probability_{name}": values[:, k] for k, name in enumerate(names)}
        return {"predicted": [names[k] for k in values.argmax(1).tolist()]} | columns

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return class_yardsticks(rows, indices, self.facts, False)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        names = self.facts["classes"]
        return classification_figures(folder, labels.numpy(), predictions.numpy(), names)


if __name__ == "__main__":
    run(CellClassification, Config)
