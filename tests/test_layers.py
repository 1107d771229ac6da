"""Imports point down only, and nothing heavy is imported before it is needed."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from conftest import ROOT

# What each part of mgen may import from mgen, besides itself.
LAYERS = {
    "config": set(),
    "report": set(),
    "figures": {"report"},
    "metrics": set(),
    "models": {"config"},
    "adapters": {"config"},
    "io": {"config"},
    "backbones": {"models", "io", "checkpoint", "config", "report"},
    "data": {"io", "config"},
    "pieces": set(),
    "checkpoint": {"pieces", "config"},
    "predictions": {"checkpoint", "config"},
    "task": {"adapters", "data", "io", "predictions", "config"},
    "calibration": {"checkpoint", "config"},
    "ensemble": {"calibration", "task", "checkpoint", "metrics", "figures", "config"},
    "methods": {
        "adapters",
        "backbones",
        "data",
        "engine",
        "io",
        "metrics",
        "checkpoint",
        "predictions",
        "loop",
        "config",
        "report",
    },
    "engine": {"data", "checkpoint", "pieces", "config", "report"},
    "infer": {"engine", "task", "predictions", "data", "metrics", "config", "report"},
    "hub": {"config"},
    "runs": {"engine", "checkpoint", "hub", "config", "report"},
    "tuning": {"engine", "checkpoint", "pieces", "config", "report"},
    "loop": {
        "engine",
        "pieces",
        "tuning",
        "infer",
        "task",
        "checkpoint",
        "predictions",
        "data",
        "metrics",
        "config",
        "report",
    },
    "train": {
        "audit",
        "engine",
        "calibration",
        "ensemble",
        "tuning",
        "infer",
        "runs",
        "loop",
        "task",
        "checkpoint",
        "predictions",
        "data",
        "metrics",
        "config",
        "report",
    },
    "apply": {
        "calibration",
        "ensemble",
        "infer",
        "runs",
        "train",
        "loop",
        "task",
        "data",
        "config",
    },
    "experiments": {"backbones", "leaderboards", "data", "io", "config", "report"},
    "card": {"backbones", "io", "report"},
    "export": {
        "calibration",
        "ensemble",
        "apply",
        "runs",
        "card",
        "hub",
        "backbones",
        "checkpoint",
        "config",
        "report",
    },
    "audit": {"figures", "checkpoint", "data", "config", "report"},
    "leaderboards": {"figures", "metrics", "predictions", "checkpoint", "config", "report"},
    "commands": {
        "apply",
        "audit",
        "figures",
        "leaderboards",
        "predictions",
        "data",
        "tuning",
        "engine",
        "backbones",
        "train",
        "task",
        "runs",
        "checkpoint",
        "experiments",
        "io",
        "config",
        "report",
    },
    "cli": {
        "audit",
        "backbones",
        "commands",
        "data",
        "io",
        "config",
        "experiments",
        "export",
        "report",
    },
    "__main__": {"cli"},
    "__init__": {"backbones", "apply"},
}
HEAVY = {"transformers", "datasets", "accelerate", "torchmetrics", "peft", "pandas", "matplotlib"}
WITHOUT_TORCH = (
    "config.py",
    "cli.py",
    "commands/doctor.py",
    "commands/boards/board.py",
    "commands/sweeps/plan.py",
    "experiments.py",
    "report.py",
    "io/cells.py",
    "io/soma.py",
    "io/tables.py",
    "backbones/zoo.py",
    "data/zoo.py",
    "data/named/benchmarks.py",
    "data/named/cells.py",
    "data/named/published.py",
    "leaderboards/protocols.py",
)

MODULES = sorted((ROOT / "mgen").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def name(path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.Module, at_start: bool) -> Iterator[str]:
    """Dotted names that a module imports; `at_start`: only those run by importing the module."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_start and (is_function or is_typing)):
            todo += ast.iter_child_nodes(node)


def parts(path, at_start: bool = False) -> set[tuple[str, ...]]:
    return {tuple(n.split(".")) for n in imports(ast.parse(path.read_text()), at_start)}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_down(path):
    own = path.relative_to(ROOT / "mgen").parts[0].removesuffix(".py")
    used = {dotted[1] for dotted in parts(path) if dotted[0] == "mgen" and len(dotted) > 1}
    lazy = {"load_backbone"} if own == "__init__" else set()
    assert used - lazy <= LAYERS[own] | {own}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_in_the_package_imports_a_recipe(path):
    assert not any(dotted[0] == "recipes" for dotted in parts(path))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_imports_no_other_recipe(path):
    others = {other.stem for other in RECIPES} | {"recipes"}
    assert not any(dotted[0] in others for dotted in parts(path))


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=name)
def test_heavy_libraries_are_imported_where_they_are_needed(path):
    assert not {dotted[0] for dotted in parts(path, at_start=True)} & HEAVY


def test_every_layer_of_the_table_exists():
    own = {path.relative_to(ROOT / "mgen").parts[0].removesuffix(".py") for path in MODULES}
    assert own == set(LAYERS)


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_module_itself_imports_no_torch(file):
    assert not any(d[0] == "torch" for d in parts(ROOT / "mgen" / file, at_start=True))


@pytest.mark.parametrize("command", [["list"], ["show", "mean_pool_mlp"], ["show", "esm2_8m"]])
def test_listing_imports_no_torch_and_is_quick(command):
    code = (
        "import resource, sys\nfrom mgen.cli import main\nmain()\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(heavy or 'light', used.ru_utime + used.ru_stime, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, seconds = done.stderr.split()
    assert loaded == "light"
    assert float(seconds) < 1.0  # the budget is 0.5 s on an idle machine


def test_requirements_pin_what_the_package_depends_on():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = dict(re.fullmatch(r"([\w.-]+)==(\S+)", s).groups() for s in lines if s and s[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        package, lowest = requirement.split(">=")
        assert numbers(pinned[package]) >= numbers(lowest), package


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
