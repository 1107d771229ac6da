"""Bad input through the real command: one clear message, exit code 2, nothing written or loaded."""

import dataclasses
import gzip
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from torch import nn

from mgen.train import run

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
HEADER = "row {} (header not counted), column '{}'"


class WeightsLoaded(Exception):
    """The command got past all checks."""


class Recipe:
    """A recipe's command, called in this process."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.spec_from_file_location(f"bad_input_{name}", RECIPES / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        tasks = [value for value in vars(module).values() if isinstance(value, type)]
        self.task = next(t for t in tasks if issubclass(t, nn.Module) and t.__module__ == spec.name)
        self.config, self.name = module.Config, name

    def __call__(self, *flags) -> int:
        with pytest.raises(SystemExit) as left:
            run(self.task, self.config, list(map(str, flags)))
        return left.value.code


REGRESSION = Recipe("sequence_regression")
CLASSES = Recipe("sequence_classification")
EMBED = Recipe("embed")
RIDGE = Recipe("ridge_regression")
EVERY = [REGRESSION, CLASSES, EMBED, RIDGE]
LABELLED = [REGRESSION, CLASSES, RIDGE]
by_name = {"ids": lambda value: getattr(value, "name", None)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unloaded(monkeypatch):
    """Whatever loads weights raises WeightsLoaded."""

    def setup(self):
        raise WeightsLoaded

    for recipe in EVERY:
        monkeypatch.setattr(recipe.task, "setup", setup)


def files() -> set[tuple[str, int]]:
    return {(str(p), p.stat().st_mtime_ns) for p in Path().rglob("*") if p.is_file()}


@pytest.fixture
def refused(unloaded, capsys):
    """Call a recipe that must refuse; returns its message on one line."""

    def call(recipe, *flags) -> str:
        before = files()
        code = recipe(*flags)
        out, err = capsys.readouterr()
        assert code == 2, (code, out, err)
        assert "Traceback" not in out + err
        assert files() == before, "something was written"
        return " ".join(err.replace("│", " ").split())

    return call


@pytest.fixture
def said(unloaded, capsys):
    """Call a recipe that goes on to load weights; returns the notes it printed before."""

    def call(recipe, *flags) -> list[str]:
        with pytest.raises(WeightsLoaded):
            run(recipe.task, recipe.config, list(map(str, flags)))
        lines = capsys.readouterr().out.splitlines()
        return [line.removeprefix("note ") for line in lines if line.startswith("note ")]

    return call


def sequence(i: int) -> str:
    """Different for every i below 4^6."""
    return "".join("ACGT"[i >> 2 * k & 3] for k in range(6))


def write(name: str, rows=(), columns="sequence,label", count: int = 20, label=lambda i: i % 2):
    """A CSV of `count` good rows (label(i), 0/1 for all recipes), then of the given lines."""
    good = [",".join([sequence(i), *[str(label(i))] * columns.count(",")]) for i in range(count)]
    Path(name).write_text("\n".join([columns, *good, *rows]) + "\n", encoding="utf-8")
    return name


def data(name: str) -> list[str]:
    return ["--data.path", name, "--backbone", "dna_onehot", "--train.workers", "0"]


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("recipe", EVERY, **by_name)
def test_a_missing_file_is_named_with_its_neighbour(recipe, refused):
    write("promoters.csv")
    message = refused(recipe, *data("promotors.csv"))
    assert message == "error promotors.csv: no such file. Did you mean 'promoters.csv'?"


def test_a_missing_file_that_could_be_a_hub_name_is_named_with_its_neighbour(refused):
    write("promoters.csv")
    message = refused(REGRESSION, *data("promoters.cvs"))
    assert "promoters.cvs: no such file" in message and "Did you mean 'promoters.csv'?" in message


BROKEN = {
    "empty": ("t.csv", b"", "t.csv: the file is empty"),
    "header alone": ("t.csv", b"sequence,label\n", "t.csv: there is a header but not one row"),
    "blank": ("t.csv", b"\n\n", "t.csv: the first line must name the columns"),
    "broken gzip": ("t.csv.gz", gzip.compress(b"sequence,label\n" * 99)[:-9], "cannot be unpacked"),
    "no gzip": ("t.csv.gz", b"sequence,label\nACGT,1\n", "t.csv.gz: cannot be unpacked"),
    "tabs in csv": ("t.csv", b"sequence\tlabel\nACGT\t1\n", "separated by '\\t'. A .csv has ','"),
    "commas in tsv": ("t.tsv", b"sequence,label\nACGT,1\n", "separated by ','. A .csv has ','"),
    "semicolons": ("t.csv", b"sequence;label\nACGT;1\n", "separated by ';'"),
    "CR alone": ("t.csv", b"sequence,label\rACGT,1\r", "t.csv: lines end in CR alone. Save"),
    "UTF-16": ("t.csv", "sequence,label\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8 t.csv"),
    "latin-1": ("t.csv", b"sequence,label\nACGT,1\n\xe9,1\n", HEADER.format(2, "sequence")),
    "ragged": (
        "t.csv",
        b"sequence,label\nACGT,1\nACGT,1,2\n",
        "row 2 (header not counted): 3 cell",
    ),
    "quote": ("t.csv", b'sequence,label\nACGT,1\n"ACGT,1\nACGT,2\n', "row 2 (header not counted)"),
    "twice": (
        "t.csv",
        b"sequence,label,label\nACGT,1,1\n",
        "more than one column is named 'label'",
    ),
    "format": ("t.txt", b"ACGT\n", "t.txt: the suffix '.txt' says no known format; known: .csv"),
    "json": ("t.jsonl", b'{"sequence": "A"}\n{"sequence":\n', "t.jsonl, row 2: not a line of JSON"),
    "json depth": ("t.jsonl", b"[" * 100_000, "t.jsonl, row 1: not a line of JSON"),
    "json list": ("t.jsonl", b'["ACGT", 1]\n', "t.jsonl, row 1: expected an object such as"),
    "json mixed": ("t.jsonl", b'{"label": 1}\n{"label": "x"}\n', "column 'label': values of diff"),
    "json huge": ("t.jsonl", b'{"label": 1%s}\n' % (b"0" * 40), "column 'label': values of differ"),
    "json surrogate": (
        "t.jsonl",
        b'{"sequence": "\\ud800"}\n',
        "column 'sequence': values of diff",
    ),
    "json null": (
        "t.jsonl",
        b'{"sequence": null, "label": 1}\n' * 9,
        "the sequence is empty (9 of",
    ),
    "parquet": ("t.parquet", b"nonsense", "t.parquet: not a Parquet file, or a damaged one"),
    "fasta text": ("t.fasta", b"ACGT\n>a\nACGT\n", "t.fasta: text before the first '>': 'ACGT'"),
    "fasta empty": ("t.fasta", b">a x=1\n>b\nACGT\n", "record 1 ('a x=1'): there is no sequence"),
    "fasta reserved": (
        "t.fasta",
        b">a sequence=X\nACGT\n",
        "attribute 'sequence=', a reserved name",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(case, refused):
    name, content, expected = BROKEN[case]
    Path(name).write_bytes(content)
    message = refused(REGRESSION, *data(name))
    assert message.startswith(f"error {name}") and expected in message


def test_a_folder_or_glob_without_a_table_is_refused(refused):
    Path("folder.csv").mkdir()
    Path("folder.csv/notes.txt").write_text("nothing")
    message = refused(REGRESSION, *data("folder.csv"))
    assert "folder.csv: a folder without a single table (.csv, .tsv" in message
    assert "*.nope: no file has such a name" in refused(EMBED, *data("*.nope"))
    assert "There is no folder t.csv" in refused(EMBED, *data(write("t.csv") + "/x.csv"))


def test_byte_order_marks_windows_lines_and_quotes_are_no_error(said):
    text = Path(write("t.csv")).read_bytes()
    quoted = text.replace(b"AAAAAA", b'"AAAAAA"')
    for changed in (b"\xef\xbb\xbf" + text, text.replace(b"\n", b"\r\n"), quoted):
        Path("t.csv").write_bytes(changed)
        assert said(REGRESSION, *data("t.csv")) == []


def test_a_file_edited_in_place_is_read_anew(refused, said):
    path = Path(write("t.csv", ["ACGT,1"]))
    times = path.stat()
    assert said(REGRESSION, *data("t.csv"), "--out", "runs") == []
    path.write_text(path.read_text().replace("ACGT,1", "ACGX,1"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    assert f"t.csv, {HEADER.format(21, 'sequence')}: 'X'" in refused(REGRESSION, *data("t.csv"))


# --------------------------------------------------------------------------- columns


@pytest.mark.parametrize("recipe", EVERY, **by_name)
def test_a_missing_column_is_named_with_the_nearest(recipe, refused):
    write("t.csv", columns="sequence,label")
    assert refused(recipe, *data("t.csv"), "--data.x-col", "seqence") == (
        "error t.csv: no column 'seqence'; columns are 'sequence', 'label'. Did you mean "
        "'sequence'? Set --data.x-col."
    )


@pytest.mark.parametrize("recipe", LABELLED, **by_name)
def test_a_missing_label_column_is_named_with_the_nearest(recipe, refused):
    message = refused(recipe, *data(write("t.csv")), "--data.y-cols", "lable")
    assert "t.csv: no column 'lable'" in message
    assert "Did you mean 'label'? Set --data.y-cols." in message


@pytest.mark.parametrize("columns", [[], ["label", "label"]])
@pytest.mark.parametrize("recipe", LABELLED, **by_name)
def test_no_label_column_or_one_twice_is_refused(recipe, columns, refused):
    message = refused(recipe, *data(write("t.csv")), "--data.y-cols", *columns)
    assert "--data.y-cols" in message and "name each column of labels once" in message


def test_several_class_columns_without_multilabel_are_refused(refused):
    write("t.csv", columns="sequence,a,b")
    message = refused(CLASSES, *data("t.csv"), "--data.y-cols", "a", "b")
    assert "--data.y-cols a b: one column holds the class" in message and "--multilabel" in message


def test_a_column_that_one_of_several_files_lacks_is_named_with_that_file(refused):
    write("v.csv", columns="seq,label")
    message = refused(REGRESSION, *data(write("t.csv")), "--data.valid-path", "v.csv")
    assert message == (
        "error v.csv: no column 'sequence', which other files have; columns are 'seq', 'label'. "
        "Did you mean 'seq'? Rename it."
    )


@pytest.mark.parametrize("flag", ["--data.valid-path", "--data.test-path"])
def test_a_missing_held_out_file_is_named(flag, refused):
    message = refused(REGRESSION, *data(write("t.csv")), flag, "u.csv")
    assert message == "error u.csv: no such file. Did you mean 't.csv'?"


TYPES = {
    "numbers": (pa.array(range(8)), "expected sequences as text, found values of type int64"),
    "bytes": (pa.array([b"ACGT"] * 8), "expected sequences as text, found values of type binary"),
    "lists": (pa.array([["A"]] * 8), "expected sequences as text, found values of type list"),
    "nulls": (pa.nulls(8), HEADER.format(1, "sequence") + ": the sequence is empty (8 of 8 rows)"),
    "a null": (pa.array(["ACGT", None] * 4), HEADER.format(2, "sequence") + ": the sequence is"),
}


@pytest.mark.parametrize("case", TYPES)
def test_sequences_that_are_no_text_are_refused(case, refused):
    column, expected = TYPES[case]
    parquet.write_table(pa.table({"sequence": column, "label": range(8)}), "t.parquet")
    message = refused(REGRESSION, *data("t.parquet"))
    assert message.startswith("error t.parquet, ") and expected in message


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string()], ids=str)
def test_other_kinds_of_text_are_no_error(kind, said):
    column = pa.array([sequence(i) for i in range(20)]).cast(kind)
    parquet.write_table(pa.table({"sequence": column, "label": range(20)}), "t.parquet")
    assert said(REGRESSION, *data("t.parquet")) == []


def test_attributes_of_fasta_headers_are_labels_and_bad_ones_are_named(refused):
    records = [f">s{i} label={i}\n{sequence(i)}\n" for i in range(20)]
    Path("t.fasta").write_text("".join([*records, ">s20 label=high\nACGT\n", ">s21\nACGT\n"]))
    message = refused(REGRESSION, *data("t.fasta"), "--data.test-fraction", "0")
    assert "t.fasta, row " in message and "column 'label'" in message and ", id 's2" in message


# --------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("recipe", EVERY, **by_name)
def test_an_empty_sequence_is_named(recipe, refused):
    message = refused(recipe, *data(write("t.csv", [",1", " ,1"])))
    assert message == (
        f"error t.csv, {HEADER.format(21, 'sequence')}: the sequence is empty (2 of 22 rows). "
        "Fill it in or drop the row."
    )


@pytest.mark.parametrize("letter", ["X", "é", "日", "\0", "[bold]"])
def test_a_letter_outside_the_alphabet_is_named(letter, refused):
    message = refused(EMBED, *data(write("t.csv", [f"AC{letter}T,1"])))
    assert f"t.csv, {HEADER.format(21, 'sequence')}: {letter[0]!r} is not a letter" in message
    assert "in 1 of 21 rows" in message and "--backbone.unknown token" in message


def test_letters_read_as_unknown_tokens_are_counted_once(said):
    notes = said(EMBED, *data(write("t.csv", ["AXXT,1", "é,1"])), "--backbone.unknown", "token")
    assert notes == ["3 such letters in 2 of 22 rows, such as 'X', are read as the unknown token"]


def test_an_unknown_letter_is_one_token_so_that_positions_never_shift():
    choice = dataclasses.replace(EMBED.config().backbone, unknown="token")
    tokenizer = choice.tokenizer()
    good, bad = tokenizer.tokenize(["ACGTACG", "AXXTé*G"])["input_ids"].tolist()
    unknown = tokenizer.unk_token_id
    assert [a if b == unknown else b for a, b in zip(good, bad, strict=True)] == good
    assert bad.count(unknown) == 4


@pytest.mark.parametrize("recipe", [REGRESSION, EMBED], **by_name)
def test_lower_case_and_u_are_said_once_each(recipe, said):
    assert said(recipe, *data(write("t.csv", ["acgt,1", "GCU,0", "gcug,1"]))) == [
        "lower-case letters in 2 of 23 rows are read as upper case",
        "U as T: letters converted in 2 of 23 rows",
    ]


@pytest.mark.parametrize("recipe", [REGRESSION, EMBED], **by_name)
def test_a_sequence_longer_than_the_context_is_named_or_cut_aloud(recipe, refused, said):
    flags = [*data(write("t.csv", ["ACGTACGTAC,1"])), "--backbone.max-length", "8"]
    message = refused(recipe, *flags)
    assert f"t.csv, {HEADER.format(21, 'sequence')}: longer than 8 tokens" in message
    assert "(1 of 21 rows). Set --backbone.truncate right (or left)" in message
    for end in ("right", "left"):
        (note,) = said(recipe, *flags, "--backbone.truncate", end)
        assert note.startswith("1 of 21 sequences are longer than 8 tokens, 1 of them special: ")
        assert note.endswith(f"their {end} ends are cut, 3 letters in all")


def test_peptides_that_look_like_missing_values_are_sequences(said):
    peptides = ["NA,1", "NULL,0", "NAN,1"]
    flags = data(write("t.csv", peptides))
    assert said(EMBED, *flags, "--backbone", "protein_onehot") == []


def test_repeated_identifiers_are_counted_once(said):
    rows = [f"{sequence(30 + i)},{i},{name}" for i, name in enumerate(["a", "b", "a", "a", "", ""])]
    Path("t.csv").write_text("\n".join(["sequence,label,id", *rows]) + "\n")
    (note,) = said(EMBED, *data("t.csv"))
    assert note == (
        "2 rows repeat an identifier of column 'id', such as 'a' (t.csv, row 1 (header not "
        "counted)); rows are told apart by their number"
    )


@pytest.mark.parametrize("recipe", [CLASSES, RIDGE], **by_name)
def test_sequences_shared_by_train_and_test_are_counted_once(recipe, said):
    rows = [f"{sequence(3).lower()},1", f"{sequence(5)},0", f"{sequence(40)},0"]
    Path("u.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    flags = [*data(write("t.csv")), "--data.test-path", "u.csv", "--data.valid-fraction", "0"]
    assert said(recipe, *flags) == [
        "lower-case letters in 1 of 23 rows are read as upper case",
        "2 of 3 test sequences also occur in train, the first in u.csv, row 1 (header not "
        "counted): scores on test will be too good",
    ]


def test_one_huge_row_is_read(said):
    Path("t.fasta").write_text(">a\n" + "ACGT" * 1_000_000 + "\n")
    (note,) = said(EMBED, *data("t.fasta"), "--backbone.truncate", "right")
    assert "3,999,489 letters in all" in note


# --------------------------------------------------------------------------- labels

ALL_TRAIN = ["--data.test-fraction", "0", "--data.valid-fraction", "0"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("high", "'high' is not a number. Correct it, or use a classification recipe for names"),
        ("", "no label. Only prediction works without labels: fill them in or drop the rows"),
        ("NaN", "'NaN' is not a finite number. Correct it or drop the row"),
        ("inf", "'inf' is not a finite number. Correct it or drop the row"),
        ("-1e999", "'-1e999' is not a finite number. Correct it or drop the row"),
    ],
)
@pytest.mark.parametrize("recipe", [REGRESSION, RIDGE], **by_name)
def test_a_label_that_is_no_number_is_named(recipe, cell, expected, refused):
    message = refused(recipe, *data(write("t.csv", [f"ACGT,{cell}"])), *ALL_TRAIN)
    assert message == f"error t.csv, {HEADER.format(21, 'label')}: {expected} (1 of 21 rows)."


@pytest.mark.parametrize(
    ("cell", "flags", "expected"),
    [
        ("", [], "no label. Only prediction works without labels"),
        ("  ", [], "no label. Only prediction works without labels"),
        ("nan", [], "'nan' is no class. Correct it"),
        ("inf", [], "'inf' is no class. Correct it"),
        ("-1", [], "class -1 is outside 0 to 1 (1 such classes). Number the classes from 0"),
        ("2", ["--classes", "2"], "class 2 is outside 0 to 1 (1 such classes)"),
        ("1000000", [], "class 1000000 is outside 0 to 99999"),
    ],
)
def test_a_class_outside_those_there_are_is_named(cell, flags, expected, refused):
    message = refused(CLASSES, *data(write("t.csv", [f"ACGT,{cell}"])), *ALL_TRAIN, *flags)
    assert f"t.csv, {HEADER.format(21, 'label')}: {expected}" in message


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2", "2 is neither 0 nor 1 (1 such cells). Labels of --multilabel columns are 0 or 1"),
        ("0.5", "0.5 is neither 0 nor 1"),
        ("", "no label. Only prediction works without labels"),
        ("yes", "'yes' is not a number"),
        ("nan", "'nan' is not a finite number"),
    ],
)
def test_a_label_of_several_that_is_not_0_or_1_is_named(cell, expected, refused):
    path = write("t.csv", [f"ACGT,1,{cell}"], columns="sequence,a,b")
    flags = ["--multilabel", "--data.y-cols", "a", "b"]
    message = refused(CLASSES, *data(path), *ALL_TRAIN, *flags)
    assert f"t.csv, {HEADER.format(21, 'b')}: {expected}" in message


def test_a_class_absent_from_training_is_named(refused):
    Path("u.csv").write_text("sequence,label\nGGGG,1\nGGGT,2\n")
    flags = [*data(write("t.csv")), "--data.test-path", "u.csv", "--data.valid-fraction", "0"]
    message = refused(CLASSES, *flags)
    assert f"u.csv, {HEADER.format(2, 'label')}: class '2' of this test row has no tr" in message
    assert "--data.keep-classes" in message


def test_one_class_is_nothing_to_learn(refused):
    message = refused(CLASSES, *data(write("t.csv", label=lambda i: "a")))
    assert "t.csv, column 'label': the same class in all rows used ('a'): nothing" in message
    assert "--classes 1: expected 2 or more" in refused(
        CLASSES, *data(write("t.csv")), "--classes", "1"
    )


def test_one_number_is_nothing_to_learn(refused):
    message = refused(REGRESSION, *data(write("t.csv", label=lambda i: 3)))
    assert "t.csv, column 'label': the same label in all 14 rows" in message


def test_classes_in_lists_are_refused(refused):
    lines = [json.dumps({"sequence": sequence(i), "label": [i % 2]}) for i in range(20)]
    Path("t.jsonl").write_text("\n".join(lines))
    message = refused(CLASSES, *data("t.jsonl"))
    assert f"t.jsonl, {HEADER.format(1, 'label')}: expected one class per row" in message


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data.pth", "t.csv"], "Perhaps you meant: --data.path"),
        (["--train.lr", "high"], "could not convert string to float: 'high'"),
        (["--train.epochs", "1.5"], "--train.epochs"),
        (
            ["--adapter", "mean_pool_mpl"],
            "no adapter 'mean_pool_mpl'. Did you mean 'mean_pool_mlp'?",
        ),
        (["--backbone", "esm2_8n"], "no backbone 'esm2_8n'. Did you mean 'esm2_8m'?"),
        (
            ["--data", "promoter_tiny"],
            "no data set 'promoter_tiny'. Did you mean 'promoters_tiny'?",
        ),
        (["--data.folds", "3", "--data.fold", "3"], "--data.fold 3: the folds are 0 to 2"),
        (["--data.folds", "3", "--data.fold", "-1"], "--data.fold -1: the folds are 0 to 2"),
        (["--data.folds", "99"], "t.csv: 20 rows cannot be cut into 99 folds"),
        (["--data.fold", "2"], "need --data.folds, the number of folds"),
        (["--data.fold-col", "label"], "need --data.folds, the number of folds"),
        (["--data.split-seed", "-1"], "--data.split-seed -1: expected 0 to"),
        (["--data.test-fraction", "nan"], "t.csv: a share of rows must be at least 0 and below 1"),
        (["--data.valid-fraction", "0.99"], "t.csv: 16 rows cannot be divided"),
        (["--data.split-col", "label"], "t.csv, column 'label': no rows for train named 'train'"),
        (["--data.keep-classes", "a"], "--data.keep-classes a: leaves no train row"),
        (["--backbone.max-length", "1"], "leaves no room for a sequence"),
        (["--train.monitor", "pearsn"], "no such metric. Did you mean 'pearson'?"),
        (["--train.batch-size", "0"], "expected"),
        (["--train.batch-size", "-3"], "expected"),
        (["--train.accumulate", "0"], "expected"),
        (["--config", "nope.yaml"], "--config nope.yaml: no such file"),
        (["--run", "nope", "--resume"], "--run nope: not a run directory"),
        (["fitt"], "no verb 'fitt' here. Did you mean 'fit'?"),
        (["predict"], "predict needs a trained run: set --run DIR"),
        (["test"], "test needs a trained run: set --run DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_refused(flags, expected, refused):
    write("t.csv")
    verb = [] if flags[0][0] == "-" else flags[:1]
    message = refused(REGRESSION, *verb, *data("t.csv"), *flags[len(verb) :])
    assert expected in message


@pytest.mark.parametrize(
    "flag", ["lr nan", "lr -1", "epochs -1", "clip nan", "seed -1", "workers -2"]
)
def test_a_training_setting_out_of_range_is_refused(flag, refused):
    name, value = flag.split()
    assert "expected" in refused(REGRESSION, *data(write("t.csv")), f"--train.{name}", value)


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1\n- 2", "words", "5", "train: 5", "train: {lrr: 1}", "train: {lr: high}", "\0",
     "a: &a [*a]", "? [1]\n: 2", "format: 9", "train:\n- 1"],
)  # fmt: skip
def test_nonsense_yaml_is_refused_by_name(text, refused):
    Path("x.yaml").write_text(text)
    assert "x.yaml" in refused(REGRESSION, *data(write("t.csv")), "--config", "x.yaml")


def test_a_folder_or_binary_file_as_yaml_is_refused(refused):
    Path("x.yaml").mkdir()
    Path("y.yaml").write_bytes(b"\xff\xfe")
    for name in ("x.yaml", "y.yaml"):
        message = refused(REGRESSION, "--config", name)
        assert f"--config {name}: cannot be read as YAML" in message


@pytest.mark.parametrize("path", ["bad[/red].csv", "[bold]"])
def test_square_brackets_in_names_are_shown(path, refused):
    assert path in refused(EMBED, *data(path))


# --------------------------------------------------------------------------- run directories


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of sequence regression."""
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    try:
        flags = ["--adapter", "mean_pool_linear", "--train.epochs", "1", "--name", "one"]
        assert REGRESSION(*data(write("t.csv")), *flags) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def one(trained, capsys) -> str:
    """A copy of that run and its table, here."""
    shutil.copytree(trained, Path(), dirs_exist_ok=True, symlinks=True)
    capsys.readouterr()
    return "runs/sequence_regression/one"


@pytest.mark.parametrize("recipe", EVERY, **by_name)
def test_an_output_folder_that_cannot_be_written_is_refused(recipe, refused):
    Path("file").write_text("")
    message = refused(recipe, *data(write("t.csv")), "--out", "file/runs")
    assert "file/runs" in message and "cannot write there (Not a directory)" in message


def test_an_output_folder_of_another_run_or_of_other_files_is_refused(one, refused):
    other = Path("runs/sequence_regression/notes")
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    flags = data("t.csv")
    message = refused(REGRESSION, *flags, "--name", "notes")
    assert f"{other}: holds other files and is no run; choose another --name" in message
    message = refused(REGRESSION, *flags, "--name", "one")
    assert f"{one}: holds a run already; --resume it or choose another --name" in message
    message = refused(REGRESSION, "--run", one, "--resume", "--train.lr", "0.5")
    assert "was started with other settings: train.lr: 0.002 -> 0.5" in message


@pytest.mark.parametrize("verb", ["predict", "test", "validate"])
def test_a_table_that_would_reset_the_columns_of_a_run_is_refused(verb, one, refused):
    assert "--data.path" in refused(REGRESSION, verb, "--run", one, "--data", "t.csv")


@pytest.mark.parametrize("verb", ["predict", "test", "validate"])
@pytest.mark.parametrize("path", ["nope", "t.csv", "runs/sequence_regression"])
def test_a_run_that_is_none_is_refused(verb, path, one, refused):
    message = refused(REGRESSION, verb, "--run", path)
    assert f"--run {path}: not a run directory (it has no config.yaml)" in message


@pytest.mark.parametrize("name", ["bset", "step-99", "..", "", "/"])
def test_a_checkpoint_that_is_none_is_refused(name, one, refused):
    message = refused(REGRESSION, "predict", "--run", one, f"--checkpoint={name}")
    assert "no checkpoint" in message or "complete.json is missing" in message


DAMAGE = {
    "config.yaml": "not the settings of a run, or damaged",
    "checkpoints/best/facts.json": "facts.json has 3 bytes instead of",
    "checkpoints/best/model.safetensors": "model.safetensors has 3 bytes instead of",
    "checkpoints/best/complete.json": "complete.json is damaged",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_run_is_refused(file, one, refused):
    Path(one, file).write_text("a:[")
    if file == "config.yaml":
        Path(one, file).write_text("a: [")
    assert DAMAGE[file] in refused(REGRESSION, "predict", "--run", one)


def test_a_run_without_checkpoints_is_refused(one, refused):
    shutil.rmtree(f"{one}/checkpoints")
    message = refused(REGRESSION, "predict", "--run", one)
    assert f"{one}: no checkpoint 'best'; there are: -" in message


@pytest.mark.parametrize("verb", ["predict", "test"])
def test_bad_rows_are_named_before_a_run_is_loaded(verb, one, refused):
    flags = [verb, "--run", one, "--data.path"]
    message = refused(REGRESSION, *flags, "none.csv")
    assert "none.csv: no such file" in message
    message = refused(REGRESSION, *flags, write("u.csv", columns="seq,label"))
    assert "u.csv: no column 'sequence'" in message and "Did you mean 'seq'?" in message
    message = refused(REGRESSION, *flags, write("u.csv", ["ACXT,1"]))
    assert f"u.csv, {HEADER.format(21, 'sequence')}: 'X' is not a letter" in message


def test_testing_without_labels_or_rows_is_refused(one, refused):
    Path("u.csv").write_text("sequence,label\nACGT,1\nACG,\nAC,2\n")
    message = refused(REGRESSION, "test", "--run", one, "--data.test-path", "u.csv")
    assert f"u.csv, {HEADER.format(2, 'label')}: no label" in message
    message = refused(REGRESSION, "test", "--run", one, "--data.test-fraction", "0")
    assert "no test rows" in message


LABELS = ["sequence\nACGT\nACG\n", "sequence,label\nACGT,\nACG,1\n", "sequence,label\nACGT,x\nA,\n"]


@pytest.mark.parametrize("text", LABELS, ids=["no column", "some", "text"])
def test_prediction_needs_no_labels(text, one):
    Path("u.csv").write_text(text)
    assert REGRESSION("predict", "--run", one, "--data.path", "u.csv") == 0
    table = parquet.read_table(f"{one}/predictions/u.parquet")
    assert table.column("row").to_pylist() == [0, 1]


def test_prediction_on_a_split_needs_no_labels(one):
    Path("u.csv").write_text("sequence\n" + "".join(f"{sequence(i)}\n" for i in range(20)))
    assert REGRESSION("predict", "--run", one, "--data.path", "u.csv", "--split", "test") == 0


@pytest.mark.parametrize("verb", ["predict", "test"])
def test_an_unknown_column_to_copy_is_refused(verb, one, refused):
    message = refused(REGRESSION, verb, "--run", one, "--columns", "lable")
    assert "--columns lable: no such column. Did you mean 'label'?" in message


@pytest.mark.parametrize("column", ["row", "predicted_label"])
def test_a_column_to_copy_that_the_file_has_already_is_refused(column, one, capsys):
    write("u.csv", columns=f"sequence,label,{column}")
    flags = ["--data.path", "u.csv", "--columns", column]
    assert REGRESSION("predict", "--run", one, *flags) == 2
    assert f"--columns {column}" in capsys.readouterr().err
    assert not Path(one, "predictions/u.parquet").exists()


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "{here}/x", "a\0b", ".hidden"])
def test_a_run_name_that_is_no_folder_name_is_refused(name, refused):
    message = refused(REGRESSION, *data(write("t.csv")), "--name=" + name.format(here=Path.cwd()))
    assert "--name" in message


def test_a_run_never_goes_on_with_other_rows(one, refused):
    Path(one, "results.json").unlink()
    write("t.csv", label=lambda i: i % 3)
    message = refused(REGRESSION, "--run", one, "--resume")
    assert "t.csv" in message and "other rows" in message


def test_a_run_of_another_recipe_is_refused_by_its_name(one, refused):
    message = refused(CLASSES, "predict", "--run", one)
    assert f"--run {one}: " in message and "sequence_regression" in message


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
def test_an_empty_file_of_a_run_is_refused(file, one, refused):
    Path(one, "results.json").unlink()
    Path(one, file).write_text("")
    assert file in refused(REGRESSION, "--run", one, "--resume")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["linear"], "--adapter linear has outputs for each token"),
        (["mlp"], "--adapter mlp has outputs for each token"),
        (["linear_cls"], "--adapter linear_cls reads the start token"),
        (["conv", "--adapter.kernel-size", "4"], "conv needs an odd --adapter.kernel-size"),
        (["conv", "--adapter.channels", "0"], "adapter layers of 0 units"),
        (["mean_pool_mlp", "--adapter.hidden-sizes", "-5"], "adapter layers of -5 units"),
        (["mean_pool_mlp", "--adapter.dropout", "2"], "--adapter.dropout 2.0: expected a share"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_adapter_that_cannot_work_is_refused(flags, expected, refused):
    assert expected in refused(REGRESSION, *data(write("t.csv")), "--adapter", *flags)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [(REGRESSION, ["--adapter", "flatten_linear"]), (CLASSES, ["--adapter", "flatten_mlp"]),
     (RIDGE, ["--pool", "flatten"])],
    ids=["regression", "classification", "ridge"],
)  # fmt: skip
def test_rows_of_unequal_length_are_named_before_weights_per_position(recipe, flags, refused):
    message = refused(recipe, *data(write("t.csv", ["ACG,1"])), *flags)
    assert f"t.csv, {HEADER.format(21, 'sequence')}: 4 tokens" in message
    assert "where others have 7 (1 of 21 rows)" in message


@pytest.mark.parametrize("recipe", [EMBED, RIDGE], **by_name)
def test_pooling_by_a_start_token_that_is_not_there_is_refused(recipe, refused):
    message = refused(recipe, *data(write("t.csv")), "--pool", "cls")
    assert "--pool cls" in message and "start token" in message


@pytest.mark.parametrize("layer", ["5", "-9"])
def test_a_layer_that_is_not_there_is_refused(layer, capsys):
    assert EMBED(*data(write("t.csv")), "--layers", layer) == 2
    assert f"--layers {layer}: the layers are 0 to" in capsys.readouterr().err
    assert not any(path.is_file() for path in Path("runs").rglob("*"))


@pytest.mark.parametrize(
    "flags",
    [["--penalties"], ["--penalties", "nan"], ["--penalties", "-1"], ["--cv-folds", "1"],
     ["--cv-folds", "99"]],
    ids=" ".join,
)  # fmt: skip
def test_impossible_settings_of_ridge_are_refused(flags, refused):
    assert flags[0] in refused(RIDGE, *data(write("t.csv")), *flags)


def test_a_class_that_cannot_be_learned_is_said(said):
    Path("u.csv").write_text("sequence,label\nGGGG,1\nGGGT,2\n")
    flags = [*data(write("t.csv")), "--data.test-path", "u.csv", "--classes", "3"]
    absent, rare = said(CLASSES, *flags)
    assert "1 of 3 classes have no training row, such as '2'" in absent
    assert "1 of 3 classes have fewer than 10 training rows" in rare
