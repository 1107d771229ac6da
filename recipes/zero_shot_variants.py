"""Score variants with a language model that has never seen a measurement of any.

In: mutations of a wild type, sequences before and after, or a VCF with its genome. Out: a score per
variant, with labels also ProteinGym's metrics. Higher scores: the model finds the variant likelier.

    python recipes/zero_shot_variants.py                   # seconds, CPU, bundled data
    python recipes/zero_shot_variants.py --backbone esm2_650m --data dms.csv --data.x-col mutant \\
        --data.wild-type protein.fasta --data.y-cols DMS_score
    python recipes/zero_shot_variants.py --backbone aido_dna_300m --data new.vcf.gz --genome hg38.fa
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.methods import assays, zero_shot
from mgen.metrics.variants import NAMES
from mgen.report import console
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Zero-shot scores of variants."""

    backbone: Backbone = backbone("aido_protein_debug")
    data: Table = table("dms_tiny")
    train: Train = Train(batch_size=256, batch_tokens=2**20)
    strategy: Literal[
        "wt-marginals",
        "wt-fill",
        "mask-fill",
        "mut-fill",
        "match-fill",
        "pseudo-perplexity",
        "causal",
        "embedding-distance",
        "blosum62",
        "site-independent",
        "given",
    ] = "wt-fill"  # given: no model, only --score-cols
    genome: str = ""  # FASTA file that the variants' contigs and positions are of
    window: int = 512  # bases on each side of a variant that are read from the genome
    reference_col: str = ""  # column of the sequence before, where --data.x-col is the one after
    chrom_col: str = "chrom"  # column of contigs
    start_col: str = "start"  # column of positions, counted from 0
    one_based: bool = False  # they are counted from 1
    ref_col: str = "ref"  # column of reference alleles
    alt_col: str = "mutate"  # column of alternative alleles
    mismatch: Literal["error", "skip", "keep"] = "error"  # rows whose reference allele is not there
    indels: Literal["error", "skip"] = "error"  # where a strategy takes substitutions alone
    strands: Literal["forward", "both"] = "forward"  # both: mean of a DNA window and its complement
    reduce: Literal["mean", "sum"] = "mean"  # likelihoods of sequences: per token, or of all
    layers: tuple[str, ...] = ("last",)  # hidden states to compare: last, all, or 0, 1, ...
    msa: str = ""  # alignment (A3M or FASTA) whose first row is the wild type
    tokens: int = 16384  # tokens of inputs that the network reads at once
    score_cols: tuple[str, ...] = ()  # columns of scores by other methods, to compare with
    bin_col: str = "DMS_score_bin"  # column of 0/1 labels, if there is one; else cut at the median
    positive: str = ""  # class of the label column that counts as 1, the others as 0
    negate: bool = False  # metrics of minus the model's score: a high label means loss of function

    def __post_init__(self) -> None:
        if self.genome:  # which has the sequences
            object.__setattr__(self, "data", replace(self.data, x_col="", wild_type=""))


class ZeroShotVariants(Task):
    trains = False

    def __init__(self, cfg: Config) -> None:
        if ".vcf" in Path(cfg.data.path).suffixes and not cfg.genome:
            raise InputError("--genome: a VCF needs the FASTA file of its genome")
        bare = backbone(assays.BARE, unknown="token")  # without weights to load
        free = cfg.strategy in zero_shot.WITHOUT_MODEL
        super().__init__(replace(cfg, backbone=bare) if free else cfg)

    def check(self, rows, splits, labelled=True) -> list[str]:
        self.assay, notes = assays.read_assay(rows, self.cfg)
        plan, letters, more = zero_shot.prepare(self.cfg, rows, self.tokenizer)
        self.facts, self.lengths = {"plan": plan}, letters + self.tokenizer.num_special
        return notes + more

    def build(self) -> None:
        cfg, network = self.cfg, self.backbone
        self.layers = zero_shot.layer_numbers(cfg.layers, network.num_layers)
        self.names = zero_shot.score_names(cfg.strategy, self.layers)
        self.outputs = zero_shot.Outputs(self.read)
        if cfg.strategy not in (*zero_shot.WITHOUT_MODEL, "embedding-distance"):
            network.decoder_parameters()  # an error where there is no language-model head
            zero_shot.check_direction(cfg.strategy, network.is_causal)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.facts["plan"].batch(rows, self.tokenizer)

    def read(self, batch: dict[str, Tensor], masked: Tensor) -> list[Tensor]:
        """What is kept of each distinct input (m, L): one tensor per row."""
        network = self.backbone
        if self.cfg.strategy == "embedding-distance":
            only_last = self.layers == [network.num_layers]
            states = [network(batch)] if only_last else network.hidden_states(batch)
            chosen = states if only_last else [states[layer] for layer in self.layers]
            return zero_shot.mean_states(chosen, batch)
        hidden = network(batch)
        if self.cfg.strategy == "causal":
            mean = self.cfg.reduce == "mean"
            return zero_shot.likelihoods(network.decoder(hidden), batch, mean)
        return zero_shot.log_probabilities(network.decoder, hidden, masked)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # (B,) or distances (B, layers, 3)
        if "scores" in batch:
            return batch["scores"]
        values = self.outputs.of(batch, self.tokenizer.mask_token_id, self.cfg.tokens)
        if self.cfg.strategy == "embedding-distance":
            return zero_shot.total_distances(batch, values, len(self.layers))
        return zero_shot.total(batch, values)

    def measured(self) -> tuple[str, ...]:
        return NAMES if self.assay.labels else ()

    def columns(self, values: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(self.names, values.flatten(1).T if values.dim() > 1 else [values], strict=True)
        )

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        reasons = self.facts["plan"].reasons
        skipped = {"skipped": [reasons[k] for k in batch["skip"].tolist()]}
        return self.columns(outputs) | (skipped if len(reasons) > 1 else {})

    def finish(self, file: Path, rows, indices) -> list[Path]:
        console.print(f"{len(indices):,} variants, {self.outputs.computed:,} model inputs")
        return assays.write(file, rows, self.cfg, self.facts["plan"].source, self.assay, self.names)


if __name__ == "__main__":
    run(ZeroShotVariants, Config)
