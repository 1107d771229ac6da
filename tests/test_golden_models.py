"""Architectures against the reference's tensors, and ESM-2 against transformers' own class.

    MGEN_GOLDEN=folder pytest tests/test_golden_models.py

Values are compared at real tokens: 1e-4 for states, logits and gradients, 1e-5 for the loss.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from safetensors.torch import load_file

from mgen.backbones import load_backbone
from mgen.models.heads import SequenceClassifier, masked_mean

RNABERTS = [f"rnabert_{kind}tiny" for kind in ("", "rmsnorm_", "absolute_", "partial_rope_")]
MODELS = [*RNABERTS, "esm2_tiny"]
BUFFERS = ("inv_freq", "position_ids")


class Fixture:
    """A golden folder, and the backbone that `load_backbone` makes of it."""

    def __init__(self, name: str) -> None:
        self.folder = golden(name)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.inputs = load_file(self.folder / "inputs.safetensors")
        self.outputs = load_file(self.folder / "outputs.safetensors")
        self.backbone = load_backbone(str(self.folder))
        self.real = self.inputs["attention_mask"].bool()

    def difference(self, got: torch.Tensor, name: str) -> float:
        """Largest difference at real tokens."""
        assert got.shape == self.outputs[name].shape
        return (got - self.outputs[name])[self.real].abs().max().item()

    def loss(self) -> torch.Tensor:
        logits = self.backbone.decoder(self.backbone(self.inputs))
        return F.cross_entropy(logits.flatten(0, 1), self.inputs["labels"].flatten())


@pytest.fixture(params=MODELS)
def fixture(request) -> Fixture:
    return Fixture(request.param)


def test_every_hidden_state_equals_golden(fixture):
    with torch.no_grad():
        states = fixture.backbone.hidden_states(fixture.inputs)
    assert len(states) == fixture.config["num_hidden_layers"] + 1
    for i, state in enumerate(states):
        assert fixture.difference(state, f"hidden_states.{i}") <= 1e-4, i


def test_forward_equals_last_golden_hidden_state(fixture):
    last = f"hidden_states.{fixture.config['num_hidden_layers']}"
    assert fixture.difference(fixture.backbone(fixture.inputs), last) <= 1e-4


def test_logits_equal_golden(fixture):
    logits = fixture.backbone.decoder(fixture.backbone(fixture.inputs))
    assert fixture.difference(logits, "mlm_logits") <= 1e-4


def test_loss_equals_golden(fixture):
    assert abs(fixture.loss().item() - fixture.outputs["mlm_loss"].item()) <= 1e-5


def test_gradients_equal_golden(fixture):
    fixture.loss().backward()
    gradients = {n: p.grad for n, p in fixture.backbone.encoder.named_parameters()}
    expected = {k: v for k, v in fixture.outputs.items() if k.startswith("grad.")}
    assert expected or fixture.config["model_type"] == "esm"
    for name, gradient in expected.items():
        assert (gradients[name.removeprefix("grad.")] - gradient).abs().max() <= 1e-4, name


def test_attention_probabilities_equal_golden(fixture):
    with torch.no_grad():
        maps = fixture.backbone.encoder.attention_maps(
            fixture.inputs["input_ids"], fixture.inputs["attention_mask"]
        )
    expected = {k: v for k, v in fixture.outputs.items() if k.startswith("attention_probs.")}
    assert expected
    for name, probabilities in expected.items():
        got = maps[int(name.rpartition(".")[2])].transpose(1, 2)
        assert (got - probabilities.transpose(1, 2))[fixture.real].abs().max() <= 1e-5


def test_state_dict_keys_equal_golden_checkpoint(fixture):
    stored = load_file(fixture.folder / "model.safetensors")
    assert set(fixture.backbone.model.state_dict()) == {
        key for key in stored if not key.endswith(BUFFERS)
    }


def test_tokens_of_golden_sequences_equal_inputs(fixture):
    sequences = fixture.folder / "sequences.json"
    if not sequences.is_file():
        pytest.skip("this draw has no sequences.json")
    loaded = load_backbone(str(fixture.folder), as_written=True, unknown="token")
    batch = loaded.tokenize(json.loads(sequences.read_text()), max_length=0)
    for name, tensor in batch.items():
        assert torch.equal(tensor, fixture.inputs[name]), name


def test_a_golden_sequence_alone_equals_itself_padded(fixture):
    with torch.no_grad():
        together = fixture.backbone(fixture.inputs)
        for i, real in enumerate(fixture.real):
            one = {name: tensor[i : i + 1] for name, tensor in fixture.inputs.items()}
            cut = {name: tensor[:, : int(real.sum())] for name, tensor in one.items()}
            alone = fixture.backbone(cut)[0]
            assert (alone - together[i, real]).abs().max() <= 1e-5
            padded = fixture.backbone(one)[0, real]  # batch of one, padding kept
            assert (padded - together[i, real]).abs().max() <= 1e-5


def test_contacts_equal_golden():
    fixture = Fixture("esm2_tiny")
    with torch.no_grad():
        contacts = fixture.backbone.contacts(fixture.inputs)
    assert (contacts - fixture.outputs["contacts"]).abs().max() <= 1e-4


@pytest.mark.parametrize("token_dropout", [True, False])
def test_esm_golden_weights_give_what_transformers_gives(token_dropout, tmp_path):
    from safetensors.torch import save_file
    from transformers import EsmConfig, EsmForMaskedLM

    folder = golden("esm2_tiny")
    config = json.loads((folder / "config.json").read_text()) | {"token_dropout": token_dropout}
    stored = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "model.safetensors")
    ours = load_backbone(str(tmp_path))
    theirs = EsmForMaskedLM(EsmConfig(**config)).eval()
    lacks, _ = theirs.load_state_dict(stored, strict=False)
    assert all(key.startswith("lm_head.decoder") or key.endswith(BUFFERS) for key in lacks)
    theirs.tie_weights()
    ids = load_file(folder / "inputs.safetensors")
    batch = {name: ids[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = theirs(**batch, output_hidden_states=True)
        states = ours.hidden_states(batch)
        logits = ours.decoder(ours(batch))
    real = batch["attention_mask"].bool()
    for state, other in zip(states, expected.hidden_states, strict=True):
        assert (state - other)[real].abs().max() <= 1e-4
    assert (logits - expected.logits)[real].abs().max() <= 1e-4


class Heads:
    def __init__(self) -> None:
        folder = golden("rnabert_heads_tiny")
        self.config = json.loads((folder / "config.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.stored = load_file(folder / "model.safetensors")

    def load(self, module: torch.nn.Module, name: str) -> torch.nn.Module:
        prefix = name + "."
        state = {k.removeprefix(prefix): v for k, v in self.stored.items() if k.startswith(prefix)}
        module.load_state_dict(state, strict=True)
        return module.eval()


@pytest.mark.parametrize(
    ("head", "pooling", "output"),
    [
        ("sequence_classifier", "cls", "sequence_classifier.cls_pooling.logits"),
        ("sequence_classifier", "mean", "sequence_classifier.mean_pooling.logits"),
        ("sequence_classifier_bn", "cls", "sequence_classifier_bn.logits"),
    ],
)
def test_sequence_classifier_equals_golden(head, pooling, output):
    heads = Heads()
    width, labels = heads.config["hidden_size"], heads.config["num_labels"]
    module = SequenceClassifier(width, labels, pooling=pooling, batch_norm=head.endswith("bn"))
    with torch.no_grad():
        logits = heads.load(module, head)(
            heads.inputs["hidden_states"], heads.inputs["attention_mask"]
        )
    assert (logits - heads.outputs[output]).abs().max() <= 1e-5


def test_wide_sequence_classifier_equals_golden():
    heads = Heads()
    module = SequenceClassifier(heads.config["wide_hidden_size"], heads.config["num_labels"])
    with torch.no_grad():
        logits = heads.load(module, "sequence_classifier_wide").classify(
            heads.inputs["pooled_wide"]
        )
    assert (logits - heads.outputs["sequence_classifier_wide.logits"]).abs().max() <= 1e-5


def test_token_classifier_equals_golden_linear_layer():
    heads = Heads()
    module = torch.nn.Linear(heads.config["hidden_size"], heads.config["num_labels"])
    with torch.no_grad():
        logits = heads.load(module, "token_classifier")(heads.inputs["hidden_states"])
    assert (logits - heads.outputs["token_classifier.logits"]).abs().max() <= 1e-5


def test_mean_pooling_equals_golden():
    heads = Heads()
    pooled = masked_mean(heads.inputs["hidden_states"], heads.inputs["attention_mask"])
    assert (pooled - heads.outputs["mean_pooled"]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["dna_onehot", "protein_onehot"])
def test_onehot_equals_golden(name):
    facts = json.loads((golden("onehot") / "cases.json").read_text())[name]
    network = load_backbone(name, as_written=True)
    assert network.width == facts["embedding_size"]
    for case in facts["cases"]:
        hidden = network({key: torch.tensor(case[key]) for key in ("input_ids", "attention_mask")})
        assert list(hidden.shape) == case["output_shape"] and hidden.dtype == torch.float32
        assert torch.equal(hidden.argmax(-1), torch.tensor(case["input_ids"]))
        assert torch.equal(hidden.sum(-1), torch.ones(hidden.shape[:2]))
        assert hidden.unique().tolist() == [0.0, 1.0]
