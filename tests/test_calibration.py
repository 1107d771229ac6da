"""Calibration, thresholds, ensembles and intervals: numbers by hand or by another program."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn import metrics as sklearn_metrics
from tiny import fresh_process  # noqa: F401

import mgen
from mgen import calibration, ensemble
from mgen.backbones import backbone
from mgen.calibration import Calibration, measure
from mgen.config import InputError
from mgen.experiments import Experiment

RANDOM = np.random.default_rng(0)


def made_logits(rows=400, classes=4, sharpness=3.0):
    """Logits whose labels follow the probabilities at another temperature."""
    honest = RANDOM.normal(size=(rows, classes)) * 2
    given = np.exp(honest) / np.exp(honest).sum(1, keepdims=True)
    labels = np.array([RANDOM.choice(classes, p=row) for row in given])
    return torch.tensor(honest * sharpness), torch.tensor(labels)


# --------------------------------------------------------------------------- pure functions


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.0, 0.02, 0.5, 0.52, 0.95, 1.0])
    outcome = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    # Fifteenths: (0, 0.02) in the first, (0.5, 0.52) in the eighth, (0.95, 1) in the last.
    by_hand = (2 * abs(0.5 - 0.01) + 2 * abs(0.5 - 0.51) + 2 * abs(1 - 0.975)) / 6
    found = calibration.expected_calibration_error(confidence, outcome)
    assert found == pytest.approx(by_hand, abs=1e-7)


def test_an_edge_belongs_to_the_bin_below_it():
    table = calibration.reliability(torch.tensor([0.5]), torch.tensor([1.0]), bins=2)
    assert table[:, 0].tolist() == [1, 0]


def test_temperature_of_classes_is_that_of_scipy():
    logits, labels = made_logits()

    def nll(t):
        return -log_softmax(logits.numpy() / t, 1)[range(len(labels)), labels].mean()

    expected = minimize_scalar(nll, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}).x
    assert calibration.temperature("classes", logits, labels) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(3, rel=0.2)


def test_temperature_of_labels_is_that_of_scipy():
    honest = RANDOM.normal(size=(300, 3)) * 2
    labels = (RANDOM.random(honest.shape) < expit(honest)).astype(float)

    def nll(t):
        given = expit(honest * 2 / t)
        return -(labels * np.log(given) + (1 - labels) * np.log(1 - given)).mean()

    expected = minimize_scalar(nll, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}).x
    found = calibration.temperature("labels", torch.tensor(honest * 2), torch.tensor(labels))
    assert found == pytest.approx(expected, rel=1e-5)


def test_temperature_is_found_from_probabilities_as_from_logits():
    logits, labels = made_logits()
    found, notes = measure("classes", torch.softmax(logits, 1).float(), labels)
    assert found.temperature == pytest.approx(
        calibration.temperature("classes", logits, labels), rel=1e-3
    )
    assert found.after["nll"] < found.before["nll"]
    assert found.after["ece"] < found.before["ece"] / 2
    assert not notes


def test_rows_that_are_all_right_set_the_temperature_to_its_limit_and_that_is_said():
    values = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found, notes = measure("classes", values, torch.tensor([0, 1, 0]))
    assert found.temperature == calibration.COLDEST
    assert "limit" in notes[0]


@pytest.mark.parametrize("metric", list(calibration.THRESHOLDED))
def test_threshold_is_the_best_of_all_by_brute_force(metric):
    scores = {
        "mcc": sklearn_metrics.matthews_corrcoef,
        "f1": sklearn_metrics.f1_score,
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
    }
    labels = (RANDOM.random(60) < 0.2).astype(int)
    given = np.round(np.clip(0.2 * labels + RANDOM.normal(0.2, 0.15, 60), 0, 1), 2)  # with ties
    found = calibration.best_threshold(torch.tensor(given), torch.tensor(labels), metric)
    tried = [scores[metric](labels, given > t) for t in np.linspace(0.005, 0.995, 100)]
    assert scores[metric](labels, given > found) == pytest.approx(max(tried), abs=1e-12)


def test_decisions_of_moved_logits_are_those_of_the_threshold():
    given = torch.tensor([[0.1, 0.9], [0.29, 0.31], [0.6, 0.29], [0.99, 0.0001]])
    of_labels = Calibration(kind="labels", temperature=1.0, thresholds={"f1": [0.6, 0.3]})
    moved = torch.sigmoid(of_labels.decided(torch.logit(given), "f1"))
    assert torch.equal(moved > 0.5, given > torch.tensor([0.6, 0.3]))
    of_classes = Calibration(kind="classes", temperature=1.0, thresholds={"f1": [0.3]})
    pair = torch.stack([1 - given[:, 1], given[:, 1]], 1).log()
    assert of_classes.decided(pair, "f1").argmax(1).tolist() == [1, 1, 0, 0]


def test_labels_that_are_all_alike_keep_their_threshold_and_that_is_said():
    values = torch.tensor([[0.9, 0.4], [0.2, 0.3], [0.7, 0.2]])
    found, notes = measure("labels", values, torch.tensor([[1, 0], [0, 0], [0, 0]]))
    assert found.thresholds["mcc"][1] == 0.5
    assert "[1]" in notes[0]


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_joined_outputs_give_the_mean_of_the_members(kind):
    outputs = [torch.tensor(RANDOM.normal(size=(5, 3)) * 30).float() for _ in range(3)]
    to_values = {
        "classes": lambda x: torch.softmax(x, -1),
        "labels": torch.sigmoid,
        "numbers": lambda x: x,
    }[kind]
    mean = torch.stack([to_values(one.double()) for one in outputs]).mean(0)
    assert torch.allclose(to_values(calibration.joined(kind, outputs).double()), mean, atol=1e-6)


# --------------------------------------------------------------------------- intervals


def test_half_width_is_the_order_statistic_of_split_conformal():
    residuals = torch.tensor([[3.0], [1.0], [2.0], [9.0], [5.0], [4.0], [8.0], [6.0], [7.0]])
    found, _ = measure("numbers", residuals, torch.zeros(9, 1))
    assert found.half_widths(0.9) == [9.0]  # ceil(10 * 0.9) = 9th smallest of 9
    assert found.half_widths(0.5) == [5.0]
    with pytest.raises(InputError, match="needs 19 validation rows.* on 9"):
        found.half_widths(0.95)
    with pytest.raises(InputError, match="between 0 and 1"):
        found.half_widths(90)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_coverage_of_exchangeable_rows_is_the_level(level):
    covered = []
    for _ in range(400):
        noise = torch.tensor(RANDOM.standard_t(3, size=(99 + 50, 1)))
        half = measure("numbers", noise[:99], torch.zeros(99, 1))[0].half_widths(level)[0]
        covered.append((noise[99:].abs() <= half).double().mean().item())
    assert np.mean(covered) == pytest.approx(level, abs=0.012)  # exact in expectation: 100 * level


def test_of_many_rows_few_residuals_are_kept_and_the_width_errs_on_the_safe_side():
    noise = torch.tensor(RANDOM.normal(size=(9999, 2)))
    found, _ = measure("numbers", noise, torch.zeros(9999, 2))
    assert len(found.ranks) == len(found.residuals[0]) == calibration.MOST_RESIDUALS
    exact = noise.abs().sort(0).values[9000 - 1]
    for half, least in zip(found.half_widths(0.9), exact.tolist(), strict=True):
        assert least <= half < least * 1.01


# --------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of a regression on the same rows with different seeds, and one on other rows."""
    from accelerate.state import AcceleratorState

    folder = tmp_path_factory.mktemp("runs")
    tiny.table(folder)
    for name, *flags in (("a",), ("b", "--train.seed", "1"), ("c", "--data.valid-fraction", "0.3")):
        assert tiny.command(folder, "--name", name, *flags) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def run(runs, name):
    return str(runs / "runs" / "sequence_regression" / name)


def test_fit_keeps_the_residuals_of_the_best_checkpoint(runs):
    folder = runs / "runs" / "sequence_regression" / "a"
    found = calibration.read(folder / "calibration.json")
    results = json.loads((folder / "results.json").read_text())
    assert (found.rows, found.step) == (9, results["best_step"])
    rows = [line.split("\t") for line in (runs / "rows.tsv").read_text().splitlines()]
    valid = [row for row in rows if row[3] == "valid"]
    predicted = mgen.load_run(folder).predict([row[1] for row in valid])["predicted_label"]
    errors = sorted(abs(float(row[2]) - p) for row, p in zip(valid, predicted, strict=True))
    assert found.residuals[0] == pytest.approx(errors, abs=1e-5)


def test_interval_columns_and_coverage(runs):
    assert tiny.command(runs, "test", "--run", run(runs, "a"), "--interval", "0.8") == 0
    folder = runs / "runs" / "sequence_regression" / "a" / "predictions"
    table = pq.read_table(folder / "test-interval0.8.parquet").to_pydict()
    half = calibration.read(folder.parent / "calibration.json").half_widths(0.8)[0]
    lines = [line.split("\t") for line in (runs / "rows.tsv").read_text().splitlines()]
    labels = [float(line[2]) for line in lines if line[3] == "test"]
    for name, sign in (("lower_label", -1), ("upper_label", 1)):
        expected = [p + sign * half for p in table["predicted_label"]]
        assert table[name] == pytest.approx(expected, abs=1e-5)
    inside = [abs(p - y) <= half for p, y in zip(table["predicted_label"], labels, strict=True)]
    results = json.loads((folder / "test-interval0.8.json").read_text())
    assert results["coverage"] == pytest.approx(np.mean(inside))
    assert results["interval_width"] == pytest.approx(2 * half)


def test_ensemble_is_the_mean_of_its_members_with_their_spread(runs):
    flags = ["--run", run(runs, "a"), "--ensemble", run(runs, "b")]
    assert tiny.command(runs, "test", *flags) == 0
    folder = runs / "runs" / "sequence_regression" / "a" / "predictions"
    table = pq.read_table(folder / "test-ensemble.parquet").to_pydict()
    lines = [line.split("\t") for line in (runs / "rows.tsv").read_text().splitlines()]
    sequences = [line[1] for line in lines if line[3] == "test"]
    each = [mgen.load_run(run(runs, n)).predict(sequences)["predicted_label"] for n in "ab"]
    assert table["predicted_label"] == pytest.approx(np.mean(each, 0), abs=1e-6)
    assert table["spread_predicted_label"] == pytest.approx(np.std(each, 0, ddof=1), abs=1e-6)
    labels = [float(line[2]) for line in lines if line[3] == "test"]
    results = json.loads((folder / "test-ensemble.json").read_text())
    errors = np.abs(np.array(each) - labels).mean(1)
    assert results["member mean"]["mae"] == pytest.approx(errors.mean(), abs=1e-6)
    assert results["member sd"]["mae"] == pytest.approx(errors.std(ddof=1), abs=1e-6)
    assert results["mae"] == pytest.approx(np.abs(np.mean(each, 0) - labels).mean(), abs=1e-6)
    both = mgen.load_run(run(runs, "a"), ensemble=[run(runs, "b")]).predict(sequences)
    assert both["predicted_label"] == pytest.approx(table["predicted_label"], abs=1e-6)


def test_an_ensemble_is_calibrated_as_a_whole(runs, capsys):
    flags = ["--run", run(runs, "a"), "--ensemble", run(runs, "b")]
    assert tiny.command(runs, "predict", *flags, "--interval", "0.8") == 2
    assert "validate --calibrated" in capsys.readouterr().err.replace("\n", " ")
    assert tiny.command(runs, "validate", *flags, "--calibrated") == 0
    assert tiny.command(runs, "predict", *flags, "--interval", "0.8") == 0
    folder = runs / "runs" / "sequence_regression" / "a"
    (of_both,) = folder.glob("calibration-*.json")
    alone = calibration.read(folder / "calibration.json")
    assert calibration.read(of_both).residuals != alone.residuals


@pytest.mark.parametrize(
    ("verb", "flags", "says"),
    [
        ("test", ["--ensemble", "a"], "same weights"),
        ("test", ["--ensemble", "c"], "c: has other settings than"),
        ("test", ["--calibrated"], "this recipe has no --calibrated"),
        ("test", ["--interval", "0.99"], "needs 99 validation rows"),
        ("fit", ["--interval", "0.9"], "are for validate, test and predict"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(runs, capsys, verb, flags, says):
    flags = [run(runs, word) if word in ("a", "c") else word for word in flags]
    folder = runs / "runs" / "sequence_regression" / "a" / "predictions"
    before = sorted(folder.iterdir())
    assert tiny.command(runs, verb, "--run", run(runs, "a"), *flags) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert sorted(folder.iterdir()) == before


def test_a_calibration_of_another_step_or_a_damaged_one_is_refused(runs, tmp_path):
    folder = runs / "runs" / "sequence_regression" / "b"
    task = mgen.load_run(folder).task
    best, file = folder / "checkpoints" / "best", folder / "calibration.json"
    found = calibration.read(file)
    dataclasses.replace(found, step=found.step + 1).write(file)
    with pytest.raises(InputError, match="checkpoint of step"):
        ensemble.find(folder, [task], best)
    for content in ("{", "[]", '{"kind": "numbers"}', '{"kind": "classes", "temperature": 0}'):
        file.write_text(content)
        with pytest.raises(InputError, match="damaged"):
            ensemble.find(folder, [task], best)
    file.unlink()
    with pytest.raises(InputError, match="does not exist"):
        ensemble.find(folder, [task], best)
    found.write(file)


@torch.no_grad()
def test_outputs_of_a_classifier_calibrated_by_its_own_recipe(tmp_path):
    """Two classes: probabilities at the temperature, decisions at the threshold."""
    cfg = tiny.settings(tmp_path, tiny.sequence_classification.Config)
    cfg = dataclasses.replace(
        cfg, backbone=backbone("dna_onehot"), data=tiny.table(tmp_path, classes=2)
    )
    task, rows = tiny.prepared(cfg, tiny.sequence_classification.SequenceClassification)
    task.eval()
    batch = task.collator()(rows.take(range(8)))
    logits = task(batch).detach()
    found = Calibration(kind="classes", temperature=2.0, thresholds={"mcc": [0.9]})
    model = ensemble.Ensemble([task], found, calibrated=True)
    columns = model.predictions(model(batch), batch)
    expected = torch.softmax(logits / 2, 1)
    assert torch.allclose(columns["probability_1"], expected[:, 1], atol=1e-6)
    wanted = ["1" if p > 0.9 else "0" for p in expected[:, 1].tolist()]
    assert columns["predicted"] == wanted
    stack, labels, *_ = model.scores(model(batch), batch)
    assert model.variants == ["reported", "calibrated", "uncalibrated"]
    assert torch.allclose(stack[:, 1], expected, atol=1e-6)
    assert torch.allclose(stack[:, 2], torch.softmax(logits, 1), atol=1e-6)
    more, others = model.report(stack, labels)
    truth = labels.long()
    nll = -expected[range(8), truth].log().mean().item()
    assert more["nll"] == pytest.approx(nll, abs=1e-5)
    assert others["uncalibrated"]["accuracy"] == pytest.approx(
        (logits.argmax(1) == truth).double().mean().item()
    )
    (figure,) = model.reliability(tmp_path, stack, labels)
    assert figure.read_bytes()[:4] == b"\x89PNG"


def test_predictions_of_other_options_have_another_key(tmp_path):
    cfg = tiny.settings(tmp_path, tiny.sequence_classification.Config)
    task, _ = tiny.prepared(cfg, tiny.sequence_classification.SequenceClassification)
    found = [Calibration(kind="classes", temperature=t) for t in (1.0, 2.0)]
    keys = [json.dumps(ensemble.Ensemble([task], one, calibrated=True).key) for one in found]
    assert len({*keys}) == 2


def test_seeds_of_an_experiment_are_part_of_its_digest(tmp_path, monkeypatch):
    from mgen import experiments

    monkeypatch.setattr(experiments, "RECIPES", tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "one.yaml").write_text("a: 1\n")
    (tmp_path / "x.py").write_text("")
    facts = {"what": "", "source": "", "expects": "mcc", "hardware": "", "seconds": 1}
    one = Experiment(file=tmp_path / "x" / "one.yaml", **facts)
    assert one.digest != dataclasses.replace(one, seeds=3).digest


@pytest.mark.parametrize(
    "damage",
    [
        {"ranks": [1, 2]},
        {"residuals": [[0.1, 0.2]]},
        {"residuals": [[0.3, 0.2, 0.1]]},
        {"residuals": [[-0.1, 0.2, 0.3]]},
        {"rows": 9},
        {"kind": "labels", "thresholds": {"mcc": [0.5]}},
        {"kind": "classes", "temperature": 1e9},
        {"kind": "classes", "thresholds": {"mcc": [1.5]}},
        {"kind": "classes", "thresholds": [0.5]},
    ],
)
def test_a_calibration_that_cannot_be_is_damaged(damage, tmp_path):
    whole = {"kind": "numbers", "rows": 3, "ranks": [1, 2, 3], "residuals": [[0.1, 0.2, 0.3]]}
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(whole))
    assert calibration.read(file).half_widths(0.5) == [0.2]
    file.write_text(json.dumps(whole | damage))
    with pytest.raises(InputError, match="damaged"):
        calibration.read(file)
