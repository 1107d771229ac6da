"""Cells: counts of genes, and the tables of genes that they refer to. No torch.

A table of cells has a column of type struct<genes: list<int32>, values: list<float32>>: of each
cell the genes that are not zero, as columns of its file's own `var`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

INDEX = ""  # the column of a GeneTable that holds the index of var


@dataclass(frozen=True, eq=False)
class GeneTable:
    """The genes of a file: the text columns of its `var` by name, the index under "".

    `column`: the one that says which gene it is; None: the one that fits a model's list best.
    """

    columns: dict[str, tuple[str, ...]]
    column: str | None = None

    def __len__(self) -> int:
        return len(self.columns[INDEX])

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.columns, self.column]).encode()).hexdigest()

    def names(self, genes: np.ndarray) -> list[str]:
        """The names that `var` has as its index."""
        return [self.columns[INDEX][gene] for gene in genes.tolist()]


@dataclass(frozen=True, eq=False)
class Counts:
    """A cell: `genes` (n,) int32, columns of its file by rising number, and their `values` (n,)
    float32, all others zero; of a tissue also its neighbours, the nearest first, and its `place`
    (x, y)."""

    genes: np.ndarray
    values: np.ndarray
    table: GeneTable
    neighbours: tuple[Counts, ...] = ()
    place: tuple[float, ...] = ()


def cells_of(data: Any, layer: str = "") -> list[Counts]:
    """The cells of an AnnData object: of X, of raw.X (`layer` "raw"), or of a layer.

    Raises InputError where there is no such matrix.
    """
    from scipy.sparse import csr_array

    source = data.raw if layer == "raw" else data
    if source is None or layer not in ("", "raw", *data.layers):
        known = ", ".join([*data.layers, *(["raw"] if data.raw is not None else [])])
        raise InputError(f"these cells have no layer '{layer}'; there are {known or 'none'}")
    matrix = csr_array(source.layers[layer] if layer not in ("", "raw") else source.X)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    var = source.var
    texts = {
        str(name): tuple(map(str, var[name])) for name in var if var[name].dtype.kind not in "biufc"
    }
    table = GeneTable({INDEX: tuple(map(str, var.index)), **texts})
    ends = matrix.indptr[1:-1]
    pairs = zip(np.split(matrix.indices, ends), np.split(matrix.data, ends), strict=True)
    return [
        Counts(genes.astype(np.int32), values.astype(np.float32), table) for genes, values in pairs
    ]


def entries(chunk: pa.StructArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a chunk of n cells: the ends of each (n + 1,), and genes and values end to end."""
    genes, values = chunk.flatten()
    ends = genes.offsets.to_numpy()
    return ends, *(part.values.to_numpy(zero_copy_only=False) for part in (genes, values))


def gene_table(found: dict[str, list[str]], column: str, name: str) -> GeneTable:
    """The table of a file's `var`, matched by `column` if given. Raises InputError."""
    if column and column not in found:
        known = [key for key in found if key]
        raise InputError(
            f"{name}: var has no text column '{column}'; it has {', '.join(known) or 'none'}."
            f"{nearest(column, known)} Set --data.gene-col, or drop it for the one that fits best"
        )
    return GeneTable({key: tuple(texts) for key, texts in found.items()}, column or None)
