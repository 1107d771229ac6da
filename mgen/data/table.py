"""A table of sequences and labels: from files or the hub to memory-mapped rows and their splits."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from mgen.config import Choice, InputError, nearest
from mgen.data.inputs.counts import Column, nearest_rows
from mgen.data.splitting.splits import Splits
from mgen.io.counts import Counts, GeneTable

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from torch import Tensor

CHUNK_BYTES = 2 << 20  # what a check looks at at once
CHUNK_ROWS = 1 << 16
PLACES = ("name", "path", "valid_path", "test_path", "annotations", "wild_type", "genome")
MOST_BLOCKS = 64  # of Arrow; of more, few rows would be read at once from each

Strands = Literal["forward", "augment", "average", "both"]


@dataclass(frozen=True, kw_only=True)
class Table(Choice):
    """Rows of sequences and labels: a file, a folder, a glob or a data set on the hub."""

    name: Annotated[str, tyro.conf.arg(name="", metavar="NAME")] = ""  # preset, file or hub id
    path: str = ""  # file, folder, glob or hub id; its rows are divided into splits
    valid_path: str = ""  # more rows, all for validation
    test_path: str = ""  # more rows, all for testing
    subset: str = ""  # configuration of a hub data set, and what {subset} in a path stands for
    revision: str = "main"  # revision of a hub data set
    max_rows: int = 0  # first rows of each file or split; of the hub no more is fetched; 0: all
    query: str = ""  # SQL of an SQLite or DuckDB file, filter of obs of a SOMA one; empty: all
    layer: str = ""  # of files of cells: layer, or raw; of SOMA: MEASUREMENT/LAYER; empty: X
    x_col: str = "sequence"  # column of sequences
    genome: str = ""  # FASTA whose intervals the rows are: x_col gets the sequences there
    window: int = 0  # letters read around the middle of an interval or variant; 0: the interval
    interval_cols: tuple[str, ...] = ("chrom", "start", "end", "strand")  # from 0, half-open
    wild_type: str = ""  # sequence, FASTA or FASTA:RECORD whose mutations (A123G:L45P) x_col holds
    first_position: int = 1  # position of the wild type's first letter in those mutations
    msa_col: str = ""  # column of alignments: lists of rows, or A3M or FASTA files; empty: none
    msa_tokens: int = 0  # tokens to fill with rows of an alignment, drawn at random; 0: all rows
    msa_seed: int = 0  # of that draw
    structure_col: str = ""  # column of numbers per residue: nested lists, or .npy files
    annotations: str = ""  # table of more columns; its first one has the identifiers of the rows
    gene_col: str = ""  # column of a cell file's var that names the genes; empty: what fits best
    neighbours: int = 0  # cells of a tissue that a cell is read with: the nearest of its file
    position_cols: tuple[str, ...] = ("spatial_x", "spatial_y")  # columns of their coordinates
    y_cols: tuple[str, ...] = ("label",)  # columns of labels
    id_col: str = ""  # column of identifiers; empty: the column 'id', if there is one
    split_col: str = ""  # column that names each row's split; empty: none
    train_split: str = "train"  # value of the split column, stem of a file, or hub split; a+b joins
    valid_split: str = "valid"  # likewise
    test_split: str = "test"  # likewise
    test_fraction: float = 0.2  # share of the training rows to test on if no test rows are named
    valid_fraction: float = 0.1  # share of what is left to validate on if none are named
    split_seed: int = 42  # seed of random splits and folds
    stratify_col: str = ""  # column whose values all random splits and folds share alike
    group_col: str = ""  # column whose equal values stay together in random splits and folds
    identity: float = 0.0  # sequences at least this alike (0 to 1) stay together there; 0: off
    folds: int = 0  # cross-validation with that many folds of the training rows; 0: none
    fold: int = 0  # the fold to test on
    fold_col: str = ""  # column that holds each row's fold, 0 to folds - 1; empty: random folds
    valid_fold: bool = True  # validate on a fold of its own
    valid_fold_offset: int = 1  # the fold to validate on, counted from the one to test on; 0: same
    weight_col: str = ""  # column of weights: training rows are drawn in proportion, with repeats
    balance_col: str = ""  # column whose values training draws equally often, with repeats
    crop: int = 0  # letters used of a sequence: the middle, in training a random stretch; 0: all
    strands: Strands = "forward"  # augment: training turns half the rows; average: mean of both
    only: tuple[str, ...] = ()  # COLUMN=VALUE: use only such rows; several of a column: any of them
    keep_classes: tuple[str, ...] = ()  # use only rows whose (first) label is one of these
    truth_col: str = ""  # noise-free labels, where a simulated table has them: the ceiling

    def switch(self, name: str) -> Table:
        """The preset, file or hub data set `name`, with that data set's own settings."""
        from mgen.data.zoo import table

        return table(name)

    def open(self, split: bool = True) -> Rows:
        """Read the table. Without `split` no row is assigned to a split (prediction on any table).

        Raises InputError if anything named (file, column, split) does not exist.
        """
        from mgen.data.sources.opening import open_table

        return open_table(self, split)

    def inputs(self, rows: Sequence[dict[str, Any]]) -> list[str] | list[dict[str, Any]]:
        """What a backbone tokenises: sequences or, with `msa_col` or `structure_col`, dictionaries.

        These have "sequence", "msa" (a list of aligned rows, or None) and "structure" (numbers of
        every residue, or None). Names of files in those columns are relative to the table's folder.
        Raises InputError for a file that cannot be read or belongs to another sequence.
        """
        if not (self.msa_col or self.structure_col):
            return [row[self.x_col] for row in rows]  # of a table of cells they are `Counts`
        from mgen.data.inputs.alignments import alignment, structure

        return [
            {
                "sequence": row[self.x_col],
                "msa": alignment(self, row) if self.msa_col else None,
                "structure": structure(self, row) if self.structure_col else None,
            }
            for row in rows
        ]

    def labels(self, rows: Sequence[dict[str, Any]]) -> Tensor | None:
        """The labels of rows as numbers (B, K), float32; None unless every row has all of them.

        Where labels are needed, rows without them were refused before; prediction reads none.
        """
        import torch

        try:
            numbers = [[float(row[column]) for column in self.y_cols] for row in rows]
        except (KeyError, TypeError, ValueError):
            return None
        return torch.tensor(numbers, dtype=torch.float32)


class Rows:
    """The rows of an opened table, in memory-mapped Arrow, and the row numbers of its splits.

    A row's number is its 0-based place over all files: those of `path` by name, then `valid_path`,
    then `test_path`. People are shown the file and the 1-based row in it (`where`).

    Attributes:
        table: the options it was opened with.
        dataset: every row, a `datasets.Dataset`.
        id_col: the column of identifiers, or "".
        splits: row numbers, in order, of "train", "valid" and "test".
        plan: how the splits came about, in a sentence.
        digest: sha256 of the contents and of the options that decide what is used how.
        genes: of each file of cells its genes, else empty.
        neighbours: row numbers of each cell's neighbours (N, k), if it is read with such.
        places: of each cell then its coordinates (N, axes).
    """

    def __init__(
        self,
        table: Table,
        dataset: datasets.Dataset,
        sources: list[tuple[str, int, str]],
        genes: Sequence[GeneTable] = (),
    ) -> None:
        self.table, self.dataset = table, dataset
        self.names = [name for name, _, _ in sources]
        self.starts = np.cumsum([0, *(size for _, size, _ in sources)])
        self.id_col = table.id_col or ("id" if "id" in dataset.column_names else "")
        self.genes = genes
        self.neighbours, self.places = nearest_rows(self) if table.neighbours else (None, None)
        self.splits: Splits = {}
        self.plan = ""
        self._contents = [digest for _, _, digest in sources]

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def columns(self) -> list[str]:
        return self.dataset.column_names

    @property
    def content(self) -> str:
        """sha256 of what the rows are, whatever they are used for."""
        return hashlib.sha256(json.dumps([self._contents, self.columns]).encode()).hexdigest()

    @property
    def digest(self) -> str:
        options = asdict(self.table)
        for name in PLACES:
            del options[name]  # a table that was moved is the same table
        digest = hashlib.sha256(json.dumps([self._contents, options]).encode())
        for name, rows in self.splits.items():
            digest.update(name.encode() + rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def where(self, row: int) -> str:
        """A row's file and number in it, for messages."""
        source = self._source(row)
        return f"{self.names[source]}, row {row - self.starts[source] + 1} (header not counted)"

    def _source(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def name_of(self, row: int) -> str:
        """A row's identifier, or its number in its file where it has none."""
        name = self.take([row])[0].get(self.id_col) if self.id_col else ""
        return str(name or self.where(row).removesuffix(" (header not counted)"))

    def take(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The rows of these numbers, in this order, as dictionaries."""
        numbers = np.asarray(indices, dtype=np.int64)
        found = self._plain(numbers)
        if self.genes:
            for row, number in zip(found, numbers.tolist(), strict=True):
                row[self.table.x_col] = self.cell(number)
        return found

    def cell(self, row: int) -> Counts:
        """The counts of a row of a table of cells, with those of its neighbours."""
        near = () if self.neighbours is None else self.neighbours[row].tolist()
        return replace(self._cell(row), neighbours=tuple(map(self._cell, near)))

    def _cell(self, row: int) -> Counts:
        place = () if self.places is None else tuple(self.places[row].tolist())
        return Counts(*self._counts[row], self.genes[self._source(row)], place=place)

    @functools.cached_property
    def _counts(self) -> Column:
        return Column(self.dataset.data.column(self.table.x_col))

    @functools.cached_property
    def _scalars(self) -> datasets.Dataset:
        """All columns but counts."""
        return self.dataset.remove_columns(self.table.x_col) if self.genes else self.dataset

    def _plain(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The rows without counts."""
        dataset = self._scalars
        if self._blocks is None or not len(numbers):
            columns = dataset[numbers.tolist()]
            return [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        import pyarrow as pa

        starts, blocks = self._blocks
        which = np.searchsorted(starts, numbers, side="right") - 1
        order = np.argsort(which, kind="stable")
        ends = np.flatnonzero(np.diff(which[order])) + 1
        parts = [
            blocks[which[places[0]]].take(pa.array(numbers[places] - starts[which[places[0]]]))
            for places in np.split(order, ends)
        ]
        values = [column.to_pylist() for column in pa.Table.from_batches(parts).columns]
        names = dataset.column_names
        found = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        places = np.argsort(order, kind="stable").tolist()
        return [found[place] for place in places]

    @functools.cached_property
    def _blocks(self) -> tuple[np.ndarray, list[pa.RecordBatch]] | None:
        """First rows and blocks, if these are few and plain: reading from them is twice as fast."""
        import pyarrow as pa

        data = self._scalars.data
        blocks = data.to_batches()
        is_nested = any(pa.types.is_nested(field.type) for field in data.schema)
        if len(blocks) > MOST_BLOCKS or is_nested or self._scalars._indices is not None:
            return None
        return np.cumsum([0, *(block.num_rows for block in blocks)])[:-1], blocks

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_blocks", "_counts", "_scalars")
        return {key: value for key, value in vars(self).items() if key not in mapped}

    def chunks(
        self, columns: Sequence[str], indices: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Stream (row numbers, columns) in blocks of a few megabytes, by rising row number."""
        for column in columns:
            self.require(column)
        selected = self.dataset.select_columns(list(columns)).with_format("arrow")
        size = CHUNK_BYTES * len(self) // max(selected.data.nbytes, 1)
        size = min(max(size, 1), CHUNK_ROWS)
        ordered = None if indices is None else np.sort(indices)
        for start in range(0, len(self), size):
            block = selected[start : start + size]
            numbers = np.arange(start, start + block.num_rows)
            if ordered is not None:
                numbers = ordered[slice(*np.searchsorted(ordered, (start, start + block.num_rows)))]
                block = block.take(numbers - start)
            if len(numbers):
                yield numbers, block

    def require(self, column: str, flag: str = "") -> None:
        """Raise InputError unless the column exists."""
        if column in self.columns:
            return
        listed = ", ".join(f"'{name}'" for name in self.columns)
        advice = f" Set --data.{flag}." if flag else ""
        raise InputError(
            f"{self.names[0]}: no column '{column}'; columns are {listed}."
            f"{nearest(column, self.columns)}{advice}"
        )

    def values(self, column: str, flag: str = "") -> list[Any]:
        """A whole column in memory; for short values only."""
        self.require(column, flag)
        return self.dataset.data.column(column).to_pylist()
