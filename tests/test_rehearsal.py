"""mgen repro --check: what it makes small, what it leaves as published, and how it fails."""

import dataclasses
import json
import os
import sys

import pytest
import torch
import yaml
from conftest import ROOT

from mgen import cli
from mgen.apply import task_of
from mgen.backbones import load_backbone
from mgen.backbones.zoo import ZOO
from mgen.commands import rehearsal
from mgen.commands.stand_ins import CHANNELS, places, small_network, write_rows
from mgen.config import InputError, parse
from mgen.experiments import experiments
from mgen.models.fm4bio import Layer
from mgen.train import Launch

KNOWN = experiments()
# Experts, rsLoRA and clipping by value; several labels; a genome; alignments; no training at all;
# cells, by a model whose settings have sizes of their own.
FEW = (
    "aido_protein_contacts",
    "aido_rna_modification_site",
    "aido_dna_clinvar_ratio",
    "aido_rag_dms_substitutions",
    "aido_protein_structure_tokens_cameo",
    "scfoundation_zheng68k",
)
SIZES = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_experts",
    "modality",  # which the zoo knows, and a folder has to say
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return tmp_path


def experiment(folder, name: str, change, flags=()):
    """The experiment `name` with its settings changed, in a file of its own."""
    known = KNOWN[name]
    settings = yaml.safe_load(known.file.read_text())
    change(settings)
    file = folder / known.recipe / "broken.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(settings))
    return dataclasses.replace(known, file=file, variant="", flags=flags)


def check(*words) -> int:
    """Exit code of `mgen repro --check`."""
    sys.argv = ["mgen", "repro", "--check", *words]
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Argument list, environment and threads are those of before after a test."""
    monkeypatch.setattr(sys, "argv", [])
    for name in (*rehearsal.OFFLINE, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------- experiments in small


def passes(name: str, folder) -> None:
    code, said = rehearsal.rehearsed(KNOWN[name], folder)
    assert code == 0, said
    run = folder / "runs" / KNOWN[name].recipe / name
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    given = yaml.safe_load(KNOWN[name].file.read_text())
    asked = given["backbone"] if isinstance(given.get("backbone"), dict) else {}
    if not KNOWN[name].flags:  # what the settings say is what ran
        assert {key: cfg["backbone"][key] for key in asked} == asked
    if (run / "results.json").exists() and (run / "metrics.jsonl").exists():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        assert max(steps, default=0) >= 2 or cfg["train"]["epochs"] == 0


@pytest.mark.parametrize("name", FEW)
def test_an_experiment_makes_two_steps(name, folder):
    passes(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KNOWN if name not in FEW])
def test_every_experiment_makes_two_steps(name, folder):
    passes(name, folder)


@pytest.mark.parametrize(
    "name", ["aido_protein_rag_16b", "aido_protein_rag_3b", "aido_rna_1b600m", "esm2_8m"]
)
def test_a_small_network_has_every_switch_of_the_published_one(name, tmp_path):
    published = ZOO[name].config_json() or dataclasses.replace(ZOO[name], heads=40).config_json()
    with places(tmp_path):
        small_network(ZOO[name], tmp_path, 3)
        assert ZOO[name].hub == str(tmp_path / f"{name}-3")
        network = load_backbone(name)
    assert not ZOO[name].hub.startswith(str(tmp_path))
    assert (network.width, network.num_layers) == (64, 3)
    made = json.loads((tmp_path / f"{name}-3" / "config.json").read_text())
    assert {k: v for k, v in made.items() if k not in SIZES} == {
        k: v for k, v in published.items() if k not in SIZES
    }
    if published.get("moe"):
        (first, *_) = [module for module in network.modules() if isinstance(module, Layer)]
        assert made["num_experts"] == len(first.mlp.router.weight) == 4


def test_made_up_rows_have_the_published_layout(tmp_path):
    import pyarrow.parquet as pq

    with places(tmp_path):
        for name in ("aido_rag_ssp_q3", "aido_rag_dms_substitutions"):
            task, config = task_of(ROOT / "recipes" / f"{KNOWN[name].recipe}.py")
            cfg, _ = parse(config(), Launch(), KNOWN[name].words, name)
            small_network(ZOO[cfg.backbone.name], tmp_path, 1)
            write_rows(cfg, KNOWN[name].recipe)
    data = tmp_path / "shared" / "data"
    hub = data / "genbio-ai" / "ssp_q3_rag"
    assert sorted(file.name for file in hub.iterdir()) == ["test.parquet", "train.parquet"]
    row = pq.read_table(hub / "train.parquet").to_pylist()[0]
    assert set(row) == {"seq", "label", "msa", "str_emb"}
    assert len(row["label"]) == len(row["seq"]) == len(row["msa"][0]) == len(row["str_emb"])
    assert len(row["str_emb"][0]) == CHANNELS == 384
    assays = data / "genbio-ai" / "ProteinGYM-DMS-RAG" / "singles_substitutions"
    (file,) = assays.glob("*.tsv")
    header, *lines = file.read_text().splitlines()
    assert set(header.split("\t")) == {"sequences", "labels", "msa", "str_emb", "fold_id"}
    folds = [line.split("\t")[header.split("\t").index("fold_id")] for line in lines]
    assert set(folds) == set("01234")
    assert (assays / "0.a3m").is_file() and (assays / "0.npy").is_file()


def test_files_that_only_one_machine_has_are_refused_and_never_written(folder, monkeypatch):
    changed = experiment(folder, FEW[2], lambda s: s.update(genome=str(folder / "hg38.fa")))
    assert "settings for everyone name files of the hub" in failure(changed, folder)
    changed = experiment(folder, FEW[1], lambda s: s.update(data={"path": f"{folder}/rows.tsv"}))
    assert "settings for everyone name files of the hub" in failure(changed, folder)
    assert not list(folder.glob("hg38*")) and not list(folder.glob("*.tsv"))


def test_places_are_as_before_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_SHARED", "before")
    monkeypatch.delenv("MGEN_CACHE")
    entry = ZOO["esm2_8m"]
    with pytest.raises(RuntimeError), places(tmp_path) as published:
        assert published["esm2_8m"] is entry
        small_network(entry, tmp_path, 1)
        assert os.environ["MGEN_SHARED"] == str(tmp_path / "shared")
        raise RuntimeError
    assert (os.environ["MGEN_SHARED"], os.environ.get("MGEN_CACHE")) == ("before", None)
    assert ZOO["esm2_8m"] is entry


def test_a_network_of_transformers_has_no_stand_in(tmp_path):
    with places(tmp_path), pytest.raises(InputError, match="ankh_base: no stand-in"):
        small_network(ZOO["ankh_base"], tmp_path, 2)


# --------------------------------------------------------------------------- failures


def failure(changed, folder) -> str:
    code, said = rehearsal.rehearsed(changed, folder)
    assert code == 2
    return said


def test_an_option_that_is_missing_fails_as_the_recipe_would(folder):
    changed = experiment(folder, FEW[1], lambda s: s["train"].update(learning_rate=1))
    said = failure(changed, folder)
    assert str(changed.file) in "".join(said.split()) and "learning-rate" in said


def test_a_value_of_another_kind_fails_with_the_option(folder):
    changed = experiment(folder, FEW[1], lambda s: s["train"].update(schedule="cubic"))
    assert "--train.schedule" in failure(changed, folder)


def test_a_head_that_does_not_fit_fails(folder):
    changed = experiment(folder, "aido_protein_fold", lambda s: s.update(adapter="linear_cls"))
    assert "--adapter linear_cls reads the start token" in failure(changed, folder)


def test_lora_targets_that_no_layer_has_fail(folder):
    changed = experiment(folder, FEW[1], lambda s: s["backbone"].update(lora_targets=["router"]))
    assert "no layer of aido_rna_1b600m is called 'router'" in failure(changed, folder)


def test_a_wrong_flag_of_a_variant_fails(folder):
    changed = experiment(folder, FEW[1], lambda s: None, flags=("--train.rows", "2"))
    assert "--train.rows" in failure(changed, folder)


def test_failures_are_shown_with_their_file_and_the_others_are_rehearsed(
    folder, monkeypatch, capsys
):
    changed = experiment(folder, FEW[1], lambda s: s.update(adapter="no_such_head"))
    monkeypatch.setattr(rehearsal, "experiments", lambda: {"one": changed, "two": KNOWN[FEW[2]]})
    assert check() == 1
    out, err = capsys.readouterr()
    assert "1 of 2 experiments passed" in out
    assert str(changed.file) in err and "no adapter 'no_such_head'" in err
    assert check("three") == 2
    assert "no experiment 'three'" in capsys.readouterr().err
