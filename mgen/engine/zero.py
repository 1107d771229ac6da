"""Optimiser and gradients in pieces, weights whole: ZeRO stages 1 and 2 of DeepSpeed.

Rajbhandari et al. 2020, arXiv:1910.02054. DeepSpeed sums gradients into pieces and shares out the
steps; counts, clipping, mixed precision and checkpoints are those of every other run. Accelerate's
launcher says which stage; its own way to DeepSpeed would step within the backward pass, before
anything could be looked at, and cast the model.
"""

import importlib.util
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mgen.config import InputError
from mgen.engine.processes import asked

CONFIG = "recipes/configs/accelerate/gpu8_zero2.yaml"
NONE = ("", "none", "auto")
# What the launcher may set that is set elsewhere, or that this does not do.
ELSEWHERE = {
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": (NONE, "deepspeed_config_file: leave it out"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": (NONE, "offload_optimizer_device: none"),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": (NONE, "offload_param_device: none"),
    "ACCELERATE_GRADIENT_CLIPPING": (NONE, "gradient_clipping: leave it to --train.clip"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        (*NONE, "1"),
        "gradient_accumulation_steps: leave it to --train.accumulate",
    ),
}


def stage(environment: MutableMapping[str, str], task, train) -> int:
    """The stage that the launcher asks for, 0 without DeepSpeed; Accelerate hears nothing of it.

    Raises InputError if this run would get something else than what was asked for.
    """
    if environment.pop("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return 0
    precision = train.mixed_precision
    backbones = [getattr(task.cfg, name) for name in task.tokenizers]
    chosen = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    launched = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if chosen not in ("1", "2"):
        raise InputError(
            f"the launcher asks for DeepSpeed's ZeRO stage {chosen}; there are 1 and 2 ({CONFIG}). "
            "For weights in pieces as well, stage 3: recipes/configs/accelerate/gpu8_fsdp2.yaml"
        )
    for name, (allowed, advice) in ELSEWHERE.items():
        if (value := environment.get(name, "").lower()) not in allowed:
            raise InputError(f"the launcher's deepspeed_config asks for {value}: set {advice}")
    if launched not in ("no", precision):
        raise InputError(
            f"the launcher asks for mixed_precision {launched}, --train.precision for {precision}"
        )
    problems = {
        "one process has nothing to share: drop use_deepspeed": asked(environment) == 1,
        "--train.precision fp16 is not for it; set bf16 or no": precision == "fp16",
        "--train.unfreeze is not for it; use plain DDP": bool(train.unfreeze),
        "--train.clip-value is not for it; set --train.clip": train.clip_value > 0,
        "--backbone.lora-rank leaves little to share, and LoRA's gradients are looked at one by "
        "one; use plain DDP": any(backbone.lora_rank for backbone in backbones),
        "--backbone.dtype is not for it, it has one format; set --train.precision bf16 for speed": (
            any(backbone.dtype != "float32" and not backbone.frozen for backbone in backbones)
        ),
        "this recipe starts from all training rows at once": task.has_start,
        "it is not installed: pip install deepspeed": not importlib.util.find_spec("deepspeed"),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise InputError(f"the launcher asks for DeepSpeed: {problem}")
    return int(chosen)


class Zero:
    """An AdamW of which each process holds a piece; `optimizer` is that of the own piece.

    For the loop it is an optimiser as Accelerate prepares one, which also does the backward pass.
    """

    step_was_skipped = False

    def __init__(self, task: nn.Module, groups: list[dict[str, Any]], betas, stage: int) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.stage = stage
        self.order: list[int] = []  # in which parameters got their gradients
        for i, parameter in enumerate(p for group in groups for p in group["params"]):
            parameter.register_post_accumulate_grad_hook(lambda _, i=i: self.order.append(i))
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self.engine, self.shared, _, _ = deepspeed.initialize(
            model=task,
            optimizer=self.optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # batches are the loop's affair
                "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000},
                "timers": {"throughput": {"enabled": False}},  # they wait for the GPU
            },
        )
        self.param_groups = self.optimizer.param_groups

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradients of `loss`, meant over all processes; `is_last`: of this step."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss)

    def gradients(self) -> list[Tensor]:
        """This process's pieces, after the last backward pass of a step."""
        return [piece for group in self.shared.averaged_gradients.values() for piece in group]

    def is_mixed(self) -> bool:
        """Whether gradients of different parameters were summed in this step.

        In stage 2 DeepSpeed sums what comes first in each process, what comes next, and so on.
        """
        order = hash(tuple(self.order if self.stage == 2 else sorted(self.order)))
        found = torch.tensor([order, -order], device=self.gradients()[0].device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        self.order.clear()
        return bool(found[0] != -found[1])

    def clip(self, largest: float) -> Tensor:
        """Scale all gradients to a 2-norm of `largest` if theirs is larger; returns theirs."""
        mine = self.gradients()
        square = torch.nn.utils.get_total_norm(mine) ** 2
        distributed.all_reduce(square)
        norm = square.sqrt()
        for piece in mine:
            piece.mul_((largest / (norm + 1e-6)).clamp(max=1))  # as torch's clip_grad_norm_
        return norm

    def step(self) -> None:
        self.engine.step()

    def zero_grad(self) -> None:
        """Nothing: a step leaves no gradients."""

    def tensors(self) -> dict[str, Tensor]:
        """The state of all pieces, for `checkpoint.save`: <group>/<entry>, one axis."""
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh

        device = self.param_groups[0]["params"][0].device
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        return {
            f"{i}/{entry}": DTensor.from_local(value, mesh, [Shard(0)]) if value.ndim else value
            for i, group in enumerate(self.param_groups)
            for entry, value in self.optimizer.state[group["params"][0]].items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`, after the weights are restored."""
        self.shared.refresh_fp32_params()
        for key in tensors:
            group, _, entry = key.partition("/")
            own, value = self.param_groups[int(group)]["params"][0], tensors[key]
            if value.ndim:
                value = value.chunk(distributed.get_world_size())[distributed.get_rank()]
            self.optimizer.state[own][entry] = value.to(own.device, copy=True)
