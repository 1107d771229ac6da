"""What is known of a leaderboard before its first run: who can do what, on which rows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mgen.backbones.zoo import ZOO
from mgen.commands.boards.board import NUCLEIC, Board, BoardEntry, BoardTask
from mgen.commands.boards.cells import Asked
from mgen.commands.checking import directions, parsed, types_of
from mgen.config import Absent, InputError, flag_values, plain, unknown
from mgen.data.sources.places import local_file
from mgen.data.zoo import ZOO as DATA
from mgen.io.files import SHARED_PREFIX
from mgen.io.remote import is_remote
from mgen.report import console
from mgen.train import REPORTED, Session


@dataclass
class Checked:
    """A board whose settings and rows have been read."""

    board: Board
    asked: list[Asked] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # why a task cannot run, by its name
    unavailable: dict[tuple[str, str], str] = field(default_factory=dict)  # why: task, entry
    offline: str = ""  # why the hub cannot be reached
    sessions: dict[str, Session] = field(default_factory=dict)  # one of each task
    read: dict[str, Session] = field(default_factory=dict)  # by the settings of their rows
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
    checked, problems = Checked(board), []
    for task in board.tasks.values():
        types_of(task.recipe, task.place)
        if reason := _absence(task, checked):
            checked.absent[task.name] = reason
            continue
        for entry in board.put_to(task):
            try:
                checked.asked.append(_asked(checked, task, entry))
            except _Misnamed:
                raise
            except _NoRows as error:
                checked.absent[task.name] = str(error)
                break
            except Absent as error:
                checked.unavailable[task.name, entry.name] = str(error)
            except InputError as error:
                problems.append(f"{entry.place}: {entry.name} cannot do {task.name}: {error}")
    if problems:
        raise InputError("\n".join([*problems, "Name what an entry can do by its tasks: [...]"]))
    if not checked.asked:
        reasons = dict.fromkeys([*checked.absent.values(), *checked.unavailable.values()])
        raise InputError(f"{board.file}: no task can run: {'; '.join(reasons)}")
    _notes(checked)
    return checked


class _NoRows(Absent):
    """The rows of a task are not to be had here."""


class _Misnamed(InputError):
    """A task is wrong, whoever does it."""


def _notes(checked: Checked) -> None:
    """What should be said of the board as a whole."""
    board, notes = checked.board, checked.notes
    lacking: dict[str, list[str]] = {}
    for name, reason in checked.absent.items():
        lacking.setdefault(reason, []).append(name)
    for (_, entry), reason in checked.unavailable.items():
        lacking.setdefault(reason, []).append(entry)
    for reason, names in lacking.items():
        notes.append(f"left out: {', '.join(dict.fromkeys(names))}: {reason}")
    for task in checked.sessions:
        if not board.tasks[task].modality:
            notes.append(f"{task} has no references: set its modality: dna, rna or protein")
    entered = {asked.entry.name for asked in checked.asked}
    entered |= {entry for _, entry in checked.unavailable}
    notes += [f"{name} has no task to do" for name in board.entries if name not in entered]
    tried: dict[int, list[str]] = {}
    for entry in board.entries.values():
        if not entry.reference:
            tried.setdefault(len(entry.trials), []).append(entry.name)
    if len(tried) > 1:
        shares = "; ".join(f"{count}: {', '.join(names)}" for count, names in sorted(tried.items()))
        notes.append(f"entries were tuned unequally, by trials: {shares}")
    for name in dict.fromkeys(asked.task.name for asked in checked.asked if asked.trains):
        if not len(checked.sessions[name].rows.splits.get("valid", ())):
            notes.append(f"{name} has no validation rows: the last step of a run counts")


def _absence(task: BoardTask, checked: Checked) -> str:
    """Why the rows of a task are surely not on this machine, or ""."""
    path = DATA[task.data].table.path if task.data in DATA else task.data
    if "*" in path:
        return f"no file {local_file(path)}"
    if _is_of_hub(task):
        return checked.offline  # asked once, not once per task
    if path.startswith(SHARED_PREFIX) and not local_file(path).exists():
        known = f"; mgen show data {task.data} says where it is from" * (task.data in DATA)
        return f"no file {local_file(path)}{known}"
    if not is_remote(path) and not local_file(path).exists():
        raise InputError(f"{task.place}: {task.name}: no file {local_file(path)}")
    return ""


def _is_of_hub(task: BoardTask) -> bool:
    if task.data in DATA:
        return DATA[task.data].place.startswith("https://")
    is_named_so = re.fullmatch(r"\w[\w.-]*/[\w.-]+", task.data)
    return bool(is_named_so) and not Path(task.data).exists()


def _asked(checked: Checked, task: BoardTask, entry: BoardEntry) -> Asked:
    """What is known of a task and an entry, from the settings of all its trials and the rows."""
    recipe = entry.recipe(task)
    task_type, config_type = types_of(recipe, entry.place)
    for trial in reversed(range(len(entry.trials))):  # the first one stays
        pieces = checked.board.pieces(task, entry, trial)
        for place, words in pieces:
            for flag in ("train.monitor", "train.seed", "data.fold"):
                if flag_values(words, flag):
                    raise InputError(f"{place}: --{flag} is the board's; drop it")
        cfg, launch = parsed(config_type, pieces)
    chosen = [choice for name, choice in vars(cfg).items() if name.startswith("backbone")]
    for choice in chosen:
        reads = ZOO[choice.name].modality if choice.name in ZOO else ""
        both = {reads, task.modality} - {""}
        if len(both) == 2 and both != {*NUCLEIC}:
            raise InputError(f"{choice.name} reads {reads}, the task's data are {task.modality}")
    verb = "fit" if task_type.trains else "predict"
    fresh = partial(Session, task_type, cfg, launch, recipe, verb, None)
    checked.fresh[task.name, entry.name] = fresh
    session = _read(checked, task, entry, fresh)
    better = directions(session)
    if not better:
        raise InputError(f"{recipe} measures nothing of these rows; --data.y-cols names labels")
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
        seeds=checked.board.seeds[: 1 if is_free else None],
        folds=cfg.data.folds if trains else 0,
        trains=trains,
        higher_is_better=better[task.metric] == "max",
        digest=session.rows.digest,
    )


def _read(
    checked: Checked, task: BoardTask, entry: BoardEntry, fresh: Callable[[], Session]
) -> Session:
    """A session whose rows are read, the same one for settings that read them alike."""
    cfg = fresh.args[1]
    of_rows = {k: v for k, v in plain(cfg).items() if k != "train"}  # an adapter may not suit them
    key = json.dumps([entry.recipe(task), of_rows], default=str)
    if key not in checked.read:
        session = fresh()
        try:
            console.quiet = True  # what is to be said of rows stands on the board
            session.read(("train", "valid", "test") if session.task.trains else (session.split,))
        except Absent as error:
            if _is_of_hub(task):
                checked.offline = str(error)
            raise _NoRows(str(error)) from None
        finally:
            console.quiet = False
        checked.read[key] = session
    session = checked.read[key]
    for note in session.notes:
        if not any(word in note for word in REPORTED):
            checked.said.setdefault(task.name, {}).setdefault(note, []).append(entry.name)
    checked.sessions.setdefault(task.name, session)
    return session
