"""mgen check data says of a table and its splits what an independent count finds."""

import csv
import gzip
import json
import re
import subprocess
import sys
from html import unescape

import numpy as np
import pytest
from scipy import stats

from mgen import audit
from mgen.config import InputError
from mgen.data import Table, table
from mgen.data.checking import drift, leakage
from mgen.figures import tables as figures


def write(folder, rows: list[str], columns: str = "sequence,label,split", **options) -> Table:
    (folder / "t.csv").write_text("\n".join([columns, *rows]) + "\n")
    split = {"split_col": "split"} if "split" in columns else {}
    return Table(**{"path": str(folder / "t.csv"), "valid_fraction": 0, **split, **options})


def report(given: Table, near: float = 0.9) -> leakage.Report:
    return leakage.report(given.open(), near, seed=42)


def found(given: Table, word: str, near: float = 0.9) -> list[str]:
    """The findings that hold a word, each with its level."""
    return [f"{f.level}: {f.text}" for f in report(given, near).findings if word in f.text]


def overlap(of: leakage.Report, rows: str, others: str) -> int:
    lines = [o for o in of.overlaps if (o["rows of"], o["that occur in"]) == (rows, others)]
    return lines[0]["identical"]


def random_rows(count: int, length: int = 60, split: str = "train", seed: int = 0) -> list[str]:
    letters = np.random.default_rng(seed).choice(list("ACGT"), (count, length))
    return [f"{''.join(row)},{i % 2},{split}" for i, row in enumerate(letters)]


# --------------------------------------------------------------------------- known data


def by_split(shared, name: str) -> dict[str, list[str]]:
    """Sequences of a published table by split, read without mgen."""
    splits: dict[str, list[str]] = {}
    (file,) = (shared / "data" / name).glob("*.csv.gz")
    with gzip.open(file, "rt") as lines:
        for row in csv.DictReader(lines):
            splits.setdefault(row.get("split", "all"), []).append(row["sequence"])
    return splits


KNOWN = [("dna_enhancer", 100), ("rna_ncrna_family", 347), ("signal_peptide", 0),
         pytest.param("deeploc_binary", 0, marks=pytest.mark.slow),
         ("dna_splice_junction", 0)]  # fmt: skip


@pytest.mark.parametrize(("name", "copies"), KNOWN)
def test_published_leaks_are_counted_as_their_readme_and_plain_sets_do(shared, name, copies):
    splits = by_split(shared, name)
    other = {s for split, texts in splits.items() if split != "test" for s in texts}
    assert sum(s in other for s in splits["test"]) == copies
    of = report(table(name, valid_fraction=0))
    where = "train or valid" if "valid" in splits else "train"
    assert overlap(of, "test", where) == copies
    said = [f.text for f in of.findings if f"test sequences occur in {where}, such" in f.text]
    assert [text.split(" test")[0] for text in said] == (
        [f"{copies} of {len(splits['test']):,}"] if copies else []
    )


def test_duplicates_inside_deeploc_are_38_and_of_archiveii_483(shared):
    for name, copies in (("deeploc_binary", 38), ("rna_secondary_structure_archiveii", 483)):
        texts = [s for found in by_split(shared, name).values() for s in found]
        assert len(texts) - len(set(texts)) == copies
        unsplit = {"split_col": "", "group_col": "", "test_fraction": 0, "valid_fraction": 0}
        assert overlap(report(table(name, **unsplit)), "train", "train") == copies


def test_label_shares_of_e_coli_promoters_are_those_stated(shared):
    splits = report(table("dna_promoter_ecoli")).labels["label"]["splits"]
    counts = {name: line["counts"] for name, line in splits.items()}
    assert sum(c["1"] for c in counts.values()) == 839
    assert sum(c["0"] for c in counts.values()) == 3000
    for line in counts.values():  # split 70/10/20 stratified
        assert abs(line["1"] / sum(line.values()) - 839 / 3839) < 0.002


# --------------------------------------------------------------------------- sequences


def test_copies_are_found_whatever_their_case_and_u_or_t(tmp_path):
    rows = [*random_rows(20), "ACGTTGCA,1,train", "acguugca,1,test", "TTTTTTTT,0,test"]
    assert found(write(tmp_path, rows), "occur in train") == [
        "serious: 1 of 2 test sequences occur in train, such as row 22, which is row 21"
    ]


def test_the_other_strand_is_found_of_dna_and_not_of_protein(tmp_path):
    dna = [*random_rows(20), "AACCTGGGTC,1,train", "GACCCAGGTT,1,test"]
    (said,) = found(write(tmp_path, dna), "reverse complement")
    assert said.startswith("serious: 1 of 1 test sequences occur in train as reverse complement")
    protein = [f"MKLVWYHQER{r}" for r in random_rows(4)] + ["MKLVAACCTGGGTC,1,train"]
    of = report(write(tmp_path, [*protein, "MKLVGACCCAGGTT,1,test"]))
    assert of.facts["molecule"] == "protein"
    assert "reverse complement" not in of.overlaps[0]


def test_u_is_not_t_in_proteins(tmp_path):
    rows = ["MKLVWUYHQERDFGIPSN,1,train", "MKLVWTYHQERDFGIPSN,1,test"]
    assert not found(write(tmp_path, rows), "occur in")


def test_nearly_identical_rows_are_counted_from_the_share_asked_for(tmp_path):
    train = random_rows(50, 200)
    one = train[7].split(",")[0]
    other = one[:100] + ("A" if one[100] != "A" else "C") + one[101:]  # 0.995 alike
    rows = [*train, f"{other},1,test", *random_rows(3, 200, "test", seed=1)]
    (said,) = found(write(tmp_path, rows), "alike", near=0.95)
    assert said.startswith("serious: 1 of 4 test rows are at least 0.95 alike to a training row")
    assert said.endswith("such as row 51 to row 8")
    assert not found(write(tmp_path, rows), "alike", near=1.0)


def test_a_sample_is_looked_at_where_rows_are_many_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "SAMPLE", 10)
    train = random_rows(30, 100)
    near = [f"{row.split(',')[0][:-1]}A,1,test" for row in train]
    (said,) = found(write(tmp_path, [*train, *near]), "alike")
    assert "of 10 test rows of a sample (seed 42) are at least 0.9 alike" in said


def test_short_sequences_are_not_called_alike_by_chance(tmp_path):
    rows = random_rows(2000, 16) + random_rows(100, 16, "test", seed=1)
    assert found(write(tmp_path, rows), "alike") == [
        "note: test sequences are too short to tell 0.9 alike from chance (it takes 1.00): nearly "
        "identical ones were not looked for"
    ]


def test_odd_letters_and_empty_sequences_are_counted_with_their_first_row(tmp_path):
    rows = [
        *random_rows(20),
        "ACNT,1,train",
        "ACN*,1,train",
        ",0,train",
        *random_rows(2, 9, "test"),
    ]
    given = write(tmp_path, rows)
    (said,) = found(given, "letters are not")
    assert "3 of" in said and "not ACGT of DNA: N (2), * (1); the first N is in" in said
    assert said.endswith("is in row 21")
    (said,) = found(given, "are empty")
    assert said == "serious: 1 of 25 sequences are empty, the first in row 23"


def test_groups_of_two_files_are_counted(tmp_path):
    lines = ["sequence,label,g", "ACGTAC,1,a", "GGGTAC,0,b", "GGGTTT,0,c"]
    (tmp_path / "held.csv").write_text("\n".join([lines[0], "AAATTT,1,a", "CCCAAA,0,a"]) + "\n")
    options = {"test_path": str(tmp_path / "held.csv"), "group_col": "g"}
    given = write(tmp_path, lines[1:], lines[0], **options)
    assert found(given, "groups") == [
        "serious: 1 groups of column 'g' are in test and in train: 2 of 2 test rows"
    ]


# --------------------------------------------------------------------------- labels


def test_identical_sequences_with_two_classes_are_serious_and_shown(tmp_path):
    rows = [*random_rows(10), "ACGTAC,0,train", "ACGTAC,1,train", "ACGTAC,1,test"]
    (said,) = found(write(tmp_path, rows), "different 'label'")
    assert said == (
        "serious: identical sequences with different 'label': 1 (3 rows), most often in "
        "row 11 (0) and row 13 (1)"
    )


def test_repeated_measurements_show_the_pair_farthest_apart(tmp_path):
    rows = [f"{r.split(',')[0]},{i * 0.37},train" for i, r in enumerate(random_rows(30))]
    rows += ["ACGTAC,1.5,train", "ACGTAC,1.6,train", "TTTTAC,-2.5,train", "TTTTAC,4,train"]
    (said,) = found(write(tmp_path, rows), "different 'label'")
    assert said.startswith("look: identical sequences with different 'label': 2 (4 rows), farthest")
    assert "row 33 (-2.5)" in said and "row 34 (4)" in said


def test_classes_that_drift_and_classes_never_trained_on_are_said(tmp_path):
    train = [f"{r.split(',')[0]},{'ab'[i % 2]},train" for i, r in enumerate(random_rows(200))]
    test = [f"{r.split(',')[0]},{'bc'[i < 5]},test" for i, r in enumerate(random_rows(80, seed=1))]
    given = write(tmp_path, [*train, *test, "ACGTACCCC,d,valid"])
    line = report(given).labels["label"]["splits"]["test"]
    assert line["total variation"] == pytest.approx(0.5)  # a: 0.5 and 0; b: 75/80; c: 5/80
    expected = stats.chi2_contingency([[100, 100, 0], [0, 75, 5]])
    assert line["chi-square"] == pytest.approx(expected.statistic)
    said = found(given, "have no training row")
    assert said == [
        "look: 1 classes of valid have no training row, such as 'd' (1 rows, column 'label')",
        "look: 1 classes of test have no training row, such as 'c' (5 rows, column 'label')",
    ]
    assert found(given, "classes of 'label' of test and train differ: total variation 0.5")


@pytest.mark.parametrize("held", [[30, 20, 10], [40, 20, 5], [59, 1, 0]])
def test_the_chance_of_a_drift_of_classes_is_that_of_scipy(held):
    found_ = drift.class_distance(np.array([300, 200, 100]), np.array(held))
    expected = stats.chi2_contingency([[300, 200, 100], held])
    assert found_["p"] == pytest.approx(expected.pvalue)


def test_numbers_that_drift_have_the_distance_scipy_finds(tmp_path):
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, 300), generator.normal(0.5, 1, 100)
    rows = [f"{r.split(',')[0]},{v},train" for r, v in zip(random_rows(300), first, strict=True)]
    held = zip(random_rows(100, seed=1), second, strict=True)
    rows += [f"{r.split(',')[0]},{v},test" for r, v in held]
    line = report(write(tmp_path, rows)).labels["label"]["splits"]["test"]
    expected = stats.ks_2samp(first, second, method="asymp")
    assert line["Kolmogorov-Smirnov"] == pytest.approx(expected.statistic)
    assert np.log(line["p"]) == pytest.approx(np.log(expected.pvalue), rel=0.15)
    assert (line["mean"], line["std"]) == pytest.approx((second.mean(), second.std()))


def test_missing_labels_are_counted_and_tables_without_labels_are_fine(tmp_path):
    rows = [*random_rows(10), "ACGTA,,train", *random_rows(3, 9, "test")]
    assert found(write(tmp_path, rows), "no label 'label'") == [
        "look: 1 of 14 rows have no label 'label', the first is row 11"
    ]
    assert found(write(tmp_path, rows, y_cols=("none",)), "labels were") == [
        "note: labels were not looked at: no column 'none'"
    ]
    assert found(write(tmp_path, rows, y_cols=()), "labels were") == [
        "note: labels were not looked at"
    ]


def test_labels_per_letter_are_compared_letter_by_letter(tmp_path):
    rows = ["ACGTAC,HHEEHH,train", "GGTTAA,HHHHCC,train", "ACCTAG,EEEEEE,test"]
    label = report(write(tmp_path, rows)).labels["label"]
    assert label["kind"] == "per letter"
    assert label["splits"]["train"]["counts"] == {"C": 2, "E": 2, "H": 8}
    assert label["splits"]["test"]["total variation"] == pytest.approx(10 / 12)


# --------------------------------------------------------------------------- the command


def mgen(folder, *words) -> subprocess.CompletedProcess:
    code = (
        f"import sys; sys.argv = {['mgen', *map(str, words)]!r}; from mgen.cli import main; main()"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_command_prints_and_writes_what_it_found(tmp_path):
    rows = [*random_rows(20), "ACGTTGCA,1,train", "ACGTTGCA,1,test"]
    rows += random_rows(1, 60, "test", seed=1)
    write(tmp_path, rows)
    done = mgen(tmp_path, "check", "data", "./t.csv", "--data.split-col", "split",
                "--data.valid-fraction", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 2 test sequences occur in train" in done.stdout
    (folder,) = (tmp_path / "runs" / "check").iterdir()
    assert f"{folder.relative_to(tmp_path)}/report.html" in done.stdout
    written = json.loads((folder / "report.json").read_text())
    assert written["findings"][0]["level"] == "serious"
    assert written["facts"]["splits"] == {"train": 21, "test": 2}
    page = (folder / "report.html").read_text()
    assert "1 of 2 test sequences occur in train" in page
    assert page.count("<svg") == 3  # lengths, identities, labels
    for fact in ("command", "plan", "digest", "mgen", "date"):
        assert written["facts"][fact] in unescape(page)
    assert all(f["advice"] in unescape(page) for f in written["findings"])
    assert not re.search(r"(src|href)=|https?://|@import|<script", page)
    assert sorted(f.name for f in folder.iterdir()) == ["report.html", "report.json"]


def test_reports_of_other_settings_or_files_do_not_replace_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, random_rows(20), "sequence,label,split")
    flags = ["--data.split-col", "", "--data.split-seed"]
    for words in (["a/t.csv"], ["b/t.csv"], ["a/t.csv", *flags, 1], ["a/t.csv", *flags, 2]):
        audit.check_data(list(map(str, words)))
    audit.check_data(["a/t.csv"])  # the same again
    assert len([*(tmp_path / "runs" / "check").iterdir()]) == 4


def test_the_report_is_written_before_a_reader_leaves(tmp_path):
    write(tmp_path, random_rows(20), "sequence,label,split")
    command = [sys.executable, "-m", "mgen", "check", "data", "./t.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as started:
        started.stdout.close()
    assert [f.suffix for f in sorted(tmp_path.rglob("report.*"))] == [".html", ".json"]


def test_a_table_of_empty_sequences_has_a_report(tmp_path):
    assert found(write(tmp_path, [",0,train", ",1,train", ",1,test"]), "empty") == [
        "serious: 3 of 3 sequences are empty, the first in row 1"
    ]


def test_where_nearly_all_rows_are_variants_near_identity_is_not_serious(tmp_path):
    train = random_rows(30, 100)
    near = [f"{row.split(',')[0][:-1]}A,1,test" for row in train]
    other = random_rows(10, 100, "test", seed=1)
    (said,) = found(write(tmp_path, [*train, *near]), "0.9 alike")
    assert said.startswith("look: ") and said.endswith("these are variants of one another")
    (said,) = found(write(tmp_path, [*train, *near, *other]), "0.9 alike")
    assert said.startswith("serious: ") and "variants" not in said


def test_what_to_do_about_a_leak_goes_by_how_the_split_came_about(tmp_path):
    rows = [*random_rows(40), *random_rows(40), *random_rows(5, split="test")]
    named = write(tmp_path, rows, valid_fraction=0.2)
    advice = {f.text.split()[3]: f.advice for f in report(named).findings if "occur in" in f.text}
    assert advice["valid"].startswith("--data.identity 0.9 keeps")
    assert "let mgen draw the splits (--data.identity 0.9 --data.split-col '')" in advice["test"]
    (tmp_path / "held.csv").write_text((tmp_path / "t.csv").read_text())
    other = Table(path=str(tmp_path / "t.csv"), test_path=str(tmp_path / "held.csv"))
    (advice,) = [f.advice for f in report(other).findings if "test sequences occur" in f.text]
    assert advice.startswith("drop these rows; to compare")


def test_values_beyond_the_axis_are_announced_and_whole_numbers_have_bins_of_their_own():
    values = np.concatenate([np.repeat(np.arange(40, 51), 100), [700]])
    drawn = drift.histogram("letters", values, {"train": np.arange(len(values))})
    assert drawn["edges"] == [float(edge) for edge in range(40, 52)]
    assert drawn["caption"] == "The last bin also holds what is more, up to 700."
    assert drawn["shares"]["train"][:2] == pytest.approx([100 / 1101, 100 / 1101])
    assert drawn["shares"]["train"][-1] == pytest.approx(101 / 1101)
    same = drift.histogram("letters", np.full(9, 120), {"train": np.arange(9)})
    assert (same["edges"], same["caption"]) == ([120, 121], "")


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (43, 51, [42, 44, 46, 48, 50, 52]),
     (-1.2, 1.8, [-2, -1, 0, 1, 2]), (0.31, 0.32, [0.31, 0.3125, 0.315, 0.3175, 0.32])],
)  # fmt: skip
def test_ticks_are_round(low, high, ticks):
    assert figures._ticks(low, high, 5) == pytest.approx(ticks)


def test_what_users_name_is_text_on_the_page(tmp_path):
    rows = [f"{r.split(',')[0]},<b>{i % 2}&" for i, r in enumerate(random_rows(20))]
    of = report(write(tmp_path, rows, "sequence,<i>l", y_cols=("<i>l",)))
    page = audit.page("<script>", of)
    assert "<b>0" not in page and "<script" not in page and "<i>" not in page
    assert "&lt;b&gt;0&amp;" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "mgen check data NAME"),
        (["check", "runs"], "mgen check data NAME"),
        (
            ["check", "data", "dna_enhancr"],
            "no data set 'dna_enhancr'. Did you mean 'dna_enhancer'",
        ),
        (["check", "data", "./absent.csv"], "absent.csv: no such file"),
        (["check", "data", "promoters_tiny", "--near", "0.2"], "--near 0.2: expected an identity"),
        (["check", "data", "promoters_tiny", "--out", "file"], "--out file: is a file"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(tmp_path, words, message, monkeypatch, capsys):
    from mgen import cli

    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mgen", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_report_needs_a_column_of_sequences(tmp_path):
    with pytest.raises(InputError, match="expected sequences as text, found values of type"):
        (tmp_path / "t.jsonl").write_text('{"sequence": 1, "label": 2}\n' * 20)
        report(Table(path=str(tmp_path / "t.jsonl")))


def test_check_of_a_recipe_says_that_it_fits_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from test_bad_input import CLASSES

    write(tmp_path, [*random_rows(20), "ACGTTGCA,1,train", "ACGTTGCA,1,test", "TTTATTTT,0,valid"])
    monkeypatch.chdir(tmp_path)
    flags = ["--data.path", "t.csv", "--data.split-col", "split", "--backbone", "dna_onehot"]
    assert CLASSES(*flags, "--check") == 0
    out = capsys.readouterr().out
    assert out.index("rows: 21 train, 1 valid, 1 test") < out.index("1 of 1 test sequences occur")
    assert out.count("occur in train") == 1  # the checker's note and the report are one
    assert out.endswith(
        "sequence_classification and dna_onehot accept 23 rows of t.csv, with 1 doubt: look at "
        "these first\n"
    )
    assert [f.name for f in tmp_path.iterdir()] == ["t.csv"]
    assert CLASSES(*flags, "--check", "--backbone.max-length", "20") == 2
    assert "longer than 20 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[0, 1], range(60)])
def test_check_of_a_recipe_doubts_class_numbers_and_another_molecule(
    tmp_path, monkeypatch, capsys, labels
):
    from test_bad_input import REGRESSION

    texts = [row.split(",")[0] for row in random_rows(60)]
    write(
        tmp_path,
        [f"{text},{labels[i % len(labels)]}" for i, text in enumerate(texts)],
        "sequence,label",
    )
    monkeypatch.chdir(tmp_path)
    flags = ["--data.path", "t.csv", "--backbone", "protein_onehot"]
    assert REGRESSION(*flags, "--check") == 0
    out = capsys.readouterr().out
    assert "labels 'label' look like classes" in out
    assert "but this model reads protein" in out
    assert "look at these first" in out
