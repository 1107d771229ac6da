"""One-hot baselines: the vocabularies of AIDO without a network, sequence [SEP]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgen.backbones.sequence import SequenceBackbone
from mgen.backbones.tokenizer import AMINO_ACIDS, NUCLEOTIDES, PROTEIN, Style, Tokenizer


@dataclass(frozen=True, kw_only=True)
class OneHotConfig:
    vocab_size: int
    max_position_embeddings: int
    num_hidden_layers: int = 0

    @property
    def hidden_size(self) -> int:
        return self.vocab_size


class OneHot(nn.Module):
    """Token ids (B, L) to one-hot vectors (B, L, V), special tokens and padding included."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.eye(width), persistent=False)

    notice = ""  # there is no attention

    def forward(self, ids: Tensor, mask: Tensor, collect: list | None = None) -> Tensor:
        hidden = F.embedding(ids, self.table)
        if collect is not None:
            collect.append(hidden)
        return hidden

    def initialise(self) -> None:
        self.table.copy_(torch.eye(len(self.table)))


class OneHotBackbone(SequenceBackbone):
    """No weights: every run of it is a baseline for what pretraining adds."""

    def __init__(self, config: OneHotConfig, tokenizer: Tokenizer, keys: set[str]) -> None:
        super().__init__(OneHot(config.vocab_size), tokenizer, config)

    @staticmethod
    def read(config: dict) -> OneHotConfig:
        names = ("vocab_size", "max_position_embeddings")
        return OneHotConfig(**{name: config[name] for name in names})

    @staticmethod
    def alphabet(modality: str) -> tuple[tuple[str, ...], Style]:
        if modality == "protein":
            return AMINO_ACIDS, PROTEIN
        # The nucleotide vocabulary has no "-" to stand for unknown letters.
        return NUCLEOTIDES, Style(unknown="[UNK]", start="", separator="[SEP]")
