import dataclasses
import json

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file

from mgen.adapters import ADAPTERS, adapter
from mgen.config import InputError

PUBLISHED = {  # fixture: ours
    "LinearAdapter": "linear",
    "LinearCLSAdapter": "linear_cls",
    "LinearMaxPoolAdapter": "max_pool_linear",
    "LinearMeanPoolAdapter": "mean_pool_linear",
    "MLPAdapter": "mlp",
    "MLPAdapter_nobias_nodropmid": "mlp",
    "MLPPoolAdapter": "mean_pool_mlp",
    "MLPPoolAdapter_cls": "cls_mlp",
}
PER_TOKEN = ("linear", "mlp", "token_cnn", "token_conv", "token_ffn")
PER_PAIR = ("pair_ffn", "pair_linear", "pair_mlp", "pair_resnet")
FLATTENING = ("flatten_linear", "flatten_mlp")
# The weights of the first are the backbone's, the second has more inputs.
OWN = sorted(set(ADAPTERS.constructors) - {"lm_head", "conditional_lm"})
POOLING = sorted(set(OWN) - {*PER_TOKEN, *PER_PAIR, *FLATTENING})


def published(fixture):
    """The adapter of a fixture with its published weights, the inputs and the expected outputs."""
    folder = golden(f"adapters/{fixture}")
    config = json.loads((folder / "config.json").read_text())
    width, outputs = config.pop("in_features"), config.pop("out_features")
    pooling = config.pop("pooling", "")  # ours is part of the name
    name = {"mean_pooling": "mean_pool_mlp", "cls_pooling": "cls_mlp", "": PUBLISHED[fixture]}
    if "activation_layer" in config:
        config["activation"] = config.pop("activation_layer").lower()
    if "hidden_sizes" in config:
        config["hidden_sizes"] = tuple(config["hidden_sizes"])
    module = adapter(name[pooling], **config).build(width, outputs).eval()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    inputs, outputs = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    return module, inputs, outputs


def case(inputs, output):
    """Hidden states and mask that give one expected output (the names are the fixture's)."""
    mask = inputs.get("attention_mask")
    return {
        "out": (inputs["hidden_states"], mask),
        "out_2d": (inputs.get("hidden_2d"), None),
        "out_boolmask": (inputs["hidden_states"], None if mask is None else mask.bool()),
        "out_nomask": (inputs["hidden_states"], None),
        "out_emptyrow": (
            inputs.get("hidden_states_4"),
            inputs.get("attention_mask_4_lastrow_empty"),
        ),
    }[output]


@pytest.mark.parametrize("fixture", PUBLISHED)
def test_golden_outputs_equal_the_published_class(fixture):
    module, inputs, expected = published(fixture)
    for name, tensor in expected.items():
        hidden, mask = case(inputs, name)
        torch.testing.assert_close(module(hidden, mask), tensor, atol=1e-5, rtol=0, msg=name)


def test_golden_float_mask_pools_like_an_integer_mask():
    module, inputs, expected = published("LinearMeanPoolAdapter")
    outputs = module(inputs["hidden_states"], inputs["attention_mask"].float())
    torch.testing.assert_close(outputs, expected["out"], atol=1e-5, rtol=0)


def test_golden_half_precision_hidden_states_pool_in_float32():
    module, inputs, _ = published("LinearMeanPoolAdapter")
    hidden = inputs["hidden_states"].abs()
    hidden = (hidden / hidden.max() * 6e4).half()  # sums overflow fp16
    mask = inputs["attention_mask"]
    mean = (hidden.double() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = mean @ module.linear.weight.double().T + module.linear.bias.double()
    torch.testing.assert_close(module(hidden, mask).double(), expected, atol=0, rtol=1e-4)


@pytest.mark.parametrize("name", POOLING)
def test_padding_never_changes_pooled_outputs(name):
    torch.manual_seed(0)
    module = adapter(name).build(8, 3).eval()
    short, padding = torch.randn(1, 5, 8), torch.full((1, 20, 8), 7.0)
    padded = torch.cat([short, padding], dim=1)
    mask = torch.arange(25)[None] < 5
    torch.testing.assert_close(module(padded, mask), module(short), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in POOLING if "cls" not in name])
def test_pooling_adapters_count_the_last_unmasked_token(name):
    torch.manual_seed(0)
    module = adapter(name).build(6, 3).eval()
    hidden, mask = torch.randn(1, 8, 6), torch.arange(8)[None] < 5
    changed = hidden.clone()
    changed[:, 4] += 3
    assert not torch.allclose(module(hidden, mask), module(changed, mask), atol=1e-3)


@pytest.mark.parametrize("name", ["mean_pool_linear", "max_pool_linear"])
def test_all_masked_row_gives_the_bias(name):
    module = adapter(name).build(6, 3)
    outputs = module(torch.randn(2, 4, 6), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
    torch.testing.assert_close(outputs[1], module.linear.bias)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_every_adapter_trains_all_its_weights_at_the_promised_shape(name):
    torch.manual_seed(0)
    module = adapter(name).build(8, 3, length=4)
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    outputs = module(torch.randn(2, 5, 8), mask)
    tokens = (5,) if name in PER_TOKEN else (5, 5) if name in PER_PAIR else ()
    assert outputs.shape == (2, *tokens, 3)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_flatten_gives_every_position_its_own_weight():
    module = adapter("flatten_linear", length=2).build(3, 1)
    module.linear.weight.data = torch.tensor([[1.0, 2, 3, 10, 20, 30]])
    module.linear.bias.data.zero_()
    hidden = torch.tensor([[[1.0, 0, 0], [9, 9, 9], [0, 0, 1]]])
    assert module(hidden, torch.tensor([[1, 0, 1]])).item() == 1 * 1 + 30 * 1


@pytest.mark.parametrize("name", FLATTENING)
def test_flatten_refuses_rows_of_another_length(name):
    module = adapter(name).build(6, 3, length=4)
    with pytest.raises(InputError, match="rows of 4 tokens.*row 1 of this batch has 3"):
        module(torch.randn(2, 4, 6), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))


@pytest.mark.parametrize("name", FLATTENING)
def test_flatten_without_a_length_says_which_flag_to_set(name):
    with pytest.raises(InputError, match="--adapter.length"):
        adapter(name).build(6, 3)


def test_own_length_wins_over_that_of_the_training_rows():
    module = adapter("flatten_linear", length=7).build(2, 1, length=5)
    assert module.linear.in_features == 14


def test_conv_refuses_even_kernels():
    with pytest.raises(InputError, match="odd --adapter.kernel-size"):
        adapter("conv", kernel_size=4).build(6, 3)


def test_unknown_adapter_suggests_the_nearest_name():
    with pytest.raises(InputError, match="mean_pool_mlp"):
        adapter("mean_pol_mlp")


@pytest.mark.parametrize("name", sorted(ADAPTERS.constructors))
def test_every_option_has_help(name):
    choice = adapter(name)
    documented = {line.split(":")[0].strip() for line in choice.__doc__.splitlines()}
    assert {field.name for field in dataclasses.fields(choice)} - {"name"} <= documented
