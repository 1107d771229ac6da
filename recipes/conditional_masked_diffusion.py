"""Generate sequences that have asked-for properties, such as an expression level.

In: sequences with columns of numbers to train on; then templates with the numbers to be reached.
Out: loss and accuracy of masked letters; generated sequences as a prediction file, FASTA and a
table with log-likelihoods and conditions.

    python recipes/conditional_masked_diffusion.py          # seconds, CPU, bundled data
    python recipes/conditional_masked_diffusion.py predict --data.path templates.tsv --sample \\
        --run runs/conditional_masked_diffusion/NAME --steps 25
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.data import Table, table
from mgen.data.targets.corruption import (
    Weighting,
    check_corruption,
    corrupted,
    diffusion_loss,
    hidden_tokens,
    shares_right,
)
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
from mgen.metrics.diffusion import diffusion_metrics, means_per_row
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config(Generation):
    """Conditional masked diffusion."""

    backbone: Backbone = backbone("dna_tiny")
    adapter: Adapter = adapter("conditional_lm", hidden_size=128, dropout=0.0)
    data: Table = table("gc_content_tiny")
    train: Train = Train(lr=3e-3, epochs=3)
    timesteps: int = 10  # corrupted copies of each row in a batch, each at a time of its own
    label_smoothing: float = 0.05  # share of the target spread over all tokens, as published
    weighting: Weighting = "bound"  # of copies: alike; published: by 1 / time; normalized: relative


class ConditionalMaskedDiffusion(Task):
    length = 0  # no adapter of tokens has weights per position

    def learn(self, rows, splits) -> None:
        check_corruption(self.cfg.timesteps, self.cfg.label_smoothing)
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
        return corrupted(batch, self.cfg.timesteps, self.tokenizer.mask_token_id)

    def forward(self, batch: dict[str, Tensor]) -> Tensor | dict[str, list]:
        if self.labelled:
            return self.logits(batch)
        cfg, letters = self.cfg, self.facts["letters"]
        return generate(self.logits, batch, self.tokenizer, letters, cfg, cfg.train)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:  # (N, L, V), N copies of rows
        return self.head(self.backbone(batch), batch["attention_mask"], batch["conditions"])

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        cfg, hidden, weights = self.cfg, self.hidden(batch), batch["posterior_weights"]
        smoothing, weighting = cfg.label_smoothing, cfg.weighting
        return diffusion_loss(outputs, batch["targets"], hidden, weights, smoothing, weighting)

    def metrics(self) -> dict:
        return diffusion_metrics()

    def scores(self, outputs: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return *shares_right(outputs, batch["targets"], self.hidden(batch)), batch["place"]

    def predictions(self, outputs: Tensor | dict, batch: dict[str, Tensor]) -> dict:
        if not self.labelled:
            return outputs
        *scores, place = self.scores(outputs, batch)
        loss = means_per_row(*self.loss(outputs, batch), place)
        return {"loss": loss, "accuracy": means_per_row(*scores, place)}

    def finish(self, file: Path, rows, indices) -> list[Path]:
        asked = self.cfg.data.y_cols
        return [] if self.labelled else write_sequences(file, rows, indices, asked)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        return hidden_tokens(batch["input_ids"], batch["targets"], self.tokenizer.mask_token_id)


if __name__ == "__main__":
    run(ConditionalMaskedDiffusion, Config)
