"""Every command and every Python block of README.md and docs/*.md works as it is written."""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from mgen import cli, experiments
from mgen.backbones.zoo import ZOO
from mgen.config import InputError

_spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
refresh = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(refresh)

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.S | re.M)
INLINE = re.compile(r"`((?:make|mgen|python recipes/)[^`]*)`")
WITHOUT_A_RUN = re.compile(r"[A-Z]{3,}|\.\.\.")  # `mgen run RECIPE`: a form, not a command
# Names of runs that the pages go on with, and how they are made.
RUNS = {
    "masked_diffusion": (("sites",), ""),
    "conditional_masked_diffusion": (("gc",), ""),
    "masked_language_modeling": (("sites", "pairs"), ""),
    "sequence_regression": (("first", "cnn"), "--data promoters.tsv --data.y-cols strength"),
    "token_classification": (("structure",), ""),
    "sequence_classification": (
        ("one", "two", "three"),
        "--data peptides.tsv --data.y-cols class --backbone protein_onehot",
    ),
}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in refresh.pages():
        for kind, block in BLOCK.findall(page.read_text()):
            if kind == language:
                yield page.name, block


def commands(program: str) -> list[str]:
    """Commands of all pages that start with `program`, in blocks and within lines."""
    found = [line for _, block in blocks("bash") for line in refresh.commands(block)]
    for page in refresh.pages():
        found += INLINE.findall(BLOCK.sub("", page.read_text()))
    found = [command for command in found if command.startswith(program + " ")]
    written = [
        c for c in found if not WITHOUT_A_RUN.search(c.replace("ARGS=", "").replace("EXP=", ""))
    ]
    return list(dict.fromkeys(written))


def known_sizes(command: str) -> str:
    """The command with a small model in place of those whose sizes only the hub knows."""
    for name, entry in ZOO.items():
        if entry.config_json() is None:
            command = re.sub(rf"\b{name}\b", "aido_dna_debug", command)
    return command


def execute(argv: list[str], monkeypatch) -> int:
    """Exit code of a recipe in this process."""
    file, *flags = argv
    monkeypatch.setattr(sys, "argv", [file, *flags])
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as left:
        return left.code or 0
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the example files of the pages and the runs that they go on with."""
    folder = tmp_path_factory.mktemp("pages")
    refresh.write_examples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for recipe, ((first, *others), flags) in RUNS.items():
            flags += f" --train.workers 0 --train.max-steps 1 --name {first}"
            _, *argv = refresh.argv(f"python recipes/{recipe}.py {flags}")
            assert execute(argv, patch) == 0
            runs = folder / "runs" / recipe
            for name in others:
                shutil.copytree(runs / first, runs / name, symlinks=True)
    return folder


@pytest.mark.parametrize("command", commands("python"))
def test_recipe_commands_work_up_to_the_first_batch(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    _, *argv = refresh.argv(known_sizes(command))
    if "recipes" not in argv[0]:
        pytest.skip("no recipe")
    has_dry_run = "plain_loop" not in command
    stop = ["--dry-run"] if has_dry_run else ["--train.epochs", "0"]
    assert execute([*argv, *stop], monkeypatch) == 0, capsys.readouterr().out
    if has_dry_run:
        assert re.search(r"batch (input_ids|values)", capsys.readouterr().out)


@pytest.mark.parametrize("command", commands("accelerate"))
def test_launch_commands_name_settings_and_flags_that_work(command, folder, monkeypatch, capsys):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    monkeypatch.chdir(folder)
    _, verb, *words = shlex.split(command)
    assert verb == "launch"
    args = launch_command_parser().parse_args(words)
    load_config_from_file(str(ROOT / args.config_file))
    argv = [str(ROOT / args.training_script), *args.training_script_args, "--dry-run"]
    assert execute(argv, monkeypatch) == 0, capsys.readouterr().out


def test_a_wrong_flag_in_a_page_would_be_found(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    file = str(ROOT / "recipes" / "sequence_regression.py")
    assert execute([file, "--train.learning-rate", "1", "--dry-run"], monkeypatch) == 2


@pytest.mark.parametrize("command", commands("make"))
def test_make_commands_name_targets_and_experiments(command):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # -o: the environment counts as made, so that nothing but the target itself is looked at.
    argv = ["make", "-n", "-o", ".venv/installed", *shlex.split(command)[1:]]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if experiment := re.search(r"EXP=(\w+)", command):
        assert experiment[1] in experiments.experiments()


@pytest.mark.parametrize("command", commands("mgen"))
def test_mgen_commands_name_what_exists(command, folder, monkeypatch, capsys):
    _, verb, *words = shlex.split(command)
    monkeypatch.chdir(folder)
    assert verb in cli.COMMANDS
    if verb in ("list", "show") or (verb == "check" and words[1:]):
        cli.COMMANDS[verb](words)
        assert capsys.readouterr().out
    elif verb == "sweep" and words:
        cli.COMMANDS[verb]([*words, "--dry-run"])
        assert "trials in runs/sweeps/" in capsys.readouterr().out
    elif verb == "leaderboard" and words:
        argv = refresh.argv(command)[4:]
        try:
            cli.COMMANDS[verb](argv if "--aggregate" in argv else [*argv, "--dry-run"])
            assert capsys.readouterr().out
        except InputError as error:  # neither the hub nor files of others
            assert "no task can run" in str(error)
    elif verb == "run":
        assert words[0] in cli._recipes()
    elif verb == "repro":
        assert set(words) <= {*experiments.experiments(), "--check"}


@pytest.mark.parametrize("page", sorted({name for name, _ in blocks("python")}))
def test_python_blocks_run(page, folder, monkeypatch):
    from mgen.adapters import ADAPTERS

    monkeypatch.chdir(folder)
    monkeypatch.setattr(ADAPTERS, "constructors", dict(ADAPTERS.constructors))
    names: dict = {}
    for name, block in blocks("python"):
        if name == page:
            exec(compile(block, name, "exec"), names)
    if page == "README.md":
        assert tuple(names["vectors"].shape) == (2, 320)
        assert list(names["columns"]) == ["predicted_strength"]
        assert len(names["columns"]["predicted_strength"]) == 2
    if page == "embed.md":
        assert tuple(names["per_residue"].shape) == (10, 320)
    if page == "design.md":
        import torch

        head = ADAPTERS.choose("mean_max_linear", bias=False).build(8, 3)
        assert head(torch.randn(2, 5, 8), torch.ones(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("page", refresh.pages(), ids=lambda page: page.name)
def test_shown_output_is_there_and_links_lead_somewhere(page):
    text = page.read_text()
    markers = re.findall(r"<!-- (?:output|demo) -->\n```text\n(?!```)", text)
    assert len(markers) == len(re.findall(r"<!-- (?:output|demo) -->", text))
    assert len(markers) == len(refresh.SHOWN.findall(text)), "a marker without a command before it"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_figures_of_the_readme_are_those_of_the_results():
    results = (ROOT / "docs" / "results.md").read_text().splitlines()
    rows = [r for r in (ROOT / "README.md").read_text().splitlines() if "`make repro EXP=" in r]
    figures = [(re.search(r"EXP=(\w+)", row), re.findall(r"\d\.\d+", row)) for row in rows]
    shown = [(name[1], numbers) for name, numbers in figures if numbers]
    assert len(shown) >= 3
    for name, numbers in shown:
        (line,) = [line for line in results if line.startswith(f"| {name} ")]
        assert {*numbers} <= {*re.findall(r"\d\.\d+", line)}, name


def test_every_recipe_has_a_page():
    recipes = {file.stem for file in (ROOT / "recipes").glob("*.py")}
    assert recipes <= {file.stem for file in (ROOT / "docs").glob("*.md")}


def test_refresh_replaces_output_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    shown = "```bash\necho new\n```\n\n<!-- output -->\n```text\nold\n```\n"
    before = f"a\n\n{shown}\n```bash\necho b\n```\n"
    page.write_text(before)
    refresh.refresh(page)
    assert page.read_text() == before.replace("\nold\n", "\nnew\n")
