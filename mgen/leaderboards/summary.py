"""From the cells of a board to its tables: values, intervals, comparisons, ranks.

Nothing is averaged over what is missing: an entry has a value in a task if all its seeds have one,
and a rank counts every task.
"""

import math
import statistics as python_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mgen.leaderboards import statistics


@dataclass
class Cell:
    """What a task, an entry and a seed gave. R resamples of the test rows."""

    task: str
    entry: str
    seed: int
    metric: str
    value: float = math.nan
    resampled: Tensor = field(default_factory=lambda: torch.zeros(0))  # (R,)
    scored: str = ""  # digest of which rows count
    rows: int = 0
    error: str = ""  # why it has failed
    missing: str = ""  # why it has not run
    settings: str = ""  # chosen from a grid
    run: str = ""
    about: dict[str, Any] = field(default_factory=dict)  # seconds, memory, versions, ...

    def line(self) -> dict[str, Any]:
        """What the page has of it."""
        low, high, _ = statistics.interval(self.resampled)
        about = {key: self.about.get(key) for key in ("seconds", "tokens_per_second", "memory_gb")}
        return {
            "task": self.task,
            "entry": self.entry,
            "seed": self.seed,
            "metric": self.metric,
            "value": known(self.value),
            "low": known(low),
            "high": known(high),
            "rows": self.rows,
            "error": self.error,
            **about,
            "settings": self.settings,
            "run": self.run,
        }


def fault(cell: Cell) -> str:
    """Why a cell has no value, or ""."""
    return cell.error or cell.missing


def known(value: float) -> float | None:
    """nan as None, which JSON has."""
    return None if math.isnan(value) else value


def of_task(
    cells: Sequence[Cell], higher_is_better: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary of each entry of a task, and every pair of entries compared.

    Differences are corrected for the number of pairs of the task (Holm 1979). Entries whose
    difference to the best is not significant are tied with it.
    """
    by_entry: dict[str, list[Cell]] = {}
    for cell in cells:
        by_entry.setdefault(cell.entry, []).append(cell)
    whole = {name: own for name, own in by_entry.items() if not any(map(fault, own))}
    values = {name: sum(c.value for c in own) / len(own) for name, own in whole.items()}
    samples = {name: torch.stack([c.resampled for c in own]).mean(0) for name, own in whole.items()}
    pairs = []
    for i, a in enumerate(names := list(whole)):
        for b in names[i + 1 :]:
            line: dict[str, Any] = {"task": cells[0].task, "a": a, "b": b}
            if {c.scored for c in whole[a]} == {c.scored for c in whole[b]}:
                found = statistics.compare(samples[a], samples[b], values[a], values[b])
            else:  # other rows: nothing is paired
                nan = math.nan
                found = statistics.Comparison(values[a] - values[b], nan, nan, nan, 0)
            pairs.append(line | {key: known(value) for key, value in found._asdict().items()})
    p_values = [math.nan if pair["p"] is None else pair["p"] for pair in pairs]
    for pair, p in zip(pairs, statistics.holm(p_values), strict=True):
        pair["corrected"] = known(p)
    sign = 1 if higher_is_better else -1
    best = max(values, key=lambda name: sign * values[name], default="")
    apart = {
        frozenset((pair["a"], pair["b"]))
        for pair in pairs
        if pair["corrected"] is not None and pair["corrected"] < statistics.SIGNIFICANT
    }
    summary = []
    for name, own in by_entry.items():
        line = {"task": cells[0].task, "entry": name, "seeds": len(own), "source": ""}
        if name in whole:
            low, high, _ = statistics.interval(samples[name])
            spread = python_statistics.stdev([c.value for c in own]) if len(own) > 1 else None
            line |= {"value": values[name], "low": known(low), "high": known(high)}
            line |= {"spread": spread, "missing": "", "best": name == best}
            line["tied"] = name != best and frozenset((name, best)) not in apart
        else:
            failed = [*filter(fault, own)]
            share = f"{len(failed)} of {len(own)} seeds: " if len(own) > 1 else ""
            line |= dict.fromkeys(("value", "low", "high", "spread"))
            line |= {"missing": share + fault(failed[0]), "best": False, "tied": False}
        summary.append(line)
    return summary, pairs


def overall(
    summary: Sequence[dict[str, Any]], entries: Sequence[str], better: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """Mean rank, share of wins and coverage of each entry over all tasks of `better`."""
    found = {(line["task"], line["entry"]): line["value"] for line in summary}
    values = {t: {entry: found.get((t, entry)) for entry in entries} for t in better}
    ranks = statistics.mean_ranks(values, better)
    wins = statistics.win_share(values, better)
    return [
        {
            "entry": entry,
            "rank": ranks[entry].mean,
            "wins": known(wins[entry]),
            "done": ranks[entry].tasks,
            "of": ranks[entry].of,
        }
        for entry in entries
    ]
