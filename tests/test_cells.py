"""Tables of cells: genes, values, neighbours, further columns, and the order of reading."""

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import golden
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

from mgen.backbones import backbone
from mgen.backbones.cell_tokenizer import CellTokenizer, normalised
from mgen.backbones.genes import GeneList, read_genes, read_table, species
from mgen.config import InputError
from mgen.data import table
from mgen.data.batches import plan
from mgen.data.checking import check
from mgen.data.splitting.assigning import NO_ROWS, used_rows
from mgen.data.targets.facts import class_facts, number_facts, scaled
from mgen.io.counts import GeneTable, cells_of

NAMES, ALL = ("A", "B", "C", "D"), ("train", "valid", "test")
LIST = GeneList(NAMES, ("ENSG00000000001", "ENSG00000000002", "", "ENSG00000000004"))


def write(path, counts, names=NAMES, **obs):
    index = [f"c{i}" for i in range(len(counts))]
    frame = pd.DataFrame(obs, index=index)
    data = anndata.AnnData(
        csr_matrix(np.array(counts, np.float32)), frame, pd.DataFrame(index=[*names])
    )
    data.write_h5ad(path)
    return str(path)


class Tokens(CellTokenizer):
    def expressed_tokens(self, expressed):
        return expressed


def tokenizer(**options) -> CellTokenizer:
    return Tokens(LIST, config=None, **options)


def checked(rows, reader) -> list[str]:
    everything = np.arange(len(rows))
    rows.splits = {"train": everything[:0], "valid": everything[:0], "test": everything}
    return check.inputs(rows, reader, ("test",))[0]


def opened(path, **options):
    return table(path, y_cols=(), **options).open(split=False)


# ------------------------------------------------------------- golden


def reference() -> tuple[GeneList, dict, object]:
    folder = golden("cell_preprocess")
    rows = read_table(folder / "ref_genes.tsv")
    genes = GeneList(
        tuple(row["gene_name"] for row in rows), tuple(row["ensembl_id"] for row in rows)
    )
    return genes, load_file(folder / "outputs.safetensors"), folder


def test_alignment_equals_golden():
    genes, outputs, folder = reference()
    rows = opened(str(folder / "align_symbols.h5ad"))
    reader = CellTokenizer(genes, config=None)
    cells = [row["sequence"] for row in rows.take(range(len(rows)))]
    np.testing.assert_array_equal(reader.dense(cells), outputs["align_symbols.aligned"])
    present = reader.align(cells[0].table).present
    np.testing.assert_array_equal(present, outputs["align_symbols.mask"].astype(bool))


def test_golden_alignment_counts_the_first_of_repeated_genes_and_ours_their_sum():
    genes, outputs, folder = reference()
    data = anndata.read_h5ad(folder / "classification.h5ad")
    cells, expected = cells_of(data), outputs["classification.aligned"][:, : len(genes)]
    first = CellTokenizer(genes, config=None, as_published=True)
    np.testing.assert_array_equal(first.dense(cells), expected)
    frame = (
        pd.DataFrame(data.X.toarray().T).groupby(data.var["gene_symbols"].astype(str).values).sum()
    )
    summed = np.stack(
        [frame.loc[name] if name in frame.index else 0 * frame.iloc[0] for name in genes.symbols], 1
    )
    np.testing.assert_array_equal(CellTokenizer(genes, config=None).dense(cells), summed)


def test_labels_and_weights_equal_golden():
    """Class weights; names sorted as labels are numbered; ages by mean and std of training."""
    genes, outputs, folder = reference()
    reader = CellTokenizer(genes, config=None)

    def opened_with(file: str, label: str, **options):
        path = str(folder / file)
        return table(path, x_col="counts", y_cols=(label,), **options).open(split=False)

    rows = opened_with("classification.h5ad", "cell_type_label")
    rows.splits = {"train": np.arange(len(rows)), "valid": NO_ROWS, "test": NO_ROWS}
    facts = class_facts(rows, ALL, 0, False, {})
    np.testing.assert_allclose(facts["weights"], outputs["classification.class_weight"], rtol=1e-6)

    clock = table(
        str(folder / "clock.h5ad"), x_col="counts", y_cols=("numeric_age",), split_col="split",
        valid_split="val",
    ).open()  # fmt: skip
    facts = number_facts(clock, ALL, "train", {})
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        given = clock.take(np.sort(clock.splits[split]))
        ages = scaled(clock.table.labels(given), facts).numpy()
        np.testing.assert_allclose(ages, outputs[f"clock.{name}.labels"], atol=1e-6)
        counts = reader.dense([row["counts"] for row in given])
        np.testing.assert_array_equal(counts, outputs[f"clock.{name}.sequences"])

    drugs = opened_with("perturbation.h5ad", "drug", only=("cell_line=CVCL_0546",))
    drugs.splits = {"train": used_rows(drugs), "valid": NO_ROWS, "test": NO_ROWS}
    names = class_facts(drugs, ALL, 0, False, {})["classes"]
    for split in ("train", "val", "test"):
        by_row = {row["row"]: row for row in drugs.take(used_rows(drugs))}
        given = [by_row[number] for number in outputs[f"pert.{split}.rows"].tolist()]
        labels = [names.index(row["drug"]) for row in given]
        assert labels == outputs[f"pert.{split}.labels"].tolist()
        counts = reader.dense([row["counts"] for row in given])
        np.testing.assert_array_equal(counts, outputs[f"pert.{split}.sequences"])


def test_neighbours_equal_golden():
    _, outputs, folder = reference()
    wanted = outputs["spatial.neighbor_indices"][:, 1:]  # the first is the cell itself
    rows = opened(
        str(folder / "spatial.h5ad"), neighbours=wanted.shape[1], position_cols=("x", "y")
    )
    np.testing.assert_array_equal(rows.neighbours, wanted)
    names = tuple(anndata.read_h5ad(folder / "spatial.h5ad", backed="r").var_names)
    reader = CellTokenizer(GeneList(names, ("",) * len(names)), config=None)
    cells = [row["sequence"] for row in rows.take(range(len(rows)))]
    read = [reader.dense([cell, *cell.neighbours]).ravel() for cell in cells]
    np.testing.assert_array_equal(np.stack(read), outputs["spatial.sequences"])


# ------------------------------------------------------------- genes


def test_genes_are_found_by_symbol_or_by_ensembl_id_with_a_version():
    by_symbol = LIST.align(GeneTable({"": ("B", "Z", "A")}))
    assert by_symbol.places.tolist() == [1, -1, 0]
    ids = GeneTable({"": ("x", "y"), "ids": ("ENSG00000000004.7", "ENSG00000000001")})
    assert LIST.align(ids).places.tolist() == [3, 0]
    assert "'ids'" in LIST.align(ids).by


def test_species_are_told_by_ids_and_by_how_symbols_are_written():
    assert species(["ENSMUSG00000000001", "ENSMUSG00000000028"]) == "mouse"
    assert species(["Actb", "Gapdh", "Cd3e", "Lyz2", "Nkg7"]) == "mouse"
    assert species(["ACTB", "GAPDH", "CD3E", "LYZ", "C1orf112", "NKG7"]) == "human"
    assert species(["A", "B"]) == ""


# ------------------------------------------------------------- values


def test_counts_of_repeated_genes_are_summed(tmp_path):
    rows = opened(write(tmp_path / "a.h5ad", [[1, 2, 4, 0]], ["B", "A", "B", "C"]))
    reader = tokenizer()
    cell = rows.take([0])[0]["sequence"]
    assert reader.dense([cell]).tolist() == [[2, 5, 0, 0]]
    assert [part.tolist() for part in reader.sparse(cell)] == [[0, 1], [2.0, 5.0]]
    assert any("repeat a gene" in note for note in checked(rows, reader))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[1, 0, 0, 2], [0, 0.5, 0, 1]], r"row 2.*gene B: 0.5 is not a whole number.*logarithms"),
        ([[1, 0, -3, 2]], r"row 1.*gene C: -3 is no count"),
        ([[1, 0, np.nan, 2]], r"row 1.*gene C: nan is no count"),
    ],
)
def test_values_that_are_no_counts_are_refused_where_they_are(tmp_path, counts, message):
    rows = opened(write(tmp_path / "a.h5ad", counts))
    with pytest.raises(InputError, match=message):
        checked(rows, tokenizer())


def test_fractions_and_logarithms_are_read_if_one_says_so(tmp_path):
    counts = np.array([[3, 0, 1, 0], [2, 2, 0, 4]], np.float32)
    plain = opened(write(tmp_path / "a.h5ad", counts))
    logged = opened(
        write(tmp_path / "b.h5ad", np.log1p(1e4 * counts / counts.sum(1, keepdims=True)))
    )
    cells = [[row["sequence"] for row in rows.take([0, 1])] for rows in (plain, logged)]
    of_counts = normalised(tokenizer().dense(cells[0]))
    of_logs = normalised(tokenizer(values="log1p").dense(cells[1]))
    np.testing.assert_allclose(of_logs, of_counts, atol=1e-5)
    assert any("turned back" in note for note in checked(logged, tokenizer(values="log1p")))
    checked(logged, tokenizer(values="decimal"))
    with pytest.raises(InputError, match="no logarithms"):
        big = opened(write(tmp_path / "c.h5ad", 100 * counts))
        checked(big, tokenizer(values="log1p"))


def test_empty_cells_are_counted_and_read_as_zeros(tmp_path):
    rows = opened(write(tmp_path / "a.h5ad", [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert any(
        "2 of 3 cells have no count" in note and "row 2" in note
        for note in checked(rows, tokenizer())
    )
    assert not normalised(tokenizer().dense([rows.cell(1)])).any()


def test_coverage_is_said_for_each_table_of_genes(tmp_path):
    write(tmp_path / "a.h5ad", [[1, 2, 3, 4]])
    write(tmp_path / "b.h5ad", [[1, 2]], ["B", "Z"])
    rows = opened(str(tmp_path))
    notes = checked(rows, tokenizer())
    assert any("a.h5ad: 4 of 4 genes" in note for note in notes)
    assert any("b.h5ad: 1 of 2 genes" in note and "3 of the list" in note for note in notes)
    assert tokenizer().dense([rows.cell(1)]).tolist() == [[0, 1, 0, 0]]


# ------------------------------------------------------------- neighbours, annotations, order


def test_neighbours_are_the_nearest_and_never_the_cell_itself(tmp_path):
    places = np.random.default_rng(0).integers(0, 6, (60, 2)).astype(float)  # many coincide
    counts = np.eye(60, 4, dtype=np.float32) + 1
    path = write(tmp_path / "a.h5ad", counts, x=places[:, 0], y=places[:, 1])
    rows = opened(path, neighbours=5, position_cols=("x", "y"))
    distance = cdist(places, places)
    np.fill_diagonal(distance, np.inf)
    for row, near in enumerate(rows.neighbours):
        assert row not in near
        np.testing.assert_allclose(distance[row, near], np.sort(distance[row])[:5])
    cell = rows.take([7])[0]["sequence"]
    own = [tokenizer().dense([n])[0].tolist() for n in cell.neighbours]
    assert own == counts[rows.neighbours[7]].tolist()


def test_missing_coordinates_are_named(tmp_path):
    path = write(tmp_path / "a.h5ad", np.ones((3, 4)), x=[1.0, np.nan, 2.0], y=[0.0, 1.0, 2.0])
    with pytest.raises(InputError, match=r"row 2.*column 'x'.*no coordinate"):
        opened(path, neighbours=1, position_cols=("x", "y"))
    with pytest.raises(InputError, match="no column 'spatial_x'"):
        opened(path, neighbours=1)


def test_neighbours_are_of_cells_alone():
    with pytest.raises(InputError, match="neighbours 3 is for tables of cells"):
        table("promoters_tiny", neighbours=3).open()


def test_a_model_that_reads_all_genes_cuts_none(tmp_path):
    with pytest.raises(InputError, match="no order to cut them by"):
        backbone("aido_cell_debug", max_length=100, truncate="right").tokenizer()
    reader = backbone("aido_cell_debug", max_length=100).tokenizer()
    rows = opened(write(tmp_path / "a.h5ad", [[1, 2]], ["GENE1", "GENE2"]))
    with pytest.raises(InputError, match="302 tokens, and the limit is 100"):
        reader.tokenize([rows.cell(0)])


def test_annotations_are_joined_by_identifier(tmp_path):
    path = write(tmp_path / "a.h5ad", np.ones((3, 4)))
    more = tmp_path / "more.tsv"
    more.write_text("cell\tkind\nc2\tT\nother\tX\nc0\tB\nc1\tNK\n")
    rows = opened(path, annotations=str(more))
    assert [row["kind"] for row in rows.take(range(3))] == ["B", "NK", "T"]
    assert rows.genes and rows.digest != opened(path).digest
    moved = tmp_path / "moved.tsv"
    moved.write_bytes(more.read_bytes())
    assert opened(path, annotations=str(moved)).digest == rows.digest
    more.write_text("cell\tkind\nc2\tT\nc0\tB\n")
    with pytest.raises(InputError, match=r"no row for 1 of 3 rows.*'c1'"):
        opened(path, annotations=str(more))


def test_rows_of_a_block_are_read_near_each_other_and_all_once():
    lengths = np.ones(1000, dtype=np.int32)
    batches = plan(lengths, 2, 0, (1, 2), block=20)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    window = np.concatenate(batches[:50])  # LOOK_AHEAD batches of 2 rows: 5 blocks of 20
    assert len({*(window // 20)}) == 5
    assert (np.diff(window) == 1).mean() < 0.1
    assert [b.tolist() for b in batches] != [
        b.tolist() for b in plan(lengths, 2, 0, (1, 3), block=20)
    ]


def test_a_layer_that_is_not_there_is_named():
    data = anndata.AnnData(np.ones((2, 3), np.float32), layers={"own": np.ones((2, 3))})
    for layer in ("raw", "other"):
        with pytest.raises(InputError, match=f"no layer '{layer}'; there are own"):
            cells_of(data, layer)


def test_a_file_with_a_gene_twice_lists_it_once(tmp_path):
    data = anndata.AnnData(np.ones((2, 3), np.float32))
    data.var_names = ["A", "B", "A"]
    data.write_h5ad(tmp_path / "a.h5ad")
    assert read_genes(tmp_path / "a.h5ad").symbols == ("A", "B")
