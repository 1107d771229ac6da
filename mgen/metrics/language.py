"""Metrics of language models, from sums over the tokens of each row.

A row's sums are (negative log-likelihood, tokens guessed right, tokens); so a metric over millions
of tokens is handed three numbers per row, and is exact over tokens however rows were batched. N
rows, B sequences, L tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.metrics import Metric


def token_sums(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """(B, 3): the sums of each row over its tokens that `counted` (B, L) marks, in fp32.

    logits (B, L, V); targets (B, L). A token is guessed right if its logit is the largest of all.
    """
    logits, counted = logits.float(), counted.float()
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, L)
    right = logits.argmax(-1) == targets
    return torch.stack([(losses * counted).sum(1), (right * counted).sum(1), counted.sum(1)], 1)


def log_likelihoods(known: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (B,) of the log-probabilities of tokens that `counted` (B, L) marks, and numbers (B,).

    known (B, L, V): log-probabilities of all tokens.
    """
    each = known.gather(-1, targets[..., None])[..., 0]
    return torch.where(counted, each, 0).sum(1), counted.sum(1)


def guess_sums(counts: Tensor, shares: Tensor) -> Tensor:
    """The sums (N, 3) of a model that gives each token its share (V,), wherever it stands.

    counts (N, V): how often each row has each token. It guesses the most frequent one.
    """
    counts = counts.double()
    losses = -torch.xlogy(counts, shares.double()).sum(1)
    return torch.stack([losses, counts[:, shares.argmax()], counts.sum(1)], 1)


def language_metrics() -> dict[str, Metric]:
    """Accuracy and perplexity over all tokens, from `token_sums` (N, 3) as predictions and labels.

    Perplexity is exp of the mean negative log-likelihood per token.
    """
    return {"accuracy": TokenMean(1, better="higher"), "perplexity": TokenMean(0, better="lower")}


class TokenMean(Metric):
    """The mean per token of one of the sums; of the losses its exponential."""

    def __init__(self, column: int, better: str) -> None:
        super().__init__(_sums, higher_is_better=better == "higher")
        self.column = column
        self.clear()

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        self.sums += predictions.double().sum(0)

    def value(self) -> Tensor:
        mean = self.sums[self.column] / self.sums[2]  # nan if no token counts
        return mean.exp() if self.column == 0 else mean

    def clear(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)


def _sums(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if predictions.ndim != 2 or predictions.shape[1] != 3:
        raise ValueError(f"sums {tuple(predictions.shape)}: expected (N, 3)")
    return predictions, labels
