"""Embed sequences or cells with a backbone as it is: one vector per row, or one per token.

In: sequences, or cells with counts. Out: predictions/<table>.parquet (or .tsv, .safetensors), rows
in input order; with --h5ad also an AnnData file, of cells a copy of theirs; with --colour a figure.

    python recipes/embed.py --data.path sequences.fasta --backbone esm2_8m --layers 0 3 6 --h5ad
    python recipes/embed.py --pool none --format safetensors       # per token
    python recipes/embed.py --data cells_tiny --backbone aido_cell_debug --h5ad --colour cell_type
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from mgen.adapters.pooling import cls_pool, max_pool, mean_pool
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.figures.embeddings import embedding_figure
from mgen.io import h5ad
from mgen.methods.cell_files import copies, copy_cells
from mgen.predictions import BLOCK_TOKENS, read
from mgen.task import Task
from mgen.train import Train, run

BLOCK_NUMBERS = 2**26  # of per-token vectors held at once


@dataclass(frozen=True, kw_only=True)
class Config:
    """Embeddings."""

    backbone: Backbone = backbone("aido_dna_debug")
    data: Table = table("promoters_tiny")
    train: Train = Train()
    pool: Literal["mean", "max", "cls", "none"] = "mean"  # none: every token
    layers: tuple[int | Literal["all"], ...] = (-1,)  # 0: token embeddings, -1: last layer; or all
    special_tokens: bool = False  # count [CLS] and the like as tokens
    h5ad: bool = False  # also write an AnnData file: vectors in obsm; of cells a copy of theirs
    colour: str = ""  # also draw the vectors, by UMAP or PCA, in colours of this column


class Embed(Task):
    trains = False

    def learn(self, rows, splits) -> None:
        cfg = self.cfg
        if cfg.pool == "cls" and not self.tokenizer.style.start:
            raise InputError("--pool cls reads the start token, but this backbone has none")
        if not cfg.layers or ("all" in cfg.layers and len(cfg.layers) > 1):
            raise InputError("--layers: expected numbers of layers, or all")
        if cfg.h5ad and cfg.pool == "none":
            raise InputError("--h5ad holds one vector per sequence; drop it, or set --pool mean")
        if cfg.colour and cfg.pool == "none":
            raise InputError("--colour draws one vector per row; drop it, or set --pool mean")
        self.is_by_gene = cfg.pool == "none" and self.tokenizer.modality == "cell"
        if self.is_by_gene:
            first = next(numbers for numbers in rows.splits.values() if len(numbers))[:1]
            try:
                self.tokenizer.token_genes(
                    self.tokenizer.tokenize(cfg.data.inputs(rows.take(first)))
                )
            except InputError as error:
                raise InputError(f"--pool none: {error}; drop it") from None
        if cfg.colour:
            rows.require(cfg.colour)
        if cfg.h5ad:
            h5ad.library()
            self.copies = copies(rows.names) if rows.genes else {}
            if self.copies and cfg.data.max_rows:
                raise InputError("--h5ad copies all cells of a file; drop --data.max-rows")

    def build(self) -> None:  # the backbone is all there is
        last, asked = self.backbone.num_layers, self.cfg.layers
        asked = range(last + 1) if asked == ("all",) else asked
        if wrong := [layer for layer in asked if not -last - 1 <= layer <= last]:
            raise InputError(f"--layers {wrong[0]}: the layers are 0 to {last}, or -1 for the last")
        self.layers = [layer % (last + 1) for layer in asked]
        if len({*self.layers}) < len(self.layers):
            raise InputError(f"--layers {' '.join(map(str, asked))}: names a layer twice")
        if self.cfg.pool == "none":
            numbers = max(1, self.backbone.width * len(self.layers))
            self.block_tokens = min(BLOCK_TOKENS, max(1, BLOCK_NUMBERS // numbers))

    def pooling(self) -> str:
        is_last = self.layers == [self.backbone.num_layers]
        return self.cfg.pool if is_last and self.cfg.pool != "none" else ""

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.backbone.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> list[Tensor]:  # (B, L, D) of each layer
        if self.layers == [self.backbone.num_layers]:
            return [self.backbone(batch)]
        states = self.backbone.hidden_states(batch)
        return [states[layer] for layer in self.layers]

    def predictions(self, outputs: list[Tensor], batch: dict[str, Tensor]) -> dict:
        mask = self.pooled(batch).bool()
        found = {}
        if self.is_by_gene:
            genes = self.tokenizer.token_genes(batch)
            found = {"gene": [row[kept].cpu() for row, kept in zip(genes, mask, strict=True)]}
        return found | {
            name: self.pool(hidden, mask) for name, hidden in zip(self.names, outputs, strict=True)
        }

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor | list[Tensor]:  # (B, D) or B of (L, D)
        if self.cfg.pool == "none":
            return [row[kept].cpu() for row, kept in zip(hidden, mask, strict=True)]
        return {"mean": mean_pool, "max": max_pool, "cls": cls_pool}[self.cfg.pool](hidden, mask)

    @property
    def names(self) -> list[str]:
        """The column of each layer."""
        if self.cfg.layers != ("all",) and len(self.layers) == 1:
            return ["embedding"]
        return [f"layer_{layer}" for layer in self.layers]

    def finish(self, file: Path, rows, indices) -> list[Path]:
        files = []
        if self.is_by_gene:
            files.append(self.tokenizer.save_genes(file.with_suffix(".genes.tsv")))
        if self.cfg.colour:
            figure = file.parent.parent / "figures" / file.stem / "embedding.png"
            model, values = Path(self.cfg.backbone.name).name, rows.values(self.cfg.colour)
            vectors = np.array([row[self.names[-1]] for row in read(file)], dtype=np.float32)
            shown = [values[number] for number in indices]
            files.append(embedding_figure(figure, vectors, shown, self.cfg.colour, model))
        if self.cfg.h5ad and self.copies:
            model = Path(self.cfg.backbone.name).name
            keys = {n: model if n == "embedding" else f"{model}_{n}" for n in self.names}
            files += copy_cells(file, rows, self.copies, keys)
        elif self.cfg.h5ad:
            path = file.with_suffix(".h5ad")
            files.append(h5ad.write(path, rows, read(file), len(indices), self.names))
        return files


if __name__ == "__main__":
    run(Embed, Config)
