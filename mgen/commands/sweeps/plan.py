"""The file of a sweep: which recipe, which flags vary over which values, what decides.

    recipe: sequence_regression
    flags: --data promoters_tiny --train.epochs 2    # of every trial, as on the command line
    search: grid                                     # grid, random or optuna
    metric: spearman                                 # of the validation rows
    vary:
      adapter: [mean_pool_mlp, conv]
      train.lr: {log: [1e-4, 1e-2]}                  # log, uniform, int: ends included; choice

No torch here.
"""

import itertools
import math
import random
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from mgen.config import InputError, flag_values, nearest

SEARCHES, KINDS = ("grid", "random", "optuna"), ("choice", "log", "uniform", "int")
ATTEMPTS = 1000  # draws without a new one before a space counts as exhausted

Value = str | list[str]  # of a flag: as a YAML file has it


@dataclass(frozen=True)
class Values:
    """What one flag may be: one of a list, or a number between two ends."""

    kind: str
    among: tuple  # the values; of a range: low and high

    def draw(self, source: random.Random) -> Value:
        if self.kind == "choice":
            return source.choice(self.among)
        low, high = self.among
        if self.kind == "int":
            return str(source.randint(low, high))
        if self.kind == "uniform":
            return repr(source.uniform(low, high))
        drawn = math.exp(source.uniform(math.log(low), math.log(high)))
        return repr(min(max(drawn, low), high))

    def extremes(self) -> list[Value]:
        """All values of a list, the ends of a range."""
        return list(self.among) if self.kind == "choice" else [*map(str, self.among)]


@dataclass(frozen=True)
class Plan:
    """A sweep as its file describes it; `lines` says where in it a key is."""

    file: Path
    recipe: str
    vary: dict[str, Values]
    metric: str
    search: str = "grid"
    flags: str = ""
    trials: int = 0  # of a random or optuna search
    seed: int = 0  # of the draws
    direction: str = ""  # min or max; the metric's own
    out: str = "runs/sweeps"
    name: str = ""  # of the sweep's folder below `out`; the file's name
    lines: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        return Path(self.out) / (self.name or self.file.stem)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.flags, comments=True)

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change once trials have run; more of them may be drawn later."""
        return {
            "recipe": self.recipe,
            "flags": self.words,
            "search": self.search,
            "seed": self.seed,
            "metric": self.metric,
            "vary": {key: {v.kind: list(v.among)} for key, v in self.vary.items()},
        }

    @property
    def scores(self) -> tuple[str, str]:
        """Columns of the table of results: what decides, and what it says of test rows."""
        return f"valid_{self.metric}", f"test_{self.metric}"

    def command(self, trial: int, values: dict[str, Value]) -> list[str]:
        """Words after the recipe's name that start or go on with a trial."""
        ours = ["--train.monitor", self.metric, "--out", str(self.folder), "--name", label(trial)]
        return [*self.words, *flags(values), *ours, "--resume"]

    def where(self, key: str) -> str:
        """file:line of a key."""
        return f"{self.file}:{self.lines.get(key, 1)}"

    @cached_property
    def settings(self) -> list[dict[str, Value]]:
        """The flags of every trial of a grid or a random search, in order."""
        if self.search == "grid":
            among = [values.among for values in self.vary.values()]
            return [dict(zip(self.vary, taken, strict=True)) for taken in itertools.product(*among)]
        drawn: list[dict[str, Value]] = []
        for number in range(self.trials):
            for attempt in range(ATTEMPTS):
                source = random.Random(f"{self.seed} {number} {attempt}")
                new = {key: values.draw(source) for key, values in self.vary.items()}
                if new not in drawn:
                    drawn.append(new)
                    break
            else:
                raise InputError(
                    f"{self.where('trials')}: {self.trials} trials, but no more than {number} "
                    "different ones were found; lower it, or use search: grid"
                )
        return drawn

    def probes(self) -> list[dict[str, Value]]:
        """Settings in which each value of a list and each end of a range occurs."""
        first = {key: values.extremes()[0] for key, values in self.vary.items()}
        others = [
            first | {key: value}
            for key, values in self.vary.items()
            for value in values.extremes()[1:]
        ]
        return [first, *others]


def flags(settings: dict[str, Value]) -> list[str]:
    """The settings of a trial as words of a command line."""
    words: list[str] = []
    for key, value in settings.items():
        path = key.replace("_", "-")
        if isinstance(value, list):
            words += [f"--{path}", *value]
        elif value in ("true", "false"):
            head, _, last = path.rpartition(".")
            no = "" if value == "true" else "no-"
            words += [f"--{head + '.' if head else ''}{no}{last}"]
        else:
            words += [f"--{path}={value}"]
    return words


def texts(settings: dict[str, Value]) -> dict[str, str]:
    """The settings of a trial as cells of a table."""
    return {k: " ".join(v) if isinstance(v, list) else v for k, v in settings.items()}


def label(trial: int) -> str:
    """The name of a trial's run."""
    return f"trial-{trial:03d}"


def read(file: Path) -> Plan:
    """The plan of a file. Raises InputError that names the line."""
    tree, lines = tree_of(file)

    def fault(key: str, text: str) -> InputError:
        return InputError(f"{file}:{lines.get(key, 1)}: {text}")

    known = [f.name for f in fields(Plan) if f.name not in ("file", "lines")]
    for key, value in tree.items():
        if key not in known:
            raise fault(key, f"no setting '{key}' of a sweep.{nearest(key, known)}")
        if key != "vary" and not isinstance(value, str):
            raise fault(key, f"{key}: expected one value, found {value!r}")
    for key in ("recipe", "vary", "metric"):
        if not tree.get(key):
            raise fault(key, f"no {key}: expected '{key}: ...'")
    search = tree.get("search", "grid")
    for key, allowed in (("search", SEARCHES), ("direction", ("min", "max"))):
        if key in tree and tree[key] not in allowed:
            said = f"{key}: {tree[key]}: expected one of {', '.join(allowed)}."
            raise fault(key, said + nearest(tree[key], allowed))
    for key, least in (("trials", 1), ("seed", 0)):
        if key in tree and not (tree[key].isdecimal() and int(tree[key]) >= least):
            raise fault(key, f"{key}: {tree[key]}: expected a whole number, at least {least}")
    if search == "grid" and "trials" in tree:
        raise fault("trials", "a grid has as many trials as combinations; drop trials")
    if search != "grid" and "trials" not in tree:
        raise fault("search", f"search: {search} needs trials: their number")
    if (name := tree.get("name", "")) and (name != Path(name).name or name[0] == "."):
        raise fault("name", f"name: {name}: expected one folder name; out says where it goes")
    try:
        words = shlex.split(tree.get("flags", ""), comments=True)
    except ValueError as error:
        raise fault("flags", f"flags: {error}") from None
    if not isinstance(tree["vary"], dict):
        raise fault("vary", f"vary: expected 'flag: values' lines, found {tree['vary']!r}")
    vary = {}
    for key, value in tree["vary"].items():
        if key.startswith("-"):
            raise fault(f"vary {key}", f"{key}: name it without dashes: {key.lstrip('-')}")
        if flag_values(words, key):
            raise fault(f"vary {key}", f"{key}: varies, and is set in flags; drop one of the two")
        try:
            vary[key] = _values(value, search)
        except InputError as error:
            raise fault(f"vary {key}", f"{key}: {error}") from None
    numbers = {key: int(tree[key]) for key in ("trials", "seed") if key in tree}
    return Plan(**{**tree, **numbers, "vary": vary, "file": file, "lines": lines})


def _values(given: Any, search: str) -> Values:
    if isinstance(given, list):
        given = {"choice": given}
    if not (isinstance(given, dict) and len(given) == 1):
        raise InputError(f"expected a list, or one of {', '.join(KINDS)}; found {given!r}")
    ((kind, among),) = given.items()
    if kind not in KINDS:
        raise InputError(f"no range '{kind}'.{nearest(kind, KINDS)} Ranges: {', '.join(KINDS)}")
    if not isinstance(among, list) or not among:
        raise InputError(f"{kind}: expected a list that is not empty, found {among!r}")
    if kind == "choice":
        if any(isinstance(v, dict) or (isinstance(v, list) and not v) for v in among):
            raise InputError("expected values, or lists of values, of one flag")
        if twice := [value for i, value in enumerate(among) if value in among[:i]]:
            raise InputError(f"lists {twice[0]} twice")
        return Values(kind, tuple(among))
    if search == "grid":
        raise InputError(f"a grid has no {kind} range: list its values, or use search: random")
    try:
        low, high = map(int if kind == "int" else float, among)
    except (TypeError, ValueError):
        raise InputError(f"{kind}: expected two numbers, found {among!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{kind}: expected two numbers, the smaller one first, found {among!r}")
    if kind == "log" and low <= 0:
        raise InputError(f"log: expected numbers above 0, found {among!r}")
    return Values(kind, (low, high))


def tree_of(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML file, every scalar as text, and the line of each of its keys ("vary KEY" below)."""
    import yaml

    lines: dict[str, int] = {}

    def value(node: yaml.Node, path: tuple[str, ...] = ()) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [value(item, (*path, "-")) for item in node.value]
        return dict(pairs(node, path)) if isinstance(node, yaml.MappingNode) else node.value

    def pairs(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        seen = set()
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise InputError(f"{file}:{line}: set more than once: {key.value}")
            seen.add(key.value)
            lines[" ".join((*path, key.value))] = line
            yield key.value, value(item, (*path, key.value))

    try:
        node = yaml.compose(file.read_text(), Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read as YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{file}: expected 'name: value' lines")
    return value(node), lines
