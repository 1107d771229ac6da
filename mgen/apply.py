"""A trained run from Python: what `predict --run` does, in three lines."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgen import calibration, ensemble
from mgen.config import InputError, from_yaml, unknown
from mgen.data.batches import Batch, loader, plan
from mgen.infer import in_order
from mgen.runs import checkpoint_of, existing_run, read_json, sessions
from mgen.task import Task
from mgen.train import load_member, load_task

RECIPES = Path(__file__).parent.parent / "recipes"


class Run:
    """A finished or interrupted run and the weights of one of its checkpoints.

    With `ensemble`, further runs of the same recipe and rows, predictions are means over all.
    Attributes: `task`, the model; `cfg`, the run's settings; `folder`.
    """

    def __init__(
        self,
        name: str | Path,
        checkpoint: str = "best",
        recipe: str | Path = "",
        revision: str = "main",
        backbone: str | Path = "",
        remote_code: bool = False,
        ensemble: Sequence[str | Path] = (),
    ) -> None:
        self.folder = folder = existing_run(str(name), "", revision, remote_code)
        recipe = recipe_of(folder, recipe)
        task_type, config_type = task_of(recipe)
        self.task = load_task(task_type, config_type, folder, checkpoint, str(backbone))
        self.task.labelled = False
        self.cfg = self.task.cfg
        self.checkpoint = checkpoint_of(folder, checkpoint)
        others = [ensemble] if isinstance(ensemble, str | Path) else ensemble
        others = [str(other) for other in others]
        self.members = [
            self.task,
            *(load_member(self.task, folder, run, checkpoint, recipe.stem) for run in others),
        ]

    def predict(
        self,
        rows: Sequence[str] | Sequence[dict[str, Any]],
        calibrated: bool = False,
        threshold: str = "mcc",
        interval: float = 0.0,
    ) -> dict[str, list]:
        """Columns of predictions, one entry per row and in the order of `rows`.

        `rows` are sequences, or dicts with the run's sequence column; the rest is as the flags of
        `predict`. Raises InputError for letters the model does not know, for sequences that are
        too long and for options that this run has not.
        """
        model = self._model(calibrated, threshold, interval)
        column = self.cfg.data.x_col
        if isinstance(rows, str):
            raise InputError("predict takes a list of rows; put the one sequence in a list")
        may_lack = len(self.task.tokenizers) > 1  # the main one of several modalities
        table = _Listed([{column: row} if isinstance(row, str) else row for row in rows])
        for i, row in enumerate(table.rows):
            cell = row.get(column) if isinstance(row, dict) else None
            if may_lack and isinstance(row, dict) and (cell is None or cell != cell):
                table.rows[i] = row = {**row, column: (cell := "")}
            if not isinstance(cell, str) or not (cell.strip() or may_lack):
                raise InputError(
                    f"row {i} (counted from 0): expected a sequence, or a dictionary with "
                    f"{column!r}; found {row!r}"
                )
        lengths = np.array([len(row[column]) for row in table.rows], dtype=np.int64)
        train = self.cfg.train
        cut = plan(lengths, train.batch_size, train.batch_tokens)
        batches = [Batch(tuple(map(int, numbers)), train.seed) for numbers in cut]
        pieces = []
        with torch.inference_mode():
            for batch in loader(table, batches, model.collator()):
                columns = model.predictions(model.averaged(batch), batch)
                pieces.append({"row": batch["row"], **columns})
        if not pieces:
            return {}
        joined = in_order(pieces, table, ())
        del joined["row"]
        return {
            name: value.tolist() if isinstance(value, torch.Tensor) else value
            for name, value in joined.items()
        }

    def _model(self, calibrated: bool, threshold: str, interval: float):
        several = len(self.members) > 1
        if threshold not in calibration.THRESHOLDED:
            raise InputError(unknown("threshold", threshold, calibration.THRESHOLDED))
        if not isinstance(interval, int | float):
            raise InputError(f"interval {interval!r}: expected a share between 0 and 1")
        ensemble.check_options(self.task.kind, several, calibrated, interval, "predict")
        if not (several or calibrated or interval):
            return self.task
        found = None
        if calibrated or interval:
            found = ensemble.find(self.folder, self.members, self.checkpoint, interval)
        return ensemble.Ensemble(self.members, found, calibrated, threshold, interval).eval()


def blank_task(name: str | Path, flag: str = "--run") -> Task:
    """The task of a run before it has weights: its settings, tokenizer and what it has learned.

    `load_task(type(task), type(task.cfg), name)` loads it. Messages call the run `flag`.
    """
    try:
        folder = existing_run(str(name))
        task_type, config_type = task_of(recipe_of(folder))
        facts = read_json(checkpoint_of(folder, "best") / "facts.json")
    except InputError as error:
        raise InputError(str(error).replace("--run", flag, 1)) from None
    try:
        task = task_type(from_yaml(config_type(), folder / "config.yaml"))
    except SystemExit:  # what is wrong was printed
        raise InputError(f"{folder / 'config.yaml'}: not settings of this recipe") from None
    task.facts = facts
    return task


def recipe_of(folder: Path, recipe: str | Path = "") -> Path:
    """The file of a run's task: `recipe`, or that of the repository which the run names."""
    if recipe:
        return Path(recipe)
    made_by = [session["recipe"] for session in sessions(folder)]
    if not made_by:
        raise InputError(f"{folder}: has no environment.json that says its recipe; name its file")
    # A name, never a path: a run directory must not decide which code is run.
    return RECIPES / f"{Path(made_by[-1]).name}.py"


class _Listed:
    """Rows in memory, as the loader takes them."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def take(self, numbers: Sequence[int]) -> list[dict]:
        return [self.rows[number] for number in numbers]


def task_of(recipe: Path) -> tuple[type[Task], type]:
    """The task and the settings of a recipe's file."""
    module = _module(recipe)
    tasks = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value is not Task
    ]
    if len(tasks) != 1 or "Config" not in vars(module):
        raise InputError(f"{recipe}: expected one Task and a Config in a recipe")
    return tasks[0], module.Config


def _module(file: Path):
    if not file.is_file():
        raise InputError(f"{file}: no such recipe; pass recipe=<its file>")
    if file.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    return sys.modules[file.stem]
