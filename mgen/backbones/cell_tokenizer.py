"""Cells to the numbers that models of cells read: aligned to their genes, checked, weightless.

Shapes: B cells, L tokens, G genes of the model, n genes of a cell that are not zero.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.backbones.genes import Alignment, GeneList
from mgen.backbones.tokenizer import Style
from mgen.config import InputError
from mgen.io.counts import Counts, GeneTable

TARGET = 1e4  # counts that a cell is scaled to before the logarithm
GENES_FILE = "genes.tsv"  # of a checkpoint that brings its own list


class CellTokenizer:
    """Cells to batches; a family says by `batch` what of, and by `tokens` how many.

    Args:
        genes: the model's genes, in the order of its input, or what reads them.
        config: the model's config.json, read.
        values: what the numbers of cells are: "counts" (whole), "decimal" (of the same scale, not
            whole) or "log1p" (ln(1 + 1e4 c / T) of counts c with total T).
        pooled_genes: which genes pooling counts: "all", those "present" in the file, "expressed".
        as_published: what published code does, mistakes included.
        max_length: most tokens of a cell; 0 is no limit.
        truncate: what to do with more: "error" or, of models that rank genes, leave out the last
            ones: "right".
    """

    modality, style = "cell", Style("", "", "", "", "")
    alphabet, convert, vocabulary, tokens = "", {}, {}, ()
    unknown, as_written, per_letter, has_context, stored = "token", False, False, False, None
    num_special = 0
    reads_neighbours = False
    ranks = False  # the genes of a cell have an order to cut them by

    def __init__(
        self,
        genes: GeneList | Callable[[], GeneList],
        *,
        config: Any,
        values: str = "counts",
        pooled_genes: str = "all",
        as_published: bool = False,
        max_length: int = 0,
        truncate: str = "error",
    ) -> None:
        if truncate not in ("error", "right" if self.ranks else "error"):
            raise InputError(
                f"--backbone.truncate {truncate}: genes that this model reads have no order to "
                "cut them by. Drop it"
            )
        self._genes, self.config = genes, config
        self.values, self.pooled_genes = values, pooled_genes
        self.as_published, self.max_length, self.truncate = as_published, max_length, truncate
        self._alignments: dict[str, Alignment] = {}

    @cached_property
    def genes(self) -> GeneList:
        return self._genes() if callable(self._genes) else self._genes

    def align(self, table: GeneTable) -> Alignment:
        """See `GeneList.align`; as published a gene's second column is as if it were not there."""
        if table.digest not in self._alignments:
            found = self.genes.align(table)
            if self.as_published and found.repeated:
                first = np.zeros(len(found.places), dtype=bool)
                first[np.unique(found.places, return_index=True)[1]] = True
                found = replace(found, places=np.where(first, found.places, -1))
            self._alignments[table.digest] = found
        return self._alignments[table.digest]

    def tokenize(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`attention_mask`, `special_tokens_mask` int64 (B, L) and what the model reads.

        special_tokens_mask is 1 at padding and at tokens that pooling passes over.
        """
        if wrong := next((row for row in rows if not hasattr(row, "genes")), None):
            raise InputError(
                f"this model reads cells, found {wrong!r}. Set --data.path to an .h5ad file, or "
                "take cells_of an AnnData object (mgen.io.counts)"
            )
        found = self.batch(rows)
        longest = int(found["attention_mask"].sum(1).max()) if len(rows) else 0
        if 0 < self.max_length < longest:
            raise InputError(
                f"a cell has {longest:,} tokens, and the limit is {self.max_length:,}. Raise "
                "--backbone.max-length"
            )
        return found

    def check_places(self, places: np.ndarray | None) -> None:
        """Raises InputError for coordinates (N, axes) of cells that this model cannot read."""

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """What `tokenize` returns, for cells."""
        raise NotImplementedError

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        """Tokens of cells of which so many of the model's genes are not zero, (N,) to (N,)."""
        raise NotImplementedError

    def lengths(self, rows: Sequence[Counts]) -> list[int]:
        """The tokens of each cell, before any limit."""
        expressed = [len(self.sparse(row)[0]) for row in rows]
        return self.expressed_tokens(np.array(expressed, dtype=np.int64)).tolist()

    def sparse(self, row: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Genes of the list, rising (n,) int64, and their values (n,) float32.

        Genes that a file has more than once are summed.
        """
        places, values = self._placed(row)
        if not self.align(row.table).repeated:
            order = np.argsort(places)
            return places[order], values[order]
        distinct, which = np.unique(places, return_inverse=True)
        return distinct, np.bincount(which, values, len(distinct)).astype(np.float32)

    def dense(self, rows: Sequence[Counts]) -> np.ndarray:
        """The values of all genes (B, G) float32."""
        found = np.zeros((len(rows), len(self.genes)), dtype=np.float32)
        for own, row in zip(found, rows, strict=True):
            np.add.at(own, *self._placed(row))
        return found

    def _placed(self, row: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Places and values in the order of the file; logarithms as parts of 10,000."""
        places = self.align(row.table).places[row.genes].astype(np.int64)
        kept = places >= 0
        values = row.values[kept]
        return places[kept], np.expm1(values) if self.values == "log1p" else values

    def pooled(self, rows: Sequence[Counts]) -> np.ndarray:
        """Which genes pooling counts (B, G) bool."""
        if self.pooled_genes == "all":
            return np.ones((len(rows), len(self.genes)), dtype=bool)
        if self.pooled_genes == "present":
            return np.stack([self.align(row.table).present for row in rows])
        return self.dense(rows) > 0

    def token_genes(self, batch: dict[str, Tensor]) -> Tensor:
        """Which gene of the list each token is of (B, L); of special tokens it means nothing.

        Raises InputError for a model whose tokens are no genes.
        """
        if "position_ids" in batch:
            return batch["position_ids"][:, 0].long()
        if found := [batch[name] for name in ("gene_ids", "input_ids") if name in batch]:
            return found[0]
        mask = batch["attention_mask"]
        if mask.shape[1] < len(self.genes):
            raise InputError("this model has one vector per cell, and none per gene")
        return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)

    @property
    def fingerprint(self) -> str:
        """Changes with what decides the batch of a cell."""
        facts = {k: v for k, v in vars(self).items() if isinstance(v, str | int | float)}
        facts |= {"genes": self.genes.digest, "family": type(self).__name__}
        facts |= {"config": repr(self.config)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the list of genes."""
        self.save_genes(folder / GENES_FILE)

    def save_genes(self, file: Path) -> Path:
        """Write the list of genes by place."""
        lines = map("\t".join, zip(self.genes.symbols, self.genes.ensembl, strict=True))
        text = "\n".join(["gene_name\tensembl_id", *lines]) + "\n"
        file.write_text(text, encoding="utf-8")
        return file

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_alignments": {}}


def normalised(values: np.ndarray) -> np.ndarray:
    """ln(1 + 1e4 c / T) of counts c (..., n) with total T along the last axis; zeros where T is."""
    total = values.sum(-1, keepdims=True, dtype=np.float64)
    return np.log1p(TARGET * values / np.where(total > 0, total, 1)).astype(np.float32)


def tensors(**arrays: np.ndarray) -> dict[str, Tensor]:
    """Numbers as float32, all else as int64."""
    kinds = {name: np.float32 if a.dtype.kind == "f" else np.int64 for name, a in arrays.items()}
    return {
        name: torch.from_numpy(np.ascontiguousarray(array, dtype=kinds[name]))
        for name, array in arrays.items()
    }


def padded(rows: Sequence[np.ndarray], filler: float, width: int = 0) -> np.ndarray:
    """Rows (n_i,) side by side, padded on the right to the longest, or to `width`: (B, L)."""
    width = max([width, *map(len, rows)])
    found = np.full((len(rows), width), filler, dtype=rows[0].dtype if len(rows) else np.float32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found
