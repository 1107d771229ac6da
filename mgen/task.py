"""Task: what a recipe fills in. The loop in `train.py` does the rest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mgen.adapters.conditional import ConditionalLM
from mgen.adapters.pooling import POOLS
from mgen.adapters.published import LMHead
from mgen.config import InputError, flags_of
from mgen.data.inputs.views import check_views, drawn, fixed
from mgen.data.sampling import sampling_weights
from mgen.io.weights import load_state
from mgen.predictions import BLOCK_TOKENS

TURNED = "turned_"  # keys of a batch that hold the other strand


class Task(nn.Module):
    """A backbone, a head and what is measured, for one config.

    Filled in by a recipe: `build`, `collate`, `forward`, `loss`, `metrics` and, where they mean
    something, `learn`, `values`, `columns`, `predictions`, `scores`, `references`, `figures`,
    `finish`. Attributes: `cfg`; `tokenizer`, which needs no weights; `facts`, what was learned from
    the training rows (class names, label scale) and is kept with a run; `labelled`, False where
    rows are predicted and no labels read; after `setup` also `backbone`.
    """

    trains = True  # False: the recipe only predicts
    block_tokens = BLOCK_TOKENS  # of a block of a prediction file; fewer if a token has much output
    views: tuple[
        str, ...
    ] = ()  # of `mgen.data.inputs.views` that it can "augment" with and "average" over
    per_position = False  # True, set by `learn`: rows must be of one length
    shorter = False  # True, set by `learn`: or shorter than the longest training row
    # What `forward` gives, if calibration, ensembles and intervals shall work: "numbers", or logits
    # of "classes" (one holds) or "labels" (each may hold) along the last axis.
    kind: Literal["", "numbers", "classes", "labels"] = ""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg
        chosen = {n: choice for n, choice in vars(cfg).items() if n.startswith("backbone")}
        self.tokenizers = {}
        for name, choice in chosen.items():
            if name == "backbone" or choice.name != "none":
                with flags_of(name):
                    self.tokenizers[name] = choice.tokenizer()
        self.tokenizer = self.tokenizers["backbone"]
        self.facts: dict[str, Any] = {}
        self.labelled = True
        self.lengths = np.zeros(0, dtype=np.int32)
        self.weights: np.ndarray | None = None  # of training rows, where they are not drawn alike

    def setup(self) -> None:
        """Load or make the weights of each backbone, then the head's."""
        for name in self.tokenizers:
            with flags_of(name):
                setattr(self, name, getattr(self.cfg, name).build())
        self.build()
        if self.backbone.cache and (name := self.pooling()):
            counted = "special tokens too" if self.cfg.special_tokens else "no special tokens"
            pool = POOLS[name]
            self.backbone.cache.pool_by(
                lambda hidden, batch: pool(hidden, self._counted(batch)), f"{name}, {counted}"
            )

    @property
    def backbones(self) -> dict[str, nn.Module]:
        """The backbones by their fields in the settings, `backbone` first."""
        return {name: getattr(self, name) for name in self.tokenizers}

    @property
    def has_start(self) -> bool:
        """Whether `initialise` does anything."""
        return type(self).initialise is not Task.initialise

    def train(self, mode: bool = True) -> Task:
        """Training mode, except for a backbone of which nothing trains: no dropout there."""
        super().train(mode)
        for backbone in self.backbones.values():
            if not any(parameter.requires_grad for parameter in backbone.encoder.parameters()):
                backbone.eval()
        return self

    def averaged(self, batch: dict[str, Tensor]) -> Tensor:
        """What `forward` gives outside training; the mean of both strands if the batch has both."""
        turned = {k.removeprefix(TURNED): v for k, v in batch.items() if k.startswith(TURNED)}
        return (self(batch) + self(turned)) / 2 if turned else self(batch)

    def collator(self, training: bool = False):
        """`collate` bound to what it may use in a worker process: no weights travel there.

        For `training` it draws a view of each row.
        """
        light = SimpleNamespace(
            cfg=self.cfg,
            backbone=self.tokenizer,
            tokenizer=self.tokenizer,
            tokenizers=self.tokenizers,
            facts=self.facts,
            labelled=self.labelled,
        )
        return _Collate(type(self), light, training)

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        """The tokens (B, L) that pooling counts: all but padding, special ones on request.

        (B, 1) where a cache has pooled them already.
        """
        if self.backbone.cache and self.backbone.cache.pool:
            return torch.ones_like(batch["attention_mask"][:, :1])
        return self._counted(batch)

    def _counted(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        return mask if self.cfg.special_tokens else mask * (1 - batch["special_tokens_mask"])

    def check_use(self, rows, splits: tuple[str, ...]) -> list[str]:
        """Check which view of a row is seen, and how often training draws it; sets `weights`.

        Also whether outputs of the backbones may be kept. Returns what should be said aloud. Raises
        InputError.
        """
        training = "train" in splits
        for name in self.tokenizers:
            choice, adapter = getattr(self.cfg, name), vars(self.cfg).get("adapter")
            with flags_of(name):
                choice.check_cache(training)
            if choice.cache and adapter and vars(adapter).get("as_published"):
                raise InputError(
                    f"--adapter.as_published reads what the backbone leaves at padding, which "
                    f"--{name}.cache does not keep; drop one of them"
                )
        self.weights = sampling_weights(rows) if training else None
        notes = check_views(rows, self.tokenizer, self.views, training)
        if self.weights is not None:
            by = rows.table.weight_col or rows.table.balance_col
            notes.append(
                f"an epoch draws {len(self.weights):,} training rows with replacement by column "
                f"'{by}', {1 / (self.weights**2).sum():,.0f} of them effectively"
            )
        return notes

    def check(self, rows, splits: tuple[str, ...], labelled: bool = True) -> list[str]:
        """Look at every row of `splits` before weights load; returns what should be said aloud.

        Without `labelled` (prediction) labels are not looked at. Sets `lengths`, the tokens of each
        row of the table. Raises InputError.
        """
        from mgen.data.checking import check

        self.labelled = labelled
        held = np.concatenate([rows.splits[split] for split in splits])
        notes, self.lengths = check.inputs(rows, self.tokenizer, splits)
        notes += self.learn(rows, splits if labelled else ()) or []
        if "train" in splits:
            self.facts["tokens"] = int(self.lengths[rows.splits["train"]].max())
        if self.per_position and self.tokenizer.has_context:
            raise InputError(
                "one weight per position is not for models that read alignments, whose rows have "
                "no fixed number of tokens. Set a pooling --adapter such as mean_pool_mlp"
            )
        if self.per_position:
            check.one_length(rows, self.lengths, held, self.facts["tokens"], self.shorter)
        return notes

    def make_head(self, outputs: int, conditions: int = 0) -> nn.Module:
        """The adapter of the settings for this backbone.

        `conditions`: numbers per row that the task gives to the head. Raises InputError if it shall
        have the checkpoint's weights and those do not fit.
        """
        choice, backbone = self.cfg.adapter, self.backbone
        head = choice.build(backbone.width, outputs, self.length, conditions)
        if isinstance(head, LMHead) or (isinstance(head, ConditionalLM) and choice.pretrained):
            head.borrow(backbone.decoder)
            for parameter in backbone.decoder_parameters():
                parameter.requires_grad_(True)
        elif choice.pretrained and torch.get_default_device().type != "meta":
            if not backbone.head_tensors:
                raise InputError(
                    f"--adapter.pretrained: {self.cfg.backbone.name} has no `classifier.` weights; "
                    "drop it, or use --adapter lm_head for the language-model head"
                )
            load_state(head, backbone.head_tensors, f"{self.cfg.backbone.name}, classifier")
        return head

    @property
    def length(self) -> int:
        """Tokens of the longest training row that `pooled` counts."""
        return self.facts["tokens"] - self.tokenizer.num_special * (not self.cfg.special_tokens)

    # ------------------------------------------------------------- filled in by a recipe

    def learn(self, rows, splits: tuple[str, ...]) -> list[str] | None:
        """Check the settings and the labels of `splits`; with "train" among them set `facts`.

        Returns what should be said aloud. Raises InputError.
        """

    def build(self) -> None:
        """Make the head. `self.backbone` and `self.facts` are ready."""

    def collate(self, rows: list[dict]) -> dict[str, Tensor]:
        """Rows of the table to tensors; `self` has `cfg`, `facts`, `tokenizer`, `labelled` and
        `backbone.tokenize` only."""
        raise NotImplementedError

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def pooling(self) -> str:
        """How `forward` pools the tokens that `pooled` counts: a name of `POOLS`.

        "" if it does anything else with what the backbone gives: that is kept whole then.
        """
        return ""

    def initialise(self, batches) -> None:
        """Data-dependent start before step 1; `batches()` iterates over the training batches."""

    def loss(self, outputs: Tensor, batch: dict) -> Tensor | tuple[Tensor, Tensor]:
        """Unreduced losses, one entry per thing that counts, or (losses, weights)."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """Names to torchmetrics objects."""
        return {}

    def measured(self) -> tuple[str, ...]:
        """Metrics of a recipe that only predicts, found in `finish`; of all more is better."""
        return ()

    def values(self, outputs: Tensor, batch: dict) -> Tensor:
        """Outputs in the user's units (unscaled numbers, probabilities), the row first."""
        return outputs

    def scores(self, outputs: Tensor, batch: dict) -> tuple[Tensor, ...]:
        """What the metrics compare: predictions and labels, one entry of each per row.

        Where rows have other numbers of entries (tokens, pairs), a third tensor says for each entry
        which place of the batch its row has.
        """
        return self.values(outputs, batch), batch["labels"]

    def columns(self, values: Tensor) -> dict[str, Any]:
        """`values` as columns of the prediction file."""
        return {}

    def predictions(self, outputs: Tensor, batch: dict) -> dict[str, Any]:
        """Columns of the prediction file: lists, or tensors whose first axis is the row."""
        return self.columns(self.values(outputs, batch))

    def finish(self, file: Path, rows, indices: np.ndarray) -> list[Path]:
        """Make further files from the finished prediction file of the rows `indices`."""
        return []

    def references(self, rows, indices: np.ndarray) -> dict[str, tuple[Tensor, Tensor]]:
        """Names to (predictions, labels) of yardsticks to print next to the test metrics."""
        return {}

    def figures(self, folder: Path, predictions: Tensor, labels: Tensor) -> list[Path]:
        """Draw the test scores into `folder`."""
        return []


class _Collate:
    """A picklable `Task.collate` of views of rows, without the task's weights."""

    def __init__(self, task: type[Task], light: SimpleNamespace, training: bool) -> None:
        self.task, self.light, self.training = task, light, training

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        table = self.light.cfg.data
        if self.training:
            return self.task.collate(self.light, drawn(rows, table))
        rows, turned = fixed(rows, table)
        batch = self.task.collate(self.light, rows)
        if turned:
            other = self.task.collate(self.light, turned)
            batch |= {TURNED + key: value for key, value in other.items()}
        return batch
