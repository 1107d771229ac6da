"""AIDO.Protein, AIDO.Protein-RAG, AIDO.Protein2StructureToken: amino acids, sequence [SEP]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.backbones.alignment import AlignmentTokenizer
from mgen.backbones.sequence import SequenceBackbone
from mgen.backbones.tokenizer import AMINO_ACIDS, PROTEIN, Style, Tokenizer
from mgen.io.weights import Tensors, published_keys
from mgen.models.fm4bio import FM4Bio, FM4BioConfig, Layer

TABLE = "bert.embeddings.word_embeddings.weight"
TIED = {
    "cls.predictions.decoder.weight": TABLE,
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
HEADS = ("cls.", "output_embed.")


class FM4BioBackbone(SequenceBackbone):
    """Dense or mixture of experts; with `rope_2d` rows may have an alignment and a structure.

    The states of such models are those of the query (alignment.py): as many as it has residues.
    """

    modality_by_default = "protein"
    blocks = (Layer,)
    lora_targets = ("query", "value", "key", "dense", "router")
    read = staticmethod(FM4BioConfig.from_json)

    def __init__(
        self, config: FM4BioConfig, tokenizer: Tokenizer, keys: set[str], *, dropout: float
    ) -> None:
        head = not keys or any(key.startswith(HEADS) for key in keys)
        super().__init__(FM4Bio(config, head=head, dropout=dropout), tokenizer, config)

    @classmethod
    def make_tokenizer(cls, choice, config_json: dict, **options) -> Tokenizer:
        plain, config = (
            super().make_tokenizer(choice, config_json, **options),
            cls.read(config_json),
        )
        if not config.has_rows:
            return plain
        return AlignmentTokenizer(
            plain.tokens,
            plain.style,
            structure=config.str_embedding_in,
            modality=plain.modality,
            max_length=plain.max_length,
            truncate=plain.truncate,
            unknown=plain.unknown,
            as_written=plain.as_written,
        )

    @staticmethod
    def alphabet(modality: str) -> tuple[tuple[str, ...], Style]:
        return AMINO_ACIDS, PROTEIN

    @staticmethod
    def rename(tensors: Tensors, config: FM4BioConfig) -> Tensors:
        tied_matrix = config.tie_word_embeddings and not config.use_lm_head
        tied = TIED | ({"output_embed.weight": TABLE} if tied_matrix else {})
        return published_keys(tensors, "bert.", HEADS, tied)

    @property
    def encoder(self) -> nn.Module:
        return self.model.bert

    @property
    def heads(self) -> list[nn.Module]:
        return [head for head in (self.model.cls, self.model.output_embed) if head is not None]

    def share(self, name: str) -> float:
        is_expert = self.config.moe and name.startswith("mlp.dense_")
        return self.config.experts_per_token / self.config.num_experts if is_expert else 1.0

    def decoder(self, hidden: Tensor) -> Tensor:
        if not self.model.has_head:
            return super().decoder(hidden)
        return self.model.logits(hidden).float()

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        inputs, length = self._inputs(batch), batch["input_ids"].shape[1]
        states: list[Tensor] = []
        last = self.encoder(**inputs, collect=None if collect is None else states)
        if collect is not None:
            collect.extend(state[:, :length] for state in states)
        return last[:, :length]

    def router_logits(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Scores of the experts (B, L, E), fp32, of every layer. Raises InputError if dense."""
        length = batch["input_ids"].shape[1]
        return [scores[:, :length] for scores in self.encoder.router_logits(**self._inputs(batch))]

    def row_inputs(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        found = super().row_inputs(batch)
        if not self.config.has_rows:
            return found
        query, context = batch["attention_mask"], batch["context_mask"]
        of_query, of_context = batch["position_ids"].mT.split((query.shape[1], context.shape[1]), 1)
        found += [(batch["context_ids"], context), (of_query, query), (of_context, context)]
        return found + [(batch["structure"], query)] * bool(self.config.str_embedding_in)

    def _inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the encoder reads: under rope_2d the query and its context side by side."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if not self.config.has_rows:
            return inputs
        inputs["input_ids"] = torch.cat((batch["input_ids"], batch["context_ids"]), 1)
        inputs["attention_mask"] = torch.cat((batch["attention_mask"], batch["context_mask"]), 1)
        inputs["position_ids"] = batch["position_ids"]
        if self.config.str_embedding_in:
            context = batch["context_ids"].shape[1]
            inputs["structure"] = F.pad(batch["structure"], (0, 0, 0, context))
        return inputs
