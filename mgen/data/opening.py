"""Opening a table: which files its path names, and which rows belong to which split."""

from __future__ import annotations

import functools
import glob
from pathlib import Path
from typing import Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data import splits as cut
from mgen.data.arrow import BUNDLED_PREFIX, cached, local_file
from mgen.data.table import Rows, Table
from mgen.data.variants import VERSION, mutated_batches, read_wild_type
from mgen.io.tables import FASTA, READERS, is_table, table_format

SPLITS = ("train", "valid", "test")
NO_ROWS = np.array([], dtype=np.int64)
Groups = dict[str, np.ndarray]  # stem, hub split or value of the split column -> row numbers


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
        _check_options(table)
        try:
            _assign(rows, groups)
        except InputError as error:
            message = str(error)
            known = message.startswith((table.path, "--data", *rows.names))
            raise InputError(message if known else f"{rows.names[0]}: {message}") from None
    return rows


def _check_options(table: Table) -> None:
    if not 0 <= table.split_seed < 2**32:
        raise InputError(f"--data.split-seed {table.split_seed}: expected 0 to 2^32 - 1")
    if not table.folds and (table.fold or table.fold_col):
        raise InputError("--data.fold and --data.fold-col need --data.folds, the number of folds")


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


# --------------------------------------------------------------------------- splitting


def _assign(rows: Rows, groups: dict[str, Groups]) -> None:
    """Named splits first; then folds, or else fractions for what was not named and the filter.

    That is the order of the published data sets, whose splits this reproduces.
    """
    table, by_name = rows.table, groups["path"]
    base = np.concatenate([NO_ROWS, *by_name.values()])
    if table.split_col:
        by_name = _by_value(rows.values(table.split_col), base)
    splits, said = _named(rows, by_name, base)
    for name in ("valid", "test"):
        more = groups[f"{name}_path"].values()
        if more and len(splits[name]):
            raise InputError(
                f"{name} rows come both from --data.{name}-path and from '{table.path}'. Set "
                f"--data.{name}-split '' or drop --data.{name}-path."
            )
        splits[name] = np.concatenate([splits[name], *more])
    named = {name: len(found) for name, found in splits.items()}
    if table.folds:
        splits, how = _fold(rows, splits)
        said.append(how)
    else:
        splits = cut.fractions(splits, table.test_fraction, table.valid_fraction, table.split_seed)
        said += _fraction_sentences(table, named, splits)
        if table.keep_classes:
            splits = cut.keep_classes(splits, rows.values(table.y_cols[0]), table.keep_classes)
            said.append(f"only classes {', '.join(table.keep_classes)}")
    rows.splits = {name: splits[name].astype(np.int64) for name in SPLITS}
    counts = ", ".join(f"{len(rows.splits[name]):,} {name}" for name in SPLITS)
    is_used = np.zeros(len(rows), dtype=bool)
    for found in rows.splits.values():
        is_used[found] = True
    unused = len(rows) - int(is_used.sum())
    said.append(f"rows: {counts}" + (f", {unused:,} unused" if unused else ""))
    rows.plan = "; ".join(said)


def _by_value(values: list[Any], base: np.ndarray) -> Groups:
    texts = np.array([str(values[i]) for i in base], dtype=object)
    return {text: base[texts == text] for text in dict.fromkeys(texts)}


def _named(rows: Rows, groups: Groups, base: np.ndarray) -> tuple[cut.Splits, list[str]]:
    """The rows of each split by name. A missing name is an error if it may be a typo."""
    table = rows.table
    wanted = {name: _names(getattr(table, f"{name}_split")) for name in SPLITS}
    known = {part for parts in wanted.values() for part in parts}
    must_match = table.split_col or (table.path and not _files(table.path))  # else: file names
    if not (must_match or known & {*groups}):
        return {"train": base, "valid": NO_ROWS, "test": NO_ROWS}, []  # shards, or a single file
    splits = {}
    for name, parts in wanted.items():
        missing = [part for part in parts if part not in groups]
        if missing and ({*groups} - known or len(missing) < len(parts)):
            place = f"{table.path}, column '{table.split_col}'" if table.split_col else table.path
            raise InputError(
                f"{place}: no rows for {name} named '{missing[0]}'; found: "
                f"{', '.join(map(repr, groups))}.{nearest(missing[0], groups)} Set "
                f"--data.{name}-split (or '' for none)."
            )
        splits[name] = np.concatenate([NO_ROWS, *(groups[p] for p in parts if p in groups)])
    named = [f"{name} is '{'+'.join(wanted[name])}'" for name in SPLITS if len(splits[name])]
    return splits, [", ".join(named)]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split("+") if part.strip()]


def _fraction_sentences(table: Table, named: dict[str, int], splits: cut.Splits) -> list[str]:
    left, sentences = named["train"], []
    for name, fraction in (("test", table.test_fraction), ("valid", table.valid_fraction)):
        if not named[name] and len(splits[name]):
            sentences.append(
                f"{name}: {fraction:.4g} of {left:,} rows at random, seed {table.split_seed}"
            )
            left -= len(splits[name])
    return sentences


def _fold(rows: Rows, splits: cut.Splits) -> tuple[cut.Splits, str]:
    table, train = rows.table, splits["train"]
    if table.keep_classes:
        labels = rows.values(table.y_cols[0])
        train = cut.keep_classes({"train": train}, labels, table.keep_classes)["train"]
    if table.fold_col:
        values = rows.values(table.fold_col, "fold-col")
        folds = cut.named_folds([values[i] for i in train], table.folds)
        origin = f"of column '{table.fold_col}'"
    else:
        folds = cut.random_folds(len(train), table.folds, table.split_seed)
        origin = f"at random, seed {table.split_seed}"
    dropped = sum(len(splits[name]) for name in ("valid", "test"))
    sentence = f"{table.folds} folds {origin}, test on fold {table.fold}"
    if dropped:
        sentence += f", {dropped:,} rows named valid or test left out"
    by_fold = cut.by_fold(train, folds, table.fold, table.valid_fold, table.valid_fold_offset)
    return by_fold, sentence
