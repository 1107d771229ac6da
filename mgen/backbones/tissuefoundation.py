"""AIDO.Tissue: the genes that a cell and its neighbours express."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgen.backbones.cell_tokenizer import TARGET, CellTokenizer, normalised, padded, tensors
from mgen.backbones.cellfoundation import LARGEST, LEAST_DEPTH, CellFoundationBackbone
from mgen.backbones.cells import READING
from mgen.config import InputError
from mgen.io.counts import Counts
from mgen.models.tissuefoundation import TissueFoundation

MULTIPLE = 16  # of tokens, to which published code pads


class TissueTokenizer(CellTokenizer):
    """Of each cell its genes above zero, then two tokens of its depth: max(log10 T, 5).

    Pooling counts the genes of the first cell, the one the row is about.
    """

    num_special = 2
    reads_neighbours = True

    def __init__(self, *args, rope2d_use_xy: bool = False, **options) -> None:
        super().__init__(*args, **options)
        self.rope2d_use_xy = rope2d_use_xy

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
        ids = np.stack([genes, cells], 1)
        if self.rope2d_use_xy:
            ids = self._places(tissue, cells, genes != size + 2)
        return tensors(
            values=padded(values, float(self.config.pad_token_id), width),
            position_ids=ids,
            attention_mask=is_real,
            special_tokens_mask=~is_own,
        )

    def _places(
        self, tissue: list[list[Counts]], cells: np.ndarray, is_real: np.ndarray
    ) -> np.ndarray:
        """x and y of the cell of each token (B, 2, L), 0 at padding. Raises InputError."""
        found = np.zeros((len(cells), 2, cells.shape[1]), dtype=np.int64)
        for row, near in enumerate(tissue):
            places = np.array([cell.place for cell in near])
            self.check_places(places if places.size else None)
            found[row][:, is_real[row]] = places[cells[row][is_real[row]]].T
        return found

    def check_places(self, places: np.ndarray | None) -> None:
        last = len(self.genes) + 2
        if not self.rope2d_use_xy:
            return
        found = "none"
        if places is not None and places.shape[1:] == (2,):
            wrong = ((places % 1 != 0) | (places < 0) | (places > last)).any(1)
            if not wrong.any():
                return
            row = int(np.argmax(wrong))
            found = f"{places[row].tolist()} of cell {row + 1}"
        raise InputError(
            "--backbone.rope2d-use-xy: expected x and y of each cell as whole numbers from 0 to "
            f"{last:,}, found {found}. Set --data.neighbours, and --data.position-cols to two such "
            "columns"
        )

    def token_genes(self, batch: dict[str, Tensor]) -> Tensor:
        if self.rope2d_use_xy:
            raise InputError("--backbone.rope2d-use-xy: the model is not told which gene is which")
        return super().token_genes(batch)

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
    reading = (*READING, "rope2d_use_xy")

    def encode(self, batch: dict[str, Tensor], collect: list | None = None) -> Tensor:
        self.encoder.attends_padding = self.tokenizer.as_published
        self.encoder.zeroes_padding = not self.tokenizer.rope2d_use_xy
        if self.tokenizer.as_published:
            batch = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
        return super().encode(batch, collect)
