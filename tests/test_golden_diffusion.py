"""Masked diffusion equals its fixtures: corruption, loss and iterative unmasking."""

import json

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file

from mgen.data.targets.corruption import (
    diffusion_loss,
    hidden_tokens,
    low_discrepancy_times,
    mask_share,
    shares_right,
)
from mgen.methods.generate import unmask

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_golden_corruption():
    folder = golden("tasks/diffusion_corruption")
    mask_token = json.loads((folder / "config.json").read_text())["mask_token"]
    for case in json.loads((folder / "outputs.json").read_text()):
        draws = torch.tensor(case["uniform_draws"], dtype=torch.float64)[:, None]
        times = low_discrepancy_times(draws)[:, 0]
        torch.testing.assert_close(times, torch.tensor(case["t"]).double(), **CLOSE)
        weights = torch.tensor(case["posterior_weights"]).double()
        torch.testing.assert_close(1 / times, weights, **CLOSE)
        letters, order = case["sequence"], torch.tensor(case["permutations"])
        ids = torch.tensor([[ord(letter) for letter in letters]]).repeat(len(times), 1)
        noise = order.argsort(1).double()  # the place of each position in the permutation
        masked = mask_share(ids, torch.ones_like(ids).bool(), times, noise, 0)
        texts = ["".join(chr(i) if i else mask_token for i in row) for row in masked.tolist()]
        assert texts == case["masked_sequences"]
        assert (masked == 0).sum(1).tolist() == case["num_masked"]


def test_golden_loss():
    folder = golden("tasks/diffusion_loss")
    config = json.loads((folder / "config.json").read_text())
    given, expected = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "outputs"))
    hidden = hidden_tokens(given["input_ids"], given["target_ids"], config["mask_id"])
    arguments = given["logits"], given["target_ids"], hidden

    def mean(weighting: str) -> torch.Tensor:  # as the loop sums and divides
        losses, weights = diffusion_loss(
            *arguments, given["posterior_weights"], config["label_smoothing"], weighting
        )
        return (losses * weights).sum() / weights.sum()

    torch.testing.assert_close(mean("published"), expected["loss"][0], **CLOSE)
    shares, counts = shares_right(*arguments)
    accuracy = (shares * counts).sum() / counts.sum()
    torch.testing.assert_close(accuracy, expected["accuracy"][0], **CLOSE)
    # Ours is divided by the weights of the copies that count; published, by those of all copies
    # and by the number of those that count.
    weights = given["posterior_weights"]
    published = mean("normalized") * (weights * counts).sum() / weights.sum() / counts.sum()
    torch.testing.assert_close(published, expected["loss_normalized_weights"][0], **CLOSE)


def sampling():
    folder = golden("tasks/diffusion_sampling")
    runs = json.loads((folder / "config.json").read_text())
    given, expected = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "outputs"))
    return runs, given, expected


def network(given: dict, seen: list):
    def logits(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids.clone())
        total = given["table_self"][ids] + given["table_pos"]
        total[:, 1:] += given["table_left"][ids[:, :-1]]
        total[:, :-1] += given["table_right"][ids[:, 1:]]
        return total

    return logits


def draw(probabilities: torch.Tensor) -> torch.Tensor:
    flat = torch.multinomial(probabilities.flatten(0, 1), 1)
    return flat.view(probabilities.shape[:2])


def test_golden_unmasking():
    config, given, expected = sampling()
    mask = config["mask_id"]
    for name, options in config["runs"].items():
        torch.manual_seed(options["torch_seed"])
        seen = []
        start, targets = given["input_ids"], given["target_ids"]
        filled, _ = unmask(
            network(given, seen),
            start,
            start == mask,
            options["num_denoise_steps"],
            options.get("sampling_temperature", 1.0),
            draw=draw if options.get("sample_seq") else None,
        )
        assert len(seen) == options["n_forward"], name
        for step, ids in enumerate(seen):
            assert torch.equal(ids, expected[f"{name}.input_ids_step{step}"]), (name, step)
        assert torch.equal(filled, expected[f"{name}.final_ids"]), name
        shares = shares_right(
            torch.nn.functional.one_hot(filled, config["vocab"]).float(),
            targets,
            hidden_tokens(start, targets, mask),
        )
        torch.testing.assert_close(shares[0], expected[f"{name}.sample_accuracy"], **CLOSE)


def test_golden_loss_of_each_round_of_unmasking():
    config, given, expected = sampling()
    mask, targets = config["mask_id"], given["target_ids"]
    for name, options in config["runs"].items():
        # A position filled with the mask token itself still looks masked, so later rounds of such
        # a run cannot be told from its ids.
        is_plain = (expected[f"{name}.final_ids"] != mask).all()
        for step in range(options["n_forward"] if is_plain else 1):
            ids = expected[f"{name}.input_ids_step{step}"]
            hidden, logits = hidden_tokens(ids, targets, mask), network(given, [])(ids)
            weighted = (given["posterior_weights"], 0.05, "published")
            losses, counts = diffusion_loss(logits, targets, hidden, *weighted)
            loss = (losses * counts).sum() / counts.sum().clamp(min=1)
            torch.testing.assert_close(loss, expected[f"{name}.step_losses"][step], **CLOSE)


@pytest.mark.parametrize("samples", [False, True])
def test_golden_network_never_fills_in_what_is_not_allowed(samples):
    """The network of the fixture prefers special tokens in places; letters are 4 and above."""
    config, given, _ = sampling()
    masked = given["input_ids"] == config["mask_id"]
    allowed = torch.arange(4, config["vocab"])
    filled, likelihoods = unmask(
        network(given, []), given["input_ids"], masked, 7, 2.0, allowed, draw if samples else None
    )
    assert (filled[masked] >= 4).all()
    assert torch.equal(filled[~masked], given["input_ids"][~masked])
    assert (likelihoods[masked] < 0).all() and (likelihoods[~masked] == 0).all()
