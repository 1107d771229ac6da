"""Exports: they predict what their run does, from any place; others' programs read them too."""

import json
import re
import shutil
import socket
import sys
from pathlib import Path

import hub_stand_in
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from tiny import fresh_process  # noqa: F401

import mgen
from mgen import card, cli, export, runs
from mgen.backbones import backbone
from mgen.backbones.zoo import ZOO, find
from mgen.config import InputError, plain

SEQUENCES = ["ACGT", "GGGCCCAT", "TTTTAAAACCCC"]
NAME = "someone/strength"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two ESM checkpoints as transformers writes them, and runs of one epoch on a tiny table."""
    folder = tmp_path_factory.mktemp("export")
    tiny.table(folder)
    for seed, name in enumerate(("esm", "other")):
        esm(folder / name, seed)
    base, lora = ["--backbone", folder / "esm"], ["--backbone.lora-rank", 2]
    train(folder, "lora", *base, *lora)
    train(folder, "dora", *base, *lora, "--backbone.lora-dora", "--backbone.lora-rslora")
    train(folder, "all", "--backbone", "aido_dna_debug", "--backbone.random-weights")
    return folder


@pytest.fixture(scope="module")
def bundle(place) -> Path:
    return write(place, "lora", "bundle", bundle=True)


@pytest.fixture(scope="module")
def whole(place) -> Path:
    return write(place, "lora", "whole")


def esm(folder: Path, seed: int) -> None:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=40,
        position_embedding_type="rotary",
        token_dropout=True,
        mask_token_id=32,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(seed)
    network = EsmForMaskedLM(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)


def train(place: Path, name: str, *flags) -> None:
    flags = ["--train.epochs", 1, "--train.eval-every", 2, *flags]
    assert tiny.command(place, "--name", name, *map(str, flags)) == 0


def run_folder(place: Path, name: str) -> Path:
    return place / "runs" / "sequence_regression" / name


def write(place: Path, run: str, name: str, **options) -> Path:
    source, folder = str(run_folder(place, run)), str(place / "exports" / name)
    return export.export(export.Export(run=source, folder=folder, **options))


def predict(name: str | Path, **options) -> list[float]:
    return mgen.load_run(name, **options).predict(SEQUENCES)["predicted_label"]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def states(name: str | Path) -> tuple[dict, list[torch.Tensor]]:
    """A batch and the hidden states that a run's backbone gives for it."""
    backbone = mgen.load_run(name).task.backbone
    batch = backbone.tokenize(SEQUENCES)
    with torch.no_grad():
        return batch, backbone.hidden_states(batch)


def largest_difference(batch: dict, ours: list[torch.Tensor], theirs: torch.nn.Module) -> float:
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        found = theirs.eval()(**given, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    return max((a - b)[real].abs().max().item() for a, b in zip(ours, found, strict=True))


# --------------------------------------------------------------------------- the two forms


def test_a_bundle_predicts_bit_for_bit_what_its_run_does(place, bundle, tmp_path):
    moved = shutil.copytree(bundle, tmp_path / "moved")
    assert predict(moved) == predict(run_folder(place, "lora"))


def test_a_bundle_holds_what_training_changed_and_nothing_else(bundle):
    files = {str(file.relative_to(bundle)) for file in bundle.rglob("*") if file.is_file()}
    checkpoint = ("model.safetensors", "adapter_model.safetensors", "adapter_config.json",
                  "facts.json", "backbone.json", "complete.json")  # fmt: skip
    assert files == {
        "README.md", "config.yaml", "environment.json", "results.json", "calibration.json",
        *(f"checkpoints/best/{name}" for name in checkpoint),
    }  # fmt: skip
    assert not any(file.is_symlink() for file in bundle.rglob("*"))
    assert holds_the_head_alone(bundle)


@pytest.mark.parametrize("run", ["lora", "all"])
def test_the_checkpoint_of_a_full_export_is_the_head(run, place):
    folder = write(place, run, f"head-{run}")
    assert holds_the_head_alone(folder)
    tuned = runs.saved_settings(folder)["backbone"]
    assert (tuned["name"], tuned["frozen"], tuned["lora_rank"]) == (".", True, 0)
    assert not any(tuned[option] for option in ("lora_dora", "lora_targets", "random_weights"))


def holds_the_head_alone(folder: Path) -> bool:
    held = load_file(folder / "checkpoints" / "best" / "model.safetensors")
    buffers = (".position_embeddings.weight", ".inv_freq")  # which rotary models only carry along
    return all(name.startswith("head.") or name.endswith(buffers) for name in held)


def test_what_a_name_alone_told_of_a_backbone_is_kept():
    config = tiny.sequence_regression.Config(
        backbone=backbone("prot_bert", lora_rank=4),
        train=tiny.Train(backbone_lr=1e-5, unfreeze="schedule.yaml", layer_decay=0.9),
    )
    carried = export._carried(config, 512)
    assert (carried.backbone.spaced, carried.backbone.max_length) == (True, 512)
    assert carried.train == tiny.Train()  # nothing that contradicts a frozen backbone


def test_a_run_that_unfroze_by_a_schedule_is_exported_too(place):
    (place / "schedule.yaml").write_text("0: [head]\n1: ['backbone.model.bert.encoder.layer.1']\n")
    flags = ["--train.epochs", 2, "--train.unfreeze", place / "schedule.yaml"]
    train(place, "schedule", "--backbone", "aido_dna_debug", *flags)
    run = run_folder(place, "schedule")
    assert apart(predict(write(place, "schedule", "schedule")), predict(run)) <= 1e-6
    with pytest.raises(InputError, match="were finetuned"):
        write(place, "schedule", "never", bundle=True)


@pytest.mark.parametrize(("run", "tolerance"), [("lora", 1e-5), ("dora", 1e-5), ("all", 1e-6)])
def test_a_full_export_predicts_what_its_run_does(run, tolerance, place, tmp_path):
    moved = shutil.move(write(place, run, f"moved-{run}"), tmp_path / "moved")
    for file in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.yaml"), *tmp_path.rglob("*.md")]:
        lines = [line for line in file.read_text().splitlines() if str(place) in line]
        assert lines in ([], [f"  path: {place / 'rows.tsv'}"])  # where `test` finds its rows
    assert apart(predict(moved), predict(run_folder(place, run))) <= tolerance


@pytest.mark.parametrize("run", ["lora", "dora"])
def test_training_has_changed_the_backbone_that_is_compared(run, place):
    batch, trained = states(run_folder(place, run))
    from transformers import AutoModelForMaskedLM

    base = AutoModelForMaskedLM.from_pretrained(place / "esm")
    assert largest_difference(batch, trained, base) > 1e-3


def test_transformers_reads_the_backbone_of_a_full_export(place, whole):
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    batch, expected = states(run_folder(place, "lora"))
    for auto in (AutoModelForMaskedLM, AutoModel):
        assert largest_difference(batch, expected, auto.from_pretrained(whole)) <= 1e-5
    ids = AutoTokenizer.from_pretrained(whole)(SEQUENCES, padding=True)["input_ids"]
    assert ids == batch["input_ids"].tolist()


@pytest.mark.parametrize("run", ["lora", "dora"])
def test_peft_reads_the_adapter_of_a_bundle(run, place, recwarn):
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM

    folder = write(place, run, f"peft-{run}", bundle=True)
    batch, expected = states(run_folder(place, run))
    base = AutoModelForMaskedLM.from_pretrained(place / "esm")
    theirs = PeftModel.from_pretrained(base, folder, subfolder="checkpoints/best")
    assert largest_difference(batch, expected, theirs) <= 1e-5
    assert not any("missing adapter keys" in str(warning.message) for warning in recwarn)
    saved = {*load_file(folder / "checkpoints" / "best" / "adapter_model.safetensors")}
    theirs.save_pretrained(folder / "theirs")
    assert saved == {*load_file(folder / "theirs" / "adapter_model.safetensors")}


def test_a_bundle_refuses_another_base(place, bundle):
    assert predict(bundle, backbone=place / "esm") == predict(bundle)
    with pytest.raises(InputError, match="trained on other backbone weights"):
        predict(bundle, backbone=place / "other")


def test_a_bundle_loads_after_its_base_was_moved(place, bundle, tmp_path):
    expected, moved = predict(bundle), place / "moved"
    (place / "esm").rename(moved)
    try:
        assert predict(bundle, backbone=moved) == expected
        flags = ["--run", str(bundle), "--backbone", str(moved)]
        assert tiny.command(place, "predict", *flags) == 0
        with pytest.raises(InputError, match="no folder"):
            predict(bundle)
    finally:
        moved.rename(place / "esm")


def test_a_bundle_on_the_backbone_of_another_run_is_refused(place):
    train(place, "chained", "--backbone", run_folder(place, "all"), "--backbone.lora-rank", 2)
    with pytest.raises(InputError, match="is the one that another run, .*all, has trained"):
        write(place, "chained", "never", bundle=True)
    folder = write(place, "chained", "chained")
    assert apart(predict(folder), predict(run_folder(place, "chained"))) <= 1e-5
    assert "all" in (folder / "README.md").read_text().partition("## Data")[0]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("ACGT", "takes a list of rows"),
        ([None], "row 0 .* found None"),
        ([{"a": "b"}], "'sequence'"),
    ],
)
def test_rows_that_are_none_are_refused(rows, says, bundle):
    with pytest.raises(InputError, match=says):
        mgen.load_run(bundle).predict(rows)


def test_a_bundle_can_name_the_base_as_others_know_it(place):
    hub_id = "facebook/esm2_t6_8M_UR50D"
    folder = write(place, "lora", "named", bundle=True, base=hub_id)
    assert runs.saved_settings(folder)["backbone"]["name"] == hub_id
    adapter = json.loads((folder / "checkpoints" / "best" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == hub_id
    assert predict(folder, backbone=place / "esm") == predict(run_folder(place, "lora"))


def test_of_another_checkpoint_the_metrics_of_the_best_are_left_out(place):
    run = run_folder(place, "all")
    folder = write(place, "all", "last", checkpoint="last")
    assert not (folder / "results.json").exists()
    assert not (folder / "calibration.json").exists()
    assert "Not tested" in (folder / "README.md").read_text()
    assert apart(predict(folder), predict(run, checkpoint="last")) <= 1e-6
    assert apart(predict(folder), predict(run)) > 1e-6


# --------------------------------------------------------------------------- as a run directory


@pytest.mark.parametrize("form", ["bundle", "whole"])
def test_verbs_take_an_export_as_a_run(form, place, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(form), tmp_path / form)
    expected = json.loads((folder / "results.json").read_text())["test"]
    assert tiny.command(place, "test", "--run", str(folder)) == 0
    found = json.loads((folder / "predictions" / "test.json").read_text())
    assert found["mse"] == pytest.approx(expected["mse"], abs=1e-5)
    assert tiny.command(place, "predict", "--run", str(folder), "--format", "tsv") == 0
    assert (folder / "predictions" / "rows.tsv").exists()


def test_finetuning_goes_on_from_the_exported_weights(place, whole):
    start = ["--run", str(whole), "--backbone.no-frozen", "--train.epochs", "0"]
    assert tiny.command(place, "--name", "further", *start) == 0
    begun = load_file(run_folder(place, "further") / "checkpoints" / "last" / "model.safetensors")
    exported = load_file(whole / "model.safetensors")
    layer = "esm.encoder.layer.1.attention.self.query.weight"
    assert torch.equal(begun[f"backbone.model.{layer}"], exported[layer])
    assert not torch.equal(exported[layer], load_file(place / "esm" / "model.safetensors")[layer])


def test_an_export_is_not_resumed(place, bundle, capfd):
    assert tiny.command(place, "--run", str(bundle), "--resume") == 2
    assert "was exported" in capfd.readouterr().err


def test_only_a_folder_with_a_model_is_named_by_a_dot(tmp_path):
    from mgen.config import from_yaml

    (tmp_path / "config.yaml").write_text("backbone:\n  name: aido_dna_debug\n")
    config = tiny.sequence_regression.Config()
    assert from_yaml(config, tmp_path / "config.yaml").backbone.name == "aido_dna_debug"
    (tmp_path / "config.yaml").write_text("backbone:\n  name: .\n")
    with pytest.raises(InputError, match="config.json"):
        from_yaml(config, tmp_path / "config.yaml")
    facts = {"model_type": "rnabert", "vocab_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert from_yaml(config, tmp_path / "config.yaml").backbone.name == str(tmp_path)


# --------------------------------------------------------------------------- what is refused


def test_a_bundle_of_finetuned_weights_is_refused(place):
    with pytest.raises(InputError, match="were finetuned"):
        write(place, "all", "never", bundle=True)


def test_a_full_export_is_not_exported_again_but_a_bundle_is(place, bundle, whole):
    for again in (False, True):
        options = export.Export(run=str(whole), folder=str(place / "never"), bundle=again)
        with pytest.raises(InputError, match="full export already"):
            export.export(options)
    options = export.Export(run=str(bundle), folder=str(place / "twice"), bundle=True)
    assert predict(export.export(options)) == predict(bundle)


def test_a_folder_that_holds_something_is_left_alone(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    options = export.Export(run=str(run_folder(place, "lora")), folder=str(tmp_path))
    with pytest.raises(InputError, match="holds something"):
        export.export(options)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("bundle_", [False, True])
def test_nothing_remains_of_an_export_that_fails(bundle_, place, tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card.Card, "text", full)
    run = str(run_folder(place, "lora"))
    options = export.Export(run=run, folder=str(tmp_path / "x"), bundle=bundle_)
    with pytest.raises(InputError, match="No space left"):
        export.export(options)
    assert not [*tmp_path.iterdir()]


def damaged(run: Path) -> None:
    with (run / "checkpoints" / "best" / "facts.json").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (lambda run: None, ["--checkpoint", "step-999"], "no checkpoint 'step-999'; there are: b"),
        (damaged, [], "facts.json has"),
        (lambda run: shutil.rmtree(run / "checkpoints"), [], "no checkpoint 'best'"),
        (lambda run: (run / "config.yaml").unlink(), [], "not a run directory"),
        (lambda run: (run / "config.yaml").write_text("a: ["), [], "or damaged"),
        (lambda run: (run / "environment.json").unlink(), [], "environment.json"),
        (lambda run: (run / "environment.json").write_text("{"), [], "damaged"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_with_2(
    spoil, flags, message, place, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(run_folder(place, "lora"), tmp_path / "run", symlinks=True)
    spoil(run)
    monkeypatch.setattr(sys, "argv", ["mgen", "export", str(run), str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


# --------------------------------------------------------------------------- the card


def front(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_the_head_of_a_card_says_what_the_hub_asks_for(place, whole):
    hub_id = "facebook/esm2_t6_8M_UR50D"
    bundle = front(write(place, "lora", "carded", bundle=True, base=hub_id))
    tags = ["mgen", "protein", "biology", "sequence-regression", "lora"]
    assert bundle == {
        "license": "mit",
        "base_model": hub_id,
        "base_model_relation": "adapter",
        "library_name": "mgen",
        "tags": tags,
    }
    assert front(whole) == {"license": "unknown", "library_name": "transformers", "tags": tags}


@pytest.mark.parametrize("form", ["bundle", "whole"])
def test_the_lines_of_a_card_work(form, place, request, monkeypatch):
    folder = request.getfixturevalue(form)
    monkeypatch.chdir(folder.parent)
    shutil.copytree(place / "esm", folder.parent / "esm", dirs_exist_ok=True)
    text = (folder / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    for recipe, flags in re.findall(r"^python recipes/(\w+).py (.+)$", text, re.M):
        assert recipe == "sequence_regression"
        words = flags.replace("new.tsv", "rows.tsv").replace("more.tsv", "rows.tsv").split()
        words[words.index("--data.path") + 1] = str(place / "rows.tsv")
        assert tiny.command(place, *words, "--dry-run") == 0


def test_a_card_tells_rows_metrics_and_licence(place, whole):
    text, run = (whole / "README.md").read_text(), run_folder(place, "lora")
    results = json.loads((run / "results.json").read_text())
    assert "| rows | 24 train, 9 valid, 7 test |" in text
    assert f"| mae | {results['test']['mae']:.4g} | " in text
    assert f"{results['test']['mean baseline']['mae']:.4g} |" in text
    assert f"step {results['best_step']}" in text
    assert json.loads((run / "environment.json").read_text())[0]["rows"] in text


def a_card(base: str, tokens: int = 12, **data) -> card.Card:
    config = plain(tiny.sequence_regression.Config())
    config["data"] |= {"name": "t", "path": "t.tsv"} | data
    return card.Card(
        name="someone/x",
        what="",
        settings=config,
        session={"recipe": "sequence_regression"},
        results={},
        facts={"tokens": tokens},
        step=None,
        bundle=True,
        base=base,
        entry=find(base),
        modality="dna",
        context=100,
        finetuned=False,
        special=2,
        auto="",
    )


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        ("esm2_8m", {"license": "mit"}),
        ("prot_bert", {"license": "afl-3.0"}),
        ("ankh_base", {"license": "cc-by-nc-sa-4.0"}),
        ("aido_dna_debug", {"license": "apache-2.0"}),
        ("someone/thing", {"license": "unknown"}),
        (
            "aido_dna_7b",
            {
                "license": "other",
                "license_name": "genbio-ai-community-licence",
                "license_link": "https://huggingface.co/genbio-ai/AIDO.DNA-7B",
            },
        ),
    ],
)
def test_licences_are_told_as_the_hub_knows_them(base, licence):
    head = a_card(base).front()
    assert {key: value for key, value in head.items() if "license" in key} == licence


def test_only_the_licence_of_aido_has_no_identifier_on_the_hub():
    others = {n for n, e in ZOO.items() if e.hub and a_card(n).front()["license"] == "other"}
    assert others == {name for name, entry in ZOO.items() if entry.hub.startswith("genbio-ai/")}


def test_a_data_set_of_the_hub_is_linked_and_a_file_is_not():
    assert a_card("esm2_8m", path="someone/table").front()["datasets"] == ["someone/table"]
    assert "datasets" not in a_card("esm2_8m", path="tables/mine.tsv").front()


@pytest.mark.parametrize("tokens", [12, 62, 301])
def test_the_sequence_of_a_card_is_as_long_as_the_training_rows(tokens):
    (row,) = eval(re.search(r"predict\((.+)\)\n", a_card("esm2_8m", tokens).text())[1])
    assert (row[:4], len(row)) == ("ACGT", tokens - 2)


def test_text_from_outside_means_nothing_in_a_card():
    hostile = "a|b\n# <script> [x](http://y) `z`\x1b[31m"
    assert card.prose(hostile) == r"a\|b \# \<script\> \[x\](http://y) \`z\` \[31m"
    assert card.code(hostile) == r"`a\|b # <script> [x](http://y) 'z' [31m`"
    assert card._block("yaml", "a: '```'") == "````yaml\na: '```'\n````"


# --------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_stand_in.running(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.mark.parametrize(("bundle_", "tolerance"), [(True, 0), (False, 1e-5)])
def test_what_is_pushed_loads_by_its_name(bundle_, tolerance, place, hub, tmp_path):
    run = run_folder(place, "lora")
    options = {"bundle": bundle_, "push_to_hub": NAME, "private": True}
    folder = write(place, "lora", f"pushed-{bundle_}", **options)
    assert hub.settings[NAME]["visibility"] == "private"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert hub.files[NAME] == {str(f.relative_to(folder)): f.read_bytes() for f in files}
    assert f'load_run("{NAME}")' in hub.files[NAME]["README.md"].decode()
    shutil.rmtree(folder)
    assert apart(predict(NAME), predict(run)) <= tolerance
    assert any((tmp_path / "cache").rglob("config.yaml"))


def test_a_push_adds_to_what_is_there(bundle, hub):
    hub.files[NAME] = {".gitattributes": b"*", "README.md": b"old"}
    export.hub.push(bundle, NAME, private=False)
    assert hub.files[NAME][".gitattributes"] == b"*"
    assert hub.files[NAME]["README.md"] == (bundle / "README.md").read_bytes()


def test_verbs_take_a_run_of_the_hub_and_write_here(place, bundle, hub, tmp_path, capfd):
    hub.add(NAME, bundle)
    hub.files[NAME]["evil.py"] = b"raise SystemExit"
    shutil.copy(place / "rows.tsv", tmp_path)
    predicting = ["predict", "--run", NAME, "--name", "mine", "--format", "tsv"]
    assert tiny.command(tmp_path, *predicting) == 0
    mine = run_folder(tmp_path, "mine")
    assert len((mine / "predictions" / "rows.tsv").read_text().splitlines()) == 1 + 40
    assert not [*(tmp_path / "cache").rglob("*.py"), *(tmp_path / "cache").rglob("predictions")]
    assert tiny.command(tmp_path, "predict", "--run", NAME, "--revision", "v2") == 2
    assert "revision v2" in capfd.readouterr().err


def test_a_run_of_the_hub_cannot_ask_for_its_own_code(bundle, hub):
    hub.add(NAME, bundle)
    config = hub.files[NAME]["config.yaml"].replace(b"  frozen:", b"  remote_code: true\n  frozen:")
    hub.files[NAME]["config.yaml"] = config
    with pytest.raises(InputError, match="Python files of its own"):
        mgen.load_run(NAME)


def test_a_folder_cannot_ask_for_its_own_code_either(bundle, place, tmp_path, capfd):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("  frozen:", "  remote_code: true\n  frozen:")
    )
    with pytest.raises(InputError, match="run only with --backbone.remote-code"):
        mgen.load_run(folder)
    assert tiny.command(place, "predict", "--run", str(folder)) == 2
    with pytest.raises(InputError, match="run only with --backbone.remote-code"):
        export.export(export.Export(run=str(folder), folder=str(tmp_path / "x"), bundle=True))


def test_a_name_that_neither_hub_nor_disk_knows(hub):
    with pytest.raises(InputError, match="someone/nothing .*no such folder"):
        mgen.load_run("someone/nothing")


def test_nothing_is_uploaded_of_what_cannot_be_exported(place, hub):
    with pytest.raises(InputError, match="were finetuned"):
        write(place, "all", "never", bundle=True, push_to_hub=NAME)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["strength", "a/b/c", "a b/c", "someone/"])
def test_a_name_the_hub_does_not_take_is_refused_first(name, place, hub):
    with pytest.raises(InputError, match="--push-to-hub"):
        write(place, "lora", "never", push_to_hub=name)
    assert hub.asked == [] and not (place / "exports" / "never").exists()


def test_without_a_token_it_is_said_how_to_log_in(place, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "no token"))
    with pytest.raises(InputError, match="hf auth login"):
        write(place, "lora", "never", push_to_hub=NAME)
    assert hub.asked == [] and not (place / "exports" / "never").exists()


def test_a_token_that_may_not_write_leaves_the_folder(bundle, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(InputError, match="is complete; once"):
        export.hub.push(bundle, NAME, private=False)


def test_a_hub_out_of_reach_leaves_the_folder(bundle, hub, monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as taken:  # bound but not listening: refuses connections
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(InputError, match="is complete; once"):
            export.hub.push(bundle, NAME, private=False)
        with pytest.raises(InputError, match="no such folder"):
            mgen.load_run(NAME)
