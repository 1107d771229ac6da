"""The loop: the same mathematics at any batching, stops on nonsense, keeps what was best."""

import dataclasses
import json
import math

import pytest
import tiny
import torch
from conftest import golden
from safetensors import safe_open
from sequence_classification import Config as ClassificationConfig
from sequence_classification import SequenceClassification
from sequence_regression import SequenceRegression
from tiny import fresh_process  # noqa: F401

from mgen import checkpoint, infer, loop
from mgen.config import InputError
from mgen.data.batches import Batch
from mgen.loop import NotFinite, Train, lr_factor


def steps_there(fit) -> list[int]:
    return sorted(map(checkpoint.step_of, fit.checkpoints.glob("step-*")))


def logged(folder, split: str) -> list[dict]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["split"] == split]


# --------------------------------------------------------------------------- learning rate


def test_golden_learning_rates_within_the_schedule():
    for case in json.loads((golden("metrics") / "lr_schedules.json").read_text())["cases"]:
        ratio, steps = case["warmup_ratio"] or 0.0, case["num_warmup_steps"] or 0
        train = Train(schedule=case["schedule"], warmup_ratio=ratio, warmup_steps=steps)
        rates = case["lr_at_optimizer_step"]
        for step, rate in enumerate(rates[: case["total_steps"] + 1]):
            ours = case["base_lr"] * lr_factor(step, case["total_steps"], train)
            assert ours == pytest.approx(rate, abs=1e-12), (case["schedule"], step)


def test_past_the_end_a_cosine_stays_at_zero():
    assert [lr_factor(step, 10, Train(schedule="cosine")) for step in (10, 11, 50)] == [0, 0, 0]


def test_a_rate_that_falls_to_a_tenth_in_four_steps_stays_there():
    linear = Train(schedule="linear", decay_steps=4, decay_to=0.1)
    rates = [lr_factor(step, 100, linear) for step in (0, 1, 2, 4, 50)]
    assert rates == pytest.approx([1, 0.775, 0.55, 0.1, 0.1])
    cosine = Train(schedule="cosine", decay_to=0.1, warmup_steps=2)
    rates = [lr_factor(step, 12, cosine) for step in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    assert lr_factor(7, 10, Train(schedule="constant", decay_to=0.1, decay_steps=2)) == 1


def test_the_optimiser_steps_with_the_rate_of_the_schedule(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, warmup_steps=3, log_every=1), tmp_path)
    fit.run()
    rates = [row["lr"] for row in logged(tmp_path, "train")]
    assert rates == [1e-2 * lr_factor(step, 12, fit.train) for step in range(12)]


# --------------------------------------------------------------------------- steps


def test_fit_equals_the_loop_written_out_bit_for_bit(tmp_path, monkeypatch):
    import plain_loop

    cfg = tiny.settings(tmp_path, warmup_steps=2)
    fit, ours, step = tiny.fit(cfg, tmp_path), [], loop.Fit.step

    def recorded(self, *args):
        row = step(self, *args)
        ours.append(tiny.weights(self.task))
        return row

    monkeypatch.setattr(loop.Fit, "step", recorded)
    fit.run()
    names = ("backbone", "adapter", "data", "train")
    plain = plain_loop.Config(**{name: getattr(cfg, name) for name in names})
    count = 0
    for (model, _), own in zip(plain_loop.steps(plain), ours, strict=True):
        assert tiny.equal(dict(model.state_dict()), own)
        count += 1
    assert count == 12


class PerToken(SequenceRegression):
    """A loss that counts tokens."""

    def loss(self, outputs, batch):
        squares = (outputs - batch["labels"]) ** 2  # (B, 1)
        return squares.expand_as(batch["attention_mask"])[batch["attention_mask"].bool()]


TASKS = {
    "rows": (SequenceRegression, {}),
    "tokens": (PerToken, {}),
    "weights": (SequenceClassification, {"class_weights": True}),
}


def gradients(cfg, folder, task_type, sizes):
    """Gradient of one step over rows 0 to 11 in micro-batches of these sizes, by parameter."""
    fit, start, group = tiny.fit(cfg, folder, task_type), 0, []
    for size in sizes:
        group.append(Batch(tuple(range(start, start + size)), seed=1))
        start += size
    fit.task.train()
    fit.step(group, list(fit.order.load(group)))
    # After one step from zero, Adam's first moment is (1 - beta1) times the gradient.
    state = fit.optimiser.optimizer.state
    return {fit.names[p]: state[p]["exp_avg"] / (1 - fit.train.betas[0]) for p in state}


@pytest.mark.parametrize("name", TASKS)
def test_micro_batches_of_unequal_counts_equal_one_batch(name, tmp_path):
    task_type, options = TASKS[name]
    config = ClassificationConfig if name == "weights" else tiny.sequence_regression.Config
    cfg = tiny.settings(tmp_path, config, clip=0.0)
    cfg = dataclasses.replace(tiny.with_backbone(cfg, dropout=0.0), **options)
    whole = gradients(cfg, tmp_path, task_type, [12])
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
    for sizes in ([5, 1, 6], [10, 2]):
        parts = gradients(cfg, tmp_path, task_type, sizes)
        for parameter, gradient in whole.items():
            assert torch.allclose(parts[parameter], gradient, rtol=1e-5, atol=1e-6), parameter


class FirstCountsNothing(SequenceRegression):
    """Weights that are zero in the rows below 5."""

    def loss(self, outputs, batch):
        weights = (batch["row"] >= 5).float()[:, None]
        return (outputs - batch["labels"]) ** 2, weights


def test_a_micro_batch_that_counts_nothing_changes_nothing(tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path, clip=0.0), dropout=0.0)
    whole = gradients(cfg, tmp_path, FirstCountsNothing, [12])
    parts = gradients(cfg, tmp_path, FirstCountsNothing, [5, 7])
    for parameter, gradient in whole.items():
        assert torch.allclose(parts[parameter], gradient, rtol=1e-5, atol=1e-6), parameter


def test_a_step_in_which_nothing_counts_is_refused(tmp_path):
    with pytest.raises(NotFinite, match="over 0"):
        gradients(tiny.settings(tmp_path), tmp_path, FirstCountsNothing, [5])


def test_the_last_shorter_group_of_an_epoch_is_a_step_of_its_own(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, accumulate=4), tmp_path)
    groups = [
        (epoch, index, len(group)) for epoch, index, group in fit.order.groups(fit.state, fit.total)
    ]
    assert groups == [(0, 4, 4), (1, 0, 2), (1, 4, 4), (2, 0, 2)]
    assert fit.total == 4


def test_max_steps_goes_on_past_the_epochs_and_stops_within_one(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, max_steps=15), tmp_path)
    rows = [
        row
        for _, _, group in fit.order.groups(fit.state, fit.total)
        for batch in group
        for row in batch.rows
    ]
    assert len(rows) == 15 * 4
    assert [rows.count(row) for row in range(24)].count(2) == 12


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path):
    cfg = tiny.settings(tmp_path, clip=1e-3)
    parts = gradients(cfg, tmp_path, SequenceRegression, [12])
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in parts.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_elements_of_gradients_are_clipped_to_the_value_asked_for(tmp_path):
    free = gradients(tiny.settings(tmp_path, clip=0.0), tmp_path / "a", SequenceRegression, [12])
    cfg = tiny.settings(tmp_path, clip=0.0, clip_value=1e-3)
    cut = gradients(cfg, tmp_path / "b", SequenceRegression, [12])
    assert any(float(gradient.abs().max()) > 2e-3 for gradient in free.values())
    for name, gradient in free.items():
        torch.testing.assert_close(cut[name], gradient.clamp(-1e-3, 1e-3))


def test_bf16_trains_weights_that_stay_in_full_precision(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, precision="bf16"), tmp_path)
    before = tiny.weights(fit.task)
    fit.run()
    assert not tiny.equal(before, tiny.weights(fit.task))
    assert {value.dtype for value in fit.task.parameters()} == {torch.float32}
    assert all(math.isfinite(row["loss"]) for row in logged(tmp_path, "train"))


def test_losses_in_half_precision_are_summed_in_full():
    losses = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    losses[0] = 5.0
    assert infer.summed(losses)[0].item() == 1004.0
    assert infer.summed((losses, torch.ones(1000)))[0].item() == 1004.0


# --------------------------------------------------------------------------- nonsense


class Poisoned(SequenceRegression):
    """The loss of row 7 is not a number."""

    def loss(self, outputs, batch):
        poison = torch.where(batch["row"] == 7, torch.nan, 0.0)[:, None]
        return super().loss(outputs, batch) + poison


class Steep(SequenceRegression):
    """The loss of row 7 is finite, its gradient is not."""

    def loss(self, outputs, batch):
        is_seven = (batch["row"] == 7)[:, None]
        return super().loss(outputs, batch) + torch.sqrt(torch.where(is_seven, outputs * 0, 1.0))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("task_type", [Poisoned, Steep])
def test_what_is_not_finite_stops_before_the_weights_change(task_type, accumulate, tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, accumulate=accumulate), tmp_path, task_type)
    seen, step = [], fit.step

    def recorded(*args):
        seen.append(tiny.weights(fit.task))
        return step(*args)

    fit.step = recorded
    with pytest.raises(NotFinite) as raised:
        fit.run()
    message = str(raised.value)
    assert tiny.equal(seen[-1], tiny.weights(fit.task))
    assert f"step {len(seen)}:" in message
    assert "seed 42" in message
    assert "rows.tsv, row 8 (header not counted)" in message or "more" in message


def test_a_command_that_met_nonsense_leaves_with_code_70(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, task=Poisoned) == 70
    assert "rows of this step with a loss that is not finite" in capsys.readouterr().err


class Unused(SequenceRegression):
    """A backbone that has no part in the loss."""

    def forward(self, batch):
        with torch.no_grad():
            hidden = self.backbone(batch)
        return self.head(hidden, self.pooled(batch))


def test_lora_matrices_without_a_gradient_are_an_error(tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path), lora_rank=2)
    with pytest.raises(RuntimeError, match="LoRA matrices without a gradient: backbone"):
        tiny.fit(cfg, tmp_path, Unused).run()


@pytest.mark.parametrize("name", ["batch_size", "accumulate", "log_every", "keep"])
def test_a_setting_of_zero_that_would_never_end_is_refused(name):
    with pytest.raises(InputError, match=f"--train.{name.replace('_', '-')} 0"):
        Train(**{name: 0})


# --------------------------------------------------------------------------- best and last


@pytest.fixture
def scores(monkeypatch):
    """Evaluations that give planned values."""

    def plan(**values):
        rows = zip(*values.values(), strict=True)
        planned = (dict(zip(values, row, strict=True)) for row in rows)
        monkeypatch.setattr(loop, "infer", lambda *_, **__: (next(planned), []))

    return plan


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("loss", (3.0, 1.0, 2.0, 1.0), 2),
        ("pearson", (0.1, 0.2, 0.9, 0.8), 3),
        ("mae", (0.5, 0.4, 0.9, 0.3), 4),
        ("loss", (math.nan, 5.0, math.nan, 6.0), 2),
        ("pearson", (math.nan, math.nan, -0.5, math.nan), 3),
    ],
)
def test_the_best_step_is_that_of_the_monitored_metric(monitor, values, best, scores, tmp_path):
    scores(**({"loss": (1.0,) * 4} | {monitor: values}))
    cfg = tiny.settings(tmp_path, max_steps=4, eval_every=1, keep=1, monitor=monitor)
    fit = tiny.fit(cfg, tmp_path)
    assert fit.run().best == best
    assert (fit.checkpoints / "best").resolve().name == f"step-{best}"
    assert (fit.checkpoints / "last").resolve().name == "step-4"


def test_training_stops_when_patience_is_over(scores, tmp_path):
    scores(loss=(3.0, 2.0, 2.0, 1.9, 5.0, 5.0, 5.0))
    cfg = tiny.settings(tmp_path, eval_every=1, patience=2)
    state = tiny.fit(cfg, tmp_path).run()
    assert (state.step, state.best, state.stopped) == (6, 4, True)


def test_without_patience_training_goes_on(scores, tmp_path):
    scores(loss=range(12))
    assert tiny.fit(tiny.settings(tmp_path, eval_every=1), tmp_path).run().step == 12


def test_checkpoints_are_kept_as_asked_and_the_best_besides(scores, tmp_path):
    scores(loss=(1.0, 2.0, 3.0))
    cfg = tiny.settings(tmp_path, eval_every=4, save_every=3, keep=2)
    fit = tiny.fit(cfg, tmp_path)
    fit.run()
    assert steps_there(fit) == [4, 9, 12]


def test_checkpoints_come_at_evaluations_and_every_so_many_steps(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, save_every=4, keep=99), tmp_path)
    fit.run()
    assert steps_there(fit) == [4, 6, 8, 12]


def test_the_best_of_the_checkpoint_before_is_there_while_that_is(scores, tmp_path):
    scores(loss=(2.0, 1.0))
    fit = tiny.fit(tiny.settings(tmp_path, save_every=4, keep=2), tmp_path)
    fit.run()
    assert steps_there(fit) == [6, 8, 12]  # were 12 damaged, 8 would go on, whose best is 6


def test_an_unknown_monitor_is_refused_before_training(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--train.monitor", "pearsn") == 2
    assert "no such metric. Did you mean 'pearson'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------- what trains


def test_a_frozen_backbone_drops_nothing_and_stays_as_it_was(tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path), frozen=True, dropout=0.5)
    fit = tiny.fit(cfg, tmp_path)
    before = tiny.weights(fit.task.backbone)
    fit.task.train()
    batch = next(fit.order.load([Batch((0, 1), 0)]))
    assert torch.equal(fit.task.backbone(batch), fit.task.backbone(batch))
    assert fit.task.head.training
    fit.run()
    assert tiny.equal(before, tiny.weights(fit.task.backbone))
    assert not tiny.equal(tiny.weights(fit.task.head), tiny.weights(tiny.prepared(cfg)[0].head))


def test_dropout_is_back_on_after_an_evaluation(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, eval_every=2, max_steps=3), tmp_path)
    seen, step = [], fit.step
    fit.step = lambda *args: (seen.append(fit.task.backbone.training), step(*args))[1]
    fit.run()
    assert seen == [True, True, True]


def test_lora_trains_its_matrices_and_the_head_only(tmp_path):
    fit = tiny.fit(tiny.with_backbone(tiny.settings(tmp_path), lora_rank=2), tmp_path)
    before = tiny.weights(fit.task)
    fit.run()
    changed = {
        n for n, value in tiny.weights(fit.task).items() if not torch.equal(value, before[n])
    }
    trainable = {n for n in before if ".lora_" in n or n.startswith("head.")}
    assert changed == trainable
    assert any(".lora_A" in name for name in changed)


def test_full_finetuning_saves_every_weight_that_trains(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, max_steps=1), tmp_path)
    fit.run()
    tensors, _ = checkpoint.load(fit.checkpoints / "last")
    trains = {name for name, value in fit.task.named_parameters() if value.requires_grad}
    assert trains <= tensors["model"].keys()
    assert any(name.startswith("backbone.model.") for name in trains)
    state = fit.task.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tensors["model"].items())


@pytest.mark.parametrize("options", [{"frozen": True}, {"lora_rank": 2}], ids=["frozen", "lora"])
def test_weights_that_do_not_train_are_not_saved(options, tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path, max_steps=1), **options)
    fit = tiny.fit(cfg, tmp_path)
    fit.run()
    tensors, _ = checkpoint.load(fit.checkpoints / "last")
    assert all(name.startswith("head.") for name in tensors["model"])
    assert ("adapter_model" in tensors) == ("lora_rank" in options)


def test_other_backbone_weights_than_those_trained_on_are_refused(tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path, max_steps=2), frozen=True)
    tiny.fit(cfg, tmp_path).run()
    other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=1))
    with pytest.raises(InputError, match="other backbone weights"):
        tiny.fit(other, tmp_path).restore()


def test_a_table_that_changed_since_is_refused(tmp_path):
    cfg = tiny.settings(tmp_path, max_steps=2)
    tiny.fit(cfg, tmp_path).run()
    file = tmp_path / "rows.tsv"
    file.write_text(file.read_text().replace("train0\t", "other0\t"))
    with pytest.raises(InputError, match="rows of the table or its splits have changed"):
        tiny.fit(cfg, tmp_path).restore()


@pytest.fixture(scope="module")
def esm_folder(tmp_path_factory):
    """A random ESM-2 checkpoint in the published layout, written by transformers."""
    from transformers import EsmConfig, EsmForMaskedLM

    folder = tmp_path_factory.mktemp("esm")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = EsmConfig(
        vocab_size=33, pad_token_id=1, mask_token_id=32, intermediate_size=64, **sizes,
        max_position_embeddings=128, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False,
    )  # fmt: skip
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_lora_checkpoint_is_one_that_peft_reads(esm_folder, tmp_path):
    from peft import PeftModel
    from transformers import EsmForMaskedLM

    from mgen.backbones import backbone

    cfg = tiny.settings(tmp_path, max_steps=4, lr=0.05)
    cfg = dataclasses.replace(cfg, backbone=backbone(str(esm_folder), lora_rank=3, lora_alpha=5.0))
    fit = tiny.fit(cfg, tmp_path)
    batch = next(fit.order.load([Batch(tuple(range(8)), 0)]))
    untrained = fit.task.eval().backbone(batch).detach()
    fit.run()
    ours = fit.task.eval().backbone(batch).detach()
    assert (ours - untrained).abs().max() > 1e-2
    base = EsmForMaskedLM.from_pretrained(esm_folder)
    theirs = PeftModel.from_pretrained(base, fit.checkpoints / "last").eval()
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = theirs(**ids, output_hidden_states=True).hidden_states[-1].detach()
    kept = batch["attention_mask"].bool()
    assert torch.allclose(ours[kept], hidden[kept], atol=1e-5)


def test_a_lora_checkpoint_holds_what_peft_calls_it(tmp_path):
    fit = tiny.fit(tiny.with_backbone(tiny.settings(tmp_path, max_steps=1), lora_rank=2), tmp_path)
    fit.run()
    with safe_open(fit.checkpoints / "last" / "adapter_model.safetensors", "pt") as opened:
        names = list(opened.keys())
    assert all(name.startswith("base_model.model.") for name in names)
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)
    config = json.loads((fit.checkpoints / "last" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 2)


# --------------------------------------------------------------------------- metrics.jsonl


def test_a_line_of_metrics_is_the_mean_since_the_line_before(tmp_path):
    often = tiny.fit(tiny.settings(tmp_path, log_every=1, batch_size=5), tmp_path / "often")
    often.run()
    seldom = tiny.fit(tiny.settings(tmp_path, log_every=5, batch_size=5), tmp_path / "seldom")
    seldom.run()
    losses = [row["loss"] for row in logged(tmp_path / "often", "train")]
    rows = [4 if len(batch) == 4 else 5 for e in (0, 1) for batch in often.order.plan(e)]
    sums = [loss * count for loss, count in zip(losses, rows, strict=True)]
    written = {row["step"]: row["loss"] for row in logged(tmp_path / "seldom", "train")}
    assert list(written) == [5, 10]
    assert written[5] == pytest.approx(sum(sums[:5]) / sum(rows[:5]), rel=1e-6)
    assert written[10] == pytest.approx(sum(sums[5:]) / sum(rows[5:]), rel=1e-6)


def test_metrics_hold_training_evaluations_and_the_test(tmp_path):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--name", "a", "--train.log-every", "5") == 0
    folder = tmp_path / "runs" / "sequence_regression" / "a"
    train, valid, test = (logged(folder, split) for split in ("train", "valid", "test"))
    assert [row["step"] for row in train] == [5, 10, 12]
    assert [(row["step"], row["epoch"]) for row in valid] == [(6, 1), (12, 2)]
    assert len(test) == 1
    assert test[0]["step"] == json.loads((folder / "results.json").read_text())["best_step"]
    assert {"loss", "pearson", "spearman", "mae"} <= valid[0].keys() & test[0].keys()
    assert {"loss", "lr", "grad_norm", "tokens", "padding", "time"} <= train[0].keys()
    assert {"seconds", "tokens_per_second", "tflops", "peak_memory_gb"} == train[0]["time"].keys()


def test_the_validation_loss_is_the_mean_over_rows_whatever_the_batches(tmp_path):
    values = []
    for size in (2, 4, 9):
        cfg = tiny.settings(tmp_path, batch_size=size, epochs=0)
        fit = tiny.fit(cfg, tmp_path / str(size))
        fit.run()
        values.append(logged(tmp_path / str(size), "valid")[0])
    for row in values[1:]:
        for name in ("loss", "pearson", "mae"):
            assert row[name] == pytest.approx(values[0][name], rel=1e-5)
