"""Weights in pieces: each process holds a part of every tensor (FSDP2, torch's `fully_shard`).

The units that are put together for their turn and taken apart again are the blocks of each
backbone; what lies outside them is one more (Zhao et al. 2023, arXiv:2304.11277). Tensors are cut
along their first axis as `torch.chunk` cuts them. Accelerate's launcher says how; the cutting is
done here, so that it is the same on GPUs and, for tests, on CPUs.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mgen.config import InputError
from mgen.engine.processes import Interrupted

CONFIG = "recipes/configs/accelerate/gpu8_fsdp2.yaml"


def check(accelerator) -> None:
    """Raise InputError if the launcher asks for pieces that this run would not get."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if not is_launched(accelerator):
        raise InputError(
            f"the launcher asks for FSDP, but with {accelerator.num_processes} process(es) on "
            f"device '{accelerator.device.type}' Accelerate would not shard: each would train a "
            f"whole copy of the model. FSDP needs GPUs and a launch like {CONFIG}; drop use_fsdp "
            "or fsdp_config for whole copies"
        )
    plugin = accelerator.state.fsdp_plugin
    wrong = {
        "fsdp_version: 2": plugin.fsdp_version != 2,
        # Processes but the first would get no weights from transformers; each reads its own here.
        "fsdp_cpu_ram_efficient_loading: false": plugin.cpu_ram_efficient_loading,
        # Gradients would lie on another device than the counts that they are divided by.
        "fsdp_offload_params: false": os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true",
        # This would recompute whole classes of modules again inside --backbone's recomputation.
        "fsdp_activation_checkpointing: false (there is --backbone.gradient-checkpointing)": (
            plugin.activation_checkpointing
        ),
    }
    if asked := [setting for setting, is_wrong in wrong.items() if is_wrong]:
        raise InputError(f"the launcher's fsdp_config: set {asked[0]}. {CONFIG} has all of them")
    if accelerator.mixed_precision == "fp16":
        raise InputError("--train.precision fp16: not for a sharded model; set bf16 or no")


def is_launched(accelerator) -> bool:
    """Whether the launcher asks for pieces."""
    return accelerator.distributed_type.value == "FSDP"


def shard_as_launched(task: nn.Module, accelerator) -> None:
    """Shard a task if the launcher asks for it. Raises InputError where that cannot be."""
    if is_launched(accelerator):
        plugin = accelerator.state.fsdp_plugin
        shard(task, None, accelerator.mixed_precision, plugin.reshard_after_forward)


def units(task: nn.Module) -> list[nn.Module]:
    """The outermost blocks of each backbone, in the order of the network."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for backbone in task.backbones.values():
        for module in backbone.modules():
            if isinstance(module, backbone.blocks) and module not in inside:
                found.append(module)
                inside.update(module.modules())
    return found


def shard(task: nn.Module, mesh=None, precision: str = "no", reshard: bool = True) -> None:
    """Replace every parameter by this process's piece of it.

    To be done before anything is keyed by parameters. `mesh`: one axis of processes, all of them by
    default. With `precision` "bf16" weights travel in that format; their gradients are summed in
    float32, and modules that say `full_precision` keep theirs. Without `reshard` blocks stay whole
    from the forward to the backward pass. Raises InputError for a task that cannot be sharded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if problem := obstacle(task):
        raise InputError(f"a sharded model (FSDP): {problem}")
    is_half = precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_half else None,
        reduce_dtype=torch.float32 if is_half else None,
        cast_forward_inputs=False,  # autocast does that
    )
    blocks = units(task)
    for module in task.modules():
        if getattr(module, "full_precision", False) and next(module.parameters(), None) is not None:
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(task, mesh=mesh, mp_policy=policy)
    # A parameter that one process's rows did not need has a gradient in the others.
    task.set_reduce_scatter_unused_params(True)


def obstacle(task: nn.Module) -> str:
    """Why a task cannot be sharded, or ""."""
    if any(tokenizer.truncate == "window" for tokenizer in task.tokenizers.values()):
        return (
            "--backbone.truncate window runs the network as often as a batch needs windows, and "
            "processes would wait for each other; set error, right or left"
        )
    if task.has_start:
        return "this recipe starts from all training rows at once; drop FSDP"
    formats = set()
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                return "weights rounded by --backbone.quantise cannot be cut; drop that flag"
            if not parameter.ndim:
                return f"parameter '{name}' of {type(module).__name__} is a single number"
            if parameter.requires_grad and not getattr(module, "full_precision", False):
                formats.add(str(parameter.dtype).removeprefix("torch."))
    if len(formats) > 1:
        return (
            f"weights that train are in {' and '.join(sorted(formats))}; leave out "
            "--backbone.dtype, and set --train.precision bf16 for speed"
        )
    return ""


def is_sharded(model) -> bool:
    """Whether `shard` was here."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def check_together(check: Callable[[], None]) -> None:
    """`check`, whose Interrupted in one process is raised in all, at the same place."""
    from accelerate.utils import gather_object

    stop = None
    try:
        check()
    except Interrupted as error:
        stop = error
    if found := [error for error in gather_object([stop]) if error]:
        raise found[0]


def settle(model: nn.Module) -> None:
    """Take apart what a forward pass without a backward one left whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def writers() -> dict[str, Any]:
    """What `checkpoint.save` needs to know of the processes that hold pieces."""
    from accelerate.utils import gather_object

    return {
        "rank": torch.distributed.get_rank(),
        "gather": lambda own: gather_object([own]),
    }
