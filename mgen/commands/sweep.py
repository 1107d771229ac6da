"""mgen sweep: many runs of one recipe over a grid, random draws or Optuna's, resumable."""

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mgen.commands.checking import directions, parsed, types_of
from mgen.commands.jobs import Share, share, work
from mgen.commands.sweeps.plan import Plan, flags, read, texts
from mgen.commands.sweeps.trials import Asked, Drawn, optuna_of
from mgen.config import InputError, flag_values, plain, to_yaml, unknown
from mgen.engine.processes import Signals
from mgen.report import console, print_table
from mgen.train import Session

ERROR_LETTERS = 80  # of the printed table


@dataclass(frozen=True, kw_only=True)
class Options(Share):
    """Run what is missing of a sweep; docs/sweeps.md describes its file."""

    file: Annotated[Path, tyro.conf.Positional]  # YAML file of the sweep


def sweep(words: Sequence[str]) -> None:
    """Check all trials, run those that are missing, print and write the table of all.

    Leaves with 1 if a trial failed, with 130 or 143 if it was stopped by a signal.
    """
    options = tyro.cli(Options, args=list(words), prog="mgen sweep")
    index, of = share(options, os.environ)
    plan = check(read(options.file))
    if options.dry_run:
        _list(plan, of)
        return
    trials = (Asked if plan.search == "optuna" else Drawn)(plan, index, of)
    if options.retry:
        trials.forget_failures()
    with Signals() as signals:
        work(trials, options.jobs, signals)
    rows = trials.write_table()
    _print(plan, rows)
    if signals.number:
        console.print("stopped; the same command goes on")
        sys.exit(128 + signals.number)
    sys.exit(1 if any(row["error"] for row in rows if trials.is_ours(row["trial"])) else 0)


# --------------------------------------------------------------------------- before the first trial


def check(plan: Plan) -> Plan:
    """Read the settings of every trial and the rows; the plan, its direction filled in.

    Raises InputError, or leaves with 2 when the flags' own message has been printed; both name the
    line of the file.
    """
    task_type, config_type = types_of(plan.recipe, plan.where("recipe"))
    if not task_type.trains:
        raise InputError(f"{plan.where('recipe')}: {plan.recipe} trains nothing to compare")
    if flag_values(plan.words, "train.monitor"):
        raise InputError(f"{plan.where('flags')}: --train.monitor is the sweep's metric; drop it")
    if plan.search == "optuna":
        optuna_of(plan)
    known: dict[str, int] = {}
    tables: dict[str, Session] = {}
    settings = plan.probes() if plan.search == "optuna" else plan.settings
    for place, values in enumerate(settings):
        varied = [(plan.where(f"vary {key}"), flags({key: values[key]})) for key in values]
        cfg, launch = parsed(config_type, [(plan.where("flags"), plan.words), *varied])
        text = to_yaml(cfg)
        if plan.search != "optuna" and text in known:
            raise InputError(
                f"{plan.where('vary')}: trials {known[text]} and {place} have equal settings: "
                f"{shlex.join(flags(values))}"
            )
        known[text] = place
        of_data = {k: v for k, v in plain(cfg).items() if k not in ("train", "adapter")}
        session = Session(task_type, cfg, launch, plan.recipe, "fit", None)
        tables.setdefault(json.dumps(of_data), session)
    better: dict[str, str] = {}
    for session in tables.values():
        session.read(("train", "valid", "test"))
        if not len(session.rows.splits["valid"]):
            raise InputError(
                f"{plan.where('flags')}: no validation rows to choose by; set "
                "--data.valid-fraction or another split"
            )
        better = directions(session)
        if plan.metric not in better:
            raise InputError(f"{plan.where('metric')}: {unknown('metric', plan.metric, better)}")
    direction = better[plan.metric]
    if plan.direction not in ("", direction):
        raise InputError(
            f"{plan.where('direction')}: direction: {plan.direction}: a run keeps the {direction} "
            f"of {plan.metric}; drop direction"
        )
    return dataclasses.replace(plan, direction=direction)


def _list(plan: Plan, of: int) -> None:
    """Print the trials and how one of them is started."""
    if plan.search == "optuna":
        rows = [{"flag": k, v.kind: " ".join(map(str, v.among))} for k, v in plan.vary.items()]
        print_table(f"{plan.trials} trials, drawn by Optuna one after the other", rows)
        settings = plan.probes()
    else:
        settings = plan.settings
        share = [{"array index": i % of} if of > 1 else {} for i in range(len(settings))]
        rows = [
            {"trial": i, **texts(values), **more}
            for i, (values, more) in enumerate(zip(settings, share, strict=True))
        ]
        print_table(f"{len(rows)} trials in {plan.folder}", rows)
    console.print(shlex.join(["mgen", "run", plan.recipe, *plan.command(0, settings[0])]))


def _print(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """The table of all trials, the best first, and how to go on with that one."""
    score, sign = plan.scores[0], -1 if plan.direction == "max" else 1

    def rank(row: dict[str, Any]) -> float:
        return math.inf if row[score] is None else sign * row[score]

    rows = sorted(rows, key=rank)
    shown = [{key: value for key, value in row.items() if key != "error"} for row in rows]
    if any(row["error"] for row in rows):  # whole in the file
        short = [row["error"][:ERROR_LETTERS] for row in rows]
        cut = [text + "..." * (text != row["error"]) for text, row in zip(short, rows, strict=True)]
        shown = [line | {"error": text} for line, text in zip(shown, cut, strict=True)]
    print_table(f"{len(rows)} trials, by {score}", shown)
    if rows and rows[0][score] is not None:
        console.print(f"best: trial {rows[0]['trial']}, {rows[0]['run']}")
    console.print(f"table: {plan.folder / 'results.tsv'}")
