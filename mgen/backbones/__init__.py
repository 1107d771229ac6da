"""Backbones by name: a zoo name, a hub id, or a folder with config.json and weights.

    network = load_backbone("aido_dna_300m")
    network.embed(["ACGT", "GATTACA"])  # (2, width)

Importing this loads no torch, so that listings and checks of flags are quick.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgen.backbones.zoo import ZOO, find
from mgen.config import NOT_SAVED, Absent, Choice, InputError, Registry, nearest

if TYPE_CHECKING:
    from mgen.backbones.sequence import SequenceBackbone
    from mgen.backbones.tokenizer import Tokenizer

Values = Literal["counts", "decimal", "log1p"]
Pooled = Literal["all", "present", "expressed"]
# Own families with checkpoints, by `model_type` of config.json.
FAMILIES = ("rnabert", "fm4bio", "scimilarity")
BY_FIELDS = {  # under other names, or by other fields of it
    "aido_cell": {"model_type": "cellfoundation"},
    "aido_tissue": {"model_type": "cellspatialfoundation"},
    "scfoundation": {"model": "mae_autobin"},
    "geneformer": {"model_type": "bert", "modality": "cell"},
}
PICKLED = {  # published without config.json, by the file that holds the weights
    "models.ckpt": "scfoundation",
    "model_v1.1/encoder.ckpt": "scimilarity",
    "encoder.ckpt": "scimilarity",
    "layer_sizes.json": "scimilarity",
}


@dataclass(frozen=True, kw_only=True)
class Backbone(Choice):
    """A pretrained network and how it is used.

    Args:
        frozen: keep the pretrained weights as they are
        lora_rank: rank of LoRA matrices, which then train instead of the weights; 0: no LoRA
        lora_alpha: LoRA updates are scaled by alpha / rank
        lora_rslora: scale them by alpha / sqrt(rank) instead
        lora_dora: train the length of weight rows apart from their direction
        lora_dropout: dropout before the LoRA matrices
        lora_targets: names of the layers LoRA adapts, or all-linear; none: the family's own choice
        max_length: most tokens per sequence, special ones included; 0: the model's context
        truncate: longer sequences are an error, cut at an end, or read in overlapping windows
        unknown: letters outside the alphabet are an error, or one unknown token each
        as_written: tokenise as published: no upper case, no U to T, unknown letters joined
        dtype: number format of the weights
        quantise: keep frozen weights in 8 or 4 bits (CUDA, needs bitsandbytes)
        gradient_checkpointing: recompute activations in the backward pass to save memory
        attention: sdpa pads rows, varlen (CUDA) and document pack them, auto takes what is fast
        compile: compile the blocks with torch.compile, once for all lengths
        device_map: auto spreads the network over all devices of this process
        random_weights: the same network, untrained; nothing is downloaded
        revision: branch, tag or commit on the hub; none: the one listed for the name
        cache: folder that keeps the outputs of frozen weights, so that none is computed twice
        cache_dtype: number format of outputs in the cache
        cache_gb: most gigabytes of the cache; the least recently used go first; 0: no limit
    """

    frozen: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_rslora: bool = False
    lora_dora: bool = False
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ()
    max_length: int = 0
    truncate: Literal["error", "right", "left", "window"] = "error"
    unknown: Literal["error", "token"] = "error"
    as_written: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantise: Literal["", "8bit", "4bit"] = ""
    gradient_checkpointing: bool = False
    attention: Literal["auto", "sdpa", "varlen", "document"] = "auto"
    compile: bool = False
    device_map: Literal["", "auto"] = ""
    random_weights: bool = False
    revision: str = ""
    cache: str = field(default="", metadata=NOT_SAVED)
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    cache_gb: float = field(default=50.0, metadata=NOT_SAVED)

    @property
    def source(self) -> str:
        """The folder or hub id that has the weights; "" where there are none."""
        return ZOO[self.name].hub if self.name in ZOO else self.name

    @property
    def folder(self) -> Path | None:
        """The source where it is a folder."""
        return Path(self.source) if self.source and Path(self.source).is_dir() else None

    @property
    def at(self) -> str:
        """The revision to read on the hub."""
        entry = find(self.name)
        return self.revision or (entry.revision if entry else "main")

    @property
    def is_random(self) -> bool:
        return self.random_weights or not self.source

    def tokenizer(self) -> Tokenizer:
        """The tokenizer alone: no weights are read. Raises InputError for contradicting options."""
        self._check()
        choice = _base(self)
        wrapper, options = BACKBONES.construct(choice)
        entry = find(choice.name)
        facts = None if choice.folder else entry and entry.config_json()
        return wrapper.make_tokenizer(choice, facts or choice._config_json(), **options)

    def build(self) -> SequenceBackbone:
        """The network with its weights, or random ones drawn from torch's current state.

        Raises InputError for contradicting options, missing files, weights that do not fit.
        """
        import torch

        from mgen.backbones import lora, memory

        self._check()
        is_shape = torch.get_default_device().type == "meta"
        if self.quantise and not (is_shape or torch.cuda.is_available()):
            raise InputError(f"--backbone.quantise {self.quantise} needs a CUDA device; drop it")
        if self.attention == "varlen" and not (is_shape or torch.cuda.is_available()):
            raise InputError(
                "--backbone.attention varlen needs a CUDA device; drop it, or set it to document"
            )
        if self.lora_targets and not (is_shape or self.is_random):
            with torch.device("meta"):  # a wrong target is found before weights are read
                replace(self, random_weights=True).build()
        choice, cache = _base(self), None
        if self.cache and not is_shape:
            from mgen.backbones.cache import OutputCache

            cache = OutputCache(self)  # a folder that cannot be used is found before weights are
        wrapper, options = BACKBONES.construct(choice)
        config_json = choice._config_json()
        tokenizer = wrapper.make_tokenizer(choice, config_json, **options)
        if choice is self or self.random_weights:
            network = wrapper.load(choice, config_json, tokenizer, **options)
        else:
            network = self._of_run()
        for head in network.heads:
            head.requires_grad_(False)
        if self.frozen:
            network.requires_grad_(False)
        if self.quantise and not is_shape:
            memory.quantise(network, self.quantise)
        if self.lora_rank:
            lora.adapt(network, self)
        network.use_attention(self.attention)
        if self.gradient_checkpointing:
            memory.recompute_blocks(network)
        if self.compile and not is_shape:
            memory.compile_blocks(network)
        network.cache = cache
        return network

    def check_cache(self, training: bool) -> None:
        """Raise InputError where outputs cannot be kept, or were and now would not be rounded."""
        if self.cache and training and not self.frozen:
            raise InputError(
                f"--backbone.cache {self.cache}: the outputs of a backbone that trains cannot be "
                "kept. Set --backbone.frozen, or drop --backbone.cache"
            )
        if self.cache and vars(self).get("remote_code"):
            raise InputError(
                "--backbone.cache: a checkpoint's own code may change unseen, and outputs kept of "
                "it be wrong. Drop --backbone.cache"
            )
        if training and not self.cache and self.cache_dtype != "float32":
            raise InputError(
                f"--backbone.cache-dtype {self.cache_dtype} rounds what a cache keeps; name its "
                "folder with --backbone.cache (a run does not save that)"
            )

    def _of_run(self) -> SequenceBackbone:
        from mgen.backbones.handover import trained_backbone
        from mgen.backbones.memory import cast

        settings = _settings(self.name)
        reading = ("max_length", "truncate", "unknown", "as_written", "device_map", "attention")
        began = _began(settings)
        own = {"dropout"} & vars(began).keys()
        options = {name: getattr(self, name) for name in (*reading, *own)}
        began = replace(began, gradient_checkpointing=False, compile=False, **options)
        network = trained_backbone(self.name, began, settings["train"]["seed"])
        cast(network, self.dtype)
        return network

    def _check(self) -> None:
        if self.frozen and self.lora_rank:
            raise InputError(
                "--backbone.frozen and --backbone.lora-rank contradict each other: LoRA already "
                "keeps the weights and trains small matrices beside them. Drop --backbone.frozen, "
                "or set --backbone.lora-rank 0."
            )
        for name, value in vars(self).items():
            flag = f"--backbone.{name.replace('_', '-')}"
            if name in ("lora_targets", "lora_rslora", "lora_dora"):
                if value and not self.lora_rank:
                    raise InputError(f"{flag} needs --backbone.lora-rank above 0")
            elif name in ("dropout", "lora_dropout"):
                if not 0 <= value < 1:
                    raise InputError(f"{flag} {value}: expected a share from 0 to below 1")
            elif name == "emb_layer":
                continue  # counts from the end, and is checked where layers are known
            elif isinstance(value, int | float) and not 0 <= value < math.inf:
                raise InputError(f"{flag} {value}: expected 0 or more")
        if self.quantise and not (self.frozen or self.lora_rank):
            raise InputError(
                f"--backbone.quantise {self.quantise}: rounded weights cannot train. Set "
                "--backbone.lora-rank, or --backbone.frozen"
            )
        if self.device_map and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError(
                "--backbone.device-map auto is for one process, which then uses every device; "
                "several processes have a device each. Drop it, or start one process"
            )

    def _config_json(self) -> dict:
        """The checkpoint's own config.json, or that of the zoo where no file is to be read."""
        entry = find(self.name)
        if self.is_random and entry and not self.folder:
            if facts := entry.config_json():
                return facts
            raise Absent(
                f"{self.name}: its sizes are not known without its config.json, so random weights "
                "need a copy of that file; give the folder that holds it as the name"
            )
        return BACKBONES.construct(self)[0].config_file(self)


def is_run(name: str) -> bool:
    """Whether a name is a run directory whose trained backbone is meant."""
    folder = Path(name)
    return (folder / "config.yaml").is_file() and not (folder / "config.json").is_file()


def _settings(run: str) -> dict:
    import yaml

    settings = yaml.safe_load((Path(run) / "config.yaml").read_text()) or {}
    if not isinstance(settings, dict) or not isinstance(settings.get("backbone"), dict):
        raise InputError(f"{run}: its config.yaml names no backbone")
    return settings


def _began(settings: dict) -> Backbone:
    """The backbone a run was trained with."""
    options = settings["backbone"].items()
    return backbone(**{name: tuple(v) if isinstance(v, list) else v for name, v in options})


def _base(choice: Backbone) -> Backbone:
    """`choice`, or where it names a run that of the network which the run began with."""
    if not is_run(choice.name):
        return choice
    began = _base(_began(_settings(choice.name)))
    if vars(began).get("remote_code") and not vars(choice).get("remote_code"):
        raise InputError(
            f"--backbone {choice.name}: the network of this run is Python code of its checkpoint, "
            "which runs only with --backbone.remote-code"
        )
    shared = {f.name: getattr(choice, f.name) for f in fields(Backbone)}
    shared |= {"name": began.name, "revision": began.revision}
    return replace(began, **shared)


def _family(name: str) -> str:
    """The family a name stands for. Raises InputError for a name, folder or id nobody knows."""
    if name in ZOO:
        return ZOO[name].family
    if name == "none":
        return name
    if is_run(name):
        return _family(_settings(name)["backbone"]["name"])
    if Path(name).is_dir():
        return _family_of(name)
    if entry := find(name):
        return entry.family
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"no folder '{name}'; expected one with config.json and weights")
    if "/" in name:
        return _hub_family(name)
    raise InputError(
        f"no backbone '{name}'.{nearest(name, ZOO)} `mgen list backbones` prints the names; or a "
        "folder, or a hub id such as genbio-ai/AIDO.DNA-300M."
    )


def _family_of(source: str) -> str:
    """The family of a checkpoint by its config.json; transformers' own where it is none of ours."""
    from mgen.io.weights import fetch_file, read_config

    if Path(source).is_dir() and (found := fetch_file(source, "", *PICKLED)):
        return PICKLED[str(found.relative_to(source))]
    config = read_config(source)
    kind = config.get("model_type")
    for family, fields_of in BY_FIELDS.items():
        if fields_of.items() <= config.items():
            return family
    is_plain = config.get("position_embedding_type") == "rotary" and "auto_map" not in config
    if kind == "esm" and is_plain:
        return kind
    return kind if kind in FAMILIES else "huggingface"


_hub_family = functools.cache(_family_of)

BACKBONES = Registry(Backbone, "backbone", _family)
backbone = BACKBONES.choose


@BACKBONES.register("rnabert")
def _rnabert(*, dropout: float = 0.0) -> tuple:
    """Nucleotide encoder (AIDO.DNA, AIDO.RNA).

    Args:
        dropout: share of hidden units and attention probabilities dropped in training
    """
    from mgen.backbones.rnabert import RNABertBackbone

    return RNABertBackbone, {"dropout": dropout}


@BACKBONES.register("fm4bio")
def _fm4bio(*, dropout: float = 0.0) -> tuple:
    """Protein encoder (AIDO.Protein, AIDO.Protein-RAG, AIDO.Protein2StructureToken).

    Args:
        dropout: share of hidden units and attention probabilities dropped in training
    """
    from mgen.backbones.fm4bio import FM4BioBackbone

    return FM4BioBackbone, {"dropout": dropout}


@BACKBONES.register("esm")
def _esm(*, dropout: float = 0.0) -> tuple:
    """Protein encoder (ESM-2).

    Args:
        dropout: share of hidden units and attention probabilities dropped in training
    """
    from mgen.backbones.esm import ESMBackbone

    return ESMBackbone, {"dropout": dropout}


@BACKBONES.register("huggingface")
def _huggingface(*, spaced: bool = False, remote_code: bool = False) -> tuple:
    """A model that transformers knows.

    Args:
        spaced: residues are separated by spaces, and U, Z, O, B read as X, before tokenising
        remote_code: run the Python files that the checkpoint brings along; they are printed first
    """
    from mgen.backbones.huggingface import HuggingFaceBackbone

    return HuggingFaceBackbone, {"spaced": spaced, "remote_code": remote_code}


@BACKBONES.register("onehot")
def _onehot() -> tuple:
    """One-hot vectors, without a network."""
    from mgen.backbones.onehot import OneHotBackbone

    return OneHotBackbone, {}


@BACKBONES.register("logcounts")
def _logcounts(*, genes: str = "", values: Values = "counts", as_published: bool = False) -> tuple:
    """Logarithms of a cell's normalised counts, without a network.

    Args:
        genes: table with a column gene_name or ensembl_id, or .h5ad file, whose genes these are
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        as_published: of a gene's columns in a file the first counts, not their sum
    """
    from mgen.backbones.logcounts import LogCountsBackbone

    return LogCountsBackbone, {"genes": genes, "values": values, "as_published": as_published}


@BACKBONES.register("aido_cell")
def _aido_cell(
    *,
    genes: str = "",
    values: Values = "counts",
    pooled_genes: Pooled = "all",
    dropout: float = 0.0,
    as_published: bool = False,
) -> tuple:
    """AIDO.Cell: all genes of a cell, those it does not express too.

    Args:
        genes: table with a column gene_name or ensembl_id, or .h5ad file, whose genes these are
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        pooled_genes: which genes pooling counts: all, those in the file, or those not zero
        dropout: share of hidden units and attention probabilities dropped in training
        as_published: values are rounded to bfloat16
    """
    from mgen.backbones.cellfoundation import CellFoundationBackbone

    options = {"genes": genes, "values": values, "pooled_genes": pooled_genes}
    return CellFoundationBackbone, options | {"dropout": dropout, "as_published": as_published}


@BACKBONES.register("aido_tissue")
def _aido_tissue(
    *,
    genes: str = "",
    values: Values = "counts",
    rope2d_use_xy: bool = False,
    dropout: float = 0.0,
    as_published: bool = False,
) -> tuple:
    """AIDO.Tissue: the genes that a cell and its neighbours express.

    Args:
        genes: table with a column gene_name or ensembl_id, or .h5ad file, whose genes these are
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        rope2d_use_xy: x and y of the cell in place of which gene and which neighbour a token is
        dropout: share of hidden units and attention probabilities dropped in training
        as_published: totals are of a whole batch, in bfloat16, and padding is attended to
    """
    from mgen.backbones.tissuefoundation import TissueFoundationBackbone

    options = {"genes": genes, "values": values, "rope2d_use_xy": rope2d_use_xy}
    return TissueFoundationBackbone, options | {"dropout": dropout, "as_published": as_published}


@BACKBONES.register("scfoundation")
def _scfoundation(
    *,
    genes: str = "",
    values: Values = "counts",
    depth: float = 4.0,
    bulk: bool = False,
    weights: Literal["cell", "gene"] = "cell",
    dropout: float = 0.0,
    as_published: bool = False,
) -> tuple:
    """scFoundation: the genes a cell expresses, with their values.

    Args:
        genes: table with a column gene_name or ensembl_id, or .h5ad file, whose genes these are
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        depth: log10 of the counts that the model is to think of, beside log10 of those there are
        bulk: samples are of bulk expression, read without normalisation
        weights: which of the published weights: for embeddings of cells, or of genes
        dropout: share of hidden units and attention probabilities dropped in training (0.1 there)
        as_published: depths are of logarithms, values are rounded, cells of a batch interact
    """
    from mgen.backbones.scfoundation import ScFoundationBackbone

    options = {"genes": genes, "values": values, "depth": depth, "bulk": bulk}
    return ScFoundationBackbone, options | {"dropout": dropout, "as_published": as_published}


@BACKBONES.register("scimilarity")
def _scimilarity(
    *, genes: str = "", values: Values = "counts", as_published: bool = False
) -> tuple:
    """SCimilarity: a cell as one unit vector.

    Args:
        genes: table with a column gene_name or ensembl_id, or .h5ad file, whose genes these are
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        as_published: counts are rounded to bfloat16
    """
    from mgen.backbones.scimilarity import SCimilarityBackbone

    return SCimilarityBackbone, {"genes": genes, "values": values, "as_published": as_published}


@BACKBONES.register("geneformer")
def _geneformer(
    *,
    genes: str = "",
    values: Values = "counts",
    collapse: bool = True,
    emb_layer: int = -2,
    as_published: bool = False,
) -> tuple:
    """Geneformer: the genes a cell expresses, ranked by how unusual their values are.

    Args:
        genes: table of all tokens by id, special ones first: ensembl_id, and median of a gene
        values: what cells hold: counts, counts that are not whole, or ln(1 + 1e4 c / T) of them
        collapse: read symbols, aliases and older Ensembl ids as the current ids
        emb_layer: which hidden state is given: -1 the last, which the language-model head needs
        as_published: the total is of the model's genes alone, and no id is collapsed
    """
    from mgen.backbones.geneformer import GeneformerBackbone

    options = {"genes": genes, "values": values, "collapse": collapse}
    return GeneformerBackbone, options | {"as_published": as_published}


@BACKBONES.register("none")
def _none() -> tuple:
    """No backbone, where a recipe can do with fewer."""
    raise InputError("--backbone none: this recipe needs one; `mgen list backbones` prints names")


def load_backbone(name: str, **options) -> SequenceBackbone:
    """The network `name` stands for, in eval mode; options are those of `Backbone`."""
    return backbone(name, **options).build().eval()
