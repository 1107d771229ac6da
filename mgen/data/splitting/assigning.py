"""Assigning rows to splits: by name, column, file, fraction or fold, and saying how."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.splitting import splits as cut
from mgen.data.splitting.identity import clusters
from mgen.data.table import Rows, Table

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "valid", "test")
HELD_OUT = ("valid", "test")
NO_ROWS = np.array([], dtype=np.int64)
MOST_STRATA = 20  # more different numbers than that are no classes
QUANTILES = 10
Groups = dict[str, np.ndarray]  # stem, hub split or value of the split column -> row numbers


def assign(rows: Rows, groups: dict[str, Groups], are_names: bool) -> None:
    """Named splits first; then folds, or else fractions for what was not named and the filter.

    That is the order of the published data sets, whose splits this reproduces. `groups` are the
    rows of each file or hub split by role; `are_names`: all of them bear names of splits, as in a
    hub data set (among files one may).
    """
    table = rows.table
    _check_options(table)
    if table.only:
        is_used = np.zeros(len(rows), dtype=bool)
        is_used[used_rows(rows)] = True
        groups = {
            role: {name: found[is_used[found]] for name, found in named.items()}
            for role, named in groups.items()
        }
    by_name = groups["path"]
    base = np.concatenate([NO_ROWS, *by_name.values()])
    if table.split_col:
        codes, names = coded(rows, table.split_col)
        by_name = {name: base[codes[base] == code] for code, name in enumerate(names)}
        by_name = {name: found for name, found in by_name.items() if len(found)}
    splits, said = _named(rows, by_name, base, are_names or bool(table.split_col))
    for name in ("valid", "test"):
        more = groups[f"{name}_path"].values()
        if more and len(splits[name]):
            raise InputError(
                f"{name} rows come both from --data.{name}-path and from '{table.path}'. Set "
                f"--data.{name}-split '' or drop --data.{name}-path."
            )
        splits[name] = np.concatenate([splits[name], *more])
    said = [f"only {' and '.join(table.only)}"] * bool(table.only) + said
    _refuse_overlap(rows, splits)
    named = {name: len(found) for name, found in splits.items()}
    said += [
        f"--data.{name}-fraction changes nothing: {name} rows are named"
        for name in HELD_OUT
        if named[name] and getattr(table, f"{name}_fraction") != getattr(Table, f"{name}_fraction")
    ]
    drawn = bool(table.folds) and not table.fold_col
    for name, fraction in (("test", table.test_fraction), ("valid", table.valid_fraction)):
        drawn |= not (table.folds or named[name]) and fraction > 0
    condition, how = _condition(rows, splits["train"], drawn)
    said += how
    if table.folds:
        splits, how = _fold(rows, splits, condition)
        said.append(how)
    else:
        splits = cut.fractions(
            splits, table.test_fraction, table.valid_fraction, table.split_seed, condition
        )
        said += _fraction_sentences(table, named, splits, condition)
        if table.keep_classes:
            is_kept = _kept(rows)
            splits = {name: found[is_kept[found]] for name, found in splits.items()}
            said.append(f"only classes {', '.join(table.keep_classes)}")
            if emptied := [name for name in SPLITS if named[name] and not len(splits[name])]:
                raise InputError(
                    f"--data.keep-classes {' '.join(table.keep_classes)}: leaves no {emptied[0]} "
                    "row"
                )
    if condition:
        said += _realised(rows, splits, condition)
    rows.splits = {name: splits[name].astype(np.int64) for name in SPLITS}
    counts = ", ".join(f"{len(rows.splits[name]):,} {name}" for name in SPLITS)
    is_used = np.zeros(len(rows), dtype=bool)
    for found in rows.splits.values():
        is_used[found] = True
    unused = len(rows) - int(is_used.sum())
    said.append(f"rows: {counts}" + (f", {unused:,} unused" if unused else ""))
    rows.plan = "; ".join(said)


def _check_options(table: Table) -> None:
    if not 0 <= table.split_seed < 2**32:
        raise InputError(f"--data.split-seed {table.split_seed}: expected 0 to 2^32 - 1")
    if not table.folds and (table.fold or table.fold_col):
        raise InputError("--data.fold and --data.fold-col need --data.folds, the number of folds")


def _refuse_overlap(rows: Rows, splits: cut.Splits) -> None:
    """Raise InputError for a row, or a file, that is in two named splits."""
    used, files = np.full(len(rows), -1), {}
    for number, (name, found) in enumerate(splits.items()):
        both = found[used[found] >= 0]
        if len(both):
            raise InputError(
                f"{rows.where(int(both[0]))}: is both {SPLITS[used[both[0]]]} and {name}, as are "
                f"{len(both) - 1:,} more rows. Each row belongs to one split: set "
                f"--data.{name}-split"
            )
        used[found] = number
        for source in np.unique(np.searchsorted(rows.starts, found, side="right") - 1):
            other = files.setdefault(rows.names[source], (source, name))
            if other[0] != source:
                raise InputError(
                    f"{rows.names[source]}: its rows are both {other[1]} and {name}. Name each "
                    "file for one split"
                )


def _condition(rows: Rows, base: np.ndarray, drawn: bool) -> tuple[cut.Condition | None, list[str]]:
    """What random splits and folds of `base` must keep, and in words; None for plain draws."""
    table = rows.table
    given = {"stratify-col": table.stratify_col, "group-col": table.group_col}
    given |= {"identity": table.identity}
    flags = ", ".join(f"--data.{flag}" for flag, value in given.items() if value)
    if not flags:
        return None, []
    if table.fold_col:
        raise InputError(
            f"{flags}: column '{table.fold_col}' says which rows are in which fold; drop it or them"
        )
    if not (drawn and len(base)):
        return None, [f"no rows are drawn: {flags} changes nothing"]
    units, strata = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
    said = []
    if table.identity:
        units, method = clusters(rows, base, table.identity)
        found = _sizes(units[base], "cluster")
        about = f"sequences at least about {table.identity:g} alike stay together"
        said.append(f"{about} ({method}): {found}")
    if table.group_col:
        values, names = coded(rows, table.group_col, "group-col")
        groups = values[base]
        require_values(rows, table.group_col, base, groups, names)
        said.append(f"column '{table.group_col}' stays together: {_sizes(groups, 'group')}")
        if table.identity:
            groups = cut.connected(groups, units[base])
            said.append(f"joined where they share rows: {_sizes(groups, 'group')}")
        units = units.copy()
        units[base] = groups
    if table.stratify_col:
        strata, words = _strata(rows, base)
        said.append(words)
    return cut.Condition(units, strata), said


def _sizes(units: np.ndarray, word: str) -> str:
    counts = np.unique(units, return_counts=True)[1]
    plural = "s" if len(counts) > 1 else ""
    return f"{len(counts):,} {word}{plural}, the largest of {counts.max():,} rows"


def _strata(rows: Rows, base: np.ndarray) -> tuple[np.ndarray, str]:
    """The stratum of every row of the table (N,), and in words."""
    column = rows.table.stratify_col
    rows.require(column, "stratify-col")
    numbers = floats(rows.dataset.data.column(column))
    if numbers is not None and not are_classes(np.unique(numbers[base])):
        if not np.isfinite(numbers[base]).all():
            row = int(base[np.flatnonzero(~np.isfinite(numbers[base]))[0]])
            raise InputError(f"{rows.where(row)}, column '{column}': no finite number to share")
        inner = np.quantile(numbers[base], np.arange(1, QUANTILES) / QUANTILES)
        values = np.searchsorted(np.unique(inner), numbers, side="right")
        found = len(np.unique(values[base]))
        return values, f"numbers of column '{column}' shared alike in {found} quantiles"
    values, names = coded(rows, column)
    require_values(rows, column, base, values[base], names)
    found = np.unique(values[base], return_counts=True)[1]
    words = f"values of column '{column}' shared alike: {len(found):,} of them"
    if rare := int((found < (rows.table.folds or 2)).sum()):
        words += f", {rare:,} with fewer rows than parts"
    return values, words


def require_values(
    rows: Rows, column: str, base: np.ndarray, codes: np.ndarray, names: list[str]
) -> None:
    """Raise InputError unless each row of `base` has a value; `codes` (n,) as of `coded`."""
    numbers = floats(rows.dataset.data.column(column))  # of text, in which nan is a word, None
    missing = np.array([not name for name in names], dtype=bool)[codes]
    if numbers is not None:
        missing |= np.isnan(numbers[base])
    if missing.any():
        row = int(base[np.flatnonzero(missing)[0]])
        raise InputError(
            f"{rows.where(row)}, column '{column}': no value ({missing.sum():,} of {len(base):,} "
            "rows). Fill it in or drop the row"
        )


def _realised(rows: Rows, splits: cut.Splits, condition: cut.Condition) -> list[str]:
    """How near the parts came to what was wanted of values shared alike."""
    if not rows.table.stratify_col:
        return []
    used = [condition.strata[found] for found in splits.values() if len(found)]
    count = max(int(values.max()) for values in used) + 1
    shares = [np.bincount(values, minlength=count) / len(values) for values in used]
    whole = np.bincount(np.concatenate(used), minlength=count) / sum(map(len, used))
    apart = max(float(np.abs(share - whole).max()) for share in shares)
    return [f"shares of values differ by at most {apart:.2g} from those of all"]


def coded(rows: Rows, column: str, flag: str = "") -> tuple[np.ndarray, list[str]]:
    """The value of every row (N,) int64 as its place among the different ones, as text.

    "" is no value; 2 and 2.0 are one. Raises InputError for a column of lists.
    """
    import pyarrow as pa

    rows.require(column, flag)
    values: pa.ChunkedArray = rows.dataset.data.column(column)
    if pa.types.is_nested(values.type):
        raise InputError(
            f"{rows.names[0]}, column '{column}': expected one value per row, found values of type "
            f"{values.type}"
        )
    values = values.dictionary_encode().unify_dictionaries()
    places: dict[str, int] = {}
    cells = values.chunk(0).dictionary.to_pylist() if len(rows) else []
    codes = [chunk.indices.fill_null(len(cells)).to_numpy() for chunk in values.chunks]
    cells += [None] * bool(values.null_count)
    known = np.array([places.setdefault(_text(cell), len(places)) for cell in cells], np.int64)
    return known[np.concatenate([NO_ROWS, *codes])], list(places)


def _text(cell: Any) -> str:
    if cell is None or cell != cell:  # NaN differs from itself
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def are_classes(numbers: np.ndarray) -> bool:
    """Different numbers are few, or whole ones that fill half of 0 to the largest or more."""
    if len(numbers) <= MOST_STRATA:
        return True
    are_whole = bool((numbers == np.floor(numbers)).all() and numbers.min() >= 0)
    return are_whole and len(numbers) > numbers.max() / 2


def floats(column: pa.ChunkedArray) -> np.ndarray | None:
    """Cells as float64, empty ones as NaN; None if one is not a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def used_rows(rows: Rows) -> np.ndarray:
    """The numbers of the rows that `only` lets pass: in each column named, one of the values.

    Raises InputError if there are none.
    """
    wanted: dict[str, list[str]] = {}
    for condition in rows.table.only:
        column, given, value = condition.partition("=")
        if not given:
            raise InputError(f"--data.only {condition}: expected COLUMN=VALUE")
        wanted.setdefault(column, []).append(_number(value))
    passes = np.ones(len(rows), dtype=bool)
    for column, values in wanted.items():
        codes, names = coded(rows, column)
        passes &= np.isin(list(map(_number, names)), values)[codes]
    if not passes.any():
        raise InputError(f"{rows.names[0]}: no row has {' and '.join(rows.table.only)}")
    return np.flatnonzero(passes)


def _number(text: str) -> str:
    """A number as one text, however it is written (2, 2.0); other text as it is, but for case of
    true and false."""
    try:
        return repr(float(text))
    except ValueError:
        return text.lower() if text.lower() in ("true", "false") else text


def _kept(rows: Rows) -> np.ndarray:
    """Which rows have one of the classes that are kept as their first label, (N,) bool."""
    if not rows.table.y_cols:
        raise InputError("--data.keep-classes needs --data.y-cols, the column of classes")
    codes, names = coded(rows, rows.table.y_cols[0])
    return np.isin(names, rows.table.keep_classes)[codes]


def _named(
    rows: Rows, groups: Groups, base: np.ndarray, are_names: bool
) -> tuple[cut.Splits, list[str]]:
    """The rows of each split by name. A missing name is an error if it may be a typo."""
    table = rows.table
    wanted = {name: _names(getattr(table, f"{name}_split"), groups) for name in SPLITS}
    known = {part for parts in wanted.values() for part in parts}
    if not (are_names or known & {*groups}):
        _refuse_pool(table.path, groups)
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
        if empty := [part for part in parts if part in groups and not len(groups[part])]:
            raise InputError(f"{table.path}: '{empty[0]}', named for {name}, has no rows")
        splits[name] = np.concatenate([NO_ROWS, *(groups[p] for p in parts if p in groups)])
    named = [f"{name} is '{'+'.join(wanted[name])}'" for name in SPLITS if len(splits[name])]
    return splits, [", ".join(named)]


def _refuse_pool(path: str, groups: Groups) -> None:
    """Raise InputError for files that look like splits, but are not named as ours are."""
    like = {
        name: [group for group in groups if re.search(pattern, group, re.IGNORECASE)]
        for name, pattern in (("train", "train"), ("valid", r"val|\bdev"), ("test", "test"))
    }
    if like["train"] and (like["valid"] or like["test"]):
        flags = [
            f"--data.{name}-split '{'+'.join(found)}'" for name, found in like.items() if found
        ]
        raise InputError(
            f"{path}: no file is named train, valid or test, but some look like splits: set "
            f"{' '.join(flags)}, or --data.train-split '*' to use all files as one table"
        )


def _names(text: str, groups: Groups) -> list[str]:
    """What is joined by "+"; a pattern such as train_* stands for the groups that it fits."""
    parts = [part.strip() for part in text.split("+") if part.strip()]
    fits = (fnmatch.filter(groups, part) if part not in groups else () for part in parts)
    named = [sorted(found) or [part] for part, found in zip(parts, fits, strict=True)]
    return [*dict.fromkeys(name for names in named for name in names)]


def _fraction_sentences(
    table: Table, named: dict[str, int], splits: cut.Splits, condition: cut.Condition | None
) -> list[str]:
    left, sentences = named["train"], []
    for name, fraction in (("test", table.test_fraction), ("valid", table.valid_fraction)):
        if not named[name] and len(splits[name]):
            found = len(splits[name]) / left
            sentences.append(
                f"{name}: {fraction:.4g} of {left:,} rows at random, seed {table.split_seed}"
                + (f", {found:.4g} came out" if condition else "")
            )
            left -= len(splits[name])
    return sentences


def _fold(
    rows: Rows, splits: cut.Splits, condition: cut.Condition | None
) -> tuple[cut.Splits, str]:
    table, train = rows.table, splits["train"]
    if table.keep_classes:
        train = train[_kept(rows)[train]]
    if table.fold_col:
        codes, names = coded(rows, table.fold_col, "fold-col")
        values = np.array(names)[codes[train]]
        folds = cut.named_folds(values, table.folds, lambda at: rows.where(int(train[at])))
        origin = f"of column '{table.fold_col}'"
    elif condition:
        folds = cut.conditional_folds(condition, train, table.folds, table.split_seed)
        sizes = sorted(map(len, folds))
        origin = f"of {sizes[0]:,} to {sizes[-1]:,} rows, seed {table.split_seed}"
    else:
        folds = cut.random_folds(len(train), table.folds, table.split_seed)
        origin = f"at random, seed {table.split_seed}"
    dropped = sum(len(splits[name]) for name in ("valid", "test"))
    sentence = f"{table.folds} folds {origin}, test on fold {table.fold}"
    if dropped:
        sentence += f", {dropped:,} rows named valid or test left out"
    by_fold = cut.by_fold(train, folds, table.fold, table.valid_fold, table.valid_fold_offset)
    return by_fold, sentence
