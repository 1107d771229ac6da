"""Predict one or more numbers from a cell: the age of its donor, the density of its tissue.

In: counts of genes (.h5ad) with numbers in columns of obs.
Out: metrics, predictions in the labels' units, a figure.

    python recipes/cell_regression.py                     # CPU, simulated cells
    python recipes/cell_regression.py --loss l1 --backbone aido_cell_3m --data.path clock.h5ad
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.targets.facts import check_minimum, number_facts, number_yardsticks, scaled, unscaled
from mgen.figures import regression_figures
from mgen.metrics import regression_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cell regression."""

    backbone: Backbone = backbone("aido_cell_debug")
    adapter: Adapter = adapter("mean_pool_linear")
    data: Table = table("cells_tiny", y_cols=("age",))
    train: Train = Train(lr=3e-3, epochs=12, batch_tokens=0)
    loss: Literal["mse", "l1", "huber"] = "mse"  # on scaled labels
    scale: Literal["train", "train+valid", "none"] = "train"  # rows whose mean and std scale labels
    minimum: tuple[float, ...] = ()  # least value of the labels, or of each; predictions below rise
    special_tokens: bool = False  # pool over the two depth tokens too


class CellRegression(Task):
    kind = "numbers"

    def learn(self, rows, splits) -> None:
        self.per_position = self.cfg.adapter.per_position
        self.cfg.adapter.check_pools(has_start=bool(self.tokenizer.style.start))
        check_minimum(self.cfg.minimum, len(self.cfg.data.y_cols))
        self.facts = number_facts(rows, splits, self.cfg.scale, self.facts)

    def build(self) -> None:
        outputs = len(self.cfg.data.y_cols)
        self.head = self.make_head(outputs)

    def pooling(self) -> str:
        return self.cfg.adapter.pools

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = self.cfg.data.labels(rows)  # (B, K), None when unlabelled rows are predicted
        return batch if labels is None else {**batch, "labels": labels}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, K) in scaled units
        hidden = self.backbone(batch)  # (B, L, D)
        return self.head(hidden, self.pooled(batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        losses = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        labels = scaled(batch["labels"], self.facts)
        return losses[self.cfg.loss](outputs, labels, reduction="none")  # the loop averages

    def metrics(self) -> dict:
        return regression_metrics(len(self.cfg.data.y_cols))

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # in the labels' units
        return unscaled(outputs, self.facts, self.cfg.minimum)

    def columns(self, values: Tensor) -> dict[str, Tensor]:
        names = self.cfg.data.y_cols
        return {f"predicted_{name}": values[:, k] for k, name in enumerate(names)}

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return number_yardsticks(rows, indices, self.facts)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        names = self.cfg.data.y_cols
        return regression_figures(folder, names, predictions.numpy(), labels.numpy())


if __name__ == "__main__":
    run(CellRegression, Config)
