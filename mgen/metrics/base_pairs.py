"""Secondary structures of RNA: decoding of pair probabilities, and scores.

Positions count from 0 and a pair (i, j) has i < j. L bases, P pairs.
"""

import torch
from torch import Tensor

CANONICAL = ("AU", "CG", "GU")
SHARP = 4  # bases of a pair are at least so far apart


def decode(
    probabilities: Tensor,
    sequence: str,
    threshold: float = 0.5,
    any_bases: bool = False,
    sharp_loops: bool = False,
) -> Tensor:
    """Pairs (P, 2) of a structure from symmetric pair probabilities (L, L), each base in one.

    Of pairs above `threshold` the likeliest is taken, again and again, ties by first base. Left out
    are pairs other than A-U, C-G and G-U (T is U) unless `any_bases`, and of bases nearer than
    `SHARP` unless `sharp_loops`. As RNA models with pair maps are evaluated (Singh et al. 2019,
    Penic et al. 2024).
    """
    allowed = torch.ones_like(probabilities, dtype=torch.bool).triu(1 if sharp_loops else SHARP)
    if not any_bases:
        letters = sequence.upper().replace("T", "U")
        codes = torch.tensor(["ACGU".find(letter) for letter in letters])
        known = torch.zeros(5, 5, dtype=torch.bool)  # the last row: other letters, code -1
        for a, b in CANONICAL:
            known["ACGU".index(a), "ACGU".index(b)] = known["ACGU".index(b), "ACGU".index(a)] = True
        allowed &= known[codes[:, None], codes[None, :]].to(allowed.device)
    found = ((probabilities > threshold) & allowed).nonzero()  # row-major
    order = torch.sort(probabilities[found[:, 0], found[:, 1]], descending=True, stable=True)[1]
    used, kept = set(), []
    for i, j in found[order].tolist():
        if not {i, j} & used:
            used |= {i, j}
            kept.append((i, j))
    return torch.tensor(sorted(kept), dtype=torch.long).view(-1, 2)


def pair_scores(
    predicted: Tensor, true: Tensor, length: int, flexible: bool = True
) -> tuple[float, float, float]:
    """Precision, recall and F1 of pairs (P, 2) against true ones of a sequence of L bases.

    `flexible`: a base may be off by one, of the true pairs for precision and of the predicted ones
    for recall (Mathews 2019). 0 where there is nothing to divide by.
    """
    maps = []
    for pairs in (predicted, true):
        exact = torch.zeros(length, length, dtype=torch.bool)
        exact[pairs[:, 0], pairs[:, 1]] = True
        near = exact.clone()
        if flexible:
            near[1:] |= exact[:-1]
            near[:-1] |= exact[1:]
            near[:, 1:] |= exact[:, :-1]
            near[:, :-1] |= exact[:, 1:]
        maps.append((exact, near))
    (ours, ours_near), (theirs, theirs_near) = maps
    precision = (ours & theirs_near).sum().item() / max(int(ours.sum()), 1)
    recall = (theirs & ours_near).sum().item() / max(int(theirs.sum()), 1)
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both > 1e-5 else 0.0
