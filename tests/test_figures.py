import time

import numpy as np
import pytest

from mgen.figures import (
    _roc_curve,
    classification_figures,
    regression_figure,
    regression_figures,
)

rng = np.random.default_rng(0)


def size(path):
    """Width and height in a PNG's header."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_regression_figure_is_a_png_of_readable_size(tmp_path):
    measured = rng.normal(size=300)
    path = regression_figure(
        tmp_path / "figures" / "a.png", measured, measured, "strength", {"r2": 1.0}
    )
    assert min(size(path)) >= 600


def test_regression_figure_of_a_million_rows_stays_small_and_quick(tmp_path):
    measured = rng.normal(size=1_000_000)
    start = time.process_time()
    path = regression_figure(tmp_path / "a.png", measured, measured + 1)
    assert path.stat().st_size < 300_000
    assert time.process_time() - start < 20


def test_regression_figures_are_named_after_the_columns(tmp_path):
    values = rng.normal(size=(20, 2))
    paths = regression_figures(tmp_path, ["Tm (C)", "kcat/Km"], values, values)
    assert [path.name for path in paths] == ["0_Tm_C_.png", "1_kcat_Km.png"]
    assert all(path.is_file() for path in paths)


def test_figures_survive_no_rows_and_non_finite_rows(tmp_path):
    regression_figure(tmp_path / "a.png", [], [])
    regression_figure(tmp_path / "b.png", [1, 2, np.nan], [1, np.inf, 3])
    classification_figures(tmp_path, [1, 1], [[0.2, 0.8], [0.9, 0.1]], ["no", "yes"])


@pytest.mark.parametrize(
    ("labels", "names"),
    [(rng.integers(0, 2, 50), 2), (rng.integers(0, 30, 400), 30), (rng.integers(0, 2, (50, 3)), 3)],
)
def test_classification_figures_by_kind_of_labels(tmp_path, labels, names):
    probabilities = rng.dirichlet(np.ones(names), len(labels))
    paths = classification_figures(tmp_path, labels, probabilities, [f"c{k}" for k in range(names)])
    expected = ["roc.png"] if labels.ndim == 2 else ["confusion.png", "roc.png"]
    assert [path.name for path in paths] == expected
    assert all(min(size(path)) >= 600 for path in paths)


def test_classification_figures_of_a_million_rows_stay_small(tmp_path):
    labels = rng.integers(0, 2, 1_000_000)
    scores = rng.random(1_000_000)
    paths = classification_figures(
        tmp_path, labels, np.stack([1 - scores, scores], 1), ["no", "yes"]
    )
    assert all(path.stat().st_size < 300_000 for path in paths)


def test_roc_curve_by_hand_merges_ties():
    false, true = _roc_curve(np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.5, 0.1]))
    np.testing.assert_allclose(false, [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(true, [0, 0.5, 1, 1])
