"""A trace of a few steps: what the machine did when."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mgen.checkpoint import whole
from mgen.report import console, warn

STEPS = 3  # traced, after a first one that is left out


@contextmanager
def traced(file: Path, wanted: bool) -> Iterator[Callable[[], None]]:
    """Trace the second to the fourth step; yields what to call after each step.

    Writes `file` (.json.gz, for chrome://tracing or ui.perfetto.dev) and beside it a table of the
    operators that took most of the time. Does nothing unless `wanted`.
    """
    if not wanted:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    steps = 0

    def tick() -> None:
        nonlocal steps
        steps += 1
        running.step()

    def write(found: profile) -> None:
        if steps < 2:
            warn("--profile: too few steps to trace; it takes two at least")
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as partial:
            packed = partial.with_name(f"{partial.name}.gz")  # how it is written goes by the name
            found.export_chrome_trace(str(packed))
            packed.rename(partial)
        by = "self_device_time_total" if found.profiler.use_device else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=30)
        file.with_name(file.name.removesuffix(".json.gz") + ".txt").write_text(table + "\n")
        console.print(f"profile of {STEPS} steps: {file}")

    plan = schedule(wait=0, warmup=1, active=STEPS, repeat=1)
    with profile(schedule=plan, on_trace_ready=write, profile_memory=True) as running:
        yield tick
