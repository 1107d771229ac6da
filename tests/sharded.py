"""Runs of sharded models in groups of processes, for test_sharding.py.

    python tests/sharded.py FOLDER

FOLDER holds rows.tsv and the checkpoints of KINDS. One process imports everything, then forks a
group of two, which trains each kind, and a group of three, which loads what the two have saved.
What they see goes to files in FOLDER.
"""

import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import accelerate
import datasets  # noqa: F401
import numpy as np
import peft  # noqa: F401
import tiny
import torch
import torch.distributed.fsdp  # noqa: F401  (before the group is forked)
import torch.distributed.tensor  # noqa: F401
import torchmetrics  # noqa: F401
import transformers  # noqa: F401
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from recipe_server import free_port
from safetensors.torch import save_file

from mgen import checkpoint, pieces
from mgen.data import Table
from mgen.engine import sharding
from mgen.engine.estimate import estimate
from mgen.engine.processes import Interrupted, Signals
from mgen.infer import infer
from mgen.loop import Fit
from mgen.predictions import Writer

# Each backbone, options of it, and the settings of its training.
KINDS = {
    "rnabert": ("aido_dna_debug", {"dropout": 0.1, "random_weights": True}, {"max_steps": 2}),
    "dense": ("aido_protein_debug", {"dropout": 0.0, "random_weights": True}, {"accumulate": 4}),
    "experts": ("FOLDER/experts", {"dropout": 0.0}, {}),
    "esm": (
        "FOLDER/esm",
        {"dropout": 0.0, "gradient_checkpointing": True, "random_weights": True},
        {},
    ),
    "transformers": ("FOLDER/modernbert", {}, {}),
    "lora": (
        "aido_dna_debug",
        {"dropout": 0.0, "random_weights": True, "lora_rank": 2, "lora_dropout": 0.0},
        {},
    ),
}


def settings(folder: Path, kind: str, processes: int):
    """24 rows are 5 batches of at most 5: a step takes `accumulate`, over all processes."""
    name, options, train = KINDS[kind]
    train = {"max_steps": 1, "batch_size": 5, "save_every": 1, "keep": 9, "accumulate": 2} | train
    train["accumulate"] //= processes
    return tiny.sequence_regression.Config(
        backbone=tiny.backbone(name.replace("FOLDER", str(folder)), **options),
        data=Table(path=str(folder / "rows.tsv"), split_col="part"),
        train=tiny.Train(lr=1e-3, workers=0, log_every=1, **train),
    )


def fit(folder: Path, kind: str, run: Path, plugin=None) -> Fit:
    """A run of a sharded task; with `plugin` as Accelerate's launcher has it on GPUs."""
    cfg = settings(folder, kind, processes=2)
    task, rows = tiny.prepared(cfg)
    if plugin:
        accelerate.Accelerator()
        for state in (PartialState, AcceleratorState):
            state._shared_state |= {"distributed_type": DistributedType.FSDP}
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        sharding.check(accelerate.Accelerator())
        sharding.shard_as_launched(task, accelerate.Accelerator())
    else:
        sharding.shard(task)
    run.mkdir(parents=True, exist_ok=True)
    return Fit(task, rows, task.lengths, cfg.train, run)


def wholes(fit: Fit) -> dict[str, torch.Tensor]:
    """Weights and optimiser, put together by torch."""
    states = checkpoint.optimiser_tensors(fit.optimiser.optimizer, fit.names)
    both = {**fit.task.state_dict(), **{f"optimizer/{k}": v for k, v in states.items()}}
    return {name: pieces.whole(value).clone() for name, value in both.items()}


def two(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import FSDPModule

    facts = {}
    for kind in KINDS:
        made = fit(folder, kind, folder / kind / "two")
        named = dict(made.task.named_modules())
        facts[kind] = [name for name, module in named.items() if isinstance(module, FSDPModule)]
        made.run()
        tensors = wholes(made)
        if rank == 0:
            save_file(tensors, folder / kind / "wholes.safetensors")
        if kind == "rnabert":
            again = folder / kind / "again"
            if rank == 0:
                first = folder / kind / "two" / "checkpoints" / "step-1"
                shutil.copytree(first, again / "checkpoints" / "step-1")
            made.accelerator.wait_for_everyone()
            resumed = fit(folder, kind, again)
            resumed.restore()
            assert resumed.state.step == 1
            resumed.run()
            predict(resumed, folder / "predictions" / "test.parquet")
            asked = {"fsdp_version": 2, "cpu_ram_efficient_loading": False}
            plugin = FullyShardedDataParallelPlugin(**asked)
            fit(folder, kind, folder / kind / "launched", plugin).run()
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
            AcceleratorState._reset_state(reset_partial_state=False)
    facts["estimate"] = {
        row["estimate"]: row["value"] for row in estimate(fit(folder, "dense", folder)).rows
    }
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


def predict(run: Fit, file: Path) -> None:
    """Seven test rows are one block: the second process has nothing to do of its own."""
    writer = Writer(file, {"weights": checkpoint.fingerprint(run.task, frozen_only=False)})
    if run.accelerator.is_main_process:
        file.parent.mkdir()
        writer.start(fresh=True)
    run.accelerator.wait_for_everyone()
    assert stopped(run, rank=1) == [signal.SIGTERM] * 2
    values, _ = infer(
        run.task, run.rows, "test", run.lengths, run.train, run.accelerator,
        metrics=run.task.metrics(), writer=writer,
    )  # fmt: skip
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        writer.finish()
        file.with_suffix(".json").write_text(json.dumps(values))


def stopped(run: Fit, rank: int) -> list[int]:
    """The signals that end a pass in each process when one of them gets SIGTERM."""
    number = 0
    with Signals() as signals:
        signals.number = signal.SIGTERM if run.accelerator.process_index == rank else 0
        try:
            infer(
                run.task, run.rows, "test", run.lengths, run.train, run.accelerator,
                metrics=run.task.metrics(), check=signals.check,
            )  # fmt: skip
        except Interrupted as error:
            number = error.number
    return gather_object([number])


def three(rank: int, folder: Path) -> None:
    """Into three pieces what two have saved, weights and optimiser."""
    for kind in ("rnabert", "lora"):
        made = fit(folder, kind, folder / kind / "three")
        made.unfreeze()
        path = (folder / kind / "two" / "checkpoints" / "last").resolve()
        tensors, saved = checkpoint.load(path)
        checkpoint.restore(made.task, tensors, saved, path)
        optimiser = made.optimiser.optimizer
        checkpoint.restore_optimiser(optimiser, made.names, tensors["optimizer"])
        loaded = wholes(made)
        if rank == 0:
            save_file(loaded, folder / kind / "three.safetensors")


def work(rank: int, world: int, port: int, folder: Path) -> None:
    os.environ |= {
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    accelerate.Accelerator()  # joins the group
    {2: two, 3: three}[world](rank, folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main(folder: Path) -> None:
    np.random.seed(0)
    for world in (2, 3):
        port, children = free_port(), []
        for rank in range(world):
            if not (child := os.fork()):
                code = 1
                try:
                    work(rank, world, port, folder)
                    code = 0
                finally:
                    sys.stdout.flush()
                    if code:
                        import traceback

                        traceback.print_exc()
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            sys.exit(f"group of {world}: exit codes {codes}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
