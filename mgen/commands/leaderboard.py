"""mgen leaderboard: tasks x entries x seeds, resumable, compared honestly on one page."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mgen.commands.boards.board import read
from mgen.commands.boards.cells import Cells
from mgen.commands.boards.entering import Checked, check
from mgen.commands.boards.outcome import compare, publish, write
from mgen.commands.jobs import Share, share, work
from mgen.config import InputError
from mgen.engine.estimate import duration
from mgen.engine.processes import Signals
from mgen.experiments import recipe_command
from mgen.leaderboards.protocols import reaggregate
from mgen.report import console, print_table, size, warn
from mgen.train import Session, needs


@dataclass(frozen=True, kw_only=True)
class Options(Share):
    """Run what is missing of a leaderboard; docs/leaderboards.md describes its file."""

    # YAML file of the board; with --aggregate a CSV of published values, a row per task
    file: Annotated[Path, tyro.conf.Positional]
    tasks: tuple[str, ...] = ()  # run these alone, names or patterns (gue_*)
    entries: tuple[str, ...] = ()  # likewise
    aggregate: str = ""  # average that table by a protocol: mean, proteingym_zero_shot, flip, ...
    lower_is_better: bool = False  # there
    publish: str = ""  # folder that gets NAME.md, NAME.html and NAME.png of the board besides
    estimate: bool = False  # say what time and memory the missing runs need, then stop


def leaderboard(words: Sequence[str]) -> None:
    """Check all, run what is missing, compare, and write the board's files.

    Leaves with 1 if a run failed, with 130 or 143 if it was stopped by a signal.
    """
    options = tyro.cli(Options, args=list(words), prog="mgen leaderboard")
    if options.aggregate:
        better = "lower" if options.lower_is_better else "higher"
        rows, notes = reaggregate(options.file, options.aggregate, better)
        for note in notes:
            warn(note)
        print_table(f"{options.file}, {options.aggregate}", rows)
        return
    if options.publish and not Path(options.publish).is_dir():
        raise InputError(f"--publish {options.publish}: no such folder")
    index, of = share(options, os.environ)
    checked = check(read(options.file))
    for note in checked.notes:
        warn(note)
    if options.dry_run:
        _list(checked)
        return
    cells = Cells(checked.board, checked.asked, index, of)
    cells.only(options.tasks, options.entries)
    if options.estimate:
        estimate(checked, cells, options.jobs)
        return
    if options.retry:
        cells.forget_failures()
    with Signals() as signals:
        work(cells, options.jobs, signals)
    if signals.number:
        console.print("stopped; the same command goes on")
        sys.exit(128 + signals.number)
    command = shlex.join(["mgen", "leaderboard", str(options.file)])
    with cells.alone():
        results = compare(checked, cells, command)
        write(checked.board.folder, results)
        if options.publish:
            publish(checked.board.folder, Path(options.publish))
    sys.exit(1 if any(cells.failure(n) for n in cells.known() if cells.is_ours(n)) else 0)


def _list(checked: Checked) -> None:
    rows = [
        {
            "task": asked.task.name,
            "entry": asked.entry.name,
            "recipe": asked.entry.recipe(asked.task),
            "seeds": len(asked.seeds),
            "folds": asked.folds or None,
            "trials": len(asked.entry.trials),
        }
        for asked in checked.asked
    ]
    runs = sum(row["seeds"] * (row["folds"] or 1) * row["trials"] for row in rows)
    print_table(f"{runs} runs in {checked.board.folder}", rows)


def estimate(checked: Checked, cells: Cells, jobs: int) -> None:
    """Print what the missing runs need, from some steps of one run per task and entry."""
    left: dict[tuple[str, str], list[int]] = {}
    for n in cells.known():
        run = cells.runs[n]
        if cells.is_ours(n) and not cells.is_over(n):
            left.setdefault((run.asked.task.name, run.asked.entry.name), []).append(n)
    if not left:
        console.print("all runs are over")
        return
    start = time.perf_counter()
    first = next(iter(left.values()))[0]
    words = [*cells.runs[first].words(checked.board), "--dry-run"]
    subprocess.run(recipe_command(cells.recipe(first), words), capture_output=True)
    overhead, rows, total = time.perf_counter() - start, [], 0.0
    for asked in checked.asked:
        runs = left.get((asked.task.name, asked.entry.name), [])
        if not runs:
            continue
        row = {"task": asked.task.name, "entry": asked.entry.name, "runs": len(runs)}
        seconds, memory, error = _needed(checked.fresh[asked.task.name, asked.entry.name]())
        total += len(runs) * (overhead + (seconds or 0.0))
        took = "no steps to measure" if seconds is None else duration(seconds)
        rows.append(row | {"steps of one": error or took, "memory": memory and size(memory)})
    print_table(f"{sum(map(len, left.values()))} runs are missing", rows)
    shared = "" if jobs == 1 else f", {duration(total / jobs)} with {jobs} at once"
    console.print(
        f"{duration(total)} one after the other, {overhead:.1f} s of each to start{shared}. What "
        "has no steps, validation and tests are not in it"
    )


def _needed(session: Session) -> tuple[float | None, float | None, str]:
    """Seconds of the steps of a run, its bytes, and what came in between."""
    if not session.task.trains or not session.cfg.train.epochs:
        return None, None, ""
    try:
        console.quiet = True
        session.read(("train", "valid", "test"))
        session.join()  # which lets the first process talk
        console.quiet = True
        found = needs(session)
    except InputError as error:
        return None, None, str(error)
    finally:
        console.quiet = False
    return found.seconds, found.memory, ""
