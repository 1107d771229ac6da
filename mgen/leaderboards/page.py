"""A leaderboard as one HTML page: sortable, filterable, with everything behind each number.

Python writes all tables and plots of intervals; page.js sorts, filters, and draws scores against
costs and the comparisons with a chosen entry from the data in the page.
"""

import json
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from mgen.figures import intervals
from mgen.figures.pages import Html, breakable, document, findings, table
from mgen.leaderboards.view import READING, View, better, direction, finite, fixed, kinds, one_line

PLURAL = {"model": "models", "reference": "references", "published": "published"}
LONG = ("cells", "protocol", "command")  # facts that take a line each


def page(results: dict[str, Any]) -> str:
    """The whole leaderboard as a page that loads nothing; names and texts may hold anything."""
    view = View(results)
    ids = task_ids([task["name"] for task in view.tasks])
    body = [
        _header(view),
        "<main>",
        _scores(view, ids),
        _costs(view),
        '<section><h2 id="tasks">Tasks</h2>',
        *(_task(view, task, ids[task["name"]]) for task in view.tasks),
        "</section>",
        _entries(view),
        "</main>",
        f'<script type="application/json" id="data">{safe_json(_data(view, ids))}</script>',
    ]
    here = files("mgen.leaderboards")
    style = intervals.STYLE + (here / "page.css").read_text()
    script = (here / "page.js").read_text()
    return document(results["title"], "\n".join(body), style, script)


def task_ids(names: Sequence[str]) -> dict[str, str]:
    """What follows # in a task's address; letters and digits of its name, and unique."""
    ids: dict[str, str] = {}
    for i, name in enumerate(names):
        slug = "task-" + (re.sub(r"[^\w.-]+", "-", name).strip("-") or str(i + 1))
        while slug in ids.values():
            slug += f"-{i + 1}"
        ids[name] = slug
    return ids


def safe_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _header(view: View) -> str:
    results, facts = view.results, view.results["about"]
    facts = {"cells": view.counts(), "protocol": view.protocol(), **facts}
    serious = sum(w["level"] == "serious" for task in view.tasks for w in task["warnings"])
    notes = [("look", note, "") for note in results["notes"]]
    if serious:
        text = f"{serious} serious {'finding' if serious == 1 else 'findings'} on the data"
        notes.insert(
            0, ("serious", text, "marked ! beneath the task's name; read them at the task")
        )
    terms = "".join(
        f"<div{' class=long' if name in LONG else ''}><dt>{escape(name)}</dt>"
        f"<dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    title = escape(results["title"])
    return (
        f'<header><div class="top"><h1>{title}</h1>'
        '<button type="button" id="theme" hidden>◐ dark or light</button></div>'
        f'<dl class="facts">{terms}</dl>{findings(notes) if notes else ""}</header>'
    )


# --------------------------------------------------------------------------- main table


def _scores(view: View, ids: dict[str, str]) -> str:
    groups = list(view.results["protocol"]["groups"])
    heads = [
        _head("mean rank", "ascending", sort="ascending"),
        _head("win share", "descending"),
        _head("coverage", "descending", note="of tasks"),
        _head("average", "descending", note=view.results["protocol"]["name"]),
        *(_head(group, "descending", note="group") for group in groups),
        *(_task_head(task, ids[task["name"]]) for task in view.tasks),
    ]
    rows = "".join(_row(view, entry, groups, ids) for entry in view.entries)
    return (
        '<section><h2 id="scores">Scores</h2>'
        f"{_controls(view)}"
        '<div class="wide main" tabindex="0" role="region" aria-label="Scores">'
        '<table id="main"><thead><tr><th scope="col" class="entry" aria-sort="none" '
        'data-first="ascending"><button type="button">entry</button></th>'
        f"{''.join(heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="soft" id="shown" aria-live="polite"></p>'
        "<details class='reading'><summary>How to read it</summary>"
        + "".join(f"<p>{escape(line)}</p>" for line in READING)
        + "<p>A click on a column's name sorts by it, another turns the order; what is beneath a "
        "task's name opens the task.</p></details></section>"
    )


def _head(name: str, first: str, note: str = "", sort: str = "none") -> str:
    """A column that sorts; `first`: the order of the first click, best first."""
    return (
        f'<th scope="col" class="n" aria-sort="{sort}" data-first="{first}">'
        f'<button type="button">{escape(name)}</button><small>{escape(note)}</small></th>'
    )


def _task_head(task: dict[str, Any], id_: str) -> str:
    first, arrow = ("descending", "↑") if task["higher_is_better"] else ("ascending", "↓")
    is_serious = any(warning["level"] == "serious" for warning in task["warnings"])
    alarm = '<b class="alarm" title="serious findings on the data">!</b> ' if is_serious else ""
    name, group, metric = (escape(task[key]) for key in ("name", "group", "metric"))
    shown = breakable(task["name"])
    label = f"{metric}, {direction(task)}: details of {name}"
    return (
        f'<th scope="col" class="n task" aria-sort="none" data-first="{first}" '
        f'data-group="{group}"><button type="button">{shown}</button><small>{alarm}'
        f'<a href="#{id_}" title="{label}">{metric} {arrow}</a></small></th>'
    )


def _row(view: View, entry: dict[str, Any], groups: list[str], ids: dict[str, str]) -> str:
    name = entry["name"]
    overall = view.overall.get(name, {})
    rank, wins, done, of = (finite(overall.get(key)) for key in ("rank", "wins", "done", "of"))
    average, text, part = view.average(name)
    in_groups = view.averages.get(name, {}).get("groups") or {}
    cells = [
        _number(fixed(rank, 2), rank),
        _number("-" if wins is None else f"{100 * wins:.0f} %", wins),
        _number(f"{done}/{of}" if of else "-", done / of if of else None),
        _number(text, average, part),
        *(_number(view.group(in_groups.get(group)), in_groups.get(group)) for group in groups),
        *(_cell(view, task, entry, ids[task["name"]]) for task in view.tasks),
    ]
    return (
        f'<tr data-kind="{entry["kind"]}"><th scope="row" class="entry" '
        f'title="{escape(entry["what"])}">{intervals.mark(entry["kind"])} '
        f"<span>{breakable(name)}</span></th>{''.join(cells)}</tr>"
    )


def _number(text: str, value: float | None, part: str = "") -> str:
    """A number of an entry; `part`: of how much it is, where that is not all."""
    data = "" if value is None else f' data-value="{value!r}"'
    if part and value is not None:
        return f'<td class="n partial"{data} data-tier="1">{text}<small>{part}</small></td>'
    return f'<td class="n"{data}>{text}</td>'


def _cell(view: View, task: dict[str, Any], entry: dict[str, Any], id_: str) -> str:
    name, state = task["name"], view.state(task["name"], entry["name"])
    group = f'data-group="{escape(task["group"])}"'
    if state != "done":
        reason, word = view.reason(task, entry), {"failed": "failed", "missing": "-"}[state]
        link = f'<a href="#{id_}" title="{escape(reason)}">{word}</a>'
        return f'<td class="n {state}" {group}>{link}</td>'
    row = view.summary[name, entry["name"]]
    value, spread = view.value(name, entry["name"]), row["spread"]
    mark = '<span class="tie" title="not distinguishable from the best">≈ </span>'
    shown = (mark if row["tied"] else "") + f"<b>{view.number(name, value)}</b>"
    beneath = [
        view.interval(name, row),
        f"± {view.number(name, spread)}" if spread is not None else "",
        "published" if entry["kind"] == "published" else "",
    ]
    small = "<br>".join(escape(line) for line in beneath if line)
    if partial := view.partial(name, entry["name"]):
        small += f'<br><a class="failed" href="#{id_}">{partial}</a>'
    kind = " best" if row["best"] else " tied" if row["tied"] else ""
    return f'<td class="n{kind}" {group} data-value="{value!r}">{shown}<small>{small}</small></td>'


def _controls(view: View) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{kind}" checked> {intervals.mark(kind)} '
        f"{PLURAL[kind]}</label>"
        for kind in kinds(view.entries)
    )
    groups = list(dict.fromkeys(task["group"] for task in view.tasks))
    options = "".join(f'<option value="{escape(g)}">{escape(g)}</option>' for g in groups)
    select = (
        f'<label>tasks <select id="group"><option value="">all</option>{options}</select></label>'
    )
    return (
        '<form id="filter" hidden><label>entries '
        '<input type="search" id="name" placeholder="part of a name"></label>'
        f"<span id='kinds'>{boxes}</span>{select if len(groups) > 1 else ''}"
        '<button type="reset">show all</button></form>'
    )


# --------------------------------------------------------------------------- costs


def _costs(view: View) -> str:
    lines = []
    for entry in view.entries:
        cost = view.total_costs(entry["name"])
        if entry["kind"] != "published":
            lines.append(
                {
                    "entry": entry["name"],
                    "average": view.average(entry["name"])[0],
                    "over": view.average(entry["name"])[2] or "all tasks",
                    "seconds, all tasks": cost["seconds"],
                    "tasks": cost["tasks"],
                    "tokens/s": cost["tokens_per_second"],
                    "peak memory, GB": cost["memory_gb"],
                    "parameters": entry["parameters"],
                }
            )
    return (
        '<section><h2 id="cost">Scores against costs</h2><form id="axes" hidden>'
        '<label>score <select id="score"></select></label>'
        '<label>cost <select id="against"></select></label></form>'
        '<div id="chart" hidden></div><p class="soft" id="undrawn"></p>'
        f"<details><summary>The same as a table</summary>{table(lines)}"
        '<p class="soft">Seconds are those of one training per task, the mean over seeds; failed '
        "runs do not count.</p></details></section>"
    )


# --------------------------------------------------------------------------- one task


def _task(view: View, task: dict[str, Any], id_: str) -> str:
    name = task["name"]
    rows = "" if task["rows"] is None else f"{task['rows']:,} test rows"
    facts = [f"{task['metric']}, {direction(task)}", rows, task["recipe"], task["data"]]
    facts += [f"group {task['group']}"] if task["group"] else []
    warnings = [(w["level"], w["text"], w["advice"]) for w in task["warnings"]]
    serious = sum(level == "serious" for level, _, _ in warnings)
    alarm = f'<b class="alarm">{serious} serious</b>' if serious else ""
    plot = intervals.intervals(_plot_rows(view, task))
    absent = (
        f'<p class="failed">nothing ran: {escape(task["absent"])}</p>' if task["absent"] else ""
    )
    seeds = table(_seeds(view, task))
    has_pairs = bool(view.pairs(name))
    return (
        f'<details class="of-task" id="{id_}"><summary><h3>{escape(name)}</h3> '
        f'<span class="soft">{escape(_gist(view, task))}</span> {alarm}</summary>'
        f"<p>{escape(task['what'])}</p>"
        f'<p class="soft">{escape(" · ".join(fact for fact in facts if fact))}</p>'
        f"{findings(warnings) if warnings else ''}{absent}"
        f"<h4>Scores with 95 % intervals</h4>{plot or '<p>no values</p>'}"
        + (
            '<h4>Paired comparisons</h4><div class="pairs">'
            "<noscript>drawn by a script; the Markdown file lists the significant ones</noscript>"
            "</div>"
            if has_pairs
            else ""
        )
        + (f"<h4>Runs</h4>{seeds}" if view.results["cells"] and seeds else "")
        + "</details>"
    )


def _gist(view: View, task: dict[str, Any]) -> str:
    """The best of a task, for who has not opened it."""
    best = [e["name"] for e in view.entries if _is(view, task, e, "best")]
    if not best:
        return task["absent"] or "no values"
    tied = sum(_is(view, task, entry, "tied") for entry in view.entries)
    value = view.number(task["name"], view.value(task["name"], best[0]))
    more = f", {tied} not distinguishable" if tied else ""
    return f"{task['metric']} {value}, {best[0]}{more}"


def _is(view: View, task: dict[str, Any], entry: dict[str, Any], mark: str) -> bool:
    return bool(view.summary.get((task["name"], entry["name"]), {}).get(mark))


def _plot_rows(view: View, task: dict[str, Any]) -> list[intervals.Row]:
    """Best first, entries without a value last."""
    name, rows = task["name"], []
    sign = -1 if task["higher_is_better"] else 1

    def order(entry: dict[str, Any]) -> tuple[bool, float]:
        value = view.value(name, entry["name"])
        return (value is None, sign * (value or 0.0))

    for entry in sorted(view.entries, key=order):
        row = view.summary.get((name, entry["name"]), {})
        value, reason = view.value(name, entry["name"]), view.reason(task, entry)
        reason = view.partial(name, entry["name"]) if value is not None else reason
        best, tied = row.get("best"), row.get("tied")
        text = ("≈ " if tied else "") + f"<b>{view.number(name, value)}</b> "
        text = text + _whole(view.interval(name, row)) if value is not None else ""
        soft = " ".join(part for part in (row.get("source"), reason) if part)
        kind = "failed" if view.failed(name, entry["name"]) else "soft"
        text += f'<small class="{kind}">{escape(soft)}</small>' if soft else ""
        cells = view.cells.get((name, entry["name"]), [])
        rows.append(
            intervals.Row(
                name=entry["name"],
                kind=entry["kind"],
                value=value,
                low=finite(row.get("low")),
                high=finite(row.get("high")),
                seeds=[v for c in cells if (v := finite(c["value"])) is not None],
                text=Html(text),
                classes="best" if best else "tied" if tied else "",
            )
        )
    return rows


def _seeds(view: View, task: dict[str, Any]) -> list[dict[str, Any]]:
    any_error = any(view.failed(task["name"], entry["name"]) for entry in view.entries)
    return [
        {
            "entry": entry["name"],
            "seed": cell["seed"],
            "value": cell["value"],
            "95 % interval": _whole(view.interval(task["name"], cell)),
            "test rows": cell["rows"],
            "seconds": cell["seconds"],
            "settings": cell["settings"],
            "run": breakable(cell["run"]),
            **({"error": _error(cell)} if any_error else {}),
        }
        for entry in view.entries
        for cell in view.cells.get((task["name"], entry["name"]), [])
    ]


def _error(cell: dict[str, Any]) -> Html:
    return Html(f'<span class="failed">{escape(one_line(cell["error"]))}</span>')


def _whole(text: str) -> Html:
    """Text that stays in one line."""
    return Html(f'<span class="whole">{escape(text)}</span>')


def _entries(view: View) -> str:
    columns = {"entry": "name", "kind": "kind", "what": "what", "flags": "flags"}
    columns |= {"tuned in trials": "trials", "parameters": "parameters"}
    lines = [{head: entry[key] for head, key in columns.items()} for entry in view.entries]
    return f'<section><h2 id="entries">Entries</h2>{table(lines)}</section>'


# --------------------------------------------------------------------------- data of the script


def _data(view: View, ids: dict[str, str]) -> dict[str, Any]:
    """What page.js draws: entries by number, points of each score, comparisons by task."""
    place = {entry["name"]: i for i, entry in enumerate(view.entries)}
    scores = [
        {"name": f"average: {view.results['protocol']['name']}", "higher": True, "points": []}
    ]
    for name, i in place.items():
        value, _, part = view.average(name)
        cost = view.total_costs(name)
        cost["seconds"] = cost["seconds"] if cost["is_whole"] else None
        why = f"average over {part}" if part else ""
        scores[0]["points"].append([i, None if part else value, *_two(cost), why])
    for task in view.tasks:
        points = [
            [i, view.value(task["name"], name), *_two(view.costs(task["name"], name)), ""]
            for name, i in place.items()
        ]
        label = f"{task['name']}: {task['metric']}"
        scores.append({"name": label, "higher": task["higher_is_better"], "points": points})
    return {
        "entries": [[e["name"], e["kind"], e["parameters"]] for e in view.entries],
        "scores": scores,
        "tasks": {ids[task["name"]]: _pairs(view, task, place) for task in view.tasks},
    }


def _two(cost: dict[str, Any]) -> tuple[float | None, float | None]:
    return cost["seconds"], cost["memory_gb"]


def _pairs(view: View, task: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    """Comparisons of a task: numbers of two entries, difference, interval, p values, the better."""
    lines = []
    for pair in view.pairs(task["name"]):
        winner = better(pair, task)
        lines.append(
            [
                place[pair["a"]],
                place[pair["b"]],
                *(finite(pair[key]) for key in ("difference", "low", "high", "p", "corrected")),
                -1 if winner is None else place[winner[0]],
            ]
        )
    best = [place[e["name"]] for e in view.entries if _is(view, task, e, "best")]
    digits = view.decimals[task["name"]]
    return {"digits": digits, "best": best[0] if best else None, "pairs": lines}
