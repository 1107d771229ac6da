"""The encoder of AIDO.Cell, under the parameter names of its checkpoints.

Every gene is a token: a learnt mixture of bins embeds its value, a learnt position says which gene
it is (Ho et al. 2024, doi:10.1101/2024.11.28.625303). The blocks are those of rnabert.py.
Shapes: B cells, L tokens, D width, K bins, G genes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.models.attention import NORMS, Layout, Padded, initialise
from mgen.models.encoder import Angles, SequenceEncoder, Stack, tied_logits
from mgen.models.rnabert import Layer, RNABertConfig, Transform


@dataclass(frozen=True, kw_only=True)
class CellFoundationConfig(RNABertConfig):
    """config.json of `model_type: cellfoundation`; `max_position_embeddings` is G."""

    position_embedding_type: str = "absolute"
    bin_num: int = 100
    bin_alpha: float = 1.0
    mask_token_id: float = -1
    pad_token_id: float = -2
    tie_word_embeddings: bool = False

    supported: ClassVar[dict[str, tuple]] = {
        "hidden_act": ("swiglu",),
        "position_embedding_type": ("absolute",),
        "normalization_type": tuple(NORMS),
    }


def soft_bins(values: Tensor, first: nn.Module, second: nn.Module, alpha: float) -> Tensor:
    """Shares of K learnt bins (..., K) of values (...) (xTrimoGene, arXiv:2311.15156)."""
    a = F.leaky_relu(first(values.unsqueeze(-1).to(first.weight.dtype)), 0.1)
    return (alpha * a + second(a)).softmax(-1)


class ValueEmbedding(nn.Module):
    """Values (B, L) to (B, L, D): a soft assignment to K bins, each with a vector.

    Values that are exactly `mask_token_id` or `pad_token_id` have vectors of their own.
    """

    def __init__(self, config: CellFoundationConfig) -> None:
        super().__init__()
        bins, width = config.bin_num, config.hidden_size
        self.linear1, self.linear2 = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.lookup_table = nn.Embedding(bins, width)
        self.mask_embedding, self.pad_embedding = nn.Embedding(1, width), nn.Embedding(1, width)
        self.config = config

    def forward(self, values: Tensor) -> Tensor:
        shares = soft_bins(values, self.linear1, self.linear2, self.config.bin_alpha)
        x = shares @ self.lookup_table.weight
        for value, own in (
            (self.config.mask_token_id, self.mask_embedding),
            (self.config.pad_token_id, self.pad_embedding),
        ):
            x = torch.where((values == value).unsqueeze(-1), own.weight.to(x.dtype), x)
        return x


class Encoder(SequenceEncoder):
    """Values (B, L) of genes in the order of the list, then twice the depth; no padding."""

    extra_positions = 2  # the depth tokens

    def __init__(self, config: CellFoundationConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.gene_embedding = ValueEmbedding(config)
        positions = config.max_position_embeddings + self.extra_positions
        self.position_embedding = nn.Embedding(positions, config.hidden_size)
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.encoder = Stack(layers, ln=config.norm())
        self.dropout = nn.Dropout(dropout)

    @property
    def table(self) -> nn.Embedding:
        return self.gene_embedding.lookup_table

    def embed(self, values: Tensor, attention_mask: Tensor) -> tuple[Tensor, Angles]:
        positions = self.position_embedding.weight[: values.shape[1]]
        return self.dropout(self.gene_embedding(values) + positions), None

    def layout(self, attention_mask: Tensor) -> Layout:
        if self.attention not in ("auto", "sdpa"):
            return super().layout(attention_mask)
        return Padded(attention_mask, whole=True)


class Predictions(nn.Module):
    """Hidden states to logits (B, L, 1): ln(1 + 1e4 c / T) of each gene."""

    def __init__(self, config: CellFoundationConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.transform.dense, self.transform.LayerNorm, self.decoder.weight
        return tied_logits(hidden, *parts, self.bias)


class Head(nn.Module):
    def __init__(self, config: CellFoundationConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class CellFoundation(nn.Module):
    """Encoder (`bert`) and, unless the checkpoint has none, its masked-LM head (`cls`)."""

    encoder_type: ClassVar[type[Encoder]] = Encoder

    def __init__(
        self, config: CellFoundationConfig, *, head: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config
        self.bert = self.encoder_type(config, dropout)
        self.cls = Head(config) if head else None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.cls.predictions(hidden)

    def initialise(self) -> None:
        initialise(self, self.config.initializer_range)
