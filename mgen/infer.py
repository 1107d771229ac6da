"""One pass over rows without training: metrics, predictions or both; and what training shares."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.config import InputError
from mgen.data.batches import Batch, batch_seed, loader, plan
from mgen.engine import sharding
from mgen.engine.memory import free, is_full, on_device, parts_of
from mgen.engine.processes import together
from mgen.metrics import results
from mgen.predictions import BLOCK_TOKENS, Writer, blocks
from mgen.report import progress, warn
from mgen.task import Task

WORTH_WORKERS = 32  # fewer batches are made before worker processes have started and stopped


def summed(loss: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of the losses and their number, or with weights weighted sum and sum of weights."""
    if isinstance(loss, tuple):
        losses, weights = (part.float() for part in loss)  # a sum in half precision is coarse
        return (losses * weights).sum(), weights.sum()
    return loss.float().sum(), torch.tensor(float(loss.numel()), device=loss.device)


def nothing() -> None: ...


def infer(
    task: Task,
    rows,
    split: str,
    lengths: np.ndarray,
    train,
    accelerator,
    *,
    metrics: dict[str, Any] | None = None,
    writer: Writer | None = None,
    columns: tuple[str, ...] = (),
    block_tokens: int = BLOCK_TOKENS,
    check: Callable[[], None] = nothing,
) -> tuple[dict[str, float], list[Tensor]]:
    """One pass over the rows of a split: metrics over each row once, predictions to `writer`.

    With `metrics` the labels are read; returns their values after the mean loss, and what they
    compared in row order: [predictions, labels, row numbers], one entry of each per thing that is
    scored. `check` is called before each batch: what it
    raises in one process is raised in all. `train` holds the sizes of batches; `block_tokens` are
    the tokens of a block of the prediction file.
    """
    indices = rows.splits[split]
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    chunks = blocks(lengths[indices], block_tokens) if writer else [np.arange(len(indices))]
    todo: list[tuple[int, Batch, bool]] = []  # block, batch, last of its block
    for block, chunk in enumerate(chunks):
        if writer and (block % world != rank or writer.has(block)):
            continue
        cut = plan(lengths[indices[chunk]], train.batch_size, train.batch_tokens)
        ours = [*enumerate(cut)] if writer else [*enumerate(cut)][rank::world]
        for i, part in ours:
            numbers = tuple(map(int, indices[chunk[part]]))
            seed = batch_seed(train.seed, block, i)  # whatever the number of processes
            todo.append((block, Batch(numbers, seed), i == len(cut) - 1))
    total, weight, pieces, scores = 0.0, 0.0, [], []
    is_sharded = sharding.is_sharded(task)
    if is_sharded:  # a pass needs all processes: those with fewer batches fill up with a row
        from accelerate.utils import gather_object

        filler = Batch((int(indices[0]),), train.seed, counts=False)
        todo += [(-1, filler, False)] * (max(gather_object([len(todo)])) - len(todo))
    else:
        task.to(device)  # not pieces, which lie there and may be in use
    task.eval()
    workers = train.num_workers if len(todo) >= WORTH_WORKERS else 0

    def run(batch: dict[str, Any]) -> None:
        """Add what one batch gives. Nothing is added if memory runs out."""
        nonlocal total, weight
        with accelerator.autocast():
            outputs = task.averaged(batch)
            part, count = summed(task.loss(outputs, batch)) if metrics else (None, None)
        made = {"row": batch["row"], **task.predictions(outputs, batch)} if writer else {}
        if metrics:
            *compared, owner = (*task.scores(outputs, batch), None)[:3]
            numbers = batch["row"] if owner is None else batch["row"][owner]
            scores.append([numbers.cpu(), *(tensor.float().cpu() for tensor in compared)])
            total, weight = total + part.item(), weight + count.item()
        if writer:
            pieces.append(made)

    def load(batches: list[Batch], workers: int = 0) -> Iterator[dict[str, Any]]:
        made = loader(rows, batches, task.collator(), workers, device.type == "cuda")
        return on_device(made, device, ahead=workers > 0)

    room = math.inf  # padded tokens at once; what had more did not fit into memory

    def in_parts(planned: Batch, batch: dict[str, Any] | None = None) -> None:
        """`run` of a batch, or of its halves where memory runs out or has done so before."""
        nonlocal room
        count = len(planned.rows)
        size = count * int(lengths[list(planned.rows)].max())
        if size <= room or count == 1:
            try:
                return run(batch or next(load([planned])))
            except (RuntimeError, MemoryError) as error:
                if count == 1 or not is_full(error):
                    raise
            room = size - 1
            free()
            warn(f"out of memory: batches of {size:,} tokens or more are computed in parts")
        for part in parts_of(planned, 2):
            in_parts(part)
        return None

    made = load([batch for _, batch, _ in todo], workers)
    # What is gathered in inference mode could not be trained afterwards.
    without_gradients = torch.no_grad() if is_sharded else torch.inference_mode()
    # One that leaves a pass cannot meet the others after it: the launcher ends them.
    ends = nullcontext() if is_sharded else together()
    with without_gradients, progress(split, len(todo)) as bar, ends:
        for done, ((block, planned, last), batch) in enumerate(zip(todo, made, strict=True)):
            sharding.check_together(check) if is_sharded else check()
            if not planned.counts:
                with accelerator.autocast():
                    task.averaged(batch)
            elif is_sharded:  # the others would not make the passes of a batch in parts
                run(batch)
            else:
                in_parts(planned, batch)
            if writer and last:
                writer.write(block, in_order(pieces, rows, columns))
                pieces = []
            bar(done + 1)
    if is_sharded:
        sharding.settle(task)
    if not metrics:
        return {}, []
    sums = torch.tensor([total, weight], dtype=torch.float64)
    if world > 1:
        from accelerate.utils import gather_object

        scores, sums = gather_object(scores), torch.stack(gather_object([sums])).sum(0)
    numbers, *compared = (torch.cat(column) for column in zip(*scores, strict=True))
    order = torch.argsort(numbers, stable=True)
    compared = [column[order] for column in compared]
    for metric in metrics.values():
        metric.update(*compared)
    return {"loss": (sums[0] / sums[1]).item(), **results(metrics)}, [*compared, numbers[order]]


def in_order(pieces: list[dict[str, Any]], rows, columns: tuple[str, ...]) -> dict[str, Any]:
    """One block's columns in input order, the input's own `columns` after the row number."""
    numbers = torch.cat([piece["row"] for piece in pieces]).cpu()
    order = torch.argsort(numbers)
    joined: dict[str, Any] = {"row": numbers[order]}
    if clash := {*columns} & {*pieces[0]}:
        raise InputError(
            f"--columns {min(clash)}: the prediction file has a column of that name; rename the "
            "table's"
        )
    if columns:
        taken = rows.take(numbers[order].tolist())
        joined |= {name: [row[name] for row in taken] for name in columns}
    for name in pieces[0]:
        parts = [piece[name] for piece in pieces]
        if name != "row" and isinstance(parts[0], Tensor):
            joined[name] = torch.cat([part.cpu() for part in parts])[order]
        elif name != "row":
            flat = [value for part in parts for value in part]
            joined[name] = [flat[i] for i in order.tolist()]
    return joined
