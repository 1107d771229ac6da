"""What validation rows say about a trained model's numbers: calibration, thresholds, intervals.

`measure` is told what a recipe predicts (`Task.kind`) and returns a `Calibration`, which is kept
with the run as calibration.json. N entries (rows or tokens), C classes, K labels or outputs.
"""

import itertools
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mgen import checkpoint
from mgen.config import InputError

FILE = "calibration.json"
KINDS = ("numbers", "classes", "labels")
BINS = 15  # of equal width, as Guo et al. have them
COLDEST, HOTTEST = 0.05, 20.0  # temperatures looked at
MOST_RESIDUALS = 2000  # kept per output; of more rows, evenly spaced ranks


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured on the validation rows of one checkpoint (or one ensemble).

    Thresholds hold for probabilities after `temperature`; `before` and `after` it are the negative
    log-likelihood (nll) and the expected calibration error (ece) of the same rows. `residuals` are
    the absolute errors of each output at `ranks` (from 1) of their sorted order.
    """

    kind: str
    step: int | None = None  # of the checkpoint; None: an ensemble, or an exported run
    rows: int = 0  # entries measured
    split: str = ""  # which rows these were
    temperature: float = 1.0
    thresholds: dict[str, list[float]] = field(default_factory=dict)  # by metric, (K,) each
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    residuals: list[list[float]] = field(default_factory=list)  # K lists

    def write(self, file: Path) -> None:
        checkpoint.write_json(file, asdict(self))

    def summary(self, metric: str = "mcc") -> str:
        """One line to print, with the best thresholds of `metric`."""
        text = f"{self.rows:,} {self.split} entries: "
        if self.kind != "numbers":
            ece = [f"{part['ece']:.3f}" for part in (self.before, self.after)]
            chosen = ", ".join(f"{value:.3f}" for value in self.thresholds.get(metric, ()))
            best = f", best {metric} above {chosen}" if chosen else ""
            return f"{text}temperature {self.temperature:.3f}, ECE {ece[0]} -> {ece[1]}{best}"
        if self.rows < 9:
            return f"{text}too few for intervals of 0.9"
        halves = ", ".join(f"{half:.4g}" for half in self.half_widths(0.9))
        return f"{text}0.9 of the predictions are off by at most {halves}"

    def tempered(self, outputs: Tensor) -> Tensor:
        """Logits with the calibrated confidence."""
        return outputs / self.temperature

    def decided(self, outputs: Tensor, metric: str) -> Tensor:
        """Calibrated logits moved so that the best threshold of `metric` lies at 0.5.

        Of more than two classes the largest decides, so nothing moves.
        """
        tempered, chosen = self.tempered(outputs), self.thresholds.get(metric)
        if not chosen:
            return tempered
        offset = torch.logit(torch.tensor(chosen, dtype=torch.float64)).to(tempered)  # (K,)
        if self.kind == "labels":
            return tempered - offset
        return tempered - torch.cat([torch.zeros_like(offset), offset])  # class 0, class 1

    def half_widths(self, level: float) -> list[float]:
        """Half the width of each output's interval that holds `level` of new rows.

        Split-conformal: the ceil((n + 1) level)-th smallest of n absolute residuals (Vovk et al.
        2005; Lei et al. 2018, algorithm 2), or the next larger one that was kept. Raises InputError
        for a level outside 0 to 1 and where n is too small for any finite interval.
        """
        if not 0 < level < 1:
            raise InputError(f"--interval {level:g}: expected a share between 0 and 1, such as 0.9")
        rank = math.ceil(round((self.rows + 1) * level, 9))
        if rank > self.rows:
            needed = math.ceil(round(level / (1 - level), 9))
            raise InputError(
                f"--interval {level:g} needs {needed:,} validation rows, and this run was "
                f"calibrated on {self.rows:,}. Choose a lower level, or calibrate on more rows: "
                "validate --calibrated --data.valid-path FILE"
            )
        place = next(i for i, kept in enumerate(self.ranks) if kept >= rank)
        return [column[place] for column in self.residuals]


def read(file: Path) -> Calibration:
    """What `Calibration.write` wrote. Raises InputError if it is damaged."""
    import json

    try:
        content = json.loads(file.read_text())
        known = {f.name for f in fields(Calibration)}
        found = Calibration(**{key: value for key, value in content.items() if key in known})
        if _is_whole(found):
            return found
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError):
        pass
    raise InputError(
        f"{file}: damaged. Write it again: validate --calibrated --run {file.parent}"
    ) from None


def _is_whole(found: Calibration) -> bool:
    """Whether everything that is used later is there and possible."""
    if found.kind == "numbers":
        sizes = {len(column) for column in found.residuals}
        rising = all(
            0 <= a <= b < math.inf for c in found.residuals for a, b in itertools.pairwise([0, *c])
        )
        ranked = found.ranks == sorted({*found.ranks}) and found.ranks[-1:] == [found.rows]
        return ranked and rising and sizes == {len(found.ranks)}
    chosen = list(found.thresholds.values())
    expected = {*THRESHOLDED} if found.kind == "labels" else {*found.thresholds}
    return (
        found.kind in KINDS
        and COLDEST <= found.temperature <= HOTTEST
        and {*found.thresholds} in (expected, set())
        and len({len(column) for column in chosen}) <= 1
        and all(0 <= value <= 1 for column in chosen for value in column)
    )


def measure(
    kind: str, values: Tensor, labels: Tensor, step: int | None = None, split: str = "valid"
) -> tuple[Calibration, list[str]]:
    """The calibration of what `Task.scores` gave for validation rows, and what to say aloud.

    values and labels by kind: "numbers" both (N, K); "classes" probabilities (N, C) and class
    numbers (N,); "labels" probabilities (N, K) and 0/1 (N, K).
    """
    made: dict[str, Any] = {"kind": kind, "step": step, "rows": len(values), "split": split}
    if kind == "numbers":
        errors = (values.double() - labels.double()).abs().view(len(values), -1).sort(0).values
        count = len(errors)
        kept = torch.linspace(1, count, min(count, MOST_RESIDUALS), dtype=torch.float64)
        ranks = kept.ceil().long().unique()
        made |= {"ranks": ranks.tolist(), "residuals": errors[ranks - 1].T.tolist()}
        return Calibration(**made), []
    logits, labels, notes = logits_of(kind, values), _shaped(kind, labels, values), []
    found = temperature(kind, logits, labels)
    if found in (COLDEST, HOTTEST):
        notes.append(f"the temperature is at its limit, {found:g}: too few or too easy rows")
    made |= {"temperature": found, "before": quality(kind, probabilities(kind, logits), labels)}
    calibrated = probabilities(kind, logits / found)
    made["after"] = quality(kind, calibrated, labels)
    if kind == "classes" and logits.shape[1] > 2:
        return Calibration(**made), notes
    columns = calibrated if kind == "labels" else calibrated[:, 1:]
    truth = labels.view(len(labels), -1) if kind == "labels" else labels[:, None]
    alike = [k for k, column in enumerate(truth.T) if column.min() == column.max()]
    if alike:
        notes.append(f"thresholds stay at 0.5 for labels that are all alike there: {alike}")
    made["thresholds"] = {
        metric: [
            0.5 if k in alike else best_threshold(column, truth[:, k], metric)
            for k, column in enumerate(columns.T)
        ]
        for metric in THRESHOLDED
    }
    return Calibration(**made), notes


# --------------------------------------------------------------------------- logits


def logits_of(kind: str, values: Tensor) -> Tensor:
    """Logits (N, C) or (N, K), float64, that give these probabilities.

    Probabilities that single precision has rounded to 0 or 1 count as the nearest that is not.
    """
    values = values.double().view(len(values), -1)
    if kind == "classes":
        return values.clamp(min=torch.finfo(torch.float32).tiny).log()
    return torch.logit(values, eps=torch.finfo(torch.float32).eps / 2)


def probabilities(kind: str, logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1) if kind == "classes" else torch.sigmoid(logits)


def joined(kind: str, outputs: list[Tensor]) -> Tensor:
    """Outputs whose probabilities (or numbers) are the mean of those of several members."""
    if len(outputs) == 1:
        return outputs[0].float()
    stack = torch.stack([one.float() for one in outputs])
    if kind == "numbers":
        return stack.mean(0)
    if kind == "classes":
        return torch.log_softmax(stack, -1).logsumexp(0)
    return F.logsigmoid(stack).logsumexp(0) - F.logsigmoid(-stack).logsumexp(0)


def _shaped(kind: str, labels: Tensor, values: Tensor) -> Tensor:
    return labels.long().flatten() if kind == "classes" else labels.long().view(len(values), -1)


# --------------------------------------------------------------------------- temperature


def temperature(kind: str, logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the negative log-likelihood of `labels` under logits / T.

    Guo et al. 2017 (arXiv:1706.04599), section 4.2. The likelihood is concave in 1 / T, so its
    slope is halved to zero; between the limits that the module states.
    """

    def slope(inverse: float) -> float:  # of the negative log-likelihood, in 1 / T
        given = probabilities(kind, logits * inverse)
        if kind == "classes":
            return ((given * logits).sum(1) - logits.gather(1, labels[:, None])[:, 0]).mean().item()
        return ((given - labels) * logits).mean().item()

    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    if slope(math.exp(low)) >= 0:
        return HOTTEST
    if slope(math.exp(high)) <= 0:
        return COLDEST
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def quality(kind: str, given: Tensor, labels: Tensor) -> dict[str, float]:
    """Negative log-likelihood and expected calibration error of probabilities, (N, C) or (N, K)."""
    labels = _shaped(kind, labels, given)
    given = given.double().view(len(given), -1)
    logits = logits_of(kind, given)
    if kind == "classes":
        nll = F.cross_entropy(logits, labels)
    else:
        nll = F.binary_cross_entropy_with_logits(logits, labels.double())
    pairs = reliability_pairs(kind, given, labels)
    each = [expected_calibration_error(sure, right) for sure, right in pairs]
    return {"nll": nll.item(), "ece": sum(each) / len(each)}


def reliability_pairs(kind: str, given: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(confidence, outcome) whose calibration is looked at, one pair of (N,) per label.

    Of classes, the probability of the largest and whether it is the right one; of labels, the
    probability of each and whether it is present.
    """
    labels = _shaped(kind, labels, given)
    given = given.double().view(len(given), -1)
    if kind == "classes":
        sure, chosen = given.max(1)
        return [(sure, (chosen == labels).double())]
    return [(given[:, k], labels[:, k].double()) for k in range(given.shape[1])]


def reliability(confidence: Tensor, outcome: Tensor, bins: int = BINS) -> Tensor:
    """(bins, 3): entries, mean confidence and mean outcome of each bin (i / bins, (i + 1) / bins].

    The means of an empty bin are nan; confidence 0 belongs to the first.
    """
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, 3, dtype=torch.float64)
    entries = torch.stack([torch.ones_like(confidence), confidence, outcome], 1)
    sums.index_add_(0, place, entries.double())
    return torch.cat([sums[:, :1], sums[:, 1:] / sums[:, :1]], 1)


def expected_calibration_error(confidence: Tensor, outcome: Tensor, bins: int = BINS) -> float:
    """Mean over entries of |mean outcome - mean confidence| of their bin (Guo et al., eq. 3)."""
    table = reliability(confidence.double(), outcome.double(), bins)
    gaps = (table[:, 2] - table[:, 1]).abs().nan_to_num()
    return ((table[:, 0] * gaps).sum() / table[:, 0].sum()).item()


# --------------------------------------------------------------------------- thresholds


def _f1(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return 2 * tp / (2 * tp + fp + fn)


def _mcc(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    size = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
    return torch.where(size > 0, (tp * tn - fp * fn) / size, 0.0)


def _balanced_accuracy(tp: Tensor, fp: Tensor, fn: Tensor, tn: Tensor) -> Tensor:
    return (tp / (tp + fn) + tn / (tn + fp)) / 2


THRESHOLDED = {"mcc": _mcc, "f1": _f1, "balanced_accuracy": _balanced_accuracy}


def best_threshold(given: Tensor, labels: Tensor, metric: str) -> float:
    """The threshold on probabilities (N,) above which 0/1 labels (N,) are best called present.

    Candidates lie midway between neighbouring probabilities; of equally good ones that nearest to
    0.5 is taken.
    """
    scores, group, counts = given.double().unique(return_inverse=True, return_counts=True)
    present = torch.zeros(len(scores), dtype=torch.float64)
    present.index_add_(0, group, labels.double())
    # Above candidate i lie the distinct scores i, i + 1, ...; above the last one, none.
    below = F.pad(torch.stack([present, counts - present]).cumsum(1), (1, 0))
    (fn, tn), (positives, negatives) = below, below[:, -1]
    values = THRESHOLDED[metric](positives - fn, negatives - tn, fn, tn)
    edges = torch.cat([scores.new_zeros(1), scores, scores.new_ones(1)])
    middles = ((edges[1:] + edges[:-1]) / 2).clamp(1e-30, 1 - 1e-12)  # logits stay finite
    best = (values >= values.max() - 1e-12).nonzero()[:, 0]
    return middles[best[(middles[best] - 0.5).abs().argmin()]].item()
