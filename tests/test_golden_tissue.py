"""AIDO.Tissue against the reference's tensors, and what it does differently by default.

MGEN_GOLDEN=folder pytest tests/test_golden_tissue.py
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import golden
from safetensors.torch import load_file
from test_golden_aido_cell import cells, with_genes

from mgen.backbones import load_backbone
from mgen.io.counts import Counts

CASES = ("single", "single_b1", "multi", "multi_b1", "xy")


class Fixture:
    def __init__(self) -> None:
        folder = golden("cellspatialfoundation_tiny")
        self.size = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
        self.network = with_genes(load_backbone(str(folder)), self.size)
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")

    def rows(self, case: str) -> list[Counts]:
        (name,) = [key for key in self.inputs if key.startswith(f"{case}.")]
        given = self.inputs[name].numpy()
        if case != "xy":
            blocks = given.reshape(len(given), -1, self.size)
            tissue = [cells(block) for block in blocks]
        else:  # after the counts of all cells a mark, their x, a mark, their y
            count = given.shape[1] // (self.size + 2)
            counts = given[:, : count * self.size].reshape(len(given), count, self.size)
            places = given[:, count * self.size :].reshape(len(given), 2, count + 1)[:, :, 1:]
            tissue = [
                [
                    replace(cell, place=tuple(place))
                    for cell, place in zip(cells(c), p.T.tolist(), strict=True)
                ]
                for c, p in zip(counts, places, strict=True)
            ]
        return [replace(c, neighbours=tuple(near)) for c, *near in tissue]

    def batch(self, case: str, as_published: bool) -> dict[str, torch.Tensor]:
        self.network.tokenizer.as_published = as_published
        self.network.tokenizer.rope2d_use_xy = case == "xy"
        return self.network.tokenize(self.rows(case))


@pytest.fixture(scope="module")
def tissue() -> Fixture:
    return Fixture()


@pytest.mark.parametrize("case", CASES)
def test_what_the_reference_reads_and_gives_equals_golden(tissue, case):
    given, wanted = tissue.batch(case, as_published=True), tissue.outputs
    assert torch.equal(given["values"], wanted[f"{case}.model_input"])
    assert torch.equal(given["position_ids"], wanted[f"{case}.position_ids"].long())
    is_real = wanted[f"{case}.encoder_attention_mask"].bool()
    if not case.startswith("single"):
        assert torch.equal(given["attention_mask"].bool(), is_real)
    with torch.no_grad():
        states = tissue.network.hidden_states(given)
        logits = tissue.network.decoder(states[-1])
    for i, state in enumerate(states):
        assert (state - wanted[f"{case}.hidden_state_{i}"]).abs().max() <= 6e-5, i
    assert (logits - wanted[f"{case}.logits"]).abs().max() <= 6e-5
    given_back = wanted[f"{case}.wrapper_last_hidden_state"]
    counted = given["special_tokens_mask"] == 0
    for row, state in enumerate(states[-1]):
        own = state[counted[row]]
        assert (own - given_back[row, : len(own)]).abs().max() <= 6e-5
        assert not given_back[row, len(own) :].any()
    if not case.startswith("single"):
        mask = wanted[f"{case}.wrapper_attention_mask"]
        assert counted.sum(1).tolist() == mask.sum(1).tolist()


@pytest.mark.parametrize("case", ["single", "multi", "xy"])
def test_a_row_does_not_depend_on_others(tissue, case):
    batch = tissue.batch(case, as_published=False)
    with torch.no_grad():
        together = tissue.network(batch)
        for i, row in enumerate(tissue.rows(case)):
            alone = tissue.network(tissue.network.tokenize([row]))[0]
            assert (together[i, : len(alone)] - alone).abs().max() <= 1e-5
            assert batch["attention_mask"][i].sum() == len(alone)


def test_values_are_those_of_each_cell(tissue):
    batch, row = tissue.batch("multi", as_published=False), tissue.rows("multi")[0]
    own = (batch["special_tokens_mask"][0] == 0).numpy()
    expected = np.log1p(1e4 * row.values / row.values.sum())
    np.testing.assert_allclose(batch["values"][0].numpy()[own], expected, atol=1e-6)


def test_a_cell_without_counts_is_its_depth_alone(tissue):
    tissue.network.tokenizer.as_published = False
    batch = tissue.network.tokenize(cells(np.zeros((1, tissue.size), np.float32)))
    assert batch["values"].tolist() == [[5.0, 5.0]]
    with torch.no_grad():
        assert tissue.network(batch).isfinite().all()
