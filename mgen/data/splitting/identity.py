"""How alike sequences are: clusters of them, and the nearest of one set in another.

Sequences of up to 50 letters are compared letter by letter, without gaps, in every position.
Clusters of longer ones come from MMseqs2 (Steinegger & Soeding 2017) where the program `mmseqs` is
installed, else from the k-mers of the sequences, with the identity of two estimated as (k-mers both
have / those of the one that has fewer) ^ (1 / k), as in Mash (Ondov et al. 2016). That takes
differences to be spread evenly: a long stretch in common counts like a high identity throughout.
Both link pairs somewhat below the identity too, so that few at or above it are missed. Two
sequences are alike only if the shorter has at least 0.8 of the other's letters. DNA and RNA are
compared on both strands, U is read as T.

n sequences, R of them in an index.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgen.config import InputError
from mgen.data.table import Rows
from mgen.io.files import kept

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 3  # of the method below: clusters kept by another version are made anew
SHORT = 50  # letters up to which sequences are compared letter by letter
MOST_COMPARED = 2e13  # letters so compared: half an hour
COVERAGE = 0.8  # least length of the shorter of two alike sequences, as a share of the longer
BATCH = 2000  # sequences compared at once
CELLS = 1 << 23  # of a matrix of counts held at once
MOST_LETTERS = 200_000_000  # clustered here: some 5 GB of memory
ERRORS = 2.5  # standard errors below an identity that k-mers still take for it
MARGIN = 0.03  # below an identity that MMseqs2 still takes for it
NUCLEOTIDES, RESIDUES = "ACGT", "ACDEFGHIKLMNPQRSTVWY"
LEAST = {NUCLEOTIDES: 0.75, RESIDUES: 0.3}  # below it MMseqs2 misses too many pairs
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
    is_long = sequences.lengths.max(initial=0) > SHORT
    program = shutil.which("mmseqs") if is_long else None
    version = _mmseqs_version(program) if program else ""
    key = hashlib.sha256(f"{VERSION} {version} {identity!r} ".encode())
    key.update(sequences.ends.tobytes())
    key.update(sequences.data.tobytes())

    def write(partial: Path) -> None:
        first, same = _distinct(sequences)
        few = sequences[first]
        short = np.flatnonzero(few.lengths <= SHORT)
        ids, methods = np.arange(len(few)), []
        if is_long:
            # Those that may be alike to one of more than SHORT letters.
            rest = np.flatnonzero(few.lengths > COVERAGE * SHORT)
            if program:
                found = _mmseqs(program, few[rest], identity)
                methods.append(version)
            else:
                found, k = linked_clusters(few[rest], identity)
                methods.append(f"shared {k}-mers")
            _join(ids, rest, rest[found])
        if len(short):
            _join(ids, short, short[letter_clusters(few[short], identity)])
            some = f", of up to {SHORT}" if is_long else ""
            methods.append(f"letters compared one by one{some}")
        with partial.open("wb") as file:
            np.savez(file, ids=_roots(ids, ids)[same], method="; ".join(methods))

    with np.load(kept("clusters", f"{key.hexdigest()}.npz", write), allow_pickle=False) as found:
        ids, method = found["ids"], str(found["method"])
    everywhere = np.full(len(rows), -1, dtype=np.int64)
    everywhere[numbers] = ids
    return everywhere, method


def letter_clusters(sequences: Letters, identity: float) -> np.ndarray:
    """The cluster of each sequence (n,): those joined by a chain of pairs that are alike.

    The identity of two is the most letters that are equal in one position without gaps, as a share
    of the shorter one's, over the positions that let at least 0.8 of the longer one overlap. Raises
    InputError if there are too many to compare in half an hour.
    """
    codes = np.arange(256, dtype=np.uint8)
    turn = None
    if sequences.are_nucleotides:
        codes[ord("U")] = ord("T")
        turn = codes.copy()
        turn[list(b"ACGT")] = list(b"TGCA")
    lengths = sequences.lengths
    groups = {int(n): np.flatnonzero(lengths == n) for n in np.unique(lengths[lengths > 0])}
    pairs, cost = [], 0.0
    for short, long in itertools.combinations_with_replacement(groups, 2):
        equal = math.ceil(identity * short - 1e-9)
        least = max(math.ceil(COVERAGE * long), equal)
        if least <= short:
            offsets = range(least - short, long - least + 1)
            pairs.append((short, long, equal, offsets))
            number = len(groups[short]) * len(groups[long]) / (2 if short == long else 1)
            cost += number * len(offsets) * short * (1 if turn is None else 2)
    if cost > MOST_COMPARED:
        raise InputError(
            f"--data.identity {identity:g}: {len(sequences):,} different sequences of up to "
            f"{max(groups)} letters take {cost / MOST_COMPARED / 2:.1f} hours or more to compare. "
            "Set a higher identity, fewer rows (--data.max-rows), or a column of families "
            "(--data.group-col)"
        )
    by_place = {
        n: codes[np.ascontiguousarray(sequences[found].data.reshape(-1, n).T)]
        for n, found in groups.items()
    }
    root = np.arange(len(sequences))
    for short, long, equal, offsets in pairs:
        strands = [by_place[long]] + ([] if turn is None else [turn[by_place[long][::-1]]])
        for offset, strand in itertools.product(offsets, strands):
            start = max(offset, 0)
            stop = min(short + offset, long)
            first, second = by_place[short][start - offset : stop - offset], strand[start:stop]
            for row, column in _equal_columns(first, second, equal, short == long):
                _join(root, groups[short][row], groups[long][column])
    return _roots(root, root)


def _equal_columns(
    first: np.ndarray, second: np.ndarray, least: int, is_same: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of columns of (L, n) and (L, m) with at least so many equal letters.

    Where both are the same sequences, each pair once.
    """
    for top in range(0, first.shape[1], 256):  # blocks that stay in the processor's cache
        rows = first[:, top : top + 256, None]
        for left in range(top if is_same else 0, second.shape[1], 4096):
            columns = second[:, left : left + 4096]
            count = np.zeros((rows.shape[1], columns.shape[1]), dtype=np.uint8)
            for here, there in zip(rows, columns, strict=True):
                count += (here == there).view(np.uint8)
            found = np.flatnonzero(count >= least)
            if len(found):
                yield top + found // columns.shape[1], left + found % columns.shape[1]


def linked_clusters(sequences: Letters, identity: float) -> tuple[np.ndarray, int]:
    """The cluster of each sequence (n,) and the k of the k-mers.

    Sequences estimated at least `identity` alike, or up to `ERRORS` standard errors less, are in
    one cluster, and so are those joined by a chain of them. In order of decreasing length each is
    compared with those before it, except with those that were nearer to one already there than
    halfway from `identity` to 1: that one stands for them, so a link that is missed lies within
    that half.
    """
    if len(sequences.data) > MOST_LETTERS:
        raise InputError(
            f"--data.identity: {len(sequences.data):,} letters are too many for clusters by "
            f"k-mers ({MOST_LETTERS:,}). Install MMseqs2 (the program mmseqs)"
        )
    words = Words.of(sequences, identity, ERRORS)
    if identity < words.floor:
        mean = sequences.lengths[sequences.lengths > 0].mean()
        least = math.ceil(100 * words.floor) / 100
        raise InputError(
            f"--data.identity {identity:g}: k-mers of sequences of {mean:.0f} letters tell "
            f"identities from {least} on from chance. Set that or more, or install MMseqs2 (the "
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
    return _roots(root, root), words.k


def _link(batch: Index, known: Index, identity: float, near: float, root: np.ndarray) -> np.ndarray:
    """Join what is alike in the forest `root`; which of `batch` one of `known` stands for (n,).

    Where both are the same only an earlier one stands for a later one.
    """
    stands = np.zeros(len(batch), dtype=bool)
    for rows, columns, likeness in _likeness(batch, known):
        sizes = np.minimum(batch.sizes[rows], known.sizes[columns])
        counts = likeness >= batch.words.least(identity, sizes)
        if batch is known:
            counts &= columns < rows
        rows, columns, likeness = rows[counts], columns[counts], likeness[counts]
        stands[rows[likeness >= near]] = True
        _join(root, batch.names[rows], known.names[columns])
    return stands


def _join(root: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Put these pairs in one tree of the forest `root` each."""
    while len(first):
        first, second = _roots(root, first), _roots(root, second)
        apart = first != second
        first, second = first[apart], second[apart]
        root[np.maximum(first, second)] = np.minimum(first, second)


def _roots(root: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The roots of those in the forest, which then hang directly from them."""
    found = root[of]
    while (root[found] != found).any():
        found = root[found]
    root[of] = found
    return found


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

    `floor`: the least identity that they tell from chance; `errors` and `rare` as in `of`.
    """

    alphabet: str
    k: int
    floor: float = 0.0
    errors: float = 0.0
    rare: float = 0.0

    @staticmethod
    def of(sequences: Letters, identity: float, errors: float = 0.0) -> Words:
        """The longest k-mers that tell pairs of this identity, of mean length, from chance.

        Pairs: those whose estimate is that many standard errors too low. Chance: of n and of 10,000
        pairs of random sequences one shares as many k-mers (Poisson's tail, e^-`rare`). Where none
        do, those that come nearest.
        """
        alphabet = NUCLEOTIDES if sequences.are_nucleotides else RESIDUES
        filled = sequences.lengths[sequences.lengths > 0]
        mean = float(filled.mean()) if len(filled) else 1.0
        rare = math.log(max(len(sequences), 10_000))
        found = []
        for k in range(LONGEST_WORD[alphabet], 1, -1):
            words, number = Words(alphabet, k, 0.0, errors, rare), max(mean - k + 1, 1.0)
            tried = np.arange(1, 1001) / 1000
            told = tried[words._share(tried, number) >= words._by_chance(number)]
            found.append(replace(words, floor=float(told.min(initial=1.0))))
            if found[-1].floor <= identity:
                return found[-1]
        return min(found, key=lambda words: words.floor)

    def least(self, identity: float, number: np.ndarray) -> np.ndarray:
        """The estimate from which pairs count as so alike, by the fewer k-mers of the two."""
        number = np.maximum(number, 1)
        share = np.maximum(self._share(identity, number), self._by_chance(number))
        return np.minimum(share, identity**self.k) ** (1 / self.k)

    def _share(self, identity: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Of so many k-mers the share that two sequences have in common, less `errors` standard
        errors: those of a known number of differences at random places."""
        k, mean = self.k, identity**self.k
        spread = mean * (1 - mean) - k**2 * identity ** (2 * k - 1) * (1 - identity)
        for shift in range(1, k):  # k-mers that overlap
            spread = spread + 2 * (identity ** (k + shift) - mean**2)
        return mean - self.errors * np.sqrt(np.maximum(spread, 0) / number)

    def _by_chance(self, number: np.ndarray) -> np.ndarray:
        strands = 2 if len(self.alphabet) == 4 else 1
        chance = 2 * number**2 * strands / self.number  # 2: letters differ in frequency
        return np.minimum((chance + np.sqrt(2 * chance * self.rare) + self.rare) / number, 1.0)

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
    least = LEAST[NUCLEOTIDES if sequences.are_nucleotides else RESIDUES]
    if identity < least:
        raise InputError(
            f"--data.identity {identity:g}: MMseqs2 tells such sequences from {least:g} on. Set "
            "that or more, or a column of families made elsewhere (--data.group-col)"
        )
    ids = np.arange(len(sequences))
    options = ["--min-seq-id", f"{max(identity - MARGIN, 0):g}", "-c", f"{COVERAGE:g}"]
    options += ["--cov-mode", "0", "--cluster-mode", "1"]  # connected components
    # Of all pairs, not of the first step's representatives, and of repeats too.
    options += ["--single-step-clustering", "--max-seqs", "100", "--mask", "0"]
    if sequences.are_nucleotides:  # its own choices miss most pairs below 0.9
        options += ["--dbtype", "2", "-k", "8", "--spaced-kmer-mode", "0"]
        options += ["--min-ungapped-score", "0"]
    else:
        options += ["--dbtype", "1"]
    with tempfile.TemporaryDirectory(prefix="mgen-mmseqs-") as folder:
        fasta = Path(folder) / "sequences.fasta"
        with fasta.open("wb") as file:
            for i, text in enumerate(sequences.texts()):
                if text:  # an empty sequence is alone
                    file.write(b">%d\n%s\n" % (i, text))
        command = [program, "easy-cluster", str(fasta), f"{folder}/found", f"{folder}/work"]
        command += [*options, "--threads", "1", "-v", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        table = Path(folder) / "found_cluster.tsv"
        if done.returncode or not table.exists():
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise InputError(
                f"--data.identity {identity:g}: {program} easy-cluster failed: {' '.join(said)}. A "
                "PATH without mmseqs makes the clusters by k-mers; --data.group-col takes families "
                "made elsewhere"
            )
        first, member = np.loadtxt(table, dtype=np.int64, ndmin=2, delimiter="\t").T
    ids[member] = first
    return ids
