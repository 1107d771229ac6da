"""scFoundation, SCimilarity and Geneformer against tensors of their published code.

    MGEN_GOLDEN=folder pytest tests/test_golden_cells.py

Tolerances are those of the fixtures' own pages: 2e-5, for SCimilarity's embedding 1e-6, its layers
1e-5; tokens are equal.
"""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import golden
from safetensors.torch import load_file, save_file

from mgen.backbones import load_backbone
from mgen.backbones.geneformer import GeneformerTokenizer
from mgen.backbones.scfoundation import published_values
from mgen.io.counts import Counts, GeneTable


def read(folder):
    """inputs, outputs."""
    return [load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs")]


def cells(counts, names: list[str]) -> list[Counts]:
    """Rows (B, G) as cells of a file with these genes."""
    table, counts = GeneTable({"": tuple(names)}), np.asarray(counts, dtype=np.float32)
    places = [np.flatnonzero(row).astype(np.int32) for row in counts]
    return [Counts(p, row[p], table) for p, row in zip(places, counts, strict=True)]


def listed(folder, size: int) -> tuple[list[str], str]:
    """The names of so many genes, and a file that lists them."""
    names, file = [f"GENE{i + 1}" for i in range(size)], folder / "list.tsv"
    file.write_text("\n".join(["gene_name", *names]) + "\n")
    return names, str(file)


def far(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return (got - expected).abs().max().item()


# --------------------------------------------------------------------------- scFoundation


class ScFoundation:
    def __init__(self, folder, **options) -> None:
        self.folder = golden("scfoundation_tiny")
        self.inputs, self.outputs = read(self.folder)
        names, file = listed(folder, self.inputs["counts"].shape[1])
        self.network = load_backbone(str(self.folder), genes=file, **options)
        self.cells = cells(self.inputs["counts"], names)
        self.real = self.outputs["full.encoder_padding"] == 0

    def far(self, got: torch.Tensor, name: str) -> float:
        assert got.shape == self.outputs[name].shape
        return (got - self.outputs[name])[self.real].abs().max().item()


@pytest.fixture
def scfoundation(tmp_path):
    return ScFoundation(tmp_path)


@pytest.mark.parametrize("mode", ["sc_F", "sc_T", "sc_A", "bulk_F", "bulk_T"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scfoundation_reads_values_as_golden_wrapper(mode, dtype):
    inputs, outputs = read(golden("scfoundation_tiny"))
    given = inputs.get(f"input_{mode}", inputs["counts"]).to(dtype)
    kind, normalised = mode.split("_")
    got = published_values(given, bulk=kind == "bulk", normalised=normalised)
    if dtype == torch.float32:
        expected = outputs[f"preprocessed.{mode}"]
        assert ((got - expected).abs() <= 2e-5 * expected.abs().clamp(min=1)).all()
    else:
        assert torch.equal(got.float(), outputs[f"preprocessed_bf16.{mode}"])


def test_scfoundation_tokens_are_golden_genes_above_zero_and_depths(scfoundation):
    batch = scfoundation.network.tokenize(scfoundation.cells)
    padding = scfoundation.outputs["full.encoder_padding"]
    assert torch.equal(batch["attention_mask"], 1 - padding.long())
    ids = scfoundation.outputs["full.encoder_gene_ids"]
    assert torch.equal(batch["gene_ids"][scfoundation.real], ids[scfoundation.real])
    full = scfoundation.inputs["full_values"]
    expected = full.gather(1, ids.clamp(max=full.shape[1] - 1))
    assert (batch["values"] - expected)[scfoundation.real].abs().max() <= 1e-6
    assert torch.equal(batch["special_tokens_mask"] == 0, (ids < full.shape[1] - 2))


@pytest.mark.parametrize("attention", ["sdpa", "document"])
def test_scfoundation_states_equal_golden(scfoundation, attention):
    network, states = scfoundation.network, []
    network.use_attention(attention)
    batch = network.tokenize(scfoundation.cells)
    if attention == "sdpa":
        for layer in network.model.encoder.transformer_encoder:
            layer.register_forward_hook(lambda _, __, made: states.append(made))
    with torch.no_grad():
        hidden = network.hidden_states(batch)
    assert scfoundation.far(hidden[-1], "full.encoder") <= 2e-5
    for i, state in enumerate(states or hidden[1:-1]):
        assert scfoundation.far(state, f"full.encoder_layer_{i}") <= 2e-5


def test_scfoundation_reads_golden_values_as_mixtures_of_bins(scfoundation):
    embedding, outputs = scfoundation.network.model.token_emb, scfoundation.outputs
    values, real = outputs["gathered_values"], outputs["gathered_padding"] == 0
    with torch.no_grad():
        weights, found = embedding.weights(values), embedding(values)
        assert (weights - outputs["bin_weights"])[real].abs().max() <= 2e-5
        assert (found - outputs["token_embedding"])[real].abs().max() <= 2e-5
        given = scfoundation.inputs["full_masked_values"]
        masked = embedding(given, given == scfoundation.network.config.mask_token_id)
    assert (given == 102).any()
    assert scfoundation.far(masked, "full.masked_token_embedding") <= 2e-5


def test_scfoundation_as_published_equals_golden_wrapper(tmp_path):
    fixture = ScFoundation(tmp_path, as_published=True)
    batch = fixture.network.tokenize(fixture.cells)
    with torch.no_grad():
        assert fixture.far(fixture.network(batch), "encoder_bf16_input.sc_F") <= 2e-5
        ids, values = (fixture.outputs[f"gathered_{n}"] for n in ("gene_ids", "values"))
        ids = ids.masked_fill(~fixture.real, 0)
        exact = batch | {"values": values, "gene_ids": ids}
        assert fixture.far(fixture.network(exact), "encoder.sc_F") <= 2e-5
    assert torch.equal(batch["gene_ids"][fixture.real], ids[fixture.real])


def test_scfoundation_reconstructs_golden_values_of_all_genes(tmp_path):
    fixture = ScFoundation(tmp_path, as_published=True)
    network = load_backbone(str(fixture.folder), genes=str(tmp_path / "list.tsv"))
    with torch.no_grad():
        batch = network.tokenize(fixture.cells)
        got = fixture.network.reconstruct(batch)  # whose decoder is that published
        assert far(got, fixture.outputs["full.reconstruction"]) <= 2e-5
        together = network.reconstruct(batch)
        for i, cell in enumerate(fixture.cells):
            alone = network.reconstruct(network.tokenize([cell]))[0]
            assert (together[i] - alone).abs().max() <= 1e-5
            published = fixture.network.reconstruct(network.tokenize([cell]))[0]
            assert (alone - published).abs().max() <= 1e-6  # a batch of one is the same


def test_scfoundation_cells_are_embedded_as_golden(scfoundation):
    network = scfoundation.network
    with torch.no_grad():
        got = network.cell_embedding(network.tokenize(scfoundation.cells))
    assert far(got, scfoundation.outputs["cell_embedding_all"]) <= 2e-5


def test_scfoundation_loads_from_the_published_file(scfoundation, tmp_path):
    tensors = load_file(scfoundation.folder / "model.safetensors")
    config = json.loads((scfoundation.folder / "config.json").read_text())
    other = {key: tensor + 1 for key, tensor in tensors.items()}
    parts = {"cell": tensors, "gene": other}
    saved = {k: {"config": config, "state_dict": v} for k, v in parts.items()}
    (tmp_path / "published").mkdir()
    torch.save(saved, tmp_path / "published" / "models.ckpt")
    names = {"genes": str(tmp_path / "list.tsv")}
    own = scfoundation.network.model.state_dict()
    for weights, shift in (("cell", 0), ("gene", 1)):
        network = load_backbone(str(tmp_path / "published"), weights=weights, **names)
        for key, tensor in network.model.state_dict().items():
            assert torch.equal(tensor, own[key] + shift), key
    (tmp_path / "saved").mkdir()
    network.save(tmp_path / "saved")
    again = load_backbone(str(tmp_path / "saved"))
    assert again.tokenizer.fingerprint == network.tokenizer.fingerprint
    assert again.fingerprint() == network.fingerprint()


# --------------------------------------------------------------------------- SCimilarity


@pytest.fixture
def scimilarity(tmp_path):
    folder = golden("scimilarity_tiny")
    inputs, outputs = read(folder)
    names, file = listed(tmp_path, inputs["counts"].shape[1])
    network = load_backbone(str(folder), genes=file)
    return network, cells(inputs["counts"], names), outputs


def test_scimilarity_equals_golden(scimilarity):
    network, rows, outputs = scimilarity
    batch, stages = network.tokenize(rows), []
    assert far(batch["values"], outputs["normalised"]) <= 1e-6
    for stage in network.model.encoder.network:
        stage.register_forward_hook(lambda _, __, made: stages.append(made))
    with torch.no_grad():
        hidden = network(batch)
        assert far(network.decoder(hidden), outputs["decoded"]) <= 1e-5
    assert far(hidden[:, 0], outputs["embedding"]) <= 1e-6
    for i, state in enumerate(stages):
        assert far(state, outputs[f"layer_{i}"]) <= 1e-5
    assert len(stages) == sum(name.startswith("layer_") for name in outputs)


def test_scimilarity_as_published_rounds_as_golden(scimilarity):
    network, rows, outputs = scimilarity
    network.tokenizer.as_published = True
    values = network.tokenize(rows)["values"]
    assert torch.equal(values, outputs["list_input_normalised_bf16"])


def test_scimilarity_loads_from_the_published_folder(scimilarity, tmp_path):
    network, rows, _ = scimilarity
    folder, source = tmp_path / "repository", golden("scimilarity_tiny")
    where = folder / "model_v1.1"
    where.mkdir(parents=True)
    for part, name in (("encoder", "model"), ("decoder", "decoder")):
        tensors = load_file(source / f"{name}.safetensors")
        torch.save({"state_dict": tensors}, where / f"{part}.ckpt")
    shutil.copy(source / "layer_sizes.json", where)
    names = {"genes": str(tmp_path / "list.tsv")}
    for place in (folder, where):
        found = load_backbone(str(place), **names)
        assert found.fingerprint() == network.fingerprint()
        assert found.config == network.config
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved")
    again = load_backbone(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(again.tokenize(rows)), network(network.tokenize(rows)))


# --------------------------------------------------------------------------- Geneformer


@pytest.fixture
def geneformer(shared, tmp_path):
    """Its folder, which is no part of the repository, and a tokenizer of the whole vocabulary."""
    folder = shared / "golden" / "geneformer_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"needs data that is not part of the repository: no folder {folder}")
    return folder


def tokenizer(**options) -> GeneformerTokenizer:
    from mgen.backbones import backbone

    options = {"as_published": True, "truncate": "right"} | options
    return backbone("geneformer", random_weights=True, **options).tokenizer()


@pytest.mark.parametrize("limit", [4096, 64])
def test_geneformer_tokens_equal_golden(geneformer, limit):
    inputs, outputs = read(geneformer)
    with open(geneformer / "genes.tsv") as file:
        names = [row["ensembl_id"] for row in csv.DictReader(file, delimiter="\t")]
    made = tokenizer(max_length=limit)
    rows = cells(inputs["counts"], names)
    batch = made.tokenize(rows)
    assert torch.equal(batch["input_ids"], outputs[f"input_ids.max{limit}"])
    assert torch.equal(batch["attention_mask"], outputs[f"attention_mask.max{limit}"])
    places = made.align(rows[0].table).places[outputs["kept_columns"]]
    for row, expected in zip(rows, outputs["normalised"], strict=True):
        genes, scores = made.scores(row)
        found = np.zeros(len(made.genes))
        found[genes] = scores
        assert np.abs(found[places] - expected.numpy()).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("limit", [4096, 64])
def test_geneformer_tokens_of_columns_in_its_order_equal_golden(geneformer, limit):
    inputs, outputs = read(geneformer)
    made = tokenizer(max_length=limit)
    counts = torch.zeros(3, len(made.genes))
    counts[tuple(inputs["vocab_nz_index"].T)] = inputs["vocab_nz_count"]
    batch = made.tokenize(cells(counts, made.genes.ensembl))
    assert torch.equal(batch["input_ids"], outputs[f"vocab_input_ids.max{limit}"])
    assert torch.equal(batch["attention_mask"], outputs[f"vocab_attention_mask.max{limit}"])


def test_geneformer_states_and_logits_equal_golden(geneformer, tmp_path):
    inputs, outputs = read(geneformer)
    folder = tmp_path / "geneformer"
    folder.mkdir()
    config = json.loads((geneformer / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"modality": "cell"}))
    save_file(load_file(geneformer / "model.safetensors"), folder / "model.safetensors")
    names = tokenizer().genes.ensembl[: config["vocab_size"]]
    (tmp_path / "list.tsv").write_text("\n".join(["ensembl_id", *names]) + "\n")
    batch = {n: inputs[f"bert_{n}"] for n in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    network = load_backbone(str(folder), genes=str(tmp_path / "list.tsv"))
    last = load_backbone(str(folder), genes=str(tmp_path / "list.tsv"), emb_layer=-1)
    with torch.no_grad():
        hidden, states = network(batch), last.hidden_states(batch)
        logits = last.decoder(last(batch))
    expected = outputs["bert_wrapper_last_hidden_state"]
    assert (hidden - expected)[real].abs().max() <= 2e-5
    assert len(states) == sum(name.startswith("bert_hidden_state_") for name in outputs)
    for i, state in enumerate(states):
        assert (state - outputs[f"bert_hidden_state_{i}"])[real].abs().max() <= 2e-5
    assert (logits - outputs["bert_logits"])[real].abs().max() <= 2e-5
    (tmp_path / "saved").mkdir()
    network.save(tmp_path / "saved")
    again = load_backbone(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(batch), hidden)
    assert again.tokenizer.fingerprint == network.tokenizer.fingerprint
