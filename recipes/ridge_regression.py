"""Ridge regression in closed form on a backbone's output: the classic baseline, or a linear probe.

In: sequences and numbers. Every row becomes one vector (all positions side by side, pooled, or
words counted); the penalty is chosen by cross-validation on the training rows alone.

    python recipes/ridge_regression.py                     # one-hot, seconds, CPU, bundled data
    python recipes/ridge_regression.py --backbone esm2_8m --pool mean --data variants.csv
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.targets.facts import number_facts, number_yardsticks
from mgen.figures import regression_figures
from mgen.methods import linear
from mgen.metrics import regression_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Ridge regression."""

    backbone: Backbone = backbone("dna_onehot")
    data: Table = table("promoters_tiny")
    train: Train = Train(epochs=0, batch_size=256)
    pool: tuple[linear.Pool, ...] = ("mean",)  # one or several, side by side
    kmers: int = 6  # letters of the longest words that --pool kmers counts
    standardise: bool = False  # divide features by their standard deviation in training
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # tried ones
    cv_folds: int = 5  # of the training rows, to choose the penalty
    special_tokens: bool = False  # use [CLS] and the like too


class RidgeRegression(Task):
    kind = "numbers"
    num_rows = 0  # of training, set by `learn`

    def learn(self, rows, splits) -> list[str]:
        notes = linear.check_settings(self, rows, splits)
        self.facts = number_facts(rows, splits, "train", self.facts)
        return notes

    def build(self) -> None:
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.head = nn.Linear(linear.num_features(self), len(self.cfg.data.y_cols))

    def pooling(self) -> str:
        return linear.pooling(self.cfg.pool)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = self.cfg.data.labels(rows)
        return batch if labels is None else {**batch, "labels": labels}

    @torch.no_grad()
    def initialise(self, batches) -> None:
        x, y = linear.training_matrix(self, batches())
        cfg = self.cfg
        weight, bias, penalty = ridge(x, y, cfg.penalties, cfg.cv_folds, cfg.standardise)
        self.facts["penalty"] = penalty
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, K)
        return self.head(linear.features(self, batch))

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


def ridge(x: Tensor, y: Tensor, penalties, folds: int, standardise: bool = False):
    """Weights (K, P), biases (K,) and the penalty of the least squared error in `folds` folds.

    Minimises |y - xw - b|^2 + penalty |w|^2 over x (N, P) and y (N, K) without penalising b (Hoerl
    and Kennard 1970), through Gram matrices: that of a fold's training rows is the one of all rows
    without that of the fold. Rows are dealt to folds by a fixed shuffle.
    """
    x, restore = linear.compact(x, standardise)
    level = y.double().mean(0)
    y = y.double() - level
    gram, cross = x.T @ x, x.T @ y
    deal = linear.shuffled(len(x)) % folds
    errors = dict.fromkeys(sorted(penalties), 0.0)
    for fold in range(folds):
        held_x, held_y = x[deal == fold], y[deal == fold]
        count = len(x) - len(held_x)
        mean_x, mean_y = -held_x.sum(0) / count, -held_y.sum(0) / count  # of those that are left
        part = gram - held_x.T @ held_x - count * torch.outer(mean_x, mean_x)
        right = cross - held_x.T @ held_y - count * torch.outer(mean_x, mean_y)
        for penalty in errors:
            weight = torch.cholesky_solve(right, linear.root(part, penalty))
            errors[penalty] += ((held_x - mean_x) @ weight + mean_y - held_y).square().sum().item()
    best = linear.best(errors)
    weight = torch.cholesky_solve(cross, linear.root(gram, best))
    return *restore(weight, level), best


if __name__ == "__main__":
    run(RidgeRegression, Config)
