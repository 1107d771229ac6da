"""Clusters hold what is alike, by k-mers and by MMseqs2, and splits do not cut them."""

import shutil

import numpy as np
import pytest

from mgen.config import InputError
from mgen.data import Table
from mgen.data.splitting import identity
from mgen.data.splitting.identity import Letters, Words, letter_clusters, linked_clusters, nearest

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


FAMILIES = [(DNA, 150, 0.95, 0.85), (DNA, 1000, 0.9, 0.77), (PROTEIN, 100, 0.9, 0.7),
            (PROTEIN, 300, 0.8, 0.6)]  # fmt: skip


@pytest.mark.parametrize(("alphabet", "length", "kept", "threshold"), FAMILIES)
def test_k_mers_find_the_families_that_were_made(alphabet, length, kept, threshold):
    sequences, truth = families(alphabet, length, kept)
    assert equal_partitions(linked_clusters(texts(sequences), threshold)[0], truth)


@pytest.mark.skipif(not shutil.which("mmseqs"), reason="needs the program mmseqs")
@pytest.mark.parametrize(("alphabet", "length", "kept", "threshold"), FAMILIES[:1])
def test_mmseqs_finds_the_families_that_were_made(alphabet, length, kept, threshold):
    sequences, truth = families(alphabet, length, kept, count=10)
    found = identity._mmseqs(shutil.which("mmseqs"), texts(["", *sequences]), threshold)
    assert equal_partitions(found[1:], truth)
    assert found[0] not in found[1:]


def apart(sequences: list[str], ids: np.ndarray, threshold: float) -> tuple[float, int]:
    """The share of the pairs at least so alike, letter by letter, that are in two clusters."""
    rows = np.array([list(text) for text in sequences])
    alike = np.array([(rows == row).mean(axis=1) for row in rows]) >= threshold - 1e-9
    first, second = np.nonzero(np.triu(alike, 1))
    return float((ids[first] != ids[second]).mean()), len(first)


def pairs_at(alphabet: str, length: int, threshold: float, count: int = 150) -> list[str]:
    """Unrelated pairs, each exactly as alike as the threshold asks: none has another way."""
    generator = np.random.default_rng(6)
    found = []
    for _ in range(count):
        base = random_sequence(generator, length, alphabet)
        found += [base, mutated(generator, base, threshold, alphabet)]
    return found


@pytest.mark.parametrize(("length", "alphabet", "threshold"),
                         [(9, PROTEIN, 0.8), (12, PROTEIN, 0.8), (15, PROTEIN, 0.6),
                          (16, DNA, 0.85), (20, DNA, 0.85), (30, DNA, 0.8),
                          (50, DNA, 0.8)])  # fmt: skip
def test_no_pair_of_short_sequences_is_cut(length, alphabet, threshold):
    kept = np.ceil(threshold * length) / length
    sequences = pairs_at(alphabet, length, kept)
    ids = letter_clusters(texts(sequences), threshold)
    assert apart(sequences, ids, threshold) == (0, 150)
    assert len(set(ids.tolist())) == 150  # and nothing else is joined
    sequences, _ = families(alphabet, length, (1 + kept) / 2, count=40, size=6)
    assert apart(sequences, letter_clusters(texts(sequences), threshold), threshold)[0] == 0


@pytest.mark.parametrize(("length", "alphabet", "threshold"),
                         [(100, DNA, 0.9), (200, DNA, 0.85), (1000, DNA, 0.8), (60, PROTEIN, 0.8),
                          (100, PROTEIN, 0.7), (300, PROTEIN, 0.6)])  # fmt: skip
def test_k_mers_keep_19_of_20_pairs_at_the_identity_together(length, alphabet, threshold):
    sequences = pairs_at(alphabet, length, threshold)
    share, count = apart(sequences, linked_clusters(texts(sequences), threshold)[0], threshold)
    assert count == 150 and share <= 0.05


@pytest.mark.skipif(not shutil.which("mmseqs"), reason="needs the program mmseqs")
@pytest.mark.parametrize(("length", "alphabet", "threshold"),
                         [(60, DNA, 0.8), (200, DNA, 0.8), (100, PROTEIN, 0.5)])  # fmt: skip
def test_mmseqs_keeps_19_of_20_pairs_at_the_identity_together(length, alphabet, threshold):
    sequences = pairs_at(alphabet, length, threshold, count=100)
    found = identity._mmseqs(shutil.which("mmseqs"), texts(sequences), threshold)
    share, count = apart(sequences, found, threshold)
    assert count == 100 and share <= 0.05


def test_letters_are_compared_in_every_position_of_both_strands_that_overlaps_enough():
    def together(first: str, second: str, threshold: float) -> bool:
        return len(set(letter_clusters(texts([first, second]), threshold).tolist())) == 1

    assert together("SIINFEKLW", "IINFEKLWA", 8 / 9)  # 8 of 9 equal, one further on
    assert not together("SIINFEKLW", "IINFEKLWA", 0.9)
    assert together("SIINFEKL", "SIINFEKLWA", 1)  # 8 of 10 overlap
    assert not together("SIINFEKL", "SIINFEKLWAA", 0.5)  # 8 of 11
    assert not together("SIINFEKLWA", "NFEKLWAGGG", 0.5)  # 7 of 10 would
    assert together("ACGUUCAGGA", "TCCTGAACGT", 1)  # the other strand
    assert not together("ACGTTCAGGA", "AGGACTTGCA", 0.8)  # backwards is not


def test_short_and_long_sequences_are_each_compared_their_way(tmp_path, without_mmseqs):
    generator = np.random.default_rng(7)
    long = [random_sequence(generator, 120, PROTEIN) for _ in range(20)]
    short = [random_sequence(generator, 12, PROTEIN) for _ in range(20)]
    both = long + short + [mutated(generator, s, 0.9 if len(s) > 50 else 10 / 12, PROTEIN)
                           for s in long + short]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["sequence,label", *(f"{s},1" for s in both)]))
    rows = Table(path=str(tmp_path / "t.csv"), identity=0.75).open()
    assert rows.plan.startswith(
        "sequences at least about 0.75 alike stay together (shared 5-mers; letters compared one by "
        "one, of up to 50): 40 clusters, the largest of 2 rows"
    )


def test_repeats_and_short_sequences_ask_no_other_program(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/no/such/mmseqs")
    peptides = ["SIINFEKLW", "SIINFEKLY", "AGAGAGAGA", "AGAGAGAGG", "WWWWWWWWW", "CDEFHIKLM"]
    (tmp_path / "t.csv").write_text("\n".join(["sequence,label", *(f"{s},1" for s in peptides)]))
    plan = Table(path=str(tmp_path / "t.csv"), identity=0.8, valid_fraction=0).open().plan
    assert "0.8 alike stay together (letters compared one by one): 4 clusters" in plan


def test_too_many_short_sequences_are_refused_before_they_are_compared(monkeypatch):
    monkeypatch.setattr(identity, "MOST_COMPARED", 1e5)
    with pytest.raises(InputError, match="150 different sequences .*--data.max-rows"):
        letter_clusters(texts(pairs_at(PROTEIN, 12, 0.8, 75)), 0.8)


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
    first = linked_clusters(texts(sequences), 0.65)[0]
    again = linked_clusters(texts([sequences[i] for i in order]), 0.65)[0]
    assert equal_partitions(first[order], again)


def test_sequences_too_short_or_unlike_to_tell_are_refused_with_the_least_identity():
    sequences, _ = families(DNA, 60, 0.9)
    with pytest.raises(InputError, match=r"identities from 0\.\d+ on from chance. .* MMseqs2"):
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
    rows = homologous(tmp_path, identity=0.7, stratify_col="label").open()
    families_ = {n: {rows.values("family")[i] for i in s} for n, s in rows.splits.items()}
    assert sum(map(len, families_.values())) == 40
    assert len(families_["test"]) == 8
    assert rows.plan.startswith(
        "sequences at least about 0.7 alike stay together (shared 4-mers): 40 clusters, the "
        "largest of 4 rows; "
        "values of column 'label' shared alike: 3 of them; test: 0.2 of 160 rows at random, seed "
        "42, 0.2 came out"
    )
    plain = homologous(tmp_path).open()
    assert {plain.values("family")[i] for i in plain.splits["test"]} & {
        plain.values("family")[i] for i in plain.splits["train"]
    }


def test_clusters_and_groups_are_joined(tmp_path, without_mmseqs):
    rows = homologous(tmp_path, identity=0.7, group_col="label", folds=3).open()
    assert "joined where they share rows: 3 groups" in rows.plan


def test_clusters_are_looked_up_the_next_time(tmp_path, without_mmseqs, monkeypatch):
    first = homologous(tmp_path, identity=0.72).open().splits
    monkeypatch.setattr(identity, "linked_clusters", None)
    again = homologous(tmp_path, identity=0.72).open().splits
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
    with pytest.raises(InputError, match="failed: no memory. A PATH without mmseqs .*group-col"):
        homologous(tmp_path, identity=0.5).open()
