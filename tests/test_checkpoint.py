"""Checkpoints and the files of a run: whole or not at all, whatever fails when."""

import builtins
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from tiny import fresh_process  # noqa: F401

from mgen import checkpoint
from mgen.config import InputError


def save(folder: Path, step: int, value: float = 0.0) -> Path:
    tensors = {"model": {"w": torch.full((3, 2), value)}, "random": {"cpu": torch.arange(4)}}
    return checkpoint.save(folder, step, tensors, {"state": {"step": step, "best": step}})


def value_of(path: Path) -> float:
    return checkpoint.load(path)[0]["model"]["w"][0, 0].item()


def test_what_was_saved_is_loaded(tmp_path):
    tensors, state = checkpoint.load(save(tmp_path, 5, 1.5))
    assert torch.equal(tensors["model"]["w"], torch.full((3, 2), 1.5))
    assert torch.equal(tensors["random"]["cpu"], torch.arange(4))
    assert state == {"state": {"step": 5, "best": 5}}


def test_tensors_that_share_memory_are_saved_each_in_full(tmp_path):
    whole = torch.arange(6.0)
    tensors = {"model": {"a": whole, "b": whole[1:3], "c": whole.view(2, 3).T}}
    loaded, _ = checkpoint.load(checkpoint.save(tmp_path, 1, tensors, {}))
    assert tiny.equal(loaded["model"], tensors["model"])


# --------------------------------------------------------------------------- kills while saving

OPERATIONS = [
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (os, "mkdir"),
    (os, "rmdir"),
    (os, "unlink"),
    (builtins, "open"),
    (Path, "write_text"),
    (Path, "open"),
    (shutil, "rmtree"),
]


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def killed_at(monkeypatch, instant: int, work) -> bool:
    """Do `work` but stop before or after a file operation of it; False if it has fewer."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count > instant:  # the dead do nothing more, in no `finally` either
            raise Killed

    with monkeypatch.context() as patch:
        for place, name in OPERATIONS:
            original = getattr(place, name)

            def counted(*args, original=original, **options):
                tick()
                result = original(*args, **options)
                tick()  # an opened file is empty, and nothing is in it yet
                return result

            patch.setattr(place, name, counted)
        try:
            work()
        except Killed:
            return True
    return False


def instants(monkeypatch, tmp_path, prepare, work):
    """A folder for each instant at which `work` can be killed, after it was."""
    for instant in range(1000):
        folder = tmp_path / str(instant)
        folder.mkdir()
        prepare(folder)
        if not killed_at(monkeypatch, instant, lambda folder=folder: work(folder)):
            assert instant > 10
            return
        yield folder
    raise AssertionError("no end")


def test_killed_at_any_file_operation_the_one_before_is_there(monkeypatch, tmp_path):
    seen = set()
    for folder in instants(
        monkeypatch, tmp_path, lambda f: save(f, 1, 1.0), lambda f: save(f, 2, 2.0)
    ):
        assert checkpoint.recover(folder) == []
        found = checkpoint.newest(folder)
        seen.add((checkpoint.step_of(found), value_of(found)))
        assert not list(folder.glob(".step-*"))
    assert seen == {(1, 1.0), (2, 2.0)}


def test_killed_while_a_step_is_saved_again_one_version_of_it_is_there(monkeypatch, tmp_path):
    seen = set()
    for folder in instants(
        monkeypatch, tmp_path, lambda f: save(f, 1, 1.0), lambda f: save(f, 1, 2.0)
    ):
        assert checkpoint.recover(folder) == []
        found = checkpoint.newest(folder)
        seen.add((checkpoint.step_of(found), value_of(found)))
    assert seen == {(1, 1.0), (1, 2.0)}


def test_a_link_points_to_the_old_or_the_new_step_at_any_instant(monkeypatch, tmp_path):
    def prepare(folder):
        for step in (1, 2):
            save(folder, step)
        checkpoint.link(folder, "best", 1)

    for name in ("unlink", "symlink_to"):
        prepare(folder := tmp_path / name)
        with monkeypatch.context() as patch:

            def stop(*args, **options):
                raise Killed

            patch.setattr(Path, name, stop)
            with pytest.raises(Killed):
                checkpoint.link(folder, "best", 2)
        assert (folder / "best").resolve().name == "step-1"
        checkpoint.link(folder, "best", 2)
        assert (folder / "best").resolve().name == "step-2"


def test_a_text_file_is_the_old_or_the_new_one_at_any_instant(monkeypatch, tmp_path):
    def again(folder):
        for content in ("2", "3", "4"):
            checkpoint.write_text(folder / "a.json", content)

    for folder in instants(
        monkeypatch, tmp_path, lambda f: checkpoint.write_text(f / "a.json", "1"), again
    ):
        assert (folder / "a.json").read_text() in ("1", "2", "3", "4")


# --------------------------------------------------------------------------- damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "truncated weights": (lambda p: cut(p / "model.safetensors"), "model.safetensors has .* bytes"),
    "changed weights": (lambda p: flip(p / "model.safetensors"), "model.safetensors has changed"),
    "changed state": (lambda p: flip(p / "state.json"), "state.json has changed"),
    "missing file": (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    "missing manifest": (lambda p: (p / "complete.json").unlink(), "complete.json is missing"),
    "truncated manifest": (lambda p: cut(p / "complete.json"), "complete.json is damaged"),
    "empty manifest": (lambda p: (p / "complete.json").write_text(""), "complete.json is damaged"),
    "odd manifest": (lambda p: (p / "complete.json").write_text("[1]"), "complete.json is damaged"),
    "empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), "complete.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(name, tmp_path):
    damage, says = DAMAGES[name]
    save(tmp_path, 9, 1.0)
    damage(newest := save(tmp_path, 10, 2.0))
    with pytest.raises(InputError, match=says):
        checkpoint.load(newest)
    assert value_of(checkpoint.newest(tmp_path)) == 1.0
    (said,) = checkpoint.recover(tmp_path)
    assert said.startswith("step-10 is not used, now damaged-step-10: ")
    assert value_of(checkpoint.newest(tmp_path)) == 1.0


def test_what_lies_behind_a_damaged_checkpoint_outlives_the_next_ones(tmp_path):
    save(tmp_path, 1)
    flip(save(tmp_path, 3) / "state.json")
    checkpoint.recover(tmp_path)
    save(tmp_path, 2)
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-1", "step-2"]


def test_without_any_good_checkpoint_there_is_no_newest(tmp_path):
    flip(save(tmp_path, 3) / "state.json")
    assert len(checkpoint.recover(tmp_path)) == 1
    assert checkpoint.newest(tmp_path) is None


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path).name == "step-100"


def test_a_run_says_that_its_newest_checkpoint_is_damaged_and_goes_on(tmp_path, capsys):
    cfg = tiny.settings(tmp_path, save_every=2, keep=3)
    whole = tiny.fit(cfg, tmp_path / "whole")
    whole.run()
    tiny.fit(cfg, tmp_path / "run").run()
    cut(tmp_path / "run" / "checkpoints" / "step-12" / "model.safetensors")
    again = tiny.fit(cfg, tmp_path / "run")
    again.restore()
    assert again.state.step == 10
    assert "step-12 is not used" in capsys.readouterr().out
    again.run()
    assert tiny.equal(tiny.weights(again.task), tiny.weights(whole.task))


# --------------------------------------------------------------------------- a run's weights


def linear(width: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Linear(width, 1))


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    small, large = linear(), linear(3)
    path = checkpoint.save(
        tmp_path,
        1,
        {"model": checkpoint.trained(small)},
        {"backbone": {"frozen_parameters_sha256": ""}},
    )
    with pytest.raises(InputError, match="does not fit these settings, first at .*0.weight"):
        checkpoint.restore(large, *checkpoint.load(path), path)


def test_a_missing_weight_is_refused(tmp_path):
    saved = {"backbone": {"frozen_parameters_sha256": ""}}
    tensors = {"model": checkpoint.trained(linear())}
    del tensors["model"]["1.bias"]
    with pytest.raises(InputError, match="1.bias"):
        checkpoint.restore(linear(), tensors, saved, tmp_path)


def test_the_fingerprint_sees_frozen_weights_and_only_those():
    model = linear()
    model[0].requires_grad_(False)
    before = checkpoint.fingerprint(model)
    with torch.no_grad():
        model[1].weight += 1
    assert checkpoint.fingerprint(model) == before
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    assert checkpoint.fingerprint(model) != before


def test_the_optimiser_goes_on_as_if_never_stopped():
    models = linear(), linear()
    batch = torch.ones(4, 2)

    def step(model, optimiser):
        model(batch).sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    optimisers = [torch.optim.AdamW(model.parameters(), fused=True) for model in models]
    for _ in range(3):
        step(models[0], optimisers[0])
    named = [{p: n for n, p in model.named_parameters()} for model in models]
    tensors = checkpoint.optimiser_tensors(optimisers[0], named[0])
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # as read from a file
    models[1].load_state_dict(models[0].state_dict())
    checkpoint.restore_optimiser(optimisers[1], named[1], tensors)
    for model, optimiser in zip(models, optimisers, strict=True):
        step(model, optimiser)
    assert tiny.equal(tiny.weights(models[0]), tiny.weights(models[1]))


# --------------------------------------------------------------------------- files of a run


def rows(*pairs):
    return "".join(json.dumps({"step": step, "split": split}) + "\n" for step, split in pairs)


@pytest.mark.parametrize("rest", ["", '{"step": 4, "split": "tr', '{"step": 4, "spl\x00'])
def test_metrics_after_the_restored_step_are_cut(rest, tmp_path):
    file = tmp_path / "metrics.jsonl"
    kept = rows((2, "train"), (2, "valid"), (4, "train"))
    file.write_text(kept + rows((4, "valid"), (6, "train")) + rest)
    checkpoint.cut_metrics(file, {"train": 4, "valid": 2})
    assert file.read_text() == kept


def test_a_line_of_the_test_is_cut_for_the_test_will_be_repeated(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(rows((4, "train"), (4, "valid"), (2, "test")))
    checkpoint.cut_metrics(file, {"train": 4, "valid": 4})
    assert file.read_text() == rows((4, "train"), (4, "valid"))


def test_numbers_that_json_lacks_become_null(tmp_path):
    checkpoint.write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": None}


def is_refused_elsewhere(folder) -> bool:
    """Whether another process that wants to write to a run is told that it cannot."""
    if not (other := os.fork()):
        try:
            checkpoint.lock(folder)
            os._exit(0)
        except InputError as error:
            os._exit(1 if "another process is writing to this run" in str(error) else 2)
    return {0: False, 1: True}[os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])]


def test_a_run_is_written_by_one_process_at_a_time(tmp_path):
    held = checkpoint.lock(tmp_path)
    assert is_refused_elsewhere(tmp_path)
    held.close()
    assert not is_refused_elsewhere(tmp_path)


def test_workers_that_outlive_their_killed_parent_do_not_hold_the_run(tmp_path):
    held = checkpoint.lock(tmp_path)
    read, write = os.pipe()
    if not (worker := os.fork()):  # a loader's worker process
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    held.close()  # as the end of the parent does
    os.close(read)
    assert not is_refused_elsewhere(tmp_path)
    os.close(write)
    os.waitpid(worker, 0)


def test_settings_that_differ_are_named_with_both_values():
    old = {"a": 1, "b": {"c": [1], "d": 2}}
    new = {"a": 1, "b": {"c": [2], "d": 2}, "e": ""}
    assert list(checkpoint.differences(old, new)) == ["b.c: [1] -> [2]", "e: None -> ''"]
