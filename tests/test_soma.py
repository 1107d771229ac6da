"""SOMA experiments, compared with the AnnData that they were made of."""

import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
from test_cells_io import made

from mgen.config import InputError
from mgen.data.table import Table
from mgen.io import soma
from mgen.io.cells import SOMA, is_cell_folder
from mgen.io.tables import read, table_format

CELLS, GENES = 23, 11


@pytest.fixture
def tiledbsoma():
    package = pytest.importorskip("tiledbsoma")
    pytest.importorskip("tiledbsoma.io")
    return package


@pytest.fixture
def matrix():
    random = np.random.default_rng(0)
    return (random.poisson(0.6, (CELLS, GENES)) * random.integers(0, 2, (CELLS, 1))).astype("f4")


@pytest.fixture
def data(matrix):
    from scipy.sparse import csr_matrix

    found = made(csr_matrix(matrix), layers={"twice": csr_matrix(2 * matrix)})
    found.obsm["spatial"] = np.arange(2.0 * CELLS).reshape(CELLS, 2)
    found.raw = made(csr_matrix(3 * matrix))
    return found


def whole(path, **options):
    return pa.Table.from_batches(read(path, **options))


def dense(table):
    found = np.zeros((table.num_rows, GENES), np.float32)
    for row, cell in enumerate(table["counts"].to_pylist()):
        assert cell["genes"] == sorted(cell["genes"])
        found[row, cell["genes"]] = cell["values"]
    return found


def frame(package, path, index, **columns):
    """A dataframe of SOMA with the given columns, soma_joinid among them."""
    table = pa.table(columns)
    domain = [(0, 999) if name == "soma_joinid" else None for name in index]
    with package.DataFrame.create(
        str(path), schema=table.schema, index_column_names=index, domain=domain
    ) as made:
        made.write(table)


def census(package, path, ids, values, columns=(2, 5, 6), index=("soma_joinid",), outside=None):
    """An experiment as public atlases have them: no obs_id, no var_id, one layer "raw"."""
    package.Experiment.create(str(path)).close()
    obs = outside or path / "obs"
    kinds, days = [f"k{i}" for i in ids], pa.array([0] * len(ids), pa.timestamp("s"))
    frame(package, obs, index, soma_joinid=pa.array(ids, pa.int64()), kind=kinds, day=days)
    with package.Experiment.open(str(path), "w") as made:
        made.set("obs", package.DataFrame.open(str(obs)), use_relative_uri=outside is None)
        measurement = made.add_new_collection("ms").add_new_collection("aRNA", package.Measurement)
        names = [f"ENSG{i}" for i in columns]
        frame(
            package,
            path / "ms" / "aRNA" / "var",
            ("soma_joinid",),
            soma_joinid=pa.array(columns, pa.int64()),
            feature_id=names,
            feature_name=[name.lower() for name in names],
        )
        var = package.DataFrame.open(str(path / "ms" / "aRNA" / "var"))
        measurement.set("var", var, use_relative_uri=True)
        layers = measurement.add_new_collection("X")
        array = layers.add_new_sparse_ndarray("raw", type=pa.int32(), shape=(1000, 1000))
        rows, places, numbers = zip(*values, strict=True)
        array.write(
            pa.table(
                {
                    "soma_dim_0": pa.array(rows, pa.int64()),
                    "soma_dim_1": pa.array(places, pa.int64()),
                    "soma_data": pa.array(numbers, pa.int32()),
                }
            )
        )
    return path


def test_rows_are_those_of_the_same_cells_in_h5ad(tmp_path, tiledbsoma, data):
    path = tmp_path / "an experiment"
    tiledbsoma.io.from_anndata(str(path), data, measurement_name="RNA")
    data.write_h5ad(tmp_path / "a.h5ad")
    for ours, theirs in {"": "", "twice": "twice", "RNA/twice": "twice", "raw/data": "raw"}.items():
        found, expected = whole(path, layer=ours), whole(tmp_path / "a.h5ad", layer=theirs)
        if ours == "raw/data":  # obsm is of the other measurement
            expected = expected.drop_columns(["spatial_x", "spatial_y"])
        assert found.schema.equals(expected.schema, check_metadata=True)
        assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("kind", ["SparseNDArray", "DenseNDArray"])
@pytest.mark.parametrize("most", [17, 40])
def test_blocks_of_any_size_give_the_same_rows(
    tmp_path, monkeypatch, tiledbsoma, data, matrix, kind, most
):
    data.X = data.X if kind[0] == "S" else matrix
    given = {"measurement_name": "RNA", "X_kind": getattr(tiledbsoma, kind)}
    tiledbsoma.io.from_anndata(str(tmp_path / "a"), data, **given)
    with tiledbsoma.open(str(tmp_path / "a")) as made:
        assert made.ms["RNA"].X["data"].soma_type == f"SOMA{kind}"
    monkeypatch.setattr(soma, "MOST_ENTRIES", most)
    batches = [*read(tmp_path / "a")]
    assert len(batches) > 3
    for batch in batches:
        assert len(batch) == 1 or len(batch["counts"].flatten()[0].flatten()) <= most
    np.testing.assert_array_equal(dense(pa.Table.from_batches(batches)), matrix)


def test_a_query_keeps_the_cells_that_pass(tmp_path, tiledbsoma, data, matrix):
    tiledbsoma.io.from_anndata(str(tmp_path / "a"), data, measurement_name="RNA")
    found = whole(tmp_path / "a", query="age > 3 or kind == 'a'")
    kept = [0, *range(8, CELLS)]
    assert found["id"].to_pylist() == [f"c{i}" for i in kept]
    assert found["spatial_x"].to_pylist() == [2.0 * i for i in kept]
    np.testing.assert_array_equal(dense(found), matrix[kept])
    for query, what in {
        "kin == 'a'": "Column kin does not exist.* columns are soma_joinid, obs_id, kind",
        "is_ill == 'yes'": "Cannot cast `yes` to bool",
        "kind = 'a'": "--data.query .* is no filter of obs",
        "kind == 3": "--data.query .* is no filter of obs",
        "__import__('os').system('true')": "is no filter of obs",
        "kind == 'zz'": "none that --data.query keeps",
    }.items():
        with pytest.raises(InputError, match=what):
            whole(tmp_path / "a", query=query)


def test_numbers_with_gaps_and_names_of_atlases(tmp_path, tiledbsoma):
    values = [(3, 2, 7), (3, 6, 1), (8, 5, 4), (9, 5, 9), (700, 6, 2)]  # 9 is no cell of obs
    path = census(tiledbsoma, tmp_path / "a", [3, 7, 8, 700], values)
    with pytest.warns(UserWarning, match="1 columns of obs .*: day"):
        found = whole(path)
    assert found.select(["id", "kind"]).to_pylist() == [
        {"id": str(i), "kind": f"k{i}"} for i in (3, 7, 8, 700)
    ]
    genes = [{"genes": g, "values": v} for g, v in (([0, 2], [7, 1]), ([], []), ([1], [4]))]
    assert found["counts"].to_pylist() == [*genes, {"genes": [2], "values": [2]}]
    names = b'{"": ["ENSG2", "ENSG5", "ENSG6"], "feature_id": ["ENSG2", "ENSG5", "ENSG6"], '
    assert found.schema.metadata[b"mgen_genes"].startswith(names + b'"feature_name": ["ensg2"')


@pytest.mark.filterwarnings("ignore:.*columns of obs")
def test_another_index_of_obs_gives_its_order_and_the_right_counts(tmp_path, tiledbsoma):
    values = [(3, 2, 3), (30, 2, 30), (7, 5, 7)]
    path = census(tiledbsoma, tmp_path / "a", [3, 7, 30], values, index=("kind", "soma_joinid"))
    found = whole(path)
    assert found["id"].to_pylist() == ["3", "30", "7"]  # k3, k30, k7
    assert [c["values"] for c in found["counts"].to_pylist()] == [[3], [30], [7]]


@pytest.mark.filterwarnings("ignore:.*columns of obs")
def test_what_cannot_be_read_is_said(tmp_path, tiledbsoma, data):
    path = tmp_path / "a"
    tiledbsoma.io.from_anndata(str(path), data, measurement_name="RNA")
    with pytest.raises(InputError, match="no layer RNA/no; there are RNA/data, RNA/twice, raw/d"):
        whole(path, layer="no")
    with pytest.raises(InputError, match="no layer DNA/data; there are RNA"):
        whole(path, layer="DNA/data")
    with pytest.raises(InputError, match="ms: not a SOMA experiment"):
        whole(path / "ms")
    for file in (path / "ms/RNA/X/data/__fragments").glob("*/a0.tdb"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="a: damaged"):
        whole(path)
    with pytest.raises(InputError, match="genes that var has not"):
        whole(census(tiledbsoma, tmp_path / "b", [3], [(3, 4, 1)]))
    with pytest.raises(InputError, match="a part of it is at .*elsewhere"):
        whole(census(tiledbsoma, tmp_path / "c", [3], [(3, 2, 1)], outside=tmp_path / "elsewhere"))
    shutil.rmtree(path / "obs")
    with pytest.raises(InputError, match="a: not a SOMA experiment, or a damaged one"):
        whole(path)


@pytest.mark.filterwarnings("ignore:.*columns of obs")
def test_a_table_of_cells_opens_and_a_change_is_seen(tmp_path, tiledbsoma):
    path = census(tiledbsoma, tmp_path / "in" / "a", [3, 4], [(3, 2, 1), (4, 5, 6)])
    before = sorted(path.rglob("*"))
    rows = Table(path=str(path), y_cols=()).open(split=False)
    assert sorted(path.rglob("*")) == before  # nothing is written beside the data
    assert rows.name_of(1) == "4"
    assert rows.take([1])[0]["sequence"].values.tolist() == [6]
    part = Table(path=str(path.parent), y_cols=(), query="soma_joinid == 4").open(split=False)
    assert [row["id"] for row in part.take(range(len(part)))] == ["4"]
    with tiledbsoma.open(str(path / "ms/aRNA/X/raw"), "w") as array:
        columns = {"soma_dim_0": [4], "soma_dim_1": [5]}
        array.write(pa.table(columns | {"soma_data": pa.array([8], pa.int32())}))
    again = Table(path=str(path), y_cols=()).open(split=False)
    assert again.take([1])[0]["sequence"].values.tolist() == [8]
    assert again.content != rows.content


@pytest.fixture
def folder(tmp_path):
    """What TileDB leaves in the folder of every group."""
    (tmp_path / "a" / "__group").mkdir(parents=True)
    (tmp_path / "a" / SOMA).touch()
    return tmp_path / "a"


def test_a_folder_is_known_without_the_package(folder):
    assert is_cell_folder(folder)
    assert table_format(folder) == ".soma"
    assert not is_cell_folder(folder / "__group")


def test_the_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(InputError, match=r"need tiledbsoma, .*pip install 'mgen\[soma\]'"):
        Table(path=str(folder), y_cols=()).open(split=False)


def test_a_query_of_other_files_of_cells_is_refused(tmp_path):
    (tmp_path / "a.h5ad").touch()
    with pytest.raises(InputError, match="--data.query is for databases .* and SOMA experiments"):
        whole(tmp_path / "a.h5ad", query="kind == 'a'")
