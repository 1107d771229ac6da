"""Metrics over all rows of a split. N rows, C classes, K outputs or labels.

A metric is fed with `update(predictions, labels)` batch by batch, on any device; it never talks to
other processes, so in a distributed run it is handed gathered rows. Too little data for a value
(one row for a correlation, one class for AUROC) gives nan and a warning, never an exception.
Errors and counts come from torchmetrics. Those that need all rows at once are ours: torchmetrics'
Pearson is nan for labels of small scale (1e-6), its Spearman overflows on long ties, its R2 takes
sums of squares below 1e-4 for zero (labels of scale 1e-3), and its AUROC is 0 where a class is
absent.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ALONE = {"sync_on_compute": False}  # metrics of torchmetrics ask other processes otherwise
Arrange = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Metric(nn.Module):
    """One value per output over the rows seen since `reset`; the base of the kinds below.

    `arrange` brings predictions and labels into the form the computation expects, or raises
    ValueError; `rows_needed` is the least number of rows that defines a value.
    """

    def __init__(
        self, arrange: Arrange, higher_is_better: bool = True, rows_needed: int = 1
    ) -> None:
        super().__init__()
        self.arrange, self.higher_is_better = arrange, higher_is_better
        self.rows_needed, self.rows = rows_needed, 0

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        predictions, labels = self.arrange(predictions.detach().cpu(), labels.detach().cpu())
        self.rows += len(predictions)
        self.add(predictions, labels)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """A scalar, one value per output, or both in a dict by suffix ("" for the scalar)."""
        if self.rows < self.rows_needed:
            warnings.warn(f"{self.rows} rows: {self.rows_needed} needed, gives nan", stacklevel=2)
            return torch.tensor(torch.nan)
        return self.value()

    def reset(self) -> None:
        self.rows = 0
        self.clear()


class Library(Metric):
    """A metric of torchmetrics; `names` are those of its values, if it has several."""

    def __init__(self, metric: nn.Module, *args, names: Sequence[str] = (), **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.metric, self.names = metric, names

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        self.metric.update(predictions, labels)

    def value(self) -> Tensor | dict[str, Tensor]:
        value = self.metric.compute()
        if not self.names:
            return value
        return {"": value.mean(), **dict(zip(self.names, value, strict=True))}

    def clear(self) -> None:
        self.metric.reset()


class Whole(Metric):
    """A function of all predictions and labels of a column at once, for each of K columns.

    With `macro` the value is the mean over the columns that have one, and with their names,
    `columns`, each column's value besides; otherwise it is the values of all columns.
    """

    def __init__(
        self,
        score: Callable[[Tensor, Tensor], Tensor],
        arrange: Arrange,
        rows_needed: int = 1,
        macro: bool = False,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__(arrange, rows_needed=rows_needed)
        self.score, self.macro, self.columns = score, macro, columns
        self.clear()

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        self.seen.append((predictions, labels))

    def value(self) -> Tensor | dict[str, Tensor]:
        columns = zip(*(torch.cat(part).T for part in zip(*self.seen, strict=True)), strict=True)
        values = torch.stack([self.score(x.double(), y.double()) for x, y in columns])
        undefined = values.isnan().nonzero().flatten().tolist()
        if undefined:
            warnings.warn(
                f"{self.score.__name__} is undefined (nan) for column(s) {undefined} of "
                f"{len(values)}: all labels or predictions there are equal",
                stacklevel=3,
            )
        if not self.macro:
            return values
        each = dict(zip(self.columns, values, strict=True)) if self.columns else {}
        return {"": values.nanmean(), **each}

    def clear(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []


def matthews(classes: int):
    """torchmetrics' Matthews correlation, but 0 where predictions or labels are all alike.

    There it divides by a small number instead, and of a constant guess remains more than nothing.
    """
    import torchmetrics.classification as tm

    if classes == 2:
        metric = tm.BinaryMatthewsCorrCoef(**ALONE)
    else:
        metric = tm.MulticlassMatthewsCorrCoef(classes, **ALONE)
    whole = metric.compute

    def compute() -> Tensor:
        varies = all((metric.confmat.sum(axis) > 0).sum() > 1 for axis in (0, 1))
        return whole() if varies else torch.zeros(())

    metric.compute = compute
    return metric


class MultilabelMCC(Metric):
    """Matthews correlation over the flattened labels, and of each label."""

    def __init__(self, labels: Sequence[str], arrange: Arrange) -> None:
        super().__init__(arrange)
        self.overall, self.labels = matthews(2), labels
        self.each = nn.ModuleList(matthews(2) for _ in labels)

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        self.overall.update(predictions.flatten(), labels.flatten())
        for metric, column, truth in zip(self.each, predictions.T, labels.T, strict=True):
            metric.update(column, truth)

    def value(self) -> dict[str, Tensor]:
        each = {k: metric.compute() for k, metric in zip(self.labels, self.each, strict=True)}
        return {"": self.overall.compute(), **each}

    def clear(self) -> None:
        for metric in (self.overall, *self.each):
            metric.reset()


def regression_metrics(outputs: int) -> dict[str, Metric]:
    """Pearson, Spearman (mean ranks for ties), MAE, MSE and R2 of each output, in float64.

    Predictions and labels: both (N,) or both (N, K); other or unequal shapes raise ValueError.
    """
    import torchmetrics

    def arrange(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _check_equal_shapes(predictions, labels)
        shape = (len(predictions), outputs)
        if predictions.numel() != len(predictions) * outputs:
            raise ValueError(f"predictions {tuple(predictions.shape)}: expected {shape}")
        return _finite(predictions).double().view(shape), _finite(labels).double().view(shape)

    def library(metric: nn.Module) -> Library:
        metric.set_dtype(torch.float64)
        return Library(metric, arrange, higher_is_better=False)

    each = {"num_outputs": outputs, **ALONE}
    return {
        "pearson": Whole(pearson, arrange, rows_needed=2),
        "spearman": Whole(spearman, arrange, rows_needed=2),
        "mae": library(torchmetrics.MeanAbsoluteError(**each)),
        "mse": library(torchmetrics.MeanSquaredError(**each)),
        "r2": Whole(r2, arrange, rows_needed=2),
    }


def classification_metrics(
    classes: int, multilabel: bool = False, names: Sequence[str] = ()
) -> dict[str, Metric]:
    """Accuracy, F1, MCC, AUROC and AUPRC from probabilities, threshold 0.5 or the largest.

    - two classes: (N, 2), or (N,) of class 1; F1, AUROC and AUPRC are those of class 1
    - more: (N, C); micro accuracy, macro F1, macro one-against-rest AUROC and AUPRC
    - multilabel: (N, K) against 0/1 labels (N, K); all macro but MCC, which is that of the
      flattened labels; each label's values besides, as `f1_` and its name (one of `names`, or its
      number from 0)

    Single labels are class numbers (N,) or (N, 1). Classes or labels that are never, or always,
    present leave AUROC and AUPRC undefined and are left out of their mean. Raises ValueError for
    other shapes and for values outside [0, 1].
    """
    from torchmetrics import classification as tm

    if multilabel:
        scored = counted = _arrange_multilabel(classes)
        of = {"num_labels": classes, "average": None, **ALONE}
        counts = {
            "accuracy": tm.MultilabelAccuracy(**of),
            "f1": tm.MultilabelF1Score(**of),
        }
    elif classes == 2:
        scored, counted = _arrange_binary, _flat(_arrange_binary)
        counts = {
            "accuracy": tm.BinaryAccuracy(**ALONE),
            "f1": tm.BinaryF1Score(**ALONE),
            "mcc": matthews(2),
        }
    else:
        scored, counted = _one_against_rest(classes), _arrange_multiclass(classes)
        counts = {
            "accuracy": tm.MulticlassAccuracy(classes, average="micro", **ALONE),
            "f1": tm.MulticlassF1Score(classes, average="macro", **ALONE),
            "mcc": matthews(classes),
        }
    each = list(names or map(str, range(classes))) if multilabel else []
    metrics: dict[str, Metric] = {
        name: Library(m, counted, names=each) for name, m in counts.items()
    }
    if multilabel:
        metrics["mcc"] = MultilabelMCC(each, counted)
    for score in (auroc, auprc):
        metrics[score.__name__] = Whole(score, scored, macro=True, columns=each)
    return metrics


def results(metrics: dict[str, Metric]) -> dict[str, float]:
    """Compute all: `name`, and `name_0`, `name_1`, ... where there are several outputs or labels.

    `name` is then their mean, unless the metric says otherwise. torchmetrics' own metrics work too.
    """
    table: dict[str, float] = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if not isinstance(value, dict):
            each = value.flatten().tolist()
            value = {"": sum(each) / len(each)}
            value |= {str(k): v for k, v in enumerate(each)} if len(each) > 1 else {}
        table |= {f"{name}_{key}" if key else name: float(v) for key, v in value.items()}
    return table


# --------------------------------------------------------------------------- float64 (N,) each


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties sharing their mean rank."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[group]


def pearson(predictions: Tensor, labels: Tensor) -> Tensor:
    """Linear correlation; nan where one side is constant, however small the other's spread."""
    if predictions.min() == predictions.max() or labels.min() == labels.max():
        return torch.full((), torch.nan, dtype=labels.dtype)
    x, y = (values - values.mean() for values in (predictions, labels))
    return (x / x.norm()) @ (y / y.norm())


def spearman(predictions: Tensor, labels: Tensor) -> Tensor:
    """Pearson correlation of the ranks; nan where one side is constant."""
    return pearson(ranks(predictions), ranks(labels))


def r2(predictions: Tensor, labels: Tensor) -> Tensor:
    """Coefficient of determination; of constant labels 1 if all are met, else 0.

    As scikit-learn's r2_score.
    """
    residual, spread = ((labels - other).square().sum() for other in (predictions, labels.mean()))
    if labels.min() == labels.max():
        return (residual == 0).to(labels.dtype)
    return 1 - residual / spread


def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """Chance that a positive row scores above a negative one, ties counting half.

    nan where all labels are alike.
    """
    positives = labels.sum()
    negatives = len(labels) - positives
    above = ranks(scores) @ labels - positives * (positives + 1) / 2
    return above / (positives * negatives)


def auprc(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision: sum of (R_n - R_{n-1}) P_n over distinct scores, highest first.

    nan where all labels are alike.
    """
    _, group, counts = scores.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=scores.dtype).scatter_add_(0, group, labels).flip(0)
    precision = hits.cumsum(0) / counts.flip(0).cumsum(0)
    value = (hits * precision).sum() / hits.sum()
    return value if hits.sum() < len(labels) else torch.full_like(value, torch.nan)


# --------------------------------------------------------------------------- shapes and values


def _check_equal_shapes(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape:
        shapes = f"{tuple(predictions.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"predictions {shapes} differ in shape")


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        count = int((~values.isfinite()).sum())
        raise ValueError(f"predictions or labels hold {count} nan or infinite values")
    return values


def _probabilities(values: Tensor) -> Tensor:
    if _finite(values).numel() and (values.min() < 0 or values.max() > 1):
        low, high = values.min(), values.max()
        raise ValueError(f"expected probabilities, found values from {low:.3g} to {high:.3g}")
    return values


def _class_numbers(predictions: Tensor, labels: Tensor) -> Tensor:
    if labels.numel() != len(predictions):
        shapes = f"{tuple(predictions.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"predictions {shapes}: expected one class number per row")
    return labels.flatten().long()


def _arrange_binary(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # (N, 1) both
    labels = _class_numbers(predictions, labels)
    if predictions.ndim > 2 or predictions.numel() not in (len(labels), 2 * len(labels)):
        raise ValueError(f"predictions {tuple(predictions.shape)}: expected (N, 2) or (N,)")
    return _probabilities(predictions).view(len(labels), -1)[:, -1:], labels[:, None]


def _flat(arrange: Arrange) -> Arrange:
    return lambda predictions, labels: tuple(t.flatten() for t in arrange(predictions, labels))


def _arrange_multiclass(classes: int) -> Arrange:  # (N, C), (N,)
    def arrange(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        labels = _class_numbers(predictions, labels)
        if predictions.shape != (len(labels), classes):
            raise ValueError(f"predictions {tuple(predictions.shape)}: expected (N, {classes})")
        return _probabilities(predictions), labels

    return arrange


def _one_against_rest(classes: int) -> Arrange:  # (N, C) both
    single = _arrange_multiclass(classes)

    def arrange(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        predictions, labels = single(predictions, labels)
        return predictions, labels[:, None] == torch.arange(classes)

    return arrange


def _arrange_multilabel(count: int) -> Arrange:  # (N, K) both
    def arrange(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _check_equal_shapes(predictions, labels)
        if predictions.shape != (len(predictions), count):
            raise ValueError(f"predictions {tuple(predictions.shape)}: expected (N, {count})")
        return _probabilities(predictions), labels.long()

    return arrange
