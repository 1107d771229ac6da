"""Outputs of a frozen backbone, kept on disk by content: `--backbone.cache FOLDER`.

A namespace, `FOLDER/<digest>/`, holds outputs of one network under one set of settings: the digest
is that of everything that decides an output besides its row (`OutputCache.facts`). Each process
appends to a segment of its own there:

    <segment>.data     outputs of rows one after the other, unpadded: (tokens, width) numbers each
    <segment>.index    one record for each: digest of the row's inputs, tokens, CRC-32 of its data

Data is written before the record that names it and is never changed. Readers take whole records
whose data lies within the file, and compare the checksum before they first use an entry. So no
process waits for another, one may be killed at any instant, and what is damaged is computed again.

Shapes: B rows, L tokens, D width.
"""

import fcntl
import json
import math
import mmap
import os
import struct
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from importlib.metadata import version
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from mgen import checkpoint
from mgen.config import InputError
from mgen.report import warn

if TYPE_CHECKING:
    from mgen.backbones import Backbone
    from mgen.backbones.sequence import SequenceBackbone

FORMAT = 1  # of the files; another one never meets them
FACTS = "namespace.json"  # what a namespace holds, for people; its presence makes it one
# Digest of the row, tokens, CRC-32; where the data begins follows from the records before.
RECORD = struct.Struct("<16sII")
GB = 10**9
PACKAGES = ("mgen", "torch", "transformers")  # another version may compute otherwise

Pool = Callable[[Tensor, dict[str, Tensor]], Tensor]  # hidden (B, L, D), batch -> (B, D)


class OutputCache:
    """What `SequenceBackbone.forward` gives, looked up or else computed and kept.

    With `pool_by` only pooled vectors are kept, and `outputs` gives them as (B, 1, D). `counts`
    tells of rows: found, computed, kept, lost (not kept), damaged; and of kept bytes.
    """

    def __init__(self, choice: "Backbone") -> None:
        self.folder, self.limit = Path(choice.cache), choice.cache_gb * GB or math.inf
        self.dtype = getattr(torch, choice.cache_dtype)
        self.name, self.revision = choice.name, choice.at
        self.counts: Counter[str] = Counter()
        self.pool: Pool | None = None
        self.pooled = ""
        self.stopped = False  # nothing more is kept
        self.room = 0.0  # bytes that may be written before the folder is measured again
        self.written: dict[str, tuple] = {}  # kinds of weights to what changes with every write
        self.digests: dict[str, str] = {}
        self.spaces: dict[tuple[str, str], Namespace] = {}
        self.notes: set[str] = set()
        with _usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                pass

    def pool_by(self, pool: Pool, facts: str) -> None:
        """Keep `pool(hidden, batch)`, which `facts` names in full, in place of all tokens."""
        self.pool, self.pooled = pool, facts

    def outputs(
        self, network: "SequenceBackbone", batch: dict[str, Tensor], compute: Callable[[], Tensor]
    ) -> Tensor:
        """`compute()` (B, L, D) as it is kept, float32, zeros at padding; pooled: (B, 1, D).

        Raises InputError for a network that drops units or whose outputs need gradients.
        """
        self._refuse(network)
        space = self._namespace(network)
        rows = _keys(network, batch)
        if self.pool:
            rows = [(key, 1) for key, _ in rows]
        found = self._find(space, rows)
        shape = (len(rows), 1 if self.pool else batch["input_ids"].shape[1], network.width)
        missing = sum(data is None for data in found)
        if not missing:
            given = torch.empty(shape, dtype=self.dtype)
        else:
            # All rows are computed, in the batch they would have been computed in without a cache:
            # a run that was killed and goes on then sees the bits of one that never was. And what
            # is kept is what is given, rounded alike in the first epoch and in later ones.
            hidden = compute()
            hidden = self.pool(hidden, batch)[:, None] if self.pool else hidden
            given = self._rounded(hidden.detach())
            self._keep(space, rows, found, given)
        bytes_ = given.view(torch.uint8).numpy()
        first = {key: i for i, (key, _) in reversed([*enumerate(rows)])}  # of equal rows
        for i, ((key, tokens), data) in enumerate(zip(rows, found, strict=True)):
            if data is not None:
                bytes_[i, :tokens] = data.reshape(tokens, space.token_bytes)
            elif first[key] != i:
                bytes_[i] = bytes_[first[key]]
            bytes_[i, tokens:] = 0
        self.counts += Counter(found=len(rows) - missing, computed=missing)
        return given.to(network.device).float()

    def summary(self, counts: Counter[str]) -> str:
        """`counts`, of this process or summed over several, in words."""
        kept = f"{counts['kept']:,} of them kept ({counts['bytes'] / 1e6:,.1f} MB)"
        text = f"{counts['found']:,} outputs ({self.pooled or 'every token'}) looked up, "
        text += f"{counts['computed']:,} computed, {kept}"
        if counts["lost"]:
            text += f", {counts['lost']:,} not"
        if counts["damaged"]:
            text += f"; {counts['damaged']:,} entries were damaged"
        return text

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.add(text)
            warn(f"cache {self.folder}: {text}")

    def _refuse(self, network: "SequenceBackbone") -> None:
        if network.training:
            raise InputError(
                "--backbone.cache: a backbone in training mode drops units at random, which cannot "
                "be kept; call its eval()"
            )
        if torch.is_grad_enabled() and any(p.requires_grad for p in network.encoder.parameters()):
            raise InputError(
                "--backbone.cache: the outputs of a backbone that trains cannot be kept. Set "
                "--backbone.frozen, or compute without gradients"
            )

    def _rounded(self, hidden: Tensor) -> Tensor:
        """hidden as it is kept, on the CPU."""
        rounded = hidden.to(self.dtype)
        if self.dtype == torch.float16 and not rounded.isfinite().all() and hidden.isfinite().all():
            raise InputError(
                f"--backbone.cache-dtype float16 ends at 65504, but this backbone gives "
                f"{hidden.abs().max().item():.3g}; set bfloat16 or float32"
            )
        return rounded.cpu().contiguous()

    # ------------------------------------------------------------- which outputs

    def _namespace(self, network: "SequenceBackbone") -> "Namespace":
        weights = self._weights(network.encoder)
        device = network.device.type
        is_mixed = torch.is_autocast_enabled(device)
        precision = str(torch.get_autocast_dtype(device)) if is_mixed else "as weights"
        precision += f", matmul {torch.get_float32_matmul_precision()}"
        if (weights, precision) not in self.spaces:
            facts, token_bytes = self.facts(network, weights, precision), self.dtype.itemsize
            with _usable(self.folder):
                space = Namespace(self.folder, self.name, facts, network.width * token_bytes)
            self.spaces[weights, precision] = space
        return self.spaces[weights, precision]

    def _weights(self, encoder: torch.nn.Module) -> str:
        """Digests of parameters and buffers, computed anew when one was written to.

        Apart: DDP writes the same buffers again in every step.
        """
        for kind in ("parameters", "buffers"):
            state = _state(encoder, kind)
            if self.written.get(kind) == state:
                continue
            parameters = {name for name, _ in encoder.named_parameters(remove_duplicate=False)}
            named = encoder.state_dict().items()
            held = [(n, t) for n, t in named if (n in parameters) == (kind == "parameters")]
            self.written[kind], self.digests[kind] = state, checkpoint.digest(held)
        return " ".join(self.digests.values())

    def moved(self, encoder: torch.nn.Module) -> None:
        """Weights were cast or moved: others may come to lie where they have been."""
        for kind in ("parameters", "buffers"):
            if self.written.get(kind) != _state(encoder, kind):
                self.written.pop(kind, None)

    def facts(self, network: "SequenceBackbone", weights: str, precision: str) -> dict[str, Any]:
        """All that decides an output besides its row; attention back ends agree to rounding.

        Not `network.fingerprint()`: LoRA matrices count here, and a head that trains does not.
        """
        return {
            "format": FORMAT,
            "family": type(network).__name__,
            "revision": self.revision,
            "weights": weights,
            "config": blake2b(json.dumps(network.config_json, sort_keys=True).encode()).hexdigest(),
            "tokenizer": network.tokenizer.fingerprint,
            "max_length": network.tokenizer.max_length,
            "truncate": network.tokenizer.truncate,
            "precision": precision,
            "kept_as": str(self.dtype),
            "pooled": self.pooled,
            "versions": {name: version(name) for name in PACKAGES},
        }

    def _find(self, space: "Namespace", rows: list[tuple[bytes, int]]) -> list[np.ndarray | None]:
        """The bytes of each row, None where there are none."""
        found = [space.find(*row) for row in rows]
        if any(data is None for data in found) and space.refresh():  # others may have it by now
            pairs = zip(found, rows, strict=True)
            found = [space.find(*row) if data is None else data for data, row in pairs]
        self.counts["damaged"] += space.damaged
        space.damaged = 0
        return found

    # ------------------------------------------------------------- what is kept

    def _keep(self, space: "Namespace", rows: list, found: list, given: Tensor) -> None:
        bytes_, absent = given.view(torch.uint8).numpy(), {}
        for (key, tokens), data, whole in zip(rows, found, bytes_, strict=True):
            if data is None:
                absent.setdefault(key, whole[:tokens])
        size = sum(data.nbytes + RECORD.size for data in absent.values())
        try:
            if not self.stopped and size > self.room:
                self._make_room(space, size)
            if not self.stopped:
                space.append(absent)
        except OSError as error:
            self._stop(f"cannot be written ({error.strerror})")
        if self.stopped:
            self.counts["lost"] += len(absent)
            return
        self.room -= size
        self.counts += Counter(kept=len(absent), bytes=size)

    def _make_room(self, space: "Namespace", size: int) -> None:
        """Measure the folder; delete what was not used for longest, by nobody now, if it is full.

        Sets `room`, a small share of what is free, as other processes write as well.
        """
        limit = self.limit
        with _alone(self.folder):
            held = {
                stem: _measured(stem) for one in _namespaces(self.folder) for stem in _stems(one)
            }
            total = sum(size for size, _ in held.values())
            if total + size > limit:
                idle = [stem for stem in held if _is_idle(stem, space)]
                for stem in sorted(idle, key=lambda stem: held[stem][1]):
                    if total + size <= limit * 15 / 16:  # not again at once
                        break
                    total -= held[stem][0]
                    space.forget(stem)
                    _delete(stem)
        if total + size > limit:
            self._stop(f"is full (--backbone.cache-gb {limit / GB:g})")
        self.room = max(size, min(limit - total, limit / 256))

    def _stop(self, why: str) -> None:
        self.stopped = True
        self.note(f"{why}: outputs of further rows are computed each time they are needed")


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
        with _alone(folder):
            self.folder.mkdir(exist_ok=True)
            self.lock = _hold(self.folder)
            if not (self.folder / FACTS).exists():
                checkpoint.write_json(self.folder / FACTS, {"backbone": backbone, **facts})
        self.refresh()

    def refresh(self) -> bool:
        """Read what other processes have added; whether there was anything."""
        before = len(self.entries)
        for stem in _stems(self.folder):
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
            number = max((int(s.name.partition("-")[0]) for s in _stems(self.folder)), default=0)
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


def _state(encoder: torch.nn.Module, kind: str) -> tuple:
    """What changes with every write to one of the parameters or buffers."""
    tensors = getattr(encoder, kind)()
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _keys(network: "SequenceBackbone", batch: dict[str, Tensor]) -> list[tuple[bytes, int]]:
    """Digest of the exact inputs of each row, padding left out, and its tokens."""
    parts = []
    for tensor, mask in network.row_inputs(batch):
        real = mask.cpu().bool()
        last = real.shape[1] - real.int().flip(1).argmax(1)  # real tokens and gaps before the last
        lengths = torch.where(real.any(1), last, 0).tolist()
        parts.append((tensor.cpu().numpy(), real.numpy(), lengths))
    rows = []
    for i, length in enumerate(parts[0][2]):
        digest = blake2b(digest_size=16)
        for tensor, real, lengths in parts:
            digest.update(struct.pack("<I", lengths[i]))
            digest.update(tensor[i, : lengths[i]].tobytes())
            digest.update(real[i, : lengths[i]].tobytes())
        rows.append((digest.digest(), length))
    return rows


# --------------------------------------------------------------------------- the folder


class Size(NamedTuple):
    namespace: str
    description: str
    bytes: int
    last_used: float  # seconds since 1970


def sizes(folder: str | Path) -> list[Size]:
    """What a cache holds, the most recently used first."""
    found = []
    for namespace in _namespaces(Path(folder)):
        facts = _facts(namespace)
        kept = f"{facts['kept_as'].removeprefix('torch.')}, {facts['pooled'] or 'every token'}"
        text = f"{facts['backbone']}, max_length {facts['max_length']}, {kept}"
        segments = [(0, (namespace / FACTS).stat().st_mtime), *map(_measured, _stems(namespace))]
        bytes_, last = sum(size for size, _ in segments), max(when for _, when in segments)
        found.append(Size(namespace.name, text, bytes_, last))
    return sorted(found, key=lambda size: size.last_used, reverse=True)


def clear(folder: str | Path, namespace: str | None = None) -> tuple[int, list[str]]:
    """Delete a namespace, or all of a cache; nothing else that lies in the folder.

    Returns the bytes freed and the namespaces left because a process uses them.
    """
    freed, left = 0, []
    if not Path(folder).is_dir():
        return freed, left
    with _alone(Path(folder)):
        for one in _namespaces(Path(folder)):
            if namespace not in (None, one.name):
                continue
            if _is_held(one):
                left.append(one.name)
                continue
            for stem in _stems(one):
                freed += _measured(stem)[0]
                _delete(stem)
            _delete_empty(one)
    return freed, left


def _namespaces(folder: Path) -> list[Path]:
    return [file.parent for file in sorted(folder.glob(f"*/{FACTS}")) if _facts(file.parent)]


def _facts(namespace: Path) -> dict[str, Any]:
    """What `FACTS` says; nothing if that is none of ours."""
    with suppress(OSError, ValueError):
        found = json.loads((namespace / FACTS).read_text())
        if isinstance(found, dict) and {"backbone", "kept_as", "pooled"} <= found.keys():
            return found
    return {}


def _stems(namespace: Path) -> list[Path]:
    return sorted(file.with_suffix("") for file in namespace.glob("[0-9]*-*.data"))


def _data(stem: Path) -> Path:
    return stem.with_suffix(".data")


def _index(stem: Path) -> Path:
    return stem.with_suffix(".index")


def _measured(stem: Path) -> tuple[int, float]:
    """Bytes and time of last use of a segment."""
    total, last = 0, 0.0
    for file in (_data(stem), _index(stem)):
        with suppress(FileNotFoundError):
            facts = file.stat()
            total, last = total + facts.st_size, max(last, facts.st_mtime)
    return total, last


def _delete(stem: Path) -> None:
    _index(stem).unlink(missing_ok=True)  # first: no record names data that is gone
    _data(stem).unlink(missing_ok=True)


def _delete_empty(namespace: Path) -> None:
    for name in (FACTS, ".lock"):
        (namespace / name).unlink(missing_ok=True)
    with suppress(OSError):  # files of others lie there
        namespace.rmdir()


def _is_idle(stem: Path, own: Namespace) -> bool:
    """Whether nobody uses a segment now: nobody its namespace, or we alone and never this one."""
    if stem.parent != own.folder:
        return not _is_held(stem.parent)
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


def _is_held(namespace: Path) -> bool:
    """Whether a process uses a namespace; nobody can begin to inside of `_alone`."""
    file = (namespace / ".lock").resolve()
    return file in _HELD or not _Lock(file).is_ours_alone()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Errors of the disk inside say which option asked for it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--backbone.cache {folder}: cannot be used ({error.strerror})") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process opens or deletes a namespace of the folder."""
    with (folder / ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
