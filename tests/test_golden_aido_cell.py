"""AIDO.Cell and what is read of cells, against the reference's tensors.

    MGEN_GOLDEN=folder pytest tests/test_golden_aido_cell.py

Tolerances are those of the fixtures' READMEs.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, golden
from safetensors.torch import load_file

from mgen.backbones import load_backbone
from mgen.backbones.cellfoundation import preprocessed
from mgen.backbones.genes import GeneList
from mgen.io.counts import Counts, GeneTable

SHARED = Path(os.environ.get("MGEN_SHARED") or ROOT.parent / "shared")


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.backbone = load_backbone(str(folder))
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")

    def states(self, values: torch.Tensor) -> list[torch.Tensor]:
        batch = {"values": values, "attention_mask": torch.ones_like(values).long()}
        with torch.no_grad():
            return self.backbone.hidden_states(batch)

    def difference(self, got: torch.Tensor, name: str) -> float:
        assert got.shape == self.outputs[name].shape
        return (got - self.outputs[name]).abs().max().item()


@pytest.fixture(scope="module")
def tiny() -> Fixture:
    return Fixture(golden("cellfoundation_tiny"))


def cells(counts: np.ndarray) -> list[Counts]:
    table = GeneTable({"": tuple(f"GENE{i + 1}" for i in range(counts.shape[1]))})
    kept = [np.flatnonzero(row) for row in counts]
    return [Counts(k.astype(np.int32), r[k], table) for k, r in zip(kept, counts, strict=True)]


def with_genes(network, count: int):
    """The network with a list GENE1, GENE2, ... of its own."""
    names = tuple(f"GENE{i + 1}" for i in range(count))
    network.tokenizer.genes = GeneList(names, ("",) * count)
    return network


def test_values_that_the_model_reads_equal_golden(tiny):
    counts = tiny.inputs["counts"].numpy()
    assert tiny.difference(torch.from_numpy(preprocessed(counts)), "preprocessed") <= 1e-6
    rounded = torch.from_numpy(preprocessed(counts, as_published=True))
    assert torch.equal(rounded, tiny.outputs["preprocessed_bf16"].float())


def test_states_and_logits_equal_golden(tiny):
    states = tiny.states(tiny.outputs["preprocessed"])
    for i, state in enumerate(states):
        assert tiny.difference(state, f"hidden_state_{i}") <= 3e-5, i
    assert tiny.difference(states[-1], "last_hidden_state") <= 3e-5
    with torch.no_grad():
        assert tiny.difference(tiny.backbone.decoder(states[-1]), "logits") <= 5e-5
    masked = tiny.states(tiny.inputs["masked_values"])
    assert tiny.difference(masked[0], "masked_hidden_state_0") <= 3e-5
    assert tiny.difference(masked[-1], "masked_last_hidden_state") <= 3e-5
    with torch.no_grad():
        assert tiny.difference(tiny.backbone.decoder(masked[-1]), "masked_logits") <= 5e-5


def test_short_inputs_and_the_curve_of_values_equal_golden(tiny):
    short = tiny.states(tiny.inputs["short_values"])[-1]
    assert tiny.difference(short, "short_last_hidden_state") <= 3e-5
    with torch.no_grad():
        curve = tiny.backbone.encoder.gene_embedding(tiny.inputs["scan_values"])
    assert tiny.difference(curve, "scan_embedding") <= 3e-5


def test_what_the_wrapper_gives_of_genes_equals_golden(tiny):
    counts = tiny.inputs["counts"].numpy()
    network = with_genes(tiny.backbone, counts.shape[1])
    network.tokenizer.as_published = True
    batch = network.tokenize(cells(counts))
    network.tokenizer.as_published = False
    with torch.no_grad():
        found = network(batch)[:, :-2]
    assert tiny.difference(found, "wrapper_last_hidden_state") <= 3e-5
    assert batch["special_tokens_mask"].sum(1).tolist() == [2] * len(counts)


def test_a_cell_does_not_depend_on_others_and_an_empty_one_is_finite(tiny):
    counts = tiny.inputs["counts"].numpy().copy()
    network = with_genes(tiny.backbone, counts.shape[1])
    counts[0] = 0
    with torch.no_grad():
        together = network(network.tokenize(cells(counts)))
        alone = [network(network.tokenize([cell]))[0] for cell in cells(counts)]
    assert together.isfinite().all()
    assert (together - torch.stack(alone)).abs().max() <= 1e-5


@pytest.mark.slow
def test_golden_full_length_of_a_real_cell():
    folder = SHARED / "golden" / "cellfoundation_fullsize"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set MGEN_SHARED")
    full = Fixture(folder)
    genes = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    counts = np.zeros((1, genes), dtype=np.float32)
    index = full.inputs["gene_index"].long().numpy()
    counts[0, index] = full.inputs["count"].numpy()
    values = torch.from_numpy(preprocessed(counts))
    hidden = full.states(values)[-1]
    with torch.no_grad():
        logits = full.backbone.decoder(hidden)[..., 0]
    at = full.outputs["positions"].long()
    assert full.difference(hidden[0, at], "hidden_at_positions") <= 3e-4
    assert full.difference(logits[0, at], "logits_at_positions") <= 3e-4
    of_genes = hidden[:, :genes]
    assert full.difference(of_genes.mean(1), "mean_pool_genes") <= 1e-5
    assert full.difference(of_genes.amax(1), "max_pool_genes") <= 1e-4
    assert full.difference(of_genes[:, index].mean(1), "mean_pool_expressed") <= 1e-5
    assert full.difference(logits[:, :genes].mean().view(1), "logits_mean") <= 1e-5
    assert full.difference(values[:, -1:], "depth") <= 1e-6
