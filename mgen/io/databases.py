"""SQLite and DuckDB: the rows of one SELECT, or of a file's only table.

Files are opened for reading alone, and a query can reach nothing but the file: no other file, no
extension, no setting.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa

from mgen.config import InputError
from mgen.io.columns import plain_types, reject_duplicates, unified

BLOCK_ROWS = 10_000
LOCK_SECONDS = 1.0  # waited for another program to finish writing
ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
ONE_SELECT = "--data.query must be one SELECT, which reads the file and nothing else"


def read_database(path: Path, file: IO[bytes], query: str = "") -> Iterator[pa.RecordBatch]:
    """Stream record batches of a query. Raises InputError for what cannot be read or run."""
    head = file.read(100)
    if head.startswith(b"SQLite format 3\0"):
        _reject_pending(path, "-wal", "-journal")
        _reject_cut(path, head)
        # With a log of its own (2 in these bytes) SQLite would write beside the file, unless it is
        # told that nobody else changes it: the log is empty.
        yield from _read_sqlite(path, query, "&immutable=1" if 2 in head[18:20] else "")
    elif head[8:12] == b"DUCK":
        _reject_pending(path, ".wal")
        yield from _read_duckdb(path, query)
    else:
        raise InputError(f"{path}: neither an SQLite nor a DuckDB file, or a damaged one")


DATABASES = dict.fromkeys((".sqlite", ".sqlite3", ".db", ".duckdb"), read_database)


def _reject_pending(path: Path, *suffixes: str) -> None:
    for log in (Path(f"{path}{suffix}") for suffix in suffixes):
        if log.exists() and log.stat().st_size:
            raise InputError(
                f"{path}: {log.name} beside it holds changes that are not in the file yet. Close "
                "the program that writes it, or copy the data out with that program."
            )


def _reject_cut(path: Path, head: bytes) -> None:
    """SQLite reads what is missing of its last page as zeros: its header tells the size."""
    page, pages = int.from_bytes(head[16:18]), int.from_bytes(head[28:32])
    size = (65536 if page == 1 else page) * pages
    is_known = head[24:28] == head[92:96]  # the size was written by the last change
    if is_known and path.stat().st_size < size:
        raise InputError(
            f"{path}: cannot be read: {path.stat().st_size:,} of {size:,} bytes are there. Copy it "
            "anew."
        )


def _only_table(path: Path, names: list[str]) -> str:
    if len(names) != 1:
        listed = ", ".join(f"'{name}'" for name in names) or "none"
        raise InputError(
            f"{path}: tables are {listed}. Choose rows with --data.query 'select * from TABLE'."
        )
    quoted = names[0].replace('"', '""')
    return f'select * from "{quoted}"'


# --------------------------------------------------------------------------- SQLite


def _read_sqlite(path: Path, query: str, options: str) -> Iterator[pa.RecordBatch]:
    address = f"file:{quote(str(path.absolute()))}?mode=ro{options}"
    connection = sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS)
    try:
        connection.execute("begin")  # both passes see the same rows
        if not query:
            found = connection.execute(
                "select name from sqlite_master where type in ('table', 'view') "
                "and name not like 'sqlite\\_%' escape '\\' order by name"
            )
            query = _only_table(path, [name for (name,) in found])
        connection.set_authorizer(_authorise)
        schema = pa.schema([])
        for start, records in _sqlite_records(path, connection, query):
            schema = unified(path, start, schema, records)
        for _, records in _sqlite_records(path, connection, query):
            yield pa.RecordBatch.from_pylist(records, schema=schema)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise InputError(f"{path}: {_sqlite_problem(str(error))}") from None
    finally:
        connection.close()


def _authorise(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY


def _sqlite_records(
    path: Path, connection: sqlite3.Connection, query: str
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    cursor, start = connection.execute(query), 1
    names = [column[0] for column in cursor.description or ()]
    if not names:
        raise InputError(f"{path}: {ONE_SELECT}")
    reject_duplicates(path, names)
    while rows := cursor.fetchmany(BLOCK_ROWS):
        yield start, [dict(zip(names, row, strict=True)) for row in rows]
        start += len(rows)


def _sqlite_problem(error: str) -> str:
    if "locked" in error:
        return f"another program is writing it ({error}). Wait for it, or copy the file."
    if "not authorized" in error or "one statement" in error or "readonly" in error:
        return f"{ONE_SELECT} ({error})"
    return f"cannot be read: {error}"


# --------------------------------------------------------------------------- DuckDB


def _read_duckdb(path: Path, query: str) -> Iterator[pa.RecordBatch]:
    try:
        import duckdb
    except ImportError:
        raise InputError(f"{path}: DuckDB files need a package: pip install duckdb") from None
    settings = {"enable_external_access": "false", "lock_configuration": "true"}
    try:
        with duckdb.connect(str(path), read_only=True, config=settings) as connection:
            if not query:
                found = connection.execute(
                    "select table_name from information_schema.tables "
                    "where table_catalog = current_database() order by table_name"
                )
                query = _only_table(path, [name for (name,) in found.fetchall()])
            statements = connection.extract_statements(query)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
                raise InputError(f"{path}: {ONE_SELECT}")
            reader = connection.sql(query).to_arrow_reader(BLOCK_ROWS)
            reject_duplicates(path, reader.schema.names)
            schema = plain_types(reader.schema)
            for batch in reader:
                yield batch.cast(schema)
    except duckdb.Error as error:
        what = str(error).partition("\n")[0]
        busy = " Close the program that has it open." if "lock" in what.lower() else ""
        raise InputError(f"{path}: cannot be read: {what}.{busy}") from None
