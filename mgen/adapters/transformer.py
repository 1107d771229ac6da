"""Transformer layers on top of the backbone. B batch, L tokens, D width, K outputs."""

from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import check_options
from mgen.adapters.pooling import cls_pool, positions
from mgen.config import InputError


def check_heads(width: int, heads: int, flag: str = "adapter.heads") -> None:
    """Raise InputError unless attention heads share the width evenly."""
    if heads < 1 or width % heads:
        raise InputError(
            f"--{flag} {heads} does not divide the width of the hidden states, {width}. Set a "
            "divisor of it"
        )


class Encoder(nn.Module):
    """Encoder layers with the norm after each sublayer (Vaswani et al. 2017, arXiv:1706.03762).

    Tokens attend to those of their own row that count. The published adapters ran their layers with
    the batch in the place of the tokens; names of weights are as there.
    """

    def __init__(
        self, width: int, *, heads: int, hidden_size: int, layers: int, dropout: float
    ) -> None:
        check_options(dropout, hidden_size, layers)
        check_heads(width, heads)
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, hidden_size, dropout, batch_first=True)
            for _ in range(layers)
        )

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:  # (B, L, D)
        counted = positions(hidden, mask)[..., 0]
        ignored = ~counted & counted.any(1, keepdim=True)  # a row of padding alone stays finite
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=ignored)
        return hidden


@ADAPTERS.register("cls_transformer", "reads start")
class CLSTransformer(nn.Module):
    """Transformer layers over the tokens, then the first position and a linear layer.

    Equals the published LinearTransformerAdapter, except that tokens attend within their own
    sequence and not to the other sequences of the batch. (B, L, D) -> (B, K).

    Args:
        heads: attention heads, a divisor of the width
        hidden_size: units of the inner layer of each block
        layers: blocks
        dropout: probability of dropping a value within a block
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        heads: int = 8,
        hidden_size: int = 2048,
        layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.transformer = Encoder(
            width, heads=heads, hidden_size=hidden_size, layers=layers, dropout=dropout
        )
        self.linear = nn.Linear(width, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        states = self.transformer(hidden.to(self.linear.weight.dtype), mask)
        return self.linear(cls_pool(states, mask).to(self.linear.weight.dtype))
