"""What linear models on one vector per row share: the vectors, the folds, the choice of a penalty.

Shapes: B rows of a batch, N training rows, L tokens, V vocabulary, A letters that words are made
of, P features, R <= P of them once rotated, K outputs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.adapters.pooling import POOLS, flatten
from mgen.backbones import BACKBONES
from mgen.config import InputError
from mgen.data.checking import check
from mgen.engine.estimate import memory
from mgen.report import size, warn

Pool = Literal["flatten", "padded", "mean", "max", "cls", "kmers"]

LETTERS = {"dna": "ACGT", "rna": "ACGT", "protein": "ACDEFGHIKLMNPQRSTVWY"}  # U is read as T
LONGEST, MOST_WORDS = 20, 2**15


def check_settings(task, rows, splits: Sequence[str]) -> list[str]:
    """Check --pool, --kmers, --penalties and --cv-folds, and say what rows must be like for them.

    Sets `num_rows` of the task, the rows to learn from. Returns what should be said aloud. Raises
    InputError.
    """
    cfg, pools = task.cfg, task.cfg.pool
    task.num_rows = len(rows.splits["train"]) if "train" in splits else 0
    if not pools or len({*pools}) < len(pools):
        raise InputError(f"--pool {' '.join(pools)}: expected one or more ways to pool, each once")
    if "cls" in pools and not task.tokenizer.style.start:
        raise InputError("--pool cls reads the start token, but this backbone has none")
    if not cfg.penalties or not all(0 < p < math.inf for p in cfg.penalties):
        raise InputError("--penalties: expected one or more numbers above 0")
    if "train" in splits and not 2 <= cfg.cv_folds <= task.num_rows:
        raise InputError(
            f"--cv-folds {cfg.cv_folds}: expected 2 to {task.num_rows}, the training rows"
        )
    task.per_position = bool({"flatten", "padded"} & {*pools})
    task.shorter = "flatten" not in pools
    return _check_words(task, rows) if "kmers" in pools else []


def _check_words(task, rows) -> list[str]:
    name, longest = task.cfg.backbone.name, task.cfg.kmers
    if BACKBONES.resolve(name) != "onehot":
        raise InputError(
            "--pool kmers counts words of letters, the tokens of dna_onehot and protein_onehot, "
            f"not those of {name}. Set --backbone, or --pool mean"
        )
    letters = LETTERS[task.tokenizer.modality]
    if not 1 <= longest <= LONGEST:
        raise InputError(f"--kmers {longest}: expected 1 to {LONGEST} letters of the longest word")
    if (words := num_words(len(letters), longest)) > MOST_WORDS:
        raise InputError(
            f"--kmers {longest}: there are {words:,} words of up to {longest} of {len(letters)} "
            f"letters, and {MOST_WORDS:,} features at most are counted. Lower --kmers"
        )
    if not (others := check.rows_with_others(rows, task.tokenizer, letters)):
        return []
    return [
        f"{others:,} of {len(rows):,} rows have letters other than {letters}: words with them do "
        "not count"
    ]


def num_words(letters: int, longest: int) -> int:
    """Words of 1 to `longest` letters."""
    return sum(letters**length for length in range(1, longest + 1))


def num_features(task) -> int:
    """P of `features`, from a task with its backbone.

    Raises InputError if `num_rows` rows of them would not fit into memory.
    """

    def of(pool: Pool) -> int:
        if pool == "kmers":
            return num_words(len(LETTERS[task.tokenizer.modality]), task.cfg.kmers)
        return task.backbone.width * (1 if pool in POOLS else task.length)

    count = sum(map(of, task.cfg.pool))
    # In single and double precision, two copies, and three matrices of the solvers.
    rows, least = task.num_rows, min(task.num_rows, count)
    needed = 4 * rows * count + 8 * (3 * rows * count + 3 * least**2)
    if needed > (free := memory(torch.device("cpu"))):
        raise InputError(
            f"{rows:,} training rows of {count:,} features need {size(needed)} of memory, and "
            f"{size(free)} are free. Take fewer features (--pool mean, a lower --kmers), or fewer "
            "rows"
        )
    return count


def pooling(pools: tuple[Pool, ...]) -> str:
    """What `Task.pooling` is to return."""
    return pools[0] if len(pools) == 1 and pools[0] in POOLS else ""


def features(task, batch: dict[str, Tensor]) -> Tensor:
    """What --pool makes of each row, side by side: (B, P)."""
    pools, mask = task.cfg.pool, task.pooled(batch)
    hidden = None if pools == ("kmers",) else task.backbone(batch)
    parts = []
    for pool in pools:
        if pool == "kmers":
            letters = letter_numbers(task.tokenizer).to(mask.device)
            parts.append(count_words(batch["input_ids"], letters, task.cfg.kmers))
        elif pool in POOLS:
            parts.append(POOLS[pool](hidden, mask))
        else:
            parts.append(flatten(hidden, mask, task.length, shorter=pool == "padded"))
    return torch.cat(parts, 1)


def letter_numbers(tokenizer) -> Tensor:
    """Of each token the number of its letter in words, (V,); -1 where words may not have it."""
    letters = LETTERS[tokenizer.modality]
    return torch.tensor([letters.find(t) if len(t) == 1 else -1 for t in tokenizer.tokens])


def count_words(ids: Tensor, letters: Tensor, longest: int) -> Tensor:
    """How often each word of 1 to `longest` letters occurs: (B, L) -> (B, A + ... + A^longest).

    Words of a length are in the order of their letters' numbers (V,); a word with a token of number
    -1 does not count. The counts of a length are scaled to a vector of length 1, whatever the
    length of the row: products of two are normalised spectrum kernels (Leslie et al. 2002).
    """
    numbers = letters[ids]
    base, counts = int(letters.max()) + 1, []
    codes, known = torch.zeros_like(numbers), torch.ones_like(numbers, dtype=torch.bool)
    for length in range(1, longest + 1):
        last = numbers[:, length - 1 :]  # letters of the words of this length that end there
        codes = codes[:, : last.shape[1]] * base + last
        known = known[:, : last.shape[1]] & (last >= 0)
        found = torch.zeros(len(ids), base**length, device=ids.device)
        found.scatter_add_(1, codes.where(known, 0), known.float())
        counts.append(F.normalize(found, dim=1))
    return torch.cat(counts, 1)


def training_matrix(task, batches: Iterator[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (N, P) and labels of the training rows, single precision, on the CPU."""
    x, y = torch.empty(0), []
    for batch in batches:
        found, at = features(task, batch), sum(map(len, y))
        if not y:  # one block of memory from the start
            x = torch.empty(task.num_rows, found.shape[1])
        x[at : at + len(found)] = found.cpu()
        y.append(batch["labels"].cpu())
    labels = torch.cat(y)
    return x[: len(labels)], labels


def compact(x: Tensor, standardise: bool = False) -> tuple[Tensor, Callable]:
    """Columns that vary, centred, float64 and, if they are more than rows, rotated: (N, R).

    `standardise` divides each by its standard deviation first.

    An L2 penalty sees no rotation, and gives a constant column weight 0. Also returns what turns
    weights (R, K) and biases (K,) for these into weights (K, P) and biases for `x`.
    """
    varies = x.amin(0) < x.amax(0)
    narrow = x[:, varies].double()
    center = narrow.mean(0)
    narrow -= center
    spread = narrow.std(0, correction=0) if standardise else torch.ones_like(center)
    narrow /= spread
    basis = None
    if len(narrow) < narrow.shape[1]:
        basis, upper = torch.linalg.qr(narrow.T)
        narrow = upper.T.contiguous()

    def restore(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        weight = (weight if basis is None else basis @ weight) / spread[:, None]
        whole = weight.new_zeros(len(varies), weight.shape[1])
        whole[varies] = weight
        return whole.T, bias - center @ weight

    return narrow, restore


def root(gram: Tensor, penalty: float) -> Tensor:
    """Lower triangular L (R, R) with LL' = gram + penalty. Raises InputError if none is found."""
    gram = gram.clone()
    gram.diagonal().add_(penalty)
    found, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise InputError(f"--penalties {penalty:g}: too small for these features; leave it out")
    return found


def shuffled(rows: int) -> Tensor:
    """A fixed permutation (N,)."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))


def best(errors: dict[float, float]) -> float:
    """The penalty of the least error; says so if errors still fall at the last one tried."""
    chosen, *others = sorted(errors, key=errors.get)
    for side, last in (("lower", min(errors)), ("higher", max(errors))):
        if others and chosen == last and errors[chosen] < 0.999 * errors[others[0]]:
            warn(f"penalty {chosen:g} is best, the last of --penalties; {side} ones may be better")
    return chosen
