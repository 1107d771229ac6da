"""Fusion: hidden states of two or three backbones to those of one, for any adapter.

A fusion is built from the widths of the backbones (first the main one) and called with one
(hidden (B, L_m, D_m), mask (B, L_m)) per modality; it gives (B, L, D) and a mask for the adapter,
and says the `width` D. A row that lacks a modality has no position there that counts: nothing of
that modality enters the row then, and other rows never notice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.adapters import ADAPTERS, ANY_WIDTH, Adapter
from mgen.adapters.pooling import cls_pool, mean_pool, positions
from mgen.adapters.transformer import check_heads
from mgen.config import Choice, InputError, Registry

States = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fusion(Choice):
    """A fusion by name, with its options."""

    def build(self, widths: Sequence[int]) -> nn.Module:
        """Build the module for backbones of these widths, the main one first."""
        return FUSIONS.construct(self, list(widths))

    def check(self, adapter: Adapter, starts: Sequence[bool]) -> None:
        """Raise InputError unless both can be built and the adapter makes one vector of a row.

        `starts`: whether rows of each modality, the main one first, begin with a special token.
        """
        adapter.check_pools(starts[0] or self.name == "concat")  # which has one position
        if self.name == "tokens" and "reads start" in ADAPTERS.facts[adapter.name]:
            raise InputError(
                f"--adapter {adapter.name} reads the first token, which knows the main modality "
                "alone. Set a pooling one such as mean_pool_mlp, or --fusion cross_attention"
            )
        if vars(self).get("pooling") == "cls" and not all(starts):
            raise InputError(
                "--fusion.pooling cls reads the start token of each modality, but one of these "
                "backbones has none. Set mean"
            )
        if adapter.per_position:
            raise InputError(
                f"--adapter {adapter.name} has one weight per position, but fused rows have no "
                "fixed number of them. Set a pooling one such as mean_pool_mlp"
            )
        if adapter.pretrained:
            raise InputError("--adapter.pretrained: no checkpoint has a head on fused states")
        with torch.device("meta"):
            self.build([ANY_WIDTH, 1])


FUSIONS = Registry(Fusion, "fusion")
fusion = FUSIONS.choose


class Fused(nn.Module):
    """A fusion and the adapter on it; equals the published MMFusionSeqAdapter.

    And MMFusionTokenAdapter, where a fusion leaves one position per row.
    """

    def __init__(self, fusion_module: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.fusion_module, self.adapter = fusion_module, adapter

    def forward(self, states: States) -> Tensor:
        return self.adapter(*self.fusion_module(states))


class _Projected(nn.Module):
    """Linear layers `project`, `project_1`, `project_2`, one per modality, to one size."""

    def __init__(self, widths: list[int], size: int) -> None:
        if size < 1:
            raise InputError(f"--fusion.project-size {size}: expected 1 or more")
        super().__init__()
        self.names = ["project", "project_1", "project_2"][: len(widths)]
        for name, width in zip(self.names, widths, strict=True):
            self.add_module(name, nn.Linear(width, size))

    def projected(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        layers = [self.get_submodule(name) for name in self.names]
        return [
            layer(given.to(layer.weight.dtype)) for layer, given in zip(layers, inputs, strict=True)
        ]


@FUSIONS.register("concat")
class Concat(_Projected):
    """Each modality pooled and projected, then side by side: one position of k * project_size.

    Equals the published ConcatFusion. The part of a modality that a row lacks is zeros.

    Args:
        project_size: width that each modality is brought to
        pooling: mean over the tokens, or the first one
    """

    def __init__(
        self,
        widths: list[int],
        *,
        project_size: int = 512,
        pooling: Literal["mean", "cls"] = "mean",
    ) -> None:
        super().__init__(widths, project_size)
        self.pool = mean_pool if pooling == "mean" else cls_pool
        self.width = project_size * len(widths)

    def forward(self, states: States) -> tuple[Tensor, Tensor]:
        parts = self.projected([self.pool(hidden, mask) for hidden, mask in states])
        there = [mask.any(1, keepdim=True) for _, mask in states]
        parts = [part.masked_fill(~given, 0) for part, given in zip(parts, there, strict=True)]
        fused = torch.cat(parts, dim=-1).unsqueeze(1)
        return fused, fused.new_ones(fused.shape[:2])


@FUSIONS.register("tokens")
class Tokens(_Projected):
    """Tokens of all modalities, projected, one after the other. No published class.

    Each modality's own bias tells its tokens from the others'.

    Args:
        project_size: width that each modality is brought to
    """

    def __init__(self, widths: list[int], *, project_size: int = 512) -> None:
        super().__init__(widths, project_size)
        self.width = project_size

    def forward(self, states: States) -> tuple[Tensor, Tensor]:
        tokens = torch.cat(self.projected([hidden for hidden, _ in states]), dim=1)
        mask = torch.cat([mask for _, mask in states], dim=1)
        # Padding between modalities would move the seam under a filter: counted tokens come first.
        order = (~mask.bool()).int().argsort(dim=1, stable=True)
        return tokens.gather(1, order.unsqueeze(-1).expand_as(tokens)), mask.gather(1, order)


@FUSIONS.register("cross_attention")
class CrossAttention(nn.Module):
    """Tokens of the main modality attend to those of each other one in turn.

    Equals the published CrossAttentionFusion. A row that lacks another modality keeps its states as
    they are; one that lacks the main modality has a single position, of zeros, to attend from.

    Args:
        heads: attention heads, a divisor of the main backbone's width
    """

    def __init__(self, widths: list[int], *, heads: int = 16) -> None:
        check_heads(widths[0], heads, "fusion.heads")
        super().__init__()
        self.width = widths[0]
        self.names = [f"cross_attention_layer_0{i}" for i in range(1, len(widths))]
        for name, width in zip(self.names, widths[1:], strict=True):
            self.add_module(name, CrossAttentionLayer(self.width, width, heads))

    def forward(self, states: States) -> tuple[Tensor, Tensor]:
        (hidden, mask), *contexts = states
        counted = mask.bool()
        lacks = ~counted.any(1, keepdim=True)
        first = lacks & (torch.arange(mask.shape[1], device=mask.device) == 0)  # (B, L)
        hidden = hidden.masked_fill(lacks.unsqueeze(-1), 0)
        for name, (context, context_mask) in zip(self.names, contexts, strict=True):
            hidden = self.get_submodule(name)(hidden, context, context_mask)
        return hidden, counted | first


class CrossAttentionLayer(nn.Module):
    """Attention from hidden (B, L, D) to context (B, M, E), added to hidden."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key, self.value = (nn.Linear(context_width, width) for _ in range(2))
        self.dense = nn.Linear(width, width)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        dtype = self.query.weight.dtype
        hidden, context = hidden.to(dtype), context.to(dtype)
        query, key = self._split(self.query(hidden)), self._split(self.key(context))
        value = self._split(self.value(context))
        counted = positions(context, mask)  # (B, M, 1)
        there = counted.any(1, keepdim=True)
        attended = (counted | ~there).mT.unsqueeze(1)  # something, so that nothing is infinite
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        return hidden + self.dense(seen.transpose(1, 2).flatten(2)).masked_fill(~there, 0)

    def _split(self, states: Tensor) -> Tensor:  # (B, H, L, D / H)
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
