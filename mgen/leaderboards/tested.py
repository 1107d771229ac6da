"""The test rows of a run, resampled. R resamples, M scored things."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mgen.leaderboards import statistics
from mgen.metrics import Metric
from mgen.predictions import read_scored

RESAMPLES = 1000


class Tested(NamedTuple):
    """A metric on test rows: its value, that in each resample (R,), and which rows there are."""

    value: float
    resampled: Tensor
    rows: Tensor


def tested(
    run: Path,
    metric: str,
    seed_text: str,
    resamples: int = RESAMPLES,
    by: str = "",
    make_metric: Callable[[], Metric] | None = None,
) -> Tested:
    """What the finished run in a folder got, its test rows drawn anew by `statistics.draws`.

    `by` takes the predictions of that name that stand beside the run's own. Raises ValueError for
    a metric that has no weighted form and no `make_metric`.
    """
    kind, predictions, labels, numbers, others = read_scored(scored_of(run))
    rows, owners = numbers.unique(return_inverse=True)
    counts = statistics.draws(len(rows), resamples, seed_text)
    values = statistics.resampled(
        metric,
        kind,
        others[by] if by else predictions,
        labels,
        torch.cat([torch.ones_like(counts[:1]), counts]),
        owners if len(rows) < len(numbers) else None,
        make_metric,
    )
    return Tested(values[0].item(), values[1:], rows)


def scored_of(run: Path) -> Path:
    """What the metrics of a run compared, on test rows or on all that it had."""
    found = sorted(run.glob("predictions/*.scored.safetensors"))
    return next((file for file in found if file.name.startswith("test.")), found[0])


def average(each: list[Tested]) -> tuple[float, float, float]:
    """The mean over runs on the same rows, and the ends of its interval; nan if there is none."""
    samples = torch.stack([one.resampled for one in each]).mean(0)
    low, high, _ = statistics.interval(samples)
    return math.fsum(one.value for one in each) / len(each), low, high
