"""Metrics of maps of residue pairs. B rows, l residues of the longest, T = l top pairs, S values.

Only pairs i < j of a row's own residues whose distance j - i is above `min_separation` are looked
at. Every row gives its own values, and a metric is their mean over rows: memory does not grow with
the number of pairs.
"""

import warnings

import torch
from torch import Tensor

from mgen.metrics import Metric

SHARES = {"top_L_acc": 1, "top_L2_acc": 2, "top_L5_acc": 5, "top_L10_acc": 10}
NAMES = (*SHARES, "f1")


def eligible(lengths: Tensor, size: int, min_separation: int) -> Tensor:
    """Pairs that are looked at, bool (B, size, size), in rows of `lengths` (B,) residues."""
    places = torch.arange(size, device=lengths.device)
    apart = places[None, :] - places[:, None] > min_separation
    return apart & (places < lengths[:, None])[:, None, :]


def top_pairs(scores: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The best scores (B, T) among the pairs `kept` (B, l, l), and their places in a row's l * l.

    Highest first; -inf once there are no more.
    """
    ranked = scores.float().masked_fill(~kept, -torch.inf).flatten(1)
    return ranked.topk(scores.shape[1], dim=1)


def contact_statistics(
    scores: Tensor, labels: Tensor, lengths: Tensor, min_separation: int
) -> Tensor:
    """Precision of the top L, L/2, L/5 and L/10 pairs, and F1 of scores above 0: (B, S).

    scores (logits) and labels (1, 0, or negative where not known) are (B, l, l), lengths (B,).
    Precision is hits / floor(L / k), even where fewer pairs are left to choose from; nan where L is
    below k. F1 is nan where no pair is there and none is predicted.
    """
    kept = eligible(lengths, scores.shape[1], min_separation) & (labels >= 0)
    best, places = top_pairs(scores, kept)
    hits = labels.flatten(1).gather(1, places).float() * best.isfinite()  # (B, T)
    hits = torch.cat([hits.new_zeros(len(hits), 1), hits.cumsum(1)], dim=1)
    columns = []
    for k in SHARES.values():
        count = lengths // k  # (B,)
        columns.append(hits.gather(1, count[:, None])[:, 0] / count)  # 0 / 0 is nan
    is_true, is_predicted = kept & (labels == 1), kept & (scores > 0)
    both = (is_true & is_predicted).sum((1, 2))
    columns.append(2 * both / (is_true.sum((1, 2)) + is_predicted.sum((1, 2))))
    return torch.stack(columns, dim=1)


class RowMean(Metric):
    """The mean of one column of `contact_statistics` over the rows that have a value."""

    def __init__(self, column: int) -> None:
        super().__init__(lambda statistics, lengths: (statistics[:, column].double(), lengths))
        self.column = column
        self.clear()

    def add(self, values: Tensor, lengths: Tensor) -> None:
        self.seen.append(values)

    def value(self) -> Tensor:
        values = torch.cat(self.seen)
        if undefined := int(values.isnan().sum()):
            warnings.warn(
                f"{NAMES[self.column]} leaves out {undefined:,} of {len(values):,} rows, which are "
                "too short or have no pair",
                stacklevel=3,
            )
        return values.nanmean()

    def clear(self) -> None:
        self.seen: list[Tensor] = []


def contact_metrics() -> dict[str, RowMean]:
    """Means over rows, fed with `contact_statistics` (B, S) and the lengths of rows (B,)."""
    return {name: RowMean(column) for column, name in enumerate(NAMES)}
