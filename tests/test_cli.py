import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mgen import cli
from mgen.adapters import ADAPTERS, adapter


def mgen(monkeypatch, capsys, *words):
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["mgen", *words])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


def test_list_names_everything_there_is(monkeypatch, capsys):
    code, out, _ = mgen(monkeypatch, capsys, "list")
    words = set(out.split())
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert code == 0
    assert recipes | {"esm2_650m", "aido_dna_300m", "promoters_tiny", "conv"} <= words


def test_list_of_one_kind_leaves_out_the_others(monkeypatch, capsys):
    _, out, _ = mgen(monkeypatch, capsys, "list", "data")
    assert "promoters_tiny" in out
    assert "esm2_650m" not in out


def test_more_words_filter_the_lines_of_a_kind(monkeypatch, capsys):
    _, out, _ = mgen(monkeypatch, capsys, "list", "data", "Protein", "pearson")
    assert "enzyme_catalytic_efficiency" in out
    assert "tape_stability" not in out  # spearman
    assert "dna_promoter_expression_yeast" not in out


def test_a_filter_that_leaves_nothing_is_an_error(monkeypatch, capsys):
    code, out, err = mgen(monkeypatch, capsys, "list", "data", "petunia")
    assert (code, out) == (2, "")
    assert "'petunia'" in err


def test_a_name_of_two_kinds_is_shown_under_each(monkeypatch, capsys):
    code, out, _ = mgen(monkeypatch, capsys, "show", "tape_stability")
    data, _, experiment = out.partition("experiments: tape_stability")
    assert code == 0
    assert data.startswith("data: tape_stability")
    assert "shared:tape_stability/stability.csv.gz" in data
    assert "# expects: spearman 0.473" in experiment


@pytest.mark.parametrize("kind", ["experiment", "experiments"])
def test_a_kind_before_the_name_leaves_out_the_others(monkeypatch, capsys, kind):
    _, out, _ = mgen(monkeypatch, capsys, "show", kind, "tape_stability")
    assert out.startswith("recipes/configs/sequence_regression/tape_stability.yaml")


def test_data_that_is_not_on_the_machine_is_called_absent(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MGEN_SHARED", str(tmp_path))
    _, out, _ = mgen(monkeypatch, capsys, "show", "data", "tape_stability")
    assert "$MGEN_SHARED/data/tape_stability/stability.csv.gz, absent" in out
    _, out, _ = mgen(monkeypatch, capsys, "show", "data", "promoters_tiny")
    assert "absent" not in out


def test_adapters_read_from_source_are_those_registered():
    assert [a.name for a in cli._scan_adapters()] == sorted(ADAPTERS.constructors)


@pytest.mark.parametrize("found", cli._scan_adapters(), ids=lambda found: found.name)
def test_options_read_from_source_are_those_registered(found):
    choice = adapter(found.name)
    registered = {name: getattr(choice, name) for name in vars(choice) if name != "name"}
    assert {name: eval(default) for name, _, default in found.options} == registered
    assert set(registered) <= set(found.helps)


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("esm2_650m", "facebook/esm2_t33_650M_UR50D"),
        ("mean_pool_mlp", "--adapter.hidden-sizes"),
        ("promoters_tiny", "promoters_tiny.tsv.gz"),
        ("sequence_regression", "python recipes/sequence_regression.py"),
        ("gue_epi_hela_s3", "EPI_HeLa-S3"),
        ("tape_fluorescence", "--data.first-position     0"),
    ],
)
def test_show_gives_the_facts_of_any_name(monkeypatch, capsys, name, fact):
    code, out, _ = mgen(monkeypatch, capsys, "show", name)
    assert code == 0
    assert fact in out


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (["lst"], "'list'"),
        (["list", "adapter"], "'adapters'"),
        (["show", "esm2_605m"], "'esm2_650m'"),
        (["show", "mean_pol_mlp"], "'mean_pool_mlp'"),
        (["show", "data", "flip_gb2"], "'flip_gb1'"),
        (["show", "dta", "flip_gb1"], "'data'"),
        (["run", "sequence_regresion"], "'sequence_regression'"),
    ],
)
def test_wrong_names_suggest_the_nearest_and_leave_with_2(monkeypatch, capsys, words, suggestion):
    code, out, err = mgen(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert f"Did you mean {suggestion}?" in err


def test_run_hands_verb_and_flags_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)")
    code = (
        "from pathlib import Path\nfrom mgen import cli\n"
        f"cli.RECIPES = Path({str(tmp_path)!r})\ncli.main()"
    )
    words = ["run", "echo", "predict", "--help", "--data.path", "a b"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.strip() == "['predict', '--help', '--data.path', 'a b']"
    assert done.returncode == 7


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_targets_without_a_virtual_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "my_task.py").touch()
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {"setup", "demo", "test", "my_task;"} <= set(done.stdout.split())
    assert not Path(tmp_path / ".venv").exists()
