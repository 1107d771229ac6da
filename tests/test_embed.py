"""Embeddings: any layers in one pass, in input order, resumable, as tables and AnnData.

pytest tests/test_embed.py
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from conftest import ROOT, golden
from safetensors.torch import load_file
from tiny import fresh_process  # noqa: F401

from mgen.backbones import load_backbone
from mgen.backbones.windows import joined
from mgen.io import h5ad
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import embed  # noqa: E402


def command(folder: Path, *flags, name: str = "a") -> int:
    """Exit code of the recipe on 40 short sequences; its run directory is `folder/embed/<name>`."""
    if not (folder / "rows.tsv").exists():
        tiny.table(folder)
    table = ["--data.path", folder / "rows.tsv", "--data.id-col", "name", "--out", folder]
    with pytest.raises(SystemExit) as left:
        run(embed.Embed, embed.Config, [*map(str, [*table, "--name", name, *flags])])
    return left.value.code or 0


def file_of(folder: Path, suffix: str = "parquet", name: str = "a") -> Path:
    return folder / "embed" / name / "predictions" / f"rows.{suffix}"


def expected(folder: Path, pool: str, layer: int) -> list[np.ndarray]:
    """What the backbone itself gives for each sequence, from Python."""
    torch.manual_seed(42)
    lines = (folder / "rows.tsv").read_text().splitlines()[1:]
    network = load_backbone("aido_dna_debug")
    vectors = network.embed([line.split("\t")[1] for line in lines], pool=pool, layer=layer)
    return [vector.numpy() for vector in vectors]


@pytest.mark.parametrize("pool", ["mean", "max", "cls"])
def test_any_layers_come_from_one_pass_and_are_those_of_the_backbone(pool, tmp_path, monkeypatch):
    from mgen.backbones.sequence import SequenceBackbone

    encode, calls = SequenceBackbone.encode, []
    monkeypatch.setattr(
        SequenceBackbone, "encode", lambda *given: (calls.append(1), encode(*given))[1]
    )
    assert command(tmp_path, "--pool", pool, "--layers", "all", "--train.batch-size", "100") == 0
    monkeypatch.undo()
    assert len(calls) == 1  # 40 rows are one batch
    table = pq.read_table(file_of(tmp_path))
    assert table.column_names == ["row", "layer_0", "layer_1", "layer_2"]
    assert table["row"].to_pylist() == [*range(40)]
    for layer in range(3):
        got = np.array(table[f"layer_{layer}"].to_pylist())
        np.testing.assert_allclose(got, expected(tmp_path, pool, layer), atol=1e-5)


def test_chosen_layers_keep_their_order_and_one_alone_is_the_embedding(tmp_path):
    assert command(tmp_path, "--layers", "-1", "0") == 0
    two = pq.read_table(file_of(tmp_path)).to_pydict()
    assert [*two] == ["row", "layer_2", "layer_0"]
    assert command(tmp_path, "--layers", "2", name="b") == 0
    one = pq.read_table(file_of(tmp_path, name="b")).to_pydict()
    np.testing.assert_allclose(one["embedding"], two["layer_2"], atol=1e-6)


@pytest.mark.parametrize("suffix", ["parquet", "tsv", "safetensors"])
def test_per_token_vectors_of_all_layers_in_every_format(suffix, tmp_path):
    flags = ["--pool", "none", "--layers", "0", "2", "--format", suffix]
    assert command(tmp_path, *flags) == 0
    file = file_of(tmp_path, suffix)
    for layer in (0, 2):
        name, theirs = f"layer_{layer}", expected(tmp_path, "none", layer)
        if suffix == "safetensors":
            tensors = load_file(file)
            sizes = tensors[f"{name}.lengths"].tolist()
            ours = [part.numpy() for part in tensors[name].split(sizes)]
        elif suffix == "tsv":
            head, *lines = (line.split("\t") for line in file.read_text().splitlines())
            ours = [np.array(json.loads(line[head.index(name)])) for line in lines]
        else:
            ours = [np.array(rows) for rows in pq.read_table(file)[name].to_pylist()]
        assert len(ours) == 40
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BLOCK_NUMBERS", 64 * 64)  # blocks of 64 tokens
    flags = ["--pool", "none", "--columns", "name"]
    assert command(tmp_path, *flags) == 0
    predictions, made = embed.Embed.predictions, []

    def fails(task, outputs, batch):
        made.extend(batch["row"].tolist())
        if len(made) > 25:
            raise KeyboardInterrupt
        return predictions(task, outputs, batch)

    monkeypatch.setattr(embed.Embed, "predictions", fails)
    assert command(tmp_path, *flags, name="b") == 130
    assert not file_of(tmp_path, name="b").exists()
    before, again = len(made), []

    def counts(task, outputs, batch):
        again.extend(batch["row"].tolist())
        return predictions(task, outputs, batch)

    monkeypatch.setattr(embed.Embed, "predictions", counts)
    assert command(tmp_path, *flags, "--resume", name="b") == 0
    assert before > 25 and 0 < len(again) < 40  # finished blocks were not made again
    assert file_of(tmp_path, name="b").read_bytes() == file_of(tmp_path).read_bytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layers", "3"], "layers are 0 to 2"),
        (["--layers", "2", "-1"], "twice"),
        (["--layers", "all", "1"], "numbers of layers, or all"),
        (["--layers"], "numbers of layers, or all"),
        (["--h5ad", "--pool", "none"], "one vector per sequence"),
        (["--backbone", "dna_onehot", "--pool", "cls"], "start token"),
    ],
)
def test_nonsense_is_refused(flags, says, tmp_path, capfd):
    assert command(tmp_path, *flags) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "embed" / "a").exists()


# ------------------------------------------------------------------------------- AnnData


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert command(tmp_path, "--h5ad") == 2
    assert "pip install h5py" in capfd.readouterr().err


def test_an_anndata_file_holds_every_layer_and_the_copied_columns(tmp_path):
    h5py = pytest.importorskip("h5py")
    flags = ["--h5ad", "--layers", "0", "2", "--columns", "sequence", "label"]
    assert command(tmp_path, *flags) == 0
    table = pq.read_table(file_of(tmp_path)).to_pydict()
    with h5py.File(file_of(tmp_path, "h5ad")) as opened:
        assert opened.attrs["encoding-type"] == "anndata"
        obs = opened["obs"]
        names = [name.decode() for name in obs[obs.attrs["_index"]]]
        assert [*obs.attrs["column-order"]] == ["sequence", "label"]
        assert [text.decode() for text in obs["sequence"]] == table["sequence"]
        for layer in ("layer_0", "layer_2"):
            np.testing.assert_array_equal(opened[f"obsm/X_{layer}"], np.float32(table[layer]))
    lines = (tmp_path / "rows.tsv").read_text().splitlines()[1:]
    assert names == [line.split("\t")[0] for line in lines]


class Listed:
    """Rows of a table in memory."""

    id_col = "id"

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def take(self, numbers) -> list[dict]:
        return [self.rows[number] for number in numbers]


@pytest.mark.skipif(not importlib.util.find_spec("anndata"), reason="needs anndata")
@pytest.mark.parametrize("at_once", [1, 2, 1024])
def test_anndata_opens_it_with_every_kind_of_column(at_once, tmp_path, monkeypatch):
    import anndata

    monkeypatch.setattr(h5ad, "AT_ONCE", at_once)
    columns = ["text", "whole", "part", "truth", "gap", "mixed"]
    rows = [
        dict(zip(["id", *columns], cells, strict=True))
        for cells in (
            ("a", "x", 1, 0.5, True, 2, 1),
            ("b", None, 2, 1.5, False, None, "z"),
            ("c", "é", 3, 2.5, True, 3, None),
        )
    ]
    cells = [
        {"row": i, **{name: row[name] for name in columns}, "embedding": [i, 0.25]}
        for i, row in enumerate(rows)
    ]
    file = h5ad.write(tmp_path / "a.h5ad", Listed(rows), iter(cells), 3, ["embedding"])
    found = anndata.read_h5ad(file)
    assert found.shape == (3, 0)
    assert found.obs_names.tolist() == ["a", "b", "c"]
    assert found.obs.columns.tolist() == columns
    assert found.obs["text"].tolist() == ["x", "", "é"]
    assert found.obs["whole"].tolist() == [1, 2, 3] and found.obs["whole"].dtype.kind == "i"
    assert found.obs["part"].tolist() == [0.5, 1.5, 2.5]
    assert found.obs["truth"].tolist() == [True, False, True]
    np.testing.assert_array_equal(found.obs["gap"], [2, np.nan, 3])
    assert found.obs["mixed"].tolist() == ["1", "z", ""]
    np.testing.assert_array_equal(found.obsm["X_embedding"], [[0, 0.25], [1, 0.25], [2, 0.25]])


# ------------------------------------------------------------------------------- joined outputs


def test_joined_outputs_are_the_golden_ones_but_for_padding_marked_as_special():
    folder = golden("tasks/backbone_output_concat")
    inputs = load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs.safetensors")
    names = {"h": "last_hidden_state", "m": "attention_mask", "s": "special_tokens_mask"}
    count = sum(name.startswith("h") for name in inputs)
    parts = [{long: inputs[f"{short}{i}"] for short, long in names.items()} for i in range(count)]
    ours = joined(parts)
    for name in ("last_hidden_state", "attention_mask"):
        assert torch.equal(ours[name], outputs[name])
    special = "special_tokens_mask"
    lengths = [part[special].shape[1] for part in parts for _ in part[special]]
    padded = torch.arange(ours[special].shape[1]) >= torch.tensor(lengths)[:, None]
    assert padded.any() and (ours[special][padded] == 1).all()  # there 0, as if it were a token
    assert torch.equal(ours[special][~padded], outputs[special][~padded])
