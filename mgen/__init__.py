"""Foundation models of biology, made usable: one command or three lines each.

    import mgen

    backbone = mgen.load_backbone("esm2_8m")
    vectors = backbone.embed(["MKTAYIAK", "GATTACA"], pool="mean")  # (2, width), input order
    columns = mgen.load_run("runs/sequence_regression/demo").predict(["TTGACATATAAT"])

Importing this package loads nothing else; each function loads what it needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgen.apply import Run
    from mgen.backbones.sequence import SequenceBackbone


def load_backbone(name: str | Path, **options: Any) -> "SequenceBackbone":
    """A pretrained network in eval mode, by zoo name, hub id or checkpoint folder.

    `options` are those of `--backbone.*` (`mgen.backbones.Backbone`).
    """
    from mgen.backbones import load_backbone

    return load_backbone(str(name), **options)


def load_run(folder: str | Path, checkpoint: str = "best", recipe: str | Path = "") -> "Run":
    """A trained run: `.predict(rows)` gives the columns of its prediction file.

    `recipe` is the file of the run's task where it is not one of the recipes beside the package.
    """
    from mgen.apply import Run

    return Run(folder, checkpoint, recipe)
