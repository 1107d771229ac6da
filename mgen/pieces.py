"""Tensors of which each process holds a piece: those of a sharded model (torch's DTensor).

They are cut along their first axis, as `torch.chunk` cuts.
"""

import torch
from torch import Tensor


def is_piece(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of a tensor."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one in pieces every process must ask for it at the same time."""
    return tensor.full_tensor() if is_piece(tensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_piece(tensor) else tensor


def place(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and of one in pieces only this process's piece."""
    if not is_piece(like) or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor

    mesh, size = like.device_mesh, -(-len(tensor) // like.device_mesh.size())
    start = mesh.get_local_rank() * size
    local = tensor[start : start + size].to(like.device, copy=True)  # lets go of the whole
    return DTensor.from_local(
        local, mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )
