"""Prediction files: every input row exactly once, in input order, written whole or not at all.

Rows are predicted in blocks. A finished block is a file of its own beside the result, so that an
interrupted prediction goes on where it stopped and memory stays bounded; at the end the blocks are
joined in order. A column is a list of plain values, a tensor (N, ...) with one entry per row, or a
list of tensors (L_i, ...) that differ in their first axis, such as per-token output.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.checkpoint import sync, whole, writing
from mgen.config import InputError

BLOCK_TOKENS = 2**18  # of a block, where a row's predictions are few numbers
OTHER = "by "  # starts the names of predictions by others
FORMATS = (".parquet", ".tsv", ".safetensors")
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1}  # bytes


class Writer:
    """Collects the blocks of one prediction file.

    `key` stands for everything the content depends on (weights, rows, options): blocks left by an
    interrupted prediction are used only if their key is the same.
    """

    def __init__(self, file: Path, key: Any) -> None:
        if file.suffix not in FORMATS:
            raise InputError(f"{file}: predictions are written as {', '.join(FORMATS)}")
        self.file = file
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = file.parent / f".{file.name}.{digest}"

    def start(self, fresh: bool) -> None:
        """Drop blocks of other predictions of this file; with `fresh` also its own."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for other in self.file.parent.iterdir():
            is_ours = other.is_dir() and other.name.startswith(f".{self.file.name}.")
            if is_ours and (fresh or other != self.folder):
                shutil.rmtree(other)
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, block: int) -> bool:
        return (self.folder / f"{block:08d}").is_dir()

    def write(self, block: int, columns: dict[str, Any]) -> None:
        """Store one block's columns; all have the same number of rows, in input order."""
        partial = self.folder / f"{block:08d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with writing(self.file, partial):
            self._write(partial, columns)
            os.replace(partial, self.folder / f"{block:08d}")

    def _write(self, partial: Path, columns: dict[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        partial.mkdir()
        tensors, lists = {}, {}
        for name, values in columns.items():
            ragged = isinstance(values, list) and values and isinstance(values[0], Tensor)
            if self.file.suffix == ".safetensors" and (ragged or isinstance(values, Tensor)):
                tensors |= _ragged(name, values) if ragged else {name: values.contiguous()}
            else:
                lists[name] = _arrow(values)
        if tensors:
            from safetensors.torch import save_file

            save_file(tensors, partial / "tensors.safetensors")
        if lists:
            pq.write_table(pa.table(lists), partial / "columns.parquet")
        for path in [*partial.iterdir(), partial]:
            sync(path)

    def finish(self) -> Path:
        """Join the blocks in order, give the result its name, remove the blocks."""
        blocks = sorted(block for block in self.folder.iterdir() if block.name.isdigit())
        if not blocks:
            raise InputError(f"{self.file}: there are no rows to predict")
        tables = [block / "columns.parquet" for block in blocks]
        if self.file.suffix == ".safetensors":
            tensors = [block / "tensors.safetensors" for block in blocks]
            with whole(self.file) as partial:
                _join_tensors(tensors, partial)
            beside = self.file.with_suffix(".rows.parquet")  # what is no tensor
            if tables[0].exists():
                with whole(beside) as partial:
                    _join_parquet(tables, partial)
            else:
                beside.unlink(missing_ok=True)
        else:
            join = _join_tsv if self.file.suffix == ".tsv" else _join_parquet
            with whole(self.file) as partial:
                join(tables, partial)
        shutil.rmtree(self.folder)
        return self.file


def _arrow(values: Any) -> Any:
    import pyarrow as pa

    if isinstance(values, Tensor):
        array = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
        flat = pa.array(array.reshape(-1))
        for size in reversed(array.shape[1:]):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        return flat
    if values and all(isinstance(v, Tensor) and v.ndim in (1, 2) for v in values):
        return _nested(values)
    return pa.array([v.tolist() if isinstance(v, Tensor) else v for v in values])


def _nested(values: list[Tensor]) -> Any:
    """Vectors as lists, matrices as lists of lists, of their own kind of number."""
    import pyarrow as pa

    def cut(flat: Any, sizes: list[int]) -> Any:
        return pa.ListArray.from_arrays(np.cumsum([0, *sizes], dtype=np.int32), flat)

    array = _arrow(torch.cat([value.reshape(-1) for value in values]))
    if values[0].ndim == 2:
        array = cut(array, [value.shape[1] for value in values for _ in range(len(value))])
    return cut(array, [len(value) for value in values])


def _ragged(name: str, values: list[Tensor]) -> dict[str, Tensor]:
    """Rows one after the other, and how many entries each has."""
    sizes = torch.tensor([len(value) for value in values])
    return {name: torch.cat(values).contiguous(), f"{name}.lengths": sizes}


def _join_parquet(files: list[Path], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A column without a single value in one block has no type there.
    schema = pa.unify_schemas(list(map(pq.read_schema, files)), promote_options="permissive")
    with pq.ParquetWriter(target, schema) as writer:
        for file in files:
            writer.write_table(pq.read_table(file).cast(schema))


def _join_tsv(files: list[Path], target: Path) -> None:
    import csv

    import pyarrow.parquet as pq

    with target.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        for number, file in enumerate(files):
            table = pq.read_table(file)
            if number == 0:
                writer.writerow(table.column_names)
            for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
                writer.writerow([json.dumps(v) if isinstance(v, list) else v for v in row])


def _join_tensors(files: list[Path], target: Path) -> None:
    """Concatenate equal-named tensors of safetensors files along axis 0 without loading them.

    The format: 8 bytes little-endian header size, JSON header of dtype, shape and byte range by
    name, then the bytes (github.com/huggingface/safetensors, format description).
    """
    from safetensors import safe_open

    shapes: dict[str, list[list[int]]] = {}
    header, position = {}, 0
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a dict)
                shapes.setdefault(name, []).append(opened.get_slice(name).get_shape())
                header.setdefault(name, {"dtype": opened.get_slice(name).get_dtype()})
    for name, entry in header.items():
        shape = [sum(part[0] for part in shapes[name]), *shapes[name][0][1:]]
        size = math.prod(shape) * SIZES[entry["dtype"]]
        entry |= {"shape": shape, "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with target.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in header:
            for part in _parts(files, name):
                stream.write(part.contiguous().view(-1).view(torch.uint8).numpy().data)


def _parts(files: list[Path], name: str) -> Iterator[Tensor]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as opened:
            yield opened.get_tensor(name)


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished prediction file in order, with lists for vectors and matrices.

    Few rows are in memory at once. Cells of a TSV are text, except for lists.
    """
    reads = {".parquet": _read_parquet, ".tsv": _read_tsv, ".safetensors": _read_tensors}
    return reads[file.suffix](file)


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        for block in opened.iter_batches(8):
            yield from block.to_pylist()


def _read_tsv(file: Path) -> Iterator[dict[str, Any]]:
    import csv

    csv.field_size_limit(2**31 - 1)  # a matrix is one field
    with file.open(newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t"):
            yield {n: json.loads(cell) if cell[:1] == "[" else cell for n, cell in row.items()}


def _read_tensors(file: Path) -> Iterator[dict[str, Any]]:
    from safetensors import safe_open

    beside = file.with_suffix(".rows.parquet")
    others = _read_parquet(beside) if beside.exists() else iter(())
    with safe_open(file, "pt") as opened:
        stored = set(opened.keys())
        sizes = {
            name: opened.get_tensor(name).tolist() for name in stored if name[-8:] == ".lengths"
        }
        names = stored - sizes.keys()
        done = dict.fromkeys(names, 0)
        for number in range(len(opened.get_tensor("row"))):
            row = next(others, {})
            for name in names:
                size = sizes[f"{name}.lengths"][number] if f"{name}.lengths" in sizes else 1
                values = opened.get_slice(name)[done[name] : done[name] + size].tolist()
                row[name] = values if f"{name}.lengths" in sizes else values[0]
                done[name] += size
            yield row


def write_scored(
    file: Path,
    kind: str,
    predictions: Tensor,
    labels: Tensor,
    rows: Tensor,
    others: dict[str, Tensor],
) -> Path:
    """What the metrics compared, beside a prediction file, so that it can be resampled.

    `predictions` and `labels` (M, ...) of the M things that are scored, in the order of `rows`
    (M,), the row number each belongs to; `others` holds predictions of the same things by what a
    run is compared with; `kind` as of `Task`, "variants" where these are scores of variants.
    """
    from safetensors.torch import save_file

    tensors = {"predictions": predictions, "labels": labels, "row": rows}
    tensors |= {f"{OTHER}{name}": values for name, values in others.items()}
    target = scored_file(file)
    with whole(target) as partial:
        kept = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(kept, partial, metadata={"kind": kind})
    return target


def read_scored(file: Path) -> tuple[str, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Kind, predictions, labels, row numbers and others of `write_scored`."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        kind = opened.metadata()["kind"]
    own = [found.pop(name) for name in ("predictions", "labels", "row")]
    return kind, *own, {name.removeprefix(OTHER): values for name, values in found.items()}


def scored_file(file: Path) -> Path:
    """Where what the metrics compared is, of a prediction file."""
    return file.with_suffix(".scored.safetensors")


def blocks(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut positions 0..n-1 into runs of neighbours of about `tokens` tokens each."""
    edges = np.flatnonzero(np.diff(np.cumsum(lengths, dtype=np.int64) // tokens)) + 1
    return np.split(np.arange(len(lengths)), edges)
