"""Adapters with layers of their own and fusions against published classes; corrected behaviour.

pytest tests/test_golden_adapters.py
"""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file

from mgen.adapters import adapter
from mgen.adapters.fusion import Fused, fusion
from mgen.config import InputError

PARTS = ("inputs", "model", "outputs")


def read(name):
    """The config of a fixture, its inputs, weights and expected outputs by name."""
    folder = golden(f"adapters/{name}")
    tensors = {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
    return SimpleNamespace(config=json.loads((folder / "config.json").read_text()), **tensors)


def loaded(module, fixture):
    module.load_state_dict(fixture.model)  # strict: the published names
    return module.eval()


def close(got, expected):
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------- transformers


@pytest.fixture
def transformer():
    fixture = read("LinearTransformerAdapter")
    config = fixture.config
    head = adapter(
        "cls_transformer",
        heads=config["nhead"],
        hidden_size=config["dim_feedforward"],
        layers=config["num_layers"],
        dropout=config["dropout"],
    )
    return loaded(head.build(config["embed_dim"], config["out_features"]), fixture), fixture


def test_golden_transformer_attends_within_each_sequence(transformer):
    module, fixture = transformer
    hidden, mask = fixture.inputs["hidden_states"], fixture.inputs["attention_mask"]
    close(module(hidden, mask), fixture.outputs["out_fixed"])
    close(module(hidden), fixture.outputs["out_fixed_nomask"])
    # Gradients take another path through torch than inference does.
    module.requires_grad_(False)
    close(module(hidden, mask.bool()), fixture.outputs["out_fixed"])


def test_golden_transformer_gives_a_row_the_same_outputs_in_any_batch(transformer):
    module, fixture = transformer
    hidden, mask = fixture.inputs["hidden_states"], fixture.inputs["attention_mask"]
    alone = [module(h[None, : m.sum()]) for h, m in zip(hidden, mask, strict=True)]
    close(torch.cat(alone), fixture.outputs["out_fixed"])
    assert module(hidden, torch.zeros_like(mask)).isfinite().all()


@pytest.fixture
def conditional():
    fixture = read("ConditionalLMAdapter")
    config = fixture.config
    head = adapter(
        "conditional_lm",
        heads=config["nhead"],
        hidden_size=config["dim_feedforward"],
        layers=config["num_layers"],
    )
    sizes = config["embed_dim"], config["out_features"]
    return loaded(head.build(*sizes, conditions=config["in_features"]), fixture), fixture


def test_golden_conditional_head_leaves_its_input_alone(conditional):
    module, fixture = conditional
    hidden, conditions = fixture.inputs["embeddings"], fixture.inputs["labels"]
    before = hidden.clone()
    close(module(hidden, None, conditions), fixture.outputs["out_fixed"])
    assert torch.equal(hidden, before)


def test_golden_conditional_head_ignores_padding_and_other_rows(conditional):
    module, fixture = conditional
    hidden, conditions = fixture.inputs["embeddings"], fixture.inputs["labels"]
    padded = torch.cat([hidden, torch.full_like(hidden, 9.0)], dim=1)
    mask = torch.arange(padded.shape[1]).expand(len(padded), -1) < hidden.shape[1]
    for row in range(len(hidden)):
        one = slice(row, row + 1)
        got = module(padded[one], mask[one], conditions[one])[:, : hidden.shape[1]]
        close(got, fixture.outputs["out_fixed"][one])


def test_conditional_head_without_conditions_is_refused():
    with pytest.raises(InputError, match="no conditions"):
        adapter("conditional_lm").build(8, 3)


@pytest.mark.parametrize("name", ["cls_transformer", "conditional_lm"])
def test_heads_that_do_not_divide_the_width_are_refused_with_both_numbers(name):
    with pytest.raises(InputError, match="--adapter.heads 8 .* 20"):
        adapter(name).build(20, 3, conditions=2)


# ------------------------------------------------------------------------------- pairs


def outer_concat(hidden):
    """The definition, element by element, (B, L, L, 2D)."""
    rows, length, width = hidden.shape
    pairs = torch.empty(rows, length, length, 2 * width)
    for i in range(length):
        for j in range(length):
            pairs[:, i, j, 0::2] = hidden[:, min(i, j)]
            pairs[:, i, j, 1::2] = hidden[:, max(i, j)]
    return pairs


def test_golden_linear_head_of_pairs():
    fixture = read("outer_concat_LinearAdapter")
    hidden, config = fixture.inputs["hidden_states"], fixture.config
    close(outer_concat(hidden), fixture.outputs["outer_concat"])
    head = adapter("pair_linear").build(config["in_features"] // 2, config["out_features"])
    close(loaded(head, fixture)(hidden), fixture.outputs["out"])


def test_golden_mlp_of_pairs():
    fixture = read("MLPAdapterWithoutOutConcat")
    config = fixture.config
    options = {key: config[key] for key in ("bias", "dropout", "dropout_in_middle")}
    options |= {"hidden_sizes": tuple(config["hidden_sizes"])}
    head = adapter("pair_mlp", activation=config["activation_layer"].lower(), **options)
    module = loaded(head.build(config["in_features"], config["out_features"]), fixture)
    close(module(fixture.inputs["hidden_states"]), fixture.outputs["out"])


def test_mlp_of_pairs_equals_an_mlp_on_the_outer_concatenation():
    torch.manual_seed(0)
    options = {"hidden_sizes": (7, 5), "activation": "gelu", "dropout_in_middle": False}
    pairs = adapter("pair_mlp", **options).build(6, 2).eval()
    plain = adapter("mlp", **options).build(12, 2).eval()
    weights = [pairs.first_linear, pairs.first_bias]
    weights += [p for layer in pairs.layers[1:] for p in layer.parameters()]
    for mine, theirs in zip(plain.parameters(), weights, strict=True):
        mine.data = theirs.data
    hidden = torch.randn(2, 5, 6)
    close(pairs(hidden), plain(outer_concat(hidden)))


def test_mlp_of_pairs_needs_a_hidden_layer():
    with pytest.raises(InputError, match="pair_linear"):
        adapter("pair_mlp", hidden_sizes=()).build(6, 2)


# ------------------------------------------------------------------------------- residual networks


def resnet(**options):
    fixture = read("ResNet1DAdapter")
    config = fixture.config
    options |= {"channels": config["channels"], "blocks": config["num_blocks"]}
    head = adapter("resnet", dropout=config["dropout"], **options)
    return loaded(head.build(config["input_channels"], config["num_outputs"]), fixture), fixture


def test_golden_resnet_of_a_padded_row_equals_the_unpadded_one():
    module, fixture = resnet()
    hidden, mask = fixture.inputs["x"], ~fixture.inputs["padding_mask"]
    expected = fixture.outputs["out_each_sample_unpadded"].view(len(hidden), -1)
    close(module(hidden, mask), expected)
    close(module(hidden, mask.float()), expected)
    close(module(hidden).flatten(), fixture.outputs["out_nomask"].flatten())


def test_golden_resnet_drops_tokens_at_the_ends_that_do_not_count():
    module, fixture = resnet()
    hidden = fixture.inputs["x"]
    inner = torch.ones(hidden.shape[:2])
    inner[:, [0, -1]] = 0  # such as [CLS] and [SEP]
    close(module(hidden, inner), module(hidden[:, 1:-1]))


def test_golden_resnet_as_published_lets_padding_in():
    module, fixture = resnet(as_published=True)
    inputs, mask = fixture.inputs, ~fixture.inputs["padding_mask"]
    close(module(inputs["x"], mask).flatten(), fixture.outputs["out"].flatten())
    close(module(inputs["x_zeroed"], mask).flatten(), fixture.outputs["out_zeroed"].flatten())


def pair_resnet():
    fixture = read("ResNet2DAdapter")
    config = fixture.config
    head = adapter(
        "pair_resnet",
        channels=config["conv_channels"],
        blocks=config["num_res_blocks"],
        kernel_size=config["kernel_size"],
    )
    return loaded(head.build(config["in_channels"] // 2, 1), fixture), fixture


def test_golden_resnet_of_pairs():
    module, fixture = pair_resnet()
    for given, expected in (("x", "out"), ("x_asym", "out_asym")):
        pairs = fixture.inputs[given]
        kept = torch.ones(*pairs.shape[:2], 1, dtype=torch.bool)
        close(module.maps(module.in_to_conv(pairs), kept)[..., 0], fixture.outputs[expected])


def test_golden_resnet_of_pairs_joins_tokens_by_outer_concatenation():
    module, fixture = pair_resnet()
    torch.manual_seed(0)
    hidden = torch.randn(2, 6, fixture.config["in_channels"] // 2)
    kept = torch.ones(2, 6, 1, dtype=torch.bool)
    close(module(hidden), module.maps(module.in_to_conv(outer_concat(hidden)), kept))


def test_resnet_of_pairs_ignores_padding_and_is_symmetric():
    torch.manual_seed(0)
    module = adapter("pair_resnet", channels=5).build(4, 3).eval()
    hidden, mask = torch.randn(1, 9, 4), torch.arange(9)[None] < 6
    maps = module(hidden, mask)[:, :6, :6]
    close(maps, module(hidden[:, :6]))
    close(maps, maps.transpose(1, 2))
    assert (maps.diagonal(dim1=1, dim2=2) == 0).all() and maps.shape[-1] == 3


# ------------------------------------------------------------------------------- fusion


def modalities(fixture):
    """(hidden, mask) of each modality of a fixture."""
    names = [name for name in ("", "_1", "_2") if f"hidden_states{name}" in fixture.inputs]
    keys = ("hidden_states", "attention_mask")
    return [tuple(fixture.inputs[f"{key}{name}"] for key in keys) for name in names]


def widths(fixture):
    return [hidden.shape[-1] for hidden, _ in modalities(fixture)]


def fusion_of(config):
    if "num_attention_heads" in config:
        return fusion("cross_attention", heads=config["num_attention_heads"])
    pooling = config["pooling"].removesuffix("_pooling")
    return fusion("concat", project_size=config["project_size"], pooling=pooling)


@pytest.mark.parametrize("name", ["ConcatFusion", "ConcatFusion_cls", "ConcatFusion_two"])
def test_golden_concat_fusion(name):
    fixture = read(name)
    module = loaded(fusion_of(fixture.config).build(widths(fixture)), fixture)
    fused, mask = module(modalities(fixture))
    close(fused[:, 0], fixture.outputs["out"])
    assert mask.all() and fused.shape == (len(mask), 1, module.width)


@pytest.mark.parametrize("name", ["CrossAttentionFusion", "CrossAttentionFusion_two"])
def test_golden_cross_attention_of_tokens_that_count(name):
    fixture = read(name)
    module = loaded(fusion_of(fixture.config).build(widths(fixture)), fixture)
    states = modalities(fixture)
    fused, mask = module(states)
    assert torch.equal(mask, states[0][1].bool())
    close(fused[mask], fixture.outputs["out"][mask])  # padding looks at padding there
    if "layer1_out" in fixture.outputs:
        one = module.cross_attention_layer_01(states[0][0], *states[1])
        close(one[mask], fixture.outputs["layer1_out"][mask])


@pytest.mark.parametrize("kind", ["Seq", "Seq_two_mlppool", "Token", "Token_default_two"])
def test_golden_fused_adapters(kind):
    kind, _, rest = kind.partition("_")
    fixture = read(f"MMFusion{kind}Adapter" + (f"_{rest}" if rest else ""))
    chosen = fixture.config["adapter"]
    name = {"LinearCLSAdapter": "linear_cls", "MLPPoolAdapter": "mean_pool_mlp"}
    sizes = {"hidden_sizes": tuple(chosen["hidden_sizes"])} if "hidden_sizes" in chosen else {}
    fusion_module = fusion_of(fixture.config["fusion"]).build(widths(fixture))
    head = adapter(name.get(chosen["type"], "mlp"), **sizes)
    fused = Fused(fusion_module, head.build(fusion_module.width, fixture.config["out_features"]))
    got = loaded(fused, fixture)(modalities(fixture))
    close(got.flatten(), fixture.outputs["out"].flatten())


def test_fusion_heads_that_do_not_divide_the_width_are_refused_with_both_numbers():
    with pytest.raises(InputError, match="--fusion.heads 16 .* 24"):
        fusion("cross_attention").build([24, 8])


FUSIONS = [fusion("concat", project_size=4), fusion("tokens", project_size=4)]
FUSIONS += [fusion("cross_attention", heads=2)]


def fused_rows(choice, states):
    torch.manual_seed(0)
    module = choice.build([hidden.shape[-1] for hidden, _ in states])
    return Fused(module, adapter("mean_pool_mlp").build(module.width, 2)).eval()


def drawn(*shapes):
    torch.manual_seed(1)
    states = [(torch.randn(shape), torch.ones(shape[:2], dtype=torch.long)) for shape in shapes]
    states[1][1][0, 2:] = 0  # padding
    return states


@pytest.mark.parametrize("choice", FUSIONS, ids=lambda choice: choice.name)
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_modality_that_a_row_lacks_enters_nothing(choice, lacking):
    states = drawn((3, 5, 6), (3, 7, 4), (3, 4, 8))
    module = fused_rows(choice, states)
    before = module(states)
    states[lacking][1][1] = 0
    without = module(states)
    states[lacking][0][1] = torch.randn_like(states[lacking][0][1]) * 50
    assert torch.equal(module(states), without)
    assert not torch.allclose(without[1], before[1], atol=1e-4)
    torch.testing.assert_close(without[[0, 2]], before[[0, 2]], atol=1e-6, rtol=0)


def test_the_part_of_a_modality_that_a_row_lacks_is_zeros():
    states = drawn((3, 5, 6), (3, 7, 4))
    states[1][1][1] = 0
    fused, _ = fusion("concat", project_size=4).build([6, 4])(states)
    assert not fused[1, 0, 4:].any() and fused[1, 0, :4].all() and fused[0].all()


def test_a_row_without_the_main_modality_still_hears_the_others():
    states = drawn((3, 5, 6), (3, 7, 4))
    states[0][1][1] = 0
    module = fused_rows(fusion("cross_attention", heads=2), states)
    before = module(states)
    states[1][0][1] += 1
    assert not torch.allclose(module(states)[1], before[1], atol=1e-4)


def test_a_row_that_lacks_a_context_keeps_its_states():
    states = drawn((3, 5, 6), (3, 7, 4))
    states[1][1][1] = 0
    module = fusion("cross_attention", heads=2).build([6, 4])
    assert torch.equal(module(states)[0][1], states[0][0][1])


@pytest.mark.parametrize("choice", FUSIONS, ids=lambda choice: choice.name)
def test_fusions_ignore_padding_and_train_all_their_weights(choice):
    states = drawn((3, 5, 6), (3, 7, 4))
    module = fused_rows(choice, states)
    outputs = module(states)
    padded = [
        (torch.cat([h, torch.full_like(h, 9.0)], 1), torch.cat([m, torch.zeros_like(m)], 1))
        for h, m in states
    ]
    torch.testing.assert_close(module(padded), outputs, atol=1e-5, rtol=0)
    outputs.square().sum().backward()
    idle = {"key.bias"}  # the same for all keys: the softmax does not see it
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert any(map(name.endswith, idle)) or parameter.grad.abs().sum() > 0, name
