"""Scores of variants from a language model that was never trained on such scores.

A strategy turns a variant into terms: weighted log-probabilities of single letters in inputs, or
whole inputs to compare. An input is a sequence with some sites masked. Each distinct input goes
through the network once and what was read from it is kept, so that a thousand variants of one site
cost one pass. Sites count from 0. Shapes: B rows, U distinct sequences, L tokens of the longest,
M inputs, S masked sites of an input at most, T terms, V vocabulary, D width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgen.config import InputError
from mgen.data.inputs.substitutions import column_score, log_frequencies, matrix_score, read_aligned
from mgen.data.inputs.variants import Source, Variant, source_of, survey, window
from mgen.data.table import Rows

CACHE_BYTES = 256 << 20  # of outputs kept
NORMS = ("L1", "L2", "cosine")
ADDED = {"inputs", "keys", "terms", "weights", "is_scored", "skip", "row"}  # to a tokenised batch


class Term(NamedTuple):
    """`weight` times log p of `letter` at `site` of `sequence` of which `masked` sites are hidden.

    Site -1: the whole sequence.
    """

    sequence: str
    masked: tuple[int, ...]
    site: int
    letter: str
    weight: float


Terms = Iterator[Term]


def _ratio(sequence: str, masked: tuple[int, ...], site: int, old: str, new: str) -> Terms:
    yield Term(sequence, masked, site, new, 1.0)
    yield Term(sequence, masked, site, old, -1.0)


def _windows(variant: Variant, width: int) -> Iterator[tuple[int, int, int, str, str]]:
    """Of each site the window it is read in, its place there, the old and the new letter."""
    for site, old, new in variant.edits:
        start, stop = window(len(variant.reference), site, width)
        yield start, stop, site - start, old, new


def wt_marginals(variant: Variant, width: int) -> Terms:
    for start, stop, site, old, new in _windows(variant, width):
        yield from _ratio(variant.reference[start:stop], (), site, old, new)


def wt_fill(variant: Variant, width: int) -> Terms:
    for start, stop, site, old, new in _windows(variant, width):
        yield from _ratio(variant.reference[start:stop], (site,), site, old, new)


def mask_fill(variant: Variant, width: int) -> Terms:
    every = [edit.start for edit in variant.edits]
    for start, stop, site, old, new in _windows(variant, width):
        masked = tuple(other - start for other in every if start <= other < stop)
        yield from _ratio(variant.reference[start:stop], masked, site, old, new)


def mut_fill(variant: Variant, width: int) -> Terms:
    mutated = variant.mutated
    for start, stop, site, old, new in _windows(variant, width):
        yield from _ratio(mutated[start:stop], (site,), site, old, new)


def match_fill(variant: Variant, width: int) -> Terms:
    mutated = variant.mutated
    for start, stop, site, old, new in _windows(variant, width):
        yield Term(mutated[start:stop], (site,), site, new, 1.0)
        yield Term(variant.reference[start:stop], (site,), site, old, -1.0)


def pseudo_perplexity(variant: Variant, width: int, mean: bool) -> Terms:
    for sequence, sign in ((variant.mutated, 1.0), (variant.reference, -1.0)):
        weight = sign / len(sequence) if mean else sign
        for site, letter in enumerate(sequence):
            start, stop = window(len(sequence), site, width)
            yield Term(sequence[start:stop], (site - start,), site - start, letter, weight)


def whole(variant: Variant, width: int) -> Terms:
    part = variant.cropped(width)
    yield Term(part.mutated, (), -1, "", 1.0)
    yield Term(part.reference, (), -1, "", -1.0)


SITES: dict[str, Callable[[Variant, int], Terms]] = {
    "wt-marginals": wt_marginals,
    "wt-fill": wt_fill,
    "mask-fill": mask_fill,
    "mut-fill": mut_fill,
    "match-fill": match_fill,
}  # of substitutions alone
WHOLE = ("causal", "embedding-distance")  # one input per sequence
MASKS = ("wt-fill", "mask-fill", "mut-fill", "match-fill", "pseudo-perplexity")
WITHOUT_MODEL = ("blosum62", "site-independent", "given")
TAKE_INDELS = ("pseudo-perplexity", *WHOLE)


def terms_of(strategy: str, variant: Variant, width: int, mean: bool = True) -> list[Term]:
    """The terms of a variant; an input has at most `width` letters, 0: no limit."""
    if strategy in SITES:
        return list(SITES[strategy](variant, width))
    if strategy == "pseudo-perplexity":
        return list(pseudo_perplexity(variant, width, mean))
    return list(whole(variant, width))


def batched(
    rows: list[list[Term] | None], tokenizer, aligned: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The terms of each row as tensors; None: a row without a score.

    input_ids, attention_mask, special_tokens_mask (U, L), with the alignment `aligned` to every
    sequence what else a model that reads one takes; `inputs` (M, 1 + S): the sequence of an
    input and its masked tokens, -1 for none; `keys` (M, 2): a hash of it; `terms` (T, 4): row,
    input, place in what is read from the input, token; `weights` (T,); `is_scored` (B,). Raises
    InputError where letters are joined to tokens.
    """
    sequences: dict[str, int] = {}
    inputs: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}  # number, place of sequence
    letters: dict[str, int] = {}
    terms, weights, keys = [], [], []
    for row, found in enumerate(rows):
        for sequence, masked, site, letter, weight in found or ():
            at = sequences.setdefault(sequence, len(sequences))
            number, _ = inputs.setdefault((_hidden(sequence, masked), masked), (len(inputs), at))
            place = masked.index(site) if masked else site
            token = letters.setdefault(letter, len(letters))
            terms.append((row, number, place, token))
            weights.append(weight)
    if not sequences:  # rows that are the wild type, or without a score
        sequences[tokenizer.alphabet[0]] = 0
    texts = [{"sequence": s, "msa": aligned} for s in sequences] if aligned else list(sequences)
    batch = tokenizer.tokenize(texts)
    own = own_tokens(batch)
    heads = own.int().argmax(1).tolist()
    by_site = any(site >= 0 for _, _, site, _ in terms)
    if by_site and own.sum(1).tolist() != list(map(len, sequences)):
        raise InputError(
            "this backbone joins letters to tokens, so single sites cannot be scored. Use "
            f"--strategy {' or '.join(WHOLE)}"
        )
    most = max((len(masked) for _, masked in inputs), default=0)
    listed = torch.full((len(inputs), 1 + most), -1)
    for (sequence, masked), (number, at) in inputs.items():
        listed[number, 0] = at
        places = [heads[at] + site for site in masked]
        listed[number, 1 : 1 + len(places)] = torch.tensor(places, dtype=torch.long)
        digest = blake2b(f"{sequence} {masked}".encode(), digest_size=16).digest()
        keys.append([int.from_bytes(digest[i : i + 8], "little", signed=True) for i in (0, 8)])
    ids = [_token(tokenizer, letter) if letter else 0 for letter in letters]
    flat = torch.tensor(terms, dtype=torch.long).reshape(-1, 4)
    flat[:, 3] = torch.tensor(ids, dtype=torch.long)[flat[:, 3]]
    if by_site and not most:  # everything is read from inputs without masks
        flat[:, 2] += torch.tensor(heads)[listed[flat[:, 1], 0]]
    return batch | {
        "inputs": listed,
        "keys": torch.tensor(keys, dtype=torch.long).reshape(-1, 2),
        "terms": flat,
        "weights": torch.tensor(weights, dtype=torch.float64),
        "is_scored": torch.tensor([found is not None for found in rows]),
    }


def _hidden(sequence: str, masked: tuple[int, ...]) -> str:
    """A sequence without its masked letters: inputs that differ in these alone are the same."""
    for site in masked:
        sequence = f"{sequence[:site]}_{sequence[site + 1 :]}"
    return sequence


def own_tokens(batch: dict[str, Tensor]) -> Tensor:
    """Tokens (B, L) that are neither special nor padding."""
    return (batch["special_tokens_mask"] == 0) & (batch["attention_mask"] == 1)


def _token(tokenizer, letter: str) -> int:
    return int(tokenizer.tokenize([letter], add_special_tokens=False)["input_ids"][0, 0])


# --------------------------------------------------------------------------- rows to batches


@dataclass(frozen=True)
class Plan:
    """How rows become a batch: what a worker process needs, without weights.

    `reasons` are those for which rows get no score, "" first.
    """

    cfg: Any
    source: Source | None
    width: int = 0
    aligned: tuple[str, ...] = ()
    frequencies: np.ndarray | None = None
    reasons: tuple[str, ...] = ("",)

    def refusal(self, variant: Variant, tokenizer) -> str:
        """Why a variant gets no score, "" if it gets one.

        Raises InputError for an insertion or deletion where letters are compared site by site, for
        letters that the model does not know, and for edits too far apart to be read at once.
        """
        strategy = self.cfg.strategy
        if strategy not in TAKE_INDELS and variant.has_indel:
            if self.cfg.indels == "skip":
                return "insertion or deletion"
            raise InputError(
                "an insertion or deletion (a stop is one), but --strategy "
                f"{strategy} compares letters site by site. Use {', '.join(TAKE_INDELS)}, or "
                "--indels skip"
            )
        if self.aligned and variant.has_indel:
            raise InputError("an insertion or deletion, which has no column in the alignment --msa")
        if variant.has_indel and not (variant.reference and variant.mutated):
            when = "after" if variant.reference else "before"
            raise InputError(f"there is no sequence {when} this variant. Widen --window")
        if strategy in WHOLE:
            variant.cropped(self.width)
        if tokenizer.unknown == "error":
            known = {*tokenizer.alphabet, *tokenizer.convert}
            letters = {*variant.reference}.union(*(edit.alternative for edit in variant.edits))
            if wrong := sorted(letters - known):
                raise InputError(
                    f"{wrong[0]!r} is not a letter of this {tokenizer.modality} model "
                    f"({tokenizer.alphabet}). Set --backbone.unknown token to read it as unknown"
                )
        return ""

    def batch(self, rows: list[dict], tokenizer) -> dict[str, Tensor]:
        """What the network reads for rows and how scores are made of it: see `batched`.

        Strategies without a network give `scores` (B,) right away. `skip` (B,): number of the
        reason for having no score.
        """
        cfg, found, skip = self.cfg, [], []
        if self.source is None:
            scores = [np.mean([_number(row[column]) for column in cfg.score_cols]) for row in rows]
            return {"scores": torch.tensor(scores), "skip": torch.zeros(len(rows)).long()}
        for row in rows:
            variant = self.source.read(row)
            reason = variant if isinstance(variant, str) else self.refusal(variant, tokenizer)
            skip.append(self.reasons.index(reason))
            found.append(None if reason else variant)
        if cfg.strategy in WITHOUT_MODEL:
            scores = [self._score(variant) if variant else float("nan") for variant in found]
            batch = {"scores": torch.tensor(scores, dtype=torch.float64)}
        else:
            terms = [self._terms(variant) if variant else None for variant in found]
            batch = batched(terms, tokenizer, self.aligned)
        return batch | {"skip": torch.tensor(skip)}

    def _score(self, variant: Variant) -> float:
        if self.frequencies is None:
            return matrix_score(variant)
        return column_score(variant, self.frequencies)

    def _terms(self, variant: Variant) -> list[Term]:
        cfg, strands = self.cfg, [variant]
        if cfg.strands == "both":
            strands.append(variant.reverse_complement())
        each = [terms_of(cfg.strategy, v, self.width, cfg.reduce == "mean") for v in strands]
        return [term._replace(weight=term.weight / len(each)) for terms in each for term in terms]


def prepare(cfg: Any, rows: Rows, tokenizer) -> tuple[Plan, np.ndarray, list[str]]:
    """The plan of a recipe's settings, letters (n,) of each row, and what should be said aloud.

    Looks at every row. Raises InputError for settings that contradict each other, the tokenizer or
    the table, and for the first row that contradicts its reference.
    """
    strategy, free = cfg.strategy, cfg.strategy in WITHOUT_MODEL
    if strategy == "given":
        if not cfg.score_cols:
            raise InputError("--strategy given compares the columns of --score-cols; name them")
        return Plan(cfg, None), np.ones(len(rows), dtype=np.int32), []
    if cfg.strands == "both" and (free or tokenizer.modality != "dna"):
        what = strategy if free else f"a model of {tokenizer.modality}"
        raise InputError(f"--strands both is for models of DNA, not for {what}")
    if not free and strategy in MASKS and not tokenizer.style.mask:
        raise InputError(f"--strategy {strategy}: no mask token here. Use {' or '.join(WHOLE)}")
    if cfg.tokens < 1:
        raise InputError(f"--tokens {cfg.tokens}: expected 1 or more")
    if bool(cfg.msa) != (strategy == "site-independent") and not tokenizer.has_context:
        known = "is read by --strategy site-independent and by models of alignments alone"
        raise InputError(f"--msa {known}" if cfg.msa else f"--strategy {strategy} needs --msa")
    limited = tokenizer.truncate != "window" and tokenizer.max_length and not free
    width = tokenizer.max_length - tokenizer.num_special if limited else 0
    source = source_of(cfg, rows, tokenizer.modality != "protein")
    aligned = read_aligned(cfg.msa, source.wild_type) if cfg.msa else ()
    if aligned and 0 < width < len(source.wild_type):
        raise InputError(f"--msa: the wild type does not fit into {width:,} letters")
    frequencies = log_frequencies(aligned) if strategy == "site-independent" else None
    plan = Plan(cfg, source, width, aligned[1:], frequencies)
    found = survey(rows, source, lambda variant: plan.refusal(variant, tokenizer))
    return replace(plan, reasons=("", *found.skipped)), found.lengths, found.notes(width)


def layer_numbers(layers: Sequence[str], count: int) -> list[int]:
    """Places in the hidden states of a network with `count` layers: last, all, or numbers from 0.

    Raises InputError for others.
    """
    names = {"last": [count], "all": list(range(count + 1))}
    numbers = [str(i) for i in range(count + 1)]
    found: list[int] = []
    for layer in layers or ("",):
        if layer not in (*names, *numbers):
            raise InputError(f"--layers {layer}: expected last, all, or numbers from 0 to {count}")
        found += names.get(layer) or [int(layer)]
    return list(dict.fromkeys(found))


def score_names(strategy: str, layers: Sequence[int]) -> list[str]:
    """Columns of scores: "score", or each distance of each layer."""
    if strategy != "embedding-distance":
        return ["score"]
    return [f"{norm}_layer_{layer}" for layer in layers for norm in NORMS]


def check_direction(strategy: str, is_causal: bool) -> None:
    """Raise InputError for a model that reads in another way than the strategy means."""
    if is_causal and strategy not in WHOLE:
        raise InputError(
            f"--strategy {strategy}: this model reads left to right; use --strategy causal"
        )
    if strategy == "causal" and not is_causal:
        raise InputError(
            "--strategy causal: this model sees both sides of a letter; its likelihood of a "
            "sequence is --strategy pseudo-perplexity"
        )


def _number(cell: Any) -> float:
    return float("nan") if cell in (None, "") else float(cell)


# --------------------------------------------------------------------------- the network's part


class Outputs:
    """What was read from a network's inputs, each computed once; the oldest are forgotten.

    `read(batch, masked)` gives one tensor per row of a batch of masked inputs. `computed` counts.
    """

    def __init__(self, read: Callable[[dict[str, Tensor], Tensor], list[Tensor]]) -> None:
        self.read, self.kept, self.size, self.computed = read, OrderedDict(), 0, 0

    def of(self, batch: dict[str, Tensor], mask_token: int, tokens: int) -> list[Tensor]:
        """One tensor on the CPU per input of a batch made by `batched`.

        At most `tokens` tokens go through the network at once (one input at least).
        """
        keys = list(map(tuple, batch["keys"].tolist()))
        found = {key: self.kept[key] for key in keys if key in self.kept}
        for key in found:
            self.kept.move_to_end(key)
        missing = [number for number, key in enumerate(keys) if key not in found]
        lengths = batch["attention_mask"].sum(1)[batch["inputs"][:, 0]].tolist()
        missing.sort(key=lambda number: -lengths[number])
        while missing:
            size = max(1, tokens // max(lengths[missing[0]], 1))
            some, missing = missing[:size], missing[size:]
            for number, value in zip(some, self._run(batch, some, mask_token), strict=True):
                found[keys[number]] = value
                self._keep(keys[number], value)
        return [found[key] for key in keys]

    def _run(self, batch: dict[str, Tensor], numbers: list[int], mask_token: int) -> list[Tensor]:
        chosen = batch["inputs"][torch.tensor(numbers, device=batch["inputs"].device)]
        sequence, masked = chosen[:, 0], chosen[:, 1:]
        rows = {name: batch[name][sequence] for name in batch.keys() - ADDED}
        if "context_ids" not in rows:  # positions of those count from the end of the sequences
            width = int(rows["attention_mask"].sum(1).max())
            rows = {name: tensor[:, :width].clone() for name, tensor in rows.items()}
        if masked.shape[1]:  # else there may be no such token
            row, place = (masked >= 0).nonzero(as_tuple=True)
            rows["input_ids"][row, masked[row, place]] = mask_token
        self.computed += len(numbers)
        return [value.cpu() for value in self.read(rows, masked)]

    def _keep(self, key: tuple[int, ...], value: Tensor) -> None:
        self.kept[key] = value.clone()  # a view would keep its whole batch
        self.size += value.nbytes
        while self.size > CACHE_BYTES and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].nbytes


def log_probabilities(
    decode: Callable[[Tensor], Tensor], hidden: Tensor, masked: Tensor
) -> list[Tensor]:
    """Of each row the log-probabilities (S, V) at its masked tokens (m, S); of all L if none are.

    `decode` gives logits of hidden states (m, L, D), token by token.
    """
    if masked.shape[1]:
        hidden = hidden.take_along_dim(masked.clamp(min=0)[..., None], 1)
    return list(torch.log_softmax(decode(hidden).float(), -1))


def likelihoods(logits: Tensor, batch: dict[str, Tensor], mean: bool) -> list[Tensor]:
    """Of each row the log-likelihood (1,) of its own tokens, each given those before it.

    A first token with nothing before it is not counted; `mean` divides by those counted.
    """
    known = torch.log_softmax(logits[:, :-1].float(), -1)
    own = own_tokens(batch)
    taken = known.gather(-1, batch["input_ids"][:, 1:, None])[..., 0].double() * own[:, 1:]
    total, count = taken.sum(1, keepdim=True), own[:, 1:].sum(1, keepdim=True)
    return list(total / count.clamp(min=1) if mean else total)


def mean_states(states: list[Tensor], batch: dict[str, Tensor]) -> list[Tensor]:
    """Of each row the means (layers, D) of hidden states over its own tokens."""
    own = own_tokens(batch)[..., None]
    means = [(state * own).sum(1) / own.sum(1) for state in states]
    return list(torch.stack(means, 1))


def distances(mutated: Tensor, reference: Tensor) -> Tensor:
    """L1, L2 and cosine distance (..., 3) of vectors (..., D); cosine: 1 - similarity."""
    gap = mutated - reference
    cosine = 1 - torch.cosine_similarity(mutated, reference, dim=-1)
    return torch.stack([gap.abs().sum(-1), gap.norm(dim=-1), cosine], -1)


def total(batch: dict[str, Tensor], values: list[Tensor]) -> Tensor:
    """Sums (B,) of the terms of each row, float64; nan for a row without a score."""
    terms, weights = batch["terms"].cpu(), batch["weights"].cpu()
    scores = torch.zeros(len(batch["is_scored"]), dtype=torch.float64)
    if len(terms):
        row, number, place, token = terms.unbind(1)
        starts = torch.tensor([0, *(len(value) for value in values)]).cumsum(0)
        flat = torch.cat(values)
        picked = flat[starts[number] + place.clamp(min=0)]
        picked = picked[:, None] if picked.dim() == 1 else picked
        scores.index_add_(0, row, picked.gather(1, token[:, None])[:, 0].double() * weights)
    return scores.masked_fill(~batch["is_scored"].cpu(), torch.nan)


def total_distances(batch: dict[str, Tensor], values: list[Tensor], layers: int) -> Tensor:
    """Distances (B, layers, 3) of each row's mutated and reference input, mean over strands."""
    rows = len(batch["is_scored"])
    sums = torch.zeros(rows, layers, len(NORMS), dtype=torch.float64)
    counts = torch.zeros(rows, dtype=torch.float64)
    row, number, _, _ = batch["terms"].cpu().unbind(1)
    if len(row):
        pairs = torch.stack(values).double()[number].unflatten(0, (-1, 2))  # mutated, reference
        sums.index_add_(0, row[::2], distances(pairs[:, 0], pairs[:, 1]))
        counts.index_add_(0, row[::2], torch.ones(len(row) // 2, dtype=torch.float64))
    means = sums / counts.clamp(min=1)[:, None, None]
    missing = ~batch["is_scored"].cpu()[:, None, None]
    return means.masked_fill(missing, torch.nan)
