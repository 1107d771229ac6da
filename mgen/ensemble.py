"""Trained tasks as they are applied: several as one, calibrated, with intervals.

`infer` uses an `Ensemble` as it uses a task. Everything happens to the outputs of the members, so
that a recipe's own loss, scores and columns hold for what comes of them.
"""

import hashlib
import json
import warnings
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from mgen import calibration, checkpoint
from mgen.calibration import Calibration
from mgen.config import InputError
from mgen.metrics import results
from mgen.task import Task

Columns = dict[str, dict[str, float]]


class Ensemble(nn.Module):
    """Members of one recipe and one set of facts, with what their validation rows have shown.

    Logits are joined so that probabilities are the mean of the members' ones. With `calibrated`,
    probabilities are those at the calibration's temperature, and columns named `predicted...` are
    decided by its thresholds of the metric `threshold`. With an `interval` numbers have columns
    `lower_...` and `upper_...`; members add `spread_...`, the standard deviation over them.
    """

    def __init__(
        self,
        members: list[Task],
        found: Calibration | None = None,
        calibrated: bool = False,
        threshold: str = "mcc",
        interval: float = 0.0,
    ) -> None:
        super().__init__()
        self.prints = [checkpoint.fingerprint(m, frozen_only=False) for m in members]
        if len({*self.prints}) < len(members):
            raise InputError("--ensemble: two of the runs have the same weights; name each once")
        self.members, self.kind = nn.ModuleList(members), members[0].kind
        self.calibration = found if calibrated else None
        self.threshold, self.level = threshold, interval
        self.half_widths = found.half_widths(interval) if interval else []

    @property
    def first(self) -> Task:
        return self.members[0]

    @property
    def key(self) -> dict[str, Any]:
        """What a prediction file depends on besides the first member and its settings."""
        used = self.calibration
        return {
            "members": self.prints,
            "temperature": used.temperature if used else 1.0,
            "thresholds": used.thresholds.get(self.threshold) if used else None,
            "half_widths": self.half_widths,
        }

    # ------------------------------------------------------------- what `infer` asks of a task

    def collator(self):
        return self.first.collator()

    def forward(self, batch: dict) -> list[Tensor]:
        return [member(batch) for member in self.members]

    def averaged(self, batch: dict) -> list[Tensor]:
        return [member.averaged(batch) for member in self.members]

    def loss(self, outputs: list[Tensor], batch: dict):
        return self.first.loss(self.tempered(self.joined(outputs)), batch)

    def metrics(self) -> dict[str, Any]:
        return {name: _OfFirst(metric) for name, metric in self.first.metrics().items()}

    def scores(self, outputs: list[Tensor], batch: dict) -> tuple[Tensor, ...]:
        """Predictions (N, V, ...) in each of V variants (`variants`), labels and what follows."""
        joined = self.joined(outputs)
        made = [(self.first, self.decided(joined))]
        if self.calibration:
            made += [(self.first, self.tempered(joined)), (self.first, joined)]
        if len(self.members) > 1:
            made += zip(self.members, outputs, strict=True)
        scored = [member.scores(variant.float(), batch) for member, variant in made]
        return torch.stack([values for values, *_ in scored], 1), *scored[0][1:]

    @property
    def variants(self) -> list[str]:
        """Names of what `scores` stacks: as reported, calibrated, uncalibrated, each member."""
        names = ["reported"] + ["calibrated", "uncalibrated"] * bool(self.calibration)
        count = len(self.members)
        return names + [f"member {i}" for i in range(count) if count > 1]

    def predictions(self, outputs: list[Tensor], batch: dict) -> dict[str, Any]:
        joined = self.joined(outputs)
        columns = self.first.predictions(self.tempered(joined), batch)
        if self.calibration and self.calibration.thresholds:
            decided = self.first.predictions(self.decided(joined), batch)
            columns |= {n: column for n, column in decided.items() if n.startswith("predicted")}
        if self.half_widths:
            columns |= self._bounds(columns)
        if len(self.members) > 1:
            each = [
                member.predictions(self.tempered(one.float()), batch)
                for member, one in zip(self.members, outputs, strict=True)
            ]
            found = {name: _spread([one[name] for one in each]) for name in each[0]}
            columns |= {f"spread_{name}": c for name, c in found.items() if c is not None}
        return columns

    # ------------------------------------------------------------- outputs

    def joined(self, outputs: list[Tensor]) -> Tensor:
        return calibration.joined(self.kind, outputs)

    def tempered(self, outputs: Tensor) -> Tensor:
        return self.calibration.tempered(outputs) if self.calibration else outputs

    def decided(self, outputs: Tensor) -> Tensor:
        return self.calibration.decided(outputs, self.threshold) if self.calibration else outputs

    def _bounds(self, columns: dict[str, Any]) -> dict[str, Tensor]:
        numbers = {n: c for n, c in columns.items() if n.startswith("predicted_")}
        bounds = {}
        for (name, column), half in zip(numbers.items(), self.half_widths, strict=True):
            stem = name.removeprefix("predicted_")
            bounds |= {f"lower_{stem}": column - half, f"upper_{stem}": column + half}
        return bounds

    # ------------------------------------------------------------- after a scored pass

    def report(self, stack: Tensor, labels: Tensor) -> tuple[dict[str, float], Columns]:
        """Further metrics of what is reported, and those of other variants by name.

        `stack` (N, V, ...) and `labels` are what `scores` gave for all rows.
        """
        of = dict(zip(self.variants, stack.unbind(1), strict=True))
        more: dict[str, float] = {}
        others: Columns = {}
        if self.kind != "numbers":
            more |= calibration.quality(self.kind, of.get("calibrated", of["reported"]), labels)
        if self.calibration:
            quality = calibration.quality(self.kind, of["uncalibrated"], labels)
            others["uncalibrated"] = self._scored(of["uncalibrated"], labels) | quality
        if self.half_widths:
            errors = (of["reported"] - labels).abs().view(len(labels), -1).double()
            inside = (errors <= torch.tensor(self.half_widths)).double().mean(0)
            more |= {"coverage": inside.mean().item()}
            more |= {"interval_width": 2 * fmean(self.half_widths)}
            if len(inside) > 1:
                more |= {f"coverage_{k}": value for k, value in enumerate(inside.tolist())}
        if len(self.members) > 1:
            each = []
            for i in range(len(self.members)):
                values = of[f"member {i}"]
                each.append(self._scored(values, labels))
                if self.kind != "numbers":
                    each[-1] |= calibration.quality(self.kind, values, labels)
            others["member mean"] = {name: fmean(one[name] for one in each) for name in each[0]}
            others["member sd"] = {name: stdev(one[name] for one in each) for name in each[0]}
        return more, others

    def reliability(self, folder: Path, stack: Tensor, labels: Tensor) -> list[Path]:
        """Draw how confidence and truth agree, before and after calibration."""
        if not self.calibration:
            return []
        of = dict(zip(self.variants, stack.unbind(1), strict=True))
        names = ("uncalibrated", "calibrated")
        return [draw(folder, self.kind, {name: of[name] for name in names}, labels)]

    def _scored(self, values: Tensor, labels: Tensor) -> dict[str, float]:
        metrics = self.first.metrics()
        with warnings.catch_warnings(action="ignore"):  # said for what is reported
            for metric in metrics.values():
                metric.update(values, labels)
            return results(metrics)


class _OfFirst:
    """A metric of the first of several variants, (N, V, ...)."""

    def __init__(self, metric) -> None:
        self.metric = metric

    def update(self, stack: Tensor, labels: Tensor) -> None:
        self.metric.update(stack[:, 0], labels)

    def compute(self):
        return self.metric.compute()


def draw(folder: Path, kind: str, given: dict[str, Tensor], labels: Tensor) -> Path:
    """reliability.png of probabilities by name; several labels are drawn as one."""
    from mgen.figures.reliability import reliability_figure

    tables = {}
    for name, values in given.items():
        pairs = calibration.reliability_pairs(kind, values, labels)
        sure, right = (torch.cat(part) for part in zip(*pairs, strict=True))
        tables[name] = calibration.reliability(sure, right).numpy()
    return reliability_figure(folder / "reliability.png", tables)


def file_of(folder: Path, members: list[Task]) -> Path:
    """Where the calibration of a run, or of an ensemble of it with others, lies."""
    if len(members) == 1:
        return folder / calibration.FILE
    prints = sorted(checkpoint.fingerprint(member, frozen_only=False) for member in members)
    digest = hashlib.sha256("".join(prints).encode()).hexdigest()[:12]
    return folder / f"calibration-{digest}.json"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint; None for that of an export, which has forgotten it."""
    state = path / "state.json"
    return json.loads(state.read_text())["step"] if state.exists() else None


def find(folder: Path, members: list[Task], path: Path, interval: float = 0.0) -> Calibration:
    """The calibration of the run in `folder` at the checkpoint `path`, or of an ensemble with it.

    Raises InputError without one, and where it is too small for an `interval` (0: none).
    """
    file, step = file_of(folder, members), step_of(path)
    again = f"validate --calibrated --run {folder}"
    if not file.is_file():
        alone = "the run has no validation rows, or was trained by an earlier version"
        why = alone if len(members) == 1 else "an ensemble is calibrated as a whole"
        again += " --ensemble ..." if len(members) > 1 else ""
        raise InputError(f"{file}: does not exist: {why}. Measure it on labelled rows: {again}")
    found = calibration.read(file)
    if None not in (found.step, step) and found.step != step:
        raise InputError(
            f"{file}: is of step {found.step}, and this is the checkpoint of step {step}. Measure "
            f"it again: {again} --checkpoint step-{step}"
        )
    if found.kind != members[0].kind:
        raise InputError(f"{file}: was measured on {found.kind}, and this run gives others")
    if interval:
        found.half_widths(interval)
    return found


WHAT = {  # recipes with an option predict
    calibration.KINDS: "numbers or classes",
    calibration.KINDS[:1]: "numbers",
    calibration.KINDS[1:]: "classes",
}


def check_options(kind: str, several: bool, calibrated: bool, interval: float, verb: str) -> None:
    """Raise InputError for options that a recipe of this kind, or this verb, has not."""
    if verb == "fit" and (several or calibrated or interval):
        raise InputError(
            "--ensemble, --calibrated and --interval are for validate, test and predict: a run "
            "is calibrated when it ends, without being asked"
        )
    for flag, given, kinds in (
        ("--ensemble", several, calibration.KINDS),
        ("--interval", bool(interval), ("numbers",)),
        ("--calibrated", calibrated and verb != "validate", ("classes", "labels")),
        ("--calibrated", calibrated, calibration.KINDS),
    ):
        if given and kind not in kinds:
            what = "numbers" if kind == "numbers" else "classes" if kind else "neither"
            raise InputError(
                f"this recipe has no {flag}: that is for recipes that predict "
                f"{WHAT[kinds]}, and this one predicts {what}"
            )


def _spread(columns: list[Any]) -> Any:
    """Standard deviation (ddof 1) over members of one column; None unless it holds numbers."""
    one = columns[0]
    if isinstance(one, Tensor) and one.is_floating_point():
        return torch.stack(columns).std(0)
    if isinstance(one, list) and one and isinstance(one[0], Tensor) and one[0].is_floating_point():
        return [torch.stack(parts).std(0) for parts in zip(*columns, strict=True)]
    return None
