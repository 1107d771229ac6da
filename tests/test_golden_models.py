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
from mgen.backbones.alignment import AlignmentTokenizer
from mgen.backbones.tokenizer import AMINO_ACIDS, PROTEIN
from mgen.config import InputError

RNABERTS = [f"rnabert_{kind}tiny" for kind in ("", "rmsnorm_", "absolute_", "partial_rope_")]
FM4BIOS = [f"fm4bio_{kind}_tiny" for kind in ("dense", "moe", "rag", "rag_dense", "structoken")]
MODELS = [*RNABERTS, *FM4BIOS, "esm2_tiny"]
BUFFERS = ("inv_freq", "position_ids")


class Fixture:
    """A golden folder, and the backbone that `load_backbone` makes of it.

    Fixtures of models that read alignments have query and alignment in one row: all of it is given
    as the query here, beside an empty context.
    """

    def __init__(self, name: str) -> None:
        self.folder = golden(name)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.inputs = load_file(self.folder / "inputs.safetensors")
        self.outputs = load_file(self.folder / "outputs.safetensors")
        self.backbone = load_backbone(str(self.folder))
        if self.reads_alignments:
            nothing = self.inputs["input_ids"][:, :0]
            self.inputs |= {"context_ids": nothing, "context_mask": nothing}
        if "inputs_str_embeds" in self.inputs:
            self.inputs["structure"] = self.inputs["inputs_str_embeds"]
        self.real = self.inputs["attention_mask"].bool()

    @property
    def reads_alignments(self) -> bool:
        return self.config["position_embedding_type"] == "rope_2d"

    def part(self, row: int, length: int) -> dict[str, torch.Tensor]:
        """The batch of one row, cut to its first `length` tokens."""
        one = {name: tensor[row : row + 1] for name, tensor in self.inputs.items()}
        tokens = {"position_ids": (..., slice(length))}
        return {n: t[tokens.get(n, (slice(None), slice(length)))] for n, t in one.items()}

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


@pytest.mark.parametrize("fixture", FM4BIOS, indirect=True)
def test_parts_of_the_first_layer_equal_golden(fixture):
    fixture.backbone.use_attention("sdpa")  # so that layers see the batch as it is
    layer, seen = fixture.backbone.encoder.encoder.layer[0], {}
    layer.ln.register_forward_hook(
        lambda _, given, __: seen.update(attention_block_output=given[0])
    )
    layer.mlp.register_forward_hook(lambda _, __, made: seen.update(mlp_output=made))
    with torch.no_grad():
        fixture.backbone(fixture.inputs)
    for name, got in seen.items():
        assert fixture.difference(got, f"layer0.{name}") <= 1e-4, name
    assert len(seen) == 2


@pytest.mark.parametrize("fixture", FM4BIOS, indirect=True)
def test_router_logits_equal_golden(fixture):
    expected = {k for k in fixture.outputs if k.startswith("router_logits.")}
    assert bool(expected) == fixture.config["moe"]
    if not expected:
        with pytest.raises(InputError, match="no experts"):
            fixture.backbone.router_logits(fixture.inputs)
        return
    with torch.no_grad():
        logits = fixture.backbone.router_logits(fixture.inputs)
    assert len(logits) == len(expected) == fixture.config["num_hidden_layers"]
    for i, scores in enumerate(logits):
        assert fixture.difference(scores, f"router_logits.{i}") <= 1e-4, i


@pytest.mark.parametrize("fixture", [*RNABERTS, "esm2_tiny"], indirect=True)
def test_attention_probabilities_equal_golden(fixture):
    expected = {k: v for k, v in fixture.outputs.items() if k.startswith("attention_probs.")}
    assert expected
    with torch.no_grad():
        maps = fixture.backbone.encoder.attention_maps(
            fixture.inputs["input_ids"], fixture.inputs["attention_mask"]
        )
    for name, probabilities in expected.items():
        got = maps[int(name.rpartition(".")[2])].transpose(1, 2)
        assert (got - probabilities.transpose(1, 2))[fixture.real].abs().max() <= 1e-5


def test_state_dict_keys_equal_golden_checkpoint(fixture):
    stored = load_file(fixture.folder / "model.safetensors")
    own = fixture.backbone.model.state_dict()
    assert {key for key in own if not key.endswith(BUFFERS)} == {
        key for key in stored if not key.endswith(BUFFERS)
    }


def test_tokens_of_golden_sequences_equal_inputs(fixture):
    sequences = fixture.folder / "sequences.json"
    if not sequences.is_file():
        pytest.skip("this draw has no sequences.json")
    loaded = load_backbone(str(fixture.folder), as_written=True, unknown="token")
    batch = loaded.tokenize(json.loads(sequences.read_text()), max_length=0)
    if fixture.reads_alignments:
        batch = flat(batch)
    for name, tensor in batch.items():
        assert torch.equal(tensor, fixture.inputs[name]), name


def flat(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's layout: query, alignment and [SEP] in one row, padded on the right."""
    masks = batch["attention_mask"], batch["context_mask"]
    real = torch.cat(masks, 1).bool()
    count = int(real.sum(1).max())
    rows = {"input_ids": torch.cat((batch["input_ids"], batch["context_ids"]), 1)}
    rows["query_tokens_mask"] = torch.cat((masks[0], 0 * masks[1]), 1)
    places = batch["position_ids"].transpose(1, 2)

    def packed(row: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        row = row[kept]
        return torch.cat((row, row.new_zeros(count - len(row), *row.shape[1:])))

    found = {
        name: torch.stack([packed(row, kept) for row, kept in zip(tensor, real, strict=True)])
        for name, tensor in (rows | {"position_ids": places, "attention_mask": real.long()}).items()
    }
    last = found["attention_mask"].sum(1) - 1
    special = 1 - found["attention_mask"]
    special[torch.arange(len(last)), last] = 1  # [SEP]
    return found | {
        "special_tokens_mask": special,
        "position_ids": found["position_ids"].transpose(1, 2),
    }


def alignment_tokenizer(structure: int, **options) -> AlignmentTokenizer:
    facts = {"modality": "protein", "structure": structure, **options}
    return AlignmentTokenizer(AMINO_ACIDS, PROTEIN, **facts)


def test_alignments_are_laid_out_as_golden():
    """Exactly, but for two defects of the reference.

    Where it cuts the alignment, [SEP] gets the position of the residue it replaces; ours stays at
    (0, 0). Where max_length is no more than the query, [SEP] also counts as a token of the query
    and the structure keeps a row for it.
    """
    cases = json.loads((golden("rag_process_batch") / "cases.json").read_text())["cases"]
    for case in cases:
        query, limit, kept = case["sequence"], case["max_length"], case["str_emb_rows_kept"]
        structure = [[i + 1.0] for i in range(len(query))]
        row = {"sequence": query, "msa": case["msa"], "structure": structure}
        tokenizer = alignment_tokenizer(1, max_length=limit, truncate="right")
        batch = tokenizer.tokenize([row])
        got = {name: tensor[0].tolist() for name, tensor in flat(batch).items()}
        for name in ("input_ids", "attention_mask", "special_tokens_mask"):
            assert got[name] == case[name], name
        is_query, positions = case["query_tokens_mask"], case["position_ids"]
        letters = len(query) + sum(len(row) - row.count("-") for row in case["msa"])
        if limit <= len(query):
            is_query[-1], kept = 0, limit - 1
        if limit <= letters:
            positions = [axis[:-1] + [0] for axis in positions]
        assert got["query_tokens_mask"] == is_query
        assert got["position_ids"] == positions
        assert batch["structure"][0, :, 0].tolist() == [i + 1.0 for i in range(kept)]
        assert tokenizer.lengths([row]) == [letters + 1]
        shown = len(case["input_ids"]) - 1 - sum(is_query)
        assert tokenizer.overflow([row]) == [letters - len(query) - shown]


def test_a_golden_sequence_alone_equals_itself_padded(fixture):
    with torch.no_grad():
        together = fixture.backbone(fixture.inputs)
        for i, real in enumerate(fixture.real):
            alone = fixture.backbone(fixture.part(i, int(real.sum())))[0]
            assert (alone - together[i, real]).abs().max() <= 1e-5
            padded = fixture.backbone(fixture.part(i, len(real)))[0, real]  # batch of one
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
