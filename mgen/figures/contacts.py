"""Maps of residue pairs."""

from pathlib import Path

import numpy as np

from mgen.figures import COLOURS, _axes, _save


def contact_map(
    path: str | Path,
    span: tuple[int, int],
    predicted: np.ndarray,
    scores: np.ndarray,
    true: np.ndarray | None = None,
    title: str = "",
) -> Path:
    """Draw predicted pairs above the diagonal, true ones below it.

    `span`: the first residue and the one after the last. `predicted` and `true` are (n, 2)
    positions i < j, counted from 0; `scores` (n,) in 0 to 1 shade the former. Without `true` only
    the predicted ones.
    """
    figure, axes = _axes(5.4, 5.0)
    start, stop = span[0] - 0.5, span[1] - 0.5
    size = min(40.0, max(2.0, 9e4 / (stop - start) ** 2))  # a dot is about as wide as a residue
    if true is not None:
        i, j = np.asarray(true, dtype=int).reshape(-1, 2).T
        axes.scatter(i, j, s=size, marker="s", lw=0, color=COLOURS[1], label="true")
    i, j = np.asarray(predicted, dtype=int).reshape(-1, 2).T
    shaded = {"c": scores, "cmap": "Blues", "vmin": 0, "vmax": 1}
    dots = axes.scatter(j, i, s=size, marker="s", lw=0, label="predicted", **shaded)
    figure.colorbar(dots, ax=axes, label="probability of predicted pairs", fraction=0.046)
    axes.plot([start, stop], [start, stop], color="0.6", lw=0.8)
    axes.set(xlim=(start, stop), ylim=(stop, start), aspect="equal")
    axes.set(xlabel="residue (from 0)", ylabel="residue (from 0)")
    axes.locator_params(integer=True)
    sides = "above the diagonal: predicted" + ("; below: true" if true is not None else "")
    axes.set_title(f"{title}\n{sides}" if title else sides, fontsize=9)
    return _save(figure, path)
