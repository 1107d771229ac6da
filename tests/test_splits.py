"""Splits equal the published ones, and every row lands where the options say."""

import dataclasses
import json
import time

import datasets
import numpy as np
import pytest
from conftest import golden

from mgen.config import InputError
from mgen.data import Table
from mgen.data.splitting import splits
from mgen.data.splitting.assigning import used_rows
from mgen.data.targets import labels

FIXTURE = "tasks/splits_and_folds"


def cases() -> list:
    return json.loads((golden(FIXTURE) / "outputs.json").read_text())["cases"]


def opened(case: dict, folder) -> tuple:
    """The table of the fixture, opened with the options that say what the case's arguments say."""
    content = json.loads((golden(FIXTURE) / "outputs.json").read_text())
    columns = ["labels", "y2", "cls", "fold"]
    lines = [",".join(["sequence", *columns])]
    for cells in zip(*(content[name] for name in columns), strict=True):
        lines.append(",".join(["A", *map(str, cells)]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    args = dict(case["args"])
    y_cols = args.pop("y_col", "labels")
    args.pop("normalize", None)
    if args.pop("cv_replace_val_fold_as_test_fold", False):
        args.pop("cv_enable_val_fold", None)
        args["cv_val_offset"] = 0
    names = {
        "random_seed": "split_seed",
        "test_split_size": "test_fraction",
        "valid_split_size": "valid_fraction",
        "cv_num_folds": "folds",
        "cv_test_fold_id": "fold",
        "cv_fold_id_col": "fold_col",
        "cv_val_offset": "valid_fold_offset",
        "cv_enable_val_fold": "valid_fold",
        "class_filter": "keep_classes",
    }
    options = {names[key]: value for key, value in args.items()}
    if "keep_classes" in options:
        options["keep_classes"] = tuple(map(str, np.atleast_1d(options["keep_classes"])))
    y_cols = (y_cols,) if isinstance(y_cols, str) else tuple(y_cols)
    return Table(path=str(folder / "table.csv"), y_cols=y_cols, **options).open(), content


def test_golden_splits_and_folds_have_the_published_rows_in_order(tmp_path):
    for case in cases():
        rows, _ = opened(case, tmp_path)
        found = {name: indices.tolist() for name, indices in rows.splits.items()}
        assert found == {name: case[name] for name in found}, case["args"]


def test_golden_label_statistics_give_the_published_normalised_labels(tmp_path):
    for case in cases():
        if "class_weight" in case:
            continue
        rows, _ = opened(case, tmp_path)
        found = labels.numbers(rows, rows.table.y_cols, rows.splits["train"])
        if case["args"].get("normalize", True):
            used = np.concatenate([rows.splits["train"], rows.splits["valid"]])
            mean, std = labels.statistics(rows, rows.table.y_cols, used)
            found = (found - mean) / std
        head = np.array(case["train_labels_head"])
        np.testing.assert_allclose(found[: len(head)], head, rtol=1e-9, atol=1e-12)
        assert list(found.shape) == case["train_labels_shape"]


def test_golden_class_weights_and_labels_are_the_published_ones(tmp_path):
    weighted = [case for case in cases() if "class_weight" in case]
    for case in weighted:
        rows, content = opened(case, tmp_path)
        names = [str(i) for i in range(max(content["cls"]) + 1)]
        ids = labels.class_ids(rows, "cls", names, rows.splits["train"])
        weights = labels.class_weights(ids, len(case["class_weight"]))
        head = case["train_labels_head"]
        assert ids[: len(head)].tolist() == head
        np.testing.assert_allclose(weights, np.array(case["class_weight"], dtype=float), rtol=1e-6)


@pytest.mark.parametrize(("size", "fraction", "seed"), [(53, 0.2, 42), (10, 0.01, 0), (7, 0.5, 3)])
def test_random_split_equals_that_of_the_datasets_library(size, fraction, seed):
    expected = datasets.Dataset.from_dict({"row": list(range(size))}).train_test_split(
        test_size=fraction, seed=seed
    )
    rest, drawn = splits.by_fraction(np.arange(size), fraction, seed)
    assert (rest.tolist(), drawn.tolist()) == (expected["train"]["row"], expected["test"]["row"])


def test_random_folds_hold_each_row_once_and_the_last_takes_the_rest():
    folds = splits.random_folds(13, 5, seed=1)
    assert [len(fold) for fold in folds] == [2, 2, 2, 2, 5]
    assert sorted(np.concatenate(folds)) == list(range(13))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 20])
def test_a_share_outside_0_to_1_is_refused(fraction):
    with pytest.raises(InputError, match="at least 0 and below 1"):
        splits.by_fraction(np.arange(10), fraction, 0)


def test_a_split_that_would_take_all_rows_is_refused():
    with pytest.raises(InputError, match="1 rows cannot be divided"):
        splits.by_fraction(np.arange(1), 0.2, 0)


def test_a_fold_column_must_hold_exactly_the_fold_numbers():
    with pytest.raises(InputError, match="holds '0', '2', expected exactly 0 to 1"):
        splits.named_folds(["0", "2"], 2)


def test_a_fold_beyond_the_last_is_refused():
    with pytest.raises(InputError, match="--data.fold 3: the folds are 0 to 2"):
        splits.by_fold(np.arange(9), splits.random_folds(9, 3, 0), 3, True, 1)


def table(folder, text: str, name: str = "t.csv", **options) -> Table:
    (folder / name).write_text(text)
    return Table(**{"path": str(folder / name), **options})


SPLIT = "sequence,label,split\nA,1,train\nC,2,{}\nG,3,test\nT,4,train\n"


def test_a_split_column_names_each_rows_split(tmp_path):
    rows = table(tmp_path, SPLIT.format("valid"), split_col="split").open()
    assert {k: v.tolist() for k, v in rows.splits.items()} == {
        "train": [0, 3],
        "valid": [1],
        "test": [2],
    }


def test_a_misspelt_split_name_does_not_silently_carve_a_split(tmp_path):
    with pytest.raises(InputError, match=r"no rows for valid named 'valid'; found: .*'validation'"):
        table(tmp_path, SPLIT.format("validation"), split_col="split").open()


def test_split_names_joined_by_plus_are_used_together(tmp_path):
    options = {"split_col": "split", "train_split": "train+extra", "valid_fraction": 0}
    rows = table(tmp_path, SPLIT.format("extra"), **options).open()
    assert rows.splits["train"].tolist() == [0, 3, 1]


def test_an_unnamed_split_is_drawn_and_the_plan_says_so(tmp_path):
    text = "sequence,label\n" + "A,1\n" * 1000
    assert table(tmp_path, text).open().plan == (
        "test: 0.2 of 1,000 rows at random, seed 42; valid: 0.1 of 800 rows at random, seed 42; "
        "rows: 720 train, 80 valid, 200 test"
    )


def test_files_of_a_folder_become_the_splits_they_are_named_after(tmp_path):
    for name, row in (("train.csv", "A,1"), ("valid.csv", "C,2"), ("test.csv", "G,3")):
        (tmp_path / name).write_text(f"sequence,label\n{row}\n")
    (tmp_path / "README.md").write_text("not a table")
    rows = Table(path=str(tmp_path)).open()
    found = {name: rows.take(indices)[0]["sequence"] for name, indices in rows.splits.items()}
    assert found == {"train": "A", "valid": "C", "test": "G"}


def test_files_of_a_glob_without_split_names_are_one_table(tmp_path):
    for i in range(3):
        (tmp_path / f"part{i}.csv").write_text("sequence,label\n" + f"A,{i}\n" * 10)
    rows = Table(path=str(tmp_path / "part*.csv"), test_fraction=0, valid_fraction=0).open()
    labels_in_order = "".join(row["label"] for row in rows.take(rows.splits["train"]))
    assert labels_in_order == "0" * 10 + "1" * 10 + "2" * 10


def test_rows_of_test_path_are_the_test_split(tmp_path):
    (tmp_path / "held_out.tsv").write_text("sequence\tlabel\nG\t3\n")
    options = {"test_path": str(tmp_path / "held_out.tsv"), "valid_fraction": 0}
    rows = table(tmp_path, "sequence,label\nA,1\nC,2\n", **options).open()
    assert rows.take(rows.splits["test"]) == [{"sequence": "G", "label": "3"}]
    assert rows.where(2).endswith("held_out.tsv, row 1 (header not counted)")


def test_test_rows_from_two_places_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("sequence,label\nG,3\n")
    options = {"split_col": "split", "test_path": str(tmp_path / "other.csv")}
    with pytest.raises(InputError, match="test rows come both from --data.test-path"):
        table(tmp_path, SPLIT.format("valid"), **options).open()


def test_folds_use_all_rows_not_what_the_fractions_leave(tmp_path):
    rows = table(tmp_path, "sequence,label\n" + "A,1\n" * 50, folds=5).open()
    assert [len(rows.splits[name]) for name in ("train", "valid", "test")] == [30, 10, 10]


def test_without_splits_any_table_opens(tmp_path):
    assert len(table(tmp_path, "sequence\nA\n", split_col="absent").open(split=False)) == 1


def test_hub_splits_are_assigned_by_name(monkeypatch, tmp_path):
    parts = {
        name: datasets.Dataset.from_dict({"sequence": [letter], "label": [1.0]})
        for name, letter in (("train", "A"), ("validation", "C"), ("test", "G"))
    }
    asked = {}

    def load_dataset(path, **options):
        asked.update(path=path, **options)
        return datasets.DatasetDict(parts)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = Table(path="owner/name", subset="s", revision="r", valid_split="validation").open()
    assert asked == {"path": "owner/name", "name": "s", "revision": "r"}
    assert [rows.splits[name].tolist() for name in ("train", "valid", "test")] == [[0], [1], [2]]
    assert rows.where(1) == "owner/name [validation], row 1 (header not counted)"


def test_a_hub_data_set_without_network_says_what_to_do():
    with pytest.raises(InputError, match="owner/name: no such file, and not to be had .* download"):
        Table(path="owner/name").open()


# --------------------------------------------------------------------------- rows used


FAMILIES = "sequence,label,family,size\nAC,1,a,2\nGT,2,b,2\nAA,3,a,3\nCC,4,,2\n"


def test_only_rows_of_the_named_values_are_used(tmp_path):
    def used(*only):
        return used_rows(table(tmp_path, FAMILIES, only=only).open(split=False)).tolist()

    none = {"test_fraction": 0, "valid_fraction": 0}
    rows = table(tmp_path, FAMILIES, only=("family=a", "size=2"), **none).open()
    assert rows.splits["train"].tolist() == [0]
    assert rows.plan == "only family=a and size=2; rows: 1 train, 0 valid, 0 test, 3 unused"
    assert used("family=a") == [0, 2] and used("size=2.0") == [0, 1, 3]
    assert used("family=a", "family=b", "size=2") == [0, 1]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("family", "--data.only family: expected COLUMN=VALUE"),
        ("family=c", "no row has family=c"),
        ("famly=a", "no column 'famly'.*Did you mean 'family'"),
    ],
)
def test_conditions_that_no_row_can_meet_are_refused(only, message, tmp_path):
    with pytest.raises(InputError, match=message):
        table(tmp_path, FAMILIES, only=(only,)).open()


def test_values_of_a_column_with_gaps_over_several_blocks_are_coded(tmp_path):
    from mgen.data.splitting.assigning import coded

    (tmp_path / "a").mkdir()
    for name, cells in {"a.jsonl": ["1.0", "null"], "b.jsonl": ["null", "2.0", "1.0"]}.items():
        lines = [f'{{"sequence": "AC", "v": {cell}}}' for cell in cells]
        (tmp_path / "a" / name).write_text("\n".join(lines) + "\n")
    rows = Table(path=str(tmp_path / "a")).open(split=False)
    codes, names = coded(rows, "v")
    assert [names[code] for code in codes] == ["1", "", "", "2", "1"]


# --------------------------------------------------------------------------- under a condition


def parts_of(rows, column: str) -> dict[str, list]:
    """The values of a column in each split."""
    values = rows.values(column)
    return {name: [values[i] for i in indices] for name, indices in rows.splits.items()}


def labelled(folder, size: int = 200, **options):
    """`size` rows: label y in {0, 1, 2} with shares 0.6, 0.3, 0.1; group g of 7 rows each."""
    y = ["0"] * (size * 6 // 10) + ["1"] * (size * 3 // 10) + ["2"] * (size // 10)
    lines = [f"A,{label},g{i // 7},{i * 0.5}" for i, label in enumerate(y)]
    return table(folder, "\n".join(["sequence,label,g,x", *lines]) + "\n", **options)


def test_strata_are_shared_by_all_splits_to_a_row(tmp_path):
    rows = labelled(tmp_path, stratify_col="label").open()
    found = {name: np.bincount(np.array(v, int)) for name, v in parts_of(rows, "label").items()}
    # By hand: 200 rows, 40 to test (24 + 12 + 4), of 160 left 16 to validate (9.6 + 4.8 + 1.6).
    assert found["test"].tolist() == [24, 12, 4]
    assert found["valid"].sum() == 16
    assert np.abs(found["valid"] - [9.6, 4.8, 1.6]).max() < 1


def test_stratified_folds_differ_by_a_row_at_most(tmp_path):
    folds = [
        labelled(tmp_path, 130, stratify_col="label", folds=4, fold=i).open() for i in range(4)
    ]
    tested = [np.bincount(np.array(parts_of(rows, "label")["test"], int)) for rows in folds]
    assert np.ptp(tested, axis=0).max() <= 1
    assert np.ptp([counts.sum() for counts in tested]) <= 1
    assert sorted(np.concatenate([rows.splits["test"] for rows in folds])) == list(range(130))


def test_many_numbers_are_stratified_by_quantiles_and_the_plan_says_so(tmp_path):
    rows = labelled(tmp_path, stratify_col="x").open()
    tenths = np.array(parts_of(rows, "x")["test"], float) // 10  # x is 0 to 99.5, evenly
    assert np.bincount(tenths.astype(int)).tolist() == [4] * 10
    assert "numbers of column 'x' shared alike in 10 quantiles" in rows.plan


def test_groups_never_straddle_and_the_plan_counts_them(tmp_path):
    rows = labelled(tmp_path, group_col="g").open()
    found = {name: set(values) for name, values in parts_of(rows, "g").items()}
    assert not found["train"] & found["test"] | found["train"] & found["valid"]
    assert not found["valid"] & found["test"]
    assert sum(map(len, found.values())) == 29  # 200 rows by 7
    assert "29 groups, the largest of 7 rows" in rows.plan
    assert abs(len(rows.splits["test"]) - 40) <= 7


def test_groups_and_strata_hold_together(tmp_path):
    rows = labelled(tmp_path, 700, group_col="g", stratify_col="label", folds=5).open()
    found = parts_of(rows, "g")
    assert not set(found["train"]) & set(found["test"])
    shares = np.bincount(np.array(parts_of(rows, "label")["test"], int)) / len(found["test"])
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.03


def test_without_a_condition_labels_are_not_balanced_by_luck(tmp_path):
    """The tests above could not pass on a plain draw."""
    rows = labelled(tmp_path).open()
    assert np.bincount(np.array(parts_of(rows, "label")["test"], int)).tolist() != [24, 12, 4]
    assert set(parts_of(rows, "g")["train"]) & set(parts_of(rows, "g")["test"])


@pytest.mark.parametrize("seed", range(5))
def test_units_and_strata_hold_for_any_shares(seed):
    generator = np.random.default_rng(seed)
    units, strata = generator.integers(0, 90, 300), generator.integers(0, 3, 300)
    shares = generator.dirichlet(np.ones(4)) * 0.6 + 0.1
    found = splits.allocate(units, strata, shares, seed)
    assert all(len(set(found[units == unit])) == 1 for unit in np.unique(units))
    counts = np.array([np.bincount(strata[found == i], minlength=3) for i in range(4)])
    assert np.abs(counts - shares[:, None] * np.bincount(strata)).max() < 9  # units have 3.3 rows
    assert (found == splits.allocate(units, strata, shares, seed)).all()
    assert (found != splits.allocate(units, strata, shares, seed + 1)).any()


def test_rows_joined_by_a_chain_of_groups_are_one():
    first, second = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 1, 2, 3, 3])
    found = splits.connected(first, second)
    assert found.tolist() == [0, 0, 0, 0, 4, 4]


def test_a_million_stratified_rows_take_seconds():
    strata = np.random.default_rng(0).integers(0, 10, 1_000_000)
    start = time.process_time()
    found = splits.allocate(np.arange(1_000_000), strata, (0.9, 0.1), 42)
    assert time.process_time() - start < 5  # 0.4 s on an idle core
    assert np.bincount(found).tolist() == [900_000, 100_000]


def test_every_row_is_tested_once_and_in_nested_folds_validated_once(tmp_path):
    """Outer folds 0 to 4; of each the inner ones by offsets 1 to 4."""
    tested = []
    for fold in range(5):
        validated = []
        for offset in range(1, 5):
            options = {"folds": 5, "fold": fold, "valid_fold_offset": offset}
            found = labelled(tmp_path, 60, group_col="g", **options).open().splits
            validated.append(found["valid"])
            held = np.concatenate([found["valid"], found["test"]])
            assert sorted([*found["train"], *held]) == list(range(60))
        tested.append(found["test"])
        assert sorted([*np.concatenate(validated), *found["test"]]) == list(range(60))
    assert sorted(np.concatenate(tested)) == list(range(60))


REFUSED = {
    "one group": ({"group_col": "one"}, "200 rows in 1 groups that stay together cannot be cut"),
    "more folds than groups": (
        {"group_col": "g", "folds": 30},
        "in 29 groups that stay together cannot be cut into 30 parts",
    ),
    "no group": ({"group_col": "some"}, "row 200 .*column 'some': no value .1 of 200 rows"),
    "no such column": (
        {"stratify_col": "lable"},
        "no column 'lable'.*'label'.*--data.stratify-col",
    ),
    "fold column too": (
        {"stratify_col": "label", "folds": 2, "fold_col": "label"},
        "--data.stratify-col: column 'label' says which rows are in which fold",
    ),
    "identity": ({"identity": 1.5}, "--data.identity 1.5: expected a number above 0 and up to 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_condition_that_cannot_be_met_is_refused(case, tmp_path):
    options, message = REFUSED[case]
    lines = [f"A,{i % 2},g{i // 7},1,{'' if i == 199 else 'a'}" for i in range(200)]
    text = "\n".join(["sequence,label,g,one,some", *lines]) + "\n"
    with pytest.raises(InputError, match=message):
        table(tmp_path, text, **options).open()


def test_a_condition_without_anything_to_draw_is_said(tmp_path):
    rows = table(tmp_path, SPLIT.format("valid"), split_col="split", group_col="label").open()
    assert "no rows are drawn: --data.group-col changes nothing" in rows.plan


# --------------------------------------------------------------------------- refused by name


def test_a_row_of_two_named_splits_is_refused(tmp_path):
    options = {"split_col": "split", "train_split": "train+valid", "valid_split": "valid"}
    with pytest.raises(InputError, match="row 2 .*: is both train and valid, as are 0 more"):
        table(tmp_path, SPLIT.format("valid"), **options).open()


def test_a_file_given_for_two_splits_is_refused(tmp_path):
    same = {"test_path": str(tmp_path / "t.csv")}
    with pytest.raises(InputError, match="t.csv: its rows are both train and test"):
        table(tmp_path, "sequence,label\nA,1\nC,2\n", **same).open()


def test_a_named_split_without_rows_is_refused(monkeypatch):
    parts = {name: datasets.Dataset.from_dict({"sequence": ["A"]}) for name in ("train", "test")}
    parts["valid"] = parts["train"].select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(parts))
    with pytest.raises(InputError, match="'valid', named for valid, has no rows"):
        Table(path="owner/name").open()


def test_classes_that_leave_a_named_split_empty_are_refused(tmp_path):
    options = {"split_col": "split", "keep_classes": ("1", "4")}
    with pytest.raises(InputError, match="--data.keep-classes 1 4: leaves no valid row"):
        table(tmp_path, SPLIT.format("valid"), **options).open()


def test_a_fold_column_with_a_gap_or_an_odd_value_names_them(tmp_path):
    text = "sequence,label,f\n" + "".join(f"A,1,{f}\n" for f in (0, 1, 3, 7))
    with pytest.raises(InputError, match="no row is in fold 2; 1 rows are in no fold, .* row 4"):
        table(tmp_path, text, fold_col="f", folds=4).open()


def test_a_share_of_rows_that_are_named_is_said_to_change_nothing(tmp_path):
    text = "sequence,split\nAC,train\nGT,train\nAA,test\nCC,valid\n"
    opened = table(tmp_path, text, split_col="split", test_fraction=0.3).open()
    assert "--data.test-fraction changes nothing: test rows are named" in opened.plan
    assert "valid-fraction" not in opened.plan


def test_a_number_that_is_none_is_no_group(tmp_path):
    text = "sequence,size\nAC,1\nGT,nan\nAA,2\nCC,2\n"
    with pytest.raises(InputError, match="row 2 .*column 'size': no value .1 of 4 rows"):
        table(tmp_path, text, group_col="size").open()


def test_files_that_look_like_splits_are_not_pooled(tmp_path):
    for name in ("my.train.csv", "my.test.csv"):
        (tmp_path / name).write_text("sequence,label\nAC,1\nGT,2\nAA,3\n")
    folder = Table(path=str(tmp_path), valid_fraction=0)
    with pytest.raises(InputError) as raised:
        folder.open()
    flags = "--data.train-split 'my.train' --data.test-split 'my.test'"
    assert f"but some look like splits: set {flags}, or --data.train-split '*'" in str(raised.value)
    named = dataclasses.replace(folder, train_split="my.train", test_split="my.test").open()
    assert {name: len(found) for name, found in named.splits.items()} == {
        "train": 3,
        "valid": 0,
        "test": 3,
    }
    pooled = dataclasses.replace(folder, train_split="*", test_fraction=0).open()
    assert len(pooled.splits["train"]) == 6
