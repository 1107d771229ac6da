"""What comes after scoring variants: labels, metrics of methods, ProteinGym's file of an assay."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgen.checkpoint import whole, write_json
from mgen.config import InputError
from mgen.data.inputs.variants import Source, given_column
from mgen.data.table import Rows
from mgen.data.targets.labels import Problem, place
from mgen.metrics.variants import above_median, variant_metrics
from mgen.predictions import read, write_scored
from mgen.report import metric_table

BARE = "protein_onehot"  # what stands for the network of strategies that need none
BLOCK = 10_000  # rows of the table in memory


@dataclass(frozen=True)
class Assay:
    """What is known of the rows of a table besides their variants: numbers (n,) by column.

    `labels`; `bins`, 0/1 labels or None; `others`, scores by other methods.
    """

    labels: dict[str, np.ndarray]
    bins: np.ndarray | None
    others: dict[str, np.ndarray]


def read_assay(rows: Rows, cfg: Any) -> tuple[Assay, list[str]]:
    """The labels and scores that the settings of a recipe name, and what should be said aloud.

    Of the columns of labels only the default one may be absent. Raises InputError as `labels_of`.
    """
    notes, columns = [], cfg.data.y_cols
    if columns == ("label",) and "label" not in rows.columns:
        columns = ()
        notes.append("no column 'label': no metrics. --data.y-cols names the column of labels")
    labels = {column: labels_of(rows, column, cfg.positive) for column in columns}
    for column, values in labels.items():
        if missing := int(np.isnan(values).sum()):
            notes.append(f"{missing:,} of {len(values):,} rows have no {column} and do not count")
    bins = labels_of(rows, cfg.bin_col) if labels and cfg.bin_col in rows.columns else None
    if bins is not None and {*np.unique(bins)} - {0.0, 1.0}:
        raise InputError(f"{rows.names[0]}, column '{cfg.bin_col}': expected 0 or 1 in every row")
    for column in cfg.score_cols:
        rows.require(column)
    others = {column: labels_of(rows, column) for column in cfg.score_cols}
    return Assay(labels, bins, others), notes


def labels_of(rows: Rows, column: str, positive: str = "") -> np.ndarray:
    """The numbers (n,) of a column, nan where a cell is empty; with `positive` 1 where it is that.

    Raises InputError with the first cell that is no number, or if no cell is `positive`.
    """
    rows.require(column)
    values, wrong = np.full(len(rows), np.nan), Problem()
    for numbered, block in rows.chunks([column]):
        for number, cell in zip(numbered.tolist(), block.column(column).to_pylist(), strict=True):
            text = "" if cell is None else str(cell).strip()
            if not text or text.lower() == "nan":
                continue
            try:
                values[number] = text == positive if positive else float(text)
            except ValueError:
                wrong.add(number, text)
    if wrong.count:
        raise InputError(
            f"{place(rows, wrong.row, column)}: {wrong.value!r} is not a number. --positive names "
            f"the class that counts as 1 ({wrong.count:,} of {len(rows):,} rows)"
        )
    if np.isinf(values).any():
        raise InputError(
            f"{place(rows, int(np.isinf(values).argmax()), column)}: not a finite number"
        )
    if positive and not np.nansum(values):
        raise InputError(f"{rows.names[0]}, column '{column}': no row is {positive!r} (--positive)")
    return values


def write(
    file: Path, rows: Rows, cfg: Any, source: Source | None, assay: Assay, names: list[str]
) -> list[Path]:
    """All that follows from a finished prediction file whose columns `names` are scores.

    Returns the files made: the metrics where there are labels, and the scores beside the mutants or
    the places of the variants.
    """
    order, scores = scored(file, names)
    if names == ["score"]:
        model = "" if cfg.backbone.name == BARE else f"{Path(cfg.backbone.name).name}_"
        scores = {"mean" if source is None else model + cfg.strategy: scores["score"]}
    files = []
    if assay.labels:
        signed = {f"-{n}": -v for n, v in scores.items()} if cfg.negate else scores
        others = {name: values[order] for name, values in assay.others.items()}
        files.append(compare(file, assay, order, signed | others))
        keep(file, assay, order, signed | others)
    if cfg.data.wild_type:
        columns = {"mutant": given_column(cfg.data), "mutated_sequence": cfg.data.x_col}
        files.append(proteingym(file, rows, order, columns, assay, scores))
    elif source is not None:
        places = [name for name in source.columns if name != cfg.data.x_col]
        files.append(by_place(file, rows, order, places, scores))
    return files


def scored(file: Path, names: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Row numbers (n,) of a finished prediction file and some of its columns as numbers (n,)."""
    columns: dict[str, list[float]] = {name: [] for name in ("row", *names)}
    for row in read(file):
        for name, column in columns.items():
            column.append(float("nan") if row[name] in (None, "") else float(row[name]))
    arrays = {name: np.array(column) for name, column in columns.items()}
    return arrays.pop("row").astype(np.int64), arrays


def compare(file: Path, assay: Assay, order: np.ndarray, methods: dict[str, np.ndarray]) -> Path:
    """Print the metrics of every method against every label and write them beside `file`.

    `methods` are in the order of the rows `order`. A row without a label or without a score of a
    method does not count for it; `rows` says how many do.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for label, values in assay.labels.items():
        table[label], truth = {}, values[order]
        for name, scores in methods.items():
            used = np.isfinite(scores) & np.isfinite(truth)
            bins = None if assay.bins is None else assay.bins[order][used]
            found = variant_metrics(scores[used], truth[used], bins)
            table[label][name] = {**found, "rows": int(used.sum())}
        metric_table(f"against {label}", table[label])
    target = file.with_suffix(".metrics.json")
    write_json(target, table)
    return target


def keep(file: Path, assay: Assay, order: np.ndarray, methods: dict[str, np.ndarray]) -> None:
    """Keep the scores of the first method and the first label of the variants that have both.

    Labels (m, 2): the number, and the 0/1 one of it. Methods that score all these are kept as well.
    """
    scores, truth = next(iter(methods.values())), next(iter(assay.labels.values()))[order]
    used = np.isfinite(scores) & np.isfinite(truth)
    bins = above_median(truth[used]) if assay.bins is None else assay.bins[order][used]
    labels = np.stack([truth[used], bins], axis=1)
    found = map(torch.from_numpy, (scores[used], labels, order[used]))
    others = {
        n: torch.from_numpy(v[used]) for n, v in methods.items() if np.isfinite(v[used]).all()
    }
    write_scored(file, "variants", *found, others)


def proteingym(
    file: Path,
    rows: Rows,
    order: np.ndarray,
    columns: dict[str, str],
    assay: Assay,
    methods: dict[str, np.ndarray],
) -> Path:
    """ProteinGym's file of an assay beside `file`: mutant, mutated_sequence, DMS_score,
    DMS_score_bin (the first label; 1 above its median unless the table has bins), the methods.

    `columns` names those of the table that hold the first two.
    """
    numbers = {}
    for label in list(assay.labels.values())[:1]:
        truth, known = label[order], np.isfinite(label[order])
        bins = np.full(len(truth), np.nan)
        bins[known] = above_median(truth[known]) if assay.bins is None else assay.bins[order][known]
        numbers = {"DMS_score": truth, "DMS_score_bin": bins}
    taken = ({name: row[at] for name, at in columns.items()} for row in _rows(rows, order))
    return _write(file.with_suffix(".proteingym.csv"), taken, numbers | methods, ",")


def by_place(
    file: Path, rows: Rows, order: np.ndarray, places: list[str], methods: dict[str, np.ndarray]
) -> Path:
    """A TSV beside `file`: row number, identifier, the table's columns `places` and the scores."""
    names = [*([rows.id_col] if rows.id_col else []), *places]
    numbered = zip(order.tolist(), _rows(rows, order), strict=True)
    taken = ({"row": number, **{name: row[name] for name in names}} for number, row in numbered)
    return _write(file.with_suffix(".variants.tsv"), taken, methods, "\t")


def _rows(rows: Rows, order: np.ndarray) -> Iterator[dict[str, Any]]:
    for start in range(0, len(order), BLOCK):
        yield from rows.take(order[start : start + BLOCK])


def _write(
    target: Path, taken: Iterator[dict[str, Any]], columns: dict[str, np.ndarray], delimiter: str
) -> Path:
    with whole(target) as partial, partial.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        for number, row in enumerate(taken):
            if not number:
                writer.writerow([*row, *columns])
            writer.writerow([*row.values(), *(_cell(v[number]) for v in columns.values())])
    return target


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.8g}"
