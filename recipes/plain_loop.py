"""Sequence regression with the training loop written out: what `fit` does, without its services.

No checkpoints, no resume, one process, no accumulation, rows read in this process: start here to
try another loop. A test holds its weights equal to those of `fit` after every step, bit for bit.

    python recipes/plain_loop.py
    python recipes/plain_loop.py --backbone dna_onehot --adapter conv --train.lr 3e-3
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mgen.adapters import Adapter, adapter
from mgen.backbones import Backbone, backbone
from mgen.config import parse
from mgen.data import Table, table
from mgen.data.batches import plan
from mgen.data.checking.check import token_lengths
from mgen.data.targets.labels import statistics
from mgen.loop import Train, lr_factor


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sequence regression in a plain loop."""

    backbone: Backbone = backbone("aido_dna_debug")
    adapter: Adapter = adapter("mean_pool_mlp")
    data: Table = table("promoters_tiny")
    train: Train = Train(lr=2e-3, epochs=3)


def steps(cfg: Config) -> Iterator[tuple[nn.ModuleDict, float]]:
    """The model and the loss after each optimiser step."""
    data, train = cfg.data, cfg.train
    tokenizer, rows = cfg.backbone.tokenizer(), data.open()
    lengths = token_lengths(rows, data.x_col, tokenizer)[rows.splits["train"]]
    scale = statistics(rows, data.y_cols, rows.splits["train"])
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in scale)

    torch.manual_seed(train.seed)  # random weights
    network = cfg.backbone.build()
    head = cfg.adapter.build(network.width, len(data.y_cols), int(lengths.max()))
    model = nn.ModuleDict({"backbone": network, "head": head})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True
    )
    order = [
        rows.splits["train"][positions]
        for epoch in range(train.epochs)
        for positions in plan(lengths, train.batch_size, train.batch_tokens, (train.seed, epoch))
    ]
    torch.manual_seed(train.seed)  # dropout
    for step, numbers in enumerate(order):
        chosen = rows.take(numbers)
        batch = tokenizer.tokenize(data.inputs(chosen))
        labels = (data.labels(chosen) - mean) / std
        predicted = head(network(batch), batch["attention_mask"])
        loss = ((predicted - labels) ** 2).sum() / labels.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, train.clip)
        if train.clip_value:
            nn.utils.clip_grad_value_(trained, train.clip_value)
        optimiser.param_groups[0]["lr"] = train.lr * lr_factor(step, len(order), train)
        optimiser.step()
        optimiser.zero_grad()
        yield model, loss.item()


if __name__ == "__main__":
    cfg, _ = parse(Config(), None, sys.argv[1:], "plain_loop.py", __doc__)
    for step, (_, loss) in enumerate(steps(cfg), start=1):
        if step % cfg.train.log_every == 0:
            print(f"step {step}: loss {loss:.4f}")
