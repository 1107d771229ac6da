"""Published sequence models: one line of facts each. No torch.

Facts are those of the published config.json files, model cards and papers; None is not known here.
A checkpoint's own config.json always decides when it is loaded; these lines serve listings, checks
before a download, and random weights. Lengths count tokens, special ones included.

`parameters` of our own families are those of the network these facts give, heads of the published
form included and tied tensors once; of other families the rounded number of the paper or card.
"""

from dataclasses import dataclass, field
from typing import Any

# Licences: what listings show, then the rest of it. NC: not for commercial use.
GENBIO = "GenBio NC: GenBio AI community licence, non-commercial, attribution, see the model card"
CC_NC = "CC BY-NC-SA: Creative Commons 4.0, non-commercial, attribution, share alike"
AFL = "AFL 3.0: Academic Free License"
APACHE, BSD, MIT = "Apache 2.0", "BSD 3", "MIT"
ESMC_TERMS = "MIT: and the third-party terms of Biohub/esm, THIRD_PARTY_NOTICE.md"
OWN = "mgen: part of this package"

DNA_PAPER = "Ellington et al. 2024, doi:10.1101/2024.12.01.625444"
RNA_PAPER = "Zou et al. 2024, doi:10.1101/2024.11.28.625345"
PROTEIN_PAPER = "Sun et al. 2024, doi:10.1101/2024.11.29.625425"
CELL_PAPER = "Ho et al. 2024, doi:10.1101/2024.11.28.625303"
TISSUE_PAPER = "GenBio AI 2025, huggingface.co/genbio-ai/AIDO.Tissue-60M"
RAG_PAPER = "Li et al. 2024, doi:10.1101/2024.12.02.626519"
ESM_PAPER = "Lin et al. 2023, doi:10.1126/science.ade2574"
ESM1B_PAPER = "Rives et al. 2021, doi:10.1073/pnas.2016239118"
ESM1V_PAPER = "Meier et al. 2021, doi:10.1101/2021.07.09.450648"
ESMC_PAGE = "ESM Team 2024, ESM Cambrian, evolutionaryscale.ai/blog/esm-cambrian"
NT_PAPER = "Dalla-Torre et al. 2024, doi:10.1038/s41592-024-02523-z"
AGRO_PAPER = "Mendoza-Revilla et al. 2024, doi:10.1038/s42003-024-06465-2"
PROTTRANS_PAPER = "Elnaggar et al. 2021, doi:10.1109/TPAMI.2021.3095381"
ANKH_PAPER = "Elnaggar et al. 2023, arXiv:2301.06568"
DNABERT2_PAPER = "Zhou et al. 2023, arXiv:2306.15006"
DNABERTS_PAPER = "Zhou et al. 2024, arXiv:2402.08777"
GENA_PAPER = "Fishman et al. 2023, doi:10.1101/2023.06.12.544594"
HYENA_PAPER = "Nguyen et al. 2023, arXiv:2306.15794"
CADUCEUS_PAPER = "Schiff et al. 2024, arXiv:2403.03234"
PROTGPT2_PAPER = "Ferruz et al. 2022, doi:10.1038/s41467-022-32007-7"
PROGEN2_PAPER = "Nijkamp et al. 2023, doi:10.1016/j.cels.2023.10.002"
AMPLIFY_PAPER = "Fournier et al. 2024, doi:10.1101/2024.09.23.614603"
SCFOUNDATION_PAPER = "Hao et al. 2024, doi:10.1038/s41592-024-02305-7"
GENEFORMER_PAPER = "Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9"
SCIMILARITY_PAPER = "Heimberg et al. 2024, doi:10.1038/s41586-024-08411-y"
BASELINE = "none: a baseline without a network"
DEBUG = "none: random weights to try things out"

# Further config.json fields, where known. A field left out has the default of published code.
LAYER_NORM = {"normalization_type": "LayerNorm"}
NORM_BIAS = {**LAYER_NORM, "add_linear_bias": True}
RMS_NORM_BIAS = {"normalization_type": "RMSNorm", "add_linear_bias": True}
RMS_NORM_NO_BIAS = {"normalization_type": "RMSNorm", "add_linear_bias": False}
EASY = {  # learns which fixed positions depend on each other within seconds
    "position_embedding_type": "absolute",
    "initializer_range": 0.1,
    **LAYER_NORM,
}
UNTIED = {"use_lm_head": False, "tie_word_embeddings": False}
CELL = {"model_type": "cellfoundation", **LAYER_NORM, "add_linear_bias": False, "bin_num": 100}
CELL_DEBUG = {**CELL, "bin_num": 16, "gene_list": "simulated", "initializer_range": 0.2}
TISSUE = {**CELL, "model_type": "cellspatialfoundation"}
TISSUE_DEBUG = CELL_DEBUG | {"model_type": "cellspatialfoundation"}
MOE = {"moe": True, "num_experts": 8, "experts_per_token": 2, **RMS_NORM_BIAS, **UNTIED}
RAG = {"position_embedding_type": "rope_2d"}
RAG_16B = {**MOE, **RAG, "str_embedding_in": 384}
RAG_3B = {
    **NORM_BIAS,
    **UNTIED,
    **RAG,
    "str_embedding_in": None,
    "apply_residual_connection_post_layernorm": True,
}
STRUCTURE_TOKENS = {**MOE, "output_vocab_size": 512}
DENSE = {**RMS_NORM_BIAS, "use_lm_head": True, "tie_word_embeddings": True}
SCFOUNDATION = {  # sizes as its own config has them
    "model": "mae_autobin",
    "model_config": {
        "mae_autobin": {
            "seq_len": 19266,
            "n_class": 104,
            "bin_num": 100,
            "bin_alpha": 1.0,
            "mask_token_id": 102,
            "pad_token_id": 103,
            "encoder": {
                "module_type": "transformer",
                "hidden_dim": 768,
                "depth": 12,
                "heads": 12,
                "norm_first": False,
            },
            "decoder": {
                "module_type": "performer",
                "hidden_dim": 512,
                "depth": 6,
                "heads": 8,
                "dim_head": 64,
            },
        }
    },
}
GENEFORMER = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "relu",
    "layer_norm_eps": 1e-12,
    "attention_probs_dropout_prob": 0.02,
    "hidden_dropout_prob": 0.02,
}
SCIMILARITY = {"n_genes": 28231, "hidden_dim": [1024, 1024, 1024], "latent_dim": 128}
ESM2 = {
    "architectures": ["EsmForMaskedLM"],
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "mask_token_id": 32,
}


@dataclass(frozen=True)
class Entry:
    """A named model.

    `hub` is "" where nothing is published and weights are random; `config` has further fields of
    config.json; `options` are defaults of the family's own options; `needs_remote_code`: the model
    is Python code of its repository, which runs only if asked for.
    """

    name: str
    family: str
    hub: str
    modality: str
    context: int | None
    width: int | None
    layers: int | None
    heads: int | None
    ffn: int | None
    vocab: int | None
    parameters: int | None
    config: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    needs_remote_code: bool = False
    revision: str = "main"

    def config_json(self) -> dict[str, Any] | None:
        """The model's config.json from the facts here, or None where a size is not known."""
        sizes = {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.context,
            "vocab_size": self.vocab,
        }
        # A model of another family needs the files of its tokenizer anyway.
        if None in sizes.values() or self.family == "huggingface":
            return None
        return {"model_type": self.family, **sizes, **self.config}


def _dna(name: str, hub: str, context: int | None, *facts: Any) -> Entry:
    *sizes, parameters, config = facts
    facts = ("dna", context, *sizes, 16, parameters, config)
    return Entry(name, "rnabert", f"genbio-ai/AIDO.DNA-{hub}", *facts, GENBIO, DNA_PAPER)


def _rna(name: str, hub: str, context: int | None, *facts: Any) -> Entry:
    *sizes, parameters, config = facts
    facts = ("rna", context, *sizes, 16, parameters, config)
    return Entry(name, "rnabert", f"genbio-ai/AIDO.RNA-{hub}", *facts, GENBIO, RNA_PAPER)


def _protein(name: str, hub: str, *facts: Any) -> Entry:
    paper = RAG_PAPER if "rag" in name else PROTEIN_PAPER
    return Entry(name, "fm4bio", f"genbio-ai/AIDO.{hub}", "protein", *facts, GENBIO, paper)


def _cell(size: str, width: int, layers: int, heads: int, ffn: int, parameters: int) -> Entry:
    facts = (19264, width, layers, heads, ffn, 16, parameters, CELL, GENBIO, CELL_PAPER)
    hub = f"genbio-ai/AIDO.Cell-{size.upper()}"
    return Entry(f"aido_cell_{size}", "aido_cell", hub, "cell", *facts)


def _tissue(size: str, width: int | None) -> Entry:
    facts = (19264, width, None, None, None, 16, None, TISSUE, GENBIO, TISSUE_PAPER)
    hub = f"genbio-ai/AIDO.Tissue-{size.upper()}"
    return Entry(f"aido_tissue_{size}", "aido_tissue", hub, "cell", *facts)


def _esm(name: str, hub: str, width: int, layers: int, heads: int, parameters: int) -> Entry:
    facts = ("protein", 1026, width, layers, heads, 4 * width, 33, parameters, ESM2)
    return Entry(name, "esm", f"facebook/{hub}_UR50D", *facts, MIT, ESM_PAPER)


def _made(name: str, family: str, modality: str, *facts: Any, why: str = DEBUG) -> Entry:
    return Entry(name, family, "", modality, *facts, OWN, why)


def _hf(
    name: str,
    hub: str,
    modality: str,
    *sizes: int | None,
    terms: tuple[str, str],
    code: bool = False,
    **options: Any,
) -> Entry:
    """A model of transformers' layout; `terms`: licence and citation."""
    extra = {"options": options, "needs_remote_code": code}
    return Entry(name, "huggingface", hub, modality, *sizes, {}, *terms, **extra)


def _esmc(size: str, *sizes: int) -> Entry:
    hub, terms = f"biohub/ESMC-{size.upper()}", (ESMC_TERMS, ESMC_PAGE)
    *sizes, parameters = sizes
    return _hf(f"esmc_{size}", hub, "protein", 2048, *sizes, 64, parameters, terms=terms)


def _esm1(name: str, hub: str, paper: str) -> Entry:
    sizes = (1024, 1280, 33, 20, 5120, 33, 650_000_000)
    return _hf(name, f"facebook/{hub}", "protein", *sizes, terms=(MIT, paper))


def _prot_trans(name: str, hub: str, *sizes: int | None) -> Entry:
    terms = (AFL, PROTTRANS_PAPER)
    return _hf(name, f"Rostlab/{hub}", "protein", *sizes, terms=terms, spaced=True)


def _ankh(size: str, *sizes: int) -> Entry:
    hub, terms = f"ElnaggarLab/ankh-{size}", (CC_NC, ANKH_PAPER)
    return _hf(f"ankh_{size}", hub, "protein", None, *sizes, terms=terms)


def _amplify(size: str, *sizes: int) -> Entry:
    hub, terms = f"chandar-lab/AMPLIFY_{size.upper()}", (MIT, AMPLIFY_PAPER)
    *sizes, parameters = sizes
    facts = (2048, *sizes, None, None, parameters)
    return _hf(f"amplify_{size}", hub, "protein", *facts, terms=terms, code=True)


def _progen(size: str, *sizes: int) -> Entry:
    hub, terms = f"hugohrban/progen2-{size}", (BSD, PROGEN2_PAPER)
    return _hf(f"progen2_{size}", hub, "protein", *sizes, terms=terms, code=True)


def _nt(name: str, hub: str, *sizes: int) -> Entry:
    hub, is_new = f"InstaDeepAI/nucleotide-transformer-{hub}", hub.startswith("v2")
    *sizes, parameters = sizes
    facts = (2048 if is_new else 1000, *sizes, 4107 if is_new else 4105, parameters)
    return _hf(f"nt_{name}", hub, "dna", *facts, terms=(CC_NC, NT_PAPER), code=is_new)


def _dnabert(name: str, hub: str, paper: str) -> Entry:
    hub, sizes = f"zhihan1996/{hub}", (512, 768, 12, 12, 3072, 4096, 117_000_000)
    return _hf(name, hub, "dna", *sizes, terms=(APACHE, paper), code=True)


def _gena(name: str, hub: str, *sizes: int, code: bool = True) -> Entry:
    hub, terms = f"AIRI-Institute/gena-lm-{hub}-t2t", (MIT, GENA_PAPER)
    *sizes, parameters = sizes
    return _hf(f"gena_lm_{name}", hub, "dna", *sizes, 32000, parameters, terms=terms, code=code)


def _hyena(name: str, hub: str, context: int, width: int, layers: int, parameters: int) -> Entry:
    hub, terms = f"LongSafari/hyenadna-{hub}-seqlen-hf", (BSD, HYENA_PAPER)
    sizes = (context, width, layers, None, None, None, parameters)
    return _hf(f"hyenadna_{name}", hub, "dna", *sizes, terms=terms, code=True)


def _caduceus(kind: str, width: int | None) -> Entry:
    hub = f"kuleshov-group/caduceus-{kind}_seqlen-131k_d_model-256_n_layer-16"
    sizes, terms = (131072, width, 16, None, None, None, 7_700_000), (APACHE, CADUCEUS_PAPER)
    return _hf(f"caduceus_{kind}_131k", hub, "dna", *sizes, terms=terms, code=True)


TO_STRUCTURE = "Protein2StructureToken-16B"
AGRO_HUB, AGRO = (
    "InstaDeepAI/agro-nucleotide-transformer-1b",
    (1024, 1500, 40, 20, None, None, 1_000_000_000),
)
PROTGPT2 = (1024, 1280, 36, 20, 5120, 50257, 738_000_000)
# Width, layers, heads, ffn, vocab of models that share them.
SIZES_16B = (2304, 36, 36, 7680, 44)
SIZES_TO = (2304, 36, 36, None, 44)
SIZES_3B = (2560, 36, None, 6832, 128)
PROT_BERT = (1024, 30, 16, 4096, 30)
PROT_T5 = (1024, 24, 32, 16384, 128)

_ENTRIES = (
    # name, hub, context, width, layers, heads, ffn, parameters, further config
    _dna("aido_dna_300m", "300M", None, 1024, 24, None, None, None, {}),
    _dna("aido_dna_7b", "7B", 4000, 4352, 32, 32, 11584, 7_285_036_304, LAYER_NORM),
    _dna("aido_dna_dummy", "dummy", None, None, None, None, None, None, {}),
    _made("aido_dna_debug", "rnabert", "dna", 512, 64, 2, 4, 128, 16, 88_656, RMS_NORM_BIAS),
    _made("dna_tiny", "rnabert", "dna", 128, 64, 1, 4, 128, 16, 55_440, EASY),
    _rna("aido_rna_1m_mars", "1M-MARS", 1024, 128, 6, 8, 320, 1_150_864, RMS_NORM_NO_BIAS),
    _rna("aido_rna_25m_mars", "25M-MARS", 1024, 512, 8, 16, 1344, 25_234_960, LAYER_NORM),
    _rna("aido_rna_300m_mars", "300M-MARS", None, None, None, None, None, None, {}),
    _rna("aido_rna_650m", "650M", 1024, 1280, 33, 20, 3392, 648_372_368, NORM_BIAS),
    _rna("aido_rna_650m_cds", "650M-CDS", 1024, 1280, 33, 20, 3392, 648_372_368, NORM_BIAS),
    _rna("aido_rna_1b600m", "1.6B", 1024, 2048, 32, 32, 5440, 1_611_593_744, NORM_BIAS),
    _rna("aido_rna_1b600m_cds", "1.6B-CDS", 1024, 2048, 32, 32, 5440, 1_611_593_744, NORM_BIAS),
    # name, hub, context, width, layers, heads, ffn, vocab, parameters, further config
    _protein("aido_protein_16b", "Protein-16B", 2048, *SIZES_16B, 16_059_103_488, MOE),
    _protein("aido_protein_16b_v1", "Protein-16B-v1", 2048, *SIZES_16B, 16_059_103_488, MOE),
    _protein("aido_protein_rag_16b", "Protein-RAG-16B", 12800, *SIZES_16B, 16_059_988_224, RAG_16B),
    _protein("aido_protein_rag_3b", "Protein-RAG-3B", 12800, *SIZES_3B, 2_834_611_584, RAG_3B),
    _protein("aido_protein2structoken_16b", TO_STRUCTURE, 2048, *SIZES_TO, None, STRUCTURE_TOKENS),
    _made("aido_protein_debug", "fm4bio", "protein", 2048, 64, 2, 4, 128, 128, 95_936, DENSE),
    # size, width, layers, heads, ffn, parameters
    _cell("3m", 128, 6, 4, 320, 3_640_125),
    _cell("10m", 256, 8, 8, 640, 11_073_085),
    _cell("100m", 640, 18, 20, 1664, 99_864_381),
    # In the table of the models' card; a repository of it was not seen.
    _cell("650m", 1280, 32, 20, 3392, 653_135_421),
    _made("aido_cell_debug", "aido_cell", "cell", 300, 64, 2, 4, 128, 16, 107_697, CELL_DEBUG),
    _tissue("3m", 128),
    _tissue("60m", None),
    _made(
        "aido_tissue_debug", "aido_tissue", "cell", 300, 64, 2, 4, 128, 16, 107_761, TISSUE_DEBUG
    ),
    # name, hub, width, layers, heads, parameters
    _esm("esm2_8m", "esm2_t6_8M", 320, 6, 20, 7_512_474),
    _esm("esm2_35m", "esm2_t12_35M", 480, 12, 20, 33_501_394),
    _esm("esm2_150m", "esm2_t30_150M", 640, 30, 20, 148_140_154),
    _esm("esm2_650m", "esm2_t33_650M", 1280, 33, 20, 651_043_254),
    _esm("esm2_3b", "esm2_t36_3B", 2560, 36, 40, 2_839_005_634),
    _esm("esm2_15b", "esm2_t48_15B", 5120, 48, 40, 15_129_100_194),
    _made("dna_onehot", "onehot", "dna", 512, 16, 0, 0, 0, 16, 0, {}, why=BASELINE),
    _made("protein_onehot", "onehot", "protein", 512, 44, 0, 0, 0, 44, 0, {}, why=BASELINE),
    _made("cell_log1p", "logcounts", "cell", 1, 19264, 0, 0, 0, 0, 0, {}, why=BASELINE),
    Entry(
        *("scfoundation", "scfoundation", "genbio-ai/scFoundation", "cell"),
        *(19266, 768, 12, 12, 3072, 104, 119_252_285, SCFOUNDATION, GENBIO, SCFOUNDATION_PAPER),
    ),
    Entry(
        *("geneformer", "geneformer", "ctheodoris/Geneformer", "cell"),
        *(4096, 512, 12, 8, 1024, 20275, 37_997_363, GENEFORMER, APACHE, GENEFORMER_PAPER),
    ),
    Entry(
        *("scimilarity", "scimilarity", "genbio-ai/scimilarity", "cell"),
        *(1, 128, 4, 0, 1024, 0, 62_320_333, SCIMILARITY, GENBIO, SCIMILARITY_PAPER),
    ),
    # name, width, layers, heads, ffn, parameters
    _esmc("300m", 960, 30, 15, 2560, 300_000_000),
    _esmc("600m", 1152, 36, 18, 3072, 600_000_000),
    _esmc("6b", 2560, 80, 40, 6912, 6_000_000_000),
    _esm1("esm1b", "esm1b_t33_650M_UR50S", ESM1B_PAPER),
    _esm1("esm1v_1", "esm1v_t33_650M_UR90S_1", ESM1V_PAPER),
    _esm1("esm1v_2", "esm1v_t33_650M_UR90S_2", ESM1V_PAPER),
    _esm1("esm1v_3", "esm1v_t33_650M_UR90S_3", ESM1V_PAPER),
    _esm1("esm1v_4", "esm1v_t33_650M_UR90S_4", ESM1V_PAPER),
    _esm1("esm1v_5", "esm1v_t33_650M_UR90S_5", ESM1V_PAPER),
    # name, hub, context, width, layers, heads, ffn, vocab, parameters (of T5 those of the encoder)
    _prot_trans("prot_bert", "prot_bert", 40000, *PROT_BERT, 420_000_000),
    _prot_trans("prot_bert_bfd", "prot_bert_bfd", 40000, *PROT_BERT, 420_000_000),
    _prot_trans("prot_t5_xl", "prot_t5_xl_uniref50", None, *PROT_T5, 1_200_000_000),
    _prot_trans("prot_t5_xl_half", "prot_t5_xl_half_uniref50-enc", None, *PROT_T5, 1_200_000_000),
    # name, width, layers, heads, ffn, vocab, parameters
    _ankh("base", 768, 48, 12, 3072, 144, 450_000_000),
    _ankh("large", 1536, 48, 16, 3840, 144, 1_150_000_000),
    _amplify("120m", 640, 24, 10, 120_000_000),
    _amplify("350m", 960, 32, 15, 350_000_000),
    _hf("protgpt2", "nferruz/ProtGPT2", "protein", *PROTGPT2, terms=(APACHE, PROTGPT2_PAPER)),
    # name, context, width, layers, heads, ffn, vocab, parameters
    _progen("small", 1024, 1024, 12, 16, 4096, 32, 151_000_000),
    _progen("medium", 1024, 1536, 27, 16, 6144, 32, 764_000_000),
    _progen("base", 2048, 1536, 27, 16, 6144, 32, 764_000_000),
    _progen("large", 1024, 2560, 32, 32, 10240, 32, 2_700_000_000),
    _progen("xlarge", 1024, 4096, 32, 16, 16384, 32, 6_400_000_000),
    # name, hub, width, layers, heads, ffn, parameters
    _nt("500m_human_ref", "500m-human-ref", 1280, 24, 20, 5120, 500_000_000),
    _nt("500m_1000g", "500m-1000g", 1280, 24, 20, 5120, 500_000_000),
    _nt("2b5_1000g", "2.5b-1000g", 2560, 32, 20, 10240, 2_500_000_000),
    _nt("2b5_multi_species", "2.5b-multi-species", 2560, 32, 20, 10240, 2_500_000_000),
    _nt("v2_50m_multi_species", "v2-50m-multi-species", 512, 12, 16, 2048, 50_000_000),
    _nt("v2_100m_multi_species", "v2-100m-multi-species", 512, 22, 16, 2048, 100_000_000),
    _nt("v2_250m_multi_species", "v2-250m-multi-species", 768, 24, 16, 3072, 250_000_000),
    _nt("v2_500m_multi_species", "v2-500m-multi-species", 1024, 29, 16, 4096, 500_000_000),
    _hf("agro_nt_1b", AGRO_HUB, "dna", *AGRO, terms=(CC_NC, AGRO_PAPER)),
    _dnabert("dnabert2_117m", "DNABERT-2-117M", DNABERT2_PAPER),
    _dnabert("dnabert_s", "DNABERT-S", DNABERTS_PAPER),
    _gena("bert_base", "bert-base", 512, 768, 12, 12, 3072, 110_000_000),
    _gena("bert_large", "bert-large", 512, 1024, 24, 16, 4096, 336_000_000),
    _gena("bigbird_base", "bigbird-base", 4096, 768, 12, 12, 3072, 110_000_000, code=False),
    # name, hub, context, width, layers, parameters
    _hyena("tiny_1k", "tiny-1k", 1026, 128, 2, 400_000),
    _hyena("small_32k", "small-32k", 32770, 256, 4, 3_300_000),
    _hyena("medium_160k", "medium-160k", 160002, 256, 8, 6_600_000),
    _hyena("medium_450k", "medium-450k", 450002, 256, 8, 6_600_000),
    _hyena("large_1m", "large-1m", 1000002, 256, 8, 6_600_000),
    _caduceus("ph", 256),
    _caduceus("ps", None),
)

ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Entry | None:
    """The entry of a name or hub id; AIDO.* repositories answer to their newer GB.* ids too."""
    published = name.replace("genbio-ai/GB.", "genbio-ai/AIDO.")
    hubs = {entry.hub: entry for entry in _ENTRIES if entry.hub}
    return ZOO.get(name) or hubs.get(published)
