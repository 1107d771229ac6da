"""Predictions of cells into copies of the AnnData files they come from. N cells, D width."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mgen.config import InputError
from mgen.data.sources.places import local_file
from mgen.data.table import Rows
from mgen.io import h5ad
from mgen.predictions import read


def copies(names: Sequence[str]) -> dict[str, str]:
    """What the copies of files of cells are called. Raises InputError where two have one name."""
    found = {name: f"{Path(name.rpartition(':')[2]).stem}.h5ad" for name in names}
    if len({*found.values()}) < len(found):
        raise InputError(f"--h5ad: files of one name in several folders: {', '.join(names)}")
    return found


def copy_cells(file: Path, rows: Rows, names: dict[str, str], keys: dict[str, str]) -> list[Path]:
    """Copy each file of a table of cells beside a finished prediction file, with vectors in `obsm`.

    `names` are those of `copies`; `keys` name columns of the prediction file, each D numbers, and
    what they are called in `obsm`, X_<key>, (N, D) float32: nan for cells that were not predicted.
    """
    found, files = {}, []
    for row in read(file):
        for name, key in keys.items():
            if key not in found:
                found[key] = np.full((len(rows), len(row[name])), np.nan, dtype=np.float32)
            found[key][int(row["row"])] = row[name]
    spans = zip(rows.starts, rows.starts[1:], strict=False)
    for (source, name), (start, end) in zip(names.items(), spans, strict=True):
        target, own = file.with_name(name), {key: iter([x[start:end]]) for key, x in found.items()}
        files.append(h5ad.copy_with(local_file(source), target, own, rows.table.layer))
    return files
