"""SCimilarity: perceptrons that map cells of one type near each other (Heimberg et al. 2024,
doi:10.1038/s41586-024-08411-y), and back. B cells, G genes, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from mgen.config import InputError


@dataclass(frozen=True, kw_only=True)
class SCimilarityConfig:
    """Sizes; dropout as published."""

    n_genes: int
    hidden_dim: tuple[int, ...]
    latent_dim: int
    input_dropout: float = 0.4
    dropout: float = 0.5

    @classmethod
    def from_json(cls, config: dict) -> Self:
        try:
            given = {name: config[name] for name in ("n_genes", "hidden_dim", "latent_dim")}
        except KeyError as error:
            raise InputError(f"config.json of SCimilarity: no {error}") from None
        given |= {name: config[name] for name in ("input_dropout", "dropout") if name in config}
        return cls(**given | {"hidden_dim": tuple(given["hidden_dim"])})

    @property
    def hidden_size(self) -> int:
        return self.latent_dim

    @property
    def num_hidden_layers(self) -> int:
        return len(self.hidden_dim) + 1

    max_position_embeddings = 1  # a cell is one token


class Stage(nn.Module):
    """Dropout, linear layer, and unless it is the last one normalisation and PReLU."""

    def __init__(self, inputs: int, outputs: int, dropout: float, is_last: bool) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(inputs, outputs)
        self.norm = None if is_last else nn.BatchNorm1d(outputs)
        self.activation = None if is_last else nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.dropout(x.to(self.linear.weight.dtype)))
        if self.norm is None:
            return x
        if self.norm.training and len(x) == 1:  # which has no variance of its own
            mean, variance = self.norm.running_mean, self.norm.running_var
            x = F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias)
        else:
            x = self.norm(x)
        return self.activation(x)


class Perceptron(nn.Module):
    """Stages in `network`; `dropout` has one value for each."""

    def __init__(self, sizes: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
        last = len(sizes) - 2
        self.network = nn.ModuleList(
            Stage(sizes[i], sizes[i + 1], dropout[i], i == last) for i in range(last + 1)
        )

    def forward(self, x: Tensor, collect: list | None = None) -> Tensor:
        """`collect` receives what enters each stage."""
        for stage in self.network:
            if collect is not None:
                collect.append(x)
            x = stage(x)
        return x


class Encoder(Perceptron):
    """ln(1 + 1e4 c / T) of a cell's counts (B, G) to one unit vector, as one token (B, 1, D)."""

    notice = ""  # there is no attention

    def forward(self, values: Tensor, mask: Tensor, collect: list | None = None) -> Tensor:
        found = F.normalize(super().forward(values, collect), dim=-1).unsqueeze(1)
        if collect is not None:
            collect[:] = [*(state.unsqueeze(1) for state in collect), found]
        return found


class SCimilarity(nn.Module):
    """The encoder and, where the checkpoint has one, the decoder."""

    def __init__(self, config: SCimilarityConfig, *, decoder: bool = True) -> None:
        super().__init__()
        sizes = (config.n_genes, *config.hidden_dim, config.latent_dim)
        inner = [config.dropout] * (len(sizes) - 3)
        self.encoder = Encoder(sizes, [config.input_dropout, *inner, 0.0])
        self.decoder = Perceptron(sizes[::-1], [0.0, *inner, 0.0]) if decoder else None

    def initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.BatchNorm1d):
                part.reset_parameters()
            elif isinstance(part, nn.PReLU):
                nn.init.constant_(part.weight, 0.25)
