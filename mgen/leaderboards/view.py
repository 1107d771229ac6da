"""What the page and the tables of a leaderboard show of its results: order, words, costs."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mgen.leaderboards.statistics import SIGNIFICANT

MOST_DECIMALS = 7  # smaller values are shown with an exponent
NO_PUBLISHED, NOT_RUN = "no published figure", "not run"
READING = (
    "Values are means over seeds. Brackets hold the 95 % interval over resampled test rows, ± is "
    "the standard deviation over seeds.",
    "Bold is the best of a task among the entries that ran here; ≈ marks those not distinguishable "
    "from it by the paired comparison, corrected for the number of comparisons of the task. "
    "Published figures have no rows to compare, so they are neither.",
    "An interval and a p value speak of these trained models on new rows of the same kind; the "
    "spread over seeds speaks of training again.",
    "Mean rank is over tasks, 1 the best; a missing cell counts as the last of its task. Win share "
    "is the share of (task, other entry) pairs won; a missing cell counts as lost.",
    "Coverage is the tasks with a value of all tasks. An average over fewer tasks than all names "
    "their number and is sorted after complete ones.",
    "A failed cell stopped with an error; one with a dash was not run, for the reason given at the "
    "task. A value over fewer seeds than were run says so.",
)  # fmt: skip


class View:
    """The results by entry and task. An entry's name is unique, and so is a task's."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.tasks = results, results["tasks"]
        self.summary = {(row["task"], row["entry"]): row for row in results["summary"]}
        self.averages = {row["entry"]: row for row in results["protocol"]["rows"]}
        self.overall = {row["entry"]: row for row in results["overall"]}
        given = enumerate(results["entries"])
        ordered = sorted(given, key=lambda e: (_last(self.overall.get(e[1]["name"])), e[0]))
        self.entries = [entry for _, entry in ordered]  # by mean rank, those without one last
        self.cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for cell in sorted(results["cells"], key=lambda cell: cell["seed"]):
            self.cells.setdefault((cell["task"], cell["entry"]), []).append(cell)
        self.decimals = {task["name"]: self._decimals(task["name"]) for task in self.tasks}

    def _decimals(self, task: str) -> int:
        """Three figures of a task's largest value, or two of its typical interval's width."""
        own = [row for (of, _), row in self.summary.items() if of == task]
        widths = [row["high"] - row["low"] for row in own if None not in (row["high"], row["low"])]
        typical = statistics.median(widths) if widths else 0.0
        fine = 1 - math.floor(math.log10(typical)) if finite(typical) and typical > 0 else 0
        return min(max(decimals(row["value"] for row in own), fine), MOST_DECIMALS)

    def value(self, task: str, entry: str) -> float | None:
        return finite(self.summary.get((task, entry), {}).get("value"))

    def number(self, task: str, value: float | None, sign: str = "") -> str:
        """A value of a task in as many decimals as all of that task."""
        return fixed(value, self.decimals[task], sign)

    def interval(self, task: str, row: dict[str, Any], sign: str = "") -> str:
        """[low, high], or "" where there is none."""
        low, high = finite(row.get("low")), finite(row.get("high"))
        if low is None or high is None:
            return ""
        return f"[{self.number(task, low, sign)}, {self.number(task, high, sign)}]"

    def failed(self, task: str, entry: str) -> list[dict[str, Any]]:
        """Cells that stopped with an error."""
        return [cell for cell in self.cells.get((task, entry), []) if cell["error"]]

    def state(self, task: str, entry: str) -> str:
        """Done, failed or missing: a cell of which some seeds failed is done."""
        if self.value(task, entry) is not None:
            return "done"
        return "failed" if self.failed(task, entry) else "missing"

    def partial(self, task: str, entry: str) -> str:
        """ "1 of 3 seeds failed", or "" if none did."""
        failed, run = self.failed(task, entry), self.cells.get((task, entry), [])
        return f"{len(failed)} of {len(run)} seeds failed" if failed else ""

    def reason(self, task: dict[str, Any], entry: dict[str, Any]) -> str:
        """Why there is no value, or no value of some seeds; "" if there is all."""
        name, own = task["name"], entry["name"]
        if errors := dict.fromkeys(one_line(cell["error"]) for cell in self.failed(name, own)):
            return f"{self.partial(name, own)}: {'; '.join(errors)}"
        if self.state(name, own) == "done":
            return ""
        given = self.summary.get((name, own), {}).get("missing") or task["absent"]
        return given or (NO_PUBLISHED if entry["kind"] == "published" else NOT_RUN)

    def counts(self) -> str:
        """How many cells are done, failed and missing; published figures are none."""
        done = sum(not cell["error"] for cell in self.results["cells"])
        run = [entry["name"] for entry in self.entries if entry["kind"] != "published"]
        own = [self.state(task["name"], name) for task in self.tasks for name in run]
        missing, failed = own.count("missing"), len(self.results["cells"]) - done
        return (
            f"{done:,} runs done, {failed:,} failed; {missing:,} of {len(own):,} cells (an entry "
            "on a task) not run"
        )

    def protocol(self) -> str:
        """How tasks are averaged."""
        protocol = self.results["protocol"]
        return ": ".join(part for part in (protocol["name"], protocol["what"]) if part)

    def average(self, entry: str) -> tuple[float | None, str, str]:
        """An entry's average as number and text, and "6 of 7 tasks" where it is not over all."""
        row = self.averages.get(entry, {})
        value, missing = finite(row.get("average")), row.get("missing") or []
        text = fixed(value, decimals(other["average"] for other in self.averages.values()))
        return value, text, f"{row['of'] - len(missing)} of {row['of']} tasks" if missing else ""

    def group(self, value: float | None) -> str:
        """The average of a group of tasks."""
        groups = [v for row in self.averages.values() for v in (row.get("groups") or {}).values()]
        return fixed(finite(value), decimals(groups))

    def costs(self, task: str, entry: str) -> dict[str, float | None]:
        """Mean seconds and tokens per second over a cell's seeds, and the most memory."""
        cells = [cell for cell in self.cells.get((task, entry), []) if not cell["error"]]
        return {
            "seconds": _reduced(statistics.fmean, [cell["seconds"] for cell in cells]),
            "tokens_per_second": _reduced(
                statistics.fmean, [cell["tokens_per_second"] for cell in cells]
            ),
            "memory_gb": _reduced(max, [cell["memory_gb"] for cell in cells]),
        }

    def total_costs(self, entry: str) -> dict[str, Any]:
        """Seconds over all tasks that have them, and of how many; mean speed, the most memory.

        `is_whole`: of every task that anything ran on; who ran on fewer is not cheaper for it.
        """
        own = [self.costs(task["name"], entry) for task in self.tasks]
        timed = {cell["task"] for cell in self.results["cells"] if not cell["error"]}
        count = sum(cost["seconds"] is not None for cost in own)
        return {
            "seconds": _reduced(math.fsum, [cost["seconds"] for cost in own]),
            "tokens_per_second": _reduced(
                statistics.fmean, [cost["tokens_per_second"] for cost in own]
            ),
            "memory_gb": _reduced(max, [cost["memory_gb"] for cost in own]),
            "tasks": count,
            "is_whole": count == len(timed),
        }

    def pairs(self, task: str) -> list[dict[str, Any]]:
        return [pair for pair in self.results["pairs"] if pair["task"] == task]


def better(pair: dict[str, Any], task: dict[str, Any]) -> tuple[str, str] | None:
    """The better and the worse of a comparison, or None where it is not significant."""
    corrected, difference = finite(pair["corrected"]), finite(pair["difference"])
    if corrected is None or difference is None or corrected >= SIGNIFICANT:
        return None
    is_a = (difference > 0) == task["higher_is_better"]
    return (pair["a"], pair["b"]) if is_a else (pair["b"], pair["a"])


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def decimals(values: Iterable[float | None]) -> int:
    """Decimals that give the largest of the values three figures."""
    largest = max((abs(v) for v in values if finite(v) is not None), default=1.0) or 1.0
    return max(2 - math.floor(math.log10(largest * 0.999)), 0)  # 1.0 as 1.000: it is a share


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """A number with that many decimals, "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:{sign},.{digits}f}" if digits < MOST_DECIMALS else f"{value:{sign}.3g}"


def probability(p: float | None) -> str:
    if finite(p) is None:
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def direction(task: dict[str, Any]) -> str:
    return "higher is better" if task["higher_is_better"] else "lower is better"


def one_line(text: str) -> str:
    return " ".join(str(text).split())


def kinds(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The kinds of entries there are, models first."""
    present = {entry["kind"] for entry in entries}
    return [kind for kind in ("model", "reference", "published") if kind in present]


def _reduced(
    reduce: Callable[[list[float]], float], values: Iterable[float | None]
) -> float | None:
    """The known ones of the values as one; None if none is."""
    known = [value for value in values if finite(value) is not None]
    total = reduce(known) if known else None
    return round(total) if total is not None and total >= 1000 else total


def _last(row: dict[str, Any] | None) -> float:
    rank = finite((row or {}).get("rank"))
    return math.inf if rank is None else rank
