"""What makes a network fit: number formats, several devices, 4 and 8 bits, recomputation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from mgen.config import InputError

if TYPE_CHECKING:
    from mgen.backbones.sequence import SequenceBackbone


def cast(network: nn.Module, dtype: str) -> None:
    """Weights in `dtype`, except of modules that say `full_precision`."""
    wanted = getattr(torch, dtype)
    for module in network.modules():
        if not getattr(module, "full_precision", False):
            module._apply(lambda t: t.to(wanted) if t.is_floating_point() else t, recurse=False)


def empty(network: SequenceBackbone, device_map: str) -> None:
    """Give a network that was made without memory its memory, on one device or over all of them.

    Raises InputError where all devices together, the host's memory among them, are too small.
    """
    if not device_map or torch.get_default_device().type == "meta":
        network.to_empty(device=torch.get_default_device())
        return
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import set_module_tensor_to_device

    whole = [kind.__name__ for kind in network.blocks]
    devices = infer_auto_device_map(network, no_split_module_classes=whole)
    if "disk" in devices.values():
        raise InputError(
            "--backbone.device-map auto: the network does not fit into the memory of all devices. "
            "Set --backbone.dtype bfloat16 or --backbone.quantise 4bit, or use more devices"
        )
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        place = next(devices[part] for part in _paths(name) if part in devices)
        value = torch.empty_like(tensor, device=place)
        set_module_tensor_to_device(network, name, place, value)
    dispatch_model(network, devices, force_hooks=True)
    network.is_split = True


def _paths(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a` and the whole, ""."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def quantise(network: SequenceBackbone, bits: str) -> None:
    """Keep the linear layers of the blocks in 8 bits (Dettmers et al. 2022, arXiv:2208.07339) or 4.

    4 bits are NF4 (Dettmers et al. 2023, arXiv:2305.14314). On a CPU bitsandbytes packs the weights
    anew when they are first used, so that runs could not be resumed. Raises InputError without it.
    """
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise InputError(
            "--backbone.quantise needs bitsandbytes, which mgen does not install: "
            "pip install bitsandbytes"
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def rounded(linear: nn.Linear) -> nn.Module:
        sizes = (linear.in_features, linear.out_features, linear.bias is not None)
        with torch.device("meta"):
            if bits == "8bit":
                layer = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            else:
                compute = {"compute_dtype": torch.bfloat16, "quant_type": "nf4"}
                layer = bnb.nn.Linear4bit(*sizes, **compute)
        kind, facts = type(layer.weight), {"requires_grad": False}
        facts |= {"has_fp16_weights": False} if bits == "8bit" else {"quant_type": "nf4"}
        layer.weight, layer.bias = kind(linear.weight.data, **facts), linear.bias
        return layer.to(device)  # which rounds

    for block in [m for m in network.encoder.modules() if isinstance(m, network.blocks)]:
        for name, module in [*block.named_modules()]:
            if type(module) is nn.Linear:
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, rounded(module))


def recompute_blocks(network: SequenceBackbone) -> None:
    """Keep no activations inside blocks in training; the backward pass computes them anew.

    Chen et al. 2016, arXiv:1604.06174.
    """
    for block in network.encoder.modules():
        if isinstance(block, network.blocks):
            block.forward = partial(_recomputed, block.forward)


def compile_blocks(network: SequenceBackbone, compiler: str = "inductor") -> None:
    """Compile each block with torch.compile, once whatever the number of rows and tokens.

    Lengths are symbols in the compiled code. Past torch's limit of recompilations
    (`torch._dynamo.config.recompile_limit`) a block runs as it is, which torch says.
    """
    for block in network.encoder.modules():
        if isinstance(block, network.blocks):
            block.compile(backend=compiler, dynamic=True)


def _recomputed(forward, *inputs, **options):
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
