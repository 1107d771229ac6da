"""BED: intervals of a genome, 0-based and half-open (UCSC; GA4GH BED v1).

Columns: chrom, start, end (numbers), then name, score, strand and so on as text, as many as the
file has; those beyond the format's are called column_13 and so on by their place.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa

from mgen.config import InputError
from mgen.io.lines import decoded, lines

BLOCK_ROWS = 10_000
PLACE = ("chrom", "start", "end", "name", "score", "strand")
PEAK = (*PLACE, "signal_value", "p_value", "q_value")
COLUMNS = {
    ".bed": (*PLACE, "thick_start", "thick_end", "item_rgb")
    + ("block_count", "block_sizes", "block_starts"),
    ".narrowpeak": (*PEAK, "peak"),  # of ENCODE; peak: letters from start to the summit
    ".broadpeak": PEAK,
}
NO_DATA = (b"#", b"track ", b"track\t", b"browser ", b"browser\t")
POSITION = re.compile(r"(\d{1,15})(?:\.0+)?", re.ASCII)


def read_bed(path: Path, file: IO[bytes], names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Stream record batches of an opened file. Raises InputError naming the row (from 1)."""
    rows, schema = _rows(path, file), None
    while block := list(islice(rows, BLOCK_ROWS)):
        if schema is None:
            extra = range(len(names) + 1, len(block[0]) + 1)
            named = [*names[: len(block[0])], *(f"column_{i}" for i in extra)]
            types = [pa.string(), pa.int64(), pa.int64(), *[pa.string()] * (len(named) - 3)]
            schema = pa.schema(list(zip(named, types, strict=True)))
        columns = zip(*block, strict=True)
        arrays = [pa.array(cells, f.type) for cells, f in zip(columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rows(path: Path, file: IO[bytes]) -> Iterator[list]:
    row, width, separator = 0, 0, None
    for line in lines(path, file):
        if not line.strip() or line.startswith(NO_DATA):
            continue
        row += 1
        where = f"{path}, row {row} (header not counted)"
        text = decoded(path, where, line).rstrip("\r\n")
        if not width:
            separator = "\t" if "\t" in text else None  # None: any spaces
        fields = text.split(separator)
        if len(fields) < 3 or (width and len(fields) != width):
            expected = f"{width}, as in the first row" if width else "3 or more"
            raise InputError(f"{where}: {len(fields)} columns, expected {expected}")
        width = len(fields)
        yield [fields[0], *interval(where, fields[1], fields[2]), *fields[3:]]


def interval(where: str, start: object, end: object) -> tuple[int, int]:
    """Two cells as start and end. Raises InputError unless 0 <= start <= end."""
    first, last = (_position(where, name, cell) for name, cell in (("start", start), ("end", end)))
    if first > last:
        raise InputError(
            f"{where}: the interval is reversed, from {first} to {last}. Start is the smaller one "
            "on both strands"
        )
    return first, last


def _position(where: str, name: str, cell: object) -> int:
    found = POSITION.fullmatch(str(cell).strip())
    if not found:
        raise InputError(f"{where}: {name} {cell!r}: expected a whole number from 0 up")
    return int(found[1])
