"""How distributions differ between splits: of lengths, numbers, classes."""

import math
from typing import Any

import numpy as np
import torch

HELD_OUT = ("valid", "test")
BINS = 24
LEAST_P = 1e-300  # a p-value is that or more
Used = dict[str, np.ndarray]  # split -> its row numbers, rising; none is empty


def spread(values: np.ndarray, used: Used) -> dict[str, dict[str, Any]]:
    """Mean, deviation and range by split; the distance from training (Kolmogorov-Smirnov)."""
    lines: dict[str, dict[str, Any]] = {}
    for name, indices in used.items():
        own = values[indices]
        lines[name] = {
            "rows": len(own),
            "mean": float(own.mean()),
            "std": float(own.std()),
            "least": float(own.min()),
            "median": float(np.median(own)),
            "most": float(own.max()),
        }
        if name in HELD_OUT and "train" in used:
            lines[name] |= kolmogorov_smirnov(values[used["train"]], own)
    return lines


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The largest distance of two empirical distribution functions, and its asymptotic p-value.

    Series and correction for small samples of Stephens (1970); ties make the p-value too large.
    """
    first, second = np.sort(first), np.sort(second)
    points = np.concatenate([first, second])
    shares = [np.searchsorted(own, points, side="right") / len(own) for own in (first, second)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    x = (root + 0.12 + 0.11 / root) * distance
    terms = [(-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101)]
    p = 1.0 if x < 0.2 else min(max(2 * sum(terms), LEAST_P), 1.0)
    return {"Kolmogorov-Smirnov": distance, "p": p}


def histogram(axis: str, values: np.ndarray, used: Used) -> dict[str, Any]:
    """Shares of rows in bins; the outer ones hold the 0.5 % of values beyond either end.

    Bins of whole numbers start at whole numbers. Values that are all the same have one bin.
    """
    everywhere = np.concatenate([values[indices] for indices in used.values()] or [np.zeros(1)])
    least, most = float(everywhere.min()), float(everywhere.max())
    low, high = np.quantile(everywhere, (0.005, 0.995)).tolist()
    if low == high:
        low, high = least, most
    are_whole = bool((everywhere == np.floor(everywhere)).all())
    if are_whole:
        step = max(math.ceil((high - low + 1) / BINS), 1)
        count = math.ceil((math.ceil(high) - math.floor(low) + 1) / step)
        edges = math.floor(low) + step * np.arange(count + 1.0)
    else:
        edges = np.linspace(low, high, BINS + 1)
    shares = {
        name: (np.histogram(values[i].clip(edges[0], edges[-1]), edges)[0] / len(i)).tolist()
        for name, i in used.items()
    }
    beyond = []
    if least < edges[0]:
        beyond.append(f"The first bin also holds what is less, down to {least:,.6g}.")
    if most > edges[-1] - are_whole:
        beyond.append(f"The last bin also holds what is more, up to {most:,.6g}.")
    caption = " ".join(beyond)
    return {"axis": axis, "edges": edges.tolist(), "shares": shares, "caption": caption}


def class_distance(train: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Total variation of two counts of classes, and the p-value of Pearson's chi-square."""
    table = np.stack([train, held])[:, (train + held) > 0]
    shares = table / table.sum(1, keepdims=True)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    square, freedom = float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1
    apart = {"total variation": float(np.abs(shares[0] - shares[1]).sum() / 2)}
    if freedom:
        half = torch.tensor([freedom / 2, square / 2], dtype=torch.float64)
        apart |= {"chi-square": square, "p": max(torch.special.gammaincc(*half).item(), LEAST_P)}
    return apart
