"""AIDO.Cell: all genes of a cell, and its depth."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mgen.backbones.cell_tokenizer import CellTokenizer, normalised, tensors
from mgen.backbones.cells import CellBackbone
from mgen.io.counts import Counts
from mgen.io.weights import Tensors, published_keys
from mgen.models.cellfoundation import CellFoundation, CellFoundationConfig
from mgen.models.rnabert import Layer

LEAST_DEPTH, LARGEST = 5.0, 20.0
TIED = {"cls.predictions.decoder.bias": "cls.predictions.bias"}


class CellFoundationTokenizer(CellTokenizer):
    """G genes, zeros too, then two tokens of the depth: max(log10 T, 5) of the total T."""

    num_special = 2

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`values`, `attention_mask`, `special_tokens_mask` (B, G + 2)."""
        counts = self.dense(rows)
        values = preprocessed(counts, self.as_published)
        passed = np.ones(values.shape)
        passed[:, :-2] = ~self.pooled(rows)
        mask = np.ones(values.shape) > 0
        return tensors(values=values, attention_mask=mask, special_tokens_mask=passed > 0)

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return np.full_like(expressed, len(self.genes) + self.num_special)


def preprocessed(counts: np.ndarray, as_published: bool = False) -> np.ndarray:
    """What the model reads of counts (B, G): (B, G + 2) float32; as published in bfloat16."""
    total = counts.sum(1, keepdims=True, dtype=np.float64)
    depth = np.maximum(np.log10(np.maximum(total, 1)), LEAST_DEPTH)
    values = np.concatenate([normalised(counts), depth, depth], 1).clip(max=LARGEST)
    values = values.astype(np.float32)
    return torch.from_numpy(values).bfloat16().float().numpy() if as_published else values


class CellFoundationBackbone(CellBackbone):
    """`decoder` gives ln(1 + 1e4 c / T) of every gene where the checkpoint has its head."""

    tokenizer_type = CellFoundationTokenizer
    gene_list = "aido_cell"
    blocks = (Layer,)
    lora_targets = ("query", "key", "value", "attention.output.dense")
    network: type[CellFoundation] = CellFoundation
    read = staticmethod(CellFoundationConfig.from_json)

    def __init__(
        self,
        config: CellFoundationConfig,
        tokenizer: CellTokenizer,
        keys: set[str],
        *,
        dropout: float,
    ) -> None:
        head = not keys or any(key.startswith("cls.") for key in keys)
        super().__init__(self.network(config, head=head, dropout=dropout), tokenizer, config)

    @staticmethod
    def rename(tensors: Tensors, config: CellFoundationConfig) -> Tensors:
        return published_keys(tensors, "bert.", ["cls."], TIED)

    @property
    def encoder(self) -> nn.Module:
        return self.model.bert

    @property
    def heads(self) -> list[nn.Module]:
        return [self.model.cls] if self.model.cls else []

    def decoder(self, hidden: Tensor) -> Tensor:
        if self.model.cls is None:
            return super().decoder(hidden)
        return self.model.logits(hidden).float()
