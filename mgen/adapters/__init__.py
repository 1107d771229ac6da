"""Adapters: heads that turn hidden states into outputs. They know widths, never a backbone.

An adapter is an `nn.Module` built from (width, outputs, *, options) and called with hidden states
(B, L, D) and a mask (B, L), where nonzero marks the positions that count; None counts all of them.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from mgen.config import Choice, InputError, Registry

ANY_WIDTH = 720720  # that any number of heads up to 16 divides


@dataclass(frozen=True, kw_only=True)
class Adapter(Choice):
    """An adapter by name, with its options.

    Args:
        pretrained: take the weights of the head in the backbone's checkpoint
    """

    pretrained: bool = False

    def build(self, width: int, outputs: int, length: int = 0, conditions: int = 0) -> nn.Module:
        """Build the module.

        `length`, tokens per row, and `conditions`, numbers per row, are for adapters whose own
        option of that name is left at 0; the others ignore them.
        """
        known = {"length": length, "conditions": conditions}
        unset = {name: n for name, n in known.items() if vars(self).get(name) == 0}
        return ADAPTERS.construct(dataclasses.replace(self, **unset), width, outputs)

    @property
    def per_position(self) -> bool:
        """Whether it has one weight per position, and so needs rows of one length."""
        return "per position" in ADAPTERS.facts[self.name]

    @property
    def pools(self) -> str:
        """ "mean", "max" or "cls" if it reads nothing but this one vector of a row, else ""."""
        facts = ADAPTERS.facts[self.name]
        return next((fact.removeprefix("pools ") for fact in facts if "pools " in fact), "")

    def check_gives(self, level: str) -> None:
        """Raise InputError unless the adapter can be built and has outputs "per token", "per pair".

        `level` is one of these two.
        """
        if level not in ADAPTERS.facts[self.name]:
            known = ADAPTERS.facts.items()
            fitting = [
                n for n, facts in known if level in facts and "reads conditions" not in facts
            ]
            raise InputError(
                f"--adapter {self.name} has no outputs {level}, which this task needs. Set one of "
                f"{', '.join(fitting)}"
            )
        with torch.device("meta"):
            self.build(ANY_WIDTH, 1, 1)

    def check_pools(self, has_start: bool) -> None:
        """Raise InputError unless the adapter can be built and turns a row into one vector.

        `has_start`: rows begin with a special token, which adapters on the first position need.
        """
        facts = ADAPTERS.facts[self.name]
        if facts & {"per token", "per pair"}:
            raise InputError(
                f"--adapter {self.name} has outputs for each token, but this task has one per "
                "row. Set a pooling one such as mean_pool_linear or mean_pool_mlp"
            )
        if "reads start" in facts and not has_start:
            raise InputError(
                f"--adapter {self.name} reads the start token, but this backbone has none. Set "
                "mean_pool_linear, mean_pool_mlp or another backbone"
            )
        with torch.device("meta"):
            self.build(ANY_WIDTH, 1, 1)


ADAPTERS = Registry(Adapter, "adapter")
adapter = ADAPTERS.choose

# Importing a module registers its adapters, so it must follow the registry.
from mgen.adapters import (  # noqa: E402, F401
    conditional,
    conv,
    fusion,
    mlp,
    pairs,
    pooling,
    published,
    resnet,
    transformer,
)
