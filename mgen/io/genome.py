"""A reference genome: stretches of the contigs of a FASTA file, without reading it whole.

Where its contigs lie is read from a `.fai` beside it (as `samtools faidx` writes it: name, letters,
first byte, letters per line, bytes per line), or found in one pass and kept in that format in the
cache. Either is checked against the file each time.
"""

import gzip
import mmap
import re
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgen.config import InputError, nearest
from mgen.io.files import content_digest, kept

BLOCK = 1 << 24  # bytes looked at at once
COMPLEMENT = str.maketrans("ACGTUacgtu", "TGCAAtgcaa")
AS_N = re.compile(r"[^ACGT]")
PROBES = 64  # lines of each contig at which an index is checked


class Place(NamedTuple):
    """A line of an index; `step` is 0 where lines differ in length, which no formula can index."""

    length: int
    first: int
    letters: int
    step: int


class Genome:
    """The contigs of a FASTA file, plain or gzipped, mapped into memory.

    Attributes: `path`; `lengths`, of each contig by name (the header up to the first space).
    Raises InputError for what is no FASTA file and for a contig that occurs twice.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            place = _unpacked(self.path) if self.path.suffix == ".gz" else self.path
            with place.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise InputError(f"genome {path}: no such file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"genome {path}: cannot be read: {error}") from None
        if self.bytes[:1] != b">":
            raise InputError(f"genome {path}: no FASTA file: it does not start with '>'")
        self._places = self._read_index(place)
        self.lengths = {name: place.length for name, place in self._places.items()}
        self._uneven: dict[str, bytes] = {}  # contigs whose lines differ in length, once read

    def fetch(self, contig: str, start: int, stop: int) -> str:
        """Letters `start` to `stop` (0-based, half-open) in upper case; all but A, C, G, T are N.

        What lies beyond the ends of a contig is left out. Raises InputError for an unknown contig.
        """
        start, stop = max(start, 0), min(stop, self.length(contig))
        _, first, letters, step = self._places[contig]
        if not step:
            if contig not in self._uneven:
                last = self._end(contig, self._places[contig])
                self._uneven[contig] = self._joined(first, last)
            found = self._uneven[contig][start:stop]
        else:
            begin = first + start // letters * step + start % letters
            end = first + stop // letters * step + stop % letters
            found = self.bytes[begin:end].replace(b"\n", b"").replace(b"\r", b"")
        return AS_N.sub("N", found.decode("latin-1").upper())

    def length(self, contig: str) -> int:
        """Letters of a contig. Raises InputError with the nearest name if there is none."""
        if contig not in self.lengths:
            other = contig[3:] if contig.startswith("chr") else f"chr{contig}"
            other = {"chrMT": "chrM", "M": "MT"}.get(other, other)
            near = f" Did you mean '{other}'?" if other in self.lengths else ""
            raise InputError(
                f"{self.path}: no contig '{contig}'.{near or nearest(contig, self.lengths)} "
                "Variants and genome must be of one assembly and name contigs alike"
            )
        return self.lengths[contig]

    def _read_index(self, unpacked: Path) -> dict[str, Place]:
        given = Path(f"{self.path}.fai")
        if given.is_file():
            try:
                return self._checked(given)
            except ValueError as error:
                warnings.warn(f"{given} does not fit the FASTA ({error}): not used", stacklevel=2)
        kept_file = kept("genomes", f"{content_digest(unpacked)}.fai", self._write_index)
        try:
            return self._checked(kept_file)
        except ValueError as error:
            raise InputError(f"{kept_file}: a damaged index ({error}). Delete it.") from None

    def _checked(self, file: Path) -> dict[str, Place]:
        """The places of an index. Raises ValueError unless they account for every contig.

        Headers stand where they must, each contig ends where the next begins or the file does, and
        lines end where the formula says at PROBES places.
        """
        places, stop = {}, 0
        for line in file.read_text(encoding="latin-1").splitlines():
            name, *numbers = line.split("\t")
            if len(numbers) != len(Place._fields):
                raise ValueError(f"{len(numbers) + 1} columns, expected {len(Place._fields) + 1}")
            places[name] = Place(*map(int, numbers))
        for name, place in sorted(places.items(), key=lambda item: item[1].first):
            header = self.bytes[stop : place.first]
            is_ended = header.endswith(b"\n") or place.first == len(self.bytes)
            if not (header.startswith(b">") and is_ended) or b"\n" in header[:-1]:
                raise ValueError(f"no header before contig '{name}'")
            if _name(header) != name:
                raise ValueError(f"another header before contig '{name}'")
            stop = self._end(name, place)
        if stop != len(self.bytes):
            raise ValueError("more follows the last contig")
        return places

    def _end(self, name: str, place: Place) -> int:
        """The byte after a contig and its line ends. Raises ValueError for a wrong place."""
        length, first, letters, step = place
        if not step:
            following = self.bytes.find(b"\n>", first - 1)
            stop = len(self.bytes) if following < 0 else following + 1
            if len(self._joined(first, stop)) != length:
                raise ValueError(f"contig '{name}' has another length")
            return stop
        if not (length >= 0 and letters > 0 and 1 <= step - letters <= 2):
            raise ValueError(f"impossible numbers for contig '{name}'")
        end, lines = b"\r\n"[letters - step :], max(length - 1, 0) // letters
        for line in {*np.linspace(1, lines, PROBES, dtype=np.int64).tolist()} if lines else ():
            if self.bytes[first + line * step - len(end) : first + line * step] != end:
                raise ValueError(f"contig '{name}' has no line end after line {line}")
        stop = first + lines * step + length - lines * letters
        last = self.bytes[first + lines * step : stop]
        if stop > len(self.bytes) or b"\n" in last or b">" in last:
            raise ValueError(f"contig '{name}' ends elsewhere")
        while self.bytes[stop : stop + 1] in (b"\r", b"\n"):
            stop += 1
        if self.bytes[stop : stop + 1] not in (b"", b">"):
            raise ValueError(f"contig '{name}' ends elsewhere")
        return stop

    def _write_index(self, target: Path) -> None:
        data, size, header = self.bytes, len(self.bytes), 0
        places: dict[str, Place] = {}
        while header >= 0:
            line = data.find(b"\n", header)
            line = size if line < 0 else line
            name = _name(data[header:line])
            following = data.find(b"\n>", line)
            stop = size if following < 0 else following + 1
            if name in places or not name:
                what = f"contig '{name}' occurs twice" if name else "a contig has no name"
                raise InputError(f"genome {self.path}: {what}")
            places[name] = self._place(min(line + 1, size), stop)
            header = following + 1 if following >= 0 else -1
        rows = ("\t".join(map(str, (name, *place))) for name, place in places.items())
        target.write_text("".join(f"{row}\n" for row in rows), encoding="latin-1")

    def _place(self, first: int, stop: int) -> Place:
        """Where a contig lies; one pass over its bytes, none of them kept."""
        end = self.bytes.find(b"\n", first, stop)
        step = (stop + 1 if end < 0 else end + 1) - first
        end = first + step - 1
        letters = step - 1 - (self.bytes[end - 1 : end] == b"\r")
        body = stop - first
        while body and self.bytes[first + body - 1] in b"\r\n":
            body -= 1
        lines, rest = divmod(body, step)
        if letters > 0 and self._is_even(first, body, step, step - letters):
            return Place(lines * letters + rest, first, letters, step)
        return Place(len(self._joined(first, stop)), first, 0, 0)

    def _is_even(self, first: int, body: int, step: int, gap: int) -> bool:
        """Whether all lines but the last have `step` bytes, `gap` of them line ends."""
        view = np.frombuffer(self.bytes, dtype=np.uint8)[first : first + body]
        breaks = sum(
            int(np.count_nonzero(view[i : i + BLOCK] < ord("!"))) for i in range(0, body, BLOCK)
        )
        ends = [view[step - 1 - i :: step][: body // step] for i in range(gap)]
        return breaks == gap * (body // step) and all(
            (found == code).all() for found, code in zip(ends, (10, 13), strict=False)
        )

    def _joined(self, first: int, stop: int) -> bytes:
        return b"".join(self.bytes[first:stop].split())


def _name(header: bytes) -> str:
    return [*header[1:].decode("latin-1").split(), ""][0]


@lru_cache(maxsize=4)
def genome(path: str) -> Genome:
    """The genome of a file, indexed once per process."""
    return Genome(path)


def _unpacked(path: Path) -> Path:
    """A gzipped file's content as a file below $MGEN_CACHE, made once per content."""

    def write(target: Path) -> None:
        try:
            with gzip.open(path) as packed, target.open("wb") as file:
                while block := packed.read(BLOCK):
                    file.write(block)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"genome {path}: cannot be unpacked ({error})") from None

    return kept("genomes", f"{content_digest(path)}.fa", write)
