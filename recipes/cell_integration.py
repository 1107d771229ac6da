"""Zero-shot integration: do embeddings of cells keep cell types together and mix batches?

In: cells with counts, a column of labels and one of batches. Out: embeddings, and the metrics of
scIB beside those of a PCA of normalised counts; a figure of the embeddings by label.

    python recipes/cell_integration.py                        # a minute, CPU, bundled data
    python recipes/cell_integration.py --backbone aido_cell_3m --data cells.h5ad \\
        --label-col cell_type --batch-col donor
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgen.adapters.pooling import POOLS
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.figures.embeddings import embedding_figure
from mgen.methods import integration
from mgen.predictions import read
from mgen.report import metric_table
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Zero-shot integration of batches of cells."""

    backbone: Backbone = backbone("aido_cell_debug")
    data: Table = table("cells_tiny")
    train: Train = Train()
    label_col: str = "cell_type"  # column of what embeddings should keep
    batch_col: str = "batch"  # column of what they should forget
    pool: Literal["mean", "max"] = "mean"  # over the genes of a cell
    special_tokens: bool = False  # count tokens of depth and the like as genes


class CellIntegration(Task):
    trains = False

    def setup(self) -> None:
        if torch.get_default_device().type != "meta":  # sizes alone
            integration.library()
        super().setup()

    def learn(self, rows, splits) -> list[str]:
        cfg = self.cfg
        held = np.sort(np.concatenate([*rows.splits.values()]))
        columns = {name: rows.values(name) for name in (cfg.label_col, cfg.batch_col)}
        self.used = np.array(
            [n for n in held.tolist() if all(c[n] not in (None, "") for c in columns.values())]
        )
        found = [[column[n] for n in self.used] for column in columns.values()]
        self.labels, self.batches = map(integration.codes, found)
        for name, values in zip(columns, (self.labels, self.batches), strict=True):
            if len({*values.tolist()}) < 2:
                raise InputError(f"{rows.names[0]}, column '{name}': expected two values or more")
        missing = len(held) - len(self.used)
        note = f"{missing:,} of {len(held):,} cells have no label or batch and do not count"
        return [note] if missing else []

    def pooling(self) -> str:
        return self.cfg.pool

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.tokenizer.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, L, D)
        return self.backbone(batch)

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        return {"embedding": POOLS[self.cfg.pool](outputs, self.pooled(batch))}

    def finish(self, file: Path, rows, indices) -> list[Path]:
        used = {*self.used.tolist()}
        found = [row["embedding"] for row in read(file) if int(row["row"]) in used]
        embedded, pca = np.array(found), integration.components(rows, self.used, self.tokenizer)
        name = Path(self.cfg.backbone.name).name
        told = (self.labels, self.batches, pca)
        scored = {
            shown: integration.scores(x, *told)
            for shown, x in ((name, embedded), (integration.BASELINE, pca))
        }
        metric_table(f"{len(self.used):,} cells", scored)
        figure = file.parent.parent / "figures" / file.stem / "embedding.png"
        labels = rows.values(self.cfg.label_col)
        labels = [labels[n] for n in self.used]
        drawn = embedding_figure(figure, embedded, labels, self.cfg.label_col, name)
        return [*integration.write(file, scored), drawn]


if __name__ == "__main__":
    run(CellIntegration, Config)
