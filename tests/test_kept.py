"""What is kept by content: digests of large files, checks of large tables, tokens of words."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from mgen.config import InputError
from mgen.data import Table
from mgen.data.checking import check, token_store
from mgen.io import files


@pytest.fixture(autouse=True)
def small_is_large(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(files, "RACY_SECONDS", -1.0)
    monkeypatch.setattr(check, "WORTH_ROWS", 1)
    monkeypatch.setattr(token_store, "WORTH_ROWS", 1)


class Words:
    """A tokenizer of pairs of letters that counts what it is asked."""

    per_letter, has_context, as_written, modality = False, False, False, "dna"
    alphabet, convert, vocabulary, num_special = "ACGT", {}, {}, 2
    max_length, truncate, unknown, fingerprint = 0, "error", "error", "pairs"
    stored = None

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, texts):
        found = self.stored.find(texts) if self.stored else [None] * len(texts)
        self.asked += sum(ids is None for ids in found)
        return [self.read(t) if ids is None else ids for t, ids in zip(texts, found, strict=True)]

    def read(self, text):
        return [ord(text[i]) * 1000 + len(text[i : i + 2]) for i in range(0, len(text), 2)]

    def lengths(self, texts):
        return [len(ids) + 2 for ids in self.encode(texts)]


def table(folder, sequences=("ACGTA", "GG", "ACGTA", "T")):
    lines = ["sequence,id", *(f"{s},{i}" for i, s in enumerate(sequences))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return Table(path=str(folder / "t.csv"), test_fraction=0, valid_fraction=0).open()


def test_tokens_of_words_are_found_again_by_text_and_others_are_not(tmp_path):
    words, rows = Words(), table(tmp_path)
    store = pickle.loads(pickle.dumps(token_store.token_store(rows, words)))
    assert store.find(["T", "ACGTA", "GG", "AC", ""]) == [
        *(words.read(text) for text in ("T", "ACGTA", "GG")),
        None,
        None,
    ]


def test_a_table_is_tokenised_once_whoever_opens_it(tmp_path):
    first, second = Words(), Words()
    notes, lengths = check.inputs(table(tmp_path), first, ("train",))
    assert lengths.tolist() == [5, 3, 5, 3] and first.asked == 4
    again = check.inputs(table(tmp_path), second, ("train",))
    assert again[0] == notes and again[1].tolist() == lengths.tolist() and second.asked == 0
    assert second.encode(["ACGTA", "GG"]) == [second.read("ACGTA"), second.read("GG")]
    assert second.asked == 0


def test_other_rows_or_another_tokenizer_are_tokenised_anew(tmp_path):
    check.inputs(table(tmp_path), Words(), ("train",))
    words = Words()
    assert check.inputs(table(tmp_path, ("GG", "ACG")), words, ("train",))[1].tolist() == [3, 4]
    assert words.asked == 2
    words = Words()
    words.fingerprint = "other"
    check.inputs(table(tmp_path), words, ("train",))
    assert words.asked == 4


def test_notes_are_said_again_without_another_look(tmp_path, monkeypatch):
    tokenizer = SimpleNamespace(
        **{n: getattr(Words, n) for n in vars(Words) if n[0] != "_" and n not in ("read",)}
    )
    tokenizer.per_letter, tokenizer.convert = True, {"a": "A"}
    rows = table(tmp_path, ("ACa", "G"))
    notes, lengths = check.inputs(rows, tokenizer, ("train",))
    assert notes == ["lower-case letters in 1 of 2 rows are read as upper case"]
    monkeypatch.setattr(check, "sequences", None)
    assert check.inputs(rows, tokenizer, ("train",))[0] == notes
    assert lengths.tolist() == [5, 3]


def test_the_digest_of_a_large_file_is_remembered_until_it_is_edited(tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_bytes(b"abc")
    # sha256 of "abc", FIPS 180-4
    first = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.content_digest(path) == first
    hashed = files._hashed
    monkeypatch.setattr(files, "_hashed", None)
    assert files.content_digest(path) == first
    monkeypatch.setattr(files, "_hashed", hashed)
    times = path.stat()
    while path.stat().st_ctime_ns == times.st_ctime_ns:  # the clock of files is coarse
        path.write_bytes(b"abd")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files.content_digest(path) != first


def test_what_is_half_written_is_never_kept(tmp_path):
    def fails(partial):
        partial.write_text("half")
        raise ValueError

    with pytest.raises(ValueError):
        files.kept("kind", "name", fails)
    assert files.kept("kind", "name", lambda p: np.save(p.open("wb"), 1)).stat().st_size > 0
    assert {p.name for p in (tmp_path / "cache" / "kind").iterdir()} == {"name", ".name.size"}


@pytest.mark.parametrize("size", [0, 100, -50])
def test_a_cached_table_cut_short_is_read_anew(size, tmp_path):
    before = table(tmp_path).take(range(4))
    (file,) = (tmp_path / "cache" / "tables").glob("[!.]*")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.warns(UserWarning, match="not as it was written; it is made again"):
        assert table(tmp_path).take(range(4)) == before
    assert table(tmp_path).take(range(4)) == before


def test_a_cached_file_of_other_content_is_named(tmp_path):
    check.inputs(table(tmp_path), Words(), ("train",))
    (file,) = (tmp_path / "cache" / "checks").glob("[!.]*")
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(InputError, match="a damaged file of the cache .*Delete it"):
        check.inputs(table(tmp_path), Words(), ("train",))


def test_a_word_tokenizer_reads_only_rows_that_are_used(tmp_path):
    class Strict(Words):
        def read(self, text):
            if "X" in text:
                raise InputError("X")
            return super().read(text)

    rows = table(tmp_path, ("ACGT", "AX", "GG"))
    rows.splits["train"] = np.array([0, 2])
    assert check.inputs(rows, Strict(), ("train",))[1].tolist() == [4, 0, 3]
