"""Files of the cache below $MGEN_CACHE (default ~/.cache/mgen), each made once and whole."""

import atexit
import hashlib
import os
import secrets
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mgen.config import InputError

REMEMBERED_BYTES = 64 << 20  # smaller files are hashed each time
SHARED_PREFIX = "shared:"  # files below $MGEN_SHARED/data, wherever that is
RACY_SECONDS = 2.0  # a file changed so shortly before might change again within one clock tick


def kept(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the folder `kind` of the cache; if it is not there, `make` writes it.

    `make` gets the path to write to, which becomes the file when it is complete. A cache that
    cannot be written is replaced by a temporary folder, with a warning.
    """
    try:
        return _made(cache_folder() / kind / name, make)
    except OSError as error:
        folder = _temporary_folder()
        warnings.warn(
            f"the cache {cache_folder()} cannot be written ({error}): its files go to {folder} and "
            "are made again by the next run. Set MGEN_CACHE.",
            stacklevel=2,
        )
        return _made(folder / kind / name, make)


def cache_folder() -> Path:
    return Path(os.environ.get("MGEN_CACHE") or "~/.cache/mgen").expanduser()


def shared_folder() -> Path:
    """$MGEN_SHARED/data: data sets under the names of `mgen list data`, as their owners give them.

    Without the variable, `shared` beside the repository.
    """
    beside = Path(__file__).parents[2].parent / "shared"
    return Path(os.environ.get("MGEN_SHARED") or beside).expanduser() / "data"


def shared_file(path: str) -> Path:
    """Where "shared:NAME" is on this machine; any other path as it is."""
    if path.startswith(SHARED_PREFIX):
        return shared_folder() / path.removeprefix(SHARED_PREFIX)
    return Path(path).expanduser()


def kept_files() -> dict[str, list[Path]]:
    """The files that `kept` has made, by kind."""
    found: dict[str, list[Path]] = {}
    for note in sorted(cache_folder().glob("*/.*.size")):
        file = note.with_name(note.name.removeprefix(".").removesuffix(".size"))
        if file.is_file():
            found.setdefault(file.parent.name, []).append(file)
    return found


def clear_cache() -> int:
    """Delete what `kept` has made and nothing else; returns the bytes freed."""
    freed = 0
    for file in [file for files in kept_files().values() for file in files]:
        freed += file.stat().st_size
        file.unlink(missing_ok=True)
        file.with_name(f".{file.name}.size").unlink(missing_ok=True)
    return freed


def content_digest(path: Path) -> str:
    """The sha256 of a file's content. Raises InputError if it cannot be read.

    That of a large file is remembered under its inode, size, time of change and time of status
    change. The last cannot be set by hand, so an edit is seen whatever the others say. That of a
    folder is of the names and contents of its files; one with links in it is refused.
    """
    try:
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            if links := [file for file in inside if file.is_symlink()]:
                raise InputError(f"{links[0]}: is a link. Put what it points to into the folder")
            inside = [file for file in inside if file.is_file()]
            facts = [(f.relative_to(path).as_posix(), content_digest(f)) for f in inside]
            return hashlib.sha256(repr(facts).encode()).hexdigest()
        before, now = path.stat(), time.time()
        if before.st_size < REMEMBERED_BYTES or now - before.st_ctime < RACY_SECONDS:
            return _hashed(path)
        facts = (before.st_dev, before.st_ino, before.st_size)
        facts += (before.st_mtime_ns, before.st_ctime_ns)
        name = hashlib.sha256(repr((str(path.resolve()), facts)).encode()).hexdigest()
        note = kept("digests", name, lambda partial: _note(partial, _hashed(path)))
        return note.read_text()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _note(partial: Path, text: str) -> None:
    partial.write_text(text)


def _made(target: Path, make: Callable[[Path], None]) -> Path:
    note = target.with_name(f".{target.name}.size")  # a file cut short is made again
    if target.exists():
        if note.exists() and note.read_text() == str(target.stat().st_size):
            return target
        warnings.warn(f"{target}: not as it was written; it is made again", stacklevel=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        make(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        size = partial.with_suffix(".size")
        size.write_text(str(partial.stat().st_size))
        os.replace(size, note)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Errors of reading a file of the cache inside say what to do."""
    try:
        yield
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: a damaged file of the cache ({error}). Delete it") from None


@cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="mgen-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
