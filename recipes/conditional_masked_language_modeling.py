"""Train a masked language model that knows properties of the whole sequence; generate with them.

In: sequences with columns of numbers to train on; then templates with the numbers to be reached.
Out: loss, accuracy and perplexity of masked letters; generated sequences as a prediction file,
FASTA and a table with log-likelihoods and conditions.

    python recipes/conditional_masked_language_modeling.py  # seconds, CPU, bundled data
    python recipes/conditional_masked_language_modeling.py predict --data.path templates.tsv \\
        --run runs/conditional_masked_language_modeling/NAME --steps 25 --sample
"""

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.targets.masking import Masking, check_masking, masked
from mgen.methods.generate import (
    Generation,
    check_fills_masks,
    check_generation,
    condition_facts,
    conditions,
    generate,
    letters_of,
    write_sequences,
)
from mgen.metrics.language import language_metrics, token_sums
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config(Generation):
    """Conditional masked language modelling."""

    backbone: Backbone = backbone("dna_tiny")
    adapter: Adapter = adapter("conditional_lm", hidden_size=128, dropout=0.0)
    data: Table = table("gc_content_tiny")
    train: Train = Train(lr=3e-3, epochs=4)
    masking_rate: float = 0.15  # share of a row's letters that are selected, at least one of them
    masking: Masking = (
        "mask"  # selected ones are masked; bert: 80 %, 10 % another letter, 10 % kept
    )


class ConditionalMaskedLanguageModeling(Task):
    length = 0  # no adapter of tokens has weights per position

    def learn(self, rows, splits) -> None:
        check_masking(self.tokenizer, self.cfg.masking_rate)
        check_generation(rows, self.tokenizer, splits)
        self.facts |= condition_facts(rows, splits, self.cfg.adapter, self.facts)
        if "train" in splits:
            self.facts["letters"] = letters_of(rows, self.tokenizer)

    def build(self) -> None:
        check_fills_masks(self.backbone)
        size, conditions = self.backbone.config.vocab_size, len(self.cfg.data.y_cols)
        self.head = self.make_head(size, conditions)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        batch["conditions"] = conditions(self.cfg.data, rows, self.facts)  # (B, C), scaled
        if not self.labelled:  # rows to predict are templates
            return batch
        return masked(batch, self.tokenizer, self.cfg.masking_rate, self.cfg.masking)

    def forward(self, batch: dict[str, Tensor]) -> Tensor | dict[str, list]:
        if self.labelled:
            return self.logits(batch)
        cfg, letters = self.cfg, self.facts["letters"]
        return generate(self.logits, batch, self.tokenizer, letters, cfg, cfg.train)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:  # (B, L, V)
        return self.head(self.backbone(batch), batch["attention_mask"], batch["conditions"])

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        chosen = batch["selected"]
        return F.cross_entropy(outputs[chosen].float(), batch["targets"][chosen], reduction="none")

    def metrics(self) -> dict:
        return language_metrics()

    def scores(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        sums = token_sums(outputs, batch["targets"], batch["selected"])  # (B, 3)
        return sums, sums[:, 2]

    def predictions(self, outputs: Tensor | dict, batch: dict[str, Tensor]) -> dict:
        if not self.labelled:
            return outputs
        loss, right, count = self.scores(outputs, batch)[0].T
        return {"loss": loss / count, "accuracy": right / count}

    def finish(self, file: Path, rows, indices) -> list[Path]:
        asked = self.cfg.data.y_cols
        return [] if self.labelled else write_sequences(file, rows, indices, asked)


if __name__ == "__main__":
    run(ConditionalMaskedLanguageModeling, Config)
