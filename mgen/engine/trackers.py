"""Trackers: what goes to metrics.jsonl also goes to TensorBoard, trackio, wandb or MLflow.

They are Accelerate's, and stay on this machine: files go into the run directory unless the
tracker's own environment variable (WANDB_MODE, TRACKIO_DIR, MLFLOW_TRACKING_URI) names a place.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mgen.config import InputError
from mgen.report import console

Name = Literal["tensorboard", "trackio", "wandb", "mlflow"]

# The whole of MLflow wants an older pyarrow than mgen; its client and a database do not.
PACKAGES = {"mlflow": ("mlflow-skinny", "sqlalchemy", "alembic")}
PLACES = {"trackio": "TRACKIO_DIR", "wandb": "WANDB_MODE", "mlflow": "MLFLOW_TRACKING_URI"}
LOOK = {
    "tensorboard": "tensorboard --logdir {folder}",
    "trackio": "TRACKIO_DIR={folder}/trackio trackio show",
    "wandb": "wandb sync {folder}/wandb/*run-*",
    "mlflow": "mlflow ui --backend-store-uri sqlite:///{folder}/mlflow/mlflow.db",
}


def check(names: Iterable[Name]) -> None:
    """Raises InputError if the package of a tracker is not installed."""
    for name in names:
        packages = PACKAGES.get(name, (name,))
        try:
            for package in packages:
                version(package)  # not find_spec: a folder of that name would do for it
        except PackageNotFoundError as error:
            raise InputError(
                f"--tracker {name}: {error.name} is not installed: pip install {' '.join(packages)}"
            ) from None


def start(names: Sequence[Name], folder: Path, settings: dict, step: int | None) -> list:
    """The trackers of the run in `folder`, of which `step` is the restored one, or None.

    The project is the recipe's name, the run that of its folder; `settings` are its parameters.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    parameters, started = dict(_plain(settings)), []
    for name in dict.fromkeys(names):
        place = PLACES.get(name, "")
        given, is_new = os.environ.get(place), not (folder / name).exists()
        tracker = LOGGER_TYPE_TO_CLASS[name](**_options(name, folder, parameters, step))
        tracker.start()
        if name == "wandb":  # its own steps may not go back, as those of a resumed run do
            tracker.tracker.define_metric("*", step_metric="step")
        elif name == "mlflow":
            (folder / name / "run_id").write_text(tracker.tracker.info.run_id)
        if name in ("tensorboard", "mlflow") and is_new:
            tracker.store_init_configuration(parameters)
        started.append(tracker)
        look = f"{place}={given}" if given else LOOK[name].format(folder=folder)
        console.print(f"tracker {name}: {look}")
    return started


def log(trackers: Iterable, row: dict[str, Any]) -> None:
    """Give a line of metrics.jsonl to the trackers: its numbers as <split>/<name>."""
    step, split = row["step"], row["split"]
    numbers = {
        f"{split}/{key}": value
        for key, value in _plain({k: v for k, v in row.items() if k != "step"})
        if isinstance(value, int | float)
    }
    for tracker in trackers:
        if tracker.name == "wandb":
            tracker.log(numbers | {"step": step})
        else:
            tracker.log(numbers, step=step)


def finish(trackers: Iterable) -> None:
    """Close the trackers."""
    for tracker in trackers:
        tracker.finish()


def _options(name: Name, folder: Path, parameters: dict, step: int | None) -> dict[str, Any]:
    project, own = folder.parent.name, folder.resolve() / name
    if name == "tensorboard":  # what was logged after the restored step is not shown
        return {
            "run_name": name,
            "logging_dir": folder,
            "purge_step": None if step is None else step + 1,
        }
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(own))  # read at its import
        return {
            "run_name": project,
            "name": folder.name,
            "config": parameters,
            "resume": "allow",
            "embed": False,
        }
    if name == "wandb":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # looks up a host even offline
        return {
            "run_name": project,
            "name": folder.name,
            "dir": str(folder),
            "config": parameters,
            "id": sha256(str(own).encode()).hexdigest()[:12],
            "resume": "allow",
            "mode": os.environ.get("WANDB_MODE", "offline"),
        }
    own.mkdir(exist_ok=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{own}/mlflow.db")
    known = own / "run_id"
    return {
        "experiment_name": project,
        "run_name": folder.name,
        "run_id": known.read_text() if known.exists() else None,
    }


def _plain(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under their paths; lists as text."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _plain(value, f"{prefix}{key}/")
        else:
            is_list = isinstance(value, list | tuple)
            yield f"{prefix}{key}", " ".join(map(str, value)) if is_list else value
