"""Runs that take a second: a table of short sequences, a small network, settings to change."""

import atexit
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from mgen.backbones import backbone
from mgen.data import Table
from mgen.loop import Fit, Train
from mgen.task import Task
from mgen.train import run, seed_everything

sys.path.insert(0, str(ROOT / "recipes"))

import sequence_classification  # noqa: E402
import sequence_regression  # noqa: E402


def table(folder: Path, train: int = 24, valid: int = 9, test: int = 7, classes: int = 0) -> Table:
    """Sequences of 4 to 16 letters; the label is the share of G and C, or a class of it."""
    random = np.random.default_rng(0)
    lines = ["name\tsequence\tlabel\tpart"]
    for part, count in (("train", train), ("valid", valid), ("test", test)):
        for i in range(count):
            sequence = "".join(random.choice(list("ACGT"), size=random.integers(4, 17)))
            share = sum(letter in "GC" for letter in sequence) / len(sequence)
            label = int(share * classes * 0.999) if classes else round(share, 3)
            lines.append(f"{part}{i}\t{sequence}\t{label}\t{part}")
    file = folder / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return Table(path=str(file), split_col="part")


def cells(folder: Path) -> tuple[str, ...]:
    """Flags for 40 simulated cells that are in the same parts as the rows of `table`."""
    import anndata

    tables = ROOT / "mgen" / "data" / "named" / "bundled"
    made = anndata.read_h5ad(tables / "cells_tiny.h5ad")[:40].copy()
    made.obs["part"] = 24 * ["train"] + 9 * ["valid"] + 7 * ["test"]
    made.write_h5ad(folder / "cells.h5ad")
    return ("--data.path", str(folder / "cells.h5ad"), "--data.y-cols", "age")


def settings(folder: Path, config=sequence_regression.Config, **train):
    """A config on a tiny table: 6 batches an epoch, two epochs, dropout, no worker processes."""
    train = {"epochs": 2, "batch_size": 4, "workers": 0, "lr": 1e-2, "log_every": 2} | train
    return config(
        backbone=backbone("aido_dna_debug", dropout=0.1, random_weights=True),
        data=table(folder, classes=3 * (config is sequence_classification.Config)),
        train=Train(**train),
    )


def with_backbone(cfg, **options):
    return dataclasses.replace(cfg, backbone=dataclasses.replace(cfg.backbone, **options))


def prepared(cfg, task_type: type[Task] = sequence_regression.SequenceRegression):
    """A task with its weights, and its rows, as `run` makes them."""
    task = task_type(cfg)
    rows = cfg.data.open()
    rows.splits["all"] = np.arange(len(rows))
    task.check(rows, ("train", "valid", "test"))
    seed_everything(cfg.train.seed)
    task.setup()
    return task, rows


def fit(cfg, folder: Path, task_type: type[Task] = sequence_regression.SequenceRegression) -> Fit:
    """A training run in `folder` before its first step."""
    task, rows = prepared(cfg, task_type)
    folder.mkdir(parents=True, exist_ok=True)
    return Fit(task, rows, task.lengths, cfg.train, folder)


def weights(task: Task) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(folder: Path, *flags: str, task=sequence_regression.SequenceRegression) -> int:
    """Exit code of a recipe's command line, on a table made by `table(folder)`."""
    options = {
        "--out": folder / "runs",
        "--data.path": folder / "rows.tsv",
        "--data.split-col": "part",
        "--train.batch-size": 4,
        "--train.workers": 0,
        "--train.epochs": 2,
    }
    default = [str(word) for pair in options.items() for word in pair if pair[0] not in flags]
    verb, flags = (flags[0], flags[1:]) if flags and flags[0][0] != "-" else ("fit", flags)
    with pytest.raises(SystemExit) as left:
        run(task, sequence_regression.Config, [verb, *default, *flags])
    return left.value.code


class Server:
    """Starts sequence_regression from a process that has imported all it needs."""

    def __init__(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.log = self.folder / "log"
        table(self.folder)
        command = [sys.executable, str(ROOT / "tests" / "recipe_server.py"), str(ROOT / "recipes")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(
        self,
        name: str,
        *flags: str,
        processes: int = 1,
        recipe: str = "sequence_regression",
        **options,
    ) -> list[int]:
        """The process ids of a run that has begun; after a verb, of one that applies run `name`."""
        self.log.write_text("")
        verb, flags = (flags[0], flags[1:]) if flags and flags[0][0] != "-" else ("fit", flags)
        argv = [verb, "--data.path", str(self.folder / "rows.tsv"), "--out", str(self.folder)]
        argv += ["--data.split-col", "part"]
        argv += ["--name", name] if verb == "fit" else ["--run", str(self.run_folder(name, recipe))]
        order = {
            "recipe": recipe,
            "argv": [*argv, *flags],
            "log": str(self.log),
            "processes": processes,
            **options,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> list[int]:
        """The exit codes when all have ended."""
        return json.loads(self.process.stdout.readline())

    def run(self, name: str, *flags: str, **options) -> int:
        self.start(name, *flags, **options)
        codes = set(self.end())
        return codes.pop() if len(codes) == 1 else -1

    def run_folder(self, name: str, recipe: str = "sequence_regression") -> Path:
        return self.folder / recipe / name

    def wait_for_metrics(self, name: str, recipe: str = "sequence_regression") -> None:
        self.wait_for(self.run_folder(name, recipe) / "metrics.jsonl")

    def wait_for(self, file: Path) -> None:
        """Until there is something in it."""
        end = time.monotonic() + 60
        while not (file.exists() and (file.is_dir() or file.read_text())):
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def wait_for_words(self, words: str) -> None:
        """Until a run that was started has said so."""
        end = time.monotonic() + 60
        while words not in (text := self.log.read_text()):
            assert time.monotonic() < end, text
            time.sleep(0.01)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.temporary.cleanup()


@functools.cache
def server() -> Server:
    """The server of all tests, started by the first that needs it."""
    started = Server()
    atexit.register(started.close)
    return started


@pytest.fixture(autouse=True)
def fresh_process():
    """Leaves no settings of its Accelerator to the next test."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
