"""In-silico perturbation: a gene of a cell deleted or raised, and how far its embedding moves.

Theodoris et al. 2023 (doi:10.1038/s41586-023-06139-9) delete genes of cells and compare embeddings.
Shapes: B cells, D width, P perturbations of a cell, G genes of the model.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.backbones.cell_tokenizer import CellTokenizer
from mgen.backbones.genes import ENSEMBL, GeneList
from mgen.checkpoint import whole
from mgen.config import InputError, nearest
from mgen.data.table import Rows
from mgen.io.counts import Counts

MEASURES = ("squared_distance", "cosine_distance", "towards")


def perturbable(cell: Counts, tokenizer: CellTokenizer, kind: str) -> np.ndarray:
    """Places in the model's list of the genes that can be deleted (the cell has them) or raised
    (its file has them), rising."""
    places = tokenizer.align(cell.table).places
    if kind == "delete":
        places = places[cell.genes[cell.values > 0]]
    return np.unique(places[places >= 0])


def perturbed(cell: Counts, place: int, tokenizer: CellTokenizer, kind: str, fold: float) -> Counts:
    """The cell with another count of one gene, all else as it was.

    "delete": none. "overexpress": `fold` times its count or, where it has none, the mean count of
    the genes that the cell expresses; whole where counts are whole. Neighbours stay.
    """
    places = tokenizer.align(cell.table).places
    own = places[cell.genes] == place
    genes, values = cell.genes[~own], cell.values[~own]
    if kind == "overexpress":
        is_log = tokenizer.values == "log1p"
        counts = np.expm1(cell.values) if is_log else cell.values
        expressed = counts[counts > 0]
        count = fold * (counts[own].sum() or (expressed.mean() if len(expressed) else 1.0))
        count = max(1.0, np.round(count)) if tokenizer.values == "counts" else count
        column = int(np.flatnonzero(places == place)[0])
        at = int(np.searchsorted(genes, column))
        genes = np.insert(genes, at, column).astype(np.int32)
        values = np.insert(values, at, np.log1p(count) if is_log else count).astype(np.float32)
    return replace(cell, genes=genes, values=values)


def places_of(genes: GeneList, names: Sequence[str]) -> list[int]:
    """Places of genes by symbol or Ensembl id. Raises InputError for one that is not there."""
    known = {e: i for i, e in enumerate(genes.ensembl) if e}
    known |= {s: i for i, s in enumerate(genes.symbols) if s}
    found = {}
    for name in names:
        ensembl = ENSEMBL.fullmatch(name)
        key = name if name in known or not ensembl else ensembl[1]
        if key not in known:
            raise InputError(
                f"--genes {name}: not one of the {len(genes):,} genes of this model, neither by "
                f"symbol nor by Ensembl id.{nearest(name, known)}"
            )
        if known[key] in found:
            raise InputError(f"--genes {name}: the gene {found[known[key]]} again")
        found[known[key]] = name
    return [*found]


def choose(
    rows: Rows, cells: np.ndarray, tokenizer: CellTokenizer, cfg
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which genes (places, rising), how many perturbations of each of `cells`, what to say aloud.

    `cfg` has `genes`, `kind`, `min_cells`, `max_genes`. Without names these are the genes that most
    cells express. Raises InputError where no gene is left.
    """
    asked, notes = places_of(tokenizer.genes, cfg.genes), []
    expressed = np.zeros(len(tokenizer.genes), dtype=np.int64)
    for number in cells.tolist():
        expressed[perturbable(rows.cell(number), tokenizer, "delete")] += 1
    if asked:
        known = expressed > 0
        if cfg.kind == "overexpress":
            known = np.any([tokenizer.align(table).present for table in rows.genes], axis=0)
        lost = [name for place, name in zip(asked, cfg.genes, strict=True) if not known[place]]
        if lost:
            what = "in no cell" if cfg.kind == "delete" else "no column of the file"
            notes.append(
                f"{len(lost):,} of {len(asked):,} genes have no effect to measure, {what}: "
                f"{', '.join(lost[:10])}{', ...' * (len(lost) > 10)}"
            )
        places = np.array(sorted(place for place in asked if known[place]), dtype=np.int64)
        if not len(places):
            raise InputError(f"{notes[-1]}. Name others with --genes")
    else:
        often = np.flatnonzero(expressed >= max(cfg.min_cells, 1))
        if not len(often):
            raise InputError(f"no gene is expressed in {cfg.min_cells:,} cells: lower --min-cells")
        order = often[np.argsort(-expressed[often], kind="stable")]
        places = np.sort(order[: cfg.max_genes or None])
        if len(places) < len(often):
            notes.append(
                f"the {len(places):,} genes that most cells express, of {len(often):,} that at "
                f"least {cfg.min_cells:,} do (--max-genes, --genes)"
            )
    counts = [
        np.isin(perturbable(rows.cell(number), tokenizer, cfg.kind), places).sum()
        for number in cells.tolist()
    ]
    return places, np.array(counts, dtype=np.int64), notes


def effects(
    embed: Callable[[list[Counts]], Tensor],
    cells: list[Counts],
    places: np.ndarray,
    tokenizer: CellTokenizer,
    *,
    kind: str,
    fold: float,
    size: int,
    target: Tensor | None = None,
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Of each cell the genes that were perturbed (P,) and what that does, (P,) float32.

    `embed` gives (b, D) of at most `size` cells. "squared_distance" and "cosine_distance" (1 - cos)
    of the embeddings with and without; with `target` (D,) also "towards": by how much the squared
    distance to it falls.
    """
    before = torch.cat([embed(cells[i : i + size]) for i in range(0, len(cells), size)])
    before, found = before.double().cpu(), []
    todo = [
        (row, place)
        for row, cell in enumerate(cells)
        for place in np.intersect1d(perturbable(cell, tokenizer, kind), places).tolist()
    ]
    for start in range(0, len(todo), size):
        part = todo[start : start + size]
        mutants = [perturbed(cells[row], place, tokenizer, kind, fold) for row, place in part]
        after = embed(mutants).double().cpu()
        own = before[[row for row, _ in part]]
        values = {
            "squared_distance": (after - own).square().sum(1),
            "cosine_distance": 1 - F.cosine_similarity(after, own),
        }
        if target is not None:
            centre = target.double().cpu()
            values["towards"] = (own - centre).square().sum(1) - (after - centre).square().sum(1)
        found.append(torch.stack([*values.values()], 1))
    names = [name for name in MEASURES if name != "towards" or target is not None]
    joined = torch.cat(found) if found else torch.zeros(0, len(names))
    owner = np.array([row for row, _ in todo], dtype=np.int64)
    genes = torch.tensor([place for _, place in todo], dtype=torch.int64)
    parts = [torch.from_numpy(np.flatnonzero(owner == row)) for row in range(len(cells))]
    return [
        (genes[at], {name: joined[at, k].float() for k, name in enumerate(names)}) for at in parts
    ]


@dataclass
class Sums:
    """Number, sums and sums of squares of the effects of one gene, by measure."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.squares[name] = self.squares.get(name, 0.0) + value**2

    def mean(self, name: str) -> float:
        return self.sums[name] / self.count

    def error(self, name: str) -> float | None:
        """The standard error of the mean over cells; None of a single cell."""
        if self.count < 2:
            return None
        spread = max(self.squares[name] - self.count * self.mean(name) ** 2, 0.0)
        return (spread / (self.count - 1) / self.count) ** 0.5


def ranked(
    found: Iterator[dict], genes: GeneList, group_of: Callable[[int], str], by: str
) -> list[dict]:
    """One line per group and gene, the largest mean of `by` first in each group.

    `found` are rows of the prediction file: "row", "gene" (P,) and the measures (P,).
    """
    sums: dict[str, dict[int, Sums]] = {}
    measures: list[str] = []
    for row in found:
        group = sums.setdefault(group_of(int(row["row"])), {})
        measures = [name for name in MEASURES if name in row]
        for i, place in enumerate(row["gene"]):
            one = {name: float(row[name][i]) for name in measures}
            group.setdefault(int(place), Sums()).add(one)
    lines = []
    for group, by_gene in sorted(sums.items()):
        order = sorted(by_gene, key=lambda place: -by_gene[place].mean(by))
        for rank, place in enumerate(order, 1):
            own = by_gene[place]
            line = {"group": group} if group else {}
            line |= {"rank": rank, "gene": genes.symbols[place] or genes.ensembl[place]}
            line |= {"ensembl": genes.ensembl[place], "cells": own.count}
            for name in measures:
                line |= {name: own.mean(name), f"{name}_se": own.error(name)}
            lines.append(line)
    return lines


def write(file: Path, lines: list[dict]) -> Path:
    """The lines as a table: Parquet or, by its name, TSV."""
    with whole(file) as partial:
        if file.suffix == ".tsv":
            with partial.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, [*lines[0]], delimiter="\t", lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(lines), partial)
    return file
