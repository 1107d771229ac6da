"""Prediction files: each row once and in order, in every format, however often interrupted."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from conftest import golden
from safetensors.torch import load_file
from sequence_regression import SequenceRegression
from tiny import fresh_process  # noqa: F401

from mgen import infer
from mgen.config import InputError
from mgen.predictions import Writer, blocks

BLOCKS = [
    {
        "row": torch.tensor([0, 1, 2]),
        "value": torch.tensor([0.5, -1.0, 2.0]),
        "pair": torch.tensor([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]]),
        "tokens": [torch.tensor([1.0]), torch.tensor([2.0, 3.0]), torch.tensor([])],
        "matrix": [torch.ones(1, 2), torch.zeros(2, 2), torch.ones(0, 2)],
        "text": ["a\tb", 'say "c"', "new\nline"],
        "gap": [None, None, None],
        "list": [[], [], []],
        "flag": torch.tensor([True, False, True]),
    },
    {
        "row": torch.tensor([3, 4]),
        "value": torch.tensor([0.1, 1e-8]),
        "pair": torch.tensor([[6.0, 7.0], [8.0, 9.0]]),
        "tokens": [torch.tensor([4.0, 5.0]), torch.tensor([6.0])],
        "matrix": [torch.ones(2, 2), torch.zeros(1, 2)],
        "text": ["", "ünï"],
        "gap": ["x", None],
        "list": [["p", "q"], []],
        "flag": torch.tensor([False, False]),
    },
]


def plain(values):
    return [v.tolist() if isinstance(v, torch.Tensor) else v for v in values]


EXPECTED = {name: plain(BLOCKS[0][name]) + plain(BLOCKS[1][name]) for name in BLOCKS[0]}


def written(file: Path, order=(0, 1), key="k", only=None) -> Path:
    writer = Writer(file, key)
    writer.start(fresh=False)
    for block in order:
        columns = BLOCKS[block].items()
        writer.write(block, {n: v for n, v in columns if only is None or n in only})
    return writer.finish()


# --------------------------------------------------------------------------- formats


def test_parquet_holds_every_column_in_order(tmp_path):
    table = pq.read_table(written(tmp_path / "a.parquet"))
    assert table.column_names == list(BLOCKS[0])
    assert table.to_pydict() == EXPECTED


def test_tsv_holds_every_column_in_order(tmp_path):
    with written(tmp_path / "a.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert list(rows[0]) == list(BLOCKS[0])
    assert [row["text"] for row in rows] == EXPECTED["text"]
    assert [row["gap"] for row in rows] == ["", "", "", "x", ""]
    for name in ("row", "value"):
        assert [float(row[name]) for row in rows] == EXPECTED[name]
    for name in ("pair", "tokens", "matrix", "list"):
        assert [json.loads(row[name]) for row in rows] == EXPECTED[name]


def test_safetensors_hold_tensors_and_the_rest_lies_beside(tmp_path):
    tensors = load_file(written(tmp_path / "a.safetensors"))
    for name in ("row", "value", "pair", "flag"):
        assert torch.equal(tensors[name], torch.cat([block[name] for block in BLOCKS]))
    beside = pq.read_table(tmp_path / "a.rows.parquet")
    assert beside.to_pydict() == {name: EXPECTED[name] for name in ("text", "gap", "list")}


@pytest.mark.parametrize("name", ["tokens", "matrix"])
def test_ragged_rows_in_safetensors_are_told_apart_by_their_lengths(name, tmp_path):
    tensors = load_file(written(tmp_path / "a.safetensors"))
    rows = torch.split(tensors[name], tensors[f"{name}.lengths"].tolist())
    assert [row.tolist() for row in rows] == EXPECTED[name]


def test_tensors_alone_need_no_file_beside(tmp_path):
    tensors = load_file(written(tmp_path / "a.safetensors", only=("row", "value")))
    assert sorted(tensors) == ["row", "value"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_numbers_of_every_kind_are_kept(dtype, tmp_path):
    values = torch.tensor([1.5, -2.0, 3.25]).to(dtype)
    for suffix in ("parquet", "safetensors"):
        writer = Writer(tmp_path / f"a.{suffix}", dtype.is_floating_point)
        writer.start(fresh=True)
        writer.write(0, {"value": values})
        file = writer.finish()
        if suffix == "parquet":
            assert pq.read_table(file)["value"].to_pylist() == values.tolist()
        else:
            assert torch.equal(load_file(file)["value"], values)


def test_another_format_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="a.npz: predictions are written as .parquet, .tsv"):
        Writer(tmp_path / "a.npz", "k")


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="no rows to predict"):
        written(tmp_path / "a.parquet", order=())


# --------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("suffix", ["parquet", "tsv", "safetensors"])
def test_blocks_are_joined_in_order_whenever_they_were_written(suffix, tmp_path):
    once = written(tmp_path / f"a.{suffix}").read_bytes()
    assert written(tmp_path / f"b.{suffix}", order=(1, 0)).read_bytes() == once


@pytest.mark.parametrize("suffix", ["parquet", "tsv", "safetensors"])
def test_nothing_but_the_result_is_left(suffix, tmp_path):
    written(tmp_path / f"a.{suffix}", only=("row", "value"))
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{suffix}"]


def interrupted(file: Path, key="k") -> Writer:
    """A writer that stopped after block 0 and half of block 1."""
    writer = Writer(file, key)
    writer.start(fresh=False)
    writer.write(0, BLOCKS[0])
    half = writer.folder / "00000001.partial"
    half.mkdir()
    (half / "columns.parquet").write_bytes(b"PAR1")
    return writer


def test_a_finished_block_is_used_again_if_all_it_depends_on_is_equal(tmp_path):
    interrupted(tmp_path / "a.parquet", {"weights": "x", "n": [1]})
    again = Writer(tmp_path / "a.parquet", {"n": [1], "weights": "x"})
    again.start(fresh=False)
    assert again.has(0)


@pytest.mark.parametrize(("key", "fresh"), [("other", False), ("k", True)])
def test_stale_blocks_are_dropped(key, fresh, tmp_path):
    old = interrupted(tmp_path / "a.parquet")
    again = Writer(tmp_path / "a.parquet", key)
    again.start(fresh=fresh)
    assert not again.has(0)
    assert old.folder == again.folder or not old.folder.exists()


@pytest.mark.parametrize("name", ["b.parquet", "a.parquet.tsv", "[ab].parquet"])
def test_blocks_of_other_files_are_left_alone(name, tmp_path):
    other = interrupted(tmp_path / "a.parquet")
    Writer(tmp_path / name, "k").start(fresh=True)
    assert other.has(0)


def test_a_half_written_block_is_ignored_and_written_anew(tmp_path):
    interrupted(tmp_path / "a.parquet")
    again = Writer(tmp_path / "a.parquet", "k")
    again.start(fresh=False)
    assert not again.has(1)
    again.write(1, BLOCKS[1])
    assert pq.read_table(again.finish()).to_pydict() == EXPECTED


def test_half_a_result_is_ignored_and_replaced(tmp_path):
    (tmp_path / ".a.parquet.partial").write_bytes(b"PAR1")
    assert pq.read_table(written(tmp_path / "a.parquet")).to_pydict() == EXPECTED
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_an_older_result_stays_until_the_new_one_is_whole(tmp_path):
    before = written(tmp_path / "a.parquet").read_bytes()
    interrupted(tmp_path / "a.parquet", "other")
    assert (tmp_path / "a.parquet").read_bytes() == before


# --------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("tokens", [1, 64, 1000, 10**9])
def test_blocks_cover_neighbours_once_and_in_order(tokens):
    lengths = np.random.default_rng(0).integers(1, 100, size=500)
    cut = blocks(lengths, tokens)
    assert np.array_equal(np.concatenate(cut), np.arange(500))
    assert all(len(block) for block in cut)
    assert all(lengths[block].sum() <= tokens + 100 for block in cut)


# --------------------------------------------------------------------------- the pass over rows


class Rich(SequenceRegression):
    """Predicts numbers, text and one number per token; fails at a row on demand."""

    fails_at = -1

    def predictions(self, outputs, batch):
        if self.fails_at in batch["row"].tolist():
            raise InterruptedError
        ids, mask = batch["input_ids"].float(), batch["attention_mask"].bool()
        texts = [f"row {row}" for row in batch["row"].tolist()]
        tokens = [row[kept] for row, kept in zip(ids, mask, strict=True)]
        return super().predictions(outputs, batch) | {"text": texts, "tokens": tokens}


def predict(cfg, file, split="all", columns=(), key="k", fails_at=-1):
    from accelerate import Accelerator

    task, rows = tiny.prepared(cfg, Rich)
    task.fails_at = fails_at
    writer = Writer(file, key)
    writer.start(fresh=False)
    infer.infer(
        task, rows, split, task.lengths, cfg.train, Accelerator(),
        writer=writer, columns=columns, block_tokens=task.block_tokens,
    )  # fmt: skip
    return writer.finish(), rows


def one_by_one(cfg) -> list[float]:
    task, rows = tiny.prepared(cfg, Rich)
    collate, task = task.collator(), task.eval()
    with torch.no_grad():
        outputs = [task(collate(rows.take([row]))) for row in range(len(rows))]
    return [task.values(output, {}).item() for output in outputs]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(Rich, "block_tokens", 64)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_predictions_come_in_input_order_whatever_the_batches(size, small_blocks, tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path, batch_size=size), dropout=0.5)
    file, rows = predict(cfg, tmp_path / "a.parquet", columns=("name", "sequence", "label"))
    table = pq.read_table(file).to_pydict()
    assert table["row"] == list(range(40))
    assert table["text"] == [f"row {i}" for i in range(40)]
    for column in ("name", "sequence", "label"):
        assert table[column] == rows.values(column)
    assert [len(t) for t in table["tokens"]] == [len(s) + 2 for s in table["sequence"]]
    alone = one_by_one(cfg)  # without dropout
    assert np.allclose(table["predicted_label"], alone, atol=1e-6)
    assert np.std(alone) > 1e-3


def test_a_split_is_predicted_in_input_order_by_its_row_numbers(tmp_path):
    file, rows = predict(tiny.settings(tmp_path), tmp_path / "a.parquet", split="test")
    assert pq.read_table(file)["row"].to_pylist() == rows.splits["test"].tolist()


def test_interrupted_predictions_go_on_where_they_stopped(small_blocks, tmp_path, monkeypatch):
    cfg = tiny.settings(tmp_path)
    whole, _ = predict(cfg, tmp_path / "whole.parquet")
    with pytest.raises(InterruptedError):
        predict(cfg, tmp_path / "a.parquet", fails_at=30)
    made, predictions = [], Rich.predictions

    def counted(self, outputs, batch):
        made.extend(batch["row"].tolist())
        return predictions(self, outputs, batch)

    monkeypatch.setattr(Rich, "predictions", counted)
    again, _ = predict(cfg, tmp_path / "a.parquet")
    assert 30 in made
    assert 0 not in made
    assert again.read_bytes() == whole.read_bytes()


# --------------------------------------------------------------------------- as a command


def test_a_run_predicts_unlabelled_rows_in_every_format(tmp_path):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    lines = (tmp_path / "rows.tsv").read_text().splitlines()
    new = tmp_path / "new.tsv"
    new.write_text("\n".join("\t".join(line.split("\t")[:2]) for line in lines) + "\n")
    flags = ("--run", str(run), "--data.path", str(new), "--columns", "name")
    for form in ("parquet", "tsv", "safetensors"):
        assert tiny.command(tmp_path, "predict", *flags, "--format", form) == 0
    table = pq.read_table(run / "predictions" / "new.parquet").to_pydict()
    with (run / "predictions" / "new.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    tensors = load_file(run / "predictions" / "new.safetensors")
    names = pq.read_table(run / "predictions" / "new.rows.parquet")["name"].to_pylist()
    assert table["name"] == names == [row["name"] for row in rows]
    assert table["predicted_label"] == tensors["predicted_label"].tolist()
    assert table["predicted_label"] == [float(row["predicted_label"]) for row in rows]
    assert table["row"] == list(range(40))


def test_golden_predictions_of_tokens_are_the_published_table(tmp_path):
    """Argmax of the tokens that are none of the special ones, rows in order, none twice."""
    folder = golden("metrics/prediction_writer")
    tensors = load_file(folder / "inputs.safetensors")
    rows: dict[int, dict] = {}
    for b, listed in enumerate(json.loads((folder / "inputs.json").read_text())):
        batch = {k.removeprefix(f"batch{b}_"): v for k, v in tensors.items() if f"batch{b}_" in k}
        kept = (batch["attention_mask"] == 1) & (batch["special_tokens_mask"] == 0)
        for i, uid in enumerate(listed["uid"]):
            tokens = batch["predictions"][i].argmax(-1)[kept[i]]
            row = {"sequences": listed["sequences"][i], "predictions": tokens}
            rows.setdefault(uid, row | {"score": batch["score"][i]})
    writer = Writer(tmp_path / "p.tsv", "k")
    writer.start(fresh=False)
    for number, uids in enumerate(np.array_split(sorted(rows), 2)):
        columns = {name: [rows[uid][name] for uid in uids] for name in ("sequences", "predictions")}
        scores = torch.stack([rows[uid]["score"] for uid in uids]).flatten()
        writer.write(number, {"uid": torch.tensor(uids), **columns, "score": scores})
    found, expected = (
        [line.split("\t") for line in file.read_text().splitlines()]
        for file in (writer.finish(), folder / "argmax_dropspecial_dedup.tsv")
    )
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    assert [float(row[-1]) for row in found[1:]] == pytest.approx(
        [float(row[-1]) for row in expected[1:]], rel=1e-6
    )
