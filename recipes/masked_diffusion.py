"""Generate sequences by masked diffusion, from nothing or around letters that are kept.

In: sequences to train on; then templates such as AC[MASK][MASK]GT. Out: loss and accuracy of masked
letters; generated sequences as a prediction file, FASTA and a table with log-likelihoods.

    python recipes/masked_diffusion.py                      # seconds, CPU, bundled data
    python recipes/masked_diffusion.py predict --run runs/masked_diffusion/NAME \\
        --data.path templates.txt --steps 25 --sample --samples 10
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
    generate,
    letters_of,
    write_sequences,
)
from mgen.metrics.diffusion import diffusion_metrics, means_per_row
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config(Generation):
    """Masked diffusion."""

    backbone: Backbone = backbone("dna_tiny")
    adapter: Adapter = adapter("lm_head")
    data: Table = table("paired_sites_tiny")
    train: Train = Train(lr=5e-3, epochs=10)
    timesteps: int = 10  # corrupted copies of each row in a batch, each at a time of its own
    label_smoothing: float = 0.05  # share of the target spread over all tokens, as published
    weighting: Weighting = "bound"  # of copies: alike; published: by 1 / time; normalized: relative


class MaskedDiffusion(Task):
    views = ("augment",)
    length = 0  # no adapter of tokens has weights per position

    def learn(self, rows, splits) -> None:
        self.cfg.adapter.check_gives("per token")
        check_corruption(self.cfg.timesteps, self.cfg.label_smoothing)
        check_generation(rows, self.tokenizer, splits)
        if "train" in splits:
            self.facts["letters"] = letters_of(rows, self.tokenizer)

    def build(self) -> None:
        check_fills_masks(self.backbone)
        self.head = self.make_head(self.backbone.config.vocab_size)

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = self.backbone.tokenize(self.cfg.data.inputs(rows))
        if not self.labelled:  # rows to predict are templates
            return batch
        return corrupted(batch, self.cfg.timesteps, self.tokenizer.mask_token_id)

    def forward(self, batch: dict[str, Tensor]) -> Tensor | dict[str, list]:
        if self.labelled:
            return self.logits(batch)
        cfg, letters = self.cfg, self.facts["letters"]
        return generate(self.logits, batch, self.tokenizer, letters, cfg, cfg.train)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:  # (N, L, V), N copies of rows
        return self.head(self.backbone(batch), batch["attention_mask"])

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
        return [] if self.labelled else write_sequences(file, rows, indices)

    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        return hidden_tokens(batch["input_ids"], batch["targets"], self.tokenizer.mask_token_id)


if __name__ == "__main__":
    run(MaskedDiffusion, Config)
