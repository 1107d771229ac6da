"""Models in pieces: two processes over gloo cut, train and save them, one and three load them.

pytest tests/test_sharding.py
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import sharded
import test_fm4bio
import test_huggingface
import tiny
import torch
from conftest import ROOT
from safetensors.torch import load_file
from tiny import fresh_process  # noqa: F401

from mgen import checkpoint
from mgen.config import InputError
from mgen.engine import sharding
from mgen.engine.estimate import estimate
from mgen.infer import infer

# Where the blocks lie in each network, read off its published parameter names.
BLOCKS = {
    "rnabert": "backbone.model.bert.encoder.layer.{}",
    "dense": "backbone.model.bert.encoder.layer.{}",
    "experts": "backbone.model.bert.encoder.layer.{}",
    "esm": "backbone.model.esm.encoder.layer.{}",
    "transformers": "backbone.model.model.layers.{}",
    "lora": "backbone.model.bert.encoder.layer.{}",
}

ESM = test_huggingface.SIZES | {"model_type": "esm", "position_embedding_type": "rotary"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two and then three processes have made of each kind."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny.table(folder)
    test_fm4bio.write(folder / "experts", test_fm4bio.SMALL | test_fm4bio.EXPERTS)
    for kind in ("esm", "modernbert"):
        (folder / kind).mkdir()
    (folder / "esm" / "config.json").write_text(json.dumps(ESM))
    torch.manual_seed(0)
    modernbert = test_huggingface.modernbert(folder / "modernbert")
    modernbert.save_pretrained(folder / "modernbert")
    program = [sys.executable, str(ROOT / "tests" / "sharded.py"), str(folder)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def last(folder, kind: str):
    return (folder / kind / "two" / "checkpoints" / "last").resolve()


def joined(checkpoint_folder, group: str, world: int) -> dict[str, torch.Tensor]:
    """What the pieces hold, put together without the code under test."""
    files = [
        load_file(checkpoint_folder / f"{group}.{rank + 1:05}-of-{world:05}.safetensors")
        for rank in range(world)
    ]
    names = {name for file in files for name in file}
    return {
        name: torch.cat(held) if len(held := [f[name] for f in files if name in f]) > 1 else held[0]
        for name in names
    }


@pytest.fixture(scope="module")
def alone(folder):
    """`alone(kind)`: the run of one process with two batches a step, made once."""
    known = {}

    def make(kind: str):
        if kind not in known:
            cfg = sharded.settings(folder, kind, processes=1)
            cfg = tiny.with_backbone(cfg, dropout=0.0) if kind == "rnabert" else cfg
            known[kind] = tiny.fit(cfg, folder / kind / "one")
            known[kind].run()
        return known[kind]

    return make


def test_the_units_to_shard_are_the_blocks_of_each_backbone(tmp_path):
    task, _ = tiny.prepared(tiny.settings(tmp_path))
    names = {module: name for name, module in task.named_modules()}
    found = [names[unit] for unit in sharding.units(task)]
    assert found == [BLOCKS["rnabert"].format(i) for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sharded.KINDS)
def test_the_units_are_the_blocks_of_the_backbone_and_the_rest(kind, folder):
    found = json.loads((folder / "facts.json").read_text())[kind]
    routers = [name for name in found if name.endswith(".router")]
    assert len(routers) == 2 * (kind == "experts")  # they stay in full precision
    blocks = [BLOCKS[kind].format(i) for i in range(2)]
    assert sorted({*found} - {*routers}) == sorted(["", *blocks])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in sharded.KINDS if kind != "rnabert"])
def test_a_step_of_a_sharded_model_is_that_of_a_whole_one(kind, folder, alone):
    one = alone(kind)
    ours = load_file(folder / kind / "wholes.safetensors")
    theirs = checkpoint.optimiser_tensors(one.optimiser.optimizer, one.names)
    for name, value in theirs.items():  # the gradient's mean and square after a step
        assert torch.allclose(ours[f"optimizer/{name}"], value, atol=1e-6), name
    for name, parameter in one.task.named_parameters():
        if parameter.requires_grad:
            # AdamW's first step is of the size of the rate however small the gradient is.
            clear = theirs[f"{name}/exp_avg"].abs() > 1e-6
            assert torch.allclose(ours[name][clear], parameter[clear], atol=1e-5), name
        else:
            assert torch.equal(ours[name], parameter), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in sharded.KINDS if kind != "rnabert"])
def test_a_sharded_run_logs_the_losses_and_metrics_of_a_whole_one(kind, folder, alone):
    alone(kind)
    runs = (folder / kind / run / "metrics.jsonl" for run in ("two", "one"))
    ours, theirs = ([json.loads(line) for line in run.read_text().splitlines()] for run in runs)
    assert [(row["step"], row["split"]) for row in ours] == [(1, "train"), (1, "valid")]
    for mine, other in zip(ours, theirs, strict=True):
        for name in {"loss", "grad_norm", "mae", "mse"} & other.keys():
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", sharded.KINDS)
def test_each_process_saves_its_piece_and_one_process_loads_the_whole(kind, folder):
    path, wholes = last(folder, kind), load_file(folder / kind / "wholes.safetensors")
    assert not (path / "model.safetensors").exists()
    tensors, saved = checkpoint.load(path)
    cfg = sharded.settings(folder, kind, processes=1)
    task, _ = tiny.prepared(cfg)
    checkpoint.restore(task, tensors, saved, path)
    for name, value in task.state_dict().items():
        assert torch.equal(value, wholes[name]), name
    held = {name: value for name, value in wholes.items() if name.startswith("optimizer/")}
    assert {f"optimizer/{name}" for name in tensors["optimizer"]} == held.keys()
    for name, value in joined(path, "optimizer", 2).items():
        assert torch.equal(tensors["optimizer"][name], value), name
        assert torch.equal(held[f"optimizer/{name}"], value), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rnabert", "lora"])
def test_three_processes_load_what_two_have_saved_bit_for_bit(kind, folder):
    ours, theirs = (load_file(folder / kind / f"{n}.safetensors") for n in ("three", "wholes"))
    assert tiny.equal(ours, theirs)


@pytest.mark.slow
def test_a_sharded_run_goes_on_bit_for_bit(folder):
    for group in ("model", "optimizer"):
        paths = (folder / "rnabert" / run / "checkpoints" / "step-2" for run in ("two", "again"))
        assert tiny.equal(*(joined(path, group, 2) for path in paths))


@pytest.mark.slow
def test_as_accelerate_launches_it_a_sharded_run_is_the_same(folder):
    runs = (folder / "rnabert" / run / "checkpoints" / "step-2" for run in ("two", "launched"))
    assert tiny.equal(*(joined(path, "model", 2) for path in runs))


@pytest.mark.slow
def test_a_sharded_model_predicts_each_row_once_though_a_process_has_none(folder):
    path = last(folder, "rnabert")
    task, rows = tiny.prepared(sharded.settings(folder, "rnabert", processes=1))
    tensors, saved = checkpoint.load(path)
    checkpoint.restore(task, tensors, saved, path)
    from accelerate import Accelerator

    values, (predicted, *_) = infer(
        task, rows, "test", task.lengths, task.cfg.train, Accelerator(), metrics=task.metrics()
    )
    file = pq.read_table(folder / "predictions" / "test.parquet")
    assert file["row"].to_pylist() == list(range(33, 40))
    assert torch.allclose(torch.tensor(file["predicted_label"].to_numpy()), predicted.squeeze(1))
    ours = json.loads((folder / "predictions" / "test.json").read_text())
    assert ours == pytest.approx(values, rel=1e-4)


@pytest.mark.slow
def test_an_estimate_of_a_sharded_run_counts_the_piece_of_one_process(folder, alone, tmp_path):
    def kilobytes(rows, part: str) -> float:
        number, unit = rows[part].split()[:2]
        return float(number) * {"kB": 1, "MB": 1000}[unit]

    def per_token(rows) -> float:
        return kilobytes(rows, "activations") / int(rows["activations"].split()[-2])

    cfg = sharded.settings(folder, "dense", processes=1)
    whole = {row["estimate"]: row["value"] for row in estimate(tiny.fit(cfg, tmp_path)).rows}
    ours = json.loads((folder / "facts.json").read_text())["estimate"]
    assert ours["parameters"] == whole["parameters"]
    assert kilobytes(ours, "weights") < 0.7 * kilobytes(whole, "weights")  # with whole buffers
    for part in ("gradients", "optimiser"):
        assert kilobytes(ours, part) == pytest.approx(kilobytes(whole, part) / 2, rel=0.05), part
    assert per_token(ours) == pytest.approx(per_token(whole), rel=0.1)  # weights are not among them


@pytest.mark.slow
def test_a_missing_piece_is_said_and_the_checkpoint_before_is_used(folder, tmp_path):
    copied = tmp_path / "checkpoints"
    shutil.copytree(folder / "rnabert" / "two" / "checkpoints", copied)
    (copied / "step-2" / "model.00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model.00002-of-00002.safetensors is missing"):
        checkpoint.load(copied / "step-2")
    (said,) = checkpoint.recover(copied)
    assert "model.00002-of-00002.safetensors is missing" in said
    assert checkpoint.newest(copied).name == "step-1"


@pytest.mark.parametrize("call", [0, 1])
def test_a_process_that_dies_while_all_save_leaves_the_checkpoint_before(call, tmp_path):
    answers = [[None, None], [{}, {}]]  # of two processes: the folder is there, what they wrote

    def gather(own):
        if len(answers) == 2 - call:
            raise RuntimeError("another process has died")
        return answers.pop(0)

    tensors = {"model": {"weight": torch.ones(3)}}
    checkpoint.save(tmp_path, 1, tensors, {})
    with pytest.raises(RuntimeError, match="has died"):
        checkpoint.save(tmp_path, 2, tensors, {}, gather=gather)
    assert checkpoint.recover(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


# --------------------------------------------------------------------------- refusals


def test_fsdp_on_a_cpu_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "fit") == 2
    assert "Accelerate would not shard" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def obstacle(folder, task_type=tiny.sequence_regression.SequenceRegression, cfg=None, **options):
    cfg = cfg or tiny.settings(folder)
    task, _ = tiny.prepared(tiny.with_backbone(cfg, **options), task_type)
    return sharding.obstacle(task)


@pytest.mark.parametrize(
    "options, says",
    [
        ({}, ""),
        ({"dtype": "bfloat16", "lora_rank": 2}, ""),
        ({"dtype": "bfloat16", "frozen": True}, ""),
        ({"dtype": "bfloat16"}, "weights that train are in bfloat16 and float32"),
        ({"max_length": 8, "truncate": "window"}, "as often as a batch needs windows"),
    ],
    ids=str,
)
def test_what_cannot_be_sharded_is_refused(options, says, tmp_path):
    found = obstacle(tmp_path, **options)
    assert says in found if says else not found


def test_a_recipe_that_starts_from_all_rows_is_not_sharded(tmp_path):
    import ridge_regression

    cfg = ridge_regression.Config()
    cfg = dataclasses.replace(cfg, data=tiny.table(tmp_path))
    assert "all training rows" in obstacle(tmp_path, ridge_regression.RidgeRegression, cfg)


# --------------------------------------------------------------------------- on GPUs


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [1, 2])
def test_accelerate_shards_on_gpus(devices, tmp_path):
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA devices")
    tiny.table(tmp_path)
    flags = ["--data.path", "rows.tsv", "--data.split-col", "part", "--train.max-steps", "4"]
    flags += ["--train.batch-size", "4", "--train.lr", "0.001", "--train.precision", "no"]
    recipe = str(ROOT / "recipes" / "sequence_regression.py")
    config = ROOT / "recipes" / "configs" / "accelerate" / "gpu8_fsdp2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if devices == 1:  # Accelerate's launcher does not shard one process
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += ["--nproc_per_node", "1"]
    else:
        launch += ["--num_processes", str(devices)]
    environment = os.environ | {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    for name, program, given in (
        ("sharded", launch, environment),
        ("whole", [sys.executable], dict(os.environ)),
    ):
        accumulate = ["--train.accumulate", str(devices if name == "whole" else 1)]
        command = [*program, recipe, *flags, *accumulate, "--name", name]
        ended = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = (tmp_path / "runs" / "sequence_regression" / name for name in ("sharded", "whole"))
    ours, theirs = (checkpoint.load(run / "checkpoints" / "last")[0]["model"] for run in runs)
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=1e-4), name
    assert [*(tmp_path.rglob(f"model.00001-of-0000{devices}.safetensors"))]
