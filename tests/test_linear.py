"""Linear models on one vector per row: what words count, and which weights come out."""

import json
import sys
from collections import Counter
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from tiny import fresh_process  # noqa: F401

from mgen.backbones import backbone
from mgen.methods import linear
from mgen.train import load_task, run

sys.path.insert(0, str(ROOT / "recipes"))

import logistic_regression  # noqa: E402
import ridge_regression  # noqa: E402

RIDGE = (ridge_regression.RidgeRegression, ridge_regression.Config)
LOGISTIC = (logistic_regression.LogisticRegression, logistic_regression.Config)
DNA = "ACGT"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(recipe, *flags) -> int:
    with pytest.raises(SystemExit) as left:
        run(*recipe, [*map(str, flags)])
    return left.value.code or 0


def write(tmp_path, sequences: list[str], name: str = "rows.tsv", seed: int = 0) -> list[str]:
    """Flags for a table of these sequences with 0/1 labels, all for training."""
    labels = np.random.default_rng(seed).integers(0, 2, len(sequences))
    lines = [f"{s}\t{y}" for s, y in zip(sequences, labels, strict=True)]
    (tmp_path / name).write_text("\n".join(["sequence\tlabel", *lines]) + "\n")
    return ["--data", tmp_path / name, "--data.test-fraction", 0, "--data.valid-fraction", 0]


def sequences(count: int, shortest: int, longest: int, letters: str = DNA) -> list[str]:
    random = np.random.default_rng(3)
    sizes = random.integers(shortest, longest + 1, count)
    return ["".join(random.choice([*letters], size=size)) for size in sizes]


# --------------------------------------------------------------------------- solvers


def drawn(rows: int, columns: int, outputs: int, seed: int = 0):
    """Features of unlike sizes, one of them constant, and linear predictors of them."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=random) * torch.logspace(-1, 1, columns) + 2
    x[:, 1] = 0.1
    w = torch.randn(columns, outputs, generator=random) / columns**0.5
    return x, (x - 2) @ w + torch.randn(rows, outputs, generator=random)


def folds_of(order: torch.Tensor, folds: int) -> list[np.ndarray]:
    return [order[fold::folds].numpy() for fold in range(folds)]


@pytest.mark.parametrize("shape", [(90, 12), (30, 50)], ids=["tall", "wide"])
def test_ridge_has_the_weights_of_scikit_learn_and_its_penalty(shape):
    from sklearn.linear_model import Ridge

    x, y = drawn(*shape, 2)
    place = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).numpy()
    x[place % 4 == 0, 2:] += 3  # the means of folds differ, and so would the penalty without them
    penalties = tuple(np.logspace(-2, 3, 40).tolist())
    weight, bias, penalty = ridge_regression.ridge(x, y, penalties, 4)
    a, b = x.double().numpy(), y.double().numpy()
    errors = {p: 0.0 for p in penalties}
    for fold in range(4):
        held = place % 4 == fold
        for p in penalties:
            model = Ridge(alpha=p, solver="svd").fit(a[~held], b[~held])
            errors[p] += ((model.predict(a[held]) - b[held]) ** 2).sum()
    assert penalty == min(errors, key=errors.get)
    model = Ridge(alpha=penalty, solver="svd").fit(a, b)
    assert np.allclose(weight, model.coef_, atol=1e-9)
    assert np.allclose(bias, model.intercept_, atol=1e-8)
    assert not weight[:, 1].any()


@pytest.mark.parametrize("shape", [(120, 10), (40, 60)], ids=["tall", "wide"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "weighted", "multilabel"])
def test_logistic_regression_has_the_weights_of_scikit_learn_and_its_penalty(kind, shape):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    outputs = {"binary": 1, "multilabel": 2}.get(kind, 3)
    x, z = drawn(*shape, outputs)
    if kind in ("binary", "multilabel"):
        y, classes = (z > 0.5).long(), 2
        y = y[:, 0] if kind == "binary" else y
    else:
        y, classes = (z + torch.tensor([0.0, 1.0, 2.0])).argmax(1), 3
    weights = torch.ones(len(x))
    if kind == "weighted":
        weights = (len(y) / (3 * torch.bincount(y).float()))[y]
    penalties = (0.1, 3.0, 100.0)
    weight, bias, penalty = logistic_regression.logistic(x, y, classes, weights, penalties, 3)

    def model(c, rows, column):
        found = LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
        return found.fit(x.double().numpy()[rows], column[rows], weights.double().numpy()[rows])

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    if kind != "multilabel":
        order = torch.cat([order[y[order] == k] for k in range(classes)])
    columns = [*y.T.numpy()] if kind == "multilabel" else [y.numpy()]
    errors = {p: 0.0 for p in penalties}
    for held, p, column in product(folds_of(order, 3), penalties, columns):
        kept = np.setdiff1d(np.arange(len(x)), held)
        found = model(1 / p, kept, column).predict_proba(x.double().numpy()[held])
        errors[p] += log_loss(
            column[held], found, normalize=False, sample_weight=weights[held], labels=range(classes)
        )
    assert penalty == min(errors, key=errors.get)
    every = np.arange(len(x))
    models = [model(1 / penalty, every, column) for column in columns]
    coefficients = np.concatenate([found.coef_ for found in models])
    levels = np.concatenate([found.intercept_ for found in models])
    if kind == "binary":  # of two classes the first has none
        assert not weight[0].any() and bias[0] == 0
        weight, bias = weight[1:], bias[1:]
    assert weight.abs().max() > 0.01
    assert np.allclose(weight, coefficients, atol=1e-5)
    assert np.allclose(bias - bias.mean(), levels - levels.mean(), atol=1e-4)


def test_classes_of_one_row_and_of_none_do_not_stop_the_fit():
    x, _ = drawn(40, 5, 1)
    y = torch.tensor([0, 1] * 19 + [1, 3])  # class 3 has one row, class 2 none
    weight, bias, _ = logistic_regression.logistic(x, y, 4, torch.ones(40), (1.0,), 3)
    assert weight.isfinite().all() and bias.isfinite().all()
    assert torch.softmax(x.double() @ weight.T + bias, -1)[:, 2].max() < 1e-3


def test_a_penalty_at_the_end_of_the_list_is_said_only_where_errors_still_fall(capsys):
    assert linear.best({1.0: 5.0, 10.0: 4.0, 100.0: 3.0}) == 100.0
    assert "penalty 100 is best, the last of --penalties; higher" in capsys.readouterr().out
    assert linear.best({0.1: 3.0, 1.0: 3.0001, 10.0: 4.0}) == 0.1
    assert linear.best({1.0: 5.0}) == 1.0
    assert not capsys.readouterr().out


# --------------------------------------------------------------------------- vectors


def naive(sequence: str, longest: int) -> list[float]:
    vector = []
    for n in range(1, longest + 1):
        found = Counter(sequence[i : i + n] for i in range(len(sequence) - n + 1))
        counts = np.array([found["".join(word)] for word in product(DNA, repeat=n)])
        vector += (counts / max(np.sqrt((counts**2).sum()), 1)).tolist()
    return vector


def test_words_are_counted_as_by_hand():
    tokenizer = backbone("dna_onehot", unknown="token").tokenizer()
    rows = ["ACGTACGNNACA", "A", "ggguuu", "ANNA", "ACG|TTA", "AC[MASK]GT", "NRN"]
    ids = tokenizer.tokenize(rows)["input_ids"]
    found = linear.count_words(ids, linear.letter_numbers(tokenizer), 4)
    read = [row.upper().replace("U", "T").replace("[MASK]", "N") for row in rows]
    assert found.shape == (len(rows), 4 + 16 + 64 + 256)
    assert np.allclose(found, [naive(row, 4) for row in read], atol=1e-6)


def test_words_of_proteins_leave_unusual_residues_out():
    tokenizer = backbone("protein_onehot").tokenizer()
    ids = tokenizer.tokenize(["MKXUBAC"])["input_ids"]
    found = linear.count_words(ids, linear.letter_numbers(tokenizer), 2)
    assert found.shape == (1, 20 + 400)
    assert found.count_nonzero() == 6  # M, K, A, C, MK, AC


def test_several_pools_lie_side_by_side(tmp_path):
    flags = [*write(tmp_path, sequences(40, 5, 9)), "--kmers", 2, "--penalties", 1]
    assert command(LOGISTIC, *flags, "--pool", "padded", "kmers", "mean", "--name", "a") == 0
    task = load_task(*LOGISTIC, tmp_path / "runs" / "logistic_regression" / "a")
    (row,) = linear.features(task, task.collate([{"sequence": "ACCA"}]))
    order = [task.tokenizer.vocabulary[letter] for letter in DNA]
    a, c = order[0], order[1]
    padded = torch.zeros(9, 16)
    padded[range(4), [a, c, c, a]] = 1
    mean = torch.zeros(16)
    mean[[a, c]] = 0.5
    expected = [*padded.flatten(), *naive("ACCA", 2), *mean]
    assert np.allclose(row, [float(value) for value in expected], atol=1e-6)
    assert task.head.in_features == len(expected)


# --------------------------------------------------------------------------- commands


def refused(capsys, recipe, *flags) -> str:
    assert command(recipe, *flags) == 2
    return " ".join(capsys.readouterr().err.split())


def test_longer_held_out_rows_are_refused_by_padded(tmp_path, capsys):
    flags = write(tmp_path, ["ACGTA", "ACG", "ACGG", "TTACG"])
    other = write(tmp_path, ["ACG", "ACGTAC"], "other.tsv")[1]
    given = [*flags, "--data.test-path", other, "--cv-folds", 2, "--pool", "padded"]
    message = refused(capsys, RIDGE, *given)
    assert "other.tsv, row 2 (header not counted), column 'sequence': 7 tokens" in message
    assert "the longest training row has 6 (1 of 6 rows)" in message
    assert "--backbone.truncate right --backbone.max-length 6" in message
    cut = ["--backbone.truncate", "right", "--backbone.max-length", 6]
    assert command(RIDGE, *given, *cut, "--name", "a") == 0
    run_ = tmp_path / "runs" / "ridge_regression" / "a"
    assert json.loads((run_ / "results.json").read_text())["test"]["mse"] >= 0
    assert command(RIDGE, "predict", "--run", run_, "--data.path", other) == 0
    long = write(tmp_path, ["ACGTACC"], "long.tsv")[1]
    uncut = ["--backbone.truncate", "error", "--backbone.max-length", 0]
    assert "longest training row" in refused(
        capsys, RIDGE, "predict", "--run", run_, "--data.path", long, *uncut
    )


@pytest.mark.parametrize("recipe", [RIDGE, LOGISTIC], ids=["ridge", "logistic"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--backbone", "esm2_8m"], "not those of esm2_8m"),
        (["--kmers", "0"], "--kmers 0: expected 1 to 20 letters of the longest word"),
        (["--kmers", "9999"], "--kmers 9999: expected 1 to 20"),
        (["--kmers", "8"], "there are 87,380 words of up to 8 of 4 letters"),
        (["--kmers", "4", "--backbone", "protein_onehot"], "168,420 words"),
        (["--pool"], "--pool : expected one or more ways"),
        (["--pool", "mean", "mean"], "--pool mean mean: expected one or more ways to pool, each"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_cannot_be_counted_are_refused(recipe, flags, expected, tmp_path, capsys):
    given = write(tmp_path, sequences(20, 6, 8))
    pool = [] if "--pool" in flags else ["--pool", "kmers"]
    assert expected in refused(capsys, recipe, *given, *pool, *flags)
    assert not (tmp_path / "runs").exists()


def test_rows_with_letters_that_words_may_not_have_are_counted_aloud(tmp_path, capsys):
    rows = [*sequences(20, 6, 8), "ACGNACG", "acgu", "NN"]
    assert command(LOGISTIC, *write(tmp_path, rows), "--pool", "kmers", "--kmers", 2) == 0
    assert "2 of 23 rows have letters other than ACGT: words with them" in capsys.readouterr().out


def test_features_that_do_not_fit_into_memory_are_refused_before_anything(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(linear, "memory", lambda device: 10_000_000)
    given = write(tmp_path, sequences(100, 6, 8))
    message = refused(capsys, RIDGE, *given, "--pool", "kmers", "--kmers", "6", "--name", "a")
    assert "100 training rows of 5,460 features need 15.5 MB of memory, and 10 MB are" in message
    assert not [*(tmp_path / "runs").rglob("*.yaml")]
    assert command(RIDGE, *given, "--pool", "kmers", "--kmers", "2", "--name", "a") == 0


@pytest.mark.parametrize("data", ["peptides_tiny", "modifications_tiny"])
def test_a_run_is_calibrated_tested_and_predicts(data, tmp_path):
    flags = ["--data", data, "--name", "a", "--pool", "kmers", "--kmers", "2"]
    flags += ["--multilabel"] if data.startswith("modif") else ["--class-weights"]
    flags += ["--backbone", "protein_onehot"] if data.startswith("pep") else []
    assert command(LOGISTIC, *flags) == 0
    folder = tmp_path / "runs" / "logistic_regression" / "a"
    scores = json.loads((folder / "results.json").read_text())["test"]
    assert scores["auroc"] > scores["training shares"]["auroc"] + 0.1
    facts = json.loads((folder / "checkpoints" / "best" / "facts.json").read_text())
    assert facts["penalty"] in logistic_regression.Config().penalties
    assert (folder / "calibration.json").exists()
    assert command(LOGISTIC, "test", "--run", folder, "--calibrated") == 0
    found = pq.read_table(folder / "predictions" / "test.parquet")
    names = [name for name in found.column_names if name.startswith("probability_")]
    assert len(names) == len(facts["classes"])
    total = sum(np.array(found.column(name)) for name in names)
    assert data.startswith("modif") or np.allclose(total, 1, atol=1e-6)


def test_two_runs_are_equal_bit_for_bit(tmp_path):
    for name in "ab":
        assert command(LOGISTIC, "--pool", "kmers", "--kmers", 3, "--name", name) == 0
    runs = tmp_path / "runs" / "logistic_regression"
    a, b = (load_task(*LOGISTIC, runs / name).head.weight for name in "ab")
    assert torch.equal(a, b)
