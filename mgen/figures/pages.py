"""HTML pages that need nothing else: one file, light and dark, readable on a phone and in print."""

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from mgen.report import number

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1b1f24, #e6e9ee);
  --paper: light-dark(#ffffff, #14171c); --faint: light-dark(#d4d9df, #3a414b);
  --soft: light-dark(#57606a, #a3adb9); --shade: light-dark(#00000038, #ffffff38);
  --serious: light-dark(#c01f2a, #ff7b72);
  --s0: light-dark(#0072b2, #56b4e9); --s1: light-dark(#e69f00, #f0c94a);
  --s2: light-dark(#d55e00, #ff8a4c); }
@media print { :root { color-scheme: light !important; } }
body { margin: 0 auto; padding: 16px; max-width: 860px; background: var(--paper);
  color: var(--ink); font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; margin: 0.3em 0; } h2 { font-size: 1.15em; margin: 1.6em 0 0.4em; }
.soft { color: var(--soft); font-size: 0.9em; }
dl { font-size: 0.9em; } dt { color: var(--soft); } dd { margin: 0 0 6px; }
ul { list-style: none; padding: 0; }
li { border-left: 4px solid var(--faint); padding: 2px 0 2px 10px; margin: 8px 0; }
li.serious { border-color: #d1242f; } li.look { border-color: #bf8700; }
b.level { font-size: 0.8em; text-transform: uppercase; letter-spacing: 0.04em; }
.wide { overflow-x: auto; background: /* a shade where a table goes on */
  linear-gradient(90deg, var(--paper) 50%, transparent) left / 40px 101% no-repeat local,
  linear-gradient(270deg, var(--paper) 50%, transparent) right / 40px 101% no-repeat local,
  linear-gradient(90deg, var(--shade), transparent) left / 14px 100% no-repeat scroll,
  linear-gradient(270deg, var(--shade), transparent) right / 14px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.88em; overflow-wrap: normal; }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
"""


class Html(str):
    """Text that is HTML already; any other is escaped."""


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A page of `body` under its title; it may load nothing and run no script but `script`.

    Browsers see to that (Content Security Policy): were a name of a user's ever taken for HTML, it
    could do nothing.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    run = f"script-src 'sha256-{digest}'; " if script else ""
    policy = f"default-src 'none'; {run}style-src 'unsafe-inline'"
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{style}</style></head><body>\n{body}",
        *([f"<script>{script}</script>"] if script else []),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def table(lines: Sequence[dict[str, Any]]) -> Html:
    """One line per row, a column for every key; it scrolls sideways where there is no room."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    kinds = {c: all(isinstance(line.get(c), int | float | None) for line in lines) for c in columns}
    cell = "<{0}{1}>{2}</{0}>".format
    style = {column: ' class="n"' if kinds[column] else "" for column in columns}
    head = "".join(cell("th", style[c], escape(c)) for c in columns)
    rows = ("".join(cell("td", style[c], shown(line.get(c))) for c in columns) for line in lines)
    return Html(
        f'<div class="wide"><table><tr>{head}</tr>'
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table></div>"
    )


def shown(value: Any) -> Html:
    """A value of a table's cell as HTML."""
    if isinstance(value, Html):
        return value
    return Html(escape(f"{value:,}" if isinstance(value, int) else number(value)))


def breakable(name: str) -> Html:
    """A name that may go on in the next line after _, -, . and /."""
    return Html("<wbr>".join(escape(part) for part in re.split(r"(?<=[_./-])(?=\w)", name)))


def findings(lines: Sequence[tuple[str, str, str]]) -> Html:
    """Level, text and advice ("" if none) of each, as a list."""
    return Html(
        "<ul>\n"
        + "\n".join(
            f'<li class="{escape(level)}">{level_mark(level)} {escape(text)}'
            + (f'<br><span class="soft">{escape(advice)}</span>' if advice else "")
            + "</li>"
            for level, text, advice in lines
        )
        + "\n</ul>"
    )


def level_mark(level: str) -> Html:
    return Html(f'<b class="level">{escape(level)}</b>')
