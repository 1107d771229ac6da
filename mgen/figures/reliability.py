"""Reliability diagrams: how often predictions of a stated confidence are right."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mgen.figures import COLOURS, _axes, _save


def reliability_figure(path: str | Path, tables: Mapping[str, np.ndarray]) -> Path:
    """Draw mean outcome against mean confidence per bin, one line per name (Guo et al. 2017).

    tables: (bins, 3) each, entries, mean confidence and mean outcome of every bin. A dot's area
    grows with the entries of its bin; empty bins are left out.
    """
    figure, axes = _axes(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        entries, confidence, outcome = np.asarray(table, dtype=float)[np.asarray(table)[:, 0] > 0].T
        total = max(entries.sum(), 1)
        error = (entries * abs(outcome - confidence)).sum() / total
        axes.plot(confidence, outcome, color=colour, lw=1.6, label=f"{name} (ECE {error:.3f})")
        axes.scatter(confidence, outcome, s=12 + 120 * entries / total, color=colour, lw=0)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set(xlabel="confidence", ylabel="share that is right", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"{int(total):,} predictions", fontsize=10)
    return _save(figure, path)
