"""How long the intervals of a leaderboard take, against drawing and sorting rows one by one."""

import time
from statistics import median

import torch

from mgen.leaderboards.statistics import draws, resampled
from mgen.metrics import spearman

ROWS, RESAMPLES, LOOPED, REPEATS = 27_000, 1000, 20, 3


def resampling() -> dict:
    """Spearman of 27,000 rows in 1,000 resamples; the loop is timed on 20 and scaled."""
    torch.manual_seed(0)
    labels = torch.randn(ROWS, 1)
    predictions = labels + torch.randn(ROWS, 1)
    weighted, looped = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        counts = draws(ROWS, RESAMPLES, "resampling")
        values = resampled("spearman", "numbers", predictions, labels, counts)
        weighted.append(time.perf_counter() - start)
        start = time.perf_counter()
        for n in range(LOOPED):
            rows = torch.arange(ROWS).repeat_interleave(counts[n].long())
            x, y = (part[rows, 0].double() for part in (predictions, labels))
            assert abs(spearman(x, y) - values[n]) < 1e-9
        looped.append((time.perf_counter() - start) * RESAMPLES / LOOPED)
    ratios = [slow / fast for slow, fast in zip(looped, weighted, strict=True)]
    return {
        "rows": ROWS,
        "resamples": RESAMPLES,
        "seconds": round(median(weighted), 2),
        "looped_over_weighted": round(median(ratios), 1),
    }
