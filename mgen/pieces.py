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


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """What this process would hold of a whole tensor that lay as `like` does."""
    if not is_piece(like) or tensor.shape != like.shape:
        return tensor
    size = -(-len(tensor) // like.device_mesh.size())
    start = like.device_mesh.get_local_rank() * size
    return tensor[start : start + size]


def place(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, and of one in pieces only this process's piece."""
    if not is_piece(like) or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor

    local = cut(tensor, like).to(like.device, copy=True)  # lets go of the whole
    mesh, shape, stride = like.device_mesh, like.shape, like.stride()
    return DTensor.from_local(local, mesh, like.placements, shape=shape, stride=stride)
