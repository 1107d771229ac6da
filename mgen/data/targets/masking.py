"""Which tokens of a batch are hidden from a language model, and what is put in their place.

B sequences, L tokens. A tokenizer tells its tokens, special ones (`style`) and `modality`. Random
numbers come from torch's global state, which the loader seeds for each batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgen.config import InputError

Masking = Literal["mask", "bert"]

BRACKETED = re.compile(r"[\[<].+[\]>]")  # [MASK], <eos>, [unused7]
PLAIN = {"protein": set("ACDEFGHIKLMNPQRSTVWY"), "dna": set("ACGT"), "rna": set("ACGTU")}
KEPT, SWAPPED = 0.1, 0.1  # shares of BERT's chosen tokens that stay, and that become other letters
COUNTED_ROWS = 10_000


def letters(tokenizer) -> dict[str, int]:
    """The tokens that sequences are made of, in the order of their ids: no special ones."""
    style = tokenizer.style
    roles = {style.pad, style.mask, style.start, style.end, style.separator}
    roles |= {style.unknown} if len(style.unknown) > 1 else set()
    lost = {a for a, b in tokenizer.convert.items() if a != b}  # letters that are read as others
    return {
        token: i
        for i, token in enumerate(tokenizer.tokens)
        if token and token not in roles | lost and not BRACKETED.fullmatch(token)
    }


def letter_mask(batch: dict[str, Tensor], tokenizer) -> Tensor:
    """(B, L): the tokens that are letters of the sequence, no special ones nor padding."""
    ids = batch["input_ids"]
    is_letter = torch.zeros(len(tokenizer.tokens), dtype=torch.bool, device=ids.device)
    is_letter[list(letters(tokenizer).values())] = True
    return is_letter[ids] & (batch["special_tokens_mask"] == 0)


def check_masking(tokenizer, rate: float = 1.0) -> None:
    """Raise InputError unless tokens can be masked, at a rate above 0 and at most 1."""
    if not 0 < rate <= 1:
        raise InputError(f"--masking-rate {rate}: expected a share above 0, at most 1")
    if not tokenizer.style.mask:
        raise InputError(
            "this backbone's vocabulary has no mask token: it is no masked language model. Choose "
            "one that is, such as aido_dna_300m or esm2_8m"
        )


def number_masked(length: int, rate: float) -> int:
    """Tokens to mask of `length`: max(1, floor(length * rate)), and none of none."""
    return min(length, max(1, int(length * rate)))


def masked(
    batch: dict[str, Tensor], tokenizer, rate: float = 0.15, masking: Masking = "mask"
) -> dict[str, Tensor]:
    """`batch` with masked `input_ids`; `targets` are the true ones, `selected` (B, L) is where.

    The first `number_masked` places of a random permutation of each row's letters are selected.
    "mask": all become the mask token. "bert": 80 % do, 10 % become a random letter, 10 % stay as
    they are (Devlin et al. 2019, arXiv:1810.04805). Special tokens and padding never are.
    """
    targets = batch["input_ids"]
    selected = torch.zeros_like(targets, dtype=torch.bool)
    for row, is_letter in enumerate(letter_mask(batch, tokenizer)):
        places = is_letter.nonzero()[:, 0]
        order = torch.randperm(len(places))
        selected[row, places[order[: number_masked(len(places), rate)]]] = True
    ids = targets.masked_fill(selected, tokenizer.mask_token_id)
    if masking == "bert":
        names, plain = letters(tokenizer), PLAIN.get(tokenizer.modality, set())
        pool = [i for name, i in names.items() if name in plain] or list(names.values())
        chance = torch.rand(targets.shape)
        other = torch.tensor(pool)[torch.randint(len(pool), targets.shape)]
        ids = torch.where(selected & (chance < KEPT + SWAPPED), other, ids)
        ids = torch.where(selected & (chance < KEPT), targets, ids)
    return {**batch, "input_ids": ids, "targets": targets, "selected": selected}


def masked_one_by_one(
    batch: dict[str, Tensor], tokenizer, tokens: int
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Copies of a batch's rows with one letter masked each: (M copies, their rows, what is masked).

    The second and third are (M,) places in the batch and in the row. At most `tokens` tokens are in
    M copies, padding included, but at least one copy; 0: all copies at once.
    """
    inside = (batch["special_tokens_mask"] == 0) & (batch["attention_mask"] == 1)
    row, place = inside.nonzero(as_tuple=True)
    size = max(1, tokens // inside.shape[1]) if tokens else max(1, len(row))
    for rows, places in zip(row.split(size), place.split(size), strict=True):
        part = {name: tensor[rows] for name, tensor in batch.items()}
        part["input_ids"][torch.arange(len(rows)), places] = tokenizer.mask_token_id
        yield part, rows, places


def letter_counts(rows, indices: np.ndarray, tokenizer) -> np.ndarray:
    """How often each token occurs among the letters of rows, (rows, V).

    Of more than COUNTED_ROWS rows as many are taken, evenly spaced.
    """
    indices = indices[:: max(1, -(-len(indices) // COUNTED_ROWS))]
    counts, size = np.zeros((len(indices), len(tokenizer.tokens)), dtype=np.int64), 256
    for start in range(0, len(indices), size):
        batch = tokenizer.tokenize(rows.table.inputs(rows.take(indices[start : start + size])))
        inside = letter_mask(batch, tokenizer)
        for i, (ids, real) in enumerate(zip(batch["input_ids"], inside, strict=True), start):
            counts[i] = np.bincount(ids[real].numpy(), minlength=counts.shape[1])
    return counts
