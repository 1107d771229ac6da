"""What a run says before it starts, and the trace of its steps."""

import gzip
import json

import tiny
import torch
from tiny import fresh_process  # noqa: F401

from mgen.engine.estimate import Kept, duration, memory
from mgen.report import size


def estimated(tmp_path, capsys, *flags) -> dict[str, str]:
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--estimate", *flags) == 0
    lines = capsys.readouterr().out.split("estimate ")[1].splitlines()
    return dict(line.split("  ", 1) for line in map(str.strip, lines[1:]) if line)


def test_an_estimate_counts_each_part_of_memory_and_leaves_nothing_behind(tmp_path, capsys):
    found = {key: value.strip() for key, value in estimated(tmp_path, capsys).items()}
    count, trained = (int(word.replace(",", "")) for word in found["parameters"].split()[:4:3])
    assert found["weights"] == size(4 * count)
    assert found["gradients"] == size(4 * trained)
    # AdamW: two moments of each number, and a step count of each tensor.
    tensors = sum(p.requires_grad for p in tiny.prepared(tiny.settings(tmp_path))[0].parameters())
    assert found["optimiser"] == size(8 * trained + 4 * tensors)
    assert found["epoch"].endswith("6 steps") and found["run"].endswith("12 steps")
    assert not (tmp_path / "runs").exists()


def test_an_estimate_of_lora_has_small_gradients(tmp_path, capsys):
    found = estimated(tmp_path, capsys, "--backbone.lora-rank", "1")
    assert found["gradients"].strip().endswith(" kB")
    assert float(found["gradients"].split()[0]) < float(found["weights"].split()[0]) / 4


def test_an_estimate_is_of_training_alone(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    run = str(tmp_path / "runs" / "sequence_regression" / "a")
    assert tiny.command(tmp_path, "predict", "--run", run, "--estimate") == 2
    assert "--estimate is about training steps" in capsys.readouterr().err


def test_what_autograd_keeps_is_counted_once_without_weights():
    linear = torch.nn.Linear(3, 5)
    x = torch.randn(7, 3, requires_grad=True)
    kept = Kept(linear)
    with kept:
        y = linear(x)  # keeps x; its weights are there anyway
        z = y.tanh()  # keeps its result
        _ = z * z  # the same tensor twice
    assert kept.size == 4 * (7 * 3 + 7 * 5)


def test_sizes_and_times_are_said_in_units_of_their_own():
    assert [size(n) for n in (0, 999, 1000, 2.5e9, 3e12)] == [
        *("0 bytes", "999 bytes", "1 kB", "2.5 GB", "3 TB")
    ]
    assert [duration(n) for n in (1.234, 90, 7200)] == ["1.23 s", "1.5 min", "2 h"]
    assert 1e8 < memory(torch.device("cpu")) < 1e14


def test_a_profile_holds_the_operators_of_training_and_of_prediction(tmp_path):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a", "--profile") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    flags = ("--run", str(run), "--profile", "--split", "train")
    assert tiny.command(tmp_path, "predict", *flags) == 0
    for verb, operator in (("fit", "aten::mm"), ("predict", "aten::addmm")):
        with gzip.open(run / "profile" / f"{verb}.json.gz") as stream:
            names = [event.get("name") for event in json.load(stream)["traceEvents"]]
        assert operator in names and "ProfilerStep#3" in names and "ProfilerStep#0" not in names
        assert operator in (run / "profile" / f"{verb}.txt").read_text()


def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a", "--profile", "--train.max-steps", "1") == 0
    assert "--profile: too few steps to trace" in capsys.readouterr().out
