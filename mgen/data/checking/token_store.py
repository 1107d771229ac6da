"""Token ids of a table's sequences on disk, for tokenizers whose tokens are words of letters.

Such a tokenizer must read every row before training anyway, to know its length; what it found is
kept by content and looked up from then on, by worker processes too. One token per letter is a table
look-up and needs none of this.

A file holds the ids of all rows end to end (uint32), then per distinct text, sorted by its hash:
two halves of a 128-bit BLAKE2b hash (uint64 each), the start of its ids (int64) and their number
(int64); at the end the number of ids and of texts (int64).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgen.config import InputError
from mgen.io.files import kept, reading

if TYPE_CHECKING:
    from mgen.data.checking.reads import Reads
    from mgen.data.table import Rows

WORTH_ROWS = 20_000  # fewer rows are tokenised each time


class TokenStore:
    """Look-up of token ids by text. Picklable: a worker maps the file by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        num_ids, num_texts = np.fromfile(path, np.int64, offset=path.stat().st_size - 16)
        self.ids = np.memmap(path, np.uint32, "r", 0, (int(num_ids),))
        shape = (4, int(num_texts))
        self.high, self.low, starts, sizes = np.memmap(
            path, np.uint64, "r", 4 * _even(num_ids), shape
        )
        self.starts, self.sizes = starts.view(np.int64), sizes.view(np.int64)

    def __reduce__(self) -> tuple:
        return TokenStore, (self.path,)

    def find(self, texts: Sequence[str]) -> list[list[int] | None]:
        """The ids of each text as `encode` gave them, or None where it is not in the table."""
        high, low = _hashes(texts)
        places = np.minimum(np.searchsorted(self.high, high), len(self.high) - 1)
        is_there = (self.high[places] == high) & (self.low[places] == low)
        spans = zip(places.tolist(), is_there.tolist(), strict=True)
        return [self._ids(place) if there else None for place, there in spans]

    def _ids(self, place: int) -> list[int]:
        start = int(self.starts[place])
        return self.ids[start : start + int(self.sizes[place])].tolist()


def token_store(rows: Rows, tokenizer: Reads) -> TokenStore | None:
    """The store of a table's sequences, made once per content of table and tokenizer.

    None where rows are few, tokens are letters, or a row cannot be tokenised: whoever checks the
    rows names it.
    """
    by_letters = tokenizer.per_letter or tokenizer.has_context
    if len(rows) < WORTH_ROWS or by_letters or not tokenizer.fingerprint:
        return None
    facts = (rows.content, rows.table.x_col, tokenizer.fingerprint)
    name = hashlib.sha256(repr(facts).encode()).hexdigest()
    try:
        file = kept("tokens", name, lambda partial: _write(partial, rows, tokenizer))
    except InputError:
        return None
    with reading(file):
        return TokenStore(file)


def _write(target: Path, rows: Rows, tokenizer: Reads) -> None:
    highs, lows, sizes = [], [], []
    with target.open("wb") as file:
        for _, block in rows.chunks([rows.table.x_col]):
            texts = block.column(rows.table.x_col).to_pylist()
            found = tokenizer.encode(texts)
            high, low = _hashes(texts)
            highs.append(high)
            lows.append(low)
            sizes.append(np.fromiter(map(len, found), np.int64, len(found)))
            np.concatenate([np.asarray(ids, np.uint32) for ids in found]).tofile(file)
        high, low, size = map(np.concatenate, (highs, lows, sizes))
        starts = np.cumsum(size) - size
        order = np.unique(high, return_index=True)[1]  # of equal texts the first
        np.zeros(_even(size.sum()) - size.sum(), np.uint32).tofile(file)
        for column in (high, low, starts, size):
            column[order].tofile(file)
        np.array([size.sum(), len(order)], np.int64).tofile(file)


def _even(count: int) -> int:
    return int(count) + int(count) % 2  # so that what follows is aligned to 8 bytes


def _hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    both = np.frombuffer(joined, np.uint64).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()
