"""Every name of the zoo, made tiny: batching never changes a sequence's states.

    pytest tests/test_zoo_parity.py

A name keeps what makes its network the one it is (norms, biases, positions, experts); only sizes
shrink. Weights are random, and larger than at initialisation, so that layers matter.
"""

import json

import pytest
import torch

from mgen.backbones import load_backbone
from mgen.backbones.zoo import ZOO

# Of cells the same is held by test_golden_aido_cell, test_golden_tissue and test_cell_families.
OWN = [n for n, entry in ZOO.items() if entry.family != "huggingface" and entry.modality != "cell"]
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
SEQUENCES = ["ACGTACGTACGTTGCA", "A", "GATTACA", "CC", "ACGTTGCAACGGTTAACCGGTAGC", "GGCATCG"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=OWN)
def folder(request, tmp_path_factory):
    """The name's own config.json with tiny sizes, and weights for it."""
    entry = ZOO[request.param]
    if entry.family == "onehot":
        return request.param
    folder = tmp_path_factory.mktemp(request.param)
    config = {"model_type": entry.family, "vocab_size": entry.vocab, **entry.config, **TINY}
    if entry.config.get("str_embedding_in"):
        config["str_embedding_in"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = load_backbone(str(folder), random_weights=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    network.save(folder)
    return str(folder)


def states(network, sequences):
    """The states of each sequence's own tokens, computed in one batch."""
    with torch.no_grad():
        batch = network.tokenize(sequences)
        hidden = network(batch)
    return [row[real.bool()] for row, real in zip(hidden, batch["attention_mask"], strict=True)]


def test_alone_padded_bucketed_and_windowed_are_the_same(folder):
    network = load_backbone(folder)
    padded = states(network, SEQUENCES)
    for sequence, together in zip(SEQUENCES, padded, strict=True):
        (alone,) = states(network, [sequence])
        assert alone.shape == together.shape
        assert (alone - together).abs().max() <= TOLERANCE
    options = {"pool": "none", "special_tokens": True}
    for tokens in (1, 40, 10**6):  # buckets of one, of some, of all
        bucketed = network.embed(SEQUENCES, batch_tokens=tokens, **options)
        for row, together in zip(bucketed, padded, strict=True):
            assert (row - together).abs().max() <= TOLERANCE
    if network.tokenizer.per_letter:
        windows = load_backbone(folder, truncate="window")
        for row, together in zip(states(windows, SEQUENCES), padded, strict=True):
            assert torch.equal(row, together)


def test_sequences_matter_to_the_states(folder):
    """Without this the comparison above could not fail."""
    first, second = states(load_backbone(folder), ["ACGTACG", "ACGTACC"])
    assert (first[0] - second[0]).abs().max() > 1e-4 or "onehot" in folder
