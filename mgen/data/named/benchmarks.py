"""Benchmarks whose files are put below $MGEN_SHARED/data: one entry each. No torch.

Folders bear the names of the data sets; `source` says where the tables come from. Sets with several
splits or assays have a name for each; the folder's own name is one of them.
"""

from typing import Any

from mgen.data.named.published import (
    AFL,
    CALM_PAPER,
    CC_BY,
    CELL_TYPES,
    CLASSES,
    DEEPLOC_PAPER,
    FUSED,
    GB1_PAPER,
    LANGUAGE,
    MIT,
    NETSURFP_PAPER,
    NUMBERS,
    PAIRS,
    PEER_PAPER,
    PROTEINGYM_PAPER,
    RESIDUES,
    RIBOSOME_PAPER,
    TAPE_PAPER,
    VARIANTS,
    ZHENG_PAPER,
    Entry,
)
from mgen.data.table import Table
from mgen.io.files import SHARED_PREFIX

GPL = "GPL 3.0: of the repository; the measurements are public"
PUBLIC = "unknown: public sequences, the repository states no licence"


def _files(
    name: str,
    file: str,
    facts: tuple[str, str, str, str],
    terms: tuple[str, str, str],
    flags: str = "",
    note: str = "",
    **options: Any,
) -> Entry:
    """A file below $MGEN_SHARED/data. Facts: task, recipe, metric, rows; terms: as of `Entry`.

    It has a column "split" unless the options name another, folds or none.
    """
    start = name.partition("_")[0]
    modality = {"dna": "dna", "rna": "rna", "cells": "cell"}.get(start, "protein")
    group = f"Files below $MGEN_SHARED/data: {modality}"
    table = Table(
        **{"name": name, "path": f"{SHARED_PREFIX}{file}", "split_col": "split", **options}
    )
    return Entry(table, group, modality, *facts, *terms, flags=flags, note=note)


def _cells(name: str, label: str, what: str, rows: str, **options: Any) -> Entry:
    """The cells of one file, with the fixed folds of another."""
    return _files(
        name,
        "cells/pbmc68k_reduced_counts.h5ad",
        (what, CELL_TYPES, "f1", rows),
        (
            "CC BY 4.0: 10x Genomics",
            ZHENG_PAPER,
            "the scanpy 1.11.5 wheel, 10x_pbmc68k_reduced.h5ad",
        ),
        annotations=f"{SHARED_PREFIX}cells/pbmc68k_folds_and_synthetic_layout.tsv",
        x_col="counts",
        y_cols=(label,),
        split_col="",
        folds=5,
        fold_col="fold",
        valid_fold=False,
        **options,
    )


def _gb1(name: str, split: str, rows: str, what: str) -> Entry:
    return _files(
        name,
        "flip_gb1/gb1.csv.gz",
        (f"fitness of GB1 mutants, {what}", NUMBERS, "spearman", rows),
        (
            "CC BY 4.0: the measurements; AFL 3.0: the splits",
            GB1_PAPER,
            "github.com/J-SNACKKB/FLIP, splits/gb1/splits.zip at 62cace8",
        ),
        note="published ridge regressions train on --data.train-split train+valid",
        y_cols=("target",),
        split_col=split,
    )


def _dms(
    name: str, assay: str, rows: str, paper: str, licence: str, source: str, flags: str = ""
) -> Entry:
    folder = "dms_substitutions"
    return _files(
        name,
        f"{folder}/{assay}.csv.gz",
        (f"effect of substitutions, {assay}", VARIANTS, "spearman", rows),
        (licence, f"{paper}; {PROTEINGYM_PAPER}", source),
        flags=flags,
        note="sequence_regression trains on it, in five random folds: weak evidence for a model, "
        "as rows of the same position are in all of them",
        x_col="mutant",
        wild_type=f"{SHARED_PREFIX}{folder}/wildtypes.fasta:{assay}",
        y_cols=("DMS_score",),
        split_col="",
        folds=5,
    )


def _archive(name: str, what: str, rows: str, **options: Any) -> Entry:
    return _files(
        name,
        "rna_secondary_structure_archiveii/archiveii.csv.gz",
        (f"base pairs of structured RNAs, {what}", PAIRS, "f1", rows),
        (
            GPL,
            "Sloma & Mathews 2016, doi:10.1261/rna.053694.115",
            "github.com/sinc-lab/sincFold, data/ArchiveII.csv at 8916bfb",
        ),
        note="435 of the sequences are in rna_secondary_structure_bprna too",
        y_cols=("dot_bracket",),
        group_col="sequence",
        **options,
    )


def _leave_out(family: str) -> Entry:
    others = [other for other in FAMILIES if other != family]
    return _archive(
        f"rna_secondary_structure_archiveii_{family.lower()}",
        f"tested on {family}",
        f"{sum(FAMILIES[other] for other in others):,} / 0 / {FAMILIES[family]:,}",
        split_col="family",
        train_split="+".join(others),
        valid_split="",
        test_split=family,
    )


PROTEIN_BERT = "github.com/nadavbra/protein_bert, protein_benchmarks/{}.*.csv at 83198c9"
DEEP_PROTEIN = "github.com/jiaqingxie/DeepProtein, DeepProtein/data/{} at e8bb261"
PEER_TERMS = "MIT: of the packaging; sequences CC BY 4.0"
MASKED = "--mask-col mask --mask-keep R"
AS_FASTA = 'zcat {0} | awk -F, \'NR>1 {{print ">"$1"\\n"$7}}\' > {1}.fasta'
ESM, DEEP_SEQUENCE, NN4DMS, BIOTRAINER = (
    "github.com/facebookresearch/esm, examples/variant-prediction/data at 2b36991",
    "github.com/debbiemarkslab/DeepSequence, examples/mutations at fd5c272",
    "github.com/gitter-lab/nn4dms, data/pab1 at 434e354",
    "github.com/sacdallago/biotrainer, test files at 8c9dc18",
)
BLAT = (
    "BLAT_ECOLX_Stiffler_2015",
    "4,996",
    "Stiffler et al. 2015, doi:10.1016/j.cell.2015.01.035",
    MIT,
    ESM,
)
TWO_VS_REST = ("two_vs_rest", "381 / 43 / 8,309", "trained on at most doubles")
FAMILIES = {"16s": 66, "23s": 15, "5s": 1283, "srp": 918, "tRNA": 557, "tmRNA": 462}  # rows
NO_SPLITS = {"split_col": "", "y_cols": ()}

BENCHMARKS = (
    _cells("cells_pbmc68k", "bulk_labels", "type of blood cells, ten classes", "700"),
    _cells(
        "cells_pbmc68k_niche",
        "niche_label",
        "niche of the same cells in a made-up tissue, five classes",
        "700",
        neighbours=10,
        position_cols=("x", "y"),
        note="the places are simulated: for trying spatial code out",
        flags="--backbone aido_tissue_3m",
    ),
    _gb1("flip_gb1", *TWO_VS_REST),
    _gb1("flip_gb1_one_vs_rest", "one_vs_rest", "25 / 3 / 8,705", "trained on singles"),
    _gb1("flip_gb1_two_vs_rest", *TWO_VS_REST),
    _gb1(
        "flip_gb1_three_vs_rest",
        "three_vs_rest",
        "2,691 / 299 / 5,743",
        "trained on at most triples",
    ),
    _gb1(
        "flip_gb1_low_vs_high",
        "low_vs_high",
        "4,580 / 509 / 3,644",
        "trained on those below wild type",
    ),
    _gb1("flip_gb1_sampled", "sampled", "6,289 / 699 / 1,745", "at random: not to compare models"),
    _files(
        "flip_secondary_structure",
        "flip_secondary_structure/secondary_structure.csv.gz",
        ("helix, strand or coil of each residue", RESIDUES, "accuracy", "9,712 / 1,080 / 364"),
        (
            AFL,
            NETSURFP_PAPER,
            "github.com/J-SNACKKB/FLIP, splits/secondary_structure/splits.zip at 62cace8",
        ),
        flags=MASKED,
        y_cols=("ss3",),
    ),
    _files(
        "tape_stability",
        "tape_stability/stability.csv.gz",
        ("stability of designed proteins", NUMBERS, "spearman", "53,614 / 2,512 / 12,851"),
        (
            MIT,
            f"Rocklin et al. 2017, doi:10.1126/science.aan0693; {TAPE_PAPER}",
            PROTEIN_BERT.format("stability"),
        ),
        y_cols=("stability_score",),
    ),
    _files(
        "tape_fluorescence",
        "tape_fluorescence/fluorescence.csv.gz",
        ("brightness of GFP mutants", NUMBERS, "spearman", "21,446 / 5,362 / 27,217"),
        (
            "MIT: of the tables; measurements CC BY",
            f"Sarkisyan et al. 2016, doi:10.1038/nature17995; {TAPE_PAPER}",
            "github.com/gitter-lab/nn4dms, data/avgfp/avgfp.tsv at 434e354, split as in "
            + PROTEIN_BERT.format("fluorescence"),
        ),
        note="a ridge regression on mutations does as well as the published Transformer: weak "
        "evidence for a model",
        x_col="variant",
        wild_type=f"{SHARED_PREFIX}tape_fluorescence/wildtype.fasta",
        first_position=0,
        y_cols=("log_fluorescence",),
    ),
    _files(
        "tape_remote_homology",
        "tape_remote_homology/remote_homology.csv.gz",
        ("fold of a domain, 1,195 classes", CLASSES, "accuracy", "12,312 / 736 / 718"),
        (
            MIT,
            f"Hou et al. 2018, doi:10.1093/bioinformatics/btx780; {TAPE_PAPER}",
            PROTEIN_BERT.format("remote_homology"),
        ),
        y_cols=("fold_label",),
    ),
    _files(
        "signal_peptide",
        "signal_peptide/signal_peptide.csv.gz",
        ("has a signal peptide", CLASSES, "auroc", "16,606 / 0 / 4,152"),
        (
            MIT,
            "Almagro Armenteros et al. 2019, doi:10.1038/s41587-019-0036-z",
            PROTEIN_BERT.format("signalP_binary"),
        ),
        valid_split="",
    ),
    _files(
        "deeploc_binary",
        "deeploc_binary/deeploc_binary.csv.gz",
        ("soluble or bound to a membrane", CLASSES, "accuracy", "5,184 / 1,729 / 1,749"),
        (
            PEER_TERMS,
            f"{DEEPLOC_PAPER}; {PEER_PAPER}",
            DEEP_PROTEIN.format("subcellular_localization_2"),
        ),
        note="38 sequences occur twice, none in both training and test",
    ),
    _files(
        "deeploc_10class",
        "deeploc_10class/deeploc_10class.csv.gz",
        ("place in the cell, 10 classes", CLASSES, "accuracy", "2,811 / 0 / 2,773"),
        (
            PEER_TERMS,
            f"{DEEPLOC_PAPER}; {PEER_PAPER}",
            DEEP_PROTEIN.format("subcellular_localization"),
        ),
        note="a third of the published training rows: figures compare with each other alone",
        y_cols=("location",),
        train_split="train_small",
        valid_split="",
    ),
    _files(
        "ppi_affinity",
        "ppi_affinity/ppi_affinity.csv.gz",
        ("binding energy of two proteins, kcal/mol", FUSED, "rmse", "2,421 / 203 / 326"),
        (
            MIT,
            f"Jankauskaite et al. 2019, doi:10.1093/bioinformatics/bty635; {PEER_PAPER}",
            DEEP_PROTEIN.format("ppi_affinity"),
        ),
        flags="--x-cols sequence_2 --backbone1 esm2_8m",
        x_col="sequence_1",
        y_cols=("dG_kcal_per_mol",),
    ),
    _dms("dms_substitutions", *BLAT),
    _dms("dms_substitutions_blat", *BLAT),
    _dms(
        "dms_substitutions_dlg4",
        "DLG4_RAT_McLaughlin_2012",
        "1,577",
        "McLaughlin et al. 2012, doi:10.1038/nature11500",
        MIT,
        DEEP_SEQUENCE,
    ),
    _dms(
        "dms_substitutions_pabp",
        "PABP_YEAST_Melamed_2013",
        "13,244",
        "Melamed et al. 2013, doi:10.1261/rna.040709.113",
        MIT,
        NN4DMS,
        flags="--indels skip",  # 1,010 rows have a stop
    ),
    _dms(
        "dms_substitutions_b2l11",
        "B2L11_HUMAN_Dutta_2010_binding-Mcl-1",
        "170",
        "Dutta et al. 2010, doi:10.1016/j.jmb.2010.03.058",
        MIT,
        BIOTRAINER,
    ),
    _files(
        "dms_indels",
        "dms_indels/A4_HUMAN_Seuma_2022_indels.csv.gz",
        ("nucleation of amyloid beta mutants", VARIANTS, "spearman", "2,346"),
        (
            MIT,
            f"Seuma et al. 2022, doi:10.1038/s41467-022-34742-3; {PROTEINGYM_PAPER}",
            "github.com/BEBlab/DIM-abeta, MS_BL_BB_indels_processed_data.tsv at 04ad846",
        ),
        flags="--strategy pseudo-perplexity",
        note="sequence_regression trains on it, in five random folds",
        x_col="mutated_region",
        wild_type=f"{SHARED_PREFIX}dms_indels/wildtype.fasta:Abeta42",
        y_cols=("DMS_score",),
        split_col="",
        folds=5,
    ),
    _files(
        "corpus_protein_swissprot",
        "corpus_protein_swissprot/swissprot_virus_archaea_mito.fasta.gz",
        ("no labels: proteins of viruses, archaea, mitochondria", LANGUAGE, "accuracy", "8,595"),
        (
            CC_BY,
            "UniProt Consortium 2023, doi:10.1093/nar/gkac1052",
            "github.com/tseemann/prokka, db/kingdom/*/sprot at 851237b",
        ),
        flags="--backbone.truncate window",
        **NO_SPLITS,
    ),
    _files(
        "dna_promoter_ecoli",
        "dna_promoter_ecoli/promoter_ecoli.csv.gz",
        ("sigma 70 promoters of E. coli, 81 bp", CLASSES, "mcc", "3,839"),
        (
            "unknown: paper CC BY, the repository states no licence",
            "Umarov & Solovyev 2017, doi:10.1371/journal.pone.0171410",
            "github.com/solovictor/CNNPromoterData at b4d2949",
        ),
    ),
    _files(
        "dna_promoter_human_tata",
        "dna_promoter_human_tata/promoter_human_tata.csv.gz",
        ("human TATA promoters against shuffled ones, 300 bp", CLASSES, "mcc", "5,858"),
        (
            MIT,
            "Oubounyt et al. 2019, doi:10.3389/fgene.2019.00286",
            "github.com/egochao/DeePromoter, data/human/TATA at 4279eba; negatives made anew",
        ),
        note="6-mers do as well as published models: weak evidence for a model",
    ),
    _files(
        "dna_enhancer",
        "dna_enhancer/enhancer.csv.gz",
        ("human enhancers, 200 bp", CLASSES, "accuracy", "2,968 / 0 / 400"),
        (
            PUBLIC,
            "Liu et al. 2016, doi:10.1093/bioinformatics/btv604",
            "github.com/khanhlee/bert-enhancer, data at 421b25f",
        ),
        note="leak as published: 100 of the 400 test sequences are in training too",
        valid_split="",
    ),
    _files(
        "dna_splice_junction",
        "dna_splice_junction/splice_junction.csv.gz",
        ("splice donors, acceptors and neither, 60 bp", CLASSES, "accuracy", "3,190"),
        (
            CC_BY,
            "UCI Machine Learning Repository, Molecular Biology (Splice-junction Gene Sequences)",
            "github.com/renatopp/arff-datasets, classification/splice.arff at c59f172",
        ),
        flags="--backbone.unknown token",
        note="logistic regression reaches 0.96: weak evidence for a model",
    ),
    _files(
        "dna_promoter_expression_yeast",
        "dna_promoter_expression_yeast/expression.csv.gz",
        ("expression by random yeast promoters", NUMBERS, "pearson", "5,733"),
        (
            MIT,
            "Rafi et al. 2024, doi:10.1038/s41587-024-02414-w",
            "github.com/de-Boer-Lab/random-promoter-dream-challenge-2022, data/demo_train.txt at "
            "f7b2e19",
        ),
        y_cols=("expression",),
    ),
    _files(
        "dna_mpra_saturation",
        "dna_mpra_saturation/variants.csv.gz",
        ("effect of variants of 13 regulatory elements", VARIANTS, "pearson", "19,110"),
        (
            CC_BY,
            "Kircher et al. 2019, doi:10.1038/s41467-019-11526-w",
            "github.com/kircherlab/MPRA_SaturationMutagenesis, data/elements.tsv.gz at c5cadb4",
        ),
        flags="--genome elements.fasta --chrom-col element --start-col offset --alt-col alt "
        "--indels skip",
        note="the sequences are in another file: " + AS_FASTA.format("elements.csv.gz", "elements"),
        x_col="",
        y_cols=("effect",),
        split_col="",
    ),
    _files(
        "dna_variants_brca1",
        "dna_variants_brca1/variants.csv.gz",
        ("variants of BRCA1 that lose function", VARIANTS, "auroc", "2,992"),
        (
            "Apache 2.0: of the repository",
            "Findlay et al. 2018, doi:10.1038/s41586-018-0461-z",
            "github.com/ArcInstitute/evo2, notebooks/brca1 at 53f1959",
        ),
        flags="--genome windows.fasta --chrom-col window --start-col offset --alt-col alt "
        "--positive LOF --negate",
        note="the sequences are in another file: " + AS_FASTA.format("windows.csv.gz", "windows"),
        x_col="",
        y_cols=("func_class",),
        split_col="",
    ),
    _files(
        "dna_genomes",
        "dna_genomes",
        ("no labels: phages, mitochondria, a bacterium", LANGUAGE, "accuracy", "46 contigs"),
        (
            "unknown: GenBank records",
            "GenBank, the accessions of the records",
            "github.com/BenLangmead/bowtie2, ArcInstitute/evo2, lh3/minimap2, tseemann/abricate",
        ),
        flags="--backbone.truncate window",
        **NO_SPLITS,
    ),
    _archive(
        "rna_secondary_structure_archiveii",
        "random splits; equal sequences stay together",
        f"{sum(FAMILIES.values()):,}",
        split_col="",
    ),
    *(_leave_out(family) for family in FAMILIES),
    _files(
        "rna_secondary_structure_bprna",
        "rna_secondary_structure_bprna/bprna.csv.gz",
        ("base pairs of RNAs", PAIRS, "f1", "9,232 / 1,154 / 697"),
        (
            "Apache 2.0",
            "Danaee et al. 2018, doi:10.1093/nar/gky285",
            "github.com/COLA-Laboratory/OmniGenBench, examples/RGB/RNA-SSP-bpRNA at ba160d1",
        ),
        flags="--backbone.unknown token",
        note="a random split of bpRNA, not TR0, VL0 and TS0; lengths up to 3,716",
        y_cols=("dot_bracket",),
    ),
    _files(
        "rna_ncrna_family",
        "rna_ncrna_family/ncrna_family.csv.gz",
        ("family of a non-coding RNA, 13 classes", CLASSES, "accuracy", "5,670 / 650 / 2,600"),
        (
            GPL,
            "Fiannaca et al. 2017, doi:10.1186/s13040-017-0148-2",
            "github.com/IcarPA-TBlab/nrc, data/ECCB2017 at fc89b13",
        ),
        flags="--backbone.unknown token",
        note="leak as published: 347 test sequences are in training or validation too",
        y_cols=("family",),
    ),
    _files(
        "rna_mean_ribosome_load",
        "rna_mean_ribosome_load/mrl.csv.gz",
        ("ribosomes on an mRNA by its 5' UTR", NUMBERS, "spearman", "12,000 / 2,000 / 2,000"),
        (
            GPL,
            RIBOSOME_PAPER,
            "github.com/deepomicslab/Smart5UTR, fig_scripts at 0085dd6 (GEO GSE114002)",
        ),
        x_col="utr",
        y_cols=("mean_ribosome_load",),
    ),
    _files(
        "rna_protein_abundance_ecoli",
        "rna_protein_abundance_ecoli/protein_abundance.csv.gz",
        ("abundance of E. coli proteins by their CDS", NUMBERS, "spearman", "3,627, 5 folds"),
        ("BSD 3", CALM_PAPER, "github.com/oxpig/CaLM, data/protein_abundance/ecoli.csv at 24187ea"),
        note="skewed: ppm from 0 to 82,534, not logarithms",
        x_col="cds",
        y_cols=("abundance",),
        id_col="gene_id",
        split_col="",
        folds=5,
        fold_col="fold",
    ),
    _files(
        "rna_transcript_abundance_hvolcanii",
        "rna_transcript_abundance_hvolcanii/transcript_abundance.csv.gz",
        ("log TPM of H. volcanii transcripts by CDS", NUMBERS, "spearman", "3,189, 5 folds"),
        (
            "BSD 3",
            CALM_PAPER,
            "github.com/oxpig/CaLM, data/transcript_abundance/hvolcanii.csv at 24187ea",
        ),
        x_col="cds",
        y_cols=("logtpm",),
        id_col="gene_id",
        split_col="",
        folds=5,
        fold_col="fold",
    ),
)
