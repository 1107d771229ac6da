"""How sure a leaderboard is: resampled test rows, intervals, paired comparisons, ranks.

N test rows, R resamples, M entries of rows (tokens of a sequence; else M is N), K columns. Rows are
drawn with replacement (Efron 1979), the same ones for all entries of a task, so that comparisons
are paired. An entry's value is the mean over its seeds, and so is its value in each resample:
intervals and p speak of these trained models on new rows of the same kind, not of new trainings;
the spread over seeds stands beside them.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgen.leaderboards.weighted import prepare
from mgen.metrics import Metric, results

BLOCK = 2**16  # weights at once: half a megabyte, which fits a core's cache
LEVEL = 0.95
SIGNIFICANT = 0.05  # a comparison's p after correction for all of its task


class Unweighted(ValueError):
    """A metric that cannot be resampled by weights, and no other way was given."""


Values = Mapping[str, Mapping[str, float | None]]  # task -> entry -> value; None: no such cell


def draws(rows: int, resamples: int, seed_text: str) -> Tensor:
    """How often each row is in each resample, (R, N) uint8; each resample has N rows.

    The same for the same text wherever it runs: whole numbers from the bits of PCG64 (O'Neill
    2014), seeded with the text's SHA-256. Raises ValueError without rows.
    """
    if rows < 1:
        raise ValueError(f"{rows} rows: nothing to draw from")
    seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest(), "big")
    bits, counts = np.random.PCG64(seed), np.empty((resamples, rows), np.uint8)
    for row in counts:
        high = bits.random_raw(rows) >> np.uint64(32)
        drawn = (high * np.uint64(rows)) >> np.uint64(32)  # 0 .. rows - 1
        row[:] = np.bincount(drawn.astype(np.int64), minlength=rows)  # above 255: never seen
    return torch.from_numpy(counts)


def resampled(
    metric: str,
    kind: str,
    predictions: Tensor,
    labels: Tensor,
    counts: Tensor,
    owners: Tensor | None = None,
    make_metric: Callable[[], Metric] | None = None,
) -> Tensor:
    """The metric in each resample, (R,) float64; with counts of 1 it is the metric's own value.

    kind and what predictions and labels are:
    - numbers: (N, K) or (N,) both; the mean over columns
    - classes: probabilities (N, C), or (N,) of class 1; class numbers (N,)
    - labels: probabilities (N, K); 0/1 labels (N, K)
    - variants: scores (N,); labels (N,), or (N, 2) with 0/1 labels besides, as `variant_metrics`

    `owners` (M,) is the row that each of M entries belongs to: whole rows are drawn. Of metrics
    without a weighted form `make_metric` gives a fresh object for every resample, which is fed with
    the repeated entries. Undefined values are nan. Raises ValueError if that is needed and missing,
    and for shapes and values that the metric does not take.
    """
    predictions, labels = predictions.detach().cpu(), labels.detach().cpu()
    entries = counts.shape[1] if owners is None else len(owners)
    if len(predictions) != entries:
        raise ValueError(f"{len(predictions)} predictions, but draws or owners of {entries}")
    value = prepare(metric, kind, predictions, labels)
    if value is None and make_metric is None:
        raise Unweighted(f"metric '{metric}' of {kind} has no weighted form: make_metric is needed")
    block = max(1, BLOCK // len(predictions))
    parts = []
    for part in counts.split(block):
        part = part if owners is None else part[:, owners]
        if value is not None:
            parts.append(value(part.double()))
        else:
            parts.append(_repeated(make_metric, predictions, labels, part))
    return torch.cat(parts)


def _repeated(
    make_metric: Callable[[], Metric], predictions: Tensor, labels: Tensor, counts: Tensor
) -> Tensor:
    values = []
    for repeats in counts:
        entries = torch.arange(len(repeats)).repeat_interleave(repeats.long())
        metric = make_metric()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # undefined values are counted by who reads them
            metric.update(predictions[entries], labels[entries])
            values.append(results({"value": metric})["value"])
    return torch.tensor(values, dtype=torch.float64)


# --------------------------------------------------------------------------- intervals and tests


class Interval(NamedTuple):
    low: float
    high: float
    undefined: int  # resamples without a value, left out


class Comparison(NamedTuple):
    difference: float
    low: float
    high: float
    p: float
    undefined: int  # resamples without a value for both, left out


def interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Percentile interval of the values (R,) of an entry (Efron & Tibshirani 1993, chapter 13)."""
    known = values[~values.isnan()]
    if not len(known):
        return Interval(math.nan, math.nan, len(values))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(known.double(), tails).tolist()
    return Interval(low, high, len(values) - len(known))


def compare(
    values_a: Tensor, values_b: Tensor, observed_a: float, observed_b: float, level: float = LEVEL
) -> Comparison:
    """Two entries on the same resamples: difference a - b, its interval and two-sided p.

    Both come from the normal distribution with the standard error of the resampled differences
    (Efron & Tibshirani 1993, section 13.3), so they never disagree, and p may be as small as a
    correction for many comparisons needs, which a share of R resamples may not. The normal
    distribution is an approximation for a few dozen rows and more; fewer make p too small. p is 1
    for entries that are alike in every resample, and nan where less than two resamples are known.
    """
    differences = (values_a - values_b).double()
    known = differences[~differences.isnan()]
    undefined, difference = len(differences) - len(known), observed_a - observed_b
    if len(known) < 2 or math.isnan(difference):
        return Comparison(difference, math.nan, math.nan, math.nan, undefined)
    error = known.std().item()
    reach = math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item() * error
    if error > 0:
        p = math.erfc(abs(difference) / error / math.sqrt(2))
    else:
        p = 0.0 if difference else 1.0
    return Comparison(difference, difference - reach, difference + reach, p, undefined)


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for their number, controlling the chance of any false claim (Holm 1979).

    nan is no comparison: it stays nan and does not count.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


# --------------------------------------------------------------------------- over tasks


class Rank(NamedTuple):
    mean: float
    tasks: int  # that have a value of the entry
    of: int  # all tasks

    @property
    def coverage(self) -> str:
        return f"{self.tasks} of {self.of}"


def mean_ranks(values: Values, higher_is_better: Mapping[str, bool]) -> dict[str, Rank]:
    """Mean rank of each entry over all tasks, 1 the best, ties sharing their mean rank.

    An entry that a task lacks has the last rank there, the number of entries: a missing cell never
    improves a rank. `coverage` says how many tasks an entry has.
    """
    entries, table = _signed(values, higher_is_better)
    ranks: dict[str, list[float]] = {entry: [] for entry in entries}
    for row in table:
        for entry, value in zip(entries, row, strict=True):
            better, equal = sum(v > value for v in row), sum(v == value for v in row)
            ranks[entry].append(better + (equal + 1) / 2 if value > -math.inf else len(entries))
    return {
        entry: Rank(
            sum(each) / len(each), sum(row[column] > -math.inf for row in table), len(table)
        )
        for column, (entry, each) in enumerate(ranks.items())
    }


def win_share(values: Values, higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """Share of the (task, other entry) pairs that each entry wins; a tie is half a win.

    An entry that a task lacks loses there to every other, and two that lack it both lose. nan if
    there is no other entry.
    """
    entries, table = _signed(values, higher_is_better)
    pairs = len(table) * (len(entries) - 1)
    if not pairs:
        return dict.fromkeys(entries, math.nan)
    shares = {}
    for column, entry in enumerate(entries):
        known = [(row, row[column]) for row in table if row[column] > -math.inf]
        wins = sum(sum(v < own for v in row) for row, own in known)
        ties = sum(sum(v == own for v in row) - 1 for row, own in known)
        shares[entry] = (wins + ties / 2) / pairs
    return shares


def _signed(
    values: Values, higher_is_better: Mapping[str, bool]
) -> tuple[list[str], list[list[float]]]:
    """All entries, and a row of their values per task, of which more is better; missing: -inf."""
    entries = list(dict.fromkeys(entry for cells in values.values() for entry in cells))
    table = []
    for task, cells in values.items():
        sign = 1 if higher_is_better[task] else -1
        row = [cells.get(entry) for entry in entries]
        missing = [value is None or math.isnan(value) for value in row]
        table.append([-math.inf if no else sign * v for no, v in zip(missing, row, strict=True)])
    return entries, table
