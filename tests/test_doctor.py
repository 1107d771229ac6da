"""What mgen doctor says is so, it never fails as a whole, and it deletes nothing of others."""

import importlib.metadata
import json
import shutil
import subprocess

import pytest
import test_cli

from mgen.commands import doctor
from mgen.io.files import kept


def mgen(monkeypatch, capsys, *words):
    """Exit code, stdout and stderr of `mgen doctor`."""
    return test_cli.mgen(monkeypatch, capsys, "doctor", *words)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Caches of its own: two repositories of the hub, one file of mgen, one of somebody else."""
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "mgen"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept("tables", "a.arrow", lambda file: file.write_bytes(b"x" * 3000) and None)
    (tmp_path / "mgen" / "tables" / "mine.txt").write_text("not made by mgen")
    for name, size in (("one", 2000), ("two", 500)):
        repository = tmp_path / "hub" / f"models--lab--{name}"
        commit = name[0] * 40
        for folder in ("blobs", "refs", f"snapshots/{commit}"):
            (repository / folder).mkdir(parents=True)
        (repository / "blobs" / "b").write_bytes(b"w" * size)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/b")
    return tmp_path


def test_every_part_is_there_and_true(home, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MGEN_SHARED", str(home))
    code, out, _ = mgen(monkeypatch, capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert not [name for name, part in found.items() if "wrong" in part]
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    if nproc := shutil.which("nproc"):
        assert found["devices"]["cores"] == int(subprocess.check_output([nproc], env={}))
    assert found["launcher"]["WORLD_SIZE"] == "4"
    assert found["caches"]["mgen tables"] == {"files": 1, "bytes": 3000}
    assert found["caches"]["hub lab/one"]["bytes"] == 2000
    assert found["network"]["HF_HUB_OFFLINE"] == "offline"
    assert found["disk"]["mgen cache"]["free"] > 0
    assert "absent" in found["data"]["shared weights"]


def test_without_json_the_same_is_printed_as_tables(home, monkeypatch, capsys):
    code, out, _ = mgen(monkeypatch, capsys)
    assert code == 0
    assert {*doctor.PARTS} <= {*out.splitlines()}
    assert ["hub", "lab/one", "model,", "2", "kB"] in [line.split() for line in out.splitlines()]


def test_a_part_that_cannot_be_read_says_why_and_the_others_are_printed(monkeypatch, capsys):
    def broken():
        raise OSError("no such\ndevice")

    monkeypatch.setattr(doctor, "PARTS", {"devices": broken, "network": doctor.network})
    code, out, _ = mgen(monkeypatch, capsys, "--json")
    assert code == 0
    assert json.loads(out)["devices"] == {"wrong": "OSError: no such device"}
    assert json.loads(out)["network"]["HF_HUB_OFFLINE"] == "offline"


def test_clearing_mgen_deletes_its_own_files_only(home, monkeypatch, capsys):
    code, out, _ = mgen(monkeypatch, capsys, "--clear", "mgen")
    assert (code, out) == (0, "mgen: 3 kB freed\n")
    assert [p.name for p in (home / "mgen").rglob("*") if p.is_file()] == ["mine.txt"]
    assert (home / "hub" / "models--lab--one").exists()


def test_clearing_one_repository_leaves_the_others(home, monkeypatch, capsys):
    code, out, _ = mgen(monkeypatch, capsys, "--clear", "lab/one", "--json")
    assert (code, json.loads(out)) == (0, {"cleared": "lab/one", "bytes": 2000})
    left = [p.name for p in (home / "hub").glob("models--*")]
    assert left == ["models--lab--two"]
    code, out, _ = mgen(monkeypatch, capsys, "--clear", "hub")
    assert (code, out) == (0, "hub: 500 bytes freed\n")
    assert not list((home / "hub").glob("models--*"))


def test_an_unknown_cache_is_an_error_and_deletes_nothing(home, monkeypatch, capsys):
    code, _, err = mgen(monkeypatch, capsys, "--clear", "lab/ome")
    assert code == 2
    assert "Did you mean 'lab/one'?" in err
    assert len(list((home / "hub").glob("models--*"))) == 2


@pytest.fixture
def default_config(tmp_path, monkeypatch):
    """Accelerate's default config: two processes, in the way it does not start them."""
    file = tmp_path / "default_config.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_machines: 1\n"
        "num_processes: 2\nuse_cpu: true\nmixed_precision: 'no'\n"
    )
    config_args = "accelerate.commands.config.config_args"
    monkeypatch.setattr(f"{config_args}.default_config_file", str(file))
    return file


def test_a_config_that_starts_fewer_processes_than_it_says_is_told(default_config, monkeypatch):
    lines = ["process\n"]

    def launch(*_, **__):
        return doctor.subprocess.CompletedProcess([], 0, "".join(lines), "")

    monkeypatch.setattr(doctor.subprocess, "run", launch)
    assert doctor.launcher()["processes it starts"] == "1, although it says 2"
    lines.append("process\n")
    assert doctor.launcher()["processes it starts"] == "2"


def test_a_default_config_that_cannot_be_read_is_told(default_config):
    default_config.write_text("a: [")
    assert "ParserError" in doctor.attempt(doctor.launcher)["wrong"]


@pytest.mark.slow
def test_the_processes_of_the_launcher_are_really_counted(tmp_path, monkeypatch, default_config):
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    text = default_config.read_text().replace("MULTI_CPU", "'NO'").replace("s: 2", "s: 1")
    default_config.write_text(text)
    (home / default_config.name).write_text(text)
    monkeypatch.setenv("HF_HOME", str(home.parent))
    assert doctor.launcher()["processes it starts"] == "1"


def test_outputs_of_backbones_are_listed_and_cleared_and_nothing_beside_them(
    home, tmp_path, monkeypatch, capsys
):
    from mgen.backbones import load_backbone

    folder = tmp_path / "outputs"
    for length in (10, 20):
        options = {"random_weights": True, "frozen": True, "cache": str(folder)}
        load_backbone("aido_dna_debug", max_length=length, **options).embed(["ACGT"])
    (folder / "mine.txt").write_text("not made by mgen")
    listed = mgen(monkeypatch, capsys, "--json", "--cache", str(folder))[1]
    found = {k: v for k, v in json.loads(listed)["caches"].items() if "holds" in v}
    assert sorted(v["holds"].split(", ")[1] for v in found.values()) == [
        *("max_length 10", "max_length 20")
    ]
    assert all(entry["bytes"] >= 6 * 64 * 4 for entry in found.values())  # tokens, width, float32
    one = min(found).removeprefix("outputs ")
    assert mgen(monkeypatch, capsys, "--clear", str(folder / one))[0] == 0
    assert not (folder / one).exists() and len([*folder.glob("*/namespace.json")]) == 1
    assert mgen(monkeypatch, capsys, "--clear", str(folder))[0] == 0
    assert not [*folder.glob("*/namespace.json")] and (folder / "mine.txt").exists()
    code, _, err = mgen(monkeypatch, capsys, "--clear", str(folder))
    assert code == 2 and "no outputs of a backbone there" in err
