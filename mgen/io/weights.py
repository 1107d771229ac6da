"""Read published checkpoints: config.json and weights, from a folder or the Hugging Face hub.

Weights may be model.safetensors, pytorch_model.bin, or either one in shards listed by an index.
They are listed first and read one tensor at a time, so that a model never lies in memory twice.
Pickles are opened with `weights_only`, so that no code in them runs; an index can only name files
that lie beside it. Whatever cannot be read, and every key that does not fit, is an InputError.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgen.config import Absent, InputError

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
FORMATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BUFFERS = (".inv_freq", ".position_ids")  # recomputed from the config, so dropped where stored


def read_config(source: str, revision: str = "main") -> dict:
    """config.json of a folder or hub repository."""
    path = Path(source) / "config.json"
    if not Path(source).is_dir():
        path = Path(_download(source, revision, ["config.json"])) / "config.json"
    if not path.is_file():
        raise InputError(f"{source}: no config.json; expected config.json and {SAFETENSORS[0]}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def fetch(source: str, revision: str = "main") -> Path:
    """The folder that holds the weights: `source` itself, or its download from the hub.

    Raises InputError where a folder has no weight file, before anything is read.
    """
    if Path(source).is_dir():
        folder = Path(source)
    else:
        folder = Path(_download(source, revision, ["*.json", "model*.safetensors"]))
        if not any((folder / name).is_file() for name in SAFETENSORS):
            folder = Path(_download(source, revision, ["*.json", "pytorch_model*.bin"]))
    weight_file(folder)
    return folder


def fetch_file(source: str, revision: str, *names: str) -> Path | None:
    """The first of `names` that a folder or hub repository has; None: it has none of them."""
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(_download(source, revision, list(names)))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def weight_file(folder: Path) -> Path:
    """The weight file or shard index of a checkpoint folder; safetensors go first."""
    for name in SAFETENSORS + PICKLES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: no weights; expected one of {', '.join(SAFETENSORS + PICKLES)}")


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file that is not in memory before `read`."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        from safetensors import safe_open

        # Opened anew each time: pages of a file that stays open would count as memory of ours.
        with safe_open(self.file, "pt") as stored:
            return stored.get_tensor(self.key)


@dataclass(frozen=True)
class Held:
    """A tensor that is at hand: of a pickle, where it is mapped from the file, or made here."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> Tensor:
        return self.tensor


Tensors = dict[str, Stored | Held]


def list_weights(folder: Path) -> Tensors:
    """All tensors of a checkpoint folder, by their stored names."""
    path = weight_file(folder)
    if path.suffix != ".json":
        return _list_tensors(path)
    index = read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
        raise InputError(f"{path}: expected a 'weight_map' of tensor names to file names")
    tensors: Tensors = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
            raise InputError(f"{path}: shard '{shard}' is not a plain file name beside the index")
        if not (folder / shard).is_file():
            raise InputError(f"{folder}: shard {shard} is missing; {path.name} lists it")
        found = _list_tensors(folder / shard)
        # A tensor may lie in other shards too: that of the index is meant.
        tensors |= {key: t for key, t in found.items() if shards.get(key, shard) == shard}
    if missing := sorted(set(shards) - set(tensors)):
        raise InputError(f"{folder}: the shards lack tensors that {path.name} lists: {missing}")
    return tensors


def list_file(path: Path, *within: str) -> Tensors:
    """All tensors of one file; of a pickle the dict that lies under the keys `within`."""
    if path.suffix == ".safetensors":
        return _list_tensors(path)
    return _held(read_pickle(path, *within), path)


def read_pickle(path: Path, *within: str) -> object:
    """What a pickle of tensors and plain values holds under the keys `within`; mapped, not read.

    Raises InputError, also where it holds anything else, which is never run.
    """
    advice = "The file is damaged or cut short; copy or download it again."
    try:
        # Files of torch before 1.6 are no archives, which alone can be mapped.
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: damaged, or holds more than tensors, which is never run: {reason}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read: {error}. {advice}") from None
    for key in within:
        if not isinstance(found, dict) or key not in found:
            raise InputError(f"{path}: expected a dict with '{key}' ({' > '.join(within)})")
        found = found[key]
    return found


def published_keys(
    tensors: Tensors, prefix: str, heads: Iterable[str], tied: dict[str, str]
) -> Tensors:
    """Bring a checkpoint to the names of its masked-LM form.

    An encoder saved alone gets `prefix`; norms saved as gamma and beta (as by transformers) get
    their usual names; recomputed buffers and the pooler, which nothing uses, go. `tied` maps names
    of stored duplicates to their originals: a duplicate goes where it is equal and is an InputError
    where it is not.
    """
    heads = tuple(heads)
    for old, new in OLD_NORMS.items():
        tensors = {
            key.removesuffix(old) + new if key.endswith(old) else key: tensor
            for key, tensor in tensors.items()
        }
    bare = not any(key.startswith(prefix) for key in tensors)
    named = {
        prefix + key if bare and not key.startswith(heads) else key: tensor
        for key, tensor in tensors.items()
        if not key.endswith(BUFFERS)
    }
    named = {k: v for k, v in named.items() if not k.startswith(prefix + "pooler.")}
    for copy, original in tied.items():
        both = copy in named and original in named
        if both and not torch.equal(named[copy].read(), named[original].read()):
            raise InputError(f"{copy} differs from {original}: untied weights are not supported")
        if copy in named:
            named.setdefault(original, named.pop(copy))
    return named


def load_state(module: nn.Module, tensors: Tensors, source: str) -> None:
    """Copy `tensors` into `module`, cast to its dtype, one at a time.

    Raises InputError listing every misfit before anything is copied.
    """
    expected = module.state_dict()
    problems = [f"missing: {key}" for key in expected if key not in tensors]
    problems += [f"unexpected: {key}" for key in tensors if key not in expected]
    problems += [
        f"shape: {key} is {tuple(tensors[key].shape)}, config.json says {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in tensors and tuple(tensors[key].shape) != tuple(tensor.shape)
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"{source}: {len(problems)} tensors do not fit config.json:\n  {lines}")
    with torch.no_grad():
        for key, tensor in expected.items():
            stored = tensors[key].read()
            if tensor.is_floating_point() and stored.dtype not in FORMATS:
                raise InputError(
                    f"{source}: {key} is stored as {stored.dtype}; expected one of "
                    f"{', '.join(map(str, FORMATS))}"
                )
            if not stored.isfinite().all():
                raise InputError(f"{source}: {key} holds values that are not finite")
            tensor.copy_(stored)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None


def _list_tensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    advice = "The file is damaged or cut short; copy or download it again."
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as stored:
                shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read: {error}. {advice}") from None
        return {key: Stored(path, key, tuple(shape)) for key, shape in shapes.items()}
    return _held(read_pickle(path), path)


def _held(tensors: object, path: Path) -> Tensors:
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise InputError(f"{path}: expected a dict of names to tensors")
    return {key: Held(tensor) for key, tensor in tensors.items()}


def _download(repository: str, revision: str, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError

    try:
        return snapshot_download(repository, revision=revision, allow_patterns=patterns)
    except (OSError, HFValidationError, IncompleteSnapshotError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Absent(
            f"{repository} (revision {revision}) cannot be read from the Hugging Face hub: "
            f"{reason} Without a network, download it elsewhere, copy the folder (config.json and "
            "weights) here and give its path as the name; or use random weights "
            "(--backbone.random-weights)."
        ) from None
