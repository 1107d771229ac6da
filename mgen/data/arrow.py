"""Files as memory-mapped Arrow: parsed once per content, kept in a cache."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.config import InputError
from mgen.io.tables import READER_VERSION, Batches, read, table_format

if TYPE_CHECKING:
    import datasets


def cached(
    path: Path, change: Callable[[Path, Batches], Batches] | None = None, change_key: str = ""
) -> tuple[datasets.Dataset, str]:
    """The rows of a file and the sha256 of its contents.

    `change` turns what is read into what is kept; `change_key` says how, and enters both keys.

    The key is the content, so a file edited in place is read anew whatever its size and time say.
    A cache that cannot be written is replaced by a temporary folder, with a warning.
    """
    import datasets

    suffix = table_format(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if change:
        digest = hashlib.sha256(f"{digest} {change_key}".encode()).hexdigest()
    key = hashlib.sha256(f"{digest} {suffix} {READER_VERSION}".encode()).hexdigest()
    try:
        arrow = _written(path, _cache_folder(), key, change)
    except OSError as error:
        folder = _temporary_folder()
        warnings.warn(
            f"the cache {_cache_folder()} cannot be written ({error}): tables go to {folder} and "
            "are read again by the next run. Set MGEN_CACHE.",
            stacklevel=2,
        )
        arrow = _written(path, folder, key, change)
    return datasets.Dataset.from_file(str(arrow)), digest


def _cache_folder() -> Path:
    return Path(os.environ.get("MGEN_CACHE") or "~/.cache/mgen").expanduser() / "tables"


@cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="mgen-tables-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _written(path: Path, folder: Path, key: str, change=None) -> Path:
    """The Arrow file of a table, complete or absent: written beside its name, then renamed."""
    import pyarrow as pa

    target = folder / f"{key}.arrow"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{key}.{os.getpid()}.tmp"
    try:
        with partial.open("wb") as file:
            batches = change(path, read(path)) if change else read(path)
            first = next(batches)
            with pa.ipc.new_stream(file, first.schema) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()  # Arrow keeps what reading took otherwise
    return target
