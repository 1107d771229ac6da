"""Rows with a sequence per modality, of which some may be missing: checks and batches.

A cell that is empty, blank or absent means that the row lacks that modality. B rows, L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError, flags_of
from mgen.data.checking import check
from mgen.data.table import Rows
from mgen.data.targets.labels import place

if TYPE_CHECKING:
    from torch import Tensor

Modality = tuple[str, str, Any]  # field of its backbone in the settings, column, tokenizer


def modalities(tokenizers: dict[str, Any], columns: Sequence[str]) -> list[Modality]:
    """Backbones with their columns, the main one first.

    Raises InputError unless there is a column for each and all read sequences alone.
    """
    if len(tokenizers) != len(columns):
        raise InputError(
            f"{len(tokenizers)} backbones ({', '.join(tokenizers)}), but {len(columns)} columns of "
            f"sequences ({', '.join(columns)}). Name one column for each: that of --backbone with "
            "--data.x-col, the others with --x-cols; --backbone2 none leaves one out"
        )
    for name, tokenizer in tokenizers.items():
        if tokenizer.has_context:
            raise InputError(f"--{name}: models that read alignments cannot be fused; set another")
    return list(zip(tokenizers, columns, tokenizers.values(), strict=True))


def check_modalities(
    rows: Rows, modalities: Sequence[Modality], splits: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Look at the sequences of every modality in `splits`, as `check` does at those of one.

    Returns the tokens of each row of the table, of all modalities together, and what should be said
    aloud. Raises InputError, also for a row without any sequence and for a modality without rows.
    """
    columns = [column for _, column, _ in modalities]
    for column in columns:
        rows.require(column)
    if len({*columns}) < len(columns):
        raise InputError(
            f"the same column for two backbones: {', '.join(columns)}. Name one for each with "
            "--data.x-col and --x-cols"
        )
    if rows.table.msa_col or rows.table.structure_col:
        raise InputError(
            "--data.msa-col, --data.structure-col: not for several backbones; drop them"
        )
    there = np.stack([present(rows, column) for column in columns], axis=1)
    held = np.unique(np.concatenate([rows.splits[split] for split in splits]))
    if len(empty := held[~there[held].any(1)]):
        raise InputError(
            f"{place(rows, int(empty[0]), ' and '.join(columns))}: no sequence at all "
            f"({len(empty):,} of {len(held):,} rows). Fill one in or drop the row."
        )
    lengths, notes = np.zeros(len(rows), dtype=np.int32), check.identifiers(rows, held)
    for (name, column, tokenizer), given in zip(modalities, there.T, strict=True):
        view = copy.copy(rows)
        view.table = replace(rows.table, x_col=column)
        view.splits = {name: numbers[given[numbers]] for name, numbers in rows.splits.items()}
        if "train" in splits and not len(view.splits["train"]):
            raise InputError(f"{rows.names[0]}: no training row has a sequence in '{column}'")
        with flags_of(name):
            said = check.sequences(view, tokenizer, held[given[held]])
        if "train" in splits:
            said += check.overlaps(view, tokenizer)
        if lacking := int((~given[held]).sum()):
            said.append(f"no sequence in {lacking:,} of {len(held):,} rows")
        notes += [f"column '{column}': {note}" for note in said]
        lengths += np.where(given, check.token_lengths(view, column, tokenizer), 0)
    return lengths, notes


def present(rows: Rows, column: str) -> np.ndarray:
    """Which rows of the table have a sequence in `column`, (N,) bool."""
    import pyarrow as pa
    import pyarrow.compute as pc

    given = np.zeros(len(rows), dtype=bool)
    for numbers, block in rows.chunks([column]):
        cells = block.column(column)
        if pa.types.is_null(cells.type):
            continue
        if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):
            raise InputError(
                f"{rows.names[0]}, column '{column}': expected sequences as text, found values of "
                f"type {cells.type}"
            )
        length = pc.utf8_length(pc.utf8_trim_whitespace(cells))
        given[numbers] = pc.fill_null(pc.greater(length, 0), False).to_numpy()
    return given


def tokenize(rows: Sequence[dict[str, Any]], modalities: Sequence[Modality]) -> dict[str, Tensor]:
    """Tokens of each modality, of the rows that have it, and `present` (B, number of modalities).

    `of_modality` reads the tokens of one out of the batch. A modality that no row has is a stand-in
    of one letter, so that every backbone takes part in every step.
    """
    import torch

    batch, there = {}, []
    for name, column, tokenizer in modalities:
        cells = [row.get(column) for row in rows]
        given = [isinstance(cell, str) and bool(cell.strip()) for cell in cells]
        texts = [cell for cell, is_given in zip(cells, given, strict=True) if is_given]
        with flags_of(name):
            tokens = tokenizer.tokenize(texts or [tokenizer.alphabet[0]])
        batch |= {f"{key}{name.removeprefix('backbone')}": value for key, value in tokens.items()}
        there.append(given)
    found = torch.tensor(there).T.contiguous()
    if not found.any(1).all():
        raise InputError("a row has no sequence of any modality")
    return {**batch, "present": found}


def of_modality(batch: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What the backbone in the field `name` takes: `input_ids1` as input_ids for backbone1."""
    number = name.removeprefix("backbone")
    keys = ("input_ids", "attention_mask", "special_tokens_mask")
    return {key: batch[f"{key}{number}"] for key in keys}


def spread(states: Tensor, given: Tensor) -> Tensor:
    """States (P, ...) of the rows that have a modality, `given` (B,), to (B, ...), else zeros."""
    whole = states.new_zeros(len(given), *states.shape[1:])
    places = given.nonzero()[:, 0]
    return whole.index_copy(0, places, states[: len(places)])
