"""Two processes do what one does: the same steps, each row once, stop and go on together."""

import functools
import json
import os
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from safetensors.torch import load_file
from test_crash import assert_equal_runs

# 24 rows are 5 batches of at most 5: the last step of an epoch has one batch for two processes.
FLAGS = (
    *("--train.batch-size", "5", "--train.epochs", "3", "--train.lr", "0.001"),
    *("--train.log-every", "1", "--train.workers", "0"),
)


KINDS = {
    "sequences": ("sequence_regression", ()),
    "cells": ("cell_regression", ("--train.shuffle-block", "3")),
    "tissue": (
        "cell_regression",
        ("--backbone", "aido_tissue_debug", "--data.neighbours", "2", "--data.position-cols")
        + ("x", "y"),
    ),
}
SLOW = {"cells", "tissue"}
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in SLOW else ()) for k in KINDS]
)


@pytest.fixture(scope="module")
def server():
    return tiny.server()


@pytest.fixture(scope="module")
def runs(server):
    """Of a kind the run of one process with two batches per step, and of two with a batch each."""
    cells = tiny.cells(server.folder)

    @functools.cache
    def made(kind: str):
        recipe, flags = KINDS[kind]
        flags = (*FLAGS, *flags, *(cells if kind in SLOW else ()))
        for count in (1, 2):
            options = {"processes": count, "recipe": recipe}
            code = server.run(
                f"{kind}{count}", *flags, "--train.accumulate", str(2 // count), **options
            )
            assert code == 0, server.log.read_text()
        return [server.run_folder(f"{kind}{count}", recipe) for count in (1, 2)]

    return made


@pytest.fixture(scope="module")
def two(runs):
    return runs("sequences")[1]


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@each_kind
def test_two_processes_reach_the_weights_of_one(kind, runs):
    one, two = runs(kind)
    ours, theirs = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in (two, one))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.allclose(ours[name], theirs[name], atol=1e-5), name


@each_kind
def test_two_processes_log_the_losses_and_metrics_of_one(kind, runs):
    one, two = runs(kind)
    for ours, theirs in zip(rows(two), rows(one), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        for name in {"loss", "lr", "grad_norm", "pearson", "spearman", "mae"} & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), (ours["step"], name)
        assert ours.get("tokens") == theirs.get("tokens")


def test_what_only_fills_up_the_share_of_a_process_is_logged_as_padding(runs):
    one, two = runs("sequences")
    ours, theirs = ([r["padding"] for r in rows(run) if "padding" in r] for run in (two, one))
    # Each third step has one batch for two processes.
    assert [
        a > b + 0.3 if step % 3 == 2 else a == b
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ] == 9 * [True]


@each_kind
def test_two_processes_test_each_row_once(kind, runs):
    one, two = runs(kind)
    ours, theirs = (json.loads((run / "results.json").read_text())["test"] for run in (two, one))
    for name in ("loss", "pearson", "mae", "mse"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-5)


@each_kind
def test_two_processes_write_each_prediction_once_and_in_order(kind, runs):
    one, two = runs(kind)
    ours, theirs = (pq.read_table(r / "predictions" / "test.parquet") for r in (two, one))
    assert ours["row"].to_pylist() == theirs["row"].to_pylist() == list(range(33, 40))
    column = "predicted_label" if kind == "sequences" else "predicted_age"
    pairs = (table[column].to_numpy() for table in (ours, theirs))
    assert np.allclose(*pairs, atol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_a_step_that_both_resume(server, two):
    for attempt in range(5):  # of nine steps the last may be done before the signal comes
        name = f"signal{attempt}"
        children = server.start(name, *FLAGS, processes=2)
        server.wait_for_metrics(name)
        os.kill(children[1], signal.SIGTERM)
        if (codes := server.end()) != [0, 0]:
            break
    assert codes == [143, 143], server.log.read_text()
    assert server.run(name, *FLAGS, "--resume", processes=2) == 0, server.log.read_text()
    assert_equal_runs(two, server.run_folder(name))


def test_another_number_of_processes_is_refused_on_resume(server, two):
    (two / "results.json").rename(two / "aside")
    assert server.run("sequences2", *FLAGS, "--train.accumulate", "1", "--resume") == 2
    (two / "aside").rename(two / "results.json")
    assert "written by 2 processes, this run has 1" in " ".join(server.log.read_text().split())


@pytest.mark.slow
def test_lora_trains_the_same_on_two_processes(server):
    flags = (
        *FLAGS,
        "--backbone.lora-rank",
        "2",
        "--backbone.lora-dropout",
        "0",
        "--train.epochs",
        "1",
    )
    assert server.run("lora1", *flags, "--train.accumulate", "2") == 0, server.log.read_text()
    assert server.run("lora2", *flags, processes=2) == 0, server.log.read_text()
    runs = (server.run_folder(name) / "checkpoints" / "last" for name in ("lora1", "lora2"))
    ours, theirs = (load_file(run / "adapter_model.safetensors") for run in runs)
    assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.mark.slow
def test_unequal_numbers_of_tokens_train_two_processes_as_one(server):
    flags = (*FLAGS, "--backbone.dropout", "0", "--train.epochs", "10", "--train.max-steps", "20")
    options = {"recipe": "masked_language_modeling"}
    for count in (1, 2):
        more = ("--train.accumulate", str(2 // count))
        code = server.run(f"mlm{count}", *flags, *more, processes=count, **options)
        assert code == 0, server.log.read_text()
    runs = [server.run_folder(f"mlm{count}", options["recipe"]) for count in (1, 2)]
    theirs, ours = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in runs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # A softmax does not feel the bias of keys: its gradient is rounding, which Adam scales up.
        assert "key.bias" in name or np.allclose(ours[name], theirs[name], atol=1e-5), name
    for theirs, ours in zip(*map(rows, runs), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours.get("tokens") == theirs.get("tokens")


@pytest.mark.slow
@pytest.mark.parametrize("count", [11, 12, 1])
def test_two_processes_predict_and_test_any_number_of_rows_as_one(count, server):
    name = f"rows{count}"
    code = server.run(name, *FLAGS, "--train.epochs", "1", recipe="faulty")
    assert code == 0, server.log.read_text()
    lines = (server.folder / "rows.tsv").read_text().splitlines()
    table = server.folder / f"{name}.tsv"
    table.write_text("\n".join(lines[: count + 1]) + "\n")
    found = {}
    for processes in (1, 2):
        options = {"processes": processes, "recipe": "faulty"}
        for verb, flag in (("test", "--data.test-path"), ("predict", "--data.path")):
            code = server.run(name, verb, flag, str(table), **options)
            assert code == 0, server.log.read_text()
            file = server.run_folder(name, "faulty") / "predictions" / f"{name}.parquet"
            found[verb, processes] = pq.read_table(file)
            file.unlink()
        found["metrics", processes] = file.with_suffix(".json").read_text()
    for verb in ("test", "predict"):
        assert found[verb, 2].equals(found[verb, 1])
        assert found[verb, 2]["row"].to_pylist() == list(range(count))
    ours, theirs = (json.loads(found["metrics", processes]) for processes in (2, 1))
    assert ours.pop("mean baseline") == theirs.pop("mean baseline")
    assert ours == pytest.approx(theirs, abs=1e-5, nan_ok=True)


# --------------------------------------------------------------------------- memory


@pytest.mark.slow
def test_processes_of_which_one_has_no_memory_left_make_the_same_steps(server, two):
    given = {"processes": 2, "recipe": "short_of_memory"}
    assert server.run("forward", *FLAGS, **given) == 0, server.log.read_text()
    assert "Each batch is computed in 4 parts from here on" in server.log.read_text()
    run = server.folder / "short_of_memory" / "forward"
    ours, theirs = (load_file(r / "checkpoints" / "last" / "model.safetensors") for r in (run, two))
    for name in ours:
        if not name.endswith("key.bias"):  # its gradient is zero but for rounding
            assert np.allclose(ours[name], theirs[name], atol=1e-5), name


@pytest.mark.slow
def test_no_memory_in_a_backward_pass_ends_the_run_and_resume_goes_on_in_parts(server, two):
    given = {"processes": 2, "recipe": "short_of_memory"}
    for parts in (2, 4):
        server.start("backward", *FLAGS, "--resume", **given)
        assert set(server.end()) <= {70, 75}, server.log.read_text()
        assert f"computed in {parts} parts" in " ".join(server.log.read_text().split())
    assert server.run("backward", *FLAGS, "--resume", **given) == 0, server.log.read_text()
    run = server.folder / "short_of_memory" / "backward"
    assert json.loads((run / "checkpoints" / "last" / "state.json").read_text())["parts"] == 4
