"""Embeddings in two dimensions, coloured by a column, as PNG. N rows, D width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.figures import COLOURS, _save

MARKS = "osD^vP*X"  # with as many colours, so that more classes can be told apart
MOST_NAMED, MOST_DRAWN, SEED = 24, 20_000, 0


def embedding_figure(
    path: str | Path,
    vectors: np.ndarray,
    values: Sequence[Any] | None = None,
    column: str = "",
    title: str = "",
) -> Path:
    """Draw vectors (N, D) as points, by UMAP if umap-learn is installed and else by PCA.

    Points have the colours of `values` (N,), numbers on a scale, all else by name, the most
    frequent first. Of more than 20,000 rows that many are drawn, at random. The figure says which.
    """
    vectors, shown = np.asarray(vectors, dtype=np.float64), np.arange(len(vectors))
    if len(shown) > MOST_DRAWN:
        shown = np.sort(np.random.default_rng(SEED).choice(len(shown), MOST_DRAWN, replace=False))
    places, how = flattened(vectors[shown])
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    size = float(np.clip(6000 / max(len(shown), 1), 2, 20))
    given = None if values is None else [values[i] for i in shown]
    if given is None:
        axes.scatter(*places.T, s=size, color=COLOURS[0], lw=0, alpha=0.7)
    elif (numbers := _numbers(given)) is not None:
        known = np.isfinite(numbers)
        axes.scatter(*places[~known].T, s=size, color="0.8", lw=0)
        points = axes.scatter(*places[known].T, s=size, c=numbers[known], cmap="cividis", lw=0)
        figure.colorbar(points, ax=axes, label=column)
    else:
        _named(axes, places, ["" if v is None else str(v) for v in given], size, column)
    axes.set(xlabel=f"{how} 1", ylabel=f"{how} 2", xticks=[], yticks=[])
    count = (
        f"{len(shown):,} of {len(vectors):,}" if len(shown) < len(vectors) else f"{len(shown):,}"
    )
    axes.set_title(f"{title}, {how} of {count} rows".removeprefix(", "), fontsize=10)
    return _save(figure, path)


def flattened(vectors: np.ndarray) -> tuple[np.ndarray, str]:
    """Vectors (N, D) in two dimensions, and how: "UMAP", or "PCA" without umap-learn."""
    try:
        from umap import UMAP  # McInnes et al. 2018, arXiv:1802.03426
    except ImportError:
        UMAP = None
    if UMAP and len(vectors) > 15:
        import warnings

        with warnings.catch_warnings(action="ignore"):  # a seed means one thread
            return UMAP(random_state=SEED).fit_transform(vectors.astype(np.float32)), "UMAP"
    centred = vectors - vectors.mean(0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(vectors), 2))
    found = (left * lengths)[:, :2]
    places[:, : found.shape[1]] = found
    return places, "PCA"


def _numbers(values: list) -> np.ndarray | None:
    """Values (N,) as numbers, none as nan; None if they are names, as few whole numbers in text."""
    if any(isinstance(value, bool) for value in values):
        return None
    if any(isinstance(value, str) for value in values) and len({*values}) <= MOST_NAMED:
        return None
    try:
        return np.array([np.nan if v in (None, "") else float(v) for v in values])
    except ValueError:
        return None


def _named(axes, places: np.ndarray, names: list[str], size: float, column: str) -> None:
    distinct, which, counts = np.unique(names, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    for k, name in enumerate(order[:MOST_NAMED].tolist()):
        own, turn = which == name, len(COLOURS)
        axes.scatter(
            *places[own].T, s=size, color=COLOURS[k % turn], marker=MARKS[(k // turn) % len(MARKS)],
            lw=0, alpha=0.75, label=distinct[name] or "(none)",
        )  # fmt: skip
    if len(order) > MOST_NAMED:
        rest = np.isin(which, order[MOST_NAMED:])
        label = f"{len(order) - MOST_NAMED:,} others"
        axes.scatter(*places[rest].T, s=size, color="0.8", lw=0, label=label, zorder=0)
    axes.legend(
        title=column, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8,
        markerscale=(30 / size) ** 0.5,
    )  # fmt: skip
