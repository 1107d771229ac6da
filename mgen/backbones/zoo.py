"""Published sequence models: one line of facts each. No torch.

Facts are those of the published config.json files and model cards; None is not known here. A
checkpoint's own config.json always decides when it is loaded; these lines serve listings, checks
before a download, and random weights. Lengths count tokens, special ones included.
"""

from dataclasses import dataclass, field
from typing import Any

GENBIO = "GenBio AI community licence: non-commercial, attribution (see the model card)"
DNA_PAPER = "Ellington et al. 2024, doi:10.1101/2024.12.01.625444"
RNA_PAPER = "Zou et al. 2024, doi:10.1101/2024.11.28.625345"
ESM_PAPER = "Lin et al. 2023, doi:10.1126/science.ade2574"

# Further config.json fields, where known. A field left out has the default of published code.
LAYER_NORM = {"normalization_type": "LayerNorm"}
LAYER_NORM_BIAS = {**LAYER_NORM, "add_linear_bias": True}
RMS_NORM_BIAS = {"normalization_type": "RMSNorm", "add_linear_bias": True}
RMS_NORM_NO_BIAS = {"normalization_type": "RMSNorm", "add_linear_bias": False}
ESM2 = {"position_embedding_type": "rotary", "token_dropout": True, "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class Entry:
    """A named model; `hub` is "" where nothing is published and weights are random."""

    name: str
    family: str
    hub: str
    modality: str
    context: int | None
    width: int | None
    layers: int | None
    heads: int | None
    ffn: int | None
    vocab: int
    config: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""

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
        if None in sizes.values():
            return None
        return {"model_type": self.family, **sizes, **self.config}


def _dna(name: str, hub: str, *facts: Any) -> Entry:
    return Entry(name, "rnabert", hub and f"genbio-ai/{hub}", "dna", *facts, GENBIO, DNA_PAPER)


def _rna(name: str, hub: str, *facts: Any) -> Entry:
    return Entry(name, "rnabert", f"genbio-ai/{hub}", "rna", *facts, GENBIO, RNA_PAPER)


def _esm(name: str, hub: str, *sizes: int) -> Entry:
    hub, facts = f"facebook/{hub}_UR50D", (1026, *sizes, 4 * sizes[0], 33, ESM2)
    return Entry(name, "esm", hub, "protein", *facts, "MIT", ESM_PAPER)


_ENTRIES = (
    # name, hub, context, width, layers, heads, ffn, vocab, further config
    _dna("aido_dna_300m", "AIDO.DNA-300M", None, 1024, 24, None, None, 16, {}),
    _dna("aido_dna_7b", "AIDO.DNA-7B", 4000, 4352, 32, 32, 11584, 16, LAYER_NORM),
    _dna("aido_dna_dummy", "AIDO.DNA-dummy", None, None, None, None, None, 16, {}),
    Entry("aido_dna_debug", "rnabert", "", "dna", 512, 64, 2, 4, 128, 16, RMS_NORM_BIAS),
    _rna("aido_rna_1m_mars", "AIDO.RNA-1M-MARS", 1024, 128, 6, 8, 320, 16, RMS_NORM_NO_BIAS),
    _rna("aido_rna_25m_mars", "AIDO.RNA-25M-MARS", 1024, 512, 8, 16, 1344, 16, LAYER_NORM),
    _rna("aido_rna_300m_mars", "AIDO.RNA-300M-MARS", None, None, None, None, None, 16, {}),
    _rna("aido_rna_650m", "AIDO.RNA-650M", 1024, 1280, 33, 20, 3392, 16, LAYER_NORM_BIAS),
    _rna("aido_rna_650m_cds", "AIDO.RNA-650M-CDS", 1024, 1280, 33, 20, 3392, 16, LAYER_NORM_BIAS),
    _rna("aido_rna_1b600m", "AIDO.RNA-1.6B", 1024, 2048, 32, 32, 5440, 16, LAYER_NORM_BIAS),
    _rna("aido_rna_1b600m_cds", "AIDO.RNA-1.6B-CDS", 1024, 2048, 32, 32, 5440, 16, LAYER_NORM_BIAS),
    # name, hub, width, layers, heads
    _esm("esm2_8m", "esm2_t6_8M", 320, 6, 20),
    _esm("esm2_35m", "esm2_t12_35M", 480, 12, 20),
    _esm("esm2_150m", "esm2_t30_150M", 640, 30, 20),
    _esm("esm2_650m", "esm2_t33_650M", 1280, 33, 20),
    _esm("esm2_3b", "esm2_t36_3B", 2560, 36, 40),
    _esm("esm2_15b", "esm2_t48_15B", 5120, 48, 40),
    Entry("dna_onehot", "onehot", "", "dna", 512, 16, 0, 0, 0, 16),
    Entry("protein_onehot", "onehot", "", "protein", 512, 44, 0, 0, 0, 44),
)

ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Entry | None:
    """The entry of a name or hub id; AIDO.* repositories answer to their newer GB.* ids too."""
    published = name.replace("genbio-ai/GB.", "genbio-ai/AIDO.")
    hubs = {entry.hub: entry for entry in _ENTRIES if entry.hub}
    return ZOO.get(name) or hubs.get(published)
