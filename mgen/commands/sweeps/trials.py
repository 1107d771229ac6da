"""The trials of a sweep: which there are and what came out."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mgen import checkpoint
from mgen.commands.jobs import Jobs, hold, logged, valid_score
from mgen.commands.sweeps.plan import Plan, Value, flags, label, texts
from mgen.config import InputError
from mgen.report import number as shown
from mgen.runs import read_json


class Trials(Jobs):
    """The trials of a sweep. Raises InputError if the folder holds another sweep."""

    kept, what = "sweep.json", "trial"

    def __init__(self, plan: Plan, index: int, of: int) -> None:
        self.plan = plan
        super().__init__(plan.folder, plan.identity, index, of)

    def compare(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        if changed := list(checkpoint.differences(old, new)):
            raise InputError(
                f"{self.folder}: was started as another sweep: {'; '.join(changed)}. Sweeps are "
                f"never mixed: give this one another name: in {self.plan.file}"
            )
        return old

    def known(self) -> dict[int, dict[str, Value]]:
        """The settings of the trials that are known so far, by number."""
        raise NotImplementedError

    def label(self, number: int) -> str:
        return label(number)

    def recipe(self, number: int) -> str:
        return self.plan.recipe

    def words(self, number: int) -> list[str]:
        return self.plan.command(number, self.known()[number])

    def settings(self, number: int) -> list[str]:
        return flags(self.known()[number])

    def ended(self, number: int) -> str:
        row = next(row for row in self.write_table() if row["trial"] == number)
        if row["steps"] is None:
            return ""
        score = shown(row[self.plan.scores[0]])
        return f"valid {self.plan.metric} {score} after {row['steps']} steps"

    def row(self, trial: int, values: dict[str, Value]) -> dict[str, Any]:
        """One line of the table: from the run directory, or why there is none."""
        score, test = self.plan.scores
        run = self.run(trial)
        row = {"trial": trial, **texts(values), score: None, test: None}
        row |= {"steps": None, "seconds": None, "run": str(run), "error": self.failure(trial)}
        if (run / "results.json").exists():
            results = read_json(run / "results.json")
            row[score] = valid_score(run, self.plan.metric)
            row[test] = results.get("test", {}).get(self.plan.metric)
            row["steps"] = results["steps"]
            seconds = sum(
                line["time"]["seconds"] for line in logged(run) if line["split"] == "train"
            )
            row["seconds"] = round(seconds, 2)
        return row

    def write_table(self) -> list[dict[str, Any]]:
        """The lines of all known trials, also written to results.tsv."""
        with self.alone():
            rows = [self.row(trial, values) for trial, values in self.known().items()]
            cells = [[*(rows[0] if rows else ())], *(row.values() for row in rows)]
            lines = ["\t".join(map(_cell, line)) for line in cells]
            checkpoint.write_text(self.plan.folder / "results.tsv", "\n".join(lines) + "\n")
        return rows


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
        optuna, journal = optuna_of(self.plan), self.folder / "optuna.log"
        lock = hold(self.folder / "optuna.lock", wait=True)
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


def _distribution(optuna, values):
    if values.kind == "choice":  # as text: Optuna knows no lists
        return optuna.distributions.CategoricalDistribution([json.dumps(v) for v in values.among])
    if values.kind == "int":
        return optuna.distributions.IntDistribution(*values.among)
    return optuna.distributions.FloatDistribution(*values.among, log=values.kind == "log")


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
