"""What cells cost: twice the expressed genes, all genes at once, random rows of a large file.

`python -m tests.benchmarks.cells` alone; `make bench` runs it among the others. Random weights and
simulated genes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from tests.benchmarks.tables import SEED, Memory

GENES, POSITIONS = 19_264, 19_266
SMALL = {  # AIDO.Cell of the smallest width, at full length
    "model_type": "cellfoundation",
    "gene_list": "simulated",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 12,
    "bin_num": 100,
    "max_position_embeddings": GENES,
    "vocab_size": 16,
}
TISSUE = {  # AIDO.Tissue at the sizes of AIDO.Cell-3M: those of its own are not in the zoo
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "intermediate_size": 320,
    "bin_num": 100,
    "max_position_embeddings": GENES,
}
READ_EXPRESSED = {"scfoundation": {}, "geneformer": {}, "aido_tissue_debug": TISSUE}
EXPRESSED, ROWS, REPEATS = (500, 1000), 4, 3
CELLS = (25_000, 100_000)
BATCH, READ = 16, 20_000


def cells() -> dict[str, dict]:
    """Each in a process of its own, so that memory is its own."""
    return {
        "expressed": {name: _alone(name) for name in READ_EXPRESSED},
        "full_length": _alone("full_length"),
        "random_rows": random_rows(),
    }


def _alone(*words: str) -> dict[str, float]:
    return json.loads(
        subprocess.check_output([sys.executable, "-m", "tests.benchmarks.cells", *words])
    )


# --------------------------------------------------------------------------- expressed genes alone


def expressed(name: str) -> dict[str, float]:
    """A cell of twice the expressed genes against one, in turn: seconds and the median ratio.

    Layers that see a token alone grow with the genes, and attention with their square, of which
    there is little at these lengths.
    """
    import torch

    from mgen.backbones import backbone
    from mgen.io.counts import Counts, GeneTable

    collapse = {"collapse": False} if name == "geneformer" else {}
    choice = backbone(name, random_weights=True, **collapse)
    network = _network(choice, **READ_EXPRESSED[name])
    random = np.random.default_rng(0)
    table = GeneTable({"": network.tokenizer.genes.symbols})

    def made(count: int) -> Counts:
        genes = np.sort(random.choice(len(table) - 4, count, replace=False) + 4)
        counts = random.poisson(2, count) + 1
        return Counts(genes.astype(np.int32), counts.astype(np.float32), table)

    batches = [network.tokenize([made(count) for _ in range(ROWS)]) for count in EXPRESSED]
    with torch.inference_mode():
        few, many = _in_turn(*(lambda b=batch: network(b) for batch in batches))
    return {
        **{f"seconds_{n}": median(s) for n, s in zip(EXPRESSED, (few, many), strict=True)},
        "ratio": _ratio(many, few),
    }


def _network(choice, **facts):
    from mgen.backbones import BACKBONES

    facts = choice._config_json() | {"gene_list": "simulated"} | facts
    wrapper, options = BACKBONES.construct(choice)
    tokenizer = wrapper.make_tokenizer(choice, facts, **options)
    return wrapper.load(choice, facts, tokenizer, **options).eval()


def _in_turn(*calls) -> list[list[float]]:
    """Seconds of each call, round after round; a first round is left out."""
    rounds = []
    for _ in range(REPEATS + 1):
        seconds = []
        for call in calls:
            begin = time.perf_counter()
            call()
            seconds.append(round(time.perf_counter() - begin, 4))
        rounds.append(seconds)
    return [[*seconds] for seconds in zip(*rounds[1:], strict=True)]


def _ratio(above: list[float], below: list[float]) -> float:
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)


# --------------------------------------------------------------------------- all genes


def full_length() -> dict[str, float]:
    """A forward of one cell of 19,264 genes against its linear layers and attention alone.

    Bare are the same weights with no norm, no addition and no other step than what a linear layer
    needs to be reached: a floor, not a model.
    """
    import torch
    import torch.nn.functional as F

    from mgen.backbones import backbone
    from mgen.models.attention import split_heads

    torch.manual_seed(0)
    network = _network(backbone("aido_cell_3m", random_weights=True), **SMALL)
    random = np.random.default_rng(0)
    values = torch.from_numpy(random.gamma(0.1, size=(1, POSITIONS)).astype(np.float32))
    ones = torch.ones(1, POSITIONS, dtype=torch.long)
    batch = {"values": values, "attention_mask": ones, "special_tokens_mask": 1 - ones}
    encoder, heads = network.encoder, SMALL["num_attention_heads"]

    def bare() -> torch.Tensor:
        value = encoder.gene_embedding
        x = value.linear2(value.linear1(values.unsqueeze(-1))) @ value.lookup_table.weight
        for layer in encoder.encoder.layer:
            own = layer.attention.self
            q, k, v = (split_heads(part(x), heads) for part in (own.query, own.key, own.value))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = layer.attention.output.dense(mixed)
            x = layer.mlp.down_proj(layer.mlp.up_proj(x) * layer.mlp.gate_proj(x))
        return x

    with torch.inference_mode():
        bare()  # what torch needs for itself is not the model's
        memory = Memory()
        own, floor = _in_turn(lambda: network(batch), bare)
    return {
        "seconds": median(own),
        "bare_seconds": median(floor),
        "over_bare": _ratio(own, floor),
        "peak_mb_over_weights": memory.over_imports()["peak_mb_over_imports"],
    }


# --------------------------------------------------------------------------- random rows


def random_rows() -> dict[str, float]:
    """Shuffled cells of an h5ad on disk, aligned to the model's genes by two workers."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in CELLS:
            file = Path(folder) / f"{count}.h5ad"
            write_h5ad(file, count)
            time.sleep(2.5)  # a file that has just been written is not taken for unchanged
            first, *again = (_alone(str(file), f"{folder}/cache") for _ in range(1 + REPEATS))
            figures = {name: median(one[name] for one in again) for name in first}
            found[count] = {"first_open_s": first["open_s"], **figures}
            file.unlink()
    few, many = found.values()
    return {
        **{f"cells_{count}": figures for count, figures in found.items()},
        "memory_over_quarter_of_cells": round(many["peak_mb"] / few["peak_mb"], 3),
    }


def write_h5ad(file: Path, count: int) -> None:
    """Cells of 500 to 1,500 expressed genes, as anndata writes a CSR matrix."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    random = np.random.default_rng(0)
    pool = [
        np.sort(random.choice(GENES, n, replace=False)) for n in random.integers(500, 1501, 997)
    ]
    rows = [pool[i % len(pool)] for i in range(count)]
    ends = np.cumsum([0, *map(len, rows)])
    genes = np.concatenate(rows).astype(np.int32)
    values = (random.poisson(1, len(genes)) + 1).astype(np.float32)
    made = anndata.AnnData(
        csr_matrix((values, genes, ends), shape=(count, GENES)),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(count)]),
        var=pd.DataFrame(index=[f"GENE{i + 1}" for i in range(GENES)]),
    )
    made.write_h5ad(file)


def read(file: str) -> dict[str, float]:
    """What a run does before its first step, then random rows."""
    import accelerate  # noqa: F401  (imports are not what is measured)
    import datasets  # noqa: F401
    import torch

    from mgen.backbones import BACKBONES, backbone
    from mgen.data import Table
    from mgen.data.batches import Batch, loader, plan

    choice = backbone("aido_cell_3m", random_weights=True)
    wrapper, options = BACKBONES.construct(choice)
    tokenizer = wrapper.make_tokenizer(choice, SMALL, **options)
    memory, begin = Memory(children=True), time.perf_counter()
    rows = Table(path=file, test_fraction=0.0, valid_fraction=0.0).open()
    opened = time.perf_counter()
    indices = rows.splits["train"]
    order = plan(np.ones(len(indices), dtype=np.int64), BATCH, 0, SEED)[: READ // BATCH]
    wanted = (Batch(tuple(map(int, indices[positions])), 0) for positions in order)
    made = loader(rows, wanted, _Aligned(tokenizer), workers=2)
    done = len(next(made)["values"])
    first, total = time.perf_counter(), torch.zeros(())
    for batch in made:
        done += len(batch["values"])
        total += batch["values"][:, -1].sum()
    seconds = time.perf_counter() - first
    return {
        "open_s": round(opened - begin, 2),
        "first_batch_s": round(first - opened, 2),
        "cells_per_s": round(done / seconds),
        "peak_mb": memory.over_imports()["peak_mb_over_imports"],
    }


class _Aligned:
    """Rows to counts (B, G) in the order of the model's genes."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict:
        return {"values": self.tokenizer.dense([row["sequence"] for row in rows])}


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            print(json.dumps(cells(), indent=2))
        case ["full_length"]:
            print(json.dumps(full_length()))
        case [file, cache]:
            os.environ["MGEN_CACHE"] = cache
            print(json.dumps(read(file)))
        case [name]:
            print(json.dumps(expressed(name)))
