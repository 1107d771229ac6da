"""Opening a table: which files its path names, and what is read from them."""

from __future__ import annotations

import functools
import glob
from pathlib import Path
from typing import Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.arrow import cached
from mgen.data.assigning import NO_ROWS, assign
from mgen.data.places import BUNDLED_PREFIX, SHARED_PREFIX, local_file
from mgen.data.table import Rows, Table
from mgen.data.variants import VERSION, mutated_batches, read_wild_type
from mgen.io.tables import FASTA, READERS, is_table, table_format


def open_table(table: Table, split: bool) -> Rows:
    """Read all files, check the columns that the options name, and assign rows to splits."""
    import datasets

    if not (table.path or table.test_path):
        raise InputError("no data: set --data.path to a file, a folder or a hub data set")
    parts, sources, groups = [], [], {"path": {}, "valid_path": {}, "test_path": {}}
    start = 0
    for role, found in groups.items():
        for name, group, part, digest in _parts(table, getattr(table, role)):
            numbers = np.arange(start, start + len(part))
            found[group] = np.concatenate([found.get(group, NO_ROWS), numbers])
            start += len(part)
            parts.append(_as_named(table, name, part))
            sources.append((name, len(part), digest))
    try:
        dataset = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        names = ", ".join(name for name, _, _ in sources)
        raise InputError(
            f"{names}: columns of one name differ in type: {error}. Save all in one format, all "
            "with decimal points or all without."
        ) from None
    rows = Rows(table, dataset, sources)
    for (name, _, _), part in zip(sources, parts, strict=True):
        if table.x_col in dataset.column_names and table.x_col not in part.column_names:
            raise InputError(
                f"{name}: no column '{table.x_col}', which other files have; columns are "
                f"{', '.join(map(repr, part.column_names))}."
                f"{nearest(table.x_col, part.column_names)} Rename it."
            )
    for option in ("x_col", "id_col", *(("split_col", "fold_col") if split else ())):
        if getattr(table, option):
            rows.require(getattr(table, option), option.replace("_", "-"))
    if split:
        try:
            assign(rows, groups, are_names=bool(table.path) and not _files(table.path))
        except InputError as error:
            message = str(error)
            known = message.startswith((table.path, "--data", *rows.names))
            raise InputError(message if known else f"{rows.names[0]}: {message}") from None
    return rows


Part = tuple[str, str, Any, str]  # name for people, group, datasets.Dataset, digest


def _parts(table: Table, path: str) -> list[Part]:
    if not path:
        return []
    wild_type = read_wild_type(table.wild_type) if table.wild_type else ""
    if files := _files(path):
        if not wild_type:
            return [(file, _stem(file), *cached(local_file(file))) for file in files]
        change = functools.partial(mutated_batches, table=table, wild_type=wild_type)
        key = f"{VERSION} {wild_type} {table.x_col} {table.first_position}"
        return [(file, _stem(file), *cached(local_file(file), change, key)) for file in files]
    if wild_type:
        raise InputError("--data.wild-type: mutations are read from files; download the data set")
    return _hub_parts(table, path)


def _as_named(table: Table, name: str, part: Any) -> Any:
    """A FASTA's sequences and identifiers under the names that the options give such columns."""
    if not (is_table(name) and table_format(name) in FASTA):
        return part
    wanted = {"sequence": table.x_col, "id": table.id_col}
    there = {old: new for old, new in wanted.items() if new and new not in part.column_names}
    return part.rename_columns(there) if there else part


def _files(path: str) -> list[str]:
    """The files that a path names, sorted; none if it is the id of a hub data set."""
    place = local_file(path)
    if place.is_dir():
        files = sorted(str(file) for file in place.iterdir() if file.is_file() and is_table(file))
        if not files:
            raise InputError(f"{path}: a folder without a single table ({', '.join(READERS)})")
        return files
    if place.exists():
        return [path]
    if glob.has_magic(path):
        files = sorted(glob.glob(path, recursive=True))
        if not files:
            raise InputError(f"{path}: no file has such a name")
        return files
    is_id = path.count("/") <= 1 and path[0] not in "./~" and not is_table(path)
    if path.startswith(SHARED_PREFIX):
        raise InputError(
            f"{path}: no file {place}. It is not part of the repository: mgen show data NAME says "
            "where a named data set comes from; put it there, or set MGEN_SHARED"
        )
    if not is_id or path.startswith(BUNDLED_PREFIX):
        raise InputError(f"{path}: no such file.{_neighbour(place)}")
    return []


def _neighbour(place: Path) -> str:
    if not place.parent.is_dir():
        return f" There is no folder {place.parent}."
    return nearest(place.name, [file.name for file in place.parent.iterdir()])


def _stem(file: str) -> str:
    return Path(file).name.split(".")[0]


def _hub_parts(table: Table, path: str) -> list[Part]:
    import datasets

    options = {"name": table.subset or None, "revision": table.revision}
    try:
        found = datasets.load_dataset(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: no such file, and not to be had as a data set of the Hugging Face hub "
            f"({type(error).__name__}: {error}).{_neighbour(local_file(path))} Check the name, "
            "--data.subset, --data.revision and the connection, or download the data set and give "
            "--data.path its folder."
        ) from error
    return [(f"{path} [{name}]", name, part, part._fingerprint) for name, part in found.items()]
