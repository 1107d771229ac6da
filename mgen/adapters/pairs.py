"""Adapters on pairs of tokens: hidden (B, L, D) -> (B, L, L, K), equal at (i, j) and (j, i).

The published ones take an outer concatenation, the states of both tokens channel by channel:
feature 2f of the pair (i, j) is channel f of the earlier token, feature 2f + 1 that of the later
one. A linear layer acts on both apart, so that (B, L, L, 2D) never comes into being. K outputs.
"""

import math

import torch
from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import ACTIVATIONS, MLP, Activation, Linear, check_options
from mgen.config import InputError


def pair_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on the outer concatenation: (B, L, D), weight (F, 2D) -> (B, L, L, F)."""
    earlier, later = hidden @ weight[:, 0::2].T, hidden @ weight[:, 1::2].T
    if bias is not None:
        earlier = earlier + bias
    pairs = earlier.unsqueeze(2) + later.unsqueeze(1)  # holds where i <= j
    length = hidden.shape[1]
    upper = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu()
    return torch.where(upper[..., None], pairs, pairs.transpose(1, 2))


@ADAPTERS.register("pair_linear", "per pair")
class PairLinear(Linear):
    """One linear layer per pair of tokens: (B, L, D) -> (B, L, L, K), the mask is unused.

    Equals the published LinearAdapter on an outer concatenation.

    Args:
        bias: the linear layer has a bias.
        dropout: probability of dropping a value of a token.
    """

    def __init__(
        self, width: int, outputs: int, *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(2 * width, outputs, bias=bias, dropout=dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        dropout, linear = self
        return pair_layer(dropout(hidden.to(linear.weight.dtype)), linear.weight, linear.bias)


@ADAPTERS.register("pair_mlp", "per pair")
class PairMLP(nn.Module):
    """Multilayer perceptron per pair of tokens: (B, L, D) -> (B, L, L, K), the mask is unused.

    Equals the published MLPAdapterWithoutOutConcat, and MLPAdapter on an outer concatenation.

    Args:
        hidden_sizes: widths of the hidden layers, at least one.
        activation: nonlinearity between layers.
        bias: linear layers after the first have a bias; that one always has.
        dropout: probability of dropping a value, of a token and after each activation.
        dropout_in_middle: drop after activations too, not in the tokens alone.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden_sizes: tuple[int, ...] = (128,),
        activation: Activation = "relu",
        bias: bool = True,
        dropout: float = 0.0,
        dropout_in_middle: bool = True,
    ) -> None:
        check_options(dropout, *hidden_sizes)
        if not hidden_sizes:
            raise InputError("pair_mlp needs --adapter.hidden-sizes; without any use pair_linear")
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.first_linear = nn.Parameter(torch.empty(hidden_sizes[0], 2 * width))
        self.first_bias = nn.Parameter(torch.empty(hidden_sizes[0]))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(2 * width), 1 / math.sqrt(2 * width))
        rest = MLP(
            hidden_sizes[0],
            outputs,
            hidden_sizes=hidden_sizes[1:],
            activation=activation,
            bias=bias,
            dropout=dropout,
            dropout_in_middle=dropout_in_middle,
        )
        dropped = list(rest) if dropout_in_middle else list(rest)[1:]
        self.layers = nn.Sequential(ACTIVATIONS[activation](), *dropped)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.dropout(hidden.to(self.first_linear.dtype))
        return self.layers(pair_layer(hidden, self.first_linear, self.first_bias))
