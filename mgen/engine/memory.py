"""Batches that do not fit into memory: they are computed in parts; and batches on their way to it.

A part is some of a batch's rows. Since the loop divides by what counts over all parts, a step in
parts is the same step.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.data.batches import Batch


def is_full(error: Exception) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    is_named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_named or should_reduce_batch_size(error)


def free() -> None:
    """Give memory that nothing holds any more back to the device."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def parts_of(batch: Batch, parts: int) -> list[Batch]:
    """`batch` in as many parts; where it has fewer rows, the others count nothing."""
    if parts == 1:
        return [batch]
    cut = [tuple(map(int, rows)) for rows in np.array_split(np.array(batch.rows), parts)]
    seeds = np.random.SeedSequence(batch.seed).generate_state(parts)
    return [
        Batch(rows or batch.rows[:1], int(seed), batch.counts and bool(rows))
        for rows, seed in zip(cut, seeds, strict=True)
    ]


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def on_device(
    batches: Iterator[dict[str, Any]], device: torch.device, ahead: bool
) -> Iterator[dict[str, Any]]:
    """The batches on `device`. On a GPU with `ahead` the next one is copied during a step."""
    if device.type != "cuda" or not ahead:
        yield from (to_device(batch, device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)

    def fetch() -> tuple[dict[str, Any], torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return to_device(batch, device), stream.record_event()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch)
        while found := coming.result():
            batch, copied = found
            coming = pool.submit(fetch)
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(current)  # its memory is not reused before it was read
            yield batch
