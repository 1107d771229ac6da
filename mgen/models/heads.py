"""Published prediction heads of the nucleotide encoders (and, with first-token pooling, of ESM).

The token classifier is one plain `nn.Linear(width, labels)`.
"""

import torch
from torch import Tensor, nn

from mgen.config import InputError


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden (B, L, D) over the tokens that mask (B, L) keeps, in float32."""
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


class SequenceClassifier(nn.Module):
    """One vector per sequence through dense, tanh and projection: logits (B, labels).

    Equals the reference's sequence classification head, with its width rule and, for
    `batch_norm`, its variant that normalises the vector first. `pooling` is "cls" (first token) or
    "mean" (over the attention mask).
    """

    def __init__(
        self,
        width: int,
        labels: int,
        *,
        pooling: str = "cls",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise InputError(f"pooling {pooling!r}: expected 'cls' or 'mean'")
        inner = width if width <= 128 else width // 2 if width < 2048 else width // 4
        self.pooling, self.batch_norm = pooling, batch_norm
        if batch_norm:
            self.batchnorm = nn.BatchNorm1d(width)
        self.dense = nn.Linear(width, inner)
        self.dropout = nn.Dropout(min(dropout, 0.1))
        self.out_proj = nn.Linear(inner, labels)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, mask)

    def classify(self, vector: Tensor) -> Tensor:
        """Logits of pooled vectors (B, D)."""
        if self.batch_norm:  # here dropout comes after the tanh
            return self.out_proj(self.dropout(torch.tanh(self.dense(self.batchnorm(vector)))))
        return self.out_proj(torch.tanh(self.dense(self.dropout(vector))))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.pool(hidden, mask))
