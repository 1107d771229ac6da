"""LoRA and its kin, memory savers, several devices, saving, and the backbone of another run.

pytest tests/test_backbone_options.py
"""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import fit, sequence_regression, settings, with_backbone

from mgen.backbones import backbone, load_backbone, memory
from mgen.backbones.lora import adapt, merge
from mgen.config import InputError

BATCH = ["ACGTACGTAC", "GATTACA", "N"]
KINDS = [{}, {"lora_rslora": True}, {"lora_dora": True}]


def filled(network):
    """With LoRA matrices that do something: B starts at zero."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return network


# ------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m", "aido_protein_debug"])
def test_merged_lora_gives_what_unmerged_lora_gives(name, options):
    targets = ("all-linear",)
    options = options | {"lora_rank": 2, "lora_targets": targets, "lora_alpha": 4.0}
    network = filled(load_backbone(name, random_weights=True, **options))
    batch = network.tokenize(["ACGACCA", "GG"])
    with torch.no_grad():
        unmerged = network(batch)
        merge(network)
        merged = network(batch)
    assert (merged - unmerged).abs().max() <= 1e-5
    assert not any("lora" in name for name, _ in network.named_modules())


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 4**0.5)])
def test_lora_adds_its_scaled_product(rslora, scale):
    options = {"lora_rank": 4, "lora_alpha": 8.0, "lora_rslora": rslora}
    network = filled(load_backbone("aido_dna_debug", **options))
    query = network.encoder.encoder.layer[0].attention.self.query
    base = query.base_layer.weight.clone()
    a, b = query.lora_A["default"].weight, query.lora_B["default"].weight
    expected = base + scale * b @ a
    merge(network)
    merged = network.encoder.encoder.layer[0].attention.self.query.weight
    assert (merged - expected).abs().max() <= 1e-6


def test_all_linear_adapts_every_linear_layer_of_the_encoder_alone():
    options = {"lora_rank": 2, "lora_targets": ("all-linear",)}
    network = load_backbone("aido_dna_debug", **options)
    adapted = {n.split(".lora_A")[0] for n, _ in network.named_parameters() if ".lora_A" in n}
    plain = load_backbone("aido_dna_debug")
    linear = (torch.nn.Linear,)
    encoder = {f"model.bert.{n}" for n, m in plain.encoder.named_modules() if isinstance(m, linear)}
    assert adapted == encoder and len(encoder) == 2 * 7


def test_all_linear_leaves_the_contact_head_of_esm_alone():
    network = load_backbone(
        "esm2_8m", random_weights=True, lora_rank=2, lora_targets=("all-linear",)
    )
    network.train()(network.tokenize(["MKV", "A"])).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_a_wrong_target_beside_all_linear_is_refused():
    with pytest.raises(InputError, match="called 'querry'"):
        load_backbone("aido_dna_debug", lora_rank=2, lora_targets=("all-linear", "querry"))


def test_dora_trains_row_lengths_too():
    network = load_backbone("aido_dna_debug", lora_rank=2, lora_dora=True).train()
    network(network.tokenize(BATCH)).square().sum().backward()
    names = {n for n, p in network.named_parameters() if p.requires_grad}
    assert sum("magnitude" in name for name in names) == 4
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("option", ["lora_rslora", "lora_dora"])
def test_kinds_of_lora_without_a_rank_are_refused(option):
    with pytest.raises(InputError, match="needs --backbone.lora-rank above 0"):
        backbone("aido_dna_debug", **{option: True}).tokenizer()


# ------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m", "aido_protein_debug"])
def test_recomputed_activations_give_the_same_gradients(name):
    torch.manual_seed(2)
    plain = load_backbone(name, random_weights=True, dropout=0.2).train()
    lean = load_backbone(name, random_weights=True, dropout=0.2, gradient_checkpointing=True)
    lean.load_state_dict(plain.state_dict())
    lean.train()
    kept = []

    def count(network):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t) or t, lambda t: t):
            torch.manual_seed(3)
            loss = network(network.tokenize(["ACGACCA", "GG"])).square().sum()
        kept.append(len(sizes))
        loss.backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}

    expected, got = count(plain), count(lean)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert kept[1] < kept[0] / 2


def test_a_network_spread_over_devices_gives_the_same_states(monkeypatch):
    import accelerate

    layers = {f"model.bert.encoder.layer.{i}": "cpu" for i in range(2)}
    places = {"model.bert.embeddings": "cpu", **layers, "model.bert.encoder.ln": "cpu"}
    places |= {"model.bert.dropout": "cpu", "model.cls": "cpu"}
    monkeypatch.setattr(accelerate, "infer_auto_device_map", lambda *_, **__: places)
    torch.manual_seed(1)
    spread = load_backbone("aido_dna_debug", device_map="auto")
    torch.manual_seed(1)
    whole = load_backbone("aido_dna_debug")
    batch = whole.tokenize(BATCH)
    assert torch.equal(spread(batch), whole(batch))
    assert torch.equal(spread.decoder(spread(batch)), whole.decoder(whole(batch)))
    assert hasattr(spread.model.bert.encoder.layer[0], "_hf_hook")
    assert spread.to("meta").device.type == "cpu"  # stays where it was put


def test_a_network_that_fits_nowhere_is_refused(monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate, "infer_auto_device_map", lambda *_, **__: {"model": "disk"})
    with pytest.raises(InputError, match="does not fit into the memory of all devices"):
        load_backbone("aido_dna_debug", device_map="auto")


def test_rounded_weights_cannot_train():
    with pytest.raises(InputError, match="rounded weights cannot train"):
        backbone("aido_dna_debug", quantise="4bit").tokenizer()


def test_rounding_without_cuda_or_bitsandbytes_is_refused(monkeypatch):
    import sys

    with pytest.raises(InputError, match="needs a CUDA device"):
        load_backbone("aido_dna_debug", quantise="8bit", frozen=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        load_backbone("aido_dna_debug", quantise="8bit", frozen=True)


@pytest.mark.parametrize(("bits", "distance"), [("8bit", 0.05), ("4bit", 0.3)])
def test_rounded_weights_stay_close_and_take_lora(bits, distance):
    pytest.importorskip("bitsandbytes", reason="an extra that is not installed here")
    torch.manual_seed(0)
    plain = load_backbone("aido_dna_debug")
    torch.manual_seed(0)
    network = load_backbone("aido_dna_debug")
    memory.quantise(network, bits)
    adapt(network, backbone("aido_dna_debug", lora_rank=2))
    batch = plain.tokenize(BATCH)
    assert (network(batch) - plain(batch)).abs().mean() < distance
    network.train()(batch).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    with pytest.raises(InputError, match="cannot be merged"):
        merge(network)


@pytest.mark.parametrize("option", ["dropout", "lora_dropout"])
def test_a_dropout_that_is_no_share_is_refused(option):
    with pytest.raises(InputError, match=f"{option.replace('_', '-')} 2.0: expected a share"):
        backbone("aido_dna_debug", **{option: 2.0}).tokenizer()


def test_modules_that_need_full_precision_keep_it():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    network[1].full_precision = True
    memory.cast(network, "bfloat16")
    assert [part.weight.dtype for part in network] == [torch.bfloat16, torch.float32]


# ------------------------------------------------------------------------------- saved, handed over


@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m"])
def test_a_saved_backbone_loads_like_a_published_one(name, tmp_path):
    network = filled(load_backbone(name, random_weights=True, lora_rank=2))
    batch = network.tokenize(["ACGAC", "GG"])
    before = network(batch)
    network.save(tmp_path)
    again = load_backbone(str(tmp_path))
    assert (again(batch) - before).abs().max() <= 1e-5
    stored = load_file(tmp_path / "model.safetensors")
    plain = load_backbone(name, random_weights=True).model.state_dict()
    assert stored.keys() == plain.keys()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] in ("rnabert", "esm")


def test_transformers_loads_a_saved_esm_with_its_tokenizer(tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    network = load_backbone("esm2_8m", random_weights=True)
    network.save(tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(["MKV<mask>A", "GW"], padding=True, return_tensors="pt")
    batch = network.tokenize(["MKV<mask>A", "GW"])
    assert torch.equal(tokens["input_ids"], batch["input_ids"])
    with torch.no_grad():
        logits = theirs(**tokens).logits
    real = batch["attention_mask"].bool()
    assert (network.decoder(network(batch)) - logits)[real].abs().max() <= 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories of one full, one LoRA and one frozen finetuning, and their networks."""
    made = {}
    for kind, options in {
        "full": {},
        "lora": {"lora_rank": 2, "lora_dropout": 0.0},
        "frozen": {"frozen": True},
    }.items():
        from mgen.config import to_yaml

        folder = tmp_path_factory.mktemp(kind)
        cfg = with_backbone(settings(folder, epochs=1, max_steps=3), dropout=0.0, **options)
        run = fit(cfg, folder / "run")
        run.run()
        (folder / "run" / "config.yaml").write_text(to_yaml(cfg))
        made[kind] = (folder / "run", run.task.backbone.eval())
    return made


@pytest.mark.parametrize("kind", ["full", "lora", "frozen"])
def test_a_task_starts_from_the_backbone_of_another_run(kind, runs):
    folder, trained = runs[kind]
    torch.manual_seed(99)  # random weights of the first run are drawn from its own seed
    taken = load_backbone(str(folder))
    assert not any("lora" in name for name, _ in taken.named_modules())
    assert all(p.requires_grad for p in taken.encoder.parameters())
    batch = trained.tokenize(BATCH)
    assert (taken(batch) - trained(batch)).abs().max() <= (1e-5 if kind == "lora" else 0)
    again = load_backbone(str(folder), lora_rank=3, max_length=6, truncate="window")
    assert again.tokenizer.max_length == 6
    assert all(".lora_" in n for n, p in again.named_parameters() if p.requires_grad)


def test_dropout_and_recomputation_are_those_asked_for_now(runs):
    taken = load_backbone(str(runs["full"][0]), dropout=0.3)
    assert {m.p for m in taken.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_a_run_without_a_checkpoint_or_with_a_damaged_one_is_refused(runs, tmp_path):
    import shutil

    folder = shutil.copytree(runs["full"][0], tmp_path / "run", symlinks=True)
    file = folder / "checkpoints" / "best" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(InputError, match="model.safetensors has changed"):
        load_backbone(str(folder))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_backbone(str(folder))


def test_a_run_on_other_base_weights_is_refused(runs, tmp_path):
    import shutil

    folder = shutil.copytree(runs["lora"][0], tmp_path / "run", symlinks=True)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("seed: 42\n  workers", "seed: 43\n  workers")
    )
    with pytest.raises(InputError, match="trained on other backbone weights"):
        load_backbone(str(folder))


def test_options_survive_a_choice_of_a_run(runs):
    choice = backbone(str(runs["full"][0]), lora_rank=2)
    assert dataclasses.asdict(choice)["lora_rank"] == 2 and choice.tokenizer().modality == "dna"


def test_one_network_over_all_devices_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="is for one process"):
        backbone("aido_dna_debug", device_map="auto").tokenizer()


def test_a_backbone_that_the_recipe_froze_is_handed_over(tmp_path):
    """ridge_regression trains no weight of the backbone, whatever the settings say."""
    from mgen.config import to_yaml

    cfg = with_backbone(settings(tmp_path, epochs=1, max_steps=1), dropout=0.0)
    run = fit(cfg, tmp_path / "run", FrozenByRecipe)
    run.run()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(cfg))
    taken, trained = load_backbone(str(tmp_path / "run")), run.task.backbone.eval()
    batch = trained.tokenize(BATCH)
    assert torch.equal(taken(batch), trained(batch))
    assert all(p.requires_grad for p in taken.encoder.parameters())


class FrozenByRecipe(sequence_regression.SequenceRegression):
    def build(self) -> None:
        self.backbone.requires_grad_(False)
        super().build()
