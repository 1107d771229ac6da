"""Opening a table: which files its path names, and what is read from them."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.inputs.variants import VERSION, mutated_batches, read_wild_type
from mgen.data.sources import intervals
from mgen.data.sources.arrow import cached
from mgen.data.sources.hub_sets import hub_splits
from mgen.data.sources.places import (
    BUNDLED_PREFIX,
    HUB_PREFIX,
    hub_folder,
    local_file,
    neighbour,
)
from mgen.data.splitting.assigning import NO_ROWS, assign
from mgen.data.table import Rows, Table
from mgen.io.arrow import damaged, is_mappable, saved_parts
from mgen.io.cells import is_cell_folder
from mgen.io.counts import GeneTable, gene_table
from mgen.io.files import SHARED_PREFIX, content_digest
from mgen.io.remote import is_remote, remote_files, without_query
from mgen.io.tables import CELLS, FASTA, READERS, Batches, is_table, read, table_format

SHARD = re.compile(r"-\d{5}-of-\d{5}$")  # how the hub names the files of one split


class Part(NamedTuple):
    """A file or a split of a data set: `group` is its stem or name; `is_split`: a split's name."""

    name: str
    group: str
    rows: Any  # datasets.Dataset
    digest: str
    is_split: bool = False


def open_table(table: Table, split: bool) -> Rows:
    """Read all files, check the columns that the options name, and assign rows to splits."""
    if not (table.path or table.test_path):
        raise InputError("no data: set --data.path to a file, a folder or a hub data set")
    if table.max_rows < 0:
        raise InputError(f"--data.max-rows {table.max_rows}: expected a number of rows, or 0")
    intervals.check_options(table)
    opener = _Opener(table)
    parts, groups = [], {"path": {}, "valid_path": {}, "test_path": {}}
    are_names, start = bool(table.path), 0
    for role, found in groups.items():
        for part in opener.parts(getattr(table, role), f"--data.{role.replace('_', '-')}"):
            numbers = np.arange(start, start + len(part.rows))
            found[part.group] = np.concatenate([found.get(part.group, NO_ROWS), numbers])
            start += len(part.rows)
            are_names &= part.is_split or role != "path"
            part = part._replace(rows=_as_named(table, part.name, part.rows))
            parts.append(_annotated(table, part) if table.annotations else part)
    if not parts:
        raise InputError(f"--data.path {table.path!r}: names no file")
    parts, left_out = _alike(table, parts)
    opener.said += left_out
    dataset = _joined([part.name for part in parts], [part.rows for part in parts])
    rows = Rows(
        table,
        dataset,
        [(part.name, len(part.rows), part.digest) for part in parts],
        _genes(table, parts),
    )
    for part in parts:
        known = part.rows.column_names
        if table.x_col in dataset.column_names and table.x_col not in known:
            raise InputError(
                f"{part.name}: no column '{table.x_col}', which other files have; columns are "
                f"{', '.join(map(repr, known))}.{nearest(table.x_col, known)} Rename it."
            )
    is_bare = {"chrom", "start"} <= {*rows.columns} and not table.genome
    if is_bare and table.x_col and table.x_col not in rows.columns:
        raise InputError(
            f"{rows.names[0]}: places of a genome, without sequences (no column '{table.x_col}'). "
            "Set --data.genome to the FASTA file that they are of"
        )
    for option in ("x_col", "id_col", *(("split_col", "fold_col") if split else ())):
        if getattr(table, option):
            rows.require(getattr(table, option), option.replace("_", "-"))
    if split:
        try:
            assign(rows, groups, are_names)
        except InputError as error:
            message = str(error)
            known = message.startswith((table.path, "--data", *rows.names))
            raise InputError(message if known else f"{rows.names[0]}: {message}") from None
    rows.plan = "; ".join([*opener.said, *_padded(rows), *([rows.plan] if rows.plan else [])])
    return rows


def _alike(table: Table, parts: list[Part]) -> tuple[list[Part], list[str]]:
    """Files of cells without the columns whose type differs between them, and what to say of it.

    Raises InputError for a column that an option names.
    """
    kinds: dict[str, dict[str, str]] = {}  # of each column its types, and the first file of each
    for part in parts if all(part.rows.info.description for part in parts) else ():
        for field in part.rows.data.schema:
            if str(field.type) != "null":
                kinds.setdefault(field.name, {}).setdefault(str(field.type), part.name)
    unlike = {name: found for name, found in kinds.items() if len(found) > 1}
    texts = [v if isinstance(v, tuple) else (v,) for v in vars(table).values()]
    named = {str(text).partition("=")[0] for each in texts for text in each}
    said = {
        name: f"'{name}' ({', '.join(f'{kind} in {file}' for kind, file in found.items())})"
        for name, found in unlike.items()
    }
    if wanted := [name for name in unlike if name in named]:
        raise InputError(
            f"column {said[wanted[0]]}: its type differs between files. Write it in one type"
        )
    if not unlike:
        return parts, []
    kept = [
        part._replace(
            rows=part.rows.remove_columns([c for c in part.rows.column_names if c in unlike])
        )
        for part in parts
    ]
    return kept, [f"left out, as their types differ between files: {', '.join(said.values())}"]


def _annotated(table: Table, part: Part) -> Part:
    """With the columns of `table.annotations` beside its own."""
    import datasets
    import pyarrow.compute as pc

    id_col = table.id_col or "id"
    if id_col not in part.rows.column_names:
        raise InputError(f"{part.name}: no column '{id_col}' to join --data.annotations by")
    more, digest = cached(local_file(table.annotations))
    key, *names = more.column_names
    if clash := {*names} & {*part.rows.column_names}:
        raise InputError(
            f"{table.annotations}: {part.name} has a column '{min(clash)}' too. Rename it"
        )
    known = more.data.column(key).cast("string").combine_chunks()
    if len(pc.unique(known)) < len(known):
        raise InputError(f"{table.annotations}: column '{key}' has an identifier more than once")
    places = pc.index_in(part.rows.data.column(id_col).cast("string"), known)
    if places.null_count:
        row = pc.index(places.is_null(), True).as_py()
        raise InputError(
            f"{table.annotations}: no row for {places.null_count:,} of {len(places):,} rows of "
            f"{part.name}, the first is '{part.rows[row][id_col]}'. Rows are joined by column "
            f"'{id_col}' (--data.id-col) and the first column of the annotations"
        )
    columns = datasets.Dataset(more.data.table.select(names).take(places))
    joined = datasets.concatenate_datasets([part.rows, columns], axis=1)
    joined.info.description = part.rows.info.description  # what a file of cells has of its genes
    digest = hashlib.sha256(f"{part.digest} {digest}".encode()).hexdigest()
    return part._replace(rows=joined, digest=digest)


def _genes(table: Table, parts: list[Part]) -> list[GeneTable]:
    """Of each file of cells its genes; one table cannot hold cells and sequences."""
    found = [part.rows.info.description for part in parts]
    if not any(found):
        return []
    if not all(found):
        raise InputError(f"{parts[found.index('')].name}: has no counts, which other files have")
    return [
        gene_table(json.loads(text), table.gene_col, part.name)
        for text, part in zip(found, parts, strict=True)
    ]


def _joined(names: list[str], parts: list[Any]) -> Any:
    import datasets

    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{', '.join(names)}: columns of one name differ in type: {error}. Save all in one "
            "format, all with decimal points or all without."
        ) from None


def _padded(rows: Rows) -> list[str]:
    """How many windows run over the ends of contigs, in words."""
    import pyarrow.compute as pc

    if not rows.table.genome:
        return []
    letters = rows.dataset.data.column(intervals.PADDING)
    padded = pc.sum(pc.greater(letters, 0)).as_py() or 0
    if not padded:
        return []
    total = pc.sum(letters).as_py()
    return [
        f"{padded:,} of {len(rows):,} windows run over the end of their contig: {total:,} letters "
        f"there are N (column '{intervals.PADDING}')"
    ]


class _Opener:
    """Reads what paths name. `said`: what people should know of it."""

    def __init__(self, table: Table) -> None:
        self.table, self.said = table, []
        self.seen: dict[Path, str] = {}  # files by their place
        self.wild_type = read_wild_type(table.wild_type) if table.wild_type else ""
        keys = []
        if table.query:
            keys.append(f"query {table.query}")
        if table.layer:
            keys.append(f"layer {table.layer}")
        if table.wild_type:
            keys.append(f"{VERSION} {self.wild_type} {table.x_col} {table.first_position}")
        if table.genome:
            keys.append(intervals.key_of(table))
        self.key = " ".join(keys)  # of what turns the rows of a file into those of the table

    def change(self, path: Path, batches: Batches) -> Batches:
        if self.table.query or self.table.layer:
            batches = read(path, self.table.query, self.table.layer)
        if self.wild_type:
            batches = mutated_batches(path, batches, self.table, self.wild_type)
        if self.table.genome:
            batches = intervals.located_batches(path, batches, self.table)
        return batches

    def parts(self, path: str, flag: str) -> list[Part]:
        """The files or splits that a path names, which may be several joined by commas."""
        try:
            return self._parts(path)
        except (OSError, RuntimeError) as error:  # names that no file can have, unknown users
            raise InputError(f"{flag} {path}: {error}") from None

    def _parts(self, path: str) -> list[Part]:
        table, subset = self.table, self.table.subset
        if "{subset}" in path:
            if not subset:
                raise InputError(f"{path}: set --data.subset, which {{subset}} stands for")
            path, subset = path.replace("{subset}", subset), ""
        found = [part for piece in _pieces(path) for part in self._piece(piece, subset)]
        name, count = Counter([part.name for part in found] or [""]).most_common(1)[0]
        if count > 1:
            raise InputError(f"{path}: it names {name} more than once")
        return [self._first_rows(part) for part in found] if table.max_rows else found

    def _first_rows(self, part: Part) -> Part:
        limit, size = self.table.max_rows, len(part.rows)
        if size > limit:
            self.said.append(f"{part.name}: the first {limit:,} of {size:,} rows are read")
        return part._replace(rows=part.rows.select(range(min(limit, size))))

    def _piece(self, piece: str, subset: str) -> list[Part]:
        if is_remote(piece):
            piece = self._of_hub(piece)
        if is_remote(piece):
            return [self._file(url) for url in remote_files(piece)]
        if _is_hub_id(piece):
            folder = hub_folder(piece)
            if folder is None:
                found, said = hub_splits(self.table, piece)
                self.said += said
                return [Part(f"{piece} [{split}]", split, *rows, True) for split, *rows in found]
            self.said.append(f"{piece}: read from the folder {folder}")
            piece = str(folder)
        place = local_file(piece)
        if is_cell_folder(place):
            return [self._file(piece)]
        if place.is_dir() and subset and (place / subset).is_dir():
            piece, place, subset = f"{piece}/{subset}", place / subset, ""
        if place.is_dir() and (saved := saved_parts(place)):
            return [self._saved(piece, split, shards) for split, shards in saved.items()]
        return [self._file(file) for file in _files(piece, subset)]

    def _of_hub(self, url: str) -> str:
        """A URL of a hub data set at the revision, or its file in a folder that stands for it."""
        found = re.match(rf"{HUB_PREFIX}([^/]+/[^/@]+)(@[^/]+)?/(.+)", url)
        if not found:
            return url
        name, revision, rest = found.groups()
        if folder := hub_folder(name):
            self.said.append(f"{url}: read from the folder {folder}")
            return str(folder / rest)
        if revision or self.table.revision == "main":
            return url
        return f"{HUB_PREFIX}{name}@{self.table.revision.replace('/', '%2F')}/{rest}"

    def _file(self, name: str) -> Part:
        if is_remote(name):
            table_format(without_query(name))  # or an error, before anything is fetched
        place = local_file(name)
        if (other := self.seen.setdefault(place.resolve(), name)) != name:
            raise InputError(f"{name}: is the file {other}, which is named too. Name each once")
        try:
            return Part(name, _stem(name), *self._rows(place))
        except InputError as error:
            if not is_remote(name):
                raise
            raise InputError(str(error).replace(str(place), name)) from None

    def _rows(self, place: Path) -> tuple[Any, str]:
        """The rows of a local file and the sha256 of what they are made of."""
        import datasets

        if self.key:
            return cached(place, self.change, self.key)
        if not is_mappable(place):
            return cached(place)
        try:
            return datasets.Dataset.from_file(str(place)), content_digest(place)
        except (ValueError, OSError) as error:  # those of Arrow are among them
            raise InputError(damaged(place, error)) from None

    def _saved(self, folder: str, split: str, shards: list[Path]) -> Part:
        """A split of a folder that `datasets` saved, its files used where they lie."""
        name = f"{folder} [{split}]" if split else folder
        rows, digests = zip(*map(self._rows, shards), strict=True)
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        dataset = _joined([str(shard) for shard in shards], list(rows))
        return Part(name, split or _stem(folder), dataset, digest, bool(split))


def _as_named(table: Table, name: str, part: Any) -> Any:
    """Sequences of a FASTA, counts of cells, and identifiers under the names of the options."""
    place = str(local_file(name)) if not is_remote(name) else without_query(name)
    kind = table_format(place) if is_table(place) or is_cell_folder(Path(place)) else ""
    if kind not in {*FASTA, *CELLS}:
        return part
    wanted = {"sequence" if kind in FASTA else "counts": table.x_col, "id": table.id_col}
    if kind in CELLS and table.x_col != "counts" and table.x_col in part.column_names:
        raise InputError(
            f"{name}: obs has a column '{table.x_col}', the name that counts would get here. Set "
            "--data.x-col counts"
        )
    there = {old: new for old, new in wanted.items() if new and new not in part.column_names}
    return part.rename_columns(there) if there else part


def _pieces(path: str) -> list[str]:
    """What is joined by commas; a file or a pattern whose own name has commas is one piece."""
    if not path:
        return []
    if "," not in path or not is_remote(path) and _is_there(str(local_file(path))):
        return [path]
    return [piece for piece in map(str.strip, path.split(",")) if piece]


def _is_there(place: str) -> bool:
    return Path(place).exists() or bool(glob.glob(place, recursive=True))


def _is_hub_id(path: str) -> bool:
    is_like = path.count("/") <= 1 and path[0] not in "./~" and not is_table(path)
    is_ours = path.startswith((BUNDLED_PREFIX, SHARED_PREFIX)) or glob.has_magic(path)
    return is_like and not is_ours and not local_file(path).exists()


def _files(path: str, subset: str) -> list[str]:
    """The files that a local path names, sorted; in a folder, those of the subset."""
    place = local_file(path)
    if place.is_dir():
        return _tables_of(path, place, subset)
    if place.exists():
        return [path]
    if glob.has_magic(path):
        files = sorted(glob.glob(str(place), recursive=True))
        if not files:
            raise InputError(f"{path}: no file has such a name")
        return files
    if path.startswith(SHARED_PREFIX):
        raise InputError(
            f"{path}: no file {place}. It is not part of the repository: mgen show data NAME says "
            "where a named data set comes from; put it there, or set MGEN_SHARED"
        )
    raise InputError(f"{path}: no such file.{neighbour(place)}")


def _tables_of(path: str, place: Path, subset: str) -> list[str]:
    inside = sorted(place.iterdir())
    files = [f for f in inside if f.is_file() and is_table(f) or is_cell_folder(f)]
    folders = [file.name for file in inside if file.is_dir() and file not in files]
    if subset == "default" and subset not in [*folders, *map(_stem, files)]:
        subset = ""  # as the hub calls the only one
    if not files and "data" in folders:  # where a copy of a hub data set has its files
        return _tables_of(f"{path}/data", place / "data", subset)
    if not files and not subset:
        below = f" It has folders: {', '.join(folders)}." if folders else ""
        raise InputError(f"{path}: a folder without a single table ({', '.join(READERS)}).{below}")
    if subset:
        named = list(dict.fromkeys([*folders, *map(_stem, files)]))
        files = [file for file in files if _stem(file) == subset]
        if not files:
            raise InputError(
                f"{path}: no subset '{subset}'; there are {', '.join(named)}."
                f"{nearest(subset, named)} Set --data.subset."
            )
    return [str(file) for file in files]


def _stem(file: str | Path) -> str:
    name = without_query(str(file)).rstrip("/").rpartition("/")[2]
    suffixes = {*READERS, ".gz"}
    while (suffix := Path(name).suffix).lower() in suffixes:
        name = name.removesuffix(suffix)
    return SHARD.sub("", name)
