"""What a referee would ask of a table and its splits: leaks, labels that contradict, drift.

Rows are read in streaming blocks; what stays in memory is 24 bytes a row for sequences (length and
two hashes) and 8 for each label column. N rows. Equal sequences have equal hashes; of ten million
sequences two differ but collide with probability 3e-6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np

from mgen.config import InputError
from mgen.data.checking import check
from mgen.data.checking.drift import HELD_OUT, LEAST_P, Used, class_distance, histogram, spread
from mgen.data.splitting.assigning import are_classes, coded, floats
from mgen.data.splitting.identity import RESIDUES, Letters, Words, joined, letters, nearest
from mgen.data.table import Rows
from mgen.data.targets.labels import class_name

LEVELS = {
    "serious": "scores on these splits cannot be trusted as they are",
    "look": "judge for yourself: it may be meant, or change scores a little",
    "note": "good to know",
}
SAMPLE = 10_000  # held-out rows of a split whose nearest training row is looked for
SAMPLE_LETTERS = 10_000_000  # and letters of them
FIRST = 32  # training rows that all of them are held against first: variants find one there
MANY = 0.01  # share of held-out rows whose leak changes a score
VARIANTS = 0.95  # share from which held-out rows are variants of training rows: no random leak
MOST_NAMED = 1000  # classes whose names are kept
FEW = 10  # training rows of a class
DRIFT, UNLIKELY = 0.1, 1e-3  # a distance of distributions and a p-value worth saying
EXPECTED = {"DNA": "ACGT", "RNA": "ACGU", "protein": RESIDUES}
COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


class Finding(NamedTuple):
    """One thing to know, how bad it is (`LEVELS`) and what to do about it."""

    level: str
    text: str
    advice: str = ""


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: the plan, numbers of rows by split, the molecule, what was looked at.
        findings: most serious first. Of a table of one file rows are named by number alone.
        overlaps: rows of a split that occur in another.
        nearest: per held-out split how alike its rows are to the most alike training row, and
            how many have none to compare with: of like length, with two k-mers in common.
        labels: per label column what it is and how it is spread over the splits.
        histograms: per title the `axis`, `edges` (b + 1,), per split `shares` (b,) of its rows,
            and a `caption`.
        letters: letters by falling count; those that are not expected have a `first` row.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    overlaps: list[dict[str, Any]] = field(default_factory=list)
    nearest: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    histograms: dict[str, dict[str, Any]] = field(default_factory=dict)
    letters: list[dict[str, Any]] = field(default_factory=list)

    def add(self, level: str, text: str, advice: str = "") -> None:
        self.findings.append(Finding(level, text, advice))

    def sort(self) -> None:
        self.findings.sort(key=lambda finding: list(LEVELS).index(finding.level))


def report(rows: Rows, near: float, seed: int) -> Report:
    """Look at all rows that are in splits.

    `near`: the identity (0.5 to 1) from which two sequences are nearly the same; `seed`: of the
    sample whose nearest training row is looked for. Raises InputError if no column of sequences is
    named, or `near` is out of range.
    """
    if not 0.5 <= near <= 1:
        raise InputError(f"--near {near:g}: expected an identity of 0.5 to 1")
    if not rows.table.x_col:
        raise InputError(f"{rows.names[0]}: no column of sequences is named. Set --data.x-col")
    used = {name: np.sort(indices) for name, indices in rows.splits.items() if len(indices)}
    found = Report()
    found.facts = {
        "files": rows.names,
        "plan": rows.plan,
        "digest": rows.digest,
        "rows": len(rows),
        "splits": {name: len(indices) for name, indices in used.items()},
    }
    sequences = _Sequences(rows, used, found, near)
    sequences.copies()
    if "train" in used:
        sequences.neighbours(seed)
    _groups(rows, used, found)
    for column in rows.table.y_cols:
        if column in rows.columns:
            _label(rows, column, used, sequences, found)
    absent = [column for column in rows.table.y_cols if column not in rows.columns]
    if absent or not rows.table.y_cols:
        named = f": no column {', '.join(map(repr, absent))}" if absent else ""
        found.add("note", f"labels were not looked at{named}")
    for text in check.identifiers(rows):
        found.add("look", _short(rows, text), "give each row an identifier of its own")
    found.sort()
    return found


# --------------------------------------------------------------------------- sequences


class _Sequences:
    """Lengths, hashes and, for nucleotides, hashes that both strands share: (N,) each."""

    def __init__(self, rows: Rows, used: Used, found: Report, near: float) -> None:
        self.rows, self.used, self.found, self.near = rows, used, found, near
        self.lengths = np.zeros(len(rows), dtype=np.int64)
        self.is_nucleic = self._alphabet()
        self.hashes = np.zeros(len(rows), dtype=np.int64)
        self.both = np.zeros(len(rows), dtype=np.int64)
        for numbers, texts in self._blocks():
            if self.is_nucleic:
                ahead = [text.replace(b"U", b"T") for text in texts.texts()]
                back = [text.translate(COMPLEMENT)[::-1] for text in ahead]
                self.hashes[numbers] = _hashes(ahead)
                self.both[numbers] = np.minimum(self.hashes[numbers], _hashes(back))
            else:
                self.hashes[numbers] = _hashes(texts.texts())

    def _blocks(self, indices: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Letters]]:
        column = self.rows.table.x_col
        for numbers, block in self.rows.chunks([column], indices):
            yield numbers, letters(block.column(column), f"{self.rows.names[0]}, column '{column}'")

    def _alphabet(self) -> bool:
        """Count letters and lengths; whether the sequences are of nucleotides."""
        found, rows, counts, first = self.found, self.rows, np.zeros(256, dtype=np.int64), {}
        for numbers, texts in self._blocks():
            self.lengths[numbers] = texts.lengths
            for byte in np.flatnonzero((counts == 0) & (texts.counts > 0)).tolist():
                at = int(np.flatnonzero(texts.data == byte)[0])
                first[byte] = int(numbers[np.searchsorted(texts.ends, at, side="right") - 1])
            counts += texts.counts
        total = int(counts.sum())
        is_nucleic = bool(total) and counts[list(b"ACGTUN")].sum() >= 0.9 * total
        if is_nucleic:
            molecule = "RNA" if counts[ord("U")] > counts[ord("T")] else "DNA"
        else:
            is_protein = counts[list(f"{RESIDUES}X".encode())].sum() >= 0.9 * total
            molecule = "protein" if total and is_protein else "unknown"
        found.facts |= {"letters": total, "molecule": molecule}
        for byte in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist():
            letter = chr(byte) if 32 < byte < 127 else f"byte {byte}"
            line = {"letter": letter, "count": int(counts[byte]), "share": counts[byte] / total}
            if letter not in EXPECTED.get(molecule, letter):
                line["first"] = _where(rows, first[byte])
            found.letters.append(line)
        if odd := [line for line in found.letters if "first" in line]:
            names = ", ".join(f"{line['letter']} ({line['count']:,})" for line in odd[:8])
            found.add(
                "look",
                f"{sum(line['count'] for line in odd):,} of {total:,} letters are not "
                f"{EXPECTED[molecule]} of {molecule}: {names}; the first {odd[0]['letter']} is in "
                f"{odd[0]['first']}",
                "correct them, or see what the backbone makes of them: --backbone.unknown",
            )
        empty = np.flatnonzero(self.lengths == 0)
        if len(empty):
            found.add(
                "serious",
                f"{len(empty):,} of {len(rows):,} sequences are empty, the first in "
                f"{_where(rows, int(empty[0]))}",
                "fill them in or drop the rows",
            )
        lengths = spread(self.lengths.astype(float), self.used)
        found.facts["lengths"] = lengths
        _say_drift("sequence lengths", lengths, found)
        found.histograms["length in letters"] = histogram("letters", self.lengths, self.used)
        return is_nucleic

    def _filled(self, names: list[str]) -> np.ndarray:
        rows = np.concatenate([self.used[name] for name in names])
        return rows[self.lengths[rows] > 0]

    def copies(self) -> None:
        """Identical sequences within splits and across; nucleotides also as the other strand."""
        earlier: list[str] = []
        for name in self.used:
            here = self._filled([name])
            repeats = len(here) - len(np.unique(self.hashes[here]))
            self._overlap(name, name, repeats)
            if repeats:
                total = len(self.used[name])
                text = f"{repeats:,} of {total:,} {name} rows repeat a sequence of {name}"
                level = "look" if name in HELD_OUT else "note"
                self.found.add(level, text, "each counts as often as it is there; or keep one")
            for others in [[other] for other in earlier] + [earlier] * (len(earlier) > 1):
                there = self._filled(others)
                same = np.isin(self.hashes[here], self.hashes[there])
                turned = np.isin(self.both[here], self.both[there]) & ~same & self.is_nucleic
                self._overlap(name, " or ".join(others), int(same.sum()), int(turned.sum()))
            if earlier:  # said of all earlier splits at once
                self._say_copies(name, " or ".join(earlier), here, there, same, self.hashes)
                where = f"{' or '.join(earlier)} as reverse complement"
                self._say_copies(name, where, here, there, turned, self.both)
            earlier.append(name)

    def _overlap(self, name: str, other: str, same: int, turned: int | None = None) -> None:
        line = {"rows of": name, "that occur in": other, "identical": same}
        if self.is_nucleic:
            line["reverse complement"] = turned
        self.found.overlaps.append(line | {"of rows": len(self.used[name])})

    def _say_copies(
        self,
        name: str,
        where: str,
        here: np.ndarray,
        there: np.ndarray,
        same: np.ndarray,
        hashes: np.ndarray,
    ) -> None:
        if not same.any():
            return
        row = int(here[np.flatnonzero(same)[0]])
        twin = int(there[np.flatnonzero(hashes[there] == hashes[row])[0]])
        self.found.add(
            "serious" if same.sum() >= MANY * len(self.used[name]) else "look",
            f"{same.sum():,} of {len(self.used[name]):,} {name} sequences occur in {where}, such "
            f"as {_where(self.rows, row)}, which is {_where(self.rows, twin)}",
            self._advice(name),
        )

    def _advice(self, name: str) -> str:
        """What to do about rows of a split that other splits know."""
        table, drawn = self.rows.table, f"--data.identity {self.near:g}"
        if f"{name}: " in self.rows.plan or (table.folds and not table.fold_col):
            return f"{drawn} keeps alike sequences together in splits drawn at random"
        names = {"split-col": table.split_col, "fold-col": table.fold_col}
        undo = [f"--data.{flag} ''" for flag, column in names.items() if column]
        redraw = f" or let mgen draw the splits ({' '.join([drawn, *undo])})" if undo else ""
        return (
            f"drop these rows{redraw}; to compare with scores that were measured with them, give "
            "both"
        )

    def neighbours(self, seed: int) -> None:
        """How alike held-out rows are to training rows, by shared k-mers."""
        near, train, shares = self.near, self.used["train"], {}
        edges = np.linspace(0, 1, 21)
        for name in [name for name in HELD_OUT if name in self.used]:
            held = self._filled([name])
            chosen = np.random.default_rng(seed).permutation(held)[:SAMPLE]
            chosen = np.sort(chosen[np.cumsum(self.lengths[chosen]) <= SAMPLE_LETTERS])
            alike = np.isin(self.hashes[chosen], self.hashes[train]).astype(float)
            rest = np.flatnonzero(alike == 0)
            if not len(chosen):
                continue
            if len(rest):
                sequences = joined([texts for _, texts in self._blocks(chosen[rest])])
                words = Words.of(sequences, near)
                if near < words.floor:
                    self.found.add(
                        "note",
                        f"{name} sequences are too short to tell {near:g} alike from chance (it "
                        f"takes {words.floor:.2f}): nearly identical ones were not looked for",
                    )
                    continue
                blocks = chain(self._blocks(train[:FIRST]), self._blocks(train))
                alike[rest], twins = nearest(words, sequences, blocks, near)
            close, compared = alike >= near, alike > 0
            self.found.nearest.append(
                {
                    "split": name,
                    "rows looked at": len(chosen),
                    f"at least {near:g} alike": int(close.sum()),
                    "share": float(close.mean()),
                    "none to compare": int((~compared).sum()),
                    "median identity of others": float(np.median(alike[compared]))
                    if compared.any()
                    else None,
                }
            )
            shares[name] = (np.histogram(alike, edges)[0] / len(alike)).tolist()
            if not (len(rest) and close[rest].any()):
                continue  # copies were said
            at = int(np.flatnonzero(close[rest])[0])
            here, twin = int(chosen[rest[at]]), int(twins[at])
            some = f" of a sample (seed {seed})" if len(chosen) < len(held) else ""
            text = (
                f"{close.sum():,} of {len(chosen):,} {name} rows{some} are at least {near:g} alike "
                f"to a training row, copies included, such as "
                f"{_where(self.rows, here)} to {_where(self.rows, twin)}"
            )
            level, advice = "serious" if close.mean() >= MANY else "look", self._advice(name)
            if close.mean() >= VARIANTS:
                level = "look"
                text += ": these are variants of one another"
                advice = (
                    "near-identity says nothing here; the split must be judged by its rule, such "
                    "as positions or numbers of mutations kept apart"
                )
            self.found.add(level, text, advice)
        if shares:
            title = "identity with the most alike training row"
            self.found.histograms[title] = {
                "axis": "identity",
                "edges": edges.tolist(),
                "shares": shares,
                "caption": f"A bar at 0: no training row of like length (0.8 or more) shares "
                f"two short words with the row. From {near:g} on it is the identity with the first "
                "such row found, not the most alike one.",
            }


def _groups(rows: Rows, used: Used, found: Report) -> None:
    """Values of the group column that held-out rows share with training rows."""
    column = rows.table.group_col
    if not column:
        return
    codes, _ = coded(rows, column, "group-col")
    for name in [name for name in HELD_OUT if name in used and "train" in used]:
        shared = np.isin(codes[used[name]], codes[used["train"]])
        if shared.any():
            count = len(np.unique(codes[used[name]][shared]))
            found.add(
                "serious",
                f"{count:,} groups of column '{column}' are in {name} and in train: "
                f"{shared.sum():,} of {len(shared):,} {name} rows",
                "let mgen draw the splits: --data.group-col keeps groups together",
            )


def _hashes(texts: Iterable[bytes]) -> np.ndarray:
    """64 bits of each text's hash, the same in every process: what is shown shall not change."""
    joined_ = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(joined_, dtype="<i8")


def _where(rows: Rows, row: int) -> str:
    return _short(rows, rows.where(row))


def _short(rows: Rows, text: str) -> str:
    """Without the file, where there is but one, and without what is said once for all rows."""
    text = text.replace(" (header not counted)", "")
    return text.replace(f"{rows.names[0]}, row ", "row ") if len(rows.names) == 1 else text


# --------------------------------------------------------------------------- labels


class _Values(NamedTuple):
    """A label column: numbers (N,) with NaN where there is none, or hashes of text (N,)."""

    kind: Literal["numbers", "classes", "per letter"]
    values: np.ndarray
    is_missing: np.ndarray
    names: dict[float, str]  # of classes, the first MOST_NAMED


def _label(rows: Rows, column: str, used: Used, sequences: _Sequences, found: Report) -> None:
    label = _read(rows, column, sequences.lengths)
    if label is None:
        found.add("note", f"labels '{column}' are lists: not compared")
        return
    everywhere = np.unique(np.concatenate(list(used.values())))
    missing = everywhere[label.is_missing[everywhere]]
    if len(missing):
        found.add(
            "look",
            f"{len(missing):,} of {len(everywhere):,} rows have no label '{column}', the first is "
            f"{_where(rows, int(missing[0]))}",
            "fill them in or drop the rows",
        )
    used = {name: indices[~label.is_missing[indices]] for name, indices in used.items()}
    used = {name: indices for name, indices in used.items() if len(indices)}
    if label.kind == "numbers":
        lines = spread(label.values, used)
        _say_drift(f"labels '{column}'", lines, found)
        found.histograms[f"label {column}"] = histogram(column, label.values, used)
    elif label.kind == "classes":
        lines = _balance(rows, column, label, used, found)
    else:
        lines = _letter_shares(rows, column, used)
        _say_drift(f"letters of the labels '{column}'", lines, found)
    found.labels[column] = {"kind": label.kind, "splits": lines}
    _conflicts(rows, column, label, sequences, used, found)


def _read(rows: Rows, column: str, lengths: np.ndarray) -> _Values | None:
    """Numbers if every cell is one; some are classes (`are_classes`). None for lists."""
    import pyarrow as pa

    values = np.full(len(rows), np.nan)
    for numbers, block in rows.chunks([column]):
        if pa.types.is_nested(block.column(column).type):
            return None
        parsed = floats(block.column(column))
        if parsed is None:
            return _read_text(rows, column, lengths)
        values[numbers] = parsed
    is_missing = ~np.isfinite(values)
    different = np.unique(values[~is_missing])
    names = {}
    if are_classes(different):
        names = {value: class_name(value) for value in different.tolist()}
    return _Values("classes" if names else "numbers", values, is_missing, names)


def _read_text(rows: Rows, column: str, lengths: np.ndarray) -> _Values:
    values, is_missing = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)
    names: dict[int, str] = {}
    is_per_letter = True
    for numbers, block in rows.chunks([column]):
        coded_ = block.column(column).combine_chunks().dictionary_encode("encode")
        cells = [class_name("" if c is None else c) for c in coded_.dictionary.to_pylist()]
        hashes = _hashes(cell.encode() for cell in cells)
        codes = coded_.indices.to_numpy()
        values[numbers] = hashes[codes]
        is_missing[numbers] = np.array([not cell for cell in cells], dtype=bool)[codes]
        sizes = np.array(list(map(len, cells)), dtype=np.int64)[codes]
        is_per_letter &= bool(((sizes == lengths[numbers]) | is_missing[numbers]).all())
        for value, cell in zip(hashes.tolist(), cells, strict=True):
            if cell and len(names) < MOST_NAMED:
                names.setdefault(value, cell)
    return _Values("per letter" if is_per_letter else "classes", values, is_missing, names)


def _balance(rows: Rows, column: str, label: _Values, used: Used, found: Report) -> dict[str, Any]:
    """Shares of classes by split, and how far from those of training."""
    classes = np.unique(np.concatenate([label.values[indices] for indices in used.values()]))
    names = [label.names.get(value, "...") for value in classes.tolist()]
    counts = {
        name: np.bincount(np.searchsorted(classes, label.values[indices]), minlength=len(classes))
        for name, indices in used.items()
    }
    lines = {}
    order = np.lexsort((names, -sum(counts.values())))[:MOST_NAMED]
    for name, number in counts.items():
        lines[name] = {
            "rows": int(number.sum()),
            "counts": {names[i]: int(number[i]) for i in order},
        }
    if "train" in counts:
        train = counts["train"]
        for name in [name for name in HELD_OUT if name in counts]:
            lines[name] |= class_distance(train, counts[name])
            new = np.flatnonzero((train == 0) & (counts[name] > 0))
            if len(new):
                found.add(
                    "look",
                    f"{len(new):,} classes of {name} have no training row, such as "
                    f"'{names[new[0]]}' ({counts[name][new].sum():,} rows, column '{column}')",
                    "they cannot be learnt: drop them, or draw splits with --data.stratify-col "
                    f"{column}",
                )
        rare = np.flatnonzero((train > 0) & (train < FEW))
        if len(rare):
            found.add(
                "note",
                f"{len(rare):,} of {len(classes):,} classes of '{column}' have fewer than {FEW} "
                f"training rows, such as '{names[rare[0]]}' ({train[rare[0]]})",
                f"draw splits with --data.stratify-col {column}, or join classes",
            )
    _say_drift(f"classes of '{column}'", lines, found)
    return lines


def _letter_shares(rows: Rows, column: str, used: Used) -> dict[str, Any]:
    """Shares of the letters of labels by split."""
    counts = {}
    for name, indices in used.items():
        blocks = (block.column(column) for _, block in rows.chunks([column], indices))
        texts = ("".join(cell or "" for cell in column.to_pylist()) for column in blocks)
        counts[name] = sum(
            np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256) for text in texts
        )
    seen = np.flatnonzero(sum(counts.values()))
    lines = {
        name: {"letters": int(n.sum()), "counts": {chr(i): int(n[i]) for i in seen.tolist()}}
        for name, n in counts.items()
    }
    for name in [name for name in HELD_OUT if name in counts and "train" in counts]:
        apart = class_distance(counts["train"][seen], counts[name][seen])
        lines[name]["total variation"] = apart["total variation"]  # letters are not independent
    return lines


def _conflicts(
    rows: Rows, column: str, label: _Values, sequences: _Sequences, used: Used, found: Report
) -> None:
    """Identical sequences that differ in their label."""
    indices = np.unique(np.concatenate(list(used.values()))) if used else np.zeros(0, np.int64)
    indices = indices[sequences.lengths[indices] > 0]
    if not len(indices):
        return
    order = np.lexsort((label.values[indices], sequences.hashes[indices]))
    indices = indices[order]
    hashes, values = sequences.hashes[indices], label.values[indices]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    ends = np.append(starts[1:], len(hashes))
    differ = np.flatnonzero(values[starts] != values[ends - 1])
    if not len(differ):
        return
    sizes = (ends - starts)[differ]
    is_number = label.kind == "numbers"
    apart = (values[ends - 1] - values[starts])[differ] if is_number else sizes
    worst = differ[int(np.argmax(apart))]
    first, last = int(indices[starts[worst]]), int(indices[ends[worst] - 1])
    cells = [str(rows.take([row])[0][column]) for row in (first, last)]
    shown = [cell if len(cell) <= 40 else cell[:40] + "..." for cell in cells]
    found.labels[column]["conflicts"] = {"sequences": len(differ), "rows": int(sizes.sum())}
    found.add(
        "look" if is_number else "serious",
        f"identical sequences with different '{column}': {len(differ):,} ({sizes.sum():,} rows), "
        f"{'farthest apart' if is_number else 'most often'} in {_where(rows, first)} ({shown[0]}) "
        f"and {_where(rows, last)} ({shown[1]})",
        "average repeated measurements" if is_number else "find out which label is right",
    )


def _say_drift(what: str, lines: dict[str, dict[str, Any]], found: Report) -> None:
    for name, line in lines.items():
        for measure in ("Kolmogorov-Smirnov", "total variation"):
            distance, p = line.get(measure, 0.0), line.get("p")
            if distance > DRIFT and (p is None or p < UNLIKELY):
                chance = "" if p is None else f", p {p:.2g}" if p > LEAST_P else f", p below {p:g}"
                found.add(
                    "look",
                    f"{what} of {name} and train differ: {measure} {distance:.4g}{chance}",
                    "meant by some splits; else draw them at random, or with --data.stratify-col",
                )
