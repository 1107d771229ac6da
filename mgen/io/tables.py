"""Tables of rows in files: CSV, TSV, JSON lines, Parquet, FASTA and VCF, plain or gzipped.

Each format is a function from a path to its columns and a stream of Arrow record batches, so that
a file of any size is read in bounded memory. Errors are `InputError`s that name the file and the
1-based data row ("header not counted").
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mgen.config import InputError
from mgen.io.vcf import read_vcf

FASTA = (".fasta", ".fa", ".fna", ".faa", ".ffn", ".fas")
READER_VERSION = 2  # part of the key of cached tables: raise it when the same bytes read otherwise
BLOCK_BYTES = 16 << 20  # a CSV row must fit into one block
BLOCK_ROWS = 10_000
LARGEST_BATCH = 64 << 20  # characters of FASTA sequence held at once

Batches = Iterator[pa.RecordBatch]


def read(path: str | Path) -> Batches:
    """Stream a file as record batches that share one schema; at least one row or InputError.

    CSV, TSV and FASTA columns are text exactly as written ("NA" is a sequence, an empty cell is
    ""); JSON and Parquet keep their types.
    """
    path = Path(path)
    reader = READERS[table_format(path)]
    try:
        with _opened(path) as file:
            if not file.peek(1):
                raise InputError(f"{path}: the file is empty")
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
        raise InputError(f"{path}: there is a header but not one row")


def table_format(path: str | Path) -> str:
    """The suffix that decides how a file is read, ".gz" aside. Raises InputError if unknown."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise InputError(
            f"{path}: the suffix '{suffix}' says no known format; known: {known} and .gz of each"
        )
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

    names = _header(path, file.readline(), delimiter)
    file.seek(0)
    # Cells are read as bytes, so that invalid UTF-8 is found with its row.
    options = {
        "read_options": csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        "parse_options": csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
        ),
    }
    first_row = 1
    try:
        for batch in csv.open_csv(file, **options):
            yield _decoded(path, batch, first_row)
            first_row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}{_csv_problem(str(error), len(names))}") from None


def _header(path: Path, line: bytes, delimiter: str) -> list[str]:
    import csv

    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"{path}, header: not UTF-8 text ({error.reason}). Save as UTF-8."
        raise InputError(message) from None
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
    _reject_duplicates(path, names)
    return names


def _reject_duplicates(path: Path, names: list[str]) -> None:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: more than one column is named {name!r}. Rename one.")


def _decoded(path: Path, batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(column.cast(pa.string()))
        except pa.ArrowInvalid:
            row = first_row + _first_invalid_text(column)
            place = _place(path, row)
            raise InputError(f"{place}, column '{name}': not UTF-8 text. Save as UTF-8.") from None
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _first_invalid_text(column: pa.Array) -> int:
    for i, cell in enumerate(column.to_pylist()):
        try:
            cell.decode()
        except UnicodeDecodeError:
            return i
    raise AssertionError("every cell decodes, though Arrow refused the column")


def _csv_problem(message: str, num_columns: int) -> str:
    found = re.search(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", message, re.DOTALL)
    if found:
        row, got, text = int(found[1]) - 1, found[2], found[3]
        return (
            f", row {row} (header not counted): {got} cells where the header names {num_columns}: "
            f"{_short(text)}. Quote cells that hold separators or quotes."
        )
    if "straddling" in message:
        size = BLOCK_BYTES >> 20
        return (
            f": a row is longer than {size} MB (or a quote is never closed). Use FASTA or Parquet."
        )
    return f": cannot be read: {message}"


# --------------------------------------------------------------------------- JSON lines


def _read_json_lines(path: Path, file: IO[bytes]) -> Batches:
    # Two passes: the type of a column is known only when all of its values have been seen.
    schema = pa.schema([])
    for start, records in _json_batches(path, file):
        schema = _unified(path, start, schema, records)
    file.seek(0)
    for _, records in _json_batches(path, file):
        yield pa.RecordBatch.from_pylist(records, schema=schema)


def _json_batches(path: Path, file: IO[bytes]) -> Iterator[tuple[int, list[dict]]]:
    lines = (line for line in file if line.strip())
    start = 1
    while chunk := list(islice(lines, BLOCK_ROWS)):
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
            f"{_short(line.decode().strip())}"
        )
    return record


def _unified(path: Path, start: int, schema: pa.Schema, records: list[dict]) -> pa.Schema:
    names = dict.fromkeys(name for record in records for name in record)
    for name in names:
        values = [record.get(name) for record in records]
        try:
            field = pa.schema([(name, pa.array(values).type)])
            schema = pa.unify_schemas([schema, field], promote_options="permissive")
        except (ValueError, TypeError, OverflowError) as error:  # those of Arrow among them
            rows = f"rows {start}-{start + len(records) - 1}"
            raise InputError(
                f"{path}, {rows}, column '{name}': values of different types, or of none that "
                f"fits ({error}). Write all as text or all as numbers."
            ) from None
    return schema


# --------------------------------------------------------------------------- Parquet


def _read_parquet(path: Path, file: IO[bytes]) -> Batches:
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        _reject_duplicates(path, table.schema_arrow.names)
        views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # few kernels
        fields = [f.with_type(views.get(f.type, f.type)) for f in table.schema_arrow]
        for batch in table.iter_batches(batch_size=BLOCK_ROWS):
            yield batch.cast(pa.schema(fields))
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file, or a damaged one ({error})") from None


# --------------------------------------------------------------------------- FASTA


def _read_fasta(path: Path, file: IO[bytes]) -> Batches:
    # Two passes: any header may bring a new KEY=value column.
    keys: dict[str, None] = {}
    for row, line in enumerate((line for line in file if line.startswith(b">")), start=1):
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
    for line in file:
        if line.startswith(b">"):
            if row:
                yield _fasta_record(path, row, header, parts)
            row, parts = row + 1, []
            header = _fasta_text(path, row, line)[1:]
        elif line.strip():
            if not row:
                text = _short(line.decode(errors="replace").strip())
                raise InputError(f"{path}: text before the first '>': {text}")
            parts.append(_fasta_text(path, row, line))
    if row:
        yield _fasta_record(path, row, header, parts)


def _fasta_record(path: Path, row: int, header: str, parts: list[str]) -> dict[str, str]:
    if not parts:
        raise InputError(f"{path}, record {row} ({_short(header)}): there is no sequence")
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
    try:
        return line.decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"{path}, record {row}: not UTF-8 text. Save as UTF-8.") from None


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


def _place(path: Path, row: int) -> str:
    return f"{path}, row {row} (header not counted)"


def _short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 3] + "...")


READERS: dict[str, Callable[[Path, IO[bytes]], Batches]] = {
    ".csv": lambda path, file: _read_delimited(path, file, ","),
    ".tsv": lambda path, file: _read_delimited(path, file, "\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    **dict.fromkeys(FASTA, _read_fasta),
    ".vcf": read_vcf,
}
