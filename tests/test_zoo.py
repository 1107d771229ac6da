"""Every named backbone: facts as published, counts as built, listings that fit a terminal.

    pytest tests/test_zoo.py

The tables below repeat what the models' own files, cards and papers state.
"""

import dataclasses
import sys

import pytest
import torch

from mgen import cli
from mgen.backbones import BACKBONES, backbone
from mgen.backbones.zoo import ZOO, find

TABLE = """
name modality family width layers heads ffn vocab context hub
aido_dna_300m dna rnabert 1024 24 - - 16 - AIDO.DNA-300M
aido_dna_7b dna rnabert 4352 32 32 11584 16 4000 AIDO.DNA-7B
aido_dna_dummy dna rnabert - - - - 16 - AIDO.DNA-dummy
aido_dna_debug dna rnabert 64 2 4 128 16 512 -
dna_tiny dna rnabert 64 1 4 128 16 128 -
aido_rna_1m_mars rna rnabert 128 6 8 320 16 1024 AIDO.RNA-1M-MARS
aido_rna_25m_mars rna rnabert 512 8 16 1344 16 1024 AIDO.RNA-25M-MARS
aido_rna_300m_mars rna rnabert - - - - 16 - AIDO.RNA-300M-MARS
aido_rna_650m rna rnabert 1280 33 20 3392 16 1024 AIDO.RNA-650M
aido_rna_650m_cds rna rnabert 1280 33 20 3392 16 1024 AIDO.RNA-650M-CDS
aido_rna_1b600m rna rnabert 2048 32 32 5440 16 1024 AIDO.RNA-1.6B
aido_rna_1b600m_cds rna rnabert 2048 32 32 5440 16 1024 AIDO.RNA-1.6B-CDS
aido_protein_16b protein fm4bio 2304 36 36 7680 44 2048 AIDO.Protein-16B
aido_protein_16b_v1 protein fm4bio 2304 36 36 7680 44 2048 AIDO.Protein-16B-v1
aido_protein_rag_16b protein fm4bio 2304 36 36 7680 44 12800 AIDO.Protein-RAG-16B
aido_protein_rag_3b protein fm4bio 2560 36 - 6832 128 12800 AIDO.Protein-RAG-3B
aido_protein2structoken_16b protein fm4bio 2304 36 36 - 44 2048 AIDO.Protein2StructureToken-16B
aido_protein_debug protein fm4bio 64 2 4 128 128 2048 -
aido_cell_3m cell aido_cell 128 6 4 320 16 19264 AIDO.Cell-3M
aido_cell_10m cell aido_cell 256 8 8 640 16 19264 AIDO.Cell-10M
aido_cell_100m cell aido_cell 640 18 20 1664 16 19264 AIDO.Cell-100M
aido_cell_650m cell aido_cell 1280 32 20 3392 16 19264 AIDO.Cell-650M
aido_cell_debug cell aido_cell 64 2 4 128 16 300 -
aido_tissue_3m cell aido_tissue 128 - - - 16 19264 AIDO.Tissue-3M
aido_tissue_60m cell aido_tissue - - - - 16 19264 AIDO.Tissue-60M
aido_tissue_debug cell aido_tissue 64 2 4 128 16 300 -
cell_log1p cell logcounts 19264 0 0 0 0 1 -
esm2_8m protein esm 320 6 20 1280 33 1026 facebook/esm2_t6_8M_UR50D
esm2_35m protein esm 480 12 20 1920 33 1026 facebook/esm2_t12_35M_UR50D
esm2_150m protein esm 640 30 20 2560 33 1026 facebook/esm2_t30_150M_UR50D
esm2_650m protein esm 1280 33 20 5120 33 1026 facebook/esm2_t33_650M_UR50D
esm2_3b protein esm 2560 36 40 10240 33 1026 facebook/esm2_t36_3B_UR50D
esm2_15b protein esm 5120 48 40 20480 33 1026 facebook/esm2_t48_15B_UR50D
scfoundation cell scfoundation 768 12 12 3072 104 19266 scFoundation
geneformer cell geneformer 512 12 8 1024 20275 4096 ctheodoris/Geneformer
scimilarity cell scimilarity 128 4 0 1024 0 1 scimilarity
dna_onehot dna onehot 16 0 0 0 16 512 -
protein_onehot protein onehot 44 0 0 0 44 512 -
"""  # "-": not published; repositories of genbio-ai unless they say otherwise
PUBLISHED = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()[1:]}
# Further fields of config.json of the protein family.
MIXTURE = {"moe": True, "num_experts": 8, "experts_per_token": 2, "use_lm_head": False}
PROTEIN_CONFIGS = {
    "aido_protein_16b": MIXTURE,
    "aido_protein_16b_v1": MIXTURE,
    "aido_protein_rag_16b": {
        **MIXTURE,
        "position_embedding_type": "rope_2d",
        "str_embedding_in": 384,
    },
    "aido_protein_rag_3b": {
        "position_embedding_type": "rope_2d",
        "str_embedding_in": None,
        "normalization_type": "LayerNorm",
        "add_linear_bias": True,
        "tie_word_embeddings": False,
        "apply_residual_connection_post_layernorm": True,
    },
    "aido_protein2structoken_16b": {**MIXTURE, "output_vocab_size": 512},
    "aido_protein_debug": {
        "normalization_type": "RMSNorm",
        "use_lm_head": True,
        "tie_word_embeddings": True,
    },
}
# Other people's models: hub, width, layers, whether their own Python code is needed.
OTHERS = {
    "esm1b": ("facebook/esm1b_t33_650M_UR50S", 1280, 33, False),
    "esm1v_3": ("facebook/esm1v_t33_650M_UR90S_3", 1280, 33, False),
    "esmc_300m": ("biohub/ESMC-300M", 960, 30, False),
    "esmc_600m": ("biohub/ESMC-600M", 1152, 36, False),
    "prot_bert": ("Rostlab/prot_bert", 1024, 30, False),
    "prot_t5_xl": ("Rostlab/prot_t5_xl_uniref50", 1024, 24, False),
    "ankh_large": ("ElnaggarLab/ankh-large", 1536, 48, False),
    "protgpt2": ("nferruz/ProtGPT2", 1280, 36, False),
    "progen2_large": ("hugohrban/progen2-large", 2560, 32, True),
    "amplify_350m": ("chandar-lab/AMPLIFY_350M", 960, 32, True),
    "nt_2b5_1000g": ("InstaDeepAI/nucleotide-transformer-2.5b-1000g", 2560, 32, False),
    "nt_500m_human_ref": ("InstaDeepAI/nucleotide-transformer-500m-human-ref", 1280, 24, False),
    "nt_v2_500m_multi_species": (
        "InstaDeepAI/nucleotide-transformer-v2-500m-multi-species",
        1024,
        29,
        True,
    ),
    "dnabert2_117m": ("zhihan1996/DNABERT-2-117M", 768, 12, True),
    "gena_lm_bert_large": ("AIRI-Institute/gena-lm-bert-large-t2t", 1024, 24, True),
    "hyenadna_large_1m": ("LongSafari/hyenadna-large-1m-seqlen-hf", 256, 8, True),
    "caduceus_ph_131k": (
        "kuleshov-group/caduceus-ph_seqlen-131k_d_model-256_n_layer-16",
        256,
        16,
        True,
    ),
}
NON_COMMERCIAL = ("aido_", "ankh_", "nt_", "agro_nt_", "scfoundation", "scimilarity")
# Geneformer's network is transformers' own.
BUILDABLE = [name for name in PUBLISHED if ZOO[name].config_json() and name != "geneformer"]


def test_own_families_have_exactly_the_published_names():
    assert {name for name, e in ZOO.items() if e.family != "huggingface"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_are_those_published(name):
    e = ZOO[name]
    hub = e.hub.removeprefix("genbio-ai/")
    facts = (e.modality, e.family, e.width, e.layers, e.heads, e.ffn, e.vocab, e.context, hub)
    assert ["-" if fact in (None, "") else str(fact) for fact in facts] == PUBLISHED[name]
    for key, value in PROTEIN_CONFIGS.get(name, {}).items():
        assert e.config[key] == value, key


@pytest.mark.parametrize("name", OTHERS)
def test_facts_of_other_peoples_models_are_those_published(name):
    e = ZOO[name]
    assert (e.hub, e.width, e.layers, e.needs_remote_code) == OTHERS[name]


@pytest.mark.parametrize("entry", ZOO.values(), ids=lambda entry: entry.name)
def test_every_name_says_where_it_is_from_and_what_one_may_do(entry):
    assert (
        entry.hub.count("/") == 1
        or entry.name.endswith("_debug")
        or entry.name == "dna_tiny"
        or entry.family in ("onehot", "logcounts")
    )
    assert entry.licence and entry.citation and entry.revision
    assert entry.modality in ("dna", "rna", "protein", "cell")
    assert (
        not entry.hub
        or "doi:" in entry.citation
        or "arXiv:" in entry.citation
        or entry.name.startswith(("esmc", "aido_tissue"))
    )
    is_limited = entry.name.startswith(NON_COMMERCIAL) and bool(entry.hub)
    assert ("non-commercial" in entry.licence) == is_limited
    assert ("NC" in entry.licence.partition(":")[0]) == is_limited


def test_code_of_a_checkpoint_is_never_a_default():
    assert not any("remote_code" in entry.options for entry in ZOO.values())


def test_residues_stand_apart_for_prot_trans_only():
    spaced = {name for name, entry in ZOO.items() if entry.options.get("spaced")}
    assert spaced == {"prot_bert", "prot_bert_bfd", "prot_t5_xl", "prot_t5_xl_half"}


@pytest.mark.parametrize("name", [*BUILDABLE, "aido_protein_rag_3b"])
def test_parameters_are_those_of_the_network(name):
    entry = ZOO[name]
    # The number of heads, where it is not published, does not change the count.
    facts = dataclasses.replace(entry, heads=entry.heads or 40).config_json()
    facts |= {"gene_list": "simulated"}  # published ones are no part of the repository
    choice = backbone(name, random_weights=True)
    wrapper, options = BACKBONES.construct(choice)
    with torch.device("meta"):
        tokenizer = wrapper.make_tokenizer(choice, facts, **options)
        options = {
            key: value
            for key, value in options.items()
            if key not in getattr(wrapper, "reading", ())
        }
        network = wrapper(wrapper.read(facts), tokenizer, set(), **options)
    assert sum(map(torch.numel, network.parameters())) == entry.parameters


def test_the_published_count_of_the_dense_protein_model_is_met():
    assert ZOO["aido_protein_rag_3b"].parameters == 2_834_611_584  # as its card states


def test_every_hub_id_resolves_by_old_and_new_names():
    for entry in ZOO.values():
        if entry.hub:
            assert find(entry.hub) is entry
            assert find(entry.hub.replace("genbio-ai/AIDO.", "genbio-ai/GB.")) is entry


def test_names_and_hub_ids_are_unique():
    hubs = [entry.hub for entry in ZOO.values() if entry.hub]
    assert len(set(hubs)) == len(hubs)
    assert all(name == entry.name for name, entry in ZOO.items())


def output(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["mgen", *words])
    cli.main()
    return capsys.readouterr().out


def test_the_list_fits_a_hundred_columns_and_counts_are_short(monkeypatch, capsys):
    lines = output(monkeypatch, capsys, "list", "backbones").splitlines()
    rows = {line.split()[0]: line.rstrip() for line in lines if line.strip()}
    assert set(ZOO) <= set(rows) and all(len(line) <= 100 for line in rows.values())
    assert " ".join(rows["aido_protein_16b"].split()) == (
        "aido_protein_16b fm4bio protein 2048 2304 36 16.1B GenBio NC"
    )
    assert rows["esm2_650m"].split()[-2:] == ["651M", "MIT"]
    assert rows["aido_dna_dummy"].split()[3:7] == ["-"] * 4


def test_show_prints_everything(monkeypatch, capsys):
    shown = output(monkeypatch, capsys, "show", "nt_v2_50m_multi_species")
    for fact in (
        "InstaDeepAI/nucleotide-transformer-v2-50m-multi-species",
        "Creative Commons 4.0, non-commercial",
        "doi:10.1038/s41592-024-02523-z",
        "needs_remote_code  yes: --backbone.remote-code",
        "revision           main",
    ):
        assert fact in shown
