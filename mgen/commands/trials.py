"""The trials of a sweep: which there are, which are over, who runs one, what came out.

Everything is in the sweep's folder, so that any process can be killed at any instant and started
again, and several can share the folder.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mgen import checkpoint
from mgen.commands.plan import Plan, Value, label, texts
from mgen.config import InputError
from mgen.runs import read_json


class Trials:
    """The trials of a sweep, of which this process runs every `of`-th.

    A trial is over when its run is finished or its failure is written down. Whoever runs it holds
    its lock file, and so does the run itself: both must have ended before another goes on with it.
    Raises InputError if the folder holds another sweep.
    """

    waits = True  # for trials that other processes run

    def __init__(self, plan: Plan, index: int, of: int) -> None:
        self.plan, self.index, self.of = plan, index, of
        self.left: set[int] = set()  # stopped by a signal: not for this process any more
        self.notes = plan.folder / "trials"
        try:
            self.notes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.notes}: cannot write there ({error.strerror})") from None
        with self._alone():
            file = plan.folder / "sweep.json"
            if file.exists():
                _compare(plan, read_json(file))
            else:
                checkpoint.write_json(file, plan.identity)

    def known(self) -> dict[int, dict[str, Value]]:
        """The settings of the trials that are known so far, by number."""
        raise NotImplementedError

    def asked(self) -> bool:
        """Whether there is a new trial."""
        return False

    def is_ours(self, trial: int) -> bool:
        return trial % self.of == self.index

    def claim(self) -> tuple[int | None, TextIO | None]:
        """A trial that is not over and its lock; without a lock, one that another process runs."""
        busy = None
        for trial in [t for t in self.known() if self.is_ours(t) and t not in self.left]:
            if self.is_over(trial):
                continue
            if not (lock := hold(self.note(trial, ".lock"), wait=False)):
                busy = trial
            elif self.is_over(trial):  # since the last look
                lock.close()
            else:
                return trial, lock
        return self.claim() if self.asked() else (busy, None)

    def run(self, trial: int) -> Path:
        return self.plan.folder / self.plan.recipe / label(trial)

    def note(self, trial: int, suffix: str = ".json") -> Path:
        return self.notes / f"{label(trial)}{suffix}"

    def is_over(self, trial: int) -> bool:
        return (self.run(trial) / "results.json").exists() or self.note(trial).exists()

    def fail(self, trial: int, code: int, error: str) -> None:
        """Write down that a trial failed."""
        checkpoint.write_json(self.note(trial), {"exit": code, "error": error})

    def forget_failures(self) -> None:
        """Let the failed trials of this process run again."""
        for trial in self.known():
            if self.is_ours(trial):
                self.note(trial).unlink(missing_ok=True)

    def row(self, trial: int, values: dict[str, Value]) -> dict[str, Any]:
        """One line of the table: from the run directory, or why there is none."""
        score, test = self.plan.scores
        run = self.run(trial)
        row = {"trial": trial, **texts(values), score: None, test: None}
        row |= {"steps": None, "seconds": None, "run": str(run), "error": ""}
        if (run / "results.json").exists():
            results = read_json(run / "results.json")
            lines = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
            at_best = [
                line
                for line in lines
                if line["split"] == "valid" and line["step"] == results["best_step"]
            ]
            row[score] = at_best[-1][self.plan.metric] if at_best else None
            row[test] = results.get("test", {}).get(self.plan.metric)
            row["steps"] = results["steps"]
            seconds = sum(line["time"]["seconds"] for line in lines if line["split"] == "train")
            row["seconds"] = round(seconds, 2)
        elif self.note(trial).exists():
            note = read_json(self.note(trial))
            row["error"] = f"exit code {note['exit']}: {note['error']}"
        return row

    def write_table(self) -> list[dict[str, Any]]:
        """The lines of all known trials, also written to results.tsv."""
        with self._alone():
            rows = [self.row(trial, values) for trial, values in self.known().items()]
            cells = [[*(rows[0] if rows else ())], *(row.values() for row in rows)]
            lines = ["\t".join(map(_cell, line)) for line in cells]
            checkpoint.write_text(self.plan.folder / "results.tsv", "\n".join(lines) + "\n")
        return rows

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        lock = hold(self.plan.folder / ".lock", wait=True)
        try:
            yield
        finally:
            lock.close()


class Drawn(Trials):
    """A grid or random draws: known before the first trial."""

    def known(self) -> dict[int, dict[str, Value]]:
        return dict(enumerate(self.plan.settings))


class Asked(Trials):
    """Trials that Optuna draws one by one; processes share the journal that it reads them from.

    The draw of a trial depends on the seed, its number and what has been measured before it.
    """

    @property
    def waits(self) -> bool:
        return self.of == 1  # in a job array whoever finds nothing to do gives its place back

    def is_ours(self, trial: int) -> bool:
        return True

    def known(self) -> dict[int, dict[str, Value]]:
        with self._study() as study:
            return self._settled(study)

    def asked(self) -> bool:
        optuna = optuna_of(self.plan)
        with self._study() as study:
            if len(self._settled(study)) >= self.plan.trials:
                return False
            drawn = f"{self.plan.seed} {len(study.get_trials(deepcopy=False))}"
            seed = int(hashlib.sha256(drawn.encode()).hexdigest()[:8], 16)
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            study.ask({key: _distribution(optuna, v) for key, v in self.plan.vary.items()})
        return True

    def _settled(self, study) -> dict[int, dict[str, Value]]:
        """Tell the study what has ended since; the settings of all trials."""
        optuna = optuna_of(self.plan)
        state, found = optuna.trial.TrialState, {}
        for trial in study.get_trials(deepcopy=False):
            if trial.params.keys() != self.plan.vary.keys():  # killed while it was drawn
                if trial.state == state.RUNNING:
                    study.tell(trial.number, state=state.FAIL)
                continue
            found[trial.number] = {
                key: json.loads(value) if isinstance(value, str) else repr(value)
                for key, value in ((key, trial.params[key]) for key in self.plan.vary)
            }
            if trial.state == state.RUNNING and self.is_over(trial.number):
                score = self.row(trial.number, {})[self.plan.scores[0]]
                if score is None:
                    study.tell(trial.number, state=state.FAIL)
                else:
                    study.tell(trial.number, score)
        return found

    @contextlib.contextmanager
    def _study(self) -> Iterator:
        optuna, journal = optuna_of(self.plan), self.plan.folder / "optuna.log"
        lock = hold(self.plan.folder / "optuna.lock", wait=True)
        try:
            # Killed while it wrote, a process leaves part of a line, and Optuna's own lock.
            if journal.exists() and (written := journal.read_bytes()):
                os.truncate(journal, written.rfind(b"\n") + 1)
            Path(f"{journal}.lock").unlink(missing_ok=True)
            backend = optuna.storages.journal.JournalFileBackend(str(journal))
            yield optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name=self.plan.folder.name,
                direction=f"{self.plan.direction}imize",
                load_if_exists=True,
            )
        finally:
            lock.close()


def optuna_of(plan: Plan):
    """The package. Raises InputError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise InputError(
            f"{plan.where('search')}: search: optuna: not installed: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


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
            f"{file}: cannot be locked ({error.strerror}), so that two processes might run one "
            "trial; choose another place with out:"
        ) from None
    return stream


def _compare(plan: Plan, old: dict[str, Any]) -> None:
    if changed := list(checkpoint.differences(old, plan.identity)):
        raise InputError(
            f"{plan.folder}: was started as another sweep: {'; '.join(changed)}. Sweeps are never "
            f"mixed: give this one another name: in {plan.file}"
        )


def _distribution(optuna, values):
    if values.kind == "choice":  # as text: Optuna knows no lists
        return optuna.distributions.CategoricalDistribution([json.dumps(v) for v in values.among])
    if values.kind == "int":
        return optuna.distributions.IntDistribution(*values.among)
    return optuna.distributions.FloatDistribution(*values.among, log=values.kind == "log")


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
