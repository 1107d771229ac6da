"""The effect of every single substitution in a sequence, by a finetuned run or a language model.

In: sequences. With --model: what a run of sequence_regression or sequence_classification predicts
for the mutant minus what it predicts for the sequence. Without: log p(mutant) - log p(own letter)
by the backbone's language-model head. Out: effects as a file of one row per sequence and a table
of one line per mutation; of each sequence a heat map under a logo, as PNG and SVG.

    python recipes/saturation_mutagenesis.py                # seconds, CPU, bundled data
    python recipes/saturation_mutagenesis.py --model runs/sequence_regression/NAME --data new.fasta
"""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgen.apply import blank_task
from mgen.backbones import Backbone, backbone
from mgen.config import InputError
from mgen.data import Table, table
from mgen.figures.maps import effect_figure, figure_stem
from mgen.methods.mutagenesis import (
    check_model,
    effects,
    letter_ids,
    letters_of,
    marginals,
    mutation_table,
    outputs_of,
    sites,
    work,
)
from mgen.predictions import read
from mgen.report import warn
from mgen.task import Task
from mgen.train import Train, load_task, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Saturation mutagenesis."""

    model: str = ""  # directory of a run with one prediction per sequence; none: --backbone
    backbone: Backbone = backbone("aido_dna_debug")
    data: Table = table("paired_sites_tiny")
    train: Train = Train(batch_size=128, batch_tokens=2**17)
    strategy: Literal["wt-marginals", "wt-fill"] = "wt-fill"  # of --backbone: sites masked, or not
    outputs: tuple[str, ...] = ()  # label columns or classes of --model; default: all
    log_odds: bool = False  # effects on the log-odds of classes instead of their probability
    letters: str = ""  # that substitute each other; default: ACGT, ACGU or the 20 residues
    max_figures: int = 8  # rows of which figures are drawn, the first ones; 0: none


class SaturationMutagenesis(Task):
    trains = False

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.model = blank_task(cfg.model, "--model") if cfg.model else None
        if self.model:
            if cfg.backbone != Config().backbone:
                raise InputError("--model has a backbone of its own; drop --backbone")
            self.tokenizer, self.facts = self.model.tokenizer, self.model.facts

    def learn(self, rows, splits) -> None:
        cfg, tokenizer, lengths = self.cfg, self.tokenizer, self.lengths
        self.letters = letters_of(tokenizer, cfg.letters)
        if self.model:
            self.model.learn(rows, ())
            self.per_position = self.model.per_position
            self.names = outputs_of(self.model, cfg.outputs, cfg.log_odds)
            self.lengths = work(lengths, len(self.letters), tokenizer.num_special)
        elif cfg.outputs or cfg.log_odds:
            raise InputError("--outputs and --log-odds are of runs: set --model")
        else:
            self.names = {"log_odds": 0}
            self.lengths = lengths.astype(int) * (lengths if cfg.strategy == "wt-fill" else 1)
            if cfg.strategy == "wt-fill" and tokenizer.mask_token_id is None:
                raise InputError("this backbone has no mask token; set --strategy wt-marginals")

    def setup(self) -> None:
        if not self.model:
            return super().setup()
        if torch.get_default_device().type == "meta":  # sizes alone
            bare = replace(self.model.cfg.backbone, random_weights=True)
            self.model.cfg = replace(self.model.cfg, backbone=bare)
            self.model.setup()
        else:
            self.model = load_task(type(self.model), type(self.model.cfg), self.cfg.model)
        self.backbone = self.model.backbone

    def build(self) -> None:
        check_model(self.backbone)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.tokenizer.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        letters = letter_ids(self.tokenizer, self.letters).to(batch["input_ids"].device)
        asked = (batch, letters, self.cfg.train.batch_size, self.cfg.train.batch_tokens)
        if self.model:
            return effects(self.predicted, *asked)
        mask = self.tokenizer.mask_token_id if self.cfg.strategy == "wt-fill" else None

        def logits(part: dict[str, Tensor]) -> Tensor:  # (b, l, V)
            return self.backbone.decoder(self.backbone(part))[:, :, letters]

        return [found[:, :, None] for found in marginals(logits, *asked, mask)], None

    def predicted(self, part: dict[str, Tensor]) -> Tensor:  # (b, O) in the labels' units
        values = self.model.values(self.model(part), part)[:, [*self.names.values()]]
        return torch.logit(values.double(), 1e-9) if self.cfg.log_odds else values

    def predictions(self, outputs: tuple, batch: dict[str, Tensor]) -> dict:
        found, predicted = outputs
        here = sites(batch, letter_ids(self.tokenizer, self.letters))
        columns = {
            "letters": ["".join(self.letters[k] for k in site.letters) for site in here],
            "position": [site.positions for site in here],
        }
        for k, name in enumerate(self.names):
            if predicted is not None:
                columns[f"predicted_{name}"] = predicted[:, k]
            columns[f"effect_{name}"] = [row[:, :, k].clone() for row in found]
        return columns

    def finish(self, file: Path, rows, indices) -> list[Path]:
        kind = ".tsv" if file.suffix == ".tsv" else ".parquet"
        lines = file.with_name(f"{file.stem}.mutations{kind}")
        mutation_table(lines, read(file), self.letters, rows.name_of)
        folder = file.parent.parent / "figures" / file.stem
        most = max(self.cfg.max_figures, 0)
        if len(indices) > most:
            warn(f"figures of the first {most} of {len(indices):,} rows alone (--max-figures)")
        filled = (row for row in read(file) if len(row["position"]))
        for row in islice(filled, most):
            number, wild = int(row["row"]), [self.letters.index(a) for a in row["letters"]]
            title = rows.name_of(number)
            for name in self.names:
                stem = figure_stem(folder, number, title, name if self.model else "")
                values = np.array(row[f"effect_{name}"]).reshape(-1, len(self.letters))
                shown = (values, np.array(wild), self.letters, row["position"], title)
                effect_figure(stem, *shown, f"effect on {name}" if self.model else "log odds")
        return [lines, folder] if folder.exists() else [lines]


if __name__ == "__main__":
    run(SaturationMutagenesis, Config)
