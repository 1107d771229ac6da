"""Overlapping windows over sequences that are longer than a model's context."""

import pytest
import torch

from mgen.backbones import load_backbone
from mgen.backbones.windows import cut, spans
from mgen.config import InputError

LONG = "ACGTTGCAACGGTTAACCGGTAGCTAGCTTAGGCATCG"


def test_windows_of_ten_letters_by_hand():
    # Four letters each, every two letters; of two windows the earlier one wins a tie.
    assert spans(10, 4) == [(0, 4, 0, 3), (2, 6, 3, 5), (4, 8, 5, 7), (6, 10, 7, 10)]
    assert spans(5, 4) == [(0, 4, 0, 3), (1, 5, 3, 5)]
    assert spans(4, 4) == [(0, 4, 0, 4)]
    assert spans(0, 4) == [(0, 0, 0, 0)]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8])
def test_every_letter_is_taken_once_where_it_lies_farthest_from_a_cut(width):
    for letters in range(1, 40):
        check_spans(letters, width)


def check_spans(letters, width):
    found = spans(letters, width)
    owners = [i for i, (*_, first, last) in enumerate(found) for _ in range(first, last)]
    assert len(owners) == letters and found[0][2] == 0 and found[-1][3] == letters

    def distance(window, letter):
        start, stop = found[window][:2]
        if not start <= letter < stop:
            return -1
        left = letter - start if start else letters  # an end of the sequence is no cut
        right = stop - 1 - letter if stop < letters else letters
        return min(left, right)

    for letter, owner in enumerate(owners):
        best = max(range(len(found)), key=lambda window: distance(window, letter))
        assert distance(owner, letter) == distance(best, letter)


def test_windows_are_framed_by_special_tokens():
    network = load_backbone("aido_dna_debug", max_length=6, truncate="window")
    batch = network.tokenize(["ACGTAC", "GT"])
    windows = cut(batch, 6, network.tokenizer.pad_token_id)
    texts = network.tokenizer.decode(windows.batch["input_ids"])
    assert texts == [
        "[CLS] A C G T [SEP]",
        "[CLS] G T A C [SEP]",
        "[CLS] G T [SEP] [PAD] [PAD]",
    ]
    assert windows.window[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert windows.place[0].tolist() == [0, 1, 2, 3, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m"])
def test_states_are_those_of_the_windows(name):
    network = load_backbone(name, random_weights=True, max_length=10, truncate="window")
    plain = load_backbone(name, random_weights=True)
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        got = network(network.tokenize([LONG, "ACG"]))
        for start, stop, first, last in spans(len(LONG), 8):
            alone = plain(plain.tokenize([LONG[start:stop]]))[0]
            kept = alone[1 + first - start : 1 + last - start]
            assert (got[0, 1 + first : 1 + last] - kept).abs().max() <= 1e-5
            if start == 0:
                assert (got[0, 0] - alone[0]).abs().max() <= 1e-5
            if stop == len(LONG):
                assert (got[0, len(LONG) + 1] - alone[-1]).abs().max() <= 1e-5
        assert (got[1, :5] - plain(plain.tokenize(["ACG"]))[0]).abs().max() <= 1e-5
        every = network.hidden_states(network.tokenize([LONG, "ACG"]))
    assert len(every) == network.num_layers + 1
    assert torch.equal(every[-1], got)


def test_sequences_that_fit_are_not_touched():
    network = load_backbone("aido_dna_debug", max_length=40, truncate="window")
    plain = load_backbone("aido_dna_debug", random_weights=True)
    plain.load_state_dict(network.state_dict())
    batch = network.tokenize([LONG, "ACGT"])
    assert torch.equal(network(batch), plain(batch))


def test_one_hot_windows_are_the_sequence_itself():
    network = load_backbone("dna_onehot", max_length=9, truncate="window")
    batch = network.tokenize([LONG, "ACGT"])
    assert torch.equal(network(batch).argmax(-1) * batch["attention_mask"], batch["input_ids"])


def test_windows_train():
    network = load_backbone("aido_dna_debug", max_length=10, truncate="window").train()
    network(network.tokenize([LONG])).square().sum().backward()
    used = [p.grad is not None for p in network.encoder.parameters()]
    assert all(used)


def test_embeddings_of_long_sequences_use_windows():
    network = load_backbone("aido_dna_debug", max_length=10, truncate="window")
    hidden = network(network.tokenize([LONG]))[0, 1:-1]
    assert torch.allclose(network.embed([LONG])[0], hidden.mean(0), atol=1e-6)


def test_without_windows_a_long_sequence_is_refused():
    with pytest.raises(InputError, match="Set --backbone.truncate"):
        load_backbone("aido_dna_debug", max_length=10).tokenize([LONG])
