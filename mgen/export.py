"""Exports of a run: a folder to keep, to hand on or to push, which is a run directory itself.

    mgen export RUN DIR             the whole model: backbone in the published layout, and head
    mgen export RUN DIR --bundle    only what training changed: LoRA (peft layout), and head

A full export loads through transformers where that knows the architecture. Both load through
`mgen.load_run` and a recipe's `--run`, from any place or from the hub.
"""

import ast
import dataclasses
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml
from torch import nn

from mgen import calibration, checkpoint, hub
from mgen.apply import Run, recipe_of
from mgen.backbones import Backbone, backbone, is_run
from mgen.backbones.zoo import find
from mgen.card import Card
from mgen.config import InputError, to_yaml
from mgen.ensemble import step_of
from mgen.report import console, warn
from mgen.runs import checkpoint_of, existing_run, read_json, saved_settings, sessions

# What only means something where the backbone trains, and must not be set where it is frozen.
TRAINING = ("backbone_lr", "backbone_weight_decay", "layer_decay", "unfreeze")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run as a folder that loads anywhere, and push it to the hub if asked to."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # folder or hub id
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]  # new or empty
    bundle: bool = False  # only LoRA matrices, head and settings, without the backbone's weights
    checkpoint: str = "best"  # which of the run: best, last or step-<n>
    base: str = ""  # hub id of the backbone where the run read it from a folder
    recipe: str = ""  # file of the run's task where it is not one of the recipes beside the package
    push_to_hub: str = ""  # USER/NAME on the hub to upload the folder to
    remote_code: bool = False  # let the Python files run that the run's backbone brings along
    private: bool = False  # if it is made on the hub now: only its owner sees it


def export(options: Export) -> Path:
    """Write the folder, whole or not at all, then push it. Raises InputError."""
    if options.push_to_hub:
        hub.check_push(options.push_to_hub)
    run = existing_run(options.run, remote_code=options.remote_code)
    folder = Path(options.folder)
    source, settings = checkpoint_of(run, options.checkpoint), saved_settings(run)
    _check(run, settings, options.bundle)
    if options.base:
        settings["backbone"] |= {"name": options.base, "revision": ""}
    partial = _partial(folder)
    try:
        (partial / "checkpoints").mkdir(parents=True)
        write = _bundle if options.bundle else _whole
        facts = write(options, run, source, settings, partial)
        _describe(options, run, source, settings, facts, partial)
        for file in partial.rglob("*"):
            checkpoint.sync(file)
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"exported {source} to {folder}")
    if options.push_to_hub:
        console.print(f"on the hub: {hub.push(folder, options.push_to_hub, options.private)}")
    return folder


def _check(run: Path, settings: dict, bundle: bool) -> None:
    tuned = settings["backbone"]
    if tuned["name"] == ".":
        raise InputError(f"{run}: is a full export already. Copy or push that folder as it is")
    if bundle and is_run(tuned["name"]):
        raise InputError(
            f"{run}: its backbone is the one that another run, {tuned['name']}, has trained, and "
            "which a bundle leaves out. Leave out --bundle for a full export"
        )
    if not bundle and tuned.get("quantise"):
        raise InputError(
            f"{run}: its backbone was rounded to {tuned['quantise']}, which no weights in the "
            "published format equal. Export a --bundle"
        )
    if not bundle and tuned.get("remote_code"):
        raise InputError(
            f"{run}: its backbone brings Python files of its own, which an export leaves out. "
            "Export a --bundle"
        )


def _partial(folder: Path) -> Path:
    """The sibling in which the export is prepared, empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: holds something already; choose another folder")
    whole = folder.resolve()
    partial = whole.with_name(f".{whole.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


# --------------------------------------------------------------------------- the two forms


def _whole(options: Export, run: Path, source: Path, settings: dict, folder: Path) -> dict:
    """Write the backbone's own files and, from a task that has read them, head and settings."""
    made = Run(run, source.name, options.recipe)
    task = made.task
    for name in task.tokenizers:
        if name != "backbone" and getattr(made.cfg, name).is_random:
            raise InputError(
                f"{run}: began with random weights for --{name}, which nobody can draw again. "
                "Share the run directory as it is"
            )
    if next(task.backbone.parameters(), None) is None:
        raise InputError(f"{run}: its backbone has no weights to export. Export a --bundle")
    facts = _facts(task.backbone, checkpoint.load(source)[0]["model"])
    task.backbone.save(folder)
    head = {k: v for k, v in task.state_dict().items() if not k.startswith("backbone.")}
    cfg = _carried(made.cfg, task.tokenizer.max_length)
    task.backbone = nn.Identity()  # not two of them in memory
    there = dataclasses.replace(cfg, backbone=dataclasses.replace(cfg.backbone, name=str(folder)))
    again = type(task)(there)
    again.facts = task.facts
    again.setup()
    odd = again.load_state_dict(head, strict=False)
    lost = [key for key in odd.missing_keys if not key.startswith("backbone.")]
    assert not (lost or odd.unexpected_keys), (lost, odd.unexpected_keys)
    sha256 = checkpoint.fingerprint(again)
    state = {"facts": task.facts, "backbone": {"frozen_parameters_sha256": sha256}}
    _save(folder, checkpoint.split_lora(checkpoint.trained(again)), state)
    (folder / "config.yaml").write_text(to_yaml(cfg))
    return facts


def _carried(cfg: Any, max_length: int) -> Any:
    """Settings of a run whose trained backbone lies beside them."""
    reset = {f.name: f.default for f in fields(Backbone) if f.name.startswith("lora_")}
    reset |= {"frozen": True, "revision": "", "random_weights": False, "device_map": ""}
    # What the name alone told of it.
    entry = _base({"backbone": {"name": cfg.backbone.name}})[1]
    reset |= {"max_length": max_length, **(entry.options if entry else {})}
    changed: dict[str, Any] = {"backbone": dataclasses.replace(cfg.backbone, name=".", **reset)}
    untuned = {f.name: f.default for f in fields(cfg.train) if f.name in TRAINING}
    changed["train"] = dataclasses.replace(cfg.train, **untuned)
    if "adapter" in vars(cfg):  # its weights are in the checkpoint now
        changed["adapter"] = dataclasses.replace(cfg.adapter, pretrained=False)
    return dataclasses.replace(cfg, **changed)


def _bundle(options: Export, run: Path, source: Path, settings: dict, folder: Path) -> dict:
    """Copy what training changed; the backbone is made without memory, for its facts alone."""
    tensors, saved = checkpoint.load(source)
    facts = _facts(_bare(saved_settings(run)["backbone"]), tensors["model"])
    if facts["finetuned"]:
        raise InputError(
            f"{run}: weights of its backbone were finetuned, and a bundle without them would not "
            "be this model. Leave out --bundle for a full export"
        )
    if "adapter_config" in saved:
        name, entry = _base(settings)
        saved["adapter_config"]["base_model_name_or_path"] = (entry and entry.hub) or name
    kept = ("facts", "backbone", "adapter_config", "unfreeze")
    groups = {name: tensors[name] for name in ("model", "adapter_model") if name in tensors}
    _save(folder, groups, {name: saved[name] for name in kept if name in saved})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    (folder / "config.yaml").write_text(text)
    return facts


def _save(folder: Path, tensors: dict, state: dict) -> None:
    made = checkpoint.save(folder / "checkpoints", 0, tensors, state)
    os.replace(made, folder / "checkpoints" / "best")


def _facts(network: nn.Module, trained: Iterable[str]) -> dict[str, Any]:
    """What the card tells of a backbone; `trained` are the names in a run's model.safetensors."""
    own, held = {id(parameter) for parameter in network.encoder.parameters()}, {*trained}
    named = network.named_parameters()
    return {
        "finetuned": any(f"backbone.{name}" in held for name, p in named if id(p) in own),
        "modality": network.modality,
        "context": network.context,
        "special": network.tokenizer.num_special,
        "auto": _auto_class(network),
    }


def _bare(tuned: dict) -> nn.Module:
    """The backbone of some settings without its weights."""
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in tuned.items()}
    lora = {
        name: Backbone.__dataclass_fields__[name].default for name in options if "lora_" in name
    }
    bare = {"random_weights": True, "quantise": "", "device_map": "", **lora}
    with torch.device("meta"):
        return backbone(**{**options, **bare}).build()


# --------------------------------------------------------------------------- what it says of itself


def _describe(
    options: Export,
    run: Path,
    source: Path,
    settings: dict,
    facts: dict,
    folder: Path,
) -> None:
    """environment.json; results and calibration where they are this checkpoint's; the card."""
    past = [{**session, "command": _shortened(session)} for session in sessions(run)]
    checkpoint.write_json(folder / "environment.json", past)
    file, best = run / "results.json", run / "checkpoints" / "best"
    results = {}
    if file.exists() and best.resolve() == source.resolve():
        results = read_json(file)
        checkpoint.write_json(folder / "results.json", results)
    elif file.exists():
        warn(f"results.json is left out: it is of {best.resolve().name}, not of {source.name}")
    measured, shown = run / calibration.FILE, ""
    if measured.exists():
        found = calibration.read(measured)
        if step_of(source) in (None, found.step):
            dataclasses.replace(found, step=None).write(folder / calibration.FILE)
            shown = found.summary()
        else:
            warn(
                f"{calibration.FILE} is left out: it is of step {found.step}, not of {source.name}"
            )
    name, entry = _base(settings)
    card = Card(
        name=options.push_to_hub or Path(options.folder).resolve().name,
        what=_doc(recipe_of(run, options.recipe)),
        settings=settings,
        session=past[0] if past else {},
        results=results,
        facts=read_json(folder / "checkpoints" / "best" / "facts.json"),
        step=read_json(state)["step"] if (state := source / "state.json").exists() else None,
        bundle=options.bundle,
        base=name,
        entry=entry,
        calibration=shown,
        **facts,
    )
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
    named = {f"data.{key}": value for key, value in settings["data"].items() if key != "name"}
    named |= {"backbone": settings["backbone"]["name"]} if options.bundle else {}
    for key, value in named.items():
        if isinstance(value, str) and Path(value).is_absolute():
            warn(f"config.yaml names --{key} {value}: elsewhere, that has to be set anew")


def _base(settings: dict) -> tuple:
    """Name and zoo entry of the backbone that a run began with, also through other runs."""
    name = settings["backbone"]["name"]
    while is_run(name):
        name = saved_settings(Path(name))["backbone"]["name"]
    return name, find(name)


def _auto_class(network: nn.Module) -> str:
    """The class of transformers that loads a backbone's files, "" where there is none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = network.config_json
    if config.get("model_type") not in CONFIG_MAPPING_NAMES or "auto_map" in config:
        return ""
    kind = type(network.model).__name__
    if kind.endswith("EncoderModel"):  # of an encoder-decoder, which AutoModel would load whole
        return kind
    if re.search("ForCausalLM|LMHead", kind):
        return "AutoModelForCausalLM"
    own = any(key.startswith("lm_head.") for key in network.model.state_dict())
    return "AutoModelForMaskedLM" if own or kind.endswith("ForMaskedLM") else "AutoModel"


def _doc(recipe: Path) -> str:
    """The first line of a recipe's docstring."""
    lines = (ast.get_docstring(ast.parse(recipe.read_text())) or "").splitlines()
    return lines[0] if lines else ""


def _shortened(session: dict) -> list[str]:
    """The command of a session without the folders of the machine it ran on."""
    return [re.sub(r"(^|=)/.*/", r"\1", word) for word in session.get("command", [])]
