"""What goes wrong around a run ends it with one clear message; what was there is not lost."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
from faulty import Faulty
from test_crash import assert_equal_runs, content
from tiny import fresh_process  # noqa: F401

from mgen import checkpoint

FLAGS = ("--train.max-steps", "12", "--train.save-every", "2", "--train.eval-every", "6")
FLAGS += ("--train.batch-size", "4", "--train.workers", "0", "--train.log-every", "1")


@pytest.fixture(scope="module")
def server():
    return tiny.server()


@pytest.fixture(scope="module")
def whole(server):
    """The uninterrupted run of one and of two processes."""
    made: dict[int, Path] = {}

    def get(count: int) -> Path:
        if count not in made:
            assert server.run(f"whole{count}", *FLAGS, processes=count, recipe="faulty") == 0
            made[count] = server.run_folder(f"whole{count}", "faulty")
        return made[count]

    return get


def said(server) -> str:
    return " ".join(server.log.read_text().split())


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_way(server, name: str, count: int) -> list[int]:
    """A run that is in its first evaluation, after step 6, which takes a while."""
    slow = {"FAULT": "pause 2"}
    children = server.start(name, *FLAGS, processes=count, recipe="faulty", environment=slow)
    server.wait_for(server.run_folder(name, "faulty") / "checkpoints" / "step-4")
    return children


# --------------------------------------------------------------------------- the disk


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_full_disk_during_a_checkpoint_leaves_the_one_before(count, server, whole):
    name, options = f"full{count}", {"processes": count, "recipe": "faulty"}
    run = server.run_folder(name, "faulty")
    children = half_way(server, name, count)
    os.kill(children[-1], signal.SIGTERM)
    assert server.end() == [143] * count, server.log.read_text()
    step = os.readlink(run / "checkpoints" / "last")
    # A disk that takes 100 kB of a file refuses the weights, which need four times as much.
    assert server.run(name, *FLAGS, "--resume", **options, largest_file=100_000) == 2
    assert said(server).count("cannot be written") == 1, server.log.read_text()
    assert "Traceback" not in said(server)
    assert not [*run.glob("checkpoints/.step-*")]
    assert os.readlink(run / "checkpoints" / "last") == step
    assert not checkpoint.fault(run / "checkpoints" / step)
    assert server.run(name, *FLAGS, "--resume", **options) == 0, server.log.read_text()
    assert_equal_runs(whole(count), run)


@pytest.fixture
def run(tmp_path):
    """A finished run, its table of 40 rows beside it."""
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a", task=Faulty) == 0
    return tmp_path / "runs" / "faulty" / "a"


def predict(run: Path, *flags: str) -> int:
    return tiny.command(run.parents[2], "predict", "--run", str(run), *flags, task=Faulty)


def test_a_full_disk_during_prediction_leaves_no_file_and_the_blocks_before(
    run, monkeypatch, capsys
):
    assert predict(run) == 0
    file = run / "predictions" / "rows.parquet"
    expected = pq.read_table(file)
    file.unlink()
    write, written = pq.write_table, []

    def third_fails(table, place):
        written.append(place)
        Path(place).write_bytes(b"PAR1 and no more") if len(written) == 3 else write(table, place)
        if len(written) == 3:
            no_space()

    monkeypatch.setattr(pq, "write_table", third_fails)
    assert predict(run) == 2
    assert "rows.parquet: cannot be written" in capsys.readouterr().err
    (blocks,) = (p for p in run.glob("predictions/.rows.parquet.*") if p.is_dir())
    assert sorted(p.name for p in blocks.iterdir()) == ["00000000", "00000001"]
    assert not file.exists()
    written.clear()
    monkeypatch.setattr(pq, "write_table", lambda *a: [written.append(a), write(*a)])
    assert predict(run) == 0
    assert pq.read_table(file).equals(expected)
    assert "00000002" in str(written[0][1])  # the blocks before were not made again


def test_a_full_disk_when_blocks_are_joined_leaves_no_file(run, monkeypatch, capsys):
    monkeypatch.setattr(pq.ParquetWriter, "write_table", no_space)
    assert predict(run) == 2
    assert "rows.parquet: cannot be written ([Errno 28]" in capsys.readouterr().err
    assert [p.name for p in run.glob("predictions/*rows.parquet") if p.is_file()] == []
    monkeypatch.undo()
    assert predict(run) == 0


def test_a_place_that_takes_no_checkpoints_is_refused_before_training(run, capsys):
    # Rights to write do not bind root, so a file stands where the folder should be.
    folder = run.parents[2]
    (run / "results.json").unlink()
    (run / "checkpoints").rename(run / "aside")
    (run / "checkpoints").write_text("")
    assert tiny.command(folder, "--name", "a", "--resume", task=Faulty) == 2
    out, err = capsys.readouterr()
    assert f"{run / 'checkpoints'}: cannot be written" in err
    assert "parameters" not in out.rpartition("run directory")[2]


def test_a_new_run_that_can_write_no_checkpoints_leaves_no_folder(tmp_path, monkeypatch, capsys):
    tiny.table(tmp_path)
    write = Path.write_bytes
    refused = OSError(errno.EROFS, "Read-only file system")

    def read_only(self, content):
        if self.parent.name == "checkpoints":
            raise refused
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", read_only)
    assert tiny.command(tmp_path, "--name", "a", task=Faulty) == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "faulty" / "a").exists()


# --------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_a_batch_that_is_not_finite_in_one_process_stops_both_and_is_named(server):
    bad = {"FAULT": "nan 1 3"}
    code = server.run("nan", *FLAGS, processes=2, recipe="faulty", environment=bad)
    assert code == 70, server.log.read_text()
    text = said(server)
    assert text.count("with a loss that is not finite") == 1
    spoilt = text.partition("spoilt rows: ")[2].split()[:4]
    named = text.partition("not finite: ")[2].partition(". Nothing")[0].split("; ")
    assert [line.partition(", row ")[2].split()[0] for line in named] == [
        str(int(row) + 1) for row in spoilt
    ]


def worker_of(parent: int) -> int:
    import psutil

    end = time.monotonic() + 60
    while not (found := [p for p in psutil.Process(parent).children() if p.is_running()]):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0].pid


@pytest.mark.crash
def test_a_killed_worker_process_ends_the_run_with_one_message(server):
    flags = (*FLAGS, "--train.workers", "1", "--train.max-steps", "2000", "--train.eval-every", "0")
    (child,) = server.start("worker", *flags, recipe="faulty")
    last = server.run_folder("worker", "faulty") / "checkpoints" / "last"
    server.wait_for(last)
    os.kill(worker_of(child), signal.SIGKILL)
    assert server.end() == [75], server.log.read_text()
    assert said(server).count("a process that reads rows was killed") == 1
    assert "Traceback" not in said(server)
    assert not checkpoint.fault(last.resolve())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_goes_on(victim, server, whole):
    name = f"kill{victim}"
    children = half_way(server, name, 2)
    start = time.monotonic()
    os.kill(children[victim], signal.SIGKILL)
    codes = server.end()
    assert time.monotonic() - start < 30
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 75), server.log.read_text()
    assert said(server).count("another one has ended") == 1
    assert "Traceback" not in said(server)
    options = {"processes": 2, "recipe": "faulty"}
    assert server.run(name, *FLAGS, "--resume", **options) == 0, server.log.read_text()
    assert_equal_runs(whole(2), server.run_folder(name, "faulty"))


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_process_stops_both_in_evaluation(victim, number, server, whole):
    name = f"evaluation{victim}{number}"
    children = half_way(server, name, 2)
    os.kill(children[victim], number)
    assert server.end() == [128 + number] * 2, server.log.read_text()
    options = {"processes": 2, "recipe": "faulty"}
    assert server.run(name, *FLAGS, "--resume", **options) == 0, server.log.read_text()
    assert_equal_runs(whole(2), server.run_folder(name, "faulty"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_process_stops_both_in_prediction_which_goes_on(victim, server, whole):
    folder = whole(2) / "predictions"
    options = {"processes": 2, "recipe": "faulty"}
    assert server.run("whole2", "predict", **options) == 0, server.log.read_text()
    expected = pq.read_table(folder / "rows.parquet")
    (folder / "rows.parquet").unlink()
    slow = {"FAULT": "pause 0.5"}
    children = server.start("whole2", "predict", **options, environment=slow)
    end = time.monotonic() + 60
    while len(done := finished(folder)) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(children[victim], signal.SIGTERM)
    assert server.end() == [143, 143], server.log.read_text()
    kept = {block: block.stat().st_mtime_ns for block in finished(folder)}
    assert {*done} <= {*kept}
    assert not (folder / "rows.parquet").exists()
    options["processes"] = 2 - victim  # on one process as well
    assert server.run("whole2", "predict", **options) == 0, server.log.read_text()
    assert pq.read_table(folder / "rows.parquet").equals(expected)
    assert expected["row"].to_pylist() == list(range(40))


def finished(folder: Path) -> list[Path]:
    """Blocks of an unfinished prediction."""
    return [block for block in folder.glob(".rows.parquet.*/0*") if block.suffix != ".partial"]


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_and_the_run_goes_on(server, whole):
    slow = {"FAULT": "pause 60"}
    (child,) = server.start("twice", *FLAGS, recipe="faulty", environment=slow)
    server.wait_for(server.run_folder("twice", "faulty") / "checkpoints" / "step-4")
    time.sleep(0.5)  # into the evaluation, whose first batch takes a minute
    start = time.monotonic()
    os.kill(child, signal.SIGINT)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    assert server.end() == [130], server.log.read_text()
    assert time.monotonic() - start < 30
    assert server.run("twice", *FLAGS, "--resume", recipe="faulty") == 0, server.log.read_text()
    assert_equal_runs(whole(1), server.run_folder("twice", "faulty"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_second_run_into_one_directory_is_refused(count, server, whole):
    name = f"held{count}"
    run = server.run_folder(name, "faulty")
    assert server.run(name, *FLAGS, processes=count, recipe="faulty") == 0
    (run / "results.json").unlink()
    before, lock = content(run), checkpoint.lock(run)
    try:
        code = server.run(name, *FLAGS, "--resume", processes=count, recipe="faulty")
    finally:
        lock.close()
    assert code == 2, server.log.read_text()
    assert said(server).count("another process is writing to this run") == 1
    assert content(run) == before


# --------------------------------------------------------------------------- the clock


def test_the_newest_run_is_the_one_begun_last_when_the_clock_went_back(tmp_path):
    tiny.table(tmp_path)
    runs_ = tmp_path / "runs" / "faulty"
    assert tiny.command(tmp_path, "--name", "old", task=Faulty) == 0
    later = time.time() + 3600  # as if `old` had been begun before the clock was put back an hour
    os.utime(runs_ / "old" / "config.yaml", (later, later))
    assert tiny.command(tmp_path, "--name", "new", task=Faulty) == 0
    for name in ("old", "new"):
        (runs_ / name / "results.json").unlink()
    assert tiny.command(tmp_path, "--resume", task=Faulty) == 0
    assert [(runs_ / name / "results.json").exists() for name in ("old", "new")] == [False, True]


def test_a_run_goes_on_when_the_clock_went_back(tmp_path, monkeypatch):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "whole", task=Faulty) == 0
    assert tiny.command(tmp_path, "--name", "a", task=Faulty) == 0
    run = tmp_path / "runs" / "faulty" / "a"
    (run / "results.json").unlink()
    now, gmtime = time.time, time.gmtime
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    monkeypatch.setattr(time, "gmtime", lambda *a: gmtime(*(a or (now() - 3600,))))
    assert tiny.command(tmp_path, "--name", "a", "--resume", task=Faulty) == 0
    assert_equal_runs(tmp_path / "runs" / "faulty" / "whole", run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["time"]["seconds"] >= 0 for line in lines if "time" in line)
