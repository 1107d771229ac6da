"""Generation of sequences by iterative unmasking, the settings for it, and the files it ends in.

Ghazvininejad et al. 2019 (arXiv:1904.09324) unmask the most confident positions first; so do masked
diffusion models (Sahoo et al. 2024, arXiv:2406.07524). B rows, L tokens, V vocabulary.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.adapters import ADAPTERS, ANY_WIDTH, Adapter
from mgen.checkpoint import whole
from mgen.config import InputError
from mgen.data.table import Rows, Table
from mgen.data.targets.corruption import mask_share
from mgen.data.targets.facts import Facts, number_facts, scaled
from mgen.data.targets.labels import place
from mgen.data.targets.masking import letters
from mgen.loop import Train
from mgen.predictions import read

Draw = Callable[[Tensor], Tensor]  # probabilities (B, L, V) -> tokens (B, L)

COLDEST = 1e-6  # temperature
ROWS = 1024  # of a table at once
HIDDEN = "."  # how templates show what was generated


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How `predict` generates; part of the settings of every recipe that does."""

    steps: int = 4  # rounds of unmasking; more than there are masks: one letter at a time
    temperature: float = 1.0  # of the probabilities letters are chosen by; below 1: bolder
    sample: bool = False  # draw letters by their probabilities; else take the most probable ones
    samples: int = 1  # sequences per row
    mask_fraction: float = 1.0  # share of letters generated anew in rows that have no mask token

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("samples", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: expected at least {least}")
        if not COLDEST <= self.temperature < float("inf"):
            raise InputError(
                f"--temperature {self.temperature}: expected at least {COLDEST:g}; the most "
                "probable letters are taken without --sample"
            )
        if not 0 < self.mask_fraction <= 1:
            raise InputError(
                f"--mask-fraction {self.mask_fraction}: expected a share above 0, at most 1"
            )
        if self.samples > 1 and not self.sample and self.mask_fraction == 1:
            raise InputError(f"--samples {self.samples}: they are all alike without --sample")


def unmask(
    logits_of: Callable[[Tensor], Tensor],
    ids: Tensor,
    masked: Tensor,
    steps: int,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
    draw: Draw | None = None,
) -> tuple[Tensor, Tensor]:
    """`ids` (B, L) with the tokens `masked` (B, L) filled in; log-likelihoods (B, L), 0 elsewhere.

    In each of at most `steps` rounds, floor(M / steps) + 1 positions of a row with M masks are
    filled, as published: those whose most probable token is most probable (ties: from the left),
    with that token or, with `draw`, with a drawn one. Tokens are among those whose ids are
    `allowed` (K,); None, as published: any, special ones too. A log-likelihood is that of the token
    among the allowed ones when it was filled in, at temperature 1.
    """
    ids, left = ids.clone(), masked.clone()
    count = masked.sum(1, keepdim=True) // steps + 1
    likelihoods = torch.zeros(ids.shape, device=ids.device)
    for _ in range(steps):
        if not left.any():
            break
        logits = logits_of(ids).float()
        if not torch.isfinite(logits[left]).all():
            raise InputError(
                "the network's output for a row is not a finite number. Is a condition far outside "
                "those it was trained with?"
            )
        if allowed is not None:
            is_barred = torch.ones(logits.shape[-1], dtype=torch.bool, device=ids.device)
            is_barred[allowed] = False
            logits = logits.masked_fill(is_barred, -torch.inf)
        probabilities = torch.softmax(logits / temperature, -1)
        tokens = draw(probabilities) if draw else logits.argmax(-1)
        confidence = probabilities.amax(-1).masked_fill(~left, -1)
        order = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        now = left & (order < count)
        chosen = torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        ids, likelihoods = torch.where(now, tokens, ids), torch.where(now, chosen, likelihoods)
        left &= ~now
    return ids, likelihoods


def generate(
    logits_of: Callable[[dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    tokenizer,
    allowed: Sequence[str],
    options: Generation,
    train: Train,
) -> dict[str, list]:
    """Columns of a prediction file, one entry per row of the batch: sequences generated from it.

    Masked tokens of a row are filled in; of a row without any, a share `options.mask_fraction` of
    the letters is masked first. Everything else stays. New letters are among `allowed`. What is
    random depends on `train.seed`, the number of the row and that of the sample alone. Of `train`
    also the sizes of batches, which samples fill up.
    """
    given, rows, width = batch["input_ids"], batch["row"].tolist(), batch["input_ids"].shape[1]
    lengths = batch["attention_mask"].sum(1).tolist()
    own = batch["special_tokens_mask"] == 0
    first = [row_generator(train.seed, row) for row in rows]
    start = _with_masks(given, own, tokenizer, options.mask_fraction, _noise(first, lengths, given))
    masked = start == tokenizer.mask_token_id
    ids = torch.tensor([tokenizer.vocabulary[letter] for letter in allowed], device=given.device)
    most = min(train.batch_size, train.batch_tokens // width or train.batch_size)
    todo = [(i, sample) for i in range(len(rows)) for sample in range(1, options.samples + 1)]
    sequences, sums = [], []
    for part in _cut(todo, max(most, len(rows))):
        places = [i for i, _ in part]
        copies = {name: tensor[places] for name, tensor in batch.items()}
        generators = [row_generator(train.seed, rows[i], sample) for i, sample in part]
        filled, likelihoods = unmask(
            lambda ids, copies=copies: logits_of({**copies, "input_ids": ids}),
            start[places],
            masked[places],
            options.steps,
            options.temperature,
            ids,
            _drawer(generators, [lengths[i] for i in places]) if options.sample else None,
        )
        kept = zip(filled.tolist(), own[places].tolist(), strict=True)
        sequences += [text(*row, tokenizer) for row in kept]
        sums += likelihoods.double().sum(1).tolist()
    counts = masked.sum(1).clamp(min=1).tolist()
    means = [value / counts[i] for value, (i, _) in zip(sums, todo, strict=True)]
    made = {"generated": sequences, "log_likelihood": sums, "mean_log_likelihood": means}
    if options.samples > 1:
        made = {name: _cut(values, options.samples) for name, values in made.items()}
    shown = torch.where(masked, -1, given).tolist()
    templates = [text(*row, tokenizer) for row in zip(shown, own.tolist(), strict=True)]
    return {"template": templates, **made}


def _cut(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _with_masks(ids: Tensor, own: Tensor, tokenizer, share: float, noise: Tensor) -> Tensor:
    """`ids` (B, L), in rows without a mask with that share of the letters masked."""
    is_letter = torch.zeros(len(tokenizer.tokens), dtype=torch.bool, device=ids.device)
    is_letter[list(letters(tokenizer).values())] = True
    is_whole = (ids != tokenizer.mask_token_id).all(1, keepdim=True)
    shares = torch.full((len(ids),), share, device=ids.device)
    return mask_share(ids, is_letter[ids] & own & is_whole, shares, noise, tokenizer.mask_token_id)


def text(ids: list[int], kept: list[bool], tokenizer) -> str:
    """The letters of the tokens that are `kept`; -1 is shown as HIDDEN. RNA is written with U."""
    tokens = [HIDDEN if i < 0 else tokenizer.tokens[i] for i, k in zip(ids, kept, strict=True) if k]
    joined = "".join(tokens)
    return joined.replace("T", "U") if tokenizer.modality == "rna" else joined


def row_generator(*key: int) -> torch.Generator:
    """A source of random numbers of its own for each key."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def _noise(generators: list[torch.Generator], lengths: list[int], like: Tensor) -> Tensor:
    noise = torch.ones(like.shape, dtype=torch.float64)
    for row, generator, length in zip(noise, generators, lengths, strict=True):
        row[:length] = torch.rand(length, generator=generator, dtype=torch.float64)
    return noise.to(like.device)


def _drawer(generators: list[torch.Generator], lengths: list[int]) -> Draw:
    """Draws for each row from its own generator, padding left out: neighbours change nothing."""

    def draw(probabilities: Tensor) -> Tensor:
        tokens = torch.zeros(probabilities.shape[:2], dtype=torch.long)
        rows = zip(tokens, probabilities.cpu(), generators, lengths, strict=True)
        for row, weights, generator, length in rows:
            row[:length] = torch.multinomial(weights[:length], 1, generator=generator)[:, 0]
        return tokens.to(probabilities.device)

    return draw


# --------------------------------------------------------------------------- checks and files


def check_generation(rows: Rows, tokenizer, splits: Sequence[str]) -> None:
    """Raise InputError unless rows of this tokenizer can be generated letter by letter.

    Without `splits` (prediction) also for a template that names special tokens other than the mask.
    """
    if not tokenizer.style.mask:
        raise InputError(
            "this backbone's vocabulary has no mask token, so nothing can be unmasked. Choose a "
            "masked language model such as aido_dna_300m or esm2_8m"
        )
    if not (tokenizer.per_letter or tokenizer.has_context):
        raise InputError(
            "generation fills in one letter per token, but this backbone has tokens of several "
            "letters. Choose one with a token per letter, such as aido_dna_300m or esm2_8m"
        )
    if splits:
        return
    column = rows.table.x_col
    known = torch.tensor([tokenizer.mask_token_id, *letters(tokenizer).values()])
    for numbers, block in rows.chunks([column]):
        texts = block.column(0).to_pylist()
        batch = tokenizer.tokenize(texts)
        other = ~torch.isin(batch["input_ids"], known) & (batch["special_tokens_mask"] == 0)
        # Letters that are no tokens are read as the unknown one, if that was asked for.
        other &= batch["input_ids"] != tokenizer.unk_token_id
        for i in other.any(1).nonzero()[:1, 0].tolist():
            token = tokenizer.tokens[batch["input_ids"][i][other[i]][0]]
            raise InputError(
                f"{place(rows, int(numbers[i]), column)}: {token} in a template; of special tokens "
                f"only {tokenizer.style.mask} may be there"
            )


def check_fills_masks(backbone) -> None:
    """Raise InputError for a network that reads from left to right: masks tell it nothing."""
    if backbone.is_causal:
        raise InputError(
            f"{type(backbone).__name__}: predicts the next token from those before it, so it "
            "cannot fill in masks; choose a masked language model"
        )


def letters_of(rows: Rows, tokenizer) -> list[str]:
    """The letters that occur in the training rows, in the order of their ids."""
    seen = np.zeros(len(tokenizer.tokens), dtype=bool)
    for _, block in rows.chunks([rows.table.x_col], rows.splits["train"]):
        batch = tokenizer.tokenize(block.column(0).to_pylist())
        seen[batch["input_ids"].unique().numpy()] = True
    return [letter for letter, i in letters(tokenizer).items() if seen[i]]


def condition_facts(rows: Rows, splits: Sequence[str], choice: Adapter, known: Facts) -> Facts:
    """Mean and standard deviation of the label columns in training, which scale conditions.

    Without `splits` (prediction) the numbers of all rows are those to generate for. Raises
    InputError for an adapter `choice` that reads no conditions, and with the first cell that is no
    number.
    """
    if "reads conditions" not in ADAPTERS.facts[choice.name]:
        raise InputError(
            f"--adapter {choice.name} reads no conditions. Set conditional_lm, or train without "
            "conditions"
        )
    with torch.device("meta"):
        choice.build(ANY_WIDTH, 1, 1, len(rows.table.y_cols) or 1)
    if splits:
        return number_facts(rows, splits, "train", known)
    columns = rows.table.y_cols
    for column in columns:
        rows.require(column, "y-cols")
    for numbers, block in rows.chunks(columns, np.unique(np.concatenate([*rows.splits.values()]))):
        for number, row in zip(numbers.tolist(), block.to_pylist(), strict=True):
            for column in columns:
                if not _is_number(row[column]):
                    raise InputError(
                        f"{place(rows, number, column)}: {row[column]!r} is not a finite number. "
                        "Sequences are generated for the number in this column: fill it in"
                    )
    return known


def conditions(data: Table, rows: list[dict], facts: Facts) -> Tensor:
    """The scaled numbers (B, C) that rows have in their label columns. Raises InputError if not."""
    numbers = data.labels(rows)
    if numbers is None:
        raise InputError(
            f"sequences are generated for the numbers of {', '.join(data.y_cols)}: every row needs "
            "them"
        )
    return scaled(numbers, facts)


def _is_number(cell: Any) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except (TypeError, ValueError):
        return False


def write_sequences(
    file: Path, rows: Rows, indices: np.ndarray, columns: Sequence[str] = ()
) -> list[Path]:
    """FASTA and table beside a prediction file, one record per generated sequence; their paths.

    Records are named by the row's identifier, or by `row_` and its 0-based number; of several
    samples `_1`, `_2`, ... follows. `columns` are those of the rows to write along: conditions.
    """
    paths = [file.with_suffix(".fasta"), file.with_suffix(".generated.tsv")]
    figures = ("log_likelihood", "mean_log_likelihood")
    with (
        whole(paths[0]) as partial_fasta,
        whole(paths[1]) as partial_table,
        partial_fasta.open("w") as fasta,
        partial_table.open("w", newline="") as lines,
    ):
        table = csv.writer(lines, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "sequence", *figures, *columns])
        generated = read(file)
        for numbers in np.array_split(indices, range(ROWS, len(indices), ROWS)):
            for number, row in zip(numbers.tolist(), rows.take(numbers), strict=True):
                name = "_".join(str(row.get(rows.id_col) or f"row_{number}").split())
                given = [row[column] for column in columns]
                made = next(generated)
                for end, sequence, *values in _samples(made, ("generated", *figures)):
                    values = [f"{float(value):.4f}" for value in values]
                    table.writerow([name + end, sequence, *values, *given])
                    notes = zip(("log_likelihood", *columns), (values[0], *given), strict=True)
                    notes = " ".join(f"{key}={value}" for key, value in notes)
                    fasta.write(f">{name}{end} {notes}\n{sequence}\n")
    return paths


def _samples(made: dict[str, Any], columns: Sequence[str]) -> Iterator[tuple]:
    values = [made[column] for column in columns]
    if isinstance(values[0], list):
        yield from ((f"_{i}", *v) for i, v in enumerate(zip(*values, strict=True), start=1))
    else:
        yield ("", *values)
