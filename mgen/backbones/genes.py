"""Gene lists of the cell models: which genes, in which order, and where those of a file are in it.

A list is a table: TSV, gzip or not, with a column gene_name (HGNC symbols) or ensembl_id (ids
without version) or both, one line per gene in the order of the model's input. G genes of a list, N
genes of a file.
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mgen.config import Absent, InputError
from mgen.io.counts import GeneTable
from mgen.io.files import shared_file, shared_folder
from mgen.io.remote import fetched

FOLDER = "genes"  # of the shared data
# Of the names end to end, which every copy has, whatever its further columns: file and sha256.
LISTS = {
    "aido_cell": (
        "aido_cell_genes.tsv.gz",
        "6037e1bc9b3b48a5112ffdc29261383f747a3c3f8b568a8899b0c69d13565df8",
    ),
    "scimilarity": (
        "scimilarity_genes.tsv.gz",
        "0a9aeacf7fc19399426273d8cfab8683253ec56b51be556d42edd115f125b8ca",
    ),
    "geneformer": (
        "geneformer_tokens.tsv.gz",
        "d51cb0ff2b42693be7962eb479167f5f59d2724813a82bc7811a43361de915da",
    ),
}
SYMBOLS = "geneformer_name_to_ensembl.tsv.gz"  # symbols to Ensembl ids
SOURCES = {  # lists that are published as text
    "aido_cell": "https://raw.githubusercontent.com/biomap-research/scFoundation/"
    "d09626a5c1bc30b9c6227378677b61e0b987fe8b/OS_scRNA_gene_index.19264.tsv"
}
SIMULATED = "simulated"  # the list GENE1, GENE2, ... of mgen/data/named/simulate.py

ENSEMBL = re.compile(r"(ENS(?:[A-Z]{3,4})?G\d{11}|FBgn\d{7}|WBGene\d{8})(?:\.\d+)?")
SPECIES = {  # by what Ensembl ids of genes start with
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSSSCG": "pig",
    "ENSMMUG": "macaque",
    "FBgn": "fly",
    "WBGene": "worm",
}


@dataclass(frozen=True)
class Alignment:
    """Where the genes of a file are in a list.

    Attributes:
        places: place of each in the list (N,) int32, -1 where it has none.
        present: which genes of the list the file has (G,).
        by: how they were told, in words.
    """

    places: np.ndarray
    present: np.ndarray
    by: str

    @property
    def known(self) -> int:
        """Genes of the file that are in the list."""
        return int((self.places >= 0).sum())

    @property
    def repeated(self) -> int:
        """Genes of the file that are there a second time or more often."""
        return self.known - int(self.present.sum())


@dataclass(frozen=True)
class GeneList:
    """The genes of a model's input, in order: symbols and Ensembl ids, "" where it has none."""

    symbols: tuple[str, ...]
    ensembl: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def digest(self) -> str:
        return _digest([*self.symbols, *self.ensembl])

    def align(self, table: GeneTable) -> Alignment:
        """The places of a file's genes, by the column of its `var` and the names that fit best.

        Symbols are compared as written, Ensembl ids without their versions. Raises InputError where
        no gene is known, or another species' are.
        """
        best, columns = None, table.columns
        if table.column is not None:
            columns = {table.column: columns[table.column]}
        for column, texts in columns.items():
            where = f"var column '{column}'" if column else "the index of var"
            for kind, names in self._places.items():
                known = map(plain, texts) if kind == "Ensembl ids" else texts
                places = np.array([names.get(text, -1) for text in known], dtype=np.int32)
                if best is None or (places >= 0).sum() > best.known:
                    present = np.zeros(len(self), dtype=bool)
                    present[places[places >= 0]] = True
                    best = Alignment(places, present, f"{kind} in {where}")
        self._refuse(columns, best)
        return best

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        kinds = {"symbols": self.symbols, "Ensembl ids": self.ensembl}
        return {
            kind: {name: place for place, name in enumerate(names) if name}
            for kind, names in kinds.items()
        }

    def _refuse(self, columns: dict[str, tuple[str, ...]], best: Alignment) -> None:
        own = species([*self.symbols, *self.ensembl])
        found = species(text for texts in columns.values() for text in texts)
        if best.known and (not found or not own or found == own):
            return
        some = next(iter(columns.values()))[:3]
        if own and found and found != own:
            raise InputError(
                f"genes such as {', '.join(some)} are of {found}, and this model reads {own} genes "
                f"({best.known:,} of {len(best.places):,} are in its list). Replace them by their "
                "orthologues"
            )
        raise InputError(
            f"none of the {len(best.places):,} genes, such as {', '.join(some)}, is among the "
            f"{len(self):,} of this model, neither by symbol nor by Ensembl id. Is there a column "
            "of var with such names? --data.gene-col names one; --backbone.genes names the list"
        )


def species(names: Iterable[str]) -> str:
    """Whose genes most of these names are: by Ensembl's ids, or by how symbols are written.

    Symbols of mouse and rat genes are in lower case but for the first letter. "" if it cannot be
    told.
    """
    ids, lower, upper = {}, 0, 0
    for name in names:
        if found := ENSEMBL.fullmatch(name):
            start = re.match(r"[A-Za-z]+", found[1])[0]
            ids[start] = ids.get(start, 0) + 1
        elif re.fullmatch(r"[A-Z][A-Z0-9]{2,}", name):
            upper += 1
        elif re.fullmatch(r"[A-Z][a-z0-9]+", name) and "orf" not in name:
            lower += 1
    if ids and sum(ids.values()) > (lower + upper) / 4:
        start = max(ids, key=ids.get)
        return SPECIES.get(start, f"the species of {start}")
    if lower + upper < 5 or max(lower, upper) < 3 * min(lower, upper):
        return ""
    return "mouse" if lower > upper else "human"


def gene_list(kind: str, file: str = "", size: int = 0) -> GeneList:
    """The list `kind` of `LISTS`, or that of a file; of "simulated" `size` genes.

    A list by kind lies in the folder `genes` of $MGEN_SHARED/data, or is fetched from its public
    source, and its names are checked by their sha256. Raises InputError, Absent where it is not to
    be had.
    """
    if not file and kind == SIMULATED:
        return GeneList(tuple(f"GENE{i + 1}" for i in range(size)), ("",) * size)
    return _listed(kind, file, str(shared_folder()))


@functools.lru_cache(maxsize=8)
def _listed(kind: str, file: str, shared: str) -> GeneList:
    if file:
        return _completed(read_genes(shared_file(file)), shared)
    name, digest = LISTS[kind]
    path = Path(shared) / FOLDER / name
    if not path.is_file():
        path = _public(kind, path)
    found = read_genes(path)
    if _digest([s or e for s, e in zip(found.symbols, found.ensembl, strict=True)]) != digest:
        raise InputError(
            f"{path}: not the published list of {kind}: other names, or another order. Replace the "
            "file, or name a list on purpose with --backbone.genes"
        )
    return _completed(found, shared)


def _public(kind: str, wanted: Path) -> Path:
    advice = f"put it at {wanted} (MGEN_SHARED names the folder), or name it with --backbone.genes"
    if kind not in SOURCES:
        raise Absent(
            f"the gene list of this model is published as a pickle, which is never read: {advice}, "
            "as a table with the columns gene_name and ensembl_id in the order of the model"
        )
    try:
        return fetched(SOURCES[kind])
    except InputError as error:
        raise Absent(f"the gene list of this model: {error}; {advice}") from None


def _completed(given: GeneList, shared: str) -> GeneList:
    """With the other kind of name, from the table of symbols, where a list has one kind alone."""
    file = Path(shared) / FOLDER / SYMBOLS
    if (any(given.symbols) and any(given.ensembl)) or not file.is_file():
        return given
    pairs = [(row["gene_name"], row["ensembl_id"]) for row in read_table(file)]
    if any(given.symbols):
        ids = dict(reversed(pairs))
        return GeneList(given.symbols, tuple(ids.get(name, "") for name in given.symbols))
    names = {ensembl: name for name, ensembl in reversed(pairs)}
    return GeneList(tuple(names.get(key, "") for key in given.ensembl), given.ensembl)


def read_genes(path: Path) -> GeneList:
    """A list in a file, or the index of var of an AnnData file.

    Raises InputError for one without such columns, or with names twice.
    """
    if path.suffix == ".h5ad":  # where columns of one gene are summed
        rows = [{"gene_name": name} for name in dict.fromkeys(var_names(path))]
    else:
        rows = read_table(path)
    columns = {"gene_name", "ensembl_id"} & {*(rows[0] if rows else ())}
    if not columns:
        raise InputError(f"{path}: expected a table with a column gene_name or ensembl_id")
    symbols, ensembl = (
        tuple(row.get(column, "") for row in rows) for column in ("gene_name", "ensembl_id")
    )
    for column, names in (("gene_name", symbols), ("ensembl_id", ensembl)):
        given = [name for name in names if name]
        if len({*given}) < len(given):
            twice = next(name for name in given if given.count(name) > 1)
            raise InputError(f"{path}: column {column} has '{twice}' more than once")
    if empty := next(
        (i for i, (s, e) in enumerate(zip(symbols, ensembl, strict=True)) if not s + e), None
    ):
        raise InputError(f"{path}, row {empty + 1} (header not counted): a gene without a name")
    return GeneList(symbols, ensembl)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a TSV, every cell as text ("NA" is a gene). Raises InputError."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of genes: {error}") from None


def var_names(path: Path) -> list[str]:
    """The genes of an AnnData file. Raises InputError."""
    from mgen.io import h5ad

    try:
        with h5ad.library().File(path) as file:
            var = file["var"]
            return var[var.attrs["_index"]].asstr()[:].tolist()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no AnnData file, or a damaged one: {error}") from None


def plain(name: str) -> str:
    """An Ensembl id without its version."""
    found = ENSEMBL.fullmatch(name)
    return found[1] if found else name


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
