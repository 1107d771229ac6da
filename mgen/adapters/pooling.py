"""Adapters that pool the tokens of a row into one vector. B batch, L tokens, D width, K outputs.

Pooling counts every position whose mask is nonzero: with a tokenizer's attention mask that includes
the special tokens, as in the published heads. Pooled values are float32 whatever the precision of
the hidden states. A row without any position pools to zeros.
"""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import MLP, Activation
from mgen.config import InputError


def positions(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The positions that count, bool (B, L, 1), from a mask of any dtype or None."""
    if mask is None:
        return torch.ones(*hidden.shape[:2], 1, dtype=torch.bool, device=hidden.device)
    assert mask.shape == hidden.shape[:2], (mask.shape, hidden.shape)
    return mask.bool().unsqueeze(-1)


def mean_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that count: (B, L, D) -> (B, D)."""
    counted = positions(hidden, mask)
    return hidden.float().masked_fill(~counted, 0).sum(1) / counted.sum(1).clamp(min=1)


def max_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Maximum over the positions that count: (B, L, D) -> (B, D)."""
    counted = positions(hidden, mask)
    largest = hidden.float().masked_fill(~counted, -torch.inf).amax(1)
    return largest.masked_fill(~counted.any(1), 0)


def cls_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The first position, where tokenizers put [CLS]: (B, L, D) -> (B, D)."""
    return hidden[:, 0].float()


POOLS = {"mean": mean_pool, "max": max_pool, "cls": cls_pool}


def flatten(hidden: Tensor, mask: Tensor | None, length: int, shorter: bool = False) -> Tensor:
    """All positions that count, side by side: (B, L, D) -> (B, length * D), position-major.

    Rows may be `shorter`, and end in zeros then. Raises InputError for a row with another number of
    positions.
    """
    counted = positions(hidden, mask)[..., 0]
    counts = counted.sum(1)
    wrong = counts > length if shorter else counts != length
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        limit = f"at most {length}" if shorter else f"{length}"
        raise InputError(
            f"a head with one weight per position needs rows of {limit} tokens (special tokens "
            f"included), row {row} of this batch has {int(counts[row])}. Use rows of one length, "
            "or a pooling adapter such as mean_pool_mlp."
        )
    flat = hidden.new_zeros(len(hidden), length, hidden.shape[-1], dtype=torch.float32)
    filled = torch.arange(length, device=hidden.device) < counts[:, None]
    flat[filled] = hidden[counted].float()
    return flat.flatten(1)


def _flattened_width(width: int, length: int) -> int:
    if length < 1:
        raise InputError(
            "a head with one weight per position needs to know how many tokens a row has. "
            "Set --adapter.length (special tokens included)."
        )
    return width * length


class PooledLinear(nn.Module):
    """Pool, then one linear layer, named `linear` as published.

    Args:
        bias: the linear layer has a bias.
    """

    pool: Callable[[Tensor, Tensor | None], Tensor]

    def __init__(self, width: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs, bias=bias)

    def __init_subclass__(cls) -> None:
        share_option_help(cls, PooledLinear)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(self.pool(hidden, mask).to(self.linear.weight.dtype))


class PooledMLP(nn.Module):
    """Pool, then a multilayer perceptron, named `mlp` as published.

    Args:
        hidden_sizes: widths of the hidden layers.
        activation: nonlinearity between layers.
        bias: linear layers have a bias.
        dropout: probability of dropping a value, of the pooled vector and after each activation.
        dropout_in_middle: drop after activations too, not in the pooled vector alone.
    """

    pool: Callable[[Tensor, Tensor | None], Tensor]

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden_sizes: tuple[int, ...] = (128,),
        activation: Activation = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        dropout_in_middle: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = MLP(
            width,
            outputs,
            hidden_sizes=hidden_sizes,
            activation=activation,
            bias=bias,
            dropout=dropout,
            dropout_in_middle=dropout_in_middle,
        )

    def __init_subclass__(cls) -> None:
        share_option_help(cls, PooledMLP)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mlp(self.pool(hidden, mask))


def share_option_help(cls: type, source: type) -> None:
    """Append the "Args:" lines of `source`: help is read off the docstring of the named class."""
    doc, args = inspect.getdoc(cls), inspect.getdoc(source).partition("Args:\n")[2]
    own = "" if "Args:\n" in doc else "\n\nArgs:"
    cls.__doc__ = f"{doc}{own}\n{args}"


@ADAPTERS.register("linear_cls", "reads start", "pools cls")
class LinearCLS(PooledLinear):
    """First position, then linear. Equals the published LinearCLSAdapter."""

    pool = staticmethod(cls_pool)


@ADAPTERS.register("mean_pool_linear", "pools mean")
class MeanPoolLinear(PooledLinear):
    """Mean over tokens, then linear. Equals the published LinearMeanPoolAdapter."""

    pool = staticmethod(mean_pool)


@ADAPTERS.register("max_pool_linear", "pools max")
class MaxPoolLinear(PooledLinear):
    """Maximum over tokens, then linear. Equals the published LinearMaxPoolAdapter.

    Except for a row without any position, which is non-finite there.
    """

    pool = staticmethod(max_pool)


@ADAPTERS.register("cls_mlp", "reads start", "pools cls")
class CLSMLP(PooledMLP):
    """First position, then an MLP. Equals the published MLPPoolAdapter with cls_pooling."""

    pool = staticmethod(cls_pool)


@ADAPTERS.register("mean_pool_mlp", "pools mean")
class MeanPoolMLP(PooledMLP):
    """Mean over tokens, then an MLP. Equals the published MLPPoolAdapter with mean_pooling."""

    pool = staticmethod(mean_pool)


@ADAPTERS.register("max_pool_mlp", "pools max")
class MaxPoolMLP(PooledMLP):
    """Maximum over tokens, then an MLP. No published class: MLPPoolAdapter with another pool."""

    pool = staticmethod(max_pool)


@ADAPTERS.register("flatten_linear", "per position")
class FlattenLinear(PooledLinear):
    """One weight per position and channel, for rows of one length. No published class.

    Raises InputError for rows of another length.

    Args:
        length: tokens per row, special tokens included; 0: that of the training rows.
    """

    def __init__(self, width: int, outputs: int, *, length: int = 0, bias: bool = True) -> None:
        super().__init__(_flattened_width(width, length), outputs, bias=bias)
        self.pool = partial(flatten, length=length)


@ADAPTERS.register("flatten_mlp", "per position")
class FlattenMLP(PooledMLP):
    """An MLP over all positions side by side, for rows of one length. No published class.

    Raises InputError for rows of another length.

    Args:
        length: tokens per row, special tokens included; 0: that of the training rows.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        length: int = 0,
        hidden_sizes: tuple[int, ...] = (128,),
        activation: Activation = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        dropout_in_middle: bool = True,
    ) -> None:
        super().__init__(
            _flattened_width(width, length),
            outputs,
            hidden_sizes=hidden_sizes,
            activation=activation,
            bias=bias,
            dropout=dropout,
            dropout_in_middle=dropout_in_middle,
        )
        self.pool = partial(flatten, length=length)
