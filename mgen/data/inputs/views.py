"""Views of rows: a stretch of a long sequence, and the other strand of DNA.

Training sees one view of a row at a time, drawn at random; evaluation and prediction see the middle
stretch of the given strand, or that of both strands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mgen.config import InputError
from mgen.data.checking.reads import Reads
from mgen.data.inputs.variants import other_strand
from mgen.data.table import Rows, Table

Row = dict[str, Any]


def check_views(rows: Rows, tokenizer: Reads, can: Sequence[str], training: bool) -> list[str]:
    """What should be said of the views that the table asks for.

    `can`: what makes sense for the task: to "augment" (train on a random view, its labels being
    those of the row) and to "average" (the mean of what both strands give). Raises InputError.
    """
    table, notes = rows.table, []
    turns, averages = table.strands in ("augment", "both"), table.strands in ("average", "both")
    if turns and "augment" not in can or averages and "average" not in can:
        raise InputError(
            f"--data.strands {table.strands}: not for this task, whose labels or outputs belong to "
            "one strand or to single letters; drop it"
        )
    if table.strands != "forward" and tokenizer.modality != "dna":
        raise InputError(
            f"--data.strands {table.strands}: this model reads {tokenizer.modality}, which has no "
            "other strand; drop it"
        )
    if table.crop < 0:
        raise InputError(f"--data.crop {table.crop}: expected a number of letters, or 0 for all")
    if table.crop and ("augment" not in can or not tokenizer.per_letter):
        why = "whose labels belong to single letters" if tokenizer.per_letter else "or this model"
        raise InputError(f"--data.crop {table.crop}: not for this task, {why}; drop it")
    if (table.crop or table.strands != "forward") and (table.msa_col or table.structure_col):
        raise InputError("--data.crop, --data.strands: not for rows with alignments or structures")
    if turns and training:
        notes.append("half of the training rows are turned to the other strand, at random")
    if averages:
        notes.append("evaluations and predictions are the mean of both strands")
    return notes


def drawn(rows: Sequence[Row], table: Table) -> Sequence[Row]:
    """The rows as training sees them once: numpy's generator draws stretch and strand of each."""
    if not table.crop and table.strands in ("forward", "average"):
        return rows
    found = []
    for row in rows:
        sequence = _letters(row[table.x_col])
        if table.crop and len(sequence) > table.crop:
            start = np.random.randint(len(sequence) - table.crop + 1)
            sequence = sequence[start : start + table.crop]
        if table.strands in ("augment", "both") and np.random.randint(2):
            sequence = other_strand(sequence)
        found.append({**row, table.x_col: sequence})
    return found


def fixed(rows: Sequence[Row], table: Table) -> tuple[Sequence[Row], Sequence[Row]]:
    """The rows as evaluation sees them, and once more on the other strand where that counts too."""
    if not table.crop and table.strands in ("forward", "augment"):
        return rows, []
    middle = [{**row, table.x_col: _middle(_letters(row[table.x_col]), table.crop)} for row in rows]
    if table.strands in ("forward", "augment"):
        return middle, []
    return middle, [{**row, table.x_col: other_strand(row[table.x_col])} for row in middle]


def _middle(sequence: str, size: int) -> str:
    start = (len(sequence) - size) // 2 if size and len(sequence) > size else 0
    return sequence[start : start + size] if size else sequence


def _letters(sequence: str) -> str:
    return "".join(sequence.split())  # tokenizers drop white space; positions count letters
