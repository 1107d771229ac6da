"""Outputs of frozen backbones kept on disk: the same numbers, never stale, whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import ROOT
from safetensors.torch import load_file, save_file
from sequence_classification import SequenceClassification
from sequence_regression import SequenceRegression
from test_crash import assert_equal_runs
from test_fm4bio import EXPERTS, RAG, SMALL, row, write
from test_huggingface import bert
from tiny import fresh_process  # noqa: F401

from mgen.adapters import ADAPTERS, adapter
from mgen.backbones import backbone, load_backbone
from mgen.backbones.cache import clear, sizes
from mgen.backbones.cache_files import RECORD
from mgen.config import InputError

CRASH = pytest.mark.crash
DEBUG = "aido_dna_debug"
SEQUENCES = ["ACGT", "GATTACA", "ACGTTGCAACGG", "T"]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def load(folder, name=DEBUG, **options):
    return plain_of(name, cache=str(folder), **options)


def plain_of(name=DEBUG, **options):
    torch.manual_seed(0)  # the debug model has random weights
    return load_backbone(str(name), **options)


def states(network, sequences=SEQUENCES) -> torch.Tensor:
    with torch.no_grad():
        return network(network.tokenize(sequences))


def counts(network) -> tuple[int, int]:
    """Rows found and computed since the last call."""
    seen = network.cache.counts
    found = seen["found"], seen["computed"]
    seen.clear()
    return found


def files(folder: Path, end: str) -> list[Path]:
    return sorted(folder.glob(f"*/*.{end}"))


def real(network, hidden: torch.Tensor, sequences=SEQUENCES) -> torch.Tensor:
    """Zeros where there is padding, which no cache keeps."""
    mask = network.tokenize(sequences)["attention_mask"]
    return hidden * mask[..., None]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The debug model as a folder, so that its weights can be changed."""
    folder = tmp_path_factory.mktemp("checkpoint")
    plain_of().save(folder)
    return folder


# --------------------------------------------------------------------------- the same numbers


def test_what_is_looked_up_is_what_was_computed_bit_for_bit(folder):
    plain, network = plain_of(), load(folder)
    expected = real(plain, states(plain))
    assert torch.equal(states(network), expected)
    assert counts(network) == (0, 4)
    assert torch.equal(states(network), expected)
    assert torch.equal(states(load(folder)), expected)  # in a process that begins
    assert counts(network) == (4, 0)


def test_a_row_is_found_in_any_batch(folder):
    network = load(folder)
    whole = states(network)
    counts(network)
    assert torch.equal(states(network, SEQUENCES[1:2])[0], whole[1, :9])
    assert torch.equal(states(network, SEQUENCES[2:] + SEQUENCES[:1]), whole[[2, 3, 0]])
    assert counts(network) == (4, 0)


def test_half_known_batches_give_stored_values_for_known_rows(folder):
    network = load(folder)
    alone, plain, encode = states(network, SEQUENCES[:1]), plain_of(), network.encode
    network.encode = lambda batch, collect=None: encode(batch, collect) + 1e-3  # rounds otherwise
    mixed = states(network)
    assert counts(network) == (1, 4)
    assert torch.equal(mixed[0, :6], alone[0])
    assert (mixed - real(plain, states(plain)))[1:].abs().max() == pytest.approx(1e-3, rel=0.01)


def test_equal_rows_of_a_batch_are_kept_once(folder):
    network = load(folder)
    encode = network.encode
    network.encode = lambda batch, collect=None: encode(batch, collect) + torch.randn(3, 1, 1)
    first = states(network, ["ACGT", "ACGT", "GG"])
    assert network.cache.counts["kept"] == 2
    assert torch.equal(states(network, ["ACGT", "ACGT", "GG"]), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_first_pass_sees_the_rounded_numbers_of_later_ones(dtype, folder):
    plain, network = plain_of(), load(folder, cache_dtype=dtype)
    first = states(network)
    assert torch.equal(first, real(plain, states(plain)).to(getattr(torch, dtype)).float())
    assert torch.equal(states(network), first) and counts(network) == (4, 4)
    (data,) = files(folder, "data")
    assert data.stat().st_size == (6 + 9 + 14 + 3) * 64 * 2


def test_numbers_past_the_end_of_float16_are_refused(folder):
    network = load(folder, cache_dtype="float16")
    network.encode = lambda batch, collect=None: torch.full((*batch["input_ids"].shape, 64), 1e5)
    with pytest.raises(InputError, match="float16 ends at 65504, but this backbone gives 1e"):
        states(network)


def rag(tmp_path):
    return write(tmp_path, SMALL | EXPERTS | RAG), [row(), row(msa=None), row(structure=None)]


def transformer(tmp_path):
    torch.manual_seed(0)
    bert(tmp_path).save_pretrained(tmp_path)
    return tmp_path, ["LAGV", "MKKLAV", "S"]


def windows(tmp_path):
    return DEBUG, ["ACGTTGCAACGGTTAACC", "ACG"]


def esm(tmp_path):
    return "esm2_8m", ["MKLAG", "MK"]


@pytest.mark.parametrize("kind", [rag, transformer, windows, esm, lambda _: ("dna_onehot", ["AC"])])
def test_every_family_finds_its_rows_again(kind, folder, tmp_path):
    name, rows = kind(tmp_path)
    options = {"max_length": 8, "truncate": "window"} if kind is windows else {}
    options |= {"random_weights": True} if kind is esm else {}
    options |= {"spaced": True} if kind is transformer else {}
    network = load(folder, name, **options)
    first = states(network, rows)
    assert counts(network) == (0, len(rows))
    assert torch.equal(states(network, rows), first)
    alone = [states(network, [one])[0] for one in reversed(rows)][::-1]
    assert counts(network) == (2 * len(rows), 0)
    network.cache = None
    for one, expected, found in zip(rows, alone, first, strict=True):
        assert torch.equal(found[: len(expected)], expected)
        assert (expected - states(network, [one])[0]).abs().max() <= 1e-5


# --------------------------------------------------------------------------- never a stale hit


def changed(checkpoint: Path, copy: Path) -> Path:
    shutil.copytree(checkpoint, copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("query.bias"))
    tensors[name][0] += 1e-3
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_other_weights_miss(folder, checkpoint, tmp_path):
    states(load(folder, checkpoint))
    other = load(folder, changed(checkpoint, tmp_path / "copy"))
    assert torch.equal(states(other), real(other, other_states(other)))
    assert counts(other) == (0, 4)
    moved = load(folder, shutil.copytree(checkpoint, tmp_path / "moved"))
    states(moved)
    assert counts(moved) == (4, 0)  # the same weights elsewhere


def other_states(network) -> torch.Tensor:
    return states(plain_of(network.cache.name))


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "v2"},
        {"max_length": 100},
        {"truncate": "right"},
        {"dtype": "bfloat16"},
        {"cache_dtype": "bfloat16"},
        {"as_written": True},
    ],
)
def test_other_options_miss(options, folder):
    states(load(folder))
    network = load(folder, **options)
    states(network)
    assert counts(network) == (0, 4)


def test_formats_of_one_size_are_told_apart(folder):
    states(load(folder, cache_dtype="bfloat16"))
    network = load(folder, cache_dtype="float16")
    states(network)
    assert counts(network) == (0, 4)


def test_other_text_misses(folder):
    network = load(folder)
    states(network, ["ACGT"])
    states(network, ["ACGA", "ACG", "ACGTT", "TACGT"])
    assert counts(network) == (0, 5)


def test_tokens_that_text_cannot_tell_apart_miss(folder):
    network = load(folder)
    states(network, ["ACGT"])
    batch = network.tokenize(["ACGT"])
    batch["attention_mask"][0, 2] = 0  # a gap
    with torch.no_grad():
        network(batch)
    assert counts(network) == (0, 2)


def test_another_precision_misses(folder):
    network = load(folder)
    full = states(network)
    with torch.autocast("cpu", torch.bfloat16):
        half = states(network)
        assert torch.equal(states(network), half)
    assert counts(network) == (4, 8)
    assert not torch.equal(half, full) and torch.equal(states(network), full)


def test_weights_changed_in_place_miss(folder):
    network = load(folder)
    before = states(network)
    with torch.no_grad():
        next(network.encoder.parameters()).mul_(1.5)
    after = states(network)
    assert counts(network) == (0, 8) and not torch.equal(before, after)


def test_weights_rounded_where_they_lie_miss(folder):
    network = load(folder)
    before = states(network)
    assert {*network.cache.written} == {"parameters", "buffers"}
    network.to("cpu")
    assert {*network.cache.written} == {"parameters", "buffers"}  # nothing was moved
    network.half()
    assert "parameters" not in network.cache.written  # the next may lie where these were
    after = states(network.float())
    assert counts(network) == (0, 8) and not torch.equal(before, after)


def test_other_alignments_and_structures_miss(folder, tmp_path):
    name, _ = rag(tmp_path)
    network = load(folder, name)
    states(network, [row()])
    shifted = [row(msa=None), row(structure=None), row(msa=row()["msa"][::-1])]
    for one in shifted:
        states(network, [one])
    assert counts(network) == (0, 4)


def test_lora_matrices_count_as_weights(folder):
    network = load(folder, lora_rank=2)
    before = states(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1)
    assert not torch.equal(states(network), before) and counts(network) == (0, 8)


# --------------------------------------------------------------------------- what is refused


def refused(tmp_path, capsys, *flags, match: str) -> None:
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "x", *flags) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ((), "a backbone that trains cannot be kept. Set --backbone.frozen"),
        (("--backbone.lora-rank", "2"), "a backbone that trains cannot be kept"),
        (("--train.unfreeze", "schedule.yaml"), "a backbone that trains cannot be kept"),
        (("--backbone.frozen", "--adapter", "resnet", "--adapter.as-published"), "at padding"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_weights_load(flags, match, tmp_path, capsys):
    refused(tmp_path, capsys, "--backbone.cache", str(tmp_path / "c"), *flags, match=match)
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_used_is_refused_before_weights_load(tmp_path, capsys):
    (tmp_path / "file").touch()
    tiny.table(tmp_path)
    flags = ("--backbone.frozen", "--backbone.cache", str(tmp_path / "file"))
    assert tiny.command(tmp_path, "--name", "x", *flags) == 2
    said = capsys.readouterr()
    assert "cannot be used (File exists)" in said.err and "parameters" not in said.out
    assert not [*(tmp_path / "runs").rglob("x")]


def test_rounding_without_a_cache_is_refused_in_training(tmp_path, capsys):
    flags = ("--backbone.frozen", "--backbone.cache-dtype", "bfloat16")
    refused(tmp_path, capsys, *flags, match="rounds what a cache keeps")


def test_outputs_that_need_gradients_or_drop_units_are_refused(folder):
    network = load(folder)
    with pytest.raises(InputError, match="Set --backbone.frozen"):
        network(network.tokenize(["ACGT"]))
    frozen = load(folder, frozen=True)
    frozen(frozen.tokenize(["ACGT"]))
    with pytest.raises(InputError, match="training mode"):
        frozen.train()(frozen.tokenize(["ACGT"]))


def test_code_of_a_checkpoint_is_not_trusted_to_stay(tmp_path):
    bert(tmp_path).save_pretrained(tmp_path)
    choice = backbone(str(tmp_path), remote_code=True, cache="c")
    with pytest.raises(InputError, match="code may change unseen"):
        choice.check_cache(training=False)


def test_a_run_that_names_a_folder_to_write_to_is_refused(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["backbone"]["cache"] = str(tmp_path / "elsewhere")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert tiny.command(tmp_path, "predict", "--run", str(run)) == 2
    assert "names a folder to write to" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused(kind, tmp_path, capsys, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "distributed_type", SimpleNamespace(value=kind))
    flags = ("--backbone.frozen", "--backbone.cache", str(tmp_path / "c"))
    refused(tmp_path, capsys, *flags, match=f"sharded by {kind}")


# --------------------------------------------------------------------------- whatever happens

WRITER = """
import sys, numpy as np, torch
from mgen.backbones import load_backbone
torch.manual_seed(0)
network = load_backbone("aido_dna_debug", cache=sys.argv[1])
random = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
with torch.no_grad():
    for _ in range(int(sys.argv[3])):
        network(network.tokenize(["".join(random.choice(list("ACGT"), 40)) for _ in range(4)]))
print("done", flush=True)
sys.stdin.readline()
"""


def writer(folder: Path, seed: int, batches: int) -> subprocess.Popen:
    words = [sys.executable, "-c", WRITER, str(folder), str(seed), str(batches)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def written(seed: int, batches: int) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [["".join(random.choice(list("ACGT"), 40)) for _ in range(4)] for _ in range(batches)]


@pytest.mark.parametrize("seconds", [0.11, *(pytest.param(s, marks=CRASH) for s in (0.02, 0.3))])
def test_what_a_killed_writer_recorded_is_used_and_right(seconds, folder):
    child = writer(folder, 1, 10**6)
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("\n")
    child.stdin.flush()
    while not (found := files(folder, "index")) or not found[0].stat().st_size:
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        pipe.close()
    (index,) = files(folder, "index")
    kept = index.stat().st_size // RECORD.size
    network, plain = load(folder), plain_of()
    for batch in written(1, kept // 4 + 1):
        assert torch.equal(states(network, batch), states(plain, batch))
    found, computed = counts(network)
    assert found == kept > 0 and found + computed == 4 * (kept // 4 + 1)


@pytest.mark.slow
def test_two_processes_write_at_once_and_find_what_the_other_has(folder):
    children = [writer(folder, seed, 30) for seed in (1, 2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    network = load(folder)
    states(network)
    for child in children:
        child.stdin.write("\n")
        child.stdin.close()
    assert [child.stdout.read() for child in children] == ["done\n", "done\n"]
    assert [child.wait() for child in children] == [0, 0]
    for child in children:
        child.stdout.close()
    assert len(files(folder, "data")) == 3
    counts(network)
    plain = plain_of()
    for batch in [*written(1, 30), *written(2, 30)]:
        assert torch.equal(states(network, batch), states(plain, batch))
    assert counts(network) == (240, 0)  # by a process that opened the cache before


def one_segment(folder: Path) -> tuple[Path, Path]:
    states(load(folder))
    (data,), (index,) = files(folder, "data"), files(folder, "index")
    return data, index


@pytest.mark.parametrize(("cut", "left"), [(1, 3), (RECORD.size - 1, 3), (RECORD.size + 1, 2)])
def test_an_index_cut_short_loses_its_last_records_alone(cut, left, folder):
    _, index = one_segment(folder)
    os.truncate(index, index.stat().st_size - cut)
    network, plain = load(folder), plain_of()
    assert torch.equal(states(network), real(plain, states(plain)))
    assert counts(network) == (left, 4 - left)


def test_data_cut_short_loses_its_last_rows_alone(folder):
    data, _ = one_segment(folder)
    os.truncate(data, data.stat().st_size - 1)
    network, plain = load(folder), plain_of()
    assert torch.equal(states(network), real(plain, states(plain)))
    assert network.cache.counts["damaged"] == 0
    assert counts(network) == (3, 1)


def test_a_changed_byte_is_a_counted_miss_and_the_row_is_kept_anew(folder):
    data, _ = one_segment(folder)
    with data.open("rb+") as stream:
        stream.seek(7 * 64 * 4)  # in the second row: the first has 6 tokens
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    network, plain = load(folder), plain_of()
    expected = real(plain, states(plain))
    assert torch.equal(states(network), expected)
    seen = network.cache.counts
    assert (seen["damaged"], seen["computed"], seen["kept"]) == (1, 1, 1)
    assert "1 entries were damaged" in network.cache.summary(seen)
    again = load(folder)
    assert torch.equal(states(again), expected) and counts(again) == (4, 0)


def test_garbage_beside_the_segments_is_left_alone(folder):
    data, index = one_segment(folder)
    data.with_name("000001-noise.data").write_bytes(b"noise")
    data.with_name("000001-noise.index").write_bytes(os.urandom(3 * RECORD.size + 5))
    data.with_name("000002-alone.data").write_bytes(b"")
    data.with_name("1x-thesis.data").write_bytes(b"all of it")
    network = load(folder)
    states(network)
    assert counts(network) == (4, 0)


def test_a_full_disk_ends_keeping_and_not_the_run(folder, monkeypatch, capsys):
    network, plain = load(folder), plain_of()
    states(network, SEQUENCES[:2])

    class Full:
        """A file of a disk that has room for ten more bytes."""

        def __init__(self, stream) -> None:
            self.stream, self.left = stream, 10

        def write(self, content) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            done, self.left = self.stream.write(content[: self.left]), 0
            return done

    (space,) = network.cache.spaces.values()
    monkeypatch.setattr(space.own, "streams", [Full(s) for s in space.own.streams])
    for _ in range(2):
        assert torch.equal(states(network), real(plain, states(plain)))
    said = capsys.readouterr().out
    assert said.count("cannot be written (No space left on device)") == 1
    assert network.cache.counts["lost"] == 4
    again = load(folder)
    assert torch.equal(states(again), real(plain, states(plain))) and counts(again) == (2, 2)


def test_a_folder_that_goes_away_ends_keeping_and_not_the_run(folder, capsys):
    network, plain = load(folder, cache_gb=1e-4), plain_of()
    states(network, SEQUENCES[:2])
    shutil.rmtree(folder)
    for _ in range(2):
        assert torch.equal(states(network), real(plain, states(plain)))
    assert capsys.readouterr().out.count("cannot be written (No such file or directory)") == 1


# --------------------------------------------------------------------------- how much is kept

ROW = (40 + 2) * 64 * 4 + RECORD.size  # bytes of a sequence of 40 letters


def of_forty(seed: int) -> list[str]:
    return written(seed, 1)[0]


def test_a_full_cache_keeps_what_it_has_and_says_so_once(folder, capsys):
    network, plain = load(folder, cache_gb=10 * ROW / 1e9), plain_of()
    batches = [of_forty(seed) for seed in range(4)]
    for batch in batches + batches:
        assert (states(network, batch) - states(plain, batch)).abs().max() <= 1e-6
    seen = network.cache.counts
    assert (seen["found"], seen["kept"], seen["lost"]) == (8, 8, 16)
    assert seen["bytes"] == 8 * ROW == sum(f.stat().st_size for f in folder.glob("*/*.[di]*"))
    said = capsys.readouterr().out
    assert said.count("is full (--backbone.cache-gb") == 1
    assert "8 of them kept (0.1 MB), 16 not" in network.cache.summary(seen)


def age(folder: Path, seconds: float) -> None:
    for file in folder.glob("*/*.*"):
        os.utime(file, (time.time() - seconds,) * 2)


def test_what_was_not_used_for_longest_makes_room(folder):
    old, newer = load(folder, max_length=100), load(folder, max_length=101)
    for network in (old, newer):
        states(network, of_forty(0))
    names = [one.folder for n in (old, newer) for one in n.cache.spaces.values()]
    age(folder, 1000)
    for file in names[0].iterdir():
        os.utime(file, (1, 1))
    del old, newer, network
    filling = load(folder, cache_gb=10 * ROW / 1e9)
    states(filling, of_forty(1))
    assert [bool([*name.glob("*.data")]) for name in names] == [False, True]
    assert not filling.cache.stopped


def test_old_rows_of_the_same_network_make_room_for_new_ones(folder):
    states(load(folder), of_forty(0))
    states(load(folder), of_forty(1))
    age(folder, 1000)
    network = load(folder, cache_gb=10 * ROW / 1e9)
    states(network, of_forty(1))  # used now, and by the clock used before the other
    (space,) = network.cache.spaces.values()
    (used,) = (segment.stem for segment in space.segments.values() if segment.is_used)
    os.utime(used.with_suffix(".data"), (1, 1))
    states(network, of_forty(2))
    assert not network.cache.stopped and len(files(folder, "data")) == 2
    counts(network)
    for seed in (1, 2, 0):
        states(network, of_forty(seed))
    assert counts(network) == (8, 4)


@pytest.fixture
def user(folder):
    """A process that has kept four rows and goes on using them."""
    child = writer(folder, 0, 1)
    child.stdin.write("\n")
    child.stdin.flush()
    assert [child.stdout.readline() for _ in range(2)] == ["ready\n", "done\n"]
    yield child
    child.kill()
    child.communicate()


def test_what_another_process_uses_is_not_deleted(folder, user):
    (used,) = files(folder, "data")
    network = load(folder, max_length=100, cache_gb=6 * ROW / 1e9)
    states(network, of_forty(1))
    assert network.cache.stopped and network.cache.counts["lost"] == 4
    assert clear(folder, used.parent.name) == (0, [used.parent.name])
    assert files(folder, "data") == [used]
    user.kill()
    user.wait()
    again = load(folder, max_length=100, cache_gb=6 * ROW / 1e9)
    states(again, of_forty(1))
    assert not again.cache.stopped and not used.exists()


def test_sizes_and_clear_tell_and_delete_what_a_cache_holds(folder):
    for options in ({}, {"max_length": 100, "cache_dtype": "bfloat16"}):
        network = load(folder, **options)
        states(network)
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("all of it")
    (folder / "notes" / "namespace.json").write_text("[]")
    newest, older = sizes(folder)
    assert newest.description == f"{DEBUG}, max_length 100, bfloat16, every token"
    assert older.description == f"{DEBUG}, max_length 512, float32, every token"
    assert older.bytes == 32 * 64 * 4 + 4 * RECORD.size
    assert abs(newest.last_used - time.time()) < 60
    assert clear(folder) == (older.bytes, [newest.namespace])  # this process uses the other
    del network
    assert clear(folder, "another") == (0, [])
    assert clear(folder) == (newest.bytes, [])
    assert sizes(folder) == [] and (folder / "notes" / "thesis.txt").exists()
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == ["notes"]
    assert sizes(folder / "absent") == [] and clear(folder / "absent") == (0, [])


# --------------------------------------------------------------------------- pooled vectors

POOLING = [name for name, facts in ADAPTERS.facts.items() if any("pools " in f for f in facts)]


def test_adapters_that_only_pool_are_known():
    assert sorted(POOLING) == [
        *("cls_dense_tanh", "cls_mlp", "linear_cls", "max_pool_linear", "max_pool_mlp"),
        *("mean_pool_dense_tanh", "mean_pool_ffn", "mean_pool_linear", "mean_pool_mlp"),
    ]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", POOLING)
def test_pooled_vectors_give_what_all_tokens_give(name, special, folder, tmp_path):
    cfg = tiny.settings(tmp_path)
    cfg = tiny.dataclasses.replace(cfg, adapter=adapter(name), special_tokens=special)
    plain, rows = tiny.prepared(cfg)
    cached, _ = tiny.prepared(tiny.with_backbone(cfg, cache=str(folder), frozen=True))
    assert tiny.equal(tiny.weights(plain), tiny.weights(cached))
    batch = plain.collator()(rows.take([0, 5, 3, 17]))
    plain.eval(), cached.eval()
    with torch.no_grad():
        expected = plain(batch)
        for _ in range(2):
            assert (cached(batch) - expected).abs().max() <= 1e-6
            assert cached.backbone(batch).shape == (4, 1, 64)
    assert counts(cached.backbone) == (12, 4)
    (data,) = files(folder, "data")
    assert data.stat().st_size == 4 * 64 * 4


def test_pooling_and_the_choice_of_tokens_are_part_of_the_key(folder, tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path), cache=str(folder), frozen=True)
    for head, special in (("mean_pool_mlp", True), ("mean_pool_mlp", False), ("cls_mlp", True)):
        changed = tiny.dataclasses.replace(cfg, adapter=adapter(head), special_tokens=special)
        task, rows = tiny.prepared(changed)
        task.eval()
        with torch.no_grad():
            task(task.collator()(rows.take([0, 1])))
        assert counts(task.backbone) == (0, 2)
    linear = tiny.dataclasses.replace(cfg, adapter=adapter("mean_pool_linear"))
    task, rows = tiny.prepared(linear)
    task.eval()
    with torch.no_grad():
        task(task.collator()(rows.take([0, 1])))
    assert counts(task.backbone) == (2, 0)  # pools as another head did


@pytest.mark.parametrize("name", ["conv", "resnet", "flatten_linear"])
def test_heads_that_read_tokens_get_them_all(name, folder, tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path), cache=str(folder), frozen=True)
    lines = (tmp_path / "rows.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    rows = [rows[0], *([r[0], (r[1] * 4)[:16], *r[2:]] for r in rows[1:])]  # of one length
    (tmp_path / "rows.tsv").write_text("".join("\t".join(r) + "\n" for r in rows))
    task, table = tiny.prepared(tiny.dataclasses.replace(cfg, adapter=adapter(name)))
    task.eval()
    batch = task.collator()(table.take([0, 1]))
    with torch.no_grad():
        first = task(batch)
        assert torch.equal(task(batch), first)
        assert task.backbone(batch).shape == (2, 18, 64)


# --------------------------------------------------------------------------- from the shell


def command(folder, *flags, task=SequenceRegression, cache="cache"):
    kept = ("--backbone.frozen", "--backbone.cache", str(folder / cache))
    return tiny.command(folder, *flags, *kept, task=task)


def tsv(run: Path, name: str) -> np.ndarray:
    lines = (run / "predictions" / name).read_text().splitlines()
    column = lines[0].split("\t").index("predicted_label")
    return np.array([float(line.split("\t")[column]) for line in lines[1:]])


def test_a_run_with_a_cache_learns_what_one_without_does_and_says_what_it_found(tmp_path, capsys):
    tiny.table(tmp_path)
    flags = ("--format", "tsv", "--adapter", "conv")
    assert tiny.command(tmp_path, "--name", "a", "--backbone.frozen", *flags) == 0
    assert command(tmp_path, "--name", "b", *flags) == 0
    runs = tmp_path / "runs" / "sequence_regression"
    assert np.allclose(tsv(runs / "a", "test.tsv"), tsv(runs / "b", "test.tsv"), atol=1e-5)
    # 24 training rows twice; 9 validation rows in two evaluations and once for the calibration.
    line = "backbone.cache: 42 outputs (every token) looked up, 40 computed, 40 of them kept"
    assert capsys.readouterr().out.count(line) == 1
    for name in ("a", "b"):
        assert "cache:" not in (runs / name / "config.yaml").read_text()
    texts = [(runs / name / "config.yaml").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    assert command(tmp_path, "predict", "--run", str(runs / "b"), "--split", "test") == 0
    assert "7 outputs (every token) looked up, 0 computed" in capsys.readouterr().out


def test_classes_are_pooled_as_well(tmp_path, capsys):
    tiny.table(tmp_path, classes=2)
    import sequence_classification

    argv = ["--data.path", str(tmp_path / "rows.tsv"), "--data.split-col", "part", "--out"]
    argv += [str(tmp_path / "runs"), "--train.epochs", "1", "--train.workers", "0"]
    argv += ["--backbone.frozen", "--backbone.cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as left:
        tiny.run(SequenceClassification, sequence_classification.Config, argv)
    assert left.value.code == 0
    assert "mean, special tokens too" in capsys.readouterr().out


def embedded(folder: Path, name: str, *flags) -> np.ndarray:
    import embed
    import pyarrow.parquet as pq

    argv = ["predict", "--data.path", str(folder / "rows.tsv"), "--out", str(folder / "runs")]
    with pytest.raises(SystemExit) as left:
        tiny.run(embed.Embed, embed.Config, [*argv, "--name", name, *flags])
    assert left.value.code == 0
    table = pq.read_table(folder / "runs" / "embed" / name / "predictions" / "rows.parquet")
    return (
        np.array([np.concatenate(row) for row in table["embedding"].to_pylist()])
        if ("none" in flags)
        else np.array(table["embedding"].to_pylist())
    )


@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
def test_embeddings_are_those_without_a_cache(pool, tmp_path, capsys):
    tiny.table(tmp_path)
    kept = ("--backbone.cache", str(tmp_path / "cache"))
    plain = embedded(tmp_path, "a", "--pool", pool)
    for name, found in (("b", 0), ("c", 40)):
        assert np.array_equal(embedded(tmp_path, name, "--pool", pool, *kept), plain)
        said = f"{found} outputs ({pool}, no special tokens) looked up, {40 - found} computed"
        assert said in capsys.readouterr().out


def test_other_layers_are_computed_aloud(tmp_path, capsys):
    tiny.table(tmp_path)
    kept = ("--backbone.cache", str(tmp_path / "cache"))
    embedded(tmp_path, "a", "--layers", "1", *kept)
    assert "keeps the last layer alone" in capsys.readouterr().out
    embedded(tmp_path, "b", "--layers", "2", *kept)  # the last one by its number
    assert "40 computed, 40 of them kept" in capsys.readouterr().out


# --------------------------------------------------------------------------- several processes


RUN = (
    *("--train.max-steps", "18", "--train.save-every", "2", "--train.eval-every", "6"),
    *("--train.batch-size", "4", "--train.lr", "0.01", "--backbone.frozen"),
    *("--train.log-every", "1", "--backbone.dropout", "0.1", "--train.workers", "0"),
)


@pytest.mark.crash
@pytest.mark.parametrize("head", ["mean_pool_mlp", "conv"])
def test_a_run_killed_while_it_keeps_ends_as_if_left_alone(head, tmp_path):
    server, flags = tiny.server(), (*RUN, "--adapter", head)
    kept = {name: ("--backbone.cache", str(tmp_path / name)) for name in ("left", "killed")}
    assert server.run(f"left-{head}", *flags, *kept["left"]) == 0, server.log.read_text()
    name = f"killed-{head}"
    for count in (30, 60):
        place = {"under": str(server.run_folder(name)), "kill_at": count}
        code = server.run(name, *flags, *kept["killed"], "--resume", **place)
        assert code == -signal.SIGKILL, server.log.read_text()
    assert server.run(name, *flags, *kept["killed"], "--resume") == 0, server.log.read_text()
    assert_equal_runs(server.run_folder(f"left-{head}"), server.run_folder(name))


@pytest.mark.slow
def test_two_processes_share_a_cache_and_count_together(tmp_path):
    server, kept = tiny.server(), ("--backbone.cache", str(tmp_path / "cache"))
    flags = ("--train.epochs", "4", "--train.batch-size", "4", "--backbone.frozen")
    flags += ("--train.log-every", "1", "--train.workers", "0", "--adapter", "conv")
    assert server.run("shared-plain", *flags, processes=2) == 0, server.log.read_text()
    assert server.run("shared", *flags, *kept, processes=2) == 0, server.log.read_text()
    assert len(files(tmp_path / "cache", "data")) == 2
    assert "40 computed, 40 of them kept" in server.log.read_text()
    ours, theirs = (
        [json.loads(line) for line in (server.run_folder(n) / "metrics.jsonl").open()]
        for n in ("shared", "shared-plain")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
