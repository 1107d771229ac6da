"""ESM-2, under the parameter names of its Hugging Face checkpoints.

Lin et al. 2023, doi:10.1126/science.ade2574; numbers match transformers' EsmForMaskedLM. Contacts:
Rao et al. 2021 (ICLR). Shapes: B batch, L tokens, D width, H heads, V vocabulary, N layers.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.models.attention import Layout, Rotary, initialise
from mgen.models.encoder import (
    Angles,
    Attention,
    Dense,
    EncoderConfig,
    SequenceEncoder,
    Stack,
    tied_logits,
)

MASKED_IN_TRAINING = 0.15 * 0.8  # share of tokens that pretraining showed as <mask>
EOS = 2  # id of <eos> in the published vocabulary, which the contact head leaves out


@dataclass(frozen=True, kw_only=True)
class ESMConfig(EncoderConfig):
    """config.json of `model_type: esm`; defaults are those of transformers."""

    vocab_size: int = 33
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 1026
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    emb_layer_norm_before: bool = False
    token_dropout: bool = False
    mask_token_id: int = 32
    is_folding_model: bool = False
    add_cross_attention: bool = False
    is_decoder: bool = False
    tie_word_embeddings: bool = True

    supported: ClassVar[dict[str, tuple]] = {
        "hidden_act": ("gelu",),
        "position_embedding_type": ("rotary",),
        "emb_layer_norm_before": (False,),
        "is_folding_model": (False,),
        "add_cross_attention": (False,),
        "is_decoder": (False,),
        "tie_word_embeddings": (True,),
    }

    def norm(self) -> nn.Module:
        return nn.LayerNorm(self.hidden_size, self.layer_norm_eps)


class Layer(nn.Module):
    def __init__(self, config: ESMConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, True, dropout, LayerNorm=config.norm())
        self.LayerNorm = config.norm()
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = Dense(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout, angles: Angles) -> Tensor:
        x = x + self.dropout(self.attention(self.attention.normalise(x), layout, angles))
        inner = F.gelu(self.intermediate.dense(self.LayerNorm(x)))
        return x + self.dropout(self.output.dense(inner))


class UnusedTable(nn.Module):
    """Checkpoints carry learned positions that rotary models never read; kept as a buffer so that
    the keys stay complete and no optimiser or DDP waits for its gradient."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width))


class Frequencies(nn.Module):
    """Rotary frequencies as stored: ESM-2 was trained with those that half precision leaves."""

    full_precision = True

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary.frequencies())


class Embeddings(nn.Module):
    """Token embeddings with the rescaling that makes up for <mask> tokens (token dropout)."""

    def __init__(self, config: ESMConfig) -> None:
        super().__init__()
        self.token_dropout, self.mask_token_id = config.token_dropout, config.mask_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = UnusedTable(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids)
        if self.token_dropout:
            is_mask = input_ids == self.mask_token_id
            masked = is_mask.sum(-1) / attention_mask.sum(-1).clamp(min=1)
            # All-mask text embeds to zero: the lower bound keeps 0 / 0 out.
            scale = (1 - MASKED_IN_TRAINING) / (1 - masked).clamp(min=1e-6)
            x = x.masked_fill(is_mask.unsqueeze(-1), 0.0) * scale[:, None, None].to(x.dtype)
        return x * attention_mask.unsqueeze(-1).to(x.dtype)


class ContactHead(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.regression = nn.Linear(channels, 1)

    def forward(self, maps: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps (B, N*H, L, L) to contact probabilities (B, L-2, L-2)."""
        counts = attention_mask.bool() & (input_ids != EOS)
        maps = maps * (counts[:, None, :, None] & counts[:, None, None, :])
        maps = maps[..., 1:-1, 1:-1]
        maps = maps + maps.transpose(-1, -2)
        rows, columns = maps.sum(-1, keepdim=True), maps.sum(-2, keepdim=True)
        maps = maps - rows * columns / maps.sum((-1, -2), keepdim=True)  # product correction
        return self.regression(maps.permute(0, 2, 3, 1)).squeeze(-1).sigmoid()


class Encoder(SequenceEncoder):
    """Positions count from the first token, <cls>."""

    def __init__(self, config: ESMConfig, dropout: float = 0.0, contacts: bool = True) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.encoder = Stack(layers, emb_layer_norm_after=config.norm())
        channels = config.num_hidden_layers * config.num_attention_heads
        self.contact_head = ContactHead(channels) if contacts else None
        self.rotary = Rotary(config.head_width)
        self.rotary_embeddings = Frequencies(self.rotary)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Angles]:
        x = self.embeddings(input_ids, attention_mask)
        return x, self.rotary.along(x, self.rotary_embeddings.inv_freq)

    def contacts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Contact probabilities (B, L-2, L-2): first and last column of the batch are cut off."""
        maps = torch.cat(self.attention_maps(input_ids, attention_mask), dim=1)
        return self.contact_head(maps, input_ids, attention_mask)


class LMHead(nn.Module):
    """Hidden states to logits (B, L, V) through the word embedding table."""

    def __init__(self, config: ESMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = config.norm()
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return tied_logits(hidden, self.dense, self.layer_norm, table, self.bias)


class ESM(nn.Module):
    """Encoder (`esm`) and, unless the checkpoint has none, masked-LM and contact heads."""

    def __init__(
        self,
        config: ESMConfig,
        *,
        head: bool = True,
        contacts: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.esm = Encoder(config, dropout, contacts)
        self.lm_head = LMHead(config) if head else None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden, self.esm.embeddings.word_embeddings.weight)

    def initialise(self) -> None:
        initialise(self, self.config.initializer_range)
        self.esm.embeddings.position_embeddings.weight.zero_()
        self.esm.rotary_embeddings.inv_freq.copy_(self.esm.rotary.frequencies())
