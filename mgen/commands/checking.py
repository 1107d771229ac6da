"""What is read of many runs before the first: recipe, flags, rows, metrics."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from mgen import experiments
from mgen.apply import task_of
from mgen.config import InputError, parse, unknown
from mgen.engine import trackers
from mgen.task import Task
from mgen.train import Launch, Session

# Flags that runs are given here, or that run nothing.
OURS = ("out", "name", "resume", "run", "check", "estimate", "dry_run")
Words = tuple[str, Sequence[str]]  # file:line, and words of a command line that stand there


def types_of(recipe: str, place: str) -> tuple[type[Task], type]:
    """The task and the config of a recipe. Raises InputError that names the place."""
    names = sorted(file.stem for file in experiments.RECIPES.glob("*.py"))
    if recipe not in names:
        raise InputError(f"{place}: {unknown('recipe', recipe, names)}")
    try:
        return task_of(experiments.RECIPES / f"{recipe}.py")
    except InputError:
        raise InputError(f"{place}: {recipe} is not a recipe with verbs") from None


def parsed(config_type: type, pieces: Sequence[Words]) -> tuple[Any, Launch]:
    """The settings of a run, whose words come from several places of a file.

    Raises InputError, or leaves with 2 when the flags' own message has been printed; what is wrong
    is said under the place without which all would be right, or the first of them.
    """

    def read(given: Sequence[Words], place: str) -> tuple[Any, Launch]:
        try:
            words = [word for _, part in given for word in part]
            return parse(config_type(), Launch(), words, place)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None

    def fails(given: Sequence[Words]) -> bool:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                read(given, "")
            except (InputError, SystemExit):
                return True
        return False

    for place, words in pieces:
        if {"-h", "--help"} & {*words}:
            raise InputError(f"{place}: --help runs nothing; drop it")
    if fails(pieces):
        # The first alone, as later ones may need what it says; then whichever spoils the rest.
        alone = [] if not fails(pieces[:1]) else [pieces[0]]
        others = [p for i, p in enumerate(pieces) if not fails([*pieces[:i], *pieces[i + 1 :]])]
        place = (alone or others or pieces)[0][0]
        read(pieces, place)
        raise AssertionError("settings that fail have been accepted")
    cfg, launch = read(pieces, "")
    if taken := [name for name in OURS if getattr(launch, name) != getattr(Launch(), name)]:
        flag = f"--{taken[0].replace('_', '-')}"
        place = next((p for p, words in pieces if any(w.startswith(flag) for w in words)), "")
        raise InputError(f"{place or pieces[0][0]}: {flag} is not for these runs; drop it")
    trackers.check(launch.tracker)
    return cfg, launch


def directions(session: Session) -> dict[str, str]:
    """The metrics of a session whose rows are read, and whether min or max is best.

    None of a recipe that only predicts and measures nothing.
    """
    if not session.task.trains:
        return dict.fromkeys(session.task.measured(), "max")
    metrics = session.task.metrics().items()
    return {"loss": "min"} | {n: "max" if m.higher_is_better else "min" for n, m in metrics}
