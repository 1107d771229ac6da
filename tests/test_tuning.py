"""What trains, and how fast: rates by hand, schedules by their traces, LoRA matrices that learn."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from conftest import golden
from safetensors.torch import load_file
from sequence_regression import SequenceRegression
from test_crash import assert_equal_runs
from tiny import fresh_process  # noqa: F401
from torch import nn

from mgen import checkpoint, loop, tuning
from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data.batches import Batch
from mgen.loop import NoGradient, Train
from mgen.tuning import LoraWatch, Tuning

BERT = "backbone.model.bert."
LAYER = f"{BERT}encoder.layer."
# The head, then the two layers of aido_dna_debug from the top, then the rest.
SCHEDULE = {0: ["adapter.*"], 1: ["backbone.encoder.encoder.layer.1.*"], 2: ["backbone.encoder.*"]}


def schedule(folder, content: dict | str) -> str:
    """A schedule file; without tables of its own YAML reads JSON."""
    file = folder / "schedule.yaml"
    text = content if isinstance(content, str) else str(content)
    file.write_text(text)
    return str(file)


def by_part(values: dict[str, object]) -> dict[str, object]:
    """One value for the head, the embeddings, each layer and the last norm."""
    parts: dict[str, set] = {}
    for name, value in values.items():
        found = re.match(rf"head|{re.escape(BERT)}(embeddings|encoder\.(layer\.\d|ln))", name)
        parts.setdefault(found[0].removeprefix(BERT), set()).add(value)
    assert all(len(found) == 1 for found in parts.values())
    return {part: found.pop() for part, found in parts.items()}


def named(tuned: Tuning) -> dict[str, tuple[float, float]]:
    return {tuned.names[p]: values for p, values in tuned.rates.items()}


# --------------------------------------------------------------------------- rates


def test_layer_decay_halves_the_rate_from_block_to_block(tmp_path):
    cfg = tiny.settings(tmp_path, lr=0.8, layer_decay=0.5)
    task, _ = tiny.prepared(cfg)
    rates = {name: rate for name, (rate, _) in named(Tuning(task, cfg.train)).items()}
    assert by_part(rates) == {
        "embeddings": 0.1,
        "encoder.layer.0": 0.2,
        "encoder.layer.1": 0.4,
        "encoder.ln": 0.8,
        "head": 0.8,
    }
    train = dataclasses.replace(cfg.train, backbone_lr=0.08, backbone_weight_decay=0.0)
    both = named(Tuning(task, train))
    assert both["head.mlp.1.weight"] == (0.8, 0.01)
    assert both[f"{BERT}embeddings.word_embeddings.weight"] == (0.01, 0.0)


def test_lora_matrices_have_the_rate_of_their_block(tmp_path):
    cfg = tiny.with_backbone(tiny.settings(tmp_path, lr=0.8, layer_decay=0.5), lora_rank=2)
    tuned = Tuning(tiny.prepared(cfg)[0], cfg.train)
    rates = {name: rate for name, (rate, _) in named(tuned).items()}
    assert by_part(rates) == {"encoder.layer.0": 0.2, "encoder.layer.1": 0.4, "head": 0.8}


def test_the_first_step_of_each_group_is_adamw_by_hand(tmp_path):
    train = {"lr": 0.01, "weight_decay": 0.1, "backbone_lr": 0.001, "backbone_weight_decay": 0.0}
    cfg = tiny.settings(tmp_path, schedule="constant", clip=0.0, **train)
    fit = tiny.fit(tiny.with_backbone(cfg, dropout=0.0), tmp_path)
    group = [Batch(tuple(range(6)), seed=1)]
    (batch,) = fit.order.load(group)
    loss = fit.task.loss(fit.task(batch), batch).mean()
    gradients = torch.autograd.grad(loss, list(fit.names))
    before = {p: p.detach().clone() for p in fit.names}
    row = fit.step(group, [batch])
    assert (row["lr"], row["backbone_lr"]) == (0.01, 0.001)
    moved = set()
    for (parameter, name), g in zip(fit.names.items(), gradients, strict=True):
        rate, decay = (0.01, 0.1) if name.startswith("head.") else (0.001, 0.0)
        # Both moments are divided by their weight of this first step: g and g squared are left.
        expected = before[parameter] * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        sure = g.abs() > 1e-5  # where rounding of g does not decide
        assert torch.allclose(parameter[sure], expected[sure], atol=1e-6), name
        moved |= {name.partition(".")[0]} if sure.any() else set()
    assert moved == {"head", "backbone"}


def test_without_settings_of_its_own_the_backbone_shares_the_one_group(tmp_path):
    fit = tiny.fit(tiny.settings(tmp_path, backbone_lr=1e-2, max_steps=2), tmp_path)
    (group,) = fit.optimiser.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-2, 0.01, (0.9, 0.999))
    fit.run()
    assert '"lr"' in (tmp_path / "metrics.jsonl").read_text()
    assert "backbone_lr" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("layer_decay", 0.0, "--train.layer-decay 0.0: expected above 0, at most 1"),
        ("layer_decay", 1.5, "--train.layer-decay 1.5: expected above 0, at most 1"),
        ("backbone_weight_decay", -0.5, "--train.backbone-weight-decay -0.5: expected -1, or 0"),
        ("backbone_lr", -1.0, "--train.backbone-lr -1.0: expected at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused(name, value, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Train(**{name: value})


FLAGS = {"backbone_lr": 1e-3, "backbone_weight_decay": 0.0, "layer_decay": 0.9}


@pytest.mark.parametrize("name", FLAGS)
def test_a_setting_for_a_backbone_that_does_not_train_is_refused(name, tmp_path):
    cfg = tiny.settings(tmp_path, **{name: FLAGS[name]})
    flag = f"--train.{name.replace('_', '-')}"
    with pytest.raises(InputError, match=f"{flag} and --backbone.frozen contradict each other"):
        tuning.check(cfg.train, frozen=True)
    for choice in (backbone("dna_onehot"), dataclasses.replace(cfg.backbone, frozen=True)):
        task, _ = tiny.prepared(dataclasses.replace(cfg, backbone=choice))
        with pytest.raises(InputError, match=f"{flag}: nothing of this backbone trains"):
            Tuning(task, cfg.train)


def test_layer_decay_needs_blocks(tmp_path, monkeypatch):
    cfg = tiny.settings(tmp_path, layer_decay=0.9)
    task, _ = tiny.prepared(cfg)
    monkeypatch.setattr(type(task.backbone), "blocks", ())
    with pytest.raises(InputError, match="--train.layer-decay: this backbone has no blocks"):
        Tuning(task, cfg.train)


# --------------------------------------------------------------------------- schedule files


class Tree(nn.Module):
    """Modules and parameters of the given names; those in `normed` are batch norms."""

    def __init__(self, names: list[str], normed: list[str]) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.heads = []
        self.backbones = {"backbone": self.backbone}
        for name in names:
            at, (*path, last) = self, name.split(".")
            for i, step in enumerate(path, start=1):
                if step not in dict(at.named_children()):
                    kind = nn.BatchNorm1d(1) if ".".join(path[:i]) in normed else nn.Module()
                    at.add_module(step, kind)
                at = getattr(at, step)
            at.register_parameter(last, nn.Parameter(torch.zeros(1)))


def test_golden_schedule_trains_what_the_reference_does_without_its_quirks(tmp_path):
    facts = json.loads((golden("metrics") / "finetune_schedule.json").read_text())
    plan = {int(epoch): names for epoch, names in facts["schedule"].items()}
    task = Tree(facts["all_parameters"], facts["batchnorm_modules"])
    assert {name for name, _ in task.named_parameters()} == {*facts["all_parameters"]}
    rates = {group["lr"] for epoch in facts["epochs"] for group in epoch["param_groups"]}
    (rate,) = rates
    tuned = Tuning(task, Train(lr=rate, epochs=99, unfreeze=schedule(tmp_path, plan)))
    expected_groups, ours, before = [], [], set()
    for stored in facts["epochs"]:
        epoch = stored["epoch"]
        so_far = [e.removesuffix(".*") for key in plan if key <= epoch for e in plan[key]]
        wanted = {
            name
            for name in stored["trainable"]
            if any(f"{name}.".startswith(f"{path}.") for path in so_far)
        }
        for name in {*stored["trainable"]} - wanted:  # each is one of the quirks of C5
            is_root, module = "." not in name, name.rpartition(".")[0]
            is_norm = module in facts["batchnorm_modules"]
            dot_is_any = any(re.match(e, name) for key in plan if key <= epoch for e in plan[key])
            assert is_root or is_norm or dot_is_any, name
        if new := wanted - before:
            expected_groups.append((rate, new))
        before = wanted
        ours += tuned.start(epoch)
        assert {n for n, p in task.named_parameters() if p.requires_grad} == wanted, epoch
        assert [(g["lr"], {tuned.names[p] for p in g["params"]}) for g in ours] == expected_groups


def trained_by(folder, plan, **options) -> dict[str, int]:
    """The first epoch of every parameter that trains in the small model."""
    cfg = tiny.with_backbone(tiny.settings(folder, epochs=9), **options)
    train = dataclasses.replace(cfg.train, unfreeze=schedule(folder, plan))
    tuned = Tuning(tiny.prepared(cfg)[0], train)
    return {tuned.names[p]: epoch for p, epoch in tuned.first.items()}


def test_names_of_the_task_of_published_files_and_of_parameters_are_known(tmp_path):
    published = trained_by(tmp_path, SCHEDULE)
    plan = {0: ["head"], 1: [LAYER + "1"], 2: ["backbone"]}
    assert published == trained_by(tmp_path, plan)
    assert by_part(published) == {
        "embeddings": 2, "encoder.layer.0": 2, "encoder.layer.1": 1, "encoder.ln": 2, "head": 0,
    }  # fmt: skip
    biases = {"head.mlp.1.bias": 0, "head.mlp.4.bias": 0}
    assert trained_by(tmp_path, {0: ["he*.mlp.*.bias"]}) == biases
    one = trained_by(tmp_path, {0: [f"{LAYER}*.mlp.*_proj.bias"]})
    assert one == {
        f"{LAYER}{i}.mlp.{name}_proj.bias": 0 for i in (0, 1) for name in ("gate", "up", "down")
    }


def test_what_the_settings_freeze_stays_frozen(tmp_path):
    everything = {0: ["adapter", "backbone.*"]}
    assert not any(".cls." in name for name in trained_by(tmp_path, everything))
    lora = trained_by(tmp_path, everything, lora_rank=2)
    assert lora
    assert all(".lora_" in name or name.startswith("head.") for name in lora)


def test_a_published_head_that_the_task_trains_counts_as_the_head(tmp_path):
    plan = schedule(tmp_path, {0: ["adapter.*"], 1: ["backbone.encoder"]})
    cfg = tiny.settings(tmp_path, backbone_lr=1e-4, lr=1e-2, unfreeze=plan)
    task, _ = tiny.prepared(cfg)
    for parameter in task.backbone.decoder_parameters():
        parameter.requires_grad_(True)
    tuned = Tuning(task, cfg.train)
    for parameter, name in tuned.names.items():
        is_head = ".cls." in name or name.startswith("head.")
        assert (tuned.first[parameter], tuned.rates[parameter][0]) == (
            (0, 1e-2) if is_head else (1, 1e-4)
        ), name
    assert sum(".cls." in name for name in tuned.names.values()) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("0: [head", "cannot be read as YAML"),
        ("head", "expected lines such as '0: \\[head\\]', found 'head'"),
        ("", "expected lines such as"),
        ("0: [head]\n0: [backbone]", "epoch 0 is there more than once"),
        ("0: [head]\none: [backbone]", "epoch 'one': expected a whole number"),
        ("0: [head]\n1.5: [backbone]", "epoch 1.5: expected a whole number"),
        ("0: [head]\n-1: [backbone]", "epoch -1: expected a whole number"),
        ("0: [head]\ntrue: [backbone]", "epoch True: expected a whole number"),
        ("0: head", "epoch 0: expected a list of modules, found 'head'"),
        ("0: [head, 3]", "epoch 0: expected a list of modules"),
        ("1: [head]", "nothing trains in epoch 0"),
        ("0: [head]\n5: [backbone]", "epoch 5 .counted from 0. never comes"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_without_a_model(content, says, tmp_path):
    file = schedule(tmp_path, content)
    with pytest.raises(InputError, match=f"--train.unfreeze {re.escape(file)}: .*{says}"):
        tuning.check(Train(epochs=5, unfreeze=file))


def test_a_schedule_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="--train.unfreeze none.yaml: no such file"):
        tuning.check(Train(unfreeze="none.yaml"))


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("heads", "epoch 1: 'heads' matches no module. Nearest: head"),
        ("backbone.encoder.encoder.layer.2.*", "Nearest: backbone.encoder.encoder.layer"),
        ("backbone.encoder.encoder.laye", "matches no module"),  # no part of a component
        ("backbone.*.bias", "matches no module"),  # * is one component, not more
        ("adapter|backbone", "Expressions are paths"),
        ("backbone.model.cls", "nothing there may train: it is frozen by the settings"),
    ],
)
def test_an_expression_that_frees_nothing_is_refused(expression, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)):
        trained_by(tmp_path, {0: ["head"], 1: [expression]})


def test_an_epoch_past_the_last_step_is_refused(tmp_path):
    file = schedule(tmp_path, {0: ["head"], 2: ["backbone"]})
    with pytest.raises(InputError, match="epoch 2 .counted from 0. never comes"):
        tiny.fit(tiny.settings(tmp_path, max_steps=12, unfreeze=file), tmp_path)  # 6 an epoch
    tiny.fit(tiny.settings(tmp_path, max_steps=13, unfreeze=file), tmp_path)


# --------------------------------------------------------------------------- runs with a schedule


def recorded(fit) -> list[dict]:
    """Fills up with what each step of `fit` trains and changes."""
    seen, step = [], fit.step

    def record(*args):
        before = tiny.weights(fit.task)
        row = step(*args)
        after = tiny.weights(fit.task)
        seen.append(
            {
                "epoch": fit.state.epoch,
                "trains": {n for n, p in fit.task.named_parameters() if p.requires_grad},
                "changed": {n for n in after if not torch.equal(after[n], before[n])},
                "dropout": fit.task.backbone.training,
            }
        )
        return row

    fit.step = record
    return seen


def test_parts_join_epoch_by_epoch(tmp_path):
    file = schedule(tmp_path, SCHEDULE)
    cfg = tiny.settings(tmp_path, epochs=4, warmup_steps=0, unfreeze=file)
    fit = tiny.fit(cfg, tmp_path)
    first = {fit.names[p]: epoch for p, epoch in fit.tuning.first.items()}
    seen = recorded(fit)
    fit.run()
    assert [row["epoch"] for row in seen] == [epoch for epoch in range(4) for _ in range(6)]
    for row in seen:
        wanted = {name for name, epoch in first.items() if epoch <= row["epoch"]}
        assert row["trains"] == wanted
        assert row["changed"] <= wanted
        assert row["dropout"] == (row["epoch"] > 0)
    last = seen[-2]["changed"]  # some gradients are zero, such as those of letters not seen
    assert {name.rpartition(".")[0] for name in last} == {n.rpartition(".")[0] for n in first}
    counts = [fit.optimiser.state[p]["step"].item() for p in fit.names]
    assert counts == [(4 - fit.tuning.first[p]) * 6 for p in fit.names]


RESUMED = {
    "layers": {"layer_decay": 0.7, "backbone_lr": 5e-3, "accumulate": 2},
    "lora": {},
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder and settings of a run of each kind that was left alone, with all its checkpoints."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        train = {"epochs": 4, "save_every": 1, "keep": 99, "log_every": 1} | RESUMED[kind]
        cfg = tiny.settings(folder, unfreeze=schedule(folder, SCHEDULE), **train)
        cfg = tiny.with_backbone(cfg, lora_rank=2) if kind == "lora" else cfg
        tiny.fit(cfg, folder / "run").run()
        return folder / "run", cfg

    made = {}
    return lambda kind: made.setdefault(kind, None) or made.update({kind: make(kind)}) or made[kind]


def stopped_after(run, step: int, to):
    """A copy of a run as it was when step `step` had been saved."""
    shutil.copytree(run, to, symlinks=True)
    for folder in (to / "checkpoints").glob("step-*"):
        if checkpoint.step_of(folder) > step:
            shutil.rmtree(folder)
    for link in ("best", "last"):
        (to / "checkpoints" / link).unlink(missing_ok=True)
    return to


# Epochs of 3 and of 6 steps: before, at and after an epoch in which something joins.
@pytest.mark.parametrize(
    ("kind", "step"),
    [("layers", 1), ("layers", 3), ("layers", 4), ("layers", 8), ("lora", 6), ("lora", 7)],
)
def test_a_run_goes_on_as_if_never_stopped(kind, step, unbroken, tmp_path):
    whole, cfg = unbroken(kind)
    again = tiny.fit(cfg, stopped_after(whole, step, tmp_path / "run"))
    again.restore()
    assert again.state.step == step
    again.run()
    assert_equal_runs(whole, tmp_path / "run")


def test_checkpoints_of_all_epochs_hold_the_same_weights(unbroken):
    whole, _ = unbroken("layers")
    held = [{*load_file(file)} for file in whole.glob("checkpoints/step-*/model.safetensors")]
    assert len(held) == 12
    assert all(names == held[0] for names in held)
    assert f"{BERT}embeddings.word_embeddings.weight" in held[0]


def test_what_never_trains_is_not_saved_and_must_be_the_same_on_resume(tmp_path):
    file = schedule(tmp_path, {0: ["head"], 1: [LAYER + "1"]})
    cfg = tiny.settings(tmp_path, unfreeze=file, save_every=1)
    fit = tiny.fit(cfg, tmp_path)
    fit.run()
    (saved,) = {frozenset(load_file(f)) for f in tmp_path.glob("checkpoints/step-*/model.saf*")}
    assert saved == {
        n for n, _ in fit.task.named_parameters() if n.startswith(("head.", LAYER + "1."))
    }
    assert {n for n, p in fit.task.named_parameters() if p.requires_grad} == saved
    other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=1))
    with pytest.raises(InputError, match="other backbone weights"):
        tiny.fit(other, tmp_path).restore()


def test_the_schedule_is_kept_with_the_run_and_may_not_change(tmp_path):
    file = schedule(tmp_path, SCHEDULE)
    cfg = tiny.settings(tmp_path, epochs=4, unfreeze=file)
    tiny.fit(cfg, tmp_path / "run")
    assert (tmp_path / "run" / "unfreeze.yaml").read_text() == (
        tmp_path / "schedule.yaml"
    ).read_text()
    tiny.fit(cfg, tmp_path / "run")
    schedule(tmp_path, SCHEDULE | {1: ["backbone.encoder.encoder.layer.0"]})
    with pytest.raises(InputError, match="has changed since this run began with .*unfreeze.yaml"):
        tiny.fit(cfg, tmp_path / "run")


def test_a_sharded_model_cannot_follow_a_schedule(tmp_path):
    cfg = tiny.settings(tmp_path, unfreeze=schedule(tmp_path, {0: ["head"]}))
    tuned = Tuning(tiny.prepared(cfg)[0], cfg.train)
    sharded = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    with pytest.raises(InputError, match="sharded by FSDP cannot; use plain DDP"):
        tuned.begin(tmp_path, sharded, lambda epochs: 6 * epochs, 12)


def test_a_run_with_a_schedule_is_tested_and_predicts(tmp_path):
    tiny.table(tmp_path)
    file = schedule(tmp_path, {0: ["head"], 1: [LAYER + "1"]})
    assert tiny.command(tmp_path, "--name", "a", "--train.unfreeze", file) == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    before = json.loads((run / "results.json").read_text())["test"]
    (tmp_path / "schedule.yaml").unlink()  # not needed any more
    assert tiny.command(tmp_path, "test", "--run", str(run)) == 0
    after = json.loads((run / "predictions" / "test.json").read_text())
    assert after["loss"] == before["loss"]


def test_a_run_that_stops_before_all_has_joined_is_tested(tmp_path):
    tiny.table(tmp_path)
    file = schedule(tmp_path, SCHEDULE | {2: ["backbone"]})
    flags = ("--train.eval-every", "1", "--train.patience", "1", "--train.lr", "0")
    flags += ("--train.epochs", "3", "--train.unfreeze", file, "--name", "a")
    assert tiny.command(tmp_path, *flags) == 0
    results = tmp_path / "runs" / "sequence_regression" / "a" / "results.json"
    assert json.loads(results.read_text())["steps"] == 2


@pytest.mark.slow
def test_two_processes_unfreeze_as_one_does():
    server = tiny.server()
    file = schedule(server.folder, SCHEDULE)
    flags = (
        *("--train.batch-size", "5", "--train.epochs", "3", "--train.lr", "0.001"),
        *("--train.log-every", "1", "--train.workers", "0", "--train.unfreeze", file),
    )
    assert server.run("joins1", *flags, "--train.accumulate", "2") == 0, server.log.read_text()
    assert server.run("joins2", *flags, processes=2) == 0, server.log.read_text()
    one, two = (server.run_folder(name) / "checkpoints" / "last" for name in ("joins1", "joins2"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(two / file), load_file(one / file)
        assert ours.keys() == theirs.keys()
        assert all(np.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


# --------------------------------------------------------------------------- LoRA learns


@pytest.mark.parametrize("dora", [False, True])
def test_every_lora_matrix_is_seen_to_learn_and_then_no_longer_looked_at(dora, tmp_path):
    cfg = tiny.settings(tmp_path, warmup_steps=2, accumulate=2)
    fit = tiny.fit(tiny.with_backbone(cfg, lora_rank=2, lora_dora=dora), tmp_path)
    assert len(fit.tuning.watch.idle) == (12 if dora else 8)
    counts, step = [], fit.step
    fit.step = lambda *args: (step(*args), counts.append(len(fit.tuning.watch.idle)))[0]
    fit.run()
    # Query and value of two layers: the four B learn at once, the four A when B has moved, which
    # the first step of the warm-up, at rate 0, does not do.
    assert counts == [4, 4, 0, 0, 0, 0]


class Silent(SequenceRegression):
    """A backbone whose part in the loss is zero."""

    def forward(self, batch):
        return self.head(0 * self.backbone(batch), self.pooled(batch))


@pytest.mark.parametrize("warmup", [0, 2])
def test_lora_matrices_whose_gradients_stay_zero_stop_the_run(warmup, tmp_path):
    cfg = tiny.settings(tmp_path, warmup_steps=warmup)
    fit = tiny.fit(tiny.with_backbone(cfg, lora_rank=2), tmp_path, Silent)
    says = f"step {2 + (warmup > 0)}: LoRA matrices without a gradient: .* and 3 more.*lora-targets"
    with pytest.raises(NoGradient, match=says):
        fit.run()


def test_a_command_whose_lora_does_not_learn_leaves_with_code_70(tmp_path, capsys):
    tiny.table(tmp_path)
    assert tiny.command(tmp_path, "--backbone.lora-rank", "2", task=Silent) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped step 2: LoRA matrices without a gradient")


def watched(*steps: dict[str, float | None], rate: float = 1.0) -> list[str]:
    """What is said in each step with these gradients."""
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in steps[0]}
    watch, said = LoraWatch(), []
    watch.add({p: name for name, p in parameters.items()})
    for gradients in steps:
        for name, value in gradients.items():
            parameters[name].grad = None if value is None else torch.tensor([0.0, value])
        said.append(watch.look(torch.tensor(1.0)).partition(". They")[0])
        watch.moved |= rate > 0
    return said


def test_a_lora_matrix_may_learn_in_any_of_the_steps_looked_at():
    a, b, dora = "x.lora_A.w", "x.lora_B.w", "x.lora_magnitude_vector.w"
    good = {a: 0.0, b: 1.0, dora: 1.0}, {a: 1.0, b: 0.0, dora: 0.0}, {a: 0.0, b: 0.0, dora: 0.0}
    assert watched(*good) == ["", "", ""]
    assert watched(good[0], {a: 0.0, b: 1.0, dora: 1.0})[1].endswith(f": {a}")
    assert watched({a: 0.0, b: 1.0, dora: None})[0].endswith(f": {dora}")
    assert watched(good[0], {a: 1.0, b: None, dora: 0.0}) == ["", ""]
    idle = {a: 0.0, b: 1.0, dora: 0.0}
    assert watched(idle, idle)[1].startswith("LoRA matrices without")
    assert watched(idle, idle, idle, rate=0.0) == ["", "", ""]
    assert watched({"head.weight": None}) == [""]


def test_a_step_that_half_precision_skips_is_not_looked_at():
    watch, parameter = LoraWatch(), nn.Parameter(torch.zeros(2))
    watch.add({parameter: "x.lora_A.w"})
    assert watch.look(torch.tensor(torch.inf)) == ""
    assert watch.idle


def test_lora_matrices_that_join_later_are_watched_from_then_on(tmp_path):
    file = schedule(tmp_path, {0: ["head"], 1: ["backbone.encoder.*"]})
    cfg = tiny.with_backbone(tiny.settings(tmp_path, unfreeze=file), lora_rank=2)
    fit = tiny.fit(cfg, tmp_path, Silent)
    with pytest.raises(NoGradient, match="step 8: LoRA matrices"):  # epochs of 6 steps
        fit.run()


def test_settings_of_tuning_reach_the_loop_from_the_command_line(tmp_path):
    tiny.table(tmp_path)
    flags = ("--train.backbone-lr", "1e-4", "--train.backbone-weight-decay", "0")
    assert tiny.command(tmp_path, *flags, "--train.layer-decay", "0.8", "--name", "a") == 0
    run = tmp_path / "runs" / "sequence_regression" / "a"
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    first = next(row for row in lines if row["split"] == "train")
    assert first["backbone_lr"] == pytest.approx(first["lr"] * 1e-4 / 2e-3, rel=1e-6)
    assert loop.lr_factor is tuning.lr_factor
