"""How alike sequences are: clusters of them, and the nearest of one set in another.

Clusters come from MMseqs2 (Steinegger & Soeding 2017) where the program `mmseqs` is installed, else
from the k-mers of the sequences, with the identity of two estimated as (k-mers both have / those of
the one that has fewer) ^ (1 / k), as in Mash (Ondov et al. 2016). That takes differences to be
spread evenly: a long stretch in common counts like a high identity throughout. Two sequences are
alike only if the shorter has at least 0.8 of the other's letters. DNA and RNA are compared on both
strands, U is read as T.

n sequences, R of them in an index.
"""

from __future__ import annotations

import functools
import hashlib
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgen.config import InputError
from mgen.data.table import Rows
from mgen.io.files import kept

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # of the method below: clusters kept by another version are made anew
COVERAGE = 0.8  # least length of the shorter of two alike sequences, as a share of the longer
BATCH = 2000  # sequences compared at once
CELLS = 1 << 23  # of a matrix of counts held at once
MOST_LETTERS = 200_000_000  # clustered here: some 5 GB of memory
NUCLEOTIDES, RESIDUES = "ACGT", "ACDEFGHIKLMNPQRSTVWY"
LONGEST_WORD = {NUCLEOTIDES: 11, RESIDUES: 5}  # their tables of all k-mers have 4 and 3 million


@dataclass(frozen=True)
class Letters:
    """Sequences end to end as bytes: upper case, without white space. `ends` (n + 1,) offsets."""

    data: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each byte occurs, (256,)."""
        return np.bincount(self.data, minlength=256)

    @property
    def are_nucleotides(self) -> bool:
        """Nine letters in ten are A, C, G, T, U or N."""
        return self.counts[list(b"ACGTUN")].sum() >= 0.9 * max(len(self.data), 1)

    def __getitem__(self, chosen: np.ndarray) -> Letters:
        lengths = self.lengths[chosen]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.ends[:-1][chosen] - ends[:-1], lengths)
        return Letters(self.data[np.arange(ends[-1]) + shift], ends)

    def texts(self) -> Iterator[bytes]:
        data = self.data.tobytes()
        for start, end in zip(self.ends[:-1].tolist(), self.ends[1:].tolist(), strict=True):
            yield data[start:end]


def letters(column: pa.ChunkedArray, where: str) -> Letters:
    """The sequences of a column. Raises InputError, `where` first, unless they are text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise InputError(
            f"{where}: expected sequences as text, found values of type {column.type}. Set "
            "--data.x-col."
        )
    texts = pa.chunked_array([c.cast(pa.large_string()) for c in column.chunks], pa.large_string())
    texts = pc.replace_substring_regex(pc.utf8_upper(texts), r"\s+", "")
    texts = pa.concat_arrays(texts.chunks).fill_null("") if texts.num_chunks else texts
    if not len(texts):
        return Letters(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[texts.offset :][: len(texts) + 1]
    data = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, np.uint8)
    return Letters(data[ends[0] : ends[-1]], ends - ends[0])


def joined(parts: list[Letters]) -> Letters:
    """The sequences of all parts, in order."""
    ends = np.concatenate([[0], *(part.lengths for part in parts)])
    data = [part.data for part in parts] or [np.zeros(0, np.uint8)]
    return Letters(np.concatenate(data), np.cumsum(ends))


# --------------------------------------------------------------------------- clusters


def clusters(rows: Rows, indices: np.ndarray, identity: float) -> tuple[np.ndarray, str]:
    """The cluster of each row of the table (N,) int64, -1 outside `indices`, and the method's name.

    Kept by content in the cache. Raises InputError for an identity out of 0..1, sequences that are
    too many or too short for it, and if MMseqs2 fails.
    """
    if not 0 < identity <= 1:
        raise InputError(f"--data.identity {identity}: expected a number above 0 and up to 1")
    column = rows.table.x_col
    blocks = list(rows.chunks([column], indices))
    numbers = np.concatenate([found for found, _ in blocks])
    place = f"{rows.names[0]}, column '{column}'"
    sequences = joined([letters(block.column(column), place) for _, block in blocks])
    program = shutil.which("mmseqs")
    method = _mmseqs_version(program) if program else f"k-mers, version {VERSION}"
    key = hashlib.sha256(f"{method} {identity!r} ".encode())
    key.update(sequences.ends.tobytes())
    key.update(sequences.data.tobytes())

    def write(partial: Path) -> None:
        first, same = _distinct(sequences)
        few = sequences[first]
        if program:
            found, word = _mmseqs(program, few, identity), 0
        else:
            found, word = linked_clusters(few, identity)
        with partial.open("wb") as file:
            np.savez(file, ids=found[same], word=word)

    with np.load(kept("clusters", f"{key.hexdigest()}.npz", write), allow_pickle=False) as found:
        ids, word = found["ids"], int(found["word"])
    everywhere = np.full(len(rows), -1, dtype=np.int64)
    everywhere[numbers] = ids
    return everywhere, method if program else f"shared {word}-mers"


def linked_clusters(sequences: Letters, identity: float) -> tuple[np.ndarray, int]:
    """The cluster of each sequence (n,) and the k of the k-mers.

    Sequences at least `identity` alike are in one cluster, and so are those joined by a chain of
    them. In order of decreasing length each is compared with those before it, except with those
    that were nearer to one already there than halfway from `identity` to 1: that one stands for
    them, so a link that is missed lies within that half.
    """
    if len(sequences.data) > MOST_LETTERS:
        raise InputError(
            f"--data.identity: {len(sequences.data):,} letters are too many for clusters by "
            f"k-mers ({MOST_LETTERS:,}). Install MMseqs2 (the program mmseqs)"
        )
    words = Words.of(sequences, identity)
    if identity < words.floor:
        mean = sequences.lengths[sequences.lengths > 0].mean()
        least = math.ceil(100 * words.floor) / 100
        raise InputError(
            f"--data.identity {identity:g}: k-mers of sequences of {mean:.0f} letters tell "
            f"identities above {least} from chance. Set that or more, or install MMseqs2 (the "
            "program mmseqs)"
        )
    order = np.argsort(-sequences.lengths, kind="stable")
    root = np.arange(len(sequences))
    known, near = Index.empty(words), (1 + identity) / 2
    start = 0
    while start < len(order):
        chosen = order[start : start + min(BATCH, max(start, BATCH // 16))]
        start += len(chosen)
        batch = Index.of(words, sequences[chosen], chosen)
        known = known.at_most(batch.lengths.max() / COVERAGE)
        stands = _link(batch, known, identity, near, root)
        batch = batch.take(np.flatnonzero(~stands))
        stands = _link(batch, batch, identity, near, root)
        known = known.joined(batch.take(np.flatnonzero(~stands)))
    while (root[root] != root).any():
        root = root[root]
    return root, words.k


def _link(batch: Index, known: Index, identity: float, near: float, root: np.ndarray) -> np.ndarray:
    """Join what is alike in the forest `root`; which of `batch` one of `known` stands for (n,).

    Where both are the same only an earlier one stands for a later one.
    """
    stands = np.zeros(len(batch), dtype=bool)
    for rows, columns, likeness in _likeness(batch, known):
        counts = likeness >= identity
        if batch is known:
            counts &= columns < rows
        rows, columns, likeness = rows[counts], columns[counts], likeness[counts]
        stands[rows[likeness >= near]] = True
        pairs = np.unique(root[batch.names[rows]] * len(root) + root[known.names[columns]])
        for pair in pairs.tolist():
            low, high = sorted(_root(root, i) for i in divmod(pair, len(root)))
            root[high] = low
    return stands


def _root(root: np.ndarray, i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = int(root[i])
    return i


def nearest(
    words: Words, held_out: Letters, blocks: Iterator[tuple[np.ndarray, Letters]], identity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The estimated identity of each held-out sequence with the most alike one of `blocks` (n,).

    `blocks`: row numbers and sequences. Also the row number of that one (-1: none is alike). The
    estimate is 0 where two sequences share fewer than two k-mers. A sequence that found one at
    least `identity` alike looks no further.
    """
    index = Index.of(words, held_out, np.arange(len(held_out)))
    likeness, rows = np.zeros(len(held_out)), np.full(len(held_out), -1, dtype=np.int64)
    for numbers, sequences in blocks:
        for start in range(0, len(numbers), BATCH // 8):
            some = np.arange(start, min(start + BATCH // 8, len(numbers)))
            block = Index.of(words, sequences[some], numbers[some])
            for here, there, value in _likeness(block, index):
                order = np.argsort(value, kind="stable")  # of several the most alike is set last
                here, there, value = here[order], index.names[there[order]], value[order]
                better = value > likeness[there]
                likeness[there[better]] = value[better]
                rows[there[better]] = block.names[here[better]]
            looking = np.flatnonzero(likeness[index.names] < identity)
            if not len(looking):
                return likeness, rows
            if len(looking) < 0.8 * len(index):  # an index is dear to make
                index = index.take(looking)
    return likeness, rows


# --------------------------------------------------------------------------- k-mers


@dataclass(frozen=True)
class Words:
    """The k-mers of an alphabet: those with other letters do not count.

    `floor`: the least identity that they tell from chance.
    """

    alphabet: str
    k: int
    floor: float = 0.0

    @staticmethod
    def of(sequences: Letters, identity: float) -> Words:
        """The longest k-mers that tell pairs of this identity, of mean length, from chance.

        Chance: of n and of 10,000 pairs of random sequences one shares as many k-mers (Poisson's
        tail). Where none do, those that come nearest.
        """
        alphabet = NUCLEOTIDES if sequences.are_nucleotides else RESIDUES
        strands = 2 if alphabet == NUCLEOTIDES else 1
        filled = sequences.lengths[sequences.lengths > 0]
        mean = float(filled.mean()) if len(filled) else 1.0
        rare = math.log(max(len(sequences), 10_000))
        floors = {}
        for k in range(LONGEST_WORD[alphabet], 1, -1):
            number = max(mean - k + 1, 1.0)
            chance = 2 * number**2 * strands / len(alphabet) ** k  # 2: letters differ in frequency
            shared = chance + math.sqrt(2 * chance * rare) + rare
            floors[k] = min(shared / number, 1.0) ** (1 / k)
            if floors[k] <= identity:
                return Words(alphabet, k, floors[k])
        k = min(floors, key=floors.get)
        return Words(alphabet, k, floors[k])

    @property
    def number(self) -> int:
        return len(self.alphabet) ** self.k

    def read(self, sequences: Letters) -> tuple[np.ndarray, np.ndarray]:
        """The k-mers of each sequence, each once: (owners, k-mers), by rising owner and k-mer."""
        base, k = len(self.alphabet), self.k
        codes = np.full(256, -1, dtype=np.int64)
        codes[list(self.alphabet.encode())] = np.arange(base)
        if base == 4:
            codes[ord("U")] = codes[ord("T")]
        values = codes[sequences.data]
        count = max(len(values) - k + 1, 0)
        ahead, back = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        is_known = np.ones(count, dtype=bool)
        for i in range(k):
            here = values[i : i + count]
            is_known &= here >= 0
            ahead = ahead * base + here
            back += (base - 1 - here) * base**i
        owners = np.repeat(np.arange(len(sequences)), sequences.lengths)
        is_known &= owners[:count] == owners[k - 1 :][:count]
        kmers = np.minimum(ahead, back) if base == 4 else ahead  # A pairs with T, C with G
        pairs = np.unique(owners[:count][is_known] * self.number + kmers[is_known])
        return pairs // self.number, pairs % self.number


@dataclass(frozen=True)
class Index:
    """Sequences by their k-mers: `kmers` and their `owners`, by rising owner; R `names`."""

    words: Words
    owners: np.ndarray
    kmers: np.ndarray
    sizes: np.ndarray  # (R,) k-mers of each
    lengths: np.ndarray  # (R,) letters
    names: np.ndarray  # (R,) what each is called outside

    @staticmethod
    def empty(words: Words) -> Index:
        none = np.zeros(0, dtype=np.int64)
        return Index(words, none, none, none, none, none)

    @staticmethod
    def of(words: Words, sequences: Letters, names: np.ndarray) -> Index:
        owners, kmers = words.read(sequences)
        sizes = np.bincount(owners, minlength=len(sequences))
        return Index(words, owners, kmers, sizes, sequences.lengths, names)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, chosen: np.ndarray) -> Index:
        """Those at these places, which rise."""
        place = np.full(len(self), -1)
        place[chosen] = np.arange(len(chosen))
        there = place[self.owners] >= 0
        kept_ = (self.sizes[chosen], self.lengths[chosen], self.names[chosen])
        return Index(self.words, place[self.owners[there]], self.kmers[there], *kept_)

    def at_most(self, length: float) -> Index:
        """Those of at most that many letters."""
        chosen = np.flatnonzero(self.lengths <= length)
        return self if len(chosen) == len(self) else self.take(chosen)

    def joined(self, other: Index) -> Index:
        both = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("kmers", "sizes", "lengths", "names")
        ]
        owners = np.concatenate([self.owners, other.owners + len(self)])
        return Index(self.words, owners, *both)

    @functools.cached_property
    def by_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each k-mer's owners start (4^k + 1 or 20^k + 1,), and the owners, by k-mer."""
        starts = np.zeros(self.words.number + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.kmers, minlength=self.words.number), out=starts[1:])
        return starts, self.owners[np.argsort(self.kmers, kind="stable")]


def _likeness(batch: Index, known: Index) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that share two k-mers or more and do not differ too much in length.

    Yields, for a few of `batch` at a time, their places, those in `known`, and the identities.
    """
    if not len(known):
        return
    starts, owners = known.by_word
    ends = np.searchsorted(batch.owners, np.arange(len(batch) + 1))
    hits = starts[batch.kmers + 1] - starts[batch.kmers]
    cost = np.concatenate([[0], np.cumsum(hits)])[ends]  # (n + 1,)
    at = 0
    while at < len(batch):
        stop = min(at + max(CELLS // max(len(known), 1), 1), len(batch))
        stop = max(
            min(stop, int(np.searchsorted(cost, cost[at] + CELLS, side="right")) - 1), at + 1
        )
        span = slice(ends[at], ends[stop])
        number = hits[span]
        first = np.repeat(starts[batch.kmers[span]] - np.cumsum(number) + number, number)
        found = owners[first + np.arange(len(first))]
        cell = np.repeat((batch.owners[span] - at) * len(known), number) + found
        size = (stop - at) * len(known)
        if 8 * len(cell) < size:  # few pairs share any
            cell, shared = np.unique(cell, return_counts=True)
        else:
            shared = np.bincount(cell, minlength=size)
            cell = np.flatnonzero(shared)
            shared = shared[cell]
        cell, shared = cell[shared > 1], shared[shared > 1]
        here, there = at + cell // len(known), cell % len(known)
        short = np.minimum(batch.lengths[here], known.lengths[there])
        long = np.maximum(batch.lengths[here], known.lengths[there])
        share = shared / np.minimum(batch.sizes[here], known.sizes[there])
        near = short >= COVERAGE * long
        yield here[near], there[near], share[near] ** (1 / known.words.k)
        at = stop


def _distinct(sequences: Letters) -> tuple[np.ndarray, np.ndarray]:
    """The first place of each different sequence, and for every sequence which one it is, (n,)."""
    seen: dict[bytes, int] = {}
    same = np.fromiter(
        (seen.setdefault(text, len(seen)) for text in sequences.texts()), np.int64, len(sequences)
    )
    return np.unique(same, return_index=True)[1], same


# --------------------------------------------------------------------------- MMseqs2


def _mmseqs_version(program: str) -> str:
    try:
        done = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{program}: does not run: {error}") from None
    return f"MMseqs2 {done.stdout.strip()}"


def _mmseqs(program: str, sequences: Letters, identity: float) -> np.ndarray:
    """The cluster of each sequence (n,): connected components of easy-cluster, with coverage 0.8 of
    both sequences; on one thread, whose result is the same each time."""
    ids = np.arange(len(sequences))
    # Nucleotides by 11-mers: the 15-mers of its own find no more, and their table takes seconds.
    kind = ["--dbtype", "2", "-k", "11"] if sequences.are_nucleotides else ["--dbtype", "1"]
    options = ["--min-seq-id", f"{identity:g}", "-c", f"{COVERAGE:g}", "--cov-mode", "0"]
    options += ["--cluster-mode", "1"]  # connected components
    with tempfile.TemporaryDirectory(prefix="mgen-mmseqs-") as folder:
        fasta = Path(folder) / "sequences.fasta"
        with fasta.open("wb") as file:
            for i, text in enumerate(sequences.texts()):
                if text:  # an empty sequence is alone
                    file.write(b">%d\n%s\n" % (i, text))
        command = [program, "easy-cluster", str(fasta), f"{folder}/found", f"{folder}/work"]
        command += [*options, *kind, "--threads", "1", "-v", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        table = Path(folder) / "found_cluster.tsv"
        if done.returncode or not table.exists():
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise InputError(f"{program} easy-cluster failed: {' '.join(said)}")
        first, member = np.loadtxt(table, dtype=np.int64, ndmin=2, delimiter="\t").T
    ids[member] = first
    return ids
