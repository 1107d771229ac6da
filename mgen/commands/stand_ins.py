"""Small stand-ins for what an experiment names: networks, tables, alignments, genomes.

A named network keeps its family and every switch of its config.json, but is narrow and shallow and
has random weights; it lies in a folder in the published layout, and is read as the hub's would be.
A table has made-up rows under the published names of files, splits and columns, in the folder that
stands for the hub and for $MGEN_SHARED.
"""

import csv
import gzip
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mgen.backbones import backbone
from mgen.backbones.zoo import ZOO, Entry
from mgen.config import InputError
from mgen.data.sources.places import (
    BUNDLED_PREFIX,
    HUB_PREFIX,
    local_file,
)
from mgen.data.table import Table
from mgen.io.files import SHARED_PREFIX, shared_folder

SMALL = {"width": 64, "layers": 2, "heads": 4, "ffn": 128}
CONTEXT, EXPERTS = 512, 4  # the first where none is published
GENES = 300  # of a model of cells, simulated in place of its own
ROWS = 8  # of each split
LENGTHS = (12, 16)  # letters of a sequence
LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
LETTERS["cell"] = "-"  # a sequence is drawn for every row, and cells have counts in its place
COUNTS = "counts"  # column of cells
CONTIG, CONTIG_LENGTH = "chr1", 4000
CHANNELS = 384  # of the structures that AIDO.Protein-RAG reads
CLASS, RESIDUES, PAIRS, EFFECT = "class", "residues", "pairs", "effect"
LABELS = {  # of recipes; of the others, numbers
    "sequence_classification": CLASS,
    "cell_classification": CLASS,
    "logistic_regression": CLASS,
    "token_classification": RESIDUES,
    "pairwise_classification": PAIRS,
    "zero_shot_variants": EFFECT,
}

Row = dict[str, Any]


@contextmanager
def places(folder: Path) -> Iterator[dict[str, Entry]]:
    """Inside, data and cache lie in `folder`; gives the published networks and restores them."""
    published = dict(ZOO)
    own = {"MGEN_SHARED": str(folder / "shared"), "MGEN_CACHE": str(folder / "cache")}
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    try:
        yield published
    finally:
        ZOO.update(published)
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


def small_network(entry: Entry, folder: Path, layers: int) -> None:
    """Let the name of `entry` mean a small network of `layers` layers, written below `folder`."""
    if entry.family == "huggingface":
        raise InputError(f"{entry.name}: no stand-in for a model whose code is of transformers")
    experts = {"num_experts": EXPERTS} if entry.config.get("moe") else {}
    sizes = {**SMALL, "layers": layers, "context": entry.context or CONTEXT}
    small = replace(entry, **sizes, config=entry.config | experts, hub="")
    if entry.modality == "cell":
        small = replace(small, context=GENES, config=_few_genes(small.config, layers))
    place = folder / f"{entry.name}-{layers}"
    if not place.exists():
        ZOO[entry.name] = small
        network = backbone(entry.name).build()
        place.mkdir(parents=True)
        network.save(place)
    ZOO[entry.name] = replace(small, hub=str(place))


def _few_genes(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """With simulated genes; scFoundation's own settings have sizes of their own."""
    found = config | {"gene_list": "simulated"}
    if kind := config.get("model"):
        facts, width = config["model_config"][kind], SMALL["width"]
        small = {"hidden_dim": width, "depth": layers, "heads": SMALL["heads"]}
        parts = {
            "encoder": facts["encoder"] | small,
            "decoder": facts["decoder"] | small | {"dim_head": width // SMALL["heads"]},
        }
        found["model_config"] = {kind: facts | parts | {"seq_len": GENES + 2}}
    return found


def write_rows(cfg: Any, recipe: str) -> None:
    """Write the table that the settings of a recipe name, and the files that it needs."""
    table, modality = cfg.data, cfg.backbone.tokenizer().modality
    maker = _Maker(cfg, recipe, random.Random(0), modality)
    if found := re.fullmatch(r"(.+\.\w+)(?::(.+))?", table.wild_type):  # a file, a record of it
        _write_text(_place(found[1]), f">{found[2] or 'wild_type'}\n{maker.wild_type}\n")
    if name := maker.options.get("genome"):
        _write_text(_place(name), f">{CONTIG}\n{maker.contig}\n")
    for file, marks in _files(table).items():
        _write(file, [maker.row(i, mark, file) for i, mark in enumerate(marks)])


def _place(path: str) -> Path:
    """Where a file of the hub or of $MGEN_SHARED is written. Raises InputError for any other."""
    if path.startswith(HUB_PREFIX):
        return shared_folder() / path.removeprefix(HUB_PREFIX)
    if path.startswith(SHARED_PREFIX):
        return local_file(path)
    raise InputError(f"{path}: settings for everyone name files of the hub ({HUB_PREFIX}...)")


def _files(table: Table) -> dict[Path, list[Row]]:
    """The files that a table's path means, and of each row what says which split it is in."""
    parts = [s.split("+") for s in (table.train_split, table.valid_split, table.test_split) if s]
    least = 2 + table.neighbours
    counts = {name: max(least, ROWS // len(names)) for names in parts for name in names}
    path = table.path.replace("{subset}", table.subset)
    if path.startswith(BUNDLED_PREFIX):
        return {}
    if table.split_col:
        marks = {"": [{table.split_col: name} for name, n in counts.items() for _ in range(n)]}
    elif table.folds:
        column = {table.fold_col} - {""}
        folds = [dict.fromkeys(column, i % table.folds) for i in range(2 * table.folds)]
        marks = {table.train_split: folds}
    else:
        marks = {name: [{} for _ in range(n)] for name, n in counts.items()}
    if path.count("/") == 1 and ":" not in path:  # a data set of the hub
        folder = shared_folder() / path / table.subset
        return {folder / f"{name}.parquet": rows for name, rows in marks.items()}
    file = _place(path)
    if "*" not in file.name:
        return {file: [row for rows in marks.values() for row in rows]}
    named = {name.replace("*", "1"): rows for name, rows in marks.items()}
    kind = "" if file.suffix else ".h5ad"  # for a folder per split, as of SOMA experiments
    return {
        file.with_name(file.name.replace("*", name) + kind): rows for name, rows in named.items()
    }


class _Maker:
    """Rows of the columns that settings name."""

    def __init__(self, cfg: Any, recipe: str, draw: random.Random, modality: str) -> None:
        self.cfg, self.draw, self.modality = cfg, draw, modality
        self.options = vars(cfg)
        head = self.options.get("adapter")
        is_fixed = "flatten" in self.options.get("pool", ()) or (head and head.per_position)
        self.lengths = LENGTHS[-1:] * 2 if is_fixed else LENGTHS  # one weight per position
        self.wild_type = self.letters(LENGTHS[-1])
        self.contig = "".join(draw.choices(LETTERS["dna"], k=CONTIG_LENGTH))
        self.label: Callable[..., Any] = {
            CLASS: self.class_of,
            RESIDUES: self.residues,
            PAIRS: self.pairs,
            EFFECT: self.effect,
        }.get(LABELS.get(recipe, ""), lambda *_: draw.gauss(0, 1))

    def letters(self, length: int, modality: str = "") -> str:
        return "".join(self.draw.choices(LETTERS[modality or self.modality], k=length))

    def row(self, i: int, mark: Row, file: Path) -> Row:
        table, sequence = self.cfg.data, self.letters(self.draw.randint(*self.lengths))
        row = (
            {table.x_col: self.mutation(i) if table.wild_type else sequence} if table.x_col else {}
        )
        if self.modality == "cell":
            row = {COUNTS: [self.draw.randrange(4) for _ in range(GENES)]}
            row |= {name: self.draw.random() for name in table.position_cols}
        for column, name in zip(
            self.options.get("x_cols", ()), ("backbone1", "backbone2"), strict=False
        ):
            row[column] = self.letters(len(sequence), self.options[name].tokenizer().modality)
        if table.id_col:
            row[table.id_col] = f"row{i}"
        row |= dict(condition.split("=", 1) for condition in table.only)
        row |= {name: self.draw.random() for name in self.options.get("score_cols", ())}
        if column := self.options.get("mask_col"):
            row[column] = self.cfg.mask_keep[0] * len(sequence)
        if self.options.get("genome"):
            row |= self.variant()
        row |= self.beside(i, sequence, file)
        row |= {y: self.label(i + k, sequence, file) for k, y in enumerate(table.y_cols)}
        return row | mark

    def beside(self, i: int, sequence: str, file: Path) -> Row:
        """An alignment and a structure: in the cell or, in a text file, as the name of a file."""
        table, length = self.cfg.data, len(sequence)
        aligned = [self.letters(length - 2) + "--", self.letters(length)]
        numbers = np.array([[self.draw.gauss(0, 1) for _ in range(CHANNELS)] for _ in sequence])
        if not _is_text(file):
            cells = (aligned, numbers.tolist())
        else:
            cells = (f"{i}.a3m", f"{i}.npy")
            records = "".join(f">{n}\n{line}\n" for n, line in enumerate([sequence, *aligned]))
            if table.msa_col:
                _write_text(file.parent / cells[0], records)
            if table.structure_col:
                np.save(file.parent / cells[1], numbers.astype(np.float32))
        columns = (table.msa_col, table.structure_col)
        return {name: cell for name, cell in zip(columns, cells, strict=True) if name}

    def mutation(self, i: int) -> str:
        place = i % len(self.wild_type)
        old, letters = self.wild_type[place], LETTERS[self.modality]
        new = letters[(letters.index(old) + 1 + i // len(self.wild_type)) % len(letters)]
        return f"{old}{place + self.cfg.data.first_position}{new}"

    def variant(self) -> Row:
        """A substitution somewhere in the genome."""
        cfg, start = self.cfg, self.draw.randrange(CONTIG_LENGTH)
        ref = self.contig[start]
        alt = self.draw.choice(LETTERS["dna"].replace(ref, ""))
        names = (cfg.chrom_col, cfg.start_col, "end", cfg.ref_col, cfg.alt_col)
        values = (CONTIG, start + cfg.one_based, start + cfg.one_based + 1, ref, alt)
        return dict(zip(names, values, strict=True))

    def class_of(self, i: int, sequence: str, file: Path) -> int:
        return i % (2 if self.options.get("multilabel") else self.options.get("classes") or 2)

    def residues(self, i: int, sequence: str, file: Path) -> str:
        return "".join(self.draw.choices(self.options.get("classes") or "HEC", k=len(sequence)))

    def pairs(self, i: int, sequence: str, file: Path) -> Any:
        """A stem of three pairs, as text or as a list of pairs."""
        last = len(sequence) - 1
        if _is_text(file):
            return f"((({'.' * (len(sequence) - 6)})))"
        return [[k, last - k] for k in range(3)]

    def effect(self, i: int, sequence: str, file: Path) -> Any:
        if positive := self.options.get("positive"):
            return positive if i % 2 else f"not {positive}"
        return i % 2


def _is_text(file: Path) -> bool:
    return file.suffix != ".parquet"


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _write(file: Path, rows: list[Row]) -> None:
    """A Parquet file or, by its ending, cells, or one with commas or tabs, gzipped or not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".h5ad":
        _write_cells(file, rows)
        return
    if not _is_text(file):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    with (gzip.open if file.suffix == ".gz" else open)(file, "wt", newline="") as stream:
        delimiter = "\t" if ".tsv" in file.suffixes else ","
        writer = csv.DictWriter(stream, [*rows[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write_cells(file: Path, rows: list[Row]) -> None:
    import anndata
    import pandas as pd

    counts = np.array([row.pop(COUNTS) for row in rows], dtype=np.float32)
    genes = pd.DataFrame(index=[f"GENE{i + 1}" for i in range(GENES)])
    obs = pd.DataFrame(rows, index=[f"cell{i}" for i in range(len(rows))])
    anndata.AnnData(counts, obs=obs, var=genes).write_h5ad(file)
