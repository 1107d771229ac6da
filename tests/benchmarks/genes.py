"""What a cell of twice the expressed genes costs: scFoundation and Geneformer at published sizes.

Random weights of the published sizes and simulated genes, cells of 500 and of 1,000 expressed ones,
in turn; rows of a batch are equally long. Layers that see a token alone grow with the genes, and
attention with their square, of which there is little at these lengths.
"""

import time
from statistics import median

import numpy as np
import torch

ROWS, EXPRESSED, REPEATS = 4, (500, 1000), 3


def genes() -> dict[str, dict[str, float]]:
    """Of each model the seconds of both, and the median ratio over rounds."""
    return {name: compared(name) for name in ("scfoundation", "geneformer")}


def compared(name: str) -> dict[str, float]:
    from mgen.backbones import BACKBONES, backbone
    from mgen.io.counts import Counts, GeneTable

    torch.manual_seed(0)
    collapse = {"collapse": False} if name == "geneformer" else {}
    choice = backbone(name, random_weights=True, **collapse)
    facts = choice._config_json() | {"gene_list": "simulated"}
    wrapper, options = BACKBONES.construct(choice)
    tokenizer = wrapper.make_tokenizer(choice, facts, **options)
    network = wrapper.load(choice, facts, tokenizer, **options).eval()
    random = np.random.default_rng(0)
    table = GeneTable({"": tokenizer.genes.symbols})

    def cells(expressed: int) -> list[Counts]:
        made = []
        for _ in range(ROWS):
            genes = np.sort(random.choice(len(table) - 4, expressed, replace=False) + 4)
            counts = random.poisson(2, expressed) + 1
            made.append(Counts(genes.astype(np.int32), counts.astype(np.float32), table))
        return made

    batches = [network.tokenize(cells(expressed)) for expressed in EXPRESSED]
    found: list[list[float]] = [[], []]
    with torch.inference_mode():
        for _ in range(REPEATS + 1):  # a first round is left out
            for batch, seconds in zip(batches, found, strict=True):
                begin = time.perf_counter()
                network(batch)
                seconds.append(time.perf_counter() - begin)
    few, many = (seconds[1:] for seconds in found)
    ratio = median(b / a for a, b in zip(few, many, strict=True))
    return {
        **{
            f"seconds_{n}": round(median(s), 3) for n, s in zip(EXPRESSED, (few, many), strict=True)
        },
        "ratio": round(ratio, 3),
    }


if __name__ == "__main__":
    import json

    print(json.dumps(genes(), indent=2))
