"""scFoundation, a masked auto-encoder of cells, nearly under its published parameter names.

The encoder reads the genes that a cell expresses, the decoder all of them (Hao et al. 2024,
doi:10.1038/s41592-024-02305-7). Shapes: B cells, L tokens, D width, H heads, d channels of a head,
G genes, n = G + 2 positions (genes, target depth, source depth), m random features, N layers.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError
from mgen.models.attention import Layout, attend, initialise, lay_out, split_heads
from mgen.models.cellfoundation import soft_bins


@dataclass(frozen=True, kw_only=True)
class ScFoundationConfig:
    """`model_config` of a published checkpoint; `max_position_embeddings` is n."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    decoder_width: int
    decoder_layers: int
    decoder_heads: int
    decoder_head_width: int
    max_position_embeddings: int
    bin_num: int = 100
    bin_alpha: float = 1.0
    mask_token_id: float = 102
    pad_token_id: float = 103

    @classmethod
    def from_json(cls, config: dict) -> Self:
        """Raises InputError for a variant of another architecture."""
        try:
            facts = config["model_config"][config["model"]]
            encoder, decoder = facts["encoder"], facts["decoder"]
            kinds = [part["module_type"] for part in (encoder, decoder)]
            is_known = kinds == ["transformer", "performer"] and not encoder["norm_first"]
            found = cls(
                hidden_size=encoder["hidden_dim"],
                num_hidden_layers=encoder["depth"],
                num_attention_heads=encoder["heads"],
                decoder_width=decoder["hidden_dim"],
                decoder_layers=decoder["depth"],
                decoder_heads=decoder["heads"],
                decoder_head_width=decoder["dim_head"],
                max_position_embeddings=facts["seq_len"],
                bin_num=facts["bin_num"],
                bin_alpha=facts["bin_alpha"],
                mask_token_id=facts["mask_token_id"],
                pad_token_id=facts["pad_token_id"],
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"config of scFoundation: no {error} in model_config") from None
        if not is_known:
            raise InputError(
                f"config of scFoundation: encoder and decoder are {' and '.join(kinds)}; expected "
                "a post-norm transformer and a performer"
            )
        return found


class ValueEmbedding(nn.Module):
    """A number as a mixture of learnt bins: values (...) to (..., D)."""

    def __init__(self, config: ScFoundationConfig) -> None:
        super().__init__()
        bins, width = config.bin_num, config.hidden_size
        self.alpha = config.bin_alpha
        self.mlp, self.mlp2 = nn.Linear(1, bins), nn.Linear(bins, bins)
        self.emb = nn.Embedding(bins, width)
        self.emb_mask, self.emb_pad = nn.Embedding(1, width), nn.Embedding(1, width)

    def weights(self, values: Tensor) -> Tensor:
        """Shares of the bins (..., bins)."""
        return soft_bins(values, self.mlp, self.mlp2, self.alpha)

    def forward(self, values: Tensor, masked: Tensor | None = None) -> Tensor:
        """Values that `masked` (...) marks are hidden."""
        found = self.weights(values) @ self.emb.weight
        if masked is None:
            return found
        return torch.where(masked.bool().unsqueeze(-1), self.emb_mask.weight[0], found)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.in_proj(x).chunk(3, -1))
        return self.out_proj(attend(q, k, v, layout, self.dropout if self.training else 0.0))


class Layer(nn.Module):
    """What torch.nn.TransformerEncoderLayer computes, post-norm with ReLU."""

    def __init__(self, config: ScFoundationConfig, dropout: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = SelfAttention(width, config.num_attention_heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, layout)))
        inner = self.dropout(self.linear1(x).relu())
        return self.norm2(x + self.dropout(self.linear2(inner)))


class Encoder(nn.Module):
    def __init__(self, config: ScFoundationConfig, dropout: float) -> None:
        super().__init__()
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.transformer_encoder = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_size)


class FastAttention(nn.Module):
    """Softmax attention by positive random features (Choromanski et al. 2020, arXiv:2009.14794)."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        features = int(head_width * math.log(head_width))
        self.register_buffer("projection_matrix", torch.empty(features, head_width))

    def features(self, u: Tensor, over: tuple[int, ...]) -> Tensor:
        """(B, H, n, d) to (B, H, n, m), scaled by the largest exponent along the axes `over`."""
        width, matrix = u.shape[-1], self.projection_matrix.to(u.dtype)
        projected = u @ (matrix * width**-0.25).T
        # As published, the largest is taken before the squares go off.
        largest = projected.amax(over, keepdim=True)
        squares = u.square().sum(-1, keepdim=True) * width**-0.5 / 2
        return len(matrix) ** -0.5 * ((projected - squares - largest).exp() + 1e-4)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, over_batch: bool) -> Tensor:
        q = self.features(q, (-1,))
        k = self.features(k, (0, 1, 2, 3) if over_batch else (1, 2, 3))
        total = (q @ k.sum(-2).unsqueeze(-1)).squeeze(-1)
        return q @ (k.transpose(-1, -2) @ v) / total.unsqueeze(-1)


class PerformerAttention(nn.Module):
    def __init__(self, config: ScFoundationConfig) -> None:
        super().__init__()
        self.heads = config.decoder_heads
        width, inner = config.decoder_width, config.decoder_heads * config.decoder_head_width
        self.fast_attention = FastAttention(config.decoder_head_width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner) for _ in range(3))
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, over_batch: bool) -> Tensor:
        q, k, v = (
            split_heads(part(x), self.heads).float() for part in (self.to_q, self.to_k, self.to_v)
        )
        found = self.fast_attention(q, k, v, over_batch)
        return self.to_out(found.transpose(1, 2).flatten(2).to(x.dtype))


class PerformerMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(x)))


class _Within(nn.Module):
    """`fn` of the published names."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *inputs) -> Tensor:
        return self.fn(*inputs)


class PreNorm(_Within):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__(fn)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, *inputs) -> Tensor:
        return self.fn(self.norm(x), *inputs)


class Decoder(nn.Module):
    """Embeddings (B, n, D') to states (B, n, D')."""

    def __init__(self, config: ScFoundationConfig) -> None:
        super().__init__()
        width = config.decoder_width
        layers = (
            nn.ModuleList(
                [
                    PreNorm(width, PerformerAttention(config)),
                    PreNorm(width, _Within(PerformerMLP(width))),
                ]
            )
            for _ in range(config.decoder_layers)
        )
        self.performer = nn.Module()
        self.performer.net = nn.Module()
        self.performer.net.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, over_batch: bool) -> Tensor:
        for attention, mlp in self.performer.net.layers:
            x = x + attention(x, over_batch)
            x = x + mlp(x)
        return self.norm(x)


class ScFoundation(nn.Module):
    """Values of expressed genes to hidden states, and these to values of all genes.

    `over_batch`: the decoder scales keys by the largest exponent of the batch, as published, so
    that cells of a batch influence each other slightly; else by that of each cell.
    """

    attention = "auto"
    notice = ""  # see `SequenceEncoder`

    def __init__(
        self, config: ScFoundationConfig, *, dropout: float = 0.0, over_batch: bool = False
    ) -> None:
        super().__init__()
        self.config, self.dropout, self.over_batch = config, dropout, over_batch
        width, narrow = config.hidden_size, config.decoder_width
        self.token_emb = ValueEmbedding(config)
        self.pos_emb = nn.Embedding(config.max_position_embeddings + 1, width)
        self.encoder = Encoder(config, dropout)
        self.decoder_embed = nn.Linear(width, narrow)
        self.decoder = Decoder(config)
        self.norm = nn.LayerNorm(narrow)
        self.to_final = nn.Linear(narrow, 1)

    def forward(
        self,
        values: Tensor,
        attention_mask: Tensor,
        collect: list | None = None,
        *,
        gene_ids: Tensor,
        masked: Tensor | None = None,
    ) -> Tensor:
        """States (B, L, D) of `values` (B, L) at the places `gene_ids` (B, L), 0 .. n - 1."""
        layout = self.layout(attention_mask)
        x = layout.pack(self.token_emb(values, masked) + self.pos_emb(gene_ids))
        for layer in self.encoder.transformer_encoder:
            if collect is not None:
                collect.append(x)
            x = layer(x, layout)
        x = self.encoder.norm(x)
        if collect is not None:
            collect[:] = map(layout.unpack, [*collect, x])
        return layout.unpack(x)

    def layout(self, attention_mask: Tensor) -> Layout:
        """See `SequenceEncoder.layout`."""
        kind, dtype = attention_mask.device.type, self.pos_emb.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        width = self.config.hidden_size // self.config.num_attention_heads
        dropout = self.dropout if self.training else 0.0
        found, self.notice = lay_out(attention_mask, self.attention, dtype, width, dropout)
        return found

    def reconstruct(self, hidden: Tensor, attention_mask: Tensor, gene_ids: Tensor) -> Tensor:
        """Values (B, n) of all places from the states of `forward`; places without are zero."""
        places = torch.arange(self.config.max_position_embeddings, device=hidden.device)
        absent = self.token_emb(places.new_zeros(1, dtype=hidden.dtype))
        x = absent.expand(len(hidden), len(places) + 1, -1).to(hidden.dtype)
        # What padding holds goes to one place more, which is cut off.
        to = gene_ids.masked_fill(~attention_mask.bool(), len(places)).unsqueeze(-1)
        x = x.scatter(1, to.expand_as(hidden), hidden)[:, :-1] + self.pos_emb(places)
        x = self.decoder(self.decoder_embed(x.to(self.decoder_embed.weight.dtype)), self.over_batch)
        return self.to_final(self.norm(x)).squeeze(-1)

    @torch.no_grad()
    def initialise(self) -> None:
        initialise(self, 0.02)
        for part in self.modules():
            if isinstance(part, FastAttention):  # orthogonal in blocks, rows as long as if drawn
                draw = torch.randn(part.projection_matrix.shape)
                blocks = [torch.linalg.qr(torch.randn(2 * [draw.shape[1]]))[0].T for _ in draw]
                rows = torch.cat(blocks)[: len(draw)] * draw.norm(dim=1, keepdim=True)
                part.projection_matrix.copy_(rows)
