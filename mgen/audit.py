"""mgen check data: what a table and its splits leak, as a terminal table, JSON and an HTML page.

mgen check data dna_enhancer
mgen check data promoters.tsv --data.y-cols strength --data.identity 0.8 --near 0.95
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from mgen.checkpoint import write_json, write_text
from mgen.config import InputError, parse
from mgen.data import Table
from mgen.data.checking.leakage import Report, report
from mgen.figures.tables import STYLE, bars, steps
from mgen.report import console, number, print_table

NEAR = 0.9  # identity from which two sequences are nearly the same
MOST_LINES = 20  # classes or letters in a table
COLOURS = {"serious": "red", "look": "yellow", "note": "dim"}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}
body {{ margin: 0 auto; padding: 16px; max-width: 860px; background: var(--paper);
  color: var(--ink); font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5em; margin: 0.3em 0; }} h2 {{ font-size: 1.15em; margin: 1.6em 0 0.4em; }}
p.soft {{ color: var(--soft); font-size: 0.9em; }}
ul {{ list-style: none; padding: 0; }}
li {{ border-left: 4px solid var(--faint); padding: 2px 0 2px 10px; margin: 8px 0; }}
li.serious {{ border-color: #d1242f; }} li.look {{ border-color: #bf8700; }}
li b {{ font-size: 0.8em; text-transform: uppercase; letter-spacing: 0.04em; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.88em; overflow-wrap: normal; }}
th, td {{ text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a table and its splits leak."""

    data: Table = Table()
    near: float = NEAR  # identity from which two sequences are nearly the same
    out: str = ""  # folder of report.json and report.html; default: runs/check/NAME


def check_data(words: Sequence[str]) -> None:
    """Print the report on a table and write it. Raises InputError."""
    is_named = bool(words) and not words[0].startswith("-")
    flags = ["--data", *words] if is_named else list(words)
    cfg, _ = parse(Check(), None, flags, "mgen check data [NAME]", __doc__)
    if not 0.5 <= cfg.near <= 1:
        raise InputError(f"--near {cfg.near:g}: expected an identity of 0.5 to 1")
    name = Path(cfg.data.name or cfg.data.path).name.partition(".")[0]
    folder = Path(cfg.out or f"runs/check/{re.sub(r'[^A-Za-z0-9_-]+', '_', name) or 'data'}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file")
    rows = cfg.data.open()
    console.print(rows.plan)
    found = report(rows, cfg.near, cfg.data.split_seed)
    console.print()
    print_report(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "report.json", asdict(found) | {"findings": _findings(found)})
        write_text(folder / "report.html", page(name or str(folder), found))
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written: {error}") from None
    console.print("files:", f"  {folder}/report.json", f"  {folder}/report.html", sep="\n")


def say(found: Report) -> None:
    """Print the findings, most serious first."""
    for level, text in found.findings:
        console.print(f"{level:8}", style=COLOURS[level], end="")
        console.print(text)
    if not found.findings:
        console.print("nothing found")


def print_report(found: Report) -> None:
    """Print the findings and the tables behind them."""
    say(found)
    console.print()
    for title, lines in tables(found).items():
        print_table(title, lines)


def tables(found: Report) -> dict[str, list[dict[str, Any]]]:
    """Lines of each table by its title."""
    by_title = {
        "identical sequences": found.overlaps,
        "most alike training row": found.nearest,
        "length in letters": _by_split(found.facts["lengths"]),
    }
    for column, label in found.labels.items():
        title = f"label {column}, {label['kind']}"
        lines = _by_split({split: _without(line) for split, line in label["splits"].items()})
        by_title[title] = lines
        if counts := {s: v["counts"] for s, v in label["splits"].items() if "counts" in v}:
            classes = list(next(iter(counts.values())))
            more = len(classes) - MOST_LINES
            what = "letter" if label["kind"] == "per letter" else "class"
            by_title[f"{title}: shares" + (f" ({more:,} more not shown)" if more > 0 else "")] = [
                {what: name} | {split: _share(own, name) for split, own in counts.items()}
                for name in classes[:MOST_LINES]
            ]
    more = len(found.letters) - MOST_LINES
    title = f"letters ({found.facts['molecule']})"
    shown = f" ({more:,} more not shown)" if more > 0 else ""
    by_title[title + shown] = found.letters[:MOST_LINES]
    return {title: lines for title, lines in by_title.items() if lines}


def page(title: str, found: Report) -> str:
    """The whole report as one HTML page that needs nothing else."""
    facts = found.facts
    sizes = ", ".join(f"{size:,} {split}" for split, size in facts["splits"].items())
    body = [
        f'<p class="soft">{facts["rows"]:,} rows of {facts["molecule"]}: {sizes}. '
        f"{escape(facts['plan'])}</p>",
        "<ul>",
        *(f'<li class="{f.level}"><b>{f.level}</b> {escape(f.text)}</li>' for f in found.findings),
        *(["<li>nothing found</li>"] if not found.findings else []),
        "</ul>",
    ]
    for name, histogram in found.histograms.items():
        body.append(f"<h2>{escape(name)}</h2>")
        body.append(steps(histogram["edges"], histogram["shares"], histogram["axis"]))
    for column, label in found.labels.items():
        if counts := {s: v["counts"] for s, v in label["splits"].items() if "counts" in v}:
            names = list(next(iter(counts.values())))[:MOST_LINES]
            shares = {s: [_share(own, name) for name in names] for s, own in counts.items()}
            body.append(f"<h2>label {escape(column)}</h2>")
            body.append(bars(names, shares, f"shares of {column} by split"))
    for name, lines in tables(found).items():
        body.append(f"<h2>{escape(name)}</h2>{_table(lines)}")
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(body))


def _findings(found: Report) -> list[dict[str, str]]:
    return [finding._asdict() for finding in found.findings]


def _by_split(lines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"split": split, **line} for split, line in lines.items()]


def _without(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "counts"}


def _share(counts: dict[str, int], name: str) -> float:
    return counts[name] / max(sum(counts.values()), 1)


def _table(lines: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    kinds = {c: all(isinstance(line.get(c), int | float | None) for line in lines) for c in columns}
    cell = "<{0}{1}>{2}</{0}>".format
    style = {column: ' class="n"' if kinds[column] else "" for column in columns}
    head = "".join(cell("th", style[c], escape(c)) for c in columns)
    rows = (
        "".join(cell("td", style[c], escape(number(line.get(c)))) for c in columns)
        for line in lines
    )
    return (
        f'<div class="wide"><table><tr>{head}</tr>'
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table></div>"
    )
