"""Logistic regression on a backbone's output: the classic baseline of classes, or a linear probe.

In: sequences and classes, or 0/1 labels. Every row becomes one vector (all positions side by side,
pooled, or words counted); the penalty is chosen by cross-validation on the training rows alone.

    python recipes/logistic_regression.py                  # one-hot, seconds, CPU, bundled data
    python recipes/logistic_regression.py --pool kmers --kmers 4
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.checking import check
from mgen.data.targets.facts import class_facts, class_yardsticks, targets
from mgen.figures import classification_figures
from mgen.methods import linear
from mgen.metrics import classification_metrics
from mgen.report import warn
from mgen.task import Task
from mgen.train import Train, run

STEPS = 1000  # of L-BFGS, more than it has been seen to need


@dataclass(frozen=True, kw_only=True)
class Config:
    """Logistic regression."""

    backbone: Backbone = backbone("dna_onehot")
    data: Table = table("promoter_classes_tiny")
    train: Train = Train(epochs=0, batch_size=256)
    pool: tuple[linear.Pool, ...] = ("mean",)  # one or several, side by side
    kmers: int = 6  # letters of the longest words that --pool kmers counts
    standardise: bool = False  # divide features by their standard deviation in training
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # tried ones
    cv_folds: int = 5  # of the training rows, to choose the penalty
    classes: int = 0  # number of classes 0, 1, ...; 0: the classes found in the training rows
    multilabel: bool = False  # several 0/1 columns (--data.y-cols a b c), any number of them 1
    class_weights: bool = False  # weigh rows by the inverse frequency of their class in training
    special_tokens: bool = False  # use [CLS] and the like too


class LogisticRegression(Task):
    num_rows = 0  # of training, set by `learn`

    @property
    def kind(self) -> str:
        return "labels" if self.cfg.multilabel else "classes"

    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        notes = linear.check_settings(self, rows, splits)
        self.facts = class_facts(rows, splits, cfg.classes, cfg.multilabel, self.facts)
        if cfg.multilabel or "train" not in splits:
            return notes
        return notes + check.classes(rows, self.facts["classes"])

    def build(self) -> None:
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.head = nn.Linear(linear.num_features(self), len(self.facts["classes"]))

    def pooling(self) -> str:
        return linear.pooling(self.cfg.pool)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        labels = targets(rows, self.cfg.data.y_cols, self.facts["classes"], self.cfg.multilabel)
        return batch if labels is None else {**batch, "labels": labels}  # (B,) or (B, K)

    @torch.no_grad()
    def initialise(self, batches) -> None:
        cfg, (x, y) = self.cfg, linear.training_matrix(self, batches())
        weights = torch.ones(len(y))
        if cfg.class_weights and not cfg.multilabel:
            weights = torch.tensor(self.facts["weights"])[y]
        classes = len(self.facts["classes"])
        weight, bias, penalty = logistic(
            x, y, classes, weights, cfg.penalties, cfg.cv_folds, cfg.standardise
        )
        self.facts["penalty"] = penalty
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # logits (B, K)
        return self.head(linear.features(self, batch))

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        losses = negative_log_likelihood(outputs, batch["labels"])
        if not self.cfg.class_weights or self.cfg.multilabel:
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


def negative_log_likelihood(logits: Tensor, y: Tensor) -> Tensor:
    """One per row for classes (N,); one per row and label for 0/1 labels (N, K)."""
    if y.ndim == 1:
        return F.cross_entropy(logits, y, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")


def logistic(
    x: Tensor, y: Tensor, classes: int, weights: Tensor, penalties, folds: int, standardise=False
):
    """Weights (K, P), biases (K,) and the penalty of the greatest likelihood in `folds` folds.

    Minimises the sum of the rows' losses, times `weights` (N,), plus penalty / 2 |w|^2 over x
    (N, P) and y, classes (N,) or 0/1 labels (N, K), without penalising biases: the objective of
    scikit-learn's LogisticRegression with C = 1 / penalty, features as they are. Of two classes the
    first has weights 0. Penalties are tried from the highest down until two in a row were worse.
    The rows of each class are dealt to folds by a fixed shuffle.
    """
    order = linear.shuffled(len(y))
    if y.ndim == 1:
        order = order[y[order].argsort(stable=True)]
    deal = torch.empty_like(order)
    deal[order] = torch.arange(len(y)) % folds
    is_pair = y.ndim == 1 and classes == 2
    y = y[:, None] if is_pair else y
    x, restore = linear.compact(x, standardise)
    # How the loss of a row curves where w is 0, on average; above 0 if all rows are of one class.
    hot = y.double() if y.ndim == 2 else F.one_hot(y, classes).double()
    curve = hot.var(0).mean().clamp(min=1e-3)
    gram, scale = curve * (x.T @ x), (curve * len(x)).sqrt()
    nothing = [x.new_zeros(size, hot.shape[1]) for size in (len(gram), 1)]
    starts, errors = [nothing] * folds, {}
    for penalty in sorted(penalties, reverse=True):
        root, errors[penalty] = linear.root(gram, penalty), 0.0
        for fold in range(folds):
            kept, held = deal != fold, deal == fold
            rows = (x[kept], y[kept], weights[kept])
            starts[fold] = w, b = _fit(*rows, penalty, root, scale, starts[fold], 1e-2)
            errors[penalty] += _loss(x[held] @ w + b, y[held], weights[held]).item()
        if min(errors.values()) not in [*errors.values()][-2:]:
            break  # lower ones are worse still, and slow
    best = linear.best(errors)
    w, b = _fit(x, y, weights, best, linear.root(gram, best), scale, nothing, 1e-6)
    weight, bias = restore(w, b[0])
    if is_pair:
        weight, bias = (torch.cat([torch.zeros_like(part), part]) for part in (weight, bias))
    return weight, bias, best


def _fit(x, y, weights, penalty: float, root: Tensor, scale: Tensor, start, tolerance: float):
    """Weights (R, K) and biases (1, K) by L-BFGS (Liu and Nocedal 1989) from `start`.

    The steps are made in v = root' w and scale * b, for which the Hessian at w = 0 is about the
    identity; they end when no entry of the gradient there is above `tolerance`.
    """
    v, level = (root.T @ start[0]).requires_grad_(), (scale * start[1]).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [v, level],
        max_iter=STEPS,
        history_size=30,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def current() -> tuple[Tensor, Tensor]:
        return torch.linalg.solve_triangular(root.T, v, upper=True), level / scale

    def closure() -> Tensor:
        optimiser.zero_grad()
        w, b = current()
        loss = _loss(x @ w + b, y, weights) + penalty / 2 * (w**2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    if optimiser.state[v]["n_iter"] == STEPS:
        warn(f"penalty {penalty:g}: not at the optimum after {STEPS:,} steps of L-BFGS")
    return tuple(part.detach() for part in current())


def _loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    return (negative_log_likelihood(logits, y).view(len(y), -1).sum(1) * weights).sum()


if __name__ == "__main__":
    run(LogisticRegression, Config)
