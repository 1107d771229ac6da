"""Metrics of variant effects, as ProteinGym's script of performance by assay computes them.

Source: Notin et al. 2023 (ProteinGym), proteingym/performance_DMS_benchmarks.py of
github.com/OATML-Markslab/ProteinGym. Scores and labels are (N,) numbers of which a higher one means
a fitter variant; a metric that is not defined for them is nan.
"""

import math

import numpy as np
import torch

from mgen.metrics import auprc, auroc, spearman

NAMES = ("spearman", "ndcg", "auroc", "auprc", "mcc", "top_recall")
TOP = 0.1  # share of the rows that count as the top ones


def variant_metrics(
    scores: np.ndarray, labels: np.ndarray, bins: np.ndarray | None = None
) -> dict[str, float]:
    """Spearman, NDCG, AUROC, AUPRC, MCC and top-10 % recall; of 0/1 labels all but NDCG and recall.

    `bins` are 0/1 labels for AUROC, AUPRC and MCC; without them labels above their median are 1.
    """
    x, y = (torch.from_numpy(np.ascontiguousarray(part, np.float64)) for part in (scores, labels))
    if len(x) < 2:
        return dict.fromkeys(NAMES, math.nan)
    is_binary = {*np.unique(labels)} <= {0.0, 1.0}
    if bins is None:
        bins = labels if is_binary else above_median(labels)
    z = torch.from_numpy(np.ascontiguousarray(bins, np.float64))
    values = {
        "spearman": spearman(x, y).item(),
        "ndcg": ndcg(scores, labels),
        "auroc": auroc(x, z).item(),
        "auprc": auprc(x, z).item(),
        "mcc": mcc_at_median(scores, bins),
        "top_recall": top_recall(scores, labels),
    }
    if is_binary:
        del values["ndcg"], values["top_recall"]
    return values


def above_median(labels: np.ndarray) -> np.ndarray:
    """1 where a label is above the median of all, ProteinGym's default cut-off, else 0."""
    return (labels > np.median(labels)).astype(np.float64)


def ndcg(scores: np.ndarray, labels: np.ndarray, top: float = TOP) -> float:
    """Discounted cumulative gain of the `top` share of rows by score over the best possible.

    Gains are labels scaled to 0..1; the row of rank r counts gain / log2(r + 1). Rows of equal
    score rank in the order given. nan where all labels are equal or no row is at the top.
    """
    low, high = labels.min(), labels.max()
    k = math.floor(len(labels) * top)
    if not high > low or k < 1:
        return math.nan
    gains = (labels - low) / (high - low)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gained, best = (
        float(gains[np.argsort(-order, kind="stable")[:k]] @ discounts)
        for order in (scores, labels)
    )
    return gained / best


def top_recall(scores: np.ndarray, labels: np.ndarray, top: float = TOP) -> float:
    """Share of the rows at or above the 90th percentile of the labels that are so by score.

    Percentiles are interpolated linearly. Some revisions of the script count only rows above the
    percentile, which differs where a row lies on it.
    """
    is_top, chosen = (
        values >= np.percentile(values, 100 * (1 - top)) for values in (labels, scores)
    )
    return float((is_top & chosen).sum() / is_top.sum())


def mcc_at_median(scores: np.ndarray, bins: np.ndarray) -> float:
    """Matthews correlation of 0/1 labels with scores at or above their median; 0 if constant."""
    chosen, truth = scores >= np.median(scores), bins > 0
    n, s, t = len(bins), chosen.sum(), truth.sum()
    product = float(s) * float(t) * float(n - s) * float(n - t)
    if not product:
        return 0.0
    return float((n * float((chosen & truth).sum()) - float(s) * float(t)) / math.sqrt(product))
