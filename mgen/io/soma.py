"""TileDB-SOMA experiments, which are folders, as streams of rows of cells. No torch.

Rows and schema are those of `mgen.io.cells`. `id` is the column "obs_id" of obs, else soma_joinid;
genes are named by the column "var_id" of var, else by its first column of text. `spatial_x` and
`spatial_y` are of the measurement's obsm "spatial".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mgen.config import InputError
from mgen.io.cells import MOST_ENTRIES, MOST_ROWS, Cells

BUFFER_BYTES = 16 << 20  # of each column that is read; the package's own default is 1 GiB
FAILURES = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError)


def read_soma(path: str | Path, query: str = "", layer: str = "") -> Iterator[pa.RecordBatch]:
    """Stream record batches of cells in bounded memory (var is held whole), by rising index of obs,
    which is soma_joinid unless the experiment was made otherwise.

    `query`: a value filter of obs, as TileDB writes it. `layer`: LAYER or MEASUREMENT/LAYER of X;
    "" is RNA/data, or the only one. Raises InputError for what cannot be read.
    """
    path = Path(path)
    try:
        import tiledbsoma
    except ImportError as error:
        raise InputError(
            f"{path}: SOMA experiments need {error.name}, which mgen does not install: pip install "
            "'mgen[soma]'"
        ) from None
    context = tiledbsoma.SOMATileDBContext({"soma.init_buffer_bytes": BUFFER_BYTES})
    what = "not a SOMA experiment, or a damaged one (%s). Write it again."
    try:
        with tiledbsoma.Experiment.open(str(path.resolve()), context=context) as experiment:
            measurement, matrix = _matrix(path, experiment, layer)
            if query:
                columns = ", ".join(experiment.obs.keys())
                what = f"--data.query {query!r} is no filter of obs (%s). Its columns are {columns}"
            tables = experiment.obs.read(value_filter=query or None, result_order="row-major")
            what = "damaged (%s). Write it again."
            yield from _batches(path, experiment.obs, tables, measurement, matrix)
    except InputError:
        raise
    except (tiledbsoma.SOMAError, *FAILURES) as error:
        said = str(error).partition("\n")[0]  # the rest is a traceback
        raise InputError(f"{path}: {what.replace('%s', said)}") from None


def _matrix(path: Path, experiment: Any, layer: str) -> tuple[Any, Any]:
    """The measurement, and the array of its X, that are meant."""
    known = {name: [*found.X] if "X" in found else [] for name, found in experiment.ms.items()}
    measurement, _, name = layer.rpartition("/")
    measurement = measurement or ([*known][0] if len(known) == 1 else "RNA")
    layers = known.get(measurement, [])
    name = name or (layers[0] if len(layers) == 1 else "data")
    if name not in layers:
        listed = ", ".join(f"{one}/{x}" for one, layers in known.items() for x in layers)
        raise InputError(
            f"{path}: no layer {measurement}/{name}; there are {listed or 'none'}. Set --data.layer"
        )
    found = experiment.ms[measurement]
    for part in (experiment.obs, found.var, found.X[name]):
        if not Path(part.uri.removeprefix("file://")).is_relative_to(path.resolve()):
            # A change there would not be seen: tables are kept by the content of the folder.
            raise InputError(f"{path}: a part of it is at {part.uri}. Copy it into the folder")
    return found, found.X[name]


def _batches(
    path: Path, obs: Any, tables: Any, measurement: Any, matrix: Any
) -> Iterator[pa.RecordBatch]:
    import pandas as pd
    from scipy.sparse import csr_array

    var, columns = _genes(measurement.var)
    spatial = measurement.obsm["spatial"] if "spatial" in measurement.get("obsm", {}) else None
    if spatial is not None and (len(spatial.shape) != 2 or spatial.shape[1] < 2):
        raise InputError(f"{path}: obsm 'spatial' is {spatial.shape}, expected two columns or more")
    is_dense = matrix.soma_type == "SOMADenseNDArray"
    size = obs.count * matrix.shape[1] if is_dense else matrix.nnz
    step = min(max(MOST_ENTRIES // 2 * obs.count // max(size, 1), 1), MOST_ROWS)
    schema, row = None, 0
    for table in tables:
        for first in range(0, len(table), step):
            cells = table.slice(first, step).to_pandas(types_mapper=pd.ArrowDtype)
            numbers = cells.pop("soma_joinid").to_numpy(np.int64)
            cells.index = cells.pop("obs_id") if "obs_id" in cells else numbers
            start = 0
            for ids, place, column, value in _entries(matrix, numbers):
                gene = np.minimum(np.searchsorted(columns, column), len(columns) - 1)
                if (columns[gene] != column).any():
                    raise ValueError("the matrix has genes that var has not")
                own = cells.iloc[start : start + len(ids)]
                block = Cells(own, var, None, None if spatial is None else _places(spatial, ids))
                found = block.columns(path)
                schema = schema or block.schema(found)
                counts = csr_array((value, (place, gene)), (len(ids), len(var)))
                counts = block.counts(path, counts, row)
                yield pa.RecordBatch.from_arrays([*found.values(), counts], schema=schema)
                start, row = start + len(ids), row + len(ids)
    if not row:
        raise InputError(f"{path}: it has no cells, or none that --data.query keeps")


def _genes(var: Any) -> tuple[Any, np.ndarray]:
    """var as a DataFrame, and the columns of the matrix that its rows are, rising."""
    found = var.read().concat().to_pandas().sort_values("soma_joinid")
    columns = found.pop("soma_joinid").to_numpy()
    if "var_id" in found:
        return found.set_index("var_id"), columns
    texts = [name for name in found if found[name].dtype.kind == "O"]
    return found.set_index(found[texts[0]] if texts else columns), columns


def _places(spatial: Any, ids: np.ndarray) -> np.ndarray:
    found, start = np.zeros((len(ids), 2)), 0  # a coordinate of 0 may not be stored
    for own, place, column, value in _entries(spatial, ids):
        is_axis = column < 2
        found[place[is_axis] + start, column[is_axis]] = value[is_axis]
        start += len(own)
    return found


def _entries(array: Any, ids: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Of the rows `ids`, in blocks: ids, and of each entry the place in these, column, value.

    A block has at most MOST_ENTRIES entries, or one row: rows are halved until it has.
    """
    if array.soma_type == "SOMADenseNDArray":
        first, last = int(ids.min()), int(ids.max())
        if (last - first + 1) * array.shape[1] <= MOST_ENTRIES or len(ids) == 1:
            block = array.read((slice(first, last),)).to_numpy()[ids - first]
            place, column = np.indices(block.shape).reshape(2, -1)
            yield ids, place, column, block.ravel()
            return
    else:
        held, size = [], 0
        for table in array.read((pa.array(np.sort(ids)),)).tables():
            held.append([table.column(i).to_numpy() for i in range(3)])
            size += len(table)
            if size > MOST_ENTRIES and len(ids) > 1:
                break
        else:
            row, column, value = map(np.concatenate, zip(*held, strict=True))
            order = np.argsort(ids)
            yield ids, order[np.searchsorted(ids, row, sorter=order)], column, value
            return
    yield from _entries(array, ids[: len(ids) // 2])
    yield from _entries(array, ids[len(ids) // 2 :])
