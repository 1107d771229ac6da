"""Embeddings of cells: per cell and per gene, into a copy of their AnnData file, as a figure.

pytest tests/test_cell_embed.py
"""

import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT

import mgen
from mgen.backbones.cell_tokenizer import CellTokenizer
from mgen.backbones.genes import GeneList
from mgen.backbones.zoo import ZOO
from mgen.config import InputError
from mgen.data.sources.places import local_file
from mgen.figures.embeddings import _numbers, embedding_figure, flattened
from mgen.io.counts import cells_of
from mgen.io.h5ad import copy_with
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import embed  # noqa: E402

FILE = local_file("bundled:cells_tiny.h5ad")
BASELINE = ["--backbone", "cell_log1p", "--backbone.genes", str(FILE)]


def command(folder, *flags, model=BASELINE) -> int:
    given = ["--data", "cells_tiny", *model, "--out", folder, "--name", "a", *flags]
    with pytest.raises(SystemExit) as left:
        run(embed.Embed, embed.Config, [*map(str, given)])
    return left.value.code or 0


def file_of(folder, suffix: str = "parquet"):
    return folder / "embed" / "a" / "predictions" / f"cells_tiny.{suffix}"


def contents(group, prefix: str = "") -> dict:
    """Everything in an HDF5 group: attributes, and the bytes of data as they are stored."""
    import h5py

    found = {}
    for name, node in group.items():
        at = f"{prefix}/{name}"
        found[at] = {key: np.asarray(value).tolist() for key, value in node.attrs.items()}
        if isinstance(node, h5py.Group):
            found |= contents(node, at)
        else:
            found[at, "data"] = (node.dtype, node.shape, node.compression, node[()].tolist())
    return found


def test_vectors_come_into_a_copy_of_the_file_and_nothing_else_changes(tmp_path):
    anndata, h5py = pytest.importorskip("anndata"), pytest.importorskip("h5py")
    before = FILE.read_bytes()
    assert command(tmp_path, "--h5ad", "--data.only", "batch=A") == 0
    assert FILE.read_bytes() == before
    ours = anndata.read_h5ad(file_of(tmp_path, "h5ad"))
    assert [*ours.obsm] == ["X_cell_log1p"]
    counts = ours.X.toarray()
    expected = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    is_used = (ours.obs["batch"] == "A").to_numpy()
    np.testing.assert_allclose(ours.obsm["X_cell_log1p"][is_used], expected[is_used], rtol=1e-5)
    assert np.isnan(ours.obsm["X_cell_log1p"][~is_used]).all()
    with h5py.File(FILE) as a, h5py.File(file_of(tmp_path, "h5ad")) as b:
        old, new = contents(a), contents(b)
        added = {key for key in new if "X_cell_log1p" in str(key)}
        assert {key: new[key] for key in new if key not in added} == old


def test_python_gives_the_same_vectors(tmp_path):
    anndata = pytest.importorskip("anndata")
    assert command(tmp_path, "--data.max-rows", "20", "--colour", "age") == 0
    assert (tmp_path / "embed/a/figures/cells_tiny/embedding.png").stat().st_size > 5000
    network = mgen.load_backbone("cell_log1p", genes=str(FILE))
    theirs = network.embed(cells_of(anndata.read_h5ad(FILE)[:20]))
    ours = np.array(pq.read_table(file_of(tmp_path))["embedding"].to_pylist())
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--h5ad", "--data.max-rows", "5"], "drop --data.max-rows"),
        (["--pool", "none"], "one vector per cell"),
        (["--pool", "none", "--colour", "age"], "one vector per row"),
        (["--colour", "celltype"], "no column 'celltype'"),
    ],
)
def test_nonsense_is_refused(flags, says, tmp_path, capfd):
    assert command(tmp_path, *flags) == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "embed").exists()


@pytest.mark.skipif("aido_cell_debug" not in ZOO, reason="needs a model of genes")
def test_per_gene_vectors_say_of_which_gene_and_layers_have_names(tmp_path):
    anndata = pytest.importorskip("anndata")
    few = tmp_path / "cells_tiny.h5ad"
    anndata.read_h5ad(FILE)[:4, :250].copy().write_h5ad(few)
    model = ["--backbone", "aido_cell_debug", "--backbone.pooled-genes", "present"]
    flags = ["--data.path", few, "--pool", "none"]
    assert command(tmp_path, *flags, model=model) == 0
    rows = pq.read_table(file_of(tmp_path)).to_pylist()
    genes = file_of(tmp_path, "genes.tsv").read_text().splitlines()[1:]
    torch.manual_seed(42)
    network = mgen.load_backbone("aido_cell_debug", pooled_genes="present")
    theirs = network.embed(cells_of(anndata.read_h5ad(few)), pool="none")
    for row, vectors in zip(rows, theirs, strict=True):
        assert {genes[g].split("\t")[0] for g in row["gene"]} == {f"GENE{i}" for i in range(1, 251)}
        np.testing.assert_allclose(row["embedding"], vectors, atol=1e-5)
    shutil.rmtree(tmp_path / "embed")
    flags = ["--data.path", few, "--h5ad", "--layers", "0", "-1"]
    assert command(tmp_path, *flags, model=model) == 0
    last = network.num_layers
    found = {*anndata.read_h5ad(file_of(tmp_path, "h5ad")).obsm}
    assert found == {"X_aido_cell_debug_layer_0", f"X_aido_cell_debug_layer_{last}"}


def test_a_full_disk_leaves_no_part_of_a_copy(tmp_path, monkeypatch, capfd):
    pytest.importorskip("h5py")

    def fails(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fails)
    assert command(tmp_path, "--h5ad") == 2
    assert "cells_tiny.h5ad: cannot be written: [Errno 28]" in capfd.readouterr().err
    assert [file.name for file in file_of(tmp_path).parent.iterdir()] == ["cells_tiny.parquet"]


def test_tokens_are_of_genes_however_a_family_says_so():
    mask, reads = torch.ones(1, 5), CellTokenizer(GeneList(("a", "b", "c"), ("",) * 3), config=None)

    def genes(**batch) -> list:
        return reads.token_genes({"attention_mask": mask, **batch})[0].tolist()

    assert genes() == [0, 1, 2, 3, 4]  # all genes in order, then depths
    assert genes(gene_ids=torch.tensor([[2, 0]])) == [2, 0]
    assert genes(input_ids=torch.tensor([[7, 1]])) == [7, 1]
    assert genes(position_ids=torch.tensor([[[1, 2], [0, 0]]])) == [1, 2]
    mask = mask[:, :1]
    with pytest.raises(InputError, match="one vector per cell"):
        genes()


def test_a_copy_replaces_a_vector_of_the_same_name_and_checks_the_number_of_cells(tmp_path):
    h5py = pytest.importorskip("h5py")
    target = tmp_path / "copy.h5ad"
    for value in (1.0, 2.0):
        block = np.full((400, 2), value)
        copy_with(FILE if value == 1 else target, target, {"a": iter([block])})
    with h5py.File(target) as opened:
        assert (opened["obsm/X_a"][()] == 2).all()
    with pytest.raises(InputError, match="400 cells, but 3 rows"):
        copy_with(FILE, tmp_path / "b.h5ad", {"a": iter([np.zeros((3, 2))])})
    assert [file.name for file in tmp_path.iterdir()] == ["copy.h5ad"]


def test_without_umap_a_figure_is_a_pca_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2)) @ np.diag([5, 1]) @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
    places, how = flattened(x)
    assert how == "PCA"
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(x.T))[::-1])
    np.testing.assert_allclose(places.std(0, ddof=1), spread, rtol=1e-6)
    for values in (None, ["a", None] * 25, [1.0, None] * 25, [f"c{i}" for i in range(50)]):
        file = embedding_figure(tmp_path / "x.png", x, values, "column")
        assert file.read_bytes()[:4] == b"\x89PNG"
    assert flattened(np.ones((1, 3)))[0].tolist() == [[0, 0]]


def test_numbers_written_as_text_are_a_scale_and_few_of_them_are_names():
    assert _numbers(["1", "2", None]) is None  # clusters
    many = [str(i / 2) for i in range(40)] + [""]
    assert _numbers(many)[:-1].tolist() == [i / 2 for i in range(40)]
    assert np.isnan(_numbers([3, None])).tolist() == [False, True]
    assert _numbers(["a", *many]) is None and _numbers([True, False]) is None
