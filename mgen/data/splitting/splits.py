"""Which rows train, validate and test: pure functions of row numbers.

The generators of plain draws are those of published results, so that their splits can be made
again: fractions as `datasets.Dataset.train_test_split`, folds as numpy's legacy generator shuffles.
Draws under a condition (rows that stay together, values that are shared alike) are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Condition:
    """What a draw must keep, for every row of a table: (N,) int64 each, by row number.

    Attributes:
        units: rows of one number stay together.
        strata: each part has its share of the rows of every number.
    """

    units: np.ndarray
    strata: np.ndarray

    def parts(self, rows: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
        """`rows` in parts of these shares, each in the order of `rows`. No part is empty.

        Raises InputError if there are fewer units than parts.
        """
        found = allocate(self.units[rows], self.strata[rows], shares, seed)
        parts = [rows[found == i] for i in range(len(shares))]
        if not all(map(len, parts)):
            count = len(np.unique(self.units[rows]))
            raise InputError(
                f"{len(rows):,} rows in {count:,} groups that stay together cannot be cut into "
                f"{len(shares)} parts with shares {', '.join(f'{s:.3g}' for s in shares)}: a part "
                "would be empty. Set other shares or folds, smaller groups or a higher "
                "--data.identity."
            )
        return parts


def allocate(
    units: np.ndarray, strata: np.ndarray, shares: Sequence[float], seed: int
) -> np.ndarray:
    """The part of each row (n,), 0 to len(shares) - 1, so that no unit is in two parts.

    Units of several rows come first, the largest at the head and equal ones in random order; each
    goes where the row counts by stratum and in all, its own half included, are the smallest share
    of what is wanted: Sainte-Lague's apportionment. Single rows then fill, at random, what each
    part lacks of each stratum, to a row.
    """
    generator = np.random.default_rng(seed)
    shares = np.asarray(shares) / np.sum(shares)
    units = np.unique(units, return_inverse=True)[1]
    strata = np.unique(strata, return_inverse=True)[1]
    wanted = shares[:, None] * np.bincount(strata)  # (parts, strata)
    counts = np.zeros_like(wanted)
    sizes = np.bincount(units)
    pairs, own = np.unique(units * wanted.shape[1] + strata, return_counts=True)
    owners, present = np.divmod(pairs, wanted.shape[1])  # the strata of each unit
    starts = np.searchsorted(owners, np.arange(len(sizes) + 1))
    several, part_of = generator.permutation(np.flatnonzero(sizes > 1)), np.full(len(sizes), -1)
    all_wanted, in_all = wanted.sum(1), np.zeros(len(shares))
    for unit in several[np.argsort(-sizes[several], kind="stable")]:
        span, size = slice(starts[unit], starts[unit + 1]), sizes[unit]
        here, number = present[span], own[span]
        filled = ((counts[:, here] + number / 2) / wanted[:, here]) @ number
        part = int(np.argmin(filled + (in_all + size / 2) / all_wanted * size))
        part_of[unit] = part
        counts[part, here] += number
        in_all[part] += size
    found = part_of[units]

    rows = generator.permutation(np.flatnonzero(sizes[units] == 1))
    rows = rows[np.argsort(strata[rows], kind="stable")]
    left = np.bincount(strata[rows], minlength=wanted.shape[1])
    lacking = (wanted - counts).clip(min=0)
    quota = lacking * (left / lacking.sum(0).clip(min=1e-9))
    due, at = np.zeros(len(shares)), 0
    for stratum in np.flatnonzero(left):
        due += quota[:, stratum]  # what rounding took from a part is given back by the next stratum
        whole = np.floor(due.clip(min=0) + 1e-9).astype(np.int64)
        over = whole.sum() - left[stratum]
        while over > 0:  # a debt of another part
            most = int(np.argmax(np.where(whole > 0, whole - due, -np.inf)))
            whole[most] -= 1
            over -= 1
        whole[np.argsort(whole - due, kind="stable")[: left[stratum] - whole.sum()]] += 1
        due -= whole
        found[rows[at : at + left[stratum]]] = np.repeat(np.arange(len(shares)), whole)
        at += left[stratum]
    return found


def fractions(
    splits: Splits, test: float, valid: float, seed: int, condition: Condition | None = None
) -> Splits:
    """Fill in the splits that are empty: test out of train, then valid out of what is left."""
    splits = dict(splits)
    for name, fraction in (("test", test), ("valid", valid)):
        if not len(splits[name]):
            train = splits["train"]
            if condition and 0 < fraction < 1 and len(train):
                splits["train"], splits[name] = condition.parts(
                    train, (1 - fraction, fraction), seed
                )
            else:
                splits["train"], splits[name] = by_fraction(train, fraction, seed)
    return splits


def connected(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Numbers (n,) equal for rows that are joined by a chain of equal numbers in either array."""
    units = np.arange(len(first))
    while True:
        before = units
        for ids in (first, second):
            least = np.full(ids.max(initial=0) + 1, len(units))
            np.minimum.at(least, ids, units)
            units = least[ids]
        units = units[units]  # a unit's least row may have found a lesser one
        if (units == before).all():
            return units


def random_folds(num_rows: int, num_folds: int, seed: int) -> list[np.ndarray]:
    """Positions 0..n-1 in `num_folds` random folds of n // k; the last one takes the rest too."""
    if not 2 <= num_folds <= num_rows:
        raise InputError(f"{num_rows} rows cannot be cut into {num_folds} folds")
    order = np.arange(num_rows)
    np.random.RandomState(seed).shuffle(order)
    size = num_rows // num_folds
    folds = [order[i * size : (i + 1) * size] for i in range(num_folds - 1)]
    return [*folds, order[(num_folds - 1) * size :]]


def conditional_folds(
    condition: Condition, rows: np.ndarray, num_folds: int, seed: int
) -> list[np.ndarray]:
    """Positions in `rows` in `num_folds` folds of about one size, in ascending order."""
    if not 2 <= num_folds <= len(rows):
        raise InputError(f"{len(rows)} rows cannot be cut into {num_folds} folds")
    parts = condition.parts(rows, [1 / num_folds] * num_folds, seed)
    return [np.flatnonzero(np.isin(rows, part)) for part in parts]


def named_folds(
    values: Sequence[str],
    num_folds: int,
    where: Callable[[int], str] = "position {}".format,
) -> list[np.ndarray]:
    """Positions by fold number. Raises InputError unless the values are exactly 0..k-1.

    `where` says of a position, for people, which row it is.
    """
    if num_folds < 2:
        raise InputError(f"--data.folds {num_folds}: expected 2 or more")
    expected = [str(i) for i in range(num_folds)]
    texts = np.asarray(values)
    found = set(np.unique(texts).tolist())
    if found != set(expected):
        gaps = [name for name in expected if name not in found]
        odd = np.flatnonzero(~np.isin(texts, expected))
        said = f"no row is in fold {', '.join(gaps[:10])}; " if gaps else ""
        if len(odd):
            said += f"{len(odd):,} rows are in no fold, the first is {where(int(odd[0]))}; "
        raise InputError(
            f"the fold column holds {_listed(found)}, expected exactly 0 to {num_folds - 1}: {said}"
            "set --data.folds to their number, or number them from 0."
        )
    return [np.flatnonzero(texts == name) for name in expected]


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


def _listed(names: set[str], most: int = 10) -> str:
    shown = sorted(names)[:most]
    return ", ".join(map(repr, shown)) + (", ..." if len(names) > most else "")
