"""Pieces that the encoders share: rotary positions, norms, masked attention.

Shapes: B batch, L tokens, H heads, D width, d = D/H channels of a head, r rotated channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError


class Rotary:
    """Rotary position angles (Su et al. 2021, arXiv:2104.09864), base 10000, half-split pairs.

    Every token has A coordinates; the d channels of a head are cut into A equal parts, and part a
    turns with coordinate a. In a part channel j turns with channel j + r/2; only its first
    r = int(d / A * percent) channels turn. Angles come from the positions in fp32 on every call: no
    table, no buffer, no limit. Raises InputError where r is odd or zero.
    """

    def __init__(self, head_width: int, percent: float = 1.0, axes: int = 1) -> None:
        part, self.axes = head_width // axes, axes
        self.width = part if percent >= 1 else int(part * percent)
        if head_width % axes or self.width < 2 or self.width % 2:
            raise InputError(
                f"rotary positions turn pairs of channels: {self.width} of {head_width} channels "
                f"per head (rotary_percent {percent}, {axes} coordinates) is not an even number "
                "of at least 2"
            )

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Angle per position of the pairs of channels (r/2,), fp32."""
        channels = torch.arange(0, self.width, 2, device=device, dtype=torch.float32)
        return 10000.0 ** (-channels / self.width)

    def __call__(
        self, positions: Tensor, dtype: torch.dtype, frequencies: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., L, A, r/2) at `positions` (..., L, A), cast to `dtype` last.

        `frequencies` are a checkpoint's own, where it was trained with rounded ones.
        """
        own = self.frequencies(positions.device) if frequencies is None else frequencies
        angles = positions.float().unsqueeze(-1) * own
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def along(self, x: Tensor, frequencies: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Angles at the positions 0, 1, ... of the tokens of x (B, L, D)."""
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(-1)
        return self(positions, x.dtype, frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, L, d) by the angles (L, A, r/2) or (B, 1, L, A, r/2) of a `Rotary`."""
    axes, half = cos.shape[-2:]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    parts = x.unflatten(-1, (axes, -1))
    a, b, rest = parts.split((half, half, parts.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).flatten(-2)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps); statistics in fp32, cast back before the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


NORMS = {"LayerNorm": nn.LayerNorm, "RMSNorm": RMSNorm}  # by their names in config.json


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor, dropout_p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys that count, heads joined: (B, L, D).

    q, k, v are (B, H, L, d); key_mask is (B, L), nonzero at real tokens.
    """
    mask = key_mask.bool()[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p).transpose(1, 2).flatten(2)


def attention_probabilities(q: Tensor, k: Tensor, key_mask: Tensor) -> Tensor:
    """The (B, H, L, L) matrices that `attend` applies without showing them."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~key_mask.bool()[:, None, None, :], -torch.inf).softmax(-1)


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Start from scratch: matrices and embeddings N(0, std), biases 0, norms the identity.

    The padding row is drawn like any other and no layer is scaled by its depth, as in the published
    models' own code.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0.0, std)
        elif isinstance(part, nn.LayerNorm | RMSNorm):
            part.weight.fill_(1.0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
