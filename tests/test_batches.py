"""Batches: every row once, budgets kept, the same content whoever makes them."""

import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from mgen.config import InputError
from mgen.data.batches import Batch, loader, plan

LENGTHS = np.random.default_rng(0).integers(16, 513, size=1024)


@pytest.mark.parametrize("seed", [None, (42, 0)])
@pytest.mark.parametrize("tokens", [0, 2048, 16384])
def test_each_row_is_in_exactly_one_batch(seed, tokens):
    batches = plan(LENGTHS, 32, tokens, seed)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(1024))


@pytest.mark.parametrize("seed", [None, (42, 0)])
def test_no_batch_exceeds_its_budgets(seed):
    for batch in plan(LENGTHS, 32, 4096, seed):
        assert 1 <= len(batch) <= 32
        assert len(batch) * LENGTHS[batch].max() <= 4096


def test_without_a_token_budget_only_rows_are_counted():
    assert {len(batch) for batch in plan(LENGTHS, 32, 0, (42, 0))} == {32}


def test_a_row_longer_than_the_budget_stands_alone():
    batches = plan(np.array([5, 50, 5, 60]), 8, 20, (42, 0))
    assert sorted(map(sorted, batches)) == [[0, 2], [1], [3]]


def test_no_rows_make_no_batches():
    assert plan(np.zeros(0, dtype=np.int32), 8, 20, (42, 0)) == []


def test_equal_seeds_give_equal_batches():
    once, again = plan(LENGTHS, 32, 4096, (42, 3)), plan(LENGTHS, 32, 4096, (42, 3))
    assert all(map(np.array_equal, once, again))


@pytest.mark.parametrize("other", [(42, 1), (43, 0)])
def test_another_epoch_or_seed_groups_rows_anew(other):
    lengths = np.tile(LENGTHS, 8)  # several windows of LOOK_AHEAD batches
    first, second = (set(map(frozenset, plan(lengths, 32, 0, s))) for s in ((42, 0), other))
    assert len(first & second) < len(first) / 10


def test_batches_do_not_come_by_length():
    longest = [LENGTHS[batch].max() for batch in plan(LENGTHS, 32, 0, (42, 0))]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.5


@pytest.mark.parametrize("tokens", [4096, 16384])
def test_at_least_95_percent_of_the_tokens_are_no_padding(tokens):
    batches = plan(LENGTHS, 32, tokens, (42, 0))
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert LENGTHS.sum() / padded >= 0.95


# --------------------------------------------------------------------------- the loader


class Rows:
    """Rows that are their own numbers."""

    def take(self, numbers):
        return [{"number": number} for number in numbers]


def noisy(rows):
    """A collate that draws from every random state there is."""
    count = len(rows)
    return {
        "number": torch.tensor([row["number"] for row in rows]),
        "torch": torch.rand(count),
        "numpy": torch.tensor(np.random.rand(count)),
        "python": torch.tensor([random.random() for _ in rows]),
    }


BATCHES = [Batch((3, 1), 7), Batch((0,), 8), Batch((2, 4, 5), 9), Batch((6,), 7), Batch((7,), 1)]


def made(workers):
    return list(loader(Rows(), BATCHES, noisy, workers))


def test_batches_come_in_order_with_their_row_numbers():
    assert [tuple(batch["row"].tolist()) for batch in made(0)] == [b.rows for b in BATCHES]


def test_content_does_not_depend_on_workers():
    torch.manual_seed(1)
    here = made(0)
    torch.manual_seed(2)
    for ours, theirs in zip(here, made(2), strict=True):
        assert tiny.equal(ours, theirs)


def wide(rows):
    """Large arrays of which most is one value: with numbers that equal it or nothing."""
    values = torch.zeros(len(rows), 40_000)
    values[:, 5], values[:, 7], values[:, 11] = -0.0, float("nan"), 3.5
    ones = torch.ones(len(rows), 40_000, dtype=torch.long)
    ones[:, -1] = 0
    other = torch.arange(80_000).view(2, -1) % 3
    return {
        "values": values,
        "mask": ones,
        "flags": values == 3.5,
        "all": ones[:, :9_000] * 0,
        "other": other,
    }


def test_large_arrays_cross_from_a_worker_as_they_are():
    for ours, theirs in zip(
        loader(Rows(), BATCHES, wide), loader(Rows(), BATCHES, wide, 2), strict=True
    ):
        for name, tensor in ours.items():
            assert theirs[name].dtype == tensor.dtype
            assert theirs[name].shape == tensor.shape
            assert theirs[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_content_depends_on_the_seed_of_the_batch():
    once, again = (next(loader(Rows(), [Batch((0,), seed)], noisy)) for seed in (1, 2))
    assert not any(torch.equal(once[key], again[key]) for key in ("torch", "numpy", "python"))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_states_are_left_alone(workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    made(workers)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def tensors_in(value, seen=None):
    """Every tensor reachable from an object through attributes and containers."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_in(part, seen)]


def test_no_weights_travel_to_workers(tmp_path):
    task, _ = tiny.prepared(tiny.settings(tmp_path))
    assert len(tensors_in(task)) > 10
    collator = task.collator()
    assert tensors_in(collator) == []


def test_what_travels_to_workers_can_be_pickled_and_is_small(tmp_path):
    task, _ = tiny.prepared(tiny.settings(tmp_path))
    assert len(pickle.dumps(task.collator())) < 10_000


def refusing(rows):
    raise InputError("row 7 (header not counted): no")


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_input_found_by_a_worker_reads_as_if_found_here(workers):
    with pytest.raises(InputError, match=r"^row 7 \(header not counted\): no$"):
        next(loader(Rows(), BATCHES, refusing, workers))


LEAVES = """
import sys, time
import torch
from mgen.data.batches import Batch, loader

class Rows:
    def take(self, numbers):
        return list(numbers)

def large(rows):  # more than a pipe holds, so that a worker waits in the middle of a batch
    return {"numbers": torch.zeros(1 << 20)}

made = loader(Rows(), (Batch((i,), i) for i in range(10**6)), large, workers=1)
next(made)
if sys.argv[1] == "raise":
    raise KeyError("a fault of the recipe")
print("ready", flush=True)
time.sleep(60)
"""


def started(how: str) -> subprocess.Popen:
    words = [sys.executable, "-c", LEAVES, how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_an_error_with_worker_processes_alive_ends_the_process():
    assert started("raise").wait(timeout=30) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc of Linux")
def test_workers_of_a_killed_process_end_by_themselves():
    process = started("sleep")
    assert process.stdout.readline() == b"ready\n"
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert workers
    process.kill()
    process.wait()
    for _ in range(100):
        if not any(alive(worker) for worker in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {workers} outlive their parent")


def alive(process: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
