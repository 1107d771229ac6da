"""In-silico knockout: what is changed in a cell, what its embedding makes of it, what is ranked.

pytest tests/test_gene_knockout.py
"""

import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from mgen.backbones import load_backbone
from mgen.backbones.genes import GeneList
from mgen.data.sources.places import local_file
from mgen.io.counts import INDEX, Counts, GeneTable, cells_of
from mgen.methods.knockout import perturbable, perturbed, places_of, ranked
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import gene_knockout  # noqa: E402

FILE = str(local_file("bundled:cells_tiny.h5ad"))
MODEL = ["--backbone", "cell_log1p", "--backbone.genes", FILE]  # no network: exact arithmetic


def command(folder, *flags, name: str = "a") -> int:
    given = [*MODEL, "--data.max-rows", 12, "--out", folder, "--name", name, *flags]
    with pytest.raises(SystemExit) as left:
        run(gene_knockout.GeneKnockout, gene_knockout.Config, [*map(str, given)])
    return left.value.code or 0


def table_of(folder, kind: str = "genes.", name: str = "a") -> list[dict]:
    file = folder / "gene_knockout" / name / "predictions" / f"cells_tiny.{kind}parquet"
    return pq.read_table(file).to_pylist()


def tokenizer(values: str = "counts"):
    return load_backbone("cell_log1p", genes=FILE, values=values).tokenizer


def cell(values: dict[int, float], table: GeneTable | None = None) -> Counts:
    table = table or GeneTable({INDEX: tuple(f"GENE{i + 1}" for i in range(5))})
    genes = np.array([*values], dtype=np.int32)
    return Counts(genes, np.array([*values.values()], dtype=np.float32), table)


def as_dict(one: Counts) -> dict[int, float]:
    return dict(zip(one.genes.tolist(), one.values.tolist(), strict=True))


def test_a_gene_is_deleted_or_raised_and_no_other_changes():
    one, reads = cell({0: 2, 3: 6}), tokenizer()
    assert perturbable(one, reads, "delete").tolist() == [0, 3]
    assert perturbable(one, reads, "overexpress").tolist() == [0, 1, 2, 3, 4]
    assert as_dict(perturbed(one, 3, reads, "delete", 0)) == {0: 2}
    assert as_dict(perturbed(one, 3, reads, "overexpress", 1.6)) == {0: 2, 3: 10}  # 9.6, whole
    assert as_dict(perturbed(one, 2, reads, "overexpress", 10)) == {0: 2, 2: 40, 3: 6}  # mean 4
    raised = perturbed(cell({0: np.log1p(3)}), 0, tokenizer("log1p"), "overexpress", 2)
    assert as_dict(raised) == pytest.approx({0: np.log1p(6)})


def test_a_gene_in_two_columns_goes_from_both():
    twice = GeneTable({INDEX: ("GENE1", "GENE2", "GENE1")})
    one = cell({0: 2, 1: 5, 2: 1}, twice)
    assert as_dict(perturbed(one, 0, tokenizer(), "delete", 0)) == {1: 5}
    assert as_dict(perturbed(one, 0, tokenizer(), "overexpress", 2)) == {0: 6, 1: 5}


def test_genes_are_named_by_symbol_or_ensembl_id():
    genes = GeneList(("TP53", "MYC", ""), ("ENSG00000141510", "", "ENSG00000000003"))
    assert places_of(genes, ["MYC", "ENSG00000141510.17", "ENSG00000000003"]) == [1, 0, 2]


@pytest.mark.parametrize("kind", ["delete", "overexpress"])
def test_effects_are_those_of_counts_edited_by_hand(kind, tmp_path):
    anndata = pytest.importorskip("anndata")
    asked = ["GENE7", "GENE20", "GENE300"]
    flags = ["--genes", *asked, "--kind", kind, "--fold", 4, "--train.batch-size", 3]
    assert command(tmp_path, *flags) == 0
    data = anndata.read_h5ad(FILE)[:12].copy()
    network = load_backbone("cell_log1p", genes=FILE)
    before = network.embed(cells_of(data)).double().numpy()
    lines = {line["gene"]: line for line in table_of(tmp_path)}
    assert [*lines] == sorted(lines, key=lambda gene: -lines[gene]["squared_distance"])
    for gene in asked:
        edited, column = data.copy(), data.var_names.get_loc(gene)
        counts = edited.X.toarray()
        had = counts[:, column].copy()
        mean = counts.sum(1) / (counts > 0).sum(1)
        counts[:, column] = 0 if kind == "delete" else np.round(4 * np.where(had, had, mean))
        edited.X = counts
        after = network.embed(cells_of(edited)).double().numpy()
        used = had > 0 if kind == "delete" else had >= 0
        distance = ((after - before) ** 2).sum(1)[used]
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        angle = (1 - (before * after).sum(1) / norms)[used]
        line = lines[gene]
        assert line["cells"] == used.sum()
        assert line["squared_distance"] == pytest.approx(distance.mean(), rel=1e-5)
        assert line["cosine_distance"] == pytest.approx(angle.mean(), rel=1e-4)
        error = distance.std(ddof=1) / np.sqrt(used.sum())
        assert line["squared_distance_se"] == pytest.approx(error, rel=1e-3)
    assert (tmp_path / "gene_knockout/a/figures/cells_tiny/markers.png").stat().st_size > 5000


def test_towards_is_the_fall_of_the_squared_distance_to_the_mean_of_the_named_cells(tmp_path):
    anndata = pytest.importorskip("anndata")
    flags = ["--genes", "GENE7", "--towards", "batch=B", "--group", "batch"]
    assert command(tmp_path, *flags) == 0
    data = anndata.read_h5ad(FILE)[:12].copy()
    network, is_target = load_backbone("cell_log1p", genes=FILE), data.obs["batch"] == "B"
    before = network.embed(cells_of(data)).double().numpy()
    centre = before[is_target].mean(0)
    counts = data.X.toarray()
    moved = ~is_target & (counts[:, 6] > 0)
    counts[:, 6] = 0
    data.X = counts
    after = network.embed(cells_of(data)).double().numpy()
    gain = ((before - centre) ** 2).sum(1) - ((after - centre) ** 2).sum(1)
    (line,) = table_of(tmp_path)
    assert (line["group"], line["cells"]) == ("A", moved.sum())
    assert line["towards"] == pytest.approx(gain[moved].mean(), rel=1e-4)
    assert line["gene"] == "GENE7"


def test_each_cell_is_there_once_whatever_the_batches(tmp_path):
    flags = ["--max-genes", 4, "--min-cells", 1, "--max-cells", 7, "--train.batch-size"]
    assert command(tmp_path, *flags, 64) == command(tmp_path, *flags, 2, name="b") == 0
    one, two = (table_of(tmp_path, "", name) for name in "ab")
    assert len({row["row"] for row in one}) == len(one) == 7
    for a, b in zip(one, two, strict=True):
        assert (a["row"], a["gene"]) == (b["row"], b["gene"])
        np.testing.assert_allclose(a["squared_distance"], b["squared_distance"], rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--genes", "GEN7"], "Did you mean 'GENE7'?"),
        (["--genes", "GENE7", "GENE7"], "again"),
        (["--min-cells", "13"], "lower --min-cells"),
        (["--towards", "batch"], "expected COLUMN=VALUE"),
        (["--towards", "batch=C"], "the column has A, B"),
        (["--group", "celltype"], "no column 'celltype'"),
        (["--kind", "overexpress", "--fold", "0"], "above 0"),
    ],
)
def test_nonsense_is_refused_before_any_pass(flags, says, tmp_path, capfd):
    assert command(tmp_path, *flags) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "gene_knockout").exists()


def test_a_gene_that_no_cell_has_is_counted_aloud(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        "mgen.methods.knockout.perturbable", lambda cell, reads, kind: np.array([6])
    )
    assert command(tmp_path, "--genes", "GENE7", "GENE8") == 0
    assert "1 of 2 genes have no effect to measure, in no cell: GENE8" in capfd.readouterr().out


def test_ranks_are_of_means_in_each_group_with_standard_errors():
    found = [
        {"row": 0, "gene": [0, 1], "squared_distance": [1.0, 5.0]},
        {"row": 1, "gene": [0], "squared_distance": [3.0]},
        {"row": 2, "gene": [1], "squared_distance": [0.5]},
    ]
    genes = GeneList(("A", "B"), ("", ""))
    lines = ranked(iter(found), genes, ["x", "x", "y"].__getitem__, "squared_distance")
    assert [(n["group"], n["rank"], n["gene"], n["cells"]) for n in lines] == [
        ("x", 1, "B", 1),
        ("x", 2, "A", 2),
        ("y", 1, "B", 1),
    ]
    assert lines[1]["squared_distance"] == 2.0
    assert lines[1]["squared_distance_se"] == pytest.approx(1.0)  # sd sqrt(2) / sqrt(2)
    assert lines[0]["squared_distance_se"] is None
