"""mgen check data: what a table and its splits leak, as a terminal table, JSON and an HTML page.

mgen check data dna_enhancer
mgen check data promoters.tsv --data.y-cols strength --data.identity 0.8 --near 0.95
"""

import hashlib
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mgen.checkpoint import write_json, write_text
from mgen.config import InputError, parse
from mgen.data import Table
from mgen.data.checking.leakage import LEVELS, Report, report
from mgen.figures.pages import document, findings, level_mark, table
from mgen.figures.tables import STYLE, bars, steps
from mgen.report import console, print_table

NEAR = 0.9  # identity from which two sequences are nearly the same
MOST_LINES = 20  # classes or letters in a table
LENGTHS, SHARES = "length in letters", ": shares"
ABOUT = ("command", "plan", "digest", "near", "mgen", "date")
COLOURS = {"serious": "red", "look": "yellow", "note": "dim"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a table and its splits leak."""

    data: Table = Table()
    near: float = NEAR  # identity from which two sequences are nearly the same
    out: str = ""  # folder of report.json and report.html; default: below runs/check


def check_data(words: Sequence[str]) -> None:
    """Print the report on a table and write it. Raises InputError."""
    is_named = bool(words) and not words[0].startswith("-")
    flags = ["--data", *words] if is_named else list(words)
    cfg, _ = parse(Check(), None, flags, "mgen check data [NAME]", __doc__)
    if not 0.5 <= cfg.near <= 1:
        raise InputError(f"--near {cfg.near:g}: expected an identity of 0.5 to 1")
    if cfg.out and Path(cfg.out).exists() and not Path(cfg.out).is_dir():
        raise InputError(f"--out {cfg.out}: is a file")
    rows = cfg.data.open()
    found = report(rows, cfg.near, cfg.data.split_seed)
    found.facts |= {
        "near": cfg.near,
        "command": shlex.join(["mgen", "check", "data", *words]),
        "mgen": version("mgen"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    name = Path(cfg.data.name or cfg.data.path).name.partition(".")[0]
    # Of other settings, or of a file of the same name elsewhere: another folder.
    key = hashlib.sha256(repr((rows.digest, rows.names, cfg.near)).encode()).hexdigest()[:6]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "data"
    folder = Path(cfg.out or f"runs/check/{stem}-{key}")
    try:  # before anything is printed: what reads it may be gone after a few lines
        folder.mkdir(parents=True, exist_ok=True)
        written = asdict(found) | {"findings": [finding._asdict() for finding in found.findings]}
        write_json(folder / "report.json", written)
        write_text(folder / "report.html", page(name or "data", found))
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written: {error}") from None
    console.print(f"{', '.join(rows.names)}: {rows.plan}\n")
    print_report(found)
    console.print("files:", f"  {folder}/report.json", f"  {folder}/report.html", sep="\n")


def say(found: Report) -> None:
    """Print the findings, most serious first."""
    said = set()
    for level, text, advice in found.findings:
        console.print(f"{level:8}", style=COLOURS[level], end="")
        console.print(text)
        if advice not in said | {""}:
            console.print(f"{'':8}{advice}", style="dim")
        said.add(advice)
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
        LENGTHS: _by_split(found.facts["lengths"]),
    }
    for column, label in found.labels.items():
        title = f"label {column}, {label['kind']}"
        lines = _by_split({split: _without(line) for split, line in label["splits"].items()})
        by_title[title] = lines
        if counts := {s: v["counts"] for s, v in label["splits"].items() if "counts" in v}:
            classes = list(next(iter(counts.values())))
            more = len(classes) - MOST_LINES
            what = "letter" if label["kind"] == "per letter" else "class"
            by_title[f"{title}{SHARES}" + (f" ({more:,} more not shown)" if more > 0 else "")] = [
                {what: name} | {split: _share(own, name) for split, own in counts.items()}
                for name in classes[:MOST_LINES]
            ]
    more = len(found.letters) - MOST_LINES
    title = f"letters ({found.facts['molecule']})"
    shown = f" ({more:,} more not shown)" if more > 0 else ""
    by_title[title + shown] = found.letters[:MOST_LINES]
    return {title: _plain(lines) for title, lines in by_title.items() if lines}


def page(name: str, found: Report) -> str:
    """The whole report as one HTML page that needs nothing else."""
    facts = found.facts
    sizes = ", ".join(f"{size:,} {split}" for split, size in facts["splits"].items())
    files = ", ".join(facts["files"])
    title = f"{name}: what the table and its splits leak"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{facts["rows"]:,} rows of {facts["molecule"]} in {escape(files)}; in '
        f"splits: {sizes}. Rows are counted from 1, a header does not count.</p>",
        findings(found.findings) if found.findings else "<ul><li>nothing found</li></ul>",
        '<p class="soft">'
        + "; ".join(f"{level_mark(level)} {meaning}" for level, meaning in LEVELS.items())
        + "</p>",
    ]
    for title, histogram in found.histograms.items():
        body.append(f"<h2>{escape(title)}</h2>")
        edges = histogram["edges"]
        if len(edges) == 2:
            body.append(f"<p>{edges[0]:,.6g} in every row</p>")
        else:
            body.append(steps(edges, histogram["shares"], histogram["axis"]))
        body.append(f'<p class="soft">{escape(histogram["caption"])}</p>')
    for title, lines in tables(found).items():
        body.append(f"<h2>{escape(title)}</h2>")
        if SHARES in title:
            what, *splits = lines[0]
            shares = {split: [line[split] for line in lines] for split in splits}
            body.append(bars([line[what] for line in lines], shares, title))
        else:
            body.append(table(lines))
    body.append("<h2>how this page was made</h2><dl>")
    for fact in [key for key in ABOUT if key in facts]:
        body.append(f"<dt>{fact}</dt><dd>{escape(str(facts[fact]))}</dd>")
    body.append("</dl>")
    return document(title, "\n".join(body), STYLE)


def _plain(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers of more than four digits as whole ones."""
    return [
        {k: round(v) if isinstance(v, float) and abs(v) >= 1000 else v for k, v in line.items()}
        for line in lines
    ]


def _by_split(lines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"split": split, **line} for split, line in lines.items()]


def _without(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "counts"}


def _share(counts: dict[str, int], name: str) -> float:
    return counts[name] / max(sum(counts.values()), 1)
