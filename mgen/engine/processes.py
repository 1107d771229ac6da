"""The processes of one run: how many there are, what they agree on, how one learns of another.

Every function here may be called with one process, where it does what it says without the others.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from mgen.config import InputError
from mgen.report import console, errors, warn

T = TypeVar("T")
# Launchers tell each process how many there are: torchrun, and MPI's two families.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
CPU_CONFIG = "recipes/configs/accelerate/cpu2.yaml"
POLL = 0.2  # seconds between two looks at what other processes have said
STOP = "mgen/stop"  # key of the signal that ends all processes


# --------------------------------------------------------------------------- launching


def asked(environment: Mapping[str, str]) -> int:
    """How many processes the launcher was asked for, by what it put into the environment.

    Raises InputError if it was asked for several and has started one.
    """
    for name in SIZES:
        if name in environment:
            return int(environment[name])
    # `accelerate launch` names a meeting point for several processes, also where it starts one.
    by_accelerate = "ACCELERATE_DYNAMO_BACKEND" in environment
    if by_accelerate and "MASTER_ADDR" in environment and not _inherited("MASTER_ADDR"):
        raise InputError(
            "accelerate launch was asked for several processes and has started one: that is what "
            "it does with --cpu, with MULTI_CPU in its settings, and without --multi_gpu where "
            f"there are not several GPUs. For several on a CPU: accelerate launch --config_file "
            f"{CPU_CONFIG} --num_processes N; for one: --num_processes 1"
        )
    return 1


def _inherited(name: str) -> bool:
    """Whether the launcher had this variable already when it was started, or nobody can tell."""
    import psutil  # comes with Accelerate

    try:
        return name in psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return True


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError unless this process is one of as many as were asked for, with a device each.

    Silences all but the first process of each machine, for what all are about to say alike.
    """
    world = asked(environment)
    console.quiet = errors.quiet = world > 1 and int(environment.get("LOCAL_RANK", 0)) > 0
    local = int(environment.get("LOCAL_WORLD_SIZE", 1))
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment  # its processes see the same GPUs
    gpus = torch.cuda.device_count() if local > 1 and by_torchrun else local
    if 0 < gpus < local and not _on_cpu(environment):
        raise InputError(
            f"{local} processes were started on this machine, which shows them {gpus} GPU"
            f"{'s' * (gpus > 1)}: set --num_processes to the number of GPUs of all machines"
        )
    by_accelerate = "ACCELERATE_DYNAMO_BACKEND" in environment
    if world > 1 and by_accelerate and not (_on_cpu(environment) or _has_accelerator()):
        raise InputError(
            f"accelerate launch was asked for {world} processes on GPUs, and none is to be seen "
            f"here. To use the CPU: accelerate launch --config_file {CPU_CONFIG}"
        )


def _on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether the launcher was told to use the CPU: by its own variable, or by hiding all GPUs."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").startswith("-1")
    return hidden or environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def _has_accelerator() -> bool:
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "mps"  # which has no way to talk to another one


def join(precision: str):
    """The Accelerator of this process in its place among those of the launcher.

    `precision` as in `Train`. Raises InputError if it finds fewer processes than were started.
    """
    from accelerate import Accelerator

    world = asked(os.environ)
    # By itself it takes processes on a CPU for runs of their own.
    accelerator = Accelerator(mixed_precision=precision, cpu=world > 1 and not _has_accelerator())
    console.quiet, errors.quiet = not accelerator.is_main_process, False
    if accelerator.num_processes < world:
        raise InputError(
            f"the launcher started {world} processes, of which this one finds "
            f"{accelerator.num_processes}: each would be a run of its own. Use accelerate launch "
            "with one of recipes/configs/accelerate/, or torchrun"
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        warn(f"mixed_precision {launched} of accelerate's settings is not used: --train.precision")
    if world > 1:
        console.print(f"{world} processes, this one on {accelerator.device.type}")
    return accelerator


# --------------------------------------------------------------------------- agreeing


def several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and num_processes() > 1


def num_processes() -> int:
    return distributed.get_world_size()


def on_main(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all; an InputError there is raised in all."""
    if not several():
        return work()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome = [work(), None]
        except InputError as error:
            outcome = [None, error]
    distributed.broadcast_object_list(outcome)
    result, error = outcome
    if error:
        raise error
    return result


@contextmanager
def together() -> Iterator[None]:
    """Work of another length in each process: an InputError or a signal in one ends it in all.

    The others learn of it where they call `Signals.check`; all raise the same.
    """
    own = None
    try:
        yield
    except (InputError, Interrupted) as error:
        if not several():
            raise
        own = error
        _store().set(STOP, str(getattr(error, "number", signal.SIGTERM.value)))
    if several():
        found: list[Any] = [None] * num_processes()
        distributed.all_gather_object(found, own)
        ended = sorted(filter(None, found), key=lambda error: isinstance(error, Interrupted))
        if ended:
            raise ended[0]


def is_first_to_say(text: str) -> bool:
    """Whether no other process of this run has said this."""
    if not several():
        return True
    try:
        return _store().add(f"mgen/said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # the process that keeps count is gone
        return True


def why(error: RuntimeError) -> str:
    """What ended this process's part of the run from outside, or "" if that is not what `error` is.

    A worker process or another process of the run was killed.
    """
    text = str(error)
    if "DataLoader worker" in text:
        return (
            f"a process that reads rows was killed ({text.splitlines()[0]}). Mostly memory ran "
            "out: fewer --train.workers need less. --resume goes on from the last checkpoint"
        )
    if several() and (isinstance(error, distributed.DistError) or "gloo/" in text):
        return (
            f"process {distributed.get_rank()} of {num_processes()} cannot go on: another one has "
            "ended, look at what that says. --resume goes on from the last checkpoint"
        )
    return ""


def _store() -> Any:
    """Text by key, for all processes to read and write without waiting for one another."""
    return distributed.distributed_c10d._get_default_store()


# --------------------------------------------------------------------------- signals


class Interrupted(RuntimeError):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class Signals:
    """Turns SIGINT and SIGTERM into a flag that is looked at between batches.

    A second one ends the process at once.
    """

    def __enter__(self) -> "Signals":
        self.number, self.looked = 0, time.monotonic()
        self.old = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for signum, handler in self.old.items():
            signal.signal(signum, handler)

    def _note(self, number: int, frame) -> None:
        self.number = number
        # A process that waits for another runs no Python, so nothing of ours would be called.
        signal.signal(number, signal.SIG_DFL if several() else self.old[number])

    def check(self) -> None:
        """Raise Interrupted if a signal came, to this process or to one that said so."""
        if not self.number and several() and time.monotonic() - self.looked > POLL:
            self.looked, store = time.monotonic(), _store()
            if store.check([STOP]):  # nothing else may touch the flag: a signal may come any time
                self.number = int(store.get(STOP))
        if self.number:
            raise Interrupted(self.number)
