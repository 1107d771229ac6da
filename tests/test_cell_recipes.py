"""Recipes of cells: classes that are kept, labels of any kind, and input that is refused."""

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from scipy.sparse import csr_matrix

from mgen.data.named import simulate
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))
FILE = simulate.BUNDLED / "cells_tiny.h5ad"
SHORT = ("--train.max-steps", 2, "--train.batch-size", 8, "--train.workers", 0)


def command(recipe: str, *flags) -> int:
    module = __import__(recipe)
    name = "".join(word.capitalize() for word in recipe.split("_"))
    with pytest.raises(SystemExit) as left:
        run(getattr(module, name), module.Config, [str(flag) for flag in flags])
    return left.value.code


@pytest.fixture(scope="module")
def data() -> anndata.AnnData:
    return anndata.read_h5ad(FILE)


def test_classes_are_those_of_the_run_whatever_a_file_has(data, tmp_path):
    assert command("cell_classification", *SHORT, "--out", tmp_path, "--name", "a") == 0
    some = data[data.obs["cell_type"] == "macrophage"].copy()
    some.write_h5ad(tmp_path / "some.h5ad")
    folder = tmp_path / "cell_classification" / "a"
    flags = ("predict", "--run", folder, "--data.path", tmp_path / "some.h5ad")
    assert command("cell_classification", *flags) == 0
    found = pq.read_table(folder / "predictions" / "some.parquet")
    names = [n for n in found.column_names if n.startswith("probability_")]
    assert names == [f"probability_{n}" for n in ("B cell", "T cell", "macrophage", "stroma")]
    assert found.num_rows == some.n_obs
    facts = json.loads((folder / "checkpoints" / "best" / "facts.json").read_text())
    assert facts["classes"] == ["B cell", "T cell", "macrophage", "stroma"]


@pytest.mark.parametrize("kind", [int, bool])
def test_labels_may_be_whole_numbers_or_truth_values(data, kind, tmp_path):
    some = data[:100].copy()
    some.obs["old"] = (some.obs["age"] > 50).astype(kind)
    some.write_h5ad(tmp_path / "some.h5ad")
    flags = ("--data", tmp_path / "some.h5ad", "--data.y-cols", "old", "--dry-run")
    assert command("cell_classification", *flags) == 0


COUNTS = np.random.default_rng(0).poisson(2, (30, 300)).astype(np.float32)
GENES = [f"GENE{i + 1}" for i in range(300)]


def table(folder, counts=COUNTS, genes=GENES, **obs):
    columns = {"cell_type": ["a", "b", "c"] * 10} | obs
    frame = pd.DataFrame(columns, index=[f"c{i}" for i in range(len(counts))])
    path = folder / "cells.h5ad"
    var = pd.DataFrame(index=[*genes])
    anndata.AnnData(csr_matrix(counts), frame, var).write_h5ad(path)
    return path


def files(folder, **given):
    """A file of each name, as `table` makes it of its options; what names all of them."""
    for name, options in given.items():
        table(folder, **options).rename(folder / f"{name}.h5ad")
    return folder / "*.h5ad"


def with_entry(value: float) -> np.ndarray:
    counts = COUNTS.astype(np.float64)
    counts[4, 7] = value
    return counts


IN_TEST = ["train"] * 24 + ["valid"] * 3 + ["test"] * 3
ONLY_IN_TEST = ["a", "b"] * 12 + ["a"] * 3 + ["a", "b", "new"]
BAD = {
    "no such column of obs": ({}, ["--data.split-col", "donor"], "no column 'donor'"),
    "no gene in common": ({"genes": [f"X{i}" for i in range(300)]}, [], "none of the 300 genes"),
    "genes of mice": (
        {"genes": [f"ENSMUSG{i:011d}" for i in range(300)]},
        ["--backbone.genes", "human.tsv"],
        "are of mouse",
    ),
    "logarithms": ({"counts": np.log1p(COUNTS)}, [], "They look like logarithms"),
    "counts said to be logarithms": (
        {},
        ["--backbone.values", "log1p"],
        "all values are whole numbers",
    ),
    "a column of the name of counts": ({"sequence": range(30)}, [], "Set --data.x-col counts"),
    "counts as a column to copy": (
        {},
        ["--columns", "sequence"],
        "--columns sequence: no such column",
    ),
    "a count that float32 does not hold": (
        {"counts": with_entry(2.0**24 + 1)},
        [],
        "a count of 16777217.0, more than",
    ),
    "a negative count": ({"counts": with_entry(-1)}, [], "row 5"),
    "no number": ({"counts": with_entry(np.nan)}, [], "gene GENE8: nan is no count"),
    "no coordinates": (
        {},
        ["--backbone", "aido_tissue_debug", "--data.neighbours", "3"],
        "no column 'spatial_x'",
    ),
    "neighbours of a model of one cell": (
        {"x": range(30), "y": range(30)},
        ["--data.neighbours", "3", "--data.position-cols", "x", "y"],
        "reads one cell at a time",
    ),
    "places that are no whole numbers": (
        {"x": np.linspace(0, 9, 30), "y": range(30)},
        ["--backbone", "aido_tissue_debug", "--backbone.rope2d-use-xy", "--data.neighbours", "3"]
        + ["--data.position-cols", "x", "y"],
        "whole numbers from 0 to 302",
    ),
    "a class only in test": (
        {"cell_type": ONLY_IN_TEST, "split": IN_TEST},
        ["--data.split-col", "split"],
        "new",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_wrong_input_is_refused_before_weights_load(what, tmp_path, capsys, monkeypatch):
    columns, flags, message = BAD[what]
    monkeypatch.chdir(tmp_path)
    human = "".join(f"ENSG{i:011d}\n" for i in range(300))
    (tmp_path / "human.tsv").write_text("ensembl_id\n" + human)
    path = table(tmp_path, **columns)
    monkeypatch.setattr("mgen.task.Task.setup", None)  # what loads weights
    given = ["--data", path, "--data.y-cols", "cell_type", *flags, "--out", tmp_path / "runs"]
    assert command("cell_classification", *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error ") and said.count("error ") == 1 and message in said
    assert not (tmp_path / "runs").exists()


def test_a_file_cut_short_is_refused(tmp_path, capsys):
    path = table(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    flags = ["--data", path, "--data.y-cols", "cell_type", "--out", tmp_path / "runs"]
    assert command("cell_classification", *flags) == 2
    assert "cells.h5ad" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_second_file_without_known_genes_is_refused_by_name(tmp_path, capsys):
    both = files(tmp_path, a={}, b={"genes": [f"X{i}" for i in range(300)]})
    flags = ["--data", both, "--data.y-cols", "cell_type", "--dry-run"]
    assert command("cell_classification", *flags) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "b.h5ad" in said and "a.h5ad" not in said and "none of the 300 genes" in said


def test_columns_of_other_types_in_other_files_are_left_out_aloud_unless_named(tmp_path, capsys):
    both = files(tmp_path, a={"depth": np.arange(30)}, b={"depth": np.arange(30) / 2})
    flags = ["--data", both, "--data.y-cols", "cell_type", "--dry-run"]
    assert command("cell_classification", *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "left out, as their types differ between files: 'depth' (int64 in" in said
    assert command("cell_classification", *flags, "--data.stratify-col", "depth") == 2
    assert "column 'depth' (int64 in" in " ".join(capsys.readouterr().err.split())


def test_cells_without_counts_and_rare_classes_are_counted_aloud(tmp_path, capsys):
    counts = COUNTS.copy()
    counts[[3, 8]] = 0
    kinds = ["a", "b"] * 13 + ["c"] * 4
    path = table(tmp_path, counts=counts, cell_type=kinds, split=["train"] * 29 + ["test"])
    flags = ["--data", path, "--data.y-cols", "cell_type", "--data.split-col", "split", "--dry-run"]
    assert command("cell_classification", *flags, "--data.valid-fraction", 0) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2 of 30 cells have no count" in said
        and "1 of 3 classes have fewer than 10 training rows, such as 'c' with 3" in said
    )


def test_a_name_for_what_is_written_into_a_run_is_refused(data, tmp_path, capsys):
    flags = ["--data.max-rows", 60, *SHORT, "--out", tmp_path, "--name", "one"]
    assert command("cell_classification", *flags) == 0
    run_folder = tmp_path / "cell_classification" / "one"
    assert command("cell_classification", "test", "--run", run_folder, "--name", "two") == 2
    assert "--name is that of a new run" in " ".join(capsys.readouterr().err.split())


def test_a_place_that_cannot_be_written_is_one_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--data.max-rows", 60, "--train.max-steps", 1, "--train.workers", 0]
    assert command("cell_classification", *flags, "--out", tmp_path / "file" / "runs") == 2
    said = capsys.readouterr().err
    assert said.count("error ") == 1 and str(tmp_path / "file") in " ".join(said.split())


def test_a_tissue_by_coordinates_trains_and_has_no_vectors_of_genes(tmp_path, capsys):
    path = table(tmp_path, x=range(30), y=[i % 4 for i in range(30)])
    tissue = ["--backbone", "aido_tissue_debug", "--backbone.rope2d-use-xy"]
    tissue += ["--data.neighbours", 2, "--data.position-cols", "x", "y"]
    flags = ["--data", path, "--data.y-cols", "cell_type", *tissue, *SHORT, "--out", tmp_path]
    assert command("cell_classification", *flags) == 0
    flags = ["--data", path, "--data.y-cols", *tissue, "--pool", "none", "--out", tmp_path]
    assert command("embed", *flags) == 2
    assert "not told which gene is which" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_five_folds_of_blood_cells_give_the_published_baseline(shared, tmp_path, monkeypatch):
    """0.843 and 0.686: means of logistic regressions by another program (the data's README)."""
    monkeypatch.chdir(ROOT)
    settings = ROOT / "recipes" / "configs" / "logistic_regression" / "cells_pbmc68k_log1p.yaml"
    found = []
    for fold in range(5):
        flags = ["--config", settings, "--data.fold", fold, "--out", tmp_path, "--name", fold]
        assert command("logistic_regression", *flags) == 0
        run_folder = tmp_path / "logistic_regression" / str(fold)
        found.append(json.loads((run_folder / "results.json").read_text())["test"])
    means = [np.mean([fold[name] for fold in found]) for name in ("accuracy", "f1")]
    assert means == pytest.approx([0.843, 0.686], abs=0.01)
