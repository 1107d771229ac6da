"""Named data sets: bundled ones, files of others, and those of the hub. No torch."""

from typing import Any

from mgen.config import InputError, unknown
from mgen.data.named.benchmarks import BENCHMARKS
from mgen.data.named.cells import CELLS
from mgen.data.named.published import (
    CELL_TYPES,
    CLASSES,
    FUSED,
    LANGUAGE,
    NUMBERS,
    PUBLISHED,
    RESIDUES,
    VARIANTS,
    Entry,
)
from mgen.data.named.simulate import WILD_TYPE
from mgen.data.sources.places import BUNDLED_PREFIX
from mgen.data.table import Table


def _simulated(
    name: str,
    modality: str,
    task: str,
    recipe: str,
    metric: str,
    rows: str,
    file: str = "",
    **options: Any,
) -> Entry:
    """A table of mgen/data/named/simulate.py, which states how each label came about."""
    table = Table(name=name, path=f"{BUNDLED_PREFIX}{file or name + '.tsv.gz'}", **options)
    terms = ("mgen: part of this package", "none: simulated, mgen/data/named/simulate.py")
    return Entry(table, "Bundled, simulated", modality, task, recipe, metric, rows, *terms)


_BUNDLED = (
    _simulated(
        "promoters_tiny",
        "dna",
        "log strength of DNA promoters",
        NUMBERS,
        "spearman",
        "1,250",
        truth_col="truth",
    ),
    _simulated(
        "promoter_classes_tiny",
        "dna",
        "sigma factor of DNA promoters, three classes",
        CLASSES,
        "accuracy",
        "900",
        truth_col="truth",
    ),
    _simulated(
        "peptides_tiny", "protein", "activity of peptides, two classes", CLASSES, "auroc", "900"
    ),
    _simulated(
        "hairpins_tiny",
        "rna",
        "structure of RNA stem-loops, per residue; column pairs: base pairs",
        RESIDUES,
        "accuracy",
        "600",
        y_cols=("structure",),
    ),
    _simulated(
        "paired_sites_tiny",
        "dna",
        "no labels: DNA with five complementary pairs of sites",
        LANGUAGE,
        "accuracy",
        "800",
        y_cols=(),
    ),
    _simulated("gc_content_tiny", "dna", "share of G and C in DNA", NUMBERS, "spearman", "1,000"),
    _simulated(
        "paired_modalities_tiny",
        "dna",
        "a number by a promoter and a protein, some missing",
        FUSED,
        "spearman",
        "800",
        truth_col="truth",
    ),
    _simulated(
        "modifications_tiny",
        "rna",
        "three labels at once: motifs in RNA",
        CLASSES,
        "auroc",
        "600",
        y_cols=("motif_a", "motif_b", "motif_c"),
    ),
    _simulated(
        "dms_tiny",
        "protein",
        "effect of mutations of a peptide",
        VARIANTS,
        "spearman",
        "650",
        x_col="mutant",
        wild_type=WILD_TYPE,
        truth_col="truth",
    ),
    _simulated(
        "cells_tiny",
        "cell",
        "type of the cells of a tissue, four classes; columns age, batch, niche, density",
        CELL_TYPES,
        "f1",
        "400",
        file="cells_tiny.h5ad",
        x_col="counts",
        y_cols=("cell_type",),
        position_cols=("x", "y"),
    ),
)
ZOO: dict[str, Entry] = {
    entry.name: entry for entry in (*_BUNDLED, *BENCHMARKS, *PUBLISHED, *CELLS)
}


def table(name: str, **options: Any) -> Table:
    """The data set `name` (a preset, a file, a folder or a hub id), with `options` on top."""
    if name in ZOO:
        preset = ZOO[name].table
    else:
        from mgen.io.tables import is_table  # loads pyarrow

        if not ("/" in name or is_table(name)):
            raise InputError(
                f"{unknown('data set', name, ZOO)} A file or folder (./name) and a hub data set "
                "(owner/name) work too."
            )
        preset = Table(name=name, path=name)
    return Table(**{**vars(preset), **options})
