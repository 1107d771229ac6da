"""Settings of experiments fit their recipes; published ones equal a table written by hand.

    pytest tests/test_presets.py

Columns: name; backbone; most tokens (-: its context); head; its layers; its dropout; LoRA
rank/alpha/dropout (full: all weights, frozen: none); learning rate; second beta; weight decay; clip
(v: by value); schedule/warm-up; rows x accumulation; epochs (ep) or steps (st); what decides which
checkpoint is best / after how many worse ones training stops; data set.
"""

import functools
import re

import pytest
from conftest import ROOT

from mgen import cli
from mgen.apply import task_of
from mgen.backbones.zoo import ZOO
from mgen.config import parse
from mgen.experiments import experiments
from mgen.train import Launch
from mgen.tuning import read

TRAINED = """
aido_dna_gue_core_promoter aido_dna_7b - linear_cls - - 16/32/.1 5e-4 .999 .1 1 cosine/.1 4x1 20ep mcc/10 gue_prom_core_all
aido_dna_gue_splice aido_dna_7b - mean_pool_mlp 128 .1 16/32/.1 5e-4 .999 .1 1 cosine/.1 4x1 20ep mcc/10 gue_splice_reconstructed
aido_dna_nt_enhancers aido_dna_7b - linear_cls - - 16/32/.1 1e-3 .999 .1 1 cosine/.1 8x1 30ep mcc/30 nt_enhancers
aido_dna_nt_promoter_all aido_dna_7b - linear_cls - - 16/32/.1 5e-4 .999 .1 1 cosine/.1 4x1 30ep mcc/30 nt_promoter_all
aido_rna_translation_efficiency_muscle aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 8x1 30ep spearman/0 translation_efficiency_muscle
aido_rna_translation_efficiency_hek aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 32x1 30ep spearman/0 translation_efficiency_hek
aido_rna_translation_efficiency_pc3 aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 32x1 30ep spearman/0 translation_efficiency_pc3
aido_rna_expression_muscle aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 32x1 30ep spearman/0 expression_muscle
aido_rna_expression_hek aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 32x1 30ep spearman/0 expression_hek
aido_rna_expression_pc3 aido_rna_1b600m 1024 mean_pool_mlp 512 .1 full 1e-5 .999 .01 1 cosine/.01 32x1 30ep spearman/0 expression_pc3
aido_rna_splice_acceptor aido_rna_1b600m 1024 cls_mlp 512,128 .1 32/64/.1 2.5e-4 .999 .01 1 linear/.01 16x2 10ep f1/0 splice_site_acceptor
aido_rna_splice_donor aido_rna_1b600m 1024 cls_mlp 512,128 .1 32/64/.1 2.5e-4 .999 .01 1 linear/.01 16x2 10ep f1/0 splice_site_donor
aido_rna_ncrna_family_bnoise0 aido_rna_1b600m 1024 mean_pool_mlp 512 .1 16/32/.1 4e-4 .999 .01 1 cosine/.01 32x2 15ep accuracy/0 ncrna_family_bnoise0
aido_rna_ncrna_family_bnoise200 aido_rna_1b600m 1024 mean_pool_mlp 512 .1 16/32/.1 4e-4 .999 .01 1 cosine/.01 32x2 15ep accuracy/0 ncrna_family_bnoise200
aido_rna_modification_site aido_rna_1b600m 1024 cls_mlp 512 .1 16/32/.1 4e-4 .999 .01 1 cosine/.01 4x16 10ep auroc/0 modification_site
aido_rna_ribosome_load aido_rna_1b600m 1024 resnet - .1 full 1e-4 .999 .01 0 linear/0 64x1 70ep r2/0 mean_ribosome_load
aido_rna_isoform aido_rna_1b600m 1024 mean_pool_mlp 512 .1 32/64/.1 1e-4 .999 .01 .1 cosine/.01 2x1 3ep spearman/0 isoform_expression
aido_rna_secondary_structure_bprna aido_rna_1b600m 1024 pair_resnet - - full 1e-4 .999 .01 0 linear/0 1x4 60ep f1/0 rna_secondary_structure_bprna
aido_protein_contacts aido_protein_16b 512 pair_mlp 128 0 16/16/0 2e-4 .95 .01 v.001 constant/0 1x4 20ep top_L5_acc/0 contact_prediction_binary
aido_protein_ssp_q3 aido_protein_16b 512 mlp 128 .1 16/16/0 1e-4 .95 0 .01 cosine/.05 1x8 15ep accuracy/0 ssp_q3
aido_protein_fold aido_protein_16b 256 mean_pool_mlp 1152 .1 16/16/0 1e-4 .95 0 .1 cosine/.05 1x16 15ep accuracy/0 fold_prediction
aido_protein_fluorescence aido_protein_16b 512 mean_pool_mlp 1152 .1 16/16/0 1e-4 .999 0 .1 cosine/.05 2x8 15ep spearman/0 fluorescence_prediction
aido_protein_stability aido_protein_16b 512 mean_pool_mlp 1152 .1 16/16/0 1e-4 .999 0 .1 cosine/.05 32x1 15ep spearman/0 stability_prediction
aido_protein_peptide_mhc aido_protein_16b 64 mean_pool_mlp 1152 .1 16/16/0 8e-5 .999 0 .01 cosine/.05 4x8 15ep auroc/0 peptide_hla_mhc_affinity
aido_protein_tcr_pmhc aido_protein_16b 64 mean_pool_mlp 1152 .1 16/16/0 1e-4 .999 0 .1 cosine/.05 2x8 15ep auroc/0 tcr_pmhc_affinity
aido_protein_dms_substitutions aido_protein_16b_v1 2048 mean_pool_mlp 128 .1 16/16/.1 1e-4 .999 .01 .1 cosine/.05 32x1 10000st spearman/10 proteingym_substitutions
aido_protein_dms_substitutions_fsdp aido_protein_16b_v1 2048 mean_pool_mlp 128 .1 16/16/.1 1e-4 .999 .01 v.1 cosine/.05 2x1 10000st spearman/1 proteingym_substitutions
aido_protein_dms_indels aido_protein_16b_v1 2048 mean_pool_mlp 128 .1 16/16/.05 1e-4 .999 .01 .1 cosine/.05 32x1 10000st spearman/10 proteingym_indels
aido_protein_dms_indels_probing aido_protein_16b_v1 2048 mean_pool_mlp 128 .1 frozen 1e-3 .999 .01 .1 constant/.05 32x1 1000st loss/0 proteingym_indels
aido_rag_dms_substitutions aido_protein_rag_16b 6400 mean_pool_mlp 128 .1 16/16/.1 1e-4 .999 .005 .1 cosine/.05 1x16 10000st spearman/10 proteingym_substitutions_rag
aido_rag_contacts aido_protein_rag_16b - pair_mlp 128 0 16/16/0 2e-4 .95 .01 v.001 constant/0 1x16 20ep top_L5_acc/0 contact_prediction_binary_rag
aido_rag_ssp_q3 aido_protein_rag_16b - mlp 128 .1 16/16/0 2e-4 .999 0 .01 cosine/.05 1x1 15ep accuracy/0 ssp_q3_rag
aido_rag_fold aido_protein_rag_16b - mean_pool_mlp 1152 .1 16/16/0 2e-4 .999 0 .1 cosine/.05 1x1 30ep accuracy/0 fold_prediction_rag
aido_rag_fluorescence aido_protein_rag_16b - mean_pool_mlp 1152 .1 16/16/0 1e-4 .999 0 .1 cosine/.05 1x1 15ep spearman/0 fluorescence_prediction_rag
aido_cell_zheng68k aido_cell_3m - max_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 16x1 10ep f1/0 zheng68k
scfoundation_zheng68k scfoundation - max_pool_linear - - full 1e-4 .95 .01 0 cosine/.1 16x1 10ep f1/0 zheng68k
aido_cell_segerstolpe aido_cell_3m - max_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 16x1 10ep f1/0 segerstolpe
aido_cell_sctab aido_cell_3m - max_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 16x1 1ep f1/0 sctab
aido_cell_tahoe aido_cell_3m - mean_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 32x1 5ep f1/0 tahoe_drugs
aido_cell_clock aido_cell_3m - mean_pool_linear - - full 1e-4 .95 .01 0 cosine/.01 16x4 1600st spearman/0 blood_clock
aido_tissue_niche aido_tissue_3m - max_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 256x1 10ep f1/0 niche_liver
aido_tissue_60m_niche aido_tissue_60m - max_pool_linear - - full 1e-5 .95 .01 0 cosine/.01 64x4 10ep f1/0 niche_liver
aido_tissue_density aido_tissue_3m - max_pool_linear - - full 1e-3 .95 .01 0 cosine/.01 256x1 10ep mae/0 density_lung
aido_tissue_60m_density aido_tissue_60m - max_pool_linear - - full 1e-5 .95 .01 0 cosine/.01 128x2 10ep mae/0 density_lung
"""  # noqa: E501
ABUNDANCE = {  # of coding sequences: name, backbone, data set, organisms
    "aido_rna_transcript_abundance": (
        "aido_rna_1b600m",
        "transcript_abundance",
        "athaliana dmelanogaster ecoli hsapiens hvolcanii ppastoris scerevisiae",
    ),
    "aido_rna_cds_transcript_abundance": (
        "aido_rna_1b600m_cds",
        "transcript_abundance",
        "athaliana dmelanogaster ecoli hsapiens hvolcanii ppastoris scerevisiae",
    ),
    "aido_rna_protein_abundance": (
        "aido_rna_1b600m_cds",
        "protein_abundance",
        "athaliana dmelanogaster ecoli hsapiens scerevisiae",
    ),
}
LINES = TRAINED.strip().splitlines() + [
    f"{name}_{organism} {backbone} 1024 mean_pool_mlp 512 .1 32/64/.1 3e-4 .999 .01 1 cosine/.01 "
    f"4x4 15ep pearson/0 {data}_{organism}"
    for name, (backbone, data, organisms) in ABUNDANCE.items()
    for organism in organisms.split()
]
# The smaller model with alignments, which reads no structure.
LINES += [
    line.replace("aido_rag_", "aido_rag_3b_").replace("rag_16b", "rag_3b")
    for line in LINES
    if line.startswith("aido_rag_")
]
# F1 of AIDO.RNA on families of ArchiveII that no training row is of.
FAMILIES = {"5s": 0.853, "srp": 0.739, "trna": 0.945, "tmrna": 0.838, "16s": 0.795, "23s": 0.896}
# Experiments without training: backbone, data set, batch, and further settings.
PREDICTED = {
    "aido_dna_clinvar_ratio": ("aido_dna_300m", "clinvar", 5, {"strategy": "wt-fill"}),
    "aido_dna_clinvar_distance": (
        "aido_dna_300m",
        "clinvar",
        5,
        {"strategy": "embedding-distance", "layers": ("all",), "window": 512},
    ),
    "aido_dna_clinvar_distance_7b": (
        "aido_dna_7b",
        "clinvar",
        5,
        {"strategy": "embedding-distance", "layers": ("all",), "window": 512},
    ),
    "aido_dna_dependency_map": ("aido_dna_7b", "promoters_tiny", 32, {"letters": "ATGC"}),
    "aido_tissue_xenium": ("aido_tissue_3m", "xenium_lung", 1, {"pool": "max"}),
    "aido_rna_dependency_map": ("aido_rna_1b600m", "hairpins_tiny", 32, {}),
    **{
        f"aido_protein_structure_tokens_{target}": (
            "aido_protein2structoken_16b",
            f"structure_tokens_{target}",
            1,
            {},
        )
        for target in ("casp14", "casp15", "cameo")
    },
}
TARGETS = {
    "rna": ("query", "value"),
    "dna": ("query", "value"),
    "protein": ("query", "value", "key", "dense", "router"),
}


@functools.cache
def settings(name: str):
    experiment = experiments()[name]
    _, config = task_of(ROOT / "recipes" / f"{experiment.recipe}.py")
    return parse(config(), Launch(), experiment.words, name)[0]


def test_every_published_experiment_has_settings():
    listed = {line.split()[0] for line in LINES} | set(PREDICTED)
    listed |= {f"aido_rna_secondary_structure_{family}" for family in FAMILIES}
    assert {name for name in experiments() if name.startswith(("aido_", "scf"))} == listed


@pytest.mark.parametrize("experiment", experiments().values(), ids=lambda e: e.name)
def test_settings_fit_the_recipe(experiment):
    cfg = settings(experiment.name)
    assert (cfg.data.path, cfg.data.name) == (experiment.data.path, experiment.names["data"])
    assert cfg.data.path.startswith(("shared:", "bundled:")) or "weights" in experiment.needs
    assert ("weights" in experiment.needs) == (experiment.seconds is None)
    assert not cfg.train.unfreeze or (ROOT / cfg.train.unfreeze).is_file()


def test_the_page_shows_the_list_as_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))  # nothing of the hub is here
    cli.list_names(["experiments", "aido"])
    assert f"```text\n{capsys.readouterr().out.rstrip()}\n```" in re.sub(
        r"\n+```", "\n```", (ROOT / "docs" / "experiments.md").read_text()
    )


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_settings_are_those_of_the_table(line):
    name, backbone, length, head, layers, drop, lora, *optimiser, batch, run, select, data = (
        line.split()
    )
    cfg = settings(name)
    adapter, train = vars(cfg.adapter), cfg.train
    assert (cfg.backbone.name, cfg.data.name) == (backbone, data)
    assert cfg.backbone.max_length == (0 if length == "-" else int(length))
    assert cfg.adapter.name == head
    if layers != "-":
        assert adapter["hidden_sizes"] == tuple(map(int, layers.split(",")))
    if drop != "-":
        assert adapter["dropout"] == float(drop)
    if "/" in lora:
        options = ("lora_rank", "lora_alpha", "lora_dropout")
        found = [getattr(cfg.backbone, option) for option in options]
        without = {"router"} if backbone.endswith("3b") else set()  # it has no experts
        assert found == [float(part) for part in lora.split("/")]
        assert {*cfg.backbone.lora_targets} == {*TARGETS[backbone.split("_")[1]]} - without
    assert (cfg.backbone.lora_rank == 0) == ("/" not in lora)
    assert cfg.backbone.frozen == (lora == "frozen")
    rate, beta, decay, clip, schedule = optimiser
    assert (train.lr, train.betas[1], train.weight_decay) == tuple(map(float, (rate, beta, decay)))
    assert train.betas[0] == 0.9
    clips = (0, float(clip[1:])) if clip[0] == "v" else (float(clip), 0)
    assert (train.clip, train.clip_value) == clips
    kind, warmup = schedule.split("/")
    assert (train.schedule, train.warmup_ratio) == (kind, float(warmup))
    assert f"{train.batch_size}x{train.accumulate}" == batch
    assert train.batch_tokens == 0 and train.seed == 42
    assert f"{train.max_steps}st" if train.max_steps else f"{train.epochs}ep" == run
    assert f"{train.monitor}/{train.patience}" == select


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_switches_are_those_of_the_family(line):
    name = line.split()[0]
    cfg = settings(name)
    rag, rna = name.startswith("aido_rag"), name.startswith("aido_rna")
    assert cfg.backbone.dropout == (0.1 if rna else 0.0)
    assert cfg.backbone.gradient_checkpointing == rag
    assert cfg.backbone.lora_rslora == name.endswith(("contacts", "ssp_q3"))
    half = {"aido_protein_stability": "bf16", "aido_rna_secondary_structure_bprna": "fp16"}
    cell = ZOO[cfg.backbone.name].modality == "cell"
    assert cfg.train.precision == ("bf16" if rag or cell else half.get(name, "no"))
    if cfg.backbone.max_length:
        assert cfg.backbone.truncate == "right"
    if "mlp" in cfg.adapter.name and (rna or "dms" in name and not rag):
        assert not cfg.adapter.dropout_in_middle
    if cell and "scale" in vars(cfg):
        assert cfg.scale == ("train" if name == "aido_cell_clock" else "none")
        assert cfg.loss == ("l1" if name == "aido_cell_clock" else "mse")
    elif "scale" in vars(cfg):  # published labels are scaled by training and validation rows
        assert cfg.scale == ("train" if name == "aido_rna_ribosome_load" else "train+valid")
    if rag:
        assert (cfg.data.msa_col, cfg.data.msa_seed) == ("msa", 1)
        assert cfg.data.structure_col == ("" if "_3b_" in name else "str_emb")
        assert cfg.data.msa_tokens == (6400 if "dms" in name else 12800)


def test_what_only_one_experiment_has():
    assert settings("aido_dna_gue_splice").classes == 3
    for name, classes in {
        "aido_protein_fold": 1195,
        "aido_rag_fold": 1195,
        "aido_rna_ncrna_family_bnoise0": 88,
        "aido_rna_ncrna_family_bnoise200": 88,
    }.items():
        assert settings(name).classes == classes
    assert settings("aido_rna_modification_site").multilabel
    assert len(settings("aido_rna_modification_site").data.y_cols) == 12
    isoform = settings("aido_rna_isoform")
    assert (isoform.data.x_col, len(isoform.data.y_cols)) == ("rna_seq", 30)
    assert (isoform.train.eval_every, isoform.train.save_every) == (499, 500)
    assert experiments()["aido_rna_isoform"].target[1] == 0.56
    assert settings("aido_rag_dms_substitutions").train.eval_every == 250
    rag = settings("aido_rag_dms_substitutions")
    assert (rag.adapter.activation, rag.adapter.bias) == ("relu", False)
    assert rag.data.valid_fold_offset == 0  # the test fold
    probing = settings("aido_protein_dms_indels_probing")
    assert (probing.data.valid_fold, probing.train.save_every) == (False, 500)
    for name in ("aido_protein_contacts", "aido_rag_contacts"):
        cfg = settings(name)
        assert (cfg.adapter.activation, cfg.channels, cfg.ordered) == ("relu", 2, True)
    for name in ("aido_protein_fold", "aido_rag_fold", "aido_protein_tcr_pmhc"):
        assert settings(name).adapter.activation == "tanh"


def test_what_only_experiments_of_cells_have():
    drugs, clock = settings("aido_cell_tahoe"), settings("aido_cell_clock")
    shares = drugs.data.test_fraction, drugs.data.valid_fraction * (1 - drugs.data.test_fraction)
    assert shares == pytest.approx((0.15, 0.15)) and drugs.data.split_seed == 1234
    assert (drugs.data.only, drugs.train.eval_every) == (("cell_line=CVCL_0546",), 300)
    assert (clock.train.eval_every, clock.data.split_col) == (128 // 4, "split")
    for name in ("niche", "60m_niche", "density", "60m_density", "xenium"):
        data = settings(f"aido_tissue_{name}").data
        assert (data.neighbours, data.position_cols) == (10, ("x", "y"))


@pytest.mark.parametrize("name", ["translation_efficiency_hek", "expression_pc3"])
def test_utrs_are_in_ten_folds_and_coding_sequences_in_five(name):
    assert settings(f"aido_rna_{name}").data.folds == 10
    assert settings("aido_rna_protein_abundance_ecoli").data.folds == 5
    assert settings("aido_protein_dms_indels").data.folds == 5


def test_ribosome_load_trains_the_head_first_and_its_rate_falls_to_a_tenth_in_5000_steps():
    cfg = settings("aido_rna_ribosome_load")
    assert (cfg.adapter.channels, cfg.adapter.blocks) == (256, 9)
    assert (cfg.train.decay_to, cfg.train.decay_steps) == (0.1, 5000)
    assert read(ROOT / cfg.train.unfreeze) == {0: ["adapter.*"], 3: ["backbone.*"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_base_pairs_of_a_family_that_is_left_out(family):
    name = f"aido_rna_secondary_structure_{family}"
    cfg = settings(name)
    assert cfg.data.name == f"rna_secondary_structure_archiveii_{family}"
    assert cfg.data.test_split.lower() == family
    assert experiments()[name].target == ("f1", FAMILIES[family], None)
    assert (cfg.train.lr, cfg.train.weight_decay, cfg.train.epochs) == (1e-4, 0.01, 60)
    assert (cfg.train.schedule, cfg.train.decay_to, cfg.train.decay_steps) == ("linear", 0.1, 7500)
    assert (cfg.train.batch_size, cfg.train.accumulate, cfg.train.precision) == (1, 4, "fp16")
    assert (cfg.backbone.max_length, cfg.backbone.dropout) == (1024, 0.1)
    schedule = read(ROOT / cfg.train.unfreeze)
    layer = "backbone.encoder.encoder.layer.{}.*".format
    assert schedule[0] == ["adapter.*"]
    assert schedule[3] == ["backbone.encoder.encoder.ln.*", layer(31), layer(30)]
    assert schedule[6] == [layer(29), layer(28), layer(27)]
    assert schedule[33] == [layer(2), layer(1), layer(0)]
    assert schedule[36] == ["backbone.encoder.*"]
    assert [*schedule] == [0, *range(3, 37, 3)]


@pytest.mark.parametrize("name", PREDICTED)
def test_settings_of_experiments_without_training(name):
    backbone, data, batch, options = PREDICTED[name]
    cfg = settings(name)
    assert (cfg.backbone.name, cfg.data.name, cfg.train.batch_size) == (backbone, data, batch)
    for option, value in options.items():
        assert getattr(cfg, option) == value
    if "clinvar" in name:
        assert cfg.backbone.frozen
