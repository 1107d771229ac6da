"""Convolutional adapters. B batch, L tokens, D width, C channels, K outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import check_options
from mgen.adapters.pooling import max_pool, mean_pool, positions
from mgen.config import InputError


@ADAPTERS.register("conv")
class Conv(nn.Module):
    """Small 1-D CNN over the tokens, then a linear layer on its maximum and mean. Not published.

    Masked positions are zeroed before every convolution: they look like the zeros beyond the ends
    of a sequence, so padding never changes the outputs. hidden (B, L, D) -> (B, K).

    Args:
        channels: width of each convolution.
        kernel_size: tokens under one filter, odd.
        layers: convolutions, each followed by GELU; the second and later ones are residual.
        dropout: probability of dropping a pooled value.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        channels: int = 64,
        kernel_size: int = 9,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        check_options(dropout, channels)
        if kernel_size < 1 or kernel_size % 2 == 0 or layers < 1:
            raise InputError(
                f"conv needs an odd --adapter.kernel-size and at least one of --adapter.layers, "
                f"found {kernel_size} and {layers}."
            )
        super().__init__()
        widths = [width] + [channels] * layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, padding=kernel_size // 2)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * channels, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        masked = ~positions(hidden, mask).mT  # (B, 1, L)
        hidden = hidden.mT.to(self.linear.weight.dtype)  # (B, D, L)
        for index, convolution in enumerate(self.convolutions):
            signal = F.gelu(convolution(hidden.masked_fill(masked, 0)))  # (B, C, L)
            hidden = hidden + signal if index else signal
        pooled = torch.cat([max_pool(hidden.mT, mask), mean_pool(hidden.mT, mask)], dim=-1)
        return self.linear(self.dropout(pooled.to(self.linear.weight.dtype)))


@ADAPTERS.register("token_cnn", "per token")
class TokenCNN(nn.Module):
    """Residual 1-D CNN with outputs for each token: (B, L, D) -> (B, L, K). Not published.

    A convolution to C channels, then `layers` residual ones of layer norm, GELU and a convolution
    whose dilation doubles from layer to layer up to `dilation`, then layer norm and a linear layer.
    Positions that do not count are zeros to every convolution: padding changes no output.

    Args:
        channels: width of each convolution
        kernel_size: tokens under one filter, odd
        layers: residual convolutions
        dilation: largest distance between neighbours under a filter; 1: none is left out
        dropout: probability of dropping a channel's value, before each convolution
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        channels: int = 64,
        kernel_size: int = 7,
        layers: int = 4,
        dilation: int = 4,
        dropout: float = 0.1,
    ) -> None:
        check_options(dropout, channels, dilation)
        if kernel_size < 1 or kernel_size % 2 == 0 or layers < 0:
            raise InputError(
                f"token_cnn needs an odd --adapter.kernel-size and 0 or more --adapter.layers, "
                f"found {kernel_size} and {layers}."
            )
        super().__init__()
        self.first = nn.Conv1d(width, channels, kernel_size, padding=kernel_size // 2)
        steps = [min(2**i, dilation) for i in range(layers)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(
                channels, channels, kernel_size, padding=kernel_size // 2 * step, dilation=step
            )
            for step in steps
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers + 1))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        counted = positions(hidden, mask)  # (B, L, 1)
        hidden = hidden.to(self.linear.weight.dtype).masked_fill(~counted, 0)
        hidden = self.first(hidden.mT).mT  # (B, L, C)
        for norm, convolution in zip(self.norms, self.convolutions, strict=False):
            signal = self.dropout(F.gelu(norm(hidden))).masked_fill(~counted, 0)
            hidden = hidden + convolution(signal.mT).mT
        return self.linear(self.dropout(F.gelu(self.norms[-1](hidden))))
