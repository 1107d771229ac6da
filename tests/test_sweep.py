"""Sweeps: every trial once, whatever is killed; chosen on validation rows; faults named by line."""

import csv
import json
import math
import os
import signal
import sys
import time

import pytest
from conftest import ROOT
from tiny import (
    fresh_process,  # noqa: F401
    table,
)

from mgen import experiments
from mgen.commands import jobs
from mgen.commands import sweep as command
from mgen.commands.jobs import hold, share, work
from mgen.commands.sweeps.plan import flags, read
from mgen.commands.sweeps.trials import Asked, Drawn
from mgen.config import InputError
from mgen.engine.processes import Signals

# A recipe that takes no time: its best step is the first of two, its score 10 x the rate there.
RECIPE = """
import json, os, signal, sys, time
from pathlib import Path

if __name__ == "__main__":
    words = sys.argv[1:]
    value = lambda flag: words[words.index(flag) + 1]
    rate = float(next(w for w in words if w.startswith("--train.lr=")).partition("=")[2])
    run = Path(value("--out")) / "fake" / value("--name")
    with open("starts", "a") as starts:
        starts.write(run.name + "\\n")
    if rate == 0.5:
        print("error rate 0.5 is\\ttoo high", file=sys.stderr)
        sys.exit(2)
    if rate == 0.25 and not Path("healed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    run.mkdir(parents=True)
    lines = [
        {"step": 1, "split": "train", "loss": 9, "time": {"seconds": 1.5}},
        {"step": 1, "split": "valid", "spearman": 10 * rate},
        {"step": 2, "split": "train", "loss": 9, "time": {"seconds": 2.0}},
        {"step": 2, "split": "valid", "spearman": -1},
        {"step": 1, "split": "test", "spearman": 1 - rate},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    results = {"steps": 2, "best_step": 1, "test": {"spearman": 1 - rate}}
    (run / "results.json").write_text(json.dumps(results))
else:
    from sequence_regression import Config, SequenceRegression
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with that recipe, and a table."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fake.py").write_text(RECIPE)
    monkeypatch.setattr(experiments, "RECIPES", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    for name in [
        name for name in os.environ if name.startswith(("SLURM_", "PBS_", "LSB_", "SGE_"))
    ]:
        monkeypatch.delenv(name)
    table(tmp_path)
    return tmp_path


BASE = {
    "recipe": "fake",
    "flags": "--data.path rows.tsv --data.split-col part",
    "metric": "spearman",
}


def write(folder, vary="train.lr: [0.1, 0.2, 0.3]", **settings):
    lines = [f"{key}: {value}" for key, value in (BASE | settings).items()]
    file = folder / "s.yaml"
    file.write_text("\n".join([*lines, "vary:", *(f"  {line}" for line in vary.split("\n"))]))
    return file


def run(file, *words):
    """Exit code of `mgen sweep`; 2 for an InputError, as cli does it."""
    try:
        command.sweep([str(file), *words])
    except SystemExit as left:
        return left.code
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def starts(folder):
    file = folder / "starts"
    return sorted(file.read_text().split()) if file.exists() else []


def results(folder, name="s"):
    with (folder / "runs" / "sweeps" / name / "results.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def names(*numbers):
    return [f"trial-{number:03d}" for number in numbers]


def worker(plan, index=0, of=1, jobs=1):
    """The process id of another process that works on the sweep."""
    if child := os.fork():
        return child
    try:
        trials = (Asked if plan.search == "optuna" else Drawn)(plan, index, of)
        with Signals() as signals:
            work(trials, jobs, signals)
    finally:
        os._exit(0)


def wait_for(claim, seconds=30):
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.02)


# --------------------------------------------------------------------------- what comes out


def test_table_has_the_validation_score_of_the_best_step_and_the_test_score(repository, capsys):
    assert run(write(repository)) == 0
    rows = results(repository)
    assert [row["train.lr"] for row in rows] == ["0.1", "0.2", "0.3"]
    assert [float(row["valid_spearman"]) for row in rows] == [1.0, 2.0, 3.0]
    assert [float(row["test_spearman"]) for row in rows] == [0.9, 0.8, 0.7]
    assert [(row["steps"], row["seconds"], row["error"]) for row in rows] == [("2", "3.5", "")] * 3
    out = capsys.readouterr().out
    assert "best: trial 2," in out  # the lowest test score
    assert (repository / rows[2]["run"] / "results.json").exists()


def test_a_second_start_runs_nothing_and_gives_the_same_table(repository):
    file = write(repository)
    assert run(file) == 0
    before = results(repository)
    assert run(file) == 0
    assert (starts(repository), results(repository)) == (names(0, 1, 2), before)


def test_a_failed_trial_is_written_down_and_the_others_run(repository, capsys):
    file = write(repository, "train.lr: [0.5, 0.1]")
    assert run(file) == 1
    failed, done = results(repository)
    assert "error rate 0.5 is too high" in capsys.readouterr().out
    assert failed["error"] == "exit code 2: error rate 0.5 is too high"
    assert (failed["valid_spearman"], done["valid_spearman"]) == ("", "1.0")
    assert run(file) == 1
    assert starts(repository) == names(0, 1)
    assert run(file, "--retry") == 1
    assert starts(repository) == names(0, 0, 1)


def test_a_trial_that_a_signal_ends_is_unfinished_until_the_next_start(repository):
    file = write(repository, "train.lr: [0.25, 0.1]")
    assert run(file) == 0
    assert [row["error"] for row in results(repository)] == ["", ""]
    assert starts(repository) == names(0, 1)
    (repository / "healed").touch()
    assert run(file) == 0
    assert starts(repository) == names(0, 0, 1)
    assert results(repository)[0]["valid_spearman"] == "2.5"


def test_a_trial_is_an_ordinary_command(repository, capsys):
    assert run(write(repository), "--dry-run") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "mgen run fake --data.path rows.tsv --data.split-col part --train.lr=0.1 "
        "--train.monitor spearman --out runs/sweeps/s --name trial-000 --resume"
    )
    assert not (repository / "runs").exists()


# --------------------------------------------------------------------------- several processes


def test_two_array_indices_at_once_run_each_trial_once(repository, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    plan = read(write(repository, "train.lr: [0.1, 0.2, 0.3, 0.4, 0.6]"))
    for child in [worker(plan, index, 2) for index in (0, 1)]:
        os.waitpid(child, 0)
    assert starts(repository) == names(0, 1, 2, 3, 4)
    assert [row["valid_spearman"] for row in results(repository)] == [
        "1.0",
        "2.0",
        "3.0",
        "4.0",
        "6.0",
    ]


def test_two_sweeps_in_one_folder_share_the_trials(repository, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    plan = read(write(repository, "train.lr: [0.1, 0.2, 0.3, 0.4, 0.6]"))
    for child in [worker(plan), worker(plan, jobs=2)]:
        os.waitpid(child, 0)
    assert starts(repository) == names(0, 1, 2, 3, 4)


def test_a_trial_that_ended_since_the_last_look_is_not_claimed(repository, monkeypatch):
    file = write(repository)
    assert run(file) == 0
    trials, looked = Drawn(read(file), 0, 1), []
    is_over = trials.is_over

    def look(trial):
        looked.append(trial)
        return looked.count(trial) > 1 and is_over(trial)

    monkeypatch.setattr(trials, "is_over", look)
    assert trials.claim() == (None, None)
    assert looked == [0, 0, 1, 1, 2, 2]


def test_a_killed_sweep_takes_its_trial_along_and_a_new_start_finishes(repository, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("elsewhere the trial goes on, and the new start waits for it")
    monkeypatch.setenv("FAKE_SECONDS", "60")
    file = write(repository)
    plan = read(file)
    child = worker(plan)
    wait_for(lambda: starts(repository))
    lock = repository / "runs" / "sweeps" / "s" / "trials" / "trial-000.lock"
    assert hold(lock, wait=False) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_for(lambda: (held := hold(lock, wait=False)) and (held.close() or True))
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert run(file) == 0
    assert starts(repository) == names(0, 0, 1, 2)
    assert [row["valid_spearman"] for row in results(repository)] == ["1.0", "2.0", "3.0"]


def test_a_trial_that_outlives_its_sweep_is_not_started_again(repository, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_SECONDS", "2")
    monkeypatch.setattr(jobs, "LIBC", None)  # as where the system cannot end it
    file = write(repository, "train.lr: [0.1]")
    child = worker(read(file))
    wait_for(lambda: starts(repository))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert run(file) == 0
    assert "trial 0 is being made by another process" in capsys.readouterr().out
    assert starts(repository) == names(0)
    assert results(repository)[0]["valid_spearman"] == "1.0"


def test_a_signal_is_passed_on_and_the_sweep_says_how_to_go_on(repository, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    file = write(repository)
    parent = os.getpid()
    if not (child := os.fork()):
        wait_for(lambda: starts(repository))
        os.kill(parent, signal.SIGTERM)
        os._exit(0)
    assert run(file) == 143
    os.waitpid(child, 0)
    assert "trial 0 was stopped by SIGTERM" in capsys.readouterr().out
    assert starts(repository) == names(0)


SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "3"}
LSF = {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "4", "LSB_JOBINDEX_STEP": "1"}
SGE = {"SGE_TASK_ID": "5", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "7", "SGE_TASK_STEPSIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        (SLURM, (1, 3)),
        (LSF, (2, 4)),
        (SGE, (2, 4)),
        ({"LSB_JOBINDEX": "0"}, (0, 1)),  # a job that is no array
        ({"SGE_TASK_ID": "undefined"}, (0, 1)),
    ],
)
def test_a_job_array_says_which_share_is_whose(environment, expected):
    assert share(command.Options(file="s.yaml"), environment) == expected


def test_an_array_without_a_count_asks_for_it():
    options = command.Options(file="s.yaml")
    with pytest.raises(InputError, match="--of"):
        share(options, {"PBS_ARRAY_INDEX": "1"})
    given = command.Options(file="s.yaml", of=4)
    assert share(given, {"PBS_ARRAY_INDEX": "1"}) == (1, 4)


# --------------------------------------------------------------------------- draws


SPACE = """train.lr: {log: [1e-4, 1e-2]}
train.weight-decay: {uniform: [0, 0.5]}
train.batch-size: {int: [4, 64]}
adapter: [conv, mean_pool_mlp]"""


def test_draws_lie_in_their_ranges_each_on_its_scale(repository):
    drawn = read(write(repository, SPACE, search="random", trials=400)).settings
    rates = sorted(float(values["train.lr"]) for values in drawn)
    assert 1e-4 <= rates[0] < 1.1e-4 and 0.9e-2 < rates[-1] <= 1e-2
    assert math.log10(rates[200]) == pytest.approx(-3, abs=0.2)
    decays = sorted(float(values["train.weight-decay"]) for values in drawn)
    assert decays[200] == pytest.approx(0.25, abs=0.05)
    assert {int(values["train.batch-size"]) for values in drawn} >= {4, 64}
    assert {values["adapter"] for values in drawn} == {"conv", "mean_pool_mlp"}


def test_more_trials_go_on_with_the_same_draws_and_another_seed_draws_others(repository):
    few, many, other = (
        read(write(repository, SPACE, search="random", trials=n, seed=seed)).settings
        for n, seed in ((3, 1), (5, 1), (3, 2))
    )
    assert many[:3] == few
    assert not any(values in few for values in other)


def test_values_become_the_flags_of_the_command_line():
    settings = {
        "adapter": "conv",
        "backbone.frozen": "true",
        "adapter.pretrained": "false",
        "train.batch_size": "8",
        "data.y-cols": ["a", "b"],
    }
    assert flags(settings) == [
        "--adapter=conv", "--backbone.frozen", "--adapter.no-pretrained", "--train.batch-size=8",
        "--data.y-cols", "a", "b",
    ]  # fmt: skip


# --------------------------------------------------------------------------- optuna


@pytest.mark.slow
def test_optuna_keeps_its_trials_over_restarts_and_a_cut_journal(repository):
    optuna = pytest.importorskip("optuna")
    space = "train.lr: {uniform: [0, 0.2]}\ntrain.betas: [[0.9, 0.99], [0.8, 0.9]]"
    assert run(write(repository, space, search="optuna", trials=2)) == 0
    before = results(repository)
    journal = repository / "runs" / "sweeps" / "s" / "optuna.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # killed while it wrote
    file = write(repository, space, search="optuna", trials=4)
    for child in [worker(command.check(read(file)), index, 2) for index in (0, 1)]:
        os.waitpid(child, 0)
    assert run(file) == 0
    assert starts(repository) == names(0, 1, 2, 3)
    after = results(repository)
    assert after[:2] == before
    assert len({row["train.lr"] for row in after}) == 4
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(journal))
    )
    study = optuna.load_study(study_name="s", storage=storage)
    assert [trial.value for trial in study.trials] == [float(r["valid_spearman"]) for r in after]
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_optuna_tells_what_to_install(repository, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(write(repository, search="optuna", trials=2)) == 2
    assert "pip install optuna" in capsys.readouterr().err


# --------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("vary", "settings", "line", "said"),
    [
        ("train.lrr: [1]", {}, 5, "Perhaps you meant"),
        ("adapter: [conv]\ntrain.lr: [1, x]", {}, 6, "could not convert string to float: 'x'"),
        ("adapter: [conv, cnv]", {}, 5, "Did you mean 'conv'?"),
        ("train.lr: [-1]", {}, 5, "expected at least 0"),
        ("train.lr: []", {}, 5, "not empty"),
        ("train.lr: [1, 1]", {}, 5, "lists 1 twice"),
        ("train.lr: [1]\ntrain.lr: [2]", {}, 6, "set more than once: train.lr"),
        ("train.lr: [1e-3, 0.001]", {}, 4, "trials 0 and 1 have equal settings"),
        ("train.lr: {log: [1, 2]}", {}, 5, "a grid has no log range"),
        ("train.lr: {logg: [1, 2]}", {"search": "random", "trials": 2}, 7, "Did you mean 'log'?"),
        ("train.lr: {log: [0, 2]}", {"search": "random", "trials": 2}, 7, "above 0"),
        ("train.lr: {int: [2, 1]}", {"search": "random", "trials": 2}, 7, "the smaller one first"),
        ("train.lr: [1, 2]", {"search": "random", "trials": 3}, 5, "no more than 2 different"),
        ("train.lr: [1]", {"search": "random"}, 4, "needs trials"),
        ("train.lr: [1]", {"search": "grit"}, 4, "Did you mean 'grid'?"),
        ("train.lr: [1]", {"trails": 3}, 4, "Did you mean 'trials'?"),
        ("train.lr: [1]", {"metric": "spearmen"}, 3, "Did you mean 'spearman'?"),
        ("train.lr: [1]", {"metric": "mae", "direction": "max"}, 4, "keeps the min of mae"),
        ("train.lr: [1]", {"recipe": "fak"}, 1, "Did you mean 'fake'?"),
        ("train.lr: [1]", {"flags": "--train.lr 2"}, 5, "is set in flags"),
        ("train.lr: [1]", {"flags": "--name x"}, 2, "--name is not for these runs"),
        ("train.lr: [1]", {"flags": "--train.monitor loss"}, 2, "the sweep's metric"),
        ("train.lr: [1]", {"flags": "--train.seedd 1"}, 2, "Perhaps you meant"),
        (
            "train.lr: [1]",
            {"flags": "--data.path rows.tsv --data.valid-fraction 0 --data.test-fraction 0.2"},
            2,
            "no validation rows",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_before_any_trial(
    repository, capsys, vary, settings, line, said
):
    assert run(write(repository, vary, **settings)) == 2
    error = capsys.readouterr().err
    assert f"s.yaml:{line}" in error
    assert said in error
    assert not (repository / "runs").exists()


def test_several_processes_of_a_launcher_do_not_each_start_the_sweep(
    repository, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(write(repository)) == 2
    assert "--jobs" in capsys.readouterr().err
    assert not starts(repository)


def test_another_sweep_in_the_folder_is_refused(repository, capsys):
    assert run(write(repository)) == 0
    assert run(write(repository, "train.lr: [0.1, 0.4]")) == 2
    assert "was started as another sweep: vary.train.lr" in capsys.readouterr().err
    assert starts(repository) == names(0, 1, 2)


# --------------------------------------------------------------------------- the real thing


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/configs/sweeps").glob("*.yaml")), ids=str)
def test_sweeps_of_the_repository_pass_their_checks_and_are_no_experiments(file):
    assert command.check(read(file)).direction in ("min", "max")
    assert file.stem not in experiments.experiments()


@pytest.mark.slow
def test_a_real_trial_that_was_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    words = BASE["flags"] + " --train.epochs 3 --train.batch-size 2 --train.workers 0"
    settings = {"recipe": "sequence_regression", "flags": words, "metric": "loss"}
    whole = write(tmp_path, "train.lr: [1e-3]", **settings, name="whole")
    assert run(whole) == 0
    plan = command.check(read(write(tmp_path, "train.lr: [1e-3]", **settings)))
    child = worker(plan)
    run_folder = tmp_path / "runs/sweeps/s/sequence_regression/trial-000"
    wait_for(lambda: (run_folder / "checkpoints" / "last").exists(), 90)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (run_folder / "results.json").exists()
    assert run(tmp_path / "s.yaml") == 0
    found = json.loads((run_folder / "results.json").read_text())
    expected = tmp_path / "runs/sweeps/whole/sequence_regression/trial-000/results.json"
    assert found == json.loads(expected.read_text())
