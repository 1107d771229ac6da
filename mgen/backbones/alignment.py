"""Tokens of a protein together with its alignment and structure, for models with 2-D positions.

The layout of the network is query, alignment rows without their gaps, [SEP]; a position is (column
of the alignment, row of it, the query being row 0). The query is kept apart from the rest, the
context, so that whatever reads or masks tokens of a batch sees those of the query alone.
Shapes: B proteins, L residues of the longest query, M context tokens, S structure channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgen.backbones.tokenizer import Tokenizer, shortened
from mgen.config import InputError

GAP = ord("-")


@dataclass
class _Protein:
    query: np.ndarray  # token ids (L,)
    context: np.ndarray  # token ids of the alignment, gaps left out (m,)
    columns: np.ndarray  # of these tokens (m,)
    rows: np.ndarray  # likewise, from 1
    structure: np.ndarray | None  # (L, S)


class AlignmentTokenizer(Tokenizer):
    """Rows are sequences, or dictionaries of "sequence", "msa" and "structure".

    "msa" is None or a list of rows as long as the query with "-" for gaps, in order of preference:
    those that do not fit into `max_length` are cut off (`overflow` counts them). "structure" is
    None or floats (L, S). `structure` is S, 0 for a model that reads none. With `as_written`
    unknown letters stay one token each, as columns would shift otherwise.
    """

    per_letter = False
    has_context = True

    def __init__(self, vocabulary: Sequence[str], style, *, structure: int = 0, **options) -> None:
        super().__init__(vocabulary, style, **options)
        self.structure = structure
        if self.truncate == "window":
            raise InputError(
                "--backbone.truncate window: windows would tear residues from the columns of their "
                "alignment, which this model reads. Set it to error, right or left."
            )

    def tokenize(
        self,
        sequences: Sequence[str | dict],
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """input_ids, attention_mask, special_tokens_mask (B, L) of the queries; context_ids,
        context_mask (B, M), [SEP] last; position_ids (B, 2, L + M); structure (B, L, S).

        All int64 but the structure, float32, zeros where there is none. Raises InputError for what
        the rows cannot be: see `lengths`.
        """
        proteins = self._read(sequences)
        end = [self.vocabulary[self.style.end]] if add_special_tokens else []
        limit = self.max_length if max_length is None else max_length
        if limit:
            for protein in proteins:
                self._fit(protein, limit - len(end), limit)
        queries = [protein.query for protein in proteins]
        contexts = [np.append(protein.context, end).astype(np.int64) for protein in proteins]
        ids, mask = _padded(queries, self.pad_token_id)
        context_ids, context_mask = _padded(contexts, self.pad_token_id)
        count, length = ids.shape
        positions = np.zeros((count, 2, length + context_ids.shape[1]), dtype=np.int64)
        for place, protein in zip(positions, proteins, strict=True):
            place[0, : len(protein.query)] = np.arange(len(protein.query))
            context = slice(length, length + len(protein.context))
            place[:, context] = protein.columns, protein.rows  # [SEP] stays at (0, 0)
        batch = {
            "input_ids": ids,
            "attention_mask": mask,
            "special_tokens_mask": 1 - mask,
            "context_ids": context_ids,
            "context_mask": context_mask,
            "position_ids": positions,
        }
        if self.structure:
            batch["structure"] = np.zeros((count, length, self.structure), dtype=np.float32)
            for place, protein in zip(batch["structure"], proteins, strict=True):
                if protein.structure is not None:
                    place[: len(protein.query)] = protein.structure
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def lengths(self, sequences: Sequence[str | dict]) -> list[int]:
        """Tokens of each row, alignment and [SEP] included, before any limit.

        Raises InputError for a gap in a query, an alignment row of another length, a structure of
        another size, and where the policies say so for unknown letters.
        """
        return [len(p.query) + len(p.context) + self.num_special for p in self._read(sequences)]

    def overflow(self, sequences: Sequence[str | dict]) -> list[int]:
        """Alignment tokens of each row that `max_length` cuts off."""
        proteins = self._read(sequences)
        if not self.max_length:
            return [0] * len(proteins)
        rooms = [max(self.max_length - self.num_special - len(p.query), 0) for p in proteins]
        return [max(len(p.context) - room, 0) for p, room in zip(proteins, rooms, strict=True)]

    def _read(self, sequences: Sequence[str | dict]) -> list[_Protein]:
        if isinstance(sequences, str | dict):
            raise InputError("tokenize takes a list of sequences; put the one sequence in a list")
        return [self._protein(i, row) for i, row in enumerate(sequences)]

    def _protein(self, number: int, row: str | dict) -> _Protein:
        given = row if isinstance(row, dict) else {"sequence": row}
        if unknown := sorted(map(str, set(given) - {"sequence", "msa", "structure"})):
            raise InputError(f"a row has {unknown}; expected 'sequence', 'msa' and 'structure'")
        query = self._text(given.get("sequence"))
        where = f"row {number} (counted from 0), '{query[:20]}{'...' * (len(query) > 20)}'"
        if GAP in (letters := self._letters(query)):
            raise InputError(
                f"{where}: a gap '-' in the query. The columns of an alignment are the residues of "
                "the query; drop those columns."
            )
        texts = [self._text(text) for text in _some(given.get("msa"))]
        aligned = [self._letters(text) for text in texts]
        for i, letters_of_row in enumerate(aligned, start=1):
            if len(letters_of_row) != len(letters):
                raise InputError(
                    f"{where}: row {i} of its alignment has {len(letters_of_row)} columns, the "
                    f"query {len(letters)} residues"
                )
        try:
            ids, *others = self._encode([query, *texts])
        except InputError as error:  # names the text alone
            raise InputError(f"{where}: {error}") from None
        kept = [found != GAP for found in aligned]
        pairs = [(other, keep) for other, keep in zip(others, kept, strict=True) if keep.any()]
        numbered = [np.full(keep.sum(), i) for i, (_, keep) in enumerate(pairs, start=1)]
        return _Protein(
            query=ids,
            context=_joined([other[keep] for other, keep in pairs]),
            columns=_joined([np.flatnonzero(keep) for _, keep in pairs]),
            rows=_joined(numbered),
            structure=self._structure(where, given.get("structure"), len(letters)),
        )

    def _letters(self, text: str) -> np.ndarray:
        """One byte per token, white space left out."""
        plain = self._one_byte_per_token("".join(text.split()))
        return np.frombuffer(plain.encode("latin-1"), dtype=np.uint8)

    def _structure(self, where: str, structure: object, length: int) -> np.ndarray | None:
        if structure is None:
            return None
        if not self.structure:
            raise InputError(
                f"{where}: it has a structure, which this model does not read; leave it out"
            )
        expected = f"expected ({length}, {self.structure}): residues, channels"
        try:
            numbers = np.asarray(structure, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: structure: {error}; {expected}") from None
        if numbers.shape != (length, self.structure):
            raise InputError(f"{where}: its structure is {numbers.shape}; {expected}")
        if not np.isfinite(numbers).all():
            raise InputError(f"{where}: its structure has numbers that are not finite")
        return numbers

    def _fit(self, protein: _Protein, room: int, limit: int) -> None:
        """Cut the query as the policy says, and the alignment at what then is left."""
        whole = len(protein.query)
        protein.query = shortened(protein.query, room, limit, self.truncate)
        if protein.structure is not None and whole > room:
            left = self.truncate == "left"
            protein.structure = protein.structure[-room:] if left else protein.structure[:room]
        left_over = room - len(protein.query)
        protein.context = protein.context[:left_over]
        protein.columns, protein.rows = protein.columns[:left_over], protein.rows[:left_over]


def _some(rows: object) -> Sequence[str]:
    if rows is None:
        return []
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise InputError(f"an alignment is a list of rows; found {type(rows).__name__}")
    return rows


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.array([], dtype=np.int64), *arrays])


def _padded(rows: list[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B, L) padded on the right, and their mask."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    columns = np.arange(lengths.max(initial=0))
    mask = (columns < lengths[:, None]).astype(np.int64)
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask.astype(bool)] = _joined(rows)
    return ids, mask
