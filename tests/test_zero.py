"""DeepSpeed's ZeRO stages 1 and 2: two processes over gloo do what plain DDP does.

DS_ACCELERATOR=cpu pytest -m slow tests/test_zero.py    # needs pip install deepspeed, a compiler
"""

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_crash import assert_equal_runs
from test_processes import FLAGS, rows
from tiny import fresh_process  # noqa: F401

from mgen.config import InputError
from mgen.engine import zero

LAUNCH = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
TWO = {"ACCELERATE_USE_DEEPSPEED": "true", "WORLD_SIZE": "2"}


# --------------------------------------------------------------------------- refusals


@pytest.fixture
def installed(monkeypatch):
    """As if DeepSpeed were installed, whether it is or not."""
    spec = importlib.machinery.ModuleSpec("deepspeed", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def asked(folder, environment=(), options=(), **train) -> int:
    """The stage of a run of two processes."""
    cfg = tiny.with_backbone(tiny.settings(folder, **train), **dict(options))
    task = tiny.sequence_regression.SequenceRegression(cfg)
    return zero.stage(TWO | dict(environment), task, cfg.train)


def test_the_launcher_says_the_stage_and_accelerate_does_not_see_it(tmp_path, installed):
    assert asked(tmp_path) == 2
    assert asked(tmp_path, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}) == 1
    assert asked(tmp_path, {"ACCELERATE_USE_DEEPSPEED": "false"}) == 0
    environment = dict(TWO)
    task = tiny.sequence_regression.SequenceRegression(tiny.settings(tmp_path))
    zero.stage(environment, task, task.cfg.train)
    assert "ACCELERATE_USE_DEEPSPEED" not in environment


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0", "there are 1 and 2"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "gpu8_fsdp2.yaml"),
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "mine.json", "deepspeed_config_file"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offload_optimizer_device: none"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offload_param_device: none"),
        ("ACCELERATE_GRADIENT_CLIPPING", "0.5", "--train.clip"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--train.accumulate"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--train.precision for no"),
        ("WORLD_SIZE", "1", "nothing to share"),
    ],
)
def test_what_the_launcher_asks_for_and_would_not_get_is_refused(
    name, value, advice, tmp_path, installed
):
    with pytest.raises(InputError, match=advice):
        asked(tmp_path, {name: value}, precision="no")


@pytest.mark.parametrize(
    ("options", "train", "advice"),
    [
        ({"lora_rank": 2}, {}, "--backbone.lora-rank"),
        ({"dtype": "bfloat16"}, {}, "--backbone.dtype"),
        ({}, {"precision": "fp16"}, "fp16"),
        ({}, {"unfreeze": "file.yaml"}, "--train.unfreeze"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(options, train, advice, tmp_path, installed):
    with pytest.raises(InputError, match=advice):
        asked(tmp_path, {}, options, **train)


def test_deepspeed_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "fit") == 2  # of one process
    assert "DeepSpeed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_the_package_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install deepspeed"):
        asked(tmp_path)


# --------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    return tiny.server()


def fit(server, name: str, *flags: str, stage: int = 0) -> int:
    environment = LAUNCH | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)} if stage else {}
    return server.run(name, *FLAGS, *flags, processes=2, environment=environment)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "accumulate"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_steps_are_those_of_whole_copies(stage, accumulate, server):
    names, flags = ("ddp", f"zero{stage}"), ("--train.accumulate", str(accumulate))
    runs = [server.run_folder(f"{name}-{accumulate}") for name in names]
    for run, chosen in zip(runs, (0, stage), strict=True):
        if not run.exists():
            assert fit(server, run.name, *flags, stage=chosen) == 0, server.log.read_text()
    theirs, ours = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in runs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.allclose(ours[name], theirs[name], atol=1e-5), name
    for line, other in zip(rows(runs[1]), rows(runs[0]), strict=True):
        for name in {"loss", "lr", "grad_norm", "mae"} & other.keys():
            assert line[name] == pytest.approx(other[name], abs=1e-4), (line["step"], name)
    # Both moments of what trains, each once, in equal pieces, and as many elements for alignment.
    last = runs[1] / "checkpoints" / "last"
    held = [load_file(last / f"optimizer.0000{i}-of-00002.safetensors") for i in (1, 2)]
    whole = load_file(runs[0] / "checkpoints" / "last" / "optimizer.safetensors")
    count = sum(v.numel() for k, v in whole.items() if k.endswith("exp_avg"))
    pieces = [sum(v.numel() for k, v in file.items() if k.endswith("exp_avg")) for file in held]
    assert pieces[0] == pieces[1] and count <= sum(pieces) < count + 32


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(server):
    flags = ("--train.save-every", "1", "--train.max-steps", "12", "--train.epochs", "10")
    assert fit(server, "whole", *flags, stage=2) == 0, server.log.read_text()
    pids = server.start("cut", *FLAGS, *flags, processes=2, environment=LAUNCH)
    server.wait_for(server.run_folder("cut") / "checkpoints" / "step-3")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.end()
    assert not (server.run_folder("cut") / "results.json").exists()
    assert fit(server, "cut", *flags) == 2  # without DeepSpeed, a new run of that name
    assert fit(server, "cut", *flags, "--resume") == 2
    assert "continue with it" in " ".join(server.log.read_text().split())
    assert fit(server, "cut", *flags, "--resume", stage=2) == 0, server.log.read_text()
    assert "resumed from" in server.log.read_text()
    assert_equal_runs(server.run_folder("cut"), server.run_folder("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_wrong_with_gradients_is_seen_before_the_step(stage, tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [*launch, "--nproc_per_node", "2", __file__, str(stage), str(tmp_path)]
    environment = os.environ | LAUNCH | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for rank in range(2):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        assert facts == {"norm": "nan", "mixed": [False, stage == 2]}


class Fork(torch.nn.Module):
    """Two layers of one size, of which one may be used before the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x, turned: bool):
        layers = (self.second, self.first) if turned else (self.first, self.second)
        return layers[1](layers[0](x).tanh()).sum()


def pair(stage: int, folder: Path) -> None:
    """One of two processes: a gradient that is not finite, then layers in another order."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    task = Fork()
    groups = [{"params": list(task.parameters()), "lr": 0.1, "weight_decay": 0.1}]
    optimiser = zero.Zero(task, groups, (0.9, 0.999), stage)
    loss = task(torch.ones(3, 4), turned=False)
    if rank == 1:
        loss = loss + (task.first.bias * 0).sum().sqrt()  # 0, with a slope of infinity times 0
    assert loss.isfinite()
    optimiser.backward(loss, is_last=True)
    mixed = [optimiser.is_mixed()]
    norm = optimiser.clip(1.0)
    optimiser = zero.Zero(
        task := Fork(), [{"params": list(task.parameters())}], (0.9, 0.999), stage
    )
    optimiser.backward(task(torch.ones(3, 4), turned=rank == 1), is_last=True)
    mixed.append(optimiser.is_mixed())
    (folder / f"{rank}.json").write_text(json.dumps({"norm": str(norm.item()), "mixed": mixed}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    pair(int(sys.argv[1]), Path(sys.argv[2]))
