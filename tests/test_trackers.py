"""What goes to metrics.jsonl goes to trackers, once, from the first process, and stays here."""

import json
import os
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from tiny import (
    command,
    fresh_process,  # noqa: F401
    server,
    table,
)

from mgen.engine import trackers


def scalars(folder):
    """(name, step) to value of every number in the event files of a folder."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [
        (name, point.step, point.value)
        for name in events.Tags()["scalars"]
        for point in events.Scalars(name)
    ]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run):
    """(name, step, value) of every number in metrics.jsonl."""
    found = []
    for line in lines(run):
        step, split = line.pop("step"), line.pop("split")
        times = {f"time/{key}": value for key, value in line.pop("time", {}).items()}
        found += [(f"{split}/{key}", step, value) for key, value in (line | times).items()]
    return found


def as_float32(found):
    return {(name, step): pytest.approx(value, rel=1e-6) for name, step, value in found}


def test_tensorboard_has_every_number_of_metrics_jsonl_at_its_step(tmp_path):
    table(tmp_path)
    assert (
        command(tmp_path, "--tracker", "tensorboard", "--name", "a", "--train.log-every", "2") == 0
    )
    run = tmp_path / "runs" / "sequence_regression" / "a"
    found = scalars(run / "tensorboard")
    assert {(name, step): value for name, step, value in found} == as_float32(numbers(run))
    assert {name.partition("/")[0] for name, _, _ in found} == {"train", "valid", "test"}
    (file,) = run.glob("tensorboard/*/hparams.yml")
    stored, settings = (
        yaml.safe_load(file.read_text()),
        yaml.safe_load((run / "config.yaml").read_text()),
    )
    assert stored["train/lr"] == settings["train"]["lr"]
    assert stored["backbone/name"] == settings["backbone"]["name"]
    assert stored["train/betas"] == "0.9 0.999"


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    table(tmp_path)
    flags = ("--tracker", "tensorboard", "--name", "a", "--train.log-every", "1")
    assert command(tmp_path, *flags) == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    before = scalars(run / "tensorboard")
    last = max((run / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    shutil.rmtree(last)  # as if killed before it was written
    (run / "results.json").unlink()
    assert command(tmp_path, *flags, "--resume") == 0
    after = [entry for entry in scalars(run / "tensorboard") if entry[0] == "train/loss"]
    assert [step for _, step, _ in after] == list(range(1, 13))
    assert after == [entry for entry in before if entry[0] == "train/loss"]


def test_a_package_that_is_missing_is_named_before_anything_happens(tmp_path, monkeypatch, capsys):
    def absent(package):
        raise PackageNotFoundError(package)

    table(tmp_path)
    monkeypatch.setattr(trackers, "version", absent)
    assert command(tmp_path, "--tracker", "wandb") == 2
    assert "pip install wandb" in capsys.readouterr().err
    assert command(tmp_path, "--tracker", "mlflow") == 2
    assert "pip install mlflow-skinny sqlalchemy alembic" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_tracker_without_training_is_refused(tmp_path, capsys):
    table(tmp_path)
    assert command(tmp_path, "predict", "--tracker", "tensorboard") == 2
    assert "--tracker" in capsys.readouterr().err


class Wandb:
    """Takes what Accelerate's tracker of this name would send away."""

    name, made = "wandb", []

    def __init__(self, **options):
        self.options, self.rows, self.axes, self.is_open = options, [], {}, True
        Wandb.made.append(self)

    def start(self): ...

    @property
    def tracker(self):
        return self

    def define_metric(self, names, step_metric):
        self.axes[names] = step_metric

    def log(self, values, step=None):
        self.rows.append((values, step))

    def finish(self):
        self.is_open = False


@pytest.fixture
def wandb(monkeypatch):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    monkeypatch.setattr(trackers, "version", lambda package: "1")
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    Wandb.made.clear()
    return Wandb.made


def test_wandb_is_offline_and_gets_steps_that_go_back_as_a_number_of_their_own(tmp_path, wandb):
    table(tmp_path)
    assert command(tmp_path, "--tracker", "wandb", "--name", "a", "--train.seed", "7") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    (tracker,) = wandb
    assert tracker.options["mode"] == "offline"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert tracker.options["dir"] == str(run)
    assert (tracker.options["run_name"], tracker.options["name"]) == ("sequence_regression", "a")
    assert tracker.options["config"]["train/seed"] == 7
    assert tracker.axes == {"*": "step"}
    assert {step for _, step in tracker.rows} == {None}
    assert [values["step"] for values, _ in tracker.rows] == [line["step"] for line in lines(run)]
    assert not tracker.is_open


@pytest.mark.slow
def test_only_the_first_of_two_processes_logs():
    pytest.importorskip("tensorboard")
    flags = ("--train.max-steps", "4", "--train.workers", "0", "--train.log-every", "1")
    assert server().run("tracked", *flags, "--tracker", "tensorboard", processes=2) == 0
    folder = server().run_folder("tracked") / "tensorboard"
    assert len(list(folder.glob("events.*"))) == 1
    steps = [step for name, step, _ in scalars(folder) if name == "train/loss"]
    assert steps == [1, 2, 3, 4]
