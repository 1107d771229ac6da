"""What trains: from which epoch on, at which learning rate and weight decay.

A schedule file maps epochs (from 0) to modules that train from then on; what it never names stays
as it is. It frees nothing that the settings freeze by themselves: the weights of a frozen backbone
or beside LoRA matrices, published heads that the task does not use. `train` is the loop's `Train`.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgen import checkpoint, pieces
from mgen.config import InputError
from mgen.engine.sharding import is_sharded
from mgen.report import console

Schedule = dict[int, list[str]]  # epoch to expressions over module paths


def lr_factor(step: int, total: int, train) -> float:
    """Learning rate at optimiser step `step` (from 0) of `total`, as a share of the base rate.

    Linear warm-up from 0 over W steps, then constant, or linear or half a cosine to `decay_to`,
    within `decay_steps` steps or at the end. Where the published schedules' cosine would rise again
    past the end this one stays.
    """
    warmup = train.warmup_steps or math.floor(train.warmup_ratio * total)
    if step < warmup:
        return step / warmup
    if train.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, train.decay_steps or total - warmup))
    left = 1.0 - done if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return train.decay_to + (1.0 - train.decay_to) * left


class Tuning:
    """The parameters that train in a run, and when and how each does.

    Attributes: `names`, all that ever train, in the model's order; `first`, the epoch from which on
    each does; `schedule`, empty without a file. Making one freezes what never trains.
    """

    def __init__(self, task: nn.Module, train) -> None:
        check(train)
        self.train, self.watch = train, LoraWatch()
        named = {p: name for name, p in task.named_parameters() if p.requires_grad}
        self.schedule = read(train.unfreeze) if train.unfreeze else {}
        self.first = dict.fromkeys(named, 0)
        if self.schedule:
            self.first = first_epochs(
                task, named, self.schedule, f"--train.unfreeze {train.unfreeze}"
            )
        self.names = {p: name for p, name in named.items() if p in self.first}
        for parameter in named:
            parameter.requires_grad_(parameter in self.names)
        self.rates = rates(task, self.names, train)
        self.waiting = sorted({*self.first.values()})  # epochs whose parameters do not train yet

    def start(self, epoch: float, is_new: bool = False) -> list[dict[str, Any]]:
        """Let everything train that does in `epoch`; `is_new`: no step of it has been made yet.

        Returns the optimiser's groups of what joins: one for each epoch, rate and weight decay.
        """
        joining = [e for e in self.waiting if e <= epoch]
        self.waiting = self.waiting[len(joining) :]
        groups: dict[tuple, dict[str, Any]] = {}
        for parameter, first in self.first.items():
            parameter.requires_grad_(first <= epoch)
            if first in joining:
                rate, decay = self.rates[parameter]
                group = {"params": [], "lr": rate, "rate": rate, "weight_decay": decay}
                groups.setdefault((first, rate, decay), group)["params"].append(parameter)
        if is_new and epoch in joining:
            self.watch.add({p: n for p, n in self.names.items() if self.first[p] == epoch})
        return [groups[key] for key in sorted(groups, key=lambda key: key[0])]

    def set_rates(self, optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
        """Set every group to `factor` of its rate; returns those of head and backbone to log."""
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        lr, backbone_lr = self.train.lr, self.train.backbone_lr
        own = {"backbone_lr": backbone_lr * factor} if backbone_lr not in (0, lr) else {}
        return {"lr": lr * factor, **own}

    @contextmanager
    def all_that_train(self) -> Iterator[None]:
        """For a while all that ever train count as trainable: what every checkpoint holds."""
        waiting = [p for p in self.names if not p.requires_grad]
        for parameter in waiting:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in waiting:
                parameter.requires_grad_(False)

    def begin(self, folder: Path, accelerator, steps_of: Callable[[int], int], total: int) -> None:
        """Copy the schedule file into the run directory `folder`.

        `steps_of(n)`: steps of the first n epochs, of `total`. Raises InputError if the run is too
        short for the schedule, began with another one, or cannot follow any.
        """
        if not self.schedule:
            return
        if (last := max(self.schedule)) and steps_of(last) >= total:
            raise _never(self.train, last)
        if (kind := accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise InputError(f"--train.unfreeze: a model sharded by {kind} cannot; use plain DDP")
        file, copy = self.train.unfreeze, folder / "unfreeze.yaml"
        if not copy.exists():
            if accelerator.is_main_process:
                checkpoint.write_text(copy, Path(file).read_text())
        elif read(copy) != self.schedule:
            raise InputError(
                f"--train.unfreeze {file}: has changed since this run began with {copy}. Runs are "
                "never mixed: restore the file, or choose another --name"
            )


def join(
    accelerator,
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None,
    groups: list[dict[str, Any]],
    betas: tuple[float, float],
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Give parameters that begin to train to the optimiser, made here if there is none.

    Returns model and optimiser as Accelerate prepares them.
    """
    if optimiser is None:
        fused = accelerator.device.type in ("cpu", "cuda")
        bare = torch.optim.AdamW(groups, betas=betas, fused=fused)
        if is_sharded(model):  # all that `prepare` would do for the model is done
            return model, accelerator.prepare_optimizer(bare)
        return accelerator.prepare(model, bare)
    for group in groups:
        optimiser.add_param_group(group)
    count = sum(p.numel() for group in groups for p in group["params"])
    console.print(f"{count:,} more parameters train from here on")
    return anew(accelerator, model, optimiser)


def anew(
    accelerator, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Model and optimiser with a new DDP around the model.

    One waits for gradients of the parameters that trained when it was made, and after a forward
    pass for those of that pass.
    """
    if accelerator.num_processes == 1 or is_sharded(model):
        return model, optimiser
    bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return accelerator.prepare(bare, optimiser.optimizer)


# --------------------------------------------------------------------------- rates


def check_rates(train) -> None:
    """Raise InputError for values out of range."""
    if not 0 < train.layer_decay <= 1:
        raise InputError(f"--train.layer-decay {train.layer_decay}: expected above 0, at most 1")
    if train.decay_to > 1:
        raise InputError(f"--train.decay-to {train.decay_to}: expected a share from 0 to 1")
    if -1 < (decay := train.backbone_weight_decay) < 0:
        raise InputError(f"--train.backbone-weight-decay {decay}: expected -1, or 0 or more")


def rates(
    task: nn.Module, names: dict[nn.Parameter, str], train
) -> dict[nn.Parameter, tuple[float, float]]:
    """Learning rate and weight decay of each parameter. Raises InputError for idle settings.

    A published head that the task trains counts as the head, wherever it lies.
    With layer-wise decay d a parameter of the backbone has d^(N + 1 - depth) of its rate: depth 0
    before the first of N blocks, 1 to N in them, N + 1 after them (Clark et al. 2020, ELECTRA,
    arXiv:2003.10555). LoRA matrices have the depth of the block they sit in.
    """
    backbones = task.backbones
    lent = {p for backbone in backbones.values() for p in _published_heads(backbone)}
    own = {p for p, name in names.items() if name.split(".")[0] in backbones and p not in lent}
    asked = [flag for flag, is_set in _backbone_flags(train) if is_set]
    if asked and not own:
        raise InputError(f"{asked[0]}: nothing of this backbone trains; drop that flag")
    share = dict.fromkeys(own, 1.0)
    if train.layer_decay < 1:
        for backbone in backbones.values():
            depth, blocks = depths(backbone)
            if not blocks:
                raise InputError("--train.layer-decay: this backbone has no blocks; drop that flag")
            share |= {p: train.layer_decay ** (blocks + 1 - n) for p, n in depth.items()}
    rate = train.backbone_lr or train.lr
    decay = train.weight_decay if train.backbone_weight_decay < 0 else train.backbone_weight_decay
    return {
        p: (rate * share[p], decay) if p in own else (train.lr, train.weight_decay) for p in names
    }


def depths(backbone: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """Depth of each parameter as `rates` counts it, and the number of blocks."""
    found: list[nn.Module] = []
    for module in backbone.encoder.modules():
        if isinstance(module, backbone.blocks) and not any(module in {*b.modules()} for b in found):
            found.append(module)
    inside = {p: i for i, block in enumerate(found, start=1) for p in block.parameters()}
    depth, reached = {}, 0
    for parameter in backbone.encoder.parameters():
        reached = len(found) + 1 if parameter in inside else reached
        depth[parameter] = inside.get(parameter, reached)
    return {p: depth.get(p, len(found) + 1) for p in backbone.parameters()}, len(found)


def _published_heads(backbone: nn.Module) -> set[nn.Parameter]:
    return {parameter for head in backbone.heads for parameter in head.parameters()}


def _backbone_flags(train) -> list[tuple[str, bool]]:
    return [
        ("--train.backbone-lr", train.backbone_lr > 0),
        ("--train.backbone-weight-decay", train.backbone_weight_decay >= 0),
        ("--train.layer-decay", train.layer_decay < 1),
    ]


# --------------------------------------------------------------------------- schedules


def check(train, frozen: bool = False) -> None:
    """Raise InputError for what is wrong before any weights are there.

    `frozen`: the backbone is.
    """
    for flag, is_set in _backbone_flags(train):
        if is_set and frozen:
            raise InputError(f"{flag} and --backbone.frozen contradict each other; drop one")
    last = max(read(train.unfreeze)) if train.unfreeze else 0
    if last >= train.epochs > 0 and not train.max_steps:  # else the loop counts its steps
        raise _never(train, last)


def _never(train, epoch: int) -> InputError:
    return InputError(
        f"--train.unfreeze {train.unfreeze}: epoch {epoch} (counted from 0) never comes, the run "
        "ends before. Train longer, or drop that epoch"
    )


def read(file: str | Path) -> Schedule:
    """The schedule in a YAML file. Raises InputError, also for an epoch that is there twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
                raise InputError(f"{where}: epoch {', '.join(twice)} is there more than once")
            return super().construct_mapping(node, deep)

    where, form = f"--train.unfreeze {file}", "expected lines such as '0: [head]'"
    try:
        schedule = yaml.load(Path(file).read_text(), Loader=Loader)
    except FileNotFoundError:
        raise InputError(
            f"{where}: no such file. A run keeps a copy of it as unfreeze.yaml in its directory"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{where}: cannot be read as YAML: {error}") from None
    if not isinstance(schedule, dict) or not schedule:
        raise InputError(f"{where}: {form}, found {schedule!r}")
    for epoch, expressions in schedule.items():
        if type(epoch) is not int or epoch < 0:
            raise InputError(f"{where}: epoch {epoch!r}: expected a whole number from 0 on")
        words = expressions if isinstance(expressions, list) else [None]
        if not words or not all(isinstance(word, str) and word for word in words):
            raise InputError(
                f"{where}: epoch {epoch}: expected a list of modules, found {expressions!r}"
            )
    if 0 not in schedule:
        raise InputError(f"{where}: nothing trains in epoch 0; {form}")
    return dict(sorted(schedule.items()))


def first_epochs(
    task: nn.Module, named: dict[nn.Parameter, str], schedule: Schedule, where: str
) -> dict[nn.Parameter, int]:
    """The epoch from which on each of the parameters `named` trains, without those that never do.

    An expression is a path of the task's modules or parameters, or its beginning, up to a dot; `*`
    stands for anything but a dot; `.*` at the end changes nothing. `adapter` means the head and
    `backbone.encoder` the backbone's encoder, as in published files. Raises InputError for one that
    matches nothing, or nothing that may train.
    """
    paths = _paths(task)
    first: dict[nn.Parameter, int] = {}
    for epoch, expressions in schedule.items():
        for expression in expressions:
            path = re.escape(expression.removesuffix(".*")).replace(r"\*", "[^.]*")
            pattern = re.compile(rf"{path}(\..+)?")
            hits = [p for p, name in named.items() if any(map(pattern.fullmatch, paths[name]))]
            if not hits:
                raise InputError(f"{where}: epoch {epoch}: {_why(expression, pattern, paths)}")
            for parameter in hits:
                first.setdefault(parameter, epoch)
    return {p: first[p] for p in named if p in first}


def _paths(task: nn.Module) -> dict[str, list[str]]:
    """Every module and parameter by name, and the paths that stand for it."""
    lent = {p for backbone in task.backbones.values() for p in _published_heads(backbone)}
    encoders = {backbone.encoder: f"{name}.encoder" for name, backbone in task.backbones.items()}
    inner = [(path, encoders[m]) for path, m in task.named_modules() if m in encoders]
    aliases = (("head", "adapter"), *inner)
    found = {}
    for name, it in [*task.named_modules(), *task.named_parameters()]:
        found[name] = [name, f"head.{name}"] if it in lent else [name]
        for path in [*found[name]]:
            for ours, theirs in aliases:
                if f"{path}.".startswith(f"{ours}."):
                    found[name].append(theirs + path.removeprefix(ours))
    return found


def _why(expression: str, pattern: re.Pattern, paths: dict[str, list[str]]) -> str:
    """Why an expression frees nothing."""
    every = {path for found in paths.values() for path in found if path}
    if found := sorted(path for path in every if pattern.fullmatch(path)):
        return (
            f"'{expression}' matches {found[0]}, but nothing there may train: it is frozen by "
            "the settings (--backbone.frozen, LoRA, an unused published head) or has no weights. "
            "Drop this expression"
        )
    near = difflib.get_close_matches(expression.removesuffix(".*"), sorted(every), n=3, cutoff=0.0)
    return (
        f"'{expression}' matches no module. Nearest: {', '.join(near)}. Expressions are paths: a "
        "dot is a dot, * stands for anything between two dots"
    )


# --------------------------------------------------------------------------- LoRA


class LoraWatch:
    """Sees that every LoRA matrix learns in the first steps after it joined.

    B starts at zero, and A has no gradient before B has moved, which a step of a warm-up's rate 0
    does not do. So a matrix must have a gradient in the first step, and one that is not zero in any
    step up to the first after B has moved. Nothing is looked at later, nor after a resume.
    """

    def __init__(self) -> None:
        self.idle: dict[nn.Parameter, str] = {}  # without a gradient so far
        self.looked = self.moved = False

    def add(self, names: dict[nn.Parameter, str]) -> None:
        """Watch the LoRA matrices among parameters that begin to train."""
        self.idle |= {p: name for p, name in names.items() if "lora_" in name}
        self.looked = self.moved = False

    def look(self, norm: Tensor) -> str:
        """Look at the gradients, of 2-norm `norm`, before a step; returns what is wrong."""
        if not self.idle or not torch.isfinite(norm):  # half precision skips that step
            return ""
        missing = [n for p, n in self.idle.items() if p.grad is None and not self.looked]
        has = [p.grad is not None and pieces.whole(p.grad).any() for p in self.idle]
        self.idle = {p: n for (p, n), any_ in zip(self.idle.items(), has, strict=True) if not any_}
        self.looked = True
        wrong = missing or (list(self.idle.values()) if self.moved else [])
        if self.moved:
            self.idle = {}
        if not wrong:
            return ""
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return (
            f"LoRA matrices without a gradient: {', '.join(wrong[:5])}{more}. They would never "
            "learn: the loss does not depend on these layers, or they are experts that no token of "
            "these steps reached. Choose others with --backbone.lora-targets, or larger batches"
        )
