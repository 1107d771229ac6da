"""accelerate launch with our settings starts what was asked for; what does not is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from mgen.config import InputError
from mgen.engine import processes

FOLDER = ROOT / "recipes" / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
LAUNCHED = {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_MIXED_PRECISION": "no"}
BY_TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_settings_are_valid_for_the_installed_accelerate(file):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(file)).num_processes >= 1
    first = file.read_text().splitlines()[0]
    assert first.startswith(
        f"# accelerate launch --config_file recipes/configs/accelerate/{file.name}"
    )


@pytest.mark.parametrize(
    ("name", "nodes", "here"),
    [("gpu8_ddp", "1", "8"), ("nodes2_ddp", "2", "8"), ("cpu2", "1", "2")],
)
def test_settings_for_several_lead_to_the_launcher_that_starts_several(
    name, nodes, here, monkeypatch
):
    """What accelerate launch hands to torchrun: machines, and processes on each."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = []
    monkeypatch.setattr(launch, "multi_gpu_launcher", given.append)
    file = str(FOLDER / f"{name}.yaml")
    parser = launch.launch_command_parser()
    launch.launch_command(parser.parse_args(["--config_file", file, "recipe.py"]))
    (args,) = given
    prepare_multi_gpu_env(args)
    assert (str(getattr(args, "nnodes", "1")), args.nproc_per_node) == (nodes, here)


@pytest.fixture
def parent(monkeypatch):
    """The environment that the launcher itself was started with."""
    import psutil

    given: dict[str, str] = {}
    monkeypatch.setattr(psutil.Process, "environ", lambda self: given)
    return given


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 1),
        (LAUNCHED, 1),
        ({"SLURM_NTASKS": "4", "MASTER_ADDR": "node1"}, 1),
        (BY_TORCHRUN, 2),
        (LAUNCHED | BY_TORCHRUN | {"MASTER_ADDR": "node1"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
    ],
)
def test_the_number_of_processes_is_read_from_the_environment(environment, count, parent):
    assert processes.asked(environment) == count


def test_one_process_of_several_that_were_asked_for_is_refused(parent):
    with pytest.raises(InputError, match="asked for several processes and has started one"):
        processes.check_launch(LAUNCHED | {"MASTER_ADDR": "127.0.0.1"})


def test_a_meeting_point_that_the_user_has_set_is_no_request_for_several(parent):
    parent["MASTER_ADDR"] = "node1"
    processes.check_launch(LAUNCHED | {"MASTER_ADDR": "node1"})


def gpus(monkeypatch, count):
    device = torch.device("cuda") if count else None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)


@pytest.fixture
def loud():
    yield
    processes.console.quiet = processes.errors.quiet = False


def test_more_processes_than_gpus_are_refused(monkeypatch, loud):
    gpus(monkeypatch, 1)
    with pytest.raises(InputError, match="2 processes were started on this machine.* 1 GPU:"):
        processes.check_launch(BY_TORCHRUN)
    gpus(monkeypatch, 2)
    processes.check_launch(BY_TORCHRUN)


def test_processes_for_gpus_where_there_are_none_are_refused(monkeypatch, loud):
    gpus(monkeypatch, 0)
    with pytest.raises(InputError, match="2 processes on GPUs, and none is to be seen"):
        processes.check_launch(LAUNCHED | BY_TORCHRUN)
    processes.check_launch(BY_TORCHRUN)  # torchrun was asked for processes, not for GPUs
    processes.check_launch(LAUNCHED | BY_TORCHRUN | {"CUDA_VISIBLE_DEVICES": "-1,-1"})


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    import accelerate

    class Alone:
        is_main_process, num_processes, device = True, 1, torch.device("cpu")

        def __init__(self, **options) -> None: ...

    monkeypatch.setattr(accelerate, "Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="started 2 processes, of which this one finds 1"):
        processes.join("no")


# --------------------------------------------------------------------------- from the shell


def launch(folder, *words: str) -> subprocess.CompletedProcess:
    """accelerate launch in `folder`, a recipe of 20 steps for what starts with no dash."""
    recipe = [str(ROOT / "recipes" / "sequence_regression.py"), "--train.max-steps", "20"]
    recipe += ["--train.batch-size", "8", "--backbone.dropout", "0", "--train.workers", "0"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *words[:-1]]
        + [*recipe, *words[-1].split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_cpu2_starts_two_processes_that_reach_the_weights_of_one(tmp_path):
    for config, flags in (("cpu2", "--name a"), ("gpu1", "--name b --train.accumulate 2")):
        done = launch(tmp_path, "--config_file", str(FOLDER / f"{config}.yaml"), flags)
        assert done.returncode == 0, done.stderr
        assert ("2 processes, this one on cpu" in done.stdout) == (config == "cpu2")
    runs = tmp_path / "runs" / "sequence_regression"
    file = "checkpoints/last/model.safetensors"
    two, one = (load_file(runs / name / file) for name in "ab")
    assert two.keys() == one.keys()
    assert all(np.allclose(two[name], one[name], atol=1e-5) for name in two)


@pytest.mark.slow
def test_accelerate_that_starts_one_process_of_two_is_refused_before_anything(tmp_path):
    done = launch(tmp_path, "--cpu", "--num_processes", "2", "--name a")
    assert done.returncode != 0
    assert "asked for several processes and has started one" in done.stderr
    assert "returned non-zero exit status 2" in done.stderr
    assert not (tmp_path / "runs").exists()
