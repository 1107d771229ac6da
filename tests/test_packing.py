"""Packed tokens give what padded ones and each row alone give, gradients included.

    MGEN_GOLDEN=folder pytest tests/test_packing.py

`varlen` has no CPU kernel: here a softmax over each document stands in for it, by its own formula
and with the arguments that torch documents.
"""

import json

import pytest
import torch
import torch._dynamo.testing
from test_golden_models import MODELS, Fixture
from tiny import command, equal, fresh_process, table  # noqa: F401
from transformers import BertConfig, BertModel

from mgen.backbones import backbone, load_backbone, memory
from mgen.config import InputError
from mgen.models import attention
from mgen.models.attention import Packed, Padded, lay_out

PACKED = ["document", "varlen"]


def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """softmax(q k^T / sqrt(d)) v within documents; tensors (T, H, d), ends (N + 1,) int32."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q[0] == 0
    assert int(cu_seq_q.diff().max()) == max_q == max_k and int(cu_seq_q[-1]) == len(query)
    parts = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].double() for x in (query, key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) / query.shape[-1] ** 0.5
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(query.dtype))
    return torch.cat(parts)


@pytest.fixture(params=PACKED)
def back_end(request, monkeypatch) -> str:
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    if request.param == "varlen":  # as on a GPU
        made = lambda mask, *_: (Packed(mask, varlen=True), "")  # noqa: E731
        monkeypatch.setattr("mgen.models.encoder.lay_out", made)
    return request.param


@pytest.fixture(params=MODELS)
def fixture(request, back_end) -> Fixture:
    found = Fixture(request.param)
    found.backbone.use_attention(back_end)
    return found


def test_packed_hidden_states_equal_golden(fixture):
    with torch.no_grad():
        states = fixture.backbone.hidden_states(fixture.inputs)
    for i, state in enumerate(states):
        assert fixture.difference(state, f"hidden_states.{i}") <= 1e-4, i


def test_packed_loss_and_gradients_equal_golden(fixture):
    loss = fixture.loss()
    loss.backward()
    assert abs(loss.item() - fixture.outputs["mlm_loss"].item()) <= 1e-5
    gradients = {n: p.grad for n, p in fixture.backbone.encoder.named_parameters()}
    for name, gradient in fixture.outputs.items():
        if name.startswith("grad."):
            assert (gradients[name.removeprefix("grad.")] - gradient).abs().max() <= 1e-4, name


def summed_gradients(fixture, batches) -> tuple[list, list]:
    """States of each batch, and the gradients of the sum of their squares at real tokens."""
    network, states = fixture.backbone, []
    parameters = [p for p in network.encoder.parameters() if p.requires_grad]
    total = 0.0
    for batch in batches:
        hidden = network(batch)
        states.append(hidden)
        real = batch["attention_mask"].bool()
        total = total + hidden[real].square().mean(-1).sum()
    return states, torch.autograd.grad(total, parameters, allow_unused=True)


def test_packed_equals_padded_and_each_row_alone_with_gradients(fixture, back_end):
    lengths = fixture.real.sum(1).tolist()
    alone = [fixture.part(row, length) for row, length in enumerate(lengths)]
    packed, packed_gradients = summed_gradients(fixture, [fixture.inputs])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgen.models.encoder.lay_out", lambda mask, *_: (Padded(mask), ""))
        padded, padded_gradients = summed_gradients(fixture, [fixture.inputs])
        each, each_gradients = summed_gradients(fixture, alone)
    assert (packed[0] - padded[0])[fixture.real].abs().max() <= 1e-5
    for row, length in enumerate(lengths):
        assert (packed[0][row, :length] - each[row][0]).abs().max() <= 1e-5
    for gradient, *others in zip(packed_gradients, padded_gradients, each_gradients, strict=True):
        for other in others:
            assert (gradient is None) == (other is None)
            if gradient is not None:
                assert (gradient - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item())


def test_no_layer_sees_padding(fixture):
    seen = []
    for layer in fixture.backbone.encoder.encoder.layer:
        layer.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape[:2])))
    fixture.backbone(fixture.inputs)
    assert {*seen} == {(1, int(fixture.real.sum()))}


def test_unpacking_undoes_packing_of_any_mask():
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    x = torch.arange(24.0).view(3, 4, 2)
    packed = Packed(mask, varlen=True)
    assert packed.pack(x)[0].tolist() == [[0, 1], [4, 5], [6, 7], [18, 19]]
    assert packed.ends.tolist() == [0, 3, 4, 4] and packed.longest == 3
    assert packed.column.tolist() == [0, 2, 3, 1]
    assert torch.equal(packed.unpack(packed.pack(x)), x * mask[..., None])


def test_a_batch_of_padding_alone_gives_zeros(back_end):
    network = load_backbone("aido_dna_debug", random_weights=True)
    network.use_attention(back_end)
    batch = network.tokenize(["AC"])
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    assert network(batch).abs().sum() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("is_compiled", [False, True])
def test_varlen_on_a_gpu_gives_what_padded_rows_give_in_half_precision(is_compiled):
    torch.manual_seed(0)
    network = load_backbone("esm2_8m", random_weights=True, dtype="bfloat16").cuda()
    rows = [("ACDEFGHIKLMNPQRSTVWY" * 20)[:length] for length in (400, 31, 250, 7, 120)]
    batch = {name: tensor.cuda() for name, tensor in network.tokenize(rows).items()}
    real, found = batch["attention_mask"].bool(), {}
    if is_compiled:
        memory.compile_blocks(network)
    for name in ("sdpa", "varlen"):
        network.use_attention(name)
        network.zero_grad()
        hidden = network(batch)
        hidden[real].square().mean().backward()
        gradient = network.encoder.encoder.layer[0].attention.self.query.weight.grad
        found[name] = hidden[real].detach(), gradient.float().clone()
    assert network.notice == ""
    for ours, theirs in zip(found["varlen"], found["sdpa"], strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()  # of bf16


# --------------------------------------------------------------------------- which one when


class OnGPU:
    """What `lay_out` asks of a mask."""

    is_cuda, device = True, "cuda"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_width", "dropout", "reason"),
    [
        ((9, 0), torch.bfloat16, 64, 0.0, ""),
        ((8, 0), torch.float16, 20, 0.0, "not for heads of 20 channels"),
        ((7, 5), torch.float16, 64, 0.0, "compute capability 8.0"),
        ((9, 0), torch.float32, 64, 0.0, "needs half precision"),
        ((9, 0), torch.bfloat16, 64, 0.1, "has no dropout"),
    ],
)
def test_auto_packs_on_a_gpu_or_says_why_not(
    capability, dtype, head_width, dropout, reason, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention, "Packed", lambda mask, varlen: "packed")
    monkeypatch.setattr(attention, "Padded", lambda mask: "padded")
    layout, why = lay_out(OnGPU(), "auto", dtype, head_width, dropout)
    assert reason in why and layout == ("padded" if reason else "packed")
    if reason:
        with pytest.raises(InputError, match=reason):
            lay_out(OnGPU(), "varlen", dtype, head_width, dropout)


@pytest.mark.parametrize(("padding", "layout"), [(0, Padded), (1, Padded), (2, Packed)])
def test_auto_packs_on_a_cpu_where_more_than_a_tenth_is_padding(padding, layout):
    mask = torch.ones(2, 5)
    mask[1, 5 - padding :] = 0
    found, reason = lay_out(mask, "auto", torch.float32, 64, 0.0)
    assert isinstance(found, layout) and not reason


def test_rows_that_are_padded_though_they_could_be_packed_are_said_once(monkeypatch, capsys):
    found = {"reason": "packed attention has no dropout: --backbone.dropout 0"}
    monkeypatch.setattr(
        "mgen.models.encoder.lay_out", lambda mask, *_: (Padded(mask), found["reason"])
    )
    network = load_backbone("aido_dna_debug", random_weights=True)
    network.embed(["ACGT"]), network.hidden_states(network.tokenize(["AC"]))
    assert capsys.readouterr().out.count("attention over padded rows: packed attention has no") == 1
    found["reason"] = ""
    network.embed(["ACGT"])
    assert capsys.readouterr().out == ""


def test_varlen_without_a_gpu_is_refused_before_weights_are_read():
    with pytest.raises(InputError, match="varlen needs a CUDA device"):
        backbone("aido_dna_300m", attention="varlen").build()


def test_transformers_models_have_no_document_back_end(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=8, intermediate_size=16, max_position_embeddings=16, **sizes)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\nC\nG\n")
    facts = {"tokenizer_class": "BertTokenizer", "model_max_length": 16}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    assert load_backbone(str(tmp_path), attention="sdpa").notice == ""
    with pytest.raises(InputError, match="document is for mgen's own architectures"):
        load_backbone(str(tmp_path), attention="document")


def test_a_run_trains_alike_packed_and_padded(tmp_path):
    from safetensors.torch import load_file

    table(tmp_path)
    weights = {}
    for back_end in ("sdpa", "document"):
        flags = ("--backbone.attention", back_end, "--name", back_end, "--train.lr", "1e-3")
        assert command(tmp_path, *flags) == 0
        folder = tmp_path / "runs" / "sequence_regression" / back_end
        weights[back_end] = load_file(folder / "checkpoints" / "last" / "model.safetensors")
    for name, tensor in weights["sdpa"].items():
        assert torch.allclose(tensor, weights["document"][name], atol=1e-5), name
    assert not equal(*weights.values())  # it was another path


# --------------------------------------------------------------------------- compilation


@pytest.mark.parametrize(
    "back_end_name", ["sdpa", pytest.param("document", marks=pytest.mark.slow)]
)
def test_blocks_compile_a_bounded_number_of_times_whatever_the_lengths(back_end_name):
    torch._dynamo.reset()
    network = load_backbone("aido_dna_debug", random_weights=True, attention=back_end_name)
    shapes = [(4, 20), (7, 60), (3, 90), (5, 44), (9, 11), (2, 200), (8, 70), (6, 33)]
    batches = [
        network.tokenize([("ACGT" * 50)[: width - i] for i in range(count)])
        for count, width in shapes
    ]
    with torch.no_grad():
        plain = [network(batch) for batch in batches]
        compiler, counts = torch._dynamo.testing.CompileCounterWithBackend("eager"), []
        memory.compile_blocks(network, compiler)
        for batch, expected in zip(batches, plain, strict=True):
            real = batch["attention_mask"].bool()
            assert (network(batch) - expected)[real].abs().max() <= 1e-6
            counts.append(compiler.frame_count)
    assert 0 < counts[1] == counts[-1]
