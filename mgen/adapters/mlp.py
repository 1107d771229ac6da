"""Adapters that act on each token alone. B batch, L tokens, D width, K outputs."""

from typing import Literal

from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.config import InputError

Activation = Literal["tanh", "relu", "gelu", "silu", "sigmoid"]
ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


def check_options(dropout: float, *widths: int) -> None:
    """Raise InputError for a dropout that is no share, or a layer without units."""
    if not 0 <= dropout <= 1:
        raise InputError(f"--adapter.dropout {dropout}: expected a share from 0 to 1")
    if min(widths, default=1) < 1:
        raise InputError(f"adapter layers of {min(widths)} units: expected 1 or more")


@ADAPTERS.register("mlp", "per token")
class MLP(nn.Sequential):
    """Multilayer perceptron per token: (..., D) -> (..., K), the mask is unused.

    Equals the published MLPAdapter. One flat sequence: dropout, then linear, activation and (unless
    `dropout_in_middle` is off) dropout for each hidden layer, last a linear. Published weights are
    named by their index in it, so that option decides the names of the weights.

    Args:
        hidden_sizes: widths of the hidden layers.
        activation: nonlinearity between layers.
        bias: linear layers have a bias.
        dropout: probability of dropping a value, in the input and after each activation.
        dropout_in_middle: drop after activations too, not in the input alone.
    """

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
        check_options(dropout, *hidden_sizes)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for size in hidden_sizes:
            layers += [nn.Linear(width, size, bias=bias), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout_in_middle else []
            width = size
        super().__init__(*layers, nn.Linear(width, outputs, bias=bias))

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        # Heads stay in fp32 when the backbone runs in half precision.
        return super().forward(hidden.to(self[-1].weight.dtype))


@ADAPTERS.register("linear", "per token")
class Linear(MLP):
    """One linear layer per token: (..., D) -> (..., K), the mask is unused.

    Equals the published LinearAdapter: an MLPAdapter without hidden layers.

    Args:
        bias: the linear layer has a bias.
        dropout: probability of dropping a value of the input.
    """

    def __init__(
        self, width: int, outputs: int, *, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(width, outputs, hidden_sizes=(), bias=bias, dropout=dropout)
