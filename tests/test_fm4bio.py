"""The protein encoders of AIDO: experts, alignments and structures, lower precision.

    pytest tests/test_fm4bio.py

Values of the networks are compared with the reference in test_golden_models.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden
from safetensors.torch import save_file
from test_golden_models import FM4BIOS, RNABERTS, Fixture, alignment_tokenizer
from tiny import fresh_process, sequence_regression  # noqa: F401

from mgen.backbones import load_backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.models.fm4bio import FM4Bio, FM4BioConfig, MixtureOfExperts
from mgen.train import run

SMALL = {
    "model_type": "fm4bio",
    "vocab_size": 44,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
EXPERTS = {"moe": True, "num_experts": 4, "experts_per_token": 2}
UNTIED = {"use_lm_head": False, "tie_word_embeddings": False}
RAG = SMALL | EXPERTS | UNTIED | {"position_embedding_type": "rope_2d", "str_embedding_in": 3}
QUERY, MSA = "MKVLA", ["MK-LA", "-----", "MRVL-"]
STRUCTURE = [[0.5 * i, -1.0, 0.25] for i in range(5)]


def write(folder: Path, config: dict) -> Path:
    """A checkpoint in the published layout, random weights in every parameter."""
    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    state = FM4Bio(FM4BioConfig.from_json(config)).state_dict()
    save_file(
        {k: torch.randn_like(v) * 0.3 for k, v in state.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def rag_folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("rag"), RAG)


@pytest.fixture(scope="module")
def rag(rag_folder):
    return load_backbone(str(rag_folder))


def layer(**changes) -> MixtureOfExperts:
    torch.manual_seed(2)
    mixture = MixtureOfExperts(FM4BioConfig.from_json(SMALL | EXPERTS | changes))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.normal_(0, 0.3)
    return mixture


def dense(mixture: MixtureOfExperts, h: torch.Tensor, act) -> torch.Tensor:
    """Every expert on every token (n, D), then a weighted sum over the best."""
    named = dict(mixture.named_parameters())
    best, chosen = (h @ named["router.weight"].T).topk(mixture.per_token)
    weights = torch.zeros(len(h), mixture.num_experts).scatter(1, chosen, best.softmax(-1))
    total = torch.zeros_like(h)
    for e in range(mixture.num_experts):
        into, out = f"dense_h_to_4h_{e}", f"dense_4h_to_h_{e}"
        fused = F.linear(h, named[f"{into}.weight"], named[f"{into}.bias"])
        inner = fused.shape[1] // 2
        expert = F.linear(fused[:, :inner] * act(fused[:, inner:]), named[f"{out}.weight"])
        total = total + weights[:, e : e + 1] * (expert + named[f"{out}.bias"])
    return total


# ------------------------------------------------------------------------------- experts


@pytest.mark.parametrize(("name", "act"), [("swiglu", F.silu), ("geglu", F.gelu)])
@pytest.mark.parametrize("per_token", [1, 3])
def test_sparse_experts_equal_a_dense_evaluation(name, act, per_token):
    mixture = layer(hidden_act=name, experts_per_token=per_token)
    h = torch.randn(2, 9, 16)
    mask = torch.ones(2, 9)
    mask[1, 4:] = 0
    sparse, real = mixture(h, mask), mask.bool()
    expected = dense(mixture, h[real], act)
    assert (sparse[real] - expected).abs().max() <= 1e-5
    gradients = torch.autograd.grad(sparse[real].square().sum(), list(mixture.parameters()))
    others = torch.autograd.grad(expected.square().sum(), list(mixture.parameters()))
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient - other).abs().max() <= 1e-3 * other.abs().max()


def test_experts_see_routed_tokens_only_and_padding_goes_to_none():
    mixture, seen = layer(), []
    for e in range(4):
        into = mixture.get_submodule(f"dense_h_to_4h_{e}")
        into.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    out = mixture(torch.randn(2, 5, 16), mask)
    assert len(seen) == 4 and sum(seen) == 7 * 2
    assert (out[1, 2:] == 0).all()


def test_an_idle_expert_gets_a_zero_gradient():
    mixture = layer(experts_per_token=1)
    with torch.no_grad():
        mixture.router.weight[2] = -100.0
    h = torch.rand(1, 6, 16, requires_grad=True)  # positive: expert 2 has the lowest score
    mixture(h, torch.ones(1, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in mixture.parameters())
    assert (mixture.dense_h_to_4h_2.weight.grad == 0).all()
    assert (mixture.dense_4h_to_h_2.bias.grad == 0).all()
    assert any(
        (mixture.get_submodule(f"dense_4h_to_h_{e}").bias.grad != 0).any() for e in (0, 1, 3)
    )


def routed(network, batch) -> list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]]:
    """The router of each layer, what it was given and what it gave."""
    found = []
    for block in network.encoder.encoder.layer:
        block.mlp.router.register_forward_hook(
            lambda *seen: found.append((seen[0], *seen[1], seen[2]))
        )
    network(batch)
    return found


def test_the_router_stays_in_full_precision_in_a_bf16_model(rag_folder):
    network = load_backbone(str(rag_folder), dtype="bfloat16")
    dtypes = {name: p.dtype for name, p in network.named_parameters()}
    assert {n for n, dtype in dtypes.items() if dtype == torch.float32} == {
        f"model.bert.encoder.layer.{i}.mlp.router.weight" for i in range(2)
    }
    for router, given, made in routed(network, network.tokenize([QUERY])):
        assert made.dtype == torch.float32
        assert torch.equal(made, given.float() @ router.weight.T)


def test_the_router_stays_in_full_precision_under_autocast(rag_folder):
    network = load_backbone(str(rag_folder), lora_rank=2, lora_targets=("router",))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.autocast("cpu", torch.bfloat16):
        found = routed(network, network.tokenize([QUERY]))
    for router, given, made in found:
        a, b = router.lora_A["default"].weight, router.lora_B["default"].weight
        weight = router.get_base_layer().weight + router.scaling["default"] * b @ a
        assert made.dtype == torch.float32
        assert (made - given @ weight.T).abs().max() <= 1e-4  # bf16 would be off by 1e-2


def test_default_lora_adapts_attention_and_router_alone(rag_folder):
    network = load_backbone(str(rag_folder), lora_rank=2)
    trains = {n.split(".lora_")[0] for n, p in network.named_parameters() if p.requires_grad}
    parts = ("self.query", "self.key", "self.value", "output.dense")
    layers = [f"model.bert.encoder.layer.{i}" for i in range(2)]
    expected = {f"{layer}.attention.{part}" for layer in layers for part in parts}
    assert trains == expected | {f"{layer}.mlp.router" for layer in layers}


# Mean difference of logits over their standard deviation, measured 0.011 to 0.018 for rnabert,
# 0.011 for esm, 0.011 to 0.015 for dense fm4bio, 0.022 to 0.058 for experts, where rounding now and
# then changes the choice of one.
BF16 = dict.fromkeys(RNABERTS, 0.035) | dict.fromkeys(FM4BIOS, 0.12) | {"esm2_tiny": 0.022}
BF16 |= dict.fromkeys(("fm4bio_dense_tiny", "fm4bio_rag_dense_tiny"), 0.03)


@pytest.mark.parametrize("name", BF16)
def test_bf16_weights_of_a_golden_model_give_nearly_its_logits(name):
    exact = Fixture(name)
    rounded = load_backbone(str(exact.folder), dtype="bfloat16")
    with torch.no_grad():
        logits = exact.backbone.decoder(exact.backbone(exact.inputs))[exact.real]
        coarse = rounded.decoder(rounded(exact.inputs))[exact.real]
    difference = (coarse - logits).abs().mean() / logits.std()
    assert 0 < difference <= BF16[name]


# ------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("written", "width"), [(None, 0), (0, 0), ("none", 0), ("384", 384), (384, 384), ("", 0)]
)
def test_the_width_of_structures_is_read_however_it_is_written(written, width):
    assert FM4BioConfig.from_json({"str_embedding_in": written}).str_embedding_in == width


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"hidden_act": "gelu"},
            "hidden_act 'gelu' is not supported; expected 'swiglu' or 'geglu'",
        ),
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        ({"use_lm_head": False, "output_vocab_size": 50}, "output_vocab_size 50 is not vocab_size"),
        ({"tie_word_embeddings": False}, "use_lm_head with tie_word_embeddings false"),
        ({**EXPERTS, "experts_per_token": 5}, "experts_per_token 5 of num_experts 4"),
        ({"hidden_size": 12, "position_embedding_type": "rope_2d"}, "pairs of channels"),
    ],
)
def test_a_config_this_network_cannot_be_is_refused(change, match, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL | change))
    with pytest.raises(InputError, match=match):
        load_backbone(str(tmp_path), random_weights=True)


def test_a_tied_output_matrix_is_the_embedding_table(tmp_path):
    network = load_backbone(str(write(tmp_path, SMALL | {"use_lm_head": False})))
    hidden = network(network.tokenize([QUERY]))
    table = network.model.bert.embeddings.word_embeddings.weight
    assert torch.equal(network.decoder(hidden), hidden @ table.T)
    stored = {**network.model.state_dict(), "output_embed.weight": table.detach().clone()}
    save_file(stored, tmp_path / "model.safetensors")
    assert load_backbone(str(tmp_path)).fingerprint() == network.fingerprint()


def test_an_encoder_saved_alone_has_no_head(tmp_path, rag):
    write(tmp_path, RAG)
    encoder = {k: v.clone() for k, v in rag.model.bert.state_dict().items()}
    save_file(encoder, tmp_path / "model.safetensors")
    alone, batch = load_backbone(str(tmp_path)), rag.tokenize([QUERY])
    assert torch.equal(alone(batch), rag(batch))
    with pytest.raises(InputError, match="no language-model head"):
        alone.decoder(alone(batch))


# ------------------------------------------------------------------------------- alignments


def row(**changes) -> dict:
    return {"sequence": QUERY, "msa": MSA, "structure": STRUCTURE} | changes


ROWS = [
    row(),
    "MKVLAW",
    row(sequence="GA", msa=["-A", "GG", "G-", "AA"], structure=None),
    row(sequence="MK[MASK]LA", msa=None),
]


def test_columns_are_those_of_the_query_and_the_rest_is_context(rag):
    batch = rag.tokenize(ROWS)
    assert rag.context == 12_800  # whatever max_position_embeddings says
    assert batch["input_ids"].shape == (4, 6) and batch["context_ids"].shape == (4, 9)
    assert batch["attention_mask"].sum(1).tolist() == [5, 6, 2, 5]
    assert torch.equal(batch["special_tokens_mask"], 1 - batch["attention_mask"])
    # M K L A, M R V L, [SEP]: the row of gaps alone counts for nothing
    first = batch["context_ids"][0].tolist()
    assert "".join(rag.tokenizer.tokens[i] for i in first) == "MKLAMRVL[SEP]"
    assert batch["position_ids"][0, 0].tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 3, 4, 0, 1, 2, 3, 0]
    assert batch["position_ids"][0, 1].tolist() == [0] * 6 + [1] * 4 + [2] * 4 + [0]
    assert batch["input_ids"][3, 2] == rag.tokenizer.mask_token_id
    assert batch["structure"][0, :5].tolist() == STRUCTURE
    assert (batch["structure"][1:3] == 0).all()
    assert rag.tokenizer.lengths(ROWS) == [14, 7, 9, 6]
    states = rag.hidden_states(batch)
    assert len(states) == 3 and {state.shape for state in states} == {(4, 6, 16)}
    assert rag.decoder(states[-1]).shape == (4, 6, 44)
    assert {scores.shape for scores in rag.router_logits(batch)} == {(4, 6, 4)}


def test_ragged_rows_in_one_batch_equal_each_row_alone(rag):
    together = rag.hidden_states(rag.tokenize(ROWS))
    for i, one in enumerate(ROWS):
        alone = rag.hidden_states(rag.tokenize([one]))
        for state, other in zip(together, alone, strict=True):
            assert (state[i, : other.shape[1]] - other[0]).abs().max() <= 1e-5


def test_alignment_and_structure_reach_the_states_of_the_query(rag):
    states = [rag(rag.tokenize([r])) for r in (row(), row(msa=None), row(structure=None))]
    assert (states[0] - states[1]).abs().max() > 1e-3
    assert (states[0] - states[2]).abs().max() > 1e-3


def test_a_query_longer_than_the_limit_is_cut_with_its_structure_or_refused():
    for truncate, kept in (("right", slice(None, 3)), ("left", slice(-3, None))):
        cut = alignment_tokenizer(3, max_length=4, truncate=truncate)
        batch = cut.tokenize([row()])
        assert cut.decode(batch["input_ids"][0]) == " ".join(QUERY[kept])
        assert batch["structure"][0].tolist() == STRUCTURE[kept]
        assert batch["context_ids"].tolist() == [[cut.vocabulary["[SEP]"]]]
        assert batch["position_ids"].tolist() == [[[0, 1, 2, 0], [0, 0, 0, 0]]]
        assert cut.overflow([row()]) == [8]
    with pytest.raises(InputError, match="5 tokens; 3 fit into 4 with"):
        alignment_tokenizer(3, max_length=4).tokenize([row()])


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (row(sequence="MK-LA"), r"row 1 \(counted from 0\), 'MK-LA': a gap '-' in the query"),
        (row(msa=["MKVLA", "MKVL"]), "'MKVLA': row 2 of its alignment has 4 columns, the query 5"),
        (row(msa=["MKJLA"]), "row 1 .*, 'MKVLA': sequence 'MKJLA': 'J' not in the protein"),
        (row(msa="MKVLA"), "an alignment is a list of rows; found str"),
        (row(structure=STRUCTURE[:4]), r"its structure is \(4, 3\); expected \(5, 3\)"),
        (row(structure=[[1.0], [2.0, 3.0]]), r"structure: .*; expected \(5, 3\)"),
        (row(structure=[[float("nan")] * 3] * 5), "not finite"),
        ({"seq": QUERY}, "a row has \\['seq'\\]; expected 'sequence'"),
    ],
)
def test_rows_that_cannot_be_are_refused_by_name(bad, match):
    with pytest.raises(InputError, match=match):
        alignment_tokenizer(3).tokenize([QUERY, bad])


def test_what_a_model_does_not_read_is_refused(rag_folder, tmp_path):
    with pytest.raises(InputError, match="a structure, which this model does not read"):
        alignment_tokenizer(0).tokenize([row()])
    with pytest.raises(InputError, match="--backbone.truncate window: windows would tear"):
        load_backbone(str(rag_folder), truncate="window")
    plain = load_backbone(str(write(tmp_path, SMALL)))
    with pytest.raises(InputError):
        plain.tokenize([row()])


# ------------------------------------------------------------------------------- tables


def test_cells_may_name_files_beside_the_table(tmp_path):
    (tmp_path / "a.a3m").write_text(">query\nMKV\nLA\n>1 x\nMK-aaLA\n>2\nMR.VL-\n")
    np.save(tmp_path / "a.npy", np.array(STRUCTURE))
    table = Table(path=str(tmp_path / "rows.tsv"), msa_col="msa", structure_col="map")
    whole, none = table.inputs(
        [
            {"sequence": QUERY, "msa": "a.a3m", "map": "a.npy"},
            {"sequence": QUERY, "msa": None, "map": ""},
        ]
    )
    assert whole["msa"] == ["MK-LA", "MRVL-"] and whole["structure"].tolist() == STRUCTURE
    assert none == {"sequence": QUERY, "msa": None, "structure": None}
    lists = [{"sequence": QUERY, "msa": MSA, "map": STRUCTURE}]
    assert table.inputs(lists) == [row()]
    assert Table(path="rows.tsv").inputs(lists) == [QUERY]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "a.a3m: no such file"),
        (">q\nMKVLA\n>1\nMKVL\n", "not aligned: record 2 has 4 columns"),
        (">q\nGGGGG\n>1\nGGGGG\n", "first record, 'GGGGG' .* not the sequence of the row, 'MKVLA'"),
        (">q\nMKVLAA\n", r"'MKVLAA' \(6 columns\)"),
        ("MKVLA\n", "text before the first '>'"),
        ("", "not one record"),
    ],
)
def test_an_alignment_file_that_does_not_fit_is_named(text, match, tmp_path):
    if text is not None:
        (tmp_path / "a.a3m").write_text(text)
    table = Table(path=str(tmp_path / "rows.tsv"), msa_col="msa")
    with pytest.raises(InputError, match=match):
        table.inputs([{"sequence": QUERY, "msa": "a.a3m"}])


def test_objects_in_a_structure_file_are_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    table = Table(path=str(tmp_path / "rows.tsv"), structure_col="map")
    with pytest.raises(InputError, match="a.npy: cannot be read"):
        table.inputs([{"sequence": QUERY, "map": "a.npy"}])


def test_a_recipe_learns_from_alignments(rag_folder, tmp_path, monkeypatch):
    random = np.random.default_rng(0)

    def protein(length: int) -> str:
        return "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))

    lines = []
    for i in range(24):
        query = protein(int(random.integers(4, 12)))
        msa = [protein(len(query)) for _ in range(i % 3)]
        lines.append(json.dumps({"sequence": query, "msa": msa, "label": float(i % 5)}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--backbone", str(rag_folder), "--backbone.lora-rank", "2", "--name", "run"]
    flags += ["--data.path", "rows.jsonl", "--data.msa-col", "msa", "--train.max-steps", "2"]
    flags += ["--train.workers", "0", "--train.batch-size", "4"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        run(sequence_regression.SequenceRegression, sequence_regression.Config, flags)
    assert not left.value.code
    results = tmp_path / "runs" / "sequence_regression" / "run" / "results.json"
    assert np.isfinite(json.loads(results.read_text())["test"]["loss"])


def test_golden_alignment_rows_are_drawn_as_published():
    file = golden("tasks/rag_msa_subsample") / "outputs.json"
    for case in json.loads(file.read_text()):
        row = {"sequence": case["sequence"], "msa": case["msa"]}
        tokens, seed = case["max_context_length"], case["python_random_seed"]
        drawn = Table(path="rows.jsonl", msa_col="msa", msa_tokens=tokens, msa_seed=seed)
        assert drawn.inputs([row, row])[1]["msa"] == case["sampled_msa"]
