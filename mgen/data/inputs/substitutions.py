"""Scores of substitutions without a network: a substitution matrix, or an alignment's columns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mgen.config import InputError
from mgen.data.inputs.variants import Variant
from mgen.io.alignments import read_alignment

RESIDUES = "ARNDCQEGHILKMFPSTWYV"
PSEUDOCOUNT = 1.0  # sequences' worth of uniform residues added to each column
# In half bits, lower triangle in the order of RESIDUES (Henikoff & Henikoff 1992, PNAS 89:10915).
BLOSUM62 = """
 4
-1  5
-2  0  6
-2 -2  1  6
 0 -3 -3 -3  9
-1  1  0  0 -3  5
-1  0  0  2 -4  2  5
 0 -2  0 -1 -3 -2 -2  6
-2  0  1 -1 -3  0  0 -2  8
-1 -3 -3 -3 -1 -3 -3 -4 -3  4
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""


def blosum62() -> np.ndarray:
    """The symmetric matrix (20, 20) in the order of RESIDUES."""
    rows = [list(map(float, line.split())) for line in BLOSUM62.strip().splitlines()]
    matrix = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = matrix[: i + 1, i] = row
    return matrix


def matrix_score(variant: Variant) -> float:
    """Sum over the sites of B(old, new) - B(old, old), B being BLOSUM62. 0 for other letters."""
    matrix, total = blosum62(), 0.0
    for _, old, new in variant.edits:
        a, b = RESIDUES.find(old), RESIDUES.find(new)
        if min(a, b) >= 0 and len(old) == len(new) == 1:
            total += matrix[a, b] - matrix[a, a]
    return total


def log_frequencies(aligned: Sequence[str]) -> np.ndarray:
    """Log frequencies (L, 20) of residues in the columns of an alignment; gaps are not counted.

    Every column gets PSEUDOCOUNT sequences of uniform residues. Sequences are not weighted.
    """
    table = np.frombuffer("".join(aligned).upper().encode("ascii", "replace"), dtype=np.uint8)
    table = table.reshape(len(aligned), -1)
    counts = np.stack([(table == ord(residue)).sum(0) for residue in RESIDUES], 1)
    counts = counts + PSEUDOCOUNT / len(RESIDUES)
    return np.log(counts / counts.sum(1, keepdims=True))


def read_aligned(path: str, wild_type: str) -> tuple[str, ...]:
    """The rows of an alignment whose first one is the wild type. Raises InputError if it is not."""
    rows = read_alignment(Path(path))
    if rows[0].upper() != wild_type:
        raise InputError(
            f"--msa {path}: its first row ({len(rows[0])} columns) is not the wild type "
            f"({len(wild_type)} letters); --data.wild-type and the alignment must agree"
        )
    return rows


def column_score(variant: Variant, columns: np.ndarray) -> float:
    """Sum over the sites of log f(new) - log f(old) in the columns (L, 20) of `log_frequencies`.

    Raises InputError for letters that are none of the twenty residues.
    """
    total = 0.0
    for site, old, new in variant.edits:
        if old not in RESIDUES or new not in RESIDUES:
            raise InputError(f"{old}{site + 1}{new}: the alignment counts {RESIDUES} alone")
        total += columns[site, RESIDUES.index(new)] - columns[site, RESIDUES.index(old)]
    return float(total)
