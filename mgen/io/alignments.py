"""Alignment files (A3M, aligned FASTA; gzipped too) and structure embeddings (.npy)."""

import functools
import gzip
import zlib
from pathlib import Path

import numpy as np

from mgen.config import InputError

INSERTIONS = {ord("."): None} | {letter: None for letter in range(ord("a"), ord("z") + 1)}


@functools.lru_cache(maxsize=8)  # all variants of a protein may share one file
def read_alignment(path: Path) -> tuple[str, ...]:
    """The rows, the query first, without insertions (lower case and dots): all of one length.

    Raises InputError for a file that is missing, is no such text, or is not aligned.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            records: list[list[str]] = []
            for line in file:
                if line.startswith(">"):
                    records.append([])
                elif records:
                    records[-1].append(line.strip())
                elif line.strip():
                    raise InputError(f"{path}: text before the first '>'")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not records:
        raise InputError(f"{path}: not one record; expected an alignment in A3M or FASTA")
    rows = tuple("".join(record).translate(INSERTIONS) for record in records)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise InputError(
                f"{path}: not aligned: record {number} has {len(row)} columns without insertions "
                f"(lower case), the first has {len(rows[0])}"
            )
    return rows


def read_structure(path: Path) -> np.ndarray:
    """The numbers of a .npy file; pickled objects in it are refused."""
    if path.suffix != ".npy":
        raise InputError(f"{path}: expected a .npy file of numbers (residues, channels)")
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
