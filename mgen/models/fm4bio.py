"""The protein encoders of AIDO: Protein, Protein-RAG, Protein2StructureToken.

The skeleton of the nucleotide encoder (rnabert.py) under the same parameter names, with one fused
GLU or a sparse mixture of them (Shazeer et al. 2017, arXiv:1701.06538), positions in one or two
dimensions, an optional structure embedding per token (Sun et al. 2024,
doi:10.1101/2024.11.29.625425; Li et al. 2024, doi:10.1101/2024.12.02.626519).
Shapes: B batch, L tokens, D width, F feed-forward width, E experts, S structure channels, n tokens
of a whole batch, k experts of a token.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError
from mgen.models.attention import Layout, Padded, Rotary, initialise
from mgen.models.encoder import Angles, SequenceEncoder, Stack
from mgen.models.rnabert import Embeddings, Head, RNABertConfig

CONTEXT_2D = 12_800  # tokens of query and alignment that the published rope_2d models are used with
ACTIVATIONS = {"swiglu": F.silu, "geglu": F.gelu}


@dataclass(frozen=True, kw_only=True)
class FM4BioConfig(RNABertConfig):
    """config.json of `model_type: fm4bio`."""

    vocab_size: int = 128
    max_position_embeddings: int = 2048  # under rope_2d CONTEXT_2D, whatever config.json says
    moe: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    use_lm_head: bool = True
    output_vocab_size: int | None = None
    apply_residual_connection_post_layernorm: bool = False
    str_embedding_in: int = 0  # 0: the model reads no structure

    supported: ClassVar[dict[str, tuple]] = RNABertConfig.supported | {
        "hidden_act": tuple(ACTIVATIONS),
        "position_embedding_type": ("rope", "rope_2d"),
        "tie_word_embeddings": (True, False),
    }

    @classmethod
    def from_json(cls, config: dict) -> "FM4BioConfig":
        """As for every family, but `str_embedding_in` may be text; what is no number means 0."""
        config = config | {"str_embedding_in": _number(config.get("str_embedding_in"))}
        if config.get("position_embedding_type") == "rope_2d":
            config["max_position_embeddings"] = CONTEXT_2D
        return super().from_json(config)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moe and not 1 <= self.experts_per_token <= self.num_experts:
            raise InputError(
                f"config.json: experts_per_token {self.experts_per_token} of num_experts "
                f"{self.num_experts}; expected at least 1 and no more than there are"
            )
        if self.use_lm_head and not self.tie_word_embeddings:
            raise InputError(
                "config.json: use_lm_head with tie_word_embeddings false is not supported; "
                "expected one of them to be the other way round"
            )
        if self.tie_word_embeddings and self.num_outputs != self.vocab_size:
            raise InputError(
                f"config.json: tie_word_embeddings is true (or absent), but output_vocab_size "
                f"{self.num_outputs} is not vocab_size {self.vocab_size}; set it to false"
            )

    @property
    def num_outputs(self) -> int:
        return self.output_vocab_size or self.vocab_size

    @property
    def has_rows(self) -> bool:
        """Positions are (residue, row of the alignment) pairs."""
        return self.position_embedding_type == "rope_2d"


class MLP(nn.Module):
    """out(value * act(gate)): the first half of the fused matrix is the value, the second the gate.

    rnabert.py stores gate and value the other way round.
    """

    def __init__(self, config: FM4BioConfig) -> None:
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = _linears(config)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        return _glu(h, self.dense_h_to_4h, self.act, self.dense_4h_to_h)


class Router(nn.Linear):
    """Scores of the experts, in fp32 also in a model of lower precision and under autocast."""

    full_precision = True  # its parameters stay float32 whatever the dtype of the weights

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h.float(), self.weight.float())


class MixtureOfExperts(nn.Module):
    """Each token through its k best experts; padding goes to none. No capacity limit, no noise."""

    def __init__(self, config: FM4BioConfig) -> None:
        super().__init__()
        self.router = Router(config.hidden_size, config.num_experts, bias=False)
        self.num_experts, self.per_token = config.num_experts, config.experts_per_token
        for e in range(config.num_experts):
            into, out = _linears(config)
            self.add_module(f"dense_h_to_4h_{e}", into)
            self.add_module(f"dense_4h_to_h_{e}", out)
        self.act = ACTIVATIONS[config.hidden_act]

    def expert(self, e: int, h: Tensor) -> Tensor:
        into, out = (
            self.get_submodule(f"{name}_{e}") for name in ("dense_h_to_4h", "dense_4h_to_h")
        )
        return _glu(h, into, self.act, out)

    def scores(self, h: Tensor) -> Tensor:
        """Router logits (..., E) of h (..., D), fp32."""
        with torch.autocast(h.device.type, enabled=False):  # of LoRA beside the router too
            return self.router(h.float())

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h (B, L, D), mask (B, L) nonzero at real tokens; zeros at the others.

        Tokens are sorted by expert, so that every expert sees one matrix of its tokens. One without
        any sees an empty matrix: its gradient is then zero, not absent.
        """
        flat = h.flatten(0, 1)  # (n, D)
        best, experts = self.scores(flat).topk(self.per_token, dim=-1)  # (n, k)
        # Padding counts as an expert after the last one.
        experts = experts.masked_fill(~mask.bool().flatten().unsqueeze(-1), self.num_experts)
        experts, order = experts.flatten().sort(stable=True)
        all_experts = torch.arange(self.num_experts, device=h.device)
        ends = torch.searchsorted(experts, all_experts, right=True).tolist()  # the one host sync
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        mine = flat[order[: ends[-1]] // self.per_token].split(sizes)
        parts = [self.expert(e, tokens) for e, tokens in enumerate(mine)]
        parts.append(flat.new_zeros(len(order) - ends[-1], flat.shape[-1], dtype=parts[0].dtype))
        # Back in the order of the tokens: a gather, as adding rows at indices is slow on CPUs.
        outputs = torch.cat(parts)[order.argsort()].unflatten(0, (-1, self.per_token))  # (n, k, D)
        summed = (outputs * best.softmax(-1).unsqueeze(-1)).sum(1)  # in fp32, as the weights are
        return summed.to(h.dtype).view_as(h)


class Layer(nn.Module):
    """Pre-norm; with `apply_residual_connection_post_layernorm` the residual is the normalised
    stream times alpha = sqrt(2 * layers), as in the dense 3B models."""

    def __init__(self, config: FM4BioConfig, dropout: float) -> None:
        super().__init__()
        self.attention = config.attention(dropout)
        self.ln = config.norm()
        self.mlp = (MixtureOfExperts if config.moe else MLP)(config)
        self.dropout = nn.Dropout(dropout)
        post_norm = config.apply_residual_connection_post_layernorm
        self.alpha = math.sqrt(2 * config.num_hidden_layers) if post_norm else None

    def residual(self, x: Tensor, h: Tensor) -> Tensor:
        return x if self.alpha is None else self.alpha * h

    def attended(self, x: Tensor, layout: Layout, angles: Angles) -> Tensor:
        h = self.attention.normalise(x)
        return self.residual(x, h) + self.dropout(self.attention(h, layout, angles))

    def forward(self, x: Tensor, layout: Layout, angles: Angles) -> Tensor:
        x = self.attended(x, layout, angles)
        h = self.ln(x)
        return self.residual(x, h) + self.dropout(self.mlp(h, layout.mask))


class Encoder(SequenceEncoder):
    """Further inputs: `position_ids` (B, 2, L), required under rope_2d, where row 0 is the residue
    and row 1 the row of the alignment; `structure` (B, L, S), zeros at tokens without one."""

    def __init__(self, config: FM4BioConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        if config.str_embedding_in:
            self.embeddings.str_embeddings = nn.Linear(
                config.str_embedding_in, config.hidden_size, bias=False
            )
        layers = (Layer(config, dropout) for _ in range(config.num_hidden_layers))
        self.encoder = Stack(layers, ln=config.norm())
        self.dropout = nn.Dropout(dropout)
        axes = 2 if config.has_rows else 1
        self.rotary = Rotary(config.head_width, config.rotary_percent, axes)

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        structure: Tensor | None = None,
    ) -> tuple[Tensor, Angles]:
        x = self.embeddings.word_embeddings(input_ids)
        if structure is not None:
            x = x + self.embeddings.str_embeddings(structure.to(x.dtype))
        if self.rotary.axes == 1:
            return self.dropout(x), self.rotary.along(x)
        # (B, 1, L, 2): the same for all heads
        return self.dropout(x), self.rotary(position_ids.transpose(1, 2).unsqueeze(1), x.dtype)

    def router_logits(self, input_ids: Tensor, attention_mask: Tensor, **inputs) -> list[Tensor]:
        """The scores of the experts in every layer, each (B, L, E). Raises InputError if dense."""
        if not isinstance(self.encoder.layer[0].mlp, MixtureOfExperts):
            raise InputError("this model is dense: it has no experts to route to")
        pairs, angles = self.layers_and_inputs(input_ids, attention_mask, **inputs)
        return [
            layer.mlp.scores(layer.ln(layer.attended(x, Padded(attention_mask), angles)))
            for layer, x in pairs
        ]


class FM4Bio(nn.Module):
    """Encoder (`bert`) and, unless the checkpoint has none, its head: `cls`, or one matrix
    `output_embed`, which is the word embedding table where config.json ties them."""

    def __init__(self, config: FM4BioConfig, *, head: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.bert = Encoder(config, dropout)
        self.cls = self.output_embed = None
        if head and config.use_lm_head:
            self.cls = Head(config)
        elif head and not config.tie_word_embeddings:
            self.output_embed = nn.Linear(config.hidden_size, config.num_outputs, bias=False)

    @property
    def has_head(self) -> bool:
        is_table = self.config.tie_word_embeddings and not self.config.use_lm_head
        return is_table or self.cls is not None or self.output_embed is not None

    def logits(self, hidden: Tensor) -> Tensor:
        table = self.bert.embeddings.word_embeddings.weight
        if self.cls is not None:
            return self.cls.predictions(hidden, table)
        hidden = hidden.to(table.dtype)
        return F.linear(hidden, table) if self.output_embed is None else self.output_embed(hidden)

    def initialise(self) -> None:
        initialise(self, self.config.initializer_range)


def _linears(config: FM4BioConfig) -> tuple[nn.Linear, nn.Linear]:
    width, inner, bias = config.hidden_size, config.intermediate_size, config.add_linear_bias
    return nn.Linear(width, 2 * inner, bias), nn.Linear(inner, width, bias)


def _glu(h: Tensor, into: nn.Module, act, out: nn.Module) -> Tensor:
    value, gate = into(h).chunk(2, dim=-1)
    return out(value * act(gate))


def _number(value: object) -> int:
    try:
        return max(int(float(value or 0)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0
