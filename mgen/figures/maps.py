"""Maps along a sequence: heat maps and sequence logos, as PNG and SVG.

Sizes are bounded for any length: long maps wrap into at most MAX_LINES lines, and ticks thin out.
K positions, V letters.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mgen.figures import COLOURS

# Okabe and Ito's colours: bases, and residues by charge, polarity and bulk.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, _ = COLOURS
LETTER_COLOURS = {
    "nucleotide": {"A": GREEN, "C": BLUE, "G": ORANGE, "T": VERMILION, "U": VERMILION},
    "residue": {
        **dict.fromkeys("KRH", BLUE),
        **dict.fromkeys("DE", VERMILION),
        **dict.fromkeys("STNQ", GREEN),
        **dict.fromkeys("GPC", ORANGE),
        **dict.fromkeys("FWY", PURPLE),
        **dict.fromkeys("AVLIM", BLACK),
    },
}
LINE, MAX_LINES = 100, 8  # positions in a line of a wrapped map before lines must hold more
MAX_LETTERS = 60  # more positions of a dependency map are numbered only
LEFT, RIGHT, TOP, BOTTOM, GAP = 0.8, 1.1, 0.5, 0.6, 0.1  # inches


def dependency_figure(
    stem: str | Path,
    matrix: np.ndarray,
    logo: np.ndarray,
    letters: str,
    sequence: str,
    positions: Sequence[int],
    title: str = "",
) -> list[Path]:
    """Draw a dependency map (K, K), mutated position by affected one, under its logo (K, V).

    `sequence` (K letters) and `positions` (K,) name the axes. Returns `stem`.png and `stem`.svg.
    """
    count = len(positions)
    side, high = float(np.clip(0.16 * count, 3.2, 9.0)), 1.1
    figure, place = _figure(side + LEFT + RIGHT, side + high + GAP + TOP + BOTTOM)
    top = place(LEFT, BOTTOM + side + GAP, side, high)
    sequence_logo(top, logo, letters)
    top.set(ylabel="bits", xticks=[], title=title)
    axes = place(LEFT, BOTTOM, side, side)
    image = heat_map(axes, matrix)
    axes.set_yticks(*_ticks(positions, count))
    ticks = _named(sequence, positions) if count <= MAX_LETTERS else _ticks(positions, count)
    axes.set_xticks(*ticks)
    axes.set(xlabel="affected position", ylabel="mutated position")
    bar = place(LEFT + side + GAP, BOTTOM, 0.15, side)
    figure.colorbar(image, cax=bar, label="largest change of log$_2$ odds")
    return _save(figure, stem)


def effect_figure(
    stem: str | Path,
    effects: np.ndarray,
    wild: np.ndarray,
    letters: str,
    positions: Sequence[int],
    title: str = "",
    label: str = "effect",
) -> list[Path]:
    """Draw the effects (K, V) of all substitutions, letters by positions, under a logo of them.

    `wild` (K,): each position's own letter as its place in `letters`; a dot marks it. The logo
    shows that letter as high as losing it lowers the prediction: minus the mean effect of others.
    Colours are centred on 0, alike in all lines. Returns `stem`.png and `stem`.svg.
    """
    count, kinds = effects.shape
    per_line = min(max(LINE, -(-count // MAX_LINES)), max(count, 1))
    lines = -(-count // per_line)
    wide, high, rise = float(np.clip(0.11 * per_line, 3.0, 11.0)), 0.15 * kinds, 0.8
    line = high + rise + GAP + BOTTOM
    figure, place = _figure(wide + LEFT + RIGHT, lines * line + TOP)
    heights = effect_logo(effects, wild)
    reach = float(np.abs(effects).max(initial=0)) or 1.0
    for i in range(lines):
        part = slice(i * per_line, (i + 1) * per_line)
        share = len(positions[part]) / per_line
        floor = (lines - 1 - i) * line + BOTTOM
        top = place(LEFT, floor + high + GAP, wide * share, rise)
        sequence_logo(top, heights[part], letters, (heights.min(), heights.max()))
        top.set(xticks=[], ylabel="loss", title=title if i == 0 else "")
        axes = place(LEFT, floor, wide * share, high)
        image = heat_map(axes, effects[part].T, centre=reach)
        marks = np.arange(len(wild[part]))
        size = min(8.0, (40 * wide / per_line) ** 2)
        axes.scatter(marks, wild[part], s=size, color="black", lw=0)
        axes.set_yticks(range(kinds), list(letters), fontsize=7)
        axes.set_xticks(*_ticks(positions[part], per_line))
    axes.set_xlabel("position")
    bar = place(LEFT + wide + GAP, BOTTOM + (lines - 1) * line, 0.15, high + rise + GAP)
    figure.colorbar(image, cax=bar, label=label)
    return _save(figure, stem)


def effect_logo(effects: np.ndarray, wild: np.ndarray) -> np.ndarray:
    """Heights (K, V): at each position's own letter minus the mean effect of the other letters."""
    heights = np.zeros(effects.shape)
    rows = np.arange(len(wild))
    total = effects.sum(1) - effects[rows, wild]
    heights[rows, wild] = -total / max(effects.shape[1] - 1, 1)
    return heights


def heat_map(axes, values: np.ndarray, centre: float = 0.0):
    """Draw values (rows, K) as an image; `centre` makes colours diverge from 0 to +-centre."""
    colours = {"cmap": "RdBu_r", "vmin": -centre, "vmax": centre} if centre else {"cmap": "cividis"}
    return axes.imshow(values, aspect="auto", **colours)


def sequence_logo(
    axes, heights: np.ndarray, letters: str, limits: tuple[float, float] | None = None
) -> None:
    """Draw letters to scale at x = 0, 1, ...: heights (K, V), negative ones below the axis.

    The largest letter of a position is farthest from the axis (Schneider & Stephens 1990).
    `limits`: lowest and highest ends of stacks, those of these letters by default.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    count = len(heights)
    kind = "nucleotide" if set(letters) <= set("ACGTU") else "residue"
    order = np.argsort(np.abs(heights), axis=1, kind="stable")
    bases = np.zeros_like(heights, dtype=float)
    low, high = np.zeros(count), np.zeros(count)
    for k in range(heights.shape[1]):  # from the axis outward
        at = (np.arange(count), order[:, k])
        height = heights[at]
        bases[at] = np.where(height < 0, low + height, high)
        low, high = low + np.minimum(height, 0), high + np.maximum(height, 0)
    ends = limits or (low.min(initial=0), high.max(initial=0))
    least = (ends[1] - ends[0]) / 200  # thinner letters cannot be seen
    for k, letter in enumerate(letters):
        shown = np.flatnonzero(np.abs(heights[:, k]) > least)
        if not len(shown):
            continue
        glyph = _glyph(letter)
        size = np.stack([np.full(len(shown), 0.92), np.abs(heights[shown, k])], 1)
        corner = np.stack([shown - 0.46, bases[shown, k]], 1)
        vertices = (glyph.vertices * size[:, None] + corner[:, None]).reshape(-1, 2)
        # One outline for all places of a letter: files stay small.
        outline = Outline(vertices, np.tile(glyph.codes, len(shown)))
        colour = LETTER_COLOURS[kind].get(letter, SKY)
        axes.add_patch(PathPatch(outline, facecolor=colour, lw=0))
    axes.axhline(0, color="0.3", lw=0.6)
    margin = 0.03 * (ends[1] - ends[0]) or 1.0
    axes.set(xlim=(-0.5, count - 0.5), ylim=(min(ends[0], 0) - margin, max(ends[1], 0) + margin))
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def figure_stem(folder: Path, row: int, name: str = "", *more: str) -> Path:
    """Where the figures of a row go, named by its number and identifier."""
    words = [str(row), *(word for word in (name, *more) if word)]
    return folder / re.sub(r"[^\w.-]+", "_", "_".join(words))[:100]


def _glyph(letter: str):
    """The outline of a bold letter, stretched to the unit square."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    path = TextPath(
        (0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold")
    )
    low, high = path.vertices.min(0), path.vertices.max(0)
    wide, tall = high - low
    share = min(1.0, 1.6 * wide / tall)  # an I is no block
    return Outline(
        (path.vertices - low) / (high - low) * (share, 1) + ((1 - share) / 2, 0), path.codes
    )


def _ticks(positions: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Places and names of about ten to twenty round positions of `count`."""
    step = next((s for s in (1, 5, 10, 20, 50, 100, 200, 500) if count <= 20 * s), 1000)
    chosen = [i for i, position in enumerate(positions) if position % step == 0]
    return chosen, [int(positions[i]) for i in chosen]


def _named(sequence: str, positions: Sequence[int]) -> tuple[list[int], list[str]]:
    numbered = set(_ticks(positions, len(positions))[0])
    names = [f"{a}\n{positions[i]}" if i in numbered else a for i, a in enumerate(sequence)]
    return [*range(len(names))], names


def _figure(width: float, height: float):
    """A figure, and how to place axes in it by left, bottom, width and height in inches."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(width, height))

    def place(left: float, bottom: float, wide: float, high: float):
        axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
        axes.tick_params(labelsize=7)
        axes.title.set_fontsize(10)
        return axes

    return figure, place


def _save(figure, stem: str | Path) -> list[Path]:
    """Write PNG and SVG; equal figures are equal files."""
    from matplotlib import rc_context

    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with rc_context({"svg.hashsalt": "mgen"}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files
