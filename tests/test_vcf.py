"""Variants of a genome: VCF records, contigs of FASTA files, windows over their ends."""

import gzip
import json

import pytest
from conftest import golden

from mgen.config import InputError
from mgen.data import Table
from mgen.data.inputs.variants import Edit, Source, Variant, edits_between, survey
from mgen.io.genome import Genome
from mgen.io.tables import read

GENOME = {"chr1": "ACGTNacgtRYAAAACCCCGGGGTTTTACGTACGT", "chr2": "GATTACA", "chrM": "TTTTT"}
HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def fasta(path, line: int = 10, end: str = "\n"):
    text = ""
    for name, letters in GENOME.items():
        text += f">{name} a description{end}"
        text += "".join(letters[i : i + line] + end for i in range(0, len(letters), line))
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def vcf(path, *records: str):
    text = HEADER + "".join(record.replace(" ", "\t") + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def rows_of(path) -> list[dict]:
    return [row for batch in read(path) for row in batch.to_pylist()]


@pytest.mark.parametrize("name", ["x.vcf", "x.vcf.gz"])
def test_a_record_gives_one_row_per_alternative_allele_counted_from_0(tmp_path, name):
    rows = rows_of(vcf(tmp_path / name, "chr1 4 rs1 T A,<DEL>,TA 30 PASS ."))
    assert [row["mutate"] for row in rows] == ["A", "<DEL>", "TA"]
    assert {(row["chrom"], row["start"], row["end"], row["ref"]) for row in rows} == {
        ("chr1", 3, 4, "T")
    }
    assert {row["alleles"] for row in rows} == {3}
    assert rows[0]["id"] == "rs1"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("chr1 4 . T", "4 columns"),
        ("chr1 x . T A . . .", "POS 'x'"),
        ("chr1 0 . T A . . .", "POS '0'"),
        ("chr1 4 . <N> A . . .", "REF '<N>'"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, record, message):
    with pytest.raises(InputError, match=f"x.vcf, record 2 .*{message}"):
        rows_of(vcf(tmp_path / "x.vcf", "chr1 4 . T A . . .", record))


def test_a_file_that_is_no_vcf_is_refused(tmp_path):
    (tmp_path / "x.vcf").write_text("chr1\t4\t.\tT\tA\n")
    with pytest.raises(InputError, match="no VCF"):
        rows_of(tmp_path / "x.vcf")


# --------------------------------------------------------------------------- genome


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
@pytest.mark.parametrize("line", [1, 7, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_stretch_of_a_genome_is_what_the_file_says(tmp_path, name, line, end):
    genome = Genome(fasta(tmp_path / name, line, end))
    for contig, letters in GENOME.items():
        plain = "".join(a if a in "ACGT" else "N" for a in letters.upper())
        assert genome.length(contig) == len(plain)
        for start in range(-2, len(plain) + 2):
            for stop in range(start, len(plain) + 3):
                assert genome.fetch(contig, start, stop) == plain[max(start, 0) : max(stop, 0)]


def test_lines_of_uneven_length_are_read_all_the_same(tmp_path):
    (tmp_path / "g.fa").write_text(
        ">a\nACGTACGTAC\nGGGG\nTTTTTTTTTTTTTTTT\nCCCCCCCCCC\n>b\n\nACG\n"
    )
    genome = Genome(tmp_path / "g.fa")
    whole = "ACGTACGTAC" + "GGGG" + "T" * 16 + "C" * 10
    assert genome.fetch("a", 8, 36) == whole[8:36]
    assert genome.fetch("b", 1, 9) == "CG"
    # Two short lines take the bytes of one: the line ends around them are where they should be.
    (tmp_path / "h.fa").write_text(">c\nACGTACGTAC\nGGGG\nTTTTT\nACGTACGTAC\n")
    assert Genome(tmp_path / "h.fa").fetch("c", 8, 22) == "ACGGGGTTTTTACG"


def test_a_contig_under_another_name_is_suggested(tmp_path):
    genome = Genome(fasta(tmp_path / "g.fa"))
    for given, meant in (("1", "chr1"), ("MT", "chrM"), ("Chr2", "chr2")):
        with pytest.raises(InputError, match=f"no contig '{given}'. Did you mean '{meant}'"):
            genome.fetch(given, 0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("ACGT\n", "does not start with '>'"), (">a\nA\n>a\nC\n", "'a' occurs twice"), ("", "")],
)
def test_a_file_that_is_no_genome_is_refused(tmp_path, text, message):
    (tmp_path / "g.fa").write_text(text)
    with pytest.raises(InputError, match=f"g.fa: .*{message}"):
        Genome(tmp_path / "g.fa")


# --------------------------------------------------------------------------- windows


def source(tmp_path, **options) -> Source:
    return Source(**{"genome": fasta(tmp_path / "g.fa"), "window": 3, "x_col": "", **options})


def row(chrom="chr2", start=3, ref="T", mutate="C") -> dict:
    return {"chrom": chrom, "start": start, "ref": ref, "mutate": mutate}


def test_a_window_has_as_many_bases_on_each_side(tmp_path):
    variant = source(tmp_path).read(row())
    assert variant == Variant("GATTACA", (Edit(3, "T", "C"),))
    assert variant.mutated == "GATCACA"


def test_a_window_over_the_end_of_a_contig_is_shortened(tmp_path):
    first = source(tmp_path).read(row(start=0, ref="G", mutate="A"))
    assert (first.reference, first.edits, first.is_cut) == ("GATT", (Edit(0, "G", "A"),), True)
    last = source(tmp_path).read(row(start=6, ref="A", mutate="AGG"))
    assert (last.reference, last.mutated, last.is_cut) == ("TACA", "TACAGG", True)


def test_alleles_of_the_other_strand_are_turned_around_in_tables_alone(tmp_path):
    found = source(tmp_path).read(row(start=0, ref="TC", mutate="TT"))  # the genome has GA
    assert (found.edits, found.is_turned) == ((Edit(0, "G", "A"),), True)
    with pytest.raises(InputError, match="reference allele TC: the genome has GA"):
        source(tmp_path, complements=False).read(row(start=0, ref="TC", mutate="TT"))


def test_a_reference_allele_that_is_not_there_is_an_error_or_skipped_or_kept(tmp_path):
    wrong = row(ref="G", mutate="C")
    with pytest.raises(InputError, match="reference allele G: the genome has T at 3 to 4"):
        source(tmp_path).read(wrong)
    assert source(tmp_path, mismatch="skip").read(wrong) == "reference allele differs"
    kept = source(tmp_path, mismatch="keep").read(wrong)
    assert (kept.reference, kept.mutated) == ("GATGACA", "GATCACA")


@pytest.mark.parametrize(
    ("allele", "reason"),
    [
        ("<DEL>", "symbolic"),
        ("*", "deleted by another"),
        (".", "no alternative"),
        ("T]chr1:5]", "breakend"),
        ("[chr1:5[T", "breakend"),
        ("T.", "breakend"),
    ],
)
def test_alleles_without_letters_are_skipped_with_a_reason(tmp_path, allele, reason):
    assert reason in source(tmp_path).read(row(mutate=allele))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 7}, "outside the contig chr2 of 7"),
        ({"start": -1}, "outside"),
        ({"start": 6, "ref": "AA"}, "outside"),
        ({"start": "x"}, "'x' is no position"),
        ({"mutate": "C3"}, "allele 'C3'"),
        ({"chrom": "chr9"}, "no contig 'chr9'"),
    ],
)
def test_a_variant_that_cannot_be_is_an_error(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        source(tmp_path).read(row(**changes))


def test_one_based_starts_are_shifted(tmp_path):
    assert source(tmp_path, one_based=True).read(row(start="4")).edits == (Edit(3, "T", "C"),)


@pytest.mark.parametrize(
    ("before", "after", "edits"),
    [
        ("ACG", "ATG", [(1, "C", "T")]),
        ("ACG", "TCA", [(0, "A", "T"), (2, "G", "A")]),
        ("ACG", "AG", [(1, "C", "")]),
        ("AAA", "AA", [(2, "A", "")]),
        ("A", "AGG", [(1, "", "GG")]),
        ("ACGT", "AT", [(1, "CG", "")]),
        ("ACG", "ACG", []),
    ],
)
def test_edits_are_what_differs(before, after, edits):
    assert edits_between(0, before, after) == tuple(Edit(*edit) for edit in edits)
    assert Variant(before, edits_between(0, before, after)).mutated == after


def test_both_strands_of_a_variant_are_reverse_complements(tmp_path):
    variant = Variant("AACGT", (Edit(1, "A", "G"), Edit(3, "GT", "")))
    other = variant.reverse_complement()
    assert (other.reference, other.mutated) == ("ACGTT", "GCT")
    assert variant.mutated == "AGC"


def test_what_a_file_holds_is_counted_aloud(tmp_path):
    file = vcf(
        tmp_path / "x.vcf",
        "chr2 1 . G A,C . . .",
        "chr2 4 . T <DEL>,* . . .",
        "chr2 4 . T G . . .",
        "chr2 4 . TA T . . .",
    )
    rows = Table(path=str(file), x_col="").open(split=False)
    found = survey(rows, source(tmp_path), lambda v: "an indel" if v.has_indel else "")
    assert found.notes(5) == [
        "4 of 6 variants are of records with several alternative alleles, one row each",
        "2 of 6 variants have windows shortened by the end of their contig",
        "1 of 6 variants are read in windows of 5 letters around their sites",
        "1 of 6 variants get no score: symbolic allele",
        "1 of 6 variants get no score: allele deleted by another variant (*)",
        "1 of 6 variants get no score: an indel",
    ]


def test_the_first_contradiction_is_named_with_its_row_and_all_are_counted(tmp_path):
    file = vcf(
        tmp_path / "x.vcf", "chr2 1 . G A . . .", "chr2 4 rs7 C A . . .", "chr2 9 . T A . . ."
    )
    rows = Table(path=str(file), x_col="").open(split=False)
    with pytest.raises(InputError, match=r"x.vcf, row 2 .*rs7.*the genome has T.*\(2 of 3 rows\)"):
        survey(rows, source(tmp_path, complements=False), lambda v: "")


def test_windows_equal_golden_retrieval(tmp_path):
    """Sequences around sites and their alleles, of either strand, as the fixture has them."""
    folder = golden("tasks/zeroshot_retrieve")
    config = json.loads((folder / "config.json").read_text())
    expected = json.loads((folder / "outputs.json").read_text())
    (tmp_path / "g.fa").write_text("".join(f">{c}\n{s}\n" for c, s in config["fasta"].items()))
    made = Source(genome=str(tmp_path / "g.fa"), window=config["window"], x_col="", mismatch="keep")
    variants = [made.read(one) for one in config["rows"]]
    distance = expected["Distance"]
    assert [v.reference for v in variants] == distance["ref_sequences"]
    assert [v.mutated for v in variants] == distance["mutation_sequences"]
    edits = [v.edits[0] for v in variants]
    assert [edit.reference for edit in edits] == expected["Diff_correct_refs"]
    assert [edit.alternative for edit in edits] == expected["Diff_correct_mutations"]
    site = config["window"]
    masked = [f"{v.reference[:site]}[MASK]{v.reference[site + 1 :]}" for v in variants]
    assert masked == expected["Diff"]["sequences"]
