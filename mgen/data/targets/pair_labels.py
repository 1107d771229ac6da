"""Pairs of residues, read in streaming blocks and validated: every bad cell is named by its row.

A cell has a list of pairs [i, j] of positions counted from 0, or a matrix (L, L) of 0 and 1, either
of them as lists or JSON text, or a dot-bracket structure: "." is unpaired, and ( ), [ ], { }, < >
and letters A a to Z z are pairs, so that kinds may cross. L residues of a row, l of the longest.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError
from mgen.data.checking.reads import Reads
from mgen.data.table import Rows
from mgen.data.targets.labels import Problem, place
from mgen.data.targets.token_labels import IGNORED, is_missing, json_list, per_letter, shown

if TYPE_CHECKING:
    from torch import Tensor

PARTNERS = dict(zip(")]}>" + string.ascii_lowercase, "([{<" + string.ascii_uppercase, strict=True))


def pair_matrix(cell: Any, length: int) -> np.ndarray:
    """1 where a pair is, 0 where none is and IGNORED where it is not known: int8 (L, L), symmetric.

    A matrix with pairs in one of its triangles alone is mirrored; -1 and -100 in it are not known.
    Raises ValueError for what is no pairs of a sequence of `length` residues.
    """
    pairs = json_list(cell) if isinstance(cell, str) else cell
    if pairs is None and isinstance(cell, str):
        if len(cell) != length:
            raise ValueError(
                f"a structure of {len(cell):,} letters for a sequence of {length:,} residues"
            )
        pairs = dot_bracket_pairs(cell)
    if not isinstance(pairs, list):
        raise ValueError(f"{shown(cell)} ({type(cell).__name__}) is neither pairs nor a structure")
    widths = {len(row) if isinstance(row, list) else -1 for row in pairs}
    if len(pairs) == length and widths == {length}:  # of two residues, always a matrix
        return _of_matrix(pairs, length)
    if widths - {2}:
        raise ValueError(
            f"expected pairs [i, j] or a matrix of {length:,} x {length:,}; found "
            f"{len(pairs):,} entries, such as {shown(pairs[0])}"
        )
    return _of_pairs(pairs, length)


def dot_bracket_pairs(structure: str) -> list[list[int]]:
    """Pairs [i, j] of a structure, i < j, counted from 0, by rising i.

    Raises ValueError for another letter and for brackets that do not match.
    """
    opened: dict[str, list[int]] = {opener: [] for opener in PARTNERS.values()}
    pairs = []
    for position, letter in enumerate(structure):
        if letter in opened:
            opened[letter].append(position)
        elif letter in PARTNERS:
            if not (stack := opened[PARTNERS[letter]]):
                raise ValueError(f"'{letter}' at position {position} (from 0) closes no bracket")
            pairs.append([stack.pop(), position])
        elif letter != ".":
            raise ValueError(f"{letter!r} at position {position} (from 0) is no dot or bracket")
    if left := [(stack[-1], opener) for opener, stack in opened.items() if stack]:
        position, opener = min(left)
        raise ValueError(f"'{opener}' at position {position} (from 0) is never closed")
    return sorted(pairs)


def pair_facts(
    rows: Rows, splits: Sequence[str], tokenizer: Reads, known: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Check the pairs of `splits`; what share of residues at each distance pair in training.

    `by_distance`: that share for j - i = 0, 1, ... Training rows without one known pair of residues
    are left out of the split, which the notes say. Raises InputError with the first bad cell.
    """
    if len(rows.table.y_cols) != 1:
        given = " ".join(rows.table.y_cols) or "is empty"
        raise InputError(f"--data.y-cols {given}: name the one column that holds the pairs")
    found = {split: _survey(rows, rows.splits[split], tokenizer) for split in splits}
    if known or not splits:
        return known, []
    (pairs, possible, bare), notes = found["train"], []
    if bare:
        rows.splits["train"] = np.setdiff1d(rows.splits["train"], bare)
        notes = [f"{len(bare):,} training rows have no pair of residues that is known: left out"]
    if not pairs[1:].any():
        column = rows.table.y_cols[0]
        raise InputError(f"{rows.names[0]}, column '{column}': not one pair in the training rows")
    return {"by_distance": (pairs / np.maximum(possible, 1)).tolist()}, notes


def residue_spans(inputs: list, tokenizer: Reads, special: Tensor) -> Tensor:
    """The first residue read of each row, from 0, how many are read and how many it has: (B, 3).

    `special` (B, tokens) is 0 at residues. The first is 0 but where the left end was cut off.
    """
    import torch

    read = (special == 0).sum(1)
    whole = read
    if tokenizer.truncate in ("left", "right"):
        whole = (tokenizer.tokenize(inputs, max_length=0)["special_tokens_mask"] == 0).sum(1)
    first = whole - read if tokenizer.truncate == "left" else torch.zeros_like(read)
    return torch.stack([first, read, whole], dim=1)


def pair_targets(cells: Sequence[Any], spans: Tensor) -> Tensor:
    """Pairs (B, l, l), int8, of the residues read of rows, IGNORED beyond a row's own.

    `spans` (B, 3) as of `residue_spans`. Raises ValueError as `pair_matrix`.
    """
    import torch

    longest = int(spans[:, 1].max())
    targets = torch.full((len(cells), longest, longest), IGNORED, dtype=torch.int8)
    for target, cell, (first, read, whole) in zip(targets, cells, spans.tolist(), strict=True):
        kept = slice(first, first + read)
        target[:read, :read] = torch.from_numpy(pair_matrix(cell, whole)[kept, kept])
    return targets


# --------------------------------------------------------------------------- one pass


def _survey(rows: Rows, indices: np.ndarray, tokenizer) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Pairs, and places for pairs, at each distance j - i, (longest,) each; rows without a place.

    Raises InputError, after the last row, with the first that is bad.
    """
    column = rows.table.y_cols[0]
    missing, wrong = Problem(), Problem()
    pairs, possible, bare = np.zeros(1), np.zeros(1), []
    for number, length, row in per_letter(rows, tokenizer, [column], indices):
        if is_missing(row[column]):
            missing.add(number)
            continue
        try:
            matrix = pair_matrix(row[column], length)
        except ValueError as error:
            wrong.add(number, str(error))
            continue
        pairs = _sum(pairs, _distances(matrix == 1, length))
        here = length - np.arange(length) - _distances(matrix == IGNORED, length)
        possible = _sum(possible, here)
        if not here[1:].any():
            bare.append(number)
    total = f"of {len(indices):,} rows"
    if missing.count:
        raise InputError(
            f"{place(rows, missing.row, column)}: no pairs. Write [] where there are none; only "
            f"prediction works without labels ({missing.count:,} {total})."
        )
    if wrong.count:
        where = place(rows, wrong.row, column)
        raise InputError(f"{where}: {wrong.value} ({wrong.count:,} {total}).")
    return pairs, possible, bare


def _distances(marked: np.ndarray, length: int) -> np.ndarray:
    earlier, later = np.nonzero(np.triu(marked))
    return np.bincount(later - earlier, minlength=length)


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    longer, shorter = (a.copy(), b) if len(a) >= len(b) else (b.astype(float), a)
    longer[: len(shorter)] += shorter
    return longer


# --------------------------------------------------------------------------- cells


def _of_pairs(pairs: list, length: int) -> np.ndarray:
    matrix = np.zeros((length, length), dtype=np.int8)
    if not pairs:
        return matrix
    numbers = np.asarray(pairs)  # (pairs, 2)
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"positions of pairs are whole numbers; found {shown(pairs[0])}")
    if (outside := ((numbers < 0) | (numbers >= length)).any(1)).any():
        counted = "; these seem to count from 1" if numbers.min() == 1 else ""
        raise ValueError(
            f"pair {numbers[outside][0].tolist()} lies outside a sequence of {length:,} residues, "
            f"whose positions count from 0 to {length - 1:,}{counted}"
        )
    first, second = numbers.T
    if (first == second).any():
        raise ValueError(f"pair {numbers[first == second][0].tolist()} joins a residue with itself")
    matrix[first, second] = matrix[second, first] = 1
    return matrix


def _of_matrix(listed: list, length: int) -> np.ndarray:
    try:
        numbers = np.array(listed, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("a matrix of pairs holds numbers") from None
    numbers[np.isnan(numbers) | (numbers == -1)] = IGNORED
    wrong = ~np.isin(numbers, (0, 1, IGNORED))
    if wrong.any():
        raise ValueError(f"{numbers[wrong][0]:g} in a matrix of pairs is neither 0 nor 1")
    return _mirrored(numbers.astype(np.int8))


def _mirrored(matrix: np.ndarray) -> np.ndarray:
    upper, lower = np.triu(matrix, 1), np.tril(matrix, -1).T
    if (upper == lower).all():
        return matrix
    if upper.any() and lower.any():
        i, j = np.argwhere(upper != lower)[0].tolist()
        raise ValueError(
            f"the matrix is not symmetric: {upper[i, j]} at [{i}, {j}] (from 0) but "
            f"{lower[i, j]} at [{j}, {i}]"
        )
    both = upper + lower  # one of them is empty
    return both + both.T + np.diag(np.diag(matrix))
