"""Reads checkpoints through transformers: which class, which of its own code, which keys."""

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgen.backbones.zoo import find
from mgen.config import InputError
from mgen.io.weights import OLD_NORMS

# Parts of published checkpoints that hidden states and logits do not depend on.
UNREAD = re.compile(r"(^|\.)(pooler|contact_head|seq_relationship|classifier|score|qa_outputs)\.")
SHOWN = 20  # keys that do not fit, in a message


def read_config_class(choice, config_json: dict, remote_code: bool) -> Any:
    """transformers' config object. Raises InputError for a model_type that nothing here knows."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    entry, kind = find(choice.name), config_json.get("model_type")
    own_code = config_json.get("auto_map") or {}
    if own_code and remote_code:
        announce(choice.source, choice.at, _files(own_code))
        return AutoConfig.from_pretrained(choice.source, revision=choice.at, trust_remote_code=True)
    if own_code and (kind not in CONFIG_MAPPING or (entry and entry.needs_remote_code)):
        raise InputError(
            f"{choice.name}: this model is Python code of the checkpoint ({_files(own_code)}), "
            "which runs only with --backbone.remote-code. Read it first: it can do what you can."
        )
    if kind not in CONFIG_MAPPING:
        raise InputError(
            f"{choice.name}: model_type {kind!r} of config.json is known neither here nor to "
            f"transformers {transformers.__version__}"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(config_json))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InputError(f"{choice.name}: config.json: {error}") from None


def _files(own_code: dict) -> str:
    """The files that hold the classes of an auto_map, such as "repo--modeling_x.Model"."""
    lists = [value if isinstance(value, list) else [value] for value in own_code.values()]
    names = {name.rpartition(".")[0] + ".py" for names in lists for name in names if name}
    return ", ".join(sorted(name.replace("--", ": ") for name in names))


def announce_tokenizer(choice) -> None:
    """Say which Python files the tokenizer of a checkpoint consists of, if it does."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    own_code = get_tokenizer_config(choice.source, revision=choice.at).get("auto_map")
    if own_code:
        classes = own_code if isinstance(own_code, dict) else {"AutoTokenizer": own_code}
        announce(choice.source, choice.at, _files(classes))


@functools.cache
def announce(source: str, revision: str, files: str) -> None:
    """Say on stderr, once, which Python files of a checkpoint are about to run."""
    lines = [f"remote code: {files} of {source} will run, at revision {revision}"]
    if Path(source).is_dir():
        lines = [f"remote code: {files} of {source} will run. Its Python files:"]
        for file in sorted(Path(source).rglob("*.py")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"  {file.relative_to(source)}  sha256 {digest}")
    print("\n".join(lines), file=sys.stderr)


def auto_class(config: Any, remote_code: bool, stored: set[str] | None) -> tuple[Any, dict]:
    """The Auto class that fits a checkpoint, and options of its constructor.

    `stored` are the names of its tensors; None: random weights are made.
    """
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    kind, named = config.model_type, config.architectures or []
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(kind, "")
    if config.is_encoder_decoder and not encoder:
        raise InputError(f"encoder-decoders of model_type {kind!r} are not supported")
    if config.is_encoder_decoder or (encoder.endswith("EncoderModel") and encoder in named):
        return AutoModelForTextEncoding, {}
    for auto, name in _with_head(config, remote_code):
        if name in named or (not named and stored is None):
            return auto, {}
        if stored is not None and _has_head(auto, config, remote_code, stored):
            return auto, {}
    model = MODEL_MAPPING_NAMES.get(kind)
    known = _parameters_of(model) if isinstance(model, str) and not remote_code else ()
    return AutoModel, {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _with_head(config: Any, remote_code: bool) -> Iterator[tuple[Any, str]]:
    """Auto classes with a language-model head that know this config, and the names of theirs."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    own_code = (getattr(config, "auto_map", None) or {}) if remote_code else {}
    for auto, names in (
        (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ):
        if auto.__name__ in own_code:
            yield auto, own_code[auto.__name__].rpartition(".")[2]
        elif not own_code and config.model_type in names:
            yield auto, names[config.model_type]


def is_causal(model: nn.Module) -> bool:
    """Whether a model predicts the next token: it was made to generate, not to fill in masks."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    name = type(model).__name__
    fills = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    return not fills and name.endswith(("ForCausalLM", "LMHeadModel"))


def _has_head(auto: Any, config: Any, remote_code: bool, stored: set[str]) -> bool:
    """Whether a checkpoint that does not say so holds the whole head of a language model."""
    with torch.device("meta"), quiet():
        model = auto.from_config(config, trust_remote_code=remote_code)
    prefix, tied = f"{model.base_model_prefix}.", set(model.all_tied_weights_keys)
    for old, new in OLD_NORMS.items():
        stored = {key.removesuffix(old) + new if key.endswith(old) else key for key in stored}
    head = {key for key in model.state_dict() if not key.startswith(prefix)} - tied
    return bool(head) and head <= stored


def _parameters_of(name: str) -> tuple[str, ...]:
    import transformers

    return tuple(inspect.signature(getattr(transformers, name).__init__).parameters)


def random_model(choice, config: Any, remote_code: bool) -> nn.Module:
    """The network untrained, on torch's default device; no weights are read."""
    auto, options = auto_class(config, remote_code, None)
    dtype = getattr(torch, choice.dtype)
    with quiet():
        try:
            return auto.from_config(config, trust_remote_code=remote_code, dtype=dtype, **options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"{choice.name}: config.json gives no model: {error}") from None


def refuse_misfits(
    choice, model: nn.Module, report: dict, stored: set[str], config_json: dict, remote_code: bool
) -> None:
    """Raise InputError listing what is missing, left over or of another shape."""
    prefix, of_task = f"{model.base_model_prefix}.", set()
    if model.base_model is model and any(key.startswith(prefix) for key in stored):
        # A network without head, made of a task's checkpoint, leaves that task's head behind.
        of_task = {key for key in stored if not key.startswith(prefix)}
    missing = {key for key in report["missing_keys"] if not UNREAD.search(f".{key}")}
    left = {k for k in report["unexpected_keys"] if k not in of_task and not UNREAD.search(k)}
    problems = [f"missing: {key}" for key in missing] + [f"unexpected: {key}" for key in left]
    problems += [
        f"shape: {key} is {tuple(found)}, config.json says {tuple(expected)}"
        for key, found, expected in report["mismatched_keys"]
    ]
    if not problems:
        return
    shown = sorted(problems)[:SHOWN]
    more = [f"... {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    advice = ""
    if config_json.get("auto_map") and not remote_code:
        files = _files(config_json["auto_map"])
        advice = (
            f"\nThe checkpoint has code of its own ({files}), which may be what these weights are "
            "for; it runs only with --backbone.remote-code."
        )
    lines = "\n  ".join([*shown, *more])
    raise InputError(
        f"{choice.name}: {len(problems)} tensors do not fit config.json:\n  {lines}{advice}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No reports and bars of transformers: what they say is checked here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
