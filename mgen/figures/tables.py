"""Figures of tables as SVG text for one HTML page: light and dark, readable on a phone.

Each split has its colour and dashes (`STYLE`), told apart with any colour vision (Okabe & Ito);
colours are those of `pages`.
Drawn for a width of 360 pixels and scaled up from there.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

SPLITS = ("train", "valid", "test")
WIDTH, LEFT, RIGHT = 360, 44, 10
STYLE = """
svg { width: 100%; max-width: 600px; height: auto; display: block; overflow: visible; }
svg text { fill: var(--soft); font-size: 11px; }
svg .axis { stroke: var(--faint); fill: none; }
svg .line { fill: none; stroke-width: 1.8; }
.c0 { stroke: var(--s0); } .c1 { stroke: var(--s1); stroke-dasharray: 5 2; }
.c2 { stroke: var(--s2); stroke-dasharray: 2 2; }
.f0 { fill: var(--s0); } .f1 { fill: var(--s1); } .f2 { fill: var(--s2); }
"""


def steps(edges: Sequence[float], series: Mapping[str, Sequence[float]], label: str) -> str:
    """Histograms as step lines over one axis: `edges` (b + 1,), shares (b,) of each split."""
    top, base, height = 24, 150, 184
    low, high = edges[0], edges[-1]
    shares_at = _ticks(0, max((max(shares) for shares in series.values()), default=0) or 1, 4)
    most = shares_at[-1]

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(share: float) -> float:
        return base - (base - top) * share / most

    parts = [_legend(list(series))]
    for share in shares_at:
        parts.append(f'<path class="axis" d="M{LEFT} {y(share):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 4, y(share) + 4, f"{100 * share:.3g}%", "end"))
    for value in [tick for tick in _ticks(low, high, 5) if low <= tick <= high]:
        parts.append(f'<path class="axis" d="M{x(value):.1f} {base}v3"/>')
        parts.append(_text(x(value), base + 15, f"{value:,.6g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, base + 31, label, "middle"))
    for split, shares in series.items():
        line = f"M{x(low):.1f} {base}"
        for (start, end), share in zip(pairwise(edges), shares, strict=True):
            line += f"L{x(start):.1f} {y(share):.1f}H{x(end):.1f}"
        parts.append(f'<path class="line c{SPLITS.index(split)}" d="{line}V{base}"/>')
    return _svg(height, label, parts)


def bars(names: Sequence[str], series: Mapping[str, Sequence[float]], label: str) -> str:
    """One group of bars per name, one bar per split: its share of that name."""
    pitch, bar = 14, 9
    group = pitch * len(series) + 24
    top, most = 24, max((max(shares, default=0) for shares in series.values()), default=0) or 1
    parts = [_legend(list(series), are_bars=True)]
    for row, name in enumerate(names):
        y = top + row * group
        parts.append(_text(0, y + 10, name if len(name) <= 40 else name[:39] + "…", "start"))
        for i, (split, shares) in enumerate(series.items()):
            width, at = max((WIDTH - 50) * shares[row] / most, 0.5), y + 15 + i * pitch
            place = f'x="0" y="{at}" width="{width:.1f}" height="{bar}"'
            parts.append(f'<rect class="f{SPLITS.index(split)}" {place}/>')
            parts.append(_text(width + 4, at + bar, f"{100 * shares[row]:.3g}%", "start"))
    return _svg(top + len(names) * group, label, parts)


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return head + "".join(parts) + "</svg>"


def _legend(splits: Sequence[str], are_bars: bool = False) -> str:
    parts, x = [], 0
    for name in splits:
        i = SPLITS.index(name)
        bar = f'<rect class="f{i}" x="{x}" y="4" width="18" height="9"/>'
        parts.append(bar if are_bars else f'<path class="line c{i}" d="M{x} 9h18"/>')
        parts.append(_text(x + 22, 13, name, "start"))
        x += 38 + 7 * len(name)
    return "".join(parts)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count` of them, from at most `low` to at least `high`."""
    rough = (high - low) / max(count - 1, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(round_ for round_ in (1, 2, 2.5, 5, 10) if round_ * size >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
