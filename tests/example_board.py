"""The finished results of a made-up leaderboard, as its page, tables and figures take them."""

import itertools
import math
import random

NASTY = "</script><img src=x onerror=\"document.title='run'\">"
TASKS = (  # name, recipe, metric, is higher better, rows, group, about how well the best does
    ("promoter_300", "sequence_classification", "auroc", True, 5920, "DNA", 0.93),
    ("enhancer_200", "sequence_classification", "mcc", True, 400, "DNA", 0.55),
    ("splice <donor> | acceptor", "token_classification", "f1", True, 3000, "DNA", 0.81),
    ("mrl_50utr", "sequence_regression", "rmse", False, 7600, "RNA", 8.4),
    ("rna_families", "sequence_classification", "accuracy", True, 2800, "RNA", 0.9),
    ("gb1_two_vs_rest", "sequence_regression", "spearman", True, 8309, "protein", 0.65),
    ("fold_prediction", "sequence_classification", "accuracy", True, 718, "protein", 0.35),
)
ENTRIES = (  # name, kind, parameters, how much worse than the best
    ("model_large_600m", "model", 600_000_000, 0.00),
    ("model_base_150m", "model", 150_000_000, 0.01),
    ("model_base_150m LoRA r=16", "model", 150_000_000, 0.03),
    ("model_small_8m", "model", 8_000_000, 0.12),
    (NASTY, "model", 35_000_000, 0.08),
    ("cnn $from^scratch", "reference", 1_200_000, 0.18),
    ("onehot_linear", "reference", 12_000, 0.35),
    ("kmer_ridge", "reference", 4_096, 0.3),
    ("majority_or_mean", "reference", None, 0.5),
    ("Author et al. 2023, table 2", "published", 250_000_000, 0.02),
    ("Other's \"best\" & only", "published", None, 0.05),
    ("A published method with a name as long as only tables in supplements have them", "published",
     None, 0.1),
)  # fmt: skip
ERROR = "CUDA out of memory: tried to allocate 3.1 GB <of 2 GB>\n  at layer 12 | batch 7"
FAILED = {("enhancer_200", "model_large_600m", 1): ERROR} | {
    ("fold_prediction", "cnn $from^scratch", seed): "loss is nan at step 40" for seed in range(3)
}
SKIPPED = {("mrl_50utr", NASTY): "context of 512 tokens; the longest row has 1,024"}
UNPUBLISHED = "no published figure"


def example(seeds: int = 3, entries: tuple = ENTRIES, tasks: tuple = TASKS) -> dict:
    """Results of a board; of its cells some failed and some are missing."""
    draw = random.Random(0)
    board = {
        "title": "Twelve ways to read a sequence",
        "about": {
            "command": "mgen leaderboard board.yaml --seeds 3",
            "date": "2026-11-28T09:30:00Z",
            "mgen": "0.1.0",
            "commit": "0123abcd",
            "device": "NVIDIA H200",
            "board": "board.yaml",
        },
        "protocol": {
            "name": "mean",
            "what": "over tasks whose metric is better higher",
            "groups": [],
        },
        "notes": [
            "tuning budgets differ: model_small_8m was tuned in 20 trials, others in 8",
            "runs of two commits: 0123abcd and 4567ef01",
        ],
        "tasks": [_task(*task) for task in tasks],
        "entries": [_entry(*entry) for entry in entries],
        "cells": [],
        "summary": [],
        "pairs": [],
        "overall": [],
    }
    tasks[1:2] and board["tasks"][1]["warnings"].extend(
        [
            {"level": "serious", "text": "100 of 400 test sequences occur in train",
             "advice": "drop these rows; to compare with published scores, give both"},
            {"level": "note", "text": "classes are balanced", "advice": ""},
        ]
    )  # fmt: skip
    for task, entry in itertools.product(tasks, entries):
        _fill(board, task, entry, seeds, draw)
    for name in (task[0] for task in tasks):
        _judge(board, name)
    _overall(board)
    return board


def _task(name, recipe, metric, higher, rows, group, best) -> dict:
    return {
        "name": name,
        "recipe": recipe,
        "data": f"data_of_{name.partition(' ')[0]}",
        "metric": metric,
        "higher_is_better": higher,
        "rows": rows,
        "group": group,
        "what": f"{metric} of {rows:,} test rows",
        "warnings": [],
        "absent": "",
    }


def _entry(name, kind, parameters, worse) -> dict:
    return {
        "name": name,
        "kind": kind,
        "what": {"model": "finetuned", "reference": "shows what is easy", "published": ""}[kind],
        "flags": "--train.lr 1e-4" if kind == "model" else "",
        "trials": 8 if kind == "model" else 0,
        "parameters": parameters,
    }


def _fill(board, task, entry, seeds, draw) -> None:
    """The cells and the summary of one entry on one task."""
    name, _, _, higher, rows, _, best = task
    who, kind, parameters, worse = entry
    centre = best * (1 - worse) if higher else best * (1 + worse)
    half = 1 / math.sqrt(rows)
    summary = {"task": name, "entry": who, "value": None, "low": None, "high": None}
    summary |= {
        "spread": None,
        "seeds": 0,
        "best": False,
        "tied": False,
        "missing": "",
        "source": "",
    }
    board["summary"].append(summary)
    if kind == "published":
        if draw.random() < 0.4:
            summary["missing"] = UNPUBLISHED
        else:
            summary |= {"value": round(centre, 3), "source": "table 2 of the paper"}
        return
    if (name, who) in SKIPPED:
        summary["missing"] = SKIPPED[name, who]
        return
    values = []
    for seed in range(seeds):
        error = FAILED.get((name, who, seed), "")
        value = None if error else centre + draw.gauss(0, 0.006)
        size = math.log10(parameters or 1000)
        board["cells"].append(
            {
                "task": name,
                "entry": who,
                "seed": seed,
                "value": value,
                "low": None if error else value - half,
                "high": None if error else value + half,
                "rows": rows,
                "error": error,
                "seconds": 10 ** (size / 2.6) * rows**0.3 / 10,
                "tokens_per_second": 10 ** (8 - size / 2),
                "memory_gb": 0.2 + (parameters or 0) * 16e-9,
                "settings": "lr 1e-4, epochs 8" if kind == "model" else "",
                "run": f"runs/board/{board['tasks'].index(_named(board, name))}-{seed}",
            }
        )
        values += [] if error else [value]
    if values:
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
        summary |= {"value": mean, "low": mean - half, "high": mean + half, "seeds": len(values)}
        summary["spread"] = spread if len(values) > 1 else None


def _named(board, name) -> dict:
    return next(task for task in board["tasks"] if task["name"] == name)


def _judge(board, name) -> None:
    """Mark the best of a task and those like it; compare all that were run."""
    task = _named(board, name)
    sign = 1 if task["higher_is_better"] else -1
    run = [s for s in board["summary"] if s["task"] == name and s["low"] is not None]
    if not run:
        return
    half = run[0]["high"] - run[0]["value"]
    best = max(run, key=lambda s: sign * s["value"])
    best["best"] = True
    for a, b in itertools.combinations(run, 2):
        difference = a["value"] - b["value"]
        p = math.erfc(abs(difference) / (half / 2) / math.sqrt(2))
        corrected = min(1.0, p * len(run) * (len(run) - 1) / 2)
        if best in (a, b) and corrected >= 0.05:
            (b if best is a else a)["tied"] = True
        pair = {"difference": difference, "low": difference - half, "high": difference + half}
        board["pairs"].append(
            {"task": name, "a": a["entry"], "b": b["entry"], **pair, "p": p, "corrected": corrected}
        )


def _overall(board) -> None:
    tasks, rows = board["tasks"], []
    groups = list(dict.fromkeys(task["group"] for task in tasks))
    board["protocol"]["groups"] = groups
    for i, entry in enumerate(board["entries"]):
        own = {s["task"]: s["value"] for s in board["summary"] if s["entry"] == entry["name"]}
        averaged = {t["name"]: own[t["name"]] for t in tasks if t["higher_is_better"]}
        missing = [name for name, value in averaged.items() if value is None]
        means = {}
        for group in groups:
            values = [
                own[t["name"]] for t in tasks if t["group"] == group and t["name"] in averaged
            ]
            means[group] = None if None in values else sum(values) / len(values)
        known = [value for value in averaged.values() if value is not None]
        average = sum(known) / len(known) if known else None
        rows.append(
            {"entry": entry["name"], "average": average, "groups": means, "missing": missing,
             "of": len(averaged)}
        )  # fmt: skip
        is_run = entry["kind"] != "published"
        board["overall"].append(
            {"entry": entry["name"], "rank": 1.5 + i if is_run else None,
             "wins": 1 - i / len(board["entries"]) if is_run else None,
             "done": sum(value is not None for value in own.values()), "of": len(own)}
        )  # fmt: skip
    board["protocol"]["rows"] = rows
