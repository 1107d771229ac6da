"""LoRA: small matrices that train beside a network's own, which stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mgen.config import InputError, nearest

if TYPE_CHECKING:
    from mgen.backbones import Backbone
    from mgen.backbones.sequence import SequenceBackbone

ALL = "all-linear"


def adapt(network: SequenceBackbone, choice: Backbone) -> None:
    """Put LoRA matrices (Hu et al. 2021, arXiv:2106.09685) beside the targets; only they train.

    rsLoRA divides by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732), DoRA trains the
    length of each row apart from its direction (Liu et al. 2024, arXiv:2402.09353). Raises
    InputError for a target that no layer is called.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # Heads that lie within the encoder, such as that of contacts, give no hidden state.
    heads = {part for head in network.heads for part in head.modules()}
    parts = [(n, m) for n, m in network.encoder.named_modules() if m not in heads]
    layers = {name for name, module in parts if _is_linear(module)}
    last = sorted({name.rpartition(".")[2] for name in layers})
    if not layers:
        raise InputError(f"{choice.name} has no weights for LoRA; drop --backbone.lora-rank")
    # A family's own choice names layers that some of its models lack.
    targets = choice.lora_targets or [t for t in network.lora_targets if t in (ALL, *last)]
    for target in targets:
        if target != ALL and not any(f".{name}".endswith(f".{target}") for name in layers):
            raise InputError(
                f"--backbone.lora-targets: no layer of {choice.name} is called '{target}'."
                f"{nearest(target, last)} Layers are {', '.join(last)}; or {ALL}."
            )
    config = LoraConfig(
        r=choice.lora_rank,
        lora_alpha=choice.lora_alpha,
        lora_dropout=choice.lora_dropout,
        use_rslora=choice.lora_rslora,
        use_dora=choice.lora_dora,
        target_modules=last if ALL in targets else list(targets),
    )
    inject_adapter_in_model(config, network.encoder, "default")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:  # trained in full precision beside weights of any dtype
            parameter.data = parameter.data.float()


def merge(network: SequenceBackbone) -> None:
    """Add the LoRA matrices into the weights they sit beside and take them out.

    Raises InputError for weights in 4 or 8 bits, which the sum does not fit into.
    """
    if "peft_config" not in vars(network.encoder):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in [*network.encoder.named_modules()]:
        if isinstance(module, LoraLayer):
            if not module.get_base_layer().weight.is_floating_point():
                raise InputError(
                    "LoRA cannot be merged into weights rounded by --backbone.quantise; keep the "
                    "matrices apart (mgen export --bundle)"
                )
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(network.encoder.get_submodule(parent), last, module.get_base_layer())
    del network.encoder.peft_config


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's
