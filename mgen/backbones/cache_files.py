"""Files of the cache of outputs: what one process writes, and what others may do meanwhile.

A folder holds namespaces, `<digest>/`, and these the segments of processes, two files each:

    <segment>.data     outputs of rows one after the other, unpadded: (tokens, width) numbers each
    <segment>.index    one record for each: digest of the row's inputs, tokens, CRC-32 of its data

Data is written before the record that names it and is never changed. Readers take whole records
whose data lies within the file, and compare the checksum before they first use an entry. So no
process waits for another, one may be killed at any instant, and what is damaged is computed again.
"""

import fcntl
import json
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from mgen import checkpoint
from mgen.config import InputError

FACTS = "namespace.json"  # what a namespace holds, for people; its presence makes it one
# Digest of the row, tokens, CRC-32; where the data begins follows from the records before.
RECORD = struct.Struct("<16sII")


class Entry(NamedTuple):
    """Where a row's output lies; `crc` is None once it was compared."""

    segment: "Segment"
    offset: int
    tokens: int
    crc: int | None


class Namespace:
    """The outputs of one network under one set of settings; held against deletion while it lives.

    `damaged` counts entries that were found to be since it was last set to 0.
    """

    def __init__(self, folder: Path, backbone: str, facts: dict, token_bytes: int) -> None:
        name = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.folder, self.token_bytes, self.damaged = folder / name, token_bytes, 0
        self.entries: dict[bytes, Entry] = {}
        self.segments: dict[Path, Segment] = {}
        self.own: Segment | None = None
        with alone(folder):
            self.folder.mkdir(exist_ok=True)
            self.lock = _hold(self.folder)
            if not (self.folder / FACTS).exists():
                checkpoint.write_json(self.folder / FACTS, {"backbone": backbone, **facts})
        self.refresh()

    def refresh(self) -> bool:
        """Read what other processes have added; whether there was anything."""
        before = len(self.entries)
        for stem in stems_of(self.folder):
            segment = self.segments.setdefault(stem, Segment(stem, self.token_bytes))
            if segment is not self.own:
                self.entries.update(segment.read())
        return len(self.entries) > before

    def find(self, key: bytes, tokens: int) -> np.ndarray | None:
        """The bytes of a row's output, None if it is not there or damaged."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        data = entry.segment.bytes_of(entry)
        is_known = data is not None and entry.crc is None
        if not is_known and (data is None or zlib.crc32(data) != entry.crc):
            self.damaged += 1
            del self.entries[key]
            return None
        if not is_known:
            self.entries[key] = entry._replace(crc=None)
        return data if entry.tokens == tokens else None

    def append(self, rows: dict[bytes, np.ndarray]) -> None:
        """Keep the bytes (tokens, width in bytes) of rows. Raises OSError where the disk does."""
        if not self.own:
            # Read after all that is there: a row computed again takes the place of a damaged one.
            number = max((int(s.name.partition("-")[0]) for s in stems_of(self.folder)), default=0)
            name = f"{number + 1:06}-{uuid4().hex}"
            self.own = Segment(self.folder / name, self.token_bytes)
            self.segments[self.own.stem] = self.own
        try:
            self.entries.update(self.own.append(rows))
        except BaseException:  # what follows half-written data would not be found
            self.own = None
            raise

    def forget(self, stem: Path) -> None:
        if segment := self.segments.pop(stem, None):
            self.entries = {k: e for k, e in self.entries.items() if e.segment is not segment}


class Segment:
    """Two files that one process appends to. Offsets follow from the records before."""

    def __init__(self, stem: Path, token_bytes: int) -> None:
        self.stem, self.token_bytes = stem, token_bytes
        self.records = self.end = 0  # known so far, and the bytes of data that they name
        self.mapped: np.ndarray | None = None
        self.is_used = False
        self.streams: list[RawIOBase] = []  # open to append to: a file of that name may be another

    def read(self) -> Iterator[tuple[bytes, Entry]]:
        """Keys and entries that were not read before."""
        try:
            with _index(self.stem).open("rb") as stream:
                stream.seek(self.records * RECORD.size)
                new = stream.read()
            size = _data(self.stem).stat().st_size  # after the index: data is written first
        except FileNotFoundError:
            return
        for key, tokens, crc in RECORD.iter_unpack(new[: len(new) // RECORD.size * RECORD.size]):
            end = self.end + tokens * self.token_bytes
            if end > size:
                return
            yield key, Entry(self, self.end, tokens, crc)
            self.records, self.end = self.records + 1, end

    def bytes_of(self, entry: Entry) -> np.ndarray | None:
        end = entry.offset + entry.tokens * self.token_bytes
        if not entry.tokens:
            return np.empty(0, dtype=np.uint8)
        if self.mapped is None or end > len(self.mapped):
            try:
                with _data(self.stem).open("rb") as stream:
                    whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # deleted, or cut to nothing
                return None
            self.mapped = np.frombuffer(whole, dtype=np.uint8)
        if not self.is_used:
            self.is_used = True
            with suppress(OSError):
                os.utime(_data(self.stem))  # its last use, by which `_make_room` chooses
        return self.mapped[entry.offset : end] if end <= len(self.mapped) else None

    def append(self, rows: dict[bytes, np.ndarray]) -> list[tuple[bytes, Entry]]:
        """Write rows and their records. Raises OSError; then no record names half-written data."""
        if not self.streams:
            self.streams = [f(self.stem).open("ab", buffering=0) for f in (_data, _index)]
        entries, data = [], []
        for key, bytes_ in rows.items():
            data.append(np.ascontiguousarray(bytes_))
            entries.append((key, Entry(self, self.end, len(bytes_), zlib.crc32(data[-1]))))
            self.end += bytes_.nbytes
        packed = (RECORD.pack(key, entry.tokens, entry.crc) for key, entry in entries)
        for stream, content in zip(self.streams, (b"".join(data), b"".join(packed)), strict=True):
            rest = memoryview(content)
            while rest:
                rest = rest[stream.write(rest) :]
        return entries


# --------------------------------------------------------------------------- the folder


def make_room(folder: Path, own: Namespace, size: int, limit: float) -> int:
    """Delete segments, longest unused first, until `size` more bytes fit into `limit`.

    Only those that no process uses. Returns the bytes of all that are left.
    """
    with alone(folder):
        held = {stem: measured(stem) for one in namespaces(folder) for stem in stems_of(one)}
        total = sum(bytes_ for bytes_, _ in held.values())
        if total + size > limit:
            idle = [stem for stem in held if _is_idle(stem, own)]
            for stem in sorted(idle, key=lambda stem: held[stem][1]):
                if total + size <= limit * 15 / 16:  # not again at once
                    break
                total -= held[stem][0]
                own.forget(stem)
                delete(stem)
    return total


def namespaces(folder: Path) -> list[Path]:
    return [file.parent for file in sorted(folder.glob(f"*/{FACTS}")) if facts_of(file.parent)]


def facts_of(namespace: Path) -> dict[str, Any]:
    """What `FACTS` says; nothing if that is none of ours."""
    with suppress(OSError, ValueError):
        found = json.loads((namespace / FACTS).read_text())
        if isinstance(found, dict) and {"backbone", "kept_as", "pooled"} <= found.keys():
            return found
    return {}


def stems_of(namespace: Path) -> list[Path]:
    return sorted(file.with_suffix("") for file in namespace.glob("[0-9]" * 6 + "-*.data"))


def _data(stem: Path) -> Path:
    return stem.with_suffix(".data")


def _index(stem: Path) -> Path:
    return stem.with_suffix(".index")


def measured(stem: Path) -> tuple[int, float]:
    """Bytes and time of last use of a segment."""
    total, last = 0, 0.0
    for file in (_data(stem), _index(stem)):
        with suppress(FileNotFoundError):
            facts = file.stat()
            total, last = total + facts.st_size, max(last, facts.st_mtime)
    return total, last


def delete(stem: Path) -> None:
    _index(stem).unlink(missing_ok=True)  # first: no record names data that is gone
    _data(stem).unlink(missing_ok=True)


def delete_empty(namespace: Path) -> None:
    for name in (FACTS, ".lock"):
        (namespace / name).unlink(missing_ok=True)
    with suppress(OSError):  # files of others lie there
        namespace.rmdir()


def _is_idle(stem: Path, own: Namespace) -> bool:
    """Whether nobody uses a segment now: nobody its namespace, or we alone and never this one."""
    if stem.parent != own.folder:
        return not is_held(stem.parent)
    used = own.segments.get(stem)
    return not (used and (used is own.own or used.is_used)) and own.lock.is_ours_alone()


# Advisory locks of POSIX end with their process, whatever kills it. They do not hold between parts
# of one process, and closing any handle of a file ends all: so there is one handle for each file.
_HELD: "weakref.WeakValueDictionary[Path, _Lock]" = weakref.WeakValueDictionary()


class _Lock:
    """Marks a namespace as used by this process, as long as it lives."""

    def __init__(self, file: Path) -> None:
        self.handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self.handle)
        fcntl.lockf(self.handle, fcntl.LOCK_SH)

    def is_ours_alone(self) -> bool:
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.lockf(self.handle, fcntl.LOCK_SH)
        return True


def _hold(namespace: Path) -> _Lock:
    file = (namespace / ".lock").resolve()
    lock = _HELD.get(file)
    if lock is None:
        lock = _HELD[file] = _Lock(file)
    return lock


def is_held(namespace: Path) -> bool:
    """Whether a process uses a namespace; nobody can begin to inside of `alone`."""
    file = (namespace / ".lock").resolve()
    return file in _HELD or not _Lock(file).is_ours_alone()


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Errors of the disk inside say which option asked for it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--backbone.cache {folder}: cannot be used ({error.strerror})") from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process opens or deletes a namespace of the folder."""
    with (folder / ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
