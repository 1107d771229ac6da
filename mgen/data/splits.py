"""Which rows train, validate and test: pure functions of row numbers.

The generators are those of published results, so that their splits can be made again: fractions as
`datasets.Dataset.train_test_split`, folds as numpy's legacy generator shuffles.
"""

import math
from collections.abc import Sequence

import numpy as np

from mgen.config import InputError

Splits = dict[str, np.ndarray]  # "train", "valid", "test" -> row numbers, in order


def by_fraction(rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ceil(fraction n) of `rows` at random; returns (rest, drawn), both in shuffled order.

    Equals `Dataset.train_test_split(test_size=fraction, seed=seed)`. A fraction of 0 draws none and
    leaves the order alone. Raises InputError if nothing would be left.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"a share of rows must be at least 0 and below 1, found {fraction}")
    if fraction == 0 or not len(rows):
        return rows, rows[:0]
    drawn = math.ceil(fraction * len(rows))
    if drawn == len(rows):
        raise InputError(
            f"{len(rows)} rows cannot be divided: a share of {fraction} takes them all. Set "
            "--data.test-fraction 0 --data.valid-fraction 0 or name the splits."
        )
    shuffled = rows[np.random.default_rng(seed).permutation(len(rows))]
    return shuffled[drawn:], shuffled[:drawn]


def fractions(splits: Splits, test: float, valid: float, seed: int) -> Splits:
    """Fill in the splits that are empty: test out of train, then valid out of what is left."""
    splits = dict(splits)
    for name, fraction in (("test", test), ("valid", valid)):
        if not len(splits[name]):
            splits["train"], splits[name] = by_fraction(splits["train"], fraction, seed)
    return splits


def keep_classes(splits: Splits, labels: Sequence[str], kept: Sequence[str]) -> Splits:
    """Drop the rows whose label (text, by row number) is not in `kept`; classes keep their ids."""
    is_kept = np.isin(np.asarray(labels, dtype=object).astype(str), list(kept))
    return {name: rows[is_kept[rows]] for name, rows in splits.items()}


def random_folds(num_rows: int, num_folds: int, seed: int) -> list[np.ndarray]:
    """Positions 0..n-1 in `num_folds` random folds of n // k; the last one takes the rest too."""
    if not 2 <= num_folds <= num_rows:
        raise InputError(f"{num_rows} rows cannot be cut into {num_folds} folds")
    order = np.arange(num_rows)
    np.random.RandomState(seed).shuffle(order)
    size = num_rows // num_folds
    folds = [order[i * size : (i + 1) * size] for i in range(num_folds - 1)]
    return [*folds, order[(num_folds - 1) * size :]]


def named_folds(values: Sequence[str | int | float], num_folds: int) -> list[np.ndarray]:
    """Positions by fold number. Raises InputError unless the values are exactly 0..k-1."""
    expected = {str(i) for i in range(num_folds)}
    texts = np.array([_fold_name(value) for value in values])
    found = set(texts.tolist())
    if found != expected:
        raise InputError(
            f"the fold column holds {_listed(found)}, expected exactly 0 to {num_folds - 1}. Set "
            "--data.folds to their number."
        )
    return [np.flatnonzero(texts == str(i)) for i in range(num_folds)]


def by_fold(
    rows: np.ndarray, folds: list[np.ndarray], fold: int, valid: bool, valid_offset: int
) -> Splits:
    """Test on one fold, validate on another, train on all others in ascending position.

    `folds` are positions in `rows`. Valid is fold (fold + valid_offset) mod k, which for an offset
    of 0 is the test fold itself; without `valid` that fold trains.
    """
    if not 0 <= fold < len(folds):
        raise InputError(f"--data.fold {fold}: the folds are 0 to {len(folds) - 1}")
    valid_fold = (fold + valid_offset) % len(folds)
    held_out = {fold, valid_fold} if valid else {fold}
    trained = [f for i, f in enumerate(folds) if i not in held_out]
    none = np.array([], dtype=np.int64)
    return {
        "train": rows[np.sort(np.concatenate([none, *trained]))],
        "valid": rows[folds[valid_fold]] if valid else rows[none],
        "test": rows[folds[fold]],
    }


def _fold_name(value: str | int | float) -> str:
    # A column of whole numbers with gaps is often stored as floats: 2.0 is fold 2.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listed(names: set[str], most: int = 10) -> str:
    shown = sorted(names)[:most]
    return ", ".join(map(repr, shown)) + (", ..." if len(names) > most else "")
