"""cells_tiny: a simulated tissue that ships with mgen; simulate.py writes it again.

Nothing here was measured. Of N cells and G genes GENE1, GENE2, ...:

share of gene g in a cell   softmax over genes of: N(0, 1) of the gene
                            + MARKED if g is one of the MARKERS genes of the cell's true type
                            + AGEING (age - 50) / 20 if g is one of the ten genes of age
                            + N(0, 0.3) of the gene in batch B
total of a cell             log-normal about DEPTH, in batch B half of it
counts                      Poisson(total * share)
cell_type                   the true type (column `truth`); a share MISLABELLED of the cells
                            carries another: no accuracy can exceed 1 - MISLABELLED
age                         uniform, 20 to 80
x, y, niche                 three niches are blobs of the plane, each with its own mix of types
density                     number of other cells within RADIUS
"""

import numpy as np

from mgen.data.named.simulate import MISLABELLED

GENES, TYPES, MARKERS = 300, ("B cell", "T cell", "macrophage", "stroma"), 12
MARKED, AGEING, DEPTH, RADIUS = 2.0, 0.8, 600, 15.0
MIX = {"core": (0.1, 0.5, 0.3, 0.1), "rim": (0.5, 0.1, 0.1, 0.3), "vessel": (0.1, 0.1, 0.2, 0.6)}
CENTRES = {"core": (0, 0), "rim": (60, 10), "vessel": (20, 70)}


def cells(rows: int = 400, seed: int = 10) -> tuple[np.ndarray, dict[str, list]]:
    """Counts (N, G) int32 and the columns of obs."""
    rng = np.random.default_rng(seed)
    niche = rng.choice([*MIX], rows)
    truth = np.array([rng.choice(len(TYPES), p=MIX[name]) for name in niche])
    place = np.array([CENTRES[name] for name in niche]) + rng.normal(0, 15, (rows, 2))
    age, batch = rng.uniform(20, 80, rows).round(1), rng.choice(["A", "B"], rows)
    logits = np.tile(rng.normal(0, 1, GENES), (rows, 1))
    for kind in range(len(TYPES)):
        first = kind * MARKERS
        logits[truth == kind, first : first + MARKERS] += MARKED
    logits[:, -10:] += AGEING * (age[:, None] - 50) / 20
    logits[batch == "B"] += rng.normal(0, 0.3, GENES)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    totals = DEPTH * rng.lognormal(0, 0.3, rows) * np.where(batch == "B", 0.5, 1)
    counts = rng.poisson(totals[:, None] * shares).astype(np.int32)
    moved = rng.random(rows) < MISLABELLED
    label = np.where(moved, (truth + rng.integers(1, len(TYPES), rows)) % len(TYPES), truth)
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    return counts, {
        "cell_type": [TYPES[kind] for kind in label],
        "truth": [TYPES[kind] for kind in truth],
        "batch": batch.tolist(),
        "age": age.tolist(),
        "niche": niche.tolist(),
        "density": ((distance < RADIUS).sum(1) - 1).tolist(),
        "x": place[:, 0].round(2).tolist(),
        "y": place[:, 1].round(2).tolist(),
    }


def write(file) -> None:
    """Write the cells as an AnnData file."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    counts, columns = cells()
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(1, len(counts) + 1)])
    for name in ("cell_type", "truth", "batch", "niche"):
        obs[name] = obs[name].astype("category")
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(1, GENES + 1)])
    data = anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs, var)
    data.write_h5ad(file, compression="gzip", compression_opts=9)
