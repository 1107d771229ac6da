"""mgen doctor: versions, devices, launcher, caches, and what is offline on this machine.

A part that cannot be read says why, and the others are printed all the same.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import tyro

from mgen.config import InputError, nearest
from mgen.io.files import cache_folder, clear_cache, kept_files
from mgen.report import print_table, size

PACKAGES = ("torch", "accelerate", "transformers", "datasets", "peft", "torchmetrics", "tyro")
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
LAUNCH = re.compile(r"(ACCELERATE|SLURM)_\w+|(LOCAL_|)(WORLD_SIZE|RANK)|MASTER_(ADDR|PORT)")
LAUNCH_SECONDS = 60  # for processes that only print a line
ABSENT = "absent: tests that read it are skipped"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print what this machine has; docs/runs.md says how caches are cleared."""

    json: bool = False  # print JSON instead of tables
    cache: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # folder of --backbone.cache to look at
    clear: str = ""  # delete a cache: mgen, hub, one repository of the hub, a folder of outputs


def doctor(words: Sequence[str]) -> None:
    """Print every part, or clear a cache and say what was freed."""
    options = tyro.cli(Options, args=list(words), prog="mgen doctor")
    if options.clear:
        freed = clear(options.clear)
        said = json.dumps({"cleared": options.clear, "bytes": freed})
        print(said if options.json else f"{options.clear}: {size(freed)} freed")
        return
    parts = PARTS | {"caches": partial(caches, options.cache)}
    found = {name: attempt(part) for name, part in parts.items()}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, facts in found.items():
        print_table(name, [{"what": key, "is": _text(value)} for key, value in facts.items()])


def attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts of a part, or what is wrong with it."""
    try:
        return part()
    except Exception as error:  # whatever it is, the other parts are wanted
        return {"wrong": " ".join(f"{type(error).__name__}: {error}".split())}


# --------------------------------------------------------------------------- parts


def versions() -> dict[str, Any]:
    """Python, this package, what it needs, and its extras with the line that installs them."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in ("mgen", *PACKAGES):
        found[name] = _version(name)
    for requirement in requires("mgen") or ():
        name, _, extra = requirement.partition("extra == ")
        if extra:
            package = re.match(r"[\w.-]+", name)[0]
            use = extra.strip("\"' ")
            absent = f"absent ({use}): pip install {package}"
            found[package] = installed if (installed := _version(package)) else absent
    return {name: value or "absent" for name, value in found.items()}


def devices() -> dict[str, Any]:
    """Cores and memory that may be used, GPUs."""
    import psutil

    is_linux = sys.platform == "linux"
    memory = psutil.virtual_memory()
    found: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if is_linux else os.cpu_count(),
        "memory": {"bytes": memory.total, "free": memory.available},
    }
    if limit := _cgroup("cpu.max"):
        quota, period = limit.split()
        found["cores allowed by the container"] = int(quota) / int(period)
    if limit := _cgroup("memory.max"):
        found["memory allowed by the container"] = {"bytes": int(limit)}
    import torch

    found["torch threads"] = torch.get_num_threads()
    found["CUDA of torch"] = torch.version.cuda or "none: a build for CPUs"
    if driver := shutil.which("nvidia-smi"):
        command = [driver, "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
        found["NVIDIA driver"] = (said.stdout or said.stderr).strip().splitlines()[0]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        with torch.cuda.device(i):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
            free, total = torch.cuda.mem_get_info()
        named = f"{facts.name}, capability {facts.major}.{facts.minor}, {bf16}"
        found[f"cuda:{i}"] = {"name": named, "bytes": total, "free": free}
    found["MPS"] = "yes" if torch.backends.mps.is_available() else "no"
    return found


def launcher() -> dict[str, Any]:
    """What `accelerate launch` would do, tried out, and what has started this process."""
    import yaml
    from accelerate.commands.config.config_args import default_config_file

    file = Path(default_config_file)
    found: dict[str, Any] = {"accelerate's default config": f"{file}, absent"}
    if file.exists():
        config = yaml.safe_load(file.read_text())
        names = ("distributed_type", "num_machines", "num_processes", "mixed_precision", "use_cpu")
        found["accelerate's default config"] = str(file)
        found |= {name: config[name] for name in names if name in config}
        if config.get("num_machines", 1) == 1:
            found["processes it starts"] = _started(int(config.get("num_processes", 1)))
    found |= {name: value for name, value in os.environ.items() if LAUNCH.fullmatch(name)}
    return found


def caches(outputs: Sequence[str] = ()) -> dict[str, Any]:
    """Sizes of the caches, and how each is cleared; `outputs` are folders of --backbone.cache."""
    hub, datasets = _hub_folders()
    found: dict[str, Any] = {
        "mgen": {"folder": str(cache_folder()), "clear": "mgen doctor --clear mgen"}
    }
    for kind, files in kept_files().items():
        total = sum(file.stat().st_size for file in files)
        found[f"mgen {kind}"] = {"files": len(files), "bytes": total}
    found["hub"] = {"folder": str(hub), "clear": "mgen doctor --clear hub, or its repository"}
    if hub.is_dir():
        for repo in sorted(_scan(hub).repos, key=lambda repo: -repo.size_on_disk):
            found[f"hub {repo.repo_id}"] = {"kind": repo.repo_type, "bytes": repo.size_on_disk}
    total = sum(f.stat().st_size for f in datasets.rglob("*") if f.is_file() and not f.is_symlink())
    found["datasets"] = {"folder": str(datasets), "bytes": total, "clear": "delete the folder"}
    for folder in outputs:
        from mgen.backbones.cache import sizes

        found[f"outputs {folder}"] = {"clear": f"mgen doctor --clear {folder}, or with /NAME"}
        for held in sizes(folder):
            used = time.strftime("last used %Y-%m-%d", time.gmtime(held.last_used))
            facts = {"holds": held.description, "bytes": held.bytes, "used": used}
            found[f"outputs {held.namespace}"] = facts
    return found


def network() -> dict[str, Any]:
    """What is offline by its variable."""
    on = {"1", "on", "yes", "true"}
    return {
        name: "offline" if os.environ.get(name, "").lower() in on else "may use the network"
        for name in OFFLINE
    }


def disk() -> dict[str, Any]:
    """Free space where runs, caches and temporary files go."""
    hub, _ = _hub_folders()
    places = {"runs (here)": Path("runs"), "mgen cache": cache_folder(), "hub cache": hub}
    places["temporary"] = Path(tempfile.gettempdir())
    found = {}
    for name, place in places.items():
        there = next(p for p in (place.resolve(), *place.resolve().parents) if p.exists())
        usage = shutil.disk_usage(there)
        found[name] = {"folder": str(place), "bytes": usage.total, "free": usage.free}
        if not os.access(there, os.W_OK):
            found[name]["folder"] += ", not writable"
    return found


def data() -> dict[str, Any]:
    """Files that are not part of the repository and that some tests and experiments read."""
    shared = Path(os.environ.get("MGEN_SHARED") or ROOT.parent / "shared")
    found = {"MGEN_SHARED": os.environ.get("MGEN_SHARED", "not set")}
    places = {f"shared {name}": shared / name for name in ("data", "weights", "golden")}
    places["fixtures of tests"] = Path(os.environ.get("MGEN_GOLDEN") or ROOT / "tests" / "golden")
    for name, place in places.items():
        found[name] = str(place) if place.is_dir() else f"{place}, {ABSENT}"
    return found


PARTS = {
    "versions": versions,
    "devices": devices,
    "launcher": launcher,
    "caches": caches,
    "network": network,
    "disk": disk,
    "data": data,
}


# --------------------------------------------------------------------------- clearing


def clear(name: str) -> int:
    """Delete what mgen has made in its cache, or repositories of the hub's; the bytes freed.

    Also a folder of --backbone.cache, or one network's outputs in it. Raises InputError for a name
    that is none of these.
    """
    if name == "mgen":
        return clear_cache()
    if Path(name).is_dir():
        return _clear_outputs(Path(name))
    hub, _ = _hub_folders()
    repos = list(_scan(hub).repos) if hub.is_dir() else []
    chosen = [repo for repo in repos if name in ("hub", repo.repo_id)]
    if not chosen and name != "hub":
        known = ["mgen", "hub", *(repo.repo_id for repo in repos)]
        raise InputError(f"--clear {name}: no such cache.{nearest(name, known)} See mgen doctor")
    revisions = [revision.commit_hash for repo in chosen for revision in repo.revisions]
    if not revisions:
        return 0
    deletion = _scan(hub).delete_revisions(*revisions)
    deletion.execute()
    return deletion.expected_freed_size


def _clear_outputs(folder: Path) -> int:
    from mgen.backbones import cache

    is_one = (folder / cache.FACTS).exists()
    place, namespace = (folder.parent, folder.name) if is_one else (folder, None)
    if not cache.sizes(place):
        raise InputError(f"--clear {folder}: no outputs of a backbone there; nothing was deleted")
    freed, left = cache.clear(place, namespace)
    if left:
        raise InputError(
            f"--clear {folder}: {size(freed)} freed, but a run uses {', '.join(left)}: try again "
            "when it has ended"
        )
    return freed


def _scan(hub: Path):
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(hub)


def _hub_folders() -> tuple[Path, Path]:
    """Where the hub's files and the tables made of them lie."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets"
    return Path(HF_HUB_CACHE).expanduser(), Path(datasets).expanduser()


# --------------------------------------------------------------------------- helpers


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cgroup(name: str) -> str:
    """A limit of the control group of this process, or "" if it has none."""
    file = Path("/sys/fs/cgroup") / name
    text = file.read_text().strip() if file.exists() else ""
    return "" if text.startswith("max") else text


def _started(expected: int) -> str:
    """How many processes `accelerate launch` starts here with its default config."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "count.py"
        script.write_text("print('process', flush=True)\n")
        command = [sys.executable, "-m", "accelerate.commands.launch", str(script)]
        outside = {k: v for k, v in os.environ.items() if not LAUNCH.fullmatch(k)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LAUNCH_SECONDS, env=outside
        )
    count = done.stdout.splitlines().count("process")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        return f"none: it left with {done.returncode}: {lines[-1]}"
    return str(count) if count == expected else f"{count}, although it says {expected}"


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    named = {"free": "{} free", "files": "{} files", "clear": "to clear: {}"}
    texts = [
        named.get(key, "{}").format(size(item) if key in ("bytes", "free") else item)
        for key, item in value.items()
    ]
    return ", ".join(texts)
