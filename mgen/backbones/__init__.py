"""Backbones by name: a zoo name, a hub id, or a folder with config.json and weights.

    network = load_backbone("aido_dna_300m")
    network.embed(["ACGT", "GATTACA"])  # (2, width)

Importing this loads no torch, so that listings and checks of flags are quick.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgen.backbones.zoo import ZOO, find
from mgen.config import Choice, InputError, Registry, nearest

if TYPE_CHECKING:
    from mgen.backbones.sequence import SequenceBackbone
    from mgen.backbones.tokenizer import Tokenizer

FAMILIES = ("rnabert", "esm")  # those that have checkpoints, by `model_type` of config.json


@dataclass(frozen=True, kw_only=True)
class Backbone(Choice):
    """A pretrained network and how it is used.

    Args:
        frozen: keep the pretrained weights as they are
        lora_rank: rank of LoRA matrices, which then train instead of the weights; 0: no LoRA
        lora_alpha: LoRA updates are scaled by alpha / rank
        lora_dropout: dropout before the LoRA matrices
        lora_targets: names of the layers LoRA adapts; none: the family's own choice
        max_length: most tokens per sequence, special ones included; 0: the model's context
        truncate: longer sequences are an error, or cut at their right or left end
        unknown: letters outside the alphabet are an error, or one unknown token each
        as_written: tokenise as published: no upper case, no U to T, unknown letters joined
        dtype: number format of the weights
        random_weights: the same network, untrained; nothing is downloaded
        revision: branch, tag or commit on the hub
    """

    frozen: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.1
    lora_targets: tuple[str, ...] = ()
    max_length: int = 0
    truncate: Literal["error", "right", "left"] = "error"
    unknown: Literal["error", "token"] = "error"
    as_written: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    random_weights: bool = False
    revision: str = "main"

    @property
    def source(self) -> str:
        """The folder or hub id that has the weights; "" where there are none."""
        return ZOO[self.name].hub if self.name in ZOO else self.name

    def tokenizer(self) -> Tokenizer:
        """The tokenizer alone: no weights are read. Raises InputError for contradicting options."""
        self._check()
        entry = find(self.name)
        facts = None if self._folder else entry and entry.config_json()
        return self._tokenizer(facts or self._config_json())

    def build(self) -> SequenceBackbone:
        """The network with its weights, or random ones drawn from torch's current state.

        Raises InputError for contradicting options, missing files, weights that do not fit.
        """
        import torch

        from mgen.io.weights import fetch, load_state, read_weights

        self._check()
        wrapper, options = BACKBONES.construct(self)
        config_json = self._config_json()
        tokenizer, config = self._tokenizer(config_json), wrapper.read(config_json)
        tensors = {}
        if not self._is_random:
            tensors = wrapper.rename(read_weights(fetch(self.source, self.revision)), config)
        with torch.device("meta"):
            network = wrapper(config, tokenizer, set(tensors), **options)
        if self._is_random:
            network.to_empty(device=torch.get_default_device())
            network.model.initialise()
            network.to(getattr(torch, self.dtype))
        else:
            network.to(getattr(torch, self.dtype)).to_empty(device=torch.get_default_device())
            load_state(network.model, tensors, self.name)
        for head in network.heads:
            head.requires_grad_(False)
        if self.frozen:
            network.requires_grad_(False)
        if self.lora_rank:
            _adapt(network, self)
        return network

    @property
    def _folder(self) -> Path | None:
        return Path(self.source) if self.source and Path(self.source).is_dir() else None

    @property
    def _is_random(self) -> bool:
        return self.random_weights or not self.source

    def _check(self) -> None:
        if self.frozen and self.lora_rank:
            raise InputError(
                "--backbone.frozen and --backbone.lora-rank contradict each other: LoRA already "
                "keeps the weights and trains small matrices beside them. Drop --backbone.frozen, "
                "or set --backbone.lora-rank 0."
            )
        if self.lora_targets and not self.lora_rank:
            raise InputError("--backbone.lora-targets needs --backbone.lora-rank above 0")
        if self.lora_rank < 0 or self.max_length < 0:
            raise InputError("--backbone.lora-rank and --backbone.max-length are 0 or more")

    def _config_json(self) -> dict:
        """The checkpoint's own config.json, or that of the zoo where no file is to be read."""
        from mgen.io.weights import read_config

        entry = find(self.name)
        if self._is_random and entry and not self._folder:
            if facts := entry.config_json():
                return facts
            raise InputError(
                f"{self.name}: its sizes are not known without its config.json, so random weights "
                "need a copy of that file; give the folder that holds it as the name"
            )
        return read_config(self.source, self.revision)

    def _tokenizer(self, config_json: dict) -> Tokenizer:
        from mgen.backbones.tokenizer import Tokenizer

        wrapper, _ = BACKBONES.construct(self)
        config, entry = wrapper.read(config_json), find(self.name)
        modality = entry.modality if entry else wrapper.modality_by_default
        vocabulary, style = wrapper.alphabet(modality)
        if self._folder and (own := self._folder / "vocab.txt").is_file():
            vocabulary = own.read_text(encoding="utf-8").split()
        return Tokenizer(
            vocabulary[: config.vocab_size],  # tokens past the embedding table cannot be used
            style,
            modality=modality,
            max_length=self.max_length or config.max_position_embeddings,
            truncate=self.truncate,
            unknown=self.unknown,
            as_written=self.as_written,
        )


def _adapt(network: SequenceBackbone, choice: Backbone) -> None:
    """Put LoRA matrices (Hu et al. 2021, arXiv:2106.09685) beside the targets; only they train."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    targets = choice.lora_targets or network.lora_targets
    layers = {n: m for n, m in network.encoder.named_modules() if isinstance(m, torch.nn.Linear)}
    last = sorted({name.rpartition(".")[2] for name in layers})
    if not layers:
        raise InputError(f"{choice.name} has no weights for LoRA; drop --backbone.lora-rank")
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise InputError(
                f"--backbone.lora-targets: no layer of {choice.name} is called '{target}'."
                f"{nearest(target, last)} Layers are {', '.join(last)}."
            )
    config = LoraConfig(
        r=choice.lora_rank,
        lora_alpha=choice.lora_alpha,
        lora_dropout=choice.lora_dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(config, network.encoder, "default")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:  # trained in full precision beside weights of any dtype
            parameter.data = parameter.data.float()


def _family(name: str) -> str:
    """The family a name stands for. Raises InputError for a name, folder or id nobody knows."""
    if name in ZOO:
        return ZOO[name].family
    if Path(name).is_dir():
        return _model_type(name)
    if entry := find(name):
        return entry.family
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"no folder '{name}'; expected one with config.json and weights")
    if "/" in name:
        return _hub_model_type(name)
    raise InputError(
        f"no backbone '{name}'.{nearest(name, ZOO)} Known: {', '.join(ZOO)}; or a folder, "
        "or a hub id such as genbio-ai/AIDO.DNA-300M."
    )


def _model_type(source: str) -> str:
    from mgen.io.weights import read_config

    kind = read_config(source).get("model_type")
    if kind not in FAMILIES:
        raise InputError(
            f"{source}/config.json: model_type {kind!r} is not supported; "
            f"expected {' or '.join(FAMILIES)}"
        )
    return kind


_hub_model_type = functools.cache(_model_type)

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


@BACKBONES.register("esm")
def _esm(*, dropout: float = 0.0) -> tuple:
    """Protein encoder (ESM-2).

    Args:
        dropout: share of hidden units and attention probabilities dropped in training
    """
    from mgen.backbones.esm import ESMBackbone

    return ESMBackbone, {"dropout": dropout}


@BACKBONES.register("onehot")
def _onehot() -> tuple:
    """One-hot vectors, without a network."""
    from mgen.backbones.onehot import OneHotBackbone

    return OneHotBackbone, {}


def load_backbone(name: str, **options) -> SequenceBackbone:
    """The network `name` stands for, in eval mode; options are those of `Backbone`."""
    return backbone(name, **options).build().eval()
