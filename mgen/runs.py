"""Run directories: which one a run has, whether it may go on there, what it says of itself."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mgen import checkpoint, hub
from mgen.config import InputError
from mgen.engine.processes import on_main
from mgen.report import console

PACKAGES = ("torch", "accelerate", "transformers", "datasets", "torchmetrics", "peft", "mgen")


def existing_run(
    path: str, recipe: str = "", revision: str = "main", remote_code: bool = False
) -> Path:
    """The folder of a run, of `recipe` if that is given; a hub id is downloaded.

    Raises InputError, also for a run whose backbone would run code of its own: a folder that may
    come from anyone cannot ask for that, only `remote_code` of whoever uses it can.
    """
    fetched = hub.is_hub_id(path)
    folder = hub.download(path, revision) if fetched else Path(path)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"--run {path}: not a run directory (it has no config.yaml)")
    if not (folder / "config.yaml").stat().st_size:
        raise InputError(f"--run {path}: damaged, its config.yaml is empty")
    chosen = [c for n, c in saved_settings(folder).items() if n.startswith("backbone")]
    if any(isinstance(choice, dict) and choice.get("cache") for choice in chosen):
        raise InputError(
            f"--run {path}: its config.yaml names a folder to write to (backbone.cache), which no "
            "run saves. Take that line out, and set --backbone.cache yourself"
        )
    has_code = any(isinstance(choice, dict) and choice.get("remote_code") for choice in chosen)
    if has_code and fetched:
        raise InputError(
            f"--run {path}: its backbone brings Python files of its own, which are not run for a "
            "name of the hub. Download it (`hf download`), read them, and give the folder's path"
        )
    if has_code and not remote_code:
        raise InputError(
            f"--run {path}: its backbone brings Python files of its own, which run only with "
            "--backbone.remote-code (remote_code=True). Read them first: they can do what you can"
        )
    made_by = [session["recipe"] for session in sessions(folder)]
    if recipe and made_by and made_by[0] != recipe:
        raise InputError(f"--run {path}: a run of {made_by[0]}, not of {recipe}")
    return folder


def saved_settings(folder: Path) -> dict:
    """config.yaml of a run, as it is written. Raises InputError if it is damaged."""
    import yaml

    try:
        found = yaml.safe_load((folder / "config.yaml").read_text())
        if isinstance(found["backbone"], dict) and isinstance(found["data"], dict):
            return found
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        pass
    raise InputError(f"{folder / 'config.yaml'}: not the settings of a run, or damaged")


def sessions(folder: Path) -> list[dict]:
    """What environment.json holds, oldest first. Raises InputError if it is damaged."""
    file = folder / "environment.json"
    return read_json(file) if file.exists() else []


def read_json(file: Path) -> Any:
    """A JSON file of a run. Raises InputError if it is damaged."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}). Delete it to go on without it") from None


def checkpoint_of(folder: Path, name: str) -> Path:
    path = folder / "checkpoints" / name
    if not path.is_dir():
        there = sorted(p.name for p in (folder / "checkpoints").glob("[!.]*"))
        raise InputError(f"{folder}: no checkpoint '{name}'; there are: {', '.join(there) or '-'}")
    if problem := checkpoint.fault(path):
        raise InputError(f"{path}: {problem}. Choose another with --checkpoint")
    return path


def run_folder(settings: str, launch, recipe: str, rows) -> tuple[Path, bool]:
    """The directory of a run, the same on every process, and whether it shall go on there.

    `settings`: the run's config.yaml. Raises InputError rather than mix runs.
    """

    def choose() -> tuple[Path, bool]:
        found = _choose_folder(settings, launch, Path(launch.out) / recipe, rows)
        try:
            found[0].mkdir(parents=True, exist_ok=True)
            (found[0] / ".lock").touch()
        except OSError as error:
            raise InputError(f"{found[0]}: cannot write there ({error.strerror})") from None
        return found

    return on_main(choose)


def _choose_folder(settings: str, launch, runs: Path, rows) -> tuple[Path, bool]:
    digest = rows.digest
    if launch.resume and not (launch.run or launch.name):
        unfinished = [
            file.parent
            for file in sorted(runs.glob("*/config.yaml"), key=lambda f: f.stat().st_mtime)
            if file.read_text() == settings and not (file.parent / "results.json").exists()
            if all(past["rows"] == digest for past in sessions(file.parent))
        ]
        if unfinished:
            return unfinished[-1], True
        console.print(f"no unfinished run with these settings in {runs}: starting one")
    if launch.resume and launch.run:
        folder = Path(launch.run)
    elif launch.name:
        folder = runs / launch.name
    else:
        short = sha256(settings.encode()).hexdigest()[:6]
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{short}"
        taken = len(list(runs.glob(f"{stamp}*")))
        folder = runs / (f"{stamp}-{taken + 1}" if taken else stamp)
    if not (folder / "config.yaml").is_file():
        if folder.exists() and any(p.name[0] != "." for p in folder.iterdir()):
            raise InputError(f"{folder}: holds other files and is no run; choose another --name")
        return folder, False
    if not launch.resume:
        raise InputError(f"{folder}: holds a run already; --resume it or choose another --name")
    best = folder / "checkpoints" / "best"
    if best.is_dir() and not best.is_symlink():
        raise InputError(
            f"{folder}: was exported, without what resuming needs. Start anew from it: --run alone"
        )
    import yaml

    old = yaml.safe_load((folder / "config.yaml").read_text())
    changed = list(checkpoint.differences(old, yaml.safe_load(settings)))
    if changed:
        raise InputError(
            f"{folder}: was started with other settings: {'; '.join(changed)}. Runs are never "
            "mixed: use the same settings, or another --name"
        )
    if any(past["rows"] != digest for past in sessions(folder)):
        raise InputError(
            f"{folder}: was started with other rows than {', '.join(rows.names)} now. Runs "
            "are never mixed: restore the table, or choose another --name"
        )
    return folder, True


def mark_newest(folder: Path) -> None:
    """Make the run the newest of those beside it, also where the clock has been put back."""
    file = folder / "config.yaml"
    times = [f.stat().st_mtime for f in folder.parent.glob("*/config.yaml") if f != file]
    if times and file.stat().st_mtime <= max(times):
        os.utime(file, (max(times) + 1,) * 2)


@contextmanager
def held(folder: Path):
    """Hold the run directory. Raises InputError in all processes if another run has it."""
    locks: list = []  # of the first process alone
    on_main(lambda: locks.append(checkpoint.lock(folder)))
    try:
        yield
    finally:
        for lock in locks:
            lock.close()


def environment(folder: Path, recipe: str, rows) -> list[dict]:
    """Versions, device and command of every session of this run, newest last."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    now = {
        "recipe": recipe,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "rows": rows.digest,
        "splits": {name: len(numbers) for name, numbers in rows.splits.items()},
        "plan": rows.plan,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "threads": torch.get_num_threads(),
    }
    return [*sessions(folder), now]
