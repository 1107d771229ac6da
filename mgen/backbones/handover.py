"""The backbone that a run has trained, to start another task from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mgen import checkpoint
from mgen.backbones.lora import merge
from mgen.config import InputError

if TYPE_CHECKING:
    from mgen.backbones import Backbone
    from mgen.backbones.sequence import SequenceBackbone


def trained_backbone(run: str, choice: Backbone, seed: int) -> SequenceBackbone:
    """`choice` with the weights of the run's best checkpoint, LoRA matrices merged.

    A language-model head that the run has trained comes along. `seed` is the run's: random weights
    it began with are drawn again. Raises InputError if the checkpoint is missing, damaged or was
    trained on other weights than those loaded now.
    """
    path = Path(run) / "checkpoints" / "best"
    if not path.is_dir():
        raise InputError(f"--backbone {run}: this run has no checkpoint yet")
    if re.search(r"(?m)^backbone1:", (Path(run) / "config.yaml").read_text()):
        raise InputError(
            f"--backbone {run}: a run with several backbones, which cannot be taken apart. Name "
            "one of the backbones that it began with"
        )
    tensors, saved = checkpoint.load(path)
    task = nn.Module()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task.backbone = choice.build()
    ours = {  # optimiser and random states are of no use here, nor is the head of that task
        group: {k: v for k, v in tensors.get(group, {}).items() if k.startswith(start)}
        for group, start in (("model", checkpoint.OURS), ("adapter_model", checkpoint.PEFT))
    }
    trained = checkpoint.join_lora(ours)
    # A recipe may freeze what its settings do not, and train the published head.
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(name in trained)
    checkpoint.restore(task, ours, saved, path)
    merge(task.backbone)
    return task.backbone.requires_grad_(True)
