"""Embed sequences with a backbone as it is: one vector per sequence, or one per token.

In: sequences. Out: predictions/<table>.parquet (or .tsv, .safetensors), rows in input order.

    python recipes/embed.py --data.path sequences.fasta --backbone esm2_8m
    python recipes/embed.py --pool none --format safetensors       # per token
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mgen.adapters.pooling import cls_pool, max_pool, mean_pool
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Embeddings."""

    backbone: Backbone = backbone("aido_dna_debug")
    data: Table = table("promoters_tiny")
    train: Train = Train()
    pool: Literal["mean", "max", "cls", "none"] = "mean"  # none: every token
    layer: int = -1  # of the hidden states; 0: embeddings of the tokens, -1: last
    special_tokens: bool = False  # count [CLS] and the like as tokens


class Embed(Task):
    trains = False

    def learn(self, rows, splits) -> None:
        if self.cfg.pool == "cls" and not self.tokenizer.style.start:
            raise InputError("--pool cls reads the start token, but this backbone has none")

    def build(self) -> None:  # the backbone is all there is
        layers = self.backbone.num_layers
        if not -layers - 1 <= self.cfg.layer <= layers:
            raise InputError(f"--layer {self.cfg.layer}: the layers are 0 to {layers}, or -1")

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.backbone.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B, L, D)
        if self.cfg.layer in (-1, self.backbone.num_layers):
            return self.backbone(batch)
        return self.backbone.hidden_states(batch)[self.cfg.layer]

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        mask = self.pooled(batch).bool()
        if self.cfg.pool == "none":
            return {"embedding": [row[kept].cpu() for row, kept in zip(outputs, mask, strict=True)]}
        pools = {"mean": mean_pool, "max": max_pool, "cls": cls_pool}
        return {"embedding": pools[self.cfg.pool](outputs, mask)}


if __name__ == "__main__":
    run(Embed, Config)
