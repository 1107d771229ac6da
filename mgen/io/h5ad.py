"""AnnData files (.h5ad) of vectors that belong to the rows of a table.

Written by the published on-disk format (anndata.readthedocs.io, "On-disk format": anndata 0.1.0,
dataframe, array and string-array 0.2.0), so that h5py is all it takes. N rows, D width.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.config import InputError

GROUPS = ("layers", "obsm", "obsp", "uns", "varm", "varp")
AT_ONCE = 1024  # rows


def library() -> Any:
    """h5py. Raises InputError with what to install."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            "--h5ad needs h5py, which mgen does not install: pip install h5py"
        ) from None
    return h5py


def write(
    file: Path, rows: Any, predictions: Iterator[dict[str, Any]], count: int, vectors: Sequence[str]
) -> Path:
    """Write `file` whole or not at all: an AnnData object without X, one observation per row.

    `predictions` yields the `count` rows of a prediction file: "row", the number of a row of the
    table `rows`; the names in `vectors`, each D numbers, which become (N, D) float32 arrays
    `X_<name>` of `obsm`; and copied columns, which become those of `obs`, with the table's own
    values. Observations are named by the row's identifier, or else its number.
    """
    h5py = library()
    partial, names, columns = file.with_name(f".{file.name}.partial"), [], {}
    with h5py.File(partial, "w") as opened:
        _mark(opened, "anndata", "0.1.0")
        for group in GROUPS:
            _mark(opened.create_group(group), "dict", "0.1.0")
        done, predictions = 0, iter(predictions)
        while block := [*itertools.islice(predictions, AT_ONCE)]:
            given = rows.take([int(row["row"]) for row in block])
            for row, own in zip(block, given, strict=True):
                names.append(str(own[rows.id_col] if rows.id_col else row["row"]))
                for key in row:
                    if key not in ("row", *vectors):
                        columns.setdefault(key, []).append(own[key])
            for name in vectors:
                part = np.array([row[name] for row in block], dtype=np.float32)
                key, shape = f"obsm/X_{name}", (count, part.shape[1])
                array = opened.require_dataset(key, shape, np.float32, exact=True)
                array[done : done + len(part)] = part
                _mark(array, "array", "0.2.0")
            done += len(block)
        _frame(opened.create_group("obs"), names, columns)
        _frame(opened.create_group("var"), [], {})
        opened.flush()
        os.fsync(opened.id.get_vfd_handle())
    os.replace(partial, file)
    return file


def _mark(node: Any, kind: str, version: str) -> None:
    node.attrs.update({"encoding-type": kind, "encoding-version": version})


def _frame(group: Any, index: list[str], columns: dict[str, list]) -> None:
    text = library().string_dtype()
    _mark(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    group.attrs.create("column-order", np.array([*columns], dtype=object), dtype=text)
    for name, values in {"_index": index, **columns}.items():
        array = _array(values)
        is_text = array.dtype == object
        stored = group.create_dataset(name, data=array, dtype=text if is_text else array.dtype)
        _mark(stored, "string-array" if is_text else "array", "0.2.0")


def _array(values: list) -> np.ndarray:
    """Numbers and truth values as such, a missing number as nan; all else as text, missing ""."""
    kinds = {type(value) for value in values} - {type(None)}
    missing = any(value is None for value in values)
    if kinds == {bool} and not missing:
        return np.array(values)
    if kinds and kinds <= {int, float}:
        return np.array(values, dtype=float if missing or float in kinds else np.int64)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)
