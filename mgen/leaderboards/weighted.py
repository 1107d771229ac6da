"""Metrics with whole-number weights: each value is that of the rows repeated so many times.

M entries, r resamples, C classes, K columns, G distinct values. Weights are (r, M) float64. A
metric is prepared once, by `prepare`, which sorts; the function it returns gives (r,) values for
any weights without sorting again. Definitions are those of `mgen.metrics`, where they are cited.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgen.metrics import Arrange, classification_metrics, regression_metrics
from mgen.metrics.variants import TOP

Weighted = Callable[[Tensor], Tensor]  # weights (r, M) -> values (r,)


def prepare(metric: str, kind: str, predictions: Tensor, labels: Tensor) -> Weighted | None:
    """The weighted form of a metric, or None where it has none; kinds are those of `resampled`.

    Raises ValueError as the metric itself does for shapes and values it cannot take.
    """
    if kind == "numbers" and metric in NUMBERS:
        arrange = _arrange_numbers(predictions[0].numel())
        return _mean(NUMBERS[metric], *arrange(predictions, labels))
    if kind == "variants" and metric in VARIANTS:
        return VARIANTS[metric](*_arrange_variants(predictions, labels))
    if kind not in ("classes", "labels") or metric not in (*RANKED, *COUNTED):
        return None
    is_multilabel = kind == "labels"
    classes = predictions.shape[1] if predictions.ndim == 2 else 1
    classes = classes if is_multilabel else max(classes, 2)
    x, y = _arrange_classes(metric, classes, is_multilabel)(predictions, labels)
    if metric in RANKED:
        return _mean(RANKED[metric], x.double(), y.double(), skips_nan=True)
    return _counted(metric, _tallies(x, y, classes, is_multilabel), is_multilabel, classes == 2)


@functools.cache  # making the metrics takes longer than resampling a few hundred rows
def _arrange_numbers(outputs: int) -> Arrange:
    return regression_metrics(outputs)["mse"].arrange


@functools.cache
def _arrange_classes(metric: str, classes: int, is_multilabel: bool) -> Arrange:
    return classification_metrics(classes, is_multilabel)[metric].arrange


def _mean(score: Callable, x: Tensor, y: Tensor, skips_nan: bool = False) -> Weighted:
    """The mean of a metric over the columns of predictions and labels, (M, K) both."""
    columns = [score(*column) for column in zip(x.T, y.T, strict=True)]

    def value(weights: Tensor) -> Tensor:
        values = torch.stack([column(weights) for column in columns])
        return values.nanmean(0) if skips_nan else values.mean(0)

    return value


def _arrange_variants(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores and labels (M,), and 0/1 labels (M,), or None: those above the resample's median."""
    truth = labels.double().view(len(labels), -1)
    scores = scores.double().flatten()
    if truth.shape[1] > 2 or len(scores) != len(truth):
        shapes = f"{tuple(scores.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"scores {shapes}: expected (N,), and labels (N,) or (N, 2)")
    if not (scores.isfinite().all() and truth.isfinite().all()):
        raise ValueError("scores or labels hold nan or infinite values")
    is_binary = bool(((truth[:, -1] == 0) | (truth[:, -1] == 1)).all())
    if truth.shape[1] == 2 and not is_binary:
        raise ValueError("the second column of labels holds other values than 0 and 1")
    return scores, truth[:, 0], truth[:, -1] if is_binary else None


# --------------------------------------------------------------------------- sorted once


class Sorted:
    """The order of values (M,), and what follows from it for any weights."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.group, counts = values.unique(return_inverse=True, return_counts=True)
        self.order, self.last = self.group.argsort(stable=True), counts.cumsum(0) - 1

    def sums(self, weights: Tensor) -> Tensor:
        """Weight of each distinct value (r, G), smallest first; exact, as weights are whole."""
        ordered = weights[:, self.order]
        if len(self.values) == weights.shape[1]:
            return ordered
        below = ordered.cumsum(1)[:, self.last]
        return below.diff(dim=1, prepend=below.new_zeros(len(below), 1))

    def ranks(self, weights: Tensor) -> Tensor:
        """Rank of each entry (r, M) among the repeated ones, ties sharing their mean rank."""
        sums = self.sums(weights)
        return (sums.cumsum(1) - (sums - 1) / 2)[:, self.group]

    def quantile(self, weights: Tensor, share: float) -> Tensor:
        """Quantile (r, 1) of the repeated values, interpolated linearly as numpy does."""
        below = self.sums(weights).cumsum(1)
        place = (below[:, -1:] - 1).clamp(min=0) * share
        low, high = (
            self.values[torch.searchsorted(below, at, right=True).clamp(max=len(self.values) - 1)]
            for at in (place.floor(), place.ceil())
        )
        part = place - place.floor()  # the two forms keep numpy's last bit: values are compared
        return torch.where(part < 0.5, low + (high - low) * part, high - (high - low) * (1 - part))


def _total(weights: Tensor) -> Tensor:
    return weights.sum(1)


def _extremes(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of the values (M,) that have weight, (r,) each."""
    has = weights > 0
    return (
        torch.where(has, values, torch.inf).amin(1),
        torch.where(has, values, -torch.inf).amax(1),
    )


# --------------------------------------------------------------------------- numbers, (M,) each


def _pearson(x: Tensor, y: Tensor) -> Weighted:
    x, y = x - x.median(), y - y.median()  # sums of squares keep their digits
    products = torch.stack([x, y, x * x, y * y, x * y], 1)

    def value(weights: Tensor) -> Tensor:
        a, b, aa, bb, ab = (weights @ products / _total(weights)[:, None]).unbind(1)
        r = (ab - a * b) / ((aa - a * a) * (bb - b * b)).sqrt()
        for values in (x, y):
            low, high = _extremes(weights, values)
            r = torch.where(low < high, r, torch.nan)
        return r

    return value


def _spearman(x: Tensor, y: Tensor) -> Weighted:
    first, second = Sorted(x), Sorted(y)

    def value(weights: Tensor) -> Tensor:
        middle = (_total(weights)[:, None] + 1) / 2
        a, b = first.ranks(weights) - middle, second.ranks(weights) - middle
        c = weights * a
        return (c * b).sum(1) / ((c * a).sum(1) * (weights * b * b).sum(1)).sqrt()

    return value


def _error(x: Tensor, y: Tensor, power: int, root: bool = False) -> Weighted:
    errors = (x - y).abs() ** power

    def value(weights: Tensor) -> Tensor:
        mean = weights @ errors / _total(weights)
        return mean.sqrt() if root else mean

    return value


def _r2(x: Tensor, y: Tensor) -> Weighted:
    errors, centred = (x - y) ** 2, y - y.median()

    def value(weights: Tensor) -> Tensor:
        low, high = _extremes(weights, y)
        residual, total = weights @ errors, _total(weights)
        spread = weights @ centred**2 - (weights @ centred) ** 2 / total
        alike = torch.where(residual > 0, 0.0, 1.0)  # as scikit-learn has it
        r2 = torch.where(low < high, 1 - residual / spread, alike)
        return torch.where(total > 1, r2, torch.nan)

    return value


# --------------------------------------------------------------------------- against 0/1 labels


def _auroc(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    ordered = Sorted(x)

    def value(weights: Tensor, labels: Tensor) -> Tensor:
        hits = ordered.sums(weights * labels)
        misses = ordered.sums(weights * (1 - labels))
        above = (hits * (misses.cumsum(1) - misses / 2)).sum(1)
        return above / (hits.sum(1) * misses.sum(1))

    return value


def _auprc(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    ordered = Sorted(-x)

    def value(weights: Tensor, labels: Tensor) -> Tensor:
        hits, either = ordered.sums(weights * labels), ordered.sums(weights)
        precision = (hits.cumsum(1) / either.cumsum(1)).nan_to_num()  # no weight yet, no hits
        value = (hits * precision).sum(1) / hits.sum(1)
        return torch.where(hits.sum(1) < _total(weights), value, torch.nan)

    return value


def _mcc_at_median(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    ordered = Sorted(x)

    def value(weights: Tensor, labels: Tensor) -> Tensor:
        chosen = (x >= ordered.quantile(weights, 0.5)).double()
        s, t = (weights * chosen).sum(1), (weights * labels).sum(1)
        n, both = _total(weights), (weights * chosen * labels).sum(1)
        return _correlation(both * n - s * t, s * (n - s) * t * (n - t))

    return value


def _fixed(score: Callable) -> Callable[[Tensor, Tensor], Weighted]:
    def prepared(x: Tensor, y: Tensor) -> Weighted:
        value = score(x)
        return lambda weights: value(weights, y)

    return prepared


def _binned(score: Callable) -> Callable:
    """Labels are `bins`; without any, those above the median of the resample are 1."""

    def prepared(x: Tensor, y: Tensor, bins: Tensor | None) -> Weighted:
        if bins is not None:
            return _fixed(score)(x, bins)
        value, ordered = score(x), Sorted(y)
        return lambda weights: value(weights, (y > ordered.quantile(weights, 0.5)).double())

    return prepared


# --------------------------------------------------------------------------- variants


def _unbinned(score: Callable) -> Callable:
    return lambda x, y, bins: score(x, y)


def _top_recall(x: Tensor, y: Tensor) -> Weighted:
    first, second = Sorted(x), Sorted(y)

    def value(weights: Tensor) -> Tensor:
        is_top = weights * (y >= second.quantile(weights, 1 - TOP))
        chosen = x >= first.quantile(weights, 1 - TOP)
        return (is_top * chosen).sum(1) / is_top.sum(1)

    return value


def _ndcg(x: Tensor, y: Tensor) -> Weighted:
    orders = [(-values).argsort(stable=True) for values in (x, y)]  # equal ones: as given
    y = y - y.median()

    def value(weights: Tensor) -> Tensor:
        total = _total(weights)
        top = (total * TOP).floor()[:, None]
        places = torch.arange(2, int(top.max()) + 2, dtype=torch.float64)
        discounts = torch.cat([places.new_zeros(1), (1 / places.log2()).cumsum(0)])
        low, high = _extremes(weights, y)
        gained, best = (_gain(weights[:, order], y[order], top, discounts) for order in orders)
        least = low * discounts[top[:, 0].long()]
        value = (gained - least) / (best - least)
        return torch.where((low < high) & (top[:, 0] >= 1), value, torch.nan)

    return value


def _gain(weights: Tensor, labels: Tensor, top: Tensor, discounts: Tensor) -> Tensor:
    """Discounted sum (r,) of labels in this order over the first `top` (r, 1) repeated ones."""
    after = discounts[weights.cumsum(1).minimum(top).long()]
    return after.diff(dim=1, prepend=after.new_zeros(len(after), 1)) @ labels


# --------------------------------------------------------------------------- counts


def _tallies(predictions: Tensor, labels: Tensor, classes: int, is_multilabel: bool) -> list:
    """Pairs (predicted, true) of class numbers (M,), and how many classes, one per label."""
    if is_multilabel:
        pairs = zip((predictions > 0.5).long().T, labels.T, strict=True)
        return [(*pair, 2) for pair in pairs]
    if predictions.ndim == 1:
        return [((predictions > 0.5).long(), labels, 2)]
    return [(predictions.argmax(1), labels, classes)]


def _counted(metric: str, pairs: Sequence, is_multilabel: bool, is_binary: bool) -> Weighted:
    """Accuracy, F1 or MCC; of several labels the mean, but MCC of the flattened labels."""

    def value(weights: Tensor) -> Tensor:
        counts = [_count(weights, *pair) for pair in pairs]
        if metric == "mcc":
            return _mcc(*(torch.stack(parts).sum(0) for parts in zip(*counts, strict=True)))
        values = [COUNTED[metric](*count, is_multilabel or is_binary) for count in counts]
        return torch.stack(values).mean(0)

    return value


def _count(weights: Tensor, predicted: Tensor, true: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Weight of the hits, the predictions and the labels of each class, (r, C) each."""
    empty = weights.new_zeros(len(weights), classes)
    right = weights * (predicted == true)
    parts = ((true, right), (predicted, weights), (true, weights))
    return tuple(empty.index_add(1, group, part) for group, part in parts)


def _accuracy(hits: Tensor, predicted: Tensor, true: Tensor, _: bool) -> Tensor:
    return hits.sum(1) / true.sum(1)


def _f1(hits: Tensor, predicted: Tensor, true: Tensor, of_class_one: bool) -> Tensor:
    """F1 of class 1, 0 where it is neither there nor predicted; or mean of the classes seen."""
    each = 2 * hits / (predicted + true)
    return each[:, 1].nan_to_num() if of_class_one else each.nanmean(1)


def _mcc(hits: Tensor, predicted: Tensor, true: Tensor, _: bool = False) -> Tensor:
    """Matthews correlation of C classes (Gorodkin 2004); 0 where either side is constant."""
    n = true.sum(1)
    covariance = hits.sum(1) * n - (predicted * true).sum(1)
    spreads = (n * n - (side * side).sum(1) for side in (predicted, true))
    return _correlation(covariance, torch.stack([*spreads]).prod(0))


def _correlation(covariance: Tensor, spread: Tensor) -> Tensor:
    return torch.where(spread > 0, covariance / spread.sqrt(), 0.0)


RANKED = {"auroc": _fixed(_auroc), "auprc": _fixed(_auprc)}
COUNTED = {"accuracy": _accuracy, "f1": _f1, "mcc": _mcc}
NUMBERS = {
    "pearson": _pearson,
    "spearman": _spearman,
    "mae": lambda x, y: _error(x, y, 1),
    "mse": lambda x, y: _error(x, y, 2),
    "rmse": lambda x, y: _error(x, y, 2, root=True),
    "r2": _r2,
}
VARIANTS = {
    "spearman": _unbinned(_spearman),
    "ndcg": _unbinned(_ndcg),
    "auroc": _binned(_auroc),
    "auprc": _binned(_auprc),
    "mcc": _binned(_mcc_at_median),
    "top_recall": _unbinned(_top_recall),
}
