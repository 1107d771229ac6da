"""Named data sets. No torch here: listing the names is instant."""

from typing import Any

from mgen.config import InputError, nearest
from mgen.data.simulate import WILD_TYPE
from mgen.data.table import Table

# Simulated by mgen/data/simulate.py, which states how each label came about.
SIMULATED = {
    "promoters_tiny": "regression: log strength of 1,250 simulated DNA promoters",
    "promoter_classes_tiny": "three classes: sigma factor of 900 simulated DNA promoters",
    "peptides_tiny": "two classes: activity of 900 simulated peptides",
    "hairpins_tiny": "residues and pairs: stem-loops of 600 simulated RNAs",
    "paired_sites_tiny": "no labels: 800 simulated DNAs with five complementary pairs of sites",
    "gc_content_tiny": "regression: share of G and C of 1,000 simulated DNAs",
    "paired_modalities_tiny": "regression: from 800 simulated promoters and proteins, some missing",
    "modifications_tiny": "three labels at once: motifs in 600 simulated RNAs",
    "dms_tiny": "regression: 650 mutants of a simulated peptide, with their wild type",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "promoters_tiny": {"truth_col": "truth"},
    "promoter_classes_tiny": {"truth_col": "truth"},
    "hairpins_tiny": {"y_cols": ("structure",)},
    "paired_sites_tiny": {"y_cols": ()},
    "paired_modalities_tiny": {"truth_col": "truth"},
    "modifications_tiny": {"y_cols": ("motif_a", "motif_b", "motif_c")},
    "dms_tiny": {"x_col": "mutant", "wild_type": WILD_TYPE, "truth_col": "truth"},
}
TABLES = {
    name: Table(name=name, path=f"bundled:{name}.tsv.gz", **OPTIONS.get(name, {}))
    for name in SIMULATED
}


def table(name: str, **options: Any) -> Table:
    """The data set `name` (a preset, a file, a folder or a hub id), with `options` on top."""
    preset = TABLES.get(name)
    if preset is None:
        from mgen.io.tables import is_table  # loads pyarrow

        if not ("/" in name or is_table(name)):
            raise InputError(
                f"no data set '{name}'.{nearest(name, TABLES)} Known: {', '.join(TABLES)}; a file "
                "or folder (./name) and a hub data set (owner/name) work too."
            )
        preset = Table(name=name, path=name)
    return Table(**{**vars(preset), **options})
