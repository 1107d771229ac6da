"""Pairs of residues: how cells are read, the loss, top-L precision and the recipe."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from safetensors.torch import load_file
from tiny import with_backbone  # puts recipes/ on the path

from mgen.adapters import ADAPTERS, adapter
from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.data.targets.pair_labels import (
    dot_bracket_pairs,
    pair_facts,
    pair_matrix,
    pair_targets,
    residue_spans,
)
from mgen.data.targets.token_labels import IGNORED
from mgen.figures.contacts import contact_map
from mgen.metrics import results
from mgen.metrics.contacts import (
    SHARES,
    contact_metrics,
    contact_statistics,
    eligible,
    top_pairs,
)
from mgen.train import run

import pairwise_classification  # isort: skip

Config = pairwise_classification.Config
PairwiseClassification = pairwise_classification.PairwiseClassification
PAIR_ADAPTERS = sorted(name for name, facts in ADAPTERS.facts.items() if "per pair" in facts)


def square(pairs, length):
    matrix = np.zeros((length, length), dtype=int)
    for i, j in pairs:
        matrix[i, j] = matrix[j, i] = 1
    return matrix.tolist()


# --------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    "cell",
    [
        [[0, 4], [1, 3]],
        [[4, 0], [1, 3], [0, 4]],  # either order, repeated
        "[[0, 4], [1, 3]]",
        "((.))",
        "{<.>}",
        "(A.a)",
        square([(0, 4), (1, 3)], 5),
        np.triu(square([(0, 4), (1, 3)], 5)).tolist(),  # one triangle alone
        np.tril(square([(0, 4), (1, 3)], 5)).tolist(),
        json.dumps(square([(0, 4), (1, 3)], 5)),
    ],
)
def test_every_form_of_a_cell_gives_the_same_symmetric_matrix(cell):
    assert pair_matrix(cell, 5).tolist() == square([(0, 4), (1, 3)], 5)


@pytest.mark.parametrize("cell", ["[]", [], ".....", np.zeros((5, 5)).tolist()])
def test_rows_without_pairs(cell):
    assert pair_matrix(cell, 5).tolist() == np.zeros((5, 5)).tolist()


def test_unknown_pairs_of_a_matrix_do_not_count():
    assert pair_matrix([[0, -1, 1], [-1, 0, None], [1, None, 1]], 3).tolist() == [
        [0, IGNORED, 1],
        [IGNORED, 0, IGNORED],
        [1, IGNORED, 1],
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([[0, 5]], r"\[0, 5\] lies outside a sequence of 5 .* count from 0 to 4"),
        ([[-1, 2]], "lies outside"),
        ([[1, 5], [2, 4]], "seem to count from 1"),
        ([[2, 2]], "joins a residue with itself"),
        ([[0, 1.5]], "whole numbers"),
        ([[0, "a"]], "whole numbers"),
        ([[0, 1, 2]], "expected pairs"),
        ([[0, 1], [2]], "expected pairs"),
        ([0, 1], "expected pairs"),
        (square([(0, 1)], 4), r"matrix of 5 x 5"),
        ([[0, 1, 0, 0, 0], [0] * 5, [0] * 5, [1, 0, 0, 0, 0], [0] * 5], "not symmetric"),
        ([[2, 0, 0, 0, 0], *[[0] * 5] * 4], "2 in a matrix"),
        ("(....", "'\\(' at position 0 .* never closed"),
        ("....)", "closes no bracket"),
        ("(.?.)", r"'\?' at position 2"),
        ("((..))", "6 letters for a sequence of 5"),
        (7, "neither pairs nor a structure"),
        ("[[0, 4], ", "letters for a sequence"),
    ],
)
def test_what_is_no_pairs_is_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        pair_matrix(cell, 5)


def test_golden_dot_brackets_with_four_kinds_and_crossings():
    cases = json.loads(golden("metrics/rna_secondary_structure.json").read_text())["dot_bracket"]
    for case in cases:
        assert dot_bracket_pairs(case["dot_bracket"]) == case["pairs"]


@pytest.mark.parametrize(("end", "first"), [("right", 0), ("left", 3)])
def test_pairs_are_cut_with_the_sequence_they_belong_to(end, first):
    tokenizer = backbone("esm2_8m", max_length=7, truncate=end).tokenizer()  # 5 residues fit
    given = ["ACDEFGHI", "ACD"]
    spans = residue_spans(given, tokenizer, tokenizer.tokenize(given)["special_tokens_mask"])
    assert spans.tolist() == [[first, 5, 8], [0, 3, 3]]
    found = pair_targets([[[0, 4], [3, 7], [1, 6]], [[0, 2]]], spans)
    kept = {"right": [[0, 4], [4, 0]], "left": [[0, 4], [4, 0]]}[end]
    if end == "left":  # [3, 7] becomes [0, 4]; [0, 4] and [1, 6] are lost
        assert pair_matrix([[3, 7]], 8)[3:, 3:].nonzero()[0].tolist() == [0, 4]
    assert (found[0] == 1).nonzero().tolist() == kept
    assert (found[1] == 1).nonzero().tolist() == [[0, 2], [2, 0]]
    assert (found[1, 3:] == IGNORED).all()
    assert (found[1, :, 3:] == IGNORED).all()


# --------------------------------------------------------------------------- precision and loss


def walked(scores, labels, length, k, apart):
    """Top-L/k precision as the field defines it, pair by pair; None where L is below k."""
    order = sorted(
        ((scores[i, j].item(), i, j) for i in range(length) for j in range(length)), reverse=True
    )
    chosen = [(i, j) for _, i, j in order if j - i > apart and labels[i, j] >= 0][: length // k]
    hits = sum(int(labels[i, j]) for i, j in chosen)
    return hits / (length // k) if length // k else None


def test_precision_of_a_padded_batch_is_that_of_each_row_walked_through():
    torch.manual_seed(0)
    lengths = torch.tensor([23, 9, 4, 1, 12])
    scores = torch.randn(5, 23, 23)
    labels = (torch.rand(5, 23, 23) < 0.3).long()
    labels[4, 2, 9:] = IGNORED
    for row, length in zip(labels, lengths, strict=True):
        row[length:], row[:, length:] = IGNORED, IGNORED
    for apart in (0, 2, 6):
        found = contact_statistics(scores, labels, lengths, apart)
        for row, length in enumerate(lengths.tolist()):
            for column, k in enumerate(SHARES.values()):
                expected = walked(scores[row], labels[row], length, k, apart)
                value = found[row, column].item()
                assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_golden_precision_of_contacts():
    given = json.loads(golden("metrics/contact_precision.json").read_text())
    apart, statistics, lengths = 6, [], []
    for case in given["cases"]:
        size = case["L"]
        scores, labels = (torch.tensor(case[k]).view(1, size, size) for k in ("logits", "labels"))
        found = contact_statistics(scores, labels, torch.tensor([size]), apart)
        for column, k in enumerate(SHARES.values()):
            expected, value = case["expected"][str(k)], found[0, column].item()
            assert (
                np.isnan(value)
                if expected is None
                else value == pytest.approx(expected["value"], abs=1e-5)
            )
        statistics.append(found)
        lengths.append(size)
    metrics = contact_metrics()
    for metric in metrics.values():
        metric.update(torch.cat(statistics), torch.tensor(lengths))
    with pytest.warns(UserWarning, match="leaves out"):
        found = results(metrics)
    for name, k in SHARES.items():
        if str(k) in given["aggregate_mean_over_cases"]:
            mean = given["aggregate_mean_over_cases"][str(k)]
            assert found[name] == pytest.approx(mean, abs=1e-5)


def test_golden_loss_and_precision_of_the_pairwise_task():
    folder = golden("tasks/pairwise_token_classification")
    config = json.loads((folder / "config.json").read_text())
    given, expected = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    apart = config["min_separation_exclusive"]
    task = PairwiseClassification(Config(ordered=True, min_separation=apart))
    metrics = task.metrics()
    for b in range(sum(name.startswith("labels_") for name in given)):
        residues = given[f"special_tokens_mask_{b}"][0] == 0
        logits = given[f"logits_{b}"][:, residues][:, :, residues][..., -1]
        batch = {"labels": given[f"labels_{b}"], "length": residues.sum()[None]}
        losses, weights = task.loss(logits, batch)
        loss = (losses * weights).sum() / weights.sum()
        assert loss == pytest.approx(expected[f"loss_{b}"].item(), abs=1e-5)
        for metric in metrics.values():
            metric.update(*task.scores(logits, batch))
    found = results(metrics)
    for k in config["k"]:
        name = "top_L_acc" if k == 1 else f"top_L{k}_acc"
        assert found[name] == pytest.approx(expected[name].item(), abs=1e-5), name


def test_loss_of_a_batch_is_the_mean_of_the_rows_own_losses():
    torch.manual_seed(0)
    task = PairwiseClassification(Config(positive_weight=3.0))
    outputs, lengths = torch.randn(3, 7, 7), (7, 4, 2)
    labels = torch.full((3, 7, 7), IGNORED, dtype=torch.int8)
    alone = []
    for row, length in enumerate(lengths):
        labels[row, :length, :length] = (torch.rand(length, length) < 0.4).to(torch.int8)
        i, j = torch.triu_indices(length, length, offset=1)
        given = outputs[row, i, j], labels[row, i, j].float()
        alone.append(F.binary_cross_entropy_with_logits(*given, pos_weight=torch.tensor(3.0)))
    losses, weights = task.loss(outputs, {"labels": labels})
    expected = torch.stack(alone).mean().item()
    assert (losses * weights).sum() / weights.sum() == pytest.approx(expected, abs=1e-6)


def test_best_pairs_come_first_and_never_too_near():
    scores = torch.arange(25.0).view(1, 5, 5)
    best, places = top_pairs(scores, eligible(torch.tensor([4]), 5, 1))
    pairs = [(p // 5, p % 5) for p in places[0].tolist()]
    assert pairs[:3] == [(1, 3), (0, 3), (0, 2)]
    assert best[0].isfinite().tolist() == [True] * 3 + [False] * 2


def test_a_metric_says_how_many_rows_it_left_out():
    metric = contact_metrics()["top_L10_acc"]
    metric.update(
        torch.tensor([[0.0, 0, 0, 0.5, 0], [0, 0, 0, torch.nan, 0]]), torch.tensor([9, 9])
    )
    with pytest.warns(UserWarning, match="top_L10_acc leaves out 1 of 2 rows"):
        assert metric.compute() == 0.5


# --------------------------------------------------------------------------- the recipe


def write(folder, rows: int = 24, pairs=None) -> str:
    """Palindromes of 8 to 12 letters: residue i pairs with the i-th from the end."""
    random = np.random.default_rng(0)
    lines = ["id\tsequence\tpairs"]
    for i in range(rows):
        half = "".join(random.choice(list("ACGT"), size=random.integers(4, 7)))
        sequence = half + half[::-1].translate(str.maketrans("ACGT", "TGCA"))
        cell = json.dumps([[k, len(sequence) - 1 - k] for k in range(len(half))])
        lines.append(f"r{i}\t{sequence}\t{cell if pairs is None else pairs(i, cell)}")
    file = folder / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def settings(path: str, **options) -> Config:
    return Config(
        backbone=backbone(options.pop("name", "dna_onehot")),
        adapter=options.pop("adapter", adapter("pair_ffn", hidden_size=8)),
        data=Table(path=path, y_cols=options.pop("y_cols", ("pairs",))),
        **options,
    )


def prepared(cfg: Config):
    task = PairwiseClassification(cfg)
    rows = cfg.data.open()
    task.check(rows, ("train", "valid", "test"))
    task.setup()
    return task.eval(), rows


@pytest.mark.parametrize("name", PAIR_ADAPTERS)
def test_a_row_has_the_same_pairs_alone_and_in_a_batch(tmp_path, name):
    torch.manual_seed(0)
    task, rows = prepared(settings(write(tmp_path), name="aido_dna_debug", adapter=adapter(name)))
    collate = task.collator()
    with torch.no_grad():
        together = task(collate(rows.take(range(5))))
        for i in range(5):
            alone = task(collate(rows.take([i])))[0]
            size = len(alone)
            assert size == len(rows.take([i])[0]["sequence"])  # special tokens left out
            assert torch.allclose(together[i, :size, :size], alone, atol=1e-5)
            assert torch.allclose(alone, alone.T, atol=1e-6)


def test_facts_hold_the_share_of_pairs_at_each_distance(tmp_path):
    task, rows = prepared(settings(write(tmp_path)))
    pairs, places = np.zeros(12), np.zeros(12)
    for row in rows.take(rows.splits["train"]):
        for i, j in json.loads(row["pairs"]):
            pairs[j - i] += 1
        for i in range(len(row["sequence"])):
            for j in range(i, len(row["sequence"])):
                places[j - i] += 1
    assert task.facts["by_distance"] == pytest.approx((pairs / places).tolist())


def test_the_recipe_trains_tests_draws_and_predicts_unlabelled_rows(tmp_path):
    flags = ["--backbone", "dna_onehot", "--adapter", "pair_ffn", "--data.y-cols", "pairs"]
    flags += ["--out", str(tmp_path / "runs"), "--train.workers", "0", "--train.epochs", "2"]
    flags += ["--name", "a", "--data.path", write(tmp_path), "--min-separation", "2"]
    with pytest.raises(SystemExit, match="0"):
        run(PairwiseClassification, Config, ["fit", *flags, "--train.lr", "0.01"])
    folder = tmp_path / "runs" / "pairwise_classification" / "a"
    report = json.loads((folder / "results.json").read_text())["test"]
    assert {*SHARES, "f1", "loss"} <= report.keys()
    assert len(list((folder / "figures" / "test").glob("map_*.png"))) == 4
    (tmp_path / "new.fasta").write_text(">x\nGATTACAG\n>y\nAC\n")  # the second has no pair so far
    again = ["predict", "--run", str(folder), "--data.path", str(tmp_path / "new.fasta")]
    with pytest.raises(SystemExit, match="0"):
        run(PairwiseClassification, Config, [*again, "--maps", "--format", "safetensors"])
    tensors = load_file(folder / "predictions" / "new.safetensors")
    assert tensors["map.lengths"].tolist() == [64, 4]
    whole = tensors["map"][:64].view(8, 8).float()
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "predictions" / "new.rows.parquet").to_pylist()
    assert len(rows[0]["pairs"]) == 8
    assert rows[1]["pairs"] == []
    i, j = rows[0]["pairs"][0]
    assert j - i > 2
    assert rows[0]["probability"][0] == pytest.approx(whole[i, j].item(), abs=1e-3)
    assert rows[0]["probability"] == sorted(rows[0]["probability"], reverse=True)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[[0, 99]]", "lies outside"),
        ("", "no pairs. Write \\[\\]"),
        ("((((", "4 letters for a sequence"),
    ],
)
def test_a_bad_cell_is_named_by_file_row_and_id(tmp_path, cell, message):
    file = write(tmp_path, pairs=lambda i, good: cell if i == 7 else good)
    with pytest.raises(InputError, match=message) as raised:
        prepared(settings(file))
    assert "rows.tsv, row 8 (header not counted), id 'r7', column 'pairs'" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": adapter("mean_pool_mlp")}, "no outputs per pair"),
        ({"adapter": adapter("linear")}, "no outputs per pair"),
        ({"min_separation": -1}, "--min-separation -1"),
        ({"channels": 0}, "--channels 0"),
        ({"positive_weight": float("nan")}, "--positive-weight nan"),
        ({"y_cols": ("pairs", "id")}, "name the one column"),
        ({"y_cols": ("nowhere",)}, "no column 'nowhere'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepared(settings(write(tmp_path), **options))


def test_training_rows_without_one_pair_are_refused(tmp_path):
    with pytest.raises(InputError, match="not one pair in the training rows"):
        prepared(settings(write(tmp_path, pairs=lambda i, good: "[]")))


def test_pairs_of_a_row_cut_at_its_left_end_keep_their_places(tmp_path):
    cfg = settings(write(tmp_path), min_separation=1)
    cfg = with_backbone(cfg, max_length=7, truncate="left")  # 6 residues
    task, rows = prepared(cfg)
    row = rows.take([0])
    batch = task.collator()(row)
    scores = torch.zeros(1, 6, 6)
    scores[0, 0, 5] = 1.0
    first = len(row[0]["sequence"]) - 6
    found = task.predictions(scores, batch)
    assert found["first"].item() == first
    assert found["pairs"][0][0] == [first, first + 5]


def test_a_map_is_drawn_with_and_without_true_pairs(tmp_path):
    for i, true in enumerate((None, [[0, 5]], [])):
        path = contact_map(tmp_path / f"{i}.png", (0, 9), [[0, 5]], [0.9], true, "row")
        assert path.read_bytes()[:4] == b"\x89PNG"
    contact_map(tmp_path / "none.png", (0, 9), [], [], None)


def test_training_rows_without_a_known_pair_are_left_out(tmp_path):
    known, unknown = [[0, 1, 0], [1, 0, 0], [0, 0, 0]], [[None] * 3] * 3
    lines = [{"sequence": "ACG", "y": json.dumps(m)} for m in (known, unknown, known)]
    file = tmp_path / "m.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Table(path=str(file), y_cols=("y",), test_fraction=0, valid_fraction=0)
    rows = table.open()
    _, notes = pair_facts(rows, ("train",), backbone("dna_onehot").tokenizer(), {})
    assert sorted(rows.splits["train"]) == [0, 2]
    assert "1 training rows have no pair" in notes[0]
