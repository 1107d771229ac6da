"""A shuffled epoch over a table of millions of short rows: memory, first batch, rows per second.

`python -m tests.benchmarks.tables` alone; `make bench` runs it among the others.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

ROWS = 5_000_000
SEED = (42, 0)
BLOCK = 100_000


def write_parquet(file: Path, rows: int) -> None:
    """Random DNA of 20 to 79 letters with a random label."""
    import pyarrow as pa
    from pyarrow import parquet

    rng, letters = np.random.default_rng(0), np.frombuffer(b"ACGT", dtype=np.uint8)
    schema = pa.schema({"sequence": pa.string(), "label": pa.float64()})
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            ends = np.concatenate([[0], np.cumsum(rng.integers(20, 80, count))]).astype(np.int32)
            data = letters[rng.integers(0, 4, ends[-1])]
            buffers = (pa.py_buffer(ends.tobytes()), pa.py_buffer(data.tobytes()))
            texts = pa.StringArray.from_buffers(count, *buffers)
            writer.write_table(pa.table([texts, rng.normal(size=count)], schema=schema))


def large_table(rows: int = ROWS) -> dict[str, float]:
    """Figures of two processes: one that has never seen the table, one that opens it again."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        write_parquet(file, rows)
        words = [sys.executable, "-m", "tests.benchmarks.tables", str(file), f"{folder}/cache"]
        time.sleep(2.5)  # a file that has just been written is not taken for unchanged
        first, second = (json.loads(subprocess.check_output(words)) for _ in range(2))
    once = {
        "rows": rows,
        "open_and_validate_s": first["before_epoch_s"],
        "validation_peak_mb_over_imports": first["peak_mb_over_imports"],
    }
    return once | second


def epoch(file: str) -> dict[str, float]:
    """What a run does before its first step, then one epoch of raw rows from two workers."""
    import accelerate  # noqa: F401  (imports are not what is measured)
    import datasets  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
    import sequence_regression

    from mgen.backbones import backbone
    from mgen.data import Table
    from mgen.data.batches import Batch, loader, plan

    data = Table(path=file, test_fraction=0.0, valid_fraction=0.0)
    cfg = sequence_regression.Config(backbone=backbone("aido_dna_debug"), data=data)
    task, train = sequence_regression.SequenceRegression(cfg), cfg.train
    memory, begin = Memory(), time.perf_counter()
    rows = cfg.data.open()
    task.check(rows, ("train",))
    opened, indices = time.perf_counter(), rows.splits["train"]
    cut = plan(task.lengths[indices], train.batch_size, train.batch_tokens, SEED)
    wanted = (Batch(tuple(map(int, indices[positions])), 0) for positions in cut)
    made = loader(rows, wanted, _as_they_are, workers=2)
    delivered = len(next(made)["rows"])
    first = time.perf_counter()
    delivered += sum(len(batch["rows"]) for batch in made)
    seconds = time.perf_counter() - first
    assert delivered == len(indices), (delivered, len(indices))
    lengths = task.lengths[indices]
    padded = sum(len(positions) * int(lengths[positions].max()) for positions in cut)
    order = np.concatenate([indices[positions] for positions in cut])
    return {
        "before_epoch_s": round(opened - begin, 2),
        "first_batch_s": round(first - begin, 2),
        "epoch_rows": delivered,
        "batch_size": train.batch_size,
        "rows_per_s": round(delivered / seconds),
        **memory.over_imports(),
        "padding_efficiency": round(float(lengths.sum()) / padded, 4),
        "order_rho": round(float(np.corrcoef(np.arange(len(order)), order)[0, 1]), 4),
    }


def words(folder: Path, rows: int = 30_000) -> dict[str, float]:
    """Rows per second whose tokens are words of letters: tokenised, and looked up where kept."""
    import tokenizers
    from tokenizers import models, trainers
    from transformers import PreTrainedTokenizerFast

    from mgen.backbones.huggingface_tokenizer import HuggingFaceTokenizer
    from mgen.data import Table
    from mgen.data.checking.token_store import token_store

    folder.mkdir()
    file, made = folder / "rows.parquet", tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    write_parquet(file, rows)
    table = Table(path=str(file)).open(split=False)
    some = [row["sequence"] for row in table.take(range(2000))]
    special = ["[UNK]", "[PAD]"]
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, show_progress=False)
    made.train_from_iterator(some, trainer)
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    tokenizer = HuggingFaceTokenizer(str(folder), modality="dna")
    texts = [row["sequence"] for row in table.take(range(rows))]

    def rate() -> float:
        begin = time.perf_counter()
        for start in range(0, rows, 32):
            tokenizer.encode(texts[start : start + 32])
        return rows / (time.perf_counter() - begin)

    live = median(rate() for _ in range(3))
    tokenizer.stored = token_store(table, tokenizer)
    assert tokenizer.stored
    kept = median(rate() for _ in range(3))
    return {"live_rows_per_s": round(live), "kept_over_live": round(kept / live, 2)}


def _as_they_are(rows: list[dict]) -> dict:
    return {"rows": rows}


class Memory:
    """Peak of this process's memory since now, in MB: its own, and with mapped pages of files.

    With `children` theirs too; what a forked one shares with its parent counts again.
    """

    def __init__(self, children: bool = False) -> None:
        self.children = children
        self.start = self.peak = self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _now(self) -> np.ndarray:
        processes = ["self"]
        if self.children:
            tasks = Path("/proc/self/task").glob("*/children")
            processes += [child for task in tasks for child in task.read_text().split()]
        return np.sum([self._of(process) for process in processes], 0)

    def _of(self, process: str) -> np.ndarray:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:  # it has ended
            return np.zeros(2)
        found = dict(line.split(":", 1) for line in lines)
        kb = (found.get(key, "0").split()[0] for key in ("RssAnon", "VmRSS"))  # none of a zombie
        return np.array([int(size) / 1e3 for size in kb])

    def _watch(self) -> None:
        while True:
            self.peak = np.maximum(self.peak, self._now())
            time.sleep(0.02)

    def over_imports(self) -> dict[str, int]:
        own, resident = (self.peak - self.start).round().astype(int).tolist()
        return {"peak_mb_over_imports": own, "peak_with_mapped_pages_mb": resident}


def _words_alone() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MGEN_CACHE"] = f"{folder}/cache"
        return words(Path(folder) / "words")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps({"table": large_table(), "words": _words_alone()}, indent=2))
    else:
        os.environ["MGEN_CACHE"] = sys.argv[2]
        print(json.dumps(epoch(sys.argv[1])))
