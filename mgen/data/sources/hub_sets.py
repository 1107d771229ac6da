"""Data sets of the Hugging Face hub: downloaded whole, or their first rows streamed."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mgen.config import Absent, InputError, nearest
from mgen.data.sources.arrow import write_batches
from mgen.data.sources.places import local_file, neighbour
from mgen.data.table import Table
from mgen.io.files import kept
from mgen.io.tables import BLOCK_ROWS

HERE = "download it elsewhere with 'hf download {} --repo-type dataset --local-dir DIR' and set "
HERE += "--data.path DIR, or put DIR at $MGEN_SHARED/data/{}"

Split = tuple[str, Any, str]  # name, datasets.Dataset, digest


def hub_splits(table: Table, path: str) -> tuple[list[Split], list[str]]:
    """The splits of a data set, and what people should know of them.

    Raises InputError if it cannot be had, saying whether it needs a login, has another subset, is
    not there or cannot be reached, and what to do.
    """
    import datasets

    for option in ("wild_type", "genome", "query"):
        if getattr(table, option):
            raise InputError(
                f"--data.{option.replace('_', '-')}: it needs rows of files; "
                f"{HERE.format(path, path)}"
            )
    options = {"name": table.subset or None, "revision": table.revision}
    try:
        if table.max_rows:
            return _streamed(table, path, options)
        found = datasets.load_dataset(path, **options)
    except InputError:
        raise
    except Exception as error:  # of datasets, the hub's client or what either builds on
        raise _problem(table, path, error) from error
    return [(name, rows, rows._fingerprint) for name, rows in found.items()], []


def _streamed(table: Table, path: str, options: dict[str, Any]) -> tuple[list[Split], list[str]]:
    """The first rows of each split, kept by the commit that they are of."""
    import datasets
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(path, revision=options["revision"]).sha
    found = datasets.load_dataset(path, streaming=True, **options)
    splits, said, limit = [], [], table.max_rows
    for name, rows in found.items():
        facts = repr((path, table.subset, commit, name, limit))
        digest = hashlib.sha256(facts.encode()).hexdigest()
        write = functools.partial(_write_first, table=table, path=f"{path} [{name}]", rows=rows)
        part = datasets.Dataset.from_file(str(kept("tables", f"{digest}.arrow", write)))
        if len(part) == limit:
            said.append(f"{path} [{name}]: the first {limit:,} rows are read")
        splits.append((name, part, digest))
    return splits, said


def _write_first(target: Path, table: Table, path: str, rows: Any) -> None:
    def batches() -> Iterator[Any]:
        num_rows = 0
        try:
            first = rows.take(table.max_rows).with_format("arrow")
            for block in first.iter(BLOCK_ROWS):
                num_rows += len(block)
                yield from block.combine_chunks().to_batches()
        except Exception as error:  # as in `hub_splits`
            raise _problem(table, path, error) from error
        if not num_rows:
            raise InputError(f"{path}: it has no rows")

    write_batches(target, batches())


def _problem(table: Table, path: str, error: Exception) -> InputError:
    """What to say of an error of the hub, and what to do about it."""
    said = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
    words = said.lower()
    if "gated" in words or "authenticated" in words or re.search(r"\b401\b", words):
        return InputError(
            f"{path}: a data set of the Hugging Face hub that needs a login ({said}). Accept its "
            f"terms at https://huggingface.co/datasets/{path}, then run 'hf auth login'"
        )
    if "script" in words or "trust_remote_code" in words:
        return InputError(
            f"{path}: the data set comes as a program, which is not run ({said}). Try the hub's "
            "own conversion, --data.revision refs/convert/parquet"
        )
    if listed := re.search(r"(?:available configs|Available): \[(.*?)\]", said):
        missing = f"no subset '{table.subset}'" if table.subset else "it has several subsets"
        names = re.findall(r"'([^']*)'", listed[1])
        return InputError(
            f"{path}: {missing}; subsets are {', '.join(names)}."
            f"{nearest(table.subset, names)} Set --data.subset."
        )
    near = neighbour(local_file(path))
    if isinstance(error, ConnectionError) or "offline" in words or "connect" in words:
        return Absent(
            f"{path}: no such file, and not to be had as a data set of the Hugging Face hub, which "
            f"cannot be reached ({said}).{near} If it is one, {HERE.format(path, path)}"
        )
    if "revision" in words:
        said = f"no revision '{table.revision}' ({said})"
        return InputError(f"{path}: {said}. Set --data.revision")
    return InputError(
        f"{path}: no such file, and not to be had as a data set of the Hugging Face hub ({said})."
        f"{near} Check the name and --data.revision; a private one needs 'hf auth login'; or "
        f"{HERE.format(path, path)}"
    )
