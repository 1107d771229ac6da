"""Scores of variants: each strategy against its formula, one masked sequence at a time."""

import csv
import dataclasses
import json
import random
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, golden
from safetensors.torch import load_file
from test_huggingface import llama

from mgen.backbones import backbone, load_backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.data.inputs.substitutions import BLOSUM62, RESIDUES, blosum62
from mgen.data.inputs.variants import Edit, Variant, parse_mutations, read_wild_type
from mgen.methods import zero_shot
from mgen.metrics import auprc, auroc
from mgen.metrics.variants import variant_metrics
from mgen.train import run

sys.path.insert(0, str(ROOT / "recipes"))

import zero_shot_variants  # noqa: E402
from zero_shot_variants import Config, ZeroShotVariants  # noqa: E402

WILD = "MKLAEFVRKLGDWIKQHPNS"
MUTANTS = ["A4G", "K2R:D12W", "WT", "M1L:E5Q:S20A", "A4C"]


def table(folder, cells, column: str = "mutant", labels=None, **options) -> Table:
    labels = labels or [""] * len(cells)
    lines = [f"{column}\tlabel", *(f"{c}\t{y}" for c, y in zip(cells, labels, strict=True))]
    (folder / "dms.tsv").write_text("\n".join(lines) + "\n")
    return Table(path=str(folder / "dms.tsv"), x_col=column, wild_type=WILD, **options)


def made(data: Table, strategy: str, **options) -> tuple[ZeroShotVariants, list[dict], list[str]]:
    """A task with weights, the table's rows, and what was said aloud."""
    options.setdefault("backbone", backbone("aido_protein_debug"))
    task = ZeroShotVariants(Config(data=data, strategy=strategy, **options))
    rows = task.cfg.data.open(split=False)
    rows.splits["all"] = np.arange(len(rows))
    notes = task.check(rows, ("all",), labelled=False)
    torch.manual_seed(0)
    task.setup()
    return task.eval(), rows.take(range(len(rows))), notes


def scores(task: ZeroShotVariants, rows: list[dict], size: int = 100) -> torch.Tensor:
    with torch.inference_mode():
        parts = [task(task.collator()(rows[i : i + size])) for i in range(0, len(rows), size)]
    return torch.cat(parts)


def log_p(network, text: str) -> torch.Tensor:
    """Log-probabilities (letters, V) of one text, in which [MASK] is one letter."""
    batch = network.tokenize([text])
    with torch.inference_mode():
        logits = network.decoder(network(batch))[0]
    return torch.log_softmax(logits[batch["special_tokens_mask"][0] == 0].double(), -1)


def hidden(sequence: str, *sites: int, mask: str = "[MASK]") -> str:
    return "".join(mask if i in sites else letter for i, letter in enumerate(sequence))


def formula(network, strategy: str, before: str, after: str, mask: str = "[MASK]") -> float:
    """The score as the docs define it, one forward pass per term."""
    ids = network.vocabulary
    sites = [i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]

    def p(text: str, site: int, letter: str) -> float:
        return log_p(network, text)[site, ids[letter]].item()

    total = 0.0
    if strategy == "pseudo-perplexity":
        for sign, s in ((1, after), (-1, before)):
            each = [p(hidden(s, i, mask=mask), i, letter) for i, letter in enumerate(s)]
            total += sign * sum(each) / len(s)
        return total
    for i in sites:
        old, new = before[i], after[i]
        if strategy == "match-fill":
            total += p(hidden(after, i, mask=mask), i, new) - p(
                hidden(before, i, mask=mask), i, old
            )
            continue
        text = {
            "wt-marginals": before,
            "wt-fill": hidden(before, i, mask=mask),
            "mask-fill": hidden(before, *sites, mask=mask),
            "mut-fill": hidden(after, i, mask=mask),
        }[strategy]
        total += p(text, i, new) - p(text, i, old)
    return total


LIKELIHOODS = (
    "wt-marginals",
    "wt-fill",
    "mask-fill",
    "mut-fill",
    "match-fill",
    "pseudo-perplexity",
)


@pytest.mark.parametrize("name", ["aido_protein_debug", "esm2_8m"])
@pytest.mark.parametrize("strategy", LIKELIHOODS)
def test_scores_follow_the_formula_of_the_strategy(tmp_path, strategy, name):
    if name == "esm2_8m" and strategy == "pseudo-perplexity":
        pytest.skip("the same code as above, and slow")
    choice = backbone(name, random_weights=True)
    task, rows, _ = made(table(tmp_path, MUTANTS), strategy, backbone=choice)
    mask = task.tokenizer.style.mask
    expected = [formula(task.backbone, strategy, WILD, row["mutant"], mask) for row in rows]
    assert scores(task, rows).tolist() == pytest.approx(expected, abs=2e-5)
    assert expected[2] == 0 and len({round(e, 4) for e in expected}) == 5


def test_insertions_and_deletions_have_pseudo_likelihoods(tmp_path):
    cells = [WILD[:5] + WILD[8:], WILD[:4] + "GG" + WILD[4:], WILD]
    task, rows, _ = made(table(tmp_path, cells, "sequence"), "pseudo-perplexity")
    found = scores(task, rows)
    for row, score in zip(rows, found.tolist(), strict=True):
        by_hand = formula(task.backbone, "pseudo-perplexity", WILD, row["sequence"])
        assert score == pytest.approx(by_hand, abs=1e-5)
    task, rows, _ = made(table(tmp_path, cells, "sequence"), "pseudo-perplexity", reduce="sum")
    network, s = task.backbone, cells[0]
    sums = [
        sum(log_p(network, hidden(t, i))[i, network.vocabulary[t[i]]].item() for i in range(len(t)))
        for t in (s, WILD)
    ]
    assert scores(task, rows)[0].item() == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_distances_are_those_of_mean_embeddings(tmp_path):
    cells = [WILD[:5] + WILD[8:], WILD, "G" + WILD[1:]]
    data = table(tmp_path, cells, "sequence")
    task, rows, _ = made(data, "embedding-distance", layers=("0", "last"))
    found = scores(task, rows)  # (B, 2, 3)
    assert task.names[:4] == ["L1_layer_0", "L2_layer_0", "cosine_layer_0", "L1_layer_2"]
    for place, layer in enumerate((0, 2)):
        before, *after = task.backbone.embed([WILD, *cells], layer=layer).double()
        for i, vector in enumerate(after):
            gap = vector - before
            cosine = 1 - (vector @ before) / vector.norm() / before.norm()
            expected = [gap.abs().sum(), gap.square().sum().sqrt(), cosine]
            assert found[i, place].tolist() == pytest.approx([e.item() for e in expected], abs=2e-5)


def test_causal_likelihoods_are_those_of_transformers(tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    torch.manual_seed(1)
    model = llama(folder).eval()
    model.save_pretrained(folder)
    cells = ["G" + WILD[1:], WILD[:7] + WILD[9:], WILD]
    data = table(tmp_path, cells, "sequence")
    expected = {}
    task, rows, _ = made(data, "causal", backbone=backbone(str(folder)), reduce="sum")
    for text in [WILD, *cells]:
        ids = task.backbone.tokenize([text])["input_ids"]
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss  # mean over all but the start token
        expected[text] = -loss.item() * (ids.shape[1] - 1)
    found = scores(task, rows).tolist()
    assert found == pytest.approx([expected[c] - expected[WILD] for c in cells], abs=1e-4)
    with pytest.raises(InputError, match="left to right; use --strategy causal"):
        made(data, "wt-marginals", backbone=backbone(str(folder)), indels="skip")


def test_causal_is_refused_by_models_that_see_both_sides(tmp_path):
    with pytest.raises(InputError, match="sees both sides"):
        made(table(tmp_path, MUTANTS), "causal")


def test_likelihood_counts_own_tokens_alone():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7)
    ids = torch.randint(0, 7, (2, 5))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "special_tokens_mask": torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 1, 1]]),
    }
    found = zero_shot.likelihoods(logits, batch, mean=False)
    first = -F.cross_entropy(logits[0, 0:3], ids[0, 1:4], reduction="sum")
    second = -F.cross_entropy(logits[1, 0:2], ids[1, 1:3], reduction="sum")
    assert [f.item() for f in found] == pytest.approx([first.item(), second.item()], abs=1e-5)
    mean = zero_shot.likelihoods(logits, batch, mean=True)
    assert [f.item() for f in mean] == pytest.approx([first.item() / 3, second.item() / 2])


# --------------------------------------------------------------------------- cost


def big_scan(folder, count: int = 5000):
    draw = random.Random(0)
    wild = "".join(draw.choice(RESIDUES) for _ in range(300))
    every = [f"{a}{i + 1}{b}" for i, a in enumerate(wild) for b in RESIDUES if b != a]
    data = table(folder, draw.sample(every, count))
    return dataclasses.replace(data, wild_type=wild)


def test_a_scan_of_5000_variants_costs_one_input_per_position(tmp_path, monkeypatch):
    task, rows, _ = made(big_scan(tmp_path), "wt-fill")
    seen = []
    forward = task.backbone.forward
    monkeypatch.setattr(
        task.backbone, "forward", lambda b: seen.extend(b["input_ids"].tolist()) or forward(b)
    )
    found = scores(task, rows, 256)
    assert len(found) == 5000 and found.isfinite().all() and found.unique().numel() > 4000
    assert len(seen) == len({*map(tuple, seen)}) == task.outputs.computed <= 300


@pytest.mark.parametrize(
    ("strategy", "inputs"),
    # Masked alone, a mutated letter is the wild type's input; sites 1, 2, 4, 5, 12, 20.
    [("wt-marginals", 1), ("wt-fill", 6), ("mask-fill", 3), ("mut-fill", 6), ("match-fill", 11)],
)
def test_equal_inputs_are_computed_once(tmp_path, strategy, inputs):
    task, rows, _ = made(table(tmp_path, [*MUTANTS, *MUTANTS]), strategy)
    scores(task, rows, 3)
    assert task.outputs.computed == inputs


def test_what_was_read_is_forgotten_when_memory_is_full_and_scores_stay(tmp_path, monkeypatch):
    task, rows, _ = made(table(tmp_path, MUTANTS), "pseudo-perplexity")
    whole = scores(task, rows)
    monkeypatch.setattr(zero_shot, "CACHE_BYTES", 2000)
    task.outputs = zero_shot.Outputs(task.read)
    assert torch.allclose(scores(task, rows, 1), whole, atol=1e-6)
    assert task.outputs.size <= 2000 and task.outputs.computed > len(WILD) * 5


def test_scores_do_not_depend_on_the_batch(tmp_path):
    task, rows, _ = made(table(tmp_path, MUTANTS), "mask-fill", tokens=25)
    one_by_one = scores(task, rows, 1)
    task, rows, _ = made(table(tmp_path, MUTANTS), "mask-fill")
    assert torch.allclose(scores(task, rows), one_by_one, atol=1e-6)


# --------------------------------------------------------------------------- long, other strand


@pytest.mark.parametrize("strategy", ["wt-fill", "mask-fill", "mut-fill"])
def test_long_sequences_are_read_in_windows_around_each_site(tmp_path, strategy):
    choice = backbone("aido_protein_debug", max_length=9)  # 8 letters and the end token
    task, rows, notes = made(table(tmp_path, ["K2R:D12W", "S20A"]), strategy, backbone=choice)
    assert "2 of 2 variants are read in windows of 8 letters around their sites" in notes
    network, total = task.backbone, 0.0
    for site, first in ((1, 0), (11, 7)):  # windows 0-8 and 7-15 of the wild type
        part = (rows[0]["mutant"] if strategy == "mut-fill" else WILD)[first : first + 8]
        known = log_p(network, hidden(part, site - first))[site - first]
        new, old = rows[0]["mutant"][site], WILD[site]
        total += (known[network.vocabulary[new]] - known[network.vocabulary[old]]).item()
    assert scores(task, rows)[0].item() == pytest.approx(total, abs=1e-5)


def test_edits_too_far_apart_are_an_error_where_a_sequence_is_read_at_once(tmp_path):
    choice = backbone("aido_protein_debug", max_length=9)
    with pytest.raises(InputError, match="row 1 .* span 11 letters, but the model reads 8"):
        made(table(tmp_path, ["K2R:D12W"]), "embedding-distance", backbone=choice)


def test_cropping_keeps_the_edits_and_fits_both_sequences():
    variant = Variant("ABCDEFGHIJ", (Edit(8, "I", "XYZ"),))
    part = variant.cropped(6)
    assert len(part.mutated) <= 6 and part.mutated == part.reference.replace("I", "XYZ")
    assert part.reference in variant.reference


def test_both_strands_give_the_mean_of_a_window_and_its_reverse_complement(tmp_path):
    lines = ["sequence\tstart\tref\tmutate", "ACGTTGCA\t2\tG\tT", "TGCAACGT\t5\tC\tA"]
    (tmp_path / "v.tsv").write_text("\n".join(lines) + "\n")
    data, dna = Table(path=str(tmp_path / "v.tsv")), backbone("aido_dna_debug")
    for strategy in ("wt-fill", "embedding-distance", "pseudo-perplexity"):
        task, rows, _ = made(data, strategy, backbone=dna)
        forward = scores(task, rows)  # the second row is the first one's other strand
        task, rows, _ = made(data, strategy, backbone=dna, strands="both")
        both = scores(task, rows)
        assert torch.allclose(both, forward.mean(0, keepdim=True).expand_as(both), atol=1e-6)
        assert (forward[0] - forward[1]).abs().max() > 1e-5


def test_both_strands_are_refused_for_proteins(tmp_path):
    with pytest.raises(InputError, match="--strands both is for models of DNA"):
        made(table(tmp_path, MUTANTS), "wt-fill", strands="both")


# --------------------------------------------------------------------------- mutations as text


@pytest.mark.parametrize(
    ("text", "first", "sequence"),
    [
        ("M1A", 1, "AKLAEF"),
        ("M0A", 0, "AKLAEF"),
        ("k2r : F6Y", 1, "MRLAEY"),
        ("F6Y,K2R", 1, "MRLAEY"),
        ("K102R", 101, "MRLAEF"),
        ("WT", 1, "MKLAEF"),
        ("", 1, "MKLAEF"),
        ("L3*", 1, "MKAEF"),
        ("L3-", 1, "MKAEF"),
    ],
)
def test_mutations_are_applied(text, first, sequence):
    assert Variant("MKLAEF", parse_mutations(text, "MKLAEF", first)).mutated == sequence


@pytest.mark.parametrize(
    ("text", "first", "message"),
    [
        ("M2A", 1, "expected M, found K at position 2 .*first-position 1|expected M, found K"),
        ("M7A", 1, "positions 1 to 6"),
        ("M0A", 1, "positions 1 to 6"),
        ("K1R", 1, "with --data.first-position 0 it is K"),
        ("A4G:A4C", 1, "position 4 is mutated twice"),
        ("A4", 1, "'A4' is no mutation"),
        ("p.A4G", 1, "'p.A4G' is no mutation"),
        ("A4G:", 1, "'' is no mutation"),
        ("A4GG", 1, "'A4GG' is no mutation"),
    ],
)
def test_mutations_that_contradict_the_wild_type_are_errors(text, first, message):
    with pytest.raises(InputError, match=message):
        parse_mutations(text, "MKLAEF", first)


def test_a_contradiction_names_file_row_and_column(tmp_path):
    with pytest.raises(InputError, match=r"dms.tsv, row 2 .*'mutant': A5G: expected A, found E"):
        table(tmp_path, ["A4G", "A5G"]).open(split=False)


def test_any_recipe_reads_mutated_sequences_and_keeps_the_text(tmp_path):
    rows = table(tmp_path, MUTANTS).open(split=False)
    assert rows.values("mutant")[0] == WILD[:3] + "G" + WILD[4:]
    assert rows.values("given_mutant") == MUTANTS


def test_a_column_is_of_mutations_or_of_sequences(tmp_path):
    with pytest.raises(InputError, match="row 3 .*'A4G' is no sequence"):
        table(tmp_path, ["WT", WILD, "A4G"]).open(split=False)
    with pytest.raises(InputError, match="row 2 .*is no mutation"):
        table(tmp_path, ["A4G", WILD]).open(split=False)


def test_an_edited_wild_type_is_read_anew(tmp_path):
    (tmp_path / "wt.fasta").write_text(f">p\n{WILD}\n")
    data = dataclasses.replace(table(tmp_path, ["A4G"]), wild_type=str(tmp_path / "wt.fasta"))
    first = data.open(split=False)
    (tmp_path / "wt.fasta").write_text(f">p\n{WILD}W\n")
    second = data.open(split=False)
    assert second.values("mutant") == [first.values("mutant")[0] + "W"]
    assert first.digest != second.digest


def test_wild_types_are_sequences_or_records(tmp_path):
    file = tmp_path / "two.fasta"
    file.write_text(">a one\nmk\nL\n>b\nACD\n")
    assert read_wild_type("mkl") == "MKL"
    assert read_wild_type(f"{file}:b") == "ACD"
    for given, message in [
        (str(file), "2 records; name one"),
        (f"{file}:aa", "no record 'aa'"),
        (str(tmp_path / "none.fasta"), "no such file"),
        ("M7L", "neither a FASTA file nor a sequence"),
    ]:
        with pytest.raises(InputError, match=message):
            read_wild_type(given)


# --------------------------------------------------------------------------- other inputs


def test_sequences_before_and_after_are_variants(tmp_path):
    lines = ["before\tafter", f"{WILD}\t{WILD[:3]}G{WILD[4:]}"]
    (tmp_path / "v.tsv").write_text("\n".join(lines) + "\n")
    data = Table(path=str(tmp_path / "v.tsv"), x_col="after")
    task, rows, _ = made(data, "wt-fill", reference_col="before")
    expected = formula(task.backbone, "wt-fill", WILD, rows[0]["after"])
    assert scores(task, rows).item() == pytest.approx(expected, abs=1e-5)


def test_skipped_rows_have_no_score_and_say_why(tmp_path):
    cells = [WILD, WILD[1:], "G" + WILD[1:]]
    task, rows, notes = made(table(tmp_path, cells, "sequence"), "wt-fill", indels="skip")
    assert "1 of 3 variants get no score: insertion or deletion" in notes
    batch = task.collator()(rows)
    columns = task.predictions(task(batch), batch)
    assert columns["score"].isnan().tolist() == [False, True, False]
    assert columns["skipped"] == ["", "insertion or deletion", ""]


@pytest.mark.parametrize("strategy", [*zero_shot.SITES, "blosum62"])
def test_strategies_of_sites_refuse_indels_and_name_others(tmp_path, strategy):
    with pytest.raises(InputError, match="row 2 .*pseudo-perplexity, causal, embedding-distance"):
        made(table(tmp_path, [WILD, WILD[1:]], "sequence"), strategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "embedding-distance", "layers": ("3",)}, "--layers 3: expected last, all"),
        ({"strategy": "site-independent"}, "needs --msa"),
        ({"strategy": "given"}, "name them"),
        ({"strategy": "wt-fill", "msa": "x.a3m"}, "--msa is read by"),
        ({"strategy": "wt-fill", "tokens": 0}, "--tokens 0"),
        ({"strategy": "wt-fill", "positive": "yes"}, "no row is 'yes'"),
        ({"strategy": "wt-fill", "score_cols": ("esm",)}, "no column 'esm'"),
    ],
)
def test_settings_that_cannot_be_are_errors(tmp_path, options, message):
    data = table(tmp_path, ["A4G", "A4C"], labels=["1", "2"])
    with pytest.raises(InputError, match=message):
        made(data, **options)


def test_letters_the_model_does_not_know_are_errors_before_weights_load(tmp_path):
    with pytest.raises(InputError, match="row 1 .*'J' is not a letter"):
        made(table(tmp_path, ["A4J"]), "wt-fill")


# --------------------------------------------------------------------------- without a model


def test_substitution_matrix_is_symmetric_and_known():
    matrix = blosum62()
    assert (matrix == matrix.T).all() and matrix.shape == (20, 20)
    known = {"WW": 11, "CC": 9, "AA": 4, "IL": 2, "FY": 3, "DE": 2, "GW": -2, "KR": 2, "PF": -4}
    for (a, b), value in known.items():
        assert matrix[RESIDUES.index(a), RESIDUES.index(b)] == value
    assert len(BLOSUM62.split()) == 210
    # Half bits of log odds: summed over pairs with the background they must be negative.
    assert matrix.sum() < 0


def test_substitution_scores_are_differences_from_keeping_the_residue(tmp_path):
    task, rows, _ = made(table(tmp_path, ["A4G", "K2R:D12W", "WT"]), "blosum62")
    assert scores(task, rows).tolist() == [0 - 4, (2 - 5) + (-4 - 6), 0]


def test_site_independent_scores_are_log_ratios_of_column_frequencies(tmp_path):
    others = [WILD[:3] + "G" + WILD[4:], WILD[:3] + "G" + WILD[4:], WILD[:3] + "-" + WILD[4:]]
    text = "".join(f">{i}\n{row}\n" for i, row in enumerate([WILD, *others]))
    (tmp_path / "wild.a3m").write_text(text)
    data = table(tmp_path, ["A4G", "A4C"])
    task, rows, _ = made(data, "site-independent", msa=str(tmp_path / "wild.a3m"))
    expected = [np.log((2 + 0.05) / (1 + 0.05)), np.log(0.05 / 1.05)]
    assert scores(task, rows).tolist() == pytest.approx(expected)
    (tmp_path / "other.a3m").write_text(">x\nMKL\n")
    with pytest.raises(InputError, match="first row .*is not the wild type"):
        made(data, "site-independent", msa=str(tmp_path / "other.a3m"))


# --------------------------------------------------------------------------- metrics


def by_loops(scores, labels, bins) -> dict[str, float]:
    """The metrics as ProteinGym defines them, in plain Python, for values without ties."""
    n = len(scores)
    rank = lambda values: [sorted(values).index(v) for v in values]  # noqa: E731
    by_score = sorted(range(n), key=lambda i: -scores[i])
    low, high = min(labels), max(labels)
    gain = [(y - low) / (high - low) for y in labels]
    k = n // 10
    dcg = sum(gain[i] / np.log2(r + 2) for r, i in enumerate(by_score[:k]))
    best = sum(g / np.log2(r + 2) for r, g in enumerate(sorted(gain, reverse=True)[:k]))
    pairs = [(i, j) for i in range(n) for j in range(n) if bins[i] > bins[j]]
    found, average = 0, 0.0
    for r, i in enumerate(by_score, start=1):
        found += bins[i]
        average += bins[i] * found / r
    median = sorted(scores)[n // 2] / 2 + sorted(scores)[(n - 1) // 2] / 2
    chosen = [int(s >= median) for s in scores]
    tenth = lambda v: sorted(v)[int(0.9 * (n - 1))] * 0.9 + sorted(v)[int(0.9 * (n - 1)) + 1] * 0.1  # noqa: E731
    assert 0.9 * (n - 1) % 1 == pytest.approx(0.1)  # where the percentile lies between two rows
    top, picked = ({i for i, v in enumerate(x) if v >= tenth(x)} for x in (labels, scores))
    return {
        "spearman": np.corrcoef(rank(scores), rank(labels))[0, 1],
        "ndcg": dcg / best,
        "auroc": sum(scores[i] > scores[j] for i, j in pairs) / len(pairs),
        "auprc": average / sum(bins),
        "mcc": np.corrcoef(chosen, bins)[0, 1],
        "top_recall": len(top & picked) / len(top),
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_definitions(seed):
    draw = np.random.default_rng(seed)
    labels = draw.normal(size=120)
    scores = labels + draw.normal(size=120)
    bins = (labels > 0.3).astype(float)
    found = variant_metrics(scores, labels, bins)
    assert found == pytest.approx(by_loops(scores.tolist(), labels.tolist(), bins.tolist()))
    cut = (labels > np.median(labels)).astype(float)
    assert variant_metrics(scores, labels) == variant_metrics(scores, labels, cut)


def test_metrics_equal_those_of_other_libraries_with_ties():
    stats, sk = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(5)
    labels, scores = draw.integers(0, 9, 200) / 4, draw.integers(0, 7, 200) / 3
    bins = (labels > 1).astype(float)
    found = variant_metrics(scores, labels, bins)
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores, labels)[0])
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(bins, scores))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(bins, scores))
    chosen = scores >= np.median(scores)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(bins, chosen))


def test_binary_labels_are_their_own_bins_and_constants_have_no_value():
    labels, scores = np.array([0.0, 1, 1, 0]), np.array([0.1, 0.9, 0.8, 0.2])
    found = variant_metrics(scores, labels)
    assert set(found) == {"spearman", "auroc", "auprc", "mcc"}
    assert (found["auroc"], found["auprc"], found["mcc"]) == (1, 1, 1)
    assert np.isnan(variant_metrics(scores, np.ones(4))["auroc"])
    assert all(np.isnan(v) for v in variant_metrics(scores[:1], labels[:1]).values())


def test_published_scores_of_an_assay_give_the_published_figure(shared):
    file = shared / "data/dms_substitutions/BLAT_ECOLX_Stiffler_2015.csv.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    columns = tuple(f"esm1v_{i}" for i in range(1, 6))
    data = Table(path=str(file), x_col="mutated_sequence", y_cols=("DMS_score",))
    task, rows, _ = made(data, "given", score_cols=columns)
    mean = scores(task, rows, 10_000).numpy()
    labels = task.assay.labels["DMS_score"]
    assert round(variant_metrics(mean, labels)["spearman"], 3) == 0.703


# --------------------------------------------------------------------------- golden


def scored_by(values, rows: list[list[zero_shot.Term]], layers: int = 0) -> torch.Tensor:
    """Scores of rows whose distinct inputs have these values, in the order of appearance."""
    batch = zero_shot.batched(rows, load_backbone("aido_dna_debug").tokenizer)
    total = zero_shot.total_distances(batch, values, layers) if layers else None
    return zero_shot.total(batch, values) if total is None else total


def test_ratios_at_the_site_equal_golden():
    folder = golden("tasks/zeroshot_diff")
    inputs, outputs = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "outputs"))
    everything, labels = [], []
    for i in range(sum(name.startswith("logits") for name in inputs)):
        logits, special = inputs[f"logits_{i}"], inputs[f"special_tokens_mask_{i}"]
        own = (special[0] == 0).nonzero()[:, 0]
        site = int(own[len(own) // 2])  # of the middle letter
        masked = torch.full((len(logits), 1), site)
        values = zero_shot.log_probabilities(lambda hidden: hidden, logits, masked)
        rows = torch.arange(len(logits))
        sides = [(inputs[f"mutation_ids_{i}"], 1.0), (inputs[f"ref_ids_{i}"], -1.0)]
        terms = [torch.stack([rows, rows, 0 * rows, ids[:, 0]], 1) for ids, _ in sides]
        batch = {
            "terms": torch.cat(terms),
            "weights": torch.cat(
                [torch.full((len(rows),), w, dtype=torch.float64) for _, w in sides]
            ),
            "is_scored": torch.ones(len(rows), dtype=torch.bool),
        }
        found = zero_shot.total(batch, values)
        assert torch.allclose(found.float(), outputs[f"score_{i}"], atol=1e-5)
        everything.append(found)
        labels.append(inputs[f"labels_{i}"].double())
    found, truth = torch.cat(everything), torch.cat(labels)
    assert auroc(found, truth).item() == pytest.approx(outputs["AUROC"].item(), abs=1e-5)
    assert auprc(found, truth).item() == pytest.approx(outputs["AUPRC"].item(), abs=1e-5)


@pytest.mark.parametrize("chosen", ["all", "last"])
@pytest.mark.parametrize("shared_reference", [False, True])
def test_distances_equal_golden(chosen, shared_reference):
    folder = golden("tasks/zeroshot_distance")
    inputs, outputs = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "outputs"))
    codes = json.loads((folder / "config.json").read_text())["norm_type_codes"]
    everything, labels, first = [], [], None
    for i in range(sum(name.startswith("labels") for name in inputs)):
        special = inputs[f"special_tokens_mask_{i}"]
        batch = {"special_tokens_mask": special, "attention_mask": torch.ones_like(special)}
        mutated, reference = (
            torch.stack(zero_shot.mean_states(list(inputs[f"{side}_hidden_{i}"]), batch))
            for side in ("mutation", "ref")
        )
        first = reference[0] if first is None else first
        reference = first.expand_as(reference) if shared_reference else reference
        if chosen == "last":
            mutated, reference = mutated[:, -1:], reference[:, -1:]
        count, layers, _ = mutated.shape
        pairs = torch.arange(2 * count).view(2, count).T.reshape(-1)  # mutated, reference
        rows = torch.arange(count).repeat_interleave(2)
        made = {
            "terms": torch.stack([rows, pairs, -torch.ones_like(rows), 0 * rows], 1),
            "is_scored": torch.ones(count, dtype=torch.bool),
        }
        found = zero_shot.total_distances(made, [*mutated, *reference], layers)  # (B, layers, 3)
        everything.append(found)
        labels.append(inputs[f"labels_{i}"].double())
        if shared_reference:
            a, b = (t.double()[:, :, None, :] for t in (mutated, first[None, -layers:]))
            assert torch.allclose(found[..., 0], (a - b).abs().sum(-1)[..., 0], atol=1e-5)
            continue
        order = [zero_shot.NORMS.index(name) for name in sorted(codes, key=codes.get)]
        flat = found[..., order].permute(1, 2, 0).reshape(-1)  # layer, norm, row
        assert torch.allclose(flat.float(), outputs[f"{chosen}.score_{i}"], atol=1e-5)
    if shared_reference:
        return
    found, truth = torch.cat(everything), torch.cat(labels)
    for layer in range(found.shape[1]):
        for n, norm in enumerate(zero_shot.NORMS[:2]):
            for name, metric in (("AUROC", auroc), ("AUPRC", auprc)):
                expected = outputs[f"{chosen}.{norm}_{name}_layer_{layer + 1}"].item()
                assert metric(found[:, layer, n], truth).item() == pytest.approx(expected, abs=1e-5)


def test_formulas_equal_golden_metrics():
    file = golden("metrics") / "zeroshot.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    expected = json.loads(file.read_text())
    distance = expected["distance"]
    means = (torch.tensor(distance[k], dtype=torch.float64) for k in ("mut_mean", "ref_mean"))
    found = zero_shot.distances(*means)
    for n, norm in enumerate(zero_shot.NORMS):
        assert found[:, n].tolist() == pytest.approx(distance[norm], abs=1e-5)
    ratio = expected["log_ratio"]
    logits = torch.tensor(ratio["logits"])
    places = torch.full((len(logits), 1), ratio["snp_location"])
    known = zero_shot.log_probabilities(lambda hidden: hidden, logits, places)
    for row, old, new, score in zip(
        known, ratio["ref_ids"], ratio["mutation_ids"], ratio["score"], strict=True
    ):
        assert (row[0, new[0]] - row[0, old[0]]).item() == pytest.approx(score, abs=1e-5)


# --------------------------------------------------------------------------- the command


def command(*flags) -> int:
    with pytest.raises(SystemExit) as left:
        run(ZeroShotVariants, zero_shot_variants.Config, [str(flag) for flag in flags])
    return left.value.code


@pytest.mark.parametrize("form", ["parquet", "tsv", "safetensors"])
def test_a_command_writes_scores_metrics_and_the_file_of_the_assay(tmp_path, capsys, form):
    labels = [0.5, -1, 0, 0.25, 2]
    data = table(tmp_path, MUTANTS, labels=labels)
    code = command(
        "--data", data.path, "--data.x-col", "mutant", "--data.wild-type", WILD, "--format", form,
        "--out", tmp_path, "--name", "x", "--train.workers", 0,
    )  # fmt: skip
    assert code == 0
    assert "5 variants, 6 model inputs" in capsys.readouterr().out
    folder = tmp_path / "zero_shot_variants" / "x" / "predictions"
    with (folder / "dms.proteingym.csv").open() as file:
        rows = list(csv.DictReader(file))
    name = "aido_protein_debug_wt-fill"
    assert [*rows[0]] == ["mutant", "mutated_sequence", "DMS_score", "DMS_score_bin", name]
    assert [row["mutant"] for row in rows] == MUTANTS
    assert rows[1]["mutated_sequence"] == WILD[0] + "R" + WILD[2:11] + "W" + WILD[12:]
    assert [float(row["DMS_score"]) for row in rows] == labels
    assert [row["DMS_score_bin"] for row in rows] == ["1", "0", "0", "0", "1"]
    if form == "parquet":
        scores = pq.read_table(folder / "dms.parquet")["score"].to_pylist()
        assert [float(row[name]) for row in rows] == pytest.approx(scores, abs=1e-6)
    metrics = json.loads((folder / "dms.metrics.json").read_text())["label"][name]
    assert metrics["rows"] == 5 and -1 <= metrics["spearman"] <= 1


def test_a_genome_command_writes_places(tmp_path):
    (tmp_path / "g.fa").write_text(">c1\nACGTACGTAC\n")
    (tmp_path / "x.vcf").write_text("##fileformat=VCFv4.2\nc1\t4\t.\tT\tA,<DEL>\t.\t.\t.\n")
    flags = ["--data", tmp_path / "x.vcf", "--backbone", "aido_dna_debug", "--out", tmp_path]
    assert command(*flags) == 2  # no genome
    assert command(*flags, "--genome", tmp_path / "g.fa", "--name", "x") == 0
    folder = tmp_path / "zero_shot_variants" / "x" / "predictions"
    lines = (folder / "x.variants.tsv").read_text().splitlines()
    places = ["row", "id", "chrom", "start", "ref", "mutate"]
    assert lines[0].split("\t") == [*places, "aido_dna_debug_wt-fill"]
    assert lines[1].startswith("0\tc1:4:T>A\tc1\t3\tT\tA\t")
    assert lines[2] == "1\tc1:4:T><DEL>\tc1\t3\tT\t<DEL>\t"
    found = pq.read_table(folder / "x.parquet").to_pylist()
    assert found[1]["skipped"] == "symbolic allele" and np.isnan(found[1]["score"])


@pytest.mark.parametrize(
    ("row", "flags", "said"),
    [
        ("c1,3,-,GG", ["--window", "0"], "no sequence before this variant"),
        ("c1,1_0,G,A", [], "'1_0' is no position"),
        ("c1,3,T,A", ["--strategy", "embedding-distance", "--layers"], "--layers"),
    ],
)
def test_a_place_that_is_none_is_refused(row, flags, said, tmp_path, capsys):
    (tmp_path / "g.fa").write_text(">c1\nACGTACGTAC\n")
    (tmp_path / "v.csv").write_text(f"chrom,start,ref,mutate\n{row}\n")
    given = ["--data", tmp_path / "v.csv", "--genome", tmp_path / "g.fa", "--out", tmp_path]
    given += ["--backbone", "aido_dna_debug", "--strategy", "pseudo-perplexity", *flags]
    assert command(*given) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.glob("zero_shot_variants/*")]


def test_letters_may_be_added_at_the_end_of_a_contig(tmp_path):
    (tmp_path / "g.fa").write_text(">c1\nACGTACGTAC\n")
    (tmp_path / "v.csv").write_text("chrom,start,ref,mutate\nc1,10,-,G\nc1,9.0,C,G\n")
    given = ["--data", tmp_path / "v.csv", "--genome", tmp_path / "g.fa", "--out", tmp_path]
    given += ["--backbone", "aido_dna_debug", "--strategy", "pseudo-perplexity", "--name", "e"]
    assert command(*given) == 0
    file = tmp_path / "zero_shot_variants" / "e" / "predictions" / "v.parquet"
    assert np.isfinite([row["score"] for row in pq.read_table(file).to_pylist()]).all()
