"""Time and memory of everyday commands, as JSON: `make bench` or `python tests/benchmarks`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = str(Path(__file__).parents[2] / "recipes" / "sequence_regression.py")


def measure(*words: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MB) of this Python with `words`."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, f"{words} left with status {status}"
    per_mb = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, else in kB
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / per_mb),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out:
        report = {
            "mgen list": measure("-m", "mgen", "list"),
            "import torch": measure("-c", "import torch"),
            "recipe --help": measure(RECIPE, "--help"),
            "recipe fit": measure(RECIPE, "--out", out),
        }
    print(json.dumps(report, indent=2))
