"""Pieces that the encoders share: rotary positions, norms, masked attention.

Shapes: B batch, L tokens, H heads, D width, d = D/H channels of a head, r rotated channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError


class Rotary:
    """Rotary position angles (Su et al. 2021, arXiv:2104.09864), base 10000, half-split pairs.

    Channel j of a head turns with channel j + r/2; only the first r = int(d * percent) channels
    turn. Angles come from the positions in fp32 on every call: no table, no buffer, no limit.
    Raises InputError where r is odd or zero.
    """

    def __init__(self, head_width: int, percent: float = 1.0) -> None:
        self.width = head_width if percent >= 1 else int(head_width * percent)
        if self.width < 2 or self.width % 2:
            raise InputError(
                f"rotary positions turn pairs of channels: {self.width} of {head_width} channels "
                f"per head (rotary_percent {percent}) is not an even number of at least 2"
            )

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., L, r/2) at `positions` (..., L), cast to `dtype` at the end."""
        channels = torch.arange(0, self.width, 2, device=positions.device, dtype=torch.float32)
        angles = positions.float().unsqueeze(-1) * 10000.0 ** (-channels / self.width)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first r channels of x (B, H, L, d) by angles (L, r/2); the rest passes unchanged."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


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
