"""Published experiments: settings under recipes/configs, what they should give, what they gave.

Listing them imports no torch; an experiment runs as a recipe, in a process of its own.
"""

import functools
import hashlib
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgen.backbones.zoo import ZOO as BACKBONES
from mgen.config import InputError, flag_values, unknown
from mgen.data.sources.places import HUB_PREFIX, hub_folder, local_file
from mgen.data.table import Table
from mgen.data.zoo import ZOO as DATA
from mgen.io.files import SHARED_PREFIX
from mgen.report import number, print_table

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
RESULTS = ROOT / "docs" / "results.md"


def repro(words: Sequence[str]) -> None:
    """Run published experiments and leave with 1 if a figure is outside its tolerance.

    Named ones always run. Without a name those run that have no result with their present settings
    and recipe, those whose data is absent or that need the hub are skipped, and docs/results.md is
    written.
    """
    known = experiments()
    for word in words:
        if word not in known:
            raise InputError(unknown("experiment", word, known))
    chosen = [known[word] for word in words] or [e for e in known.values() if not e.needs]
    if elsewhere := 0 if words else len(known) - len(chosen):
        print(f"{elsewhere} skipped: they need the hub and run by name", file=sys.stderr)
    rows, verdicts = [], []
    for experiment in chosen:
        absent = experiment.absent
        if absent and words:
            raise InputError(f"{experiment.name}: {absent}")
        record = None if words else _newest_record(experiment)
        if absent and not record:
            print(f"{experiment.name}: skipped: {absent}", file=sys.stderr)
        elif not record:
            record = _reproduce(experiment)
        rows.append(_result(experiment, record))
        verdicts.append(rows[-1]["verdict"])
    print_table("", rows)
    if not words and set(verdicts) != {"skipped"}:
        RESULTS.write_text(_results_page(rows, elsewhere))
        print(f"wrote {RESULTS}")
    sys.exit(1 if "outside" in verdicts else 0)


@dataclass(frozen=True)
class Experiment:
    """What the leading `# fact: ...` comments of recipes/configs/<recipe>/<name>.yaml say.

    `expects` is "metric", "metric value" (another method's figure, to compare with), "metric value
    +- tolerance" (to be reproduced), or "none" of a recipe that measures nothing. With several
    `seeds` it is run once per seed, the first that of the settings, and their mean is compared.
    `seconds` is None where it was never run ("unknown"). `method` names one where a recipe compares
    several; `differs` says what the published run did and this one does not.

    A line `# also: NAME: FLAGS` makes another experiment of the file with these flags on top, and
    `# also: NAME (EXPECTS): FLAGS` one that expects another figure.
    """

    file: Path
    what: str
    source: str
    expects: str
    hardware: str
    seconds: int | None
    method: str = ""
    seeds: int = 1
    differs: str = ""
    variant: str = ""  # the name of one that an `also` line makes
    flags: tuple[str, ...] = ()  # and its flags

    @property
    def name(self) -> str:
        return self.variant or self.file.stem

    @property
    def recipe(self) -> str:
        return self.file.parent.name

    @property
    def words(self) -> list[str]:
        """Its settings as words of the recipe's command line."""
        return ["--config", str(self.file), *self.flags]

    @property
    def target(self) -> tuple[str, float | None, float | None]:
        """Metric ("" for none), expected value, tolerance."""
        metric, *numbers = EXPECTS.fullmatch(self.expects).groups()
        value, tolerance = (number and float(number) for number in numbers)
        return metric.removesuffix("none"), value, tolerance

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{self.file.stem} {shlex.join(self.flags)}" if self.variant else self.what

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The names of the data set and, unless their weights are random, of the backbones."""
        found = {}
        for key, value in read_settings(self.file.read_text()).items():
            options = value if isinstance(value, dict) else {"name": value}
            is_used = key == "data" or (
                key.startswith("backbone") and not options.get("random_weights")
            )
            if is_used:
                given = flag_values(self.flags, key) or [options.get("name", "")]
                found[key] = str(given[-1])
        return found

    @property
    def data(self) -> Table | None:
        """The named data set of the settings; None where they have none."""
        entry = DATA.get(self.names.get("data", ""))
        return entry and entry.table

    @property
    def modality(self) -> str:
        """Of its backbone or, if the weights are random or nobody's, of its data set."""
        names = self.names
        entry = BACKBONES.get(names.get("backbone", "")) or DATA.get(names.get("data", ""))
        return entry.modality if entry else ""

    @property
    def needs(self) -> str:
        """What it reads of the hub: "weights", "data", both or ""."""
        weights = [name for key, name in self.names.items() if key != "data"]
        path = self.data.path if self.data else ""
        is_elsewhere = path.startswith(HUB_PREFIX) or (path.count("/") == 1 and ":" not in path)
        hub = "/".join(path.removeprefix(HUB_PREFIX).split("/")[:2])
        needed = {
            "weights": any(BACKBONES[name].hub for name in weights if name in BACKBONES),
            "data": is_elsewhere and not hub_folder(hub),
        }
        return ", ".join(what for what, is_needed in needed.items() if is_needed)

    @property
    def absent(self) -> str:
        """What to do about data that is not on this machine, or "" if it is, or on the hub."""
        path = self.data.path if self.data else ""
        if not path.startswith(SHARED_PREFIX) or local_file(path).exists():
            return ""
        return f"no file {local_file(path)}; mgen show data {self.data.name} says where it is from"

    @property
    def digest(self) -> str:
        """Changes with the settings, the data's and the recipe: one of another digest is stale."""
        settings = re.sub(r"(?m)^#.*\n", "", self.file.read_text())  # what is expected may change
        of_data = vars(self.data).items() - vars(Table()).items() if self.data else ()
        sources = (
            settings
            + repr(sorted(of_data))
            + f"{self.seeds}" * (self.seeds > 1)
            + " ".join(self.flags)
            + (RECIPES / f"{self.recipe}.py").read_text()
        )
        return hashlib.sha256(sources.encode()).hexdigest()[:12]


EXPECTS = re.compile(r"(\w+)(?: (-?\d+\.\d+)(?: \+- (\d+\.\d+))?)?")
ALSO = re.compile(r"^# also: (\w+)(?: \((.+)\))?: (--.+)$", re.MULTILINE)


def recipe_command(recipe: str, words: Sequence[str]) -> list[str]:
    """What to execute for a recipe and the words after its name."""
    return [sys.executable, str(RECIPES / f"{recipe}.py"), *words]


def experiments() -> dict[str, Experiment]:
    """The settings in folders of recipes/configs that are named after a recipe."""
    found = {}
    for file in sorted((RECIPES / "configs").glob("*/*.yaml")):
        if not (RECIPES / f"{file.parent.name}.py").is_file():  # settings of another kind
            continue
        for experiment in _of_file(file):
            if other := found.get(experiment.name):
                raise InputError(f"{file}: '{experiment.name}' is in {other.file} too; rename one")
            found[experiment.name] = experiment
    return found


@functools.cache
def read_settings(text: str) -> dict[str, Any]:
    """YAML of plain values, by libyaml where PyYAML has it: listing reads a hundred files."""
    import yaml

    fast = yaml.__with_libyaml__
    return yaml.load(text, Loader=yaml.CSafeLoader if fast else yaml.SafeLoader) or {}


def _of_file(file: Path) -> list[Experiment]:
    """The experiment of a file, and those of its `also` lines."""
    comments = re.match(r"(#.*\n)*", file.read_text())[0]
    lines = re.sub(r"\n#  +", " ", comments)  # an indented line goes on
    facts = dict(re.findall(r"^# (\w+): (.+)$", lines, re.MULTILINE))
    others = ALSO.findall(lines)
    try:
        if len(others) < len(re.findall(r"^# also:", lines, re.MULTILINE)):
            raise ValueError
        facts.pop("also", None)
        seconds = None if facts["seconds"] == "unknown" else int(facts["seconds"])
        counts = {"seconds": seconds, "seeds": int(facts.get("seeds", 1))}
        first = Experiment(file=file, **facts | counts)
        made = [first] + [
            replace(
                first, variant=name, flags=tuple(shlex.split(flags)), expects=said or first.expects
            )
            for name, said, flags in others
        ]
        [experiment.target for experiment in made]  # read once, so that a typo shows here
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{file}: expected '# what, source, expects, hardware, seconds: ...' in the first "
            "lines, 'expects: metric [value [+- tolerance]]' or none, 'seconds: number' or "
            "unknown, and 'also: name [(expects)]: --flags'"
        ) from None
    return made


def _reproduce(experiment: Experiment) -> dict[str, Any]:
    """Run an experiment in run directories of its own below runs/repro, one per seed.

    Its record is kept in the last. A recipe that fails ends this process with its exit code.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    print(f"{experiment.name}: {experiment.summary}", flush=True)
    start, values, runs = time.perf_counter(), [], []
    for seed in range(experiment.seeds):
        name = f"{experiment.name}-{stamp}" + f"-seed{seed}" * (seed > 0)
        flags = [*experiment.words, "--out", "runs/repro", "--name", name]
        flags += ["--train.seed", str(seed)] if seed else []
        done = subprocess.run(recipe_command(experiment.recipe, flags))
        if done.returncode:
            print(f"mgen: {experiment.name} left with {done.returncode}", file=sys.stderr)
            sys.exit(done.returncode)
        run = Path("runs/repro") / experiment.recipe / name
        runs.append(run)
        if metric := experiment.target[0]:
            values.append(_measured(run, experiment.method)[metric])
    known = values and None not in values  # null: the metric is not defined there
    place = json.loads((run / "environment.json").read_text())[-1]
    device = f"cpu, {place['threads']} threads" if place["device"] == "cpu" else place["device"]
    record = {
        "digest": experiment.digest,
        "seconds": round(time.perf_counter() - start),
        "device": device,
        "got": statistics.fmean(values) if known else None,
        "interval": _interval(runs, experiment) if known else None,
    }
    if experiment.seeds > 1:
        record |= {"each": values, "spread": statistics.stdev(values) if known else None}
    (run / "repro.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _measured(run: Path, method: str) -> dict[str, float]:
    """The test metrics of a run; of one that only predicts, those of a method, or of the first."""
    results = json.loads((run / "results.json").read_text())
    if "test" in results:
        return results["test"]
    file = next(iter(run.glob("predictions/*.metrics.json")))
    methods = next(iter(json.loads(file.read_text()).values()))
    return methods[method or next(iter(methods))]


def _interval(runs: Sequence[Path], experiment: Experiment) -> list[float] | None:
    """The 95 % interval over resampled test rows of the mean over seeds.

    None without labels, for metrics that cannot be resampled by weights, and for a method that does
    not score every row.
    """
    from mgen.leaderboards.statistics import Unweighted  # loads torch
    from mgen.leaderboards.tested import average, tested

    if not all(any(run.glob("predictions/*.scored.safetensors")) for run in runs):
        return None
    asked = {"metric": experiment.target[0], "seed_text": experiment.name, "by": experiment.method}
    try:
        _, low, high = average([tested(run, **asked) for run in runs])
    except (KeyError, Unweighted):
        return None
    return [low, high]


def _newest_record(experiment: Experiment) -> dict[str, Any] | None:
    files = Path("runs/repro", experiment.recipe).glob(f"{experiment.name}-*/repro.json")
    records = [json.loads(file.read_text()) for file in sorted(files)]
    return next((r for r in reversed(records) if r["digest"] == experiment.digest), None)


def _result(experiment: Experiment, record: dict[str, Any] | None) -> dict[str, Any]:
    """One line of the table of results."""
    metric, expected, tolerance = experiment.target
    if not record:
        verdict = "skipped"
    elif not metric:
        verdict = "ran"
    elif record["got"] is None:
        verdict = "outside"
    elif tolerance:
        verdict = "reproduced" if abs(record["got"] - expected) <= tolerance else "outside"
    elif expected is not None:
        verdict = f"differs by {record['got'] - expected:+.3f}"
    else:
        verdict = "shown"
    wanted = (
        "" if expected is None else f"{expected:g}" + (f" +- {tolerance:g}" if tolerance else "")
    )
    return {
        "experiment": experiment.name,
        "metric": metric,
        "expected": wanted,
        "got": _got(record or {}),
        "interval": "[{:.3f}, {:.3f}]".format(*ends)
        if (ends := (record or {}).get("interval"))
        else "",
        **{key: (record or {}).get(key) for key in ("seconds", "device")},
        "verdict": verdict,
        "origin": experiment.source,
    }


def _got(record: dict[str, Any]) -> Any:
    if record.get("spread") is None:
        return record.get("got")
    return f"{record['got']:.3f} +- {record['spread']:.3f} ({len(record['each'])} seeds)"


def _results_page(rows: list[dict[str, Any]], elsewhere: int) -> str:
    """The page of what was run; `elsewhere`: experiments that need the hub."""
    lines = [
        "# Results of the published experiments",
        "",
        "Written by `make results`; settings are in `recipes/configs/`. An expected figure with a",
        "tolerance is to be reproduced; one without is another method's, to compare with.",
        "Where seeds are named, `got` is their mean and standard deviation; the interval holds",
        "95 % of its values over resampled test rows. Seconds are wall clock with start-up, over",
        "all seeds, on whatever else the machine did.",
        "",
        f"{elsewhere} more need weights or data of the hub: [experiments](experiments.md).",
        "",
        "| experiment | command | metric | expected | origin | got | interval | verdict | seconds "
        "| device |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        texts = {key: number(value) for key, value in row.items()}
        command = f"`make repro EXP={row['experiment']}`"
        keys = ("metric", "expected", "origin", "got", "interval", "verdict", "seconds", "device")
        cells = [row["experiment"], command, *(texts[key] for key in keys)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
