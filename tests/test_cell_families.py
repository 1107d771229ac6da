"""The families of cell models as backbones: what trains, what a result depends on.

pytest tests/test_cell_families.py
"""

import json
import math

import numpy as np
import pytest
import torch
from test_golden_cells import cells

from mgen.backbones import backbone, load_backbone
from mgen.backbones.geneformer import ALIASES, MEDIANS
from mgen.backbones.zoo import ZOO
from mgen.config import InputError
from mgen.io.counts import Counts, GeneTable

GENES = 40
GENE_NAMES = [f"GENE{i + 1}" for i in range(GENES)]


def config(family: str) -> dict:
    """A small network of simulated genes."""
    if family.startswith("aido"):
        sizes = {"max_position_embeddings": GENES, "hidden_size": 16, "intermediate_size": 32}
        return ZOO[f"{family}_debug"].config_json() | sizes | {"modality": "cell"}
    if family == "scimilarity":
        facts = {"n_genes": GENES, "hidden_dim": [16, 12], "latent_dim": 8}
        return {"model_type": family, **facts}
    facts = json.loads(json.dumps(ZOO[family].config))
    if family == "geneformer":
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 32, "vocab_size": GENES, "max_position_embeddings": 64}
        return facts | sizes | {"modality": "cell"}
    inner = facts["model_config"]["mae_autobin"]
    inner |= {"seq_len": GENES + 2, "bin_num": 10}
    inner["encoder"] |= {"hidden_dim": 16, "depth": 2, "heads": 2}
    inner["decoder"] |= {"hidden_dim": 16, "depth": 1, "heads": 2, "dim_head": 8}
    return facts


@pytest.fixture(params=["aido_cell", "aido_tissue", "scfoundation", "scimilarity", "geneformer"])
def folder(request, tmp_path):
    facts = config(request.param) | {"gene_list": "simulated"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    torch.manual_seed(0)
    return tmp_path


def some(seed: int = 0, rows: int = 5) -> list[Counts]:
    """Cells of which the third has no counts."""
    counts = np.random.default_rng(seed).poisson(np.linspace(0, 3, GENES), (rows, GENES))
    counts[2] = 0
    return cells(counts, GENE_NAMES)


def built(folder, **options):
    options = {"random_weights": True} | options
    return backbone(str(folder), **options).build()


def test_a_cell_alone_equals_itself_in_a_batch(folder):
    network, rows = built(folder, **collapse(folder)).eval(), some()
    with torch.no_grad():
        batch = network.tokenize(rows)
        together = network(batch)
        for i, row in enumerate(rows):
            alone = network(network.tokenize([row]))[0]
            assert (alone - together[i, : len(alone)]).abs().max() <= 1e-5
    embedded = network.embed(rows)
    assert embedded.shape == (5, network.width) and embedded.isfinite().all()
    assert (network.embed(rows[3:4])[0] - embedded[3]).abs().max() <= 1e-5


def collapse(folder) -> dict:
    """No table of older ids, where there would be one."""
    is_bert = "bert" in (folder / "config.json").read_text()
    return {"collapse": False} if is_bert else {}


def test_kept_outputs_are_those_of_each_cell(folder, tmp_path):
    """Rows that begin alike are not taken for each other."""
    network = built(folder, frozen=True, cache=str(tmp_path / "kept"), **collapse(folder)).eval()
    rows = cells([[0] * 5 + [1] * 35, [0] * 5 + [2, 1] * 17 + [4]], GENE_NAMES)
    first, again = (network(network.tokenize(rows)) for _ in range(2))
    network.cache = None
    assert torch.equal(first, network(network.tokenize(rows))) and torch.equal(again, first)
    assert (first[0] - first[1]).abs().max() > 1e-4


def test_an_empty_cell_gives_finite_states_and_gradients(folder):
    network = built(folder, **collapse(folder))
    hidden = network.train()(network.tokenize(some()))
    hidden.square().sum().backward()
    assert hidden.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("kind", ["frozen", "lora", "full"])
def test_what_is_asked_for_trains_and_nothing_else(folder, kind):
    options = {"frozen": {"frozen": True}, "lora": {"lora_rank": 2}, "full": {}}[kind]
    network = built(folder, **options, **collapse(folder)).train()
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    kept = {n: t.clone() for n, t in network.state_dict().items() if n not in trained}
    batch = network.tokenize([some()[i] for i in (0, 1, 3, 4)])
    (network(batch) * torch.randn(network.width)).sum().backward() if trained else network(batch)
    heads = {id(p) for head in network.heads for p in head.parameters()}
    if kind == "lora":
        assert trained and all(".lora_" in name for name in trained)
    elif kind == "full":
        named = network.named_parameters()
        assert trained == {n for n, p in named if id(p) not in heads}
        assert all(network.get_parameter(name).grad is not None for name in trained)
    else:
        assert not trained
    for name, before in kept.items() if kind != "full" else ():
        assert torch.equal(network.state_dict()[name], before), name


def test_recomputed_activations_give_the_same_gradients(folder):
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        options = {"gradient_checkpointing": recompute} | collapse(folder)
        network = built(folder, **options).eval()
        network(network.tokenize(some())).square()[..., 0].sum().backward()
        found.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    assert all((found[0][n] - found[1][n]).abs().max() <= 1e-6 for n in found[0])


def test_one_cell_to_train_on_is_normalised_by_the_statistics_kept(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(config("scimilarity") | {"gene_list": "simulated", "input_dropout": 0})
    )
    network = built(tmp_path)
    for stage in network.encoder.network:
        stage.dropout.p = 0.0
    batch = network.tokenize(some(rows=3)[:1])
    assert (network.train()(batch) - network.eval()(batch)).abs().max() <= 1e-6


# --------------------------------------------------------------------------- scFoundation


@pytest.fixture
def scfoundation(tmp_path):
    facts = config("scfoundation") | {"gene_list": "simulated"}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    return tmp_path


def test_depth_tokens_are_target_and_raw_total(scfoundation):
    row = cells([[3, 0, 7] + [0] * 37], GENE_NAMES)
    batch = built(scfoundation, depth=3.5).tokenize(row)
    expected = [math.log1p(3e4 / 10), math.log1p(7e4 / 10), 3.5, 1.0]
    assert batch["values"][0].tolist() == pytest.approx(expected, abs=1e-6)
    assert batch["gene_ids"].tolist() == [[0, 2, GENES, GENES + 1]]
    assert batch["special_tokens_mask"].tolist() == [[0, 0, 1, 1]]


def test_genes_without_an_order_are_not_cut(scfoundation):
    with pytest.raises(InputError, match="--backbone.truncate right: .* no order"):
        built(scfoundation, max_length=10, truncate="right")


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ({"gene": {}}, "expected a dict with 'cell'"),
        ({"cell": {"config": {}, "state_dict": {}}}, "no 'model_config'"),
        ({"cell": {"config": config("scfoundation"), "state_dict": {}}}, "missing: token_emb"),
        ({"cell": {"config": config("scfoundation"), "state_dict": [1]}}, "names to tensors"),
        ({"cell": Counts}, "damaged, or holds more than tensors, which is never run"),
    ],
)
def test_a_published_file_that_is_none_is_refused(saved, says, tmp_path):
    torch.save(saved, tmp_path / "models.ckpt")
    (tmp_path / "list.tsv").write_text("\n".join(["gene_name", *GENE_NAMES]) + "\n")
    with pytest.raises(InputError, match=says):
        load_backbone(str(tmp_path), genes=str(tmp_path / "list.tsv"))


def test_raw_values_are_neither_masks_nor_padding_unless_as_published(scfoundation):
    row = cells([[102, 103, 104] + [0] * 37], GENE_NAMES)
    batch = built(scfoundation, bulk=True).tokenize(row)
    assert batch["values"][0, :3].tolist() == [102, 103, 104]
    assert batch["attention_mask"].tolist() == [[1] * 5] and "masked" not in batch
    batch = built(scfoundation, bulk=True, as_published=True).tokenize(row)
    assert batch["masked"][0].tolist() == [1, 0, 0, 0, 0]
    assert batch["attention_mask"][0].tolist() == [1, 0, 1, 1, 1]


# --------------------------------------------------------------------------- Geneformer


@pytest.fixture
def ids(tmp_path, monkeypatch):
    """A folder whose genes are ids, with their medians, and a table of older ids."""
    tables = tmp_path / "data" / "genes"
    tables.mkdir(parents=True)
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))
    names = [f"ENSG{i:011d}" for i in range(GENES - 4)]
    lines = [f"{name}\t{1 + i}" for i, name in enumerate(names)]
    specials = [f"{name}\t1" for name in ("<pad>", "<mask>", "<cls>", "<eos>")]
    text = "\n".join(["ensembl_id\tmedian", *specials, *lines]) + "\n"
    (tmp_path / "genes.tsv").write_text(text)
    aliases = {"OLD": names[0], "ENSG99999999999": names[1], names[1]: names[1]}
    import gzip

    with gzip.open(tables / ALIASES, "wt") as file:
        file.write("\n".join(["key\tensembl_id", *map("\t".join, aliases.items())]) + "\n")
    (tmp_path / "config.json").write_text(json.dumps(config("geneformer")))
    return tmp_path, names


def test_genes_rank_by_share_of_all_counts_over_their_median(ids):
    """Equal ranks by token; the median of gene i is i + 1."""
    folder, names = ids
    row = cells([[6, 12, 3, 100]], [*names[:3], "UNKNOWN"])
    made = backbone(str(folder), random_weights=True).tokenizer()
    genes, scores = made.scores(row[0])
    assert genes.tolist() == [4, 5, 6]
    assert scores.tolist() == pytest.approx([6e4 / 121, 12e4 / 121 / 2, 3e4 / 121 / 3])
    batch = made.tokenize(row)
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 3]]
    assert batch["special_tokens_mask"].tolist() == [[1, 0, 0, 0, 1]]
    made = backbone(str(folder), random_weights=True, as_published=True).tokenizer()
    assert made.scores(row[0])[1].tolist() == pytest.approx([6e4 / 21, 6e4 / 21, 1e4 / 21])


def test_genes_of_equal_rank_are_in_the_order_of_tokens(ids):
    folder, names = ids
    text = (folder / "genes.tsv").read_text()
    lines = [line.split("\t")[0] + "\t1" for line in text.splitlines()[1:]]
    (folder / "genes.tsv").write_text("\n".join(["ensembl_id\tmedian", *lines]) + "\n")
    row = cells([[1 + i % 2 for i in range(36)]], names)
    made = backbone(str(folder), random_weights=True).tokenizer()
    expected = [2, *range(5, 40, 2), *range(4, 40, 2), 3]
    assert made.tokenize(row)["input_ids"].tolist() == [expected]


def test_older_ids_and_aliases_are_read_and_summed(ids):
    folder, names = ids
    row = cells([[1, 2, 4]], ["old", "ENSG99999999999.3", names[1]])
    made = backbone(str(folder), random_weights=True).tokenizer()
    assert [x.tolist() for x in made.sparse(row[0])] == [[4, 5], [1, 6]]
    made = backbone(str(folder), random_weights=True, collapse=False).tokenizer()
    assert [x.tolist() for x in made.sparse(row[0])] == [[5], [4]]
    both = GeneTable({"": ("OLD", "x"), "id": (names[5], "x")})
    row = Counts(np.array([0], dtype=np.int32), np.array([1], dtype=np.float32), both)
    made = backbone(str(folder), random_weights=True).tokenizer()
    assert made.sparse(row)[0].tolist() == [4 + 5]  # an id rather than an alias


def test_genes_of_mice_are_not_read_as_human_ones(ids):
    folder, _ = ids
    made = backbone(str(folder), random_weights=True).tokenizer()
    names = ["Old", "Gapdh", "Actb", "Sox2", "Nanog", "Pou5f1"]
    with pytest.raises(InputError, match="are of mouse"):
        made.tokenize(cells([[1] * 6], names))


def test_a_missing_table_is_named_with_what_does_without(ids):
    folder, names = ids
    (folder / "data" / "genes" / ALIASES).unlink()
    made = backbone(str(folder), random_weights=True).tokenizer()
    with pytest.raises(InputError, match=f"{ALIASES}.* is missing.*--backbone.no-collapse"):
        made.tokenize(cells([[1]], names[:1]))
    (folder / "genes.tsv").write_text("\n".join(["ensembl_id", *made.genes.ensembl]) + "\n")
    with pytest.raises(InputError, match=f"{MEDIANS}.* is missing"):
        backbone(str(folder), random_weights=True).tokenizer()


def test_long_cells_are_cut_at_the_lowest_ranks_only_where_told(ids):
    folder, names = ids
    row = cells([[1] * 10], names[:10])
    made = backbone(str(folder), random_weights=True, max_length=5)
    with pytest.raises(InputError, match="12 tokens, and the limit is 5"):
        made.tokenizer().tokenize(row)
    made = backbone(str(folder), random_weights=True, max_length=5, truncate="right")
    assert made.tokenizer().tokenize(row)["input_ids"].tolist() == [[2, 4, 5, 6, 3]]
    assert made.tokenizer().lengths(row) == [12]
    with pytest.raises(InputError, match="65: this model has 64 positions"):
        backbone(str(folder), random_weights=True, max_length=65).tokenizer()


def test_the_language_model_head_needs_the_last_layer(ids):
    folder, names = ids
    network = load_backbone(str(folder), random_weights=True)
    assert network.num_layers == 2
    hidden = network(network.tokenize(cells([[1, 2]], names[:2])))
    with pytest.raises(InputError, match="--backbone.emb-layer -1"):
        network.decoder(hidden)
    network = load_backbone(str(folder), random_weights=True, emb_layer=-1)
    hidden = network(network.tokenize(cells([[1, 2]], names[:2])))
    assert network.decoder(hidden).shape == (1, 4, GENES)
    with pytest.raises(InputError, match="emb-layer -5"):
        load_backbone(str(folder), random_weights=True, emb_layer=-5)
