"""Files as memory-mapped Arrow: parsed once per content, kept in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mgen.io.cells import GENES
from mgen.io.files import content_digest, kept, reading
from mgen.io.tables import READER_VERSION, Batches, read, table_format

BLOCK_BYTES = 32 << 20  # rows lie together in blocks of about this size: many are read at once

if TYPE_CHECKING:
    import datasets


def cached(
    path: Path, change: Callable[[Path, Batches], Batches] | None = None, change_key: str = ""
) -> tuple[datasets.Dataset, str]:
    """The rows of a file and the sha256 of its contents.

    `change` turns what is read into what is kept; `change_key` says how, and enters both keys.

    The key is the content, so a file edited in place is read anew whatever its size and time say.
    """
    import datasets

    suffix, digest = table_format(path), content_digest(path)
    if change:
        digest = hashlib.sha256(f"{digest} {change_key}".encode()).hexdigest()
    key = hashlib.sha256(f"{digest} {suffix} {READER_VERSION}".encode()).hexdigest()

    def write(partial: Path) -> None:
        batches = read(path)
        write_batches(partial, change(path, batches) if change else batches)

    file = kept("tables", f"{key}.arrow", write)
    with reading(file):
        return _with_genes(datasets.Dataset.from_file(str(file)), file), digest


def _with_genes(dataset: datasets.Dataset, file: Path) -> datasets.Dataset:
    """The genes of cells, which `datasets` drops from the schema, as the description."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        genes = (pa.ipc.open_stream(source).schema.metadata or {}).get(GENES, b"")
    dataset.info.description = genes.decode()
    return dataset


def write_batches(target: Path, batches: Batches) -> None:
    """Write record batches of one schema as an Arrow stream."""
    import pyarrow as pa

    try:
        with target.open("wb") as file:
            first = next(batches)
            with pa.ipc.new_stream(file, first.schema) as writer:
                held, size = [first], first.nbytes
                for batch in batches:
                    if size > BLOCK_BYTES:
                        writer.write_table(pa.Table.from_batches(held).combine_chunks())
                        held, size = [], 0
                    held.append(batch)
                    size += batch.nbytes
                writer.write_table(pa.Table.from_batches(held).combine_chunks())
    finally:
        pa.default_memory_pool().release_unused()  # Arrow keeps what reading took otherwise
