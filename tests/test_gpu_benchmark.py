"""The GPU benchmark measures: here a small network on a CPU, so that it runs where it is needed."""

import sys

import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT))

from tests.benchmarks import gpu  # noqa: E402


@pytest.mark.slow
def test_the_gpu_benchmark_measures_training_and_embedding(tmp_path):
    case = gpu.Case("aido_dna_debug", "ACGT", 60, 512)
    sequences = gpu.draw(case, 40)
    assert all(30 <= len(sequence) <= 60 for sequence in sequences)
    (tmp_path / "rows.tsv").write_text("\n".join(["sequence", *sequences]) + "\n")
    found = gpu.training(case, tmp_path / "rows.tsv", 30, ())
    assert found["tokens_per_second"] > 0 and 0 <= found["padding"] < 0.5
    assert {"tflops", "peak_memory_gb"} <= found.keys()
    embedded = gpu.embedding(case, sequences, batch=8)
    assert embedded["packed_over_padded"] > 0 and embedded["packed_tokens_per_second"] > 0


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_not_hidden(tmp_path):
    case = gpu.Case("aido_dna_debug", "ACGT", 60, 512)
    found = gpu.training(case, tmp_path / "missing.tsv", 2, ())
    assert "missing.tsv" in found["failed"] and found["tokens_per_second"] == 0


def test_the_shape_of_300_million_has_as_many_parameters():
    from mgen.models.rnabert import RNABert, RNABertConfig

    with torch.device("meta"):
        network = RNABert(RNABertConfig.from_json(gpu.NUCLEOTIDES_300M))
    assert abs(sum(p.numel() for p in network.parameters()) / 3e8 - 1) < 0.02
