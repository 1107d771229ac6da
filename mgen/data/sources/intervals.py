"""Rows that name places of a genome get the sequences there.

Coordinates are 0-based and half-open. The middle of an interval is its letter (start + end) // 2;
a window of W letters starts W // 2 letters before it: an odd W has as many letters on each side, an
even one fewer after the middle than before. Rows on the minus strand get the reverse complement of
that. What of a window lies beyond the ends of its contig is N.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgen.config import InputError, nearest
from mgen.data.inputs.variants import other_strand, unscorable
from mgen.data.sources.places import local_file
from mgen.io.bed import interval
from mgen.io.files import content_digest
from mgen.io.genome import Genome, genome

if TYPE_CHECKING:
    import pyarrow as pa

    from mgen.data.table import Table

VERSION = 1  # part of the key of cached tables: raise it when the same places read otherwise
LARGEST_BATCH = 16 << 20  # letters held at once
REFERENCE, PADDING = "reference", "padding"  # columns beside the sequences
DEFAULT_STRAND = ("strand",)  # need not be there
STRANDS = {"+": False, "-": True, ".": False, "": False}  # -: the other strand is read


def key_of(table: Table) -> str:
    """What the sequences of a file's rows depend on, beside the file."""
    options = (table.x_col, table.window, table.interval_cols)
    return f"intervals {VERSION} {content_digest(local_file(table.genome))} {options}"


def check_options(table: Table) -> None:
    """Raise InputError unless the options on intervals fit together and the genome can be read."""
    if table.window < 0:
        raise InputError(f"--data.window {table.window}: expected a number of letters, or 0")
    if table.window and not table.genome:
        raise InputError("--data.window needs --data.genome, the FASTA that windows are read from")
    if table.genome and table.wild_type:
        raise InputError("--data.genome and --data.wild-type both make the sequences; drop one")
    if table.genome and len(table.interval_cols) not in (3, 4):
        raise InputError(
            f"--data.interval-cols {' '.join(table.interval_cols)}: expected the columns of "
            "contig, start, end and, if there is one, strand"
        )
    if table.genome:
        genome(str(local_file(table.genome)))  # or an error


def located_batches(
    path: Path | str, batches: Iterator[pa.RecordBatch], table: Table
) -> Iterator[pa.RecordBatch]:
    """The batches of a file with the sequences of their rows in column `x_col`.

    Rows of variants (columns `ref` and `mutate`, as a VCF has them) get the window with the
    alternative allele there, and the same window without it in `reference`. `padding` counts the
    letters N that stand for what is beyond the end of the contig. Raises InputError naming the row.
    """
    import pyarrow as pa

    contigs, done = genome(str(local_file(table.genome))), 0
    for batch in batches:
        is_variant = {"ref", "mutate"} <= {*batch.schema.names}
        made = [table.x_col, *([REFERENCE] if is_variant else []), PADDING]
        _check_columns(path, batch.schema.names, made, table, is_variant)
        read = _read_variant if is_variant else _read_interval
        types = [pa.int32() if name == PADDING else pa.large_string() for name in made]
        rows, start, size = [], 0, 0
        for i, row in enumerate(batch.to_pylist()):
            where = f"{path}, row {done + i + 1} (header not counted)"
            rows.append(read(contigs, where, row, table))
            size += len(rows[-1][0])
            if size > LARGEST_BATCH or i + 1 == batch.num_rows:
                columns = zip(*rows, strict=True)
                arrays = [pa.array(c, kind) for c, kind in zip(columns, types, strict=True)]
                part = batch.slice(start, len(rows))
                yield pa.RecordBatch.from_arrays(
                    [*part.columns, *arrays], names=[*batch.schema.names, *made]
                )
                rows, start, size = [], i + 1, 0
        done += batch.num_rows


def _check_columns(
    path: Path | str, names: list[str], made: list[str], table: Table, is_variant: bool
) -> None:
    needed = table.interval_cols[: 2 if is_variant else 3]
    if not is_variant and table.interval_cols[3:] != DEFAULT_STRAND:
        needed = table.interval_cols
    if missing := [name for name in needed if name not in names]:
        raise InputError(
            f"{path}: no column '{missing[0]}'; columns are {', '.join(map(repr, names))}."
            f"{nearest(missing[0], names)} Set --data.interval-cols CHROM START END STRAND, "
            "or --data.genome '' for a table of sequences."
        )
    if taken := [name for name in made if name in names]:
        flag = "set --data.x-col to another name" if taken[0] == table.x_col else "rename it"
        raise InputError(
            f"{path}: there is a column '{taken[0]}', which --data.genome makes; {flag}"
        )


def _read_interval(contigs: Genome, where: str, row: dict[str, Any], table: Table) -> tuple:
    contig, start, end, *strand = (row.get(name) for name in table.interval_cols)
    start, end = interval(where, start, end)
    sequence, padding = _letters(contigs, where, str(contig).strip(), start, end, table.window)
    sign = "" if not strand or strand[0] is None else str(strand[0]).strip()
    if sign not in STRANDS:
        raise InputError(f"{where}: strand {sign!r}: expected +, -, or . for none")
    return other_strand(sequence) if STRANDS[sign] else sequence, padding


def _read_variant(contigs: Genome, where: str, row: dict[str, Any], table: Table) -> tuple:
    contig, start = (row[name] for name in table.interval_cols[:2])
    before, after = (str(row[name] or "").strip().upper() for name in ("ref", "mutate"))
    if reason := unscorable(after):
        raise InputError(
            f"{where}: ALT {after!r}: {reason}, which makes no sequence. Take such records out, "
            "e.g. with bcftools view -v snps,indels"
        )
    if unscorable(before):
        raise InputError(f"{where}: reference allele {before!r}: expected letters")
    before, after = before.strip("-"), after.strip("-")
    start, _ = interval(where, start, start)
    end, contig = start + len(before), str(contig).strip()
    if not table.window or len(before) > table.window:
        raise InputError(
            f"{where}: a variant of {len(before):,} letters is read in the window around it: set "
            "--data.window to as many letters or more"
        )
    reference, padding = _letters(contigs, where, contig, start, end, table.window)
    at = start - _window(start, end, table.window)[0]
    found = reference[at : at + len(before)]
    if found != before:
        raise InputError(
            f"{where}: reference allele {before or '-'}: the genome has {found} at {contig} "
            f"{start} to {end} (counted from 0). Is it the same assembly, and the forward strand?"
        )
    return reference[:at] + after + reference[at + len(before) :], reference, padding


def _letters(
    contigs: Genome, where: str, contig: str, start: int, end: int, window: int
) -> tuple[str, int]:
    """The letters of an interval or of the window around it, and how many of them are padding."""
    try:
        length = contigs.length(contig)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if end > length:
        raise InputError(
            f"{where}: {start} to {end} (counted from 0) is off contig {contig} of {length:,}"
        )
    first, last = _window(start, end, window)
    if first == last:
        raise InputError(f"{where}: the interval is empty. Set --data.window to read around it")
    left, right = max(-first, 0), max(last - length, 0)
    return "N" * left + contigs.fetch(contig, first, last) + "N" * right, left + right


def _window(start: int, end: int, window: int) -> tuple[int, int]:
    if not window:
        return start, end
    first = (start + end) // 2 - window // 2
    return first, first + window
