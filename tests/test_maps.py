"""Dependency maps, saturation mutagenesis and their figures, by second ways to the same numbers.

Mutants are made again as text, one by one, and given to the network one at a time.
"""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from tiny import command, prepared, settings
from tiny import table as labelled_table

from mgen.apply import Run
from mgen.backbones import backbone, load_backbone
from mgen.config import InputError
from mgen.data.named.simulate import PAIRED_SITES, paired_sites
from mgen.figures.maps import dependency_figure, effect_figure, effect_logo, sequence_logo
from mgen.methods.mutagenesis import (
    dependencies,
    effects,
    information,
    letter_ids,
    letters_of,
    marginals,
    work,
)
from mgen.predictions import read
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import dependency_map  # noqa: E402
import saturation_mutagenesis  # noqa: E402

SEQUENCES = ["ACGTNAC", "GGT", "TACGATC"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = load_backbone("aido_dna_debug")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)  # differences that rounding does not hide
    return net


def logits(network, sequences: list[str]) -> torch.Tensor:
    """Of A, C, G, T at every letter: (B, L, 4) of equally long sequences."""
    ids = letter_ids(network.tokenizer, "ACGT")
    with torch.inference_mode():
        return network.decoder(network(network.tokenize(sequences)))[:, 1:-1, ids]


def of_tokens(network):
    ids = letter_ids(network.tokenizer, "ACGT")
    return lambda part: network.decoder(network(part))[:, :, ids]


@pytest.mark.parametrize("size", [2, 100])
def test_map_equals_that_of_mutants_written_as_text_one_at_a_time(network, size):
    batch, letters = network.tokenize(SEQUENCES), letter_ids(network.tokenizer, "ACGT")
    with torch.inference_mode():
        found = dependencies(of_tokens(network), batch, letters, size)
    for sequence, ours in zip(SEQUENCES, found, strict=True):
        sites = [i for i, letter in enumerate(sequence) if letter in "ACGT"]
        assert ours.sites.positions.tolist() == [i + 1 for i in sites]

        def odds(text: str, sites: list[int] = sites) -> np.ndarray:
            p = torch.softmax(logits(network, [text])[0, sites].double(), -1).numpy()
            p = (p + 1e-4) / (1 + 4e-4)
            return np.log2(p / (1 - p))

        expected = np.zeros((len(sites), len(sites)))
        for i, site in enumerate(sites):
            for letter in set("ACGT") - {sequence[site]}:
                mutant = sequence[:site] + letter + sequence[site + 1 :]
                change = np.abs(odds(mutant) - odds(sequence)).max(-1)
                expected[i] = np.maximum(expected[i], change)
        np.fill_diagonal(expected, 0)
        assert expected.max() > 0.1
        np.testing.assert_allclose(ours.matrix, expected, atol=1e-4)


def test_512_letters_take_at_most_three_per_letter_by_the_batch(network):
    calls = []

    def counted(part: dict) -> torch.Tensor:
        calls.append(len(part["input_ids"]))
        return torch.zeros(*part["input_ids"].shape, 4)

    letters = letter_ids(network.tokenizer, "ACGT")
    batch = network.tokenize(["ACGT" * 128], max_length=0)
    dependencies(counted, batch, letters, 128, 2**17)
    assert len(calls) == 3 * 512 / 128 and sum(calls) == 3 * 512 + 1
    calls.clear()
    batch = network.tokenize(["ACGTAC", "GG", "TTTTT"] * 7)  # many sequences share a batch
    dependencies(counted, batch, letters, 32)
    assert len(calls) == math.ceil(3 * 13 * 7 / 32) and sum(calls) == (3 * 13 + 3) * 7


def test_a_chunk_has_at_most_as_many_letters_as_a_batch_may_have(network):
    seen = []

    def counted(part: dict) -> torch.Tensor:
        seen.append(part["attention_mask"].sum().item())
        return torch.zeros(*part["input_ids"].shape, 4)

    batch = network.tokenize(["ACGT" * 10])
    dependencies(counted, batch, letter_ids(network.tokenizer, "ACGT"), 1000, 400)
    assert len(seen) == 12 and max(seen) == 11 * 42  # 10 mutants and the sequence itself


def test_work_counts_the_tokens_of_all_inputs():
    assert work(np.array([26, 514], dtype=np.int32), 4, 2).tolist() == [73 * 26, 1537 * 514]


@pytest.mark.parametrize("letters", [4, 20])
def test_a_logo_has_no_bits_where_all_are_alike_and_log2_of_the_letters_where_one_is_sure(letters):
    alike, sure = torch.full((1, letters), 1 / letters), torch.eye(letters)[:1]
    assert torch.allclose(information(alike), torch.zeros(1, letters), atol=1e-6)
    assert information(sure)[0, 0].item() == pytest.approx(math.log2(letters))


def test_a_network_that_has_learned_paired_sites_shows_them_as_the_strongest(tmp_path):
    """PAIRED_SITES are complementary in every sequence; nothing else depends on anything."""
    config = {"model_type": "rnabert", "vocab_size": 16, "position_embedding_type": "absolute"}
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    torch.manual_seed(0)
    net = backbone(str(tmp_path), random_weights=True).build()
    tokenizer, letters = net.tokenizer, letter_ids(net.tokenizer, "ACGT")
    batch = net.tokenize([row[0] for row in paired_sites(600)])
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(130):
        chosen = torch.randint(0, 600, (64,))
        ids, mask = batch["input_ids"][chosen], batch["attention_mask"][chosen]
        hidden = (torch.rand(ids.shape) < 0.2) & (batch["special_tokens_mask"][chosen] == 0)
        noise = letters[torch.randint(0, 4, ids.shape)]
        noise[torch.rand(ids.shape) < 0.8] = tokenizer.mask_token_id
        given = {"input_ids": torch.where(hidden, noise, ids), "attention_mask": mask}
        loss = F.cross_entropy(net.decoder(net(given))[hidden], ids[hidden])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    new = [row[0] for row in paired_sites(4, seed=99)]
    with torch.inference_mode():
        maps = dependencies(of_tokens(net.eval()), net.tokenize(new), letters, 128)
    for found in maps:
        paired = torch.zeros(24, 24, dtype=torch.bool)
        for i, j in PAIRED_SITES:
            paired[i, j] = paired[j, i] = True
        assert found.matrix[paired].min() > 2 * found.matrix[~paired].max()


# --------------------------------------------------------------------------- effects


def test_effects_are_differences_of_predictions_of_mutants_written_as_text(tmp_path):
    task, _ = prepared(settings(tmp_path))
    task.eval()
    letters = letter_ids(task.tokenizer, "ACGT")

    def predict(sequences: list[str]) -> torch.Tensor:
        batch = task.tokenizer.tokenize(sequences)
        with torch.inference_mode():
            return task.values(task(batch), batch)

    with torch.inference_mode():
        found, predicted = effects(
            lambda part: task.values(task(part), part),
            task.tokenizer.tokenize(SEQUENCES),
            letters,
            5,
        )
    for row, sequence in enumerate(SEQUENCES):
        whole = predict([sequence])
        torch.testing.assert_close(predicted[row], whole[0])
        sites = [i for i, letter in enumerate(sequence) if letter in "ACGT"]
        for i, site in enumerate(sites):
            for k, letter in enumerate("ACGT"):
                change = predict([sequence[:site] + letter + sequence[site + 1 :]]) - whole
                torch.testing.assert_close(found[row][i, k], change[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_marginals_are_log_probabilities_less_that_of_the_own_letter(network, masked):
    letters, mask = letter_ids(network.tokenizer, "ACGT"), network.tokenizer.mask_token_id
    batch = network.tokenize(SEQUENCES)
    with torch.inference_mode():
        found = marginals(of_tokens(network), batch, letters, 4, 0, mask if masked else None)
    for sequence, ours in zip(SEQUENCES, found, strict=True):
        sites = [i for i, letter in enumerate(sequence) if letter in "ACGT"]
        for i, site in enumerate(sites):
            text = sequence[:site] + "[MASK]" + sequence[site + 1 :] if masked else sequence
            p = torch.log_softmax(logits(network, [text])[0, site], -1)
            expected = p - p["ACGT".index(sequence[site])]
            torch.testing.assert_close(ours[i], expected, atol=1e-4, rtol=1e-4)


def test_masked_marginals_call_the_model_once_per_masked_site_by_the_batch(network):
    calls = []

    def counted(part: dict) -> torch.Tensor:
        calls.append(len(part["input_ids"]))
        return torch.zeros(*part["input_ids"].shape, 4)

    letters = letter_ids(network.tokenizer, "ACGT")
    marginals(counted, network.tokenize(["ACGT" * 25]), letters, 32, 0, 1)
    assert calls == [32, 32, 32, 4]


# --------------------------------------------------------------------------- command lines


def table(folder: Path, rows: list[str] = SEQUENCES) -> Path:
    file = folder / "some.tsv"
    lines = [f"s{i}\t{sequence}" for i, sequence in enumerate(rows)]
    file.write_text("\n".join(["id\tsequence", *lines]) + "\n")
    return file


def start(recipe, folder: Path, *flags: str) -> int:
    task = next(v for v in vars(recipe).values() if getattr(v, "trains", True) is False)
    options = ["--data", str(table(folder)), "--train.workers", "0", "--out", str(folder / "runs")]
    with pytest.raises(SystemExit) as left:
        run(task, recipe.Config, [*options, "--name", "new", *flags])
    return left.value.code


@pytest.mark.parametrize("kind", ["parquet", "tsv", "safetensors"])
def test_maps_of_all_formats_are_alike_and_drawn(tmp_path, kind):
    assert start(dependency_map, tmp_path, "--format", kind, "--max-figures", "1") == 0
    folder = tmp_path / "runs" / "dependency_map" / "new"
    rows = list(read(folder / "predictions" / f"some.{kind}"))
    assert [row["letters"] for row in rows] == ["ACGTAC", "GGT", "TACGATC"]
    assert [row["position"] for row in rows][0] == [1, 2, 3, 4, 6, 7]
    for row in rows:
        count = len(row["position"])
        matrix = np.reshape(row["dependency"], (count, count))
        assert (np.diag(matrix) == 0).all() and (matrix + np.eye(count) > 0).all()
        assert np.shape(row["probability"]) == np.shape(row["logo"]) == (count, 4)
    drawn = sorted(file.name for file in (folder / "figures" / "some").iterdir())
    assert drawn == ["0_s0.png", "0_s0.svg"]


@pytest.mark.parametrize("kind", ["parquet", "tsv"])
def test_effects_of_a_run_are_tabled_and_drawn(tmp_path, kind):
    labelled_table(tmp_path)
    assert command(tmp_path, "--name", "old", "--train.max-steps", "2") == 0
    old = tmp_path / "runs" / "sequence_regression" / "old"
    flags = ("--model", str(old), "--format", kind, "--max-figures", "2")
    assert start(saturation_mutagenesis, tmp_path, *flags) == 0
    folder = tmp_path / "runs" / "saturation_mutagenesis" / "new"
    lines = mutations(folder / "predictions" / f"some.mutations.{kind}")
    assert len(lines) == 3 * sum(letter != "N" for s in SEQUENCES for letter in s)
    ours = Run(old)
    mutants = [
        s[: line["position"] - 1] + line["mutant"] + s[line["position"] :]
        for line in lines
        for s in [SEQUENCES[line["row"]]]
    ]
    whole = ours.predict(SEQUENCES)["predicted_label"]
    theirs = ours.predict(mutants)["predicted_label"]
    for line, value in zip(lines, theirs, strict=True):
        assert line["id"] == f"s{line['row']}" and line["mutant"] != line["wild_type"]
        assert SEQUENCES[line["row"]][line["position"] - 1] == line["wild_type"]
        assert line["effect_label"] == pytest.approx(value - whole[line["row"]], abs=1e-5)
    drawn = {file.name for file in (folder / "figures" / "some").iterdir()}
    assert drawn == {f"{i}_s{i}_label.{kind}" for i in range(2) for kind in ("png", "svg")}


def mutations(file: Path) -> list[dict]:
    if file.suffix == ".parquet":
        return list(read(file))
    with file.open(newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    numbers = {"row": int, "position": int, "effect_label": float}
    return [{k: numbers.get(k, str)(v) for k, v in line.items()} for line in lines]


RAG = ["--backbone", str(ROOT / "tests" / "golden" / "fm4bio_rag_tiny")]
BAD = {
    "no head": (dependency_map, ["--backbone", "dna_onehot"], "language-model head"),
    "one letter": (dependency_map, ["--letters", "A"], "two or more"),
    "the same letter twice": (dependency_map, ["--letters", "TU"], "two or more"),
    "a letter of another alphabet": (dependency_map, ["--letters", "ACGK"], "'K' is no letter"),
    "cut left": (dependency_map, ["--backbone.truncate", "left"], "cut right"),
    "alignments": (dependency_map, RAG, "no token per letter"),
    "too long": (dependency_map, ["--backbone.max-length", "7"], "longer than 7 tokens"),
    "no head here": (saturation_mutagenesis, ["--backbone", "dna_onehot"], "language-model head"),
    "no run": (saturation_mutagenesis, ["--model", "nowhere"], "--model nowhere: not a run"),
    "outputs of no run": (saturation_mutagenesis, ["--outputs", "label"], "set --model"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_settings_are_named_and_nothing_is_written(tmp_path, capfd, name):
    recipe, flags, says = BAD[name]
    assert start(recipe, tmp_path, *flags) == 2
    assert says in capfd.readouterr().err
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_a_run_is_taken_only_for_what_it_predicts(tmp_path, capfd):
    labelled_table(tmp_path)
    assert command(tmp_path, "--name", "old", "--train.max-steps", "2") == 0
    model = ("--model", str(tmp_path / "runs" / "sequence_regression" / "old"))
    for flags, says in (
        (["--outputs", "strength"], "--model has label"),
        (["--log-odds"], "predicts numbers"),
        (["--backbone", "dna_onehot"], "drop --backbone"),
    ):
        assert start(saturation_mutagenesis, tmp_path, *model, *flags) == 2
        assert says in capfd.readouterr().err


def test_letters_by_modality():
    assert letters_of(backbone("aido_dna_debug").tokenizer()) == "ACGT"
    assert (
        letters_of(backbone("esm2_8m", random_weights=True).tokenizer()) == "ACDEFGHIKLMNPQRSTVWY"
    )
    rna = backbone("aido_rna_1m_mars", random_weights=True).tokenizer()
    assert letter_ids(rna, letters_of(rna)).tolist() == letter_ids(rna, "ACGT").tolist()
    as_written = replace(backbone("aido_dna_debug"), as_written=True, unknown="token")
    with pytest.raises(InputError, match="joins unknown letters"):
        letters_of(as_written.tokenizer())


# --------------------------------------------------------------------------- figures


def test_letters_of_a_logo_are_as_high_as_their_numbers_and_stacked_by_size():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    sequence_logo(axes, np.array([[1.0, 0.5, 0, 0], [0, -0.25, 0, 2.0]]), "ACGT")
    boxes = {}
    for patch in axes.patches:
        points = patch.get_path().vertices
        for x in np.unique(points[:, 0].round()):
            here = points[points[:, 0].round() == x]
            boxes[patch.get_facecolor(), x] = here[:, 1].min(), here[:, 1].max()
    found = np.array(sorted(boxes.values())).round(9)
    assert found.tolist() == [[-0.25, 0], [0, 0.5], [0, 2], [0.5, 1.5]]
    assert len({colour for colour, _ in boxes}) == 3


def test_the_logo_of_effects_is_minus_the_mean_effect_of_losing_the_letter():
    values = np.array([[0.0, -1, -2, -3], [4, 0, 1, 1]])
    assert effect_logo(values, np.array([0, 1])).tolist() == [[2, 0, 0, 0], [0, -2, 0, 0]]


@pytest.mark.parametrize("count", [1, pytest.param(900, marks=pytest.mark.slow)])
def test_figures_of_any_length_are_bounded(tmp_path, count):
    import matplotlib.image

    random = np.random.default_rng(0)
    wild, positions = random.integers(0, 4, count), list(range(1, count + 1))
    values = random.normal(size=(count, 4))
    files = effect_figure(tmp_path / "effects", values, wild, "ACGT", positions)
    matrix = np.ones((count, count))
    logo = np.abs(values)
    files += dependency_figure(tmp_path / "map", matrix, logo, "ACGT", "A" * count, positions)
    for file in files:
        if file.suffix == ".png":
            assert max(matplotlib.image.imread(file).shape) < 3000
        else:
            assert file.read_text().startswith("<?xml") and file.stat().st_size < 3e6
