"""What the runs of a leaderboard came to: tables, pages, figures, files to submit."""

import csv
import math
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mgen import checkpoint
from mgen.audit import NEAR
from mgen.commands.boards.board import CONSTANT, Board, BoardTask, slug
from mgen.commands.boards.cells import Cells
from mgen.commands.boards.entering import Checked
from mgen.config import InputError
from mgen.data.checking.leakage import report
from mgen.leaderboards import protocols
from mgen.leaderboards.summary import Cell, of_task, overall
from mgen.report import console, number, print_table
from mgen.runs import read_json

CEILING = "noise ceiling"
FEW = 50  # test rows, below which comparisons reject more often than they say
SHOWN = ("serious", "look")  # findings of the data checker that go onto the board
PROTEINGYM = ("mutant", "mutated_sequence", "DMS_score", "DMS_score_bin")  # of every assay's file
PROVENANCE = (
    "parameters", "trained", "steps", "device", "threads", "commit", "config", "rows_digest",
    "started", "python", "version_torch", "version_mgen", "version_transformers",
    "version_accelerate", "version_peft",
)  # fmt: skip


def compare(checked: Checked, cells: Cells, command: str) -> dict[str, Any]:
    """All that the pages of a board say."""
    torch.set_num_threads(1)  # sums in one order; of this size more threads wait than work
    board = checked.board
    found = list(cells.cells())
    tasks, summary, pairs = [], [], []
    better = {asked.task.name: asked.higher_is_better for asked in checked.asked}
    for task in board.tasks.values():
        own = [cell for cell in found if cell.task == task.name]
        constants = _constants(checked, cells, task)
        own += constants
        found += constants
        ours = [cell for cell in own if cell.entry != CEILING]
        if ours:
            lines, more = of_task(ours, better[task.name])
            summary += lines
            pairs += more
        summary += [_published(task, cell.entry, cell) for cell in own if cell.entry == CEILING]
        reasons = {e: r for (name, e), r in checked.unavailable.items() if name == task.name}
        reasons |= {
            entry.name: "the board does not put it to this task"
            for entry in board.entries.values()
            if not entry.wants(task)
        }
        summary += [_published(task, e, None) | {"missing": r} for e, r in reasons.items()]
        summary += [
            _published(task, name, None) | {"value": value, "source": source}
            for name, (value, source) in task.published.items()
        ]
        tasks.append(_task(checked, task, better, own))
    entries = _entries(checked, found)
    ranked = [e["name"] for e in entries if e["kind"] != "published" and e["name"] != CEILING]
    return {
        "title": board.title,
        "about": _about(board, found, command),
        "protocol": _protocol(board, summary, ranked, better),
        "notes": [*checked.notes, *_small(found), *_undefined(found), *_mixed(found)],
        "tasks": tasks,
        "entries": entries,
        "cells": [cell.line() for cell in found if not cell.missing],
        "summary": summary,
        "pairs": pairs,
        "overall": overall(summary, ranked, better),
        "provenance": [_provenance(cell) for cell in found if not cell.missing],
    }


def _protocol(
    board: Board, summary: list[dict[str, Any]], ranked: list[str], better: dict[str, bool]
) -> dict[str, Any]:
    """The averages of the entries by the board's protocol."""
    protocol = protocols.find(board.protocol)
    found = {(line["task"], line["entry"]): line["value"] for line in summary}
    values = {task: {entry: found.get((task, entry)) for entry in ranked} for task in better}
    facts = {task: board.tasks[task].known(better[task]) for task in better}
    rows = protocols.with_errors(
        protocol, protocols.aggregate(protocol, values, facts), values, facts
    )
    groups = dict.fromkeys(group for row in rows for group in row.groups)
    return {
        "name": board.protocol,
        "what": protocol.source,
        "groups": list(groups),
        "rows": [
            {
                "entry": row.entry,
                "average": row.average,
                "groups": row.groups,
                "missing": list(row.missing),
                "of": row.of,
            }
            for row in rows
        ],
    }


def _constants(checked: Checked, cells: Cells, task: BoardTask) -> list[Cell]:
    """The mean or majority of a task and, of simulated data, the ceiling."""
    for asked in checked.of(task) if checked.board.constants else ():
        if found := list(cells.constants(asked)):
            for cell in found:
                if cell.entry != CEILING:
                    cell.settings, cell.entry = cell.entry, CONSTANT
            return found
    return []


def _published(task: BoardTask, name: str, cell: Cell | None) -> dict[str, Any]:
    """A line of the summary that is not of a run."""
    line = {"task": task.name, "entry": name, "value": None, "low": None, "high": None}
    line |= {"spread": None, "seeds": 0, "best": False, "tied": False, "missing": "", "source": ""}
    if cell:
        own = cell.line()
        line |= {key: own[key] for key in ("value", "low", "high")}
        line["source"] = "labels without noise, of the simulator"
    return line


def _task(
    checked: Checked, task: BoardTask, better: dict[str, bool], own: list[Cell]
) -> dict[str, Any]:
    rows = {cell.rows for cell in own if cell.rows}
    return {
        "name": task.name,
        "recipe": task.recipe,
        "data": task.data,
        "metric": task.metric,
        "higher_is_better": better.get(task.name, True),
        "rows": max(rows, default=None),
        "group": task.group,
        "assay": task.facts.get("DMS_id", ""),
        "what": task.what,
        "warnings": _warnings(checked, task) if task.name in checked.sessions else [],
        "absent": checked.absent.get(task.name, ""),
    }


def _warnings(checked: Checked, task: BoardTask) -> list[dict[str, str]]:
    """What the data checker finds, and what reading the rows for some entries had to say."""
    said = [
        {"level": "note", "text": f"{note} ({', '.join(names)})", "advice": ""}
        for note, names in checked.said.get(task.name, {}).items()
    ]
    return _leaks(checked, task) + said


def _leaks(checked: Checked, task: BoardTask) -> list[dict[str, str]]:
    """What the data checker finds of a task's splits; looked for once per table."""
    rows = checked.sessions[task.name].rows
    folder = checked.board.folder / "data"
    folder.mkdir(exist_ok=True)
    file = folder / f"{slug(task.name)}.{rows.digest[:12]}.json"
    if not file.exists():
        table = rows.table
        found = report(rows, NEAR, table.split_seed).findings if table.x_col in rows.columns else []
        lines = [one._asdict() for one in found if one.level in SHOWN]
        checkpoint.write_json(file, lines)
    return read_json(file)


def _entries(checked: Checked, found: list[Cell]) -> list[dict[str, Any]]:
    """Those of the board, then what stands beside its runs, then what others have published."""
    lines = []
    for entry in checked.board.entries.values():
        own = [cell.about.get("parameters") for cell in found if cell.entry == entry.name]
        pieces = [words for _, words in entry.flags]
        flags = shlex.join([word for words in pieces for word in words])
        by = dict.fromkeys(shlex.join(words) for _, words in entry.by.values())
        lines.append(
            {
                "name": entry.name,
                "kind": "reference" if entry.reference else "model",
                "what": entry.what,
                "flags": "; ".join(part for part in (flags, *by) if part),
                "trials": len(entry.trials),
                "parameters": max((count for count in own if count), default=None),
            }
        )
    bare = {"what": "", "flags": "", "trials": 0, "parameters": None}
    beside = dict.fromkeys(c.entry for c in found if c.entry not in checked.board.entries)
    lines += [{"name": name, "kind": "reference", **bare} for name in sorted(beside)]
    names = dict.fromkeys(n for task in checked.board.tasks.values() for n in task.published)
    return [*lines, *({"name": name, "kind": "published", **bare} for name in names)]


def _about(board: Board, found: list[Cell], command: str) -> dict[str, str]:
    def all_of(key: str) -> str:
        return ", ".join(sorted({_short(key, c) for c in found if key in c.about}))

    return {
        "command": command,
        "board": str(board.file),
        "what": board.what,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "mgen": version("mgen"),
        "commit": all_of("commit"),
        "device": all_of("device"),
        "threads": all_of("threads"),
        "torch": all_of("version_torch"),
        "resamples": f"{board.resamples:,}",
    }


def _small(found: list[Cell]) -> list[str]:
    """Notes on tasks with too few test rows for the normal distribution of differences."""
    rows = {cell.task: cell.rows for cell in found if cell.rows}
    return [
        f"{task} has {count} test rows: p values there are too small"
        for task, count in rows.items()
        if count < FEW
    ]


def _undefined(found: list[Cell]) -> list[str]:
    """Notes on resamples that intervals leave out."""
    most: dict[tuple[str, str], int] = {}
    for cell in found:
        count = int(cell.resampled.isnan().sum())
        if count and not math.isnan(cell.value):
            key = (cell.task, cell.metric)
            most[key] = max(count, most.get(key, 0))
    return [
        f"{task}: {metric} is not defined in up to {count:,} resamples of its rows; intervals "
        "leave them out"
        for (task, metric), count in most.items()
    ]


def _short(key: str, cell: Cell) -> str:
    return str(cell.about[key])[: 10 if key == "commit" else None]


def _mixed(found: list[Cell]) -> list[str]:
    """Notes on cells that were not made alike."""
    notes = []
    for key, what in (("commit", "commits"), ("version_torch", "versions of torch")):
        seen = {_short(key, cell) for cell in found if key in cell.about}
        if len(seen) > 1:
            notes.append(f"runs are of {len(seen)} {what}: {', '.join(sorted(seen))}")
    return notes


def _provenance(cell: Cell) -> dict[str, Any]:
    """A row of board.parquet."""
    return cell.line() | {key: cell.about.get(key) for key in PROVENANCE}


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write the board's files and print its table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mgen.figures.boards import board_figures
    from mgen.leaderboards.page import page
    from mgen.leaderboards.tables import markdown, scores_tsv

    with checkpoint.whole(folder / "board.parquet") as unfinished:
        pq.write_table(pa.Table.from_pylist(results["provenance"]), unfinished)
    checkpoint.write_text(folder / "scores.tsv", scores_tsv(results))
    checkpoint.write_text(folder / "board.md", markdown(results))
    checkpoint.write_text(folder / "board.html", page(results))
    files = ["board.html", "board.md", "board.parquet", "scores.tsv"]
    drawn = board_figures(folder / "figures", results)
    files += [str(file.relative_to(folder)) for file in submissions(folder, results)]
    _print(results)
    console.print("files:", *(f"  {folder / name}" for name in files), sep="\n")
    console.print(f"  {folder / 'figures'}: {len(drawn)} figures")


def publish(folder: Path, target: Path) -> None:
    """Copy the pages of a board under its name, the Markdown with the figure of its scores.

    Raises InputError if there is none.
    """
    name = folder.name
    if not (folder / "figures" / "scores.png").exists():
        raise InputError(f"--publish {target}: the board has no score yet")
    title, _, text = (folder / "board.md").read_text().partition("\n")
    checkpoint.write_text(target / f"{name}.md", f"{title}\n\n![scores]({name}.png)\n{text}")
    for source, ending in (("board.html", "html"), ("figures/scores.png", "png")):
        with checkpoint.whole(target / f"{name}.{ending}") as unfinished:
            unfinished.write_bytes((folder / source).read_bytes())
    console.print(f"  {target / name}.md, .html, .png")


def submissions(folder: Path, results: dict[str, Any]) -> list[Path]:
    """ProteinGym's file of each zero-shot assay: its variants, and a column for each entry.

    Source: the score files that ProteinGym reads, proteingym/merge.py of
    github.com/OATML-Markslab/ProteinGym. Scores are those of the first seed.
    """
    files = []
    for task in results["tasks"]:
        table: dict[str, list[str]] = {}
        for cell in results["cells"]:
            if cell["task"] != task["name"] or cell["error"] or cell["entry"] in table:
                continue
            for file in Path(cell["run"]).glob("predictions/*.proteingym.csv"):
                with file.open(newline="") as stream:
                    lines = [*csv.reader(stream)]
                own = {name: [*values] for name, *values in zip(*lines, strict=True)}
                shared = {name: own[name] for name in PROTEINGYM if name in own}
                if {**shared, **table} != {**table, **shared}:
                    raise InputError(f"{file}: has other variants than those of other entries")
                table |= shared | {cell["entry"]: own[[*own][-1]]}
        if table:
            target = folder / "proteingym" / f"{task['assay'] or slug(task['name'])}.csv"
            target.parent.mkdir(exist_ok=True)
            with checkpoint.whole(target) as unfinished, unfinished.open("w", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerows([[*table], *zip(*table.values(), strict=True)])
            files.append(target)
    return files


def _print(results: dict[str, Any]) -> None:
    found = {(line["task"], line["entry"]): line for line in results["summary"]}
    ranks = {line["entry"]: line for line in results["overall"]}
    rows = []
    for entry in results["entries"]:
        name, row = entry["name"], {"entry": entry["name"]}
        for task in results["tasks"]:
            line = found.get((task["name"], name), {})
            mark = " *" if line.get("best") else " ~" if line.get("tied") else ""
            row[task["name"]] = number(line.get("value")) + mark
        rank = ranks.get(name, {})
        row |= {"mean rank": rank.get("rank"), "tasks": rank.get("done")}
        rows.append(row)
    rows.sort(key=lambda row: row["mean rank"] or 1e9)
    print_table(f"{results['title']} (* best, ~ not told apart from it)", rows)
