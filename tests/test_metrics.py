import json
import warnings

import numpy as np
import pytest
import torch
from conftest import golden
from safetensors.torch import load_file
from sklearn.metrics import r2_score

from mgen.metrics import auprc, auroc, classification_metrics, regression_metrics, results, spearman

CLASSIFICATION = ("binary", "multiclass", "multiclass_weighted", "multilabel")
REGRESSION = ("single_mse", "multi_mse", "single_l1")


def assert_reports(found, expected):
    """`found` holds every expected value."""
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name


def fill(metrics, batches):
    for metric in metrics.values():
        for predictions, labels in batches:
            metric.update(predictions, labels)
    return results(metrics)


def batches(folder, predictions):
    tensors = load_file(folder / "inputs.safetensors")
    count = sum(name.startswith("labels_") for name in tensors)
    return [(tensors[f"{predictions}_{b}"], tensors[f"labels_{b}"]) for b in range(count)]


def scalars(folder):
    tensors = load_file(folder / "outputs.safetensors")
    return {name: t.item() for name, t in tensors.items() if not name.startswith("loss")}


@pytest.mark.parametrize("kind", REGRESSION)
def test_golden_regression_task_reports_these_values(kind):
    folder = golden(f"tasks/sequence_regression/{kind}")
    outputs = json.loads((folder / "config.json").read_text())["num_outputs"]
    assert_reports(fill(regression_metrics(outputs), batches(folder, "preds")), scalars(folder))


@pytest.mark.parametrize("kind", CLASSIFICATION)
def test_golden_classification_task_reports_these_values(kind):
    folder = golden(f"tasks/sequence_classification/{kind}")
    config = json.loads((folder / "config.json").read_text())
    metrics = classification_metrics(config["n_classes"], config["multilabel"])
    probabilities = torch.sigmoid if config["multilabel"] else lambda t: t.softmax(-1)
    rows = [(probabilities(x), y) for x, y in batches(folder, "logits")]
    assert_reports(fill(metrics, rows), scalars(folder))


def test_golden_regression_averages_and_values_per_output():
    for case in json.loads(golden("metrics/regression.json").read_text())["cases"]:
        rows = [(torch.tensor(u["preds"]), torch.tensor(u["targets"])) for u in case["updates"]]
        found = fill(regression_metrics(case["num_outputs"]), rows)
        assert_reports(found, case["expected"]["uniform_average"])
        for name, each in case["expected"]["raw_values"].items():
            if isinstance(each, list) and len(each) > 1:
                assert_reports(found, {f"{name}_{k}": value for k, value in enumerate(each)})


def test_golden_classification_values_and_values_per_label():
    for case in json.loads(golden("metrics/classification.json").read_text())["cases"]:
        logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
        multilabel = case["kind"] == "multilabel"
        probabilities = logits.sigmoid() if multilabel else logits.softmax(-1)
        half = len(labels) // 2
        rows = [(probabilities[:half], labels[:half]), (probabilities[half:], labels[half:])]
        found = fill(classification_metrics(case["n_classes"], multilabel), rows)
        expected = case["expected"] | case.get("expected_test_only_per_label", {})
        assert_reports(found, {k: v for k, v in expected.items() if "loss" not in k})


def test_golden_ranking_scores_with_and_without_ties():
    for case in json.loads(golden("metrics/auroc_auprc.json").read_text())["cases"]:
        scores = torch.tensor(sum((u["preds"] for u in case["updates"]), [])).double()
        labels = torch.tensor(sum((u["targets"] for u in case["updates"]), [])).double()
        assert auroc(scores, labels).item() == pytest.approx(case["auroc"], abs=1e-5)
        assert auprc(scores, labels).item() == pytest.approx(case["auprc"], abs=1e-5)


def test_batches_give_the_same_as_all_rows_at_once():
    x, y = torch.randn(50, 3), torch.randn(50, 3)
    whole = fill(regression_metrics(3), [(x, y)])
    parts = fill(regression_metrics(3), [(x[:7], y[:7]), (x[7:8], y[7:8]), (x[8:], y[8:])])
    assert parts == pytest.approx(whole, abs=1e-9)


def test_flat_and_column_shapes_give_the_same():
    x, y = torch.randn(20), torch.randn(20)
    column = fill(regression_metrics(1), [(x[:, None], y[:, None])])
    assert fill(regression_metrics(1), [(x, y)]) == column


@pytest.mark.parametrize("metrics", [regression_metrics(1), classification_metrics(3, True)])
def test_unequal_shapes_are_refused(metrics):
    for metric in metrics.values():
        with pytest.raises(ValueError, match="differ in shape"):
            metric.update(torch.rand(5, 1), torch.ones(5))


def test_logits_are_refused_where_probabilities_are_expected():
    metric = classification_metrics(2)["auroc"]
    with pytest.raises(ValueError, match="expected probabilities, found values from -1 to 3"):
        metric.update(torch.tensor([-1.0, 3.0]), torch.tensor([0, 1]))


def test_non_finite_predictions_are_refused():
    with pytest.raises(ValueError, match="hold 1 nan or infinite"):
        regression_metrics(1)["mse"].update(torch.tensor([1.0, torch.nan]), torch.zeros(2))


@pytest.mark.parametrize("name", ["auroc", "auprc"])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_with_a_warning(name, label):
    metric = classification_metrics(2)[name]
    metric.update(torch.rand(6), torch.full((6,), label))
    with pytest.warns(UserWarning, match=f"{name} is undefined"):
        assert np.isnan(results({name: metric})[name])


def test_absent_class_is_left_out_of_the_macro_auroc():
    metric = classification_metrics(3)["auroc"]
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]])
    metric.update(probabilities, torch.tensor([0, 1, 1]))
    with pytest.warns(UserWarning, match=r"column\(s\) \[2\] of 3"):
        assert results({"auroc": metric}) == {"auroc": 1.0}  # both others separate perfectly


def test_a_single_row_gives_nan_not_an_exception():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fill(regression_metrics(1), [(torch.ones(1), torch.zeros(1))])
    assert found["mse"] == 1.0
    assert all(np.isnan(found[name]) for name in ("pearson", "spearman", "r2"))


def test_spearman_survives_a_million_ties():
    labels = (torch.arange(1_000_000) % 2).double()
    assert spearman(labels, labels).item() == pytest.approx(1.0)
    assert spearman(labels, 1 - labels).item() == pytest.approx(-1.0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_correlations_do_not_depend_on_the_unit(scale):
    rng = np.random.default_rng(0)
    labels = rng.standard_normal(100)
    predictions = labels + rng.standard_normal(100)
    found = fill(regression_metrics(1), [(torch.tensor(predictions), scale * torch.tensor(labels))])
    assert found["pearson"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1], abs=1e-9)


def test_constant_predictions_have_no_correlation_but_errors():
    rows = [(torch.full((50,), 0.1), torch.linspace(0, 1, 50))]
    with pytest.warns(UserWarning, match="undefined"):
        found = fill(regression_metrics(1), rows)
    assert np.isnan([found["pearson"], found["spearman"]]).all()
    assert found["mae"] == pytest.approx(np.abs(np.linspace(0, 1, 50) - 0.1).mean(), abs=1e-6)


def test_auroc_counts_pairs_by_hand():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8, 0.4]), np.array([0, 0, 1, 1, 1])
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    found = auroc(torch.tensor(scores), torch.tensor(labels).double())
    assert found.item() == pytest.approx(np.mean(pairs))


def test_r2_keeps_its_digits_far_from_zero():
    rng = np.random.default_rng(0)
    labels = 1e4 + rng.standard_normal(1000)
    predictions = labels + 0.1 * rng.standard_normal(1000)
    expected = 1 - ((labels - predictions) ** 2).sum() / ((labels - labels.mean()) ** 2).sum()
    found = fill(regression_metrics(1), [(torch.tensor(predictions), torch.tensor(labels))])
    assert found["r2"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [2**-20, 2**-10, 1, 2**20])  # the mean of equal labels is exact
@pytest.mark.parametrize("labels", ["varied", "alike", "alike and met"])
def test_r2_is_that_of_scikit_learn_in_any_unit(scale, labels):
    predictions, truth = scale * np.random.default_rng(0).standard_normal((2, 20))
    if labels != "varied":
        truth = np.full(20, 0.125 * scale)
        predictions = truth if "met" in labels else predictions
    metric = {"r2": regression_metrics(1)["r2"]}
    found = fill(metric, [(torch.tensor(predictions), torch.tensor(truth))])
    assert found["r2"] == pytest.approx(r2_score(truth, predictions), rel=1e-9)


def test_class_numbers_may_be_a_float_column():
    probabilities, labels = torch.rand(8, 3).softmax(-1), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    column = fill(classification_metrics(3), [(probabilities, labels[:, None].float())])
    assert column == fill(classification_metrics(3), [(probabilities, labels)])


def test_two_columns_of_probabilities_equal_that_of_class_one():
    probabilities, labels = torch.rand(8, 2).softmax(-1), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    both = fill(classification_metrics(2), [(probabilities, labels)])
    assert both == fill(classification_metrics(2), [(probabilities[:, 1], labels)])


def test_reset_forgets_the_rows_seen():
    metrics = regression_metrics(2) | classification_metrics(2, multilabel=True)
    first, second = torch.rand(2, 9, 2).unbind()
    labels = (torch.rand(9, 2) > 0.5).float()
    labels[0], labels[1] = 0, 1  # both classes are there
    expected = fill(metrics, [(first, labels)])
    fill(metrics, [(second, labels)])
    for metric in metrics.values():
        metric.reset()
    assert fill(metrics, [(first, labels)]) == expected


def test_metrics_leave_the_random_state_alone():
    before = torch.get_rng_state()
    x = torch.linspace(0, 1, 8)
    labels = torch.arange(8) % 2
    fill(regression_metrics(1), [(x, x)])
    fill(classification_metrics(2), [(x, labels)])
    assert torch.equal(torch.get_rng_state(), before)


def test_metrics_say_which_direction_is_better():
    metrics = regression_metrics(1) | classification_metrics(2)
    assert {name for name, m in metrics.items() if not m.higher_is_better} == {"mae", "mse"}


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_guess_has_no_matthews_correlation(classes, multilabel):
    metric = classification_metrics(classes, multilabel)["mcc"]
    if multilabel:
        guess, labels = torch.full((5, classes), 0.1), torch.eye(5)[:, :classes].long()
    else:
        guess = torch.tensor([[0.8] + [0.2 / (classes - 1)] * (classes - 1)] * 5)
        labels = torch.tensor([0, 1, 0, 0, 1])
    metric.update(guess, labels)
    value = metric.compute()
    assert (value[""] if isinstance(value, dict) else value).item() == 0.0
