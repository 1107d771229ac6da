"""Dependency maps against the fixture: the same mutants, and the same map and logo from its logits.

MGEN_GOLDEN=folder pytest tests/test_golden_maps.py
"""

import json

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file

from mgen.backbones.tokenizer import Style, Tokenizer
from mgen.methods.mutagenesis import Edits, dependencies, information, letter_ids, single_mutants


class Fixture:
    def __init__(self) -> None:
        folder = golden("tasks/dependency_map")
        self.config = json.loads((folder / "config.json").read_text())
        self.rows = json.loads((folder / "outputs.json").read_text())["dataset_rows"]
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.tokenizer = Tokenizer(self.config["tokens"], Style(), modality="dna")
        self.letters = letter_ids(self.tokenizer, "".join(self.config["vocab"]))


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def test_mutants_are_those_of_the_golden_rows_without_the_letters_kept(fixture):
    """The golden rows substitute each letter by itself too, which changes nothing."""
    names, sequences = zip(*fixture.config["sequences"].items(), strict=True)
    edits = single_mutants(fixture.tokenizer.tokenize(sequences), fixture.letters)
    start = fixture.tokenizer.num_special - 1
    ours = [
        (names[row], place - start if place >= 0 else -1, letter)
        for row, place, letter in zip(*(t.tolist() for t in vars(edits).values()), strict=True)
    ]
    vocab, wild = fixture.config["vocab"], fixture.config["wild_type_pos_mut"]
    theirs = [
        (row["ids"], row["pos_i"], row["mut_i"])
        for row in fixture.rows
        if row["pos_i"] == wild
        or vocab[row["mut_i"]] != fixture.config["sequences"][row["ids"]][row["pos_i"]]
    ]
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == sum(len(s) * (len(vocab) - 1) + 1 for s in sequences)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_dependency_map_and_logo_are_the_golden_ones(fixture, size):
    """Its logits are random, those of a letter substituted by itself too: such rows are kept."""
    batch = fixture.tokenizer.tokenize([fixture.config["sequences"]["a"]])
    place, letter = fixture.inputs["pos_i"], fixture.inputs["mut_i"]
    order = torch.argsort(place * len(fixture.letters) + letter, stable=True)  # wild type first
    shift = torch.where(place >= 0, bool(fixture.tokenizer.style.start), 0)
    edits = Edits(torch.zeros_like(place), (place + shift)[order], letter[order])
    ids, given = (fixture.inputs[name][order] for name in ("input_ids", "logits"))
    seen = []

    def logits(part: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = slice(len(seen), len(seen) + len(part["input_ids"]))
        assert torch.equal(part["input_ids"], ids[rows])
        seen.extend(part["input_ids"])
        return given[rows][:, :, fixture.letters]

    eps = fixture.config["eps"]
    (found,) = dependencies(logits, batch, fixture.letters, size, eps=eps, edits=edits)
    torch.testing.assert_close(
        found.matrix, fixture.outputs["dependency_matrix"], rtol=1e-6, atol=1e-8
    )
    logo = information(found.probability, background=0.25)  # the reference's, whatever the letters
    torch.testing.assert_close(logo, fixture.outputs["logo_weights"], rtol=1e-6, atol=1e-8)
