"""Outputs of a frozen backbone, kept on disk by content: `--backbone.cache FOLDER`.

A namespace, `FOLDER/<digest>/`, holds outputs of one network under one set of settings: the digest
is that of everything that decides an output besides its row (`OutputCache.facts`). How they lie
there is told in cache_files.py.

Shapes: B rows, L tokens, D width.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgen import checkpoint
from mgen.backbones.cache_files import (
    FACTS,
    RECORD,
    Namespace,
    alone,
    delete,
    delete_empty,
    facts_of,
    is_held,
    make_room,
    measured,
    namespaces,
    stems_of,
    usable,
)
from mgen.config import InputError
from mgen.report import warn

if TYPE_CHECKING:
    from mgen.backbones import Backbone
    from mgen.backbones.sequence import SequenceBackbone

FORMAT = 1  # of the files; another one never meets them
GB = 10**9
PACKAGES = ("mgen", "torch", "transformers")  # another version may compute otherwise

Pool = Callable[[Tensor, dict[str, Tensor]], Tensor]  # hidden (B, L, D), batch -> (B, D)


class OutputCache:
    """What `SequenceBackbone.forward` gives, looked up or else computed and kept.

    With `pool_by` only pooled vectors are kept, and `outputs` gives them as (B, 1, D). `counts`
    tells of rows: found, computed, kept, lost (not kept), damaged; and of kept bytes.
    """

    def __init__(self, choice: "Backbone") -> None:
        self.folder, self.limit = Path(choice.cache), choice.cache_gb * GB or math.inf
        self.dtype = getattr(torch, choice.cache_dtype)
        self.name, self.revision = choice.name, choice.at
        self.counts: Counter[str] = Counter()
        self.pool: Pool | None = None
        self.pooled = ""
        self.stopped = False  # nothing more is kept
        self.room = 0.0  # bytes that may be written before the folder is measured again
        self.written: dict[str, tuple] = {}  # kinds of weights to what changes with every write
        self.digests: dict[str, str] = {}
        self.spaces: dict[tuple[str, str], Namespace] = {}
        self.notes: set[str] = set()
        with usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.folder):
                pass

    def pool_by(self, pool: Pool, facts: str) -> None:
        """Keep `pool(hidden, batch)`, which `facts` names in full, in place of all tokens."""
        self.pool, self.pooled = pool, facts

    def outputs(
        self, network: "SequenceBackbone", batch: dict[str, Tensor], compute: Callable[[], Tensor]
    ) -> Tensor:
        """`compute()` (B, L, D) as it is kept, float32, zeros at padding; pooled: (B, 1, D).

        Raises InputError for a network that drops units or whose outputs need gradients.
        """
        self._refuse(network)
        space = self._namespace(network)
        rows = _keys(network, batch)
        if self.pool:
            rows = [(key, 1) for key, _ in rows]
        found = self._find(space, rows)
        shape = (len(rows), 1 if self.pool else batch["attention_mask"].shape[1], network.width)
        missing = sum(data is None for data in found)
        if not missing:
            given = torch.empty(shape, dtype=self.dtype)
        else:
            # All rows are computed, in the batch they would have been computed in without a cache:
            # a run that was killed and goes on then sees the bits of one that never was. And what
            # is kept is what is given, rounded alike in the first epoch and in later ones.
            hidden = compute()
            hidden = self.pool(hidden, batch)[:, None] if self.pool else hidden
            given = self._rounded(hidden.detach())
            self._keep(space, rows, found, given)
        bytes_ = given.view(torch.uint8).numpy()
        first = {key: i for i, (key, _) in reversed([*enumerate(rows)])}  # of equal rows
        for i, ((key, tokens), data) in enumerate(zip(rows, found, strict=True)):
            if data is not None:
                bytes_[i, :tokens] = data.reshape(tokens, space.token_bytes)
            elif first[key] != i:
                bytes_[i] = bytes_[first[key]]
            bytes_[i, tokens:] = 0
        self.counts += Counter(found=len(rows) - missing, computed=missing)
        return given.to(network.device).float()

    def summary(self, counts: Counter[str]) -> str:
        """`counts`, of this process or summed over several, in words."""
        kept = f"{counts['kept']:,} of them kept ({counts['bytes'] / 1e6:,.1f} MB)"
        text = f"{counts['found']:,} outputs ({self.pooled or 'every token'}) looked up, "
        text += f"{counts['computed']:,} computed, {kept}"
        if counts["lost"]:
            text += f", {counts['lost']:,} not"
        if counts["damaged"]:
            text += f"; {counts['damaged']:,} entries were damaged"
        return text

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.add(text)
            warn(f"cache {self.folder}: {text}")

    def _refuse(self, network: "SequenceBackbone") -> None:
        if network.training:
            raise InputError(
                "--backbone.cache: a backbone in training mode drops units at random, which cannot "
                "be kept; call its eval()"
            )
        if torch.is_grad_enabled() and any(p.requires_grad for p in network.encoder.parameters()):
            raise InputError(
                "--backbone.cache: the outputs of a backbone that trains cannot be kept. Set "
                "--backbone.frozen, or compute without gradients"
            )

    def _rounded(self, hidden: Tensor) -> Tensor:
        """hidden as it is kept, on the CPU."""
        rounded = hidden.to(self.dtype)
        if self.dtype == torch.float16 and not rounded.isfinite().all() and hidden.isfinite().all():
            raise InputError(
                f"--backbone.cache-dtype float16 ends at 65504, but this backbone gives "
                f"{hidden.abs().max().item():.3g}; set bfloat16 or float32"
            )
        return rounded.cpu().contiguous()

    # ------------------------------------------------------------- which outputs

    def _namespace(self, network: "SequenceBackbone") -> "Namespace":
        weights = self._weights(network.encoder)
        device = network.device.type
        is_mixed = torch.is_autocast_enabled(device)
        precision = str(torch.get_autocast_dtype(device)) if is_mixed else "as weights"
        precision += f", matmul {torch.get_float32_matmul_precision()}"
        if (weights, precision) not in self.spaces:
            facts, token_bytes = self.facts(network, weights, precision), self.dtype.itemsize
            with usable(self.folder):
                space = Namespace(self.folder, self.name, facts, network.width * token_bytes)
            self.spaces[weights, precision] = space
        return self.spaces[weights, precision]

    def _weights(self, encoder: torch.nn.Module) -> str:
        """Digests of parameters and buffers, computed anew when one was written to.

        Apart: DDP writes the same buffers again in every step.
        """
        for kind in ("parameters", "buffers"):
            state = _state(encoder, kind)
            if self.written.get(kind) == state:
                continue
            parameters = {name for name, _ in encoder.named_parameters(remove_duplicate=False)}
            named = encoder.state_dict().items()
            held = [(n, t) for n, t in named if (n in parameters) == (kind == "parameters")]
            self.written[kind], self.digests[kind] = state, checkpoint.digest(held)
        return " ".join(self.digests.values())

    def moved(self, encoder: torch.nn.Module) -> None:
        """Weights were cast or moved: others may come to lie where they have been."""
        for kind in ("parameters", "buffers"):
            if self.written.get(kind) != _state(encoder, kind):
                self.written.pop(kind, None)

    def facts(self, network: "SequenceBackbone", weights: str, precision: str) -> dict[str, Any]:
        """All that decides an output besides its row; attention back ends agree to rounding.

        Not `network.fingerprint()`: LoRA matrices count here, and a head that trains does not.
        """
        return {
            "format": FORMAT,
            "family": type(network).__name__,
            "revision": self.revision,
            "weights": weights,
            "config": blake2b(json.dumps(network.config_json, sort_keys=True).encode()).hexdigest(),
            "tokenizer": network.tokenizer.fingerprint,
            "max_length": network.tokenizer.max_length,
            "truncate": network.tokenizer.truncate,
            "precision": precision,
            "kept_as": str(self.dtype),
            "pooled": self.pooled,
            "versions": {name: version(name) for name in PACKAGES},
        }

    def _find(self, space: "Namespace", rows: list[tuple[bytes, int]]) -> list[np.ndarray | None]:
        """The bytes of each row, None where there are none."""
        found = [space.find(*row) for row in rows]
        if any(data is None for data in found) and space.refresh():  # others may have it by now
            pairs = zip(found, rows, strict=True)
            found = [space.find(*row) if data is None else data for data, row in pairs]
        self.counts["damaged"] += space.damaged
        space.damaged = 0
        return found

    # ------------------------------------------------------------- what is kept

    def _keep(self, space: "Namespace", rows: list, found: list, given: Tensor) -> None:
        bytes_, absent = given.view(torch.uint8).numpy(), {}
        for (key, tokens), data, whole in zip(rows, found, bytes_, strict=True):
            if data is None:
                absent.setdefault(key, whole[:tokens])
        size = sum(data.nbytes + RECORD.size for data in absent.values())
        try:
            if not self.stopped and size > self.room:
                self._make_room(space, size)
            if not self.stopped:
                space.append(absent)
        except OSError as error:
            self._stop(f"cannot be written ({error.strerror})")
        if self.stopped:
            self.counts["lost"] += len(absent)
            return
        self.room -= size
        self.counts += Counter(kept=len(absent), bytes=size)

    def _make_room(self, space: "Namespace", size: int) -> None:
        """Measure the folder; delete what was not used for longest, by nobody now, if it is full.

        Sets `room`, a small share of what is free, as other processes write as well.
        """
        limit = self.limit
        total = make_room(self.folder, space, size, limit)
        if total + size > limit:
            self._stop(f"is full (--backbone.cache-gb {limit / GB:g})")
        self.room = max(size, min(limit - total, limit / 256))

    def _stop(self, why: str) -> None:
        self.stopped = True
        self.note(f"{why}: outputs of further rows are computed each time they are needed")


def _state(encoder: torch.nn.Module, kind: str) -> tuple:
    """What changes with every write to one of the parameters or buffers."""
    tensors = getattr(encoder, kind)()
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _keys(network: "SequenceBackbone", batch: dict[str, Tensor]) -> list[tuple[bytes, int]]:
    """Digest of the exact inputs of each row, padding left out, and its tokens."""
    parts = []
    for tensor, mask in network.row_inputs(batch):
        real = mask.cpu().bool()
        last = real.shape[1] - real.int().flip(1).argmax(1)  # real tokens and gaps before the last
        lengths = torch.where(real.any(1), last, 0).tolist()
        parts.append((tensor.cpu().numpy(), real.numpy(), lengths))
    rows = []
    for i, length in enumerate(parts[0][2]):
        digest = blake2b(digest_size=16)
        for tensor, real, lengths in parts:
            digest.update(struct.pack("<I", lengths[i]))
            digest.update(tensor[i, : lengths[i]].tobytes())
            digest.update(real[i, : lengths[i]].tobytes())
        rows.append((digest.digest(), length))
    return rows


class Size(NamedTuple):
    namespace: str
    description: str
    bytes: int
    last_used: float  # seconds since 1970


def sizes(folder: str | Path) -> list[Size]:
    """What a cache holds, the most recently used first."""
    found = []
    for namespace in namespaces(Path(folder)):
        facts = facts_of(namespace)
        kept = f"{facts['kept_as'].removeprefix('torch.')}, {facts['pooled'] or 'every token'}"
        text = f"{facts['backbone']}, max_length {facts['max_length']}, {kept}"
        segments = [(0, (namespace / FACTS).stat().st_mtime), *map(measured, stems_of(namespace))]
        bytes_, last = sum(size for size, _ in segments), max(when for _, when in segments)
        found.append(Size(namespace.name, text, bytes_, last))
    return sorted(found, key=lambda size: size.last_used, reverse=True)


def clear(folder: str | Path, namespace: str | None = None) -> tuple[int, list[str]]:
    """Delete a namespace, or all of a cache; nothing else that lies in the folder.

    Returns the bytes freed and the namespaces left because a process uses them.
    """
    freed, left = 0, []
    if not Path(folder).is_dir():
        return freed, left
    with alone(Path(folder)):
        for one in namespaces(Path(folder)):
            if namespace not in (None, one.name):
                continue
            if is_held(one):
                left.append(one.name)
                continue
            for stem in stems_of(one):
                freed += measured(stem)[0]
                delete(stem)
            delete_empty(one)
    return freed, left
