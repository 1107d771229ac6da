"""Labels of residues: how cells are read, what counts, and the recipe on top of them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, golden
from safetensors.torch import load_file
from tiny import with_backbone  # puts recipes/ on the path

import mgen.adapters as adapters
from mgen.adapters import adapter
from mgen.backbones import backbone
from mgen.config import InputError
from mgen.data import Table
from mgen.data.targets.token_labels import IGNORED, ResidueLabels, residues, spread, token_columns
from mgen.metrics import results
from mgen.task import Task
from mgen.train import run

import token_classification  # isort: skip

Config, TokenClassification = token_classification.Config, token_classification.TokenClassification


def codes(cell, names):
    return ResidueLabels(("y",)).codes({"y": cell}, names).tolist()


# --------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("cell", "names", "expected"),
    [
        ("HHEC", "CEH", [2, 2, 1, 0]),
        ("0101", "01", [0, 1, 0, 1]),  # never the number 101
        ("[[..]]", ".[]", [1, 1, 0, 0, 2, 2]),  # brackets of a structure, no JSON
        ("[2, 0, 1]", "012", [2, 0, 1]),
        ('["coil", "helix"]', ["coil", "helix"], [0, 1]),
        ([1, 1, 0], "01", [1, 1, 0]),
        ([1.0, None, -100], "01", [1, IGNORED, IGNORED]),
        (["b", "a"], "ab", [1, 0]),
    ],
)
def test_a_cell_has_one_class_per_residue(cell, names, expected):
    assert codes(cell, list(names)) == expected


@pytest.mark.parametrize("cell", [101, 1.5, [[0, 1]], {"a": 1}])
def test_what_is_no_list_of_labels_is_refused(cell):
    with pytest.raises(ValueError, match="labels"):
        residues(cell)


def test_residues_count_where_mask_and_letter_say_so():
    labels = ResidueLabels(("y",), mask_col="m", mask_keep="RS", ignore="X-")
    row = {"y": "HXE-HE", "m": "RRRR-S"}
    assert labels.codes(row, ["E", "H"]).tolist() == [1, IGNORED, 0, IGNORED, IGNORED, 0]


def test_several_labels_per_residue_are_vectors_or_columns():
    vectors = ResidueLabels(("y",), multilabel=True)
    cell = [[0, 1], [1, IGNORED], [1, 1]]
    expected = [[0, 1], [IGNORED, IGNORED], [1, 1]]
    assert vectors.codes({"y": cell}, ["a", "b"]).tolist() == expected
    assert vectors.codes({"y": json.dumps(cell)}, ["a", "b"]).tolist() == expected
    columns = ResidueLabels(("a", "b"), multilabel=True, ignore="-")
    assert columns.codes({"a": "0-1", "b": "111"}, ["a", "b"]).tolist() == expected


@pytest.mark.parametrize("end", ["right", "left"])
def test_labels_are_cut_with_the_sequence_they_belong_to(end):
    tokenizer = backbone("esm2_8m", max_length=6, truncate=end).tokenizer()  # start and end: 4 left
    batch = tokenizer.tokenize(["ACDEFG", "AC"])
    numbers = np.arange(6)  # each residue's label is its place
    found = spread([numbers, numbers[:2]], batch["special_tokens_mask"], end)
    places = tokenizer.tokenize(["ACDEFG"], max_length=0)["input_ids"][0, 1:-1]
    kept = found[0] != IGNORED
    assert batch["input_ids"][0, kept].tolist() == places[found[0, kept]].tolist()
    assert kept.sum() == 4
    assert found[1].tolist() == [IGNORED, 0, 1, IGNORED, IGNORED, IGNORED]


def test_predicted_classes_are_text_where_each_is_one_letter():
    rows = [torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.4, 0.6]])]
    assert token_columns(rows, ["H", "E"], False) == {"predicted": ["HE", "E"]}
    assert token_columns(rows, ["in", "out"], False)["predicted"] == [["in", "out"], ["out"]]
    columns = token_columns(rows, ["a", "b"], True)
    assert columns == {"predicted_a": ["10", "0"], "predicted_b": ["01", "1"]}


# --------------------------------------------------------------------------- against references


def bare(cfg: Config, classes: int) -> TokenClassification:
    task = TokenClassification(cfg)
    task.facts = {"classes": list(map(str, range(classes))), "weights": [1.0] * classes}
    return task


def test_golden_loss_and_metrics_over_the_tokens_that_count():
    folder = golden("tasks/token_classification")
    config = json.loads((folder / "config.json").read_text())
    given, expected = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs"))
    task = bare(Config(), config["n_classes"])
    metrics = task.metrics()
    for b in range(sum(name.startswith("labels_") for name in given)):
        special, padded = given[f"special_tokens_mask_{b}"], given[f"labels_{b}"].numpy()
        rows = [row[row != config["ignore_label"]] for row in padded]
        batch = {"labels": spread(rows, special), "special_tokens_mask": special}
        losses = task.loss(given[f"logits_{b}"], batch)
        assert losses.mean() == pytest.approx(expected[f"loss_{b}"].item(), abs=1e-5)
        probabilities, labels, owner = task.scores(given[f"logits_{b}"], batch)
        assert labels.tolist() == expected[f"flat_labels_{b}"].tolist()
        assert owner.bincount().tolist() == list(map(len, rows))
        for metric in metrics.values():
            metric.update(probabilities, labels)
    found = results(metrics)
    for name in ("accuracy", "f1", "mcc", "auroc"):
        assert found[name] == pytest.approx(expected[name].item(), abs=1e-5), name


def test_class_weights_give_the_weighted_mean_of_torch():
    torch.manual_seed(0)
    task = bare(Config(class_weights=True), 3)
    task.facts["weights"] = [0.5, 2.0, 1.0]
    logits, labels = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    labels[0, 3:] = IGNORED
    losses, weights = task.loss(logits, {"labels": labels})
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), torch.tensor(task.facts["weights"])
    )
    assert (losses * weights).sum() / weights.sum() == pytest.approx(expected.item(), abs=1e-6)


NEED_A_BACKBONE = {"lm_head", "conditional_lm"}  # they borrow its language-model head
TOKEN_ADAPTERS = [n for n, facts in adapters.ADAPTERS.facts.items() if "per token" in facts]


@pytest.mark.parametrize("name", sorted({*TOKEN_ADAPTERS} - NEED_A_BACKBONE))
def test_what_is_padded_changes_no_residue(name):
    torch.manual_seed(0)
    head = adapter(name).build(16, 3, 6).eval()
    hidden = torch.randn(1, 6, 16)
    longer = torch.cat([hidden, torch.randn(1, 4, 16)], dim=1)
    mask = (torch.arange(10) < 6)[None]
    alone, padded = head(hidden, mask[:, :6]), head(longer, mask)
    assert torch.allclose(alone, padded[:, :6], atol=1e-5)


def test_token_cnn_reads_as_far_as_its_dilations_say():
    head = adapter("token_cnn", kernel_size=3, layers=3, dilation=4, dropout=0.0).build(4, 1)
    hidden = torch.randn(1, 41, 4, requires_grad=True)
    head(hidden)[0, 20].sum().backward()
    seen = hidden.grad.abs().sum(-1)[0].nonzero().flatten()
    assert (20 - seen.min(), seen.max() - 20) == (8, 8)  # 1 + 1 + 2 + 4


# --------------------------------------------------------------------------- the recipe


LETTERS = {"A": "H", "C": "E", "G": "H", "T": "C"}


def write(folder, rows: int = 40, **columns) -> str:
    """Sequences whose label is a function of the letter; `columns` add others by a function."""
    random = np.random.default_rng(0)
    lines = ["\t".join(["id", "sequence", "y", *columns])]
    for i in range(rows):
        sequence = "".join(random.choice(list("ACGT"), size=random.integers(3, 12)))
        more = [make(sequence) for make in columns.values()]
        lines.append("\t".join([f"r{i}", sequence, "".join(LETTERS[a] for a in sequence), *more]))
    file = folder / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


def settings(path: str, **options) -> Config:
    return Config(
        backbone=backbone("dna_onehot"),
        adapter=options.pop("adapter", adapter("linear")),
        data=Table(path=path, y_cols=options.pop("y_cols", ("y",)), **options.pop("data", {})),
        **options,
    )


def checked(cfg: Config) -> tuple[Task, list[str]]:
    task = TokenClassification(cfg)
    return task, task.check(cfg.data.open(), ("train", "valid", "test"))


def command(folder, *flags: str) -> int:
    fixed = ["--backbone", "dna_onehot", "--adapter", "linear", "--data.y-cols", "y"]
    fixed += ["--out", str(folder / "runs"), "--train.workers", "0", "--train.batch-size", "4"]
    verb = ["fit"] if flags[0][0] == "-" else []
    with pytest.raises(SystemExit) as left:
        run(TokenClassification, Config, [*verb, *flags, *(fixed if verb else [])])
    return left.value.code


def test_a_label_that_the_letter_decides_is_learned_and_predicted(tmp_path):
    file = write(tmp_path, 60)
    flags = ("--data.path", file, "--name", "a", "--train.lr", "0.1", "--train.epochs", "6")
    assert command(tmp_path, *flags) == 0
    folder = tmp_path / "runs" / "token_classification" / "a"
    assert json.loads((folder / "results.json").read_text())["test"]["accuracy"] == 1
    (tmp_path / "new.fasta").write_text(">x\nGATTACA\n>y\nC\n")  # unlabelled
    new = ("--run", str(folder), "--data.path", str(tmp_path / "new.fasta"))
    assert command(tmp_path, "predict", *new, "--format", "tsv", "--probabilities") == 0
    lines = (folder / "predictions" / "new.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines] == ["predicted", "HHCCHEH", "E"]
    sums = [np.sum(json.loads(line.split("\t")[2]), axis=1) for line in lines[1:]]
    assert [len(row) for row in sums] == [7, 1]
    assert np.concatenate(sums) == pytest.approx(1)


def test_rows_without_a_residue_that_counts_leave_training_and_are_counted(tmp_path):
    mask = iter(range(100))
    file = write(tmp_path, m=lambda s: ("-" if next(mask) < 20 else "R") * len(s))
    cfg = settings(file, mask_col="m", mask_keep="R", data={"test_fraction": 0.3})
    task = TokenClassification(cfg)
    rows = cfg.data.open()
    before = len(rows.splits["train"])
    notes = " ".join(task.check(rows, ("train", "valid", "test")))
    dropped = before - len(rows.splits["train"])
    assert dropped > 0
    assert f"{dropped} training rows have no residue that counts" in notes
    assert (rows.splits["train"] >= 20).all()
    assert "residues do not count" in notes


def test_facts_hold_the_shares_and_weights_of_the_training_residues(tmp_path):
    cfg = settings(write(tmp_path))
    task, _ = checked(cfg)
    rows = cfg.data.open()
    text = "".join(row["y"] for row in rows.take(rows.splits["train"]))
    counts = np.array([text.count(name) for name in "CEH"])
    assert task.facts["classes"] == ["C", "E", "H"]
    assert task.facts["shares"] == pytest.approx(counts / len(text))
    assert task.facts["weights"] == pytest.approx(len(text) / (3 * counts))


BAD = {
    "shorter": (lambda s: LETTERS[s[0]], "1 labels for a sequence of"),
    "empty": (lambda s: "", "no label"),
    "unknown": (lambda s: "Q" * len(s), "class 'Q' is not one of 'C', 'E', 'H'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_cell_is_named_by_file_row_and_id(tmp_path, kind):
    make, message = BAD[kind]
    count = iter(range(100))
    file = write(tmp_path, z=lambda s: make(s) if next(count) == 7 else "H" * len(s))
    with pytest.raises(InputError, match=message) as raised:
        checked(settings(file, y_cols=("z",), classes=("C", "E", "H")))
    assert "rows.tsv, row 8 (header not counted), id 'r7', column 'z'" in str(raised.value)


def test_a_class_that_only_held_out_rows_have_is_refused_unless_named(tmp_path):
    part = iter(["test", *["train"] * 30, *["valid"] * 9])
    seen = iter(range(100))
    file = write(
        tmp_path,
        part=lambda s: next(part),
        z=lambda s: ("Q" if next(seen) == 0 else "H") + "E" * (len(s) - 1),
    )
    options = {"y_cols": ("z",), "data": {"split_col": "part"}}
    with pytest.raises(InputError, match="class 'Q' of this test row has no training residue"):
        checked(settings(file, **options))
    task, _ = checked(settings(file, classes=("E", "H", "Q"), **options))
    assert task.facts["weights"][2] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": adapter("mean_pool_mlp")}, "no outputs per token"),
        ({"adapter": adapter("pair_mlp")}, "no outputs per token"),
        ({"y_cols": ("y", "sequence")}, "set --multilabel"),
        ({"y_cols": ()}, "is empty"),
        ({"multilabel": True}, "list of 0/1 vectors"),
        ({"mask_col": "nowhere"}, "no column 'nowhere'"),
        ({"mask_col": "y", "mask_keep": ""}, "--mask-keep is empty"),
        ({"mask_col": "y", "mask_keep": "Z"}, "no residue of the training rows counts"),
        ({"classes": ("C", "C", "E", "H")}, "each once"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        checked(settings(write(tmp_path), **options))


def test_tokens_of_several_letters_are_refused(tmp_path):
    cfg = settings(write(tmp_path))
    task = TokenClassification(cfg)
    task.tokenizer.per_letter = False
    task.tokenizer.lengths = lambda rows: [len(row) for row in rows]
    with pytest.raises(InputError, match="letter by letter"):
        task.check(cfg.data.open(), ("train", "valid", "test"))
    joined = with_backbone(cfg, as_written=True, unknown="token")
    with pytest.raises(InputError, match=r"Drop --backbone\.as-written"):
        checked(joined)


def test_windows_give_every_residue_its_label(tmp_path):
    file = write(tmp_path)
    task, notes = checked(with_backbone(settings(file), max_length=6, truncate="window"))
    rows = task.cfg.data.open()
    batch = task.collator()(rows.take([0, 1, 2, 3]))
    counted = batch["labels"] != IGNORED
    assert counted.sum(1).tolist() == [len(row["y"]) for row in rows.take([0, 1, 2, 3])]
    assert any("windows" in note for note in notes)


def test_multilabel_columns_train_and_report_each_label_by_its_name(tmp_path):
    file = write(
        tmp_path,
        strong=lambda s: "".join("01"[a in "CG"] for a in s),
        amino=lambda s: "".join("01"[a in "AC"] for a in s),
    )
    task, _ = checked(settings(file, y_cols=("strong", "amino"), multilabel=True))
    task.setup()
    rows = task.cfg.data.open()
    batch = task.collator()(rows.take(range(6)))
    with torch.no_grad():
        outputs = task(batch)
    counted = batch["labels"][..., 0] != IGNORED
    expected = F.binary_cross_entropy_with_logits(
        outputs[counted], batch["labels"][counted].float()
    )
    assert task.loss(outputs, batch).mean() == pytest.approx(expected.item(), abs=1e-6)
    text = "".join(row["sequence"] for row in rows.take(range(6)))
    assert batch["labels"][counted].tolist() == [[a in "CG", a in "AC"] for a in text]
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(*task.scores(outputs, batch)[:2])
    assert {"f1_strong", "f1_amino", "auroc_strong"} <= results(metrics).keys()


def test_default_data_of_the_recipe_are_the_bundled_stem_loops():
    assert (ROOT / "mgen" / "data" / "named" / "bundled" / "hairpins_tiny.tsv.gz").exists()
    task, _ = checked(Config())
    assert task.facts["classes"] == ["(", ")", "."]
