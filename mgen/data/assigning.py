"""Assigning rows to splits: by name, column, file, fraction or fold, and saying how."""

from __future__ import annotations

import fnmatch
from typing import Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data import splits as cut
from mgen.data.table import Rows, Table

SPLITS = ("train", "valid", "test")
NO_ROWS = np.array([], dtype=np.int64)
Groups = dict[str, np.ndarray]  # stem, hub split or value of the split column -> row numbers


def assign(rows: Rows, groups: dict[str, Groups], are_names: bool) -> None:
    """Named splits first; then folds, or else fractions for what was not named and the filter.

    That is the order of the published data sets, whose splits this reproduces. `groups` are the
    rows of each file or hub split by role; `are_names`: all of them bear names of splits, as in a
    hub data set (among files one may).
    """
    table, by_name = rows.table, groups["path"]
    _check_options(table)
    base = np.concatenate([NO_ROWS, *by_name.values()])
    if table.split_col:
        by_name = _by_value(rows.values(table.split_col), base)
    splits, said = _named(rows, by_name, base, are_names or bool(table.split_col))
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


def _check_options(table: Table) -> None:
    if not 0 <= table.split_seed < 2**32:
        raise InputError(f"--data.split-seed {table.split_seed}: expected 0 to 2^32 - 1")
    if not table.folds and (table.fold or table.fold_col):
        raise InputError("--data.fold and --data.fold-col need --data.folds, the number of folds")


def _by_value(values: list[Any], base: np.ndarray) -> Groups:
    texts = np.array([str(values[i]) for i in base], dtype=object)
    return {text: base[texts == text] for text in dict.fromkeys(texts)}


def _named(
    rows: Rows, groups: Groups, base: np.ndarray, are_names: bool
) -> tuple[cut.Splits, list[str]]:
    """The rows of each split by name. A missing name is an error if it may be a typo."""
    table = rows.table
    wanted = {name: _names(getattr(table, f"{name}_split"), groups) for name in SPLITS}
    known = {part for parts in wanted.values() for part in parts}
    if not (are_names or known & {*groups}):
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


def _names(text: str, groups: Groups) -> list[str]:
    """What is joined by "+"; a pattern such as train_* stands for the groups that it fits."""
    parts = [part.strip() for part in text.split("+") if part.strip()]
    fits = (fnmatch.filter(groups, part) if part not in groups else () for part in parts)
    named = [sorted(found) or [part] for part, found in zip(parts, fits, strict=True)]
    return [*dict.fromkeys(name for names in named for name in names)]


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
