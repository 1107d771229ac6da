"""What checks and stores need to know of a tokenizer."""

from typing import Any, Protocol


class Reads(Protocol):
    """How letters are read, without weights.

    Attributes:
        alphabet: letters accepted.
        convert: letter to letter, applied before.
        vocabulary: tokens to ids.
        max_length: tokens of a row at most, special ones included; 0: no limit.
        num_special: special tokens of a row.
        truncate, unknown, as_written, modality: the policies of `mgen.backbones.tokenizer`.
        per_letter: each letter is one token; where it is not, `lengths` counts the tokens of rows
            as the backbone takes them.
        has_context: rows may have alignments; `overflow` counts the tokens of them that do not fit.
        fingerprint: changes with what decides the ids of a text; "": nothing may be kept.
        stored: ids found before, a `TokenStore`, or None.

    Of a model of cells (modality "cell") also `values`, `as_published`, `align`, `check_places` and
    `expressed_tokens` of `mgen.backbones.cell_tokenizer`, and `reads_neighbours`: cells may have
    neighbours.
    """

    alphabet: str
    convert: dict[str, str]
    vocabulary: dict[str, int]
    max_length: int
    num_special: int
    truncate: str
    unknown: str
    modality: str
    per_letter: bool
    has_context: bool
    as_written: bool
    fingerprint: str
    stored: Any

    def lengths(self, rows: list) -> list[int]: ...

    def overflow(self, rows: list) -> list[int]: ...

    def encode(self, rows: list) -> list[list[int]]: ...
