"""The bundled tables are what the simulators make, and their labels follow the stated truth."""

import gzip

import numpy as np
import pytest

from mgen.config import InputError
from mgen.data import table
from mgen.data.named import simulate


def read(name: str) -> list[dict]:
    rows = table(name).open()
    return rows.take(range(len(rows)))


@pytest.mark.parametrize("name", simulate.SETS)
def test_bundled_file_is_what_its_seed_gives(name):
    packed = (simulate.BUNDLED / f"{name}.tsv.gz").read_bytes()
    assert gzip.decompress(packed).decode() == simulate.as_tsv(name)


@pytest.mark.parametrize("name", simulate.SETS)
def test_bundled_file_is_small(name):
    assert (simulate.BUNDLED / f"{name}.tsv.gz").stat().st_size < 50_000


@pytest.mark.parametrize("name", simulate.SETS)
def test_every_named_table_opens_with_training_validation_and_test_rows(name):
    rows = table(name).open()
    assert all(len(rows.splits[split]) >= 48 for split in ("train", "valid", "test"))


def test_promoter_strength_follows_the_stated_grammar():
    is_explained = []
    for row in read("promoters_tiny"):
        sequence = row["sequence"]
        rest = float(row["truth"]) - 15 * (sum(map(sequence.count, "AT")) / len(sequence) - 0.5)
        activators = sequence.count("GGGCGG") + sequence.count("CCGCCC")
        rest -= 0.7 * (activators - sequence.count("AAGCTT"))
        is_explained.append(min(abs(rest - x) for x in core_effects(sequence)) < 0.006)
    # A site of six bases also arises by chance in 2 % of the sequences, without effect.
    assert np.mean(is_explained) > 0.93


def test_promoter_noise_has_the_stated_size():
    noise = [float(row["label"]) - float(row["truth"]) for row in read("promoters_tiny")]
    assert np.std(noise) == pytest.approx(simulate.NOISE, rel=0.08)
    assert np.mean(noise) == pytest.approx(0, abs=0.05)


def test_stated_share_of_promoter_classes_is_mislabelled():
    rows = read("promoter_classes_tiny")
    wrong = np.mean([row["label"] != row["truth"] for row in rows])
    assert wrong == pytest.approx(simulate.MISLABELLED, abs=0.02)
    assert {row["label"] for row in rows} == {"housekeeping", "heat_shock", "nitrogen"}


def test_peptide_activity_follows_the_stated_probability():
    rows = read("peptides_tiny")
    for row in rows[:100]:
        sequence = row["sequence"]
        charge = sum(map(sequence.count, "KR")) - sum(map(sequence.count, "DE"))
        hydrophobic = sum(map(sequence.count, "AFILMVW")) / len(sequence)
        score = 1.2 * (charge - 2) + 8 * (hydrophobic - 0.4)
        assert float(row["truth"]) == pytest.approx(1 / (1 + np.exp(-score)), abs=6e-4)
    truth = np.array([float(row["truth"]) for row in rows])
    active = np.array([int(row["label"]) for row in rows])
    assert active[truth > 0.9].mean() > 0.9 > 0.1 > active[truth < 0.1].mean()


def test_promoters_have_the_stated_lengths():
    assert all(80 <= len(row["sequence"]) <= 120 for row in read("promoters_tiny"))


def test_a_misspelt_name_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'promoters_tiny'"):
        table("promoter_tiny")


def test_options_go_on_top_of_a_named_table():
    assert table("promoters_tiny", split_seed=7).split_seed == 7


def test_a_file_may_stand_where_a_name_does():
    assert table("my.tsv").path == "my.tsv"


def core_effects(sequence: str) -> list[float]:
    effects = [0.0]
    for start in range(len(sequence)):
        for spacer in range(14, 21):
            if sequence.startswith("TTGACA", start) and sequence.startswith(
                "TATAAT", start + 6 + spacer
            ):
                effects.append(2 * np.exp(-((spacer - 17) ** 2) / 8))
    return effects
