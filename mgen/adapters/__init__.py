"""Adapters: heads that turn hidden states into outputs. They know widths, never a backbone.

An adapter is an `nn.Module` built from (width, outputs, *, options) and called with hidden states
(B, L, D) and a mask (B, L), where nonzero marks the positions that count; None counts all of them.
"""

import dataclasses
from dataclasses import dataclass

from torch import nn

from mgen.config import Choice, Registry


@dataclass(frozen=True, kw_only=True)
class Adapter(Choice):
    """An adapter by name, with its options."""

    def build(self, width: int, outputs: int, length: int = 0) -> nn.Module:
        """Build the module.

        `length`: tokens per row, for adapters with one weight per position whose own option
        `length` is left at 0; the others ignore it.
        """
        options = {field.name for field in dataclasses.fields(self)}
        sized = "length" in options and self.length == 0
        choice = dataclasses.replace(self, length=length) if sized else self
        return ADAPTERS.construct(choice, width, outputs)


ADAPTERS = Registry(Adapter, "adapter")
adapter = ADAPTERS.choose

# Importing a module registers its adapters, so it must follow the registry.
from mgen.adapters import conv, mlp, pooling  # noqa: E402, F401
