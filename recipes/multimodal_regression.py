"""Predict one or more numbers from two or three sequences, e.g. a promoter and its protein.

Each modality has a backbone and a column of its own; an empty cell means that the row lacks it.
In: a table of sequences and numbers. Out: metrics, predictions in the labels' units, a figure.

    python recipes/multimodal_regression.py                 # seconds, CPU, bundled data
    python recipes/multimodal_regression.py --backbone aido_dna_300m --backbone1 esm2_8m \\
        --data genes.tsv --data.x-col promoter --x-cols protein --fusion cross_attention
"""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.adapters.fusion import Fused, Fusion, fusion
from mgen.backbones import BACKBONES, Backbone
from mgen.data import Table, table
from mgen.data.inputs.modalities import (
    Modality,
    check_modalities,
    modalities,
    of_modality,
    spread,
    tokenize,
)
from mgen.data.targets.facts import check_minimum, number_facts, number_yardsticks, scaled, unscaled
from mgen.figures import regression_figures
from mgen.metrics import regression_metrics
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Multimodal regression."""

    backbone: Backbone = BACKBONES.choose("aido_dna_debug")  # the main one, of --data.x-col
    backbone1: Backbone = BACKBONES.choose("aido_protein_debug")
    backbone2: Backbone = BACKBONES.choose("none")
    fusion: Fusion = fusion("concat", project_size=64)
    adapter: Adapter = adapter("mean_pool_mlp")
    data: Table = table("paired_modalities_tiny")
    x_cols: tuple[str, ...] = ("protein",)  # columns of backbone1 and, if there is one, backbone2
    train: Train = Train(lr=2e-3, epochs=4)
    minimum: tuple[float, ...] = ()  # least value of the labels, or of each; predictions below rise
    special_tokens: bool = True  # fuse [CLS] and the like too, as published heads do

    def modalities(self, tokenizers: dict) -> list[Modality]:
        return modalities(tokenizers, (self.data.x_col, *self.x_cols))


class MultimodalRegression(Task):
    kind = "numbers"

    def check(self, rows, splits, labelled=True) -> list[str]:
        self.labelled = labelled
        each = self.cfg.modalities(self.tokenizers)
        self.lengths, notes = check_modalities(rows, each, splits)
        self.learn(rows, splits if labelled else ())
        return notes

    def learn(self, rows, splits) -> None:
        starts = [bool(tokenizer.style.start) for tokenizer in self.tokenizers.values()]
        self.cfg.fusion.check(self.cfg.adapter, starts)
        check_minimum(self.cfg.minimum, len(self.cfg.data.y_cols))
        self.facts = number_facts(rows, splits, "train", self.facts)

    def build(self) -> None:
        fused = self.cfg.fusion.build([backbone.width for backbone in self.backbones.values()])
        head = self.cfg.adapter.build(fused.width, len(self.cfg.data.y_cols))
        self.head = Fused(fused, head)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = tokenize(rows, self.cfg.modalities(self.tokenizers))
        labels = self.cfg.data.labels(rows)
        return batch if labels is None else {**batch, "labels": labels}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, K) in scaled units
        states = []
        for name, given in zip(self.backbones, batch["present"].T, strict=True):
            part = of_modality(batch, name)
            hidden, mask = self.backbones[name](part), self.pooled(part)  # of rows that have it
            states.append((spread(hidden, given), spread(mask, given)))
        return self.head(states)

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(outputs, scaled(batch["labels"], self.facts), reduction="none")

    def metrics(self) -> dict:
        return regression_metrics(len(self.cfg.data.y_cols))

    def values(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:  # in the labels' units
        return unscaled(outputs, self.facts, self.cfg.minimum)

    def columns(self, values: Tensor) -> dict[str, Tensor]:
        names = self.cfg.data.y_cols
        return {f"predicted_{name}": values[:, k] for k, name in enumerate(names)}

    def references(self, rows, indices) -> dict[str, tuple[Tensor, Tensor]]:
        return number_yardsticks(rows, indices, self.facts)

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        names = self.cfg.data.y_cols
        return regression_figures(folder, names, predictions.numpy(), labels.numpy())


if __name__ == "__main__":
    run(MultimodalRegression, Config)
