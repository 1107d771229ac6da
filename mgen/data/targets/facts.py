"""What a run learns from its training rows and keeps (label scale, class names), and yardsticks.

Yardsticks are (predictions, labels) to print next to a model's test metrics: the best guess that
ignores the sequence and, for simulated sets that hold the noise-free truth, the best possible.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgen.config import InputError
from mgen.data.checking import check
from mgen.data.table import Rows
from mgen.data.targets.labels import (
    class_ids,
    class_labels,
    class_names,
    class_weights,
    numbers,
    place,
    statistics,
)

Facts = dict[str, Any]
Yardsticks = dict[str, tuple[Tensor, Tensor]]


def number_facts(rows: Rows, splits: Sequence[str], scale: str, known: Facts) -> Facts:
    """Check the numbers of `splits`; mean and std of the labels over the splits `scale` joins by +.

    `known` is returned as it is when the run has been trained. "none" leaves labels unscaled.
    Raises InputError with the first bad label.
    """
    columns = _label_columns(rows)
    for split in splits:
        check.numbers(rows, rows.splits[split])
    if known:
        return known
    used = "train" if scale == "none" else scale
    fitted = np.concatenate([rows.splits[split] for split in used.split("+")])
    mean, std = statistics(rows, columns, fitted)
    for column, middle, spread in zip(columns, mean, std, strict=True):
        if not np.spacing(np.float32(abs(middle) + spread)) < 1e-3 * spread:
            raise InputError(
                f"{rows.names[0]}, column '{column}': labels of {middle:.4g} vary by {spread:.4g}, "
                "too little for single precision, or are too large for it. Subtract a constant or "
                "change their unit"
            )
    facts = {"baseline": statistics(rows, columns, rows.splits["train"])[0].tolist()}
    if scale == "none":
        return facts | {"mean": [0.0] * len(columns), "std": [1.0] * len(columns)}
    return facts | {"mean": mean.tolist(), "std": std.tolist()}


def check_minimum(minimum: Sequence[float], outputs: int) -> None:
    """Raise InputError unless there are no least values, one for all outputs or one for each."""
    if len(minimum) not in (0, 1, outputs) or not np.isfinite(minimum).all():
        given = " ".join(map(str, minimum))
        raise InputError(
            f"--minimum {given}: expected one finite number, or one for each of {outputs} label "
            "columns"
        )


def scaled(labels: Tensor, facts: Facts) -> Tensor:
    """Labels (B, K) with mean 0 and standard deviation 1 in the rows `number_facts` took."""
    mean, std = (torch.tensor(facts[key], device=labels.device) for key in ("mean", "std"))
    return (labels - mean) / std


def unscaled(outputs: Tensor, facts: Facts, minimum: Sequence[float] = ()) -> Tensor:
    """The inverse, float32; values below `minimum`, one or one per output, are raised to it."""
    mean, std = (torch.tensor(facts[key], device=outputs.device) for key in ("mean", "std"))
    values = outputs.float() * std + mean
    return values.clamp(min=torch.tensor(minimum, device=outputs.device)) if minimum else values


def number_yardsticks(rows: Rows, indices: np.ndarray, facts: Facts) -> Yardsticks:
    """The training mean and, where the table has one, the noise-free truth."""
    labels = torch.tensor(numbers(rows, rows.table.y_cols, indices))
    constant = torch.tensor(facts["baseline"]).double().expand_as(labels)
    sticks = {"mean baseline": (constant, labels)}
    if rows.table.truth_col in rows.columns:
        truth = torch.tensor(numbers(rows, [rows.table.truth_col], indices))
        sticks["noise ceiling"] = (truth, labels)
    return sticks


def class_facts(
    rows: Rows, splits: Sequence[str], classes: int, multilabel: bool, known: Facts
) -> Facts:
    """Check the classes of `splits`; names, training shares and weights of the classes.

    Classes are the values of the label column, 0 to `classes` - 1 if that is set, or with
    `multilabel` the 0/1 label columns themselves. Raises InputError with the first bad label, and
    for a class that is held out but has no training row unless `classes` was set.
    """
    columns = _label_columns(rows)
    if len(columns) > 1 and not multilabel:
        raise InputError(
            f"--data.y-cols {' '.join(columns)}: one column holds the class of a row. Name one, or "
            "set --multilabel for one 0/1 column per label"
        )
    if classes < 0 or classes == 1:
        raise InputError(f"--classes {classes}: expected 2 or more, or 0 to count them")
    names = list(rows.table.y_cols) if multilabel else known.get("classes")
    names = names or list(class_names(rows, rows.table.y_cols[0], classes))
    found = {split: _targets(rows, rows.splits[split], names, multilabel) for split in splits}
    if known:
        return known
    if multilabel:
        share = found["train"].mean(0)
        return {"classes": names, "shares": share.tolist()}
    ids = found["train"]
    counts = np.bincount(ids, minlength=len(names))
    for split in [] if classes else ("valid", "test"):
        unseen = np.flatnonzero(counts[found[split]] == 0)
        if len(unseen):
            row = int(rows.splits[split][unseen[0]])
            name, column = names[found[split][unseen[0]]], rows.table.y_cols[0]
            raise InputError(
                f"{place(rows, row, column)}: class '{name}' of this {split} row has no training "
                f"row ({len(unseen):,} such rows in {split}). Split the rows another way, leave "
                "the class out with --data.keep-classes, or set --classes to accept classes that "
                "cannot be learned"
            )
    weights = class_weights(ids, len(names))
    return {
        "classes": names,
        "shares": (counts / counts.sum()).tolist(),
        "weights": np.where(np.isfinite(weights), weights, 0.0).tolist(),
    }


def targets(
    rows: list[dict], columns: Sequence[str], names: Sequence[str], multilabel: bool
) -> Tensor | None:
    """Class numbers (B,), or 0/1 labels (B, K); None unless every row has all of them."""
    if not multilabel:
        return class_labels(rows, columns[0], names)
    try:
        return torch.tensor([[int(float(row[column])) for column in columns] for row in rows])
    except (KeyError, TypeError, ValueError):
        return None  # only in prediction, which reads no labels: others were refused before


def class_yardsticks(rows: Rows, indices: np.ndarray, facts: Facts, multilabel: bool) -> Yardsticks:
    """The shares of the classes in training and, where the table has it, the true class."""
    names = facts["classes"]
    labels = torch.tensor(_targets(rows, indices, names, multilabel)).long()
    shares = torch.tensor(facts["shares"]).expand(len(labels), -1)
    sticks = {"training shares": (shares, labels)}
    if rows.table.truth_col in rows.columns and not multilabel:
        truth = class_ids(rows, rows.table.truth_col, names, indices)
        sticks["noise ceiling"] = (torch.eye(len(names))[truth], labels)
    return sticks


def _label_columns(rows: Rows) -> tuple[str, ...]:
    columns = rows.table.y_cols
    if not columns or len({*columns}) < len(columns):
        given = " ".join(columns) or "is empty"
        raise InputError(f"--data.y-cols {given}: name each column of labels once")
    return columns


def _targets(rows: Rows, indices: np.ndarray, names: list[str], multilabel: bool) -> np.ndarray:
    if not multilabel:
        return class_ids(rows, rows.table.y_cols[0], names, indices)
    values = numbers(rows, names, indices)
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        at, column = wrong[0]
        raise InputError(
            f"{place(rows, int(indices[at]), names[column])}: {values[at, column]:g} is neither 0 "
            f"nor 1 ({len(wrong):,} such cells). Labels of --multilabel columns are 0 or 1"
        )
    return values
