"""A run that is killed and resumed ends as if it had never been: bit for bit, on a CPU."""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file
from sequence_regression import SequenceRegression
from tiny import fresh_process  # noqa: F401

from mgen.train import LOST

FLAGS = (
    *("--train.max-steps", "30", "--train.save-every", "3", "--train.eval-every", "10"),
    *("--train.accumulate", "2", "--train.log-every", "4", "--backbone.dropout", "0.1"),
    *("--train.batch-size", "3", "--train.lr", "0.01"),
)
KINDS = {
    "full, no workers": (*FLAGS, "--train.workers", "0"),
    "lora, two workers": (*FLAGS, "--train.workers", "2", "--backbone.lora-rank", "2"),
    "cells": (*FLAGS, "--train.workers", "2", "--train.shuffle-block", "3"),
    "short": (*FLAGS, "--train.workers", "0", "--train.max-steps", "12"),
}


@pytest.fixture(scope="module")
def server():
    return tiny.server()


@pytest.fixture(scope="module")
def whole(server):
    """Name and seconds of an uninterrupted run of each kind, made once."""
    made = {}

    def get(kind: str, processes: int = 1) -> tuple[str, float]:
        if (kind, processes) not in made:
            name, start = f"whole-{len(made)}", time.monotonic()
            flags, recipe = given(server, kind)
            code = server.run(name, *flags, processes=processes, recipe=recipe)
            assert code == 0, server.log.read_text()
            made[kind, processes] = name, time.monotonic() - start
        return made[kind, processes]

    return get


def given(server, kind: str) -> tuple[tuple[str, ...], str]:
    """The flags of a kind of run, and its recipe."""
    if kind != "cells":
        return KINDS[kind], "sequence_regression"
    return (*KINDS[kind], *tiny.cells(server.folder)), "cell_regression"


def content(run: Path) -> dict:
    """All that a run left, but for times, and the folder and command in environment.json."""
    found = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k != "time"} for row in rows]
        elif file.suffix == ".safetensors":
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(file).items()}
        elif name != "environment.json":
            found[name] = file.read_bytes()
    links = {path.name: os.readlink(path) for path in run.rglob("*") if path.is_symlink()}
    return {**found, "links": links}


def assert_equal_runs(one: Path, other: Path) -> None:
    a, b = content(one), content(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def survives(
    server, whole, kind: str, name: str, kills: int, seed: int, processes: int = 1
) -> None:
    """Kill a run at `kills` random instants, resume each time, compare with one left alone.

    Of several processes one is killed, and the others end by themselves.
    """
    draw = random.Random(seed)
    reference, seconds = whole(kind, processes)
    flags, recipe = given(server, kind)
    options = {"processes": processes, "recipe": recipe}
    for kill in range(kills):
        if processes > 1 or (kill + seed) % 2:  # by the clock
            children = server.start(name, *flags, "--resume", **options)
            if processes > 1:  # before they have met it takes a launcher to end the others
                server.wait_for_words("processes, this one on")
            early, late = (0.2, 1.0) if processes == 1 else (0.0, 0.4)
            time.sleep(draw.uniform(early, late) * seconds)
            os.kill(draw.choice(children), signal.SIGKILL)
            codes = server.end()
        else:  # at a file operation: while a checkpoint, a link, metrics or results are written
            place = {
                "under": str(server.run_folder(name, recipe)),
                "kill_at": draw.randrange(5, 150),
            }
            codes = [server.run(name, *flags, "--resume", **options, **place)]
        assert {*codes} <= {-signal.SIGKILL, LOST, 0}, server.log.read_text()
    code = server.run(name, *flags, "--resume", **options)
    assert code == 0, server.log.read_text()
    assert_equal_runs(server.run_folder(reference, recipe), server.run_folder(name, recipe))


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("short", 1),
        pytest.param("full, no workers", 2, marks=pytest.mark.crash),
        pytest.param("lora, two workers", 1, marks=pytest.mark.crash),
        pytest.param("cells", 2, marks=pytest.mark.crash),
    ],
)
def test_a_killed_run_ends_as_if_left_alone(kind, kills, server, whole):
    survives(server, whole, kind, f"few-{kills}", kills, seed=kills)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["full, no workers", "lora, two workers", "cells"])
def test_a_run_killed_many_times_ends_as_if_left_alone(kind, seed, server, whole):
    survives(server, whole, kind, f"many-{len(kind)}-{seed}", 5, seed)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(2))
def test_a_run_of_two_processes_killed_many_times_ends_as_if_left_alone(seed, server, whole):
    survives(server, whole, "full, no workers", f"two-{seed}", 5, seed, processes=2)


@pytest.mark.crash
def test_a_run_killed_at_each_file_operation_ends_as_if_left_alone(server, whole):
    kind = "short"
    reference, _ = whole(kind)
    for kill_at in itertools.count(0, 7):
        name = f"each-{kill_at}"
        place = {"under": str(server.run_folder(name)), "kill_at": kill_at}
        code = server.run(name, *KINDS[kind], "--resume", **place)
        if code == 0:
            break  # it has no more file operations
        assert code == -signal.SIGKILL, server.log.read_text()
        assert server.run(name, *KINDS[kind], "--resume") == 0, server.log.read_text()
        assert_equal_runs(server.run_folder(reference), server.run_folder(name))
    assert kill_at > 100


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_run_and_workers_saves_progress(number, code, server, whole):
    kind = "lora, two workers"
    name = f"signal-{code}"
    (child,) = server.start(name, *KINDS[kind])
    server.wait_for_metrics(name)
    os.killpg(child, number)
    assert server.end() == [code], server.log.read_text()
    saved = json.loads((server.run_folder(name) / "checkpoints/last/state.json").read_text())
    assert saved["step"] >= 4
    assert f"saved step {saved['step']}" in server.log.read_text()
    assert server.run(name, *KINDS[kind], "--resume") == 0
    assert f"from step {saved['step']}" in server.log.read_text()
    assert_equal_runs(server.run_folder(whole(kind)[0]), server.run_folder(name))


# --------------------------------------------------------------------------- in this process


class Signalled(SequenceRegression):
    """Sends this process a signal in its n-th forward pass of a kind."""

    number, at, is_training, seen = signal.SIGTERM, -1, True, 0

    def forward(self, batch):
        if self.training == self.is_training:
            Signalled.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), self.number)
        return super().forward(batch)


@pytest.fixture
def arm(monkeypatch):
    def arm(number, is_training, at):
        values = {"number": number, "is_training": is_training, "at": at, "seen": 0}
        for name, value in values.items():
            monkeypatch.setattr(Signalled, name, value)

    return arm


def signalled(folder, name, *flags):
    settings = ("--train.log-every", "1", "--backbone.dropout", "0.2")
    return tiny.command(folder, "--name", name, *settings, *flags, task=Signalled)


# Each evaluation has 3 batches, two of them come before the 2 batches of the test.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("phase", "is_training", "at"),
    [("training", True, 3), ("evaluation", False, 2), ("test", False, 7)],
)
def test_a_signal_in_any_phase_leaves_a_run_that_goes_on(
    phase, is_training, at, number, code, arm, tmp_path
):
    tiny.table(tmp_path)
    arm(number, is_training, at)
    assert signalled(tmp_path, "a") == code
    arm(number, is_training, -1)
    runs = tmp_path / "runs" / "test_crash"
    assert not (runs / "a" / "results.json").exists()
    step = json.loads((runs / "a" / "checkpoints" / "last" / "state.json").read_text())["step"]
    assert step == {"training": 3, "evaluation": 6, "test": 12}[phase]
    assert signalled(tmp_path, "a", "--resume") == 0
    assert signalled(tmp_path, "b") == 0
    assert_equal_runs(runs / "a", runs / "b")


def test_killed_between_a_second_evaluation_and_its_checkpoint_no_line_is_doubled(arm, tmp_path):
    tiny.table(tmp_path)
    arm(signal.SIGTERM, False, 2)
    assert signalled(tmp_path, "a") == 143  # step 6 is saved, not evaluated
    file = tmp_path / "runs" / "test_crash" / "a" / "metrics.jsonl"
    with file.open("a") as stream:  # evaluated after a resume, then killed
        stream.write(json.dumps({"step": 6, "epoch": 1, "split": "valid", "loss": 0.0}) + "\n")
    arm(signal.SIGTERM, False, -1)
    assert signalled(tmp_path, "a", "--resume") == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "valid"] == [6, 12]


def test_killed_before_the_links_were_set_they_are_set_on_resume(tmp_path):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    before = content(run)
    for name in ("best", "last"):
        (run / "checkpoints" / name).unlink()
    (run / "results.json").unlink()
    assert tiny.command(tmp_path, "--name", "a", "--resume") == 0
    assert content(run) == before


# --------------------------------------------------------------------------- which run goes on


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run called a."""
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    return tmp_path / "runs" / "sequence_regression" / "a"


def test_a_finished_run_says_so(run, tmp_path, capsys):
    before = content(run)
    assert tiny.command(tmp_path, "--name", "a", "--resume") == 0
    assert "is finished; results.json holds its metrics" in capsys.readouterr().out
    assert content(run) == before


def test_other_settings_are_refused_by_name(run, tmp_path, capsys):
    before = content(run)
    flags = ("--train.lr", "0.5", "--adapter", "mean_pool_linear")
    assert tiny.command(tmp_path, "--name", "a", "--resume", *flags) == 2
    said = capsys.readouterr().err
    assert "train.lr: 0.002 -> 0.5" in said
    assert "adapter.name: 'mean_pool_mlp' -> 'mean_pool_linear'" in said
    assert content(run) == before


def test_a_run_is_not_started_in_the_folder_of_another(run, tmp_path, capsys):
    before = content(run)
    assert tiny.command(tmp_path, "--name", "a") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert content(run) == before


def test_a_run_is_not_started_among_other_files(tmp_path, capsys):
    tiny.table(tmp_path)
    folder = tmp_path / "runs" / "sequence_regression" / "a"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("all of it")
    assert tiny.command(tmp_path, "--name", "a") == 2
    assert "holds other files and is no run" in capsys.readouterr().err


def test_resume_without_a_name_takes_the_newest_unfinished_equal_run(tmp_path):
    tiny.table(tmp_path)
    runs = tmp_path / "runs" / "sequence_regression"
    for name in ("finished", "other", "old", "new"):
        lr = ("--train.lr", "0.5" if name == "other" else "0.01")
        assert tiny.command(tmp_path, "--name", name, *lr) == 0
    for name in ("other", "old", "new"):
        (runs / name / "results.json").unlink()
    for i, name in enumerate(("old", "new", "other")):
        os.utime(runs / name / "config.yaml", (i, i))
    assert tiny.command(tmp_path, "--resume", "--train.lr", "0.01") == 0
    has = {path.name: (path / "results.json").exists() for path in runs.iterdir()}
    assert has == {"finished": True, "other": False, "old": False, "new": True}


def test_resume_of_a_run_directory_takes_its_settings(run, tmp_path):
    before = content(run)
    (run / "results.json").unlink()
    with pytest.raises(SystemExit) as left:
        tiny.run(
            SequenceRegression,
            tiny.sequence_regression.Config,
            ["fit", "--run", str(run), "--resume"],
        )
    assert left.value.code == 0
    assert content(run) == before
