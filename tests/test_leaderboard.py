"""Leaderboards: every run once, whatever is killed; chosen on validation; faults named by line."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from scipy.stats import spearmanr
from tiny import table

from mgen import experiments
from mgen.commands import leaderboard as command
from mgen.commands.boards import outcome
from mgen.commands.boards.board import read, slug
from mgen.commands.boards.entering import check
from mgen.config import InputError
from mgen.data.zoo import ZOO as DATA
from mgen.leaderboards import summary
from mgen.train import Session

# A recipe that takes no time: what --train.lr says is how far it is from the truth, and 0.5 fails.
RECIPE = """
import json, os, signal, sys, time
from pathlib import Path

if __name__ == "__main__":
    import numpy as np
    from safetensors.numpy import save_file

    words = sys.argv[1:]
    value = lambda flag: words[len(words) - 1 - words[::-1].index(flag) + 1]
    rates = [w.partition("=")[2] for w in words if w.startswith("--train.lr=")]
    rate = float(rates[-1] if rates else value("--train.lr"))
    seed, name = int(value("--train.seed")), value("--name")
    run = Path(value("--out")) / "fake" / name
    with open("starts", "a") as starts:
        starts.write(name + "\\n")
    if rate == 0.5 and not Path("healed").exists():
        print("error rate 0.5 is too high", file=sys.stderr)
        sys.exit(2)
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    labels = np.random.default_rng(7).normal(size=(40, 1)).astype("float32")
    noise = np.random.default_rng([seed, int(1000 * rate)]).normal(size=(40, 1))
    tensors = {"predictions": (labels + rate * noise).astype("float32"), "labels": labels}
    guess = np.random.default_rng(9).normal(size=(40, 1)).astype("float32")
    tensors |= {"row": np.arange(40), "by mean baseline": guess}
    tensors |= {"by noise ceiling": labels.copy()}
    (run / "predictions").mkdir(parents=True)
    save_file(tensors, run / "predictions" / "test.scored.safetensors", {"kind": "numbers"})
    (run / "config.yaml").write_text("train:\\n")
    time_ = {"seconds": 1.5, "tokens_per_second": 10}
    valid = float(os.environ.get("VALID", -1)) * rate
    lines = [
        {"step": 1, "split": "train", "loss": 9, "tokens": 30, "time": time_},
        {"step": 1, "split": "valid", "spearman": valid},
        {"step": 2, "split": "valid", "spearman": 99},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    session = {"rows": Path("digest").read_text(), "device": "cpu", "threads": 1, "commit": "c"}
    session |= {"started": "now", "python": "3", "versions": {"torch": "t"}, "seconds": 2.0}
    session |= {"peak_memory_gb": 0.5, "parameters": 7, "trained": 5}
    (run / "environment.json").write_text(json.dumps([session]))
    (run / "results.json").write_text(json.dumps({"steps": 2, "best_step": 1}))
else:
    from sequence_regression import Config, SequenceRegression
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with that recipe, and a table whose digest the recipe knows."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "fake.py").write_text(RECIPE)
    monkeypatch.setattr(experiments, "RECIPES", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "PBS_", "LSB_", "SGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("mgen.figures.boards.board_figures", lambda *_: [])  # has its own tests
    rows = table(tmp_path).open()
    (tmp_path / "digest").write_text(rows.digest)
    return tmp_path


TASK = """
  {name}: {{data: ./rows.tsv, flags: --data.split-col part, modality: dna}}"""
ENTRIES = """
  good: --train.lr 0.1
  fair: --train.lr 0.4
"""


def write(folder, entries=ENTRIES, tasks=("one", "two"), more="", name="b"):
    text = f"title: B\nrecipe: fake\nmetric: spearman\nseeds: 2\nresamples: 200\n{more}tasks:"
    text += "".join(TASK.format(name=task) for task in tasks) + f"\nentries:{entries}"
    file = folder / f"{name}.yaml"
    file.write_text(text)
    return file


def run(file, *words):
    """Exit code of `mgen leaderboard`; 2 for an InputError, as cli does it."""
    try:
        command.leaderboard([str(file), *words])
    except SystemExit as left:
        return left.code
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def starts(folder):
    return sorted((folder / "starts").read_text().split())


def scores(folder, name="b"):
    with (folder / "runs" / "leaderboards" / name / "scores.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def truth_and(rate, seed):
    labels = np.random.default_rng(7).normal(size=40).astype("float32")
    noise = np.random.default_rng([seed, int(1000 * rate)]).normal(size=(40, 1))[:, 0]
    return labels, (labels + rate * noise).astype("float32")


# --------------------------------------------------------------------------- running


def test_every_cell_has_the_value_of_its_predictions_and_is_run_once(repository, capsys):
    file = write(repository)
    assert run(file) == 0
    assert starts(repository) == sorted(
        f"{task}.{entry}.s{seed}" for task in ("one", "two") for entry in ("good", "fair")
        for seed in (0, 1)
    )  # fmt: skip
    found = {(row["task"], row["entry"], row["seed"]): row for row in scores(repository)}
    for seed in (0, 1):
        for entry, rate in (("good", 0.1), ("fair", 0.4)):
            expected = spearmanr(*truth_and(rate, seed)).statistic
            row = found["two", entry, str(seed)]
            assert float(row["value"]) == pytest.approx(expected, abs=1e-9)
            assert float(row["low"]) < float(row["value"]) < float(row["high"])
            assert row["rows"] == "40"
    assert float(found["one", "noise ceiling", "0"]["value"]) == pytest.approx(1)
    assert "mean or majority" in capsys.readouterr().out
    # In one order in every process, though Python orders a set of names anew in each.
    named = list(dict.fromkeys(row["entry"] for row in scores(repository)))
    assert named == ["good", "fair", "mean or majority", "noise ceiling"]
    before = (repository / "runs/leaderboards/b/scores.tsv").read_bytes()
    assert run(file) == 0
    assert len(starts(repository)) == 8
    assert (repository / "runs/leaderboards/b/scores.tsv").read_bytes() == before


@pytest.mark.crash
def test_a_board_that_was_killed_ends_with_the_same_bytes_and_no_finished_run_twice(
    repository, monkeypatch
):
    file = write(repository)
    assert run(file) == 0
    whole = (repository / "runs/leaderboards/b/scores.tsv").read_bytes()
    (repository / "starts").unlink()
    again = write(repository, name="again")
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    finished = set()
    for turn in range(3):
        child = os.fork()
        if not child:
            os._exit(run(again) or 0)
        count = len(finished)
        wait_for(lambda count=count, turn=turn: len(over(repository)) > count or turn == 2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = over(repository)
    once = starts(repository)
    monkeypatch.delenv("FAKE_SECONDS")
    wait_for(lambda: run(again, "--jobs", "2") == 0)
    later = starts(repository)
    assert len(over(repository)) == 8
    assert [name for name in later if name in finished] == [n for n in once if n in finished]
    assert (repository / "runs/leaderboards/again/scores.tsv").read_bytes() == whole


def over(folder):
    return {path.parent.name for path in folder.glob("runs/leaderboards/again/fake/*/results.json")}


def wait_for(condition):
    import time

    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited too long")


def test_a_failed_cell_is_recorded_and_the_rest_is_done(repository, capsys):
    file = write(repository, ENTRIES + "  bad: --train.lr 0.5\n", tasks=("one",))
    assert run(file) == 1
    rows = {(row["entry"], row["seed"]): row for row in scores(repository)}
    assert rows["bad", "0"]["error"] == "exit code 2: error rate 0.5 is too high"
    assert rows["bad", "0"]["value"] == "" and rows["good", "0"]["value"] != ""
    page = (repository / "runs/leaderboards/b/board.html").read_text()
    assert "error rate 0.5 is too high" in page
    assert run(file) == 1
    assert starts(repository).count("one.bad.s0") == 1
    (repository / "healed").touch()
    assert run(file, "--retry") == 0
    assert all(row["value"] for row in scores(repository) if row["entry"] == "bad")
    assert starts(repository).count("one.good.s0") == 1


def test_a_grid_is_chosen_from_by_validation_rows_whatever_test_rows_say(repository, monkeypatch):
    # Validation likes the larger rate, which is further from the truth.
    monkeypatch.setenv("VALID", "1")
    entries = "\n  tuned: {flags: --train.lr 0.2, grid: {train.lr: [0.1, 0.4]}}\n"
    assert run(write(repository, entries, tasks=("one",))) == 0
    row = next(row for row in scores(repository) if row["entry"] == "tuned" and row["seed"] == "1")
    assert float(row["value"]) == pytest.approx(spearmanr(*truth_and(0.4, 1)).statistic)
    kept = pq.read_table(repository / "runs/leaderboards/b/board.parquet").to_pylist()
    assert {r["settings"] for r in kept if r["entry"] == "tuned"} == {"--train.lr=0.4"}


def test_a_trial_that_fails_is_left_out_of_the_choice_and_said(repository):
    entries = "\n  tuned: {grid: {train.lr: [0.5, 0.4]}}\n"
    assert run(write(repository, entries, tasks=("one",))) == 1
    kept = pq.read_table(repository / "runs/leaderboards/b/board.parquet").to_pylist()
    chosen = {r["settings"] for r in kept if r["entry"] == "tuned"}
    assert chosen == {"--train.lr=0.4; 1 of 2 trials failed"}


def test_unequal_tuning_is_said_on_the_board(repository, capsys):
    entries = ENTRIES + "  tuned: {grid: {train.lr: [0.1, 0.4]}}\n"
    assert run(write(repository, entries, tasks=("one",)), "--dry-run") == 0
    assert "tuned unequally, by trials: 1: good, fair; 2: tuned" in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_of_an_array_share_the_runs(repository):
    file = write(repository)
    assert run(file, "--index", "0", "--of", "2") == 0
    half = starts(repository)
    assert len(half) == 4
    assert run(file, "--index", "1", "--of", "2") == 0
    assert len(starts(repository)) == 8 and len({*starts(repository)}) == 8
    assert all(row["value"] for row in scores(repository) if row["entry"] in ("good", "fair"))


def test_a_part_of_a_board_is_run_and_the_rest_is_missing(repository, capsys):
    file = write(repository)
    assert run(file, "--entries", "go*", "--tasks", "two") == 0
    assert starts(repository) == ["two.good.s0", "two.good.s1"]
    assert "not run yet" in (repository / "runs/leaderboards/b/board.html").read_text()
    assert run(file, "--entries", "god") == 2
    assert "Did you mean 'good'?" in capsys.readouterr().err


def test_every_cell_has_its_provenance(repository):
    assert run(write(repository, tasks=("one",))) == 0
    rows = pq.read_table(repository / "runs/leaderboards/b/board.parquet").to_pylist()
    row = next(row for row in rows if row["entry"] == "good" and row["seed"] == 1)
    assert (row["seconds"], row["tokens_per_second"], row["memory_gb"]) == (2.0, 20.0, 0.5)
    assert (row["commit"], row["device"], row["version_torch"]) == ("c", "cpu", "t")
    assert row["rows_digest"] == (repository / "digest").read_text()
    assert len(row["config"]) == 12 and row["run"].endswith("one.good.s1")


# --------------------------------------------------------------------------- boards never mix


@pytest.mark.slow
def test_another_version_of_the_board_is_refused_and_more_of_it_is_not(repository, capsys):
    assert run(write(repository, tasks=("one",))) == 0
    changed = write(repository, ENTRIES.replace("0.4", "0.3"), tasks=("one",))
    assert run(changed) == 2
    error = capsys.readouterr().err
    assert "filled by another version of" in error and "one.fair.s0 ran with" in error
    assert len(starts(repository)) == 4
    assert run(write(repository, ENTRIES + "  new: --train.lr 0.3\n", tasks=("one", "two"))) == 0
    assert len(starts(repository)) == 12


def test_runs_on_rows_that_have_changed_since_do_not_count(repository):
    (repository / "digest").write_text("other")
    run(write(repository, tasks=("one",)))
    errors = {row["error"] for row in scores(repository) if row["entry"] == "good"}
    assert all("was run on other rows than there are now" in error for error in errors)


# --------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("recipe: fake", "recipe: fak", 7, "Did you mean 'fake'?"),
        ("metric: spearman", "metric: spearmen", 7, "Did you mean 'spearman'?"),
        ("data: ./rows.tsv", "data: promoters_tinny", 7, "Did you mean 'promoters_tiny'?"),
        ("data: ./rows.tsv", "data: ./none.tsv", 7, "no file none.tsv"),
        ("flags: --data.split-col", "flags: --data.splitcol", 7, "Perhaps you meant"),
        ("  good: --train.lr 0.1", "  good: --train.lrr 0.1", 10, "Perhaps you meant"),
        ("  good: --train.lr 0.1", "  good: --train.monitor loss", 10, "is the board's; drop it"),
        ("  good: --train.lr 0.1", "  good: --name x", 10, "--name is not for these runs"),
        ("  good: --train.lr 0.1", "  fair: --train.lr 0.1", 11, "set more than once: fair"),
        ("  good: --train.lr 0.1", "  fair.: --train.lr 0.1", 11, "would be one folder"),
        ("  good: --train.lr 0.1", "  good: {flag: x}", 10, "Did you mean 'flags'?"),
        ("  good: --train.lr 0.1", "  good: {tasks: [on]}", 10, "no task, recipe or molecule 'on'"),
        ("  good: --train.lr 0.1", "  good: --backbone esm2_8m", 10, "reads protein"),
        ("modality: dna", "modality: dnaa", 7, "Did you mean 'dna'?"),
        ("seeds: 2", "seeds: none", 4, "expected a number, at least 1"),
        ("seeds: 2", "sedes: 2", 4, "Did you mean 'seeds'?"),
        ("resamples: 200", "resamples: 20", 5, "at least 100"),
        ("resamples: 200", "references: [one-hot cnn]", 5, "no reference 'one-hot cnn'"),
        ("resamples: 200", "protocol: flipp", 5, "Did you mean 'flip'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line_before_any_run(
    repository, capsys, old, new, line, says
):
    file = write(repository)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert run(file) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"b.yaml:{line}" in error
    assert says in error
    assert not (repository / "starts").exists() and not (repository / "runs").exists()


def test_all_entries_that_cannot_do_a_task_are_named_at_once(repository, capsys):
    entries = "\n  a: --backbone esm2_8m\n  fit: --adapter conv\n  b: --adapter token_cnn\n"
    assert run(write(repository, entries, tasks=("one",))) == 2
    error = capsys.readouterr().err
    assert "a cannot do one" in error and "b cannot do one" in error and "fit" not in error


# --------------------------------------------------------------------------- references


def test_references_stand_on_a_board_by_themselves():
    board = read(ROOT / "recipes" / "configs" / "leaderboard" / "quick.yaml")
    made = {
        (task.name, entry.name): (entry.recipe(task), *board.pieces(task, entry)[-1][1])
        for task in board.tasks.values()
        for entry in board.put_to(task)
        if entry.reference
    }
    assert {name for _, name in made} == {"one-hot linear", "k-mer linear", "one-hot CNN"}
    ridge, pool = made["promoters_tiny", "one-hot linear"][0], made["peptides_tiny", "k-mer linear"]
    assert ridge == "ridge_regression"
    assert pool[0] == "logistic_regression" and "protein_onehot" in pool and pool[-1] == "2"
    assert made["promoters_tiny", "one-hot CNN"][0] == "sequence_regression"
    assert board.constants


def test_a_pretrained_entry_has_a_twin_with_random_weights(tmp_path):
    file = tmp_path / "b.yaml"
    file.write_text(
        "title: B\ntasks: [promoters_tiny]\nreferences: [random weights]\nentries:\n"
        "  real: --backbone aido_dna_300m --backbone.frozen\n"
        "  debug: --backbone aido_dna_debug\n"
        "  bare: --backbone esm2_8m --backbone.random-weights\n"
    )
    text = file.read_text()
    file.write_text(text + "  both: {by: {dna: --backbone aido_dna_300m}}\n")
    entries = read(file).entries
    twins = ["real, random weights", "both, random weights"]
    assert [*entries] == ["real", "debug", "bare", "both", *twins]
    twin = entries["real, random weights"]
    assert twin.reference and twin.flags[-1][1] == ["--backbone.random-weights"]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes/configs/leaderboard").glob("*.yaml")), ids=lambda f: f.stem
)
def test_the_boards_that_come_with_mgen_can_be_read(file):
    board = read(file)
    assert board.tasks and board.entries
    assert all(task.data in DATA or "/" in task.data for task in board.tasks.values())
    assert len({slug(name) for name in (*board.tasks, *board.entries)}) == len(
        [*board.tasks, *board.entries]
    )


def test_what_is_not_here_is_said_and_the_rest_runs(repository, monkeypatch, capsys):
    monkeypatch.setenv("MGEN_SHARED", str(repository / "nothing"))
    file = write(repository, tasks=("one",))
    text = file.read_text()
    file.write_text(text.replace("entries:", "  gb1: {data: flip_gb1}\nentries:"))
    assert run(file) == 0
    out = capsys.readouterr().out
    assert "left out: gb1: no file" in out
    assert "gb1" in (repository / "runs/leaderboards/b/board.md").read_text()


def test_what_the_hub_has_is_left_out_aloud_without_a_network(repository, capsys):
    file = write(repository, ENTRIES + "  far: --backbone nt_500m_1000g\n", tasks=("one",))
    text = file.read_text()
    file.write_text(text.replace("entries:", "  away: {data: nobody/nothing}\nentries:"))
    assert run(file) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left out: away: nobody/nothing: no such file" in out
    assert "left out: far: InstaDeepAI/nucleotide-transformer-500m-1000g" in out
    page = (repository / "runs/leaderboards/b/board.md").read_text()
    assert "| far | model |" in page and "| 0/1 |" in page
    file.write_text(text.replace("data: ./rows.tsv", "data: nobody/nothing"))
    assert run(file) == 2
    assert "no task can run: nobody/nothing" in capsys.readouterr().err


def test_a_task_that_no_entry_can_do_here_is_left_out_of_the_board_that_runs(repository):
    entries = "\n  good: {flags: --train.lr 0.1, tasks: [one]}\n"
    entries += "  far: {flags: --backbone nt_500m_1000g, tasks: [two]}\n"
    assert run(write(repository, entries)) == 0
    page = (repository / "runs/leaderboards/b/board.md").read_text()
    assert "cannot be read from the Hugging Face hub" in page.partition("## two")[2]


def test_a_recipe_that_measures_nothing_is_refused(tmp_path, capsys):
    file = tmp_path / "b.yaml"
    file.write_text(
        "title: B\ntasks:\n  promoters_tiny: {recipe: embed, metric: spearman}\n"
        "entries: {debug: --backbone aido_dna_debug}\n"
    )
    assert run(file) == 2
    error = capsys.readouterr().err
    assert "debug cannot do promoters_tiny: embed measures nothing of these rows" in error


def test_a_board_without_a_score_is_not_published(repository, capsys):
    file = write(repository, "\n  bad: --train.lr 0.5\n", tasks=("one",))
    assert run(file, "--publish", str(repository / "none")) == 2
    assert run(file, "--publish", str(repository)) == 2
    assert "the board has no score yet" in capsys.readouterr().err
    assert not (repository / "b.html").exists()


def test_resamples_without_a_value_are_counted_on_the_board():
    cell = summary.Cell("one", "good", 0, "auroc", 0.5, torch.tensor([0.4, torch.nan, torch.nan]))
    (note,) = outcome._undefined([cell, replace(cell, resampled=torch.zeros(3))])
    assert note.startswith("one: auroc is not defined in up to 2 resamples")


def test_a_pattern_of_files_is_a_task_for_each(repository):
    (repository / "rows2.tsv").write_text((repository / "rows.tsv").read_text())
    file = write(repository, tasks=("./rows*.tsv",))
    own = "facts: {DMS_id: '{name}'}, "
    text = file.read_text().replace("data: ./rows.tsv, ", own)
    file.write_text(text)
    tasks = read(file).tasks
    assert [*tasks] == ["rows", "rows2"] and tasks["rows2"].facts["DMS_id"] == "rows2"
    file.write_text(text.replace("./rows*", "./none*"))
    with pytest.raises(InputError, match="no task can run: no file none"):
        check(read(file))


@pytest.mark.slow
def test_estimate_measures_steps_and_writes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "b.yaml"
    file.write_text(
        "title: B\nseeds: 2\ntasks: [peptides_tiny]\nreferences: [one-hot CNN]\n"
        "flags: --train.epochs 2\n"
    )
    assert run(file, "--estimate", "--jobs", "2") == 0
    out = capsys.readouterr().out
    assert "2 runs are missing" in out and "with 2 at once" in out
    assert not [*tmp_path.glob("runs/leaderboards/b/sequence_classification/*")]


def test_the_check_of_a_board_reads_equal_rows_once(repository, monkeypatch):
    read_ = []
    whole = Session.read
    monkeypatch.setattr(Session, "read", lambda *given: read_.append(given) or whole(*given))
    checked = check(read(write(repository)))
    assert len(checked.asked) == 4 and len(read_) == 1
    assert {a.digest for a in checked.asked} == {(repository / "digest").read_text()}


# --------------------------------------------------------------------------- with real recipes


@pytest.mark.slow
def test_real_runs_fill_a_board_and_agree_with_their_own_tests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "b.yaml"
    file.write_text(
        "title: B\nseeds: 2\ntasks: [promoters_tiny, peptides_tiny, hairpins_tiny]\n"
        "flags: --train.max-steps 20 --train.workers 0\n"
    )
    assert run(file, "--jobs", "2") == 0
    rows = [row for row in scores(tmp_path) if row["entry"] == "one-hot CNN"]
    assert len(rows) == 6
    for row in rows:
        label = f"{row['task']}.one_hot_cnn.s{row['seed']}"
        (results,) = tmp_path.glob(f"runs/leaderboards/b/*/{label}/results.json")
        own = json.loads(results.read_text())["test"][row["metric"]]
        assert float(row["value"]) == pytest.approx(own, abs=1e-6)
    linear = {row["seed"] for row in scores(tmp_path) if row["entry"] == "one-hot linear"}
    assert linear == {"0"}  # nothing in it depends on a seed


@pytest.mark.slow
def test_zero_shot_scores_are_written_as_proteingym_reads_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "b.yaml"
    file.write_text(
        "title: B\nseeds: 2\ntasks:\n  dms_tiny: {facts: {DMS_id: TINY_1}}\n"
        "entries: {debug: --backbone aido_protein_debug --backbone.random-weights}\n"
    )
    assert run(file) == 0
    with (tmp_path / "runs/leaderboards/b/proteingym/TINY_1.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    columns = ["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin", "debug", "BLOSUM62"]
    assert [*lines[0]] == columns and len(lines) == 650
    x, y = ([float(line[key]) for line in lines] for key in ("BLOSUM62", "DMS_score"))
    row = next(row for row in scores(tmp_path) if row["entry"] == "BLOSUM62")
    assert float(row["value"]) == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)


@pytest.mark.slow
def test_the_head_of_the_page_on_architectures_lands_on_the_board(tmp_path):
    page = (ROOT / "docs" / "architectures.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.S)[1]
    assert len([line for line in block.splitlines() if line.strip()]) < 13  # and two more lines
    shutil.copytree(ROOT / "mgen", tmp_path / "mgen")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "mgen" / "adapters" / "mine.py").write_text(block)
    known = tmp_path / "mgen" / "adapters" / "__init__.py"
    known.write_text(known.read_text().replace("    mlp,\n", "    mine,\n    mlp,\n"))
    line = re.search(r"```yaml\n(.*?)```", page, re.S)[1]
    (tmp_path / "b.yaml").write_text(
        "title: B\nseeds: 1\ntasks: [peptides_tiny]\nreferences: [one-hot CNN]\n"
        f"flags: --backbone protein_onehot --train.max-steps 5\nentries:\n{line}"
    )
    words = [sys.executable, "-m", "mgen", "leaderboard", "b.yaml"]
    here = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run(words, **here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^max_minus_mean +0\.\d+", done.stdout, re.M)


@pytest.mark.crash
def test_a_real_board_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    text = (
        "title: B\nseeds: 2\ntasks: [peptides_tiny, gc_content_tiny]\nreferences: [one-hot CNN]\n"
        "flags: --train.epochs 3 --train.workers 0 --train.save-every 3\nname: {}\n"
    )
    for name in ("whole", "killed"):
        (tmp_path / f"{name}.yaml").write_text(text.format(name))

    def start(name):
        words = [sys.executable, "-m", "mgen", "leaderboard", f"{name}.yaml"]
        return subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    random = np.random.default_rng(0)
    for _ in range(6):
        process = start("killed")
        time.sleep(random.uniform(4, 14))
        process.kill()
        process.wait()
    assert start("killed").wait() == 0
    whole, killed = (tmp_path / "runs" / "leaderboards" / name for name in ("whole", "killed"))
    assert (killed / "scores.tsv").read_bytes() == (whole / "scores.tsv").read_bytes()
    for file in killed.glob("*/*/environment.json"):
        finished = [past for past in json.loads(file.read_text()) if "seconds" in past]
        assert len(finished) == 1, file  # by one session, and never again
