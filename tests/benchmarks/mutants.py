"""What maps and variant scores cost beside the bare passes of the network they need."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from mgen.backbones import load_backbone
from mgen.methods.mutagenesis import dependencies, letter_ids

LENGTH, BATCH, REPEATS = 500, 128, 3  # letters of the sequence; inputs per call; rounds
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def dependency_map() -> dict[str, float]:
    """One map of a DNA sequence by aido_dna_debug against as many passes over as many inputs."""
    network = load_backbone("aido_dna_debug")
    sequence = "".join(np.random.default_rng(0).choice(list("ACGT"), LENGTH))
    batch, letters = network.tokenize([sequence]), letter_ids(network.tokenizer, "ACGT")
    calls: list[int] = []

    def logits(part: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(part["input_ids"]))
        return network.decoder(network(part))[:, :, letters]

    def passes(sizes: list[int]) -> None:
        for size in sizes:
            logits({key: value.expand(size, -1) for key, value in batch.items()})

    rounds = []
    with torch.inference_mode():
        for _ in range(REPEATS + 1):
            calls.clear()
            whole = seconds(lambda: dependencies(logits, batch, letters, BATCH))
            sizes = [*calls]
            rounds.append((whole, seconds(lambda sizes=sizes: passes(sizes))))
    return {
        "length": LENGTH,
        "inputs": sum(sizes),
        "calls": len(sizes),
        "calls_over_3L_per_batch": round(len(sizes) / -(-3 * LENGTH // BATCH), 3),
        "map_s": round(median(a for a, _ in rounds[1:]), 3),
        "map_over_passes": round(median(a / b for a, b in rounds[1:]), 3),
    }


def scan(folder: Path, process: Callable[..., dict], recipe: str) -> dict[str, float]:
    """5,000 substitutions of 300 residues by wt-fill, as a process, and the inputs it counts."""
    rng = np.random.default_rng(0)
    wild = "".join(rng.choice(list(RESIDUES), 300))
    every = [f"{old}{i + 1}{new}" for i, old in enumerate(wild) for new in RESIDUES if new != old]
    chosen = rng.choice(every, 5000, replace=False)
    (folder / "scan.csv").write_text("mutant\n" + "\n".join(chosen) + "\n")
    flags = ["--backbone", "aido_protein_debug", "--data", str(folder / "scan.csv")]
    flags += ["--data.x-col", "mutant", "--data.wild-type", wild, "--out", str(folder / "runs")]
    found = [process(recipe, *flags) for _ in range(REPEATS)]
    variants, inputs = re.search(r"([\d,]+) variants, ([\d,]+) model", found[0]["printed"]).groups()
    return {
        "variants": int(variants.replace(",", "")),
        "inputs": int(inputs.replace(",", "")),
        "wall_s": round(median(one["wall_s"] for one in found), 2),
    }


def seconds(compute: Callable[[], object]) -> float:
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin
