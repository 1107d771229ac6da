"""In-silico knockout: delete or raise single genes of cells, and see how far embeddings move.

In: cells with counts. Out: per gene the mean squared and cosine distance between the embeddings of
cells with and without the change, ranked, with standard errors and numbers of cells; per cell all
effects; a figure of the genes that matter most.

    python recipes/gene_knockout.py                        # seconds, CPU, bundled data
    python recipes/gene_knockout.py --backbone aido_cell_3m --data cells.h5ad \\
        --group cell_type --towards condition=healthy --max-cells 500
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
from mgen.figures.effects import ranked_figure
from mgen.io.counts import Counts
from mgen.methods.knockout import choose, effects, ranked, write
from mgen.predictions import read
from mgen.report import print_table, warn
from mgen.task import Task
from mgen.train import Train, run

SHOWN = 5  # genes of each group in the printed table


@dataclass(frozen=True, kw_only=True)
class Config:
    """In-silico knockout of genes."""

    backbone: Backbone = backbone("aido_cell_debug")
    data: Table = table("cells_tiny")
    train: Train = Train(batch_size=64, batch_tokens=2**17)
    genes: tuple[str, ...] = ()  # symbols or Ensembl ids; none: those that most cells express
    kind: Literal["delete", "overexpress"] = "delete"
    fold: float = 10.0  # how many times its count an overexpressed gene has
    min_cells: int = 10  # cells that express a gene, without --genes
    max_genes: int = 100  # most genes, without --genes; 0: all
    max_cells: int = 0  # cells drawn at random; 0: all
    group: str = ""  # column whose values, such as cell types, are ranked apart
    towards: str = ""  # COLUMN=VALUE: also how much nearer to the mean of such cells others come
    pool: Literal["mean", "max"] = "mean"  # over the genes of a cell
    special_tokens: bool = False  # count tokens of depth and the like as genes


class GeneKnockout(Task):
    trains = False

    def check(self, rows, splits, labelled=True) -> list[str]:
        cfg, self.rows, (split,) = self.cfg, rows, splits
        if cfg.kind == "overexpress" and not cfg.fold > 0:
            raise InputError(f"--fold {cfg.fold}: expected a number above 0")
        used, notes = np.sort(rows.splits[split]), []
        self.target_cells = self._reference(used) if cfg.towards else used[:0]
        used = np.setdiff1d(used, self.target_cells)
        if not len(used):
            raise InputError(f"--towards {cfg.towards}: all cells are such, none is left to move")
        if 0 < cfg.max_cells < len(used):
            notes.append(f"{cfg.max_cells:,} of {len(used):,} cells, at random (--max-cells)")
            rng = np.random.default_rng(cfg.train.seed)
            used = np.sort(rng.choice(used, cfg.max_cells, replace=False))
        seen = np.union1d(used, self.target_cells)
        rows.splits[split] = seen  # what is checked: all that is read
        notes += super().check(rows, splits, labelled)
        rows.splits[split] = used
        if cfg.group:
            self.groups = [str(value) for value in rows.values(cfg.group)]
        self.places, counts, more = choose(rows, used, self.tokenizer, cfg)
        self.tokens = int(self.lengths.max())
        self.lengths = self.lengths.astype(np.int64)
        self.lengths[used] *= counts + 1
        verb = {"delete": "deletions", "overexpress": "raised genes"}[cfg.kind]
        total = len(used) + int(counts.sum()) + len(self.target_cells)
        return [
            *notes,
            *more,
            f"{len(self.places):,} genes, {len(used):,} cells: {int(counts.sum()):,} {verb}, "
            f"{total:,} cells for the model to read",
        ]

    def _reference(self, used: np.ndarray) -> np.ndarray:
        """The cells that --towards names."""
        column, given, value = self.cfg.towards.partition("=")
        if not given:
            raise InputError(f"--towards {self.cfg.towards}: expected COLUMN=VALUE")
        values = np.array([str(cell) for cell in self.rows.values(column)])[used]
        if value not in values:
            known = ", ".join(sorted({*values})[:10])
            raise InputError(f"--towards {self.cfg.towards}: the column has {known}")
        return used[values == value]

    def build(self) -> None:
        self.size = max(1, min(self.cfg.train.batch_size, self._most // max(self.tokens, 1)))
        self.target: Tensor | None = None

    @property
    def _most(self) -> int:
        return self.cfg.train.batch_tokens or self.tokens * self.cfg.train.batch_size

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.tokenizer.tokenize(self.cfg.data.inputs(rows))

    def embed(self, cells: list[Counts]) -> Tensor:  # (b, D)
        batch = {
            name: tensor.to(self.backbone.device)
            for name, tensor in self.tokenizer.tokenize(cells).items()
        }
        return POOLS[self.cfg.pool](self.backbone(batch), self.pooled(batch))

    def forward(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, dict[str, Tensor]]]:
        if self.cfg.towards and self.target is None:
            self.target = self._centre()
        cells = [self.rows.cell(number) for number in batch["row"].tolist()]
        cfg = self.cfg
        options = {"kind": cfg.kind, "fold": cfg.fold, "size": self.size, "target": self.target}
        return effects(self.embed, cells, self.places, self.tokenizer, **options)

    def _centre(self) -> Tensor:
        """The mean embedding of the cells that --towards names (D,)."""
        total = torch.zeros(self.backbone.width, dtype=torch.float64)
        for start in range(0, len(self.target_cells), self.size):
            numbers = self.target_cells[start : start + self.size].tolist()
            total += self.embed([self.rows.cell(n) for n in numbers]).double().sum(0).cpu()
        return total / len(self.target_cells)

    def predictions(self, outputs: list, batch: dict[str, Tensor]) -> dict:
        names = outputs[0][1]
        by_name = {name: [values[name] for _, values in outputs] for name in names}
        return {"gene": [genes for genes, _ in outputs], **by_name}

    def finish(self, file: Path, rows, indices) -> list[Path]:
        cfg, by = self.cfg, "towards" if self.cfg.towards else "squared_distance"
        group_of = self.groups.__getitem__ if cfg.group else lambda row: ""
        lines = ranked(read(file), self.tokenizer.genes, group_of, by)
        if not lines:
            warn("no cell has any of the genes: there is nothing to rank")
            return []
        shown = [line for line in lines if line["rank"] <= SHOWN]
        print_table(f"largest {by.replace('_', ' ')}, {cfg.kind}", shown)
        kind = ".tsv" if file.suffix == ".tsv" else ".parquet"
        files = [write(file.with_name(f"{file.stem}.genes{kind}"), lines)]
        figure = file.parent.parent / "figures" / file.stem / "markers.png"
        return [*files, ranked_figure(figure, lines, by, f"{cfg.backbone.name}, {cfg.kind}")]


if __name__ == "__main__":
    run(GeneKnockout, Config)
