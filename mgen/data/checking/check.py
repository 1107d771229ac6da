"""Checks of a table before any weights are loaded.

Each looks at every row once, in blocks of a few megabytes, and returns what should be said aloud,
or raises an InputError that names the first bad cell and counts all of them. `Reads` is
what they ask of a tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgen.config import InputError
from mgen.data.checking.cells import cells
from mgen.data.checking.reads import Reads
from mgen.data.checking.token_store import WORTH_ROWS, token_store
from mgen.data.table import Rows
from mgen.data.targets.labels import Problem, class_ids, number_blocks, place
from mgen.io.files import kept, reading

if TYPE_CHECKING:
    import pyarrow as pa


SPACES = "".join(c for c in map(chr, range(128)) if c.isspace())  # dropped by tokenizers
NO_LIMIT = np.iinfo(np.int32).max
RARE = 10  # training rows of a class; of fewer it is said


def inputs(rows: Rows, tokenizer: Reads, splits: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """All that is checked of sequences and identifiers in `splits`, and the tokens of every row.

    Returns what should be said aloud and (N,) int32. What was found of a large table is kept by
    content, and looked up the next time. Raises InputError.
    """
    if not (_is_aligned(rows) or rows.genes):  # what alignments hold is not known without reading
        tokenizer.stored = token_store(rows, tokenizer)
    if _is_aligned(rows) or len(rows) < WORTH_ROWS or not tokenizer.fingerprint:
        return _inputs(rows, tokenizer, splits)
    facts = (rows.digest, rows.names, tuple(splits), tokenizer.fingerprint, tokenizer.max_length)
    name = hashlib.sha256(repr((*facts, tokenizer.truncate)).encode()).hexdigest()

    def write(partial: Path) -> None:
        notes, lengths = _inputs(rows, tokenizer, splits)
        with partial.open("wb") as file:
            np.savez(file, notes=np.array(notes, dtype=str), lengths=lengths)

    file = kept("checks", f"{name}.npz", write)
    with reading(file), np.load(file, allow_pickle=False) as found:
        return found["notes"].tolist(), found["lengths"]


def _inputs(rows: Rows, tokenizer: Reads, splits: Sequence[str]) -> tuple[list[str], np.ndarray]:
    if not rows.table.x_col:
        raise InputError(
            f"{rows.names[0]}: this task reads a column of sequences, and none is named. Set "
            "--data.x-col, or run the recipe that mgen show data NAME says"
        )
    held = np.concatenate([rows.splits[split] for split in splits])
    if rows.genes:
        trained = rows.splits["train"] if "train" in splits else held[:0]
        notes, lengths = cells(rows, tokenizer, np.sort(held), np.sort(trained))
        return notes + identifiers(rows, held), lengths
    if tokenizer.modality == "cell":
        raise InputError(
            f"{rows.names[0]}: no counts of cells, which this model reads. Set --data.path to an "
            ".h5ad file, or another --backbone"
        )
    notes = sequences(rows, tokenizer, held) + identifiers(rows, held)
    if "train" in splits:
        notes += overlaps(rows, tokenizer)
    return notes, token_lengths(rows, rows.table.x_col, tokenizer, held)


def sequences(rows: Rows, tokenizer: Reads, indices: np.ndarray | None = None) -> list[str]:
    """Sequences are there, of known letters and not too long for the model."""
    column, refuses = rows.table.x_col, tokenizer.unknown == "error"
    reading = _Reading(tokenizer)
    missing, outside, too_long, cut_off = Problem(), Problem(), Problem(), Problem()
    lower, converted, num_letters, lost, longest, dropped = 0, 0, 0, 0, 0, 0
    is_viewed = rows.table.crop or rows.table.strands != "forward"
    like_dna, other = tokenizer.modality == "protein", ~_marked(f"ACGTUNacgtun{SPACES}")
    for numbered, block in rows.chunks(_columns(rows), indices):
        texts, lengths = reading.read(rows, block.column(column))
        if is_viewed and (is_marked := reading.has_special(rows, block)).any():
            where = place(rows, int(numbered[np.flatnonzero(is_marked)[0]]), column)
            raise InputError(
                f"{where}: a token such as [MASK] in the text cannot be cut or turned. Drop "
                "--data.crop and --data.strands, or the row"
            )
        lengths = np.minimum(lengths, rows.table.crop or NO_LIMIT)
        is_outside = texts.rows_with(reading.is_outside)
        like_dna &= not texts.count(other)
        _count(missing, numbered, lengths == 0)
        _count(outside, numbered, is_outside)
        num_letters += texts.count(reading.is_outside & reading.starts_letter)
        lower += int(texts.rows_with(reading.is_lower).sum())
        converted += int(texts.rows_with(reading.is_converted).sum())
        tokens = lengths + tokenizer.num_special
        is_clean = not ((lengths == 0).any() or (refuses and is_outside.any()))
        if is_clean and (_is_aligned(rows) or not tokenizer.per_letter):
            counted = _tokens(rows, tokenizer, numbered, block)
            if _is_aligned(rows):  # letters of the alignment may be cut off, those of rows not
                over = np.array(tokenizer.overflow(rows.table.inputs(block.to_pylist())))
                _count(cut_off, numbered, over > 0)
                dropped += int(over.sum())
            else:
                tokens = counted
        over = tokens - (tokenizer.max_length or NO_LIMIT)
        _count(too_long, numbered, over > 0)
        lost += int(over.clip(min=0).sum())
        longest = max(longest, int(tokens.max()))
    total = len(rows) if indices is None else len(indices)
    if missing.count:
        raise InputError(
            f"{place(rows, missing.row, column)}: the sequence is empty ({missing.count:,} of "
            f"{total:,} rows). Fill it in or drop the row."
        )
    notes = []
    if outside.count:
        letter = reading.first_outside(str(rows.take([outside.row])[0][column]))
        how_many = f"{num_letters:,} such letters in {outside.count:,} of {total:,} rows"
        if refuses:
            raise InputError(
                f"{place(rows, outside.row, column)}: {letter!r} is not a letter of this "
                f"{tokenizer.modality} model ({tokenizer.alphabet}); {how_many}. Correct them, or "
                "set --backbone.unknown token to read each as the unknown token."
            )
        notes.append(f"{how_many}, such as {letter!r}, are read as the unknown token")
    if too_long.count and tokenizer.truncate == "window":
        notes.append(
            f"{too_long.count:,} of {total:,} sequences are longer than {tokenizer.max_length:,} "
            f"tokens and are read in overlapping windows (longest: {longest:,} tokens)"
        )
    elif too_long.count:
        notes.append(_shortened(rows, tokenizer, too_long, lost, total))
    if like_dna:
        notes.append("all sequences are of A, C, G, T, U, N alone, but this model reads protein")
    if cut_off.count:
        notes.append(
            f"{cut_off.count:,} of {total:,} alignments do not fit into {tokenizer.max_length:,} "
            f"tokens with their sequence: {dropped:,} tokens of their last rows are left out"
        )
    if lower:
        notes.append(f"lower-case letters in {lower:,} of {total:,} rows are read as upper case")
    if converted:
        letters = ", ".join(f"{a} as {b}" for a, b in reading.conversions.items())
        notes.append(f"{letters}: letters converted in {converted:,} of {total:,} rows")
    return notes


def _is_aligned(rows: Rows) -> bool:
    """Rows have more than a sequence."""
    return bool(rows.table.msa_col or rows.table.structure_col)


def _columns(rows: Rows) -> list[str]:
    """Columns that a backbone takes."""
    table = rows.table
    return [column for column in (table.x_col, table.msa_col, table.structure_col) if column]


def _tokens(rows: Rows, tokenizer: Reads, numbered: np.ndarray, block: pa.Table) -> np.ndarray:
    """Tokens of each row of a block before any limit, (n,); errors name the file and row."""
    if tokenizer.per_letter:
        raise InputError(
            "--data.msa-col, --data.structure-col: this model reads sequences alone; drop them"
        )
    given = block.to_pylist()
    try:
        return np.array(tokenizer.lengths(rows.table.inputs(given)), dtype=np.int32)
    except InputError:
        for number, row in zip(numbered.tolist(), given, strict=True):
            try:
                tokenizer.lengths(rows.table.inputs([row]))
            except InputError as error:
                column = _columns(rows)[-1]  # what is not the sequence's own fault
                raise InputError(f"{place(rows, number, column)}: {error}") from None
        raise


def _shortened(rows: Rows, tokenizer: Reads, long: Problem, lost: int, total: int) -> str:
    limit = f"{tokenizer.max_length:,} tokens, {tokenizer.num_special} of them special"
    if tokenizer.truncate == "error":
        raise InputError(
            f"{place(rows, long.row, rows.table.x_col)}: longer than {limit} ({long.count:,} of "
            f"{total:,} rows). Set --backbone.truncate right (or left) to cut, or window to read "
            "in overlapping windows, or raise --backbone.max-length."
        )
    parts = "letters" if tokenizer.per_letter else "tokens"
    return (
        f"{long.count:,} of {total:,} sequences are longer than {limit}: their {tokenizer.truncate}"
        f" ends are cut, {lost:,} {parts} in all"
    )


def token_lengths(
    rows: Rows, column: str, tokenizer: Reads, indices: np.ndarray | None = None
) -> np.ndarray:
    """Tokens of every row as the model sees it (special tokens included, cut), (n,) int32.

    Rows that are not among `indices` have 0: nothing may be known of them.

    Rows that are read in windows count whole; what else a model reads beside the sequence counts.
    """
    reading = _Reading(tokenizer)
    limit = NO_LIMIT if tokenizer.truncate == "window" else tokenizer.max_length or NO_LIMIT
    lengths = np.zeros(len(rows), dtype=np.int32)
    by_letters = tokenizer.per_letter and not _is_aligned(rows)
    for numbered, block in rows.chunks([column] if by_letters else _columns(rows), indices):
        if by_letters:
            letters = reading.read(rows, block.column(column))[1]
            tokens = np.minimum(letters, rows.table.crop or NO_LIMIT) + tokenizer.num_special
        else:
            tokens = _tokens(rows, tokenizer, numbered, block)
        lengths[numbered] = np.minimum(tokens, limit)
    return lengths


def letters(rows: Rows, tokenizer: Reads, column: pa.ChunkedArray) -> np.ndarray:
    """Letters of each sequence of a block as the tokenizer reads them, (n,); [MASK] is one."""
    return _Reading(tokenizer).read(rows, column)[1]


def one_length(
    rows: Rows, lengths: np.ndarray, indices: np.ndarray, length: int, shorter: bool = False
) -> None:
    """Raise InputError for a row of other than `length` tokens; `lengths` are those of all rows.

    Rows may be `shorter`.
    """
    found = lengths[np.sort(indices)]
    wrong = np.flatnonzero(found > length if shorter else found != length)
    if not len(wrong):
        return
    row = int(np.sort(indices)[wrong[0]])
    where = place(rows, row, rows.table.x_col)
    tokens = f"{lengths[row]:,} tokens with special ones"
    count = f"({len(wrong):,} of {len(indices):,} rows)"
    if shorter:
        raise InputError(
            f"{where}: {tokens}, where the longest training row has {length:,} {count}. There are "
            "no weights for what lies beyond. Cut rows with --backbone.truncate right "
            f"--backbone.max-length {length}, or pool, e.g. by the mean."
        )
    raise InputError(
        f"{where}: {tokens}, where others have {length:,} {count}. One weight per position needs "
        "rows of one length; pool, e.g. by the mean, or drop these rows."
    )


def rows_with_others(rows: Rows, tokenizer: Reads, letters: str) -> int:
    """How many rows have letters other than these, as a tokenizer reads them."""
    reading, column = _Reading(tokenizer), rows.table.x_col
    alike = {a for a, b in tokenizer.convert.items() if b in letters}
    other = ~_marked({*letters, *SPACES} | alike)
    texts = (reading.read(rows, block.column(column))[0] for _, block in rows.chunks([column]))
    return sum(int(text.rows_with(other).sum()) for text in texts)


def identifiers(rows: Rows, indices: np.ndarray | None = None) -> list[str]:
    """Identifiers are different; a row may have none."""
    if not rows.id_col:
        return []
    hashes = [np.array([], dtype=np.int64)]
    for numbers, block in rows.chunks([rows.id_col], indices):
        cells = zip(numbers.tolist(), block.column(rows.id_col).to_pylist(), strict=True)
        values = (hash(str(cell)) if cell not in (None, "") else hash(("", n)) for n, cell in cells)
        hashes.append(np.fromiter(values, dtype=np.int64, count=block.num_rows))
    values = np.concatenate(hashes)
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(repeated):
        return []
    first = int(np.flatnonzero(np.isin(values, repeated))[0])
    row = first if indices is None else int(np.sort(indices)[first])
    name = rows.take([row])[0][rows.id_col]
    return [
        f"{len(repeated):,} rows repeat an identifier of column '{rows.id_col}', such as '{name}' "
        f"({rows.where(row)}); rows are told apart by their number"
    ]


def overlaps(rows: Rows, tokenizer: Reads) -> list[str]:
    """Held-out sequences do not occur among those trained on, as the model reads them."""
    held = {name: rows.splits[name] for name in ("valid", "test") if len(rows.splits[name])}
    known = {
        name: np.unique(
            np.concatenate([*_sequence_hashes(rows, tokenizer, numbers)]), return_inverse=True
        )
        for name, numbers in held.items()
    }
    seen = {name: np.zeros(len(distinct), dtype=bool) for name, (distinct, _) in known.items()}
    for trained in _sequence_hashes(rows, tokenizer, rows.splits["train"]) if held else ():
        for name, (distinct, _) in known.items():
            places = np.minimum(np.searchsorted(distinct, trained), len(distinct) - 1)
            seen[name][places[distinct[places] == trained]] = True
    is_shared = {name: seen[name][places] for name, (_, places) in known.items()}
    notes = []
    for name, shared in is_shared.items():
        if shared.any():
            row = int(np.sort(rows.splits[name])[np.flatnonzero(shared)[0]])
            notes.append(
                f"{shared.sum():,} of {len(shared):,} {name} sequences also occur in train, the "
                f"first in {rows.where(row)}: scores on {name} will be too good"
            )
    return notes


def numbers(rows: Rows, indices: np.ndarray) -> None:
    """Every label of these rows is a finite number."""
    for _ in number_blocks(rows, rows.table.y_cols, indices):
        pass


def classes(rows: Rows, names: tuple[str, ...]) -> list[str]:
    """Every row in a split has one of the classes `names`, and training has all of them."""
    column, notes = rows.table.y_cols[0], []
    counts = {
        name: np.bincount(class_ids(rows, column, names, indices), minlength=len(names))
        for name, indices in rows.splits.items()
    }
    absent = np.flatnonzero(counts["train"] == 0) if len(rows.splits["train"]) else []
    if len(absent):
        held_out = int((counts["valid"] + counts["test"])[absent].sum())
        notes.append(
            f"{len(absent)} of {len(names)} classes have no training row, such as "
            f"'{names[absent[0]]}': they cannot be learnt ({held_out:,} rows of valid and test)"
        )
    rare = np.flatnonzero((counts["train"] > 0) & (counts["train"] < RARE))
    if len(rare):
        least = rare[counts["train"][rare].argmin()]
        notes.append(
            f"{len(rare)} of {len(names)} classes have fewer than {RARE} training rows, such as "
            f"'{names[least]}' with {counts['train'][least]}"
        )
    return notes


# --------------------------------------------------------------------------- letters


class _Texts:
    """The bytes of a block of sequences, end to end: `data` (bytes,), `ends` (n + 1,) offsets."""

    def __init__(self, column: pa.Array) -> None:
        _, offsets, data = column.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[column.offset :][: len(column) + 1]
        empty = np.array([], dtype=np.uint8)
        data = np.frombuffer(data, dtype=np.uint8) if data else empty
        self.data, self.ends = data[ends[0] : ends[-1]], ends - ends[0]
        self.counts = np.bincount(self.data, minlength=256)

    def count(self, marked: np.ndarray) -> int:
        return int(self.counts[marked].sum())

    def rows_with(self, marked: np.ndarray) -> np.ndarray:
        """Which rows contain a byte that is `marked` (256,), (n,) bool."""
        if not self.count(marked):
            return np.zeros(len(self.ends) - 1, dtype=bool)
        before = np.concatenate([[0], np.cumsum(marked[self.data], dtype=np.int32)])
        return before[self.ends[1:]] > before[self.ends[:-1]]


class _Reading:
    """Tables over bytes of how a tokenizer reads letters, (256,) each."""

    def __init__(self, tokenizer: Reads) -> None:
        accepted = {*tokenizer.alphabet, *SPACES}
        accepted |= {a for a, b in tokenizer.convert.items() if b in accepted}
        self.is_outside = ~_marked(accepted)
        self.is_space = _marked(SPACES)
        self.starts_letter = (np.arange(256) & 0xC0) != 0x80  # else: a further byte of one letter
        fold = {a: b for a, b in tokenizer.convert.items() if a.isascii() and b.isascii()}
        self.is_lower = _marked([a for a in fold if a.islower() and a.upper() != a])
        self.conversions = {a: b for a, b in fold.items() if a.isupper() and b != a}
        self.is_converted = _marked([a for a, b in fold.items() if a.upper() != b])
        self.folded = np.arange(256, dtype=np.uint8)
        for a, b in fold.items():
            self.folded[ord(a)] = ord(b)
        # Tokens such as [MASK]; those of several letters of the alphabet count letter by letter.
        special = [t for t in tokenizer.vocabulary if t[1:] and t[0] not in accepted]
        special = sorted((t for t in special if t.isascii()), key=len, reverse=True)
        self.special = "|".join(map(re.escape, special))
        self.starts_special = _marked([token[0] for token in special])
        self.stand_in = tokenizer.alphabet[0]

    def read(self, rows: Rows, column: pa.ChunkedArray) -> tuple[_Texts, np.ndarray]:
        """The bytes of a block, and the letters of each row (n,); special tokens are one letter."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
        if not any(is_kind(column.type) for is_kind in kinds):
            raise InputError(
                f"{rows.names[0]}, column '{rows.table.x_col}': expected sequences as text, found "
                f"values of type {column.type}. Set --data.x-col."
            )
        array = pa.concat_arrays(column.cast(pa.large_string()).chunks).fill_null("")
        texts = _Texts(array)
        if texts.count(self.starts_special & self.is_outside):
            array = pc.replace_substring_regex(array, self.special, self.stand_in)
            texts = _Texts(array)
        if texts.count(self.is_space):
            array = pc.replace_substring_regex(array, f"[{SPACES}]+", "")
            texts = _Texts(array)
        return texts, pc.utf8_length(array).to_numpy()

    def has_special(self, rows: Rows, block: pa.Table) -> np.ndarray:
        """Which rows of a block have a special token in their text, (n,) bool."""
        import pyarrow.compute as pc

        if not self.special:
            return np.zeros(block.num_rows, dtype=bool)
        texts = block.column(rows.table.x_col)
        found = pc.match_substring_regex(texts, self.special)
        return pc.fill_null(found, False).to_numpy()

    def first_outside(self, sequence: str) -> str:
        text = re.sub(self.special, self.stand_in, sequence) if self.special else sequence
        return next(letter for letter in text if self.is_outside[letter.encode()[0]])


def _marked(letters: Iterable[str]) -> np.ndarray:
    marked = np.zeros(256, dtype=bool)
    marked[[ord(letter) for letter in letters if letter.isascii()]] = True
    return marked


def _count(problem: Problem, numbered: np.ndarray, bad: np.ndarray) -> None:
    if bad.any():
        problem.add(numbered[np.flatnonzero(bad)[0]], count=int(bad.sum()))


def _sequence_hashes(rows: Rows, tokenizer: Reads, indices: np.ndarray) -> Iterator[np.ndarray]:
    # 8 bytes a row; of ten million sequences two differ but collide with probability 3e-6.
    reading = _Reading(tokenizer)
    for _, block in rows.chunks([rows.table.x_col], indices):
        texts, _ = reading.read(rows, block.column(rows.table.x_col))
        data = reading.folded[texts.data].tobytes()
        spans = zip(texts.ends[:-1].tolist(), texts.ends[1:].tolist(), strict=True)
        values = (hash(data[a:b]) for a, b in spans)
        yield np.fromiter(values, dtype=np.int64, count=block.num_rows)
