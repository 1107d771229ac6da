"""The nucleotide encoder of AIDO.DNA and AIDO.RNA, under the parameter names of its checkpoints.

A pre-norm transformer with SwiGLU and rotary or learned positions (Zou et al. 2024,
doi:10.1101/2024.11.28.625345; Ellington et al. 2024, doi:10.1101/2024.12.01.625444).
Shapes: B batch, L tokens, D width, H heads, F feed-forward width, V vocabulary.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError
from mgen.models.attention import (
    NORMS,
    Rotary,
    attend,
    attention_probabilities,
    initialise,
    rotate,
    split_heads,
)


@dataclass(frozen=True, kw_only=True)
class RNABertConfig:
    """config.json of `model_type: rnabert`; a field absent there has the default written here."""

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

    @classmethod
    def from_json(cls, config: dict) -> "RNABertConfig":
        """Read config.json; keys that do not change the network are passed over."""
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    def __post_init__(self) -> None:
        for name, known in (
            ("hidden_act", ("swiglu",)),
            ("position_embedding_type", ("rope", "absolute")),
            ("normalization_type", tuple(NORMS)),
            ("tie_word_embeddings", (True,)),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"config.json: {name} {getattr(self, name)!r} is not supported; "
                    f"expected {' or '.join(map(repr, known))}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )


class SelfAttention(nn.Module):
    def __init__(self, config: RNABertConfig, dropout: float) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.add_linear_bias
        self.heads, self.dropout = config.num_attention_heads, dropout
        self.query = nn.Linear(width, width, bias)
        self.key = nn.Linear(width, width, bias)
        self.value = nn.Linear(width, width, bias)

    def queries_and_keys(self, h: Tensor, angles: tuple | None) -> tuple[Tensor, Tensor]:
        q, k = (split_heads(linear(h), self.heads) for linear in (self.query, self.key))
        return (rotate(q, *angles), rotate(k, *angles)) if angles else (q, k)

    def forward(self, h: Tensor, key_mask: Tensor, angles: tuple | None) -> Tensor:
        q, k = self.queries_and_keys(h, angles)
        v = split_heads(self.value(h), self.heads)
        return attend(q, k, v, key_mask, self.dropout if self.training else 0.0)


class Output(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, config.add_linear_bias)


class Attention(nn.Module):
    def __init__(self, config: RNABertConfig, dropout: float) -> None:
        super().__init__()
        self.ln = NORMS[config.normalization_type](config.hidden_size, config.layer_norm_eps)
        self.self = SelfAttention(config, dropout)
        self.output = Output(config)

    def forward(self, x: Tensor, key_mask: Tensor, angles: tuple | None) -> Tensor:
        return self.output.dense(self.self(self.ln(x), key_mask, angles))


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
        self.attention = Attention(config, dropout)
        self.ln = NORMS[config.normalization_type](config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, key_mask: Tensor, angles: tuple | None) -> Tensor:
        x = x + self.dropout(self.attention(x, key_mask, angles))
        return x + self.dropout(self.mlp(self.ln(x)))


class Embeddings(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "absolute":
            positions = config.max_position_embeddings
            self.position_embeddings = nn.Embedding(positions, config.hidden_size)


class Stack(nn.Module):
    def __init__(self, config: RNABertConfig, dropout: float) -> None:
        super().__init__()
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.layer = nn.ModuleList(layers)
        self.ln = NORMS[config.normalization_type](config.hidden_size, config.layer_norm_eps)


class Encoder(nn.Module):
    """Token ids (B, L) and mask (B, L) to normalised hidden states (B, L, D).

    `collect` receives L+1 tensors: the embeddings, the residual stream after every layer but the
    last, and the returned tensor. Values at padded positions mean nothing.
    """

    def __init__(self, config: RNABertConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config, dropout)
        self.dropout = nn.Dropout(dropout)
        self.rotary = None
        if config.position_embedding_type == "rope":
            head_width = config.hidden_size // config.num_attention_heads
            self.rotary = Rotary(head_width, config.rotary_percent)

    def embed(self, input_ids: Tensor) -> tuple[Tensor, tuple | None]:
        """Embeddings (B, L, D) and rotary angles; positions count from the first token."""
        x = self.embeddings.word_embeddings(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        if self.rotary is None:
            x = x + self.embeddings.position_embeddings(positions)
        angles = self.rotary(positions, x.dtype) if self.rotary else None
        return self.dropout(x), angles

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, collect: list | None = None
    ) -> Tensor:
        x, angles = self.embed(input_ids)
        for layer in self.encoder.layer:
            if collect is not None:
                collect.append(x)
            x = layer(x, attention_mask, angles)
        x = self.encoder.ln(x)
        if collect is not None:
            collect.append(x)
        return x

    def attention_maps(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """The attention probabilities of every layer, each (B, H, L, L)."""
        x, angles = self.embed(input_ids)
        maps = []
        for layer in self.encoder.layer:
            attention = layer.attention
            q, k = attention.self.queries_and_keys(attention.ln(x), angles)
            maps.append(attention_probabilities(q, k, attention_mask))
            x = layer(x, attention_mask, angles)
        return maps


class Transform(nn.Module):
    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        # Has a bias whatever add_linear_bias says.
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        norm = NORMS[config.normalization_type]
        self.LayerNorm = norm(config.hidden_size, config.layer_norm_eps)


class Predictions(nn.Module):
    """Hidden states to logits (B, L, V) through the word embedding table."""

    def __init__(self, config: RNABertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        t = self.transform.LayerNorm(F.gelu(self.transform.dense(hidden)))
        return F.linear(t, table.to(t.dtype), self.bias.to(t.dtype))


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
