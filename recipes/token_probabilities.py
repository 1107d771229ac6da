"""What a masked language model expects at each token: probabilities of all letters.

In: sequences. Out: predictions/<table>.parquet (or .tsv, .safetensors) with a matrix per sequence,
the most probable letters and the log-likelihood; <table>.vocabulary.json names the columns.

    python recipes/token_probabilities.py                   # seconds, CPU, bundled data
    python recipes/token_probabilities.py --backbone esm2_8m --data sequences.fasta --mask-each
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mgen.backbones import Backbone, backbone
from mgen.checkpoint import write_json
from mgen.config import InputError
from mgen.data import Table, table
from mgen.data.targets.masking import check_masking, letter_mask, letters, masked_one_by_one
from mgen.methods.generate import text
from mgen.metrics.language import log_likelihoods
from mgen.task import Task
from mgen.train import Train, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Token probabilities."""

    backbone: Backbone = backbone("aido_dna_debug")
    data: Table = table("promoters_tiny")
    train: Train = Train()
    tokens: Literal["letters", "all"] = "letters"  # columns; probabilities are over all either way
    mask_each: bool = False  # mask each letter in turn, so that its probability does not see it
    log: bool = False  # natural logarithms of the probabilities
    special_tokens: bool = False  # rows of [CLS] and the like too


class TokenProbabilities(Task):
    trains = False

    def learn(self, rows, splits) -> None:
        if self.cfg.mask_each:
            check_masking(self.tokenizer)
        if self.cfg.mask_each and self.cfg.special_tokens:
            raise InputError("--special-tokens: --mask-each masks letters alone; drop one of both")

    def build(self) -> None:
        if self.backbone.is_causal:
            raise InputError(
                f"{self.cfg.backbone.name} predicts the next token from those before it, not the "
                "token in place; choose a masked language model"
            )
        self.backbone.decoder_parameters()  # refuses a backbone without a language-model head

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        return self.backbone.tokenize(self.cfg.data.inputs(rows))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # log-probabilities (B, L, V)
        if not self.cfg.mask_each:
            return self.backbone.decoder(self.backbone(batch)).log_softmax(-1)
        ids = batch["input_ids"]
        known = torch.zeros(*ids.shape, self.backbone.config.vocab_size, device=ids.device)
        tokens = self.cfg.train.batch_tokens
        for part, row, place in masked_one_by_one(batch, self.tokenizer, tokens):
            hidden = self.backbone(part)[torch.arange(len(row)), place]  # (M, D)
            known[row, place] = self.backbone.decoder(hidden[:, None])[:, 0].log_softmax(-1)
        return known

    def predictions(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict:
        ids, own = torch.tensor([*self.names.values()]), letter_mask(batch, self.tokenizer)
        total, count = log_likelihoods(outputs, batch["input_ids"], own)
        prefix = "pseudo_" if self.cfg.mask_each else ""
        columns = {
            "predicted": self.most_probable(outputs, own),
            f"{prefix}log_likelihood": total,
            f"{prefix}perplexity": (-total / count).exp(),
        }
        values = (outputs if self.cfg.log else outputs.exp())[..., ids]
        keep = self.pooled(batch).bool()
        cells = [row[kept].cpu() for row, kept in zip(values, keep, strict=True)]
        return columns | {"log_probabilities" if self.cfg.log else "probabilities": cells}

    def most_probable(self, outputs: Tensor, own: Tensor) -> list[str]:
        ids = torch.tensor([*letters(self.tokenizer).values()], device=outputs.device)
        best = ids[outputs[..., ids].argmax(-1)]
        return [text(*row, self.tokenizer) for row in zip(best.tolist(), own.tolist(), strict=True)]

    def finish(self, file: Path, rows, indices) -> list[Path]:
        vocabulary = file.with_suffix(".vocabulary.json")
        write_json(vocabulary, {"tokens": [*self.names], "ids": [*self.names.values()]})
        return [vocabulary]

    @property
    def names(self) -> dict[str, int]:
        """The tokens that have a column, and their ids."""
        if self.cfg.tokens == "letters":
            return letters(self.tokenizer)
        return {token: i for i, token in enumerate(self.tokenizer.tokens) if token}


if __name__ == "__main__":
    run(TokenProbabilities, Config)
