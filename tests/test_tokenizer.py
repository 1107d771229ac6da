"""Tokenizers against the published ones' cases, and what they do beyond them.

    pytest tests/test_tokenizer.py

Expected ids are those of golden/tokenizer_*, golden/esm2_tiny and golden/onehot, or written out
from the vocabularies' line numbers.
"""

import json
import pickle
import time

import pytest
import torch
from conftest import golden

from mgen.backbones import backbone
from mgen.backbones.tokenizer import ESM, NUCLEOTIDE, PROTEIN, Tokenizer
from mgen.config import InputError

FIXTURES = {
    "tokenizer_nucleotide": (NUCLEOTIDE, "dna", "cases.json"),
    "tokenizer_protein": (PROTEIN, "protein", "cases.json"),
    "esm2_tiny": (ESM, "protein", "tokenizer_cases.json"),
}
MASKS = ("input_ids", "attention_mask", "special_tokens_mask")


def published(name: str) -> tuple[Tokenizer, dict]:
    style, modality, cases = FIXTURES[name]
    folder = golden(name)
    if not (folder / cases).is_file():
        pytest.skip(f"{folder} has no {cases}")
    vocabulary = (folder / "vocab.txt").read_text().split()
    options = {"truncate": "right", "unknown": "token", "as_written": True}
    tokenizer = Tokenizer(vocabulary, style, modality=modality, **options)
    return tokenizer, json.loads((folder / cases).read_text())


def ids(tokenizer: Tokenizer, *sequences: str, **options) -> list[list[int]]:
    return tokenizer.tokenize(sequences, **options)["input_ids"].tolist()


@pytest.mark.parametrize("name", FIXTURES)
def test_as_written_equals_golden_ids_and_masks(name):
    tokenizer, facts = published(name)
    for case in facts["cases"]:
        batch = tokenizer.tokenize(
            case["sequences"], case["add_special_tokens"], case["max_length"]
        )
        got = {key: batch[key].tolist() for key in MASKS}
        assert got == {key: case[key] for key in MASKS}, case["sequences"]
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())


@pytest.mark.parametrize("name", FIXTURES)
def test_as_written_decodes_to_golden_text(name):
    tokenizer, facts = published(name)
    for case in facts["cases"]:
        assert tokenizer.decode(case["input_ids"]) == case["decoded"]


@pytest.mark.parametrize("name", FIXTURES)
def test_special_ids_equal_golden(name):
    tokenizer, facts = published(name)
    special = facts["tokenizer"]["special_ids"]
    assert tokenizer.pad_token_id == special["pad_token"]
    assert tokenizer.mask_token_id == special["mask_token"]
    assert tokenizer.unk_token_id == special["unk_token"]


@pytest.mark.parametrize("name", ["dna_onehot", "protein_onehot"])
def test_onehot_tokens_equal_golden(name):
    facts = json.loads((golden("onehot") / "cases.json").read_text())[name]
    tokenizer = backbone(name, as_written=True).tokenizer()
    assert tokenizer.max_length == facts["default_max_length"]
    assert len(tokenizer.vocabulary) == facts["vocab_size"]
    for case in facts["cases"]:
        batch = tokenizer.tokenize(case["sequences"], case["add_special_tokens"])
        assert {key: batch[key].tolist() for key in MASKS} == {key: case[key] for key in MASKS}


@pytest.mark.parametrize(
    ("name", "size", "some"),
    [
        ("aido_dna_debug", 16, {"[PAD]": 0, "[MASK]": 1, "A": 5, "U": 9, "[UNUSED3]": 15}),
        ("dna_onehot", 16, {"[PAD]": 0, "G": 6, "C": 7, "T": 8, "N": 10}),
        ("protein_onehot", 44, {"L": 1, "C": 20, "-": 27, "[MASK]": 28, "</cdr3>": 43}),
        ("esm2_8m", 33, {"<cls>": 0, "<eos>": 2, "L": 4, "-": 30, "<mask>": 32}),
    ],
)
def test_packaged_vocabularies_have_the_published_ids(name, size, some):
    vocabulary = backbone(name).tokenizer().vocabulary
    assert len(vocabulary) == size
    assert {token: vocabulary[token] for token in some} == some


def test_lower_case_is_upper_case():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    assert ids(tokenizer, "acgtn") == ids(tokenizer, "ACGTN") == [[2, 5, 7, 6, 8, 10, 3]]


def test_nucleotide_u_is_t():
    assert ids(backbone("aido_rna_650m").tokenizer(), "AUu") == [[2, 5, 8, 8, 3]]


def test_protein_u_stays_selenocysteine():
    assert ids(backbone("protein_onehot").tokenizer(), "UT") == [[23, 8, 34]]


def test_every_unknown_letter_is_one_token():
    tokenizer = backbone("aido_dna_debug", unknown="token").tokenizer()
    assert ids(tokenizer, "RYACéG") == [[2, 4, 4, 5, 7, 4, 6, 3]]


def test_an_unknown_letter_is_an_error_that_names_it():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    with pytest.raises(InputError, match="'ACRG': 'R' not in the dna alphabet.*unknown token"):
        ids(tokenizer, "ACGT", "ACRG")


def test_an_unknown_letter_is_an_error_as_written_too():
    tokenizer = backbone("aido_dna_debug", as_written=True).tokenizer()
    with pytest.raises(InputError, match="'acg' not in"):
        ids(tokenizer, "acg")


def test_accented_text_does_not_become_a_special_token():
    tokenizer = backbone("aido_dna_debug", unknown="token").tokenizer()
    assert ids(tokenizer, "\x80\x81[MASK]") == [[2, 4, 4, 1, 3]]


def test_special_tokens_in_the_text_are_recognised_and_not_masked_as_special():
    batch = backbone("esm2_8m").tokenizer().tokenize(["ac<mask>D"])
    assert batch["input_ids"].tolist() == [[0, 5, 23, 32, 13, 2]]
    assert batch["special_tokens_mask"].tolist() == [[1, 0, 0, 0, 0, 1]]


def test_two_chain_separators_are_two_separators():
    assert ids(backbone("protein_onehot").tokenizer(), "A||C") == [[2, 34, 34, 20, 34]]


def test_white_space_is_dropped():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    assert ids(tokenizer, "A C\tG\n", "T ") == [[2, 5, 7, 6, 3], [2, 8, 3, 0, 0]]


@pytest.mark.parametrize(("cut", "kept"), [("right", [5, 7]), ("left", [6, 8])])
def test_truncation_keeps_special_tokens(cut, kept):
    tokenizer = backbone("aido_dna_debug", max_length=4, truncate=cut).tokenizer()
    assert ids(tokenizer, "ACGT") == [[2, *kept, 3]]


def test_a_long_sequence_is_an_error_by_default():
    tokenizer = backbone("aido_dna_debug", max_length=5).tokenizer()
    assert ids(tokenizer, "ACG") == [[2, 5, 7, 6, 3]]
    with pytest.raises(InputError, match="4 tokens; 3 fit into 5 with.*truncate"):
        ids(tokenizer, "ACGT")


def test_the_context_is_the_limit_by_default():
    assert backbone("aido_rna_650m").tokenizer().max_length == 1024


def test_no_room_for_a_sequence_is_an_error():
    with pytest.raises(InputError, match="leaves no room"):
        backbone("aido_dna_debug", max_length=2).tokenizer()


def test_what_is_not_text_is_an_error():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    with pytest.raises(InputError, match="None"):
        tokenizer.tokenize(["ACGT", None])
    with pytest.raises(InputError, match="list"):
        tokenizer.tokenize("ACGT")


def test_the_alphabet_is_what_is_accepted_after_conversion():
    tokenizer = backbone("aido_rna_650m").tokenizer()
    assert sorted(tokenizer.alphabet) == sorted("ACGTN")
    assert tokenizer.convert["u"] == tokenizer.convert["U"] == "T"
    as_written = backbone("aido_rna_650m", as_written=True).tokenizer()
    assert sorted(as_written.alphabet) == sorted("ACGTUN") and as_written.convert == {}


def test_empty_batches_and_sequences_are_tokenised():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    assert tokenizer.tokenize([])["input_ids"].shape == (0, 0)
    assert ids(tokenizer, "", "A") == [[2, 3, 0], [2, 5, 3]]


def test_a_pickled_tokenizer_tokenises_alike():
    tokenizer = backbone("protein_onehot", unknown="token").tokenizer()
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert ids(copy, "MK*[MASK]") == ids(tokenizer, "MK*[MASK]")


def test_a_megabase_is_tokenised_in_well_under_a_second():
    tokenizer = backbone("aido_dna_debug", max_length=2_000).tokenizer()
    sequences = ["ACGTacguNN" * 100] * 1_000
    start = time.perf_counter()
    tokenizer.tokenize(sequences)
    assert time.perf_counter() - start < 0.5
