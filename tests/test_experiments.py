"""Published experiments: their files say what to expect, and `mgen repro` compares."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ROOT

from mgen import cli, experiments

EXPERIMENTS = list(experiments.experiments().values())
FILES = sorted({experiment.file for experiment in EXPERIMENTS})
RECIPE = """
import json, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = Path(flags["--out"]) / "fake" / flags["--name"]
run.mkdir(parents=True)
got = float(Path(flags["--config"]).read_text().split("got: ")[1])
(run / "environment.json").write_text('[{"device": "cpu", "threads": 2}]')
(run / "results.json").write_text(json.dumps({"test": {"spearman": got}}))
(run / "flags.json").write_text(json.dumps(flags))
sys.exit(0 if got > -1 else 70)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a recipe that writes the figure its config states."""
    (tmp_path / "recipes" / "configs" / "fake").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "recipes" / "fake.py").write_text(RECIPE)
    monkeypatch.setattr(experiments, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(experiments, "RESULTS", tmp_path / "docs" / "results.md")
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(repository, name, expects, got, data=""):
    facts = {
        "what": "a",
        "source": "b\n#   and c",
        "expects": expects,
        "hardware": "d",
        "seconds": 1,
    }
    lines = [f"# {key}: {value}" for key, value in facts.items()]
    lines += [f"data: {data}"] if data else []
    file = repository / "recipes" / "configs" / "fake" / f"{name}.yaml"
    file.write_text("\n".join([*lines, f"got: {got}"]))


def repro(*words):
    """Exit code of `mgen repro`."""
    sys.argv = ["mgen", "repro", *words]
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


@pytest.fixture(autouse=True)
def own_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", [])


# --------------------------------------------------------------------------- the files


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_expected_metric_is_one_that_is_measured(experiment):
    from mgen.metrics import classification_metrics, contacts, regression_metrics
    from mgen.metrics.variants import variant_metrics

    known = [*regression_metrics(1)]
    if experiment.recipe.endswith(("_classification", "logistic_regression")):
        known = [*classification_metrics(2)]
    if experiment.recipe == "pairwise_classification":
        known = contacts.NAMES
    if experiment.recipe == "zero_shot_variants":
        known = [*variant_metrics(np.arange(3.0), np.arange(3.0))]
    if experiment.recipe in ("dependency_map", "embed", "token_probabilities"):
        known = [""]
    assert experiment.target[0] in known


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_machine_is_named(file):
    values = str(yaml.safe_load(file.read_text()))
    assert not re.search(r"['\"](/|~|\.\.)", values)


def test_random_weights_are_called_random_and_promise_nothing():
    for experiment in experiments.experiments().values():
        if "random_weights: true" in experiment.file.read_text():
            assert "RANDOM" in experiment.what
            assert experiment.target[1] is None


def test_the_page_of_results_has_what_needs_no_hub_with_its_expected_figure():
    page = (ROOT / "docs" / "results.md").read_text()
    elsewhere = [experiment for experiment in EXPERIMENTS if experiment.needs]
    assert f"\n{len(elsewhere)} more need weights or data of the hub: " in page
    for experiment in EXPERIMENTS:
        found = [line for line in page.splitlines() if line.startswith(f"| {experiment.name} ")]
        assert len(found) == (not experiment.needs)
        for line in found:
            assert f"| {experiment.expects.partition(' ')[2] or '-'} |" in line
            assert not re.search(r"\| -? \| skipped", line)


# --------------------------------------------------------------------------- mgen repro


@pytest.mark.parametrize(
    ("expects", "got", "code", "verdict"),
    [
        ("spearman 0.50 +- 0.02", 0.515, 0, "reproduced"),
        ("spearman 0.50 +- 0.02", 0.485, 0, "reproduced"),
        ("spearman 0.50 +- 0.02", 0.525, 1, "outside"),
        ("spearman 0.50 +- 0.02", 0.475, 1, "outside"),
        ("spearman 0.50 +- 0.02", "nan", 1, "outside"),
        ("spearman 0.50", 0.3, 0, "differs by -0.200"),
        ("spearman", 0.3, 0, "shown"),
    ],
)
def test_exit_code_says_whether_the_figure_is_within_its_tolerance(
    repository, capsys, expects, got, code, verdict
):
    write(repository, "one", expects, got)
    (repository / "recipes" / "fake.py").write_text(RECIPE.replace("got > -1", "True"))
    assert repro("one") == code
    assert re.search(rf"one +spearman .*\b{re.escape(verdict)} +b and c", capsys.readouterr().out)


def test_seeds_run_one_by_one_and_give_mean_and_standard_deviation(repository, capsys):
    write(repository, "one", "spearman 0.50 +- 0.05", 0.4)
    file = repository / "recipes" / "configs" / "fake" / "one.yaml"
    file.write_text(file.read_text().replace("# seconds: 1", "# seconds: 1\n# seeds: 3"))
    recipe = RECIPE.replace("run.mkdir", "seed = int(flags.get('--train.seed', 0))\nrun.mkdir")
    recipe = recipe.replace('"spearman": got', '"spearman": got + 0.1 * seed')
    (repository / "recipes" / "fake.py").write_text(recipe)
    assert repro("one") == 0  # 0.4, 0.5 and 0.6
    assert "0.500 +- 0.100 (3 seeds)" in capsys.readouterr().out
    assert repro() == 0
    assert len(list(repository.glob("runs/repro/fake/one-*"))) == 3
    assert "| 0.500 +- 0.100 (3 seeds) |" in (repository / "docs" / "results.md").read_text()


def test_a_line_makes_another_experiment_with_flags_and_a_figure_of_its_own(repository, capsys):
    write(repository, "one", "spearman 0.50 +- 0.02", 0.3)
    file = repository / "recipes" / "configs" / "fake" / "one.yaml"
    also = "# also: two (spearman 0.30 +- 0.02): --data other\n#   --seed 3\n# what: a"
    file.write_text(file.read_text().replace("# what: a", also))
    before = experiments.experiments()
    assert repro("two") == 0
    assert re.search(r"two +spearman +0.3 \+- 0.02 +0.3 ", capsys.readouterr().out)
    (run,) = repository.glob("runs/repro/fake/two-*")
    flags = json.loads((run / "flags.json").read_text())
    assert (flags["--config"], flags["--data"], flags["--seed"]) == (str(file), "other", "3")
    assert repro("one") == 1
    file.write_text(file.read_text().replace("--seed 3", "--seed 4"))
    after = experiments.experiments()
    assert before["one"].digest == after["one"].digest
    assert before["two"].digest != after["two"].digest


@pytest.mark.parametrize(
    "line", ["also: two", "also: two: data other", "also: two (0.3): --data other"]
)
def test_a_line_that_is_no_experiment_is_an_error_with_the_file(repository, capsys, line):
    write(repository, "one", "spearman", 0.1)
    file = repository / "recipes" / "configs" / "fake" / "one.yaml"
    file.write_text(f"# {line}\n{file.read_text()}")
    assert repro("one") == 2
    assert "one.yaml: expected" in capsys.readouterr().err


def test_two_experiments_of_one_name_are_an_error_with_both_files(repository, capsys):
    write(repository, "one", "spearman", 0.1)
    write(repository, "two", "spearman", 0.1)
    file = repository / "recipes" / "configs" / "fake" / "two.yaml"
    file.write_text(f"# also: one: --data other\n{file.read_text()}")
    assert repro("two") == 2
    said = capsys.readouterr().err
    assert "two.yaml: 'one'" in said and "one.yaml too" in said


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ("data: nt_enhancers", "data"),
        ("data: proteingym_indels", "data"),
        ("data: promoters_tiny\nbackbone: esm2_8m", "weights"),
        ("data: ssp_q3\nbackbone: {name: esm2_8m, lora_rank: 2}", "weights, data"),
        ("data: promoters_tiny\nbackbone: {name: esm2_8m, random_weights: true}", ""),
        ("data: tape_stability\nbackbone: dna_onehot", ""),
    ],
)
def test_what_needs_the_hub_runs_by_name_alone(repository, capsys, settings, needs):
    write(repository, "one", "spearman", 0.1)
    write(repository, "two", "spearman", 0.1)
    file = repository / "recipes" / "configs" / "fake" / "two.yaml"
    file.write_text(file.read_text().replace("got: ", f"{settings}\ngot: "))
    assert experiments.experiments()["two"].needs == needs
    if not needs:
        return
    assert repro() == 0
    assert "1 skipped: they need the hub" in capsys.readouterr().err
    page = (repository / "docs" / "results.md").read_text()
    assert "\n1 more need weights or data of the hub" in page
    assert "| one |" in page and "| two |" not in page
    assert not list(repository.glob("runs/repro/fake/two-*"))
    assert repro("two") == 0
    assert list(repository.glob("runs/repro/fake/two-*"))


def test_a_recipe_that_measures_nothing_is_said_to_have_run(repository, capsys):
    write(repository, "one", "none", 0.1)
    file = repository / "recipes" / "configs" / "fake" / "one.yaml"
    file.write_text(file.read_text().replace("# seconds: 1", "# seconds: unknown"))
    (repository / "recipes" / "fake.py").write_text(RECIPE.replace("results.json", "other.json"))
    assert repro("one") == 0
    assert re.search(r"one +- +- +- +- +\d+ +cpu, 2 threads +ran ", capsys.readouterr().out)
    assert experiments.experiments()["one"].seconds is None


def test_named_data_is_looked_for_below_mgen_shared(repository):
    (repository / "shared" / "data" / "tape_stability").mkdir(parents=True)
    write(repository, "one", "spearman", 0.1, data="tape_stability")
    assert repro("one") == 2
    (repository / "shared" / "data" / "tape_stability" / "stability.csv.gz").touch()
    assert repro("one") == 0


def test_absent_data_is_an_error_for_a_named_experiment_and_skipped_otherwise(repository, capsys):
    write(repository, "one", "spearman", 0.1)
    write(repository, "two", "spearman", 0.1, data="{name: tape_stability, folds: 5}")
    assert repro("two") == 2
    assert "mgen show data tape_stability" in capsys.readouterr().err
    assert repro() == 0
    captured = capsys.readouterr()
    assert "two: skipped" in captured.err
    assert re.search(r"two .*skipped", captured.out)
    assert (
        "| two | `make repro EXP=two` | spearman | - | b and c | - | - | skipped |"
        in (repository / "docs" / "results.md").read_text()
    )


def test_a_result_is_stale_once_its_named_data_reads_otherwise(repository, monkeypatch):
    write(repository, "one", "spearman", 0.1, data="promoters_tiny")
    before = experiments.experiments()["one"].digest
    entry = experiments.DATA["promoters_tiny"]
    other = replace(entry, table=replace(entry.table, valid_fraction=0.2))
    monkeypatch.setitem(experiments.DATA, "promoters_tiny", other)
    assert experiments.experiments()["one"].digest != before


def test_only_what_changed_runs_again_unless_it_is_named(repository):
    def runs(name):
        return len(list(repository.glob(f"runs/repro/fake/{name}-*")))

    write(repository, "one", "spearman", 0.1)
    write(repository, "two", "spearman", 0.2)
    assert repro() == 0
    for file in repository.glob("runs/repro/fake/*"):  # names hold seconds: make way for more
        file.rename(file.with_name(file.name + "0"))
    write(repository, "two", "spearman", 0.3)
    assert repro() == 0
    assert (runs("one"), runs("two")) == (1, 2)
    assert re.search(r"two.*\| 0\.3 \|", (repository / "docs" / "results.md").read_text())
    assert repro("one") == 0
    assert runs("one") == 2


def test_a_recipe_that_fails_leaves_with_its_own_code(repository, capsys):
    write(repository, "one", "spearman", -2)
    assert repro("one") == 70
    assert not list(repository.glob("runs/repro/fake/*/repro.json"))


def test_a_wrong_name_and_a_wrong_file_are_explained(repository, capsys):
    write(repository, "promoters", "spearman", 0.1)
    assert repro("promotors") == 2
    assert "Did you mean 'promoters'?" in capsys.readouterr().err
    write(repository, "promoters", "spearman about 0.5", 0.1)
    assert repro("promoters") == 2
    assert "promoters.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_flip_gb1_is_reproduced(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGEN_SHARED", str(shared))
    assert repro("flip_gb1_two_vs_rest") == 0
