"""Residual networks over tokens and over pairs of them, with instance norm.

B rows, L tokens, D width, C channels, K outputs; S stands for L in one dimension, (L, L) in two.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import check_options
from mgen.adapters.pairs import pair_layer
from mgen.adapters.pooling import mean_pool, positions
from mgen.config import InputError


def instance_norm(signal: Tensor, kept: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each row to mean 0 and variance 1 over its positions that are `kept`.

    signal (B, C, *S), kept (B, 1, *S) bool. Ulyanov et al. 2016, arXiv:1607.08022.
    """
    axes, count = tuple(range(2, signal.dim())), kept.flatten(2).sum(-1).clamp(min=1)
    count = count.view(-1, 1, *(1 for _ in axes))
    mean = signal.masked_fill(~kept, 0).sum(axes, keepdim=True) / count
    centred = (signal - mean).masked_fill(~kept, 0)
    variance = centred.square().sum(axes, keepdim=True) / count
    return centred * (variance + eps).rsqrt()


class Residual(nn.Module):
    """Convolutions, each followed by instance norm and an activation, then the input added.

    Positions that are not kept are zeros to every convolution, as those beyond the ends are. Names
    of weights are those of the published sequence of layers, where each third is a convolution.
    """

    def __init__(self, *convolutions: nn.Module, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        named = {str(3 * i): convolution for i, convolution in enumerate(convolutions)}
        self.residual_block, self.activation = nn.ModuleDict(named), activation

    def forward(self, signal: Tensor, kept: Tensor) -> Tensor:
        inner = signal
        for convolution in self.residual_block.values():
            inner = convolution(inner.masked_fill(~kept, 0))
            inner = self.activation(instance_norm(inner, kept))
        return signal + inner


def _check(kernel_size: int, channels: int, blocks: int, dropout: float = 0.0) -> None:
    check_options(dropout, channels, blocks)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"--adapter.kernel-size {kernel_size}: expected an odd number")


@ADAPTERS.register("resnet")
class ResNet(nn.Module):
    """Residual 1-D convolutions over the tokens, then the mean and a linear layer.

    Equals the published ResNet1DAdapter where nothing is padded; padding never changes the outputs,
    unless `as_published`. There it enters the convolutions and their norms. (B, L, D) -> (B, K).

    Args:
        channels: width of the convolutions
        blocks: residual blocks of two convolutions
        kernel_size: tokens under one filter, odd
        dropout: probability of dropping a value of the mean
        as_published: padding enters everything but the mean
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        channels: int = 256,
        blocks: int = 9,
        kernel_size: int = 3,
        dropout: float = 0.2,
        as_published: bool = False,
    ) -> None:
        _check(kernel_size, channels, blocks, dropout)
        super().__init__()
        self.as_published = as_published
        sizes = (channels, channels, kernel_size)
        options = {"padding": kernel_size // 2, "bias": False}
        made = (
            Residual(nn.Conv1d(*sizes, **options), nn.Conv1d(*sizes, **options), activation=F.elu)
            for _ in range(blocks)
        )
        self.in_to_conv = nn.Linear(width, channels)
        self.resnet = nn.ModuleDict({"blocks": nn.ModuleList(made)})
        self.dropout = nn.Dropout(dropout)
        self.conv_to_output = nn.Linear(channels, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        kept = positions(hidden, None if self.as_published else mask).mT  # (B, 1, L)
        signal = self.in_to_conv(hidden.to(self.in_to_conv.weight.dtype)).mT  # (B, C, L)
        for block in self.resnet["blocks"]:
            signal = block(signal, kept)
        pooled = mean_pool(signal.mT, mask).to(self.conv_to_output.weight.dtype)
        return self.conv_to_output(self.dropout(pooled))


@ADAPTERS.register("pair_resnet", "per pair")
class PairResNet(nn.Module):
    """Residual 2-D convolutions over pairs of tokens: (B, L, D) -> (B, L, L, K), 0 for i = j.

    Equals the published ResNet2DAdapter on an outer concatenation. The map is made symmetric from
    its part above the diagonal. Padding never changes the outputs.

    Args:
        channels: width of the convolutions
        blocks: residual blocks of three convolutions, the middle one wider than one pair
        kernel_size: side of the filters, odd
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        channels: int = 64,
        blocks: int = 2,
        kernel_size: int = 3,
    ) -> None:
        _check(kernel_size, channels, blocks)
        super().__init__()
        wide = {"kernel_size": kernel_size, "padding": kernel_size // 2}
        made = (
            Residual(
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.Conv2d(channels, channels, bias=False, **wide),
                nn.Conv2d(channels, channels, 1, bias=False),
                activation=torch.relu,
            )
            for _ in range(blocks)
        )
        self.in_to_conv = nn.Linear(2 * width, channels)
        self.resnet = nn.ModuleDict({"res2D_blocks": nn.ModuleList(made)})
        self.conv_to_output = nn.Conv2d(channels, outputs, **wide)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        weight, bias = self.in_to_conv.weight, self.in_to_conv.bias
        kept = positions(hidden, mask)
        return self.maps(pair_layer(hidden.to(weight.dtype), weight, bias), kept)

    def maps(self, pairs: Tensor, kept: Tensor) -> Tensor:
        """(B, L, L, C), as `in_to_conv` gives them, and kept (B, L, 1) to (B, L, L, K)."""
        signal, both = pairs.permute(0, 3, 1, 2), (kept & kept.mT).unsqueeze(1)
        for block in self.resnet["res2D_blocks"]:
            signal = block(signal, both)
        above = self.conv_to_output(signal.masked_fill(~both, 0)).triu(1)
        return (above + above.mT).permute(0, 2, 3, 1)
