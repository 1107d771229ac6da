"""What is known of a leaderboard before its first run: who can do what, on which rows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mgen.backbones.zoo import ZOO
from mgen.commands.board import NUCLEIC, Board, BoardEntry, BoardTask
from mgen.commands.cells import Asked
from mgen.commands.checking import directions, parsed, types_of
from mgen.config import InputError, flag_values, plain, unknown
from mgen.data.sources.places import SHARED_PREFIX, local_file
from mgen.data.zoo import ZOO as DATA
from mgen.io.remote import is_remote
from mgen.report import console
from mgen.train import REPORTED, Session

VARIANT_METRICS = dict.fromkeys(("spearman", "ndcg", "auroc", "auprc", "mcc", "top_recall"), "max")


@dataclass
class Checked:
    """A board whose settings and rows have been read."""

    board: Board
    asked: list[Asked] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # why a task cannot run, by its name
    sessions: dict[str, Session] = field(default_factory=dict)  # one of each task
    notes: list[str] = field(default_factory=list)
    said: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # of rows: task, note, who
    # What makes a session of a task and an entry.
    fresh: dict[tuple[str, str], Callable[[], Session]] = field(default_factory=dict)

    def of(self, task: BoardTask) -> list[Asked]:
        return [asked for asked in self.asked if asked.task == task]


def check(board: Board) -> Checked:
    """Read the settings of every run, the rows and the metrics.

    Raises InputError with all entries that cannot do a task, or leaves with 2 when the flags' own
    message has been printed; both name the line of the file.
    """
    checked, problems, read_ = Checked(board), [], {}
    for task in board.tasks.values():
        types_of(task.recipe, task.place)
        if reason := _absence(task, checked.absent):
            checked.absent[task.name] = reason
            continue
        for entry in board.entries.values():
            if not entry.wants(task):
                continue
            try:
                checked.asked.append(_asked(checked, task, entry, read_))
            except _Misnamed:
                raise
            except _Unreachable as error:
                checked.absent[task.name] = str(error)
                break
            except InputError as error:
                problems.append(f"{entry.place}: {entry.name} cannot do {task.name}: {error}")
    if problems:
        raise InputError("\n".join([*problems, "Name what an entry can do by its tasks: [...]"]))
    if not checked.asked:
        reasons = dict.fromkeys(checked.absent.values())
        raise InputError(f"{board.file}: no task can run: {'; '.join(reasons)}")
    for task in checked.sessions:
        if not board.tasks[task].modality:
            checked.notes.append(
                f"{task} has no references: set modality: dna, rna or protein in {board.file}"
            )
    for entry in board.entries.values():
        if not any(asked.entry == entry for asked in checked.asked):
            checked.notes.append(f"{entry.name} has no task to do")
    _budgets(checked)
    return checked


class _Unreachable(InputError):
    """The rows of a task are not to be had here."""


class _Misnamed(InputError):
    """A task is wrong, whoever does it."""


def _absence(task: BoardTask, absent: dict[str, str]) -> str:
    """Why the rows of a task are surely not on this machine, or ""."""
    path = DATA[task.data].table.path if task.data in DATA else task.data
    if "*" in path:
        return f"no file {local_file(path)}"
    if path.startswith(SHARED_PREFIX) and not local_file(path).exists():
        known = f"; mgen show data {task.data} says where it is from" * (task.data in DATA)
        return f"no file {local_file(path)}{known}"
    if not _is_of_hub(task) and not is_remote(path) and not local_file(path).exists():
        raise InputError(f"{task.place}: {task.name}: no file {local_file(path)}")
    if _is_of_hub(task) and (found := [r for r in absent.values() if "hub" in r]):
        return found[0]  # asked once, not once per task
    return ""


def _is_of_hub(task: BoardTask) -> bool:
    if task.data in DATA:
        return DATA[task.data].place.startswith("https://")
    is_named_so = re.fullmatch(r"\w[\w.-]*/[\w.-]+", task.data)
    return bool(is_named_so) and not Path(task.data).exists()


def _asked(checked: Checked, task: BoardTask, entry: BoardEntry, known_: dict) -> Asked:
    """What is known of a task and an entry, whose rows are read once for equal settings."""
    board, recipe = checked.board, entry.recipe(task)
    task_type, config_type = types_of(recipe, entry.place)
    for trial in reversed(range(len(entry.trials))):  # the first one stays
        pieces = board.pieces(task, entry, trial)
        for place, words in pieces:
            for flag in ("train.monitor", "train.seed", "data.fold"):
                if flag_values(words, flag):
                    raise InputError(f"{place}: --{flag} is the board's; drop it")
        cfg, launch = parsed(config_type, pieces)
    chosen = [cfg_ for name, cfg_ in vars(cfg).items() if name.startswith("backbone")]
    for choice in chosen:
        reads = ZOO[choice.name].modality if choice.name in ZOO else ""
        if (
            reads
            and task.modality
            and reads != task.modality
            and not {reads, task.modality} <= {*NUCLEIC}
        ):
            raise InputError(f"{choice.name} reads {reads}, the task's data are {task.modality}")
    of_rows = {k: v for k, v in plain(cfg).items() if k not in ("train", "adapter")}
    key = json.dumps([recipe, of_rows], default=str)
    if key not in known_:
        verb = "fit" if task_type.trains else "predict"
        session = Session(task_type, cfg, launch, recipe, verb, None)
        try:
            console.quiet = True  # what is to be said of rows stands on the board
            session.read(("train", "valid", "test") if task_type.trains else (session.split,))
        except InputError as error:
            if _is_of_hub(task) and "hub" in str(error):
                raise _Unreachable(str(error)) from None
            raise
        finally:
            console.quiet = False
        known_[key] = session
    session = known_[key]
    for note in session.notes:
        if not any(word in note for word in REPORTED):
            checked.said.setdefault(task.name, {}).setdefault(note, []).append(entry.name)
    checked.fresh[task.name, entry.name] = partial(
        Session, task_type, cfg, launch, recipe, session.verb, None
    )
    checked.sessions.setdefault(task.name, session)
    better = directions(session) if task_type.trains else VARIANT_METRICS
    if task.metric not in better:
        said = unknown("metric", task.metric, better)
        if recipe == task.recipe:
            raise _Misnamed(f"{task.place}: {task.name}: {said}")
        raise InputError(said)
    splits, trains = session.rows.splits, task_type.trains
    if trains and not len(splits["test"]):
        raise InputError("no test rows")
    if trains and not len(splits["valid"]) and len(entry.trials) > 1:
        raise InputError("no validation rows to choose from the grid by")
    is_free = not trains or not cfg.train.epochs  # nothing in it depends on a seed ...
    is_free &= not any(choice.random_weights for choice in chosen)  # ... unless the weights do
    return Asked(
        task=task,
        entry=entry,
        seeds=board.seeds[:1] if is_free else board.seeds,
        folds=cfg.data.folds if trains else 0,
        trains=trains,
        higher_is_better=better[task.metric] == "max",
        digest=session.rows.digest,
    )


def _budgets(checked: Checked) -> None:
    """Note where entries have had unequal chances."""
    tried: dict[int, list[str]] = {}
    for entry in checked.board.entries.values():
        if not entry.reference:
            tried.setdefault(len(entry.trials), []).append(entry.name)
    if len(tried) > 1:
        shares = "; ".join(f"{count}: {', '.join(names)}" for count, names in sorted(tried.items()))
        checked.notes.append(f"entries were tuned unequally, by trials: {shares}")
    for name in dict.fromkeys(asked.task.name for asked in checked.asked if asked.trains):
        session = checked.sessions[name]
        if not len(session.rows.splits.get("valid", ())):
            checked.notes.append(f"{name} has no validation rows: the last step of a run counts")
