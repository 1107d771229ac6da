"""Labels scaled in training, predictions in their units, and no value below the least.

pytest tests/test_sequence_regression.py
"""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest
import torch
from conftest import golden
from safetensors.torch import load_file
from tiny import command, fresh_process, prepared, sequence_regression, settings, table  # noqa: F401

from mgen.adapters import adapter
from mgen.config import InputError
from mgen.data import Table
from mgen.data.targets.facts import check_minimum, number_facts, scaled, unscaled
from mgen.metrics import results


def facts_of(labels, folder):
    """What a run learns of these training labels."""
    file = folder / "labels.tsv"
    lines = [f"ACGT\t{label}" for label in labels.tolist()]
    file.write_text("\n".join(["sequence\tlabel", *lines]) + "\n")
    rows = Table(path=str(file), test_fraction=0, valid_fraction=0).open()
    return number_facts(rows, ("train",), "train", {})


def test_golden_regression_with_scaling(tmp_path):
    folder = golden("tasks/regression_with_scaling")
    config = json.loads((folder / "config.json").read_text())
    inputs, expected = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    seen = [inputs[name] for name in sorted(inputs) if name.startswith("epoch0_labels_")]
    for i in range(len(seen)):
        facts = facts_of(torch.cat(seen[: i + 1]), tmp_path)
        for key in ("mean", "std"):
            assert facts[key] == pytest.approx(expected[f"{key}_after_{i}"].tolist(), abs=1e-5)
    cfg = dataclasses.replace(settings(tmp_path), minimum=(config["clamp_min"],))
    task = sequence_regression.SequenceRegression(cfg)
    task.facts, metrics = facts, task.metrics()
    for i in range(sum(name.startswith("preds_") for name in inputs)):
        outputs, labels = inputs[f"preds_{i}"][:, None], inputs[f"labels_{i}"][:, None]
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(
            scaled(labels, facts)[:, 0], expected[f"scaled_labels_{i}"], **close
        )
        losses = task.loss(outputs, {"labels": labels})
        torch.testing.assert_close(losses.mean().view(1), expected[f"loss_{i}"], **close)
        values, compared = task.scores(outputs, {"labels": labels})
        torch.testing.assert_close(values[:, 0], expected[f"unscaled_preds_{i}"], **close)
        for metric in metrics.values():
            metric.update(values, compared)
    for name, value in results(metrics).items():
        assert value == pytest.approx(expected[name].item(), abs=1e-5, rel=1e-5), name


def test_golden_label_scaler(tmp_path):
    case = json.loads(golden("metrics/label_scaler.json").read_text())
    for i, (mean, std) in enumerate(case["mean_std_after_batch"]):
        facts = facts_of(torch.tensor(sum(case["batches"][: i + 1], [])), tmp_path)
        assert (*facts["mean"], *facts["std"]) == pytest.approx((mean, std), abs=1e-5)
    x, z = torch.tensor(case["x"])[:, None], torch.tensor(case["z"])[:, None]
    assert scaled(x, facts)[:, 0].tolist() == pytest.approx(case["transform"], abs=1e-5)
    assert unscaled(z, facts)[:, 0].tolist() == pytest.approx(case["inverse_transform"], abs=1e-5)
    raised = unscaled(z - 3, facts, (0.0,))[:, 0].tolist()
    assert raised == pytest.approx(case["inverse_transform_clamped_min0"], abs=1e-5)


def test_several_outputs_have_least_values_and_metrics_of_their_own(tmp_path):
    file = tmp_path / "rows.tsv"
    table(tmp_path)
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    lines[0].append("other")
    for i, line in enumerate(lines[1:]):
        line.append(str(-float(line[2]) + i % 3))
    file.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    flags = ("--data.y-cols", "label", "other", "--minimum", "0.45", "-1", "--name", "a")
    assert command(tmp_path, *flags) == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    found = pq.read_table(run / "predictions" / "test.parquet").to_pydict()
    labels = [[float(line[2]), float(line[4])] for line in lines[1:] if line[3] == "test"]
    predicted = torch.tensor([found["predicted_label"], found["predicted_other"]]).T
    assert predicted[:, 0].min() == pytest.approx(0.45) and predicted[:, 1].min() > -1
    report = json.loads((run / "results.json").read_text())["test"]
    errors = (predicted.double() - torch.tensor(labels)).abs().mean(0).tolist()
    assert [report["mae_0"], report["mae_1"]] == pytest.approx(errors, abs=1e-5)
    assert report["mae"] == pytest.approx(sum(errors) / 2, abs=1e-5)


@pytest.mark.parametrize("minimum", [(0.0, 0.0), (float("nan"),)])
def test_least_values_that_mean_nothing_are_refused(minimum):
    with pytest.raises(InputError, match="each of 3 label columns"):
        check_minimum(minimum, 3)


def test_the_residual_network_without_special_tokens_sees_residues_alone(tmp_path):
    """Equals its outputs for the hidden states of each row's own residues, whatever the padding."""
    cfg = dataclasses.replace(
        settings(tmp_path), adapter=adapter("resnet", channels=8, blocks=2), special_tokens=False
    )
    task, _ = prepared(cfg)
    task.eval()
    sequences = ["ACGTACGTTT", "GAT"]
    outputs = task(task.backbone.tokenize(sequences))
    for sequence, output in zip(sequences, outputs, strict=True):
        hidden = task.backbone(task.backbone.tokenize([sequence]))
        torch.testing.assert_close(task.head(hidden[:, 1:-1])[0], output, atol=1e-5, rtol=0)
