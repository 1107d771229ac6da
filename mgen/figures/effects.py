"""Ranked effects as dots with standard errors, a panel for each group, as PNG."""

from collections.abc import Sequence
from pathlib import Path

from mgen.figures import COLOURS, _save

MOST_GROUPS, MOST_GENES, COLUMNS = 12, 15, 4  # of a figure, a panel, a line of panels
MOST_LETTERS = 32  # of a title


def ranked_figure(path: str | Path, lines: Sequence[dict], by: str, title: str = "") -> Path:
    """Draw the first genes of each group: their mean effect `by`, `by`_se and number of cells.

    `lines` have "gene", "cells", the effect and perhaps "group", and are ranked in each.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    groups: dict[str, list[dict]] = {}
    for line in lines:
        groups.setdefault(line.get("group", ""), []).append(line)
    shown = [*groups.items()][:MOST_GROUPS]
    columns = min(len(shown), COLUMNS)
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.8, 3.6 * height + 0.4), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.remove()
    for panel, (group, own) in zip(panels, shown, strict=False):
        top = own[:MOST_GENES][::-1]
        where = [*range(len(top))]
        values = [line[by] for line in top]
        errors = [line[f"{by}_se"] or 0.0 for line in top]
        panel.errorbar(values, where, xerr=errors, fmt="o", ms=4, lw=1, color=COLOURS[0])
        panel.set_yticks(where, [line["gene"] for line in top], fontsize=8)
        panel.axvline(0, color="0.7", lw=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="x", labelsize=7)
        cells = max(line["cells"] for line in own)
        name = group if len(group) <= MOST_LETTERS else f"{group[: MOST_LETTERS - 1]}…"
        panel.set_title(f"{name or 'all groups'}\n{cells:,} cells or fewer", fontsize=9)
        panel.set_xlabel(f"{by.replace('_', ' ')}, mean ± SE", fontsize=8)
    hidden = len(groups) - len(shown)
    more = f", {hidden} more groups in the table" if hidden else ""
    figure.suptitle(f"{title}: {len(shown[0][1]):,} genes{more}", fontsize=10)
    return _save(figure, path)
