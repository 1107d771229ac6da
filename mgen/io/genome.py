"""A reference genome: stretches of the contigs of a FASTA file, without reading it whole."""

import gzip
import hashlib
import mmap
import os
import re
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from mgen.config import InputError, nearest

BLOCK = 1 << 24  # bytes looked at at once
COMPLEMENT = str.maketrans("ACGTUacgtu", "TGCAAtgcaa")
AS_N = re.compile(r"[^ACGT]")


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
            raise InputError(f"--genome {path}: no such file") from None
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise InputError(f"--genome {path}: cannot be read: {error}") from None
        self.lengths: dict[str, int] = {}
        self._places: dict[str, tuple[int, int, int]] = {}  # first byte, letters and bytes of lines
        self._uneven: dict[str, bytes] = {}  # contigs whose lines differ in length
        self._index()

    def fetch(self, contig: str, start: int, stop: int) -> str:
        """Letters `start` to `stop` (0-based, half-open) in upper case; all but A, C, G, T are N.

        What lies beyond the ends of a contig is left out. Raises InputError for an unknown contig.
        """
        start, stop = max(start, 0), min(stop, self.length(contig))
        if contig in self._uneven:
            found = self._uneven[contig][start:stop]
        else:
            first, letters, step = self._places[contig]
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

    def _index(self) -> None:
        data, size = self.bytes, len(self.bytes)
        header = 0 if data[:1] == b">" else -1
        if header < 0:
            raise InputError(f"--genome {self.path}: no FASTA file: it does not start with '>'")
        while header >= 0:
            line = data.find(b"\n", header)
            line = size if line < 0 else line
            name = [*data[header + 1 : line].decode("latin-1").split(), ""][0]
            following = data.find(b"\n>", line)
            stop = size if following < 0 else following + 1
            if name in self.lengths or not name:
                what = f"contig '{name}' occurs twice" if name else "a contig has no name"
                raise InputError(f"--genome {self.path}: {what}")
            self._add(name, line + 1, stop)
            header = following + 1 if following >= 0 else -1

    def _add(self, name: str, first: int, stop: int) -> None:
        """Note where a contig lies; one pass over its bytes, none of them kept."""
        end = self.bytes.find(b"\n", first, stop)
        end = stop if end < 0 else end
        step = end - first + 1
        letters = step - 1 - (self.bytes[end - 1 : end] == b"\r")
        body = stop - first
        while body and self.bytes[first + body - 1] in b"\r\n":
            body -= 1
        lines, rest = divmod(body, step)
        if letters > 0 and self._is_even(first, body, step, step - letters):
            self._places[name], self.lengths[name] = (first, letters, step), lines * letters + rest
        else:
            joined = b"".join(self.bytes[first:stop].split())
            self._uneven[name], self.lengths[name] = joined, len(joined)

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


@lru_cache(maxsize=4)
def genome(path: str) -> Genome:
    """The genome of a file, indexed once per process."""
    return Genome(path)


def _unpacked(path: Path) -> Path:
    """A gzipped file's content as a file below $MGEN_CACHE, made once per content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = Path(os.environ.get("MGEN_CACHE") or "~/.cache/mgen").expanduser() / "genomes"
    target = folder / f"{digest}.fa"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{digest}.{os.getpid()}.tmp"
    try:
        with gzip.open(path) as packed, partial.open("wb") as file:
            while block := packed.read(1 << 24):
                file.write(block)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
