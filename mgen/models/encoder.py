"""What the sequence encoders share, whatever their families call its parts.

Shapes: B batch, L tokens, D width, H heads, V vocabulary, N layers. A norm is given together with
its published name: `ln=RMSNorm(...)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError
from mgen.models.attention import (
    Layout,
    Padded,
    attend,
    attention_probabilities,
    lay_out,
    rotate,
    split_heads,
)

Angles = tuple[Tensor, Tensor] | None


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A config.json; a field that is absent or null there has the default written in the class."""

    supported: ClassVar[dict[str, tuple]] = {}  # fields to the only values this network can have

    @classmethod
    def from_json(cls, config: dict) -> Self:
        """Read config.json; keys that do not change the network are passed over."""
        given = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        return cls(**given)

    def __post_init__(self) -> None:
        for name, known in self.supported.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"config.json: {name} {getattr(self, name)!r} is not supported; "
                    f"expected {' or '.join(map(repr, known))}"
                )
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "intermediate_size", "max_position_embeddings"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise InputError(f"config.json: {name} {value!r}: expected a whole number above 0")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs, bias)


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig, bias: bool, dropout: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width, bias) for _ in range(3))

    def queries_and_keys(self, h: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        q, k = (split_heads(linear(h), self.heads) for linear in (self.query, self.key))
        return (rotate(q, *angles), rotate(k, *angles)) if angles else (q, k)

    def forward(self, h: Tensor, layout: Layout, angles: Angles) -> Tensor:
        q, k = self.queries_and_keys(h, angles)
        v = split_heads(self.value(h), self.heads)
        return attend(q, k, v, layout, self.dropout if self.training else 0.0)


class Attention(nn.Module):
    """Norm, self-attention, output projection; `forward` takes the normalised stream."""

    def __init__(
        self, config: EncoderConfig, bias: bool, dropout: float, **norm: nn.Module
    ) -> None:
        super().__init__()
        self.norm = _add(self, norm)
        self.self = SelfAttention(config, bias, dropout)
        self.output = Dense(config.hidden_size, config.hidden_size, bias)

    def normalise(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.norm)(x)

    def forward(self, h: Tensor, layout: Layout, angles: Angles) -> Tensor:
        return self.output.dense(self.self(h, layout, angles))

    def probabilities(self, x: Tensor, key_mask: Tensor, angles: Angles) -> Tensor:
        q, k = self.self.queries_and_keys(self.normalise(x), angles)
        return attention_probabilities(q, k, key_mask)


class Stack(nn.Module):
    """Layers, then a norm."""

    def __init__(self, layers: Iterable[nn.Module], **norm: nn.Module) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)
        self.norm = _add(self, norm)

    def forward(
        self, x: Tensor, layout: Layout, angles: Angles, collect: list | None = None
    ) -> Tensor:
        for layer in self.layer:
            if collect is not None:
                collect.append(x)
            x = layer(x, layout, angles)
        x = self.get_submodule(self.norm)(x)
        if collect is not None:
            collect.append(x)
        return x


class SequenceEncoder(nn.Module):
    """Token ids (B, L) and mask (B, L) to normalised hidden states (B, L, D).

    `collect` receives N+1 tensors: the embeddings, the residual stream after every layer but the
    last, and the returned tensor. Values at padded positions mean nothing. A family gives `embed`
    (embeddings (B, L, D) and rotary angles), and `encoder`, a Stack; `inputs` are its own.
    `attention` names the back end; layers see the tokens in its layout, callers never do.
    """

    attention = "auto"
    notice = ""  # why tokens are not packed, where they could be

    def embed(self, input_ids: Tensor, attention_mask: Tensor, **inputs) -> tuple[Tensor, Angles]:
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, collect: list | None = None, **inputs
    ) -> Tensor:
        x, angles = self.embed(input_ids, attention_mask, **inputs)
        tokens = self.layout(attention_mask)
        x, angles = tokens.pack(x), angles and tuple(map(tokens.angles, angles))
        x = self.encoder(x, tokens, angles, collect)
        if collect is not None:
            collect[:] = map(tokens.unpack, collect)
        return tokens.unpack(x)

    @property
    def table(self) -> nn.Embedding:
        """Vectors of what tokens are."""
        return self.embeddings.word_embeddings

    def layout(self, attention_mask: Tensor) -> Layout:
        """The layout of tokens that `attention_mask` (B, L) marks, by the back end chosen."""
        inner = self.encoder.layer[0].attention.self
        kind, dtype = attention_mask.device.type, self.table.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        width = self.table.embedding_dim // inner.heads
        dropout = inner.dropout if self.training else 0.0
        found, self.notice = lay_out(attention_mask, self.attention, dtype, width, dropout)
        return found

    def attention_maps(self, input_ids: Tensor, attention_mask: Tensor, **inputs) -> list[Tensor]:
        """The attention probabilities of every layer, each (B, H, L, L)."""
        pairs, angles = self.layers_and_inputs(input_ids, attention_mask, **inputs)
        return [layer.attention.probabilities(x, attention_mask, angles) for layer, x in pairs]

    def layers_and_inputs(
        self, input_ids: Tensor, attention_mask: Tensor, **inputs
    ) -> tuple[list[tuple[nn.Module, Tensor]], Angles]:
        """Every layer with the residual stream (B, L, D) that enters it."""
        x, angles = self.embed(input_ids, attention_mask, **inputs)
        states: list[Tensor] = []
        self.encoder(x, Padded(attention_mask), angles, states)
        return list(zip(self.encoder.layer, states, strict=False)), angles


def tied_logits(
    hidden: Tensor, dense: nn.Module, norm: nn.Module, table: Tensor, bias: Tensor
) -> Tensor:
    """Logits (B, L, V): norm(gelu(dense(hidden))) through the embedding table (V, D)."""
    t = norm(F.gelu(dense(hidden.to(table.dtype))))
    return F.linear(t, table.to(t.dtype), bias.to(t.dtype))


def _add(module: nn.Module, named: dict[str, nn.Module]) -> str:
    ((name, part),) = named.items()
    module.add_module(name, part)
    return name
