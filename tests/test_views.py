"""Which stretch and strand of a row is seen when, and how often training draws it."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data import Table, batches
from mgen.data.checking import check
from mgen.data.inputs import views
from mgen.data.sampling import draw, sampling_weights
from mgen.loop import Train
from mgen.task import TURNED

ROWS = [{"sequence": "AACCGGTTAC", "label": 1.0}, {"sequence": "GAT", "label": 2.0}]


def sequences(rows):
    return [row["sequence"] for row in rows]


def seen(table, times: int = 200) -> list[set[str]]:
    """Every view of each row that training draws in so many epochs."""
    np.random.seed(0)
    drawn = [sequences(views.drawn(ROWS, table)) for _ in range(times)]
    return [set(of_row) for of_row in zip(*drawn, strict=True)]


# --------------------------------------------------------------------------- views


def test_without_options_rows_pass_as_they_are():
    assert views.drawn(ROWS, Table()) is ROWS
    assert views.fixed(ROWS, Table()) == (ROWS, [])


def test_training_draws_every_stretch_of_a_longer_sequence():
    assert seen(Table(crop=8)) == [{"AACCGGTT", "ACCGGTTA", "CCGGTTAC"}, {"GAT"}]


def test_evaluation_sees_the_middle_stretch():
    assert sequences(views.fixed(ROWS, Table(crop=8))[0]) == ["ACCGGTTA", "GAT"]
    assert sequences(views.fixed(ROWS, Table(crop=3))[0]) == ["CGG", "GAT"]


def test_training_turns_half_of_the_rows():
    table = Table(strands="augment")
    assert seen(table) == [{"AACCGGTTAC", "GTAACCGGTT"}, {"GAT", "ATC"}]
    np.random.seed(1)
    turned = sum(sequences(views.drawn(ROWS, table))[1] == "ATC" for _ in range(1000))
    assert 450 < turned < 550
    assert views.fixed(ROWS, table) == (ROWS, [])


def test_averaging_sees_both_strands_of_the_same_stretch():
    table = Table(strands="average", crop=4)
    assert [sequences(found) for found in views.fixed(ROWS, table)] == [
        ["CGGT", "GAT"],
        ["ACCG", "ATC"],
    ]
    assert {*map(len, seen(table)[0])} == {4} and seen(table)[1] == {"GAT"}


def dna(folder, **options):
    cfg = tiny.settings(folder)
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **options))


def test_outputs_are_the_mean_of_both_strands(tmp_path):
    averaged, _ = tiny.prepared(dna(tmp_path, strands="average"))
    plain, _ = tiny.prepared(dna(tmp_path))
    averaged.eval(), plain.eval()
    turned = [{**ROWS[0], "sequence": "GTAACCGGTT"}, {**ROWS[1], "sequence": "ATC"}]
    with torch.no_grad():
        found = averaged.averaged(averaged.collator()(ROWS))
        each = [plain(plain.collator()(rows)) for rows in (ROWS, turned)]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)
    batch = averaged.collator(training=True)(ROWS)
    assert not any(key.startswith(TURNED) for key in batch)


def test_lengths_are_those_of_the_stretch(tmp_path):
    task, rows = tiny.prepared(dna(tmp_path, crop=5))
    whole, _ = tiny.prepared(dna(tmp_path))
    special = task.tokenizer.num_special
    assert task.lengths.tolist() == np.minimum(whole.lengths, 5 + special).tolist()
    taken = rows.take(range(4))
    assert task.collator(training=True)(taken)["attention_mask"].sum(1).max() == 5 + special


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strands": "both"}, "this model reads protein, which has no other strand"),
        ({"crop": -1}, "--data.crop -1: expected a number of letters"),
        ({"crop": 3, "msa_col": "label"}, "not for rows with alignments"),
    ],
)
def test_views_that_make_no_sense_are_refused(options, message, tmp_path):
    rows = dataclasses.replace(tiny.table(tmp_path), **options).open()
    tokenizer = backbone("protein_onehot").tokenizer()
    with pytest.raises(InputError, match=message):
        views.check_views(rows, tokenizer, ("augment", "average"), True)


@pytest.mark.parametrize("options", [{"strands": "augment"}, {"strands": "average"}, {"crop": 4}])
def test_views_are_refused_where_labels_belong_to_letters(options, tmp_path):
    rows = dataclasses.replace(tiny.table(tmp_path), **options).open()
    with pytest.raises(InputError, match=r"not for this task, .*; drop it"):
        views.check_views(rows, backbone("dna_onehot").tokenizer(), (), True)


# --------------------------------------------------------------------------- draws


def weighted(folder, weights, **options):
    lines = [f"ACGT\t{i}\t{w}\t{'ab'[i > 2]}" for i, w in enumerate(weights)]
    (folder / "t.tsv").write_text("\n".join(["sequence\tlabel\tweight\tclass", *lines]) + "\n")
    path = str(folder / "t.tsv")
    return Table(path=path, test_fraction=0, valid_fraction=0, **options).open()


def test_weights_are_shares_of_the_draws(tmp_path):
    rows = weighted(tmp_path, [1, 0, 3], weight_col="weight")
    assert sampling_weights(rows).tolist() == [0.25, 0, 0.75]
    drawn = draw(np.array([5, 6, 7]).repeat(4000), np.tile([0.25, 0, 0.75], (4000, 1)).T.ravel()
                 / 4000, (1, 0))  # fmt: skip
    assert len(drawn) == 12_000
    shares = [(drawn == number).mean() for number in (5, 6, 7)]
    assert shares[1] == 0 and shares == pytest.approx([0.25, 0, 0.75], abs=0.02)


def test_balanced_draws_give_every_value_the_same_chance(tmp_path):
    rows = weighted(tmp_path, [1] * 5, balance_col="class")  # three of a, two of b
    assert sampling_weights(rows) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4])


def test_without_weights_every_row_is_drawn_once():
    rows = np.arange(9)
    assert draw(rows, None, (1, 0)) is rows


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([1, -1, 2], {"weight_col": "weight"}, r"row 2 .*column 'weight': weights must be at leas"),
        ([0, 0, 0], {"weight_col": "weight"}, "weights must be at least 0, and some"),
        ([1, "", 2], {"weight_col": "weight"}, "row 2 .*no label"),
        ([1, 1], {"weight_col": "wight"}, "no column 'wight'.*Set --data.weight-col"),
        ([1, 1], {"weight_col": "weight", "balance_col": "class"}, "set one of them"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(weights, options, message, tmp_path):
    rows = weighted(tmp_path, weights, **options)
    with pytest.raises(InputError, match=message):
        sampling_weights(rows)


def test_an_epoch_is_drawn_by_seed_and_epoch_alone(tmp_path):
    data = dict.fromkeys(("valid_fraction", "test_fraction"), 0.0) | {"split_col": ""}
    cfg = dna(tmp_path, balance_col="part", **data)

    def made():
        task, rows = tiny.prepared(cfg)
        task.check_use(rows, ("train",))
        return tiny.Fit(task, rows, task.lengths, cfg.train, tmp_path)

    first, again = made(), made()
    for epoch in (0, 1):
        assert [b.tolist() for b in first.order.plan(epoch)] == [
            b.tolist() for b in again.order.plan(epoch)
        ]
    flat = [sorted(np.concatenate(first.order.plan(epoch)).tolist()) for epoch in (0, 1)]
    assert flat[0] != flat[1] and len(flat[0]) == 40 and len({*flat[0]}) < 40


# --------------------------------------------------------------------------- plans, workers


@pytest.mark.parametrize("tokens", [0, 320, 319])
def test_batches_are_counted_without_a_plan_where_rows_alone_limit_them(tokens):
    lengths = np.random.default_rng(0).integers(1, 11, 3333)  # at most 10 tokens, 32 rows a batch
    planned = len(batches.plan(lengths, 32, tokens, (1, 2)))
    assert batches.num_batches(lengths, 32, tokens) == (0 if tokens == 319 else planned)


def test_workers_are_as_asked_for_or_as_the_cores_allow(monkeypatch):
    assert [Train(workers=n).num_workers for n in (0, 3)] == [0, 3]
    monkeypatch.setattr("mgen.loop.os.sched_getaffinity", lambda _: range(12))
    assert Train().num_workers == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Train().num_workers == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_within_an_epoch_goes_on_with_the_same_views_and_draws(workers, tmp_path):
    data = {"balance_col": "part", "strands": "both", "crop": 9, "split_col": ""}
    cfg = dna(tmp_path, **data, valid_fraction=0.0, test_fraction=0.0)

    def begun(folder, workers):
        train = dataclasses.replace(cfg.train, workers=workers, save_every=4)
        loop = tiny.fit(dataclasses.replace(cfg, train=train), tmp_path / folder)
        task, rows = loop.task, loop.rows
        task.check_use(rows, ("train",))
        return loop

    whole = begun("whole", 0)
    whole.run()
    stopped = begun("stopped", workers)

    def kill(_):  # within the second epoch of 10 steps; the last checkpoint is of step 12
        if stopped.state.step == 14:
            raise KeyboardInterrupt

    stopped.check = kill
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = begun("stopped", workers)
    resumed.restore()
    assert (resumed.state.step, resumed.state.index) == (12, 2)
    resumed.run()
    assert tiny.equal(tiny.weights(whole.task), tiny.weights(resumed.task))


def test_tokens_within_the_text_are_neither_cut_nor_turned(tmp_path):
    (tmp_path / "t.csv").write_text("sequence\nACGT\nAC[MASK]GT\n")
    data = Table(path=str(tmp_path / "t.csv"), test_fraction=0, valid_fraction=0)
    tokenizer = backbone("aido_dna_debug").tokenizer()
    assert check.sequences(data.open(), tokenizer) == []
    for options in ({"crop": 3}, {"strands": "augment"}):
        rows = dataclasses.replace(data, **options).open()
        with pytest.raises(InputError, match=r"row 2 .*a token such as \[MASK\] in the text"):
            check.sequences(rows, tokenizer)


@pytest.mark.parametrize("values", [["-1", "1", "-1"], ["700000", "5", "5"], ["a", "b", "a"]])
def test_any_values_can_be_balanced(values, tmp_path):
    lines = [f"ACGT,{value}" for value in values]
    (tmp_path / "t.csv").write_text("\n".join(["sequence,by", *lines]) + "\n")
    path = str(tmp_path / "t.csv")
    rows = Table(path=path, test_fraction=0, valid_fraction=0, balance_col="by").open()
    assert sorted(sampling_weights(rows)) == [0.25, 0.25, 0.5]


def test_all_different_values_cannot_be_balanced(tmp_path):
    with pytest.raises(InputError, match="3 different values in 3 training rows: nothing to bal"):
        sampling_weights(weighted(tmp_path, [1, 2, 3], balance_col="weight"))
