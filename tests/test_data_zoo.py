"""Named data sets: the published ones are all there, open with the published sizes, and run."""

import importlib.util
import re
import shlex
import sys

import numpy as np
import pytest
from conftest import ROOT

from mgen.config import InputError, parse
from mgen.data import table
from mgen.data.zoo import ZOO

NT = """enhancers promoter_all promoter_tata promoter_no_tata enhancers_types splice_sites_all
splice_sites_acceptor splice_sites_donor H3 H4 H3K9ac H3K14ac H4ac H3K4me1 H3K4me2 H3K4me3 H3K36me3
H3K79me3"""
GUE = """emp_H3 emp_H3K14ac emp_H3K36me3 emp_H3K4me1 emp_H3K4me2 emp_H3K4me3 emp_H3K79me3 emp_H3K9ac
emp_H4 emp_H4ac human_tf_0 human_tf_1 human_tf_2 human_tf_3 human_tf_4 mouse_0 mouse_1 mouse_2
mouse_3 mouse_4 prom_300_all prom_300_notata prom_300_tata prom_core_all prom_core_notata
prom_core_tata splice_reconstructed virus_covid virus_species_40 fungi_species_20 EPI_K562
EPI_HeLa-S3 EPI_NHEK EPI_IMR90 EPI_HUVEC"""
RNA = """translation_efficiency_Muscle translation_efficiency_HEK translation_efficiency_pc3
expression_Muscle expression_HEK expression_pc3 transcript_abundance_athaliana
transcript_abundance_dmelanogaster transcript_abundance_ecoli transcript_abundance_hsapiens
transcript_abundance_hvolcanii transcript_abundance_ppastoris transcript_abundance_scerevisiae
protein_abundance_athaliana protein_abundance_dmelanogaster protein_abundance_ecoli
protein_abundance_hsapiens protein_abundance_scerevisiae ncrna_family_bnoise0
ncrna_family_bnoise200 splice_site_acceptor splice_site_donor modification_site
mean_ribosome_load"""
PROTEIN_LM = """contact_prediction_binary ssp_q3 fold_prediction localization_prediction
metal_ion_binding solubility_prediction antibiotic_resistance cloning_clf material_production
tcr_pmhc_affinity peptide_HLA_MHC_affinity temperature_stability fluorescence_prediction
fitness_prediction stability_prediction enzyme_catalytic_efficiency optimal_temperature
optimal_ph"""
GENBIO = """contact_prediction_binary_rag ssp_q3_rag fold_prediction_rag fluorescence_prediction_rag
ProteinGYM-DMS ProteinGYM-DMS-RAG 100M-random-promoters Clinvar
cell-downstream-tasks/zheng cell-downstream-tasks/Segerstolpe cell-downstream-tasks/clocks
tissue-downstream-tasks/niche_type_classification tissue-downstream-tasks/cell_density
transcript_isoform_expression_prediction casp14-casp15-cameo-test-proteins"""

# Rows of the README of each folder: training, validation, test. Where it states no validation rows,
# ours are cut from those of training; a single number is stated for all rows together.
STATED = {
    "flip_gb1_one_vs_rest": (25, 3, 8705),
    "flip_gb1_two_vs_rest": (381, 43, 8309),
    "flip_gb1_three_vs_rest": (2691, 299, 5743),
    "flip_gb1_low_vs_high": (4580, 509, 3644),
    "flip_gb1_sampled": (6289, 699, 1745),
    "flip_gb1": (381, 43, 8309),
    "flip_secondary_structure": (9712, 1080, 364),
    "tape_stability": (53614, 2512, 12851),
    "tape_fluorescence": (21446, 5362, 27217),
    "tape_remote_homology": (12312, 736, 718),
    "signal_peptide": (16606, None, 4152),
    "deeploc_binary": (5184, 1729, 1749),
    "deeploc_10class": (2811, None, 2773),
    "ppi_affinity": (2421, 203, 326),
    "dms_substitutions": 4996,
    "dms_substitutions_blat": 4996,
    "dms_substitutions_dlg4": 1577,
    "dms_substitutions_pabp": 13244,
    "dms_substitutions_b2l11": 170,
    "dms_indels": 2346,
    "corpus_protein_swissprot": 8595,
    "dna_promoter_ecoli": 839 + 3000,
    "dna_promoter_human_tata": 5858,
    "dna_enhancer": (2 * 1484, None, 400),
    "dna_splice_junction": 767 + 768 + 1655,
    "dna_promoter_expression_yeast": 5733,
    "dna_mpra_saturation": 19110,
    "dna_variants_brca1": 2992,
    "dna_genomes": 4 + 42,
    "rna_secondary_structure_archiveii": 3301,
    "rna_secondary_structure_archiveii_5s": (3301 - 1283, None, 1283),
    "rna_secondary_structure_archiveii_srp": (3301 - 918, None, 918),
    "rna_secondary_structure_archiveii_trna": (3301 - 557, None, 557),
    "rna_secondary_structure_archiveii_tmrna": (3301 - 462, None, 462),
    "rna_secondary_structure_archiveii_16s": (3301 - 66, None, 66),
    "rna_secondary_structure_archiveii_23s": (3301 - 15, None, 15),
    "rna_secondary_structure_bprna": (9232, 1154, 697),
    "rna_ncrna_family": (5670, 650, 2600),
    "rna_mean_ribosome_load": (12000, 2000, 2000),
    "rna_protein_abundance_ecoli": 3627,
    "rna_transcript_abundance_hvolcanii": 3189,
}
COMMANDS = {(entry.recipe, entry.flags): entry for entry in ZOO.values()}


# --------------------------------------------------------------------------- the names


@pytest.mark.parametrize(
    ("hub", "subsets"),
    [
        ("InstaDeepAI/nucleotide_transformer_downstream_tasks", NT),
        ("leannmlindsey/GUE", GUE),
        ("genbio-ai/rna-downstream-tasks", RNA),
    ],
)
def test_every_configuration_of_a_published_benchmark_has_a_name(hub, subsets):
    tables = [entry.table for entry in ZOO.values() if entry.table.path == hub]
    named = [table.subset or table.only[0].removeprefix("task=") for table in tables]
    assert sorted(named) == sorted(subsets.split())


@pytest.mark.parametrize(("owner", "names"), [("proteinglm", PROTEIN_LM), ("genbio-ai", GENBIO)])
def test_every_published_repository_has_a_name(owner, names):
    paths = {entry.table.path.removeprefix("hf://datasets/") for entry in ZOO.values()}
    for name in names.split():
        assert any(re.match(rf"{owner}/{name}(/|$)", path) for path in paths)


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_an_entry_says_what_it_is(entry):
    assert re.fullmatch(r"[a-z][a-z0-9_]+", entry.name)
    assert all((entry.task, entry.metric, entry.licence, entry.citation, entry.place))
    assert (ROOT / "recipes" / f"{entry.recipe}.py").is_file()
    assert len(entry.task) <= 80
    if entry.table.path.startswith("shared:"):
        assert entry.source and entry.rows


@pytest.mark.parametrize("entry", COMMANDS.values(), ids=lambda entry: entry.name)
def test_the_command_of_an_entry_is_one_that_its_recipe_takes(entry):
    _, recipe, *flags = shlex.split(entry.command)
    spec = importlib.util.spec_from_file_location(f"zoo_{entry.recipe}", ROOT / recipe)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    config, _ = parse(module.Config(), None, flags, prog="recipe")
    assert config.data.path == entry.table.path


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'tape_stability'"):
        table("tape_stabilty")


# --------------------------------------------------------------------------- their files


def test_every_folder_of_the_index_has_a_name_and_a_size(shared):
    text = (shared / "data" / "INDEX_benchmarks.md").read_text()
    folders = re.findall(r"(?m)^\| (\w+) \|", text)[1:]  # without the header
    assert len(folders) == 26
    assert {*folders} <= {*ZOO} & {*STATED}


@pytest.mark.parametrize("name", STATED)
def test_a_set_opens_by_name_with_the_sizes_its_readme_states(shared, monkeypatch, name):
    monkeypatch.setenv("MGEN_SHARED", str(shared))
    rows, stated = table(name).open(), STATED[name]
    sizes = {split: len(found) for split, found in rows.splits.items()}
    assert all(sizes.values())
    if isinstance(stated, int):
        assert sum(sizes.values()) == len(rows) == stated
    elif stated[1] is None:
        assert (sizes["train"] + sizes["valid"], sizes["test"]) == (stated[0], stated[2])
    else:
        assert tuple(sizes.values()) == stated


@pytest.mark.parametrize("name", STATED)
def test_the_listing_states_the_sizes_of_the_readme(name):
    stated, listed = STATED[name], ZOO[name].rows
    if isinstance(stated, int):
        assert re.match(r"[\d,]+\d", listed)[0] == f"{stated:,}"
    else:
        assert listed == " / ".join(f"{count or 0:,}" for count in stated)


def test_mutations_of_tape_fluorescence_count_from_0(shared, monkeypatch):
    monkeypatch.setenv("MGEN_SHARED", str(shared))
    rows = table("tape_fluorescence").open()
    texts = rows.values("given_variant")
    wild_type = rows.take([texts.index("WT")])[0]["variant"]
    mutant = rows.take([texts.index("A108D")])[0]["variant"]
    assert len(wild_type) == 237
    assert mutant == wild_type[:108] + "D" + wild_type[109:]
    assert wild_type[108] == "A"


def test_absent_files_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))
    with pytest.raises(InputError, match="mgen show data") as raised:
        table("tape_stability").open()
    assert str(tmp_path / "data" / "tape_stability" / "stability.csv.gz") in str(raised.value)


def test_an_absent_wild_type_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))
    given = table("dms_substitutions", path="bundled:dms_tiny.tsv.gz", y_cols=("label",))
    with pytest.raises(InputError, match="mgen show data") as raised:
        given.open()
    assert str(tmp_path / "data" / "dms_substitutions" / "wildtypes.fasta") in str(raised.value)


# --------------------------------------------------------------------------- splits of loaders


def write(path, columns, rows):
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_assays_are_folded_as_published_and_nothing_is_carved(tmp_path):
    rows = [["ACD", i, i % 5] for i in range(20)]
    file = write(tmp_path / "assay.tsv", ["sequences", "labels", "fold_id"], rows)
    opened = table("proteingym_indels", path=file, fold=0).open()
    folds = np.array([row[2] for row in rows])
    for split, wanted in {"train": [1, 2, 3], "valid": [4], "test": [0]}.items():
        np.testing.assert_array_equal(opened.splits[split], np.flatnonzero(np.isin(folds, wanted)))


def test_translation_is_validated_on_the_fold_after_that_of_the_test(tmp_path):
    rows = [["ACG", i, i % 10] for i in range(20)]
    file = write(tmp_path / "te.tsv", ["sequences", "labels", "fold_id"], rows)
    opened = table("translation_efficiency_hek", path=file, fold=9).open()
    assert opened.splits["test"].tolist() == [9, 19]
    assert opened.splits["valid"].tolist() == [0, 10]
    assert len(opened.splits["train"]) == 16


@pytest.mark.parametrize(
    ("name", "columns", "sizes"),
    [
        ("gue_emp_h3", ["sequence", "label"], (18, 2, 5)),  # a tenth of training validates
        ("fluorescence_prediction", ["seq", "label"], (18, 2, 5)),  # though there are valid rows
        ("contact_prediction_binary", ["seq", "label"], (20, 3, 5)),
    ],
)
def test_validation_rows_are_those_of_the_published_loader(tmp_path, name, columns, sizes):
    for split, count in {"train": 20, "valid": 3, "test": 5}.items():
        write(tmp_path / f"{split}.tsv", columns, [["ACG", i] for i in range(count)])
    opened = table(name, path=str(tmp_path), subset="").open()
    assert tuple(len(found) for found in opened.splits.values()) == sizes


def test_a_task_of_one_table_of_many_has_its_rows_alone(tmp_path):
    for split, count in {"train": 20, "test": 5}.items():
        rows = [["ACG", i, task] for i in range(count) for task in ("enhancers", "H3")]
        write(tmp_path / f"{split}.tsv", ["sequence", "label", "task"], rows)
    opened = table("nt_enhancers", path=str(tmp_path)).open()
    assert tuple(len(found) for found in opened.splits.values()) == (18, 2, 5)
    used = np.concatenate([*opened.splits.values()])
    assert {row["task"] for row in opened.take(used)} == {"enhancers"}
    assert opened.plan.startswith("only task=enhancers; ") and "25 unused" in opened.plan


def test_isoforms_train_on_several_files(tmp_path):
    columns = ["dna_seq", "rna_seq", "protein_seq", *(f"labels_{i}" for i in range(30))]
    for stem, count in {"train_0": 3, "train_1": 4, "validation": 2, "test": 1}.items():
        write(tmp_path / f"{stem}.tsv", columns, [["ACG", "ACG", "NA", *range(30)]] * count)
    opened = table("isoform_expression", path=str(tmp_path)).open()
    assert tuple(len(found) for found in opened.splits.values()) == (7, 2, 1)
    assert opened.take([0])[0]["protein_seq"] == "NA"  # a dipeptide, not a missing value
