"""Resampled metrics against repeated rows, scikit-learn and scipy; size and power of tests."""

import hashlib
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from mgen.leaderboards.statistics import (
    compare,
    draws,
    holm,
    interval,
    mean_ranks,
    resampled,
    win_share,
)
from mgen.metrics import Metric, classification_metrics, regression_metrics, results
from mgen.metrics.contacts import RowMean
from mgen.metrics.variants import variant_metrics

ROWS, RESAMPLES, CLASSES = 37, 12, 4
CASES = ("random", "tied")


def made(kind, case, columns=1, rows=ROWS, seed=0):
    """Predictions and labels of a kind, tied ones on a coarse grid."""
    rng = np.random.default_rng(seed)
    tie = (lambda v, step: np.round(v / step) * step) if case == "tied" else (lambda v, step: v)
    if kind in ("numbers", "variants"):
        y = rng.standard_normal((rows, columns))
        x = tie(y + rng.standard_normal(y.shape), 0.5)
        return torch.from_numpy(x), torch.from_numpy(tie(y, 0.5))
    if kind == "labels":
        y = (rng.random((rows, columns)) < 0.4).astype(np.int64)
        x = tie(np.clip(0.3 * y + 0.7 * rng.random(y.shape), 0, 1), 0.25)
        return torch.from_numpy(x), torch.from_numpy(y)
    y = rng.integers(0, columns, rows)
    logits = np.eye(columns)[y] + rng.standard_normal((rows, columns))
    if case == "tied":
        shares = 1.0 + (logits > 1) + 2 * (logits > 0)
        shares = 2.0 ** np.round(np.log2(shares))  # few values
    else:
        shares = np.exp(logits)
    return torch.from_numpy(shares / shares.sum(1, keepdims=True)), torch.from_numpy(y)


def repeated(counts, *tensors):
    rows = torch.arange(len(counts)).repeat_interleave(counts.long())
    return [tensor[rows] for tensor in tensors]


def value(metric, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.update(x, y)
        return results({"value": metric})["value"]


OWN = [
    ("numbers", 1, regression_metrics),
    ("numbers", 3, regression_metrics),
    ("classes", 2, classification_metrics),
    ("classes", CLASSES, classification_metrics),
    ("labels", 3, lambda count: classification_metrics(count, multilabel=True)),
]
EACH = [(kind, k, make, name) for kind, k, make in OWN for name in make(k)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "columns", "make", "name"), EACH)
def test_each_resample_has_the_value_of_the_metric_on_repeated_rows(
    kind, columns, make, name, case
):
    x, y = made(kind, case, columns)
    counts = draws(ROWS, RESAMPLES, name)
    counts[0] = 1
    counts[1] = torch.bincount(torch.tensor([3]), minlength=ROWS) * ROWS  # one row: undefined
    found = resampled(name, kind, x, y, counts)
    expected = [value(make(columns)[name], *repeated(c, x, y)) for c in counts]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_probabilities_of_class_one_equal_both_columns():
    x, y = made("classes", "tied", 2)
    counts = draws(ROWS, RESAMPLES, "one")
    for name in classification_metrics(2):
        both = resampled(name, "classes", x, y, counts)
        assert torch.equal(both, resampled(name, "classes", x[:, 1], y[:, None], counts))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bins", ["median", "column", "binary labels"])
def test_each_resample_has_the_variant_metrics_of_repeated_rows(case, bins):
    x, y = made("variants", case)
    if bins == "binary labels":
        y = (y > 0.3).double()
    labels = torch.cat([y, (y > 0.5).double()], 1) if bins == "column" else y
    counts = draws(ROWS, RESAMPLES, "variants")
    counts[0] = 1
    tables = []
    for c in counts:
        a, b = (t.numpy() for t in repeated(c, x[:, 0], labels))
        tables.append(variant_metrics(a, b[:, 0], b[:, 1] if bins == "column" else None))
    for name in tables[0]:
        found = resampled(name, "variants", x, labels, counts)
        np.testing.assert_allclose(found, [table[name] for table in tables], atol=1e-9)


def rank_correlation(x, y, w):
    x, y = np.repeat(x, w), np.repeat(y, w)
    return stats.spearmanr(x, y)[0]


NUMBERS = {
    "pearson": lambda x, y, w: stats.pearsonr(np.repeat(x, w), np.repeat(y, w))[0],
    "spearman": rank_correlation,
    "mae": lambda x, y, w: sk.mean_absolute_error(y, x, sample_weight=w),
    "mse": lambda x, y, w: sk.mean_squared_error(y, x, sample_weight=w),
    "rmse": lambda x, y, w: sk.root_mean_squared_error(y, x, sample_weight=w),
    "r2": lambda x, y, w: sk.r2_score(y, x, sample_weight=w),
}
SCORES = {
    "auroc": lambda x, y, w: sk.roc_auc_score(y, x, sample_weight=w),
    "auprc": lambda x, y, w: sk.average_precision_score(y, x, sample_weight=w),
    "accuracy": lambda x, y, w: sk.accuracy_score(y, x > 0.5, sample_weight=w),
    "f1": lambda x, y, w: sk.f1_score(y, x > 0.5, sample_weight=w),
    "mcc": lambda x, y, w: sk.matthews_corrcoef(y, x > 0.5, sample_weight=w),
}


def one_hot(y):
    return np.eye(CLASSES)[y]


MANY = {
    "auroc": lambda x, y, w: sk.roc_auc_score(one_hot(y), x, sample_weight=w, average="macro"),
    "auprc": lambda x, y, w: sk.average_precision_score(one_hot(y), x, sample_weight=w),
    "accuracy": lambda x, y, w: sk.accuracy_score(y, x.argmax(1), sample_weight=w),
    "f1": lambda x, y, w: sk.f1_score(y, x.argmax(1), sample_weight=w, average="macro"),
    "mcc": lambda x, y, w: sk.matthews_corrcoef(y, x.argmax(1), sample_weight=w),
}
SEVERAL = {
    name: lambda x, y, w, one=one: np.mean([one(a, b, w) for a, b in zip(x.T, y.T, strict=True)])
    for name, one in SCORES.items()
} | {"mcc": lambda x, y, w: SCORES["mcc"](x.ravel(), y.ravel(), w.repeat(y.shape[1]))}
ORACLES = [
    (kind, columns, name, oracle)
    for kind, columns, table in (
        ("numbers", 1, NUMBERS),
        ("classes", 2, SCORES),
        ("classes", CLASSES, MANY),
        ("labels", 3, SEVERAL),
    )
    for name, oracle in table.items()
]


def flat(kind, columns, x, y):
    if kind == "numbers":
        return x[:, 0].numpy(), y[:, 0].numpy()
    return (x[:, 1] if (kind, columns) == ("classes", 2) else x).numpy(), y.numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "columns", "name", "oracle"), ORACLES)
def test_resamples_agree_with_scikit_learn_and_scipy(kind, columns, name, oracle, case):
    x, y = made(kind, case, columns, rows=60)
    counts = draws(60, RESAMPLES, "rows")
    found = resampled(name, kind, x, y, counts)
    a, b = flat(kind, columns, x, y)
    expected = [oracle(a, b, w.numpy().astype(np.int64)) for w in counts]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kind", "columns", "name", "oracle"), [row for row in ORACLES if row[2] != "rmse"]
)
def test_metrics_themselves_agree_with_scikit_learn_and_scipy(kind, columns, name, oracle, case):
    x, y = made(kind, case, columns, rows=200)
    make = next(make for k, _, make in OWN if k == kind)
    a, b = flat(kind, columns, x, y)
    found = value(make(columns)[name], x, y)
    assert found == pytest.approx(oracle(a, b, np.ones(200, np.int64)), abs=1e-6)


def test_an_absent_class_is_left_out_and_an_undefined_output_is_not():
    counts = torch.tensor([[1, 1, 1, 1, 1, 1], [3, 0, 1, 1, 1, 0]], dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 2, 2, 1])  # the second resample has no row of class 1
    probabilities = torch.rand(6, 3, dtype=torch.float64)
    found = resampled("auroc", "classes", probabilities, labels, counts)
    weights = counts[1].numpy().astype(np.int64)
    each = [
        sk.roc_auc_score(labels == k, probabilities[:, k], sample_weight=weights) for k in (0, 2)
    ]
    assert found[1].item() == pytest.approx(np.mean(each))
    outputs = torch.tensor([[1.0, 5], [2, 6], [1, 7], [1, 8], [1, 9], [3, 1]])
    found = resampled("pearson", "numbers", outputs, probabilities[:, :2], counts)
    assert found.isnan().tolist() == [False, True]  # the first output is constant in the second


def test_spearman_of_resamples_by_hand():
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    counts = torch.tensor([[2, 1, 0], [1, 1, 1], [3, 0, 0]], dtype=torch.uint8)
    # ranks 1.5 1.5 3 against 1.5 1.5 3; 1 2 3 against 1 3 2; one row alone has none
    found = resampled("spearman", "numbers", x, y, counts).tolist()
    assert found[:2] == pytest.approx([1.0, 0.5])
    assert math.isnan(found[2])


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_resampled_correlations_do_not_depend_on_the_unit(scale, offset):
    x, y = made("numbers", "random", rows=100)
    counts = draws(100, RESAMPLES, "unit")
    for name in ("pearson", "spearman", "r2"):
        plain = resampled(name, "numbers", x, y, counts)
        moved = resampled(name, "numbers", scale * (x + offset), scale * (y + offset), counts)
        np.testing.assert_allclose(moved, plain, atol=1e-6)


def test_whole_sequences_are_drawn_where_entries_have_owners():
    x, y = made("classes", "random", 3, rows=30)
    owners = torch.arange(10).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 1, 2, 3, 4, 5]))
    counts = draws(10, RESAMPLES, "owners")
    for name, oracle in (("accuracy", MANY["accuracy"]), ("mcc", MANY["mcc"])):
        found = resampled(name, "classes", x, y, counts, owners)
        weights = [c.numpy().astype(np.int64)[owners] for c in counts]
        expected = [oracle(x.numpy(), y.numpy(), w) for w in weights]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_metric_without_weighted_form_is_fed_with_repeated_rows():
    statistics, lengths = torch.rand(20, 5), torch.full((20,), 50)
    counts = draws(20, RESAMPLES, "contacts")
    found = resampled("top_L5_acc", "rows", statistics, lengths, counts, None, lambda: RowMean(2))
    expected = (counts.double() @ statistics[:, 2].double()) / 20
    np.testing.assert_allclose(found, expected, atol=1e-7)
    with pytest.raises(ValueError, match="'top_L5_acc' of rows has no weighted form"):
        resampled("top_L5_acc", "rows", statistics, lengths, counts)


def test_a_metric_of_whole_sequences_is_fed_with_the_entries_of_drawn_rows():
    class Sum(Metric):
        def __init__(self):
            super().__init__(lambda x, y: (x, y))
            self.seen = 0.0

        def add(self, x, y):
            self.seen += x.sum()

        def value(self):
            return self.seen

    counts = torch.tensor([[0, 2], [1, 1]], dtype=torch.uint8)
    x, owners = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0, 0, 1])
    assert resampled("sum", "sums", x, x, counts, owners, Sum).tolist() == [200.0, 111.0]


@pytest.mark.parametrize(("kind", "metric"), [("numbers", "mse"), ("variants", "spearman")])
def test_what_a_metric_refuses_is_refused(kind, metric):
    x, counts = torch.tensor([0.0, math.nan]), draws(2, 3, "")
    with pytest.raises(ValueError, match="nan or infinite"):
        resampled(metric, kind, x, torch.zeros(2), counts)


def test_draws_of_other_rows_are_refused():
    x = torch.zeros(4)
    with pytest.raises(ValueError, match="4 predictions, but draws or owners of 5"):
        resampled("mse", "numbers", x, x, draws(5, 2, ""))
    with pytest.raises(ValueError, match="4 predictions, but draws or owners of 3"):
        resampled("mse", "numbers", x, x, draws(5, 2, ""), torch.tensor([0, 1, 2]))


# --------------------------------------------------------------------------- draws


def test_draws_are_the_same_everywhere():
    bits = np.random.PCG64(int(hashlib.sha256(b"task").hexdigest(), 16))
    drawn = [[(int(bits.random_raw()) >> 32) * 5 >> 32 for _ in range(5)] for _ in range(3)]
    assert draws(5, 3, "task").tolist() == [[row.count(k) for k in range(5)] for row in drawn]
    assert draws(5, 3, "task").tolist() == [[1, 1, 0, 1, 2], [0, 0, 2, 1, 2], [1, 2, 0, 0, 2]]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = draws(1000, 50, "task")
    torch.set_num_threads(threads)
    assert torch.equal(again, draws(1000, 50, "task"))
    assert not torch.equal(again, draws(1000, 50, "another task"))


def test_draws_are_with_replacement_and_even():
    counts = draws(50, 4000, "even").double()
    assert (counts.sum(1) == 50).all()
    # A row's count is binomial (50, 1/50): mean 1, variance 0.98, over 4000 resamples.
    assert (counts.mean(0) - 1).abs().max() < 5 * math.sqrt(0.98 / 4000)
    assert counts.var(0).mean().item() == pytest.approx(0.98, abs=0.02)
    # The counts of two rows have correlation -1/49.
    assert torch.corrcoef(counts.T)[0, 1:].mean().item() == pytest.approx(-1 / 49, abs=0.01)


def test_no_rows_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="0 rows"):
        draws(0, 10, "")


# --------------------------------------------------------------------------- intervals and tests


def test_an_interval_holds_the_middle_of_the_known_values():
    values = np.random.default_rng(0).standard_normal(400)
    low, high, undefined = interval(torch.from_numpy(np.append(values, [np.nan] * 3)))
    assert (low, high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert undefined == 3
    assert interval(torch.full((4,), torch.nan))[2] == 4


def test_a_comparison_by_hand():
    a, b = torch.tensor([0.5, 0.9, 0.7, math.nan]), torch.tensor([0.3, 0.5, 0.4, 0.1])
    found = compare(a.double(), b.double(), 0.7, 0.4)
    # differences 0.2 0.4 0.3: standard error 0.1, so z = 3
    assert found.difference == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - 0.1959964, 0.3 + 0.1959964), abs=1e-6)
    assert found.p == pytest.approx(2 * stats.norm.sf(3), rel=1e-5)
    assert found.undefined == 1


def test_entries_that_are_alike_are_not_different():
    values = torch.rand(100).double()
    assert compare(values, values, 0.5, 0.5)[:4] == (0.0, 0.0, 0.0, 1.0)
    assert compare(values + 1, values, 1.5, 0.5).p == pytest.approx(0.0)
    assert math.isnan(compare(values * math.nan, values, 0.5, 0.5).p)


def test_p_and_the_interval_agree():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = torch.from_numpy(rng.standard_normal((2, 50)))
        found = compare(a, b, *rng.standard_normal(2))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    first, second, third = holm([0.01, math.nan, 0.9])
    assert (first, third) == pytest.approx((0.02, 0.9))
    assert math.isnan(second)
    assert holm([0.6, 0.7]) == [1.0, 1.0]


DRAWN = 100


def board(metric, rows, rng):
    """Predictions (2 entries) with correlated errors of equal size, and labels, of one task."""
    y = rng.standard_normal(rows)
    shared, own = rng.standard_normal(rows), rng.standard_normal((2, rows))
    scores = torch.from_numpy(y + 0.7 * shared + 0.7 * own)
    if metric == "accuracy":
        return "classes", torch.sigmoid(scores), torch.from_numpy((y > 0).astype(np.int64))
    return "numbers", scores, torch.from_numpy(y)


def p_of(metric, kind, predictions, labels, counts):
    """p of the comparison; the last row of counts is 1 everywhere: the values observed."""
    a, b = (resampled(metric, kind, each, labels, counts) for each in predictions)
    return compare(a[:-1], b[:-1], a[-1].item(), b[-1].item()).p


def with_ones(rows):
    ones = torch.ones(1, rows, dtype=torch.uint8)
    return [torch.cat([draws(rows, DRAWN, str(seed)), ones]) for seed in range(10)]


@pytest.mark.parametrize(
    ("boards", "low", "high"),
    [(500, 0.03, 0.07), pytest.param(5000, 0.033, 0.06, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("rows", [100, 400])
@pytest.mark.parametrize("metric", ["accuracy", "mse", "spearman"])
def test_equal_entries_are_called_different_in_3_to_7_of_100_boards(
    metric, rows, boards, low, high
):
    # Of 500 boards at 5 in 100 the share has a standard deviation of 1 in 100.
    rng, counts = np.random.default_rng(7), with_ones(rows)
    p = [p_of(metric, *board(metric, rows, rng), counts[k % 10]) for k in range(boards)]
    assert low <= np.mean(np.array(p) < 0.05) <= high


def test_a_known_difference_is_found_as_often_as_by_the_best_test():
    rows, rng = 100, np.random.default_rng(0)
    counts, p, p_of_t = with_ones(rows), [], []
    for k in range(500):
        shared = 10 + rng.standard_normal(rows)
        differences = rng.normal(0.28, 1, rows)  # of the absolute errors, of standard deviation 1
        errors = torch.from_numpy(np.stack([shared + differences, shared]))
        p.append(p_of("mae", "numbers", errors, torch.zeros(rows), counts[k % 10]))
        p_of_t.append(stats.ttest_rel(*errors.numpy()).pvalue)
    found, best = (np.mean(np.array(each) < 0.05) for each in (p, p_of_t))
    # A z test has power Phi(0.28 * sqrt(100) - 1.96) = Phi(0.84) = 0.80.
    assert found == pytest.approx(0.80, abs=0.05)
    assert found == pytest.approx(best, abs=0.03)


# --------------------------------------------------------------------------- over tasks


TASKS = {
    "a": {"x": 0.9, "y": 0.5, "z": 0.5},
    "b": {"x": 2.0, "y": 1.0, "z": None},  # an error: less is better
    "c": {"x": 0.1, "z": math.nan},
}
BETTER = {"a": True, "b": False, "c": True}


def test_mean_ranks_by_hand():
    found = mean_ranks(TASKS, BETTER)
    assert found["x"].mean == pytest.approx((1 + 2 + 1) / 3)
    assert found["y"].mean == pytest.approx((2.5 + 1 + 3) / 3)
    assert found["z"].mean == pytest.approx((2.5 + 3 + 3) / 3)
    assert [found[entry].coverage for entry in "xyz"] == ["3 of 3", "2 of 3", "1 of 3"]


def test_mean_ranks_without_missing_cells_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 4, (6, 5)).astype(float)
    tasks = {str(i): {str(j): v for j, v in enumerate(row)} for i, row in enumerate(values)}
    found = mean_ranks(tasks, dict.fromkeys(tasks, True))
    expected = stats.rankdata(-values, axis=1).mean(0)
    assert [rank.mean for rank in found.values()] == pytest.approx(list(expected))


def test_win_share_by_hand():
    found = win_share(TASKS, BETTER)
    # six pairs each: x wins 2 + 1 + 2, y 0.5 + 2 + 0, z 0.5 + 0 + 0
    assert found == pytest.approx({"x": 5 / 6, "y": 2.5 / 6, "z": 0.5 / 6})
    assert math.isnan(win_share({"a": {"x": 1.0}}, {"a": True})["x"])
