"""A leaderboard as Markdown, to be read and kept with a paper, and its scores as a TSV."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from mgen.leaderboards.view import READING, View, better, direction, fixed, one_line, probability
from mgen.report import number

COLUMNS = ("task", "entry", "seed", "metric", "value", "low", "high", "rows", "error")


def markdown(results: dict[str, Any]) -> str:
    """The whole leaderboard; what differs between two runs of it is in the facts and the costs."""
    view = View(results)
    facts = {"cells": view.counts(), "protocol": view.protocol(), **results["about"]}
    parts = [
        f"# {_text(results['title'])}",
        _list(f"{key}: {value}" for key, value in facts.items() if value),
        *(["## Notes", _list(results["notes"])] if results["notes"] else []),
        "## Scores",
        _main(view),
        "## How to read it",
        _list(READING),
        *(part for task in view.tasks for part in _task(view, task)),
        "## Entries",
        _table(("entry", "kind", "what", "flags", "tuned in trials", "parameters"),
               [[e[key] for key in ("name", "kind", "what", "flags", "trials", "parameters")]
                for e in view.entries]),
        "## Costs",
        "Of one training per task, the mean over seeds; failed runs do not count.",
        _costs(view),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def scores_tsv(results: dict[str, Any]) -> str:
    """A line per cell in the order of the board; values are exact, and no time or place is named.

    Two runs of a board that give the same values give the same bytes.
    """
    view = View(results)
    metrics = {task["name"]: task["metric"] for task in view.tasks}
    lines = ["\t".join(COLUMNS)]
    for task in metrics:
        for entry in results["entries"]:
            for cell in view.cells.get((task, entry["name"]), []):
                texts = [task, entry["name"], cell["seed"], metrics[task]]
                texts += [_exact(cell[key]) for key in ("value", "low", "high")]
                texts += ["" if cell["rows"] is None else cell["rows"], cell["error"]]
                lines.append("\t".join(one_line(text) for text in texts))
    return "\n".join(lines) + "\n"


def _main(view: View) -> str:
    groups = list(view.results["protocol"]["groups"])
    heads = ["entry", "kind", "mean rank", "win share", "coverage", "average", *groups]
    arrows = {True: "↑", False: "↓"}
    heads += [f"{t['name']} ({t['metric']} {arrows[t['higher_is_better']]})" for t in view.tasks]
    rows = []
    for entry in view.entries:
        name = entry["name"]
        overall = view.overall.get(name, {})
        wins, of = overall.get("wins"), overall.get("of")
        _, average, part = view.average(name)
        in_groups = view.averages.get(name, {}).get("groups") or {}
        rows.append(
            [
                name,
                entry["kind"],
                fixed(overall.get("rank"), 2),
                "-" if wins is None else f"{100 * wins:.0f} %",
                f"{overall['done']}/{of}" if of else "-",
                f"{average} ({part})" if part and average != "-" else average,
                *(view.group(in_groups.get(group)) for group in groups),
                *(_cell(view, task, entry) for task in view.tasks),
            ]
        )
    return _table(heads, rows)


def _value(view: View, task: dict[str, Any], entry: dict[str, Any]) -> str:
    """A value with the mark of the best or of those like it; or what stands for none."""
    name, state = task["name"], view.state(task["name"], entry["name"])
    if state != "done":
        return {"failed": "failed", "missing": "-"}[state]
    row = view.summary[name, entry["name"]]
    text = view.number(name, view.value(name, entry["name"]))
    text = f"**{text}**" if row["best"] else f"≈ {text}" if row["tied"] else text
    return _Markdown(text)


def _cell(view: View, task: dict[str, Any], entry: dict[str, Any]) -> str:
    value, partial = _value(view, task, entry), view.partial(task["name"], entry["name"])
    return _Markdown(f"{value} ({partial})") if partial and value != "failed" else value


def _task(view: View, task: dict[str, Any]) -> Iterable[str]:
    """The parts of one task: facts, findings on the data, scores, significant comparisons."""
    name, rows, significant = task["name"], [], []
    yield f"## {_text(name)}"
    size = "" if task["rows"] is None else f"{task['rows']:,} test rows"
    about = f"{task['metric']}, {direction(task)}"
    facts = [task["what"], about, size, task["recipe"], task["data"]]
    yield _text("; ".join(fact for fact in facts if fact))
    yield "\n".join(
        f"- **{w['level']}** {_text(w['text'])}"
        + (f" ({_text(w['advice'])})" if w["advice"] else "")
        for w in task["warnings"]
    )
    if task["absent"]:
        yield f"Nothing ran: {_text(task['absent'])}"
    for entry in view.entries:
        row = view.summary.get((name, entry["name"]), {})
        notes = [row.get("source"), view.reason(task, entry)]
        spread = row.get("spread")
        rows.append(
            [
                entry["name"],
                _value(view, task, entry),
                _Markdown(view.interval(name, row) or "-"),
                view.number(name, spread),
                row.get("seeds") or "-",
                "; ".join(note for note in notes if note),
            ]
        )
    yield _table(("entry", task["metric"], "95 % interval", "± seeds", "seeds", "notes"), rows)
    for pair in view.pairs(name):
        if winner := better(pair, task):
            is_turned = winner[0] != pair["a"]
            significant.append(
                [
                    *winner,
                    *_difference(view, pair, is_turned),
                    *(_Markdown(probability(pair[key])) for key in ("p", "corrected")),
                ]
            )
    compared = len(view.pairs(name))
    if compared:
        count = f"{len(significant):,} of {compared:,} paired comparisons"
        yield f"{count} are significant after correction."
    if significant:
        heads = ("better", "worse", "difference", "95 % interval", "p", "p corrected")
        yield _table(heads, significant)


def _difference(view: View, pair: dict[str, Any], is_turned: bool) -> tuple[str, str]:
    """A difference and its interval, of the second from the first if `is_turned`."""
    ends = (pair["low"], pair["high"])
    if is_turned:
        ends = tuple(None if end is None else -end for end in reversed(ends))
    difference = -pair["difference"] if is_turned else pair["difference"]
    row = {"low": ends[0], "high": ends[1]}
    interval = _Markdown(view.interval(pair["task"], row, "+") or "-")
    return view.number(pair["task"], difference, "+"), interval


def _costs(view: View) -> str:
    rows = [
        [e["name"], cost["seconds"], cost["tasks"], cost["tokens_per_second"], cost["memory_gb"]]
        for e in view.entries
        if e["kind"] != "published"
        for cost in [view.total_costs(e["name"])]
    ]
    return _table(("entry", "seconds", "tasks", "tokens/s", "peak memory, GB"), rows)


# --------------------------------------------------------------------------- text


class _Markdown(str):
    """Text that is Markdown already."""


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[_text(head) for head in heads], ["---"] * len(heads)]
    lines += [[c if isinstance(c, _Markdown) else _text(_shown(c)) for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_text(line)}" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def _text(value: Any) -> str:
    """What a user wrote as plain text of Markdown: in one line, and neither HTML nor markup."""
    text = one_line(value).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"[\\`*\[\]|~$]", r"\\\g<0>", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # snake_case is no emphasis


def _exact(value: float | None) -> str:
    return "" if value is None else repr(float(value))
