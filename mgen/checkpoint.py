"""Checkpoints: written whole or not at all, checked when read; and what a run directory holds."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from mgen import pieces
from mgen.config import InputError

MANIFEST = "complete.json"  # written last: size and SHA-256 of every other file
OURS, PEFT = "backbone.model.", "base_model.model."  # where a LoRA matrix's name starts
DORA = ".lora_magnitude_vector"  # peft's files name this one without ".weight"


# --------------------------------------------------------------------------- one checkpoint


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict,
    rank: int = 0,
    gather: Callable[[Any], list] = lambda own: [own],
) -> Path:
    """Write `folder/step-<n>`: `tensors` as <name>.safetensors, dicts in `state` as <name>.json.

    Everything goes to a temporary sibling, is synced to disk and listed in a manifest; then the
    sibling takes its name. Killed at any instant, this leaves a complete checkpoint, under its own
    name or one that `recover` gives it, or what was there before. Where tensors are in pieces every
    process calls this, writes its own, <name>.<1-based rank>-of-<processes>.safetensors, and gets
    from `gather` what each process hands to it; the first writes all else, and is the last done.
    """
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    with writing(final, partial):
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        world = len(gather(None))  # the folder is there
        files = _write_tensors(partial, tensors, rank, world)
        if rank == 0:
            for name, content in state.items():
                (partial / f"{name}.json").write_text(json.dumps(content, indent=1))
            files += [partial / f"{name}.json" for name in state]
        entries = {f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in sorted(files)}
        for file in files:
            sync(file)
        manifest = {name: entry for own in gather(entries) for name, entry in own.items()}
        if rank == 0:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            sync(partial / MANIFEST)
            sync(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            sync(folder)
    return final


def _write_tensors(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], rank: int, world: int
) -> list[Path]:
    """Write what this process holds; what is whole, the first does."""
    from safetensors.torch import save_file

    files = []
    for name, group in tensors.items():
        cut = {key: value for key, value in group.items() if pieces.is_piece(value)}
        held = dict(group) if rank == 0 else cut
        if rank and not cut:
            continue
        # Contiguous copies: tied or sliced tensors may share storage, which the format refuses.
        copies = {
            key: pieces.own(value).detach().cpu().contiguous().clone()
            for key, value in held.items()
        }
        part = f".{rank + 1:05}-of-{world:05}" if cut else ""
        files.append(folder / f"{name}{part}.safetensors")
        save_file(copies, files[-1])
    return files


class Joined(Mapping):
    """Tensors of several files by name; one in pieces is put together when it is asked for."""

    def __init__(self, files: list[dict[str, Tensor]]) -> None:
        self.files, self.names = files, list(dict.fromkeys(name for f in files for name in f))

    def __getitem__(self, name: str) -> Tensor:
        held = [file[name] for file in self.files if name in file]
        if not held:
            raise KeyError(name)
        return torch.cat(held) if len(held) > 1 else held[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def fault(checkpoint: Path) -> str:
    """Why a checkpoint cannot be trusted, or "" if it is complete and unchanged."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        for name, entry in manifest.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
            if _digest(file) != entry["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"
    return ""


def load(checkpoint: Path) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """The tensors and the state of a complete checkpoint. Raises InputError if it is damaged.

    Tensors are whole, whatever the number of pieces they lie in. They take no memory before they
    are used: files are mapped.
    """
    from safetensors.torch import load_file

    if problem := fault(checkpoint):
        raise InputError(f"checkpoint {checkpoint}: {problem}")
    files: dict[str, list] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):  # in the order of the pieces
        files.setdefault(file.name.partition(".")[0], []).append(load_file(file))
    tensors = {name: Joined(held) if len(held) > 1 else held[0] for name, held in files.items()}
    names = sorted(f for f in checkpoint.glob("*.json") if f.name != MANIFEST)
    return tensors, {f.stem: json.loads(f.read_text()) for f in names}


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    newest_first = sorted(folder.glob("step-*"), key=step_of, reverse=True)
    return next((checkpoint for checkpoint in newest_first if not fault(checkpoint)), None)


def recover(folder: Path) -> list[str]:
    """Make `newest` the newest of all; returns what was wrong with those moved out of its way."""
    for partial in folder.glob(".step-*.partial"):
        final = folder / partial.name[1:].removesuffix(".partial")
        if fault(partial):
            shutil.rmtree(partial)
        else:  # killed when all was written, possibly after an older one of this step was deleted
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
    found, problems = newest(folder), []
    for checkpoint in sorted(folder.glob("step-*"), key=step_of, reverse=True):
        if checkpoint == found:
            break
        aside = folder / f"damaged-{checkpoint.name}"
        problems.append(f"{checkpoint.name} is not used, now {aside.name}: {fault(checkpoint)}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
    return problems


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def link(folder: Path, name: str, step: int) -> None:
    """Make `folder/<name>` point to `step-<n>`, atomically."""
    partial = folder / f".{name}.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(f"step-{step}")
    os.replace(partial, folder / name)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` (1 or more) newest checkpoints and the best step of each."""
    by_step, best = sorted(folder.glob("step-*"), key=step_of), set()
    for checkpoint in by_step[-keep:]:
        with contextlib.suppress(OSError, ValueError):  # `recover` deals with damaged ones
            best.add(json.loads((checkpoint / "state.json").read_text())["best"])
    for checkpoint in by_step[:-keep]:
        if step_of(checkpoint) not in best:
            shutil.rmtree(checkpoint)


# --------------------------------------------------------------------------- what is saved


def trained(task: nn.Module) -> dict[str, Tensor]:
    """What training may change: trainable parameters, and the buffers a module keeps."""
    parameters = task.named_parameters(remove_duplicate=False)
    frozen = {name for name, parameter in parameters if not parameter.requires_grad}
    return {name: value for name, value in task.state_dict().items() if name not in frozen}


def digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, type, shape and bytes of tensors, sorted by name; "" of none."""
    total, any_ = hashlib.sha256(), False
    for name, tensor in sorted(named, key=lambda item: item[0]):
        any_ = True
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        tensor = pieces.whole(tensor.detach())
        total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest() if any_ else ""


def fingerprint(task: nn.Module, frozen_only: bool = True) -> str:
    """`digest` of the (frozen) parameters; every process must ask if they are in pieces."""
    named = task.named_parameters()
    return digest((n, p) for n, p in named if not (frozen_only and p.requires_grad))


def restore(task: nn.Module, tensors: dict, saved: dict, path: Path, sha256: str = "") -> None:
    """Put the weights of checkpoint `path`, as `load` gave them, into `task`.

    `sha256` is the fingerprint of the task's frozen parameters where it is known already. Raises
    InputError if those are not the ones the run was trained on, or if anything is missing, left
    over or of another shape.
    """
    state = join_lora(tensors)
    if "unfreeze" in saved:  # what no epoch of the schedule named stayed frozen in training
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in state)
    if saved["backbone"]["frozen_parameters_sha256"] != (sha256 or fingerprint(task)):
        raise InputError(
            f"{path}: was trained on other backbone weights than those loaded now. Use the same "
            "backbone, revision and dtype, or the same seed if they were random"
        )
    own = {name: tuple(value.shape) for name, value in trained(task).items()}
    read = {name: tuple(value.shape) for name, value in state.items()}
    if own != read:
        wrong = sorted(set(own.items()) ^ set(read.items()))[:5]
        raise InputError(f"{path}: does not fit these settings, first at {wrong}")
    with torch.no_grad():
        for name, value in trained(task).items():
            pieces.own(value).copy_(pieces.cut(state[name], value))


def split_lora(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """LoRA matrices under the names that peft gives them in its own files, the rest as it is."""
    lora = {key: value for key, value in state.items() if ".lora_" in key}
    files = {"model": {key: value for key, value in state.items() if key not in lora}}
    if lora:
        named = {key.replace(OURS, PEFT, 1).replace(".default", ""): v for key, v in lora.items()}
        files["adapter_model"] = {
            key.replace(f"{DORA}.weight", DORA): value for key, value in named.items()
        }
    return files


def join_lora(tensors: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The inverse of `split_lora`."""
    lora = {}
    for key, value in tensors.get("adapter_model", {}).items():
        key = f"{key}.weight" if key.endswith(DORA) else key
        layer, _, weight = key.rpartition(".")
        lora[f"{layer.replace(PEFT, OURS, 1)}.default.{weight}"] = value
    return ChainMap(lora, tensors["model"])


def lora_config(task: nn.Module) -> dict[str, dict]:
    """peft's adapter_config.json of the LoRA matrices in a task; nothing without them."""
    configs = [vars(m)["peft_config"] for m in task.modules() if "peft_config" in vars(m)]
    if not configs:
        return {}
    config = configs[0]["default"]
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    return {"adapter_config": json.loads(json.dumps(plain, default=str))}


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: dict) -> dict[str, Tensor]:
    """Optimiser state as `<parameter>/<entry>` tensors; `names` maps parameters to names."""
    return {
        f"{names[parameter]}/{entry}": value
        for parameter, entries in optimiser.state.items()
        for entry, value in entries.items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, names: dict, tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimiser_tensors`."""
    parameters = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimiser.state[parameter][entry] = pieces.place(value, parameter)


# --------------------------------------------------------------------------- files of a run


def write_json(file: Path, content: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite, which it lacks, become null."""
    write_text(file, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def finite(content: Any) -> Any:
    """`content` with None for every number that is not finite."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole(file) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A file to write in place of `file`, which it becomes when all of it is on disk."""
    partial = file.with_name(f".{file.name}.partial")
    with writing(file, partial):
        yield partial
        sync(partial)
        os.replace(partial, file)


@contextlib.contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Raise InputError where the disk refuses what is written for `path`, and drop `partial`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if partial and partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise InputError(
            f"{path}: cannot be written ({error}). What was there before is as it was; make room "
            "or give the right to write, then go on with the same command and --resume"
        ) from None


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in a folder, made here if it is not there."""
    probe = folder / ".probe"
    with writing(folder, probe):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"1")
        probe.unlink()


def cut_metrics(file: Path, steps: dict[str, int]) -> None:
    """Keep the lines of `metrics.jsonl` up to the step that `steps` gives for their split.

    Lines of other splits go, and so does one cut short by a kill: all are written again.
    """
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # only the last line can be cut short
            row = json.loads(line)
            if row["step"] <= steps.get(row["split"], -1):
                kept.append(line)
    write_text(file, "".join(line + "\n" for line in kept))


def lock(folder: Path) -> TextIO:
    """Hold the run directory until the returned file is closed or the process ends.

    Raises InputError if another process holds it.
    """
    file = open(folder / ".lock", "w")  # noqa: SIM115  (held open on purpose)
    try:
        # Not flock: worker processes would inherit that and hold it on after this one's death.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{folder}: another process is writing to this run") from None
    return file


def differences(old: dict, new: dict, prefix: str = "") -> Iterable[str]:
    """The settings in which two nested configs differ, as `name: old -> new`."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}: {a!r} -> {b!r}"


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
