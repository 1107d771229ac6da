"""Which positions of a sequence depend on which others, by a masked language model: a map of each.

In: sequences. Every letter is substituted by every other one; entry i, j of the map is the largest
change that this makes at i in the model's log2 odds of any letter at j (da Silva et al. 2024).
Out: a file of maps, and of each a heat map under a sequence logo, as PNG and SVG.

    python recipes/dependency_map.py                        # seconds, CPU, bundled data
    python recipes/dependency_map.py --backbone runs/masked_language_modeling/NAME --data rna.fasta
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.figures.maps import dependency_figure, figure_stem
from mgen.methods.mutagenesis import (
    Dependencies,
    check_model,
    dependencies,
    information,
    letter_ids,
    letters_of,
    work,
)
from mgen.predictions import read
from mgen.report import warn
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Dependency maps."""

    backbone: Backbone = backbone("aido_dna_debug")
    data: Table = table("paired_sites_tiny")
    train: Train = Train(batch_size=128, batch_tokens=2**17)
    letters: str = ""  # that substitute each other; default: ACGT, ACGU or the 20 residues
    max_figures: int = 8  # rows of which figures are drawn, the first ones; 0: none


class DependencyMap(Task):
    trains = False

    def learn(self, rows, splits) -> None:
        self.letters = letters_of(self.tokenizer, self.cfg.letters)
        self.lengths = work(self.lengths, len(self.letters), self.tokenizer.num_special)

    def build(self) -> None:
        check_model(self.backbone)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.backbone.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> list[Dependencies]:
        train, letters = self.cfg.train, letter_ids(self.tokenizer, self.letters)
        letters = letters.to(batch["input_ids"].device)

        def logits(part: dict[str, Tensor]) -> Tensor:  # (b, l, V)
            return self.backbone.decoder(self.backbone(part))[:, :, letters]

        return dependencies(logits, batch, letters, train.batch_size, train.batch_tokens)

    def predictions(self, outputs: list[Dependencies], batch: dict[str, Tensor]) -> dict:
        return {
            "letters": ["".join(self.letters[k] for k in found.sites.letters) for found in outputs],
            "position": [found.sites.positions for found in outputs],
            "dependency": [found.matrix.float().flatten() for found in outputs],  # rows in turn
            "probability": [found.probability.float() for found in outputs],
            "logo": [information(found.probability).float() for found in outputs],
        }

    def finish(self, file: Path, rows, indices) -> list[Path]:
        folder = file.parent.parent / "figures" / file.stem
        most = max(self.cfg.max_figures, 0)
        if len(indices) > most:
            warn(f"figures of the first {most} of {len(indices):,} rows alone (--max-figures)")
        filled = (row for row in read(file) if len(row["position"]))
        for row in islice(filled, most):
            number, count = int(row["row"]), len(row["position"])
            name = rows.name_of(number)
            matrix = np.reshape(row["dependency"], (count, count))
            shown = (matrix, np.array(row["logo"]), self.letters, row["letters"], row["position"])
            dependency_figure(figure_stem(folder, number, name), *shown, name)
        return [folder] if folder.exists() else []


if __name__ == "__main__":
    run(DependencyMap, Config)
