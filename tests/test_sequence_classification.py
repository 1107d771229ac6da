"""The loss of sequence classification, and its several labels at once."""

import json

import pytest
import torch
from conftest import golden
from safetensors.torch import load_file
from tiny import sequence_classification

from mgen.backbones import backbone
from mgen.data import table

Config = sequence_classification.Config
Task = sequence_classification.SequenceClassification


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multiclass_weighted", "multilabel"])
def test_golden_classification_losses(kind):
    folder = golden(f"tasks/sequence_classification/{kind}")
    config = json.loads((folder / "config.json").read_text())
    given, expected = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    weighted = "class_weight" in given
    task = Task(Config(multilabel=config["multilabel"], class_weights=weighted))
    if weighted:
        task.facts = {"weights": given["class_weight"].tolist()}
    for b in range(sum(name.startswith("labels_") for name in given)):
        loss = task.loss(given[f"logits_{b}"], {"labels": given[f"labels_{b}"]})
        losses, weights = loss if isinstance(loss, tuple) else (loss, torch.ones_like(loss))
        mean = ((losses * weights).sum() / weights.sum()).item()
        assert mean == pytest.approx(expected[f"loss_{b}"].item(), abs=1e-5)


def test_every_label_has_its_metrics_under_its_name():
    cfg = Config(backbone=backbone("dna_onehot"), data=table("modifications_tiny"), multilabel=True)
    task = Task(cfg)
    task.check(cfg.data.open(), ("train", "valid", "test"))
    names = cfg.data.y_cols
    labels = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1]])
    found = {}
    for name, metric in task.metrics().items():
        metric.update(labels * 0.8 + 0.1, labels)  # all right
        found |= {f"{name}_{key}": value for key, value in metric.compute().items() if key}
    every = ("accuracy", "f1", "mcc", "auroc", "auprc")
    assert found.keys() == {f"{metric}_{name}" for metric in every for name in names}
    assert all(value == 1 for value in found.values())
