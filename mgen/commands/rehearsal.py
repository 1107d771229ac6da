"""mgen repro --check: every experiment in small, two steps of it, without network or weights.

Settings are read as the recipe reads them, and go through the recipe's own command: what differs
is said by `small_flags` and stand_ins.py. All run in this process, one after the other: starting
Python and importing torch takes longer than most of them.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mgen.apply import task_of
from mgen.commands.stand_ins import SMALL, places, small_network, write_rows
from mgen.config import InputError, parse, unknown
from mgen.experiments import RECIPES, ROOT, Experiment, experiments
from mgen.train import Launch, run
from mgen.tuning import read

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
STEPS = 2
ALL = 1000  # rows at once: more than there are
COUNTS = r"^parameters: ([\d,]+?)(?:, of which ([\d,]+) train)?$"  # as every recipe says them


def rehearse(words: Sequence[str]) -> None:
    """Rehearse the experiments named, or all; leave with 1 if one fails, after the others."""
    known = experiments()
    for word in words:
        if word not in known:
            raise InputError(unknown("experiment", word, known))
    os.environ |= OFFLINE | {"OMP_NUM_THREADS": "1"}  # networks so small wait for more threads
    torch.set_num_threads(1)
    chosen = [known[word] for word in words] or [*known.values()]
    width, failed = max(len(experiment.name) for experiment in chosen), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        for experiment in chosen:
            start = time.perf_counter()
            code, said = rehearsed(experiment, Path(folder))
            if code > 128:  # a signal, which is for all of them
                sys.exit(code)
            counts = re.search(COUNTS, said, re.MULTILINE)
            whole, trained = counts.groups("0") if counts else ("?", "?")
            sizes = f"{whole:>9} parameters, {trained:>9} train"
            result = f"failed with {code}" if code else "ok"
            seconds = f"{time.perf_counter() - start:5.1f} s"
            print(f"{experiment.name:{width}}  {sizes}  {seconds}  {result}", flush=True)
            if code:
                failed += 1
                print(f"{experiment.file}:\n{said}", file=sys.stderr, flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} experiments passed")
    sys.exit(1 if failed else 0)


def rehearsed(experiment: Experiment, folder: Path) -> tuple[int, str]:
    """The exit code of an experiment in small, and all that it said. Its files go to `folder`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), places(folder) as zoo:
        try:
            task, config = task_of(RECIPES / f"{experiment.recipe}.py")
            cfg, _ = parse(config(), Launch(), experiment.words, f"{experiment.recipe}.py")
            chosen = [choice for name, choice in vars(cfg).items() if name.startswith("backbone")]
            for entry in [zoo[choice.name] for choice in chosen if choice.name in zoo]:
                if entry.hub:
                    small_network(entry, folder / "networks", named_layers(cfg.train.unfreeze))
            write_rows(cfg, experiment.recipe)
            flags = ["--out", str(folder / "runs"), "--name", experiment.name]
            run(task, config, [*experiment.words, *small_flags(cfg, task.trains), *flags])
        except InputError as error:
            print(f"error {error}")
            return 2, said.getvalue()
        except SystemExit as left:
            code = left.code
        except Exception as error:  # of one experiment: the others shall be rehearsed as well
            print(f"{type(error).__name__}: {error}")
            return 1, said.getvalue()
        finally:
            _forget_accelerator()
    return code or 0, said.getvalue()


def named_layers(schedule: str) -> int:
    """As many layers as a schedule of what trains needs, those of any small network at least."""
    text = Path(schedule).read_text() if schedule else ""
    return max([SMALL["layers"], *(1 + int(n) for n in re.findall(r"\.layer\.(\d+)", text))])


def small_flags(cfg: Any, trains: bool) -> list[str]:
    """What the rehearsal changes: rows of a batch, steps, processes, half precision of GPUs.

    With a schedule of what trains, an epoch is one step, and all of its epochs come.
    """
    flags = ["--train.workers", "0"]
    if cfg.train.precision == "fp16":  # which no CPU has
        flags += ["--train.precision", "no"]
    if not (trains and cfg.train.epochs):
        return flags
    steps = STEPS + (max(read(cfg.train.unfreeze)) if cfg.train.unfreeze else 0)
    size = ALL if cfg.train.unfreeze else 2
    numbers = {"max-steps": steps, "eval-every": steps, "batch-size": size, "accumulate": 1}
    return flags + [f"--train.{name}={number}" for name, number in numbers.items()]


def _forget_accelerator() -> None:
    """The next experiment may want another precision of Accelerate."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
