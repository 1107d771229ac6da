"""The loop: optimiser steps, evaluations, checkpoints.

Everything a run needs to go on from any step is in `State`, the weights, the optimiser and the
random state; which rows come next follows from the seed, the epoch and the place in it.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgen import checkpoint, pieces
from mgen.config import InputError
from mgen.data.batches import Batch
from mgen.engine import sharding, trackers
from mgen.engine.memory import free, is_full
from mgen.engine.order import Order, Step
from mgen.engine.processes import Interrupted, Signals, on_main
from mgen.engine.profiling import traced
from mgen.engine.throughput import Work, speed
from mgen.engine.zero import Zero
from mgen.infer import infer, summed
from mgen.report import console, number, progress, warn
from mgen.task import Task
from mgen.tuning import Tuning, anew, check_rates, join, lr_factor


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a run trains and evaluates."""

    epochs: int = 10  # passes over the training rows
    max_steps: int = 0  # optimiser steps, whatever the epochs; 0: set by epochs
    batch_size: int = 32  # rows per batch at most
    batch_tokens: int = 16384  # tokens per batch at most, padding included; 0: no limit
    shuffle_block: int = 0  # rows read from one place, for tables beyond memory; 0: any order
    accumulate: int = 1  # batches per optimiser step
    lr: float = 1e-4  # learning rate of AdamW
    weight_decay: float = 0.01  # of AdamW
    backbone_lr: float = 0.0  # learning rate of the backbone; 0: as lr
    backbone_weight_decay: float = -1.0  # of the backbone; -1: as weight_decay
    layer_decay: float = 1.0  # each block's share of the next one's rate (arXiv:2003.10555)
    unfreeze: str = ""  # YAML file: epochs and the modules that train from then on
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    clip: float = 1.0  # largest 2-norm of the gradient; 0: no clipping
    clip_value: float = 0.0  # largest element of the gradient, after that; 0: no clipping
    schedule: Literal["constant", "linear", "cosine"] = "cosine"  # of the learning rate
    decay_steps: int = 0  # steps in which the rate falls, which then stays; 0: all of the run
    decay_to: float = 0.0  # share of the rate that linear and cosine end at
    warmup_steps: int = 0  # steps of linear warm-up
    warmup_ratio: float = 0.0  # the same as a share of all steps, if warmup_steps is 0
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # mixed; auto: bf16 on GPUs with it
    seed: int = 42  # of weights, order and dropout
    workers: int = -1  # processes that read and tokenise; 0: none besides this; -1: by the cores
    eval_every: int = 0  # steps between evaluations; 0: after each epoch
    save_every: int = 0  # steps between checkpoints besides those at evaluations
    keep: int = 2  # newest checkpoints kept besides the best
    monitor: str = "loss"  # validation metric that decides which checkpoint is best
    patience: int = 0  # evaluations without a better one before training stops; 0: never
    log_every: int = 10  # steps between lines of metrics.jsonl

    def __post_init__(self) -> None:
        least = dict.fromkeys(("batch_size", "accumulate", "keep", "log_every"), 1)
        least |= {"backbone_weight_decay": -1, "workers": -1}
        for name, value in vars(self).items():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, int | float) and not least.get(name, 0) <= item < math.inf:
                    flag = f"--train.{name.replace('_', '-')}"
                    raise InputError(f"{flag} {item}: expected at least {least.get(name, 0)}")
        check_rates(self)

    @property
    def mixed_precision(self) -> str:
        """`precision`, or what suits this machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"

    @property
    def num_workers(self) -> int:
        """`workers`, or what suits this machine: a GPU waits for rows, a CPU for itself."""
        if self.workers >= 0:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        if torch.cuda.is_available():
            return max(1, min(8, cores // torch.cuda.device_count() - 1))
        return 1 if cores < 8 else 2


@dataclass
class State:
    """Where a run stands after `step` optimiser steps."""

    step: int = 0
    epoch: int = 0
    index: int = 0  # batches of this epoch already used, over all processes
    evaluated: int = -1  # step of the last evaluation
    best: int = -1  # step of the best evaluation
    best_value: float = math.nan
    worse: int = 0  # evaluations since the best one
    stopped: bool = False  # early, by patience
    processes: int = 1
    parts: int = 1  # in which each batch is computed since memory ran out
    zero: int = 0  # stage of DeepSpeed, which keeps the optimiser in pieces
    since_log: dict[str, float] = field(default_factory=dict)  # sums for the next log line


class Stopped(RuntimeError):
    """The run stopped before the optimiser step: it would do harm or cannot be made."""


class NotFinite(Stopped):
    """Loss or gradient is not finite."""


class NoGradient(Stopped):
    """A LoRA matrix does not learn."""


class OutOfMemory(Stopped):
    """Not even single rows fit, or processes wait for one that has no memory left."""


class Fit:
    """One training run in `folder`: `run()` trains from where the state stands to the end."""

    def __init__(
        self,
        task: Task,
        rows,
        lengths: np.ndarray,
        train: Train,
        folder: Path,
        profile: bool = False,
        zero: int = 0,
    ) -> None:
        from accelerate import Accelerator

        self.task, self.rows, self.lengths, self.train = task, rows, lengths, train
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.trackers: list = []  # they get what `log` writes
        self.accelerator = Accelerator(mixed_precision=train.mixed_precision)
        self.world, self.sharded = self.accelerator.num_processes, sharding.is_sharded(task)
        self.in_pieces = self.sharded or zero > 0  # something of what is trained
        self.profile = profile and self.accelerator.is_main_process
        self.state, self.saved = State(processes=self.world, zero=zero), (0, -1)
        self.tokens = torch.zeros(2, dtype=torch.int64)  # read, and with padding, by this process
        self.tuning, self.work = Tuning(task, train), Work(task)
        self.names = self.tuning.names
        self.fingerprint = checkpoint.fingerprint(task)
        self.order = Order(task, rows, lengths, train, self.accelerator)
        self.total = train.max_steps or self.order.steps_of(train.epochs)
        self.tuning.begin(folder, self.accelerator, self.order.steps_of, self.total)
        self.model, self.optimiser = self.task.to(self.accelerator.device), None
        self.unfreeze()
        torch.manual_seed(train.seed + self.accelerator.process_index)  # dropout

    # ------------------------------------------------------------- training

    def run(self) -> State:
        state, train = self.state, self.train
        if (left := self.folder / "parts.json").exists():
            state.parts = max(state.parts, json.loads(left.read_text())["parts"])
        console.print(f"training: {self.total} steps from step {state.step}")
        if state.step == 0 and state.evaluated < 0:
            self.task.initialise(self.order.once)
        stream, clock = self.stream(), time.perf_counter()
        self.task.train()
        trace = traced(self.folder / "profile" / "fit.json.gz", self.profile)
        with Signals() as signals, progress("fit", self.total, state.step) as bar, trace as tick:
            try:
                while True:
                    if self.due() and state.evaluated != state.step:
                        self.evaluate(signals)
                        self.save()
                    elif train.save_every and state.step % train.save_every == 0:
                        self.save()
                    self.check(signals)
                    if state.step >= self.total or state.stopped:
                        break
                    self.unfreeze()
                    epoch, index, group, batches = next(stream)
                    row = self.step(group, batches)
                    tick()
                    if row is None:  # out of memory: the same step again, in more parts
                        stream = self.stream()
                        continue
                    state.step, state.epoch, state.index = state.step + 1, epoch, index
                    if state.step % train.log_every == 0 or state.step == self.total:
                        row, clock = self.log_train(row, clock)
                        bar(state.step, f"loss {number(row['loss'])}")
            except Interrupted as stop:
                self.save()
                console.print(f"{stop}: saved step {state.step}; continue with --resume")
                raise
        self.tuning.start(math.inf)  # what the checkpoints hold is what counts as trained
        return state

    def stream(self) -> Iterator[Step]:
        """The steps that are left."""
        return self.order.stream(self.state, self.total - self.state.step)

    def unfreeze(self) -> None:
        """Let train what does from this epoch on: without a schedule, everything from the first."""
        groups = self.tuning.start(self.state.epoch, is_new=self.state.index == 0)
        if groups and self.state.zero:
            self.optimiser = Zero(self.task, groups, self.train.betas, self.state.zero)
        elif groups:
            joined = join(self.accelerator, self.model, self.optimiser, groups, self.train.betas)
            self.model, self.optimiser = joined
            self.task.train()

    def step(self, group: list[Batch], batches: list[dict]) -> dict[str, float] | None:
        """One optimiser step over `batches`; None if they did not fit into memory.

        Raises NotFinite before the weights change, OutOfMemory where smaller parts do not help.
        """
        accelerator, train, losses = self.accelerator, self.train, []
        try:
            losses, count = self.gradients(group, batches)
        except Stopped:
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
        if not losses:  # by now the error holds on to nothing
            self.halve(group)
            return None
        loss = sum(losses)
        norm = self.clip(train.clip or math.inf)
        loss = accelerator.reduce(loss) if self.world > 1 else loss
        finite = torch.isfinite(loss) and (accelerator.scaler or torch.isfinite(norm))
        if not (finite and count > 0):
            raise NotFinite(self.where(loss, count, norm, losses, batches))
        if wrong := self.tuning.watch.look(norm):
            raise NoGradient(f"step {self.state.step + 1}: {wrong}")
        factor = lr_factor(self.state.step, self.total, train)
        rates = self.tuning.set_rates(self.optimiser, factor)
        self.optimiser.step()
        self.tuning.watch.moved |= max(rates.values()) > 0 and not self.optimiser.step_was_skipped
        self.optimiser.zero_grad()
        self.add({"loss": loss.item(), "count": count.item()})
        for planned, batch in zip(group, batches, strict=True):
            if (mask := batch.get("attention_mask")) is not None:
                read = int(mask.sum()) if planned.counts else 0  # what only fills up is padding
                self.tokens += torch.tensor([read, mask.numel()])
        return {**rates, "grad_norm": norm.item()}

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients to a 2-norm of `largest` if theirs is larger; returns theirs.

        Then each element is cut at `clip_value`.
        """
        if not self.state.zero:
            norm = pieces.whole(self.accelerator.clip_grad_norm_(self.names, largest))
            if most := self.train.clip_value:
                for parameter in self.names:
                    if parameter.grad is not None:
                        pieces.own(parameter.grad).clamp_(-most, most)
            return norm
        if self.optimiser.is_mixed():
            raise Stopped(
                f"step {self.state.step + 1}: the rows of each process led through other parts of "
                "the network, so DeepSpeed has mixed up their gradients. Nothing was changed by "
                "this step. Go on with plain DDP or FSDP2, under another --name"
            )
        return self.optimiser.clip(largest)

    def gradients(self, group: list[Batch], batches: list[dict]) -> tuple[list[Tensor], Tensor]:
        """Sum of the losses of each batch, and what all of them count in all processes.

        Leaves the gradients of the mean over all that counts.
        """
        accelerator, losses, count, unit = self.accelerator, [], 0.0, None
        for i, (planned, batch) in enumerate(zip(group, batches, strict=True)):
            # Weights in pieces: gradients as well, or they would take the memory of whole ones.
            is_last = i == len(group) - 1
            wait = not (is_last or self.in_pieces)
            with accelerator.no_sync(self.model) if wait else nullcontext():
                part, number_ = self.forward(planned, batch)
                # One scale for all; of the right size, so that half-precision gradients fit.
                unit = torch.where(number_ > 0, number_, 1.0) if unit is None else unit
                try:
                    if self.state.zero:
                        self.optimiser.backward(part / unit, is_last)
                    else:
                        accelerator.backward(part / unit)
                except (RuntimeError, MemoryError) as error:
                    if self.world > 1 and is_full(error):
                        raise OutOfMemory(self.full()) from None
                    raise
            losses.append(part.detach())
            count = count + number_
        # So far: gradients of sum / unit, averaged over processes. Wanted: of sum / count.
        if self.world > 1 or len(group) > 1:
            held = self.optimiser.gradients() if self.state.zero else [p.grad for p in self.names]
            for gradient in held:
                if gradient is not None:
                    gradient.mul_(self.world * unit / count)
        return losses, count

    def forward(self, planned: Batch, batch: dict) -> tuple[Tensor, Tensor]:
        """Sum of the losses of a batch, and what all processes' batches of this place count."""
        part = None
        try:
            with self.accelerator.autocast():
                part, count = summed(self.task.loss(self.model(batch), batch))
        except (RuntimeError, MemoryError) as error:
            if self.world == 1 or not is_full(error):
                raise
        if part is None and self.in_pieces:  # the others wait within the pass
            raise OutOfMemory(self.full())
        if part is None:
            count = torch.full((), math.inf, device=self.accelerator.device)
        elif not planned.counts:
            part, count = part * 0, count * 0
        if self.world > 1:
            count = self.accelerator.reduce(count)
            if count.isinf():  # all processes turn back at the same place
                raise torch.OutOfMemoryError("a process has no memory left")
        return part, count

    def halve(self, group: list[Batch]) -> None:
        """Compute batches in twice as many parts from now on. Raises OutOfMemory at single ones."""
        state = self.state
        self.optimiser.zero_grad()
        free()
        rows = torch.tensor([max(len(b.rows) for b in group)], device=self.accelerator.device)
        if self.accelerator.gather(rows).max() == 1:
            longest = max(int(self.lengths[list(batch.rows)].max()) for batch in group)
            raise OutOfMemory(
                f"step {state.step + 1}: out of memory with single rows of up to {longest:,} "
                "tokens. Set --backbone.gradient-checkpointing, --backbone.lora-rank or a smaller "
                "--backbone.max-length, or use a device with more memory"
            )
        state.parts *= 2
        self.model, self.optimiser = anew(self.accelerator, self.model, self.optimiser)
        warn(
            f"step {state.step + 1}: out of memory. Each batch is computed in {state.parts} parts "
            "from here on, which gives the same steps; --estimate says what would fit"
        )

    def full(self) -> str:
        """What to say, and to leave for the next start, where the other processes wait for us."""
        checkpoint.write_json(self.folder / "parts.json", {"parts": 2 * self.state.parts})
        return (
            f"step {self.state.step + 1}: process {self.accelerator.process_index} ran out of "
            "memory while the others wait for it. Start again with --resume: batches are then "
            f"computed in {2 * self.state.parts} parts"
        )

    def add(self, values: dict[str, float]) -> None:
        since = self.state.since_log
        for key, value in values.items():
            since[key] = since.get(key, 0.0) + value

    def add_tokens(self) -> None:
        """Add the tokens of all processes since the last call to the next log line."""
        device, total = self.accelerator.device, self.tokens
        if self.world > 1:
            total = self.accelerator.reduce(total.to(device))
        self.add(dict(zip(("tokens", "padded_tokens"), total.tolist(), strict=True)))
        self.tokens = torch.zeros_like(self.tokens)

    def check(self, signals: Signals) -> None:
        """Raises Interrupted, in all processes at the same step, if a signal came to any."""
        if self.world > 1:
            number_ = torch.tensor([signals.number], device=self.accelerator.device)
            # One that comes during this is seen at the next step, by all.
            if agreed := int(self.accelerator.gather(number_).max()):
                raise Interrupted(agreed)
        else:
            signals.check()

    def where(
        self, loss: Tensor, count: Tensor, norm: Tensor, parts: list[Tensor], batches: list[dict]
    ) -> str:
        """What to look at: rows of all processes' batches whose loss is not finite, if any."""
        pairs = zip(map(torch.isfinite, parts), batches, strict=True)
        read = [(bool(good), batch["row"].tolist()) for good, batch in pairs]
        if self.world > 1:
            from accelerate.utils import gather_object

            read = gather_object(read)
        bad = [rows for good, rows in read if not good]
        which = " with a loss that is not finite" if bad else ""
        rows = [*dict.fromkeys(row for rows in bad or [rows for _, rows in read] for row in rows)]
        return (
            f"step {self.state.step + 1}: loss sum {loss.item()} over {count.item():g}, gradient "
            f"norm {norm.item()}; seed {self.train.seed}; rows of this step{which}: "
            + "; ".join(self.rows.where(row) for row in rows[:8])
            + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
            + ". Nothing was changed by this step. Lower --train.lr, or look at these rows."
        )

    # ------------------------------------------------------------- evaluation and files

    def due(self) -> bool:
        state, every = self.state, self.train.eval_every
        if state.step == self.total or state.stopped:
            return True
        return state.step > 0 and (state.step % every == 0 if every else state.index == 0)

    def evaluate(self, signals: Signals) -> None:
        """Evaluate on the validation rows; note whether this is the best step so far."""
        state, train = self.state, self.train
        before, state.evaluated = state.evaluated, state.step
        if not len(self.rows.splits["valid"]):
            state.best = state.step
            return
        try:
            metrics = self.task.metrics()
            values, _ = infer(
                self.task, self.rows, "valid", self.lengths, train, self.accelerator,
                metrics=metrics, check=signals.check,
            )  # fmt: skip
        except Interrupted:
            state.evaluated = before
            raise
        finally:
            self.task.train()
        higher = train.monitor != "loss" and metrics[train.monitor].higher_is_better
        value = values[train.monitor]
        better = value > state.best_value if higher else value < state.best_value
        if better or state.best < 0 or math.isnan(state.best_value):
            state.best, state.best_value, state.worse = state.step, value, 0
        else:
            state.worse += 1
            state.stopped = 0 < train.patience <= state.worse
        self.log({"step": state.step, "epoch": state.epoch, "split": "valid", **values})
        text = ", ".join(f"{key} {number(value)}" for key, value in values.items())
        star = " (best so far)" if state.best == state.step else ""
        console.print(f"step {state.step}, epoch {state.epoch}: valid {text}{star}")
        if state.stopped:
            console.print(f"stopped early: {train.monitor} no better for {state.worse} evaluations")

    def log_train(self, row: dict, clock: float) -> tuple[dict, float]:
        """Write the mean since the last line; times and rates in a field of their own."""
        self.add_tokens()
        since, now, device = self.state.since_log, time.perf_counter(), self.accelerator.device
        half = self.train.mixed_precision != "no"
        self.state.since_log = {}
        row = {
            "step": self.state.step,
            "epoch": self.state.epoch,
            "split": "train",
            "loss": since["loss"] / since["count"],
            **row,
            "tokens": int(since["tokens"]),
            "padding": round(1 - since["tokens"] / max(since["padded_tokens"], 1), 4),
            "time": {
                "seconds": round(now - clock, 4),
                "tokens_per_second": round(since["tokens"] / max(now - clock, 1e-9)),
                **speed(self.work.taken(), now - clock, device, half),
            },
        }
        self.log(row)
        return row, now

    def log(self, row: dict) -> None:
        file, line = self.folder / "metrics.jsonl", json.dumps(checkpoint.finite(row)) + "\n"

        def append() -> None:
            with checkpoint.writing(file), file.open("a") as stream:
                stream.write(line)
            trackers.log(self.trackers, row)

        on_main(append)

    def save(self) -> None:
        """Write a checkpoint of this step, point `best` and `last` to theirs, drop old ones."""
        state = self.state
        if self.saved == (state.step, state.evaluated):
            return
        self.saved = (state.step, state.evaluated)
        states = self._random_states()
        self.add_tokens()
        if self.in_pieces:  # each process writes its pieces
            self._save(states)
        else:
            on_main(lambda: self._save(states))

    def _save(self, states: dict[str, Tensor]) -> None:
        is_main = self.accelerator.is_main_process
        if is_main and (self.folder / "metrics.jsonl").exists():
            checkpoint.sync(self.folder / "metrics.jsonl")
        with self.tuning.all_that_train():
            tensors = checkpoint.split_lora(checkpoint.trained(self.task))
        if self.state.zero:
            tensors["optimizer"] = self.optimiser.tensors()
        elif self.optimiser:
            tensors["optimizer"] = checkpoint.optimiser_tensors(
                self.optimiser.optimizer, self.names
            )
        tensors["random"] = states
        saved = {
            "state": asdict(self.state),
            "facts": self.task.facts,
            "backbone": {"frozen_parameters_sha256": self.fingerprint},
            "data": {"rows_sha256": self.rows.digest},
        }
        if self.tuning.schedule:
            saved["unfreeze"] = self.tuning.schedule
        if self.accelerator.scaler:
            saved["scaler"] = self.accelerator.scaler.state_dict()
        saved |= checkpoint.lora_config(self.task)
        writers = sharding.writers() if self.in_pieces else {}
        checkpoint.save(self.checkpoints, self.state.step, tensors, saved, **writers)
        if is_main:
            self._point()
        if self.in_pieces:
            self.accelerator.wait_for_everyone()

    def _point(self) -> None:
        checkpoint.link(self.checkpoints, "last", self.state.step)
        if self.state.best >= 0:
            checkpoint.link(self.checkpoints, "best", self.state.best)
        checkpoint.prune(self.checkpoints, self.train.keep)

    def _random_states(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state()
        if self.world == 1:
            return states
        from accelerate.utils import gather_object

        every = gather_object([states])
        return {f"{k}.{rank}": v for rank, s in enumerate(every) for k, v in s.items()}

    def restore(self) -> None:
        """Go back to the newest complete checkpoint, or to the start if there is none."""
        is_main = self.accelerator.is_main_process
        if is_main:
            for problem in checkpoint.recover(self.checkpoints):
                warn(problem)
        self.accelerator.wait_for_everyone()
        found = checkpoint.newest(self.checkpoints)
        if not found:
            if is_main:
                checkpoint.cut_metrics(self.folder / "metrics.jsonl", {})
            console.print("no complete checkpoint yet: starting at step 0")
            return
        tensors, saved = checkpoint.load(found)
        if saved["data"]["rows_sha256"] != self.rows.digest:
            raise InputError(
                f"{found}: the rows of the table or its splits have changed since; a run goes on "
                "with the same rows, or under another --name from the start"
            )
        if saved["state"]["processes"] != self.world:
            raise InputError(
                f"{found}: written by {saved['state']['processes']} processes, this run has "
                f"{self.world}; continue with as many, or the rows of a step would differ"
            )
        if bool(saved["state"].get("zero")) != bool(self.state.zero):
            kind = "without" if self.state.zero else "with"
            raise InputError(
                f"{found}: written {kind} DeepSpeed, whose pieces do not fit other optimisers; "
                f"continue {kind} it"
            )
        with self.tuning.all_that_train():
            checkpoint.restore(self.task, tensors, saved, found, self.fingerprint)
        if self.state.zero:
            self.optimiser.restore(tensors["optimizer"])
        elif self.optimiser:
            checkpoint.restore_optimiser(self.optimiser.optimizer, self.names, tensors["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.state = State(**saved["state"])
        self.saved = (self.state.step, self.state.evaluated)
        if self.state.step:
            self.tuning.watch.idle = {}
        if is_main:
            steps = {"train": self.state.step, "valid": self.state.evaluated}
            checkpoint.cut_metrics(self.folder / "metrics.jsonl", steps)
            self._point()  # a kill may have come before `save` did
        suffix = f".{self.accelerator.process_index}" if self.world > 1 else ""
        torch.set_rng_state(tensors["random"]["cpu" + suffix])
        if self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random"]["cuda" + suffix])
        console.print(f"resumed from {found}")
