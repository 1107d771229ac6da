"""Arrow files (IPC streams and files, also known as Feather) and folders of them.

A file is a stream with "ARROW1" before it and a footer behind it: both are read as streams.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from mgen.config import InputError
from mgen.io.columns import plain_types

ARROW = (".arrow", ".feather")
FILE_MAGIC = b"ARROW1\0\0"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of folders that `datasets` saves


def arrow_stream(path: Path, file: IO[bytes]) -> pa.RecordBatchReader:
    """The batches of an opened file. Raises InputError if its end is missing."""
    is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
    if path.suffix.lower() != ".gz":  # gzip has an end of its own
        end = FILE_MAGIC[:6] if is_file else END_OF_STREAM
        with path.open("rb") as again:
            again.seek(-len(end), 2)
            if again.read() != end:
                raise InputError(damaged(path, "its end is missing"))
    file.seek(len(FILE_MAGIC) if is_file else 0)
    return pa.ipc.open_stream(file)


def damaged(path: Path, why: object) -> str:
    return f"{path}: not an Arrow file, or a damaged one ({why}). Copy or save it anew."


def is_mappable(path: Path) -> bool:
    """Whether a file is a stream whose values can be used where they lie on disk.

    Those of compressed files cannot, and not those of types that are converted when read.
    """
    if path.suffix.lower() not in ARROW:
        return False
    with path.open("rb") as file, pa.memory_map(str(path)) as mapped:
        if file.read(len(FILE_MAGIC)) == FILE_MAGIC:
            return False
        file.seek(0)
        try:
            schema = arrow_stream(path, file).schema
            batch = next(iter(pa.ipc.open_stream(mapped)), None)
        except (pa.ArrowInvalid, OSError):
            return False  # reading it says what is wrong
        mapped.seek(0)
        whole = mapped.read_buffer()
        inside = range(whole.address, whole.address + whole.size + 1)
        buffers = [b for column in batch.columns for b in column.buffers()] if batch else []
        return schema == plain_types(schema) and all(b.address in inside for b in buffers if b)


def saved_parts(folder: Path) -> dict[str, list[Path]] | None:
    """Arrow files by split of a folder that `datasets` saved, "" for one without splits.

    None for other folders. Raises InputError for a damaged one.
    """
    if (folder / SPLITS_FILE).is_file():
        splits = _json(folder / SPLITS_FILE).get("splits")
        names = [_plain_name(folder / SPLITS_FILE, name) for name in splits or ()]
        if not names:
            raise InputError(f"{folder / SPLITS_FILE}: it names no splits. Save the data set anew.")
        return {name: _shards(folder / name) for name in names}
    return {"": _shards(folder)} if (folder / STATE_FILE).is_file() else None


def _shards(folder: Path) -> list[Path]:
    state = folder / STATE_FILE
    entries = _json(state).get("_data_files") or ()
    names = [_plain_name(state, e.get("filename") if isinstance(e, dict) else e) for e in entries]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"no file {missing[0]}, which {STATE_FILE} names" if missing else "no data files"
        raise InputError(f"{folder}: {what}. Copy or save the data set anew.")
    return [folder / name for name in names]


def _plain_name(file: Path, name: object) -> str:
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
        raise InputError(f"{file}: {name!r} is no name of a file in the folder. Save it anew.")
    return name


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}). Save the data set anew.") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: not what `datasets` writes. Save the data set anew.")
    return found


def arrow_batches(path: Path, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """Stream record batches of an opened file, of plain types."""
    try:
        reader = arrow_stream(path, file)
        schema = plain_types(reader.schema)
        for batch in reader:
            yield batch.cast(schema)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(damaged(path, error)) from None
