"""A layer of experts: tokens through the experts they are routed to, against all through all."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mgen.models.fm4bio import FM4BioConfig, MixtureOfExperts

TOKENS, REPEATS = 2048, 5
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}
EXPERTS = {"moe": True, "num_experts": 8, "experts_per_token": 2}


def moe() -> dict[str, float]:
    """Seconds of a forward pass of one layer (8 experts, 2 per token), the two ways in turn."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(FM4BioConfig(**SIZES, **EXPERTS))
    h, mask = torch.randn(1, TOKENS, SIZES["hidden_size"]), torch.ones(1, TOKENS)
    with torch.inference_mode():
        difference = (layer(h, mask) - dense(layer, h)).abs().max().item()
        rounds = [
            (seconds(lambda: layer(h, mask)), seconds(lambda: dense(layer, h)))
            for _ in range(REPEATS + 1)
        ][1:]
    return {
        "tokens": TOKENS,
        "sparse_s": round(median(sparse for sparse, _ in rounds), 4),
        "dense_s": round(median(whole for _, whole in rounds), 4),
        "sparse_over_dense": round(median(sparse / whole for sparse, whole in rounds), 3),
        "largest_difference": difference,
    }


def dense(layer: MixtureOfExperts, h: Tensor) -> Tensor:
    """Every token through every expert; all but the best get weight 0."""
    best, chosen = layer.scores(h).topk(layer.per_token)
    weights = h.new_zeros(*h.shape[:2], layer.num_experts).scatter(-1, chosen, best.softmax(-1))
    outputs = [layer.expert(e, h) * weights[..., e : e + 1] for e in range(layer.num_experts)]
    return torch.stack(outputs).sum(0)


def seconds(compute: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin
