"""Ridge regression in closed form on a backbone's output: the classic baseline, or a linear probe.

In: sequences and numbers. Every row becomes one vector (all positions side by side, or pooled);
the penalty is chosen by cross-validation on the training rows alone.

    python recipes/ridge_regression.py                     # one-hot, seconds, CPU, bundled data
    python recipes/ridge_regression.py --backbone esm2_8m --pool mean --data variants.csv
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mgen.adapters.pooling import cls_pool, flatten, max_pool, mean_pool
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.data.targets.facts import number_facts, number_yardsticks
from mgen.figures import regression_figures
from mgen.metrics import regression_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Ridge regression."""

    backbone: Backbone = backbone("dna_onehot")
    data: Table = table("promoters_tiny")
    train: Train = Train(epochs=0, batch_size=256)
    pool: Literal["flatten", "mean", "max", "cls"] = "mean"  # flatten: rows of one length
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # tried ones
    cv_folds: int = 5  # of the training rows, to choose the penalty
    special_tokens: bool = False  # use [CLS] and the like too


class RidgeRegression(Task):
    kind = "numbers"

    def learn(self, rows, splits) -> None:
        cfg, count = self.cfg, len(rows.splits.get("train", ()))
        self.per_position = cfg.pool == "flatten"
        if cfg.pool == "cls" and not self.tokenizer.style.start:
            raise InputError("--pool cls reads the start token, but this backbone has none")
        if not cfg.penalties or not all(0 < p < math.inf for p in cfg.penalties):
            raise InputError("--penalties: expected one or more numbers above 0")
        if "train" in splits and not 2 <= cfg.cv_folds <= count:
            raise InputError(f"--cv-folds {cfg.cv_folds}: expected 2 to {count}, the training rows")
        self.facts = number_facts(rows, splits, "train", self.facts)

    def build(self) -> None:
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        width = self.backbone.width * (self.length if self.cfg.pool == "flatten" else 1)
        self.head = nn.Linear(width, len(self.cfg.data.y_cols))

    def pooling(self) -> str:
        return "" if self.cfg.pool == "flatten" else self.cfg.pool

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = self.cfg.data.labels(rows)
        return batch if labels is None else {**batch, "labels": labels}

    def features(self, batch: dict[str, Tensor]) -> Tensor:  # (B, P)
        hidden, mask = self.backbone(batch), self.pooled(batch)
        if self.cfg.pool == "flatten":
            return flatten(hidden, mask, self.length)
        return {"mean": mean_pool, "max": max_pool, "cls": cls_pool}[self.cfg.pool](hidden, mask)

    @torch.no_grad()
    def initialise(self, batches) -> None:
        pairs = [(self.features(batch).double(), batch["labels"].double()) for batch in batches()]
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weight, bias, self.facts["penalty"] = ridge(x, y, self.cfg.penalties, self.cfg.cv_folds)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, K)
        return self.head(self.features(batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs - batch["labels"]) ** 2

    def metrics(self) -> dict:
        return regression_metrics(len(self.cfg.data.y_cols))

    def columns(self, values: Tensor) -> dict[str, Tensor]:
        return {f"predicted_{y}": values[:, k] for k, y in enumerate(self.cfg.data.y_cols)}

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return number_yardsticks(rows, indices, self.facts)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        return regression_figures(folder, self.cfg.data.y_cols, predictions, labels)


def ridge(x: Tensor, y: Tensor, penalties: tuple[float, ...], folds: int):
    """Weights (K, P), biases (K,) and the penalty of the least squared error in `folds` folds.

    Minimises |y - xw - b|^2 + penalty |w|^2 over x (N, P) and y (N, K) without penalising b (Hoerl
    and Kennard 1970), through the singular values of x, so that one decomposition serves all
    penalties. Rows are dealt to folds by a fixed shuffle.
    """
    penalties = torch.tensor(sorted(penalties), dtype=x.dtype)
    varies = x.std(0, correction=0) > 0  # a constant column gets weight 0 from any penalty
    narrow = x[:, varies]
    deal = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) % folds
    errors = torch.zeros(len(penalties), dtype=x.dtype)
    for fold in range(folds):
        kept = deal != fold
        for i, (weight, bias) in enumerate(_solve(narrow[kept], y[kept], penalties)):
            errors[i] += ((narrow[~kept] @ weight + bias - y[~kept]) ** 2).sum()
    best = penalties[errors.argmin()]
    ((weight, bias),) = _solve(narrow, y, best[None])
    whole = x.new_zeros(x.shape[1], y.shape[1])
    whole[varies] = weight
    return whole.T, bias, best.item()


def _solve(x: Tensor, y: Tensor, penalties: Tensor) -> list[tuple[Tensor, Tensor]]:
    center, level = x.mean(0), y.mean(0)
    u, s, v = torch.linalg.svd(x - center, full_matrices=False)
    solved = []
    for penalty in penalties:
        weight = v.T @ ((s / (s**2 + penalty))[:, None] * (u.T @ (y - level)))
        solved.append((weight, level - center @ weight))
    return solved


if __name__ == "__main__":
    run(RidgeRegression, Config)
