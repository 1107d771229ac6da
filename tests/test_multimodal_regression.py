"""Several backbones in one task; rows that lack a modality; runs that stop, resume and predict.

pytest tests/test_multimodal_regression.py
"""

import dataclasses
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from tiny import ROOT, fresh_process, prepared  # noqa: F401

import mgen
from mgen.adapters import adapter
from mgen.adapters.fusion import fusion
from mgen.apply import _module
from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.data.inputs.modalities import modalities, tokenize
from mgen.engine.processes import Interrupted
from mgen.loop import Fit, Train
from mgen.train import run

recipe = _module(ROOT / "recipes" / "multimodal_regression.py")
DNA, PROTEIN = (
    ["ACGTACGT", "GGCC", "TTATTA", "GATTACA", "CC"],
    ["MKV", "LLKRAGS", "DEDE", "MK", "W"],
)


def table(folder, rows=30, lacking=True):
    """Label = share of G and C, plus 1 if the protein has K; some cells are empty."""
    lines = ["id\tdna\tprotein\trna\tlabel\tpart"]
    for i in range(rows):
        dna = DNA[i % 5] + "ACGT"[i % 4] * (i % 7)
        protein = PROTEIN[(i // 5) % 5] + "AG"[i % 2] * (i % 3)
        if lacking and i % 5 == 3:
            dna = ""
        if lacking and i % 5 == 4:
            protein = "  "
        label = sum(map(dna.count, "GC")) / max(len(dna), 1) + ("K" in protein)
        part = ("train", "train", "train", "valid", "test")[i // 5 % 5]
        lines.append(f"r{i}\t{dna}\t{protein}\t{'ACGU'[i % 4] * 5}\t{label:.3f}\t{part}")
    file = folder / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return Table(path=str(file), x_col="dna", split_col="part")


def settings(folder, **options):
    options = {"fusion": fusion("concat", project_size=8)} | options
    return recipe.Config(
        data=table(folder, **options.pop("table", {})),
        train=Train(epochs=2, batch_size=4, workers=0, lr=1e-2, log_every=1),
        **options,
    )


def task_of(cfg):
    return prepared(cfg, recipe.MultimodalRegression)


def outputs(task, rows):
    task.eval()
    with torch.no_grad():
        return task(task.collator()(rows))


def command(folder, *flags):
    """Exit code of the recipe's command line on the rows of `table(folder)`."""
    options = [
        "--data.path",
        folder / "rows.tsv",
        "--data.x-col",
        "dna",
        "--data.split-col",
        "part",
    ]
    options += ["--out", folder / "runs", "--train.batch-size", 4, "--train.workers", 0]
    options += ["--train.epochs", 1, "--train.log-every", 1, "--train.save-every", 2]
    verb, flags = (flags[0], flags[1:]) if flags and str(flags[0])[0] != "-" else ("fit", flags)
    words = [verb, *(options if verb == "fit" else []), *flags]
    with pytest.raises(SystemExit) as left:
        run(recipe.MultimodalRegression, recipe.Config, [*map(str, words)])
    return left.value.code or 0


def folder_of(place, name):
    return place / "runs" / "multimodal_regression" / name


FUSIONS = [fusion("concat", project_size=8), fusion("tokens", project_size=8)]
FUSIONS += [fusion("cross_attention", heads=4)]
ROWS = [{"dna": a, "protein": b} for a, b in zip(DNA, PROTEIN, strict=True)]


@pytest.mark.parametrize("choice", FUSIONS, ids=lambda choice: choice.name)
def test_what_a_row_lacks_changes_no_other_row(choice, tmp_path):
    task, _ = task_of(settings(tmp_path, fusion=choice))
    whole = outputs(task, ROWS)
    for column in ("dna", "protein"):
        for nothing in ("", None, "  "):
            lacking = [dict(row) for row in ROWS]
            lacking[1][column] = nothing
            found = outputs(task, lacking)
            others = [0, 2, 3, 4]
            torch.testing.assert_close(found[others], whole[others], atol=1e-5, rtol=0)
            assert (found[1] - whole[1]).abs().max() > 1e-4
            alone = outputs(task, lacking[1:2])  # here no row of the batch has it
            torch.testing.assert_close(alone, found[1:2], atol=1e-5, rtol=0)
    missing = [{"dna": row["dna"], "protein": ""} for row in ROWS]
    del missing[2]["protein"]
    assert outputs(task, missing).isfinite().all()


def test_concat_equals_the_parts_put_together_by_hand(tmp_path):
    cfg = settings(tmp_path, adapter=adapter("linear_cls"), special_tokens=False)
    task, _ = task_of(cfg)
    task.eval()
    fused, linear = task.head.fusion_module, task.head.adapter.linear
    for row, found in zip(ROWS, outputs(task, ROWS), strict=True):
        dna = task.backbone(task.backbone.tokenize([row["dna"]]))[0, 1:-1].mean(0)
        protein = task.backbone1(task.backbone1.tokenize([row["protein"]]))[0]
        protein = protein[: len(row["protein"])].mean(0)  # the rest is special
        vector = torch.cat([fused.project(dna), fused.project_1(protein)])
        torch.testing.assert_close(linear(vector), found, atol=1e-5, rtol=0)


def test_a_batch_without_a_modality_still_gives_its_backbone_gradients(tmp_path):
    task, _ = task_of(settings(tmp_path))
    batch = task.collator()([{"dna": "ACGT", "protein": "", "label": "1"}] * 2)
    task.loss(task(batch), batch).sum().backward()
    used = [p.grad for p in task.backbone1.encoder.parameters() if p.requires_grad]
    assert used and all(grad is not None and not grad.any() for grad in used)
    assert any(p.grad.any() for p in task.backbone.encoder.parameters() if p.grad is not None)


def test_three_backbones_frozen_adapted_and_trained_resume_and_predict(tmp_path, monkeypatch):
    table(tmp_path)
    flags = ["--backbone.frozen", "--backbone1.lora-rank", 2, "--backbone2", "aido_dna_debug"]
    flags += ["--x-cols", "protein", "rna", "--fusion", "cross_attention", "--fusion.heads", 4]
    flags += ["--train.backbone-lr", 3e-3]
    assert command(tmp_path, *flags, "--name", "a") == 0
    step = Fit.step

    def stop(fit, group, batches):
        if fit.state.step == 3:
            raise Interrupted(15)
        return step(fit, group, batches)

    monkeypatch.setattr(Fit, "step", stop)
    assert command(tmp_path, *flags, "--name", "b") == 128 + 15
    monkeypatch.undo()
    assert command(tmp_path, *flags, "--name", "b", "--resume") == 0
    a, b = (folder_of(tmp_path, name) for name in "ab")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k != "time"} for line in f.open()]
        for f in (a / "metrics.jsonl", b / "metrics.jsonl")
    ]
    assert lines[0] == lines[1] and len(lines[0]) > 5
    one, other = (mgen.load_run(folder).task for folder in (a, b))
    states = one.state_dict(), other.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    fresh, _ = task_of(one.cfg)
    changed = {
        key.split(".")[0] + "." * (".lora_" in key)
        for key, value in fresh.state_dict().items()
        if not torch.equal(value, states[0][key])
    }
    assert changed == {"backbone1.", "backbone2", "head"}
    new = tmp_path / "new.tsv"
    rows = [("ACGTT", "MKV", "ACGU"), ("", "LLK", "AC"), ("GG", "", ""), ("", "", "GGU")]
    new.write_text("\n".join(["dna\tprotein\trna", *map("\t".join, rows)]) + "\n")
    assert command(tmp_path, "predict", "--run", a, "--data.path", new) == 0
    written = pq.read_table(a / "predictions" / "new.parquet")["predicted_label"].to_pylist()
    given = [dict(zip(("dna", "protein", "rna"), row, strict=True)) for row in rows]
    found = mgen.load_run(a).predict(given)["predicted_label"]
    assert found == pytest.approx(written, abs=1e-5)


def test_a_run_with_published_weights_is_exported_whole_or_without_them(tmp_path):
    from mgen.backbones import load_backbone
    from mgen.export import Export, export

    torch.manual_seed(3)
    (tmp_path / "protein").mkdir()
    load_backbone("aido_protein_debug").save(tmp_path / "protein")
    table(tmp_path)
    rows = [{"dna": "ACGT", "protein": "MKV"}, {"dna": "", "protein": "LLK"}]
    for name, tuned in {"whole": (), "bundle": ("--backbone.frozen", "--backbone1.frozen")}.items():
        flags = ["--backbone1", tmp_path / "protein", *tuned, "--train.max-steps", 2]
        assert command(tmp_path, *flags, "--name", name) == 0
        source, target = folder_of(tmp_path, name), tmp_path / f"{name}_exported"
        export(Export(run=str(source), folder=str(target), bundle=name == "bundle"))
        assert mgen.load_run(target).predict(rows) == mgen.load_run(source).predict(rows)
    assert command(tmp_path, "--train.max-steps", 1, "--name", "random") == 0
    with pytest.raises(InputError, match="random weights for --backbone1"):
        export(Export(run=str(folder_of(tmp_path, "random")), folder=str(tmp_path / "no")))


def test_settings_and_rows_that_cannot_work_are_refused(tmp_path, capsys):
    table(tmp_path)
    refused = {
        ("--x-cols", "proteins"): "no column 'proteins'",
        ("--x-cols", "dna"): "the same column for two backbones",
        ("--x-cols", "protein", "rna"): "2 backbones (backbone, backbone1), but 3 columns",
        ("--backbone2", "aido_dna_debug"): "3 backbones",
        ("--backbone1", "none"): "1 backbones (backbone), but 2 columns",
        ("--backbone", "none"): "--backbone none: this recipe needs one",
        ("--backbone1", "aido_dna_debug"): "Correct them, or set --backbone1.unknown token",
        ("--backbone1.max-length", 4): "Set --backbone1.truncate right",
        ("--backbone1.lora-rank", 2, "--backbone1.frozen"): "--backbone1.frozen and --backbone1",
        ("--adapter", "linear"): "has outputs for each token",
        ("--adapter", "flatten_linear"): "one weight per position",
        ("--adapter.pretrained",): "no checkpoint has a head on fused states",
        ("--fusion", "concatt"): "no fusion 'concatt'",
        ("--fusion", "cross_attention", "--fusion.heads", 5): "--fusion.heads 5",
        ("--fusion.project-size", 0): "expected 1 or more",
        ("--data.x-col", "label"): "or set --backbone.unknown token",
        ("--minimum", 0, 1): "expected one finite number, or one for each of 1 label columns",
    }
    for flags, message in refused.items():
        assert command(tmp_path, *flags) == 2, flags
        said = " ".join(capsys.readouterr().err.split())
        assert message in said, (flags, said)
    file = tmp_path / "rows.tsv"
    lines = file.read_text().splitlines()
    lines[4] = lines[4].replace("\tMKV", "\t")
    file.write_text("\n".join(lines) + "\n")
    assert command(tmp_path) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "row 4 (header not counted), id 'r3', column 'dna and protein': no sequence" in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/*/config.yaml"))


def test_a_backbone_that_reads_alignments_is_refused():
    reads = {"backbone": False, "backbone1": True}
    tokenizers = {name: SimpleNamespace(has_context=context) for name, context in reads.items()}
    with pytest.raises(InputError, match="--backbone1: models that read alignments"):
        modalities(tokenizers, ("dna", "protein"))


def test_every_row_that_lacks_a_modality_is_counted(tmp_path):
    cfg = settings(tmp_path)
    task = recipe.MultimodalRegression(cfg)
    notes = task.check(cfg.data.open(), ("train", "valid", "test"))
    assert "column 'dna': no sequence in 6 of 30 rows" in notes
    assert "column 'protein': no sequence in 6 of 30 rows" in notes
    third = task.lengths[3]  # lacks DNA: the tokens of its protein alone
    assert third == len("MKV") + task.tokenizers["backbone1"].num_special


def test_a_modality_without_training_rows_is_refused(tmp_path):
    cfg = settings(tmp_path)
    file = tmp_path / "rows.tsv"
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    for line in lines[1:]:
        line[2], line[1] = "", line[1] or "ACGT"
    file.write_text("\n".join(map("\t".join, lines)) + "\n")
    with pytest.raises(InputError, match="no training row has a sequence in 'protein'"):
        task_of(cfg)


def test_a_run_asks_before_the_code_of_any_backbone_runs(tmp_path):
    import yaml

    from mgen.runs import existing_run

    settings(tmp_path)
    saved = {"backbone": {"name": "x"}, "backbone1": {"remote_code": True}, "data": {"path": ""}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(InputError, match="remote-code"):
        existing_run(str(tmp_path))


def test_layer_decay_and_rates_reach_every_backbone(tmp_path):
    from mgen.tuning import rates

    cfg = settings(tmp_path)
    cfg = dataclasses.replace(
        cfg, train=dataclasses.replace(cfg.train, backbone_lr=1e-3, layer_decay=0.5)
    )
    task, _ = task_of(cfg)
    names = {p: n for n, p in task.named_parameters() if p.requires_grad}
    found = {names[p]: rate for p, (rate, _) in rates(task, names, cfg.train).items()}
    assert {rate for name, rate in found.items() if name.startswith("head.")} == {1e-2}
    for name in ("backbone.", "backbone1."):
        # Two blocks, what lies before them, and the norm after them.
        own = {round(rate, 9) for key, rate in found.items() if key.startswith(name)}
        assert own <= {1e-3, 5e-4, 2.5e-4, 1.25e-4} and {5e-4, 2.5e-4} <= own


def test_padding_between_modalities_does_not_move_the_seam():
    torch.manual_seed(0)
    module = fusion("tokens", project_size=4).build([3, 5])
    short, long = torch.randn(1, 2, 3), torch.randn(1, 3, 5)
    alone, _ = module([(short, torch.ones(1, 2)), (long, torch.ones(1, 3))])
    padded = torch.cat([short, torch.randn(1, 4, 3)], 1), torch.tensor([[1, 1, 0, 0, 0, 0]])
    fused, mask = module([padded, (long, torch.ones(1, 3))])
    torch.testing.assert_close(fused[:, :5], alone)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "options", "head", "starts"),
    [
        ("tokens", {}, "linear_cls", [True, True]),
        ("concat", {"pooling": "cls"}, "mean_pool_mlp", [True, False]),
    ],
)
def test_start_tokens_that_say_too_little_are_refused(name, options, head, starts):
    with pytest.raises(InputError, match="start token|first token"):
        fusion(name, **options).check(adapter(head), starts)


def test_a_row_without_any_sequence_is_refused():
    tokenizer = backbone("dna_onehot").tokenizer()
    named = [("backbone", "dna", tokenizer), ("backbone1", "more", tokenizer)]
    with pytest.raises(InputError, match="no sequence of any modality"):
        tokenize([{"dna": "ACGT", "more": ""}, {"dna": "", "more": None}], named)
