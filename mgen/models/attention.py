"""Pieces that the encoders share: rotary positions, norms, attention by named back ends.

Shapes: B batch, L tokens, H heads, D width, d = D/H channels of a head, r rotated channels, T real
tokens of a batch.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

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


# --------------------------------------------------------------------------- layouts

WORTH_PACKING = 0.1  # share of padding from which a CPU gains by rows computed by themselves


class Padded:
    """Rows side by side, padded to the longest: tokens lie as (B, L). Back end `sdpa`.

    `whole`: no token is padding, and attention needs no mask.
    """

    def __init__(self, mask: Tensor, whole: bool = False) -> None:
        self.mask, self.whole = mask.bool(), whole

    def pack(self, x: Tensor) -> Tensor:
        """Tokens (B, L, ...) in this layout."""
        return x

    unpack = pack  # the inverse

    def angles(self, x: Tensor) -> Tensor:
        """Angles (L, A, r/2) or (B, 1, L, A, r/2) in this layout."""
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        mask = None if self.whole else self.mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p)


class Packed:
    """The real tokens of all rows one after the other, longest row first: (1, T).

    No layer spends anything on padding. `varlen`: torch's own kernel for rows of any length
    (CUDA, half precision); else back end `document`: each row by itself, equally long ones at once.
    """

    def __init__(self, mask: Tensor, varlen: bool) -> None:
        mask, self.varlen = mask.bool(), varlen
        order = mask.sum(1).argsort(descending=True, stable=True)
        width = mask.shape[1]
        places = torch.arange(mask.numel(), device=mask.device).view_as(mask)
        self.place = places[order][mask[order]]  # of each token in the flattened batch (T,)
        self.column, self.shape = self.place % width, mask.shape
        lengths = mask.sum(1)[order]
        self.ends = F.pad(lengths.cumsum(0), (1, 0)).int()
        sizes = lengths.tolist()
        self.longest = max(sizes, default=0)
        self.runs = [(n, len([*same])) for n, same in itertools.groupby(sizes) if n]
        self.mask = mask.new_ones(1, len(self.place))  # (1, T): every one is real

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)[self.place].unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """Tokens (1, T, ...) as (B, L, ...), zeros at padding."""
        flat = x.new_zeros(self.shape.numel(), *x.shape[2:])
        return flat.index_copy(0, self.place, x[0]).unflatten(0, self.shape)

    def angles(self, x: Tensor) -> Tensor:
        if x.ndim == 3:  # the same for every row
            return x[self.column]
        return x.squeeze(1).flatten(0, 1)[self.place]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        if not self.varlen:
            return self._by_rows(q, k, v, dropout_p)
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, H, d)
        out = varlen_attn(q, k, v, self.ends, self.ends, self.longest, self.longest)
        return out.transpose(0, 1).unsqueeze(0)

    @torch.compiler.disable  # the rows' lengths would be compiled in
    def _by_rows(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        sizes = [length * count for length, count in self.runs]
        parts = []
        cut = (x[0].split(sizes, 1) for x in (q, k, v))
        for (_, count), *run in zip(self.runs, *cut, strict=True):
            q_, k_, v_ = (x.unflatten(1, (count, -1)).transpose(0, 1) for x in run)  # (n, H, l, d)
            out = F.scaled_dot_product_attention(q_, k_, v_, None, dropout_p)
            parts.append(out.transpose(0, 1).flatten(1, 2))
        return torch.cat(parts, 1).unsqueeze(0) if parts else q


Layout = Padded | Packed


def lay_out(mask: Tensor, back_end: str, dtype: torch.dtype, head_width: int, dropout: float):
    """How to lay out tokens (B, L) that `mask` marks, and why not in the best way ("" if so).

    `auto` packs where `varlen` runs (on CUDA, in half precision, without attention dropout), and on
    a CPU batches of which more than `WORTH_PACKING` is padding. `dtype` is that of queries and
    keys. Raises InputError for a back end that cannot do it.
    """
    if back_end == "auto" and not mask.is_cuda:
        is_sparse = mask.device.type == "cpu" and mask.bool().float().mean() < 1 - WORTH_PACKING
        back_end = "document" if is_sparse else "sdpa"
    if back_end in ("sdpa", "document"):
        return (Packed(mask, varlen=False) if back_end == "document" else Padded(mask)), ""
    reason = ""
    if not mask.is_cuda:
        reason = "packed attention needs a CUDA device"
    elif torch.cuda.get_device_capability(mask.device) < (8, 0):
        reason = "packed attention needs a GPU of compute capability 8.0 or more"
    elif dtype not in (torch.float16, torch.bfloat16):
        reason = (
            "packed attention needs half precision: --train.precision bf16 or --backbone.dtype "
            "bfloat16"
        )
    elif head_width % 8 or head_width > 256:
        reason = f"packed attention is not for heads of {head_width} channels"
    elif dropout:
        reason = "packed attention has no dropout: --backbone.dropout 0"
    if reason and back_end == "varlen":
        raise InputError(f"--backbone.attention varlen: {reason}")
    return (Padded(mask) if reason else Packed(mask, varlen=True)), reason


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout_p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within each row over its real tokens, heads joined: (B, L, D).

    q, k, v are (B, H, L, d), or (1, H, T, d) where the layout packs.
    """
    return layout.attend(q, k, v, dropout_p).transpose(1, 2).flatten(2)


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
