"""Absorbing-state (masking) diffusion: tokens are masked at a random rate and are to be restored.

A row is corrupted at S times t between 0 and 1: at time t a share t of its letters is masked
(linear schedule), and the loss of that copy is weighed by 1 / t (Austin et al. 2021,
arXiv:2107.03006; Sahoo et al. 2024, arXiv:2406.07524). Random numbers come from torch's global
state, which the loader seeds for each batch. B rows, N = S * B copies in the order of times, L
tokens, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen.config import InputError

Weighting = Literal["bound", "published", "normalized"]

FIRST_TIME = 1e-3  # or the weight 1 / t has no bound


def check_corruption(timesteps: int, label_smoothing: float) -> None:
    """Raise InputError for settings that make no sense."""
    if timesteps < 1:
        raise InputError(f"--timesteps {timesteps}: expected 1 or more")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"--label-smoothing {label_smoothing}: expected a share below 1")


def low_discrepancy_times(draws: Tensor) -> Tensor:
    """Times (S, B) from uniform draws (S, B) in [0, 1): one in each S-th of the unit interval."""
    edges = torch.arange(len(draws) + 1, dtype=draws.dtype) / len(draws)
    edges[0] = FIRST_TIME
    lowest, highest = edges[:-1, None], edges[1:, None]
    return lowest + (highest - lowest) * draws


def mask_share(
    ids: Tensor, maskable: Tensor, shares: Tensor, noise: Tensor, mask_id: int
) -> Tensor:
    """`ids` (N, L) with max(1, floor(share * n)) of the n `maskable` tokens (N, L) of a row masked.

    `shares` (N,); `noise` (N, L) decides which: those where it is lowest.
    """
    counts = (maskable.sum(1) * shares).floor().clamp(min=1)
    places = noise.masked_fill(~maskable, torch.inf).argsort(dim=1).argsort(dim=1)
    return ids.masked_fill(maskable & (places < counts[:, None]), mask_id)


def corrupted(batch: dict[str, Tensor], timesteps: int, mask_id: int) -> dict[str, Tensor]:
    """A batch of B rows as S * B copies: every tensor repeated, `input_ids` masked.

    Adds `targets` (N, L), the ids before, `posterior_weights` (N,) and `place` (N,), the place in
    the batch of each copy's row. Added special tokens and padding are never masked.
    """
    rows = len(batch["input_ids"])
    times = low_discrepancy_times(torch.rand(timesteps, rows, dtype=torch.float64)).flatten()
    copies = {
        name: tensor.repeat(timesteps, *[1] * (tensor.ndim - 1)) for name, tensor in batch.items()
    }
    targets = copies["input_ids"]
    maskable = (copies["special_tokens_mask"] == 0) & (targets != mask_id)
    noise = torch.rand(targets.shape, dtype=torch.float64)  # in single precision ties are common
    return copies | {
        "input_ids": mask_share(targets, maskable, times, noise, mask_id),
        "targets": targets,
        "posterior_weights": (1 / times).float(),
        "place": torch.arange(rows).repeat(timesteps),
    }


def hidden_tokens(input_ids: Tensor, targets: Tensor, mask_id: int) -> Tensor:
    """The tokens (N, L) to be restored: masked, and not in the row as it is given."""
    return (input_ids == mask_id) & (targets != mask_id)


def diffusion_loss(
    logits: Tensor,
    targets: Tensor,
    hidden: Tensor,
    weights: Tensor,
    label_smoothing: float = 0.05,
    weighting: Weighting = "bound",
) -> tuple[Tensor, Tensor]:
    """Losses and weights (N,) of copies, from logits (N, L, V) and `hidden` tokens (N, L).

    A copy's loss is the mean cross-entropy of its hidden tokens; copies without any do not count.
    "bound": that mean divides by the time already, so this is, label smoothing aside, the bound on
    the negative log-likelihood per letter of the papers above. "published": times the posterior
    weight, which divides by the time once more, so that copies with few masks outweigh all others.
    "normalized": posterior weights are relative, so that the loss is the mean weighted by them.
    (The published option of that name divides by the number of copies once more: a constant, but
    one that depends on how rows were batched.)
    """
    losses = F.cross_entropy(
        logits.float().transpose(1, 2), targets, reduction="none", label_smoothing=label_smoothing
    )
    count = hidden.sum(1)
    means = (losses * hidden).sum(1) / count.clamp(min=1)
    counts = (count > 0).float()
    if weighting == "normalized":
        return means, weights * counts
    return (means * weights if weighting == "published" else means), counts


def shares_right(logits: Tensor, targets: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each copy's hidden tokens whose logit is the largest (N,); 1 if it has any (N,)."""
    count = hidden.sum(1)
    right = ((logits.argmax(-1) == targets) & hidden).sum(1)
    return right / count.clamp(min=1), (count > 0).float()
