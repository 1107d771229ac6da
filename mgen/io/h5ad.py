"""AnnData files (.h5ad) of vectors that belong to the rows of a table. N rows, D width."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mgen.config import InputError
from mgen.io.cells import GENES, read_cells

GROUPS = ("layers", "obsm", "obsp", "uns", "varm", "varp")
AT_ONCE = 1024  # rows


def library() -> Any:
    """h5py, with anndata there too. Raises InputError with what to install."""
    try:
        import anndata  # noqa: F401
        import h5py
    except ImportError as error:
        raise InputError(
            f"--h5ad needs {error.name}, which mgen does not install: pip install {error.name}"
        ) from None
    return h5py


@contextmanager
def _whole(file: Path, source: Path | None = None) -> Iterator[Any]:
    """A file to write to, made of `source` or new, which becomes `file` when it is complete."""
    h5py = library()
    partial = file.with_name(f".{file.name}.partial")
    try:
        if file.exists() and not os.access(file, os.W_OK):
            raise InputError(f"{file}: is write-protected. Name another file")
        if source:
            shutil.copyfile(source, partial)
        with h5py.File(partial, "r+" if source else "w") as opened:
            if not source:
                _mark(opened, "anndata", "0.1.0")
                for group in GROUPS:
                    _mark(opened.create_group(group), "dict", "0.1.0")
            yield opened
            opened.flush()
            os.fsync(opened.id.get_vfd_handle())
        os.replace(partial, file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def write(
    file: Path, rows: Any, predictions: Iterator[dict[str, Any]], count: int, vectors: Sequence[str]
) -> Path:
    """Write `file` whole or not at all: an AnnData object without X, one observation per row.

    `predictions` yields the `count` rows of a prediction file: "row", the number of a row of the
    table `rows`; the names in `vectors`, each D numbers, which become (N, D) float32 arrays
    `X_<name>` of `obsm`; and copied columns, which become those of `obs`, with the table's own
    values. Observations are named by the row's identifier, or else its number.
    """
    names, columns = [], {}
    with _whole(file) as opened:
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
        _frame(opened, "obs", names, columns)
        _frame(opened, "var", [], {})
    return file


def copy_with(
    source: Path, target: Path, obsm: dict[str, Iterator[np.ndarray]], layer: str = ""
) -> Path:
    """`source` with `obsm` X_<name>, blocks of (n, D) numbers in the order of its N cells.

    Of an .h5ad all else stays as it is; of other files of cells the copy has X (`layer`, CSR), obs
    and the text columns of var. Raises InputError for what cannot be written, and unless there are
    N rows of each.
    """
    is_same = source.suffix.lower() == ".h5ad"
    with _whole(target, source if is_same else None) as opened:
        if not is_same:
            _write_cells(opened, source, layer)
        obs = opened["obs"]
        count = obs[obs.attrs["_index"]].shape[0]
        if "obsm" not in opened:
            _mark(opened.create_group("obsm"), "dict", "0.1.0")
        for name, blocks in obsm.items():
            key, done = f"obsm/X_{name}", 0
            if key in opened:
                warnings.warn(f"{target}: obsm 'X_{name}' of {source} is replaced", stacklevel=2)
                del opened[key]
            for block in blocks:
                shape = (count, block.shape[1])
                array = opened.require_dataset(key, shape, np.float32, exact=True)
                if done + len(block) <= count:
                    array[done : done + len(block)] = block
                done += len(block)
            if done != count:
                raise InputError(f"{source}: {count:,} cells, but {done:,} rows of {name}")
            _mark(opened[key], "array", "0.2.0")
    return target


def _write_cells(opened: Any, source: Path, layer: str) -> None:
    matrix, ends, names, columns, genes = opened.create_group("X"), [np.zeros(1, int)], [], {}, {}
    parts = {"values": "data", "genes": "indices"}
    for name, kind in (("data", np.float32), ("indices", np.int32)):
        matrix.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1 << 16,))
    for batch in read_cells(source, layer):
        genes = genes or json.loads(batch.schema.metadata[GENES])
        counts = batch["counts"]
        for field, name in parts.items():
            values, stored = counts.field(field).flatten().to_numpy(), matrix[name]
            stored.resize((stored.shape[0] + len(values),))
            stored[stored.shape[0] - len(values) :] = values
        ends.append(ends[-1][-1] + counts.field("genes").offsets.to_numpy()[1:])
        cells = batch.drop_columns(["counts"]).to_pydict()
        names += cells.pop("obs_name" if "obs_name" in cells else "id")
        for key, values in cells.items():
            columns.setdefault(key, []).extend(values)
    matrix["indptr"] = np.concatenate(ends)
    _mark(matrix, "csr_matrix", "0.1.0")
    index = genes.pop("")
    matrix.attrs["shape"] = [len(names), len(index)]
    _frame(opened, "obs", names, columns)
    _frame(opened, "var", index, genes)


def _mark(node: Any, kind: str, version: str) -> None:
    node.attrs.update({"encoding-type": kind, "encoding-version": version})


def _frame(opened: Any, key: str, index: list[str], columns: dict[str, list]) -> None:
    import pandas as pd
    from anndata.io import write_elem

    names = pd.Index(index, dtype=object)
    values = {name: _array(column) for name, column in columns.items()}
    write_elem(opened, key, pd.DataFrame(values, index=names))


def _array(values: list) -> np.ndarray:
    """Numbers and truth values as such, a missing number as nan; all else as text, missing ""."""
    kinds = {type(value) for value in values} - {type(None)}
    missing = any(value is None for value in values)
    if kinds == {bool} and not missing:
        return np.array(values)
    if kinds and kinds <= {int, float}:
        return np.array(values, dtype=float if missing or float in kinds else np.int64)
    return np.array(["" if value is None else str(value) for value in values], dtype=object)
