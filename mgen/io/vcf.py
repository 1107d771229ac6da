"""VCF: one row per alternative allele (format 4.x; only the fixed columns are read).

Columns: chrom, start and end (0-based, half-open: POS - 1 and the length of REF), ref, mutate (the
ALT as written, symbolic ones too), id (contig:POS:REF>ALT where the file has none), qual, filter,
and alleles, how many ALTs the record has.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mgen.config import InputError
from mgen.io.lines import decoded, lines

BLOCK_ROWS = 10_000
POSITION = re.compile(r"0*[1-9]\d{0,14}", re.ASCII)
SCHEMA = pa.schema(
    {
        "chrom": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "ref": pa.string(),
        "mutate": pa.string(),
        "id": pa.string(),
        "qual": pa.string(),
        "filter": pa.string(),
        "alleles": pa.int32(),
    }
)


def read_vcf(path: Path, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """Stream record batches of an opened file. Raises InputError naming the record (from 1)."""
    rows = _rows(path, file)
    while block := list(islice(rows, BLOCK_ROWS)):
        yield pa.RecordBatch.from_pylist(block, SCHEMA)


def _rows(path: Path, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    record, is_vcf = 0, False
    for line in lines(path, file):
        if line.startswith(b"#") or not line.strip():
            is_vcf |= line.startswith((b"##fileformat=VCF", b"#CHROM\t"))
            continue
        if not is_vcf:
            raise InputError(
                f"{path}: no VCF: neither '##fileformat=VCF' nor '#CHROM' precede data"
            )
        record += 1
        where = f"{path}, record {record} (header not counted)"
        yield from _alleles(where, decoded(path, where, line))


def _alleles(where: str, line: str) -> Iterator[dict[str, Any]]:
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) < 5:
        raise InputError(f"{where}: {len(fields)} columns separated by tabs, expected 8 or more")
    chrom, position, name, reference, alternatives, *rest = fields
    if not POSITION.fullmatch(position):
        raise InputError(f"{where}: POS {position!r}: expected a position counted from 1")
    reference = reference.upper()
    if not reference or {*reference} - {*"ACGTN"}:
        raise InputError(f"{where}: REF {reference!r}: expected letters of A, C, G, T, N")
    quality, passed = [*rest, "", ""][:2]
    alleles = alternatives.split(",")
    for alternative in alleles:
        start = int(position) - 1
        yield {
            "chrom": chrom,
            "start": start,
            "end": start + len(reference),
            "ref": reference,
            "mutate": alternative,
            "id": f"{chrom}:{position}:{reference}>{alternative}" if name == "." else name,
            "qual": "" if quality == "." else quality,
            "filter": "" if passed == "." else passed,
            "alleles": len(alleles),
        }
