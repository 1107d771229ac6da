"""Published experiments: their files say what to expect, and `mgen repro` compares."""

import importlib.util
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import ROOT

from mgen import cli, experiments
from mgen.config import from_yaml

FILES = sorted(experiment.file for experiment in experiments.experiments().values())
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_settings_fit_the_recipe(file):
    spec = importlib.util.spec_from_file_location(
        f"experiment_{file.parent.name}", ROOT / "recipes" / f"{file.parent.name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    config = from_yaml(module.Config(), file)
    assert config.data.path == experiments.experiments()[file.stem].data.path
    assert config.data.path.startswith("shared:")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_expected_metric_is_one_that_is_measured(file):
    from mgen.metrics import classification_metrics, regression_metrics
    from mgen.metrics.variants import variant_metrics

    known = regression_metrics(1)
    if file.parent.name.endswith("_classification"):
        known = classification_metrics(2)
    if file.parent.name == "zero_shot_variants":
        known = variant_metrics(np.arange(3.0), np.arange(3.0))
    assert experiments.experiments()[file.stem].target[0] in known


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_machine_is_named(file):
    values = str(yaml.safe_load(file.read_text()))
    assert not re.search(r"['\"](/|~|\.\.)", values)


def test_random_weights_are_called_random_and_promise_nothing():
    for experiment in experiments.experiments().values():
        if "random_weights: true" in experiment.file.read_text():
            assert "RANDOM" in experiment.what
            assert experiment.target[1] is None


def test_the_page_of_results_has_every_experiment_with_its_expected_figure():
    page = (ROOT / "docs" / "results.md").read_text()
    for experiment in experiments.experiments().values():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {experiment.name} ")]
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
        "| two | `make repro EXP=two` | spearman | - | b and c | - | skipped |"
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
