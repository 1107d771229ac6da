"""mgen sweep: many runs of one recipe over a grid, random draws or Optuna's, resumable."""

import contextlib
import ctypes
import dataclasses
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro

from mgen import experiments
from mgen.apply import task_of
from mgen.commands.plan import Plan, Value, flags, read, texts
from mgen.commands.trials import Asked, Drawn, Trials, optuna_of
from mgen.config import InputError, flag_values, parse, plain, to_yaml, unknown
from mgen.engine import trackers
from mgen.loop import Signals
from mgen.report import console, number, print_table
from mgen.train import Launch, Session

# Flags that a sweep gives its trials, or that run nothing.
OURS = ("out", "name", "resume", "run", "check", "estimate", "dry_run")
CUDA = "CUDA_VISIBLE_DEVICES"
ERROR_LETTERS = 80  # of the printed table
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
# Variables of a job array: index, first index, count or else last index, step.
ARRAYS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT", "", ""),
    ("PBS_ARRAY_INDEX", "", "", "", ""),
    ("LSB_JOBINDEX", "", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
    ("SGE_TASK_ID", "SGE_TASK_FIRST", "", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run what is missing of a sweep; docs/sweeps.md describes its file."""

    file: Annotated[Path, tyro.conf.Positional]  # YAML file of the sweep
    jobs: int = 1  # trials at once
    index: int = -1  # of this process in a job array, from 0; -1: as the scheduler says
    of: int = 0  # processes in the job array; 0: as the scheduler says, or 1
    retry: bool = False  # run failed trials again
    dry_run: bool = False  # check and list the trials, then stop


def sweep(words: Sequence[str]) -> None:
    """Check all trials, run those that are missing, print and write the table of all.

    Leaves with 1 if a trial failed, with 130 or 143 if it was stopped by a signal.
    """
    options = tyro.cli(Options, args=list(words), prog="mgen sweep")
    index, of = _share(options, os.environ)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("a sweep starts its trials itself: start it once, with --jobs for several")
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
    plan = check(read(options.file))
    if options.dry_run:
        _list(plan, of)
        return
    trials = (Asked if plan.search == "optuna" else Drawn)(plan, index, of)
    if options.retry:
        trials.forget_failures()
    with Signals() as signals:
        _work(trials, options.jobs, signals)
    rows = trials.write_table()
    _print(plan, rows)
    if signals.number:
        console.print("stopped; the same command goes on")
        sys.exit(128 + signals.number)
    sys.exit(1 if any(row["error"] for row in rows if trials.is_ours(row["trial"])) else 0)


# --------------------------------------------------------------------------- before the first trial


def check(plan: Plan) -> Plan:
    """Read the settings of every trial and the rows; the plan, its direction filled in.

    Raises InputError, or leaves with 2 when the flags' own message has been printed; both name the
    line of the file.
    """
    recipes = experiments.RECIPES
    names = sorted(file.stem for file in recipes.glob("*.py"))
    if plan.recipe not in names:
        raise InputError(f"{plan.where('recipe')}: {unknown('recipe', plan.recipe, names)}")
    try:
        task_type, config_type = task_of(recipes / f"{plan.recipe}.py")
    except InputError:
        task_type = None
    if not (task_type and task_type.trains):
        raise InputError(f"{plan.where('recipe')}: {plan.recipe} trains nothing to compare")
    if plan.search == "optuna":
        optuna_of(plan)
    known: dict[str, int] = {}
    tables: dict[str, Session] = {}
    settings = plan.probes() if plan.search == "optuna" else plan.settings
    for place, values in enumerate(settings):
        cfg, launch = _parsed(plan, config_type, values)
        if taken := [n for n in OURS if getattr(launch, n) != getattr(Launch(), n)]:
            flag = f"--{taken[0].replace('_', '-')}"
            raise InputError(f"{plan.where('flags')}: {flag} is not for trials; drop it")
        trackers.check(launch.tracker)
        text = to_yaml(cfg)
        if plan.search != "optuna" and text in known:
            raise InputError(
                f"{plan.where('vary')}: trials {known[text]} and {place} have equal settings: "
                f"{shlex.join(flags(values))}"
            )
        known[text] = place
        of_data = {k: v for k, v in plain(cfg).items() if k not in ("train", "adapter")}
        session = Session(task_type, cfg, launch, plan.recipe, "fit", None)
        tables.setdefault(json.dumps(of_data), session)
    better: dict[str, str] = {}
    for session in tables.values():
        session.read(("train", "valid", "test"))
        if not len(session.rows.splits["valid"]):
            raise InputError(
                f"{plan.where('flags')}: no validation rows to choose by; set "
                "--data.valid-fraction or another split"
            )
        metrics = session.task.metrics().items()
        better = {"loss": "min"} | {n: "max" if m.higher_is_better else "min" for n, m in metrics}
        if plan.metric not in better:
            raise InputError(f"{plan.where('metric')}: {unknown('metric', plan.metric, better)}")
    direction = better[plan.metric]
    if plan.direction not in ("", direction):
        raise InputError(
            f"{plan.where('direction')}: direction: {plan.direction}: a run keeps the {direction} "
            f"of {plan.metric}; drop direction"
        )
    return dataclasses.replace(plan, direction=direction)


def _parsed(plan: Plan, config_type: type, values: dict[str, Value]) -> tuple[Any, Launch]:
    """The settings of a trial. What is wrong with them is said under the line that is."""

    def parsed(values: dict[str, Value], place: str) -> tuple[Any, Launch]:
        try:
            return parse(config_type(), Launch(), [*plan.words, *flags(values)], place)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None

    def fails(values: dict[str, Value]) -> bool:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                parsed(values, "")
            except (InputError, SystemExit):
                return True
        return False

    if flag_values(plan.words, "train.monitor"):
        raise InputError(f"{plan.where('flags')}: --train.monitor is the sweep's metric; drop it")
    if {"-h", "--help"} & {*plan.words}:
        raise InputError(f"{plan.where('flags')}: --help runs nothing; drop it")
    if not fails(values):
        return parsed(values, "")
    culprits = [key for key in values if not fails({k: v for k, v in values.items() if k != key})]
    place = plan.where("flags" if fails({}) else f"vary {culprits[0]}" if culprits else "vary")
    parsed(values, place)
    raise AssertionError("settings that fail have been accepted")


def _share(options: Options, environment: Mapping[str, str]) -> tuple[int, int]:
    """The index of this process in a job array, from 0, and the array's size."""
    index, of = options.index, options.of
    for name, *rest in ARRAYS:
        text = environment.get(name, "")
        if index >= 0 or not text.isdecimal() or (name == "LSB_JOBINDEX" and text == "0"):
            continue
        first, count, last, step = (
            int(environment[n]) if environment.get(n, "").isdecimal() else None for n in rest
        )
        first = 1 if name == "LSB_JOBINDEX" else first or 0
        index = (int(text) - first) // (step or 1)
        of = of or count or (0 if last is None else (last - first) // (step or 1) + 1)
        if not of:
            raise InputError(f"{name}={text}, but not how many there are: give --of")
    if index < 0 and not of:
        return 0, 1
    if not 0 <= index < of:
        raise InputError(f"--index {index} --of {of}: indices are 0 to {of - 1}; give both")
    return index, of


def _list(plan: Plan, of: int) -> None:
    """Print the trials and how one of them is started."""
    if plan.search == "optuna":
        rows = [{"flag": k, v.kind: " ".join(map(str, v.among))} for k, v in plan.vary.items()]
        print_table(f"{plan.trials} trials, drawn by Optuna one after the other", rows)
        settings = plan.probes()
    else:
        settings = plan.settings
        share = [{"array index": i % of} if of > 1 else {} for i in range(len(settings))]
        rows = [
            {"trial": i, **texts(values), **more}
            for i, (values, more) in enumerate(zip(settings, share, strict=True))
        ]
        print_table(f"{len(rows)} trials in {plan.folder}", rows)
    console.print(shlex.join(["mgen", "run", plan.recipe, *plan.command(0, settings[0])]))


# --------------------------------------------------------------------------- running


@dataclass
class _Job:
    """A trial that runs."""

    trial: int
    process: subprocess.Popen
    lock: TextIO
    log_start: int


def _work(trials: Trials, jobs: int, signals: Signals) -> None:
    """Run what is missing, `jobs` trials at once, until all is over or a signal comes."""
    running: dict[int, _Job] = {}
    environments, said = _environments(jobs), set()
    while True:
        for slot, job in list(running.items()):
            if job.process.poll() is not None:
                _end(trials, running.pop(slot))
        if signals.number and "stop" not in said:
            said.add("stop")
            for job in running.values():  # in a session of their own: no Ctrl-C has reached them
                job.process.send_signal(signal.SIGTERM)
        busy = None
        for slot in [slot for slot in range(jobs) if slot not in running and not signals.number]:
            busy, lock = trials.claim()
            if not lock:
                break
            running[slot] = _start(trials, busy, lock, environments[slot])
        if not running:
            if busy is None or not trials.waits:
                return
            if busy not in said:
                console.print(f"trial {busy} is being run by another process: waiting for it")
                said.add(busy)
        time.sleep(0.2)


def _start(trials: Trials, trial: int, lock: TextIO, environment: dict[str, str]) -> _Job:
    plan, values = trials.plan, trials.known()[trial]
    words = plan.command(trial, values)
    console.print(f"trial {trial} starts: {shlex.join(flags(values))}")
    with trials.note(trial, ".log").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            experiments.recipe_command(plan.recipe, words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=[lock.fileno()],  # held until the run has ended, whatever becomes of us
            start_new_session=True,
            preexec_fn=_die_with_parent if LIBC else None,
        )
    return _Job(trial, process, lock, start)


def _die_with_parent() -> None:
    LIBC.prctl(DIE_WITH_PARENT, signal.SIGTERM)  # which saves


def _end(trials: Trials, job: _Job) -> None:
    """Say what has become of a trial; write down if it failed, and the table."""
    code, trial = job.process.returncode, job.trial
    if code < 0 or code >= 128:  # by a signal: unfinished, not failed
        trials.left.add(trial)
        name = signal.Signals(-code if code < 0 else code - 128).name
        console.print(f"trial {trial} was stopped by {name}; the next start goes on with it")
    elif code or not trials.is_over(trial):
        with trials.note(trial, ".log").open("rb") as log:
            log.seek(job.log_start)
            said = log.read().decode(errors="replace").splitlines()
        lines = [line.strip("│ ") for line in said if line.strip("│╭╮╰╯─ ")]
        trials.fail(trial, code, " ".join(lines[-1].split()) if lines else "it printed nothing")
    row = next(row for row in trials.write_table() if row["trial"] == trial)
    if row["error"]:
        console.print(f"trial {trial} failed: {row['error']}")
    elif row["steps"] is not None:
        score = f"valid {trials.plan.metric} {number(row[trials.plan.scores[0]])}"
        console.print(f"trial {trial} is done: {score} after {row['steps']} steps")
    job.lock.close()


def _environments(jobs: int) -> list[dict[str, str]]:
    """For each of several trials at once its share of the cores, and one of the GPUs."""
    if jobs == 1:
        return [{}]
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    shared = {k: v for k, v in threads.items() if k not in os.environ}
    given = os.environ.get(CUDA)
    gpus = [*map(str, range(torch.cuda.device_count()))] if given is None else given.split(",")
    return [shared | ({CUDA: gpus[i % len(gpus)]} if gpus else {}) for i in range(jobs)]


def _print(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """The table of all trials, the best first, and how to go on with that one."""
    score, sign = plan.scores[0], -1 if plan.direction == "max" else 1

    def rank(row: dict[str, Any]) -> float:
        return math.inf if row[score] is None else sign * row[score]

    rows = sorted(rows, key=rank)
    shown = [{key: value for key, value in row.items() if key != "error"} for row in rows]
    if any(row["error"] for row in rows):  # whole in the file
        short = [row["error"][:ERROR_LETTERS] for row in rows]
        cut = [text + "..." * (text != row["error"]) for text, row in zip(short, rows, strict=True)]
        shown = [line | {"error": text} for line, text in zip(shown, cut, strict=True)]
    print_table(f"{len(rows)} trials, by {score}", shown)
    if rows and rows[0][score] is not None:
        console.print(f"best: trial {rows[0]['trial']}, {rows[0]['run']}")
    console.print(f"table: {plan.folder / 'results.tsv'}")
