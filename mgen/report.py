"""What a run says: notes, progress, tables."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# No markup: what users name may hold square brackets.
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(soft_wrap=True, highlight=False, markup=False, stderr=True)


def warn(text: str) -> None:
    console.print("note ", style="yellow", end="")
    console.print(text)


def fail(word: str, text: str) -> None:
    errors.print(f"{word} ", style="red", end="")
    errors.print(text)


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator:
    """A progress bar on a terminal, nothing elsewhere; yields `update(done, note)`."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task(label, total=total, completed=done, note="")
        yield lambda done, note="": bars.update(bar, completed=done, note=note)


def metric_table(title: str, columns: dict[str, dict[str, float]]) -> None:
    """One line per metric of the first column, one column per model or yardstick."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in next(iter(columns.values())):
        table.add_row(metric, *(number(values.get(metric)) for values in columns.values()))
    console.print(table)


def number(value: Any) -> str:
    """Four significant digits; "-" where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
