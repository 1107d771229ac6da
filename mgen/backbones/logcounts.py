"""The baseline of cells: ln(1 + 1e4 c / T) of each gene as it is, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mgen.backbones.cell_tokenizer import CellTokenizer, normalised, tensors
from mgen.backbones.cells import CellBackbone
from mgen.io.counts import Counts


class LogCountsTokenizer(CellTokenizer):
    """One token, which is all there is of a cell."""

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`values` (B, G), the masks (B, 1)."""
        mask = np.ones((len(rows), 1))
        values = normalised(self.dense(rows))
        return tensors(values=values, attention_mask=mask > 0, special_tokens_mask=mask < 0)

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return np.ones_like(expressed)


@dataclass(frozen=True)
class LogCountsConfig:
    hidden_size: int = 0  # as many as genes
    max_position_embeddings: int = 1
    num_hidden_layers: int = 0


class Identity(nn.Module):
    """Values (B, G) as the one hidden state of a cell (B, 1, G)."""

    notice = ""  # there is no attention

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("device", torch.empty(0), persistent=False)

    def forward(self, values: Tensor, mask: Tensor, collect: list | None = None) -> Tensor:
        hidden = values.unsqueeze(1)
        if collect is not None:
            collect.append(hidden)
        return hidden

    def initialise(self) -> None:
        pass


class LogCountsBackbone(CellBackbone):
    """Width G, the genes of AIDO.Cell's list or of the one named: what pretraining adds to."""

    tokenizer_type = LogCountsTokenizer
    gene_list = "aido_cell"

    def __init__(self, config: LogCountsConfig, tokenizer: CellTokenizer, keys: set[str]) -> None:
        super().__init__(Identity(), tokenizer, config)
        self.width = len(tokenizer.genes)

    @staticmethod
    def read(config: dict) -> LogCountsConfig:
        return LogCountsConfig()

    @staticmethod
    def num_genes(config: LogCountsConfig) -> int:
        return 0  # whatever the list has
