"""Files of every format become the same rows; every broken file is named with its row."""

import gzip
import json
import os
import pickle
from importlib import import_module

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mgen.config import InputError
from mgen.data import Table
from mgen.io import tables

ROWS = [
    {"id": "a", "sequence": "ACGT", "label": "1.5"},
    {"id": "b", "sequence": "NA", "label": ""},
]


def write(folder, name: str, content: bytes | str):
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def as_parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def read(path) -> list[dict]:
    return [row for batch in tables.read(path) for row in batch.to_pylist()]


CONTENT = {
    "t.csv": "id,sequence,label\na,ACGT,1.5\nb,NA,\n",
    "t.tsv": "id\tsequence\tlabel\na\tACGT\t1.5\nb\tNA\t\n",
    "t.jsonl": "\n".join(map(json.dumps, ROWS)),
    "t.ndjson": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "t.parquet": as_parquet(ROWS),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", CONTENT)
def test_every_format_gives_the_same_rows(name, suffix, tmp_path):
    assert read(write(tmp_path, name + suffix, CONTENT[name])) == ROWS


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["fasta", "fa", "fna", "faa"])
def test_fasta_gives_id_description_sequence_and_attributes(name, suffix, tmp_path):
    text = ">s1 TARGET=Glob SET=train\r\nACG\r\nT\r\n>s2 kinase OS=Homo sapiens OX=9606\nNA\n"
    none = dict.fromkeys(("TARGET", "SET", "OS", "OX"), "")
    assert read(write(tmp_path, f"t.{name}{suffix}", text)) == [
        {"id": "s1", "description": "TARGET=Glob SET=train", "sequence": "ACGT"}
        | none
        | {"TARGET": "Glob", "SET": "train"},
        {"id": "s2", "description": "kinase OS=Homo sapiens OX=9606", "sequence": "NA"}
        | none
        | {"OS": "Homo sapiens", "OX": "9606"},
    ]


def test_cells_of_csv_are_text_exactly_as_written(tmp_path):
    cells = ["NA", "NULL", "NAN", "nan", "null", "0101", "1e5", " x ", "true", "2020-01-01", ""]
    path = write(tmp_path, "t.csv", "sequence,n\n" + "".join(f"{cell},1\n" for cell in cells))
    assert [row["sequence"] for row in read(path)] == cells


def test_quoted_cells_hold_separators_newlines_and_quotes(tmp_path):
    path = write(tmp_path, "t.csv", 'a,b\n"x,y","1\n2"\n"say ""hi""",3\n')
    assert read(path) == [{"a": "x,y", "b": "1\n2"}, {"a": 'say "hi"', "b": "3"}]


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path):
    path = write(tmp_path, "t.csv", b"\xef\xbb\xbfsequence,label\r\nACGT,1\r\n")
    assert read(path) == [{"sequence": "ACGT", "label": "1"}]


def test_a_header_longer_than_any_buffer_is_read(tmp_path):
    names = [f"column_{i}" for i in range(3000)]
    text = ",".join(names) + "\n" + ",".join("1" * len(names)) + "\n"
    assert list(read(write(tmp_path, "t.csv", text))[0]) == names


def test_json_numbers_that_turn_fractional_late_stay_exact(tmp_path):
    lines = ['{"x": 1}'] * (tables.BLOCK_ROWS + 1) + ['{"x": 2.5, "y": "late"}']
    rows = read(write(tmp_path, "t.jsonl", "\n".join(lines)))
    assert (rows[0], rows[-1]) == ({"x": 1.0, "y": None}, {"x": 2.5, "y": "late"})


BROKEN = {
    "empty file": ("t.csv", b"", "the file is empty"),
    "empty gzip": ("t.csv.gz", b"", "the file is empty"),
    "header only": ("t.csv", "a,b\n", "a header but not one row"),
    "fasta without records": ("t.fa", "\n\n", "not one row"),
    "blank header": ("t.csv", "\n1,2\n", "first line must name the columns"),
    "tabs in a csv": ("t.csv", "a\tb\n1\t2\n", r"one column, named 'a\\tb'; .* separated by '\\t'"),
    "commas in a tsv": ("t.tsv", "a,b\n1,2\n", "one column, named 'a,b'"),
    "semicolons": ("t.csv", "a;b\n1;2\n", "separated by ';'"),
    "short row": (
        "t.csv",
        "a,b\n1,2\n3\n",
        "t.csv, row 2 .header not counted.: 1 cells where .* 2",
    ),
    "long row": (
        "t.csv",
        "a,b\n1,2\n\n3,4,5\n",
        "row 2 .*: 3 cells where the header names 2: '3,4,5'",
    ),
    "open quote": ("t.csv", 'a,b\n"1,2\n3,4\n', "row 1 .*: 1 cells where the header names 2"),
    "same names": ("t.csv", "a,b,a\n1,2,3\n", "more than one column is named 'a'"),
    "same names in parquet": ("t.parquet", None, "more than one column is named 'a'"),
    "latin-1 cell": ("t.csv", b"a,b\n1,2\n3,\xe9\n", "t.csv, row 2 .*, column 'b': not UTF-8"),
    "latin-1 header": ("t.csv", b"\xe9,b\n1,2\n", "t.csv, header: not UTF-8"),
    "bad json": ("t.jsonl", '{"a": 1}\n{"a": \n', "t.jsonl, row 2: not a line of JSON"),
    "json list": ("t.jsonl", "[1, 2]\n", "row 1: expected an object"),
    "mixed json": (
        "t.jsonl",
        '{"a": 1}\n{"a": "x"}\n',
        "row 2, column 'a': values of different types",
    ),
    "no parquet": ("t.parquet", "a,b\n1,2\n", "not a Parquet file"),
    "text before >": ("t.fa", "ACGT\n>a\nACGT\n", "text before the first '>': 'ACGT'"),
    "no sequence": ("t.fa", ">a\nACGT\n>b\n>c\nA\n", "record 2 .'b'.: there is no sequence"),
    "reserved key": ("t.fa", ">a id=3\nACGT\n", "attribute 'id='"),
    "latin-1 fasta": ("t.fa", b">a\nACGT\n>b \xe9\nA\n", "record 2: not UTF-8"),
    "unknown suffix": ("t.xlsx", "a", "the suffix '.xlsx' says no known format; known: .csv"),
    "no suffix": ("table", "a", "the suffix '' says no known format"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name(case, tmp_path):
    name, content, message = BROKEN[case]
    if content is None:
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), sink)
        content = sink.getvalue().to_pybytes()
    path = write(tmp_path, name, content)
    with pytest.raises(InputError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("keep", [slice(None, -12), slice(8, None)])
def test_a_damaged_gzip_is_refused_by_name(keep, tmp_path):
    path = write(tmp_path, "t.csv.gz", "a,b\n" + "1,2\n" * 1000)
    path.write_bytes(path.read_bytes()[keep])
    with pytest.raises(InputError, match="t.csv.gz: cannot be unpacked"):
        read(path)


# --------------------------------------------------------------------------- paths and columns


def opened(folder, text: str = "sequence,label\nAC,1\nGT,2\n", **options):
    path = write(folder, "t.csv", text)
    return Table(**{"path": str(path), "test_fraction": 0, "valid_fraction": 0, **options}).open()


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path, "promoters.tsv", "sequence\nA\n")
    with pytest.raises(InputError, match="promotors.tsv: no such file. Did you mean 'promoters"):
        Table(path=str(tmp_path / "promotors.tsv")).open()


@pytest.mark.parametrize("path", ["nothing.csv", "./nothing", "no_folder/deep/x", "bundled:x"])
def test_a_missing_path_is_not_looked_for_on_the_hub(path):
    with pytest.raises(InputError, match=f"{path}: no such file"):
        Table(path=path).open()


def test_a_folder_without_tables_is_refused(tmp_path):
    write(tmp_path, "notes.md", "x")
    with pytest.raises(InputError, match="a folder without a single table"):
        Table(path=str(tmp_path)).open()


def test_a_glob_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file has such a name"):
        Table(path=str(tmp_path / "*.csv")).open()


def test_no_path_at_all_is_refused():
    with pytest.raises(InputError, match="no data: set --data.path"):
        Table().open()


@pytest.mark.parametrize(
    ("option", "flag"), [("x_col", "x-col"), ("id_col", "id-col"), ("split_col", "split-col")]
)
def test_a_missing_column_names_the_nearest_and_the_flag(option, flag, tmp_path):
    with pytest.raises(InputError) as raised:
        opened(tmp_path, **{option: "seqence"})
    assert str(raised.value).endswith(
        "t.csv: no column 'seqence'; columns are 'sequence', 'label'. Did you mean 'sequence'? "
        f"Set --data.{flag}."
    )


def test_rows_are_taken_in_the_order_asked_for(tmp_path):
    rows = opened(tmp_path).take(np.array([1, 0, 1]))
    assert [row["sequence"] for row in rows] == ["GT", "AC", "GT"]


def test_rows_survive_the_way_to_a_worker(tmp_path):
    rows = opened(tmp_path)
    assert pickle.loads(pickle.dumps(rows)).take([1]) == [{"sequence": "GT", "label": "2"}]


def test_row_numbers_run_over_files_and_messages_name_the_file(tmp_path):
    for name in ("b.csv", "a.csv"):
        write(tmp_path, name, "sequence,label\nA,1\nC,2\n")
    rows = Table(path=str(tmp_path)).open(split=False)
    assert rows.where(3) == f"{tmp_path}/b.csv, row 2 (header not counted)"


def test_files_may_differ_in_columns(tmp_path):
    write(tmp_path, "test.csv", "sequence\nGG\n")
    rows = opened(tmp_path, test_path=str(tmp_path / "test.csv"))
    assert rows.take([2]) == [{"sequence": "GG", "label": None}]


def test_an_edit_of_same_size_and_time_is_seen(tmp_path):
    before = opened(tmp_path)
    path = tmp_path / "t.csv"
    times = path.stat()
    path.write_text("sequence,label\nTT,1\nGT,2\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = Table(path=str(path)).open(split=False)
    assert after.take([0])[0]["sequence"] == "TT"
    assert before.digest != after.digest


def test_a_moved_table_has_the_same_digest_and_other_options_another(tmp_path):
    (tmp_path / "other").mkdir()
    digest = opened(tmp_path).digest
    assert opened(tmp_path / "other").digest == digest
    assert opened(tmp_path, test_fraction=0.5).digest != digest


def test_a_broken_file_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError):
        opened(tmp_path, "a,b\n1,2\n3\n")
    assert list((tmp_path / "cache" / "tables").iterdir()) == []


def test_a_file_is_parsed_once(tmp_path, monkeypatch):
    opened(tmp_path)
    monkeypatch.setattr("mgen.data.sources.arrow.read", None)
    assert len(opened(tmp_path)) == 2


def test_an_unwritable_cache_is_said_and_survived(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(write(tmp_path, "a_file", "")))
    with pytest.warns(UserWarning, match="cannot be written .* Set MGEN_CACHE"):
        assert len(opened(tmp_path, "sequence\nunseen\n")) == 1


def test_chunks_cover_the_asked_rows_by_rising_number(tmp_path, monkeypatch):
    monkeypatch.setattr(import_module("mgen.data.table"), "CHUNK_ROWS", 3)
    rows = opened(tmp_path, "sequence,label\n" + "".join(f"A,{i}\n" for i in range(10)))
    found = [
        (number, value)
        for numbers, block in rows.chunks(["label"], np.array([7, 1, 9, 2, 5]))
        for number, value in zip(numbers.tolist(), block.column(0).to_pylist(), strict=True)
    ]
    assert found == [(1, "1"), (2, "2"), (5, "5"), (7, "7"), (9, "9")]


def test_labels_are_float_columns_and_none_where_absent(tmp_path):
    table = Table(y_cols=("a", "b"))
    assert table.labels([{"a": "1", "b": "2.5"}, {"a": 3, "b": 4}]).tolist() == [[1, 2.5], [3, 4]]
    assert table.labels([{"sequence": "A"}]) is None
    assert table.labels([{"a": "", "b": None}]) is None


def test_a_fasta_has_the_columns_that_a_run_was_trained_with(tmp_path):
    (tmp_path / "new.fasta").write_text(">p1 first\nACGT\n>p2\nGG\n")
    rows = Table(path=str(tmp_path / "new.fasta"), x_col="promoter", id_col="gene").open(
        split=False
    )
    assert [(row["gene"], row["promoter"]) for row in rows.take([0, 1])] == [
        ("p1", "ACGT"),
        ("p2", "GG"),
    ]
