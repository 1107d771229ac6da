"""AIDO.Tissue: the genes that a cell and its neighbours express."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgen.backbones.cell_tokenizer import TARGET, CellTokenizer, normalised, padded, tensors
from mgen.backbones.cellfoundation import LARGEST, LEAST_DEPTH, CellFoundationBackbone
from mgen.io.counts import Counts
from mgen.models.tissuefoundation import TissueFoundation

MULTIPLE = 16  # of tokens, to which published code pads


class TissueTokenizer(CellTokenizer):
    """Of each cell its genes above zero, then two tokens of its depth: max(log10 T, 5).

    Pooling counts the genes of the first cell, the one the row is about.
    """

    num_special = 2
    reads_neighbours = True

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`values`, the masks (B, L) and `position_ids` (B, 2, L): gene and cell."""
        tissue = [[row, *row.neighbours] for row in rows]
        read = self._published(tissue) if self.as_published else self._read(tissue)
        size, single = len(self.genes), all(len(cells) == 1 for cells in tissue)
        width = max(len(values) for values, _, _ in read)
        width += -width % MULTIPLE if self.as_published else 0
        values, genes, cells = zip(*read, strict=True)
        genes = padded(genes, size + 2, width)
        cells = padded(cells, 0 if single and self.as_published else size + 2, width)
        is_real = genes != size + 2
        is_own = is_real & (cells == 0) & (genes < size)
        if self.as_published:  # depths are pooled too and, of a single cell, padding
            is_real |= single
            is_own = is_real & (cells == 0)
        return tensors(
            values=padded(values, float(self.config.pad_token_id), width),
            position_ids=np.stack([genes, cells], 1),
            attention_mask=is_real,
            special_tokens_mask=~is_own,
        )

    def _read(self, tissue: list[list[Counts]]) -> list[tuple[np.ndarray, ...]]:
        """Values, genes and cells of the tokens of each row."""
        found = []
        for cells in tissue:
            parts = [self._cell(cell, number) for number, cell in enumerate(cells)]
            found.append(tuple(map(np.concatenate, zip(*parts, strict=True))))
        return found

    def _cell(self, cell: Counts, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size, (places, counts) = len(self.genes), self.sparse(cell)
        depth = max(np.log10(max(counts.sum(dtype=np.float64), 1)), LEAST_DEPTH)
        values = np.append(normalised(counts), [depth, depth]).clip(max=LARGEST)
        genes = np.append(places, [size, size + 1])
        return values.astype(np.float32), genes, np.full_like(genes, number)

    def _published(self, tissue: list[list[Counts]]) -> list[tuple[np.ndarray, ...]]:
        """The same as published: in bfloat16, by totals of all cells of a batch at one place."""
        blocks = []
        for cells in zip(*tissue, strict=True):
            counts = torch.from_numpy(self.dense(cells)).bfloat16()
            total = counts.sum()
            depth = torch.log10(total).float().clamp(min=LEAST_DEPTH)
            x = torch.log1p(counts / total * TARGET).float()
            blocks.append(torch.cat([x, depth.expand(len(x), 2)], 1).clamp(max=LARGEST))
        x = torch.cat(blocks, 1).bfloat16().float().numpy()
        places = np.arange(x.shape[1])
        genes, number = places % blocks[0].shape[1], places // blocks[0].shape[1]
        return [(row[row > 0], genes[row > 0], number[row > 0]) for row in x]

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return expressed + self.num_special


class TissueFoundationBackbone(CellFoundationBackbone):
    """`decoder` gives ln(1 + 1e4 c / T) of every token."""

    tokenizer_type = TissueTokenizer
    network = TissueFoundation
    further = ("position_ids",)

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        self.encoder.attends_padding = self.tokenizer.as_published
        if self.tokenizer.as_published:
            batch = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
        return super().encode(batch, collect)
