"""What a run will need, from a few of its own steps: memory by part, room for batches, time."""

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mgen import pieces
from mgen.engine import sharding
from mgen.engine.throughput import speed
from mgen.report import size

STEPS = 5  # measured, after a first one that is left out


class Needs(NamedTuple):
    """What a run will need: seconds of all its steps, bytes, and all that is known as a table."""

    seconds: float
    memory: float
    rows: list[dict[str, str]]


def estimate(fit) -> Needs:
    """What a run will need; makes steps of `fit`, a `Fit`.

    Sizes are those of one process. Activations are what autograd keeps for the backward pass of the
    largest batch seen; what operators need beside is on GPUs in the measured peak only.
    """
    device = fit.accelerator.device
    fit.task.initialise(fit.order.once)
    found = _measure(fit)
    rest = slice(len(found.seconds) > 1, None)  # the first step is slower
    parameters = [*fit.task.parameters()]
    trained = [p for p in parameters if p.requires_grad]
    states = [s for state in fit.optimiser.optimizer.state.values() for s in state.values()]
    sizes = {
        "weights": _size([*parameters, *fit.task.buffers()]),
        "gradients": _size(trained),
        "optimiser": _size([s for s in states if isinstance(s, Tensor)]),
    }
    fixed = sum(sizes.values())
    most, at_once, free = max(found.kept, found.peak - fixed), found.at_once, memory(device)
    fits = int(0.9 * (free - fixed) * at_once / most) if most else 0
    seconds = found.seconds[rest]
    step, per_epoch = statistics.median(seconds), fit.order.steps_of(1)
    rate = fit.world * sum(found.tokens[rest]) / sum(seconds)
    half = fit.train.mixed_precision != "no"
    fast = speed(sum(found.flops[rest]), sum(seconds), device, half)
    shown = ", ".join(f"{key} {value}" for key, value in fast.items() if key != "peak_memory_gb")
    count = sum(p.numel() for p in parameters)
    rows = [
        {"estimate": "parameters", "value": f"{count:,}, of which {_count(trained):,} train"},
        *({"estimate": part, "value": size(held)} for part, held in sizes.items()),
        {"estimate": "activations", "value": f"{size(most)} for a batch of {at_once:,} tokens"},
        {"estimate": "memory", "value": f"{size(fixed + most)} of {size(free)} there is"},
        {"estimate": "batch that fits", "value": f"{fits:,} tokens at once (--train.batch-tokens)"},
        {"estimate": "step", "value": f"{step:.3g} s, median of {len(seconds)}; {shown}"},
        {"estimate": "speed", "value": f"{rate:,.0f} tokens/s without padding"},
        {"estimate": "epoch", "value": f"{duration(step * per_epoch)}, {per_epoch:,} steps"},
        {"estimate": "run", "value": f"{duration(step * fit.total)}, {fit.total:,} steps"},
    ]  # fmt: skip
    return Needs(step * fit.total, fixed + most, rows)


@dataclass
class Measured:
    """What steps took: seconds, tokens and FLOPs of each."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    kept: int = 0  # bytes that autograd keeps of the largest batch
    at_once: int = 1  # tokens of it
    peak: int = 0  # bytes of a GPU


def _measure(fit) -> Measured:
    device, found, stream = fit.accelerator.device, Measured(), fit.stream()
    fit.task.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    while len(found.seconds) <= STEPS and (planned := next(stream, None)):
        _, _, group, batches = planned
        fit.work.taken()
        start = time.perf_counter()
        row = fit.step(group, batches)  # ends by reading its loss: the device is done
        if row is None:
            stream = fit.stream()
            continue
        fit.state.step += 1
        found.seconds.append(time.perf_counter() - start)
        found.flops.append(fit.work.taken())
        masks = [int(b["attention_mask"].sum()) for b in batches if "attention_mask" in b]
        found.tokens.append(sum(masks))
        largest = masks.index(max(masks)) if masks else 0
        # A pass needs all processes, whichever has the largest batch.
        is_larger = not found.kept or masks[largest] > found.at_once
        if is_larger or fit.world > 1:
            here = Kept(fit.task)
            with here:
                fit.forward(group[largest], batches[largest])
            if fit.sharded:
                sharding.settle(fit.task)
            if is_larger:
                found.kept, found.at_once = here.size, max(masks, default=1)
    if device.type == "cuda":
        found.peak = torch.cuda.max_memory_allocated(device)
    return found


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the memory of what autograd keeps meanwhile: `size` in bytes, weights left out."""

    def __init__(self, task: nn.Module) -> None:
        every = map(pieces.own, [*task.parameters(), *task.buffers()])
        own = {tensor.untyped_storage().data_ptr() for tensor in every}
        seen: set[int] = set()
        self.size = 0

        def pack(tensor: Tensor) -> Tensor:
            base = tensor if tensor._base is None else tensor._base
            if isinstance(base, nn.Parameter):  # put together from pieces for this pass
                return tensor
            storage = tensor.untyped_storage()
            if (place := storage.data_ptr()) not in own and place not in seen:
                seen.add(place)
                self.size += storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)


def memory(device: torch.device) -> int:
    """Bytes that the device has; of a CPU those that are available within the container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = []
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limits += [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.strip().isdigit()]
    return min(limits) if limits else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _size(tensors: list[Any]) -> int:
    return sum(pieces.own(t).numel() * t.element_size() for t in tensors)


def _count(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: 3.2 min."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{minutes:.3g} min" if minutes >= 1 else f"{seconds:.3g} s"
