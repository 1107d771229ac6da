"""Heads that checkpoints carry: their numbers, and how a task takes them over.

pytest tests/test_published_heads.py
"""

import json

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file, save_file
from tiny import prepared, settings

from mgen.adapters import adapter
from mgen.adapters.published import LMHead
from mgen.backbones import backbone, load_backbone
from mgen.backbones.zoo import find
from mgen.config import InputError
from mgen.task import Task

TOLERANCE = 1e-5

# fixture folder, head in it, our adapter, its options, name of the output
HEADS = [
    ("rnabert_heads_tiny", "token_classifier", "linear", {}, "token_classifier.logits"),
    ("rnabert_heads_tiny", "sequence_classifier", "cls_dense_tanh", {},
     "sequence_classifier.cls_pooling.logits"),
    ("rnabert_heads_tiny", "sequence_classifier", "mean_pool_dense_tanh", {},
     "sequence_classifier.mean_pooling.logits"),
    ("rnabert_heads_tiny", "sequence_classifier_bn", "cls_dense_tanh", {"batch_norm": True},
     "sequence_classifier_bn.logits"),
    ("rnabert_heads_tiny", "sequence_classifier_wide", "cls_dense_tanh", {},
     "sequence_classifier_wide.logits"),
    ("fm4bio_heads_tiny", "seq_mlp", "mean_pool_ffn", {}, "seq_mlp.logits"),
    ("fm4bio_heads_tiny", "seq_mlp_relu_zs", "mean_pool_ffn",
     {"activation": "relu", "zero_shot": True}, "seq_mlp_relu_zs.logits"),
    ("fm4bio_heads_tiny", "seq_cnn", "conv_mean_pool", {"as_published": True}, "seq_cnn.logits"),
    ("fm4bio_heads_tiny", "tok_mlp", "token_ffn", {}, "tok_mlp.logits"),
    ("fm4bio_heads_tiny", "tok_cnn", "token_conv", {"as_published": True}, "tok_cnn.logits"),
    ("fm4bio_heads_tiny", "contact", "pair_ffn", {}, "contact.logits"),
]  # fmt: skip


@pytest.mark.parametrize(("fixture", "head", "name", "options", "output"), HEADS)
def test_head_equals_golden(fixture, head, name, options, output):
    folder = golden(fixture)
    config = json.loads((folder / "config.json").read_text())
    inputs, outputs, stored = (
        load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs", "model")
    )
    state = {k.removeprefix(f"{head}."): v for k, v in stored.items() if k.startswith(f"{head}.")}
    if name == "linear":  # a plain linear layer there
        state = {f"1.{k}": v for k, v in state.items()}
    hidden, mask = inputs["hidden_states"], inputs["attention_mask"]
    if head.endswith("wide"):  # one vector per row, as a sequence of one token
        hidden, mask = inputs["pooled_wide"][:, None], None
    inner = {k: len(v) for k, v in state.items() if k in ("ffn.weight", "ffn_0.weight")}
    if inner:
        options = options | {"hidden_size": inner.popitem()[1]}
    if "conv.weight" in state:
        options = options | {"kernel_size": state["conv.weight"].shape[-1]}
    module = adapter(name, **options).build(hidden.shape[-1], config["num_labels"]).eval()
    module.load_state_dict(state)
    extra = (inputs["zero_shot"],) if "zero_shot" in options else ()
    with torch.no_grad():
        got = module(hidden, mask, *extra)
    assert got.shape == outputs[output].shape
    assert (got - outputs[output]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["conv_mean_pool", "token_conv", "mean_pool_ffn", "pair_ffn"])
def test_padding_changes_nothing_unless_as_published(name):
    torch.manual_seed(0)
    hidden, mask = torch.randn(1, 7, 6), torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    head = adapter(name).build(6, 2).eval()
    padded, alone = head(hidden, mask), head(hidden[:, :5], mask[:, :5])
    if padded.dim() == 3:
        padded = padded[:, :5]
    if padded.dim() == 4:
        padded = padded[:, :5, :5]
    assert (padded - alone).abs().max() <= 1e-6


# ------------------------------------------------------------------------------- in a task


def checkpoint(folder, **classifier):
    """A tiny aido_dna_debug with the weights of a classification head."""
    network = load_backbone("aido_dna_debug")
    head = {f"classifier.{key}": value for key, value in classifier.items()}
    save_file(network.model.state_dict() | head, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(find("aido_dna_debug").config_json()))
    return str(folder)


def dense_tanh(outputs):
    torch.manual_seed(5)
    shapes = {"dense.weight": (64, 64), "dense.bias": (64,), "out_proj.weight": (outputs, 64)}
    shapes |= {"out_proj.bias": (outputs,)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_a_task_takes_over_the_head_of_the_checkpoint(tmp_path):
    import dataclasses

    stored = dense_tanh(1)
    cfg = settings(tmp_path)
    cfg = dataclasses.replace(
        cfg,
        backbone=backbone(checkpoint(tmp_path, **stored)),
        adapter=adapter("cls_dense_tanh", pretrained=True),
    )
    task, _ = prepared(cfg)
    assert all(torch.equal(task.head.state_dict()[key], stored[key]) for key in stored)
    batch = task.backbone.tokenize(["ACGT"])
    vector = task.backbone(batch)[:, 0]
    inner = torch.tanh(vector @ stored["dense.weight"].T + stored["dense.bias"])
    expected = inner @ stored["out_proj.weight"].T + stored["out_proj.bias"]
    assert (task(batch) - expected).abs().max() <= 1e-5
    wrong = dataclasses.replace(cfg, adapter=adapter("mean_pool_ffn", pretrained=True))
    with pytest.raises(InputError, match="unexpected: dense.weight"):
        prepared(wrong)


def test_a_head_of_another_size_or_none_at_all_is_refused(tmp_path):
    import dataclasses

    wide = settings(tmp_path)
    pretrained = adapter("cls_dense_tanh", pretrained=True)
    name = checkpoint(tmp_path, **dense_tanh(3))
    with pytest.raises(InputError, match=r"out_proj.weight is \(3, 64\)"):
        prepared(dataclasses.replace(wide, backbone=backbone(name), adapter=pretrained))
    with pytest.raises(InputError, match="no `classifier.` weights"):
        prepared(dataclasses.replace(wide, adapter=pretrained))


class Tokens(Task):
    """A task on each token, whose outputs are the vocabulary."""

    def build(self) -> None:
        self.head = self.make_head(len(self.backbone.vocabulary))

    def forward(self, batch):
        return self.head(self.backbone(batch))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_language_model_head_is_the_adapter_of_a_token_task(frozen, tmp_path):
    import dataclasses

    cfg = settings(tmp_path)
    cfg = dataclasses.replace(
        cfg,
        adapter=adapter("lm_head"),
        backbone=dataclasses.replace(cfg.backbone, frozen=frozen, dropout=0.0),
    )
    task = Tokens(cfg)
    task.facts = {"tokens": 8}
    task.setup()
    batch = task.backbone.tokenize(["ACGT", "GG"])
    logits = task(batch)
    assert isinstance(task.head, LMHead) and list(task.head.parameters()) == []
    assert torch.equal(logits, task.backbone.decoder(task.backbone(batch)))
    logits.sum().backward()
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in task.named_parameters() if p.grad is not None}
    head = {name for name in trained if ".cls." in name}
    assert len(head) == 4 and (trained == head) == frozen
    names = {name for name, _ in task.named_parameters(remove_duplicate=False)}
    assert len(names) == len({*task.state_dict()} & names)  # registered once


class Conditional(Tokens):
    """A task on each token under two conditions."""

    def build(self) -> None:
        self.head = self.make_head(len(self.backbone.vocabulary), conditions=2)


def test_the_conditional_head_decodes_with_the_checkpoint_on_request(tmp_path):
    import dataclasses

    cfg = settings(tmp_path)
    logits = {}
    for pretrained in (True, False):
        choice = adapter("conditional_lm", pretrained=pretrained, hidden_size=16)
        frozen = dataclasses.replace(cfg.backbone, frozen=True, dropout=0.0)
        task = Conditional(dataclasses.replace(cfg, adapter=choice, backbone=frozen))
        task.facts = {"tokens": 8}
        torch.manual_seed(0)
        task.setup()
        task.eval()
        batch = task.backbone.tokenize(["ACGT", "GG"])
        mask, conditions = batch["attention_mask"], torch.tensor([[1.0, 2], [3, 4]])
        logits[pretrained] = task.head(task.backbone(batch), mask, conditions)
        own = {name for name in task.state_dict() if name.startswith("head.lm_decoder")}
        assert bool(own) != pretrained
        trained = {name for name, p in task.named_parameters() if p.requires_grad}
        assert any(".cls." in name for name in trained) == pretrained
        if pretrained:
            decode, task.head.lm_decoder = task.backbone.decoder, lambda hidden: hidden
            task.head.outputs = task.backbone.width
            states = task.head(task.backbone(batch), mask, conditions)
            assert torch.allclose(logits[True], decode(states), atol=1e-6)
    assert logits[True].shape == logits[False].shape == (2, 6, 16)


def test_a_language_model_head_of_another_size_is_refused():
    head = adapter("lm_head").build(64, 3)
    head.borrow(load_backbone("aido_dna_debug").decoder)
    with pytest.raises(InputError, match="gives 16 outputs per token, this task needs 3"):
        head(torch.zeros(1, 2, 64))


def test_a_backbone_without_a_language_model_head_says_so():
    with pytest.raises(InputError, match="no language-model head"):
        load_backbone("dna_onehot").decoder_parameters()
