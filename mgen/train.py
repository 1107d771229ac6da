"""run: one command of a recipe, from its flags to the files of a run directory."""

import dataclasses
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from mgen import calibration, checkpoint, ensemble, tuning
from mgen.calibration import Calibration
from mgen.config import InputError, flag_values, from_yaml, nearest, parse, plain, to_yaml
from mgen.data.splitting.assigning import used_rows
from mgen.engine import processes, sharding, trackers, zero
from mgen.engine.estimate import Needs, estimate
from mgen.engine.processes import Interrupted, Signals
from mgen.engine.profiling import traced
from mgen.engine.throughput import peak_memory
from mgen.ensemble import Ensemble
from mgen.infer import infer
from mgen.loop import Fit, Stopped, Train
from mgen.predictions import Writer, write_scored
from mgen.report import console, fail, metric_table, print_table, warn
from mgen.runs import (
    checkpoint_of,
    environment,
    existing_run,
    held,
    mark_newest,
    run_folder,
    saved_settings,
    sessions,
)
from mgen.task import Task

__all__ = ["Launch", "Train", "load_task", "run"]

DATA_ERROR, NONSENSE, LOST = 2, 70, 75  # exit codes; 128 + number for a signal
REPORTED = ("also occur in train", "repeat an identifier")  # notes that the report has as well


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a command does besides its settings: not saved, not part of what makes runs equal."""

    config: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # YAML file of settings; flags win
    run: str = ""  # directory or hub id of a run: take its settings and, except for fit, weights
    revision: str = "main"  # branch, tag or commit of a run on the hub
    checkpoint: str = "best"  # which of that run: best, last or step-<n>
    resume: bool = False  # go on with --run, --name or the newest unfinished equal run, if any
    out: str = "runs"  # folder of all runs
    name: str = ""  # name of the new run; default: time and a hash of its settings
    split: Literal["all", "train", "valid", "test"] = "all"  # rows that predict covers
    columns: tuple[str, ...] = ()  # columns of the input to copy to the prediction file
    format: Literal["parquet", "tsv", "safetensors"] = "parquet"  # of the prediction file
    ensemble: tuple[str, ...] = ()  # more runs like --run: mean of all, and their spread
    calibrated: bool = False  # use calibration.json: temperature, thresholds; validate: measure it
    threshold: Literal["mcc", "f1", "balanced_accuracy"] = "mcc"  # what --calibrated maximises
    interval: float = 0.0  # share of rows that intervals of numbers shall hold; 0: no intervals
    profile: bool = False  # trace a few steps into the run's folder profile/
    estimate: bool = False  # make a few steps, say what memory and time a run needs, then stop
    tracker: tyro.conf.UseAppendAction[tuple[trackers.Name, ...]] = ()  # log there too; repeatable
    check: bool = False  # check data, backbone and task, say what the splits leak, then stop
    dry_run: bool = False  # print the settings, sizes and one batch's shapes, then stop


def run(task_type: type[Task], config_type: type, argv: list[str] | None = None) -> None:
    """Do what the command line asks of a recipe and leave with the exit code that says how it went.

    0 done; 2 wrong input; 70 stopped on a loss or gradient that is not finite, or on rows that do
    not fit into memory; 75 a process that this one needs was killed; 130 and 143 stopped by SIGINT
    and SIGTERM, progress saved. The verb comes first: fit (default), validate, test or predict.
    """
    try:
        code = _command(task_type, config_type, sys.argv[1:] if argv is None else argv)
    except InputError as error:
        if processes.is_first_to_say(str(error)):
            fail("error", str(error))
        code = DATA_ERROR
    except Stopped as error:
        if processes.is_first_to_say(str(error)):
            fail("stopped", str(error))
        code = NONSENSE
    except Interrupted as error:
        code = 128 + error.number
    except KeyboardInterrupt:
        code = 130
    except RuntimeError as error:
        if not (reason := processes.why(error)):
            raise
        fail("stopped", reason)
        code = LOST
    sys.exit(code)


def _command(task_type: type[Task], config_type: type, argv: list[str]) -> int:
    processes.check_launch()
    verbs = ["fit", "validate", "test", "predict"] if task_type.trains else ["predict"]
    spoken = bool(argv) and not argv[0].startswith("-")
    verb, flags = (argv[0], argv[1:]) if spoken else (verbs[0], argv)
    if verb not in verbs:
        raise InputError(
            f"no verb '{verb}' here.{nearest(verb, verbs)} Verbs: {', '.join(verbs)}; "
            "the verb is the first word"
        )
    recipe = Path(inspect.getfile(task_type)).stem
    defaults, source = config_type(), None
    if given := flag_values(flags, "run"):
        if verb != "fit" and flag_values(flags, "data"):
            raise InputError(
                "--data forgets the columns that the run was trained on. Name the table with "
                "--data.path, or --data.test-path and --data.valid-path for test and validate"
            )
        revision = flag_values(flags, "revision") or ["main"]
        source = existing_run(given[-1], recipe, revision[-1], "--backbone.remote-code" in flags)
        moved = flag_values(flags, "backbone") or [""]
        defaults = from_yaml(defaults, source / "config.yaml", moved[-1])
    usage = f"{inspect.getdoc(sys.modules[task_type.__module__])}\n\nVerbs: {', '.join(verbs)}."
    cfg, launch = parse(defaults, Launch(), flags, f"{recipe}.py [{'|'.join(verbs)}]", usage)
    if (name := launch.name) and (name != Path(name).name or name[0] == "." or "\0" in name):
        raise InputError(f"--name {name!r}: expected one folder name; --out says where runs go")
    if launch.name and verb != "fit" and source == Path(launch.run):
        raise InputError(
            f"--name is that of a new run; {verb} writes into the one of --run. Drop it"
        )
    if launch.tracker and verb != "fit":
        raise InputError(f"--tracker follows training; {verb} has none")
    trackers.check(launch.tracker)
    if verb in ("validate", "test") and not source:
        raise InputError(f"{verb} needs a trained run: set --run DIR")
    if verb == "predict" and task_type.trains and not source:
        raise InputError("predict needs a trained run: set --run DIR")
    if source and source != Path(launch.run):  # of the hub: files go to a run directory of ours
        launch = dataclasses.replace(launch, run="")
    session = Session(task_type, cfg, launch, recipe, verb, source)
    return (_fit if verb == "fit" else _apply)(session)


class Session:
    """One command: its settings, its rows, its run directory, its process among others.

    `source` is the run whose settings it took, and whose weights it takes unless it is `fit`.
    """

    def __init__(
        self,
        task_type: type[Task],
        cfg: Any,
        launch: Launch,
        recipe: str,
        verb: str,
        source: Path | None,
    ) -> None:
        self.cfg, self.launch, self.recipe, self.verb = cfg, launch, recipe, verb
        self.started = time.perf_counter()
        self.source = source
        self.task: Task = task_type(cfg)
        self.model: Task | Ensemble = self.task  # what rows are given to
        self.members, self.found = [self.task], None
        self.split = {"fit": "test", "validate": "valid", "test": "test"}.get(verb, launch.split)
        self.name = self.split  # of its prediction file
        if source and verb != "fit":
            self.checkpoint = checkpoint_of(source, launch.checkpoint)
            self.task.facts = json.loads((self.checkpoint / "facts.json").read_text())

    def read(self, splits: tuple[str, ...]) -> None:
        """Open the table and check all that can be checked before any weights load."""
        data, training = self.cfg.data, self.verb == "fit"
        self._check_options()
        alone = {"valid": data.valid_path, "test": data.test_path}.get(self.split, "")
        if training or (self.split != "all" and not alone):
            self.rows = data.open()
        else:
            self.rows = self._open_whole(alone)
        for split in ("train",) if training else splits:
            if not len(self.rows.splits[split]):
                raise InputError(f"{self.rows.names[0]}: no {split} rows ({self.rows.plan})")
        for column in self.launch.columns:
            counts = [self.cfg.data.x_col] if self.rows.genes else []  # no column to copy
            if column not in (known := [c for c in self.rows.columns if c not in counts]):
                raise InputError(f"--columns {column}: no such column.{nearest(column, known)}")
        if self.rows.plan:
            console.print(self.rows.plan)
        notes = self.task.check_use(self.rows, splits)
        notes += self.task.check(self.rows, splits, labelled=self.verb != "predict")
        self.notes = notes
        if self.launch.dry_run or not self.launch.check:  # which says them in their place
            for note in notes:
                warn(note)

    def _open_whole(self, path: str):
        """All rows of one table as the split; those the run was trained on need not be there."""
        alone = {"path": path, "valid_path": "", "test_path": ""} if path else {}
        rows = dataclasses.replace(self.cfg.data, **alone).open(split=False)
        rows.splits[self.split] = used_rows(rows)
        stems = [Path(name.rpartition(":")[2]).name.partition(".")[0] for name in rows.names]
        self.name = stems[0] if len(stems) == 1 else self.split
        return rows

    def _check_options(self) -> None:
        given, kind = self.launch, self.task.kind
        ensemble.check_options(
            kind, bool(given.ensemble), given.calibrated, given.interval, self.verb
        )
        if self.verb == "validate" and given.calibrated and not given.run:
            raise InputError(
                f"--calibrated writes into the run, which {self.source} is not: download it first"
            )
        if given.threshold != Launch().threshold and not given.calibrated:
            raise InputError(f"--threshold {given.threshold} decides with --calibrated; add that")
        if not given.ensemble:
            self.found = self._calibration()

    def _calibration(self) -> Calibration | None:
        """What --calibrated and --interval need, or None."""
        given = self.launch
        used = given.calibrated and self.verb != "validate"
        if not (used or given.interval):
            return None
        return ensemble.find(self.source, self.members, self.checkpoint, given.interval)

    def assemble(self) -> None:
        """Load the other members of an ensemble; put together what rows are given to."""
        given = self.launch
        if given.ensemble:
            self.members += [
                load_member(self.task, self.source, name, given.checkpoint, self.recipe)
                for name in given.ensemble
            ]
            self.found = self._calibration()
        if len(self.members) > 1 or self.found:
            used = given.calibrated and self.verb != "validate"
            if used:
                console.print(f"calibration, {self.found.summary(given.threshold)}")
            self.model = Ensemble(self.members, self.found, used, given.threshold, given.interval)

    @property
    def label(self) -> str:
        """The name of the prediction file, and of the folder of figures."""
        given = self.launch
        parts = [self.name, "ensemble" * bool(given.ensemble)]
        if given.calibrated and self.verb != "validate":
            parts += ["calibrated", given.threshold * (given.threshold != Launch().threshold)]
        parts += [f"interval{given.interval:g}" * bool(given.interval)]
        return "-".join(part for part in parts if part)

    def calibrate(self, folder: Path, compared: list) -> list[Path]:
        """Measure what `scores` gave for validation rows, say it and keep it in `folder`."""
        if not self.is_main:
            return []
        path = folder / "checkpoints" / (self.launch.checkpoint if self.source else "best")
        step = ensemble.step_of(path) if len(self.members) == 1 else None
        found, notes = calibration.measure(self.task.kind, *compared, step)
        console.print(f"calibration, {found.summary(self.launch.threshold)}")
        for note in notes:
            warn(f"calibration: {note}")
        file = ensemble.file_of(folder, self.members)
        found.write(file)
        return [file]

    def join(self) -> None:
        """Take this process's place among those of the launcher; only the first one talks."""
        self.zero = zero.stage(os.environ, self.task, self.cfg.train)
        self.accelerator = processes.join(self.cfg.train.mixed_precision)
        sharding.check(self.accelerator)
        self.is_main = self.accelerator.is_main_process
        kind = self.accelerator.distributed_type.value
        chosen = {name: getattr(self.cfg, name).cache for name in self.task.tokenizers}
        if any(chosen.values()) and kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise InputError(
                f"--backbone.cache: a model sharded by {kind} computes in all processes or none, "
                "but what is kept differs between them; drop it, or use plain DDP"
            )

    def describe(self, folder: Path) -> None:
        """Write into the run directory what the run is, and that it is the newest."""
        checkpoint.write_text(folder / "config.yaml", to_yaml(self.cfg))
        mark_newest(folder)
        checkpoint.write_json(
            folder / "environment.json", environment(folder, self.recipe, self.rows)
        )

    def finish(self, folder: Path, report: dict[str, Any]) -> None:
        """Write down what the session took, then the report, which marks the run as finished."""
        parameters = [*self.task.parameters()]
        past = sessions(folder)
        past[-1] |= {
            "seconds": round(time.perf_counter() - self.started, 2),
            "peak_memory_gb": peak_memory(self.accelerator.device),
            "parameters": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
        }
        checkpoint.write_json(folder / "environment.json", past)
        checkpoint.write_json(folder / "results.json", report)

    def weights(self) -> None:
        """Make the task's weights: those of the backbone, and the seed's."""
        share_cores(self.cfg.train.num_workers)
        seed_everything(self.cfg.train.seed)
        self.task.setup()
        if self.verb == "fit":
            sharding.shard_as_launched(self.task, self.accelerator)
        elif sharding.is_launched(self.accelerator):
            console.print(f"{self.verb} keeps the whole model on each device, FSDP or not")
        count = sum(p.numel() for p in self.task.parameters())
        trained = sum(p.numel() for p in self.task.parameters() if p.requires_grad)
        learning = f", of which {trained:,} train" if self.verb == "fit" else ""
        console.print(f"parameters: {count:,}{learning}")

    def say_cached(self) -> None:
        """How many outputs of backbones were looked up, over all processes."""
        for name, backbone in self.task.backbones.items():
            if not backbone.cache:
                continue
            counts = backbone.cache.counts
            if self.accelerator.num_processes > 1:
                from accelerate.utils import gather_object

                counts = sum(gather_object([counts]), Counter())
            console.print(f"{name}.cache: {backbone.cache.summary(counts)}")

    def load(self, path: Path) -> None:
        """Put a checkpoint's weights into the task."""
        checkpoint.restore(self.task, *checkpoint.load(path), path)

    def scores(self, split: str) -> list:
        """What the metrics compare on the rows of a split: [predictions, labels] in row order."""
        with Signals() as signals, warnings.catch_warnings(action="ignore"):
            return infer(
                self.task, self.rows, split, self.task.lengths, self.cfg.train, self.accelerator,
                metrics=self.task.metrics(), check=signals.check,
            )[1][:2]  # fmt: skip

    def predict(self, folder: Path, scored: bool) -> tuple[list[Path], dict[str, float], list]:
        """One pass over the split: the prediction file and what the task makes of it.

        With `scored` also metrics, and what they compared.
        """
        launch, split, accelerator = self.launch, self.split, self.accelerator
        file = folder / "predictions" / f"{self.label}.{launch.format}"
        key = {
            "weights": checkpoint.fingerprint(self.task, frozen_only=False),
            "rows": self.rows.digest,
            "settings": plain(self.cfg),
            "columns": launch.columns,
            "split": split,
        }
        if isinstance(self.model, Ensemble):
            key |= self.model.key
        writer = Writer(file, key)
        processes.on_main(lambda: writer.start(fresh=scored))
        metrics = self.model.metrics() if scored else None
        wanted = launch.profile and self.verb != "fit" and self.is_main
        with (
            Signals() as signals,
            traced(folder / "profile" / f"{self.verb}.json.gz", wanted) as tick,
        ):
            values, compared = infer(
                self.model, self.rows, split, self.task.lengths, self.cfg.train, accelerator,
                metrics=metrics, writer=writer, columns=launch.columns,
                check=lambda: (signals.check(), tick()), block_tokens=self.task.block_tokens,
            )  # fmt: skip
        accelerator.wait_for_everyone()
        files = [file]
        if accelerator.is_main_process:
            writer.finish()
            files += self.task.finish(file, self.rows, self.rows.splits[split])
        return files, values, compared


# --------------------------------------------------------------------------- verbs


def _fit(session: Session) -> int:
    cfg, launch, task = session.cfg, session.launch, session.task
    session.read(("train", "valid", "test"))
    tuning.check(cfg.train, all(getattr(cfg, name).frozen for name in task.tokenizers))
    if launch.dry_run:
        return _dry_run(session)
    session.join()
    if len(session.rows.splits["valid"]):
        known = ["loss", *task.metrics()]
        monitor = cfg.train.monitor
        if monitor not in known:
            raise InputError(
                f"--train.monitor {monitor}: no such metric.{nearest(monitor, known)} "
                f"There are {', '.join(known)}"
            )
    if launch.check:
        return _check(session)
    if launch.estimate:
        return _estimate(session)
    folder, resumed = run_folder(to_yaml(session.cfg), launch, session.recipe, session.rows)
    if (folder / "results.json").exists():
        console.print(f"{folder} is finished; results.json holds its metrics")
        return 0
    with held(folder):
        console.print(f"run directory: {folder}")
        try:
            processes.on_main(lambda: session.describe(folder))
            processes.on_main(lambda: checkpoint.check_writable(folder / "checkpoints"))
            session.weights()
            fit = Fit(
                task, session.rows, task.lengths, cfg.train, folder, launch.profile, session.zero
            )
        except InputError:
            if session.is_main and not resumed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if resumed:
            fit.restore()
        if session.is_main:
            restored = fit.state.step if resumed else None
            fit.trackers = trackers.start(launch.tracker, folder, plain(cfg), restored)
        state = fit.run()
        report = {"steps": state.step, "best_step": state.best}
        files = [folder / "checkpoints" / "best"]
        splits = session.rows.splits
        measured = task.kind and len(splits["valid"])
        if measured or len(splits["test"]):
            session.load(checkpoint_of(folder, "best"))
        if measured:
            files += session.calibrate(folder, session.scores("valid"))
        if len(splits["test"]):
            report["test"], more = _score(session, folder, fit.log)
            files += more
        else:
            console.print("no test rows: nothing to test on")
        trackers.finish(fit.trackers)
        if session.is_main:
            session.finish(folder, report)
    session.say_cached()
    console.print("files:", *(f"  {file}" for file in [*files, folder / "metrics.jsonl"]), sep="\n")
    return 0


def _apply(session: Session) -> int:
    """validate, test and predict: a run's weights, or a backbone as it is, on rows."""
    launch, verb = session.launch, session.verb
    if launch.estimate:
        raise InputError(f"--estimate is about training steps, which {verb} has none of; drop it")
    session.read((session.split,))
    if launch.dry_run:
        return _dry_run(session)
    session.join()
    if launch.check:
        return _check(session)
    folder = (
        Path(launch.run)
        if launch.run
        else run_folder(to_yaml(session.cfg), launch, session.recipe, session.rows)[0]
    )
    with held(folder):
        if not launch.run:
            processes.on_main(lambda: session.describe(folder))
        try:
            session.weights()
        except InputError:
            if session.is_main and not launch.run:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if session.source:
            session.load(session.checkpoint)
            console.print(f"weights: {session.checkpoint}")
            session.assemble()
        if verb == "predict":
            files = session.predict(folder, scored=False)[0]
        else:
            values, files = _score(session, folder)
            if session.is_main:
                files.append(files[0].with_suffix(".json"))
                checkpoint.write_json(files[-1], values)
        if session.is_main and not launch.run:
            session.finish(folder, {"rows": len(session.rows)})
    session.say_cached()
    console.print(f"{len(session.rows.splits[session.split]):,} rows. files:")
    console.print(*(f"  {file}" for file in files), sep="\n")
    return 0


def _score(session: Session, folder: Path, log=None) -> tuple[dict, list[Path]]:
    """Metrics next to their yardsticks, the prediction file and the figures of a split."""
    from mgen.metrics import results

    task, rows, split = session.task, session.rows, session.split
    files, values, compared = session.predict(folder, scored=True)
    if log:
        step = checkpoint.step_of((folder / "checkpoints" / "best").resolve())
        log({"step": step, "split": split, **values})
    if not session.is_main:
        return values, []
    yardsticks, drawn = {}, []
    numbers = compared.pop()
    if isinstance(session.model, Ensemble):
        stack, labels = compared
        more, yardsticks = session.model.report(stack, labels)
        values |= more
        drawn += session.model.reliability(folder / "figures" / session.label, stack, labels)
        compared = [stack[:, 0], labels]
    known = {}
    for name, (predicted, labels) in task.references(rows, np.sort(rows.splits[split])).items():
        metrics = task.metrics()
        for metric in metrics.values():
            metric.update(predicted, labels)
        if torch.equal(labels.float(), compared[1]):  # entry by entry the same things
            known[name] = predicted
        with warnings.catch_warnings(action="ignore"):  # no correlation with a constant
            yardsticks[name] = results(metrics)
    write_scored(files[0], task.kind, *compared, numbers, known)
    title = f"{session.recipe}, {len(rows.splits[split]):,} {split} rows"
    metric_table(title, {split: values, **yardsticks})
    with checkpoint.writing(folder / "figures"):
        drawn += task.figures(folder / "figures" / session.label, *compared)
    if session.verb == "validate" and session.launch.calibrated:
        drawn += session.calibrate(folder, compared)
    return values | yardsticks, [*files, *drawn]


def _check(session: Session) -> int:
    """What makes data, backbone, task and splits doubtful; nothing stands in the way of a run."""
    from mgen.audit import NEAR, say
    from mgen.data.checking.leakage import Finding, Report, report

    rows, data, found = session.rows, session.cfg.data, Report()
    notes = [Finding("look", note) for note in session.notes]
    if session.is_main and len(rows.splits.get("train", ())) and data.x_col in rows.columns:
        found = report(rows, NEAR, data.split_seed)
        notes = [note for note in notes if not any(word in note.text for word in REPORTED)]
    else:
        found.add("note", "what the splits leak was not looked at: no training rows or sequences")
    if session.task.kind == "numbers":
        for column, label in found.labels.items():
            if label["kind"] == "classes":
                values = [*next(iter(label["splits"].values()))["counts"]]
                some = ", ".join(values[:3] + ["..."] * (len(values) > 3))
                text = f"labels '{column}' look like classes ({some})"
                advice = "see whether they are measured; sequence_classification tells classes"
                notes.append(Finding("look", f"{text}, this task predicts numbers", advice))
    found.findings[:0] = notes
    found.sort()
    say(found)
    named = ", ".join(getattr(session.cfg, name).name for name in session.task.tokenizers)
    count = len(np.unique(np.concatenate(list(rows.splits.values()))))
    doubts = sum(finding.level != "note" for finding in found.findings)
    first = f", with {doubts} doubt{'s' * (doubts > 1)}: look at these first" if doubts else ""
    files = ", ".join(rows.names)
    console.print(f"{session.recipe} and {named} accept {count:,} rows of {files}{first}")
    return 0


def _estimate(session: Session) -> int:
    print_table("", needs(session).rows)
    return 0


def needs(session: Session) -> Needs:
    """What a run will need, from steps of it in a folder that is thrown away."""
    session.weights()
    with tempfile.TemporaryDirectory() as folder:
        task, rows, train = session.task, session.rows, session.cfg.train
        fit = Fit(task, rows, task.lengths, train, Path(folder), zero=session.zero)
        return estimate(fit)


def _dry_run(session: Session) -> int:
    task, cfg = session.task, session.cfg
    console.print(to_yaml(cfg), end="")
    some = next(rows for rows in session.rows.splits.values() if len(rows))
    batch = task.collator()(session.rows.take(some[: cfg.train.batch_size].tolist()))
    # Sizes need no weights: built without memory, from the same settings.
    chosen = {name: getattr(cfg, name) for name in task.tokenizers}
    bare = {n: dataclasses.replace(choice, random_weights=True) for n, choice in chosen.items()}
    task.cfg = dataclasses.replace(cfg, **bare)
    with torch.device("meta"):
        task.setup()
    count = sum(p.numel() for p in task.parameters())
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    console.print(f"parameters: {count:,}, of which {trained:,} train")
    for key, value in batch.items():
        console.print(f"batch {key}: {tuple(value.shape)} {value.dtype}")
    return 0


def seed_everything(seed: int) -> None:
    """Seed torch (all devices) and numpy."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def share_cores(workers: int) -> None:
    """Leave a core to each worker process, unless $OMP_NUM_THREADS says otherwise.

    Threads that wait for a core which another process holds spin: with as many threads as cores
    and anything else to do for them, small networks run several times slower.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))


def load_task(
    task_type: type[Task],
    config_type: type,
    folder: str | Path,
    name: str = "best",
    backbone: str = "",
) -> Task:
    """The task of a run with the weights of one of its checkpoints, ready to be called.

    `backbone` is the name or folder of its base where that is not the one it was trained under.
    """
    folder = existing_run(str(folder), remote_code=True)  # `Run` has asked
    path = checkpoint_of(folder, name)
    try:
        cfg = from_yaml(config_type(), folder / "config.yaml", backbone)
    except SystemExit:  # what is wrong was printed
        raise InputError(f"{folder / 'config.yaml'}: not settings of this recipe") from None
    task = task_type(cfg)
    tensors, saved = checkpoint.load(path)
    task.facts = saved["facts"]
    seed_everything(task.cfg.train.seed)
    task.setup()
    checkpoint.restore(task, tensors, saved, path)
    return task.eval()


def load_member(task: Task, source: Path, name: str, checkpoint_name: str, recipe: str) -> Task:
    """The task of the run `name`, to be averaged with `task`, which is that of the run `source`.

    Raises InputError unless both were trained on the same rows with the same settings, those of
    training and of the adapter aside.
    """
    ours = saved_settings(source)
    allowed = bool(ours["backbone"].get("remote_code"))  # of `source`, or it would not be loaded
    folder = existing_run(name, recipe, "main", allowed)
    theirs = saved_settings(folder)
    for settings in (ours, theirs):
        for key in ("name", "path", "valid_path", "test_path"):  # a table may have been moved
            settings["data"].pop(key, None)
        settings.pop("train", None)
        settings.pop("adapter", None)
    if odd := list(checkpoint.differences(ours, theirs)):
        raise InputError(f"--ensemble {name}: has other settings than {source}: {odd[0]}")
    rows = {past[0]["rows"] for past in map(sessions, (source, folder)) if past}
    if len(rows) > 1:
        raise InputError(
            f"--ensemble {name}: was trained on other rows than {source}, or on another split of "
            "them: one's test rows may be the other's training rows"
        )
    own, now = ours["backbone"]["name"], task.cfg.backbone.name
    moved = "" if own in (".", now) else now  # ".": an export, which brings its own
    member = load_task(type(task), type(task.cfg), folder, checkpoint_name, moved)
    if odd := [key for key in task.facts if member.facts.get(key) != task.facts[key]]:
        raise InputError(
            f"--ensemble {name}: has learned other facts from its rows than {source}: "
            f"{', '.join(odd)}"
        )
    member.labelled = task.labelled
    return member
