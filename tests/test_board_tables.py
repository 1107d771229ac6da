"""A leaderboard as Markdown and TSV, by hand; and its figures."""

import copy
import struct

import pytest
from example_board import ENTRIES, TASKS, example

from mgen.figures.boards import _apart, board_figures
from mgen.leaderboards.tables import markdown, scores_tsv
from mgen.leaderboards.view import better, decimals, probability

SMALL = {
    "title": "Two | three",
    "about": {"command": "mgen leaderboard b.yaml", "date": "2026-01-02", "commit": ""},
    "protocol": {
        "name": "mean",
        "what": "over tasks",
        "groups": [],
        "rows": [
            {"entry": "a_b", "average": 0.5, "groups": {}, "missing": [], "of": 2},
            {"entry": "_c*<d>", "average": 0.25, "groups": {}, "missing": ["t2"], "of": 2},
            {"entry": "paper", "average": None, "groups": {}, "missing": ["t1", "t2"], "of": 2},
        ],
    },
    "notes": ["budgets differ"],
    "tasks": [
        {"name": "t1", "recipe": "r", "data": "d", "metric": "mse", "higher_is_better": False,
         "rows": 1000, "group": "", "what": "", "absent": "",
         "warnings": [{"level": "look", "text": "few rows", "advice": "add some"}]},
        {"name": "t2", "recipe": "r", "data": "e", "metric": "auroc", "higher_is_better": True,
         "rows": None, "group": "", "what": "", "absent": "no file e.csv", "warnings": []},
    ],
    "entries": [
        {"name": "_c*<d>", "kind": "reference", "what": "", "flags": "", "trials": 0,
         "parameters": None},
        {"name": "a_b", "kind": "model", "what": "", "flags": "--x 1", "trials": 8,
         "parameters": 1500},
        {"name": "paper", "kind": "published", "what": "", "flags": "", "trials": 0,
         "parameters": None},
    ],
    "cells": [
        {"task": "t1", "entry": "a_b", "seed": 1, "value": 0.1 + 0.2, "low": 0.25, "high": 0.35,
         "rows": 1000, "error": "", "seconds": 30.0, "tokens_per_second": 50.0, "memory_gb": 2.0,
         "settings": "lr 1", "run": "runs/2"},
        {"task": "t1", "entry": "a_b", "seed": 0, "value": 0.2, "low": 0.15, "high": 0.25,
         "rows": 1000, "error": "", "seconds": 10.0, "tokens_per_second": 150.0, "memory_gb": 1.0,
         "settings": "lr 1", "run": "runs/1"},
        {"task": "t1", "entry": "_c*<d>", "seed": 0, "value": None, "low": None, "high": None,
         "rows": 1000, "error": "out of\tmemory\nat | 7", "seconds": 99.0,
         "tokens_per_second": None, "memory_gb": None, "settings": "", "run": "runs/3"},
        {"task": "t1", "entry": "_c*<d>", "seed": 1, "value": 0.5, "low": 0.4, "high": 0.6,
         "rows": 1000, "error": "", "seconds": 2.0, "tokens_per_second": None, "memory_gb": None,
         "settings": "", "run": "runs/4"},
    ],
    "summary": [
        {"task": "t1", "entry": "a_b", "value": 0.25, "low": 0.2, "high": 0.3, "spread": 0.0707,
         "seeds": 2, "best": True, "tied": False, "missing": "", "source": ""},
        {"task": "t1", "entry": "_c*<d>", "value": 0.5, "low": 0.4, "high": 0.6, "spread": None,
         "seeds": 1, "best": False, "tied": False, "missing": "", "source": ""},
        {"task": "t1", "entry": "paper", "value": 0.2, "low": None, "high": None, "spread": None,
         "seeds": 0, "best": False, "tied": False, "missing": "", "source": "table 1"},
    ],
    "pairs": [
        {"task": "t1", "a": "_c*<d>", "b": "a_b", "difference": 0.25, "low": 0.15, "high": 0.35,
         "p": 1e-6, "corrected": 0.002},
    ],
    "overall": [
        {"entry": "a_b", "rank": 1.0, "wins": 1.0, "done": 1, "of": 2},
        {"entry": "_c*<d>", "rank": 2.0, "wins": 0.0, "done": 1, "of": 2},
    ],
}  # fmt: skip

SCORES = """\
| entry | kind | mean rank | win share | coverage | average | t1 (mse ↓) | t2 (auroc ↑) |
| --- | --- | --- | --- | --- | --- | --- | --- |
| a_b | model | 1.00 | 100 % | 1/2 | 0.500 | **0.250** | - |
| \\_c\\*&lt;d> | reference | 2.00 | 0 % | 1/2 | 0.250 (1 of 2 tasks) | 0.500 (1 of 2 seeds failed) | - |
| paper | published | - | - | - | - | 0.200 | - |
"""  # noqa: E501
TASK = """\
## t1

mse, lower is better; 1,000 test rows; r; d

- **look** few rows (add some)

| entry | mse | 95 % interval | ± seeds | seeds | notes |
| --- | --- | --- | --- | --- | --- |
| a_b | **0.250** | [0.200, 0.300] | 0.071 | 2 | - |
| \\_c\\*&lt;d> | 0.500 | [0.400, 0.600] | - | 1 | 1 of 2 seeds failed: out of memory at \\| 7 |
| paper | 0.200 | - | - | - | table 1 |

1 of 1 paired comparisons are significant after correction.

| better | worse | difference | 95 % interval | p | p corrected |
| --- | --- | --- | --- | --- | --- |
| a_b | \\_c\\*&lt;d> | -0.250 | [-0.350, -0.150] | < 0.0001 | 0.002 |

## t2

auroc, higher is better; r; e

Nothing ran: no file e.csv

| entry | auroc | 95 % interval | ± seeds | seeds | notes |
| --- | --- | --- | --- | --- | --- |
| a_b | - | - | - | - | no file e.csv |
"""
COSTS = """\
| entry | seconds | tasks | tokens/s | peak memory, GB |
| --- | --- | --- | --- | --- |
| a_b | 20 | 1 | 100 | 2 |
| \\_c\\*&lt;d> | 2 | 1 | - | - |
"""
TSV = """\
task\tentry\tseed\tmetric\tvalue\tlow\thigh\trows\terror
t1\t_c*<d>\t0\tmse\t\t\t\t1000\tout of memory at | 7
t1\t_c*<d>\t1\tmse\t0.5\t0.4\t0.6\t1000\t
t1\ta_b\t0\tmse\t0.2\t0.15\t0.25\t1000\t
t1\ta_b\t1\tmse\t0.30000000000000004\t0.25\t0.35\t1000\t
"""


def test_markdown_by_hand():
    text = markdown(SMALL)
    assert text.startswith("# Two \\| three\n\n- cells: 3 runs done, 1 failed; 2 of 4 cells (an")
    assert "\n- command: mgen leaderboard b.yaml\n- date: 2026-01-02\n\n## Notes\n" in text
    assert "\n- budgets differ\n" in text
    assert SCORES in text
    assert TASK in text
    assert text.endswith(COSTS)


def test_scores_by_hand_are_exact_and_in_the_order_of_the_board():
    assert scores_tsv(SMALL) == TSV


def test_scores_of_two_runs_are_equal_bytes_whatever_they_cost_and_when_they_ended():
    other = copy.deepcopy(SMALL)
    other["about"]["date"] = "2027-01-02"
    other["cells"].reverse()
    for cell in other["cells"]:
        cell |= {"seconds": 1.0, "tokens_per_second": 2.0, "memory_gb": 3.0, "run": "elsewhere"}
    other["overall"].reverse()
    assert scores_tsv(other) == scores_tsv(SMALL)


def test_what_differs_between_runs_is_in_the_facts_and_the_costs_alone():
    other = copy.deepcopy(SMALL)
    for cell in other["cells"]:
        cell |= {"seconds": 1.0, "tokens_per_second": 2.0, "memory_gb": 3.0}
    assert markdown(other).partition("## Costs")[0] == markdown(SMALL).partition("## Costs")[0]
    assert markdown(other) != markdown(SMALL)


def test_the_better_of_two_depends_on_the_direction_and_on_significance():
    pair, (lower, higher) = SMALL["pairs"][0], SMALL["tasks"]
    assert better(pair, lower) == ("a_b", "_c*<d>")
    assert better(pair, higher) == ("_c*<d>", "a_b")
    assert better(pair | {"corrected": 0.05}, lower) is None
    assert better(pair | {"corrected": None}, lower) is None


def test_decimals_give_the_largest_value_three_figures():
    assert [decimals([v, 0.01]) for v in (0.93, 1.0, 3.2, 41.0, 730.0, 0.052)] == [3, 3, 2, 1, 0, 4]
    assert decimals([None, float("nan")]) == decimals([0.0]) == 3
    assert [probability(p) for p in (None, 9e-5, 0.0123, 1.0)] == ["-", "< 0.0001", "0.012", "1"]


def size(path) -> tuple[int, int]:
    """Width and height in a PNG's header."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_figures_of_a_board_are_named_and_say_what_they_show(tmp_path):
    files = board_figures(tmp_path / "figures", example())
    names = [f"{stem}.{kind}" for stem in ("scores", "ranks", "cost") for kind in ("png", "svg")]
    assert [file.name for file in files] == names
    assert all(min(size(file)) > 400 for file in files if file.suffix == ".png")
    written = [file.read_text() for file in files if file.suffix == ".svg"]
    for task in TASKS:
        assert f"<!-- {task[0].replace('<', '&lt;').replace('>', '&gt;')} -->" in written[0]
    assert "<!-- cnn $from^scratch -->" in written[0]  # no formula
    assert "<!-- 6/7 -->" in written[1]
    assert "7 entries; 5 without seconds or without a value on every task" in written[2]


@pytest.mark.slow
def test_figures_of_a_large_board_stay_small(tmp_path):
    many = tuple((f"{name} {i}", *rest) for i in range(4) for name, *rest in ENTRIES)[:40]
    tasks = tuple((f"{name} {i}", *rest) for i in range(5) for name, *rest in TASKS)[:30]
    for file in board_figures(tmp_path, example(1, many, tasks)):
        assert file.stat().st_size < 2_000_000
        assert file.suffix == ".svg" or max(size(file)) < 8000


def test_a_board_without_values_has_no_figures(tmp_path):
    empty = example(seeds=0)
    empty["summary"] = [row | {"value": None} for row in empty["summary"]]
    empty["overall"] = [row | {"rank": None} for row in empty["overall"]]
    empty["protocol"]["rows"] = []
    assert board_figures(tmp_path, empty) == []


def test_names_beside_points_keep_their_order_and_distance():
    places = _apart([0.99, 0.98, 0.5, 0.02, 0.01])
    assert places == pytest.approx([0.99, 0.945, 0.5, 0.045, 0])
    assert min(_apart([0.0] * 40)) == 0 and max(_apart([0.0] * 40)) < 1


def test_decimals_show_the_width_of_an_interval():
    board = copy.deepcopy(SMALL)
    board["summary"] = [row for row in board["summary"] if row["entry"] == "a_b"]
    board["summary"][0] |= {"value": 98.4, "low": 98.389, "high": 98.413}
    assert "[98.389, 98.413]" in markdown(board)  # a width of 0.024
