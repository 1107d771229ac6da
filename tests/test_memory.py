"""Batches that do not fit: the same steps in parts, and predictions of every row once."""

import json

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from sequence_regression import SequenceRegression
from test_loop import logged
from tiny import fresh_process  # noqa: F401

from mgen.data.batches import Batch
from mgen.engine.memory import is_full, parts_of
from mgen.loop import OutOfMemory

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Small(SequenceRegression):
    """Has memory for `room` rows, in the forward pass or in the backward pass."""

    room, at, largest = 2, "forward", 0

    def forward(self, batch):
        count = len(batch["row"])
        if count > self.room and self.at == "forward":
            raise FULL
        Small.largest = max(self.largest, count)
        outputs = super().forward(batch)
        if count > self.room and outputs.requires_grad:
            outputs.register_hook(self.fail)
        return outputs

    @staticmethod
    def fail(gradient):
        raise FULL


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr(Small, "largest", 0)
    monkeypatch.setattr(Small, "room", 2)
    for where in ("loop", "infer"):  # a search for what nobody holds takes half a second
        monkeypatch.setattr(f"mgen.{where}.free", lambda: None)


def settings(folder, **train):
    cfg = tiny.settings(folder, batch_size=8, log_every=1, lr=1e-3, **train)
    return tiny.with_backbone(cfg, dropout=0.0)


def assert_alike(one, other) -> None:
    theirs = tiny.weights(other.task)
    for name, value in tiny.weights(one.task).items():
        # A bias of keys has gradient zero but for rounding, which AdamW makes into steps.
        if not name.endswith("key.bias"):
            assert torch.allclose(value, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_step_in_parts_is_the_same_step(at, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Small, "at", at)
    whole = tiny.fit(settings(tmp_path), tmp_path / "whole")
    parts = tiny.fit(settings(tmp_path), tmp_path / "parts", Small)
    whole.run(), parts.run()
    assert parts.state.parts == 4 and parts.state.step == whole.state.step == 6
    assert "step 1: out of memory. Each batch is computed in 2 parts" in capsys.readouterr().out
    assert_alike(whole, parts)
    for ours, theirs in zip(
        *(logged(tmp_path / n, "train") for n in ("parts", "whole")), strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)


def test_accumulated_batches_keep_their_weight_in_parts(tmp_path):
    whole = tiny.fit(settings(tmp_path, accumulate=2), tmp_path / "whole")
    parts = tiny.fit(settings(tmp_path, accumulate=2), tmp_path / "parts", Small)
    whole.run(), parts.run()
    assert_alike(whole, parts)


def test_the_parts_are_kept_by_checkpoints(tmp_path):
    fit = tiny.fit(settings(tmp_path), tmp_path / "run", Small)
    fit.run()
    saved = json.loads((fit.checkpoints / "last" / "state.json").read_text())
    assert saved["parts"] == 4


def test_rows_that_do_not_fit_alone_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Small, "room", 0)
    fit = tiny.fit(settings(tmp_path), tmp_path / "run", Small)
    fit.state.evaluated = 0  # the first evaluation would not fit either
    before = tiny.weights(fit.task)
    with pytest.raises(OutOfMemory, match="step 1: out of memory with single rows of up to 1"):
        fit.run()
    assert tiny.equal(before, tiny.weights(fit.task))


def test_out_of_memory_ends_a_command_with_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Small, "room", 0)
    monkeypatch.setattr(Small, "training", True, raising=False)
    tiny.table(tmp_path, valid=0)
    assert tiny.command(tmp_path, "--name", "a", task=Small) == 70
    assert "out of memory with single rows" in capsys.readouterr().err


def test_another_error_is_passed_on(tmp_path, monkeypatch):
    def wrong(self, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Small, "forward", wrong)
    fit = tiny.fit(settings(tmp_path), tmp_path / "run", Small)
    fit.state.evaluated = 0
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit.run()


def test_predictions_in_parts_are_those_of_whole_batches(tmp_path, monkeypatch):
    tiny.table(tmp_path)
    for name, task in (("whole", SequenceRegression), ("parts", Small)):
        monkeypatch.setattr(Small, "room", 3)
        assert tiny.command(tmp_path, "--name", name, "--train.batch-size", "7", task=task) == 0
    folders = [
        tmp_path / "runs" / kind / name
        for kind, name in (("sequence_regression", "whole"), ("test_memory", "parts"))
    ]
    ours, theirs = (pq.read_table(f / "predictions" / "test.parquet") for f in folders)
    assert ours["row"].to_pylist() == theirs["row"].to_pylist()
    pairs = zip(*(t["predicted_label"].to_pylist() for t in (ours, theirs)), strict=True)
    assert all(abs(a - b) < 1e-4 for a, b in pairs)
    a, b = (json.loads((f / "results.json").read_text())["test"] for f in folders)
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and Small.largest == 3


def test_parts_hold_each_row_once_and_fillers_count_nothing():
    parts = parts_of(Batch((5, 6, 7), seed=1), 4)
    assert [part.rows for part in parts if part.counts] == [(5,), (6,), (7,)]
    assert len(parts) == 4 and len({part.seed for part in parts}) == 4
    assert not any(part.counts for part in parts_of(Batch((5, 6), 1, counts=False), 2))


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("x"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, full):
    assert is_full(error) is full
