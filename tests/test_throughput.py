"""FLOPs against torch's own counter, and what is said about speed."""

import json

import pytest
import tiny
import torch
from test_fm4bio import EXPERTS, SMALL, write
from tiny import fresh_process  # noqa: F401
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mgen.backbones import load_backbone
from mgen.engine import throughput
from mgen.engine.throughput import Work, flops_per_token, speed


class OneBackbone(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.backbone, self.backbones = network, {"backbone": network}


@pytest.fixture
def network():
    return load_backbone("aido_dna_debug", random_weights=True)


@pytest.mark.parametrize("training", [False, True])
def test_flops_of_rows_without_padding_are_those_that_torch_counts(training, network):
    work, batch = Work(OneBackbone(network)), network.tokenize(["ACGTACGT", "TTTTGGGG"])
    # The other kernels are not counted on a CPU, or count what they make anew.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.set_grad_enabled(training):
            hidden = network(batch)
        if training:
            hidden.sum().backward()
    assert work.taken() == counter.get_total_flops()
    assert work.taken() == 0


def test_padding_counts_nothing_and_attention_the_squares_of_lengths(network):
    work, forward = Work(OneBackbone(network)), flops_per_token(network)[0]
    batch = network.tokenize(["A" * 6, "A" * 28])  # 8 and 30 tokens
    with torch.no_grad():
        network(batch)
    pairs = 4 * network.width * network.num_layers
    assert work.taken() == 38 * forward + pairs * (8**2 + 30**2)


def test_frozen_weights_have_no_backward_pass_and_lora_half_of_it(network):
    forward, backward = flops_per_token(network)
    assert backward == 2 * forward
    network.requires_grad_(False)
    assert flops_per_token(network) == (forward, 0)
    lora = load_backbone("aido_dna_debug", random_weights=True, lora_rank=2)
    forward, backward = flops_per_token(lora)
    small = 2 * 2 * lora.num_layers * 2 * 2 * lora.width  # A and B beside query and value
    assert backward == forward + small


def test_a_token_counts_the_experts_it_goes_through(tmp_path):
    network = load_backbone(str(write(tmp_path, SMALL | EXPERTS)))
    attention, router = 4 * 16 * 16, 16 * 4
    expert = 16 * 2 * 12 + 12 * 16
    assert flops_per_token(network)[0] == 2 * 2 * (attention + router + 2 * expert)


def test_mfu_is_the_share_of_the_peak_in_half_precision_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2_500_000_000)
    gpu = torch.device("cuda")
    assert speed(989.4e12, 2.0, gpu, half=True) == {
        "tflops": 494.7,
        "mfu": 0.5,
        "peak_memory_gb": 2.5,
    }
    assert "mfu" not in speed(1e12, 1.0, gpu, half=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce 9800")
    assert "mfu" not in speed(1e12, 1.0, gpu, half=True)


def test_names_of_devices_find_their_own_peak():
    names = {"NVIDIA H100 PCIe": 756.0, "NVIDIA L40S": 362.05, "NVIDIA L4": 121.0}
    for name, peak in names.items():
        assert next(v for k, v in throughput.PEAK_TFLOPS.items() if k in name) == peak


def test_a_run_logs_its_flops(tmp_path):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    file = tmp_path / "runs" / "sequence_regression" / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    times = [row["time"] for row in rows if row["split"] == "train"]
    assert all(time["tflops"] > 0 and time["peak_memory_gb"] > 0.05 for time in times)
