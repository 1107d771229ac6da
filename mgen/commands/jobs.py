"""Many runs in one folder: which are over, who makes one, what came of it.

Everything is in the folder, so that any process can be killed at any instant and started again, and
several can share the folder. Sweeps and leaderboards are such folders.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mgen import checkpoint, experiments
from mgen.config import InputError
from mgen.engine.processes import Signals
from mgen.report import console, progress
from mgen.runs import read_json

CUDA = "CUDA_VISIBLE_DEVICES"
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
class Share:
    """Which part of the runs this process makes."""

    jobs: int = 1  # runs at once
    index: int = -1  # of this process in a job array, from 0; -1: as the scheduler says
    of: int = 0  # processes in the job array; 0: as the scheduler says, or 1
    retry: bool = False  # make failed runs again
    dry_run: bool = False  # check and list the runs, then stop


class Jobs:
    """Runs of recipes in a folder, of which this process makes every `of`-th.

    One is over when its run is finished or its failure is written down. Whoever makes it holds its
    lock file, and so does the run itself: both must have ended before another goes on with it.
    `identity` is kept in the file `kept` and may only change as `compare` allows. Raises InputError
    if the folder holds other runs.
    """

    kept = "jobs.json"
    what = "run"
    waits = True  # for runs that other processes make

    def __init__(self, folder: Path, identity: dict[str, Any], index: int, of: int) -> None:
        self.folder, self.index, self.of = folder, index, of
        self.left: set[int] = set()  # stopped by a signal: not for this process any more
        self.notes = folder / f"{self.what}s"
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.notes}: cannot write there ({error.strerror})") from None
        with self.alone():
            file = folder / self.kept
            if file.exists():
                identity = self.compare(read_json(file), identity)
            checkpoint.write_json(file, identity)

    # ------------------------------------------------------------- filled in

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """The identity to keep. Raises InputError if `old` is another one."""
        raise NotImplementedError

    def known(self) -> list[int]:
        """The numbers of the runs that are known so far."""
        raise NotImplementedError

    def label(self, number: int) -> str:
        """The name of a run's folder and notes."""
        raise NotImplementedError

    def title(self, number: int) -> str:
        """What a run is called on the screen."""
        return f"{self.what} {number}"

    def recipe(self, number: int) -> str:
        raise NotImplementedError

    def words(self, number: int) -> list[str]:
        """Words after the recipe's name that start or go on with a run."""
        raise NotImplementedError

    def settings(self, number: int) -> list[str]:
        """Those of them that are worth saying."""
        return self.words(number)

    def asked(self) -> bool:
        """Whether there is a new run."""
        return False

    def ended(self, number: int) -> str:
        """What to say of a finished run; called after each that ends, also a failed one."""
        return ""

    # ------------------------------------------------------------- which are over

    def is_ours(self, number: int) -> bool:
        return number % self.of == self.index

    def claim(self) -> tuple[int | None, TextIO | None]:
        """A run that is not over and its lock; without a lock, one that another process makes."""
        busy = None
        for number in [n for n in self.known() if self.is_ours(n) and n not in self.left]:
            if self.is_over(number):
                continue
            if not (lock := hold(self.note(number, ".lock"), wait=False)):
                busy = number
            elif self.is_over(number):  # since the last look
                lock.close()
            else:
                return number, lock
        return self.claim() if self.asked() else (busy, None)

    def run(self, number: int) -> Path:
        return self.folder / self.recipe(number) / self.label(number)

    def note(self, number: int, suffix: str = ".json") -> Path:
        return self.notes / f"{self.label(number)}{suffix}"

    def is_over(self, number: int) -> bool:
        return (self.run(number) / "results.json").exists() or self.note(number).exists()

    def fail(self, number: int, code: int, error: str) -> None:
        """Write down that a run failed."""
        checkpoint.write_json(self.note(number), {"exit": code, "error": error})

    def failure(self, number: int) -> str:
        """Why a run failed, or ""."""
        if (self.run(number) / "results.json").exists() or not self.note(number).exists():
            return ""
        note = read_json(self.note(number))
        return f"exit code {note['exit']}: {note['error']}"

    def forget_failures(self) -> None:
        """Let the failed runs of this process be made again."""
        for number in self.known():
            if self.is_ours(number):
                self.note(number).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other process writes what all share."""
        lock = hold(self.folder / ".lock", wait=True)
        try:
            yield
        finally:
            lock.close()


@dataclass
class _Job:
    """A run that is being made."""

    number: int
    process: subprocess.Popen
    lock: TextIO
    log_start: int


def work(jobs: Jobs, at_once: int, signals: Signals) -> None:
    """Make what is missing, several `at_once`, until all is over or a signal comes."""
    running: dict[int, _Job] = {}
    environments, said = _environments(at_once), set()
    total = sum(map(jobs.is_ours, jobs.known()))
    with progress(f"{jobs.what}s", total, _over(jobs)) as bar:
        while True:
            for slot, job in list(running.items()):
                if job.process.poll() is not None:
                    _end(jobs, running.pop(slot))
                    bar(_over(jobs), f"{len(running)} running")
            if signals.number and "stop" not in said:
                said.add("stop")
                for job in running.values():  # in a session of their own: no Ctrl-C has come there
                    job.process.send_signal(signal.SIGTERM)
            busy = None
            for slot in [s for s in range(at_once) if s not in running and not signals.number]:
                busy, lock = jobs.claim()
                if not lock:
                    break
                running[slot] = _start(jobs, busy, lock, environments[slot])
            if not running:
                if busy is None or not jobs.waits:
                    return
                if busy not in said:
                    title = jobs.title(busy)
                    console.print(f"{title} is being made by another process: waiting for it")
                    said.add(busy)
            time.sleep(0.2)


def _over(jobs: Jobs) -> int:
    return sum(jobs.is_over(number) for number in jobs.known() if jobs.is_ours(number))


def _start(jobs: Jobs, number: int, lock: TextIO, environment: dict[str, str]) -> _Job:
    console.print(f"{jobs.title(number)} starts: {shlex.join(jobs.settings(number))}")
    with jobs.note(number, ".log").open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            experiments.recipe_command(jobs.recipe(number), jobs.words(number)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=[lock.fileno()],  # held until the run has ended, whatever becomes of us
            start_new_session=True,
            preexec_fn=_die_with_parent if LIBC else None,
        )
    return _Job(number, process, lock, start)


def _die_with_parent() -> None:
    LIBC.prctl(DIE_WITH_PARENT, signal.SIGTERM)  # which saves


def _end(jobs: Jobs, job: _Job) -> None:
    """Say what has become of a run; write down if it failed."""
    code, number = job.process.returncode, job.number
    title = jobs.title(number)
    if code < 0 or code >= 128:  # by a signal: unfinished, not failed
        jobs.left.add(number)
        name = signal.Signals(-code if code < 0 else code - 128).name
        console.print(f"{title} was stopped by {name}; the next start goes on with it")
    elif code or not jobs.is_over(number):
        with jobs.note(number, ".log").open("rb") as log:
            log.seek(job.log_start)
            said = log.read().decode(errors="replace").splitlines()
        lines = [line.strip("│ ") for line in said if line.strip("│╭╮╰╯─ ")]
        jobs.fail(number, code, " ".join(lines[-1].split()) if lines else "it printed nothing")
    score = jobs.ended(number)
    if failure := jobs.failure(number):
        console.print(f"{title} failed: {failure}")
    elif score:
        console.print(f"{title} is done: {score}")
    job.lock.close()


def _environments(jobs: int) -> list[dict[str, str]]:
    """For each of several runs at once its share of the cores, and one of the GPUs."""
    if jobs == 1:
        return [{}]
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    threads = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    shared = {k: v for k, v in threads.items() if k not in os.environ}
    given = os.environ.get(CUDA)
    gpus = [*map(str, range(torch.cuda.device_count()))] if given is None else given.split(",")
    return [shared | ({CUDA: gpus[i % len(gpus)]} if gpus else {}) for i in range(jobs)]


def valid_score(run: Path, metric: str) -> float | None:
    """A metric of the validation rows at the best step of a finished run; None without such."""
    best = read_json(run / "results.json").get("best_step")
    found = [line for line in logged(run) if line["split"] == "valid" and line["step"] == best]
    return found[-1][metric] if found else None


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none of a run that only predicts."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def share(options: Share, environment: Mapping[str, str]) -> tuple[int, int]:
    """The index of this process in a job array, from 0, and the array's size."""
    if int(environment.get("WORLD_SIZE", 1)) > 1:
        raise InputError("runs are started from here: start this once, with --jobs for several")
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
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


def hold(file: Path, wait: bool) -> TextIO | None:
    """Hold a file until it is closed here and in every process that got it; None if it is held.

    Unlike the lock of a run directory it passes to started processes. Raises InputError where the
    file system has no locks.
    """
    stream = file.open("a")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        stream.close()
        return None
    except OSError as error:
        stream.close()
        raise InputError(
            f"{file}: cannot be locked ({error.strerror}), so that two processes might make one "
            "run; choose another place with out:"
        ) from None
    return stream
