"""The runs of a leaderboard, and what came of them: one cell per task, entry and seed.

A cell has a run for each fold of its data and each trial of its entry's grid. In each fold the
trial that is best on validation rows counts; the value of a cell is the mean over its folds.
"""

import fnmatch
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mgen.apply import task_of
from mgen.commands.boards.board import Board, BoardEntry, BoardTask, slug
from mgen.commands.jobs import Jobs, logged, valid_score
from mgen.commands.sweeps.plan import flags
from mgen.config import InputError, from_yaml, unknown
from mgen.experiments import RECIPES
from mgen.leaderboards.summary import Cell
from mgen.leaderboards.tested import scored_of, tested
from mgen.predictions import read_scored
from mgen.report import number as shown
from mgen.runs import read_json, sessions

KINDS = {"tasks": "task", "entries": "entry"}


@dataclass(frozen=True)
class Asked:
    """What is known of a task and an entry before any run: from the settings and the rows."""

    task: BoardTask
    entry: BoardEntry
    seeds: tuple[int, ...]
    folds: int  # 0: the data has none
    trains: bool
    higher_is_better: bool
    digest: str  # of the rows


@dataclass(frozen=True)
class Run:
    """One run of a cell."""

    asked: Asked
    seed: int
    fold: int
    trial: int

    @property
    def label(self) -> str:
        parts = [slug(self.asked.task.name), slug(self.asked.entry.name), f"s{self.seed}"]
        parts += [f"f{self.fold}"] if self.asked.folds else []
        parts += [f"t{self.trial}"] if len(self.asked.entry.trials) > 1 else []
        return ".".join(parts)

    def words(self, board: Board) -> list[str]:
        """What starts it, but where it goes."""
        task = self.asked.task
        words = [w for _, part in board.pieces(task, self.asked.entry, self.trial) for w in part]
        words += ["--data.fold", str(self.fold)] if self.asked.folds else []
        words += ["--train.seed", str(self.seed)]
        return words + (["--train.monitor", task.metric] if self.asked.trains else [])


class Cells(Jobs):
    """All runs of a board. Raises InputError where the folder has other runs of such names."""

    kept, what = "board.json", "run"

    def __init__(self, board: Board, asked: list[Asked], index: int = 0, of: int = 1) -> None:
        self.board, self.asked_for = board, asked
        self.others: set[int] = set()  # runs that are not asked for now
        self.runs = [
            Run(a, seed, fold, trial)
            for seed in board.seeds  # a whole board early, then again
            for a in asked
            if seed in a.seeds
            for fold in range(a.folds or 1)
            for trial in range(len(a.entry.trials))
        ]
        identity = {
            run.label: [run.asked.entry.recipe(run.asked.task), *run.words(board)]
            for run in self.runs
        }
        super().__init__(board.folder, identity, index, of)

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        for label in (label for label in new if label in old):
            if old[label] != new[label]:
                raise InputError(
                    f"{self.folder}: was filled by another version of {self.board.file}: {label} "
                    f"ran with {' '.join(old[label][1:])}, now it is {' '.join(new[label][1:])}. "
                    "Boards are never mixed: give this one another name:, or rename the entry"
                )
        return old | new

    def known(self) -> list[int]:
        return [*range(len(self.runs))]

    def only(self, tasks: Sequence[str], entries: Sequence[str]) -> None:
        """Leave the runs of others than these names or patterns to other processes.

        Raises InputError for one that names nothing.
        """
        for kind, patterns in (("tasks", tasks), ("entries", entries)):
            names = {getattr(asked, KINDS[kind]).name for asked in self.asked_for}
            for pattern in patterns:
                if not fnmatch.filter(names, pattern):
                    raise InputError(f"--{kind}: {unknown(KINDS[kind], pattern, names)}")
            if patterns:
                self.others |= {
                    n
                    for n, run in enumerate(self.runs)
                    if not _fits(getattr(run.asked, KINDS[kind]).name, patterns)
                }

    def is_ours(self, number: int) -> bool:
        return number not in self.others and super().is_ours(number)

    def label(self, number: int) -> str:
        return self.runs[number].label

    def title(self, number: int) -> str:
        run = self.runs[number]
        parts = [run.asked.task.name, run.asked.entry.name, f"seed {run.seed}"]
        parts += [f"fold {run.fold}"] if run.asked.folds else []
        parts += [f"trial {run.trial}"] if len(run.asked.entry.trials) > 1 else []
        return ", ".join(parts)

    def recipe(self, number: int) -> str:
        asked = self.runs[number].asked
        return asked.entry.recipe(asked.task)

    def words(self, number: int) -> list[str]:
        run = self.runs[number]
        place = ["--out", str(self.folder), "--name", run.label]
        return [*run.words(self.board), *place, "--resume"]

    def settings(self, number: int) -> list[str]:
        run = self.runs[number]
        pieces = self.board.pieces(run.asked.task, run.asked.entry, run.trial)
        return [word for _, words in pieces[len(run.asked.task.flags) :] for word in words]

    def ended(self, number: int) -> str:
        if self.failure(number) or not self.is_over(number):
            return ""
        run = self.runs[number]
        score = valid_score(self.run(number), run.asked.task.metric)
        known = f"valid {run.asked.task.metric} {shown(score)}, " if score is not None else ""
        return f"{known}{sessions(self.run(number))[-1].get('seconds', 0):.0f} s"

    # ------------------------------------------------------------- what came of them

    def cells(self) -> Iterator[Cell]:
        """Every cell of the board, in its order."""
        numbers: dict[tuple[str, str, int], list[int]] = {}
        for number, run in enumerate(self.runs):
            key = (run.asked.task.name, run.asked.entry.name, run.seed)
            numbers.setdefault(key, []).append(number)
        for asked in self.asked_for:
            for seed in asked.seeds:
                yield self.cell(asked, numbers[asked.task.name, asked.entry.name, seed])

    def cell(self, asked: Asked, numbers: list[int]) -> Cell:
        seed = self.runs[numbers[0]].seed
        cell = Cell(asked.task.name, asked.entry.name, seed, asked.task.metric)
        chosen: list[int] = []
        for fold in range(asked.folds or 1):
            tried = [n for n in numbers if self.runs[n].fold == fold]
            if open_ := [n for n in tried if not self.is_over(n)]:
                cell.missing = f"not run yet ({len(open_)} of {len(tried)} runs)"
                return cell
            failed = [self.failure(n) for n in tried if self.failure(n)]
            if len(failed) == len(tried):
                cell.error = failed[0]
                return cell
            chosen.append(self.best(asked, [n for n in tried if not self.failure(n)]))
            cell.settings = "; ".join(
                [
                    *([cell.settings] if cell.settings else []),
                    " ".join(flags(asked.entry.trials[self.runs[chosen[-1]].trial])),
                    *([f"{len(failed)} of {len(tried)} trials failed"] if failed else []),
                ]
            ).strip("; ")
        runs = [self.run(number) for number in chosen]
        cell.run = ", ".join(map(str, runs))
        if stale := [run for run in runs if sessions(run)[-1]["rows"] != asked.digest]:
            cell.error = f"was run on other rows than there are now; delete {stale[0]}"
            return cell
        cell.about = provenance(runs)
        self.score(cell, asked, runs)
        return cell

    def best(self, asked: Asked, numbers: list[int]) -> int:
        """The run of the best validation value; of equal ones the first."""
        if len(numbers) == 1:
            return numbers[0]
        sign = 1 if asked.higher_is_better else -1

        def rank(number: int) -> float:
            score = valid_score(self.run(number), asked.task.metric)
            return -math.inf if score is None or math.isnan(score) else sign * score

        return max(numbers, key=rank)

    def score(self, cell: Cell, asked: Asked, runs: list[Path], by: str = "") -> None:
        """Fill in the value on test rows and in each resample of them.

        `by` takes predictions of that name that stand beside the runs' own.
        """
        each = [
            tested(
                run,
                asked.task.metric,
                f"{asked.task.data} {fold}",
                self.board.resamples,
                by,
                lambda run=run: metric_of(run, asked),
            )
            for fold, run in enumerate(runs)
        ]
        cell.rows = sum(len(one.rows) for one in each)
        cell.value = sum(one.value for one in each) / len(each)
        cell.resampled = torch.stack([one.resampled for one in each]).mean(0)
        cell.scored = hashlib.sha256(
            b"".join(one.rows.numpy().tobytes() for one in each)
        ).hexdigest()
        if math.isnan(cell.value):
            said = f"{asked.task.metric} is not defined for these predictions"
            cell.error, cell.missing = ("", said) if by else (said, "")

    def constants(self, asked: Asked) -> Iterator[Cell]:
        """What runs of a task are compared with: their constant guess, and the truth's ceiling."""
        for number, run in enumerate(self.runs):
            if run.asked != asked or self.failure(number) or not self.is_over(number):
                continue
            first = [n for n, r in enumerate(self.runs) if r.asked == asked and r.seed == run.seed]
            runs = [self.run(n) for n in first if not self.runs[n].trial]
            if not all((folder / "results.json").exists() for folder in runs):
                continue
            kind, *_, others = read_scored(scored_of(runs[0]))
            for name in others if kind != "variants" else ():  # those are other methods
                cell = Cell(asked.task.name, name, 0, asked.task.metric)
                self.score(cell, asked, runs, by=name)
                yield cell
            return


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def metric_of(run: Path, asked: Asked):
    """A fresh metric of a run's task."""
    task_type, config_type = task_of(RECIPES / f"{asked.entry.recipe(asked.task)}.py")
    task = task_type(from_yaml(config_type(), run / "config.yaml"))
    task.facts = json.loads((run / "checkpoints" / "best" / "facts.json").read_text())
    return task.metrics()[asked.task.metric]


def provenance(runs: list[Path]) -> dict[str, Any]:
    """What made the chosen runs of a cell, and what that took. Several folds add up."""
    each = [sessions(run) for run in runs]
    last = each[0][-1]
    trained = [line for run in runs for line in logged(run) if line["split"] == "train"]
    seconds = sum(line["time"]["seconds"] for line in trained)
    config = hashlib.sha256(b"".join((run / "config.yaml").read_bytes() for run in runs))
    return {
        "seconds": sum(past.get("seconds", 0.0) for run in each for past in run),
        "tokens_per_second": sum(line["tokens"] for line in trained) / seconds if seconds else None,
        "memory_gb": max(past[-1].get("peak_memory_gb", 0.0) for past in each),
        "parameters": last.get("parameters"),
        "trained": last.get("trained"),
        "steps": sum(read_json(run / "results.json").get("steps", 0) for run in runs),
        "device": last["device"],
        "threads": last["threads"],
        "commit": last["commit"],
        "config": config.hexdigest()[:12],
        "rows_digest": last["rows"],
        "started": last["started"],
        "python": last["python"],
        **{f"version_{name}": value for name, value in last["versions"].items()},
    }
