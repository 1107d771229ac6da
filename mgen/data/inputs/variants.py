"""Variants of sequences: what differs from a wild type or a genome, checked and applied.

Positions are 0-based and half-open throughout; only what users write (`A123G`, the POS of a VCF)
counts as they do. Shapes: L letters of a reference, B rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.sources.places import hub_copy, local_file
from mgen.data.targets.labels import Problem, place
from mgen.io.genome import COMPLEMENT, genome
from mgen.io.tables import is_table, read

if TYPE_CHECKING:
    import pyarrow as pa

    from mgen.data.table import Rows, Table

VERSION = 1  # part of the key of cached tables: raise it when the same mutations read otherwise
MUTATION = re.compile(r"([A-Za-z*])(-?\d+)([A-Za-z*-])", re.ASCII)
POSITION = re.compile(r"(-?\d{1,15})(?:\.0+)?", re.ASCII)
WILD_TYPE = {"", "WT", "wt", "_wt", "WILD-TYPE"}  # cells that mean no mutation
FIELDS = ("genome", "window", "reference_col", "chrom_col", "start_col", "ref_col", "alt_col")
FIELDS += ("one_based", "mismatch")  # of `Source`, that settings of a recipe name
GONE = "*-"  # a stop or a deleted residue: nothing takes the residue's place


class Edit(NamedTuple):
    """`reference`, the letters from `start` on, become `alternative`; either may be empty."""

    start: int
    reference: str
    alternative: str


@dataclass(frozen=True)
class Variant:
    """A reference sequence and its edits, by rising start, none overlapping."""

    reference: str
    edits: tuple[Edit, ...]
    is_cut: bool = False  # its window ran over the end of a contig
    is_turned: bool = False  # the row had its alleles on the other strand

    @property
    def mutated(self) -> str:
        parts, done = [], 0
        for start, reference, alternative in self.edits:
            parts += [self.reference[done:start], alternative]
            done = start + len(reference)
        return "".join([*parts, self.reference[done:]])

    @property
    def has_indel(self) -> bool:
        return any(len(edit.reference) != len(edit.alternative) for edit in self.edits)

    @property
    def growth(self) -> int:
        """Letters that the mutated sequence has more than the reference, at least 0."""
        return max(0, sum(len(e.alternative) - len(e.reference) for e in self.edits))

    def cropped(self, width: int) -> Variant:
        """The stretch of at most `width` letters, before and after, with the edits in its middle.

        Raises InputError if the edits lie too far apart.
        """
        room = width - self.growth
        if not width or len(self.reference) <= room:
            return self
        first = self.edits[0].start if self.edits else 0
        last = self.edits[-1].start + len(self.edits[-1].reference) if self.edits else 1
        if last - first > room:
            raise InputError(
                f"its mutations span {last - first:,} letters, but the model reads {width:,} at "
                "once. Use a strategy that reads a window per site, such as wt-fill"
            )
        start, stop = window(len(self.reference), (first + last) // 2, room)
        start = min(start, first)
        edits = tuple(edit._replace(start=edit.start - start) for edit in self.edits)
        return Variant(self.reference[start:stop], edits)

    def reverse_complement(self) -> Variant:
        """The same variant of the other strand."""
        size = len(self.reference)
        edits = tuple(
            Edit(size - start - len(ref), other_strand(ref), other_strand(alt))
            for start, ref, alt in reversed(self.edits)
        )
        return Variant(other_strand(self.reference), edits, self.is_cut, self.is_turned)


def other_strand(sequence: str) -> str:
    """The reverse complement; U pairs with A, N stays."""
    return sequence.translate(COMPLEMENT)[::-1]


def window(length: int, site: int, width: int) -> tuple[int, int]:
    """(start, stop) of at most `width` letters around `site`, shifted inwards at the ends."""
    if not width or length <= width:
        return 0, length
    start = min(max(site - width // 2, 0), length - width)
    return start, start + width


def edits_between(start: int, reference: str, alternative: str) -> tuple[Edit, ...]:
    """What turns `reference`, which begins at `start`, into `alternative`.

    Of equal lengths: the letters that differ. Otherwise one edit, without the letters that both
    have at their beginning and then at their end.
    """
    if len(reference) == len(alternative):
        pairs = enumerate(zip(reference, alternative, strict=True), start)
        return tuple(Edit(i, a, b) for i, (a, b) in pairs if a != b)
    head, most = 0, min(len(reference), len(alternative))
    while head < most and reference[head] == alternative[head]:
        head += 1
    tail = 0
    while tail < most - head and reference[-1 - tail] == alternative[-1 - tail]:
        tail += 1
    stop = len(reference) - tail
    return (Edit(start + head, reference[head:stop], alternative[head : len(alternative) - tail]),)


# --------------------------------------------------------------------------- A123G


def parse_mutations(text: str, wild_type: str, first: int = 1) -> tuple[Edit, ...]:
    """Edits of mutations such as `A123G:L45P` (or with `,`), `first` being the first position.

    `WT` and an empty text are the wild type. `*` and `-` in place of a new residue delete the
    residue. Raises InputError for what contradicts the wild type.
    """
    if text.strip() in WILD_TYPE:
        return ()
    edits: dict[int, Edit] = {}
    for part in re.split(r"[:,;]", text):
        found = MUTATION.fullmatch(part.strip())
        if not found:
            raise InputError(
                f"{part.strip()!r} is no mutation. Expected old residue, position, new residue, as "
                "in A123G, several joined by ':' or ','; WT for the wild type"
            )
        old, new, at = found[1].upper(), found[3].upper(), int(found[2]) - first
        if not 0 <= at < len(wild_type):
            raise InputError(
                f"{part.strip()}: the wild type has positions {first} to "
                f"{first + len(wild_type) - 1}. Set --data.first-position if it counts otherwise"
            )
        if wild_type[at] != old:
            shifted = [f for f in (0, 1) if wild_type[int(found[2]) - f :][:1] == old and f < 2]
            hint = f"; with --data.first-position {shifted[0]} it is {old}" if shifted else ""
            raise InputError(
                f"{part.strip()}: expected {old}, found {wild_type[at]} at position {found[2]} of "
                f"the wild type{hint}"
            )
        if at in edits:
            raise InputError(f"{text}: position {found[2]} is mutated twice")
        edits[at] = Edit(at, old, "" if new in GONE else new)
    return tuple(edits[at] for at in sorted(edits))


def read_wild_type(given: str) -> str:
    """The sequence that `--data.wild-type` means: itself, a FASTA file, or FILE:RECORD of one.

    Raises InputError for a missing file or record, and for several records without a name.
    """
    file, _, record = given.rpartition(":")
    if not (file and is_table(file)):
        file, record = given, ""
    if not (is_table(file) or "/" in file):
        letters = "".join(given.split()).upper()
        if not letters.isalpha():
            raise InputError(f"--data.wild-type {given}: neither a FASTA file nor a sequence")
        return letters
    path = local_file(file)
    if not path.is_file():
        raise InputError(
            f"--data.wild-type {given}: no such file, {path}. Set it to a FASTA file or to the "
            "sequence; mgen show data NAME says where that of a named data set comes from"
        )
    records = {}
    for batch in read(path):
        for row in batch.to_pylist():
            records[str(row.get("id", len(records)))] = row.get("sequence")
    if record and record not in records:
        raise InputError(
            f"--data.wild-type {given}: no record '{record}' in {file}.{nearest(record, records)}"
        )
    if not record and len(records) > 1:
        raise InputError(
            f"--data.wild-type {file}: {len(records)} records; name one as {file}:{[*records][0]}"
        )
    sequence = records[record or [*records][0]]
    if not isinstance(sequence, str):
        raise InputError(f"--data.wild-type {file}: expected FASTA; found no column 'sequence'")
    return "".join(sequence.split()).upper()


def given_column(table: Table) -> str:
    """Where an opened table with a wild type keeps the sequence column as it was written."""
    return f"given_{table.x_col}"


def mutated_batches(
    path: Path | str, batches: Iterator[pa.RecordBatch], table: Table, wild_type: str
) -> Iterator[pa.RecordBatch]:
    """The batches of a file whose sequence column holds mutations, with mutated sequences there.

    The text as written moves to `given_column`. A column whose first cell is a sequence holds
    sequences and is left alone. Raises InputError naming the file, row and column.
    """
    import pyarrow as pa

    column, given, done, as_mutations = table.x_col, given_column(table), 0, None
    for batch in batches:
        if column not in batch.schema.names or given in batch.schema.names:
            known = [name for name in batch.schema.names if name != given]
            raise InputError(
                f"{path}: expected a column '{column}' and none '{given}'; columns are "
                f"{', '.join(map(repr, batch.schema.names))}.{nearest(column, known)} Set "
                "--data.x-col."
            )
        cells, sequences = batch.column(column).to_pylist(), []
        for row, cell in enumerate(cells, done + 1):
            text = "" if cell is None else str(cell).strip()
            is_sequence = text not in WILD_TYPE and text.isalpha()
            if as_mutations is None and text not in WILD_TYPE:
                as_mutations = not is_sequence
            try:
                if as_mutations is not False or text in WILD_TYPE:
                    sequences.append(
                        Variant(
                            wild_type, parse_mutations(text, wild_type, table.first_position)
                        ).mutated
                    )
                elif not is_sequence:
                    raise InputError(f"{text!r} is no sequence, as those of the rows before are")
                else:
                    sequences.append(text.upper())
            except InputError as error:
                where = f"{path}, row {row} (header not counted), column '{column}'"
                raise InputError(f"{where}: {error}") from None
        done += len(cells)
        index = batch.schema.get_field_index(column)
        arrays = [*batch.columns, batch.column(column)]
        names = [*batch.schema.names, given]
        arrays[index] = pa.array(sequences, pa.large_string())
        yield pa.RecordBatch.from_arrays(arrays, names=names)


# --------------------------------------------------------------------------- rows to variants


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a row's variant comes from; `read` makes it.

    - `genome`: a row has a contig, a start and two alleles, and the reference is the window of
      `window` letters on each side of them in that genome;
    - `wild_type`: the sequence column has the mutated sequence;
    - `reference_col`: likewise, and that column has the sequence before;
    - none of these: the sequence column has the reference, and the row a start and two alleles.

    Alleles may be of the other strand (`complements`): then both are turned around.
    """

    genome: str = ""
    window: int = 512
    wild_type: str = ""
    reference_col: str = ""
    x_col: str = "sequence"
    chrom_col: str = "chrom"
    start_col: str = "start"
    ref_col: str = "ref"
    alt_col: str = "mutate"
    one_based: bool = False
    mismatch: Literal["error", "skip", "keep"] = "error"
    complements: bool = True
    nucleotides: bool = True

    @property
    def columns(self) -> list[str]:
        """The columns of the table that `read` needs."""
        alleles = [self.start_col, self.ref_col, self.alt_col]
        if self.genome:
            return [self.chrom_col, *alleles]
        if self.wild_type:
            return [self.x_col]
        return [self.x_col, self.reference_col] if self.reference_col else [self.x_col, *alleles]

    def read(self, row: dict[str, Any]) -> Variant | str:
        """The variant of a row, or why it is skipped.

        Raises InputError where the row contradicts the reference, unless `mismatch` lets it pass:
        "skip" says so, "keep" puts the row's own reference allele there.
        """
        if self.wild_type or self.reference_col:
            before = self.wild_type or self.letters(row, self.reference_col)
            after = self.letters(row, self.x_col)
            return Variant(before, edits_between(0, before, after))
        alternative = self.allele(row, self.alt_col)
        if reason := unscorable(alternative):
            return reason
        reference = self.allele(row, self.ref_col)
        if reason := unscorable(reference):
            raise InputError(f"column '{self.ref_col}': {reference!r} is no sequence")
        reference, alternative = reference.strip("-"), alternative.strip("-")
        start = self.number(row, self.start_col) - self.one_based
        text, first, is_cut = self._around(row, start, start + len(reference))
        found = text[start - first : start - first + len(reference)]
        is_turned = False
        if found != reference:
            turned = other_strand(reference)
            if self.complements and self.nucleotides and found == turned:
                reference, alternative, is_turned = turned, other_strand(alternative), True
            elif self.mismatch == "skip":
                return "reference allele differs"
            elif self.mismatch == "error":
                what = "genome" if self.genome else "sequence"
                raise InputError(
                    f"reference allele {reference or '-'}: the {what} has {found} at {start} to "
                    f"{start + len(reference)} (counted from 0). Is it the same assembly? "
                    "--one-based says that starts count from 1, --mismatch skip leaves such rows "
                    "without a score"
                )
            else:
                at = start - first
                text = text[:at] + reference + text[at + len(reference) :]
        edits = edits_between(start - first, reference, alternative)
        return Variant(text, edits, is_cut, is_turned)

    def _around(self, row: dict[str, Any], start: int, stop: int) -> tuple[str, int, bool]:
        """The reference around a place, the position of its first letter, whether it is cut."""
        if not self.genome:
            text = self.letters(row, self.x_col)
            self._inside(start, stop, len(text), "sequence")
            return text, 0, False
        contigs, contig = genome(self.genome), str(row[self.chrom_col]).strip()
        length = contigs.length(contig)
        self._inside(start, stop, length, f"contig {contig}")
        first, last = start - self.window, stop + self.window
        text = contigs.fetch(contig, first, last)
        return text, max(first, 0), first < 0 or last > length

    def _inside(self, start: int, stop: int, length: int, what: str) -> None:
        if not 0 <= start <= stop <= length:  # start = length: letters added at the end
            raise InputError(
                f"position {start} to {stop} (counted from 0) is outside the {what} of {length:,}"
            )

    def letters(self, row: dict[str, Any], column: str) -> str:
        """A sequence of a row in upper case, of nucleotides with T for U."""
        text = "".join(str(row[column] or "").split()).upper()
        if not text:
            raise InputError(f"column '{column}': the sequence is empty")
        return text.replace("U", "T") if self.nucleotides else text

    def allele(self, row: dict[str, Any], column: str) -> str:
        text = str("" if row[column] is None else row[column]).strip().upper()
        return text.replace("U", "T") if self.nucleotides else text

    def number(self, row: dict[str, Any], column: str) -> int:
        found = POSITION.fullmatch(str(row[column]).strip())
        if not found:
            raise InputError(f"column '{column}': {row[column]!r} is no position")
        return int(found[1])


def source_of(cfg: Any, rows: Rows, nucleotides: bool) -> Source:
    """Where the rows' variants come from by the settings `cfg`, which have the fields of `Source`.

    Raises InputError where the table has none of the columns for it.
    """
    wild_type = read_wild_type(cfg.data.wild_type) if cfg.data.wild_type else ""
    options = {name: getattr(cfg, name) for name in FIELDS}
    if cfg.genome:
        options["genome"] = str(hub_copy(cfg.genome) or local_file(cfg.genome))
    source = Source(
        wild_type=wild_type.replace("U", "T") if nucleotides else wild_type,
        x_col=cfg.data.x_col,
        nucleotides=nucleotides,
        complements="alleles" not in rows.columns,  # a VCF has the forward strand alone
        **options,
    )
    if cfg.window < 0:
        raise InputError(f"--window {cfg.window}: expected 0 or more")
    if source.genome:
        genome(source.genome)  # or an error
    missing = [column for column in source.columns if column not in rows.columns]
    if missing and not (source.genome or wild_type or source.reference_col):
        raise InputError(
            f"{rows.names[0]}: no column '{missing[0]}' "
            f"({', '.join(map(repr, rows.columns))}). Variants are mutations of --data.wild-type, "
            "sequences beside those of --reference-col, alleles in a --genome, or alleles in the "
            "sequences of --data.x-col (--start-col, --ref-col, --alt-col)"
        )
    if missing:
        rows.require(missing[0])
    return source


def unscorable(allele: str) -> str:
    """Why an allele has no letters to score; "" if it has. "-" is an allele without letters."""
    if allele in ("", "."):
        return "no alternative allele"
    if allele == "*":
        return "allele deleted by another variant (*)"
    if allele[0] == "<":
        return "symbolic allele"
    if {*"[]"} & {*allele} or allele[0] == "." or allele[-1] == ".":
        return "breakend"
    if not (allele == "-" or allele.isalpha()):
        raise InputError(f"allele {allele!r}: expected letters, or '-' for none")
    return ""


@dataclass
class Survey:
    """What a pass over all rows found; `lengths` (n,) are letters of the references, 1: skipped."""

    lengths: np.ndarray
    skipped: Counter[str]  # rows by the reason for having no score
    cut: int = 0  # windows shortened at the ends of contigs
    turned: int = 0  # rows whose alleles are of the other strand
    indels: int = 0
    split: int = 0  # rows of records with several alternative alleles

    def notes(self, width: int) -> list[str]:
        """What should be said aloud; `width` is how many letters a model reads, 0: no limit."""
        total, narrow = len(self.lengths), int((self.lengths > width).sum()) if width else 0
        said = {
            "are of records with several alternative alleles, one row each": self.split,
            "have windows shortened by the end of their contig": self.cut,
            "have alleles of the other strand, which are complemented": self.turned,
            f"are read in windows of {width:,} letters around their sites": narrow,
            **{f"get no score: {reason}": count for reason, count in self.skipped.items()},
        }
        return [f"{n:,} of {total:,} variants {what}" for what, n in said.items() if n]


def survey(rows: Rows, source: Source, refuse: Callable[[Variant], str]) -> Survey:
    """Read every row's variant once, in blocks of a few megabytes.

    `refuse` says why a variant gets no score ("" if it gets one). Raises InputError with the first
    row that contradicts its reference or is refused by an error, and how many are.
    """
    found, wrong, message = Survey(np.ones(len(rows), dtype=np.int32), Counter()), Problem(), ""
    counted = [name for name in ("alleles",) if name in rows.columns]
    for numbered, block in rows.chunks([*source.columns, *counted]):
        for number, row in zip(numbered.tolist(), block.to_pylist(), strict=True):
            try:
                variant = source.read(row)
                reason = variant if isinstance(variant, str) else refuse(variant)
            except InputError as error:
                message = message or str(error)
                wrong.add(number)
                continue
            found.split += int(row.get("alleles", 1) > 1)
            if reason:
                found.skipped[reason] += 1
                continue
            found.lengths[number] = len(variant.reference)
            found.cut += variant.is_cut
            found.turned += variant.is_turned
            found.indels += variant.has_indel
    if wrong.count:
        raise InputError(
            f"{place(rows, wrong.row, source.columns[-1])}: {message} ({wrong.count:,} of "
            f"{len(rows):,} rows)"
        )
    return found
