"""How well embeddings of cells keep biology and forget batches: scIB's metrics by scib-metrics.

Luecken et al. 2022 (doi:10.1038/s41592-021-01336-8). All metrics are 0 to 1 at best.
Shapes: N cells, D width, G genes of the model.
"""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgen.backbones.cell_tokenizer import CellTokenizer, normalised
from mgen.checkpoint import whole, write_json
from mgen.config import InputError
from mgen.data.table import Rows

COMPONENTS = 50  # of the baseline
NEIGHBOURS = (15, 50, 90)  # of connectivity, of kBET, of LISI, as in scib-metrics' own benchmark
BIOLOGY = ("isolated_labels", "nmi", "ari", "silhouette_label", "clisi")
BATCHES = ("silhouette_batch", "ilisi", "kbet", "graph_connectivity", "pcr_comparison")
BASELINE = "PCA of ln(1 + 1e4 c / T)"


def library() -> Any:
    """scib_metrics. Raises InputError with what to install."""
    try:
        import scib_metrics
    except ImportError:
        raise InputError(
            "these metrics need scib-metrics, which mgen does not install: pip install scib-metrics"
        ) from None
    return scib_metrics


def components(rows: Rows, numbers: np.ndarray, tokenizer: CellTokenizer) -> np.ndarray:
    """First principal components (N, at most 50) of ln(1 + 1e4 c / T) of the model's genes."""
    from scipy.sparse import csr_array
    from sklearn.decomposition import PCA

    pairs = [tokenizer.sparse(rows.cell(number)) for number in numbers.tolist()]
    ends = np.cumsum([0, *(len(places) for places, _ in pairs)])
    values = np.concatenate([normalised(counts) for _, counts in pairs])
    places = np.concatenate([places for places, _ in pairs])
    matrix = csr_array((values, places, ends), shape=(len(pairs), len(tokenizer.genes)))
    size = min(COMPONENTS, min(matrix.shape) - 1)
    return PCA(size, svd_solver="arpack", random_state=0).fit_transform(matrix)


def scores(x: np.ndarray, labels: np.ndarray, batches: np.ndarray, raw: np.ndarray) -> dict:
    """The metrics of embeddings x (N, D), their means and 0.6 biology + 0.4 batches, "total".

    `labels` and `batches` (N,) are numbers from 0; `raw` (N, R) is what batches are told by before
    any integration. Neighbours are exact; a metric that cannot be told is nan and not in a mean.
    """
    scib = library()
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    x = np.ascontiguousarray(x, dtype=np.float32)
    most = min(max(NEIGHBOURS), len(x) - 1)
    distances, indices = NearestNeighbors(n_neighbors=most).fit(x).kneighbors(x)
    few, some, many = (
        NeighborsResults(indices[:, :k], distances[:, :k])
        for k in (min(n, most) for n in NEIGHBOURS)
    )
    with warnings.catch_warnings(action="ignore"):  # such as negative values set to 0
        clusters = scib.nmi_ari_cluster_labels_kmeans(x, labels)
        found = {
            "isolated_labels": scib.isolated_labels(x, labels, batches),
            "nmi": clusters["nmi"],
            "ari": clusters["ari"],
            "silhouette_label": scib.silhouette_label(x, labels),
            "clisi": scib.clisi_knn(many, labels),
            "silhouette_batch": scib.silhouette_batch(x, labels, batches),
            "ilisi": scib.ilisi_knn(many, batches),
            "kbet": scib.kbet_per_label(some, batches, labels),
            "graph_connectivity": scib.graph_connectivity(few, labels),
            "pcr_comparison": scib.pcr_comparison(raw, x, batches, categorical=True),
        }
        found = {name: float(value) for name, value in found.items()}
        means = [float(np.nanmean([found[n] for n in part])) for part in (BIOLOGY, BATCHES)]
    biology, batch = means
    return found | {
        "bio_conservation": biology,
        "batch_correction": batch,
        "total": 0.6 * biology + 0.4 * batch,
    }


def codes(values: Sequence[Any]) -> np.ndarray:
    """Numbers from 0 of distinct values (N,)."""
    return np.unique([str(value) for value in values], return_inverse=True)[1].astype(np.int32)


def write(file: Path, table: dict[str, dict[str, float]]) -> list[Path]:
    """The metrics of each embedding beside a prediction file, as JSON and TSV."""
    files = [file.with_suffix(".metrics.json"), file.with_suffix(".metrics.tsv")]
    write_json(files[0], table)
    with whole(files[1]) as partial, partial.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["metric", *table])
        for name in next(iter(table.values())):
            writer.writerow([name, *(f"{column[name]:.6g}" for column in table.values())])
    return files
