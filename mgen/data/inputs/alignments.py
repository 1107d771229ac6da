"""Cells of a table that hold an alignment or a structure embedding, or name a file that does."""

from __future__ import annotations

import glob
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgen.config import InputError
from mgen.data.sources.places import hub_copy, local_file
from mgen.io.alignments import read_alignment, read_structure

if TYPE_CHECKING:
    import numpy as np

    from mgen.data.table import Table

LEAST_IDENTITY = 0.5  # of a sequence and the query of its file, which may be its wild type


SHARE_OF_LETTERS = 0.75  # of an alignment's cells; the others are gaps, which cost no token


def alignment(table: Table, row: dict[str, Any]) -> list[str] | None:
    """The aligned rows of a cell, or those of them that `table.msa_tokens` leaves."""
    found = _aligned(table, row)
    if not (found and table.msa_tokens):
        return found
    return subsampled(found, len(found[0]), table.msa_tokens, table.msa_seed)


def subsampled(rows: list[str], length: int, tokens: int, seed: int) -> list[str]:
    """Some rows of an alignment that has `length` columns, drawn at random, fewest gaps first.

    As many as fit into `tokens` if a quarter of the cells are gaps, all if they do; the published
    sub-sampling of AIDO.Protein-RAG, draw by draw.
    """
    kept = int(tokens / length / SHARE_OF_LETTERS)
    if kept < len(rows):
        rows = random.Random(seed).sample(rows, kept)
    return sorted(rows, key=lambda row: row.count("-"))


def _aligned(table: Table, row: dict[str, Any]) -> list[str] | None:
    """The rows of a cell; of a file without its first record, the query."""
    cell = row.get(table.msa_col)
    if cell in (None, ""):
        return None
    if isinstance(cell, list):
        return cell
    path = _path(table, table.msa_col, cell)
    query, *others = read_alignment(path)
    sequence = "".join(row[table.x_col].split()).upper()
    if "[" not in sequence:  # tokens such as [MASK] are one column each
        same = sum(a == b for a, b in zip(query, sequence, strict=False))
        if len(query) != len(sequence) or same < LEAST_IDENTITY * len(query):
            raise InputError(
                f"{path}: its first record, {_short(query)} ({len(query)} columns), is not the "
                f"sequence of the row, {_short(sequence)} ({len(sequence)} residues)"
            )
    return others


def structure(table: Table, row: dict[str, Any]) -> list[list[float]] | np.ndarray | None:
    """The numbers of a cell, (residues, channels)."""
    cell = row.get(table.structure_col)
    if cell in (None, ""):
        return None
    return (
        cell if isinstance(cell, list) else read_structure(_path(table, table.structure_col, cell))
    )


def _path(table: Table, column: str, cell: object) -> Path:
    if not isinstance(cell, str):
        raise InputError(
            f"column '{column}': expected lists or names of files, found {type(cell).__name__}"
        )
    paths = [path for path in (table.path, table.valid_path, table.test_path) if path]
    named = [path.replace("{subset}", table.subset) for path in paths]
    places = [_folder(path) / cell for path in named] or [Path(cell)]
    # Reading the first says what is missing.
    return next((place for place in places if place.exists()), places[0])


def _folder(path: str) -> Path:
    place = hub_copy(path) or local_file(path)
    while glob.has_magic(str(place)):
        place = place.parent
    return place if place.is_dir() else place.parent


def _short(text: str) -> str:
    return repr(text if len(text) <= 20 else text[:17] + "...")
