"""An epoch of a frozen backbone from its cache against one that computes; the bytes kept.

`python -m tests.benchmarks.cache` alone; `make bench` runs it among the others. ESM-2 8M with
random weights, random proteins of 16 to 510 letters; a head on every token, one on their mean.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

ROWS, BATCH, WIDTH, EPOCHS = 256, 16, 320, 6
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
HEADS = {"token": "token_ffn", "pooled": "mean_pool_mlp"}


def cache() -> dict[str, dict[str, float]]:
    """Seconds of a `fit` epoch: without a cache, of one that fills it, and of later ones."""
    from mgen.report import console

    console.quiet = True
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name), {}
        table = write_table(folder / "table.tsv")
        for level in HEADS:
            kept = folder / f"cache-{level}"
            (without,), _ = epochs(folder, table, level, "", 1)
            (filling, *later), tokens = epochs(folder, table, level, str(kept), EPOCHS)
            numbers = WIDTH * (tokens if level == "token" else ROWS)
            size = sum(file.stat().st_size for file in kept.rglob("*"))
            report[level] = {
                "without_s": round(without, 2),
                "filling_s": round(filling, 2),
                "later_s": round(median(later), 3),
                "without_over_later": round(without / median(later), 1),
                "bytes_over_outputs": round(size / (4 * numbers), 4),
            }
    return report


def write_table(file: Path) -> Path:
    """Random proteins, each with a number and a class per residue; all rows train."""
    rng, lines = np.random.default_rng(0), ["sequence\tlabel\tclasses"]
    for length in rng.integers(16, 511, ROWS):
        sequence, classes = ("".join(rng.choice(list(s), length)) for s in (RESIDUES, "HEC"))
        lines.append(f"{sequence}\t{rng.normal():.4f}\t{classes}")
    file.write_text("\n".join(lines) + "\n")
    return file


def epochs(folder: Path, table: Path, level: str, kept: str, count: int) -> tuple[list, int]:
    """Seconds of each of `count` epochs of a run, and the tokens of one epoch."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    import sequence_regression
    import token_classification

    from mgen.adapters import adapter
    from mgen.backbones import backbone
    from mgen.data import Table
    from mgen.loop import Fit, Train

    recipe, kind, label = {
        "token": (token_classification, token_classification.TokenClassification, "classes"),
        "pooled": (sequence_regression, sequence_regression.SequenceRegression, "label"),
    }[level]
    cfg = recipe.Config(
        backbone=backbone("esm2_8m", random_weights=True, frozen=True, cache=kept),
        adapter=adapter(HEADS[level]),
        data=Table(path=str(table), y_cols=(label,), test_fraction=0.0, valid_fraction=0.0),
        train=Train(epochs=count, batch_size=BATCH, workers=0, eval_every=10**6),
    )
    rows, task = cfg.data.open(), kind(cfg)
    task.check(rows, ("train", "valid", "test"))
    task.setup()
    ends, steps = [], ROWS // BATCH

    class Timed(Fit):
        def step(self, *given):
            row = super().step(*given)
            if (self.state.step + 1) % steps == 0:
                ends.append(time.perf_counter())
            return row

    with tempfile.TemporaryDirectory(dir=folder) as out:
        fit = Timed(task, rows, task.lengths, cfg.train, Path(out))
        assert fit.total == count * steps, fit.total
        begin = time.perf_counter()
        fit.run()
    return list(np.diff([begin, *ends])), int(task.lengths.sum())


if __name__ == "__main__":
    print(json.dumps(cache(), indent=2))
