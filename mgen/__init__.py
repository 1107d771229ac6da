"""Foundation models of biology, made usable: one command or three lines each.

    import mgen

    backbone = mgen.load_backbone("esm2_8m")
    vectors = backbone.embed(["MKTAYIAK", "GATTACA"], pool="mean")  # (2, width), input order
    columns = mgen.load_run("runs/sequence_regression/demo").predict(["TTGACATATAAT"])

Importing this package loads nothing else; each function loads what it needs.
"""

from collections.abc import Sequence
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


def load_run(
    name: str | Path,
    checkpoint: str = "best",
    recipe: str | Path = "",
    revision: str = "main",
    backbone: str | Path = "",
    remote_code: bool = False,
    ensemble: Sequence[str | Path] = (),
) -> "Run":
    """A trained run, of a folder or the hub: `.predict(rows)` gives its prediction file's columns.

    `recipe` is the file of the run's task where it is not one of the recipes beside the package,
    `backbone` the base of a bundle where it has another name or folder here; another base than that
    which the run was trained on is refused. `revision` is that of a run on the hub. `remote_code`
    lets the Python files run that the backbone of some runs brings along. With `ensemble`, further
    runs of the same recipe and rows, predictions are means over all, and say their spread.
    """
    from mgen.apply import Run

    return Run(name, checkpoint, recipe, revision, backbone, remote_code, ensemble)
