"""Tokens per second of one process and of two, a core each, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sequence_regression.py"
LAUNCH = ROOT / "recipes" / "configs" / "accelerate" / "cpu2.yaml"
REPEATS = 3


def processes(table: Path, out: Path) -> dict[str, float]:
    """Medians over runs, in turn, of what runs log; as many rows per step and process.

    The network is ESM-2 8M's shape as protein letters A, C, G and T: large enough to be worth it.
    """
    by_count = {
        1: [sys.executable],
        2: [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH)],
    }
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(REPEATS):
        for count, start in by_count.items():
            name = f"{count}-{repeat}"
            words = [
                *(*start, str(RECIPE), "--backbone", "esm2_8m", "--backbone.random-weights"),
                *("--data.path", str(table), "--data.test-fraction", "0"),
                *("--data.valid-fraction", "0", "--train.max-steps", "8", "--train.log-every", "2"),
                *("--train.batch-size", "8", "--train.workers", "0"),
                *("--out", str(out), "--name", name),
            ]
            one_core = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            done = subprocess.run(words, capture_output=True, text=True, env=one_core)
            assert done.returncode == 0, done.stderr
            lines = (out / "sequence_regression" / name / "metrics.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
            speeds[count].append(median(row["time"]["tokens_per_second"] for row in rows[1:]))
    ratios = zip(speeds[2], speeds[1], strict=True)
    return {
        "one_tokens_per_s": round(median(speeds[1])),
        "two_tokens_per_s": round(median(speeds[2])),
        "two_over_one": round(median(two / one for two, one in ratios), 3),
    }
