"""Checks of tables of cells before any weights are loaded: genes, values, what pooling will see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mgen.config import InputError
from mgen.data.checking.reads import Reads
from mgen.data.table import Rows
from mgen.data.targets.labels import Problem
from mgen.io.counts import GeneTable, entries

MOST_LOG = 15.0  # ln(1 + 1e4 c / T) ends at 9.2; a log2 of it at 13.3


def cells(
    rows: Rows, tokenizer: Reads, held: np.ndarray, training: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """What should be said of the cells `held`, and the tokens of every row (N,) int32.

    `training` are rows trained on, which should not be among the others. Raises InputError.
    """
    if tokenizer.modality != "cell":
        raise InputError(
            f"{rows.names[0]}: these are counts of cells, and this model reads "
            f"{tokenizer.modality}. Set --backbone to a model of cells, such as aido_cell_3m"
        )
    if rows.table.neighbours and not tokenizer.reads_neighbours:
        raise InputError(
            f"--data.neighbours {rows.table.neighbours}: this model reads one cell at a time. Drop "
            "it, or set --backbone to a model of tissue, such as aido_tissue_3m"
        )
    tokenizer.check_places(rows.places)
    notes = [note for name, table in _tables(rows) for note in _genes(name, table, tokenizer)]
    seen = held if rows.neighbours is None else np.union1d(held, rows.neighbours[held])
    expressed, more = _values(rows, tokenizer, seen, held)
    tokens = tokenizer.expressed_tokens(expressed)
    if rows.neighbours is not None:
        tokens = tokens + tokens[rows.neighbours].sum(1)
    lengths = np.zeros(len(rows), dtype=np.int32)
    lengths[held] = tokens[held]
    notes += more + _long(rows, tokenizer, lengths)
    return notes + _repeated(rows, training, held), np.minimum(
        lengths, tokenizer.max_length or np.iinfo(np.int32).max
    )


def _tables(rows: Rows) -> list[tuple[str, GeneTable]]:
    """Each table of genes with the first file that has it."""
    found: dict[str, tuple[str, GeneTable]] = {}
    for name, table in zip(rows.names, rows.genes, strict=True):
        found.setdefault(table.digest, (name, table))
    return [*found.values()]


def _genes(name: str, table: GeneTable, tokenizer: Reads) -> list[str]:
    try:
        found = tokenizer.align(table)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    total, size = len(found.places), len(found.present)
    notes = [
        f"{name}: {found.known:,} of {total:,} genes are in the model's list of {size:,} (by "
        f"{found.by}); {size - int(found.present.sum()):,} of the list are not in the file and "
        "count as zero"
    ]
    if found.repeated:
        how = "the first of each counts" if tokenizer.as_published else "each gene's are summed"
        notes.append(f"{name}: {found.repeated:,} columns repeat a gene: {how}")
    return notes


def _values(
    rows: Rows, tokenizer: Reads, seen: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Genes of the list that are not zero in each row (N,), and what to say."""
    expressed = np.zeros(len(rows), dtype=np.int64)
    totals = np.zeros(len(rows))
    largest, known, all_counts = 0.0, 0.0, 0.0
    fraction, bad = Problem(), Problem()
    for numbers, block in rows.chunks([rows.table.x_col], seen):
        for chunk, part in _split(numbers, block.column(0).chunks):
            ends, genes, values = entries(chunk)
            row_of = np.repeat(np.arange(len(part)), np.diff(ends))
            genes, values = genes[ends[0] : ends[-1]], values[ends[0] : ends[-1]]
            sources = np.searchsorted(rows.starts, part, side="right") - 1
            places = np.empty(len(genes), dtype=np.int32)
            for source in np.unique(sources):
                its = sources[row_of] == source
                places[its] = tokenizer.align(rows.genes[source]).places[genes[its]]
            wrong = ~np.isfinite(values) | (values < 0)
            _note(bad, part, row_of, wrong)
            _note(fraction, part, row_of, values != np.floor(values))
            largest = max(largest, float(values.max(initial=0)))
            is_known = places >= 0
            expressed[part] = np.bincount(row_of[is_known], minlength=len(part))
            totals[part] = np.bincount(row_of[is_known], values[is_known], len(part))
            known += float(values[is_known].sum(dtype=np.float64))
            all_counts += float(values.sum(dtype=np.float64))
    if bad.count:
        value, gene = _first(rows, bad.row, lambda v: ~np.isfinite(v) | (v < 0))
        raise InputError(
            f"{rows.where(bad.row)}, gene {gene}: {value:g} is no count ({bad.count:,} rows have "
            "values that are negative or no numbers). Take the file before it was scaled"
        )
    if tokenizer.values == "counts" and fraction.count:
        value, gene = _first(rows, fraction.row, lambda v: v != np.floor(v))
        looks = " They look like logarithms." if largest < MOST_LOG else ""
        raise InputError(
            f"{rows.where(fraction.row)}, gene {gene}: {value:g} is not a whole number "
            f"({fraction.count:,} rows have such values, the largest is {largest:g}).{looks} This "
            "model reads raw counts: name their place with --data.layer (raw, or a layer); or say "
            "what these are with --backbone.values decimal or --backbone.values log1p"
        )
    if tokenizer.values == "log1p" and largest > MOST_LOG:
        raise InputError(
            f"{rows.names[0]}: values up to {largest:g} are no logarithms of normalised counts. "
            "Drop --backbone.values log1p"
        )
    if tokenizer.values == "log1p" and largest > 1 and not fraction.count:
        raise InputError(
            f"{rows.names[0]}: all values are whole numbers, up to {largest:g}, as counts are and "
            "logarithms are not. Drop --backbone.values log1p"
        )
    notes, empty = [], held[totals[held] == 0]
    if tokenizer.values == "log1p":
        notes.append("values are read as ln(1 + 1e4 c / T) and turned back before the model's own")
    if len(empty):
        notes.append(
            f"{len(empty):,} of {len(held):,} cells have no count of any gene of the model, the "
            f"first in {rows.where(int(empty.min()))}: they are read as zeros"
        )
    if tokenizer.values != "log1p" and all_counts:
        notes.append(f"{known / all_counts:.1%} of all counts are of genes of the model")
    return expressed, notes


def _split(numbers: np.ndarray, chunks: list) -> list[tuple]:
    ends = np.cumsum([len(chunk) for chunk in chunks])[:-1]
    return [*zip(chunks, np.split(numbers, ends), strict=True)]


def _note(problem: Problem, part: np.ndarray, row_of: np.ndarray, wrong: np.ndarray) -> None:
    if wrong.any():
        which = np.unique(row_of[wrong])
        problem.add(part[which[0]], count=len(which))


def _first(rows: Rows, row: int, wrong) -> tuple[float, str]:
    cell = rows.cell(row)
    place = int(np.flatnonzero(wrong(cell.values))[0])
    return float(cell.values[place]), cell.table.names(cell.genes[[place]])[0]


def _long(rows: Rows, tokenizer: Reads, lengths: np.ndarray) -> list[str]:
    over = lengths - (tokenizer.max_length or np.iinfo(np.int32).max)
    if not (over > 0).any():
        return []
    count, row, lost = int((over > 0).sum()), int(np.argmax(over > 0)), int(over.clip(min=0).sum())
    limit = f"{tokenizer.max_length:,} tokens, {tokenizer.num_special} of them special"
    if tokenizer.truncate == "error":
        raise InputError(
            f"{rows.where(row)}: {lengths[row]:,} tokens, and the model reads {limit} ({count:,} "
            "cells). Set --backbone.truncate right to leave out the last ones, or raise "
            "--backbone.max-length"
        )
    return [f"{count:,} cells have more than {limit}: {lost:,} genes in all are left out"]


def _repeated(rows: Rows, training: np.ndarray, held: np.ndarray) -> list[str]:
    """Cells that are trained on and held out as well."""
    others = np.setdiff1d(held, training)
    if not len(training) or not len(others):
        return []
    known = {*_hashes(rows, training)}
    again = [found in known for found in _hashes(rows, others)]
    if not any(again):
        return []
    row = int(others[again.index(True)])
    return [
        f"{sum(again):,} of {len(again):,} held-out cells also occur in train, the first in "
        f"{rows.where(row)}: scores on them will be too good"
    ]


def _hashes(rows: Rows, indices: Sequence[int] | np.ndarray) -> list[int]:
    found = []
    for _, block in rows.chunks([rows.table.x_col], np.asarray(indices)):
        for chunk in block.column(0).chunks:
            ends, genes, values = entries(chunk)
            spans = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
            found += [hash(genes[a:b].tobytes() + values[a:b].tobytes()) for a, b in spans]
    return found
