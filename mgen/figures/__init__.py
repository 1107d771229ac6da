"""Figures of test predictions as PNG. N rows, C classes, K labels.

Colours are those of Okabe and Ito and the cividis map, told apart with any colour vision. The size
of a file and the time to draw it are bounded for any number of rows.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MAX_DOTS = 5000  # more rows are drawn as a density
MAX_CURVE = 1000  # points of an ROC curve
MAX_NAMED = 20  # more classes are not named along a confusion matrix


def regression_figure(
    path: str | Path,
    measured: np.ndarray,
    predicted: np.ndarray,
    label: str = "label",
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Draw predicted against measured values (N,), with the line of equality.

    `label` names the quantity, with its unit if any; `metrics` go into the title. Non-finite pairs
    are left out and counted in the title.
    """
    measured, predicted = (np.asarray(v, dtype=float).ravel() for v in (measured, predicted))
    kept = np.isfinite(measured) & np.isfinite(predicted)
    figure, axes = _axes(5.2, 5.0)
    if len(measured[kept]) > MAX_DOTS:
        bins = axes.hexbin(
            measured[kept], predicted[kept], gridsize=60, bins="log", mincnt=1, cmap="cividis"
        )
        figure.colorbar(bins, ax=axes, label="rows")
    else:
        axes.scatter(measured[kept], predicted[kept], s=14, alpha=0.6, color=COLOURS[0], lw=0)
    if kept.any():
        both = np.concatenate([measured[kept], predicted[kept]])
        ends = (both.min(), both.max())
        axes.plot(ends, ends, color=COLOURS[1], lw=1.2, ls="--", label="predicted = measured")
        axes.legend(loc="upper left", frameon=False)
    axes.set(xlabel=f"measured {label}", ylabel=f"predicted {label}")
    counts = f"{kept.sum():,} rows" + ("" if kept.all() else f", {(~kept).sum():,} not finite")
    axes.set_title(_title(counts, metrics), fontsize=10)
    return _save(figure, path)


def regression_figures(
    folder: str | Path, names: Sequence[str], predictions: np.ndarray, labels: np.ndarray
) -> list[Path]:
    """Draw one `regression_figure` per column of (N, K) into `folder`, named after the column."""
    paths = []
    for k, name in enumerate(names):
        stem = re.sub(r"[^\w.-]+", "_", name)  # a column may be called "kcat/Km (1/s)"
        file = Path(folder) / (f"{k}_{stem}.png" if len(names) > 1 else f"{stem}.png")
        paths.append(regression_figure(file, labels[:, k], predictions[:, k], name))
    return paths


def classification_figures(
    folder: str | Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    unit: str = "rows",
) -> list[Path]:
    """Draw confusion.png and roc.png into `folder`; only the latter for several labels per row.

    labels (N,) class numbers with probabilities (N, C), or 0/1 labels (N, K) with (N, K). `unit`:
    what the N are.
    """
    labels, probabilities = np.asarray(labels).astype(int), np.asarray(probabilities, dtype=float)
    count = len(class_names)
    assert probabilities.shape == (len(labels), count), (probabilities.shape, len(labels), count)
    if labels.shape == probabilities.shape:
        return [_roc(Path(folder) / "roc.png", labels, probabilities, class_names, unit)]
    labels = labels.ravel()
    one_hot = labels[:, None] == np.arange(count)
    shown = (one_hot[:, 1:], probabilities[:, 1:], class_names[1:])  # the other curve mirrors it
    curves = shown if count == 2 else (one_hot, probabilities, class_names)
    path = Path(folder) / "confusion.png"
    return [
        _confusion(path, labels, probabilities.argmax(1), class_names, unit),
        _roc(Path(folder) / "roc.png", *curves, unit),
    ]


def _confusion(
    path: Path, labels: np.ndarray, predicted: np.ndarray, names: Sequence[str], unit: str
) -> Path:
    count = len(names)
    counts = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3.2 + 0.45 * min(count, MAX_NAMED)
    figure, axes = _axes(side + 1, side)
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    if count <= MAX_NAMED:
        axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
        for row, column in np.ndindex(count, count):
            colour = "black" if shares[row, column] > 0.5 else "white"
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    correct = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{counts.sum():,} {unit}, {correct:.1%} correct", fontsize=10)
    return _save(figure, path)


def _roc(
    path: Path, labels: np.ndarray, scores: np.ndarray, names: Sequence[str], unit: str
) -> Path:
    figure, axes = _axes(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    curves = [_roc_curve(labels[:, k], scores[:, k]) for k in range(len(names))]
    shown = [k for k, curve in enumerate(curves) if curve is not None][: len(COLOURS)]
    for k in shown:
        false, true = curves[k]
        area = np.trapezoid(true, false)
        thin = np.unique(np.linspace(0, len(false) - 1, MAX_CURVE).astype(int))
        axes.plot(false[thin], true[thin], color=COLOURS[k % len(COLOURS)], lw=1.6,
                  label=f"{names[k]} (AUROC {area:.3f})")  # fmt: skip
    if shown:
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    hidden = "" if len(shown) == len(names) else f", {len(shown)} of {len(names)} classes"
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set_title(f"{len(labels):,} {unit}{hidden}", fontsize=10)
    return _save(figure, path)


def _roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """False and true positive rates, highest score first; None where one side has no rows."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.append(0, np.cumsum(labels[order])[ends])
    false = np.append(0, ends + 1 - true[1:])
    return (false / false[-1], true / true[-1]) if true[-1] and false[-1] else None


def _axes(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(counts: str, metrics: Mapping[str, float] | None) -> str:
    values = ", ".join(f"{name} {value:.3g}" for name, value in (metrics or {}).items())
    return f"{counts}\n{values}" if values else counts


def _save(figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png")
    return path
