"""Speed and memory as JSON: `make bench`, or `python -m tests.benchmarks > bench.json`.

Ratios compare two things timed in turn in one run; every figure is a median over repeats. The
model is aido_dna_debug (84 thousand parameters), the data 1,024 random DNA sequences of 16 to 512
letters, or as many as a line says.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from tests.benchmarks.cache import cache
from tests.benchmarks.cells import cells
from tests.benchmarks.loading import loading
from tests.benchmarks.moe import moe
from tests.benchmarks.mutants import dependency_map, scan
from tests.benchmarks.packing import packing
from tests.benchmarks.processes import processes
from tests.benchmarks.resampling import resampling
from tests.benchmarks.tables import large_table, words

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "sequence_regression.py")
ZERO_SHOT = str(ROOT / "recipes" / "zero_shot_variants.py")
DEBUG = "aido_dna_debug"
REPEATS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MGEN_CACHE"] = f"{folder}/cache"
        table = write_table(Path(folder) / "table.tsv", rows=1024)
        report = {
            "machine": machine(),
            "start": start(),
            "training": training(table),
            "embedding": embedding(table),
            "cache": cache(),
            "cells": cells(),
            "packing": packing(Path(folder) / "esm2_8m"),
            "processes": processes(table, Path(folder) / "runs"),
            "memory": memory(Path(folder)),
            "table": large_table(),
            "words": words(Path(folder) / "words"),
            "loading": loading(Path(folder) / "checkpoint"),
            "moe": moe(),
            "dependency_map": dependency_map(),
            "variants": scan(Path(folder), process, ZERO_SHOT),
            "resampling": resampling(),
        }
    report["held"] = {
        "list_cpu_s <= 0.5": report["start"]["list_cpu_s"] <= 0.5,
        "help_over_torch_cpu_s <= 0.4": report["start"]["help_over_torch_cpu_s"] <= 0.4,
        "first_step_over_imports <= 2": report["start"]["first_step_over_imports"] <= 2,
        "embed >= 5 x padded in file order": report["packing"]["short"]["padded_over_embed"] >= 5,
        "padding_efficiency >= 0.95": report["training"]["padding_efficiency"] >= 0.95,
        "fit_over_plain_loop <= 1.05": report["training"]["fit_over_plain_loop"] <= 1.05,
        "cache: without_over_later >= 20": all(
            level["without_over_later"] >= 20 for level in report["cache"].values()
        ),
        "cache: bytes_over_outputs <= 1.05": all(
            level["bytes_over_outputs"] <= 1.05 for level in report["cache"].values()
        ),
        "loading <= 1.2 x model + 200 MB": all(r["within"] for r in report["loading"].values()),
        "moe_sparse_over_dense <= 0.5": report["moe"]["sparse_over_dense"] <= 0.5,
        "dependency_map in 3L / batch calls": report["dependency_map"]["calls_over_3L_per_batch"]
        <= 1,
        "dependency_map_over_passes <= 1.5": report["dependency_map"]["map_over_passes"] <= 1.5,
        "variants: an input per position": report["variants"]["inputs"] <= 300,
        "memory_tenfold_rows within 5 %": abs(report["memory"]["tenfold_over_onefold"] - 1) <= 0.05,
    }
    table = report["table"]
    report["held"] |= {
        "table: memory <= 600 MB": table["peak_mb_over_imports"] <= 600
        and table["validation_peak_mb_over_imports"] <= 600,
        "table: first batch <= 3 s": table["first_batch_s"] <= 3,
        "table: rows_per_s >= 200000": table["rows_per_s"] >= 200_000,
        "table: padding_efficiency >= 0.95": table["padding_efficiency"] >= 0.95,
        "table: |order_rho| <= 0.05": abs(table["order_rho"]) <= 0.05,
    }
    made = report["cells"]
    report["held"] |= {
        "cells: full length <= 1.2 x bare": made["full_length"]["over_bare"] <= 1.2,
        "cells: full length <= 500 MB": made["full_length"]["peak_mb_over_weights"] <= 500,
        "cells: random rows >= 5000/s": made["random_rows"]["cells_100000"]["cells_per_s"] >= 5000,
        "cells: memory by file size within 5 %": abs(
            made["random_rows"]["memory_over_quarter_of_cells"] - 1
        )
        <= 0.05,
    }
    print(json.dumps(report, indent=2))


def machine() -> dict:
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "repeats": REPEATS,
    }


def write_table(file: Path, rows: int, seed: int = 0) -> Path:
    """A table of random DNA of 16 to 512 letters with a random label; all rows train."""
    rng = np.random.default_rng(seed)
    with file.open("w") as stream:
        stream.write("sequence\tlabel\n")
        for length in rng.integers(16, 513, rows):
            sequence = "".join(rng.choice(list("ACGT"), length))
            stream.write(f"{sequence}\t{rng.normal():.4f}\n")
    return file


# --------------------------------------------------------------------------- start-up


def start() -> dict[str, float]:
    """CPU seconds (user and system) of whole processes, and the wall time to a first step."""
    heavy = "import torch, accelerate, datasets, torchmetrics"
    first = [RECIPE, "--train.max-steps", "1", "--train.workers", "0", "--data.test-fraction", "0"]
    with tempfile.TemporaryDirectory() as out:
        times = {
            "list": repeat(lambda: process("-m", "mgen", "list")["cpu_s"]),
            "show": repeat(lambda: process("-m", "mgen", "show", "esm2_8m")["cpu_s"]),
            "torch": repeat(lambda: process("-c", "import torch")["cpu_s"]),
            "help": repeat(lambda: process(RECIPE, "--help")["cpu_s"]),
            "imports": repeat(lambda: process("-c", heavy)["wall_s"]),
            "first_step": repeat(lambda: process(*first, "--out", out)["wall_s"]),
        }
    return {
        "list_cpu_s": times["list"],
        "show_cpu_s": times["show"],
        "help_over_torch_cpu_s": round(times["help"] - times["torch"], 3),
        "imports_s": times["imports"],
        "whole_one_step_run_s": times["first_step"],
        "first_step_over_imports": round(times["first_step"] / times["imports"], 3),
    }


def process(*words: str, **environment: str) -> dict[str, float]:
    """Wall and CPU seconds of this Python with `words`, and what it printed last."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    printed = child.stdout.read().decode()
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, f"{words} left with status {status}: {printed}"
    return {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": used.ru_utime + used.ru_stime,
        "printed": printed,
    }


def repeat(measure: Callable[[], float]) -> float:
    return round(median(measure() for _ in range(REPEATS)), 3)


# --------------------------------------------------------------------------- training, embedding


def training(table: Path) -> dict[str, float]:
    """`fit` against the loop written out, the same batches in the same order."""
    sys.path.insert(0, str(ROOT / "recipes"))
    import plain_loop
    import sequence_regression

    from mgen.backbones import backbone
    from mgen.data import Table
    from mgen.data.batches import plan
    from mgen.loop import Fit, Train
    from mgen.report import console

    console.quiet = True
    data = Table(path=str(table), test_fraction=0.0, valid_fraction=0.0)
    train = Train(lr=1e-3, epochs=2, workers=0)
    network = backbone(DEBUG, truncate="right")  # its context is 512 tokens

    def fit(train: Train) -> float:
        cfg = sequence_regression.Config(backbone=network, data=data, train=train)
        task = sequence_regression.SequenceRegression(cfg)
        rows = data.open()
        task.check(rows, ("train", "valid", "test"))
        task.setup()
        with tempfile.TemporaryDirectory() as out:
            loop = Fit(task, rows, task.lengths, train, Path(out))
            begin = time.perf_counter()
            loop.run()
            counts["steps"], counts["lengths"] = loop.total, task.lengths
            return time.perf_counter() - begin

    def plain() -> float:
        steps = plain_loop.steps(plain_loop.Config(backbone=network, data=data, train=train))
        next(steps)  # opens the table, builds the model
        begin = time.perf_counter()
        done = 1 + sum(1 for _ in steps)
        return (time.perf_counter() - begin) * done / (done - 1)

    counts: dict = {}
    workers = dataclasses.replace(train, workers=2)
    rounds = [(fit(train), plain(), fit(workers)) for _ in range(REPEATS + 1)][1:]
    lengths = counts["lengths"]
    cut = plan(lengths, train.batch_size, train.batch_tokens, seed=(0, 0))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in cut)
    return {
        "fit_steps_per_s": round(counts["steps"] / median(a for a, _, _ in rounds), 2),
        "fit_2_workers_steps_per_s": round(counts["steps"] / median(c for _, _, c in rounds), 2),
        "plain_loop_steps_per_s": round(counts["steps"] / median(b for _, b, _ in rounds), 2),
        "fit_over_plain_loop": round(median(a / b for a, b, _ in rounds), 4),
        "padding_efficiency": round(float(lengths.sum()) / padded, 4),
    }


def embedding(table: Path) -> dict[str, float]:
    """Tokens per second of `backbone.embed`, padding not counted."""
    from mgen.backbones import load_backbone

    sequences = [line.split("\t")[0] for line in table.read_text().splitlines()[1:]]
    backbone = load_backbone(DEBUG, truncate="right")
    tokens = sum(len(sequence) + 2 for sequence in sequences)

    def seconds() -> float:
        begin = time.perf_counter()
        backbone.embed(sequences)
        return time.perf_counter() - begin

    seconds()
    return {"tokens_per_s": round(tokens / repeat(seconds))}


# --------------------------------------------------------------------------- memory

PEAK = """
import runpy, sys, threading, time
peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, next(int(l.split()[1]) for l in status if l.startswith("RssAnon")))
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as leaving:
    assert not leaving.code, leaving.code
print("PEAK", peak)
"""


def memory(folder: Path) -> dict[str, float]:
    """Peak private memory (MB) of a short run on a table and on one with ten times the rows.

    Memory-mapped pages of the table belong to the system's file cache and are not counted.
    """
    if not Path("/proc/self/status").exists():
        return {"tenfold_over_onefold": 1.0, "skipped": "needs /proc of Linux"}
    peaks = {}
    for rows in (20_000, 200_000):
        file = write_table(folder / f"{rows}.tsv", rows)
        flags = ["--data.path", str(file), "--train.max-steps", "20", "--train.workers", "0"]
        flags += ["--train.eval-every", "20", "--data.test-fraction", "0.01"]
        flags += ["--data.valid-fraction", "0.01", "--out", str(folder / "runs")]
        flags += ["--train.batch-tokens", "4096", "--backbone.truncate", "right"]
        found = [process("-c", PEAK, RECIPE, *flags)["printed"] for _ in range(3)]
        peaks[rows] = median(int(text.rpartition("PEAK")[2]) / 1e3 for text in found)
    small, large = peaks.values()
    return {
        "rows_20000_mb": round(small),
        "rows_200000_mb": round(large),
        "tenfold_over_onefold": round(large / small, 4),
    }


if __name__ == "__main__":
    main()
