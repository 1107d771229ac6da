"""What every recipe promises: its default run learns, repeats, resumes and predicts."""

import json
import shutil
from pathlib import Path

import anndata
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from tiny import fresh_process  # noqa: F401

from mgen.apply import _module
from mgen.data.sources.places import local_file
from mgen.engine.processes import Interrupted
from mgen.loop import Fit
from mgen.task import Task
from mgen.train import run

STEPS, STOP = 14, 6
FEW_HELD_OUT = ["--data.test-fraction", 0.02, "--data.valid-fraction", 0.04]
LIGHTER = {
    "conditional_masked_diffusion": ["--timesteps", 2],
    **dict.fromkeys(("cell_classification", "cell_regression"), ["--train.batch-size", 8]),
}


def module_of(name: str):
    """The recipe, imported as `mgen.load_run` does."""
    return _module(ROOT / "recipes" / f"{name}.py")


def task_of(name: str) -> type[Task]:
    kinds = [kind for kind in vars(module_of(name)).values() if isinstance(kind, type)]
    (task,) = [kind for kind in kinds if issubclass(kind, Task) and kind is not Task]
    return task


NAMES = sorted(p.stem for p in (ROOT / "recipes").glob("*.py") if p.stem != "plain_loop")
TRAINED = [name for name in NAMES if task_of(name).trains]
LEARNING = [name for name in TRAINED if module_of(name).Config().train.epochs]  # step by step
APPLIED = [name for name in NAMES if not task_of(name).trains]


def command(name: str, *flags: str | Path) -> int:
    """Exit code of a recipe's command line."""
    with pytest.raises(SystemExit) as left:
        run(task_of(name), module_of(name).Config, [*map(str, flags)])
    return left.value.code or 0


def lines(folder: Path, split: str) -> list[dict]:
    """What a run logged of a split, without times."""
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k != "time"} for line in found if line["split"] == split
    ]


def final(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted((folder / "checkpoints" / f"step-{STEPS}").glob("*.safetensors")):
        tensors |= {f"{file.stem}/{key}": value for key, value in load_file(file).items()}
    return tensors


@pytest.fixture(scope="module", params=LEARNING)
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    """A recipe and the run directory of its default run, cut to a few steps."""
    out = tmp_path_factory.mktemp(request.param)
    flags = ["--train.max-steps", STEPS, "--train.save-every", STOP, "--train.log-every", 1]
    flags += [
        *FEW_HELD_OUT,
        *LIGHTER.get(request.param, ()),
        "--train.workers",
        0,
        "--out",
        out,
        "--name",
        "a",
    ]
    assert command(request.param, *flags) == 0
    return request.param, out / request.param / "a"


def test_the_default_run_learns(trained):
    losses = [line["loss"] for line in lines(trained[1], "train")]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_run_from_the_saved_settings_that_was_stopped_and_resumed_is_the_same(
    trained, monkeypatch
):
    name, folder = trained
    step = Fit.step

    def stop(fit, group, batches):
        if fit.state.step == STOP + 2:
            raise Interrupted(15)
        return step(fit, group, batches)

    flags = ["--config", folder / "config.yaml", "--out", folder.parents[1], "--name", "b"]
    monkeypatch.setattr(Fit, "step", stop)
    assert command(name, *flags) == 128 + 15
    monkeypatch.undo()
    other = folder.parent / "b"
    shutil.rmtree(other / "checkpoints" / f"step-{STOP + 2}")  # as if killed, not asked to stop
    assert command(name, *flags, "--resume") == 0
    for split in ("train", "valid", "test"):
        assert lines(other, split) == lines(folder, split)
    ours, theirs = final(folder), final(other)
    assert ours and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_predicts_rows_without_labels(trained):
    name, folder = trained
    cfg = module_of(name).Config()
    table = first_rows(cfg, folder.parent / "new", {"id", *inputs(name, cfg)})
    assert command(name, "predict", "--run", folder, "--data.path", table) == 0
    found = pq.read_table(folder / "predictions" / "new.parquet")
    assert found.column("row").to_pylist() == [*range(12)]
    assert found.num_columns > 1


def first_rows(cfg, stem: Path, columns: set[str]) -> Path:
    """A file of the first 12 rows of a recipe's table, with these columns."""
    rows = cfg.data.open(split=False)
    if rows.genes:
        data = anndata.read_h5ad(local_file(cfg.data.path))[:12].copy()
        data.obs = data.obs[[column for column in data.obs if column in columns]]
        data.write_h5ad(stem.with_suffix(".h5ad"))
        return stem.with_suffix(".h5ad")
    table = stem.with_suffix(".jsonl")
    kept = [{k: v for k, v in row.items() if k in columns} for row in rows.take(range(12))]
    table.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return table


def inputs(name: str, cfg) -> set[str]:
    """The columns that a recipe reads; what is generated on condition reads its labels too."""
    given = set(cfg.data.y_cols) if name.startswith("conditional_") else set()
    return given | {cfg.data.x_col} | {*getattr(cfg, "x_cols", ())}


@pytest.mark.parametrize("name", [*APPLIED])
def test_a_recipe_that_only_applies_writes_one_entry_per_row(name, tmp_path):
    if name == "cell_integration":
        pytest.importorskip("scib_metrics", reason="cell_integration needs scib-metrics")
    cfg = module_of(name).Config()
    known = cfg.data.open(split=False).columns
    kept = {column for column in known if not column.startswith("given_")}
    table = first_rows(cfg, tmp_path / "some", kept)
    assert command(name, "--data.path", table, "--out", tmp_path, "--name", "a") == 0
    found = pq.read_table(tmp_path / name / "a" / "predictions" / "some.parquet")
    assert found.column("row").to_pylist() == [*range(12)]
    assert found.num_columns > 1
