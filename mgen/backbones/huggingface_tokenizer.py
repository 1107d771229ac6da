"""The tokenizer of any checkpoint that transformers reads, with the interface of `Tokenizer`.

Added special tokens, cutting, padding and masks are done here; transformers turns letters into ids.
Upper case and T for U (or U for T) as the vocabulary has them, white space dropped, each letter
outside the alphabet an error or one unknown token; with `as_written` the text is taken as it is.
Shapes: B sequences, L tokens of the longest one.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgen.backbones.tokenizer import Style, framed, shortened
from mgen.config import InputError

UNREAL = 10**9  # what stands for "no limit" in model_max_length is above
BRACKETED = re.compile(r"[\[<].+[\]>]")  # [unused7], <0x0A>: no letters of any sequence
BYTE_LEVEL = {"\u0100", "\u0101"}  # in vocabularies of bytes, which have an entry for all 256
RARE = "UZOB"  # residues that ProtTrans models read as X
AMINO_ACIDS = set("ACDEFGHIKLMNPQRSTVWY")
ADVICE = "Expected tokenizer.json, vocab.txt or the like beside config.json; copy them there."


class HuggingFaceTokenizer:
    """Sequences to padded token ids. Picklable: a worker reads the vocabulary files by itself.

    Args:
        source, revision: folder or hub id of the vocabulary files.
        modality: "dna", "rna" or "protein"; "" is told from the letters of the vocabulary.
        positions: rows of the model's table of learned positions; 0: it has none.
        context: tokens of the model's context where neither table nor tokenizer says; 0: no limit.
        max_length, truncate, unknown, as_written: as of `Tokenizer`.
        spaced: residues are separated by spaces, and U, Z, O, B read as X.
        remote_code: the checkpoint's own tokenizer class may run.
    """

    has_context = False  # as of `Tokenizer`
    stored: Any = None  # ids of known texts, `find(texts)` them: a `TokenStore`

    def __init__(
        self,
        source: str,
        revision: str = "main",
        *,
        modality: str = "",
        positions: int = 0,
        context: int = 0,
        max_length: int = 0,
        truncate: str = "error",
        unknown: str = "error",
        as_written: bool = False,
        spaced: bool = False,
        remote_code: bool = False,
    ) -> None:
        self.source, self.revision, self.remote_code = source, revision, remote_code
        self.truncate, self.unknown, self.as_written = truncate, unknown, as_written
        self.spaced = spaced
        self._published: Any = None
        published = self.published
        self.vocabulary: dict[str, int] = published.get_vocab()
        names = {number: token for token, number in self.vocabulary.items()}
        self.tokens = tuple(names.get(i, "") for i in range(max(names, default=-1) + 1))
        self._read_alphabet(modality)
        self._read_special_tokens()
        stated = published.model_max_length if published.model_max_length < UNREAL else 0
        limits = [limit for limit in (positions, stated) if limit]
        self.context = min(limits) if limits else context
        if positions and max_length > positions:
            raise InputError(
                f"--backbone.max-length {max_length}: {source} has {positions} positions"
            )
        self.max_length = max_length or self.context
        if self.max_length and self.max_length <= self.num_special:
            raise InputError(
                f"max_length {self.max_length} leaves no room for a sequence: {self.num_special} "
                "of the tokens are special. Set --backbone.max-length higher."
            )
        self.per_letter = self._is_per_letter()

    @property
    def published(self) -> Any:
        """transformers' tokenizer, read when it is first needed."""
        if self._published is None:
            self._published = read_tokenizer(self.source, self.revision, self.remote_code)
        return self._published

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_published": None}

    # ------------------------------------------------------------- what the vocabulary says

    def _read_alphabet(self, modality: str) -> None:
        special = set(self.published.all_special_tokens)
        plain = [t for t in self.vocabulary if t not in special and not BRACKETED.fullmatch(t)]
        words = [token.removeprefix("##").lstrip("\u2581\u0120") for token in plain]
        if self.vocabulary.keys() >= BYTE_LEVEL:
            # Every byte has an entry; only letters in longer entries were seen in training.
            words = [word for word in words if len(word) > 1] or words
        letters = {c for word in words for c in word if c.isascii() and c.isprintable()} - {" "}
        if not letters:
            raise InputError(f"{self.source}: no vocabulary of a tokenizer. {ADVICE}")
        self.is_by_letters = all(len(word) <= 1 for word in words)
        self.modality = modality or _modality(letters)
        self.convert = {} if self.as_written else self._conversions(letters)
        self.alphabet = "".join(sorted(letters - self.convert.keys()))
        self.letters = frozenset(self.alphabet)
        fold = {a: b for a, b in self.convert.items() if b in self.letters}
        self.fold = str.maketrans({**dict.fromkeys(" \t\n\r\f\v"), **fold})

    def _conversions(self, letters: set[str]) -> dict[str, str]:
        """Other case and, of nucleotides, U and T, where the vocabulary has only one of both."""
        convert = {}
        if self.spaced and "X" in letters:
            convert = {**dict.fromkeys(RARE, "X"), **dict.fromkeys(RARE.lower(), "X")}
        for letter in map(chr, range(ord("A"), ord("Z") + 1)):
            if letter in letters and letter.lower() not in letters:
                convert.setdefault(letter.lower(), letter)
            if letter.lower() in letters and letter not in letters:
                convert.setdefault(letter, letter.lower())
        if self.modality in ("dna", "rna"):
            for lost, kept in ("UT", "TU"):
                if kept in letters and lost not in letters:
                    convert |= {lost: kept, lost.lower(): kept}
        return convert

    def _read_special_tokens(self) -> None:
        tokenizer = self.published
        special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        # A special token written in the text is one token; single letters may be special, too.
        whole = "|".join(re.escape(token) for token in special if token not in self.letters)
        self.special = re.compile(f"({whole or '(?!)'})")
        bare = self._ids([self._framed_text(self.alphabet[:1])])[0]
        framed = list(tokenizer(self._framed_text(self.alphabet[:1]))["input_ids"])
        starts = [i for i in range(len(framed)) if framed[i : i + len(bare)] == bare]
        if not starts:
            raise InputError(f"{self.source}: its tokenizer changes sequences as it frames them")
        self.head, self.tail = framed[: starts[0]], framed[starts[0] + len(bare) :]
        self.num_special = len(self.head) + len(self.tail)
        self.unk_token_id, self.mask_token_id = tokenizer.unk_token_id, tokenizer.mask_token_id
        padding = (tokenizer.pad_token_id, tokenizer.eos_token_id, self.unk_token_id, 0)
        self.pad_token_id = next(number for number in padding if number is not None)
        self.style = Style(
            pad=self.tokens[self.pad_token_id],
            mask=tokenizer.mask_token or "",
            unknown=tokenizer.unk_token or "",
            start=self.tokens[self.head[0]] if self.head else "",
            end=self.tokens[self.tail[-1]] if self.tail else "",
        )

    def _framed_text(self, letters: str) -> str:
        return " ".join(letters) if self.spaced else letters

    def _is_per_letter(self) -> bool:
        """Whether a row surely has one token per letter: no entry is longer, and each has its own.

        Published tokenizers may join unknown letters, so not where those are read as written.
        """
        if not self.is_by_letters or (self.as_written and self.unknown == "token"):
            return False
        row = self._ids([self._framed_text(self.alphabet)])[0]
        return len(row) == len(self.alphabet) and self.unk_token_id not in row

    # ------------------------------------------------------------- what it does

    def tokenize(
        self,
        sequences: Sequence[str],
        add_special_tokens: bool = True,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """As of `Tokenizer`."""
        head, tail = (self.head, self.tail) if add_special_tokens else ([], [])
        rows = self.encode(sequences)
        limit = self.max_length if max_length is None else max_length
        if limit and self.truncate != "window":
            room = limit - len(head) - len(tail)
            rows = [shortened(row, room, limit, self.truncate) for row in rows]
        return framed(rows, head, tail, self.pad_token_id)

    def lengths(self, sequences: Sequence[str]) -> list[int]:
        """Tokens of each sequence with special ones, before any limit."""
        return [len(row) + self.num_special for row in self.encode(sequences)]

    @property
    def fingerprint(self) -> str:
        """Changes with what decides the ids of a text; "" where code of the checkpoint does."""
        if self.remote_code:
            return ""
        backend = self.published.backend_tokenizer.to_str() if self.published.is_fast else ""
        facts = [type(self.published).__name__, backend, sorted(self.vocabulary.items())]
        facts += [self.unknown, self.as_written, self.spaced, sorted(self.convert.items())]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def decode(self, ids: Tensor | Sequence) -> str | list[str]:
        """Tokens joined by single spaces, special ones kept; (L,) gives text, (B, L) a list."""
        ids = torch.as_tensor(ids)
        if ids.dim() > 1:
            return [self.decode(row) for row in ids]
        return " ".join(self.tokens[i] for i in ids.tolist())

    def save(self, folder: Path) -> None:
        """Write the published vocabulary files."""
        self.published.save_pretrained(folder)

    def encode(self, sequences: Sequence[str]) -> list[list[int]]:
        """Ids of each sequence without added special tokens, looked up where they are stored."""
        if isinstance(sequences, str):
            raise InputError("tokenize takes a list of sequences; put the one sequence in a list")
        if not self.stored or not all(isinstance(sequence, str) for sequence in sequences):
            return self._encode(sequences)
        rows = self.stored.find(sequences)
        absent = [i for i, row in enumerate(rows) if row is None]
        for i, row in zip(absent, self._encode([sequences[i] for i in absent]), strict=True):
            rows[i] = row
        return rows

    def _encode(self, sequences: Sequence[str]) -> list[list[int]]:
        texts = [self._read(sequence) for sequence in sequences]
        rows = self._ids(texts)
        if self.unknown == "error" and self.unk_token_id is not None:
            for text, row in zip(texts, rows, strict=True):
                if self.unk_token_id in row and self.style.unknown not in text:
                    self._refuse(text)
        return rows

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False}
        return self.published(texts, verbose=False, **options)["input_ids"]

    def _read(self, sequence: object) -> str:
        """What transformers gets to see of a sequence."""
        if not isinstance(sequence, str):
            raise InputError(f"a sequence is text; found {sequence!r} ({type(sequence).__name__})")
        if self.as_written:
            return sequence
        pieces: list[str] = []
        for i, piece in enumerate(self.special.split(sequence)):
            if i % 2:
                pieces.append(piece)  # a special token
                continue
            letters = piece.translate(self.fold)
            if wrong := set(letters) - self.letters:
                if self.unknown == "error" or not self.style.unknown:
                    self._refuse(sequence, wrong)
                pieces += [c if c in self.letters else self.style.unknown for c in letters]
            else:
                pieces += letters if self.spaced else [letters]
        return (" " if self.spaced else "").join(pieces)

    def _refuse(self, text: str, wrong: Sequence[str] = ()) -> None:
        shown = text if len(text) <= 40 else text[:37] + "..."
        if wrong:
            letters = ", ".join(map(repr, sorted(wrong)))
            reason = f"{letters} not in the {self.modality} alphabet {self.alphabet}"
        else:
            reason = "its vocabulary has no entry for some of it"
        advice = " or set --backbone.unknown token" if self.style.unknown else ""
        if not self.spaced and self.is_by_letters:
            advice += " (--backbone.spaced where residues must stand apart)"
        raise InputError(f"sequence '{shown}': {reason}. Correct the sequence{advice}.")


def read_tokenizer(source: str, revision: str, remote_code: bool) -> Any:
    """transformers' tokenizer of a folder or hub id. Raises InputError where it cannot be read."""
    # A worker process that starts after threads of the tokenizers library did could hang.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=remote_code
        )
    except ImportError as error:
        raise ImportError(f"{source}: its tokenizer needs more: {_first_line(error)}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{source}: its tokenizer is Python code of the checkpoint (tokenizer_config.json, "
                "auto_map), which runs only with --backbone.remote-code"
            ) from None
        raise InputError(
            f"{source}: its tokenizer cannot be read: {_first_line(error)}. {ADVICE}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(". ")


def _modality(letters: set[str]) -> str:
    upper = {letter.upper() for letter in letters}
    if not upper - set("ACGTUNRYSWKMBDHV.-*|"):
        return "rna" if "U" in upper and "T" not in upper else "dna"
    is_text = any(letter.islower() for letter in letters)
    return "protein" if upper >= AMINO_ACIDS and not is_text else "text"
