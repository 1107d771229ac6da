"""Metrics of masked diffusion: N corrupted copies of B rows."""

import torch
from torch import Tensor

from mgen.metrics import ALONE, Library, Metric


def diffusion_metrics() -> dict[str, Metric]:
    """Accuracy: mean over copies of the share of hidden tokens guessed right.

    Predictions are those shares (N,), labels (N,) 1 for copies with hidden tokens, else 0.
    """
    from torchmetrics import MeanMetric

    return {"accuracy": Library(MeanMetric(**ALONE), lambda shares, counts: (shares, counts))}


def means_per_row(values: Tensor, weights: Tensor, place: Tensor) -> Tensor:
    """Weighted means (B,) of `values` (N,) over the copies of each row; `place` (N,) is that row.

    nan for a row without any weight.
    """
    sums = torch.zeros(2, int(place.max()) + 1, device=values.device)
    sums.index_add_(1, place, torch.stack([values * weights, weights]).float())
    return sums[0] / sums[1]
