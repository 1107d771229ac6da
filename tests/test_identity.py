"""Clusters hold what is alike, by k-mers and by MMseqs2, and splits do not cut them."""

import shutil

import numpy as np
import pytest

from mgen.config import InputError
from mgen.data import Table
from mgen.data.splitting import identity
from mgen.data.splitting.identity import Letters, Words, linked_clusters, nearest

DNA, PROTEIN = "ACGT", "ACDEFGHIKLMNPQRSTVWY"


def texts(sequences: list[str]) -> Letters:
    data = np.frombuffer("".join(sequences).encode(), np.uint8)
    return Letters(data, np.cumsum([0, *map(len, sequences)]))


def random_sequence(generator, length: int, alphabet: str) -> str:
    return "".join(generator.choice(list(alphabet), length))


def mutated(generator, sequence: str, share: float, alphabet: str) -> str:
    """`sequence` with exactly that share of its letters kept, the others replaced."""
    letters = list(sequence)
    for i in generator.permutation(len(letters))[: round((1 - share) * len(letters))]:
        letters[i] = generator.choice([a for a in alphabet if a != letters[i]])
    return "".join(letters)


def families(alphabet: str, length: int, kept: float, count: int = 30, size: int = 4):
    """Sequences of `count` unrelated families, and the family of each."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        base = random_sequence(generator, length, alphabet)
        found += [mutated(generator, base, kept, alphabet) for _ in range(size)]
    return found, np.repeat(np.arange(count), size)


def equal_partitions(first, second) -> bool:
    pairs = {*zip(first.tolist(), second.tolist(), strict=True)}
    return len(pairs) == len({*first.tolist()}) == len({*second.tolist()})


FAMILIES = [(DNA, 150, 0.95, 0.8), (DNA, 1000, 0.9, 0.7), (PROTEIN, 100, 0.9, 0.7),
            (PROTEIN, 300, 0.8, 0.5)]  # fmt: skip


@pytest.mark.parametrize(("alphabet", "length", "kept", "threshold"), FAMILIES)
def test_k_mers_find_the_families_that_were_made(alphabet, length, kept, threshold):
    sequences, truth = families(alphabet, length, kept)
    assert equal_partitions(linked_clusters(texts(sequences), threshold)[0], truth)


@pytest.mark.skipif(not shutil.which("mmseqs"), reason="needs the program mmseqs")
@pytest.mark.parametrize(("alphabet", "length", "kept", "threshold"), [FAMILIES[0], FAMILIES[2]])
def test_mmseqs_finds_the_families_that_were_made(alphabet, length, kept, threshold):
    sequences, truth = families(alphabet, length, kept, count=10)
    found = identity._mmseqs(shutil.which("mmseqs"), texts(["", *sequences]), threshold)
    assert equal_partitions(found[1:], truth)
    assert found[0] not in found[1:]


# Identity kept, error of the mean, standard deviation: as stated in docs/check.md.
ESTIMATES = [(DNA, 200, 0.9, 0.02, 0.03), (DNA, 1000, 0.8, 0.02, 0.03),
             (PROTEIN, 100, 0.8, 0.02, 0.05), (PROTEIN, 300, 0.7, 0.02, 0.04),
             (PROTEIN, 300, 0.5, 0.02, 0.05)]  # fmt: skip


@pytest.mark.parametrize(("alphabet", "length", "kept", "error", "spread"), ESTIMATES)
def test_the_estimate_is_the_identity_that_was_made(alphabet, length, kept, error, spread):
    generator = np.random.default_rng(1)
    base = [random_sequence(generator, length, alphabet) for _ in range(100)]
    copies = [mutated(generator, sequence, kept, alphabet) for sequence in base]
    words, block = Words.of(texts(copies), kept - 0.05), (np.arange(100) + 7, texts(base))
    found, rows = nearest(words, texts(copies), iter([block]), kept + 0.09)
    assert (rows == np.arange(100) + 7).mean() > 0.98
    assert abs(found.mean() - kept) < error
    assert found.std() < spread


def test_links_are_followed_along_a_chain(monkeypatch):
    """Each is 0.91 alike to the next, the ends are not 0.7 alike."""
    monkeypatch.setattr(identity, "BATCH", 16)  # so that most are compared with earlier batches
    generator = np.random.default_rng(2)
    chain = [random_sequence(generator, 400, DNA)]
    for _ in range(12):
        chain.append(mutated(generator, chain[-1], 0.91, DNA))
    same = np.mean(np.array(list(chain[0])) == np.array(list(chain[-1])))
    assert same < 0.7
    assert len(set(linked_clusters(texts([*chain, "ACGT" * 100]), 0.85)[0][:-1])) == 1


def test_both_strands_and_u_for_t_are_one_sequence():
    generator = np.random.default_rng(3)
    ahead = random_sequence(generator, 200, DNA)
    turned = ahead[::-1].translate(str.maketrans(DNA, "TGCA"))
    rna, other = ahead.replace("T", "U"), random_sequence(generator, 200, DNA)
    ids = linked_clusters(texts([ahead, turned, rna, other]), 0.9)[0]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_piece_is_not_alike_to_the_whole():
    generator = np.random.default_rng(4)
    whole = random_sequence(generator, 300, PROTEIN)
    ids = linked_clusters(texts([whole, whole[:250], whole[:200]]), 0.9)[0]  # 0.83 and 0.67 of it
    assert ids[0] == ids[1]
    assert len(set(linked_clusters(texts([whole, whole[:200]]), 0.9)[0])) == 2


def test_clusters_do_not_depend_on_the_order_of_rows():
    sequences, _ = families(PROTEIN, 200, 0.8)
    order = np.random.default_rng(5).permutation(len(sequences))
    first = linked_clusters(texts(sequences), 0.6)[0]
    again = linked_clusters(texts([sequences[i] for i in order]), 0.6)[0]
    assert equal_partitions(first[order], again)


def test_sequences_too_short_or_unlike_to_tell_are_refused_with_the_least_identity():
    sequences, _ = families(DNA, 60, 0.9)
    with pytest.raises(InputError, match=r"identities above 0\.\d\d from chance. .* MMseqs2"):
        linked_clusters(texts(sequences), 0.5)


def test_words_are_told_by_their_letters():
    words = Words(DNA, 3)
    owners, kmers = words.read(texts(["AAAC", "GTTT", "AANA", "", "AC"]))
    # AAA, AAC: 0 and 1; GTT = AAC and TTT = AAA of the other strand; no 3-mer without N elsewhere.
    assert list(zip(owners.tolist(), kmers.tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 0), (1, 1)]  # fmt: skip


@pytest.fixture
def without_mmseqs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def homologous(folder, **options) -> Table:
    sequences, truth = families(PROTEIN, 120, 0.9, count=40)
    lines = [f"{s},{t},{t % 3}" for s, t in zip(sequences, truth, strict=True)]
    (folder / "t.csv").write_text("\n".join(["sequence,family,label", *lines]) + "\n")
    return Table(path=str(folder / "t.csv"), **options)


def test_splits_by_identity_cut_no_family_and_say_how(tmp_path, without_mmseqs):
    rows = homologous(tmp_path, identity=0.6, stratify_col="label").open()
    families_ = {n: {rows.values("family")[i] for i in s} for n, s in rows.splits.items()}
    assert sum(map(len, families_.values())) == 40
    assert len(families_["test"]) == 8
    assert rows.plan.startswith(
        "sequences 0.6 alike stay together (shared 4-mers): 40 clusters, the largest of 4 rows; "
        "values of column 'label' shared alike: 3 of them; test: 0.2 of 160 rows at random, seed "
        "42, 0.2 came out"
    )
    plain = homologous(tmp_path).open()
    assert {plain.values("family")[i] for i in plain.splits["test"]} & {
        plain.values("family")[i] for i in plain.splits["train"]
    }


def test_clusters_and_groups_are_joined(tmp_path, without_mmseqs):
    rows = homologous(tmp_path, identity=0.6, group_col="label", folds=3).open()
    assert "joined where they share rows: 3 groups" in rows.plan


def test_clusters_are_looked_up_the_next_time(tmp_path, without_mmseqs, monkeypatch):
    first = homologous(tmp_path, identity=0.62).open().splits
    monkeypatch.setattr(identity, "linked_clusters", None)
    again = homologous(tmp_path, identity=0.62).open().splits
    assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.skipif(not shutil.which("mmseqs"), reason="needs the program mmseqs")
def test_splits_by_mmseqs_say_its_version(tmp_path):
    rows = homologous(tmp_path, identity=0.6).open()
    assert "stay together (MMseqs2 " in rows.plan and "40 clusters" in rows.plan


def test_mmseqs_that_fails_is_an_error_with_what_it_said(tmp_path, monkeypatch):
    program = tmp_path / "mmseqs"
    program.write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo 1 && exit\necho no memory >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    with pytest.raises(InputError, match="mmseqs easy-cluster failed: no memory"):
        homologous(tmp_path, identity=0.5).open()
