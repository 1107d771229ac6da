"""Labels of a table, read in streaming blocks and validated: every bad one is named by its row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.table import Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

MOST_CLASSES = 100_000
NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.IGNORECASE)
WHOLE = re.compile(r"[+-]?\d+(\.0+)?")


@dataclass
class Problem:
    """The first row of one kind of problem, and how many rows have it."""

    row: int = -1
    value: Any = None
    count: int = 0

    def add(self, row: int, value: Any = None, count: int = 1) -> None:
        if count and not self.count:
            self.row, self.value = int(row), value
        self.count += int(count)


def place(rows: Rows, row: int, column: str) -> str:
    """Where a cell is, for messages: file, row, the row's identifier and the column."""
    name = f", id '{rows.take([row])[0][rows.id_col]}'" if rows.id_col else ""
    return f"{rows.where(row)}{name}, column '{column}'"


# --------------------------------------------------------------------------- numbers


def numbers(rows: Rows, columns: Sequence[str], indices: np.ndarray) -> np.ndarray:
    """Labels (n, K) in the order of `indices`, float64. Raises InputError as `number_blocks`."""
    labels = np.empty((len(indices), len(columns)))
    order, start = np.argsort(indices, kind="stable"), 0
    for block in number_blocks(rows, columns, indices):
        labels[order[start : start + len(block)]] = block
        start += len(block)
    return labels


def number_blocks(rows: Rows, columns: Sequence[str], indices: np.ndarray) -> Iterator[np.ndarray]:
    """Labels (n, K) in blocks by rising row number.

    Raises InputError, after the last block, with the first row and the number of rows that have no
    label, text, or a number that is not finite.
    """
    found = {
        (column, kind): Problem() for column in columns for kind in ("missing", "text", "infinite")
    }
    for column in columns:
        _require_labels(rows, column)
    for numbered, block in rows.chunks(columns, indices):
        parsed = []
        for column in columns:
            values, missing, is_text = _parsed(block.column(column))
            infinite = ~np.isfinite(values) & ~missing & ~is_text
            for kind, bad in (("missing", missing), ("text", is_text), ("infinite", infinite)):
                if bad.any():
                    first = int(np.flatnonzero(bad)[0])
                    cell = block.column(column)[first].as_py()
                    found[column, kind].add(numbered[first], cell, bad.sum())
            parsed.append(values)
        yield np.stack(parsed, axis=1)
    says = {
        "missing": "no label. Only prediction works without labels: fill them in or drop the rows",
        "text": "{!r} is not a number. Correct it, or use a classification recipe for names",
        "infinite": "{!r} is not a finite number. Correct it or drop the row",
    }
    for (column, kind), problem in found.items():
        if problem.count:
            where, what = place(rows, problem.row, column), says[kind].format(problem.value)
            raise InputError(f"{where}: {what} ({_of(problem.count, len(indices))}).")


def statistics(
    rows: Rows, columns: Sequence[str], indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (ddof 0) of each label column over rows, (K,) float64.

    Blocks are merged as in Chan, Golub & LeVeque (1979). Raises InputError for constant labels.
    """
    count, mean, squares = 0, np.zeros(len(columns)), np.zeros(len(columns))
    for block in number_blocks(rows, columns, indices):
        total, shift = count + len(block), block.mean(axis=0) - mean
        squares += ((block - block.mean(axis=0)) ** 2).sum(axis=0)
        squares += shift**2 * count * len(block) / total
        mean += shift * len(block) / total
        count = total
    std = np.sqrt(squares / max(count, 1))
    for column, spread in zip(columns, std, strict=True):
        if not spread > 0:
            raise InputError(
                f"{rows.names[0]}, column '{column}': the same label in all {count:,} rows used "
                "for training: nothing to learn. Set --data.y-cols."
            )
    return mean, std


def _parsed(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (NaN where there is none), and where the cell is missing, and where it is text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    is_text = np.zeros(len(column), dtype=bool)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
        try:
            column.cast(pa.float64())
        except pa.ArrowInvalid:
            is_text = np.array([_is_text(cell) for cell in column])
            column = pc.if_else(pa.array(is_text), "nan", column)
    elif not any(is_kind(column.type) for is_kind in numeric):
        is_text = np.array([cell.is_valid for cell in column])
        column = pa.chunked_array([pa.nulls(len(column), pa.float64())])
    missing = column.is_null().to_numpy() & ~is_text
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values, missing, is_text


def _is_text(cell: pa.Scalar) -> bool:
    import pyarrow as pa

    try:
        cell.cast(pa.float64())
    except pa.ArrowInvalid:
        return True
    return False


# --------------------------------------------------------------------------- classes


def class_name(cell: Any) -> str:
    """A class as text; whole numbers are written alike ("2", 2 and 2.0 are one class)."""
    text = str(cell).strip()
    return str(int(float(text))) if WHOLE.fullmatch(text) else text


def class_names(rows: Rows, column: str, num_classes: int = 0) -> tuple[str, ...]:
    """The classes of all rows in splits: 0 to the largest if whole numbers, else sorted names.

    `num_classes`: how many there must be; 0 counts them. Raises InputError for ids outside
    0..classes-1, a wrong number of names, or rows without a label.
    """
    indices = np.unique(np.concatenate(list(rows.splits.values())))
    first = _first_rows(rows, column, indices)
    if len(first) < 2:
        raise InputError(
            f"{rows.names[0]}, column '{column}': the same class in all rows used "
            f"({_listed([*first])}): nothing to learn. Set --data.y-cols."
        )
    for name, row in first.items():
        if NOT_FINITE.fullmatch(name):
            where = place(rows, row, column)
            raise InputError(f"{where}: {name!r} is no class. Correct it, or name it in words.")
    if not all(WHOLE.fullmatch(name) for name in first):
        if num_classes and len(first) != num_classes:
            raise InputError(
                f"{rows.names[0]}, column '{column}': {len(first)} classes "
                f"({_listed(sorted(first))}), expected {num_classes}"
            )
        return tuple(sorted(first))
    ids = {int(name): row for name, row in first.items()}
    limit = num_classes or min(max(ids) + 1, MOST_CLASSES)
    wrong = {row: name for name, row in ids.items() if not 0 <= name < limit}
    if wrong:
        row = min(wrong)
        raise InputError(
            f"{place(rows, row, column)}: class {wrong[row]} is outside 0 to {limit - 1} "
            f"({len(wrong)} such classes). Number the classes from 0, or name them in words."
        )
    return tuple(str(i) for i in range(limit))


def class_ids(rows: Rows, column: str, names: Sequence[str], indices: np.ndarray) -> np.ndarray:
    """Class of each row, as its place in `names`, (n,) int64 in the order of `indices`.

    Raises InputError for a row without a label or with a class that is not in `names`.
    """
    ids = np.empty(len(indices), dtype=np.int64)
    order, start = np.argsort(indices, kind="stable"), 0
    known = {name: i for i, name in enumerate(names)}
    missing, unknown = Problem(), Problem()
    for numbered, codes, cells in _class_blocks(rows, column, indices):
        table = np.array([_code(cell, known) for cell in cells], dtype=np.int64)
        block = table[codes]
        for problem, code in ((missing, -1), (unknown, -2)):
            bad = np.flatnonzero(block == code)
            if len(bad):
                problem.add(numbered[bad[0]], cells[codes[bad[0]]], len(bad))
        ids[order[start : start + len(block)]] = block
        start += len(block)
    _refuse(rows, column, missing, len(indices))
    if unknown.count:
        name = class_name(unknown.value)
        raise InputError(
            f"{place(rows, unknown.row, column)}: class '{name}' is not one of "
            f"{_listed(names)}{nearest(name, names)} ({_of(unknown.count, len(indices))})."
        )
    return ids


def class_weights(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Weight of each class, N / (classes x its rows), (classes,) float32; inf for a class without
    rows, as published."""
    counts = np.bincount(ids, minlength=num_classes)
    with np.errstate(divide="ignore"):
        return (len(ids) / (num_classes * counts)).astype(np.float32)


def class_labels(
    rows: Sequence[dict[str, Any]], column: str, names: Sequence[str]
) -> Tensor | None:
    """Classes of plain rows as numbers (B,), int64; None unless every row has a known one.

    Where labels are needed, rows without them were refused before; prediction reads none.
    """
    import torch

    known = {name: i for i, name in enumerate(names)}
    codes = [_code(row.get(column), known) for row in rows]
    return None if min(codes) < 0 else torch.tensor(codes)


def _code(cell: Any, known: dict[str, int]) -> int:
    if _is_missing(cell):
        return -1
    return known.get(class_name(cell), -2)


def _is_missing(cell: Any) -> bool:
    return cell is None or cell != cell or not str(cell).strip()  # NaN differs from itself


def _class_blocks(
    rows: Rows, column: str, indices: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, list[Any]]]:
    """Row numbers, a code per row, and the distinct cells that the codes stand for."""
    import pyarrow as pa

    _require_labels(rows, column)
    for numbered, block in rows.chunks([column], indices):
        kind = block.column(column).type
        if pa.types.is_nested(kind):
            where = place(rows, int(numbered[0]), column)
            raise InputError(f"{where}: expected one class per row, found values of type {kind}.")
        coded = block.column(column).combine_chunks().dictionary_encode("encode")
        yield numbered, coded.indices.to_numpy(), coded.dictionary.to_pylist()


def _first_rows(rows: Rows, column: str, indices: np.ndarray) -> dict[str, int]:
    first: dict[str, int] = {}
    missing = Problem()
    for numbered, codes, cells in _class_blocks(rows, column, indices):
        present, at, counts = np.unique(codes, return_index=True, return_counts=True)
        for code, position, count in zip(present, at, counts, strict=True):
            cell = cells[code]
            if _is_missing(cell):
                missing.add(numbered[position], cell, count)
            else:
                first.setdefault(class_name(cell), int(numbered[position]))
    _refuse(rows, column, missing, len(indices))
    return first


def _require_labels(rows: Rows, column: str) -> None:
    rows.require(column, "y-cols")


def _refuse(rows: Rows, column: str, missing: Problem, total: int) -> None:
    if missing.count:
        raise InputError(
            f"{place(rows, missing.row, column)}: no label. Only prediction works without labels: "
            f"fill them in or drop the rows ({_of(missing.count, total)})."
        )


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} rows"


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
