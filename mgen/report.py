"""What a run says: notes, progress, tables."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

# No markup: what users name may hold square brackets.
WIDTH = None if sys.stdout.isatty() else 200  # files and pipes have no width of their own
console = Console(soft_wrap=True, highlight=False, markup=False, width=WIDTH)
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
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
    first = next(iter(columns.values()))
    named = columns.items()
    print_table(
        title,
        [{"metric": key, **{name: values.get(key) for name, values in named}} for key in first],
    )


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """One line per row, a column for every key; on a terminal, cells are folded to its width."""
    columns = dict.fromkeys(key for row in rows for key in row)
    are_numbers = {
        column: all(isinstance(row.get(column), int | float | None) for row in rows)
        for column in columns
    }
    if not console.is_terminal:
        cells = [[*columns], *([number(row.get(column)) for column in columns] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        signs = [">" if is_number else "<" for is_number in are_numbers.values()]
        shapes = [f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True)]
        lines = ["  ".join(shapes).format(*line).rstrip() for line in cells]
        console.print("\n".join([*([title] if title else []), *lines, ""]))
        return
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, numeric in are_numbers.items():
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        table.columns[-1].no_wrap = numeric
    for row in rows:
        table.add_row(*(number(row.get(column.header)) for column in table.columns))
    console.print(table, "")


def number(value: Any) -> str:
    """Four significant digits; "-" where there is no value."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def size(count: float) -> str:
    """Bytes in three digits: 1.21 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
