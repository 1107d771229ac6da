"""Embed sequences with a backbone as it is: one vector per sequence, or one per token.

In: sequences. Out: predictions/<table>.parquet (or .tsv, .safetensors), rows in input order; with
--h5ad also an AnnData file.

    python recipes/embed.py --data.path sequences.fasta --backbone esm2_8m --layers 0 3 6 --h5ad
    python recipes/embed.py --pool none --format safetensors       # per token
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from mgen.adapters.pooling import cls_pool, max_pool, mean_pool
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.io import h5ad
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
    h5ad: bool = False  # also write an AnnData file: vectors in obsm, identifiers in obs


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
        if cfg.h5ad:
            h5ad.library()

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
        return {
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
        if not self.cfg.h5ad:
            return []
        path = file.with_suffix(".h5ad")
        return [h5ad.write(path, rows, read(file), len(indices), self.names)]


if __name__ == "__main__":
    run(Embed, Config)
