"""Integration metrics, against scikit-learn and arithmetic.

pytest tests/test_integration_metrics.py -m slow
"""

import importlib.util
import sys

import numpy as np
import pytest
from conftest import ROOT

from mgen.backbones import load_backbone
from mgen.data import table
from mgen.data.sources.places import local_file
from mgen.methods import integration
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import cell_integration  # noqa: E402

needs_scib = pytest.mark.skipif(
    not importlib.util.find_spec("scib_metrics"), reason="needs scib-metrics"
)
FILE = str(local_file("bundled:cells_tiny.h5ad"))


def command(folder, *flags) -> int:
    given = ["--backbone", "cell_log1p", "--backbone.genes", FILE, "--out", folder, "--name", "a"]
    with pytest.raises(SystemExit) as left:
        run(cell_integration.CellIntegration, cell_integration.Config, [*map(str, given), *flags])
    return left.value.code or 0


@pytest.mark.slow  # compiles for most of a minute
@needs_scib
def test_metrics_are_those_of_other_code():
    from scipy.sparse.csgraph import connected_components
    from sklearn.metrics import silhouette_samples, silhouette_score
    from sklearn.neighbors import kneighbors_graph

    rng = np.random.default_rng(0)
    labels, batches = np.repeat([0, 1, 2], 40), np.tile([0, 1], 60)
    x = (8 * np.eye(3)[labels] + rng.normal(0, 1, (120, 3))).astype(np.float32)
    found = integration.scores(x, labels, batches, x)
    asw = (silhouette_score(x, labels) + 1) / 2
    assert found["silhouette_label"] == pytest.approx(asw, abs=1e-5)
    assert found["isolated_labels"] == pytest.approx(asw, abs=1e-5)  # labels are in all batches
    within = [
        1 - np.abs(silhouette_samples(x[labels == k], batches[labels == k])).mean()
        for k in range(3)
    ]
    assert found["silhouette_batch"] == pytest.approx(np.mean(within), abs=1e-5)
    assert found["nmi"] == found["ari"] == pytest.approx(1)  # three far clusters, found again
    assert found["clisi"] == pytest.approx(1, abs=1e-3)
    graph = kneighbors_graph(x, 15, include_self=True)
    largest = []
    for k in range(3):
        own = graph[labels == k][:, labels == k]
        sizes = np.bincount(connected_components(own, connection="strong")[1])
        largest.append(sizes.max() / sizes.sum())
    assert found["graph_connectivity"] == pytest.approx(np.mean(largest))
    assert found["pcr_comparison"] == 0  # nothing was integrated
    assert found["ilisi"] > 0.8
    biology = np.mean([found[name] for name in integration.BIOLOGY])
    batch = np.mean([found[name] for name in integration.BATCHES])
    assert found["total"] == pytest.approx(0.6 * biology + 0.4 * batch)


def test_the_baseline_is_the_pca_of_normalised_counts():
    pytest.importorskip("sklearn")
    rows = table("cells_tiny", max_rows=30).open(split=False)
    network = load_backbone("cell_log1p", genes=FILE)
    ours = integration.components(rows, np.arange(30), network.tokenizer)
    dense = np.zeros((30, 300))
    for i in range(30):
        cell = rows.cell(i)
        dense[i, cell.genes] = np.log1p(1e4 * cell.values / cell.values.sum())
    centred = dense - dense.mean(0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    assert ours.shape == (30, 29)
    np.testing.assert_allclose(np.abs(ours), np.abs((left * lengths)[:, :29]), atol=1e-3)


def test_without_scib_metrics_it_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    assert command(tmp_path) == 2
    assert "pip install scib-metrics" in capfd.readouterr().err
    assert not (tmp_path / "cell_integration" / "a").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-col", "donor"], "no column 'donor'"),
        (["--data.only", "batch=A"], "column 'batch': expected two values or more"),
    ],
)
def test_columns_are_looked_at_before_any_pass(flags, says, tmp_path, capfd):
    assert command(tmp_path, *flags) == 2
    assert says in capfd.readouterr().err
