"""Character tokenizers of the sequence models: weightless, picklable, vectorised.

One letter is one token, always: letters outside the alphabet are an error or one unknown token
each, so positions never shift against labels. White space separates and is dropped. Special tokens
written in the text ("AC[MASK]GT") count as one token. With `as_written` the published tokenizers
are reproduced exactly instead: no case folding, no U to T, one unknown token per run of unknown
characters. Shapes: B sequences, L tokens of the longest one.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mgen.config import InputError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUCLEOTIDES = _words(
    "[PAD] [MASK] [CLS] [SEP] [UNK] A G C T U N [BOS] [EOS] [UNUSED1] [UNUSED2] [UNUSED3]"
)
AMINO_ACIDS = _words(
    "[PAD] L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - [MASK] [gMASK] [sMASK] [eod] "
    "[sop] [eop] [SEP] [HC] [LC] [HUMAN] <cdr1> </cdr1> <cdr2> </cdr2> <cdr3> </cdr3>"
)
ESM_AMINO_ACIDS = _words(
    "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
)

UNKNOWN, SPACE = -1, -2  # entries of the lookup table that are no token ids
SPECIAL = 128  # byte values from here stand for tokens of several characters


@dataclass(frozen=True)
class Style:
    """Which tokens of a vocabulary play which part; "" where there is none."""

    pad: str = "[PAD]"
    mask: str = "[MASK]"
    unknown: str = "[UNK]"
    start: str = "[CLS]"
    end: str = "[SEP]"
    separator: str = ""  # what "|" between two chains becomes


NUCLEOTIDE = Style()
PROTEIN = Style(unknown="-", start="", separator="[SEP]")
ESM = Style("<pad>", "<mask>", "<unk>", "<cls>", "<eos>")


class Tokenizer:
    """Sequences to padded token ids, for one vocabulary.

    Args:
        vocabulary: tokens in the order of their ids.
        style: the special tokens.
        modality: "dna", "rna" or "protein"; nucleotides are read in the alphabet with T.
        max_length: most tokens of a sequence, special tokens included; 0 is no limit.
        truncate: what to do with a longer one: "error", cut at its "right" or "left" end, or leave
            it whole for a backbone that reads it in windows: "window".
        unknown: what to do with a letter outside the alphabet: "error", or an unknown "token".
        as_written: tokenise exactly as the published tokenizers do.
    """

    per_letter = True  # a row has as many tokens as letters, and `num_special` besides
    stored = None  # a letter is looked up faster than a text
    has_context = False  # rows bring tokens along that are none of the sequence's own

    def __init__(
        self,
        vocabulary: Sequence[str],
        style: Style,
        *,
        modality: str,
        max_length: int = 0,
        truncate: str = "error",
        unknown: str = "error",
        as_written: bool = False,
    ) -> None:
        if truncate not in ("error", "right", "left", "window"):
            raise InputError(f"truncate {truncate!r}: expected error, right, left or window")
        if unknown not in ("error", "token"):
            raise InputError(f"unknown {unknown!r}: expected error or token")
        self.vocabulary = {token: i for i, token in enumerate(vocabulary)}
        self.tokens, self.style, self.modality = tuple(vocabulary), style, modality
        parts = (style.pad, style.mask, style.unknown, style.start, style.end, style.separator)
        if absent := sorted({part for part in parts if part} - set(self.vocabulary)):
            raise InputError(f"the vocabulary of {len(vocabulary)} tokens lacks {absent}")
        self.pad_token_id = self.vocabulary[style.pad]
        self.mask_token_id = self.vocabulary[style.mask]
        self.unk_token_id = self.vocabulary[style.unknown]
        self.num_special = bool(style.start) + bool(style.end)
        self.max_length, self.truncate, self.unknown = max_length, truncate, unknown
        if max_length and max_length <= self.num_special:
            raise InputError(
                f"max_length {max_length} leaves no room for a sequence: {self.num_special} "
                "of the tokens are special. Set --backbone.max-length higher."
            )
        self.as_written = as_written
        self.convert = {} if as_written else self._conversions()
        letters = "".join(t for t in vocabulary if len(t) == 1 and t not in self.convert)
        self.alphabet = letters + ("|" if style.separator else "")
        self._prepare_lookup()

    def _conversions(self) -> dict[str, str]:
        """Lower case is read as upper case and, of nucleotides, U as T."""
        convert = {chr(i): chr(i).upper() for i in range(ord("a"), ord("z") + 1)}
        if self.modality != "protein":
            convert |= {"U": "T", "u": "T"}  # AIDO.RNA was pretrained on U written as T
        return convert

    def _prepare_lookup(self) -> None:
        whole = sorted((t for t in self.tokens if len(t) > 1), key=len, reverse=True)
        assert len(whole) <= SPECIAL, len(whole)
        self.bytes_of = {token: chr(SPECIAL + i) for i, token in enumerate(whole)}
        self.openers = {token[0] for token in whole}
        self.special = re.compile("|".join(map(re.escape, whole)))
        every = sorted(self.tokens, key=len, reverse=True)
        self.published = re.compile(rf"({'|'.join(map(re.escape, every))})|\s+")
        table = np.full(256, UNKNOWN, dtype=np.int64)
        for i in range(SPECIAL):
            letter = self.convert.get(chr(i), chr(i))
            table[i] = SPACE if letter.isspace() else self.vocabulary.get(letter, UNKNOWN)
        if self.style.separator and "|" not in self.vocabulary:
            table[ord("|")] = self.vocabulary[self.style.separator]
        for token, byte in self.bytes_of.items():
            table[ord(byte)] = self.vocabulary[token]
        self.table = table

    def tokenize(
        self,
        sequences: Sequence[str],
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """input_ids, attention_mask, special_tokens_mask: int64 (B, L), padded on the right.

        special_tokens_mask is 1 at added special tokens and padding, 0 at those in the text.
        `max_length` replaces the limit in force for this call. Raises InputError for what is not
        text and, where the policy is "error", for unknown letters and long sequences.
        """
        if isinstance(sequences, str):
            raise InputError("tokenize takes a list of sequences; put the one sequence in a list")
        encode = self._encode_as_published if self.as_written else self._encode
        rows = encode(list(map(self._text, sequences)))
        start, end = self.style.start, self.style.end
        head = [self.vocabulary[start]] if start and add_special_tokens else []
        tail = [self.vocabulary[end]] if end and add_special_tokens else []
        limit = self.max_length if max_length is None else max_length
        if limit and self.truncate != "window":
            room = limit - len(head) - len(tail)
            rows = [shortened(row, room, limit, self.truncate) for row in rows]
        return framed(rows, head, tail, self.pad_token_id)

    def save(self, folder: Path) -> None:
        """Write vocab.txt and, for ESM, what transformers' AutoTokenizer needs besides."""
        (folder / "vocab.txt").write_text("\n".join(self.tokens) + "\n", encoding="utf-8")
        if self.style == ESM:
            names = {"unk": "unknown", "cls": "start", "eos": "end", "pad": "pad", "mask": "mask"}
            facts: dict[str, object] = {
                f"{theirs}_token": getattr(self.style, ours) for theirs, ours in names.items()
            }
            facts |= {"tokenizer_class": "EsmTokenizer", "model_max_length": self.max_length}
            (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")

    @property
    def fingerprint(self) -> str:
        """Changes with what decides the ids of a text."""
        facts = [self.tokens, self.modality, self.unknown, self.as_written, vars(self.style)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def decode(self, ids: Tensor | Sequence) -> str | list[str]:
        """Tokens joined by single spaces, special ones kept; (L,) gives text, (B, L) a list."""
        ids = torch.as_tensor(ids)
        if ids.dim() > 1:
            return [self.decode(row) for row in ids]
        text = " ".join(self.tokens[i] for i in ids.tolist())
        # The published tokenizers close up punctuation, of which their alphabets have the dot.
        return text.replace(" .", ".") if self.as_written else text

    def _text(self, sequence: object) -> str:
        if isinstance(sequence, dict):  # as models with alignments take them
            if any(sequence.get(key) is not None for key in ("msa", "structure")):
                raise InputError("this model reads sequences only; leave out 'msa' and 'structure'")
            sequence = sequence.get("sequence")
        if not isinstance(sequence, str):
            raise InputError(f"a sequence is text; found {sequence!r} ({type(sequence).__name__})")
        return sequence

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """All sequences in one table lookup over their joined bytes."""
        if not texts:
            return []
        plain = [self._one_byte_per_token(text) for text in texts]
        lengths = np.fromiter(map(len, plain), dtype=np.int64, count=len(plain))
        joined = np.frombuffer("".join(plain).encode("latin-1"), dtype=np.uint8)
        ids = self.table[joined]
        ends = np.cumsum(lengths)
        if (ids < 0).any():
            if self.unknown == "error" and (wrong := np.flatnonzero(ids == UNKNOWN)).size:
                text = texts[int(np.searchsorted(ends, wrong[0], side="right"))]
                rest = self.special.sub("", text)
                ascii_of = dict(zip(rest, rest.encode("ascii", "replace"), strict=True))
                self._refuse(text, {a for a, b in ascii_of.items() if self.table[b] == UNKNOWN})
            kept = ids != SPACE
            ends = np.concatenate(([0], np.cumsum(kept)))[ends]
            ids = ids[kept]
            ids[ids == UNKNOWN] = self.unk_token_id
        return np.split(ids, ends[:-1])

    def _one_byte_per_token(self, text: str) -> str:
        if not text.isascii():
            text = text.encode("ascii", "replace").decode("ascii")  # "?" is unknown as well
        if any(opener in text for opener in self.openers):
            text = self.special.sub(lambda match: self.bytes_of[match.group()], text)
        return text

    def _encode_as_published(self, texts: list[str]) -> list[np.ndarray]:
        """Longest match first, anywhere in the text; what lies between matches is unknown."""
        rows = []
        for text in texts:
            ids, done = [], 0
            for match in [*self.published.finditer(text), None]:
                run = text[done : match.start() if match else len(text)]
                if run == "|" and self.style.separator:
                    ids.append(self.vocabulary[self.style.separator])
                elif run and self.unknown == "error":
                    self._refuse(text, {run})
                elif run:
                    ids.append(self.unk_token_id)
                if match and match.group(1):
                    ids.append(self.vocabulary[match.group(1)])
                done = match.end() if match else done
            rows.append(np.array(ids, dtype=np.int64))
        return rows

    def _refuse(self, text: str, wrong: set[str]) -> None:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise InputError(
            f"sequence '{shown}': {', '.join(map(repr, sorted(wrong)))} not in the {self.modality} "
            f"alphabet {self.alphabet}. Correct the sequence or set --backbone.unknown token."
        )


def shortened(row: Sequence[int], room: int, limit: int, truncate: str) -> Sequence[int]:
    """A row of ids cut to `room`, as `truncate` says; `limit` counts special tokens too."""
    if len(row) <= room:
        return row
    if room < 1:
        raise InputError(f"max_length {limit} leaves no room beside the special tokens")
    if truncate == "error":
        raise InputError(
            f"a sequence has {len(row)} tokens; {room} fit into {limit} with the special ones. "
            "Set --backbone.truncate, or raise --backbone.max-length."
        )
    return row[:room] if truncate == "right" else row[-room:]


def framed(
    rows: Sequence[Sequence[int]], head: list[int], tail: list[int], pad: int
) -> dict[str, Tensor]:
    """What `tokenize` returns for rows of ids between the special tokens `head` and `tail`."""
    lengths = [len(head) + len(row) + len(tail) for row in rows]
    ids = np.full((len(rows), max(lengths, default=0)), pad, dtype=np.int64)
    special, mask = np.ones_like(ids), np.zeros_like(ids)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        last = length - len(tail)
        ids[i, : len(head)], ids[i, len(head) : last], ids[i, last:length] = head, row, tail
        special[i, len(head) : last] = 0
        mask[i, :length] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "special_tokens_mask": special}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
