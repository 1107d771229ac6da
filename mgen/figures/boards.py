"""Figures of a leaderboard as PNG and SVG: scores with intervals, mean ranks, scores against costs.

Models are blue discs, references vermilion squares, published figures hollow diamonds: told apart
without colour as well. Sizes are bounded for boards of some 40 entries and 30 tasks.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgen.figures import COLOURS
from mgen.figures.maps import _save

BLUE, VERMILION = COLOURS[:2]
KINDS = {  # marker, colour of its edge, colour inside
    "model": ("o", BLUE, BLUE),
    "reference": ("s", VERMILION, VERMILION),
    "published": ("D", "black", "white"),
}
MISSING = ("x", "0.6", "0.6")
LONGEST = 34  # letters of a name
LINE, TALL = 0.19, 1.1  # inches of an entry's line, and of title, axis and legend
SMALL = {"fontsize": 7, "va": "center"}
LEADER = {"arrowstyle": "-", "color": "0.75", "lw": 0.6, "shrinkB": 3, "relpos": (0, 0.5)}


def board_figures(folder: str | Path, results: dict[str, Any]) -> list[Path]:
    """Draw `scores`, `ranks` and `cost`, those of them that have anything to show, into `folder`.

    `results`: as mgen.leaderboards.page takes them. Returns the files.
    """
    from matplotlib import rc_context

    files = []
    ranks = {row["entry"]: row["rank"] for row in results["overall"] if row["rank"] is not None}
    entries = sorted(results["entries"], key=lambda entry: ranks.get(entry["name"], math.inf))
    with rc_context({"text.parse_math": False}):  # a name may hold dollars
        for name, draw in (("scores", _scores), ("ranks", _ranks), ("cost", _cost)):
            if figure := draw(results, entries):
                figure.draw_without_rendering()  # places things once, not again for every file
                figure.set_layout_engine("none")
                files += _save(figure, Path(folder) / name)
    return files


def _scores(results: dict[str, Any], entries: Sequence[dict[str, Any]]):
    """Small multiples: one panel per task, entries in the same order in all of them."""
    panels = [(task, values) for task in results["tasks"] if (values := _values(results, task))]
    if not panels:
        return None
    across = min(len(panels), max(3, math.ceil(math.sqrt(len(panels) * len(entries) / 12))), 8)
    down = math.ceil(len(panels) / across)
    figure = _figure(2.6 + 1.9 * across, (LINE * len(entries) + TALL) * down)
    places = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for (task, values), axes in zip(panels, places, strict=False):
        _panel(axes, task, values, entries)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    _names(places[0], entries)
    any_missing = any(_absent(values, entries) for _, values in panels)
    _legend(figure, entries, any_missing)
    return figure


def _panel(
    axes, task: dict[str, Any], values: dict[str, dict], entries: Sequence[dict[str, Any]]
) -> None:
    for row in values.values():
        if row["best"]:
            axes.axvline(row["value"], color="0.8", lw=0.8, zorder=0)
    for kind, style in KINDS.items():
        lines = [i for i, e in enumerate(entries) if e["kind"] == kind and e["name"] in values]
        rows = [values[entries[i]["name"]] for i in lines]
        _dots(axes, [row["value"] for row in rows], lines, style)
        known = [(i, row) for i, row in zip(lines, rows, strict=True) if None not in _ends(row)]
        if known:
            at, rows = zip(*known, strict=True)
            axes.hlines(at, *zip(*map(_ends, rows), strict=True), color=style[1], lw=1.5)
    absent = _absent(values, entries)
    left = axes.get_yaxis_transform()
    _dots(axes, [0.03] * len(absent), absent, MISSING, transform=left)
    better = "higher" if task["higher_is_better"] else "lower"
    axes.set_title(_short(task["name"]), fontsize=9)
    axes.set_xlabel(f"{task['metric']} ({better} is better)", fontsize=8)
    _tidy(axes)


def _absent(values: dict[str, dict], entries: Sequence[dict[str, Any]]) -> list[int]:
    """The lines of entries without a value, those of others aside, who publish what they like."""
    named = enumerate(entries)
    return [i for i, e in named if e["name"] not in values and e["kind"] != "published"]


def _ranks(results: dict[str, Any], entries: Sequence[dict[str, Any]]):
    """Mean rank of every entry that has one, with the number of tasks it has a value on."""
    overall = {row["entry"]: row for row in results["overall"] if row["rank"] is not None}
    ranked = [entry for entry in entries if entry["name"] in overall]
    if not ranked:
        return None
    rows = [overall[entry["name"]] for entry in ranked]
    figure = _figure(6.4, LINE * len(ranked) + TALL)
    axes = figure.add_subplot()
    axes.hlines(range(len(rows)), 1, [row["rank"] for row in rows], color="0.85", lw=1, zorder=0)
    right = axes.get_yaxis_transform()
    axes.text(1.02, -1, "tasks", transform=right, **SMALL)
    for line, (entry, row) in enumerate(zip(ranked, rows, strict=True)):
        _dots(axes, [row["rank"]], [line], KINDS[entry["kind"]])
        axes.text(1.02, line, f"{row['done']}/{row['of']}", transform=right, **SMALL)
    axes.set_xlabel("mean rank over tasks (1 is best)", fontsize=8)
    axes.set_xlim(left=0.8)
    _names(axes, ranked)
    _tidy(axes)
    _legend(figure, ranked)
    return figure


def _cost(results: dict[str, Any], entries: Sequence[dict[str, Any]]):
    """The average against training seconds, of entries that have a value on every task."""
    rows = results["protocol"]["rows"]
    averages = {row["entry"]: row["average"] for row in rows if not row["missing"]}
    points = [
        (seconds, averages[entry["name"]], entry)
        for entry in entries
        if averages.get(entry["name"]) is not None and (seconds := _seconds(results, entry))
    ]
    if not points:
        return None
    points.sort(key=lambda point: -point[1])
    figure = _figure(7.6, max(4.4, 0.17 * len(points)))
    axes = figure.add_subplot()
    high, low = points[0][1], points[-1][1]
    room = 0.08 * (high - low) or abs(high) / 10 or 1.0
    axes.set_ylim(low - room, high + room)
    shares = [(average - low + room) / (high - low + 2 * room) for _, average, _ in points]
    for (seconds, average, entry), at in zip(points, _apart(shares), strict=True):
        _dots(axes, [seconds], [average], KINDS[entry["kind"]])
        place = {"xytext": (1.04, at), "textcoords": "axes fraction"}
        name = _short(entry["name"])
        axes.annotate(name, (seconds, average), arrowprops=LEADER, **place, **SMALL)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.margins(x=0.1)
    axes.set_xlabel("training seconds, one run of every task", fontsize=8)
    axes.set_ylabel(f"average ({results['protocol']['name']})", fontsize=8)
    if left_out := len(entries) - len(points):
        text = f"{len(points)} entries; {left_out} without seconds or without a value on every task"
        axes.set_title(text, fontsize=8)
    axes.grid(color="0.92", lw=0.6)
    axes.set_axisbelow(True)
    _tidy(axes)
    _legend(figure, [entry for _, _, entry in points])
    return figure


def _apart(places: Sequence[float]) -> list[float]:
    """Places of names in a column of height 1, as near to falling `places` as room allows."""
    gap = min(0.045, 1 / len(places))
    kept: list[float] = []
    for place in places:
        kept.append(min(place, kept[-1] - gap) if kept else place)
    lowest = 0.0
    for i in reversed(range(len(kept))):
        kept[i] = lowest = max(kept[i], lowest)
        lowest += gap
    return kept


def _values(results: dict[str, Any], task: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a task's entries that have a value."""
    rows = [row for row in results["summary"] if row["task"] == task["name"]]
    return {row["entry"]: row for row in rows if row["value"] is not None}


def _ends(row: dict[str, Any]) -> tuple[float | None, float | None]:
    return row["low"], row["high"]


def _seconds(results: dict[str, Any], entry: dict[str, Any]) -> float:
    """Seconds of one run of every task: the means over seeds, added; 0 if not of every task."""
    by_task: dict[str, list[float]] = {}
    for cell in results["cells"]:
        if cell["entry"] == entry["name"] and cell["seconds"] is not None and not cell["error"]:
            by_task.setdefault(cell["task"], []).append(cell["seconds"])
    timed = {cell["task"] for cell in results["cells"] if not cell["error"]}
    if by_task.keys() != timed:
        return 0.0
    return math.fsum(sum(own) / len(own) for own in by_task.values())


def _dots(axes, xs: Sequence[float], ys: Sequence[float], style: tuple, **more: Any) -> None:
    marker, edge, inside = style
    axes.plot(xs, ys, marker, ms=5, mec=edge, mfc=inside, mew=1.2, zorder=3, **more)


def _names(axes, entries: Sequence[dict[str, Any]]) -> None:
    """Name the lines, the first on top."""
    axes.set_yticks(range(len(entries)), [_short(entry["name"]) for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)


def _legend(figure, entries: Sequence[dict[str, Any]], any_missing: bool = False) -> None:
    from matplotlib.lines import Line2D

    present = {entry["kind"] for entry in entries}
    styles = {kind: style for kind, style in KINDS.items() if kind in present}
    styles |= {"no value": MISSING} if any_missing else {}
    handles = [
        Line2D([], [], ls="", marker=marker, mec=edge, mfc=inside, ms=5, label=label)
        for label, (marker, edge, inside) in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _tidy(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    return Figure((width, height), dpi=150, layout="constrained")  # as PNGs are saved
