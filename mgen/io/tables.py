"""Tables of rows in files: text, Parquet, Arrow, FASTA, BED, VCF and databases.

Each format is a function from a path to its columns and a stream of Arrow record batches, so that
a file of any size is read in bounded memory. Errors are `InputError`s that name the file and the
1-based data row ("header not counted").
"""

import codecs
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mgen.config import InputError
from mgen.io import bed
from mgen.io.arrow import ARROW, arrow_batches
from mgen.io.cells import SOMA, is_cell_folder, read_cells
from mgen.io.columns import place, plain_types, reject_duplicates, short, unified
from mgen.io.databases import DATABASES
from mgen.io.lines import decoded, lines, not_utf8, reject_wide, size_of
from mgen.io.soma import read_soma
from mgen.io.vcf import read_vcf

FASTA = (".fasta", ".fa", ".fna", ".faa", ".ffn", ".fas")
LONE_RETURN = re.compile(rb"\r(?![\r\n]|\Z)")  # several before a line end do no harm
READER_VERSION = 4  # part of the key of cached tables: raise it when the same bytes read otherwise
BLOCK_BYTES = 16 << 20  # a CSV row must fit into one block
BLOCK_ROWS = 10_000
LONGEST_FASTA_LINE = 256 << 20  # bytes; room for the largest human chromosome on one line
LARGEST_BATCH = 64 << 20  # characters of FASTA sequence held at once

Batches = Iterator[pa.RecordBatch]


def read(path: str | Path, query: str = "", layer: str = "") -> Batches:
    """Stream a file as record batches that share one schema; at least one row or InputError.

    CSV, TSV and FASTA columns are text exactly as written ("NA" is a sequence, an empty cell is
    ""); JSON, Parquet, Arrow and databases keep their types. `query` is the SELECT that makes the
    rows of a database; without one they are those of its only table. Of a SOMA experiment it is a
    filter of obs. `layer` is that of cells.
    """
    path = Path(path)
    suffix = table_format(path)
    if query and suffix not in {*DATABASES, ".soma"}:
        raise InputError(
            f"{path}: --data.query is for databases ({', '.join(DATABASES)}) and SOMA experiments. "
            "Set --data.query ''"
        )
    if layer and suffix not in CELLS:
        raise InputError(f"{path}: --data.layer is for files of cells. Set --data.layer ''")
    options = {"query": query, "layer": layer}
    reader = functools.partial(READERS[suffix], **{k: v for k, v in options.items() if v})
    if path.is_dir():
        yield from reader(path, None)
        return
    try:
        with _opened(path) as file:
            head = file.peek(1)
            if not head:
                raise InputError(f"{path}: the file is empty")
            if suffix not in BINARY:
                reject_wide(path, head[:4096])
            num_rows = 0
            for batch in reader(path, file):
                num_rows += batch.num_rows
                yield batch
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"{path}: cannot be unpacked ({error}). The file is damaged or is not gzip."
        raise InputError(message) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not num_rows:
        what = "the query gives" if query else "there is a header but"
        raise InputError(f"{path}: {what} not one row")


def table_format(path: str | Path) -> str:
    """The suffix that decides how a file is read, ".gz" aside. Raises InputError if unknown."""
    if is_cell_folder(Path(path)):
        is_soma = (Path(path) / SOMA).is_file()
        is_zarr = Path(path).suffix.lower() == ".zarr"
        return ".soma" if is_soma else ".zarr" if is_zarr else ".mtx"
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    is_packed = suffixes[-1:] == [".gz"]
    suffix = [*suffixes, ""][len(suffixes) - 1 - is_packed] if suffixes else ""
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise InputError(
            f"{path}: the suffix '{suffix}' says no known format; known: {known} and .gz of each"
        )
    if is_packed and suffix in {*DATABASES, *CELLS}:
        raise InputError(f"{path}: such a file is read where it lies: gunzip it first")
    return suffix


def is_table(path: str | Path) -> bool:
    """Whether the name of a file says that `read` can read it."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    return bool({*suffixes[-1:]} & {*READERS}) or (
        suffixes[-1:] == [".gz"] and bool({*suffixes[-2:-1]} & {*READERS})
    )


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


# --------------------------------------------------------------------------- CSV, TSV


def _read_delimited(path: Path, file: IO[bytes], delimiter: str) -> Batches:
    from pyarrow import csv

    names = _header(path, file.readline(BLOCK_BYTES), delimiter)
    file.seek(0)
    # Cells are read as bytes, so that invalid UTF-8 is found with its row.
    options = {
        "read_options": csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        "parse_options": csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
        ),
    }
    _reject_lone_returns(path, file)
    # Not `file`: a thread of Arrow's that is in Python when Python ends aborts the process.
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    first_row = 1
    try:
        source = pa.input_stream(str(path), compression=compression)
        for batch in csv.open_csv(source, **options):
            yield _decoded(path, batch, first_row)
            first_row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}{_csv_problem(str(error), len(names))}") from None


def _reject_lone_returns(path: Path, file: IO[bytes]) -> None:
    """Raise InputError for a carriage return that ends no line: Arrow would cut the row there.

    Within quotes one is text.
    """
    last = b""
    while block := file.read(BLOCK_BYTES):
        if LONE_RETURN.search(last + block):
            break
        last = block[-1:] if block.endswith(b"\r") else b""
    else:
        return
    file.seek(0)
    row, is_quoted = 0, False
    while line := file.readline(BLOCK_BYTES):  # the pieces of a longer line do as well
        parts = line.split(b'"')
        for i, part in enumerate(parts):
            is_quoted ^= i > 0
            mark = b'"' if i + 1 < len(parts) else b""
            if not is_quoted and LONE_RETURN.search(part + mark):
                raise InputError(
                    f"{place(path, row)}: a carriage return that ends no line. Save with Unix or "
                    "Windows line ends."
                )
        row += not is_quoted and bool(line.strip())


def _header(path: Path, line: bytes, delimiter: str) -> list[str]:
    import csv

    if len(line) >= BLOCK_BYTES:
        raise InputError(
            f"{path}: the header is longer than {size_of(BLOCK_BYTES)}. Is it a table?"
        )
    line = line.removeprefix(codecs.BOM_UTF8)
    text = decoded(path, f"{path}, header", line).rstrip("\r\n")
    if "\r" in text:
        raise InputError(f"{path}: lines end in CR alone. Save with Unix or Windows line ends.")
    names = next(csv.reader([text], delimiter=delimiter), [])
    if not names or not text.strip():
        raise InputError(f"{path}: the first line must name the columns, but it is empty")
    others = [other for other in ",\t;|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise InputError(
            f"{path}: one column, named {names[0]!r}; columns seem to be separated by "
            f"{others[0]!r}. A .csv has ',', a .tsv has tabs: rename or convert the file."
        )
    reject_duplicates(path, names)
    return names


def _decoded(path: Path, batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(column.cast(pa.string()))
        except pa.ArrowInvalid:
            i, cell = _first_invalid_text(column)
            where = f"{place(path, first_row + i)}, column '{name}'"
            raise InputError(f"{where}: {not_utf8(path, cell)}") from None
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _first_invalid_text(column: pa.Array) -> tuple[int, bytes]:
    for i, cell in enumerate(column.to_pylist()):
        try:
            cell.decode()
        except UnicodeDecodeError:
            return i, cell
    raise AssertionError("every cell decodes, though Arrow refused the column")


def _csv_problem(message: str, num_columns: int) -> str:
    found = re.search(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", message, re.DOTALL)
    if found:
        row, got, text = int(found[1]) - 1, found[2], found[3]
        return (
            f", row {row} (header not counted): {got} cells where the header names {num_columns}: "
            f"{short(text)}. Quote cells that hold separators or quotes."
        )
    if "straddling" in message:
        return (
            f": a row is longer than {size_of(BLOCK_BYTES)} (or a quote is never closed). Use "
            "FASTA or Parquet."
        )
    return f": cannot be read: {message}"


# --------------------------------------------------------------------------- JSON lines


def _read_json_lines(path: Path, file: IO[bytes]) -> Batches:
    # Two passes: the type of a column is known only when all of its values have been seen.
    schema = pa.schema([])
    for start, records in _json_batches(path, file):
        schema = unified(path, start, schema, records)
    file.seek(0)
    for _, records in _json_batches(path, file):
        yield pa.RecordBatch.from_pylist(records, schema=schema)


def _json_batches(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[dict]]]:
    filled = (line for line in lines(path, file) if line.strip())
    start = 1
    while chunk := list(islice(filled, BLOCK_ROWS)):
        yield start, [_json_record(path, start + i, line) for i, line in enumerate(chunk)]
        start += len(chunk)


def _json_record(path: Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}, row {row}: not a line of JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(
            f'{path}, row {row}: expected an object such as {{"sequence": "ACGT"}}, found '
            f"{short(line.decode().strip())}"
        )
    return record


# --------------------------------------------------------------------------- Parquet, Arrow


def _read_parquet(path: Path, file: IO[bytes]) -> Batches:
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        reject_duplicates(path, table.schema_arrow.names)
        schema = plain_types(table.schema_arrow)
        for batch in table.iter_batches(batch_size=BLOCK_ROWS):
            yield batch.cast(schema)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({error})") from None


def _read_arrow(path: Path, file: IO[bytes]) -> Batches:
    for batch in arrow_batches(path, file):
        reject_duplicates(path, batch.schema.names)
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            yield batch.slice(start, BLOCK_ROWS)


# --------------------------------------------------------------------------- FASTA


def _read_fasta(path: Path, file: IO[bytes]) -> Batches:
    # Two passes: any header may bring a new KEY=value column.
    keys: dict[str, None] = {}
    headers = (s for s in lines(path, file, LONGEST_FASTA_LINE) if s.startswith(b">"))
    for row, line in enumerate(headers, start=1):
        keys |= dict.fromkeys(_attributes(_fasta_text(path, row, line)))
    reserved = {"id", "description", "sequence"} & {*keys}
    if reserved:
        raise InputError(f"{path}: a header has the attribute '{min(reserved)}=', a reserved name")
    file.seek(0)
    names = ["id", "description", "sequence", *keys]
    schema = pa.schema([(name, pa.string()) for name in names])
    for records in _grouped(_fasta_records(path, file)):
        yield pa.RecordBatch.from_pylist([dict.fromkeys(keys, "") | r for r in records], schema)


def _fasta_records(path: Path, file: IO[bytes]) -> Iterator[dict[str, str]]:
    row, header, parts = 0, "", []
    for line in lines(path, file, LONGEST_FASTA_LINE):
        if line.startswith(b">"):
            if row:
                yield _fasta_record(path, row, header, parts)
            row, parts = row + 1, []
            header = _fasta_text(path, row, line)[1:]
        elif line.strip():
            if not row:
                text = short(line.decode(errors="replace").strip())
                raise InputError(f"{path}: text before the first '>': {text}")
            parts.append(_fasta_text(path, row, line))
    if row:
        yield _fasta_record(path, row, header, parts)


def _fasta_record(path: Path, row: int, header: str, parts: list[str]) -> dict[str, str]:
    if not parts:
        raise InputError(f"{path}, record {row} ({short(header)}): there is no sequence")
    identifier, description = [*header.split(maxsplit=1), "", ""][:2]
    return {
        "id": identifier,
        "description": description,
        "sequence": "".join(parts),
        **_attributes(header),
    }


def _attributes(header: str) -> dict[str, str]:
    """`KEY=value` pairs of a header; a value ends at the next key ("OS=Homo sapiens OX=9606")."""
    pairs = re.findall(r"\s([A-Za-z_]\w*)=(.*?)(?=\s+[A-Za-z_]\w*=|$)", header)
    return {key: value.strip() for key, value in pairs}


def _fasta_text(path: Path, row: int, line: bytes) -> str:
    return decoded(path, f"{path}, record {row}", line).strip()


def _grouped(records: Iterable[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    group, size = [], 0
    for record in records:
        group.append(record)
        size += len(record["sequence"])
        if len(group) == BLOCK_ROWS or size > LARGEST_BATCH:
            yield group
            group, size = [], 0
    if group:
        yield group


# The last two: a folder of 10x with matrix.mtx in it, and a SOMA experiment, whatever its name.
CELLS = (".h5ad", ".h5", ".zarr", ".mtx", ".soma")

READERS: dict[str, Callable[[Path, IO[bytes]], Batches]] = {
    ".csv": lambda path, file: _read_delimited(path, file, ","),
    ".tsv": lambda path, file: _read_delimited(path, file, "\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    **dict.fromkeys(ARROW, _read_arrow),
    **dict.fromkeys(FASTA, _read_fasta),
    **{
        suffix: functools.partial(bed.read_bed, names=bed.COLUMNS[suffix]) for suffix in bed.COLUMNS
    },
    ".vcf": read_vcf,
    **DATABASES,
    **dict.fromkeys(CELLS, lambda path, file, layer="": read_cells(path, layer)),
    ".soma": lambda path, file, query="", layer="": read_soma(path, query, layer),
}
BINARY = {".parquet", *ARROW, *DATABASES, *CELLS}
