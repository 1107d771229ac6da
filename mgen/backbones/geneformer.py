"""Geneformer: the genes that a cell expresses, by falling rank, as tokens of a BERT.

A gene's rank is by its share of the cell's counts over its median of such shares in many cells
(Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9). Weights are read through transformers.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mgen.backbones.cell_tokenizer import GENES_FILE, TARGET, CellTokenizer, padded, tensors
from mgen.backbones.cells import READING, CellBackbone
from mgen.backbones.genes import FOLDER, SIMULATED, Alignment, plain, read_table, species
from mgen.backbones.huggingface import HuggingFaceBackbone
from mgen.backbones.tokenizer import Style
from mgen.config import Absent, InputError
from mgen.io.counts import Counts, GeneTable
from mgen.io.files import shared_file, shared_folder

MEDIANS, ALIASES = "geneformer_gene_medians.tsv.gz", "geneformer_id_collapse.tsv.gz"
PAD, CLS, EOS, SPECIAL = 0, 2, 3, 4  # tokens; the mask is 1, genes count from SPECIAL


class GeneformerConfig(NamedTuple):
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int


class GeneformerTokenizer(CellTokenizer):
    """<cls> genes <eos>. The list of genes is the vocabulary, special tokens first.

    Args:
        medians: of each token (G,).
        collapse: read symbols, aliases and older Ensembl ids as the current ids.
    """

    style = Style("<pad>", "<mask>", "", "<cls>", "<eos>")
    num_special = 2
    ranks = True

    def __init__(self, *given, medians: np.ndarray, collapse: bool = True, **options: Any) -> None:
        super().__init__(*given, **options)
        self.medians, self.collapse = medians, collapse and not self.as_published
        self.context = self.config.max_position_embeddings
        if self.max_length > self.context:
            raise InputError(
                f"--backbone.max-length {self.max_length}: this model has {self.context} positions"
            )

    def align(self, table: GeneTable) -> Alignment:
        if self.collapse and table.digest not in self._alignments:
            self._alignments[table.digest] = super().align(self._current(table))
        return super().align(table)

    def _current(self, table: GeneTable) -> GeneTable:
        """With the current id of each gene that is known by another name."""
        if species(text for texts in table.columns.values() for text in texts) not in ("human", ""):
            return table  # genes of others have the same names in another case
        names = _aliases(str(_file(ALIASES, "--backbone.no-collapse does without")))
        own, columns = {*self.genes.ensembl}, table.columns
        # Of columns that fit alike, that which has the ids themselves goes first.
        order = sorted(columns, key=lambda column: -len(own & {*map(plain, columns[column])}))
        current = {
            column: tuple(names.get(plain(text).upper(), text) for text in columns[column])
            for column in order
        }
        return GeneTable(current, table.column)

    def batch(self, rows: Sequence[Counts]) -> dict[str, Tensor]:
        """`input_ids` and the masks (B, L)."""
        found = [np.array([CLS, *self._ranked(row), EOS]) for row in rows]
        ids = padded(found, PAD)
        counts = np.array([len(row) for row in found])[:, None]
        is_real = np.arange(ids.shape[1]) < counts
        is_special = ~is_real | (np.arange(ids.shape[1]) == 0)
        is_special |= np.arange(ids.shape[1]) == counts - 1
        return tensors(input_ids=ids, attention_mask=is_real, special_tokens_mask=is_special)

    def _ranked(self, row: Counts) -> np.ndarray:
        """Tokens of the genes that are not zero, the most unusual first; of equal ones by id."""
        genes, scores = self.scores(row)
        ranked = genes[np.argsort(-scores, kind="stable")]
        room = (self.max_length or len(ranked) + 2) - 2
        if len(ranked) > room and self.truncate == "error":
            raise InputError(
                f"a cell has {len(ranked) + 2:,} tokens, and the limit is {self.max_length:,}. Set "
                "--backbone.truncate right to leave out the genes of lowest rank"
            )
        return ranked[:room]

    def scores(self, row: Counts) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the genes that are not zero, rising (n,), and what they are ranked by (n,)."""
        genes, values = self.sparse(row)
        kept = (values != 0) & (self.as_published | (genes >= SPECIAL))
        genes, values = genes[kept], values[kept].astype(np.float64)
        if self.as_published:
            total = max(values.sum(), 1.0)
        else:
            raw = np.expm1(row.values) if self.values == "log1p" else row.values
            total = raw.sum(dtype=np.float64)
        return genes, values / total * TARGET / self.medians[genes]

    def expressed_tokens(self, expressed: np.ndarray) -> np.ndarray:
        return expressed + 2

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(super().fingerprint.encode() + self.medians.tobytes()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the vocabulary with its medians."""
        medians = map(repr, self.medians.tolist())
        lines = zip(self.genes.symbols, self.genes.ensembl, medians, strict=True)
        text = "\n".join(["gene_name\tensembl_id\tmedian", *map("\t".join, lines)]) + "\n"
        (folder / GENES_FILE).write_text(text, encoding="utf-8")


class GeneformerBackbone(CellBackbone, HuggingFaceBackbone):
    """The hidden state before the last layer, unless told another; layers above are set aside."""

    tokenizer_type = GeneformerTokenizer
    gene_list = "geneformer"
    reading = (*READING, "collapse", "medians")
    lora_targets = ("query", "key", "value", "dense")
    encode = HuggingFaceBackbone.encode

    @staticmethod
    def read(config: dict) -> GeneformerConfig:
        try:
            return GeneformerConfig(*(int(config[name]) for name in GeneformerConfig._fields))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"config.json of Geneformer: {error}") from None

    @staticmethod
    def num_genes(config: GeneformerConfig) -> int:
        return config.vocab_size

    @classmethod
    def limit(cls, config: GeneformerConfig) -> int:
        return config.max_position_embeddings

    @classmethod
    def make_tokenizer(cls, choice, config_json: dict, *, genes: str = "", **options):
        size = cls.read(config_json).vocab_size
        made = super().make_tokenizer(
            choice, config_json, genes=genes, medians=np.ones(size), **options
        )
        if config_json.get("gene_list") != SIMULATED:
            own = choice.folder and choice.folder / GENES_FILE
            file = genes or (str(own) if own and own.is_file() else "")
            made.medians = _medians(file, made.genes.ensembl)
        return made

    @classmethod
    def load(cls, choice, config_json: dict, tokenizer: CellTokenizer, **options):
        network = super().load(choice, config_json, tokenizer, spaced=False, remote_code=False)
        network.use_layers(choice.emb_layer)
        return network

    def use_layers(self, emb_layer: int) -> None:
        """Give the hidden state `emb_layer`, counted as published; layers above take no part."""
        most = self.num_layers
        if not 0 < emb_layer % (most + 1) <= most or not -most <= emb_layer <= most:
            raise InputError(
                f"--backbone.emb-layer {emb_layer}: states are 1 to {most}, or -1 to {-most} "
                "counted from the last"
            )
        self.num_layers, layers = emb_layer % (most + 1), self.encoder.encoder.layer
        self.encoder.encoder.layer, self.all_layers = layers[: self.num_layers], [layers]

    def decoder(self, hidden: Tensor) -> Tensor:
        if len(self.all_layers[0]) > self.num_layers:
            raise InputError(
                "Geneformer's language-model head reads the last hidden state. Set "
                "--backbone.emb-layer -1"
            )
        return super().decoder(hidden)

    def save(self, folder: Path) -> None:
        cut, self.encoder.encoder.layer = self.encoder.encoder.layer, self.all_layers[0]
        super().save(folder)
        self.encoder.encoder.layer = cut
        file = folder / "config.json"
        facts = json.loads(file.read_text()) | {"modality": "cell"}  # or it were any BERT
        file.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _medians(file: str, tokens: Sequence[str]) -> np.ndarray:
    """Of each token (G,), 1 where none is known: of the list's own column, or the published."""
    rows = read_table(shared_file(file)) if file else []
    if not rows or "median" not in rows[0]:
        rows = read_table(_file(MEDIANS, "or name a list with a column median"))
    try:
        known = {row["ensembl_id"]: float(row["median"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file or MEDIANS}: medians of genes: {error}") from None
    return np.array([known.get(token, 1.0) for token in tokens])


@functools.lru_cache(maxsize=2)
def _aliases(file: str) -> dict[str, str]:
    return {row["key"]: row["ensembl_id"] for row in read_table(Path(file))}


def _file(name: str, advice: str) -> Path:
    path = shared_folder() / FOLDER / name
    if not path.is_file():
        raise Absent(
            f"{path} is missing: Geneformer publishes this table as a pickle, which is never read. "
            f"Put it there as a table (MGEN_SHARED names the folder); {advice}"
        )
    return path
