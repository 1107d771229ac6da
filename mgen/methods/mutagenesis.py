"""Every single substitution in tokenised sequences, and what a network makes of each.

Mutants are token ids, so one letter must be one token. They are listed but never all made at once:
a chunk of them is made, run and reduced before the next one. Places are 0-based token positions in
a padded row, special tokens included. Shapes: B sequences, L tokens of the longest one, V letters
that substitute each other, E edits.
"""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.checkpoint import whole
from mgen.config import InputError

LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
LINES = 2**16  # of a table of mutations that are written at once
EPS = 1e-4  # added to probabilities, so that odds stay finite


def letters_of(tokenizer, letters: str = "") -> str:
    """The letters to substitute, by default those of the tokenizer's modality.

    Raises InputError for letters the tokenizer does not tell apart, and for tokenizers that join
    letters or read more than the sequence.
    """
    if not tokenizer.per_letter:
        raise InputError(
            "this backbone has no token per letter, or reads alignments; mutations are made token "
            "by token. Choose a --backbone that reads single letters"
        )
    if tokenizer.as_written and tokenizer.unknown == "token":
        raise InputError(
            "--backbone.as-written joins unknown letters, which moves those after them"
        )
    if tokenizer.truncate == "left":
        raise InputError(
            "--backbone.truncate left: positions count from the first letter; cut right"
        )
    chosen = (letters or LETTERS.get(tokenizer.modality, "")).upper()
    known = {
        *tokenizer.alphabet,
        *(a for a, b in tokenizer.convert.items() if b in tokenizer.alphabet),
    }
    if wrong := [letter for letter in chosen if letter not in known or not letter.isalpha()]:
        raise InputError(f"--letters {chosen}: {wrong[0]!r} is no letter of {tokenizer.alphabet}")
    ids = letter_ids(tokenizer, chosen).tolist()
    if len(chosen) < 2 or len({*ids}) < len(ids):
        raise InputError(f"--letters {chosen!r}: expected two or more that are read differently")
    return chosen


def letter_ids(tokenizer, letters: str) -> Tensor:
    """Token ids (V,) of single letters."""
    batch = tokenizer.tokenize(list(letters))
    return batch["input_ids"][batch["special_tokens_mask"] == 0]


def check_model(backbone) -> None:
    """Raise InputError for a backbone without a masked-language-model head."""
    backbone.decoder_parameters()
    if backbone.is_causal:
        raise InputError(
            "this backbone predicts each letter from those before it alone; dependencies and "
            "masked effects need a masked language model"
        )


def places(batch: dict[str, Tensor], letters: Tensor) -> Tensor:
    """Where rows have one of the letters (V,), (B, L) bool: what is mutated and looked at."""
    is_letter = torch.isin(batch["input_ids"], letters)
    return is_letter & (batch["attention_mask"] == 1) & (batch["special_tokens_mask"] == 0)


@dataclass(frozen=True)
class Sites:
    """What is mutated in one row, (K,): token places, 1-based positions in its sequence, letters.

    Letters are numbers of those that substitute each other.
    """

    places: Tensor
    positions: Tensor
    letters: Tensor


def sites(batch: dict[str, Tensor], letters: Tensor) -> list[Sites]:
    """The sites of each row of a batch, on the CPU."""
    letters, found = letters.cpu(), []
    own = (batch["special_tokens_mask"] == 0).cpu()
    for ids, at, number in zip(
        batch["input_ids"].cpu(),
        places(batch, letters.to(batch["input_ids"].device)).cpu(),
        own.cumsum(1),
        strict=True,
    ):
        here = at.nonzero()[:, 0]
        which = (ids[here, None] == letters).int().argmax(1)
        found.append(Sites(here, number[here], which))
    return found


def work(lengths, num_letters: int, num_special: int):
    """Tokens that a network reads for rows of `lengths` tokens: all mutants and the wild type."""
    lengths = lengths.astype("int64")  # a genome's worth of mutants exceeds 32 bits
    return lengths * ((num_letters - 1) * (lengths - num_special).clip(min=0) + 1)


@dataclass(frozen=True)
class Edits:
    """Mutants of the rows of a batch: row, place and letter (E,), by row; place -1: unchanged."""

    row: Tensor
    place: Tensor
    letter: Tensor

    def __getitem__(self, chosen) -> "Edits":
        return Edits(self.row[chosen], self.place[chosen], self.letter[chosen])

    @property
    def is_mutant(self) -> Tensor:
        return self.place >= 0


def single_mutants(batch: dict[str, Tensor], letters: Tensor) -> Edits:
    """Of each row the row as it is, then by place each substitution by another of `letters`."""
    ids = batch["input_ids"]
    differs = places(batch, letters)[:, :, None] & (ids[:, :, None] != letters)
    listed = torch.cat([differs.new_ones(len(ids), 1), differs.flatten(1)], 1).nonzero()
    row, entry = listed.unbind(1)
    place = torch.div(entry - 1, len(letters), rounding_mode="floor")
    return Edits(row, place, torch.where(entry > 0, (entry - 1) % len(letters), -1))


def chunks(
    batch: dict[str, Tensor], edits: Edits, letters: Tensor, size: int, tokens: int
) -> Iterator[tuple[dict[str, Tensor], Edits]]:
    """Edited rows as batches of at most `size` mutants and `tokens` letters, and their edits.

    An unchanged row comes along with the first of its mutants and is not counted, so that n mutants
    are ceil(n / size) batches. `tokens` 0 is no limit.
    """
    longest = int((batch["special_tokens_mask"] == 0).sum(1).max())
    size = max(1, min(size, tokens // max(longest, 1))) if tokens else size
    number = edits.is_mutant.cumsum(0) - edits.is_mutant.long()  # mutants before this one
    for part in torch.split(torch.arange(len(number)), torch.bincount(number // size).tolist()):
        some = edits[part.to(number.device)]
        rows = {name: batch[name][some.row] for name in batch_keys(batch)}
        mutant = some.is_mutant.nonzero()[:, 0]
        rows["input_ids"][mutant, some.place[mutant]] = letters[some.letter[mutant]]
        width = int(rows["attention_mask"].sum(1).max())  # padding is on the right
        yield {name: tensor[:, :width] for name, tensor in rows.items()}, some


def batch_keys(batch: dict[str, Tensor]) -> list[str]:
    return [
        name for name in ("input_ids", "attention_mask", "special_tokens_mask") if name in batch
    ]


# --------------------------------------------------------------------------- dependency maps


def probabilities(logits: Tensor, eps: float = EPS) -> Tensor:
    """Softmax over the last axis, `eps` added to each and normalised again; float64 on the CPU."""
    smoothed = torch.softmax(logits.float().cpu().double(), -1) + eps
    return smoothed / smoothed.sum(-1, keepdim=True)


def log_odds(p: Tensor) -> Tensor:
    """log2 of p / (1 - p)."""
    return torch.log2(p) - torch.log2(1 - p)


@dataclass(frozen=True)
class Dependencies:
    """Of one sequence with K letters: what each position's prediction owes to each other letter.

    `matrix` (K, K): entry i, j is the largest change that any substitution at i makes in the log2
    odds of any letter at j, 0 at i = j; `probability` (K, V) in the unchanged sequence.
    """

    sites: Sites
    matrix: Tensor
    probability: Tensor


def dependencies(
    logits: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    letters: Tensor,
    size: int,
    tokens: int = 0,
    eps: float = EPS,
    edits: Edits | None = None,
) -> list[Dependencies]:
    """Nucleotide dependencies of each row of a batch (da Silva et al. 2024, 2024.07.27.605418).

    `logits` gives (b, l, V) of `letters` for rows of token ids, which are not masked: a model's
    own letter is among what it sees. Positions with other letters (N, X) are left out. `edits` are
    all of `single_mutants` unless given.
    """
    count, length = batch["input_ids"].shape
    wild = torch.zeros(count, length, len(letters), dtype=torch.float64)
    change = torch.zeros(count * length, length, dtype=torch.float64)
    edits = single_mutants(batch, letters) if edits is None else edits
    for part, made in chunks(batch, edits, letters, size, tokens):
        p, width = probabilities(logits(part), eps), part["input_ids"].shape[1]
        row, place, mutant = made.row.cpu(), made.place.cpu(), made.is_mutant.cpu()
        wild[row[~mutant], :width] = p[~mutant]
        row, place = row[mutant], place[mutant]
        moved = (log_odds(p[mutant]) - log_odds(wild[row, :width])).abs().amax(-1)
        target = (row * length + place)[:, None].expand_as(moved)
        change[:, :width].scatter_reduce_(0, target, moved, "amax")
    found = []
    for row, here in enumerate(sites(batch, letters)):
        matrix = change.view(count, length, length)[row][here.places][:, here.places]
        found.append(Dependencies(here, matrix.fill_diagonal_(0), wild[row, here.places]))
    return found


def information(p: Tensor, background: float = 0.0) -> Tensor:
    """Heights of letters in a logo in bits, p (K, V) times the information of its position.

    The information is sum(p log2 p - q log2 q) with q = 1 / V, at most log2 V (Schneider & Stephens
    1990), or with q = `background` where that is given.
    """
    q = torch.tensor(background or 1 / p.shape[-1], dtype=p.dtype)
    bits = (torch.xlogy(p, p) - torch.xlogy(q, q)).sum(-1, keepdim=True) / math.log(2)
    return p * bits


# --------------------------------------------------------------------------- saturation mutagenesis


def effects(
    values: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    letters: Tensor,
    size: int,
    tokens: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """What each substitution adds to a prediction: of each row (K, V, O), and predictions (B, O).

    `values` gives (b, O) for rows of token ids. The effect of a site's own letter is 0.
    """
    predicted = None
    for part, made in chunks(batch, single_mutants(batch, letters), letters, size, tokens):
        given = values(part).float().cpu()
        row, place, letter = made.row.cpu(), made.place.cpu(), made.letter.cpu()
        mutant = made.is_mutant.cpu()
        if predicted is None:
            shape = batch["input_ids"].shape
            predicted = given.new_zeros(shape[0], given.shape[1])
            change = given.new_zeros(*shape, len(letters), given.shape[1])
        predicted[row[~mutant]] = given[~mutant]
        row, place, letter = row[mutant], place[mutant], letter[mutant]
        change[row, place, letter] = given[mutant] - predicted[row]
    return [change[i, here.places] for i, here in enumerate(sites(batch, letters))], predicted


def marginals(
    logits: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    letters: Tensor,
    size: int,
    tokens: int = 0,
    mask: int | None = None,
) -> list[Tensor]:
    """log p(mutant) - log p(own letter) of each site of each row, (K, V), natural logarithms.

    `logits` gives (b, l, V) of `letters`. With `mask`, its token id, each site is masked in a row
    of its own (Meier et al. 2021, masked marginals); else all are read off the unchanged rows.
    """
    here = sites(batch, letters)
    if mask is None:
        whole = logits(batch).float().cpu()
        found = [whole[row, site.places] for row, site in enumerate(here)]
    else:
        row, place = places(batch, letters).nonzero().unbind(1)
        edits = Edits(row, place, torch.zeros_like(row))
        one = [
            logits(part)[torch.arange(len(made.row)), made.place].float().cpu()
            for part, made in chunks(batch, edits, letters.new_tensor([mask]), size, tokens)
        ]
        counts = [len(site.places) for site in here]
        found = list(torch.cat([*one, torch.zeros(0, len(letters))]).split(counts))
    return [
        shown - shown.gather(1, site.letters[:, None])
        for shown, site in zip(found, here, strict=True)
    ]


def outputs_of(task, chosen: Sequence[str], log_odds: bool) -> dict[str, int]:
    """Names of what a run predicts of a sequence, and which column of its values each is.

    Of two classes only the second, which the first mirrors. Raises InputError for runs that do not
    predict of a sequence alone.
    """
    if not task.kind or len(task.tokenizers) > 1:
        raise InputError(
            "--model: expected a run that predicts numbers or classes of one sequence, such as one "
            "of sequence_regression or sequence_classification"
        )
    if log_odds and task.kind == "numbers":
        raise InputError("--log-odds is of probabilities, but --model predicts numbers; drop it")
    names = task.cfg.data.y_cols if task.kind == "numbers" else task.facts["classes"]
    known = {name: k for k, name in enumerate(names)}
    if wrong := [name for name in chosen if name not in known]:
        raise InputError(f"--outputs {wrong[0]}: --model has {', '.join(names)}")
    if not chosen and task.kind == "classes" and len(names) == 2:
        chosen = names[1:]
    return {name: known[name] for name in chosen or names}


def mutation_table(
    file: Path, found: Iterable[dict[str, Any]], letters: str, name: Callable[[int], str]
) -> Path:
    """Write one line per substitution: row, its name, position (1-based), letters, effects.

    `found` has of each row `row`, `letters` (K), `position` (K,) and columns `effect_...` (K, V).
    The file is Parquet or, by its name, TSV; memory is bounded for any number of rows.
    """
    import pyarrow.parquet as pq

    tables = _mutations(found, letters, name)
    first = next(tables)
    with whole(file) as partial:
        if file.suffix == ".tsv":
            with partial.open("w", newline="") as stream:
                writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
                writer.writerow(first.column_names)
                for table in itertools.chain([first], tables):
                    columns = (column.to_pylist() for column in table.columns)
                    writer.writerows(zip(*columns, strict=True))
        else:
            with pq.ParquetWriter(partial, first.schema) as writer:
                for table in itertools.chain([first], tables):
                    writer.write_table(table)
    return file


def _mutations(found, letters: str, name: Callable[[int], str]) -> Iterator:
    """Arrow tables of about LINES lines, at least one."""
    import pyarrow as pa

    parts: list[pa.Table] = []
    for row in found:
        number, wild = int(row["row"]), np.array([letters.index(a) for a in row["letters"]])
        site, letter = np.nonzero(wild[:, None] != np.arange(len(letters)))
        lines = {
            "row": pa.repeat(number, len(site)),
            "id": pa.repeat(name(number), len(site)),
            "position": np.array(row["position"], dtype=np.int64)[site],
            "wild_type": pa.array([letters[k] for k in wild[site]], pa.string()),
            "mutant": pa.array([letters[k] for k in letter], pa.string()),
        }
        for column in (c for c in row if c.startswith("effect_")):
            values = np.array(row[column], dtype=np.float64).reshape(-1, len(letters))
            lines[column] = values[site, letter]
        parts.append(pa.table(lines))
        if sum(map(len, parts)) > LINES:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)
