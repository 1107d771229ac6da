"""Masking, masked language modelling and token probabilities.

    pytest tests/test_language.py

Masks follow the golden rule; losses, perplexity and likelihoods are compared with torch's,
hand arithmetic and inputs masked in the text; what a run has trained is what it hands on.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from conftest import ROOT, golden
from safetensors.torch import load_file
from tiny import fresh_process  # noqa: F401

from mgen.apply import Run
from mgen.backbones import backbone, load_backbone
from mgen.backbones.tokenizer import Style, Tokenizer
from mgen.data.batches import Batch, loader
from mgen.data.targets import masking
from mgen.metrics.language import guess_sums, language_metrics, token_sums
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import masked_language_modeling  # noqa: E402
import test_huggingface  # noqa: E402
import token_probabilities  # noqa: E402
from masked_language_modeling import MaskedLanguageModeling  # noqa: E402

ESM = {
    **{"model_type": "esm", "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "max_position_embeddings": 40, "token_dropout": True},
    **{"position_embedding_type": "rotary", "emb_layer_norm_before": False},
}


def command(module, *flags) -> int:
    """Exit code of a recipe's command line."""
    kinds = [k for k in vars(module).values() if isinstance(k, type) and hasattr(k, "trains")]
    (task,) = [kind for kind in kinds if kind.__module__ == module.__name__]
    with pytest.raises(SystemExit) as left:
        run(task, module.Config, [*map(str, flags)])
    return left.value.code or 0


def tokenizer_of(texts) -> Tokenizer:
    letters = sorted({letter for text in texts for letter in text})
    style = Style()
    special = [style.pad, style.mask, style.start, style.end, style.unknown]
    return Tokenizer([*special, *letters], style, modality="text", as_written=True)


# ------------------------------------------------------------------------------- masking


def test_masks_are_the_golden_ones(monkeypatch):
    folder = golden("tasks/mlm_masking")
    cases = json.loads((folder / "outputs.json").read_text())
    mask = json.loads((folder / "config.json").read_text())["mask_token"]
    assert cases
    for case in cases:
        tokenizer = tokenizer_of([case["sequence"]])
        order = torch.tensor(case["permutation"])
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: order)
        batch = tokenizer.tokenize([case["sequence"]])
        batch = masking.masked(batch, tokenizer, case["masking_rate"])
        text = "".join(tokenizer.tokens[i] for i in batch["input_ids"][0, 1:-1])
        assert text.replace(tokenizer.style.mask, mask) == case["masked"]
        assert "".join(tokenizer.tokens[i] for i in batch["targets"][0, 1:-1]) == case["target"]
        assert batch["selected"].sum() == case["n_masked"]


def rows_of(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice([*"ACGTN"], size=random.integers(1, 60))) for _ in range(count)]


@pytest.mark.parametrize("style", ["mask", "bert"])
def test_letters_alone_are_selected_and_nothing_else_changes(style):
    tokenizer = backbone("aido_dna_debug").tokenizer()
    texts = [*rows_of(50), "AC[MASK]GT", "[MASK]"]
    plain = tokenizer.tokenize(texts)
    batch = masking.masked(plain, tokenizer, 0.3, style)
    chosen, ids = batch["selected"], plain["input_ids"]
    letters = torch.tensor([tokenizer.vocabulary[letter] for letter in "ACGTN"])
    assert torch.isin(ids[chosen], letters).all()
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert torch.equal(batch["targets"], ids)
    counts = [max(1, int(0.3 * len(text))) for text in texts[:50]]
    assert chosen.sum(1).tolist() == [*counts, 1, 0]  # 4 letters beside [MASK], and none


def test_berts_shares_are_80_10_10_and_new_letters_are_bases():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    torch.manual_seed(0)
    batch = masking.masked(tokenizer.tokenize(["A" * 500] * 80), tokenizer, 0.5, "bert")
    new = batch["input_ids"][batch["selected"]]  # 20,000: standard error below 0.003
    share = {name: (new == i).float().mean().item() for name, i in tokenizer.vocabulary.items()}
    assert share["[MASK]"] == pytest.approx(0.8, abs=0.01)
    assert share["A"] == pytest.approx(0.1 + 0.1 / 4, abs=0.01)  # kept, or A again
    assert all(share[base] == pytest.approx(0.1 / 4, abs=0.005) for base in "CGT")
    assert sum(share[name] for name in ("[MASK]", *"ACGT")) == pytest.approx(1)


def test_masks_depend_on_the_batch_seed_alone():
    tokenizer = backbone("aido_dna_debug").tokenizer()
    rows = SimpleNamespace(take=lambda numbers: [{"sequence": "ACGT" * 9}] * len(numbers))

    def collate(given):
        batch = tokenizer.tokenize([row["sequence"] for row in given])
        return masking.masked(batch, tokenizer, 0.2, "bert")

    seeds = (1, 2, 1)
    torch.manual_seed(5)
    first, second, again = loader(rows, [Batch((0, 1), seed) for seed in seeds], collate)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["selected"], second["selected"])


def test_letters_are_the_tokens_of_sequences():
    assert "".join(masking.letters(backbone("aido_dna_debug").tokenizer())) == "AGCTN"  # U is T
    protein = masking.letters(backbone("aido_protein_debug").tokenizer())
    assert "".join(protein) == "LAGVSERTIDPKQNFYMHWCXBUZO.-"


# ------------------------------------------------------------------------------- losses


def test_loss_on_all_tokens_and_accuracy_are_the_golden_ones():
    folder = golden("tasks/mlm_loss")
    inputs = load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs.safetensors")
    accuracies = []
    for i in range(sum(name.startswith("logits") for name in inputs)):
        logits, targets = inputs[f"logits_{i}"], inputs[f"target_ids_{i}"]
        batch = {"targets": targets, "selected": torch.ones_like(targets, dtype=torch.bool)}
        loss = MaskedLanguageModeling.loss(None, logits, batch).mean()
        torch.testing.assert_close(loss, outputs[f"loss_{i}"].squeeze(), rtol=1e-5, atol=1e-5)
        metric = language_metrics()["accuracy"]
        metric.update(token_sums(logits, targets, batch["selected"]), targets[:, 0])
        accuracies.append(metric.compute().float())
    # Published: the mean over batches, whatever their size; ours over tokens.
    expected = outputs["accuracy_epoch"].squeeze()
    torch.testing.assert_close(torch.stack(accuracies).mean(), expected, rtol=1e-5, atol=1e-5)


def test_metrics_are_exact_over_tokens_of_rows_in_any_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, 5, generator=generator)
    targets = torch.randint(5, (6, 9), generator=generator)
    counted = torch.rand(6, 9, generator=generator) < torch.linspace(0.1, 0.9, 6)[:, None]
    metrics = language_metrics()
    for rows in (slice(0, 1), slice(1, 6)):
        sums = token_sums(logits[rows], targets[rows], counted[rows])
        for metric in metrics.values():
            metric.update(sums, sums[:, 2])
    theirs = torch.nn.functional.cross_entropy(logits[counted], targets[counted]).exp()
    torch.testing.assert_close(metrics["perplexity"].compute().float(), theirs)
    right = (logits.argmax(-1) == targets)[counted]
    assert metrics["accuracy"].compute().item() == pytest.approx(right.float().mean().item())


def test_the_yardstick_is_the_entropy_of_the_training_letters():
    sums = guess_sums(torch.tensor([[2, 1, 1], [0, 4, 0]]), torch.tensor([0.5, 0.25, 0.25]))
    bits = np.log(2) * np.array([2 * 1 + 2 * 2, 4 * 2])
    np.testing.assert_allclose(sums[:, 0].numpy(), bits)
    assert sums[:, 1:].tolist() == [[2, 4], [0, 4]]


def test_loss_on_counts_masked_letters_or_everything(tmp_path):
    cfg = tiny.settings(tmp_path, masked_language_modeling.Config)
    for loss_on in ("masked", "all"):
        task, rows = tiny.prepared(
            masked_language_modeling.Config(**{**vars(cfg), "loss_on": loss_on}),
            MaskedLanguageModeling,
        )
        batch = task.collator()(rows.take(range(8)))
        letters = (batch["special_tokens_mask"] == 0).sum(1)
        counts = [max(1, int(0.15 * n)) for n in letters.tolist()]
        expected = sum(counts) if loss_on == "masked" else batch["input_ids"].numel()
        assert len(task.loss(task(batch), batch)) == expected


# ------------------------------------------------------------------------------- what runs hand on


def folder_of(kind: str, folder) -> str:
    """A name or a folder of a small network that only has a config.json and a tokenizer."""
    if kind.startswith("aido"):
        return kind
    folder = folder / kind
    folder.mkdir()
    if kind == "esm2":
        (folder / "config.json").write_text(json.dumps(ESM))
    else:
        getattr(test_huggingface, kind)(folder).config.save_pretrained(folder)
    return str(folder)


TUNED = {
    "whole": [],
    "lora": ["--backbone.lora-rank", 2],
    "frozen": ["--backbone.frozen"],
}


@pytest.mark.parametrize(
    ("kind", "tuned"),
    [("aido_dna_debug", "whole"), ("aido_dna_debug", "lora"), ("aido_protein_debug", "frozen")]
    + [("esm2", "whole"), ("bert", "whole"), ("bert", "lora")],
)
def test_a_run_hands_on_its_trained_language_model_head(kind, tuned, tmp_path):
    tiny.table(tmp_path)
    table = ["--data.path", tmp_path / "rows.tsv", "--out", tmp_path]
    spaced = ["--backbone.spaced"] if kind == "bert" else []
    given = ["--backbone", folder_of(kind, tmp_path), "--backbone.random-weights", *spaced]
    small = ["--train.workers", 0, "--train.max-steps", 4, "--train.lr", 0.05]
    trained = tmp_path / "masked_language_modeling" / "a"
    train = [*given, *TUNED[tuned], *table, *small, "--name", "a"]
    assert command(masked_language_modeling, *train) == 0
    found = {}
    for name, flags in (("before", given), ("after", ["--backbone", trained])):
        options = ["--tokens", "all", "--log", "--train.seed", 42, "--name", name]
        assert command(token_probabilities, *flags, *table, *options) == 0
        file = tmp_path / "token_probabilities" / name / "predictions" / "rows.parquet"
        found[name] = pq.read_table(file)["log_probabilities"].to_pylist()
    made = Run(trained)
    rows = made.cfg.data.open(split=False)
    with torch.no_grad():
        batch = made.task.backbone.tokenize(rows.values("sequence"))
        logits = made.task.head(made.task.backbone(batch), batch["attention_mask"])
    own = batch["special_tokens_mask"] == 0
    columns = len(made.task.tokenizer.tokens)
    for row, kept, after in zip(logits.log_softmax(-1), own, found["after"], strict=True):
        torch.testing.assert_close(torch.tensor(after), row[kept][:, :columns], rtol=0, atol=1e-5)
    change = np.abs(np.array(found["after"][0]) - np.array(found["before"][0])).max()
    assert change > 0.05
    head = {n for n, p in made.task.named_parameters() if p.requires_grad and ".encoder." not in n}
    assert head  # the head's own parameters are among those trained


@pytest.mark.parametrize(
    ("module", "kind", "says"),
    [
        (masked_language_modeling, "gpt2", "has no mask token"),
        (token_probabilities, "gpt2", "predicts the next token"),
        (masked_language_modeling, "dna_onehot", "no language-model head"),
        (token_probabilities, "dna_onehot", "no language-model head"),
    ],
)
def test_what_is_no_masked_language_model_is_refused(module, kind, says, tmp_path, capfd):
    tiny.table(tmp_path)
    name = kind if kind == "dna_onehot" else folder_of(kind, tmp_path)
    flags = ["--backbone", name, "--backbone.random-weights"][: 3 if kind == "gpt2" else 2]
    table = ["--data.path", tmp_path / "rows.tsv", "--out", tmp_path, "--train.workers", 0]
    assert command(module, *flags, *table) == 2
    assert says in " ".join(capfd.readouterr().err.split())
    assert not [*tmp_path.glob("*/*/predictions")]


@pytest.mark.parametrize(
    ("module", "flags", "says"),
    [
        (masked_language_modeling, ["--masking-rate", "0"], "above 0"),
        (masked_language_modeling, ["--masking-rate", "1.5"], "at most 1"),
        (masked_language_modeling, ["--adapter", "mean_pool_mlp"], "per token"),
        (token_probabilities, ["--mask-each", "--special-tokens"], "drop one of both"),
    ],
)
def test_nonsense_is_refused(module, flags, says, tmp_path, capfd):
    assert command(module, *flags, "--out", tmp_path) == 2
    assert says in " ".join(capfd.readouterr().err.split())


# ------------------------------------------------------------------------------- probabilities


def probabilities(folder, *flags) -> tuple[dict, list[str]]:
    tiny.table(folder, train=5, valid=1, test=1)
    table = ["--data.path", folder / "rows.tsv", "--out", folder, "--name", "a"]
    assert command(token_probabilities, *table, *flags) == 0
    file = folder / "token_probabilities" / "a" / "predictions" / "rows.parquet"
    names = json.loads(file.with_suffix(".vocabulary.json").read_text())["tokens"]
    return pq.read_table(file).to_pydict(), names


def network():
    torch.manual_seed(42)
    return load_backbone("aido_dna_debug")


@pytest.mark.parametrize("tokens", ["40", "16384"])
def test_mask_each_gives_each_letter_a_pass_that_does_not_see_it(tokens, tmp_path):
    found, names = probabilities(
        tmp_path, "--mask-each", "--columns", "sequence", "--train.batch-tokens", tokens
    )
    model = network()
    ids = [model.vocabulary[name] for name in names]
    for i, sequence in enumerate(found["sequence"]):
        total = 0.0
        for place, letter in enumerate(sequence):
            text = f"{sequence[:place]}[MASK]{sequence[place + 1 :]}"
            with torch.no_grad():
                logits = model.decoder(model(model.tokenize([text])))[0, 1 + place]
            expected = logits.softmax(-1)
            got = torch.tensor(found["probabilities"][i][place])
            torch.testing.assert_close(got, expected[ids], rtol=1e-4, atol=1e-6)
            assert found["predicted"][i][place] == names[expected[ids].argmax()]
            total += expected[model.vocabulary[letter]].log().item()
        assert found["pseudo_log_likelihood"][i] == pytest.approx(total, rel=1e-4)
        perplexity = np.exp(-total / len(sequence))
        assert found["pseudo_perplexity"][i] == pytest.approx(perplexity, rel=1e-4)


def test_probabilities_of_all_tokens_with_special_ones_sum_to_one(tmp_path):
    found, names = probabilities(
        tmp_path, "--tokens", "all", "--special-tokens", "--columns", "sequence"
    )
    model = network()
    assert names == [*model.tokenizer.tokens]
    for sequence, rows, text, total in zip(
        *(found[k] for k in ("sequence", "probabilities", "predicted", "log_likelihood")),
        strict=True,
    ):
        assert np.array(rows).shape == (len(sequence) + 2, len(names))
        np.testing.assert_allclose(np.sum(rows, 1), 1, rtol=1e-5)
        assert len(text) == len(sequence) and set(text) <= set("ACGTN")
        own = [np.log(row[names.index(a)]) for row, a in zip(rows[1:-1], sequence, strict=True)]
        assert total == pytest.approx(sum(own), rel=1e-4)  # of letters alone
