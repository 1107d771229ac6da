"""Which rows go into which batch, and the loader that makes those batches in worker processes."""

import atexit
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mgen.config import InputError

LOOK_AHEAD = 50  # batches' worth of shuffled rows among which similar lengths are put together
GROUP_ROWS = 256  # rows that make the crossing from a worker process worth it
SPARSE_BYTES = 1 << 16  # arrays from this size on cross without the value that most of them is


@dataclass(frozen=True)
class Batch:
    """One batch to be made: its row numbers and the seed of everything random in making it."""

    rows: tuple[int, ...]
    seed: int
    counts: bool = True  # False: fills up a process's share of a step, with weight zero


def batch_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of batch `index` of an epoch of a run with `seed`."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


def plan(
    lengths: np.ndarray,
    batch_size: int,
    batch_tokens: int,
    seed: tuple[int, ...] | None = None,
    block: int = 0,
) -> list[np.ndarray]:
    """Cut positions 0..n-1 into batches of similar length.

    `lengths` (n,) are tokens per row. A batch holds at most `batch_size` rows and, unless
    `batch_tokens` is 0, at most that many tokens after padding (a single longer row stands alone).
    With a `seed` rows are shuffled, similar lengths are put together among `LOOK_AHEAD` batches'
    worth of shuffled rows, and the batches are shuffled; without, longest first. With a `block` as
    many rows that lie together are read from near each other: blocks are shuffled, then the rows of
    `LOOK_AHEAD` batches' worth of blocks, and batches stay in that order.
    """
    if seed is None:
        return _cut(np.argsort(-lengths, kind="stable"), lengths, batch_size, batch_tokens)
    generator, window = np.random.default_rng(seed), LOOK_AHEAD * batch_size
    order = generator.permutation(-(-len(lengths) // (block or 1)))
    if block:
        order = (order[:, None] * block + np.arange(block)).ravel()
        order = order[order < len(lengths)]
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        near = order[start : start + window]
        if block:
            near = generator.permutation(near)
        near = near[np.argsort(-lengths[near], kind="stable")]
        cut = _cut(near, lengths, batch_size, batch_tokens)
        batches += [cut[i] for i in generator.permutation(len(cut))] if block else cut
    return batches if block else [batches[i] for i in generator.permutation(len(batches))]


def num_batches(lengths: np.ndarray, batch_size: int, batch_tokens: int) -> int:
    """How many batches any shuffled `plan` of these lengths has; 0 where that varies."""
    if batch_tokens and len(lengths) and int(lengths.max()) * batch_size > batch_tokens:
        return 0
    return -(-len(lengths) // batch_size)


def _cut(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, batch_tokens: int
) -> list[np.ndarray]:
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)  # `order` is by falling length
        size = min(batch_size, max(batch_tokens // longest, 1)) if batch_tokens else batch_size
        batches.append(order[start : start + size])
        start += size
    return batches


class _Groups(Dataset):
    """Groups of batches, by what is to be in each: picklable, without weights.

    Arrays, not tensors: those would cross to the main process by a file handle each, which costs
    more than the copy for all but huge batches.
    """

    def __init__(self, rows, collate: Callable[[list[dict]], dict]) -> None:
        self.rows, self.collate = rows, collate

    def __getitem__(self, group: Sequence[Batch]) -> list[dict[str, Any]] | InputError:
        try:
            taken = iter(self.rows.take([row for batch in group for row in batch.rows]))
            with nullcontext() if get_worker_info() else kept_random_state():
                return [self._made(batch, list(islice(taken, len(batch.rows)))) for batch in group]
        except InputError as error:  # raised where the user sees it, without a worker's traceback
            return error

    def _made(self, batch: Batch, rows: list[dict]) -> dict[str, Any]:
        seed_all(batch.seed)
        made = {**self.collate(rows), "row": np.array(batch.rows)}
        made = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in made.items()}
        return {k: _without_filler(v) for k, v in made.items()} if get_worker_info() else made


@dataclass(frozen=True)
class _Sparse:
    """An array that is one value but for some places; all of it by its bits."""

    filler: np.ndarray  # (1,)
    places: np.ndarray  # of the others, in the flattened array
    values: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype

    def whole(self) -> np.ndarray:
        bits = np.zeros(self.shape, dtype=self.filler.dtype)
        if self.filler.any():
            bits += self.filler
        bits.ravel()[self.places] = self.values
        return bits.view(self.dtype)


def _without_filler(value: Any) -> Any:
    """A large array of mostly zeros, or of mostly its first value, as `_Sparse`; all else as it is.

    Genes of a cell and masks are such: whole they took five times as long to cross as to make.
    """
    is_numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    if not is_numbers or value.nbytes < SPARSE_BYTES:
        return value
    bits = np.ascontiguousarray(value).view(f"u{value.itemsize}")
    for filler in (np.zeros(1, dtype=bits.dtype), bits.ravel()[:1].copy()):
        differs = bits != filler
        if np.count_nonzero(differs) * 4 < bits.size:
            places = np.flatnonzero(differs)
            values = bits.ravel()[places]
            return _Sparse(filler, places.astype(np.uint32), values, bits.shape, value.dtype)
    return value


def loader(
    rows,
    batches: Iterable[Batch],
    collate: Callable[[list[dict]], dict],
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[dict[str, Any]]:
    """Make `batches` in order, in `workers` processes (0: in this one), a few ahead of their use.

    The content of a batch depends on its rows and seed alone, not on the number of workers, and
    the global random state is left as it was.
    """
    groups = iter(
        DataLoader(
            _Groups(rows, collate),
            sampler=_grouped(batches, GROUP_ROWS if workers else 1),
            batch_size=None,
            num_workers=workers,
            collate_fn=_same,
            prefetch_factor=4 if workers else None,
            worker_init_fn=partial(_live_as_long_as_the_parent, os.getpid()),
            generator=torch.Generator(),  # or creating the iterator draws from the global state
        )
    )
    if workers:
        _RUNNING.add(groups)
    return (_tensors(batch, pin_memory) for group in map(_or_raise, groups) for batch in group)


def _grouped(batches: Iterable[Batch], least: int) -> Iterator[list[Batch]]:
    """Batches that cross from a worker together: as many as it takes to have `least` rows."""
    group, size = [], 0
    for batch in batches:
        group.append(batch)
        size += len(batch.rows)
        if size >= least:
            yield group
            group, size = [], 0
    if group:
        yield group


def _tensors(batch: dict[str, Any], pin_memory: bool) -> dict[str, Any]:
    found = {k: v.whole() if isinstance(v, _Sparse) else v for k, v in batch.items()}
    found = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in found.items()}
    if pin_memory:
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in found.items()}
    return found


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the states of torch's (on the CPU), numpy's and Python's generators back after."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_all(seed: int) -> None:
    """Seed the generators of torch on the CPU, numpy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _same(group: Any) -> Any:
    return group


def _or_raise(group: Any) -> Any:
    if isinstance(group, InputError):
        raise group
    return group


_RUNNING: weakref.WeakSet = weakref.WeakSet()  # loaders with worker processes


@atexit.register
def _stop_workers() -> None:
    # An error on its way out keeps its frames, and so the loader. Python would then end workers by
    # the signal that they pass over, and wait for them for ever.
    for groups in list(_RUNNING):
        groups._shutdown_workers()


def _live_as_long_as_the_parent(parent: int, worker: int) -> None:
    # Ctrl-C and schedulers signal the whole process group; the parent decides when workers end.
    # It may do so by SIGTERM, so only the first one is passed over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    # Killed, it says nothing, and a worker that writes into the pipe between them would never know.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
