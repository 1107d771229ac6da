"""Labels of residues, read in streaming blocks and validated: every bad one is named by its row.

A cell has one label per residue: text with one letter each ("HHHEEC", "((..))", "0101"), or a list
of class names or numbers, or JSON text of a list. Several 0/1 labels per residue are several such
columns, or one column of lists of 0/1 vectors. Positions count from 0. L residues, K labels.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mgen.config import InputError, nearest
from mgen.data.checking import check
from mgen.data.checking.reads import Reads
from mgen.data.table import Rows
from mgen.data.targets.labels import WHOLE, Problem, class_name, place

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # the class number of residues that do not count
MOST_CLASSES = 1000
Facts = dict[str, Any]


@dataclass(frozen=True)
class ResidueLabels:
    """How the labels of a table's residues are read.

    `columns`: one, or with `multilabel` one of 0/1 vectors or several of 0/1. A residue counts if
    its letter in `mask_col` (where one is named) is among `mask_keep` and its label none of the
    letters `ignore`; -100 and gaps of a list never count.
    """

    columns: tuple[str, ...]
    multilabel: bool = False
    mask_col: str = ""
    mask_keep: str = "1"
    ignore: str = ""

    @property
    def used(self) -> list[str]:
        """Every column that is read."""
        return [*self.columns, *([self.mask_col] if self.mask_col else [])]

    def counted(self, row: dict, length: int) -> np.ndarray:
        """Which residues the mask column lets count, bool (L,). Raises ValueError."""
        if not self.mask_col:
            return np.ones(length, dtype=bool)
        names, which = residues(row[self.mask_col])
        _fits(len(which), length)
        return np.isin(names, list(self.mask_keep))[which] if length else np.zeros(0, dtype=bool)

    def skipped(self, name: str) -> bool:
        """Whether a residue with this label never counts."""
        return name == str(IGNORED) or (len(name) == 1 and name in self.ignore)

    def codes(self, row: dict, names: Sequence[str]) -> np.ndarray:
        """Class numbers (L,) or, with `multilabel`, 0/1 (L, K); IGNORED where nothing counts.

        Raises ValueError for cells that are no labels of `names`, or of unequal length, and
        KeyError without a column.
        """
        if self.multilabel:
            codes = self.vectors(row, names)
        else:
            known = {name: i for i, name in enumerate(names)}
            found, which = residues(row[self.columns[0]])
            places = [known.get(name, IGNORED) for name in found]
            codes = np.array(places, dtype=np.int64)[which]
        codes[~self.counted(row, len(codes))] = IGNORED
        return codes

    def vectors(self, row: dict, names: Sequence[str]) -> np.ndarray:
        """0/1 labels (L, K), int64; rows of IGNORED where one of them is not known."""
        if len(self.columns) > 1:
            columns = []
            for column in self.columns:
                found, which = residues(row[column])
                value = {"0": 0, "1": 1}
                wrong = [n for n in found if n not in value and not self.skipped(n)]
                if wrong:
                    raise ValueError(f"{wrong[0]!r} is neither 0 nor 1")
                columns.append(np.array([value.get(n, IGNORED) for n in found])[which])
                _fits(len(which), len(columns[0]))
            vectors = np.stack(columns, axis=1).astype(np.int64)
        else:
            cell = row[self.columns[0]]
            listed = json_list(cell) if isinstance(cell, str) else cell
            vectors = _matrix(listed, len(names))
        vectors[(vectors == IGNORED).any(1)] = IGNORED
        return vectors


def residues(cell: Any) -> tuple[list[str], np.ndarray]:
    """The distinct labels of a cell, and which of them each residue has, (L,).

    Raises ValueError for what is neither text nor a list of names or numbers.
    """
    if isinstance(cell, str) and (listed := json_list(cell)) is None:
        letters = np.frombuffer(cell.encode("utf-32-le"), dtype="<u4")
        found, which = np.unique(letters, return_inverse=True)
        return [chr(letter) for letter in found], which
    values = listed if isinstance(cell, str) else cell
    if not isinstance(values, list):
        raise ValueError(f"{shown(cell)} ({type(cell).__name__}) is no text or list of labels")
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError("a list within the list; vectors of 0/1 labels need --multilabel")
    found, which = np.unique([_name(value) for value in values], return_inverse=True)
    return found.tolist(), which


def per_letter(
    rows: Rows, tokenizer: Reads, columns: Sequence[str], indices: np.ndarray
) -> Iterator[tuple[int, int, dict]]:
    """Row number, letters of its sequence as they are read, and its cells of `columns`.

    By rising row number. Raises InputError where a token of the tokenizer is not one letter.
    """
    joins = tokenizer.as_written and tokenizer.unknown == "token"  # unknown letters become one
    if not (tokenizer.has_context or (tokenizer.per_letter and not joins)):
        advice = "Drop --backbone.as-written." if joins else "Take one with a token per letter."
        raise InputError(
            "labels of residues need a backbone that reads letter by letter, but tokens of this "
            f"one may be of several letters. {advice}"
        )
    for column in columns:
        rows.require(column, "" if column != rows.table.x_col else "x-col")
    for numbers, block in rows.chunks([*{rows.table.x_col: 0, **dict.fromkeys(columns)}], indices):
        lengths = check.letters(rows, tokenizer, block.column(rows.table.x_col))
        cells = block.select(list(dict.fromkeys(columns))).to_pylist()
        yield from zip(numbers.tolist(), lengths.tolist(), cells, strict=True)


@dataclass
class _Seen:
    """What the rows of a split have: residues per class, the first row of each, bare rows."""

    counts: Counter = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    bare: list[int] = field(default_factory=list)  # rows of which no residue counts
    residues: int = 0
    counted: int = 0


def token_facts(
    rows: Rows,
    splits: Sequence[str],
    labels: ResidueLabels,
    tokenizer: Reads,
    classes: Sequence[str],
    known: Facts,
) -> tuple[Facts, list[str]]:
    """Check the labels of `splits`; names, training shares and weights of the classes, and notes.

    Classes are `classes`, or those that occur: 0 to the largest if they are whole numbers, else
    sorted. Training rows of which no residue counts are taken out of `rows.splits`. Raises
    InputError with the first bad cell, and for a class that only held-out rows have unless it is
    one of `classes`.
    """
    _check_columns(labels)
    names = known.get("classes") or (list(labels.columns) if len(labels.columns) > 1 else [])
    names = names or list(classes)
    if len(set(classes)) < len(classes) or (classes and list(classes) != names):
        raise InputError(f"--classes {' '.join(classes)}: expected {' '.join(names)}, each once")
    if labels.multilabel and not names and splits:
        names = _label_names(rows, labels, tokenizer, splits)
    seen = {s: _survey(rows, rows.splits[s], labels, tokenizer, names) for s in splits}
    notes = [_told(split, found) for split, found in seen.items() if found.counted < found.residues]
    if known or not splits:
        _refuse_unknown(rows, labels, seen, names)
        return known, notes
    train = seen["train"]
    if train.bare:
        rows.splits["train"] = np.setdiff1d(rows.splits["train"], train.bare)
        notes.append(f"{len(train.bare):,} training rows have no residue that counts: left out")
    if not train.counted:
        why = f": --mask-keep {labels.mask_keep} is not in column '{labels.mask_col}'"
        raise InputError(
            f"{_where(rows, labels)}: no residue of the training rows counts"
            + (why if labels.mask_col else "")
        )
    if labels.multilabel:
        shares = [train.counts[name] / train.counted for name in names]
        return {"classes": names, "shares": shares}, notes
    names = names or _found_names(rows, labels, seen)
    _refuse_unknown(rows, labels, seen, names)
    counts = np.array([train.counts[name] for name in names])
    for split in () if classes else ("valid", "test"):
        for name in sorted(seen[split].counts.keys() - train.counts.keys()):
            row = seen[split].first[name]
            raise InputError(
                f"{place(rows, row, labels.columns[0])}: class '{name}' of this {split} row has no "
                "training residue. Split the rows another way, or name every class with --classes "
                "to accept one that cannot be learned"
            )
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1)) * (counts > 0)
    shares = counts / counts.sum()
    return {"classes": names, "shares": shares.tolist(), "weights": weights.tolist()}, notes


def token_targets(
    rows: list[dict], labels: ResidueLabels, names: Sequence[str], batch: dict, truncate: str
) -> Tensor:
    """Class numbers (B, L), or 0/1 (B, L, K), of the tokens of `batch`.

    IGNORED at special tokens, padding and residues that do not count. Labels of residues that
    `truncate` ("left" or "right") cut off are cut off alike.
    """
    codes = [labels.codes(row, names) for row in rows]
    return spread(codes, batch["special_tokens_mask"], truncate)


def spread(codes: list[np.ndarray], special: Tensor, truncate: str = "right") -> Tensor:
    """Labels (L_i, ...) of rows at their tokens (B, L, ...), IGNORED where `special` (B, L) is 1.

    A row with more labels than tokens was cut at its "right" or "left" end.
    """
    import torch

    pairs = zip((special == 0).sum(1).tolist(), codes, strict=True)
    kept = [code[len(code) - n :] if truncate == "left" else code[:n] for n, code in pairs]
    targets = torch.full((*special.shape, *kept[0].shape[1:]), IGNORED)
    targets[special == 0] = torch.from_numpy(np.concatenate(kept))
    return targets


def token_yardsticks(
    rows: Rows, indices: np.ndarray, labels: ResidueLabels, facts: Facts
) -> dict[str, tuple[Tensor, Tensor]]:
    """The shares of the classes in training, for every residue that counts."""
    import torch

    codes = [
        labels.codes(row, facts["classes"])
        for _, block in rows.chunks(labels.used, indices)
        for row in block.to_pylist()
    ]
    truth = torch.from_numpy(np.concatenate(codes))
    truth = truth[truth.flatten(1)[:, 0] != IGNORED if truth.ndim > 1 else truth != IGNORED]
    return {"training shares": (torch.tensor(facts["shares"]).expand(len(truth), -1), truth)}


def token_columns(
    rows: list[Tensor], names: Sequence[str], multilabel: bool
) -> dict[str, list[str] | list[list[str]]]:
    """Predicted classes of rows of probabilities (L_i, C): text where every class is one letter.

    With `multilabel` one text of 0 and 1 per label.
    """
    if multilabel:
        chosen = [(row > 0.5).int().T.tolist() for row in rows]
        return {
            f"predicted_{name}": ["".join(map(str, labels[k])) for labels in chosen]
            for k, name in enumerate(names)
        }
    found = [[names[k] for k in row.argmax(1).tolist()] for row in rows]
    letters = all(len(name) == 1 for name in names)
    return {"predicted": ["".join(row) for row in found] if letters else found}


# --------------------------------------------------------------------------- one pass


def _survey(
    rows: Rows, indices: np.ndarray, labels: ResidueLabels, tokenizer, names: Sequence[str]
) -> _Seen:
    """One pass over rows. Raises InputError, after the last, with the first that is bad."""
    seen, missing, wrong, unequal = _Seen(), Problem(), Problem(), Problem()
    for number, length, row in per_letter(rows, tokenizer, labels.used, indices):
        if empty := [column for column in labels.used if is_missing(row[column])]:
            missing.add(number, empty[0])
            continue
        try:
            if labels.multilabel:
                vectors = labels.vectors(row, names)
                which = vectors[:, 0]
                kept = labels.counted(row, len(vectors)) & (which != IGNORED)
                counts = dict(zip(names, vectors[kept].sum(0).tolist(), strict=True))
            else:
                found, which = residues(row[labels.columns[0]])
                ignored = np.array([labels.skipped(name) for name in found], dtype=bool)
                kept = labels.counted(row, len(which)) & ~ignored[which]
                each = np.bincount(which[kept], minlength=len(found)).tolist()
                counts = {n: c for n, c in zip(found, each, strict=True) if c}
        except ValueError as error:
            wrong.add(number, str(error))
            continue
        if len(which) != length:
            unequal.add(number, (len(which), length))
            continue
        seen.counts.update(counts)
        for name in counts:
            seen.first.setdefault(name, number)
        seen.residues, seen.counted = seen.residues + length, seen.counted + int(kept.sum())
        if not kept.any():
            seen.bare.append(number)
    total = f"of {len(indices):,} rows"
    if missing.count:
        raise InputError(
            f"{place(rows, missing.row, missing.value)}: no label. Only prediction works without "
            f"labels: fill them in or drop the rows ({missing.count:,} {total})."
        )
    column = " ".join(labels.columns)
    if wrong.count:
        raise InputError(
            f"{place(rows, wrong.row, column)}: {wrong.value} ({wrong.count:,} {total}). Expected "
            "text with one letter per residue, or a list of classes."
        )
    if unequal.count:
        has, needs = unequal.value
        raise InputError(
            f"{place(rows, unequal.row, column)}: {has:,} labels for a sequence of {needs:,} "
            f"residues ({unequal.count:,} {total}). Expected one per residue."
        )
    return seen


def _check_columns(labels: ResidueLabels) -> None:
    columns = labels.columns
    if not columns or len({*columns}) < len(columns):
        given = " ".join(columns) or "is empty"
        raise InputError(f"--data.y-cols {given}: name each column of labels once")
    if len(columns) > 1 and not labels.multilabel:
        raise InputError(
            f"--data.y-cols {' '.join(columns)}: one column holds the classes of a row's residues. "
            "Name one, or set --multilabel for one column of 0 and 1 per label"
        )
    if labels.mask_col and not labels.mask_keep:
        raise InputError("--mask-keep is empty: name the letters of --mask-col that count")


def _label_names(rows: Rows, labels: ResidueLabels, tokenizer, splits: Sequence[str]) -> list[str]:
    """0 to K - 1 for the vectors of the first row."""
    indices = rows.splits[splits[0]]
    _, _, row = next(per_letter(rows, tokenizer, labels.used, indices))
    cell = row[labels.columns[0]]
    listed = json_list(cell) if isinstance(cell, str) else cell
    is_nested = isinstance(listed, list) and listed and isinstance(listed[0], list)
    if not is_nested:
        where = place(rows, int(np.sort(indices)[0]), labels.columns[0])
        raise InputError(
            f"{where}: --multilabel expects a list of 0/1 vectors, one per residue, or one column "
            f"of 0 and 1 per label (--data.y-cols a b c); found {shown(cell)}"
        )
    return [str(k) for k in range(len(listed[0]))]


def _found_names(rows: Rows, labels: ResidueLabels, seen: dict[str, _Seen]) -> list[str]:
    first: dict[str, int] = {}
    for found in seen.values():
        first = {**found.first, **first}
    if len(first) < 2:
        raise InputError(
            f"{_where(rows, labels)}: the same class at all residues used "
            f"({', '.join(map(repr, first))}): nothing to learn. Set --data.y-cols."
        )
    if not all(WHOLE.fullmatch(name) for name in first):
        names = sorted(first)
    else:
        names = list(map(str, range(max(map(int, first)) + 1)))
        if below := [name for name in first if int(name) < 0]:
            where = place(rows, first[below[0]], labels.columns[0])
            raise InputError(
                f"{where}: class {below[0]}. Classes count from 0; only {IGNORED} is ignored"
            )
    if len(names) > MOST_CLASSES:
        raise InputError(
            f"{_where(rows, labels)}: {len(names):,} classes; at most {MOST_CLASSES:,} are sensible"
        )
    return names


def _refuse_unknown(rows: Rows, labels: ResidueLabels, seen: dict, names: list[str]) -> None:
    for found in seen.values():
        if wrong := sorted(found.counts.keys() - {*names}, key=found.first.__getitem__):
            name = wrong[0]
            raise InputError(
                f"{place(rows, found.first[name], labels.columns[0])}: class '{name}' is not one "
                f"of {', '.join(map(repr, names))}{nearest(name, names)} "
                f"({found.counts[name]:,} residues). Correct it, or set --ignore {name}"
            )


def _told(split: str, found: _Seen) -> str:
    without = found.residues - found.counted
    return f"{split}: {without:,} of {found.residues:,} residues do not count"


def _where(rows: Rows, labels: ResidueLabels) -> str:
    return f"{rows.names[0]}, column '{' '.join(labels.columns)}'"


# --------------------------------------------------------------------------- cells


def json_list(text: str) -> list | None:
    """The list that JSON text stands for; None for letters, brackets of a structure among them."""
    if text[:1] != "[" or not any(part in text for part in (*'0123456789"', "null")):
        return [] if text == "[]" else None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _name(value: Any) -> str:
    if value is None or value != value:
        return str(IGNORED)
    return str(int(value)) if isinstance(value, bool) else class_name(value)


def _matrix(listed: Any, width: int) -> np.ndarray:
    try:
        vectors = np.asarray(listed, dtype=np.float64)
    except (TypeError, ValueError):
        vectors = np.zeros(0)
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"expected one vector of {width} labels per residue")
    if not np.isin(vectors, (0, 1, IGNORED)).all():
        bad = vectors[~np.isin(vectors, (0, 1, IGNORED))][0]
        raise ValueError(f"{bad:g} is neither 0 nor 1")
    return vectors.astype(np.int64)


def _fits(count: int, length: int) -> None:
    if count != length:
        raise ValueError(f"{count:,} letters of the mask or of another label for {length:,} labels")


def is_missing(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."
