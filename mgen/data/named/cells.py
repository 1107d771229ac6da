"""Published data sets of cells and of tissue: one entry each. No torch.

Facts are as in published.py: those of loaders and hub pages, "unknown" where they were not seen.
"""

from typing import Any

from mgen.data.named.published import (
    CELL_NUMBERS,
    CELL_TYPES,
    EMBED,
    UNKNOWN,
    ZHENG_PAPER,
    Entry,
)
from mgen.data.table import Table
from mgen.io.files import SHARED_PREFIX

SCTAB_PAPER = "Fischer et al. 2024, doi:10.1038/s41467-024-51059-5"
SEGERSTOLPE_PAPER = "Segerstolpe et al. 2016, doi:10.1016/j.cmet.2016.08.020"
TAHOE_PAPER = "Zhang et al. 2025, doi:10.1101/2025.02.20.639398"
CELL_TASKS, TISSUE_TASKS = (
    f"hf://datasets/genbio-ai/{kind}-downstream-tasks" for kind in ("cell", "tissue")
)
PLATE = "plate1_filt_Vevo_Tahoe100M_WServicesFrom_ParseGigalab.h5ad"
NEAR = {"neighbours": 10, "position_cols": ("x", "y")}
ENDS = {"train_split": "*.train", "valid_split": "*.val", "test_split": "*.test"}  # of stems


def _cells(
    name: str,
    path: str,
    facts: tuple[str, str, str, str],
    citation: str,
    note: str = "",
    flags: str = "",
    source: str = "",
    **options: Any,
) -> Entry:
    """A set of cells; facts: task, recipe, metric, rows."""
    table = Table(**{"name": name, "path": path, "x_col": "counts", **options})
    terms = (*facts, UNKNOWN, citation, source)
    return Entry(table, "Cells and tissue of AIDO.Cell", "cell", *terms, flags=flags, note=note)


CELLS = (
    *(
        _cells(
            name,
            f"{CELL_TASKS}/{folder}/*.h5ad",
            (what, CELL_TYPES, "f1", rows),
            paper,
            y_cols=("cell_type_label",),
            train_split=f"{folder}_train",
            valid_split=f"{folder}_valid",
            test_split=f"{folder}_test",
        )
        for name, folder, what, rows, paper in (
            ("zheng68k", "zheng", "type of blood cells, 11 classes", "", ZHENG_PAPER),
            (
                "segerstolpe",
                "Segerstolpe",
                "type of cells of the pancreas, 13 classes",
                "1,279 / 427 / 427",
                SEGERSTOLPE_PAPER,
            ),
        )
    ),
    _cells(
        "sctab",
        f"{SHARED_PREFIX}sctab/*",
        ("type of cells of many organs, 164 classes", CELL_TYPES, "f1", UNKNOWN),
        SCTAB_PAPER,
        note="a TileDB-SOMA experiment (needs tiledbsoma) or a file per split: train, val, test",
        source="github.com/theislab/scTab",
        y_cols=("cell_type",),
        valid_split="val",
    ),
    _cells(
        "blood_clock",
        f"{CELL_TASKS}/clocks/blood/effector_memory_CD8-positive_alpha-beta_T_cell.h5ad",
        ("age of the donor by an effector memory CD8 T cell", CELL_NUMBERS, "spearman", ""),
        UNKNOWN,
        y_cols=("numeric_age",),
        split_col="split",
        valid_split="val",
    ),
    _cells(
        "tahoe_drugs",
        f"{SHARED_PREFIX}tahoe/{PLATE}",
        ("drug that a cell of line CVCL_0546 was given, 93 classes", CELL_TYPES, "f1", UNKNOWN),
        TAHOE_PAPER,
        note="70 / 15 / 15 of the cells at random: equal wells are on both sides",
        source=f"Tahoe-100M of the Arc Virtual Cell Atlas, h5ad/{PLATE}.gz, unpacked",
        y_cols=("drug",),
        only=("cell_line=CVCL_0546",),
        test_fraction=0.15,
        valid_fraction=0.15 / 0.85,
        split_seed=1234,
    ),
    _cells(
        "niche_liver",
        f"{TISSUE_TASKS}/niche_type_classification/*.h5ad",
        ("niche of cells of a liver by CosMx, six classes", CELL_TYPES, "f1", ""),
        UNKNOWN,
        flags="--backbone aido_tissue_3m",
        y_cols=("niche_label",),
        **ENDS,
        **NEAR,
    ),
    _cells(
        "density_lung",
        f"{TISSUE_TASKS}/cell_density/*.h5ad",
        ("density of cells around a cell of a lung by Xenium", CELL_NUMBERS, "mae", ""),
        UNKNOWN,
        note="the name of its column of labels is not known here: --data.y-cols",
        flags="--backbone aido_tissue_3m",
        y_cols=("density",),
        **ENDS,
        **NEAR,
    ),
    _cells(
        "xenium_lung",
        f"{SHARED_PREFIX}xenium_lung/processed_fetal_lung_visium_xenium.xenium.convert.h5ad",
        ("cells of a fetal lung by Xenium, to embed", EMBED, "none", UNKNOWN),
        UNKNOWN,
        source="the fetal lung of scGPT-spatial, aligned to the 19,264 genes",
        flags="--backbone aido_tissue_3m",
        y_cols=(),
        **NEAR,
    ),
)
