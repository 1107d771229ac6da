"""How often training draws each row: in proportion to a weight, or every value equally often."""

from __future__ import annotations

import numpy as np

from mgen.config import InputError
from mgen.data.splitting.assigning import coded, require_values
from mgen.data.table import Rows
from mgen.data.targets.labels import numbers, place


def sampling_weights(rows: Rows) -> np.ndarray | None:
    """The chance of each training row per draw, (n,) float64 with sum 1; None: each row once.

    Raises InputError for weights that are missing, negative, not finite or all zero, and for rows
    without a value to balance by.
    """
    table, train = rows.table, rows.splits["train"]
    if table.weight_col and table.balance_col:
        raise InputError("--data.weight-col, --data.balance-col: set one of them")
    if table.weight_col:
        rows.require(table.weight_col, "weight-col")
        weights = numbers(rows, [table.weight_col], train)[:, 0]
        if (weights < 0).any() or not weights.sum():
            wrong = int(np.flatnonzero(weights < 0)[0]) if (weights < 0).any() else 0
            where = place(rows, int(train[wrong]), table.weight_col)
            raise InputError(f"{where}: weights must be at least 0, and some of them above it")
        return weights / weights.sum()
    if table.balance_col:
        codes, names = coded(rows, table.balance_col, "balance-col")
        require_values(rows, table.balance_col, train, codes[train], names)
        ids = codes[train]
        counts = np.bincount(ids, minlength=len(names))
        different = np.count_nonzero(counts)
        if different < 2 or counts.max() == 1:
            raise InputError(
                f"{rows.names[0]}, column '{table.balance_col}': {different:,} different values in "
                f"{len(ids):,} training rows: nothing to balance. Set --data.balance-col"
            )
        return 1.0 / (counts[ids] * different)
    return None


def draw(rows: np.ndarray, weights: np.ndarray | None, seed: tuple[int, ...]) -> np.ndarray:
    """The row numbers of one epoch: as they are, or as many drawn with replacement by `weights`."""
    if weights is None:
        return rows
    return np.random.default_rng(seed).choice(rows, size=len(rows), p=weights)
