"""How fast a run is: model FLOPs of what was really computed, share of the device's peak, memory.

B sequences, L tokens of the longest.
"""

import resource
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Dense bf16 TFLOP/s by the data sheets of NVIDIA; the first name that is part of the device's.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
}


class Work:
    """Counts FLOPs of the backbones of a task, as they are called.

    A matrix of n entries takes 2 n FLOPs for a token; attention 4 D FLOPs in a layer for each pair
    of tokens of one row, so that a packed batch counts the squares of its lengths and padding
    counts nothing. A backward pass takes as much for the gradients of activations wherever
    something trains, and of each matrix that trains. Recomputation, embeddings, norms and heads
    are left out (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
    """

    def __init__(self, task: nn.Module) -> None:
        self.total: Tensor | float = 0.0
        for backbone in task.backbones.values():
            see = partial(self._see, backbone)
            backbone.encoder.register_forward_pre_hook(see, with_kwargs=True)

    def _see(self, backbone: nn.Module, _: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        ids = named.get("input_ids", given[0] if given else None)
        mask = named.get("attention_mask", given[1] if len(given) > 1 else None)
        lengths = (torch.ones_like(ids) if mask is None else mask).sum(1).double()  # (B,)
        forward, backward = flops_per_token(backbone)
        pairs = 4.0 * backbone.width * backbone.num_layers * (3 if backward else 1)
        self.total = self.total + lengths.sum() * (forward + backward) + pairs * (lengths**2).sum()

    def taken(self) -> float:
        """FLOPs of this process since the last call."""
        total, self.total = float(self.total), 0.0
        return total


def flops_per_token(backbone: nn.Module) -> tuple[float, float]:
    """Of the matrices of a backbone in the forward pass, and in the backward pass of training."""
    forward = weights = 0.0
    for size, share, trains in backbone.matrices():
        forward += 2 * size * share
        weights += 2 * size * share * trains
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in backbone.parameters())
    return forward, (forward + weights) * learns


def speed(flops: float, seconds: float, device: torch.device, half: bool) -> dict[str, float]:
    """TFLOP/s per process, `mfu` (their share of the device's peak, in half precision only), GB."""
    achieved = flops / max(seconds, 1e-9) / 1e12
    found = {"tflops": round(achieved, 4)}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
        if peak and half:
            found["mfu"] = round(achieved / peak, 4)
    return found | {"peak_memory_gb": peak_memory(device)}


def peak_memory(device: torch.device) -> float:
    """The most GB so far: of a GPU what was allocated there, else of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
