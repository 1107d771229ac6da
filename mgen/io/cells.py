"""Cells: AnnData (.h5ad, .zarr) and 10x (.h5, folders of matrix.mtx) as streams of rows. No torch.

A row has `id` (the index of obs), the columns of obs, `spatial_x` and `spatial_y` where there is an
obsm "spatial", and `counts`: the entries that are not zero, by rising column of var. The schema's
metadata has the text columns of var under `GENES`, as JSON: {"": index, NAME: texts}.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mgen.config import InputError
from mgen.io.columns import reject_duplicates

GENES = b"mgen_genes"
COUNTS = pa.struct([("genes", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
MOST_ENTRIES = 4 << 20  # of a matrix held at once; a row may have more
MOST_ROWS = 10_000
LARGEST_WHOLE = 1 << 24  # float32 holds every whole number up to here
MTX = ("matrix.mtx", "matrix.mtx.gz")
SOMA = "__tiledb_group.tdb"  # in each folder that is a group of TileDB, such as an experiment


def is_cell_folder(path: Path) -> bool:
    """Whether a folder is one table of cells."""
    is_zarr = path.suffix.lower() == ".zarr"
    return path.is_dir() and (is_zarr or any((path / name).is_file() for name in (*MTX, SOMA)))


def read_cells(path: str | Path, layer: str = "") -> Iterator[pa.RecordBatch]:
    """Stream record batches of cells in bounded memory (obs and var are held whole).

    `layer`: "" is X, "raw" is raw.X with raw.var, else a layer. Raises InputError for what cannot
    be read.
    """
    path = Path(path)
    opened = nullcontext(None) if path.is_dir() and path.suffix.lower() != ".zarr" else _open(path)
    with opened as root:
        try:
            cells = _mtx(path, layer) if root is None else _found(path, root, layer)
            yield from cells.batches(path)
        except InputError:
            raise
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(
                f"{path}: not a file of cells, or a damaged one ({error}). Write it again."
            ) from None


@dataclass
class _Matrix:
    """Cells x genes. `kind` "csr" or "csc" with `parts` data, indices, indptr; or "dense"."""

    kind: str
    parts: tuple[Any, ...]
    shape: tuple[int, int]

    def blocks(self) -> Iterator[Any]:
        """The rows in order, as scipy's csr_array."""
        from scipy.sparse import csr_array

        rows, columns = self.shape
        if self.kind == "dense":
            step = max(1, min(MOST_ROWS, MOST_ENTRIES // max(columns, 1)))
            for start in range(0, rows, step):
                yield csr_array(self.parts[0][start : start + step])
        elif self.kind == "csr":
            data, indices, indptr = self.parts
            ends = self._ends(indptr, rows)
            for first, last in _groups(ends):
                place = slice(int(ends[first]), int(ends[last]))
                own = ends[first : last + 1] - ends[first]
                shape = (last - first, columns)
                yield csr_array((data[place], self._inside(indices[place], columns), own), shape)
        else:
            yield from self._turned()

    def _turned(self) -> Iterator[Any]:
        """A pass over all columns to count each row's entries, then one per group of rows."""
        from scipy.sparse import csr_array

        data, indices, indptr = self.parts
        rows, columns = self.shape
        starts = self._ends(indptr, columns)
        places = [slice(int(starts[a]), int(starts[b])) for a, b in _groups(starts)]
        sizes = np.zeros(rows, np.int64)
        for place in places:
            sizes += np.bincount(self._inside(indices[place], rows), minlength=rows)
        for first, last in _groups(np.concatenate([[0], np.cumsum(sizes)])):
            found = []
            for place in places:
                row = indices[place]
                own = np.flatnonzero((row >= first) & (row < last))
                column = np.searchsorted(starts, own + place.start, side="right") - 1
                found.append((data[place][own], row[own] - first, column))
            value, row, column = map(np.concatenate, zip(*found, strict=True))
            yield csr_array((value, (row, column)), (last - first, columns))

    def _ends(self, indptr: Any, count: int) -> np.ndarray:
        ends = np.asarray(indptr[:], np.int64)
        size = self.parts[0].shape[0]
        whole = len(ends) == count + 1 and ends[0] == 0 and ends[-1] == size
        if not whole or self.parts[1].shape[0] != size or (np.diff(ends) < 0).any():
            raise ValueError("the matrix does not fit its shape")
        return ends

    @staticmethod
    def _inside(numbers: np.ndarray, count: int) -> np.ndarray:
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
            raise ValueError(f"an index of the matrix lies outside 0 to {count - 1}")
        return numbers


def _groups(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of rows with at most MOST_ENTRIES entries and MOST_ROWS rows, or one row."""
    first = 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + MOST_ENTRIES, side="right")) - 1
        last = min(max(last, first + 1), first + MOST_ROWS, len(ends) - 1)
        yield first, last
        first = last


@dataclass
class Cells:
    """Cells of one file, or a block of them (without `matrix`)."""

    obs: Any  # pandas.DataFrame
    var: Any
    matrix: _Matrix | None
    spatial: np.ndarray | None = None
    kept: np.ndarray | None = None  # columns of the matrix that are genes

    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        expected = (len(self.obs), len(self.var))
        if self.matrix.shape != expected:
            raise InputError(
                f"{path}: the matrix is {self.matrix.shape}, but obs and var say {expected}. "
                "Write the file again."
            )
        if not len(self.obs):
            raise InputError(f"{path}: it has no cells")
        columns = self.columns(path)
        schema = self.schema(columns)
        start = 0
        for block in self.matrix.blocks():
            size = block.shape[0]
            own = [column.slice(start, size) for column in columns.values()]
            yield pa.RecordBatch.from_arrays([*own, self.counts(path, block, start)], schema=schema)
            start += size

    def schema(self, columns: dict[str, pa.Array]) -> pa.Schema:
        var = self.var if self.kept is None else self.var.iloc[self.kept]
        genes = {"": [*map(str, var.index)]}
        for name in var:
            if var[name].dtype.kind not in "biufc":
                genes[str(name)] = ["" if v is None or v != v else str(v) for v in var[name]]
        fields = [(name, column.type) for name, column in columns.items()]
        return pa.schema([*fields, ("counts", COUNTS)], {GENES: json.dumps(genes).encode()})

    def counts(self, path: Path, block: Any, start: int) -> pa.Array:
        block = block if self.kept is None else block[:, self.kept]
        block.sum_duplicates()
        block.eliminate_zeros()
        if block.data.dtype.kind not in "biuf":
            raise InputError(f"{path}: the matrix holds {block.data.dtype}, expected numbers")
        if block.data.dtype != np.float32:  # which would have been rounded before
            is_large = (block.data > LARGEST_WHOLE) | (block.data < -LARGEST_WHOLE)
            large = np.flatnonzero(is_large & np.isfinite(block.data))
            if len(large):
                row = start + int(np.searchsorted(block.indptr, large[0], side="right"))
                raise InputError(
                    f"{path}, row {row}: a count of {block.data[large[0]]}, more than "
                    f"{LARGEST_WHOLE:,}, which float32 does not hold exactly. Correct it."
                )
        ends = pa.array(block.indptr.astype(np.int32))
        parts = (block.indices.astype(np.int32), block.data.astype(np.float32))
        lists = [pa.ListArray.from_arrays(ends, pa.array(part)) for part in parts]
        return pa.StructArray.from_arrays(lists, fields=[*COUNTS])

    def columns(self, path: Path) -> dict[str, pa.Array]:
        names = [*map(str, self.obs.columns)]
        index = "obs_name" if "id" in names else "id"
        reject_duplicates(path, [index, *names])
        added = {"counts"} if self.spatial is None else {"counts", "spatial_x", "spatial_y"}
        if clash := added & {*names}:
            raise InputError(f"{path}: obs has a column {min(clash)!r}, a reserved name. Rename it")
        found, skipped = {index: pa.array([*map(str, self.obs.index)], pa.string())}, []
        for i, name in enumerate(names):
            column = _plain(self.obs.iloc[:, i])
            if column is None:
                skipped.append(name)
            else:
                found[name] = column
        if skipped:
            warnings.warn(
                f"{path}: {len(skipped)} columns of obs are neither text, numbers nor truth values "
                f"and are left out: {', '.join(skipped)}",
                stacklevel=2,
            )
        if self.spatial is not None:
            for axis, name in enumerate(("spatial_x", "spatial_y")):
                found[name] = pa.array(self.spatial[:, axis].astype(float), from_pandas=True)
        return found


def _plain(series: Any) -> pa.Array | None:
    try:
        array = pa.array(series, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind, is_ = array.type, pa.types
    if is_.is_large_string(kind) or is_.is_null(kind):
        return array.cast(pa.string())
    numeric = is_.is_integer(kind) or is_.is_floating(kind) or is_.is_boolean(kind)
    return array if numeric or is_.is_string(kind) else None


# --------------------------------------------------------------------------- AnnData, 10x


def _open(path: Path) -> Any:
    try:
        import anndata  # noqa: F401, with h5py; reads obs and var of every format
        import h5py

        if path.is_dir():
            import zarr
    except ImportError as error:
        raise InputError(
            f"{path}: files of cells need {error.name}, which mgen does not install: pip install "
            "'mgen[cells]'"
        ) from None
    try:
        if path.is_dir():
            return nullcontext(zarr.open_group(str(path), mode="r"))
        return closing(h5py.File(path, "r"))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a file of cells, or a damaged one ({error}). Write it again."
        ) from None


def _found(path: Path, root: Any, layer: str) -> Cells:
    if "obs" in root and "var" in root:
        return _anndata(path, root, layer)
    _reject_layer(path, layer)
    if "matrix" in root:
        return _tenx(path, root["matrix"])
    groups = [n for n in root if hasattr(root[n], "keys") and "gene_names" in root[n]]
    if len(groups) == 1:  # CellRanger 2: one group per genome
        return _tenx(path, root[groups[0]])
    what = f"several genomes ({', '.join(groups)})" if groups else "neither AnnData nor 10x"
    raise InputError(f"{path}: {what}. Write the cells as one AnnData file (.h5ad).")


def _reject_layer(path: Path, layer: str) -> None:
    if layer:
        raise InputError(f"{path}: it has one matrix. Set --data.layer ''")


def _anndata(path: Path, root: Any, layer: str) -> Cells:
    from anndata.io import read_elem

    layers = [*root["layers"]] if "layers" in root else []
    has_raw = "raw" in root and "X" in root["raw"]
    source = root["raw"] if layer == "raw" and has_raw else root
    if layer in ("", "raw"):
        node = source["X"] if "X" in source and (not layer or has_raw) else None
    else:
        node = root["layers"][layer] if layer in layers else None
    if node is None or node.attrs.get("encoding-type") == "null":
        known = [*(["raw"] if has_raw else []), *layers]
        what = f"layer '{layer}'" if layer else "X"
        raise InputError(
            f"{path}: no {what}; there are {', '.join(known) or 'no others'}. Set --data.layer"
        )
    obsm = root.get("obsm", {})
    spatial = np.asarray(read_elem(obsm["spatial"])) if "spatial" in obsm else None
    if spatial is not None and (spatial.ndim != 2 or spatial.shape[1] < 2):
        raise InputError(f"{path}: obsm 'spatial' is {spatial.shape}, expected two columns or more")
    return Cells(read_elem(root["obs"]), read_elem(source["var"]), _matrix(node), spatial)


def _matrix(node: Any) -> _Matrix:
    if hasattr(node, "keys"):
        kind = str(node.attrs["encoding-type"]).removesuffix("_matrix")
        if kind not in ("csr", "csc"):
            raise ValueError(f"a matrix of the kind {kind}")
        parts = tuple(node[name] for name in ("data", "indices", "indptr"))
        return _Matrix(kind, parts, tuple(map(int, node.attrs["shape"])))
    if node.ndim != 2:
        raise ValueError(f"a matrix of {node.ndim} dimensions")
    return _Matrix("dense", (node,), tuple(map(int, node.shape)))


def _tenx(path: Path, group: Any) -> Cells:
    """Genes x cells by column, which is cells x genes by row."""

    def text(node: Any) -> list[str]:
        return [*map(str, node.asstr()[:])]

    is_new = "features" in group
    place = group["features"] if is_new else group
    columns = ("name", "id", "feature_type") if is_new else ("gene_names", "genes")
    names, ids, *kinds = (text(place[column]) for column in columns)
    genes, cells = map(int, group["shape"][:])
    parts = tuple(group[name] for name in ("data", "indices", "indptr"))
    matrix = _Matrix("csr", parts, (cells, genes))
    return _tenx_cells(path, text(group["barcodes"]), ids, names, [*kinds, None][0], matrix)


def _tenx_cells(
    path: Path, barcodes: list, ids: list, names: list, kinds: list | None, matrix: _Matrix
) -> Cells:
    import pandas as pd

    var, kept = pd.DataFrame({"gene_ids": ids}, index=names), None
    if kinds is not None:
        is_gene = np.array(kinds) == "Gene Expression"
        if not is_gene.any():
            raise InputError(f"{path}: none of its features is of the type 'Gene Expression'")
        if not is_gene.all():
            kept = np.flatnonzero(is_gene)
            warnings.warn(
                f"{path}: {len(kinds) - len(kept):,} of {len(kinds):,} features are not of the "
                "type 'Gene Expression' and are left out",
                stacklevel=2,
            )
    return Cells(pd.DataFrame(index=barcodes), var, matrix, kept=kept)


def _mtx(path: Path, layer: str) -> Cells:
    """The matrix is held whole: its text has no order that could be relied on."""
    try:
        import pandas as pd
        from scipy.io import mmread
    except ImportError as error:
        raise InputError(f"{path}: needs {error.name}: pip install 'mgen[cells]'") from None
    _reject_layer(path, layer)

    def file(*names: str) -> Path:
        found = [path / f"{n}{gz}" for n in names for gz in ("", ".gz")]
        found = [one for one in found if one.is_file()]
        if not found:
            raise InputError(f"{path}: no file {' or '.join(names)} (or .gz) in the folder")
        return found[0]

    def table(one: Path) -> Any:
        return pd.read_csv(one, sep="\t", header=None, dtype=str, na_filter=False, quoting=3)

    features = table(file("features.tsv", "genes.tsv"))
    barcodes = [*table(file("barcodes.tsv"))[0]]
    found = mmread(file("matrix.mtx")).T.tocsr()
    matrix = _Matrix("csr", (found.data, found.indices, found.indptr), found.shape)
    kinds = [*features[2]] if features.shape[1] > 2 else None
    names = features[1] if features.shape[1] > 1 else features[0]
    return _tenx_cells(path, barcodes, [*features[0]], [*names], kinds, matrix)
