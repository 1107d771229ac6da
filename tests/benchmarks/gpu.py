"""Training and embedding on a GPU as JSON: `make bench-gpu`, or `python -m tests.benchmarks.gpu`.

Networks have the published shapes and random weights; sequences have random letters and lengths as
proteins of UniRef have them, log-normal around a mean of 350 residues, cut to the context. Training
is masked_language_modeling with all weights, as its command does it, and its figures are the
medians of what the run logs; embedding is `embed`. Tokens are counted without padding.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "masked_language_modeling.py"
REPEATS = 3
AIMS = {"training_mfu": 0.5, "training": 110_000, "embedding": 350_000, "packed_over_padded": 1.8}


@dataclass(frozen=True)
class Case:
    """A network and the batches it is measured with."""

    backbone: str
    letters: str
    longest: int  # residues
    tokens: int  # per batch of training
    flags: tuple[str, ...] = ()  # of training


RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RECOMPUTE = ("--backbone.gradient-checkpointing",)
CASES = (
    Case("esm2_650m", RESIDUES, 1022, 32768),
    Case("nucleotides_300m", "ACGT", 1022, 32768),
    Case("aido_rna_1b600m", "ACGU", 1022, 16384, RECOMPUTE),
)
# AIDO.DNA and AIDO.RNA of 300 million: width and depth are known, the inner width follows from it.
NUCLEOTIDES_300M = {
    "model_type": "rnabert",
    "modality": "dna",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 2688,
    "max_position_embeddings": 1024,
}


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("the GPU benchmarks need a CUDA device; `make bench` is for CPUs")
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": version("torch"),
        "cuda": torch.version.cuda,
        "command": "make bench-gpu",
        "cases": {},
    }
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            report["cases"][case.backbone] = measure(case, Path(folder))
        print(json.dumps({case.backbone: report["cases"][case.backbone]}), file=sys.stderr)
    first = report["cases"][CASES[0].backbone]
    best = max(first["training"].values(), key=lambda found: found["tokens_per_second"])
    report["held"] = {
        f"ESM-2 650M trains at {AIMS['training_mfu']:.0%} MFU": best.get("mfu", 0)
        >= AIMS["training_mfu"],
        f"trains {AIMS['training']:,} tokens/s": best["tokens_per_second"] >= AIMS["training"],
        f"embeds {AIMS['embedding']:,} tokens/s": first["embedding"]["packed_tokens_per_second"]
        >= AIMS["embedding"],
        f"packed >= {AIMS['packed_over_padded']} x padded": first["embedding"]["packed_over_padded"]
        >= AIMS["packed_over_padded"],
    }
    print(json.dumps(report, indent=2))


def measure(case: Case, folder: Path, rows: int = 20_000, steps: int = 60) -> dict:
    """Training with and without compiled blocks, packed and padded; embedding packed and padded."""
    if case.backbone == "nucleotides_300m":
        (folder / case.backbone).mkdir(parents=True)
        (folder / case.backbone / "config.json").write_text(json.dumps(NUCLEOTIDES_300M))
        case = replace(case, backbone=str(folder / case.backbone))
    sequences = draw(case, rows)
    table = folder / "rows.tsv"
    table.write_text("\n".join(["sequence", *sequences]) + "\n")
    ways = {
        "packed": (),
        "packed, compiled": ("--backbone.compile",),
        "padded": ("--backbone.attention", "sdpa"),
    }
    trained = {name: training(case, table, steps, flags) for name, flags in ways.items()}
    return {
        "longest": case.longest,
        "batch_tokens": case.tokens,
        "flags": case.flags,
        "mean_length": round(float(np.mean([*map(len, sequences)])), 1),
        "training": trained,
        "embedding": embedding(case, sequences[: max(rows // 5, 8)]),
    }


def draw(case: Case, rows: int) -> list[str]:
    """Sequences of random letters: lengths log-normal, mean about 350, 30 to the longest."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(300), 0.6, rows).clip(30, case.longest).astype(int)
    letters = np.array([*case.letters])
    return ["".join(letters[random.integers(0, len(letters), length)]) for length in lengths]


def training(case: Case, table: Path, steps: int, flags: tuple[str, ...]) -> dict[str, float]:
    """Medians of the lines that a run logs every tenth step, the first two left out."""
    with tempfile.TemporaryDirectory() as out:
        words = [
            *(sys.executable, str(RECIPE), "--backbone", case.backbone),
            *("--backbone.random-weights", "--data.path", str(table), "--data.test-fraction", "0"),
            *("--data.valid-fraction", "0", "--data.split-col", ""),
            *("--train.batch-size", "1024", "--train.batch-tokens", str(case.tokens)),
            *("--train.max-steps", str(steps), "--train.log-every", "10", "--out", out),
            *("--name", "a", *case.flags, *flags),
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr[-2000:], "tokens_per_second": 0}
        (file,) = Path(out).glob("*/a/metrics.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [row for row in rows if row["split"] == "train"]
    times = [row["time"] for row in found[2:] or found]
    names = [name for name in times[0] if name != "seconds"]
    padding = median(row["padding"] for row in found)
    return {name: median(time[name] for time in times) for name in names} | {"padding": padding}


def embedding(case: Case, sequences: list[str], batch: int = 64) -> dict[str, float]:
    """`embed` (buckets, packed) against batches in the order of the rows, padded to the longest."""
    from mgen.backbones import load_backbone

    network = load_backbone(case.backbone, random_weights=True, dtype="bfloat16")
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = sum(len(sequence) + network.tokenizer.num_special for sequence in sequences)

    def packed() -> None:
        network.use_attention("auto")
        network.embed(sequences, batch_tokens=65536)

    def padded() -> None:
        network.use_attention("sdpa")
        for start in range(0, len(sequences), batch):
            given = network.tokenize(sequences[start : start + batch])
            given = {name: tensor.to(network.device) for name, tensor in given.items()}
            mask = given["attention_mask"].unsqueeze(-1)
            with torch.inference_mode():
                ((network(given) * mask).sum(1) / mask.sum(1)).cpu()

    seconds: dict[str, list[float]] = {"packed": [], "padded": []}
    for _ in range(REPEATS + 1):
        for name, way in (("packed", packed), ("padded", padded)):
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    ratios = zip(seconds["padded"][1:], seconds["packed"][1:], strict=True)
    return {
        "packed_tokens_per_second": round(tokens / median(seconds["packed"][1:])),
        "padded_tokens_per_second": round(tokens / median(seconds["padded"][1:])),
        "packed_over_padded": round(median(a / b for a, b in ratios), 3),
    }


if __name__ == "__main__":
    main()
