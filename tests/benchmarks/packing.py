"""ESM-2 8M on a CPU: mgen against a plain transformers loop, and against its own padded batches.

What padding costs depends on the lengths, so there are two mixes of 16 to 512 residues: `short`,
where nine in ten have up to 128, as peptides among proteins or small RNAs among all, and `even`,
drawn log-uniformly. Every way gets the same weights and the same rows; the loops take the rows in
the order of the file, 32 to a batch, padded to the longest.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

ROWS, BATCH, REPEATS = 96, 32, 3
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def packing(folder: Path) -> dict[str, dict[str, float]]:
    """What `compared` gives for each mix of lengths."""
    return {name: compared(folder / name, draw(ROWS, name)) for name in ("short", "even")}


def compared(folder: Path, sequences: list[str]) -> dict[str, float]:
    """Seconds of embedding and of training steps, each way in turn; ratios are medians over rounds.

    Training compares steps of the same batches in file order, with gradients and without optimiser.
    """
    from transformers import EsmModel, EsmTokenizer
    from transformers.utils import logging

    from mgen.backbones import load_backbone

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    ours = load_backbone("esm2_8m", random_weights=True)
    ours.save(folder)
    theirs = EsmModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = EsmTokenizer.from_pretrained(folder)
    files = [sequences[i : i + BATCH] for i in range(0, len(sequences), BATCH)]
    kept: dict[str, list[Tensor]] = {}

    def mean(hidden: Tensor, batch: dict[str, Tensor], special: Tensor) -> Tensor:
        counts = (batch["attention_mask"] * (1 - special)).unsqueeze(-1)
        return (hidden * counts).sum(1) / counts.sum(1)

    def transformers_loop() -> None:
        kept["transformers"] = []
        for part in files:
            batch = tokenizer(
                part, padding=True, return_tensors="pt", return_special_tokens_mask=True
            )
            special = batch.pop("special_tokens_mask")
            hidden = theirs(**batch).last_hidden_state
            kept["transformers"].append(mean(hidden, batch, special))

    def padded_loop() -> None:
        ours.use_attention("sdpa")
        kept["padded"] = []
        for part in files:
            batch = ours.tokenize(part)
            kept["padded"].append(mean(ours(batch), batch, batch["special_tokens_mask"]))

    def embed() -> None:
        ours.use_attention("auto")
        kept["embed"] = [ours.embed(sequences)]

    def steps(back_end: str) -> Callable[[], None]:
        def run() -> None:
            ours.use_attention(back_end)
            for part in files[:1]:
                batch = ours.tokenize(part)
                mean(ours(batch), batch, batch["special_tokens_mask"]).square().sum().backward()
                ours.zero_grad()

        return run

    def transformers_steps() -> None:
        for part in files[:1]:
            batch = tokenizer(part, padding=True, return_tensors="pt")
            hidden = theirs(**batch).last_hidden_state
            mean(hidden, batch, torch.zeros_like(batch["input_ids"])).square().sum().backward()
            theirs.zero_grad()

    with torch.inference_mode():
        found = in_turn({"embed": embed, "padded": padded_loop, "transformers": transformers_loop})
    trained = in_turn(
        {"packed": steps("auto"), "padded": steps("sdpa"), "transformers": transformers_steps}
    )
    one, *others = (torch.cat(parts) for parts in kept.values())
    tokens = sum(len(sequence) + 2 for sequence in sequences)
    return {
        "rows": len(sequences),
        "mean_length": round(float(np.mean([*map(len, sequences)])), 1),
        "tokens_per_s": round(tokens / median(found["embed"])),
        "padded_over_embed": ratio(found, "padded", "embed"),
        "transformers_over_embed": ratio(found, "transformers", "embed"),
        "padded_over_packed_step": ratio(trained, "padded", "packed"),
        "transformers_over_packed_step": ratio(trained, "transformers", "packed"),
        "largest_difference": float(max((one - other).abs().max() for other in others)),
    }


def draw(rows: int, mix: str) -> list[str]:
    random = np.random.default_rng(0)
    longest = np.where(random.random(rows) < 0.9, 128, 512) if mix == "short" else 512
    lengths = np.exp(random.uniform(np.log(16), np.log(longest), rows)).round().astype(int)
    return ["".join(random.choice([*RESIDUES], length)) for length in lengths]


def in_turn(ways: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Seconds of each way in every round; a first round is left out."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            found[name].append(time.perf_counter() - begin)
    return {name: seconds[1:] for name, seconds in found.items()}


def ratio(found: dict[str, list[float]], slow: str, fast: str) -> float:
    return round(median(a / b for a, b in zip(found[slow], found[fast], strict=True)), 3)


if __name__ == "__main__":
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as where:
        print(json.dumps(packing(Path(where)), indent=2))
