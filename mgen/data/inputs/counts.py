"""The counts of an opened table of cells, and which cells are near each other. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgen.config import InputError
from mgen.io.counts import entries

if TYPE_CHECKING:
    import pyarrow as pa

    from mgen.data.table import Rows


class Column:
    """The counts of memory-mapped rows, used where they lie."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.starts = np.cumsum([0, *map(len, column.chunks)])
        self.blocks = [entries(chunk) for chunk in column.chunks]

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        block = int(np.searchsorted(self.starts, row, side="right")) - 1
        ends, genes, values = self.blocks[block]
        first, last = ends[row - self.starts[block] :][:2]
        return genes[first:last].copy(), values[first:last].copy()


def nearest_rows(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The `neighbours` nearest rows of each row within its file, nearest first, (N, k) int32, and
    the places of all (N, axes) float64.

    By Euclidean distance of `position_cols`; equal distances by row number. Raises InputError for
    a missing position, for a file with too few cells, and for rows that are no cells.
    """
    from scipy.spatial import cKDTree

    table, found = rows.table, []
    if not rows.genes:
        raise InputError(
            f"{rows.names[0]}: --data.neighbours {table.neighbours} is for tables of cells. Drop it"
        )
    places = np.stack([_numbers(rows, column) for column in table.position_cols], 1)
    for name, first, last in zip(rows.names, rows.starts, rows.starts[1:], strict=False):
        own, k = places[first:last], table.neighbours
        if len(own) <= k:
            raise InputError(f"{name}: {len(own):,} cells, too few for --data.neighbours {k}")
        distance, index = cKDTree(own).query(own, k + 1)
        is_self = index == np.arange(len(own))[:, None]
        distance[is_self] = -1.0  # first, also among cells at one place
        order = np.lexsort((index, distance))
        index = np.take_along_axis(index, order, 1)
        found.append(first + index[:, 1:])
    return np.concatenate(found).astype(np.int32), places


def _numbers(rows: Rows, column: str) -> np.ndarray:
    given = rows.values(column, "position-cols")
    for row, value in enumerate(given):
        try:
            is_place = bool(np.isfinite(float(value)))
        except (TypeError, ValueError):
            is_place = False
        if not is_place:
            raise InputError(
                f"{rows.where(row)}, column '{column}': {value!r} is no coordinate. Correct it, or "
                "set --data.position-cols"
            )
    return np.array(given, dtype=float)
