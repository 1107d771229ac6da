"""Places a table can be read from: intervals, databases, Arrow, URLs, hub; each damaged as well."""

import gzip
import http.server
import json
import re
import shutil
import sqlite3
import threading
from importlib import import_module

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from mgen.config import InputError
from mgen.data import Table
from mgen.io import databases, lines, tables
from mgen.io.genome import Genome

CONTIGS = {"chr1": "ACGTACGTACGGTTTAAACC", "chr2": "GATTACA"}
CSV = "sequence,label\nAC,1\nGT,2\n"


def write(folder, name: str, content: bytes | str):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def fasta(folder, name: str = "g.fa", width: int = 6) -> str:
    text = "".join(
        f">{contig} text\n" + "".join(f"{s[i : i + width]}\n" for i in range(0, len(s), width))
        for contig, s in CONTIGS.items()
    )
    return str(write(folder, name, text))


def rows_of(path) -> list[dict]:
    return [row for batch in tables.read(path) for row in batch.to_pylist()]


def opened(path, split: bool = False, **options):
    return Table(path=str(path), **options).open(split)


def taken(path, column: str = "sequence", **options) -> list:
    rows = opened(path, **options)
    return [row[column] for row in rows.take(range(len(rows)))]


# --------------------------------------------------------------------------- BED


@pytest.mark.parametrize("name", ["t.bed", "t.bed.gz"])
def test_a_bed_has_the_columns_of_the_format_and_no_header_lines(tmp_path, name):
    text = "track name=x\nbrowser position chr1:1-9\n#c\n"
    text += "chr1\t0\t5\tp\t0.5\t-\r\n\nchr2\t1\t1\t\t\t+\n"
    assert rows_of(write(tmp_path, name, text)) == [
        {"chrom": "chr1", "start": 0, "end": 5, "name": "p", "score": "0.5", "strand": "-"},
        {"chrom": "chr2", "start": 1, "end": 1, "name": "", "score": "", "strand": "+"},
    ]


def test_columns_beyond_those_of_bed_are_kept_by_their_place(tmp_path):
    row = rows_of(write(tmp_path, "t.bed", "\t".join(["c", "1", "2", *"abcdefghi", "x", "y"])))[0]
    assert [*row][:3] + [*row][6:] == [
        *("chrom", "start", "end", "thick_start", "thick_end", "item_rgb", "block_count"),
        *("block_sizes", "block_starts", "column_13", "column_14"),
    ]
    assert (row["block_starts"], row["column_13"], row["column_14"]) == ("i", "x", "y")


def test_a_bed_may_have_spaces_and_a_narrow_peak_has_its_summit(tmp_path):
    assert rows_of(write(tmp_path, "t.bed", "chr1  3   9 a\n"))[0]["name"] == "a"
    peak = "c\t1\t9\ta\t0\t.\t4.5\t-1\t2\t3\n"
    assert rows_of(write(tmp_path, "t.narrowPeak", peak))[0]["peak"] == "3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chr1\t5\t2", "reversed, from 5 to 2"),
        ("chr1\t-1\t2", "start '-1': expected a whole number"),
        ("chr1\t1\t2.5", "end '2.5'"),
        ("chr1\t1\t", "end ''"),
        ("chr1\t1", "2 columns, expected 3, as in the first row"),
        ("chr1\t1\t2\t3", "4 columns"),
        ("chr\xe9\t1\t2".encode("latin-1"), "perhaps Windows-1252"),
    ],
)
def test_a_broken_interval_is_named_with_its_row(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path, "t.bed", b"track x\nchr1\t0\t5\n" + line + b"\n")
    with pytest.raises(InputError, match=re.escape(f"{path}, row 2 ") + f".*{message}"):
        rows_of(path)


# --------------------------------------------------------------------------- intervals of a genome


def test_rows_get_the_letters_of_their_intervals_by_strand(tmp_path):
    bed = write(
        tmp_path, "t.bed", "chr2\t0\t4\ta\t0\t+\nchr2\t3\t7\tb\t0\t-\nchr1\t4\t8\tc\t0\t.\n"
    )
    assert taken(bed, genome=fasta(tmp_path)) == ["GATT", "TGTA", "ACGT"]


@pytest.mark.parametrize(
    ("window", "expected"),
    # chr2 is GATTACA. Middle of 2-5: letter 3 (T); of 2-4: letter 3; of 0-1: letter 0.
    [(3, ["TTA", "TTA", "NGA"]), (4, ["ATTA", "ATTA", "NNGA"]), (1, ["T", "T", "G"])],
)
def test_a_window_lies_around_the_middle_and_is_filled_with_n(tmp_path, window, expected):
    bed = write(tmp_path, "t.bed", "chr2\t2\t5\nchr2\t2\t4\nchr2\t0\t1\n")
    assert taken(bed, genome=fasta(tmp_path), window=window) == expected


def test_windows_over_the_ends_of_contigs_are_counted_aloud_each_time(tmp_path):
    bed = write(tmp_path, "t.bed", "chr2\t0\t2\nchr2\t3\t4\nchr2\t6\t7\n")
    for _ in range(2):
        rows = opened(bed, genome=fasta(tmp_path), window=5)
        assert rows.plan == (
            "2 of 3 windows run over the end of their contig: 3 letters there are N "
            "(column 'padding')"
        )
    assert [row["padding"] for row in rows.take([0, 1, 2])] == [1, 0, 2]


def test_columns_of_any_table_name_intervals(tmp_path):
    text = "chromosome,from,to,way,label\nchr2,1,3,-,0.5\nchr1,0,2,+,1\n"
    columns = ("chromosome", "from", "to", "way")
    path = write(tmp_path, "t.csv", text)
    assert taken(path, genome=fasta(tmp_path), interval_cols=columns) == ["AT", "AC"]


def test_variants_get_both_alleles_in_one_window(tmp_path):
    head = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    text = head + "chr2\t4\t.\tT\tC,TGG\t.\t.\t.\nchr2\t5\t.\tAC\tA\t.\t.\t.\n"
    path, options = write(tmp_path, "t.vcf", text), {"genome": fasta(tmp_path), "window": 5}
    assert taken(path, **options) == ["ATCAC", "ATTGGAC", "TAAN"]
    assert taken(path, "reference", **options) == ["ATTAC", "ATTAC", "TACAN"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("chr2\t4\t.\tG\tC", "row 2 .*reference allele G: the genome has T at chr2 3 to 4"),
        ("chr2\t4\t.\tT\t<DEL>", "row 2 .*symbolic allele, .*bcftools view"),
        ("chr2\t4\t.\tT\t*", "row 2 .*deleted by another variant"),
        ("chr2\t7\t.\tAA\tA", "row 2 .*6 to 8 .* is off contig chr2 of 7"),
        ("chr9\t4\t.\tT\tA", "row 2 .*no contig 'chr9'"),
        ("chr1\t1\t.\tACGTAC\tA", "row 2 .*a variant of 6 letters .*--data.window"),
    ],
)
def test_a_variant_that_the_genome_contradicts_is_named(tmp_path, record, message):
    text = f"##fileformat=VCFv4.3\nchr2\t4\t.\tT\tC\t.\t.\t.\n{record}\t.\t.\t.\n"
    with pytest.raises(InputError, match=message):
        opened(write(tmp_path, "t.vcf", text), genome=fasta(tmp_path), window=5)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ("chr2,5,8,+", {}, "row 2 .*: 5 to 8 .* is off contig chr2 of 7"),
        ("chr2,5,8,+", {"window": 2}, "off contig"),
        ("chr2,5,2,+", {}, "row 2 .*reversed"),
        ("chr2,x,2,+", {}, "row 2 .*start 'x'"),
        ("chr2,2,2,+", {}, "row 2 .*the interval is empty"),
        ("chr2,2,4,?", {}, "row 2 .*strand '\\?'"),
        ("chr3,2,4,+", {}, "row 2 .*no contig 'chr3'"),
        ("chr2,2,4,+", {"interval_cols": ("chrom", "start", "stop")}, "no column 'stop'"),
        (
            "chr2,2,4,+",
            {"interval_cols": ("chrom", "start", "end", "strands")},
            "no column 'strands'",
        ),
        ("chr2,2,4,+", {"interval_cols": ("chrom",)}, "--data.interval-cols chrom: expected"),
        ("chr2,2,4,+", {"x_col": "end"}, "a column 'end', which --data.genome makes"),
        ("chr2,2,4,+", {"window": -1}, "--data.window -1"),
        ("chr2,2,4,+", {"genome": "", "window": 3}, "--data.window needs --data.genome"),
        ("chr2,2,4,+", {"wild_type": "ACGT"}, "drop one"),
        ("chr2,2,4,+", {"genome": "none.fa"}, "none.fa: no such file"),
    ],
)
def test_an_interval_that_cannot_be_is_refused(tmp_path, row, options, message):
    path = write(tmp_path, "t.csv", f"chrom,start,end,strand\nchr1,0,5,+\n{row}\n")
    with pytest.raises(InputError, match=message):
        opened(path, **{"genome": fasta(tmp_path), **options})


def test_an_edited_genome_is_read_anew_and_a_moved_one_is_the_same(tmp_path):
    bed, genome = write(tmp_path, "t.bed", "chr2\t0\t4\n"), fasta(tmp_path)
    before = opened(bed, genome=genome).digest
    moved = shutil.copy(genome, tmp_path / "moved.fa")
    assert opened(bed, genome=str(moved)).digest == before
    changed = write(tmp_path, "other.fa", (tmp_path / "g.fa").read_text().replace("GATT", "CATT"))
    assert taken(bed, genome=str(changed)) == ["CATT"]


# --------------------------------------------------------------------------- index of a genome

# By hand, as samtools faidx counts: name, letters, first byte, letters and bytes of a line. A
# header has 11 bytes, chr1 lies in 4 lines with 24 bytes.
INDEX = "chr1\t20\t11\t6\t7\nchr2\t7\t46\t6\t7\n"


def test_an_index_is_made_once_in_the_cache_and_never_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    path = fasta(tmp_path / "data")
    assert Genome(path).fetch("chr1", 4, 13) == "ACGTACGGT"
    (kept,) = (tmp_path / "cache" / "genomes").glob("[!.]*")
    assert kept.read_text() == INDEX
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["g.fa"]
    monkeypatch.setattr(Genome, "_write_index", None)
    assert Genome(path).fetch("chr2", 5, 7) == "CA"
    kept.write_text(INDEX.replace("46", "45"))
    with pytest.raises(InputError, match=r"\.fai: a damaged index .*Delete it"):
        Genome(path)


def test_an_index_beside_the_file_is_used(tmp_path, monkeypatch):
    path = fasta(tmp_path)
    write(tmp_path, "g.fa.fai", INDEX)
    monkeypatch.setattr(Genome, "_write_index", None)
    assert Genome(path).lengths == {"chr1": 20, "chr2": 7}
    assert Genome(path).fetch("chr1", 5, 20) == CONTIGS["chr1"][5:]


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("chr1\t20\t11\t6\t7\n", "more follows the last contig"),
        (INDEX.replace("46", "45"), "no header|another header|ends elsewhere"),
        (INDEX.replace("chr2", "chr3"), "another header before contig 'chr3'"),
        (INDEX.replace("20", "19"), "contig 'chr1' ends elsewhere"),
        (INDEX.replace("20", "26"), "contig 'chr1'"),
        (INDEX.replace("\t6\t7\nchr2", "\t5\t6\nchr2"), "no line end after line"),
        (INDEX.replace("\t6\t7\nchr2", "\t0\t7\nchr2"), "impossible numbers"),
        (INDEX.replace("\t6\t7\nchr2", "\t6\nchr2"), "columns"),
        (INDEX.replace("20", "x"), "invalid literal"),
        ("", "more follows"),
    ],
)
def test_an_index_that_does_not_fit_is_said_and_not_used(tmp_path, index, why):
    path = fasta(tmp_path)
    write(tmp_path, "g.fa.fai", index)
    with pytest.warns(UserWarning, match=f"g.fa.fai does not fit the FASTA .*({why})"):
        assert Genome(path).fetch("chr2", 0, 7) == "GATTACA"


def test_an_index_equals_that_of_a_real_genome(shared, tmp_path):
    source = shared / "data/dna_genomes/human_mitochondrion.fa.gz"
    path = write(tmp_path, "mt.fa", gzip.decompress(source.read_bytes()))
    genome = Genome(path)
    (name,) = genome.lengths
    assert genome.lengths[name] == 16569  # of the revised Cambridge reference sequence
    assert genome.fetch(name, 0, 10) == "GATCACAGGT"
    letters = "".join(path.read_text().split("\n")[1:])
    assert genome.fetch(name, 7000, 7300) == letters[7000:7300]


# --------------------------------------------------------------------------- databases


def sqlite_file(path, *statements: str):
    connection = sqlite3.connect(path)
    for statement in statements or (
        "create table seqs (sequence text, label real)",
        "insert into seqs values ('ACGT', 0.5), ('GG', 2), (null, null)",
    ):
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def duckdb_file(path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table seqs (sequence varchar, label double)")
        connection.execute("insert into seqs values ('ACGT', 0.5), ('GG', 2), (null, null)")
    return path


MAKE = {"t.sqlite": sqlite_file, "t.db": sqlite_file, "t.duckdb": duckdb_file}


@pytest.mark.parametrize("name", MAKE)
def test_a_database_gives_its_only_table_or_a_query(tmp_path, name):
    path = MAKE[name](tmp_path / name)
    assert rows_of(path)[:2] == [
        {"sequence": "ACGT", "label": 0.5},
        {"sequence": "GG", "label": 2.0},
    ]
    query = "select sequence, label * 2 as label from seqs where label > 1"
    rows = opened(path, query=query)
    assert rows.take([0]) == [{"sequence": "GG", "label": 4.0}]
    assert rows.digest != opened(path, query=query.replace("*", "+")).digest
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("delete from seqs", "must be one SELECT"),
        ("insert into seqs values ('A', 1)", "must be one SELECT"),
        ("select 1 as x; select 2 as x", "must be one SELECT"),
        ("select 1 as x; drop table seqs", "must be one SELECT"),
        ("attach 'other.db' as other", "must be one SELECT"),
        ("create table more (x int)", "must be one SELECT"),
        ("select nothing from seqs", "nothing"),
        ("selec", "syntax"),
        ("select * from seqs where label > 9", "the query gives not one row"),
    ],
)
def test_a_query_that_is_no_select_of_the_file_is_refused(tmp_path, name, query, message):
    path = MAKE[name](tmp_path / name)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        opened(path, query=query)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("query", ["pragma user_version", "pragma table_info(seqs)"])
def test_what_sqlite_answers_beside_select_is_refused(tmp_path, query):
    with pytest.raises(InputError, match="must be one SELECT"):
        opened(sqlite_file(tmp_path / "t.db"), query=query)


def test_a_query_reaches_no_other_file(tmp_path):
    write(tmp_path, "secret.csv", CSV)
    path = duckdb_file(tmp_path / "t.duckdb")
    with pytest.raises(InputError, match="disabled"):
        opened(path, query=f"select * from read_csv('{tmp_path}/secret.csv')")


def test_a_query_needs_a_database_and_several_tables_need_a_query(tmp_path):
    with pytest.raises(InputError, match="--data.query is for databases"):
        opened(write(tmp_path, "t.csv", CSV), query="select 1")
    path = sqlite_file(tmp_path / "t.db", "create table b (x)", "create table a (x)")
    with pytest.raises(InputError, match="tables are 'a', 'b'. Choose rows with --data.query"):
        rows_of(path)


def test_a_value_of_another_type_half_way_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "BLOCK_ROWS", 3)
    values = ", ".join(f"({i})" for i in range(7))
    path = sqlite_file(
        tmp_path / "t.db", "create table t (x)", f"insert into t values {values}, ('a'), (1)"
    )
    with pytest.raises(InputError, match="t.db, row 8, column 'x': values of different types"):
        rows_of(path)


@pytest.mark.parametrize("log", ["-wal", "-journal"])
def test_a_database_with_pending_changes_is_refused(tmp_path, log):
    path = sqlite_file(tmp_path / "t.db")
    write(tmp_path, f"t.db{log}", "x")
    with pytest.raises(InputError, match=f"t.db{log} beside it holds changes"):
        rows_of(path)


def test_a_database_with_a_log_of_its_own_is_read_without_writing(tmp_path):
    path = sqlite_file(tmp_path / "t.db")
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")
    connection.close()
    assert len(rows_of(path)) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["t.db"]


def test_a_locked_database_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "LOCK_SECONDS", 0.01)
    path = sqlite_file(tmp_path / "t.db")
    connection = sqlite3.connect(path)
    connection.execute("begin exclusive")
    with pytest.raises(InputError, match="another program is writing it"):
        rows_of(path)
    connection.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"sequence,label\n", "neither an SQLite nor a DuckDB file"),
        (b"SQLite format 3\0" + b"x" * 500, "cannot be read"),
    ],
)
def test_a_file_that_is_no_database_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=f"t.db: {message}"):
        rows_of(write(tmp_path, "t.db", content))


def test_a_damaged_database_is_refused(tmp_path):
    for name in ("t.db", "t.duckdb"):
        path = MAKE[name](tmp_path / name)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            rows_of(path)
    with pytest.raises(InputError, match="gunzip it first"):
        rows_of(write(tmp_path, "t.db.gz", "x"))


# --------------------------------------------------------------------------- Arrow

ARROW = pa.table({"sequence": ["ACGT", "GG", "C"], "label": [1.0, 2.0, 3.0]})


def stream(path, table: pa.Table = ARROW, **options):
    with pa.OSFile(str(path), "wb") as file:
        written = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_stream(file, table.schema, options=written) as writer:
            writer.write_table(table)
    return path


def test_an_arrow_stream_is_used_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    path = stream(tmp_path / "t.arrow")
    rows = opened(path)
    assert [file["filename"] for file in rows.dataset.cache_files] == [str(path)]
    assert rows.take([1]) == [{"sequence": "GG", "label": 2.0}]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", ["file", "compressed stream", "feather", "dictionary", "gzip"])
def test_arrow_of_every_kind_gives_the_same_rows(tmp_path, kind):
    path = tmp_path / ("t.feather" if kind == "feather" else "t.arrow")
    if kind == "file":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ARROW.schema) as writer:
            writer.write_table(ARROW)
    elif kind == "feather":
        feather.write_feather(ARROW, str(path))
    elif kind == "dictionary":
        stream(path, ARROW.set_column(0, "sequence", ARROW["sequence"].dictionary_encode()))
    else:
        stream(path, compression="zstd" if kind == "compressed stream" else None)
    if kind == "gzip":
        path = write(tmp_path, "t.arrow.gz", path.read_bytes())
    rows = opened(path)
    assert rows.take([0, 1, 2]) == ARROW.to_pylist()
    assert rows.dataset.cache_files[0]["filename"] != str(path)  # values had to be converted


@pytest.mark.parametrize(
    "cut", [slice(None, -8), slice(None, -60), slice(None, 40), slice(40, None)]
)
@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_truncated_arrow_file_is_refused(tmp_path, kind, cut):
    path = stream(tmp_path / "t.arrow")
    if kind == "file":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ARROW.schema) as writer:
            writer.write_table(ARROW)
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(InputError, match="t.arrow: not an Arrow file, or a damaged one"):
        opened(path)


def saved(folder):
    import datasets

    data = datasets.Dataset(ARROW)
    splits = {"train": data, "test": data.select([2])}
    datasets.DatasetDict(splits).save_to_disk(folder, num_shards={"train": 2, "test": 1})
    return folder


def test_a_folder_saved_by_datasets_has_its_splits_where_they_lie(tmp_path, monkeypatch):
    folder = saved(tmp_path / "saved")
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path / "cache"))
    rows = opened(folder, split=True, valid_fraction=0)
    assert {name: list(found) for name, found in rows.splits.items()} == {
        "train": [0, 1, 2],
        "valid": [],
        "test": [3],
    }
    assert rows.take([0, 1, 2]) == ARROW.to_pylist()
    assert rows.where(3) == f"{folder} [test], row 1 (header not counted)"
    assert {file["filename"] for file in rows.dataset.cache_files} == {
        str(file) for file in folder.rglob("*.arrow")
    }
    assert taken(folder / "test") == ["C"]
    shutil.copytree(folder, tmp_path / "copy")
    assert opened(tmp_path / "copy").digest == opened(folder).digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train/data-00001-of-00002.arrow").unlink(), "no file data-00001-of-00002"),
        (lambda f: (f / "test/state.json").unlink(), "test/state.json: cannot be read"),
        (lambda f: (f / "test/state.json").write_text("{"), "test/state.json: cannot be read"),
        (lambda f: (f / "test/state.json").write_text("[]"), "not what `datasets` writes"),
        (lambda f: (f / "test/state.json").write_text("{}"), "no data files"),
        (lambda f: (f / "dataset_dict.json").write_text('{"splits": []}'), "names no splits"),
        (
            lambda f: (f / "dataset_dict.json").write_text('{"splits": ["../../x"]}'),
            "'../../x' is no name of a file in the folder",
        ),
        (
            lambda f: (f / "test/state.json").write_text(
                json.dumps({"_data_files": [{"filename": "/etc/passwd"}]})
            ),
            "'/etc/passwd' is no name of a file in the folder",
        ),
        (lambda f: stream(f / "test/data-00000-of-00001.arrow").write_bytes(b"x"), "not an Arrow"),
    ],
)
def test_a_damaged_folder_of_datasets_is_refused(tmp_path, damage, message):
    folder = saved(tmp_path / "saved")
    damage(folder)
    with pytest.raises(InputError, match=message):
        opened(folder)


# --------------------------------------------------------------------------- URLs


@pytest.fixture
def memory():
    import fsspec

    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_a_url_is_fetched_once_per_content(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path))
    memory.pipe("/d/t.csv", CSV.encode())
    asked, get_file = [], memory.get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, *a, **k: (asked.append(a), get_file(*a, **k))
    )
    assert taken("memory://d/t.csv") == taken("memory://d/t.csv") == ["AC", "GT"]
    assert len(asked) == 1
    memory.pipe("/d/t.csv", CSV.replace("AC", "TT").encode())
    assert taken("memory://d/t.csv") == ["TT", "GT"]
    assert all(not file.name.endswith(".tmp") for file in (tmp_path / "downloads").iterdir())


def test_a_pattern_names_remote_files_and_messages_name_the_url(memory):
    memory.pipe({"/d/b.csv": CSV.encode(), "/d/a.csv.gz": gzip.compress(CSV.encode())})
    rows = opened("memory://d/*.csv*")
    assert rows.names == ["memory:///d/a.csv.gz", "memory:///d/b.csv"]
    memory.pipe("/d/c.csv", b"a,b\n1,2\n3\n")
    with pytest.raises(InputError, match=r"^memory://d/c.csv, row 2 .*1 cells"):
        opened("memory://d/c.csv")
    with pytest.raises(InputError, match="no file has such a name"):
        opened("memory://d/*.tsv")


def test_a_genome_may_be_a_url(memory, tmp_path):
    memory.pipe("/g.fa", b">chr2\nGATTACA\n")
    assert taken(write(tmp_path, "t.bed", "chr2\t0\t4\n"), genome="memory://g.fa") == ["GATT"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://d/none.csv", "no such file .*Check the address"),
        ("memory://d/t.xlsx", "says no known format"),
        ("memory://d", "says no known format"),
        ("nothing://d/t.csv", "no protocol 'nothing' is known"),
        ("zip://a::memory://d/t.csv", "joined by '::' are not read"),
    ],
)
def test_a_url_that_cannot_be_read_says_why(memory, url, message):
    with pytest.raises(InputError, match=message):
        opened(url)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named_with_its_command(protocol, package, monkeypatch):
    registry = import_module("fsspec.registry")
    none = {"class": "no_such_package.FileSystem", "err": "install it"}
    monkeypatch.setitem(registry.known_implementations, protocol, none)
    monkeypatch.setattr(registry, "registry", {})
    with pytest.raises(InputError, match=f"needs a package: pip install {package}"):
        opened(f"{protocol}://bucket/t.csv")


class Server(http.server.BaseHTTPRequestHandler):
    """/t.csv as it is, /login.csv for nobody, /short.csv cut short, all else missing."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        code = {"/t.csv": 200, "/short.csv": 200, "/login.csv": 403}.get(path, 404)
        body = CSV.encode() if code == 200 else b""
        size = len(body) + 5 * (path == "/short.csv" and self.command == "HEAD")
        self.send_response(code)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pytest.importorskip("aiohttp")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_web_address_may_have_a_query_and_what_fails_says_why(server):
    assert taken(f"{server}/t.csv?download=1") == ["AC", "GT"]
    with pytest.raises(InputError, match="none.csv: no such file .*404"):
        opened(f"{server}/none.csv")
    with pytest.raises(InputError, match="login.csv: needs a login .*403"):
        opened(f"{server}/login.csv")
    with pytest.raises(InputError, match="short.csv: 25 of 30 bytes came"):
        opened(f"{server}/short.csv")
    with pytest.raises(InputError, match="t.csv: cannot be reached .*Check the connection"):
        opened("http://127.0.0.1:9/t.csv")


# --------------------------------------------------------------------------- several files


def test_paths_are_joined_by_commas_unless_a_file_has_that_name(tmp_path):
    for name in ("a", "b", "a.csv,b"):
        write(tmp_path, f"{name}.csv", f"sequence,label\n{name.upper()[:1] * 3},1\n")
    both = f"{tmp_path}/a.csv, {tmp_path}/b.csv"
    assert taken(both) == ["AAA", "BBB"]
    assert taken(tmp_path / "a.csv,b.csv") == ["AAA"]
    rows = opened(both, split=True, valid_path=str(tmp_path / "a.csv,b.csv"), test_fraction=0)
    assert [len(rows.splits[name]) for name in ("train", "valid")] == [2, 1]
    with pytest.raises(InputError, match="a.csv more than once"):
        opened(f"{tmp_path}/a.csv,{tmp_path}/[a].csv")
    with pytest.raises(InputError, match="c.csv: no such file"):
        opened(f"{tmp_path}/a.csv,{tmp_path}/c.csv")


def test_a_subset_fills_a_path_or_chooses_in_a_folder(tmp_path):
    for name in ("one/train", "one/test", "two"):
        write(tmp_path, f"{name}.csv", f"sequence,label\n{name},1\n")
    assert taken(f"{tmp_path}/{{subset}}.csv", subset="two") == ["two"]
    assert taken(tmp_path, subset="two") == ["two"]
    assert taken(tmp_path, subset="one") == ["one/test", "one/train"]
    with pytest.raises(InputError, match="set --data.subset, which {subset} stands for"):
        opened(f"{tmp_path}/{{subset}}.csv")
    with pytest.raises(InputError, match="no subset 'tvo'; there are one, two. Did you mean 'two'"):
        opened(tmp_path, subset="tvo")


def test_names_of_splits_may_be_patterns_and_shards_are_one_split(tmp_path):
    for name in ("train_a", "train_b", "dev-00000-of-00002", "dev-00001-of-00002", "test"):
        write(tmp_path, f"{name}.csv", CSV)
    rows = opened(tmp_path, split=True, train_split="train_*+train_a", valid_split="dev")
    assert [len(rows.splits[name]) for name in ("train", "valid", "test")] == [4, 4, 2]
    with pytest.raises(InputError, match=r"no rows for train named 'tran_\*'"):
        opened(tmp_path, split=True, train_split="tran_*", valid_split="dev")


def test_files_of_different_types_are_refused_by_name(tmp_path):
    for name, values in (("a", [1, 2]), ("b", ["x", "y"])):
        parquet.write_table(pa.table({"sequence": values}), tmp_path / f"{name}.parquet")
    with pytest.raises(
        InputError, match="a.parquet, .*b.parquet: columns of one name differ in type"
    ):
        opened(tmp_path)


def test_the_first_rows_of_a_file_are_read_aloud(tmp_path):
    rows = opened(write(tmp_path, "t.csv", CSV), max_rows=1)
    assert (len(rows), rows.plan) == (1, f"{tmp_path}/t.csv: the first 1 of 2 rows are read")
    with pytest.raises(InputError, match="--data.max-rows -1"):
        opened(tmp_path / "t.csv", max_rows=-1)


# --------------------------------------------------------------------------- hub


@pytest.fixture
def hub(monkeypatch):
    """`load_dataset` with rows of two splits, and the commit of the hub's client."""
    import datasets
    import huggingface_hub

    asked, many = [], datasets.Dataset.from_dict({"sequence": ["A", "C", "G", "T"]})

    def load(path, name=None, revision=None, streaming=False):
        asked.append((path, name, revision, streaming))
        found = {"train": many, "test": many.select([3])}
        if not streaming:
            return datasets.DatasetDict(found)
        return {key: part.to_iterable_dataset() for key, part in found.items()}

    class Info:
        sha = "1" * 40

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: Info)
    return asked


def test_the_first_rows_of_hub_splits_are_streamed(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_CACHE", str(tmp_path))
    rows = opened("owner/name", split=True, max_rows=2, subset="x", valid_fraction=0)
    assert hub == [("owner/name", "x", "main", True)]
    assert [row["sequence"] for row in rows.take([0, 1, 2])] == ["A", "C", "T"]
    assert rows.plan.startswith("owner/name [train]: the first 2 rows are read; train is 'train'")
    assert len(list((tmp_path / "tables").glob("[!.]*"))) == 2
    opened("owner/name", max_rows=3, subset="x")
    assert len(list((tmp_path / "tables").glob("[!.]*"))) == 4


def test_a_hub_data_set_has_its_splits(hub):
    rows = opened("owner/name", split=True, valid_fraction=0)
    assert hub == [("owner/name", None, "main", False)]
    assert [len(rows.splits[name]) for name in ("train", "test")] == [4, 1]


@pytest.mark.parametrize("folder", ["owner/name", "owner__name"])
def test_a_folder_stands_for_a_hub_data_set(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))
    write(tmp_path, f"data/{folder}/sub/train.csv", CSV)
    place = tmp_path / "data" / folder
    rows = opened("owner/name", subset="sub")
    assert rows.plan == f"owner/name: read from the folder {place}"
    assert len(rows) == 2
    assert taken("hf://datasets/owner/name@abc/sub/train.csv") == ["AC", "GT"]


@pytest.mark.parametrize(("given", "asked"), [("", "@v1"), ("@v2", "@v2")])
def test_a_file_of_a_hub_data_set_is_of_the_revision(given, asked):
    with pytest.raises(InputError, match=f"hf://datasets/owner/name{asked}/t.csv: cannot be reach"):
        opened(f"hf://datasets/owner/name{given}/t.csv", revision="v1")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."),
            "needs a login .*Accept its terms at .*/datasets/owner/name, .*hf auth login",
        ),
        (
            FileNotFoundError(
                "Dataset 'owner/name' doesn't exist on the Hub or cannot be accessed."
            ),
            "not to be had .*Check the name .*hf auth login",
        ),
        (
            ConnectionError("Couldn't reach 'owner/name' on the Hub"),
            "cannot be reached .*hf download owner/name --repo-type dataset --local-dir DIR",
        ),
        (
            ValueError("BuilderConfig 'proms' not found. Available: ['proms_a', 'enhancers']"),
            "no subset 'proms'; subsets are proms_a, enhancers. Did you mean 'proms_a'",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            "comes as a program, which is not run .*--data.revision refs/convert/parquet",
        ),
        (
            FileNotFoundError("Revision 'main' doesn't exist for dataset 'owner/name' on the Hub."),
            "no revision 'main' .*Set --data.revision",
        ),
    ],
)
def test_an_error_of_the_hub_says_what_to_do(error, message, monkeypatch):
    import datasets

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=f"^owner/name: .*{message}"):
        opened("owner/name", subset="proms")


@pytest.mark.parametrize("option", ["genome", "query", "wild_type"])
def test_what_needs_files_is_refused_of_the_hub(hub, tmp_path, option):
    value = fasta(tmp_path) if option == "genome" else "ACGT"
    with pytest.raises(
        InputError, match=f"--data.{option.replace('_', '-')}: it needs rows of files"
    ):
        opened("owner/name", **{option: value})


# --------------------------------------------------------------------------- text

ENDINGS = {
    "t.csv": "sequence,label\nACGT,1\nGG,é\n",
    "t.jsonl": '{"sequence": "ACGT"}\n{"sequence": "é"}\n',
    "t.fa": ">a\nACGT\n>b é\nGG\n",
    "t.bed": "chr1\t1\t2\ta\nchr1\t1\t2\té\n",
}


@pytest.mark.parametrize("name", ["t.csv", "t.fa", "t.bed", "t.csv.gz"])
def test_windows_1252_is_named_with_the_command_that_converts_it(tmp_path, name):
    path = write(tmp_path, name, ENDINGS[name.removesuffix(".gz")].encode("cp1252"))
    unpack = "gunzip -c t.csv.gz . iconv" if name.endswith(".gz") else "iconv"
    with pytest.raises(
        InputError, match=f"(row|record) 2.*perhaps Windows-1252.*{unpack} -f WINDO"
    ):
        rows_of(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ENDINGS)
def test_utf_16_is_named_with_the_command_that_converts_it(tmp_path, name, encoding):
    path = write(tmp_path, name, ENDINGS[name].encode(encoding))
    known = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(InputError, match=f"but {known} by its look. Convert: iconv -f {known} -t"):
        rows_of(path)


@pytest.mark.parametrize("name", ["t.fa", "t.bed", "t.jsonl"])
def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_data(tmp_path, name):
    plain = rows_of(write(tmp_path, name, ENDINGS[name]))
    assert rows_of(write(tmp_path, name, b"\xef\xbb\xbf" + ENDINGS[name].encode())) == plain


def test_mixed_line_ends_are_read_and_a_lone_return_is_not(tmp_path):
    assert len(rows_of(write(tmp_path, "t.csv", "a,b\r\n1,2\n3,4\r\n5,6\r\r\n"))) == 3
    assert rows_of(write(tmp_path, "t.csv", 'a,b\n"1\r1",2\n')) == [{"a": "1\r1", "b": "2"}]
    for text in ("a,b\n1,2\n\n3,4\r5,6\n", 'a,b\n"1\n1",2\n3,4\r"5",6\n'):
        with pytest.raises(InputError, match="t.csv, row 2 .*carriage return that ends no line"):
            rows_of(write(tmp_path, "t.csv", text))
    with pytest.raises(InputError, match="t.fa, line 2: a carriage return within the line"):
        rows_of(write(tmp_path, "t.fa", ">a\nAC\rGT\n"))


def test_a_lone_return_is_found_where_blocks_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 8)
    with pytest.raises(InputError, match="row 1 .*carriage return"):
        rows_of(write(tmp_path, "t.csv", "a,b\n1,2\r3,4\n"))


@pytest.mark.parametrize(
    ("name", "head", "tail", "message"),
    [
        ("t.csv", "a,", "\n", "t.csv: the header is longer than 99 bytes"),
        ("t.csv", "a,b\n1,", "\n", "a row is longer than 99 bytes"),
        ("t.jsonl", '{"a": 1}\n{"a": "', '"}\n', "t.jsonl, line 2: longer than 99 bytes"),
        ("t.fa", ">a\nAC\n>b", "\nAC\n", "t.fa, line 3: longer than 99 bytes"),
        ("t.fa.gz", ">a\nAC\n", "\n", "t.fa.gz, line 3: longer than 99 bytes"),
        ("t.vcf", "##fileformat=VCFv4.3\nc\t1\t.\tA\t", "\n", "t.vcf, line 2: longer than 99"),
        ("t.bed", "c\t1\t2\n", "\n", "t.bed, line 2: longer than 99"),
    ],
)
def test_a_line_that_would_fill_the_memory_is_refused(
    tmp_path, monkeypatch, name, head, tail, message
):
    monkeypatch.setattr(lines, "LONGEST_LINE", 99)
    monkeypatch.setattr(tables, "LONGEST_FASTA_LINE", 99)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 99)
    path = write(tmp_path, name, head + "A" * 10_000 + tail)
    opened_file, sizes = tables._opened, []

    class Watched:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def readline(self, size=-1):
            sizes.append(size)
            return self.file.readline(size)

        def __iter__(self):
            raise AssertionError("reads lines of any length")

    monkeypatch.setattr(tables, "_opened", lambda path: Watched(opened_file(path)))
    with pytest.raises(InputError, match=message):
        rows_of(path)
    assert 0 < max(sizes) <= 100 and min(sizes) > 0


def test_repeated_names_of_a_fasta_are_counted_aloud(tmp_path):
    from mgen.data.checking.check import identifiers

    rows = opened(write(tmp_path, "t.fa", ">a\nAC\n>b\nGT\n>a\nGG\n"))
    assert identifiers(rows)[0].startswith(
        "1 rows repeat an identifier of column 'id', such as 'a'"
    )
    with pytest.raises(InputError, match="contig 'a' occurs twice"):
        Genome(tmp_path / "t.fa")


# --------------------------------------------------------------------------- places


def test_one_file_under_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("sequence,label\nAC,1\nGT,2\n")
    for options in ({"path": "t.csv,./t.csv"}, {"path": "t.csv", "test_path": "./t.csv"}):
        with pytest.raises(InputError, match=r"\./t.csv: is the file t.csv, which is named too"):
            Table(**options).open()


def test_a_copy_of_a_hub_data_set_is_read_where_its_files_lie(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        content = pa.table({"sequence": [f"AC{name[6:11]}"], "label": [1]})
        parquet.write_table(content, tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "README.md").write_text("# a data set")
    for subset in ("", "default"):
        rows = Table(path=str(tmp_path), subset=subset, valid_fraction=0).open()
        assert [len(rows.splits[name]) for name in ("train", "test")] == [2, 1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (",", "names no file"),
        ("a" * 300 + ".csv", "File name too long"),
        ("~nobody9/t.csv", "home"),
    ],
)
def test_paths_that_no_file_can_have_are_named(path, message):
    with pytest.raises(InputError, match=f"--data.path .*{message}"):
        Table(path=path).open()


def test_places_without_a_genome_say_so(tmp_path):
    (tmp_path / "t.bed").write_text("chr1\t1\t9\n")
    with pytest.raises(
        InputError, match="places of a genome, without sequences.*Set --data.genome"
    ):
        Table(path=str(tmp_path / "t.bed")).open(split=False)
