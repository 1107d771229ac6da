"""Values with intervals as rows of a table whose middle column is a plot, for an HTML page.

Places are percentages, so that text keeps its size at any width. A model is a disc, a reference a
square, a published figure a diamond: told apart without colour as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mgen.figures.pages import Html, breakable
from mgen.figures.tables import _ticks

MARKS = {  # by kind; 12 pixels wide
    "model": '<circle r="5"/>',
    "reference": '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    "published": '<path d="M0-6.5L6.5 0L0 6.5L-6.5 0Z"/>',
}
EDGE = 4  # percent of the plot kept free on each side
STYLE = """
.mark { display: inline-block; width: 14px; height: 14px; vertical-align: -2px; overflow: visible; }
.model { fill: var(--s0); stroke: var(--s0); } .reference { fill: var(--s2); stroke: var(--s2); }
.published { fill: var(--paper); stroke: var(--ink); stroke-width: 1.8; }
.plot { width: 100%; table-layout: fixed; } .plot td, .plot th { border: 0; padding-left: 0; }
.plot th { width: 32%; font-weight: normal; overflow-wrap: anywhere; }
.plot th, .plot td { vertical-align: middle; line-height: 1.25; height: 26px;
  padding-top: 3px; padding-bottom: 3px; }
.plot td:last-child { width: 30%; overflow-wrap: anywhere; } .plot td.drawn { position: relative; }
.plot .drawn svg.row { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
.plot svg { overflow: visible; }
.plot .grid { stroke: var(--faint); } .plot .bar { stroke-width: 2.5; }
.plot .seed { stroke-width: 1; fill: none; opacity: 0.75; }
.plot text { fill: var(--soft); font-size: 11px; }
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the plot."""

    name: str
    kind: str  # one of MARKS
    value: float | None
    low: float | None = None
    high: float | None = None
    seeds: Sequence[float] = field(default=())  # drawn as strokes beneath the mark
    text: Html  # what the last column says
    classes: str = ""


def intervals(rows: Sequence[Row]) -> Html:
    """The table; "" if no row has a value."""
    drawn = [(row.value, row.low, row.high, *row.seeds) for row in rows if row.value is not None]
    numbers = [number for line in drawn for number in line if number is not None]
    if not numbers:
        return Html("")
    low, high = min(numbers), max(numbers)
    room = 0 if high > low else abs(high) / 10 or 1.0
    low, high = low - room, high + room
    ticks = [tick for tick in _ticks(low, high, 5) if low <= tick <= high]

    def x(value: float) -> str:
        return f"{EDGE + (100 - 2 * EDGE) * (value - low) / (high - low):.2f}%"

    grid = "".join(f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y2="100%"/>' for t in ticks)
    lines = []
    for row in rows:
        name = f'<th scope="row">{mark(row.kind)} {breakable(row.name)}</th>'
        drawing = f'<svg class="row" aria-hidden="true">{grid}{_dot(row, x)}</svg>'
        cells = f'{name}<td class="drawn">{drawing}</td><td>{row.text}</td>'
        lines.append(f'<tr class="{row.classes}">{cells}</tr>')
    labels = "".join(f'<text x="{x(t)}" y="14" text-anchor="middle">{t:,.6g}</text>' for t in ticks)
    axis = f'<svg class="row" aria-hidden="true">{labels}</svg>'
    lines.append(f'<tr><td></td><td class="drawn">{axis}</td><td></td></tr>')
    return Html(f'<table class="plot"><tbody>{"".join(lines)}</tbody></table>')


def mark(kind: str) -> Html:
    """The mark of a kind of entries, to stand beside its name."""
    shape = f'<g class="{kind}">{MARKS[kind]}</g>'
    return Html(
        f'<svg class="mark" viewBox="-8 -8 16 16" role="img" aria-label="{kind}">{shape}</svg>'
    )


def _dot(row: Row, x) -> str:
    if row.value is None:
        return ""
    parts = [
        f'<svg x="{x(seed)}" y="50%"><line class="seed {row.kind}" y1="-9" y2="9"/></svg>'
        for seed in row.seeds
    ]
    if row.low is not None and row.high is not None:
        ends = f'x1="{x(row.low)}" x2="{x(row.high)}" y1="50%" y2="50%"'
        parts.append(f'<line class="bar {row.kind}" {ends}/>')
    shape = f'<g class="{row.kind}">{MARKS[row.kind]}</g>'
    parts.append(f'<svg x="{x(row.value)}" y="50%">{shape}</svg>')
    return "".join(parts)
