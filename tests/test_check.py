"""Every kind of bad input is refused or counted aloud, with file, row, column and what to do."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from mgen.config import InputError
from mgen.data import Table
from mgen.data.checking import check
from mgen.data.targets import labels


def tokenizer(**options) -> SimpleNamespace:
    convert = dict(zip("acgtn", "ACGTN", strict=True)) | {"U": "T", "u": "T"}
    vocabulary = {name: i for i, name in enumerate(["[PAD]", "[MASK]", *"ACGTN"])}
    defaults = {"truncate": "error", "unknown": "error", "modality": "dna", "max_length": 10}
    defaults["per_letter"] = True
    return SimpleNamespace(
        **{"alphabet": "ACGTN", "convert": convert, "vocabulary": vocabulary, "num_special": 2}
        | defaults
        | options
    )


def opened(folder, sequences=("ACGT",), labels=None, ids=None, **options):
    columns = {"sequence": list(sequences)}
    columns |= {"label": labels} if labels is not None else {}
    columns |= {"id": ids} if ids is not None else {}
    columns |= {"padding": ["x"] * len(sequences)}  # a lone empty cell would be a blank line
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    path = folder / "t.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fractions = {"test_fraction": 0, "valid_fraction": 0}
    return Table(**{"path": str(path), **fractions, **options}).open()


@pytest.fixture(autouse=True, params=[1, 1 << 16])
def chunk_rows(request, monkeypatch):
    """Results do not depend on where blocks end."""
    monkeypatch.setattr(import_module("mgen.data.table"), "CHUNK_ROWS", request.param)


# --------------------------------------------------------------------------- sequences


def test_clean_sequences_give_no_notes(tmp_path):
    assert check.sequences(opened(tmp_path, ["ACGT", "NN"]), tokenizer()) == []


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_sequence_is_refused(empty, tmp_path):
    rows = opened(tmp_path, ["ACGT", empty, empty], ids=["a", "b", "c"])
    with pytest.raises(InputError) as raised:
        check.sequences(rows, tokenizer())
    assert str(raised.value).endswith(
        "t.csv, row 2 (header not counted), id 'b', column 'sequence': the sequence is empty (2 of "
        "3 rows). Fill it in or drop the row."
    )


def test_a_missing_sequence_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"sequence": "A"}\n{"sequence": null}\n')
    rows = Table(path=str(tmp_path / "t.jsonl")).open(split=False)
    with pytest.raises(InputError, match="row 2 .* the sequence is empty .1 of 2 rows"):
        check.sequences(rows, tokenizer())


def test_a_column_of_numbers_is_no_column_of_sequences(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"sequence": 1}\n')
    rows = Table(path=str(tmp_path / "t.jsonl")).open(split=False)
    with pytest.raises(InputError, match="expected sequences as text, found .* int64"):
        check.sequences(rows, tokenizer())


@pytest.mark.parametrize("letter", ["J", "*", "é", "日", "[", "e"])
def test_a_letter_outside_the_alphabet_is_refused_and_counted(letter, tmp_path):
    rows = opened(tmp_path, ["ACGT", f"A{letter}{letter}", "GG", f"{letter}"])
    with pytest.raises(InputError) as raised:
        check.sequences(rows, tokenizer())
    message = str(raised.value)
    assert f"row 2 (header not counted), column 'sequence': '{letter}' is not a letter" in message
    assert "3 such letters in 2 of 4 rows" in message and "--backbone.unknown token" in message


def test_letters_read_as_unknown_are_counted_aloud(tmp_path):
    rows = opened(tmp_path, ["ACJ", "GG", "éé"])
    assert check.sequences(rows, tokenizer(unknown="token")) == [
        "3 such letters in 2 of 3 rows, such as 'J', are read as the unknown token"
    ]


def test_a_lower_case_letter_that_folds_to_no_known_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="'e' is not a letter"):
        check.sequences(opened(tmp_path, ["ACe"]), tokenizer(convert={"e": "E", "a": "A"}))


def test_special_tokens_in_the_text_are_one_legal_token_each(tmp_path):
    rows = opened(tmp_path, ["AC[MASK]GTACG", "A[PAD]", "A"])
    assert check.sequences(rows, tokenizer()) == []
    assert check.token_lengths(rows, "sequence", tokenizer()).tolist() == [10, 4, 3]


def test_white_space_is_no_letter(tmp_path):
    rows = opened(tmp_path, ["AC GT", "A"])
    assert check.sequences(rows, tokenizer()) == []
    assert check.token_lengths(rows, "sequence", tokenizer()).tolist() == [6, 3]


def test_lower_case_is_said_once_and_counted(tmp_path):
    assert check.sequences(opened(tmp_path, ["acgt", "ACgt", "ACGT"]), tokenizer()) == [
        "lower-case letters in 2 of 3 rows are read as upper case"
    ]


def test_lower_case_is_refused_where_nothing_converts_it(tmp_path):
    with pytest.raises(InputError, match="'a' is not a letter"):
        check.sequences(opened(tmp_path, ["acgt"]), tokenizer(convert={}))


def test_u_read_as_t_is_said_once_and_counted(tmp_path):
    assert check.sequences(opened(tmp_path, ["ACGU", "UUU", "ACGT"]), tokenizer()) == [
        "U as T: letters converted in 2 of 3 rows"
    ]


LONG = ["A" * 8, "A" * 9, "A" * 12]


def test_a_long_sequence_is_refused(tmp_path):
    with pytest.raises(InputError) as raised:
        check.sequences(opened(tmp_path, LONG), tokenizer())
    message = str(raised.value)
    assert "row 2 (header not counted)" in message and "(2 of 3 rows)" in message
    assert "10 tokens, 2 of them special" in message and "--backbone.truncate right" in message


@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_sequences_are_counted_aloud(side, tmp_path):
    assert check.sequences(opened(tmp_path, LONG), tokenizer(truncate=side)) == [
        "2 of 3 sequences are longer than 10 tokens, 2 of them special: their "
        f"{side} ends are cut, 5 letters in all"
    ]


def test_no_limit_means_no_limit(tmp_path):
    rows = opened(tmp_path, LONG)
    assert check.sequences(rows, tokenizer(max_length=0)) == []
    assert check.token_lengths(rows, "sequence", tokenizer(max_length=0)).tolist() == [10, 11, 14]


def test_token_lengths_count_letters_not_bytes_and_stop_at_the_limit(tmp_path):
    rows = opened(tmp_path, ["ACé", "A" * 30])
    assert check.token_lengths(rows, "sequence", tokenizer()).tolist() == [5, 10]


def test_only_the_asked_rows_are_checked(tmp_path):
    rows = opened(tmp_path, ["ACGT", "JJJ"])
    assert check.sequences(rows, tokenizer(), np.array([0])) == []


def test_lengths_equal_those_of_the_real_tokenizer(tmp_path):
    from mgen.backbones import backbone

    real = backbone("aido_dna_debug", unknown="token").tokenizer()
    texts = ["ACGT", "acgu", "A[MASK]C", "AC GT", "JJ", "AéC", "N" * 70]
    rows = opened(tmp_path, texts)
    expected = real.tokenize(texts)["attention_mask"].sum(dim=1).tolist()
    assert check.token_lengths(rows, "sequence", real).tolist() == expected


def in_threes(**options) -> SimpleNamespace:
    """A tokenizer of three letters a token that knows no token for "NNN"."""

    def lengths(sequences):
        if any("NNN" in sequence for sequence in sequences):
            raise InputError("no token for NNN")
        return [2 + -(-len(sequence) // 3) for sequence in sequences]

    return tokenizer(**{"per_letter": False, "lengths": lengths, "max_length": 4} | options)


def test_tokens_of_several_letters_are_counted_by_the_tokenizer(tmp_path):
    rows = opened(tmp_path, ["A" * 3, "A" * 7, "A" * 12])
    assert check.token_lengths(rows, "sequence", in_threes()).tolist() == [3, 4, 4]
    assert check.sequences(rows, in_threes(truncate="left")) == [
        "2 of 3 sequences are longer than 4 tokens, 2 of them special: their left ends are cut, "
        "3 tokens in all"
    ]
    with pytest.raises(InputError, match="row 2 .*longer than 4 tokens.* .2 of 3 rows"):
        check.sequences(rows, in_threes())


def test_what_a_tokenizer_refuses_is_named_with_file_and_row(tmp_path):
    rows = opened(tmp_path, ["A", "C", "ANNN"], ids=["a", "b", "c"])
    with pytest.raises(InputError, match=r"t.csv, row 3 .*id 'c', .*: no token for NNN"):
        check.sequences(rows, in_threes())


@pytest.mark.parametrize(
    ("reading", "lengths"), [(tokenizer, [4, 11, 32]), (in_threes, [3, 5, 12])]
)
def test_sequences_read_in_windows_are_counted_and_keep_their_length(reading, lengths, tmp_path):
    rows = opened(tmp_path, ["A" * 2, "A" * 9, "A" * 30])
    window = reading(truncate="window", max_length=4)
    assert check.sequences(rows, window) == [
        "2 of 3 sequences are longer than 4 tokens and are read in overlapping windows (longest: "
        f"{lengths[-1]} tokens)"
    ]
    assert check.token_lengths(rows, "sequence", window).tolist() == lengths


def test_k_mers_of_a_vocabulary_are_letters_of_the_text(tmp_path):
    k_mers = in_threes(vocabulary={"<cls>": 0, "ACG": 1, "A": 2, "\u0120A": 3}, max_length=0)
    rows = opened(tmp_path, ["ACGACG", "<cls>ACG"])
    assert check.sequences(rows, k_mers) == []
    with pytest.raises(InputError, match="'<' is not a letter"):
        check.sequences(opened(tmp_path, ["ACG<"]), k_mers)


def aligned(**options) -> SimpleNamespace:
    """A tokenizer whose rows are dictionaries with an alignment."""

    def lengths(given):
        if any(len(row["msa"][0]) != len(row["sequence"]) for row in given):
            raise InputError("the alignment has other columns")
        return [sum(map(len, [row["sequence"], *row["msa"]])) + 2 for row in given]

    def overflow(given):
        return [max(0, length - 10) for length in lengths(given)]

    return tokenizer(per_letter=False, lengths=lengths, overflow=overflow, **options)


def with_alignments(folder, *pairs):
    lines = (f'{{"sequence": "{query}", "msa": ["{row}"]}}\n' for query, row in pairs)
    (folder / "t.jsonl").write_text("".join(lines))
    return Table(path=str(folder / "t.jsonl"), msa_col="msa").open(split=False)


def test_alignment_tokens_that_do_not_fit_are_counted_aloud(tmp_path):
    rows = with_alignments(tmp_path, ("ACG", "A-G"), ("ACGTA", "ACG--"), ("ACGTAC", "ACGTAC"))
    assert check.sequences(rows, aligned()) == [
        "2 of 3 alignments do not fit into 10 tokens with their sequence: 6 tokens of their last "
        "rows are left out"
    ]
    assert check.token_lengths(rows, "sequence", aligned()).tolist() == [8, 10, 10]


def test_a_bad_alignment_is_named_with_file_and_row(tmp_path):
    rows = with_alignments(tmp_path, ("ACG", "A-G"), ("ACGT", "ACG"))
    with pytest.raises(InputError, match="t.jsonl, row 2 .*: the alignment has other columns"):
        check.sequences(rows, aligned())


def test_an_alignment_for_a_model_that_reads_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="this model reads sequences alone"):
        check.sequences(with_alignments(tmp_path, ("ACG", "A-G")), tokenizer())


# --------------------------------------------------------------------------- identity


def test_repeated_identifiers_are_counted_aloud(tmp_path):
    rows = opened(tmp_path, ["A"] * 5, ids=["a", "b", "c", "b", "b"])
    (note,) = check.identifiers(rows)
    assert note.startswith("2 rows repeat an identifier of column 'id', such as 'b' (")
    assert "row 2 (header" in note


def test_different_identifiers_and_no_identifiers_are_fine(tmp_path):
    assert check.identifiers(opened(tmp_path, ["A"] * 2, ids=["a", "b"])) == []
    assert check.identifiers(opened(tmp_path, ["A"] * 2)) == []


def test_held_out_sequences_seen_in_training_are_counted_aloud(tmp_path):
    options = {"split_col": "label", "valid_fraction": 0}
    sequences = ["ACGT", "CCCC", "acgu", "GGGG", "CCCC"]
    rows = opened(tmp_path, sequences, ["train", "train", "test", "test", "valid"], **options)
    valid, test = check.overlaps(rows, tokenizer())
    assert valid.startswith("1 of 1 valid sequences also occur in train, the first in ")
    assert test.startswith("1 of 2 test sequences also occur in train") and "row 3 (" in test


def test_separate_splits_give_no_note(tmp_path):
    rows = opened(tmp_path, ["A", "C"], ["train", "test"], split_col="label")
    assert check.overlaps(rows, tokenizer()) == []


# --------------------------------------------------------------------------- labels


BAD_NUMBERS = {
    "high": "'high' is not a number",
    "1,5": "'1,5' is not a number",
    "NA": "'NA' is not a number",
    "": "no label. Only prediction works without labels",
    "nan": "'nan' is not a finite number",
    "inf": "'inf' is not a finite number",
    "-Infinity": "'-Infinity' is not a finite number",
}


@pytest.mark.parametrize("cell", BAD_NUMBERS)
def test_a_label_that_is_no_number_is_refused_and_counted(cell, tmp_path):
    quoted = f'"{cell}"'
    rows = opened(tmp_path, ["A"] * 4, ["1", quoted, "-2.5e-3", quoted])
    with pytest.raises(InputError) as raised:
        check.numbers(rows, rows.splits["train"])
    message = str(raised.value)
    assert f"row 2 (header not counted), column 'label': {BAD_NUMBERS[cell]}" in message
    assert message.endswith("(2 of 4 rows).")


@pytest.mark.parametrize("cell", ["null", "NaN", '"x"', "[1]"])
def test_bad_labels_of_typed_columns_are_refused(cell, tmp_path):
    text = '{"sequence": "A", "label": CELL}\n'
    (tmp_path / "t.jsonl").write_text(text.replace("CELL", cell))
    rows = Table(path=str(tmp_path / "t.jsonl")).open(split=False)
    with pytest.raises(InputError, match="row 1 .*column 'label'"):
        check.numbers(rows, np.array([0]))


def test_numbers_are_read_in_the_order_asked_for(tmp_path):
    rows = opened(tmp_path, ["A"] * 3, ["1", " 2 ", "3e0"])
    found = labels.numbers(rows, ["label"], np.array([2, 0, 1]))
    assert found.tolist() == [[3], [1], [2]]


def test_a_missing_label_column_names_the_flag(tmp_path):
    rows = opened(tmp_path)
    with pytest.raises(InputError, match="no column 'label'; .* Set --data.y-cols"):
        check.numbers(rows, rows.splits["train"])


def test_statistics_equal_numpys(tmp_path):
    values = np.random.default_rng(0).normal(1e3, 2.0, size=100)
    rows = opened(tmp_path, ["A"] * 100, list(map(repr, values.tolist())))
    mean, std = labels.statistics(rows, ["label"], np.arange(100))
    np.testing.assert_allclose([mean[0], std[0]], [values.mean(), values.std()], rtol=1e-12)


def test_constant_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="the same label in all 3 rows"):
        labels.statistics(opened(tmp_path, ["A"] * 3, ["2"] * 3), ["label"], np.arange(3))


def test_class_names_are_sorted_words_or_counted_ids(tmp_path):
    assert labels.class_names(opened(tmp_path, "AAA", ["b", "a", "b"]), "label") == ("a", "b")
    assert labels.class_names(opened(tmp_path, "AAA", ["3", "0", "1.0"]), "label") == tuple("0123")


@pytest.mark.parametrize("cell", ["3", "-1", "99999999999"])
def test_a_class_id_outside_the_classes_is_refused(cell, tmp_path):
    rows = opened(tmp_path, "AAA", ["0", cell, "1"])
    with pytest.raises(InputError, match=f"row 2 .*class {cell} is outside 0 to 2"):
        labels.class_names(rows, "label", num_classes=3)


def test_a_negative_class_id_is_refused_whatever_the_number_of_classes(tmp_path):
    with pytest.raises(InputError, match="class -1 is outside 0 to 1"):
        labels.class_names(opened(tmp_path, "AAA", ["-1", "1", "1"]), "label")


def test_a_wrong_number_of_names_is_refused(tmp_path):
    with pytest.raises(InputError, match="2 classes .'a', 'b'., expected 3"):
        labels.class_names(opened(tmp_path, "AA", ["a", "b"]), "label", num_classes=3)


def test_a_row_without_class_is_refused(tmp_path):
    rows = opened(tmp_path, "AAA", ["a", "", ""])
    with pytest.raises(InputError, match="row 2 .*no label. .* .2 of 3 rows"):
        labels.class_names(rows, "label")
    with pytest.raises(InputError, match="row 2 .*no label. .* .2 of 3 rows"):
        labels.class_ids(rows, "label", ["a"], np.arange(3))


def test_an_unknown_class_names_the_nearest(tmp_path):
    rows = opened(tmp_path, "AAA", ["nitrogen", "nitrogn", "heat"])
    with pytest.raises(InputError, match="row 2 .*'nitrogn' is not .* Did you mean 'nitrogen'"):
        labels.class_ids(rows, "label", ["nitrogen", "heat"], np.arange(3))


def test_class_ids_come_in_the_order_asked_for(tmp_path):
    rows = opened(tmp_path, "AAA", ["b", "a", "c"])
    assert labels.class_ids(rows, "label", "abc", np.array([2, 0, 1])).tolist() == [2, 1, 0]


def test_class_labels_of_plain_rows_are_ids_or_none():
    assert labels.class_labels([{"y": "b"}, {"y": "a"}], "y", ("a", "b")).tolist() == [1, 0]
    assert labels.class_labels([{"y": 2.0}], "y", tuple("012")).tolist() == [2]
    assert labels.class_labels([{"x": 1}], "y", ("a", "b")) is None
    assert labels.class_labels([{"y": "a"}, {"y": "c"}], "y", ("a", "b")) is None


def test_a_class_without_training_rows_is_said(tmp_path):
    rows = opened(tmp_path, "AAAA", ["a", "a", "b", "b"])
    rows.splits = {"train": np.array([0, 1]), "valid": np.array([2]), "test": np.array([3])}
    assert check.classes(rows, ("a", "b")) == [
        "1 of 2 classes have no training row, such as 'b': they cannot be learnt (2 rows of valid "
        "and test)",
        "1 of 2 classes have fewer than 10 training rows, such as 'a' with 2",
    ]


def test_nucleotides_given_to_a_protein_model_are_said_aloud(tmp_path):
    protein = tokenizer(alphabet="ACGTNKV", modality="protein")
    assert any("this model reads protein" in note for note in check.sequences(
        opened(tmp_path, ["ACGT", "NNG"]), protein
    ))  # fmt: skip
    notes = check.sequences(opened(tmp_path, ["ACGT", "KVG"]), protein)
    assert not any("reads protein" in note for note in notes)
