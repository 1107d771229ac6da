"""The nucleotide encoder of AIDO.DNA and AIDO.RNA, under the parameter names of its checkpoints.

A pre-norm transformer with SwiGLU and rotary or learned positions (Zou et al. 2024,
doi:10.1101/2024.11.28.625345; Ellington et al. 2024, doi:10.1101/2024.12.01.625444).
Shapes: B batch, L tokens, D width, H heads, F feed-forward width, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.models.attention import NORMS, Layout, Rotary, initialise
from mgen.models.encoder import (
    Angles,
    Attention,
    EncoderConfig,
    SequenceEncoder,
    Stack,
    tied_logits,
)


@dataclass(frozen=True, kw_only=True)
class RNABertConfig(EncoderConfig):
    """config.json of `model_type: rnabert`."""

    vocab_size: int = 16
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "swiglu"
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    add_linear_bias: bool = True
    position_embedding_type: str = "rope"
    normalization_type: str = "RMSNorm"
    rotary_percent: float = 1.0
    tie_word_embeddings: bool = True

    supported: ClassVar[dict[str, tuple]] = {
        "hidden_act": ("swiglu",),
        "position_embedding_type": ("rope", "absolute"),
        "normalization_type": tuple(NORMS),
        "tie_word_embeddings": (True,),
    }

    def norm(self) -> nn.Module:
        return NORMS[self.normalization_type](self.hidden_size, self.layer_norm_eps)

    def attention(self, dropout: float) -> Attention:
        return Attention(self, self.add_linear_bias, dropout, ln=self.norm())


class MLP(nn.Module):
    """down(silu(gate(h)) * up(h)), the SwiGLU of Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.add_linear_bias
        self.gate_proj = nn.Linear(width, inner, bias)
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = nn.Linear(inner, width, bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Layer(nn.Module):
    def __init__(self, config: RNABertConfig, dropout: float) -> None:
        super().__init__()
        self.attention = config.attention(dropout)
        self.ln = config.norm()
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout, angles: Angles) -> Tensor:
        x = x + self.dropout(self.attention(self.attention.normalise(x), layout, angles))
        return x + self.dropout(self.mlp(self.ln(x)))


class Embeddings(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "absolute":
            positions = config.max_position_embeddings
            self.position_embeddings = nn.Embedding(positions, config.hidden_size)


class Encoder(SequenceEncoder):
    """Positions count from the first token, [CLS]."""

    def __init__(self, config: RNABertConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.encoder = Stack(layers, ln=config.norm())
        self.dropout = nn.Dropout(dropout)
        is_rotary = config.position_embedding_type == "rope"
        self.rotary = Rotary(config.head_width, config.rotary_percent) if is_rotary else None

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Angles]:
        x = self.embeddings.word_embeddings(input_ids)
        if self.rotary:
            return self.dropout(x), self.rotary.along(x)
        positions = torch.arange(x.shape[1], device=x.device)
        return self.dropout(x + self.embeddings.position_embeddings(positions)), None


class Transform(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        # Has a bias whatever add_linear_bias says.
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = config.norm()


class Predictions(nn.Module):
    """Hidden states to logits (B, L, V) through the word embedding table."""

    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return tied_logits(hidden, self.transform.dense, self.transform.LayerNorm, table, self.bias)


class Head(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class RNABert(nn.Module):
    """Encoder (`bert`) and, unless the checkpoint has none, its masked-LM head (`cls`)."""

    def __init__(self, config: RNABertConfig, *, head: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.bert = Encoder(config, dropout)
        self.cls = Head(config) if head else None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.cls.predictions(hidden, self.bert.embeddings.word_embeddings.weight)

    def initialise(self) -> None:
        initialise(self, self.config.initializer_range)
