"""Published data sets: one line of facts each. No torch.

Facts are those of the published loaders, hub pages and papers; "" and "unknown" are not known here.
Sets of the hub are read at `main`: no commit of any of them is pinned. Files of the others belong
into $MGEN_SHARED/data/<folder>; `source` says where they come from.
"""

from dataclasses import dataclass, replace
from typing import Any

from mgen.data.sources.places import BUNDLED_PREFIX
from mgen.data.table import Table
from mgen.io.files import SHARED_PREFIX

# Licences: what listings show, then the rest of it.
APACHE, MIT, CC_BY = "Apache 2.0", "MIT", "CC BY 4.0"
AFL = "AFL 3.0: of the split files"
UNKNOWN = "unknown"

CALM_PAPER = "Outeiral & Deane 2024, doi:10.1038/s42256-024-00791-0"
CLINVAR_PAPER = "Landrum et al. 2018, doi:10.1093/nar/gkx1153"
DEEPLOC_PAPER = "Almagro Armenteros et al. 2017, doi:10.1093/bioinformatics/btx431"
FLIP_PAPER = "Dallago et al. 2021, doi:10.1101/2021.11.09.467890"
GB1_PAPER = f"Wu et al. 2016, doi:10.7554/eLife.16965; {FLIP_PAPER}"
GUE_PAPER = "Zhou et al. 2023, arXiv:2306.15006"
ISOFORM_PAPER = "Garau-Luis et al. 2024, arXiv:2406.14150"
MODIFICATION_PAPER = "Song et al. 2021, doi:10.1038/s41467-021-24313-3"
NETSURFP_PAPER = f"Klausen et al. 2019, doi:10.1002/prot.25674; {FLIP_PAPER}"
NT_PAPER = "Dalla-Torre et al. 2024, doi:10.1038/s41592-024-02523-z"
PEER_PAPER = "Xu et al. 2022, arXiv:2206.02096"
PROMOTERS_PAPER = "de Boer et al. 2020, doi:10.1038/s41587-019-0315-8"
PROTEINGYM_PAPER = "Notin et al. 2023, doi:10.1101/2023.12.07.570727"
RAG_PAPER = "Li et al. 2024, doi:10.1101/2024.12.02.626519"
RIBOSOME_PAPER = "Sample et al. 2019, doi:10.1038/s41587-019-0164-5"
SPLICEATOR_PAPER = "Scalzitti et al. 2021, doi:10.1186/s12859-021-04471-3"
TAPE_PAPER = "Rao et al. 2019, arXiv:1906.08230"
TOKENIZER_PAPER = "Zhang et al. 2024, doi:10.1101/2024.12.02.626366"
UNI_RNA_PAPER = "Wang et al. 2023, doi:10.1101/2023.07.11.548588"
UTR_PAPER = "Chu et al. 2024, doi:10.1038/s42256-024-00823-9"
XTRIMO_PAPER = "Chen et al. 2024, arXiv:2401.06199"
ZHENG_PAPER = "Zheng et al. 2017, doi:10.1038/ncomms14049"


@dataclass(frozen=True)
class Entry:
    """A named data set: its settings, and what is known about it.

    `task` is in words, of which `recipe` runs it, with `flags` where it needs more than its name;
    `rows` are those published as training, validation and test rows, or their number.
    """

    table: Table
    group: str
    modality: str
    task: str
    recipe: str
    metric: str
    rows: str
    licence: str
    citation: str
    source: str = ""
    flags: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def place(self) -> str:
        """Where its files are, for people."""
        path = self.table.path
        if path.startswith(BUNDLED_PREFIX):
            return "a file of the package"
        if path.startswith(SHARED_PREFIX):
            return f"$MGEN_SHARED/data/{path.removeprefix(SHARED_PREFIX)}"
        owner, name = path.removeprefix("hf://datasets/").split("/")[:2]
        return f"https://huggingface.co/datasets/{owner}/{name}"

    @property
    def command(self) -> str:
        named = "" if "--backbone " in self.flags else f"--backbone {EXAMPLES[self.modality]}"
        return " ".join(
            f"python recipes/{self.recipe}.py --data {self.name} {named} {self.flags}".split()
        )


EXAMPLES = {
    "dna": "aido_dna_300m",
    "rna": "aido_rna_1m_mars",
    "protein": "esm2_8m",
    "cell": "aido_cell_3m",
}
CLASSES, NUMBERS = "sequence_classification", "sequence_regression"
CELL_TYPES, CELL_NUMBERS, EMBED = "cell_classification", "cell_regression", "embed"
RESIDUES, PAIRS = "token_classification", "pairwise_classification"
VARIANTS, FUSED, LANGUAGE = (
    "zero_shot_variants",
    "multimodal_regression",
    "masked_language_modeling",
)

# Splits of the published loaders: a tenth of the training rows validates, unless more is said.
CARVED = {"valid_split": ""}
NAMED = {"valid_split": "validation"}
FOLDS = {"fold_col": "fold_id", **CARVED, "test_split": ""}
PROTEIN_LM = {"x_col": "seq", **CARVED}
ALIGNED = {"msa_col": "msa", "structure_col": "str_emb", "msa_tokens": 12800}
PLURAL = {"x_col": "sequences", "y_cols": ("labels",)}  # names of columns


# --------------------------------------------------------------------------- of the hub


def _nt(task: str, what: str) -> Entry:
    hub = "InstaDeepAI/nucleotide_transformer_downstream_tasks"
    table = Table(name=f"nt_{task.lower()}", path=hub, only=(f"task={task}",), **CARVED)
    group = "Nucleotide Transformer benchmark"
    return Entry(table, group, "dna", what, CLASSES, "mcc", "", UNKNOWN, NT_PAPER, note=ONE_TABLE)


def _gue(task: str, what: str) -> Entry:
    name = f"gue_{task.lower().replace('-', '_')}"
    table = Table(name=name, path="leannmlindsey/GUE", subset=task, **CARVED)
    return Entry(table, "GUE", "dna", what, CLASSES, "mcc", "", UNKNOWN, GUE_PAPER)


def _protein_lm(
    name: str,
    what: str,
    recipe: str,
    metric: str,
    rows: str = "",
    licence: str = APACHE,
    note: str = "",
    **options: Any,
) -> Entry:
    table = Table(**{"name": name.lower(), "path": f"proteinglm/{name}", **PROTEIN_LM, **options})
    return Entry(
        table,
        "xTrimoPGLM benchmark",
        "protein",
        what,
        recipe,
        metric,
        rows,
        licence,
        XTRIMO_PAPER,
        note=note,
    )


def _proteingym(name: str, assay: str, what: str) -> Entry:
    options = {**PLURAL, **FOLDS, "folds": 5, "valid_fold_offset": -1}
    return Entry(
        Table(name=name, path=f"{PROTEINGYM}/{{subset}}.tsv", subset=assay, **options),
        "ProteinGym, supervised",
        "protein",
        what,
        NUMBERS,
        "spearman",
        "5 folds",
        "MIT: of ProteinGym",
        PROTEINGYM_PAPER,
        note="--data.subset indels/DMS_ID, singles_substitutions/DMS_ID or "
        "multiples_substitutions/DMS_ID is any other assay",
    )


def _with_alignments(entry: Entry, path: str, note: str) -> Entry:
    """The twin of a set of proteins that has an alignment and a structure for every row."""
    return replace(
        entry,
        table=replace(entry.table, name=f"{entry.name}_rag", path=path, **ALIGNED),
        group="With alignments, for AIDO.Protein-RAG",
        task=f"{entry.task}, with alignments",
        licence=UNKNOWN,
        citation=f"{entry.citation}; {RAG_PAPER}",
        note=note,
    )


def _rna(
    subset: str,
    what: str,
    recipe: str,
    metric: str,
    rows: str,
    citation: str,
    flags: str = "",
    note: str = "",
    **options: Any,
) -> Entry:
    hub, group = "genbio-ai/rna-downstream-tasks", "RNA benchmark of AIDO.RNA"
    table = Table(**{"name": subset.lower(), "path": hub, "subset": subset, **PLURAL, **options})
    terms = (UNKNOWN, citation)
    return Entry(table, group, "rna", what, recipe, metric, rows, *terms, flags=flags, note=note)


def _rna_folds(subset: str, what: str, folds: int, citation: str) -> Entry:
    options = {**FOLDS, "folds": folds}
    return _rna(subset, what, NUMBERS, "spearman", f"{folds} folds", citation, **options)


def _struct_tokens(target: str, rows: str) -> Entry:
    hub = "genbio-ai/casp14-casp15-cameo-test-proteins"
    table = Table(
        name=f"structure_tokens_{target}",
        path=hub,
        subset=f"petal_struct_token_{target}",
        x_col="aa_seq",
        y_cols=("struct_seq",),
        id_col="idx",
        train_split="",
        valid_split="",
    )
    what = f"structure tokens of the proteins of {target.upper()}"
    flags = "--backbone aido_protein2structoken_16b --train.batch-size 1"
    terms = (UNKNOWN, TOKENIZER_PAPER)
    return Entry(
        table,
        "Structure tokens",
        "protein",
        what,
        "token_probabilities",
        "accuracy",
        rows,
        *terms,
        flags=flags,
    )


NEEDS_ALIGNMENTS = (
    "its Parquet files are as large as those without alignments: see its page for how the columns "
    "msa and str_emb are added"
)
ONE_TABLE = "all 18 tasks are one table, whose column `task` names that of a row"
VALID_IS_TEST = (
    "the published run validates on the test fold: --data.valid-fold-offset 0; that its files are "
    "named as those of ProteinGYM-DMS was not checked"
)
HAS_VALID = "its valid rows stay unused, as in the published loader; --data.valid-split valid"
PROTEINGYM = "hf://datasets/genbio-ai/ProteinGYM-DMS"
DMS_INDELS = "indels/B1LPA6_ECOSM_Russ_2020_indels"
DMS_SINGLES = "singles_substitutions/CAR11_HUMAN_Meitlis_2020_lof"
HISTONES = ("H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac")
HISTONES += ("H4", "H4ac")
LINES = ("K562", "HeLa-S3", "NHEK", "IMR90", "HUVEC")
PROMOTERS = {"all": "promoters", "tata": "TATA promoters", "notata": "promoters without TATA box"}
TISSUES = ("Muscle", "HEK", "pc3")
ORGANISMS = ("athaliana", "dmelanogaster", "ecoli", "hsapiens", "hvolcanii", "ppastoris")
ORGANISMS += ("scerevisiae",)

_NT = (
    _nt("enhancers", "human enhancers against other sequences"),
    _nt("enhancers_types", "strong, weak or no enhancer, three classes"),
    _nt("promoter_all", "promoters against shuffled ones"),
    _nt("promoter_tata", "TATA promoters against shuffled ones"),
    _nt("promoter_no_tata", "promoters without TATA box against shuffled ones"),
    _nt("splice_sites_all", "splice donors, acceptors and neither, three classes"),
    _nt("splice_sites_acceptor", "splice acceptors"),
    _nt("splice_sites_donor", "splice donors"),
    *(_nt(mark, f"histone mark {mark} in yeast") for mark in HISTONES),
)
_GUE = (
    *(_gue(f"emp_{mark}", f"histone mark {mark} in yeast") for mark in HISTONES),
    *(_gue(f"human_tf_{i}", f"binding of a human transcription factor, {i}") for i in range(5)),
    *(_gue(f"mouse_{i}", f"binding of a mouse transcription factor, {i}") for i in range(5)),
    *(_gue(f"prom_300_{kind}", f"human {what}, 300 bp") for kind, what in PROMOTERS.items()),
    *(_gue(f"prom_core_{kind}", f"human core {what}, 70 bp") for kind, what in PROMOTERS.items()),
    _gue("splice_reconstructed", "splice donors, acceptors and neither, three classes"),
    _gue("virus_covid", "variant of SARS-CoV-2, nine classes"),
    _gue("virus_species_40", "species of a virus"),
    _gue("fungi_species_20", "species of a fungus"),
    *(_gue(f"EPI_{line}", f"enhancer and promoter that touch, {line} cells") for line in LINES),
)
_CONTACTS = _protein_lm(
    "contact_prediction_binary",
    "residues nearer than 8 A",
    PAIRS,
    "top_L5_acc",
    "12,041 / 1,505 / 1,505",
    valid_split="valid",
)
_SSP = _protein_lm("ssp_q3", "helix, strand or coil of each residue", RESIDUES, "accuracy")
_FOLD = _protein_lm("fold_prediction", "fold, 1,195 classes", CLASSES, "accuracy", note=HAS_VALID)
_GFP = _protein_lm(
    "fluorescence_prediction",
    "brightness of GFP mutants",
    NUMBERS,
    "spearman",
    "21,446 / 5,362 / 27,217",
    note=HAS_VALID,
)
_PROTEIN_LM = (
    _CONTACTS,
    _SSP,
    _FOLD,
    _protein_lm("localization_prediction", "place in the cell, 10 classes", CLASSES, "accuracy"),
    _protein_lm("metal_ion_binding", "binds a metal ion", CLASSES, "accuracy"),
    _protein_lm("solubility_prediction", "soluble in E. coli", CLASSES, "accuracy"),
    _protein_lm(
        "antibiotic_resistance", "antibiotic, 19 classes", CLASSES, "accuracy", "2,072 / 0 / 1,344"
    ),
    _protein_lm("cloning_clf", "is cloned or fails", CLASSES, "auroc"),
    _protein_lm("material_production", "is produced or fails", CLASSES, "accuracy"),
    _protein_lm(
        "tcr_pmhc_affinity",
        "T cell receptor binds peptide",
        CLASSES,
        "auroc",
        "19,526 / 0 / 4,485",
        UNKNOWN,
    ),
    _protein_lm(
        "peptide_HLA_MHC_affinity", "peptide binds HLA", CLASSES, "auroc", valid_split="valid"
    ),
    _protein_lm("temperature_stability", "stable in heat", CLASSES, "mcc", note=HAS_VALID),
    _GFP,
    _protein_lm(
        "fitness_prediction",
        "fitness of GB1 mutants",
        NUMBERS,
        "spearman",
        "6,289 / 699 / 1,745",
        note=HAS_VALID,
    ),
    _protein_lm(
        "stability_prediction", "stability of mini proteins", NUMBERS, "spearman", note=HAS_VALID
    ),
    _protein_lm(
        "enzyme_catalytic_efficiency", "kcat of an enzyme", NUMBERS, "pearson", note=HAS_VALID
    ),
    _protein_lm(
        "optimal_temperature",
        "best temperature of an enzyme",
        NUMBERS,
        "spearman",
        "1,706 / 0 / 190",
    ),
    _protein_lm("optimal_ph", "best pH of an enzyme", NUMBERS, "spearman"),
)
_DMS = (
    _proteingym("proteingym_indels", DMS_INDELS, "fitness of insertions and deletions"),
    _proteingym("proteingym_substitutions", DMS_SINGLES, "fitness of single substitutions"),
)
_ALIGNED = (
    *(
        _with_alignments(entry, f"genbio-ai/{entry.name}_rag", NEEDS_ALIGNMENTS)
        for entry in (_CONTACTS, _SSP, _FOLD, _GFP)
    ),
    *(_with_alignments(entry, f"{PROTEINGYM}-RAG/{{subset}}.tsv", VALID_IS_TEST) for entry in _DMS),
)
_RNA = (
    *(
        _rna_folds(f"translation_efficiency_{t}", f"translation of 5' UTRs, {t}", 10, UTR_PAPER)
        for t in TISSUES
    ),
    *(
        _rna_folds(f"expression_{t}", f"expression of mRNA by its 5' UTR, {t}", 10, UTR_PAPER)
        for t in TISSUES
    ),
    *(
        _rna_folds(f"transcript_abundance_{o}", f"transcripts by their CDS, {o}", 5, CALM_PAPER)
        for o in ORGANISMS
    ),
    *(
        _rna_folds(f"protein_abundance_{o}", f"proteins by their CDS, {o}", 5, CALM_PAPER)
        for o in ORGANISMS
        if o not in ("hvolcanii", "ppastoris")
    ),
    *(
        _rna(
            f"ncrna_family_bnoise{noise}",
            f"family of an RNA with {noise} % random ends, 88 classes",
            CLASSES,
            "accuracy",
            "",
            UNI_RNA_PAPER,
            **NAMED,
        )
        for noise in (0, 200)
    ),
    *(
        _rna(
            f"splice_site_{site}",
            f"splice {site}s, tested on another species",
            CLASSES,
            "f1",
            "",
            SPLICEATOR_PAPER,
            note="further tests: --data.test-split test_fly, test_worm, test_thaliana",
            **NAMED,
            test_split="test_danio",
        )
        for site in ("acceptor", "donor")
    ),
    _rna(
        "modification_site",
        "twelve modifications of RNA at once",
        CLASSES,
        "auroc",
        "",
        MODIFICATION_PAPER,
        flags="--multilabel",
        y_cols=tuple(f"labels_{i}" for i in range(12)),
        **NAMED,
    ),
    _rna(
        "mean_ribosome_load",
        "ribosomes on an mRNA by its 5' UTR",
        NUMBERS,
        "r2",
        "",
        RIBOSOME_PAPER,
        x_col="utr",
        y_cols=("rl",),
        **NAMED,
    ),
)
_OTHERS = (
    Entry(
        Table(name="random_promoters_100m", path="genbio-ai/100M-random-promoters", **CARVED),
        "Expression and variants",
        "dna",
        "expression of yeast promoters; conditional_masked_diffusion generates them",
        NUMBERS,
        "pearson",
        "",
        UNKNOWN,
        PROMOTERS_PAPER,
    ),
    Entry(
        Table(
            name="isoform_expression",
            path="hf://datasets/genbio-ai/transcript_isoform_expression_prediction/*.tsv",
            x_col="dna_seq",
            y_cols=tuple(f"labels_{i}" for i in range(30)),
            train_split="train_*",
            **NAMED,
        ),
        "Expression and variants",
        "dna",
        "transcript isoforms in 30 tissues by DNA, RNA and protein",
        FUSED,
        "spearman",
        "",
        UNKNOWN,
        ISOFORM_PAPER,
        flags="--x-cols rna_seq protein_seq --backbone1 aido_rna_1b600m_cds --backbone2 esm2_150m",
    ),
    *(
        Entry(
            Table(
                name=name,
                path=f"hf://datasets/genbio-ai/Clinvar/{file}",
                x_col="",
                y_cols=("effect",),
            ),
            "Expression and variants",
            "dna",
            f"pathogenic variants of the human genome{which}",
            VARIANTS,
            "auroc",
            "",
            UNKNOWN,
            CLINVAR_PAPER,
            flags="--strategy embedding-distance --genome hg38.ml.fa",
            note="hg38.ml.fa is a file of the same repository",
        )
        for name, file, which in (
            ("clinvar", "ClinVar_Processed.tsv", ""),
            ("clinvar_demo", "ClinVar_demo.tsv", ", a few"),
        )
    ),
    *(_struct_tokens(*facts) for facts in (("casp14", "50"), ("casp15", "56"), ("cameo", "194"))),
)


PUBLISHED = (*_NT, *_GUE, *_PROTEIN_LM, *_DMS, *_ALIGNED, *_RNA, *_OTHERS)
