"""Files of cells, compared with what anndata and scipy read of them."""

import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import io as scipy_io
from scipy import sparse

from mgen.config import InputError
from mgen.data.table import Table
from mgen.io import cells, h5ad
from mgen.io.tables import read

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")
CELLS, GENES = 23, 11


@pytest.fixture
def matrix():
    random = np.random.default_rng(0)
    return (random.poisson(0.6, (CELLS, GENES)) * random.integers(0, 2, (CELLS, 1))).astype("f4")


def made(x, **given):
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(x) if not sparse.issparse(x) else CELLS)])
    obs["kind"] = pd.Categorical(["a", None, *["b"] * (CELLS - 2)])
    obs["day"] = pd.Categorical([3, 5, *[3] * (CELLS - 2)])
    obs["age"] = [np.nan, *np.arange(CELLS - 1) / 2]
    obs["is_ill"] = [True, *[False] * (CELLS - 1)]
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(GENES)], "n": range(GENES)})
    var.index = [f"g{i}" for i in range(GENES)]
    return anndata.AnnData(x, obs, var, **given)


def dense(path, layer=""):
    table = pa.Table.from_batches(read(path, layer=layer))
    names = json.loads(table.schema.metadata[b"mgen_genes"])
    found = np.zeros((table.num_rows, len(names[""])), np.float32)
    for row, cell in enumerate(table["counts"].to_pylist()):
        assert cell["genes"] == sorted(cell["genes"])
        assert 0.0 not in cell["values"]
        found[row, cell["genes"]] = cell["values"]
    return found, table, names


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_layouts_give_the_same_rows(tmp_path, monkeypatch, matrix, kind, suffix):
    monkeypatch.setattr(cells, "MOST_ENTRIES", 17)  # many blocks
    path = tmp_path / f"a.{suffix}"
    data = made(kind(matrix), layers={"twice": kind(2 * matrix)})
    data.raw = made(kind(3 * matrix))
    getattr(data, f"write_{suffix}")(path)
    for layer, factor in {"": 1, "twice": 2, "raw": 3}.items():
        np.testing.assert_array_equal(dense(path, layer)[0], factor * matrix)


def test_obs_var_and_places_are_kept(tmp_path, matrix):
    data = made(matrix)
    data.obsm["spatial"] = np.arange(2.0 * CELLS).reshape(CELLS, 2)
    data.write_h5ad(tmp_path / "a.h5ad")
    _, table, names = dense(tmp_path / "a.h5ad")
    first, second = table.drop_columns(["counts"]).slice(0, 2).to_pylist()
    given = {"id": "c0", "kind": "a", "day": 3, "age": None, "is_ill": True}
    assert first == given | {"spatial_x": 0.0, "spatial_y": 1.0}
    assert (second["kind"], second["day"], second["age"]) == (None, 5, 0.0)
    assert names == {k: [f"{v}{i}" for i in range(GENES)] for k, v in (("", "g"), ("symbol", "S"))}


def tenx(folder, matrix, kinds):
    genes = sparse.csc_matrix(matrix.T.astype(int))
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(genes, name)
        group["shape"] = genes.shape
        group["barcodes"] = [f"c{i}" for i in range(CELLS)]
        for name, prefix in (("id", "E"), ("name", "S")):
            group[f"features/{name}"] = [f"{prefix}{i}" for i in range(GENES)]
        group["features/feature_type"] = kinds
    place = folder / "mtx"
    place.mkdir()
    scipy_io.mmwrite(place / "matrix.mtx", genes)
    (place / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(CELLS)))
    lines = "".join(f"E{i}\tS{i}\t{kind}\n" for i, kind in enumerate(kinds))
    (place / "features.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    return folder / "a.h5", place


def test_10x_files_and_folders_keep_genes_alone(tmp_path, matrix):
    for path in tenx(tmp_path, matrix, ["Gene Expression"] * 9 + ["Antibody Capture"] * 2):
        with pytest.warns(UserWarning, match="2 of 11 features"):
            found, table, names = dense(path)
        np.testing.assert_array_equal(found, matrix[:, :9])
        assert table["id"].to_pylist() == [f"c{i}" for i in range(CELLS)]
        assert (names[""][8], names["gene_ids"][8]) == ("S8", "E8")


def test_10x_files_of_older_layouts_are_read(tmp_path, matrix):
    """CellRanger 2: a group named after the genome, and genes.tsv without kinds."""
    source, place = tenx(tmp_path, matrix, ["Gene Expression"] * GENES)
    with h5py.File(source) as new, h5py.File(tmp_path / "old.h5", "w") as file:
        group = file.create_group("GRCh38")
        for name in ("data", "indices", "indptr", "shape", "barcodes"):
            new.copy(f"matrix/{name}", group)
        for name, old in (("id", "genes"), ("name", "gene_names")):
            new.copy(f"matrix/features/{name}", group, old)
    (place / "features.tsv.gz").unlink()
    (place / "genes.tsv").write_text("".join(f"E{i}\tS{i}\n" for i in range(GENES)))
    for path in (tmp_path / "old.h5", place):
        found, table, names = dense(path)
        np.testing.assert_array_equal(found, matrix)
        assert table["id"].to_pylist() == [f"c{i}" for i in range(CELLS)]
        assert (names[""][8], names["gene_ids"][8]) == ("S8", "E8")


def test_an_obs_column_id_leaves_the_index_under_another_name(tmp_path, matrix):
    data = made(matrix)
    data.obs["id"] = [f"own{i}" for i in range(CELLS)]
    data.write_h5ad(tmp_path / "a.h5ad")
    _, table, _ = dense(tmp_path / "a.h5ad")
    assert (table["id"][3].as_py(), table["obs_name"][3].as_py()) == ("own3", "c3")


def test_files_of_a_folder_keep_their_own_genes_and_layers_their_own_counts(
    tmp_path, monkeypatch, matrix
):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "both"
    folder.mkdir()
    for name, order in (("a", np.arange(GENES)), ("b", np.arange(GENES)[::-1])):
        data = made(matrix)[:, order].copy()
        data.layers["twice"] = 2 * data.X
        data.write_h5ad(folder / f"{name}.h5ad")
    for layer, factor in (("", 1), ("twice", 2)):
        rows = Table(path=str(folder), y_cols=(), layer=layer, max_rows=20).open(split=False)
        assert len(rows) == 2 * 20 and [len(table) for table in rows.genes] == [GENES, GENES]
        one, other = (rows.cell(row) for row in (4, 24))
        for cell in (one, other):
            found = dict(zip(cell.table.names(cell.genes), cell.values.tolist(), strict=True))
            assert found == {f"g{i}": factor * n for i, n in enumerate(matrix[4].tolist()) if n}


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "mtx"])
def test_a_table_of_cells_opens(tmp_path, monkeypatch, matrix, name):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    tenx(tmp_path, matrix, ["Gene Expression"] * GENES)
    made(matrix).write_h5ad(tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made(matrix).write_zarr(tmp_path / "a.zarr")
    rows = Table(path=str(tmp_path / name), y_cols=()).open(split=False)
    assert len(rows) == CELLS
    cell = rows.take([4])[0]["sequence"]
    np.testing.assert_array_equal(cell.genes, np.flatnonzero(matrix[4]))
    np.testing.assert_array_equal(cell.values, matrix[4][cell.genes])
    assert len(cell.table) == GENES


def broken(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def cut(path):
    path.write_bytes(path.read_bytes()[:3000])


def without_x(file):
    del file["X"]


def short_matrix(file):
    del file["X"]
    file["X"] = np.zeros((3, GENES))


@pytest.mark.parametrize(
    ("change", "layer", "message"),
    [
        (cut, "", "damaged"),
        (lambda path: broken(path, without_x), "", "no X"),
        (lambda path: broken(path, short_matrix), "", "obs and var say"),
        (lambda path: broken(path, lambda file: file.pop("obs")), "", "neither AnnData nor 10x"),
        (lambda path: None, "absent", "no layer 'absent'; there are twice"),
        (lambda path: None, "raw", "no layer 'raw'"),
        (lambda path: path.write_text("id,x\n"), "", "damaged"),
    ],
)
def test_bad_files_are_refused(tmp_path, matrix, change, layer, message):
    path = tmp_path / "a.h5ad"
    made(matrix, layers={"twice": matrix}).write_h5ad(path)
    change(path)
    with pytest.raises(InputError, match=message):
        [*read(path, layer=layer)]


def test_bad_columns_and_counts_are_refused(tmp_path, matrix):
    path, data = tmp_path / "a.h5ad", made(matrix)
    data.obs["counts"] = 1
    data.write_h5ad(path)
    with pytest.raises(InputError, match="'counts', a reserved name"):
        [*read(path)]
    large = matrix.astype(np.int64)
    large[5, 2] = 1 << 25
    made(large).write_h5ad(path)
    with pytest.raises(InputError, match="row 6: a count of 33554432"):
        [*read(path)]
    made(matrix)[:0].copy().write_h5ad(path)
    with pytest.raises(InputError, match="no cells"):
        [*read(path)]
    (tmp_path / "a.h5ad.gz").write_bytes(b"")
    with pytest.raises(InputError, match="gunzip it first"):
        [*read(tmp_path / "a.h5ad.gz")]


def test_vectors_join_a_copy_that_is_else_the_same(tmp_path, matrix):
    path, target = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    data = made(sparse.csr_matrix(matrix), uns={"k": np.arange(3)})
    data.obsm["X_old"] = np.zeros((CELLS, 2))
    data.write_h5ad(path)
    before, vectors = path.read_bytes(), np.random.default_rng(1).random((CELLS, 4), np.float32)
    with pytest.warns(UserWarning, match="X_old"):
        h5ad.copy_with(path, target, {"old": iter([vectors[:9], vectors[9:]])})
    found = anndata.read_h5ad(target)
    np.testing.assert_array_equal(found.obsm["X_old"], vectors)
    np.testing.assert_array_equal(found.X.toarray(), matrix)
    pd.testing.assert_frame_equal(found.obs, data.obs)
    assert found.uns["k"].tolist() == [0, 1, 2] and path.read_bytes() == before
    for rows in (5, CELLS + 1):
        with pytest.raises(InputError, match="23 cells, but"):
            h5ad.copy_with(path, tmp_path / "c.h5ad", {"new": iter([np.zeros((rows, 2))])})
    assert {file.name for file in tmp_path.iterdir()} == {"a.h5ad", "b.h5ad"}


def test_vectors_of_10x_come_with_its_counts(tmp_path, matrix):
    source, _ = tenx(tmp_path, matrix, ["Gene Expression"] * GENES)
    h5ad.copy_with(source, tmp_path / "b.h5ad", {"new": iter([np.ones((CELLS, 2))])})
    found = anndata.read_h5ad(tmp_path / "b.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), matrix)
    assert found.var["gene_ids"].tolist() == [f"E{i}" for i in range(GENES)]
    assert found.obsm["X_new"].shape == (CELLS, 2)


def test_a_link_in_a_folder_is_refused(tmp_path, matrix):
    _, place = tenx(tmp_path, matrix, ["Gene Expression"] * GENES)
    (place / "matrix.mtx").rename(tmp_path / "other.mtx")
    (place / "matrix.mtx").symlink_to(tmp_path / "other.mtx")
    with pytest.raises(InputError, match=r"matrix\.mtx: is a link"):
        Table(path=str(place), y_cols=()).open(split=False)
