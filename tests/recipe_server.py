"""Runs recipes in processes of their own, without the seconds that imports take.

One process imports everything, then forks for each line on its standard input: a JSON object with
the recipe's name, its command line, the file that takes its output, how many processes share the
run, more `environment`, the bytes of the `largest_file` that the disk takes and, to die by SIGKILL
at the n-th file operation under a folder, `kill_at` and `under`. It answers with the process ids,
and with their exit statuses when all have ended.
"""

import importlib
import json
import os
import resource
import signal
import socket
import sys

import accelerate  # noqa: F401
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import peft  # noqa: F401
import torchmetrics  # noqa: F401

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink"}


def die_at(count: int, folder: str) -> None:
    """End this process, not those it forks, at its `count`-th file operation under `folder`."""
    left, own = count, os.getpid()

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(folder) and os.getpid() == own:
            left -= 1
            if left < 0:
                os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)


def work(order: dict, rank: int, port: int) -> None:
    os.setpgid(0, 0)
    if order["processes"] > 1:  # as `accelerate launch --cpu` does it
        os.environ |= {
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(order["processes"]),
            "LOCAL_WORLD_SIZE": str(order["processes"]),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GLOO_SOCKET_IFNAME": "lo",
        }
    os.environ |= order.get("environment", {})
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if "largest_file" in order:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], most))
    if "kill_at" in order:
        die_at(order["kill_at"], order["under"])
    sys.argv = [order["recipe"], *order["argv"]]
    from mgen.task import Task
    from mgen.train import run

    module = importlib.import_module(order["recipe"])
    types = [value for value in vars(module).values() if isinstance(value, type)]
    (task,) = (kind for kind in types if issubclass(kind, Task) and kind is not Task)
    run(task, module.Config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    importlib.import_module("mgen.train")
    children: list[int] = []
    for line in sys.stdin:
        for child in children:
            os.waitpid(child, 0)
        order, children, port = json.loads(line), [], free_port()
        for rank in range(order["processes"]):
            if not (child := os.fork()):
                work(order, rank, port)  # ends with SystemExit
            children.append(child)
        print(json.dumps(children), flush=True)
        # Their ids stay theirs until the next order, so that no signal reaches another process.
        ended = [os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT) for child in children]
        codes = [e.si_status if e.si_code == os.CLD_EXITED else -e.si_status for e in ended]
        print(json.dumps(codes), flush=True)
