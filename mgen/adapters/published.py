"""Heads that published checkpoints carry, under the names of their weights there.

`--adapter.pretrained` takes those weights, which lie under `classifier.` in a checkpoint; without
it a head starts anew. B batch, L tokens, D width, K outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mgen.adapters import ADAPTERS
from mgen.adapters.mlp import ACTIVATIONS, Activation, check_options
from mgen.adapters.pairs import pair_layer
from mgen.adapters.pooling import cls_pool, mean_pool, positions, share_option_help
from mgen.config import InputError


@ADAPTERS.register("lm_head", "per token")
class LMHead(nn.Module):
    """The language-model head of the checkpoint, with its weights: (B, L, D) -> (B, L, V).

    The backbone lends it (`borrow`) and keeps the weights.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def borrow(self, decode: Callable[[Tensor], Tensor]) -> None:
        """Decode with the backbone's head, (B, L, D) -> (B, L, V)."""
        self.decode = decode

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = self.decode(hidden)
        if logits.shape[-1] != self.outputs:
            raise InputError(
                f"--adapter lm_head gives {logits.shape[-1]} outputs per token, this task needs "
                f"{self.outputs}"
            )
        return logits


@ADAPTERS.register("mean_pool_dense_tanh", "pools mean")
class MeanPoolDenseTanh(nn.Module):
    """Mean over tokens, dense, tanh, linear: the classifier of AIDO.DNA and AIDO.RNA.

    Equals the published head with mean_pooling; `dense` has D units if D is at most 128, D // 4 if
    it is 2048 or more, else D // 2. (B, L, D) -> (B, K).

    Args:
        dropout: probability of dropping a value, at most 0.1 as published
        batch_norm: normalise the vector over the batch first; dropout then follows the tanh
    """

    pool = staticmethod(mean_pool)

    def __init__(
        self, width: int, outputs: int, *, dropout: float = 0.0, batch_norm: bool = False
    ) -> None:
        check_options(dropout)
        super().__init__()
        inner = width if width <= 128 else width // 2 if width < 2048 else width // 4
        self.batchnorm = nn.BatchNorm1d(width) if batch_norm else None
        self.dense = nn.Linear(width, inner)
        self.dropout = nn.Dropout(min(dropout, 0.1))
        self.out_proj = nn.Linear(inner, outputs)

    def __init_subclass__(cls) -> None:
        share_option_help(cls, MeanPoolDenseTanh)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        vector = self.pool(hidden, mask).to(self.dense.weight.dtype)
        if self.batchnorm:
            return self.out_proj(self.dropout(torch.tanh(self.dense(self.batchnorm(vector)))))
        return self.out_proj(torch.tanh(self.dense(self.dropout(vector))))


@ADAPTERS.register("cls_dense_tanh", "reads start", "pools cls")
class CLSDenseTanh(MeanPoolDenseTanh):
    """First position, dense, tanh, linear: the classifier of AIDO.DNA and AIDO.RNA, cls_pooling."""

    pool = staticmethod(cls_pool)


@ADAPTERS.register("token_ffn", "per token")
class TokenFFN(nn.Module):
    """ffn, activation and linear on each token: AIDO.Protein's token head. (B, L, D) -> (B, L, K).

    Args:
        hidden_size: units of the inner layer
        activation: nonlinearity after it
        dropout: probability of dropping a value, before each layer
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden_size: int = 128,
        activation: Activation = "tanh",
        dropout: float = 0.0,
    ) -> None:
        check_options(dropout, hidden_size)
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ffn = nn.Linear(width, hidden_size)
        self.activation = ACTIVATIONS[activation]()
        self.out_proj = nn.Linear(hidden_size, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        inner = self.ffn(self.dropout(hidden.to(self.ffn.weight.dtype)))
        return self.out_proj(self.dropout(self.activation(inner)))


@ADAPTERS.register("mean_pool_ffn", "pools mean")
class MeanPoolFFN(TokenFFN):
    """Mean over tokens, ffn, activation, linear: AIDO.Protein's sequence head. (B, L, D) -> (B, K).

    Args:
        hidden_size: units of the inner layer; 0: half the width
        activation: nonlinearity after it
        dropout: probability of dropping a value, before each layer
        zero_shot: one more number per row, such as another method's score, precedes the vector
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden_size: int = 0,
        activation: Activation = "tanh",
        dropout: float = 0.0,
        zero_shot: bool = False,
    ) -> None:
        inner = hidden_size or max(1, width // 2)
        options = {"hidden_size": inner, "activation": activation, "dropout": dropout}
        super().__init__(width + zero_shot, outputs, **options)
        self.zero_shot = zero_shot

    def forward(
        self, hidden: Tensor, mask: Tensor | None = None, score: Tensor | None = None
    ) -> Tensor:
        vector = mean_pool(hidden, mask)
        if self.zero_shot:
            if score is None:
                raise InputError("--adapter.zero-shot: this task gives no scores to the head")
            vector = torch.cat([score.float().unsqueeze(-1), vector], dim=-1)
        return super().forward(vector)


@ADAPTERS.register("token_conv", "per token")
class TokenConv(nn.Module):
    """One convolution, tanh and linear: AIDO.Protein's token CNN. (B, L, D) -> (B, L, K).

    Positions that do not count are zeros to the convolution, so that padding changes nothing; with
    `as_published` it sees what the backbone left there.

    Args:
        kernel_size: tokens under the filter, odd
        dropout: probability of dropping a value, before the linear layer
        as_published: padding enters the convolution, and the mean if there is one
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        kernel_size: int = 5,
        dropout: float = 0.0,
        as_published: bool = False,
    ) -> None:
        check_options(dropout)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"--adapter.kernel-size {kernel_size}: expected an odd number")
        super().__init__()
        self.as_published = as_published
        self.conv = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, outputs)

    def __init_subclass__(cls) -> None:
        share_option_help(cls, TokenConv)

    def states(self, hidden: Tensor, mask: Tensor | None) -> Tensor:  # (B, L, D)
        hidden = hidden.to(self.conv.weight.dtype)
        if not self.as_published:
            hidden = hidden.masked_fill(~positions(hidden, mask), 0)
        return torch.tanh(self.conv(hidden.mT)).mT

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out_proj(self.dropout(self.states(hidden, mask)))


@ADAPTERS.register("conv_mean_pool")
class ConvMeanPool(TokenConv):
    """One convolution, tanh, mean, linear: AIDO.Protein's sequence CNN. (B, L, D) -> (B, K)."""

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        pooled = mean_pool(self.states(hidden, mask), None if self.as_published else mask)
        return self.out_proj(self.dropout(pooled.to(self.out_proj.weight.dtype)))


@ADAPTERS.register("pair_ffn", "per pair")
class PairFFN(nn.Module):
    """Two layers on pairs of tokens: AIDO.Protein's contact head. (B, L, D) -> (B, L, L, K).

    Channel f of the tokens i <= j gives features 2f and 2f + 1, so that the map is symmetric.

    Args:
        hidden_size: units of the inner layer
        dropout: probability of dropping a value, before each layer
    """

    def __init__(
        self, width: int, outputs: int, *, hidden_size: int = 128, dropout: float = 0.0
    ) -> None:
        check_options(dropout, hidden_size)
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ffn_0 = nn.Linear(2 * width, hidden_size)
        self.ffn_1 = nn.Linear(hidden_size, outputs)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.dropout(hidden.to(self.ffn_0.weight.dtype))
        pairs = pair_layer(hidden, self.ffn_0.weight, self.ffn_0.bias)  # (B, L, L, F)
        return self.ffn_1(self.dropout(torch.relu(pairs)))
