"""Generation: what is generated obeys grammar, template, condition, alphabet and seed."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import torch
from conditional_masked_diffusion import ConditionalMaskedDiffusion
from conditional_masked_diffusion import Config as ConditionalConfig
from conditional_masked_language_modeling import ConditionalMaskedLanguageModeling
from conditional_masked_language_modeling import Config as MaskedConfig
from masked_diffusion import Config, MaskedDiffusion
from scipy.stats import spearmanr
from tiny import fresh_process  # noqa: F401

import mgen
from mgen.adapters import adapter
from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.data.named.simulate import PAIRED_SITES
from mgen.data.targets.corruption import corrupted, diffusion_loss, hidden_tokens
from mgen.loop import Train
from mgen.methods.generate import (
    Generation,
    check_generation,
    generate,
    unmask,
    write_sequences,
)
from mgen.train import run

MASK = "[MASK]"
PAIRS = {"AT", "TA", "CG", "GC"}
LETTERS = ["A", "G", "C", "T"]
RECIPES = [
    (MaskedDiffusion, Config),
    (ConditionalMaskedDiffusion, ConditionalConfig),
    (ConditionalMaskedLanguageModeling, MaskedConfig),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Settings of a network with learned positions, which finds fixed pairs of sites quickly."""
    folder = tmp_path_factory.mktemp("network")
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 32}
    others = {"num_hidden_layers": 1, "max_position_embeddings": 32, "initializer_range": 0.1}
    facts = {"model_type": "rnabert", "position_embedding_type": "absolute", "modality": "dna"}
    facts |= {"normalization_type": "LayerNorm"}
    (folder / "config.json").write_text(json.dumps(facts | sizes | others))
    return backbone(str(folder), random_weights=True)


def trained(folder, cfg, task_type):
    fit = tiny.fit(cfg, folder, task_type)
    fit.run()
    fit.task.eval()
    fit.task.labelled = False
    return fit.task


def predicted(task, sequences, first=0, **options):
    """Columns for templates, numbered from `first`; further columns of rows as lists."""
    settings = {f.name for f in dataclasses.fields(Generation)}
    chosen = {name: value for name, value in options.items() if name in settings}
    task.cfg = dataclasses.replace(task.cfg, **chosen)
    rows = [{"sequence": sequence} for sequence in sequences]
    for name in options.keys() - chosen.keys():
        for row, value in zip(rows, options[name], strict=True):
            row[name] = value
    batch = task.collator()(rows)
    batch["row"] = torch.arange(first, first + len(rows))
    with torch.inference_mode():
        return task.predictions(task(batch), batch)


@pytest.mark.slow
def test_generated_sequences_obey_the_grammar_that_was_learnt(network, tmp_path):
    train = Train(lr=5e-3, batch_size=16, max_steps=180, workers=0, eval_every=1000)
    cfg = Config(backbone=network, train=train, timesteps=4)
    task = trained(tmp_path / "run", cfg, MaskedDiffusion)
    options = {"steps": 25, "sample": True, "temperature": 0.5, "samples": 100}
    (made,) = predicted(task, [MASK * 24], **options)["generated"]
    obey = [all(s[i] + s[j] in PAIRS for i, j in PAIRED_SITES) for s in made]
    assert np.mean(obey) >= 0.95
    assert len({*made}) > 95  # and it is no one sequence over and over
    known = {row["sequence"] for row in cfg.data.open().dataset}
    assert len(known & {*made}) < 5


def share_of_gc(sequence: str) -> float:
    return sum(letter in "GC" for letter in sequence) / len(sequence)


@pytest.mark.parametrize(("task_type", "config"), RECIPES[1:])
def test_generated_sequences_follow_their_condition(task_type, config, network, tmp_path):
    train = Train(lr=5e-3, batch_size=16, max_steps=80, workers=0, eval_every=1000)
    more = {"timesteps": 2} if config is ConditionalConfig else {"masking_rate": 0.5}
    head = adapter("conditional_lm", hidden_size=32, layers=1, dropout=0.0)
    cfg = config(backbone=network, adapter=head, train=train, **more)
    task = trained(tmp_path / "run", cfg, task_type)
    asked = np.linspace(0, 1, 50).tolist()
    made = predicted(task, [MASK * 24] * 50, steps=12, sample=True, label=asked)["generated"]
    assert spearmanr(asked, list(map(share_of_gc, made))).statistic >= 0.9


class Stub:
    """A tokenizer's network whose logits prefer special tokens, then N, then G."""

    def __init__(self, prefer: str = "") -> None:
        self.tokenizer = backbone("aido_dna_debug").tokenizer()
        order = [*self.tokenizer.tokens]
        self.logits = torch.zeros(len(order))
        for i, token in enumerate(order):
            self.logits[i] = 50.0 if token[0] == "[" else 30.0 if token == "N" else 0.0
        if prefer:
            self.logits[self.tokenizer.vocabulary[prefer]] = 20.0

    def __call__(self, batch):
        ids = batch["input_ids"]
        own = torch.sin(torch.arange(ids.shape[1])[:, None] * (1 + torch.arange(16.0)))
        return (self.logits + own).expand(*ids.shape, 16)

    def generate(self, sequences, first=0, seed=0, batch_size=32, letters=LETTERS, **options):
        batch = self.tokenizer.tokenize(sequences)
        batch["row"] = torch.arange(first, first + len(sequences))
        train = Train(seed=seed, batch_size=batch_size)
        return generate(self, batch, self.tokenizer, letters, Generation(**options), train)


@pytest.mark.parametrize("sample", [False, True])
def test_special_tokens_and_unseen_letters_are_never_generated(sample):
    made = Stub().generate([MASK * 30, "ACGT"], sample=sample)["generated"]
    assert {*"".join(made)} <= {*"ACGT"}
    assert [len(sequence) for sequence in made] == [30, 4]


def test_letters_that_are_not_masked_stay():
    templates = [f"AC{MASK}{MASK}GTN", f"{MASK}TTTT"]
    columns = Stub("G").generate(templates)
    assert columns["generated"] == ["ACGGGTN", "GTTTT"]
    assert columns["template"] == ["AC..GTN", ".TTTT"]


def test_a_share_of_a_sequence_without_masks_is_generated_anew():
    columns = Stub("G").generate(["A" * 20, "T" * 7, f"AA{MASK}"], mask_fraction=0.5)
    assert [row.count(".") for row in columns["template"]] == [10, 3, 1]
    for template, made in zip(columns["template"], columns["generated"], strict=True):
        assert made == template.replace(".", "G")
    assert columns["template"] != Stub("G").generate(["A" * 20] * 3, seed=1)["template"]


def test_log_likelihood_is_that_of_the_letters_among_those_allowed():
    stub = Stub()
    columns = stub.generate([f"A{MASK}{MASK}"], steps=1, temperature=0.1)
    ids = [stub.tokenizer.vocabulary[letter] for letter in LETTERS]
    logits = stub({"input_ids": torch.zeros(1, 5)})[0, 2:4, ids].double()
    chosen = [LETTERS.index(letter) for letter in columns["generated"][0][1:]]
    expected = sum(
        np.log(np.exp(row[k]) / np.exp(row).sum())
        for row, k in zip(logits.numpy(), chosen, strict=True)
    )
    assert columns["log_likelihood"][0] == pytest.approx(expected, abs=1e-6)
    assert columns["mean_log_likelihood"][0] == pytest.approx(expected / 2, abs=1e-6)


def test_draws_depend_on_seed_row_and_sample_alone():
    options = {"sample": True, "mask_fraction": 0.7}
    texts = ["ACGTACGTAC", "GG" * 20, "T" * 5]
    whole = Stub().generate(texts, first=7, samples=3, **options)
    assert whole == Stub().generate(texts, first=7, samples=3, batch_size=1, **options)
    for i, sequence in enumerate(texts):
        alone = Stub().generate([sequence], first=7 + i, samples=3, **options)
        assert {name: values[0] for name, values in alone.items()} == {
            name: values[i] for name, values in whole.items()
        }
        assert len({*whole["generated"][i]}) > 1
    fewer = Stub().generate(texts, first=7, samples=2, **options)
    assert [row[:2] for row in whole["generated"]] == fewer["generated"]
    other = Stub().generate(texts, first=7, samples=3, seed=1, **options)
    assert other["generated"] != whole["generated"]


def test_rna_is_written_with_u():
    stub = Stub("T")
    stub.tokenizer = backbone("aido_rna_1m_mars").tokenizer()
    assert stub.generate([f"ACU{MASK}"])["generated"] == ["ACUU"]


@pytest.mark.parametrize("kind", ["parquet", "tsv", "safetensors"])
def test_files_have_a_record_per_sequence(kind, tmp_path):
    from mgen.predictions import Writer

    lines = ["id\tsequence\tlabel", "one two\tAC\t0.25", "b\tGG\t1"]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n")
    rows = Table(path=str(tmp_path / "rows.tsv")).open(split=False)
    writer = Writer(tmp_path / f"made.{kind}", "key")
    writer.start(fresh=True)
    columns = {
        "row": torch.tensor([0, 1]),
        "template": ["..", ".."],
        "generated": [["AC", "AG"], ["GG", "GC"]],
        "log_likelihood": [[-1.0, -2.0], [-3.0, -4.0]],
        "mean_log_likelihood": [[-0.5, -1.0], [-1.5, -2.0]],
    }
    writer.write(0, columns)
    made = write_sequences(writer.finish(), rows, np.arange(2), ["label"])
    assert [path.name for path in made] == ["made.fasta", "made.generated.tsv"]
    names = ["one_two_1", "one_two_2", "b_1", "b_2"]
    fasta = made[0].read_text().splitlines()
    assert [line.split()[0] for line in fasta[::2]] == [f">{name}" for name in names]
    assert fasta[1::2] == ["AC", "AG", "GG", "GC"]
    first = made[1].read_text().splitlines()
    assert first[0] == "id\tsequence\tlog_likelihood\tmean_log_likelihood\tlabel"
    assert first[1] == "one_two_1\tAC\t-1.0000\t-0.5000\t0.25"
    assert len(first) == 5


# --------------------------------------------------------------------------- corruption and loss


def batch_of(*sequences):
    tokenizer = backbone("aido_dna_debug").tokenizer()
    return tokenizer, tokenizer.tokenize(sequences)


def test_every_row_is_corrupted_at_a_time_in_each_part_of_the_unit_interval():
    tokenizer, batch = batch_of("ACGTACGTAC" * 10, f"GG{MASK}T" * 25)
    torch.manual_seed(0)
    copies = corrupted(batch, 10, tokenizer.mask_token_id)
    times = (1 / copies["posterior_weights"]).view(10, 2)
    assert ((times * 10).floor() == torch.arange(10)[:, None]).all()
    hidden = hidden_tokens(copies["input_ids"], copies["targets"], tokenizer.mask_token_id)
    lengths = torch.tensor([100.0, 75.0])  # masks of the row itself are not to be guessed
    torch.testing.assert_close(
        hidden.sum(1).view(10, 2).float(), (times * lengths).floor().clamp(min=1), atol=1, rtol=0
    )
    assert not (hidden & (copies["special_tokens_mask"] == 1)).any()
    assert torch.equal(copies["targets"][copies["place"] == 1], batch["input_ids"][[1] * 10])
    assert (copies["input_ids"][~hidden] == copies["targets"][~hidden]).all()


def test_mean_loss_is_the_same_in_one_batch_and_in_two():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5, 4), torch.randint(4, (6, 5))
    hidden, weights = torch.rand(6, 5) < 0.5, 1 + 9 * torch.rand(6)
    hidden[1] = False
    for weighting in ("published", "normalized", "bound"):
        parts = [
            diffusion_loss(logits[s], targets[s], hidden[s], weights[s], 0.05, weighting)
            for s in (slice(6), slice(2), slice(2, 6))
        ]
        sums = [((a * b).sum(), b.sum()) for a, b in parts]
        whole, halves = sums[0], [sums[1][k] + sums[2][k] for k in (0, 1)]
        torch.testing.assert_close(whole[0] / whole[1], halves[0] / halves[1])


def test_valid_loss_is_the_training_objective_and_does_not_change_by_itself(tmp_path):
    train = Train(workers=0, batch_size=4)
    small = {"backbone": backbone("aido_dna_debug"), "data": tiny.table(tmp_path), "train": train}
    cfg = Config(**small, weighting="normalized")
    fit = tiny.fit(cfg, tmp_path / "run", MaskedDiffusion)
    values = [tiny_infer(fit)["loss"] for _ in range(2)]
    assert values[0] == values[1]
    assert values[0] == pytest.approx(np.log(16), abs=0.2)  # as training starts: a guess among 16


def tiny_infer(fit):
    from mgen.infer import infer

    return infer(
        fit.task, fit.rows, "valid", fit.lengths, fit.train, fit.accelerator,
        metrics=fit.task.metrics(),
    )[0]  # fmt: skip


# --------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"samples": 2}, "all alike"),
        ({"samples": 0}, "--samples 0"),
        ({"mask_fraction": 0.0}, "--mask-fraction 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        Generation(**options)


def refused(capsys, task_type, config, *flags) -> str:
    with pytest.raises(SystemExit) as left:
        run(task_type, config, list(flags))
    assert left.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("task_type", "config"), RECIPES)
def test_backbones_and_heads_that_cannot_generate_are_refused(task_type, config, tmp_path, capsys):
    flags = ["--out", str(tmp_path), "--adapter", "mean_pool_mlp"]
    assert "mean_pool_mlp" in refused(capsys, task_type, config, *flags)
    assert not list(tmp_path.iterdir())


def test_generation_without_a_condition_names_the_cell(tmp_path, capsys):
    folder = tmp_path / "runs"
    flags = ["--out", str(folder), "--name", "c", "--train.max-steps", "1", "--train.workers", "0"]
    with pytest.raises(SystemExit) as left:
        run(ConditionalMaskedDiffusion, ConditionalConfig, ["fit", *flags])
    assert left.value.code == 0
    given = folder / "conditional_masked_diffusion" / "c"
    file = tmp_path / "templates.tsv"
    for cell in ("", "high", "inf"):
        file.write_text(f"id\tsequence\tlabel\na\tACGT\t0.5\nb\t{MASK}\t{cell}\n")
        words = ["predict", "--run", str(given), "--data.path", str(file)]
        said = refused(capsys, ConditionalMaskedDiffusion, ConditionalConfig, *words)
        assert "row 2" in said and "'b'" in said and "'label'" in said
    file.write_text("sequence\nACGT\n")
    said = refused(capsys, ConditionalMaskedDiffusion, ConditionalConfig, *words)
    assert "no column 'label'" in said and "--data.y-cols" in said
    assert not list((given / "predictions").glob("templates*"))
    with pytest.raises(InputError, match="every row needs them"):
        mgen.load_run(given).predict(["ACGT"])
    made = mgen.load_run(given).predict([{"sequence": f"A{MASK}GT", "label": 0.5}])
    assert made["template"] == ["A.GT"] and len(made["generated"][0]) == 4


def test_a_template_with_another_special_token_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("sequence\nAC[MASK]GT\nAC[PAD]GT\n")
    rows = Table(path=str(tmp_path / "t.csv")).open(split=False)
    with pytest.raises(InputError, match=r"row 2 .*\[PAD\] in a template"):
        check_generation(rows, backbone("aido_dna_debug").tokenizer(), ())


def test_output_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="not a finite number"):
        unmask_all = torch.ones(1, 3, dtype=torch.bool)
        unmask(
            lambda ids: torch.full((1, 3, 5), torch.nan), torch.zeros(1, 3).long(), unmask_all, 2
        )
