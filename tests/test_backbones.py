"""Every backbone name, loading of checkpoints in the published layouts, LoRA, embeddings.

    pytest tests/test_backbones.py

Checkpoints are random weights written here in the published layout; expected key names and sizes
are those of the specification of the published models, written out below.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgen.backbones import backbone, load_backbone
from mgen.backbones.zoo import ZOO, find
from mgen.config import InputError

# name: width, layers, heads, feed-forward, context (max_position_embeddings), biases, norm biases
RNABERTS = {
    "aido_dna_7b": (4352, 32, 32, 11584, 4000, True, True),
    "aido_dna_debug": (64, 2, 4, 128, 512, True, False),
    "aido_rna_1m_mars": (128, 6, 8, 320, 1024, False, False),
    "aido_rna_25m_mars": (512, 8, 16, 1344, 1024, True, True),
    "aido_rna_650m": (1280, 33, 20, 3392, 1024, True, True),
    "aido_rna_650m_cds": (1280, 33, 20, 3392, 1024, True, True),
    "aido_rna_1b600m": (2048, 32, 32, 5440, 1024, True, True),
    "aido_rna_1b600m_cds": (2048, 32, 32, 5440, 1024, True, True),
}
ESMS = {
    "esm2_8m": (320, 6, 20),
    "esm2_35m": (480, 12, 20),
    "esm2_150m": (640, 30, 20),
    "esm2_650m": (1280, 33, 20),
    "esm2_3b": (2560, 36, 40),
    "esm2_15b": (5120, 48, 40),
}
ONEHOTS = {"dna_onehot": 16, "protein_onehot": 44}
# Their heads or feed-forward width are published only in config.json.
SIZES_UNKNOWN = {"aido_dna_300m", "aido_dna_dummy", "aido_rna_300m_mars"}


def rnabert_shapes(width, layers, inner, bias, norm_bias) -> dict[str, tuple]:
    """Names and shapes of a published masked-LM checkpoint."""

    def linear(name, rows, columns, has_bias):
        return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if has_bias else {})

    def norm(name):
        return {f"{name}.{p}": (width,) for p in ("weight", "bias")[: 2 if norm_bias else 1]}

    shapes = {"bert.embeddings.word_embeddings.weight": (16, width), "cls.predictions.bias": (16,)}
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        shapes |= norm(f"{layer}.attention.ln") | norm(f"{layer}.ln")
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", width, width, bias)
        shapes |= linear(f"{layer}.mlp.gate_proj", inner, width, bias)
        shapes |= linear(f"{layer}.mlp.up_proj", inner, width, bias)
        shapes |= linear(f"{layer}.mlp.down_proj", width, inner, bias)
    shapes |= norm("bert.encoder.ln") | norm("cls.predictions.transform.LayerNorm")
    return shapes | linear("cls.predictions.transform.dense", width, width, True)


def esm_shapes(width, layers, heads) -> dict[str, tuple]:
    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {
        "esm.embeddings.word_embeddings.weight": (33, width),
        "esm.embeddings.position_embeddings.weight": (1026, width),
        "esm.rotary_embeddings.inv_freq": (width // heads // 2,),
        "lm_head.bias": (33,),
    }
    for i in range(layers):
        layer = f"esm.encoder.layer.{i}"
        shapes |= norm(f"{layer}.attention.LayerNorm") | norm(f"{layer}.LayerNorm")
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{part}", width, width)
        shapes |= linear(f"{layer}.intermediate.dense", 4 * width, width)
        shapes |= linear(f"{layer}.output.dense", width, 4 * width)
    shapes |= norm("esm.encoder.emb_layer_norm_after") | norm("lm_head.layer_norm")
    shapes |= linear("esm.contact_head.regression", 1, layers * heads)
    return shapes | linear("lm_head.dense", width, width)


def shapes_of(network) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in network.model.state_dict().items()}


def on_meta(name: str):
    with torch.device("meta"):
        return load_backbone(name, random_weights=True)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A folder in the published layout, masked-LM form, random weights in every parameter."""
    torch.manual_seed(1)
    network = load_backbone("aido_dna_debug")
    state = {k: torch.randn_like(v) * 0.1 for k, v in network.model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    config = find("aido_dna_debug").config_json()
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({k: v.clone() for k, v in state.items()}, folder / "model.safetensors")


BATCH = ["ACGTACGTAC", "GATTACA", "N"]


# ------------------------------------------------------------------------------- names


def test_these_families_have_exactly_the_published_names():
    known = {name for name, e in ZOO.items() if e.family in ("rnabert", "esm", "onehot")}
    assert known == {*RNABERTS, *ESMS, *ONEHOTS, *SIZES_UNKNOWN, "dna_tiny"}  # that is our own


@pytest.mark.parametrize("name", RNABERTS)
def test_every_nucleotide_model_has_the_published_sizes_and_keys(name):
    width, layers, heads, inner, context, bias, norm_bias = RNABERTS[name]
    network = on_meta(name)
    assert (network.width, network.num_layers, network.context) == (width, layers, context)
    assert network.config.num_attention_heads == heads
    assert network.modality == ("rna" if "rna" in name else "dna")
    assert shapes_of(network) == rnabert_shapes(width, layers, inner, bias, norm_bias)


@pytest.mark.parametrize("name", ESMS)
def test_every_esm_has_the_published_sizes_and_keys(name):
    width, layers, heads = ESMS[name]
    network = on_meta(name)
    assert (network.width, network.num_layers, network.context) == (width, layers, 1026)
    assert network.modality == "protein"
    assert shapes_of(network) == esm_shapes(width, layers, heads)


@pytest.mark.parametrize("name", [*ONEHOTS, "aido_dna_debug", "aido_rna_1m_mars", "esm2_8m"])
def test_named_backbones_run_forward(name):
    network = load_backbone(name, random_weights=True)
    hidden = network(network.tokenize(["ACG", "A"]))
    assert hidden.shape == (2, 3 + network.tokenizer.num_special, network.width)
    assert network.width == ONEHOTS.get(name, network.width)
    assert hidden.isfinite().all()


@pytest.mark.parametrize("name", sorted(SIZES_UNKNOWN))
def test_random_weights_of_unknown_size_are_refused(name):
    with pytest.raises(InputError, match="sizes are not known"):
        backbone(name, random_weights=True).build()


def test_every_hub_id_resolves_by_both_names():
    for entry in ZOO.values():
        if entry.hub:
            assert find(entry.hub) is entry
            assert find(entry.hub.replace("genbio-ai/AIDO.", "genbio-ai/GB.")) is entry
    assert type(backbone("genbio-ai/GB.RNA-650M")).__name__ == "rnabert"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'aido_rna_650m'"):
        backbone("aido_rna_650")


def test_a_missing_folder_is_an_error_before_anything_else():
    with pytest.raises(InputError, match="no folder './nowhere'"):
        backbone("./nowhere")


def test_a_folder_without_config_is_an_error_before_anything_else(tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        backbone(str(tmp_path))


def test_an_unsupported_model_type_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match="'nonsense' .* is known neither here nor to transformers"):
        backbone(str(tmp_path)).tokenizer()


def test_weights_that_cannot_be_downloaded_are_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="genbio-ai/AIDO.RNA-650M .*copy the folder"):
        load_backbone("aido_rna_650m")


def test_listing_names_and_options_imports_no_torch():
    code = (
        "import sys, mgen.backbones as b; b.backbone('esm2_8m'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


# ------------------------------------------------------------------------------- loading


def test_a_folder_loads_its_weights(checkpoint):
    state = load_backbone(str(checkpoint)).model.state_dict()
    stored = tensors(checkpoint)
    assert set(state) == set(stored)
    assert all(torch.equal(state[key], stored[key]) for key in stored)


@pytest.mark.parametrize("kind", ["bin", "sharded", "sharded_bin"])
def test_every_weight_layout_loads_alike(kind, checkpoint):
    expected = load_backbone(str(checkpoint)).fingerprint()
    stored = tensors(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(OrderedDict(stored), checkpoint / "pytorch_model.bin")
    else:
        stem, suffix = ("pytorch_model", "bin") if "bin" in kind else ("model", "safetensors")
        write = torch.save if "bin" in kind else save_file
        shards = {key: f"{stem}-0000{i % 2 + 1}-of-00002.{suffix}" for i, key in enumerate(stored)}
        for shard in set(shards.values()):
            write({k: stored[k] for k in stored if shards[k] == shard}, checkpoint / shard)
        index = checkpoint / f"{stem}.{suffix}.index.json"
        index.write_text(json.dumps({"weight_map": shards}))
    assert load_backbone(str(checkpoint)).fingerprint() == expected


def test_an_encoder_saved_alone_loads_without_a_head(checkpoint):
    full, stored = load_backbone(str(checkpoint)), tensors(checkpoint)
    bert = {k.removeprefix("bert."): v for k, v in stored.items() if k.startswith("bert.")}
    rewrite(checkpoint, bert)
    alone = load_backbone(str(checkpoint))
    batch = full.tokenize(BATCH)
    hidden = alone(batch)
    assert torch.equal(hidden, full(batch))
    with pytest.raises(InputError, match="no language-model head"):
        alone.decoder(hidden)


@pytest.mark.parametrize("form", ["EsmForMaskedLM", "EsmModel"])
def test_esm_as_transformers_saves_it_loads(form, tmp_path):
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    facts = {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 32}
    config = transformers.EsmConfig(
        vocab_size=33,
        intermediate_size=48,
        pad_token_id=1,
        max_position_embeddings=40,
        **sizes,
        **facts,
    )
    theirs = getattr(transformers, form)(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_backbone(str(tmp_path))
    batch = ours.tokenize(["MKV<mask>AA", "GW"])
    masks = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = theirs(**masks, output_hidden_states=True).hidden_states[-1]
    real = batch["attention_mask"].bool()
    assert (ours(batch) - expected)[real].abs().max() <= 1e-5
    assert bool(ours.model.lm_head) == (form == "EsmForMaskedLM")


@pytest.mark.parametrize("layout", ["per layer", "once", "none"])
def test_stored_rotary_frequencies_are_used_as_transformers_does(layout, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.EsmConfig(
        **{"vocab_size": 33, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "position_embedding_type": "rotary", "token_dropout": True},
        **{"pad_token_id": 1, "mask_token_id": 32, "max_position_embeddings": 400},
    )
    theirs = transformers.EsmForMaskedLM(config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # attention that sees positions
    theirs.save_pretrained(tmp_path)
    stored = tensors(tmp_path)
    (key,) = (name for name in stored if name.endswith("inv_freq"))
    rounded = stored.pop(key).half().float()  # as published: the buffer went through fp16
    if layout == "per layer":
        name = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
        stored |= {name.format(i): rounded for i in range(2)}
    elif layout == "once":
        stored[key] = rounded
    rewrite(tmp_path, stored)
    theirs = transformers.EsmForMaskedLM.from_pretrained(tmp_path).eval()
    ours = load_backbone(str(tmp_path))
    batch = ours.tokenize(["MKVLAW" * 50])
    with torch.no_grad():
        expected = theirs.esm(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        assert (ours(batch) - expected).abs().max() <= 1e-5
        ours.model.esm.rotary_embeddings.inv_freq.copy_(ours.model.esm.rotary.frequencies())
        moved = (ours(batch) - expected).abs().max()
    assert (moved > 1e-4) == (layout != "none")  # the rounding is seen


def test_duplicates_of_tied_weights_and_buffers_are_accepted(checkpoint):
    expected, stored = load_backbone(str(checkpoint)).fingerprint(), tensors(checkpoint)
    stored["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"]
    stored["cls.predictions.decoder.bias"] = stored["cls.predictions.bias"]
    stored["bert.embeddings.position_ids"] = torch.arange(512)
    stored["bert.encoder.layer.0.attention.self.rotary.inv_freq"] = torch.ones(8)
    rewrite(checkpoint, stored)
    assert load_backbone(str(checkpoint)).fingerprint() == expected


def test_untied_output_weights_are_refused(checkpoint):
    stored = tensors(checkpoint)
    table = stored["bert.embeddings.word_embeddings.weight"]
    rewrite(checkpoint, stored | {"cls.predictions.decoder.weight": table + 1})
    with pytest.raises(InputError, match="untied"):
        load_backbone(str(checkpoint))


def test_every_key_that_does_not_fit_is_listed(checkpoint):
    stored = tensors(checkpoint)
    del stored["bert.encoder.ln.weight"]
    stored["bert.extra"] = torch.zeros(1)
    stored["cls.predictions.bias"] = torch.zeros(3)
    rewrite(checkpoint, stored)
    with pytest.raises(InputError) as error:
        load_backbone(str(checkpoint))
    for part in ("missing: bert.encoder.ln.weight", "unexpected: bert.extra", r"is (3,)"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_weight_file_is_named(name, checkpoint):
    if name.endswith("bin"):
        torch.save(tensors(checkpoint), checkpoint / name)
        (checkpoint / "model.safetensors").unlink()
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=name):
        load_backbone(str(checkpoint))


class Opened:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_never_run(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Opened(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors"):
        load_backbone(str(checkpoint))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(shard, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(InputError, match="not a plain file name"):
        load_backbone(str(checkpoint))


def test_of_a_tensor_in_two_shards_that_of_the_index_is_read(checkpoint):
    expected, stored = load_backbone(str(checkpoint)).fingerprint(), tensors(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    key = "bert.encoder.ln.weight"
    save_file(stored, checkpoint / "a.safetensors")
    other = next(name for name in stored if name != key)
    save_file({key: stored[key] + 1, other: stored[other]}, checkpoint / "b.safetensors")
    weight_map = dict.fromkeys(stored, "a.safetensors") | {other: "b.safetensors"}
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert load_backbone(str(checkpoint)).fingerprint() == expected


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.fill_(float("nan")), "holds values that are not finite"),
        (lambda t: t.to(torch.int8), "is stored as torch.int8"),
    ],
)
def test_weights_that_are_no_numbers_of_a_network_are_refused(spoil, says, checkpoint):
    stored = tensors(checkpoint)
    stored["bert.encoder.ln.weight"] = spoil(stored["bert.encoder.ln.weight"].clone())
    rewrite(checkpoint, stored)
    with pytest.raises(InputError, match=f"bert.encoder.ln.weight {says}"):
        load_backbone(str(checkpoint))


@pytest.mark.parametrize(
    "change", [{"hidden_size": -4}, {"num_attention_heads": 0}, {"vocab_size": "8"}]
)
def test_sizes_that_are_none_are_refused(change, checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="expected a whole number above 0"):
        load_backbone(str(checkpoint))


def test_a_missing_shard_is_named(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(InputError, match="shard model-00001-of-00001.safetensors is missing"):
        load_backbone(str(checkpoint))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"position_embedding_type": "relative_key"},
        {"normalization_type": "BatchNorm"},
        {"tie_word_embeddings": False},
        {"num_attention_heads": 3},
    ],
)
def test_a_config_this_network_cannot_be_is_refused(change, checkpoint):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=next(iter(change))):
        load_backbone(str(checkpoint))


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(checkpoint):
    tokens = [*load_backbone("aido_dna_debug").tokenizer.tokens, "R", "Y"]
    (checkpoint / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(InputError, match="vocab.txt: 18 tokens, .* vocab_size 16 rows"):
        backbone(str(checkpoint)).tokenizer()


def test_more_tokens_than_learned_positions_are_refused(checkpoint):
    path = checkpoint / "config.json"
    change = {"position_embedding_type": "absolute", "max_position_embeddings": 8}
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    load_backbone(str(checkpoint), random_weights=True)
    with pytest.raises(InputError, match="this model has 8 positions"):
        load_backbone(str(checkpoint), random_weights=True, max_length=9)


def test_lower_precision_is_kept_in_weights_and_states_stay_float32(checkpoint):
    network = load_backbone(str(checkpoint), dtype="bfloat16")
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    batch = network.tokenize(BATCH)
    hidden = network(batch)
    assert hidden.dtype == network.decoder(hidden).dtype == torch.float32
    exact = load_backbone(str(checkpoint))(batch)
    real = batch["attention_mask"].bool()
    assert (hidden - exact)[real].abs().mean() < 0.1


# ------------------------------------------------------------------------------- random weights


def test_random_weights_follow_the_seed_and_the_published_distribution():
    torch.manual_seed(3)
    first = load_backbone("aido_rna_1m_mars", random_weights=True)
    torch.manual_seed(3)
    second = load_backbone("aido_rna_1m_mars", random_weights=True)
    assert first.fingerprint() == second.fingerprint()
    assert load_backbone("aido_rna_1m_mars", random_weights=True).fingerprint() != (
        first.fingerprint()
    )
    for name, parameter in first.model.named_parameters():
        if parameter.dim() == 2:
            assert abs(parameter.std().item() - 0.02) < 0.002 and parameter.mean().abs() < 0.002
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert (parameter == 1).all()
    assert first.model.bert.embeddings.word_embeddings.weight[0].abs().sum() > 0  # padding row


# ------------------------------------------------------------------------------- what trains


def trainable(network) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_heads_do_not_train_by_default():
    for name in ("aido_dna_debug", "esm2_8m"):
        network = load_backbone(name, random_weights=True)
        network(network.tokenize(["ACG"])).sum().backward()
        used = {n for n, p in network.named_parameters() if p.grad is not None}
        assert trainable(network) == used  # no parameter waits for a gradient that never comes
        assert not any("cls." in n or "lm_head" in n or "contact" in n for n in used)


def test_frozen_weights_do_not_train():
    assert trainable(load_backbone("aido_dna_debug", frozen=True)) == set()


def test_frozen_with_lora_is_refused_before_weights_are_read():
    with pytest.raises(InputError, match="Drop --backbone.frozen, or set --backbone.lora-rank 0"):
        backbone("aido_dna_debug", frozen=True, lora_rank=4).tokenizer()


def test_a_lora_target_without_a_layer_is_refused_even_beside_one_that_has():
    with pytest.raises(InputError, match="called 'querry'. Did you mean 'query'"):
        load_backbone("aido_dna_debug", lora_rank=4, lora_targets=("value", "querry"))


def test_a_wrong_lora_target_is_found_before_weights_are_read(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="called 'querry'"):
        load_backbone(str(checkpoint), lora_rank=4, lora_targets=("querry",))


def test_lora_on_a_backbone_without_weights_is_refused():
    with pytest.raises(InputError, match="no weights for LoRA"):
        load_backbone("dna_onehot", lora_rank=4)


@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m"])
def test_only_lora_trains_and_every_matrix_gets_a_gradient(name):
    targets = ("query", "value", "dense")
    network = load_backbone(name, random_weights=True, lora_rank=2, lora_targets=targets).train()
    for parameter_name, parameter in network.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter)  # B starts at zero, which hides A's gradient
    network(network.tokenize(["ACGACG"])).square().sum().backward()
    assert trainable(network) and all(".lora_" in n for n in trainable(network))
    for parameter_name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(("name", "layers"), [("aido_dna_debug", 2), ("esm2_8m", 6)])
def test_default_lora_adapts_query_and_value_of_every_layer(name, layers):
    names = trainable(load_backbone(name, random_weights=True, lora_rank=2))
    assert len(names) == layers * 2 * 2
    parts = {n.split(".lora_")[0].rpartition(".")[2] for n in names}
    assert parts == {"query", "value"}


def test_merged_lora_gives_what_unmerged_lora_gives():
    from peft.tuners.lora import LoraLayer

    network = load_backbone("aido_dna_debug", lora_rank=4)
    batch = network.tokenize(BATCH)
    with torch.no_grad():
        base = network(batch)
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        unmerged = network(batch)
        for module in network.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        merged = network(batch)
    assert (base - unmerged).abs().max() > 1e-2
    assert (merged - unmerged).abs().max() <= 1e-5


def test_the_fingerprint_is_that_of_the_base_weights(checkpoint):
    plain = load_backbone(str(checkpoint))
    assert load_backbone(str(checkpoint), lora_rank=2).fingerprint() == plain.fingerprint()
    with torch.no_grad():
        next(plain.model.parameters())[0, 0] += 1e-3
    assert load_backbone(str(checkpoint)).fingerprint() != plain.fingerprint()


def test_dropout_acts_in_training_only():
    network = load_backbone("aido_dna_debug", dropout=0.5)
    batch = network.tokenize(BATCH)
    assert torch.equal(network(batch), network(batch))
    network.train()
    assert not torch.equal(network(batch), network(batch))


def test_options_of_a_choice_are_shared_ones_and_the_familys_own():
    names = {f.name for f in dataclasses.fields(backbone("esm2_8m"))}
    assert {"dropout", "frozen", "lora_rank", "max_length"} <= names
    assert "dropout" not in {f.name for f in dataclasses.fields(backbone("dna_onehot"))}


# ------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("name", ["aido_dna_debug", "esm2_8m", "dna_onehot"])
@pytest.mark.parametrize("pool", ["mean", "max", "none"])
def test_embeddings_keep_input_order_and_ignore_batch_mates(name, pool):
    network = load_backbone(name, random_weights=True)
    sequences = ["ACGTACGTACGT", "A", "GATTACA", "CC"]
    together = network.embed(sequences, pool=pool)
    for sequence, row in zip(sequences, together, strict=True):
        alone = network.embed([sequence], pool=pool)[0]
        assert alone.shape == ((len(sequence), network.width) if pool == "none" else row.shape)
        assert (alone - row).abs().max() <= 1e-5
    small = network.embed(sequences, pool=pool, batch_tokens=1)
    for row, other in zip(small, together, strict=True):
        assert (row - other).abs().max() <= 1e-5


def test_pooled_embeddings_are_those_of_the_residues():
    network = load_backbone("aido_dna_debug")
    hidden = network(network.tokenize(["ACGT"]))[0]
    assert torch.allclose(network.embed(["ACGT"])[0], hidden[1:-1].mean(0), atol=1e-6)
    assert torch.allclose(network.embed(["ACGT"], pool="max")[0], hidden[1:-1].amax(0), atol=1e-6)
    assert torch.allclose(network.embed(["ACGT"], pool="cls")[0], hidden[0], atol=1e-6)
    everything = network.embed(["ACGT"], special_tokens=True)[0]
    assert torch.allclose(everything, hidden.mean(0), atol=1e-6)


def test_embeddings_of_an_inner_layer_are_its_hidden_states():
    network = load_backbone("aido_dna_debug")
    states = network.hidden_states(network.tokenize(["ACGT"]))
    got = network.embed(["ACGT"], pool="none", layer=1)[0]
    assert torch.allclose(got, states[1][0, 1:-1], atol=1e-6)


def test_embedding_leaves_the_mode_alone_and_can_be_trained_on():
    network = load_backbone("aido_dna_debug", dropout=0.5).train()
    embedding = network.embed(["ACGT"], pool="none")[0]
    assert network.training and torch.equal(embedding, network.embed(["ACGT"], pool="none")[0])
    torch.nn.Linear(64, 1)(embedding).sum().backward()


def test_an_empty_sequence_cannot_be_embedded():
    with pytest.raises(InputError, match="sequence 1 .* no letters"):
        load_backbone("aido_dna_debug").embed(["ACGT", ""])


def test_pooling_without_a_start_token_is_refused():
    with pytest.raises(InputError, match="no start token"):
        load_backbone("dna_onehot").embed(["ACGT"], pool="cls")
