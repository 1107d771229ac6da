"""Decoding and scores of RNA secondary structures."""

import json

import pytest
import torch
from conftest import golden

from mgen.metrics.base_pairs import decode, pair_scores


def fixture() -> dict:
    file = golden("metrics") / "rna_secondary_structure.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    return json.loads(file.read_text())


def tensor(pairs: list) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def test_golden_probabilities_decode_to_these_pairs():
    for case in fixture()["prob_to_structure"]:
        for wanted in case["expected"]:
            found = decode(
                torch.tensor(case["probs"]),
                case["seq"],
                wanted["threshold"],
                any_bases=wanted["allow_nc_pairs"],
                sharp_loops=wanted["allow_sharp_loops"],
            )
            assert found.tolist() == [sorted(pair) for pair in sorted(wanted["pairs"])]


def test_golden_scores_strict_and_flexible():
    for case in fixture()["scores"]:
        ours, theirs = tensor(case["pred_pairs"]), tensor(case["true_pairs"])
        for kind, wanted in case["expected"].items():
            found = pair_scores(ours, theirs, case["L"], flexible=kind == "flexible")
            assert found == pytest.approx([*wanted.values()], abs=1e-5), (kind, wanted)
