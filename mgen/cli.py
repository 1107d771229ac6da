"""Finetune, apply and compare foundation models of biological sequences.

    mgen list [KIND [WORD ...]]     what there is: backbones, adapters, data, recipes, experiments,
                                    boards; with words the lines that hold all of them
    mgen show [KIND] NAME           one of them in full
    mgen check data NAME [flags]    what a table and its splits leak; NAME may be a file
    mgen run RECIPE [verb] [flags]  is python recipes/RECIPE.py [verb] [flags]
    mgen export RUN DIR [flags]     a run as a folder that loads anywhere, or on the hub; --help
    mgen sweep FILE [flags]         many runs of a recipe: a grid, random draws, Optuna; --help
    mgen leaderboard FILE [flags]   tasks x entries x seeds, with honest statistics; --help
    mgen doctor [flags]             versions, devices, launcher, caches; --json, --clear NAME
    mgen repro [EXPERIMENT]         run a published experiment, got against expected; without a
                                    name those that have no result yet, and docs/results.md;
                                    --check: two steps of them, or of all, in small and offline

Nothing here imports torch, so that names are listed at once.
"""

import ast
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from mgen.backbones.zoo import ZOO
from mgen.config import InputError, unknown
from mgen.experiments import experiments, read_settings, repro
from mgen.report import print_table

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE.parent / "recipes"


def main() -> None:
    """Run the command of `sys.argv`; wrong input is explained on stderr and leaves with 2."""
    command, *words = sys.argv[1:] or ["--help"]
    try:
        if command in ("--help", "-h", "help"):
            print(__doc__)
        elif command in COMMANDS:
            COMMANDS[command](words)
        else:
            raise InputError(unknown("command", command, COMMANDS))
    except InputError as error:
        print(f"mgen: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # mgen list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def list_names(words: Sequence[str]) -> None:
    """Print the names of one kind, or of every kind, one line each; more words filter the lines."""
    kinds, wanted = words[:1] or KINDS, [word.lower() for word in words[1:]]
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(unknown("kind", kind, KINDS))
        rows = [row for row in KINDS[kind]() if all(word in _text(row) for word in wanted)]
        if wanted and not rows:
            raise InputError(f"{kind}: no line with '{' '.join(words[1:])}'. See mgen list {kind}.")
        for title, group in groupby(rows, key=lambda row: row.get("group", "")):
            lines = [{key: row[key] for key in row if key != "group"} for row in group]
            print_table(f"{kind}: {title}" if title else kind, lines)


def show(words: Sequence[str]) -> None:
    """Print everything known about a name; of each kind, if it stands for several things."""
    if len(words) not in (1, 2):
        raise InputError("mgen show takes a name, after its kind or alone; mgen list prints all.")
    *asked, name = words
    kinds = [kind for kind in KINDS if not asked or asked[0] in (kind, kind.removesuffix("s"))]
    if not kinds:
        raise InputError(unknown("kind", asked[0], KINDS))
    names = {kind: {row["name"] for row in KINDS[kind]()} for kind in kinds}
    found = [kind for kind in kinds if name in names[kind]]
    if not found:
        what = asked[0] if asked else "backbone, adapter, data set, recipe, experiment or board"
        raise InputError(unknown(what, name, set().union(*names.values())))
    for kind in found:
        if len(found) > 1:
            print(f"{'' if kind == found[0] else chr(10)}{kind}: {name}\n")
        DETAILS[kind](name)


def check(words: Sequence[str]) -> None:
    """Report what a table and its splits leak."""
    usage = "mgen check data NAME [flags]; mgen check data --help lists the flags."
    if words[:1] in (["--help"], ["-h"]):
        print(usage)
        return
    if words[:1] != ["data"]:
        raise InputError(usage)
    from mgen.audit import check_data  # loads torch

    check_data(words[1:])


def run(words: Sequence[str]) -> None:
    """Become `python recipes/RECIPE.py ...`."""
    if not words or words[0] in ("--help", "-h"):
        raise InputError(f"mgen run RECIPE [verb] [flags]. Recipes: {', '.join(_recipes())}.")
    recipe, *flags = words
    if recipe not in _recipes():
        raise InputError(unknown("recipe", recipe, _recipes()))
    # Not runpy: worker processes must find the recipe's classes in a `__main__` they can import.
    os.execv(sys.executable, [sys.executable, str(RECIPES / f"{recipe}.py"), *flags])


def export(words: Sequence[str]) -> None:
    """Write a run as a folder that loads anywhere."""
    import tyro

    from mgen.export import Export, export  # loads torch

    export(tyro.cli(Export, args=list(words), prog="mgen export"))


def sweep(words: Sequence[str]) -> None:
    """Run what is missing of a sweep."""
    from mgen.commands.sweep import sweep  # loads torch

    sweep(words)


def leaderboard(words: Sequence[str]) -> None:
    """Run what is missing of a leaderboard and compare."""
    from mgen.commands.leaderboard import leaderboard  # loads torch

    leaderboard(words)


def reproduce(words: Sequence[str]) -> None:
    """Run published experiments, or rehearse them."""
    if "--check" not in words:
        repro(words)
        return
    from mgen.commands.rehearsal import rehearse  # loads torch

    rehearse([word for word in words if word != "--check"])


def doctor(words: Sequence[str]) -> None:
    """Say what this machine has."""
    from mgen.commands.doctor import doctor

    doctor(words)


# --------------------------------------------------------------------------- what there is


def _backbones() -> list[dict[str, Any]]:
    facts = ("name", "family", "modality", "context", "width", "layers")
    return [
        {
            **{fact: getattr(entry, fact) for fact in facts},
            "parameters": _short(entry.parameters),
            "licence": entry.licence.partition(":")[0],
        }
        for entry in ZOO.values()
    ]


def _short(count: int | None) -> str:
    """Three digits: 651M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count and count >= size:
            return f"{count / size:.3g}{unit}"
    return "" if count is None else str(count)


def _adapters() -> list[dict[str, Any]]:
    return [{"name": a.name, "what": a.doc.splitlines()[0]} for a in _scan_adapters()]


def _data() -> list[dict[str, Any]]:
    from mgen.data.zoo import ZOO as DATA

    facts = ("group", "name", "modality", "recipe", "task", "rows", "metric")
    return [
        {
            **{fact: getattr(entry, fact) for fact in facts},
            "licence": entry.licence.partition(":")[0],
        }
        for entry in DATA.values()
    ]


def _recipe_lines() -> list[dict[str, Any]]:
    docs = {name: _recipe_doc(name) for name in _recipes()}
    return [{"name": name, "what": doc.splitlines()[0]} for name, doc in docs.items()]


def _experiment_lines() -> list[dict[str, Any]]:
    facts = ("expects", "seconds", "needs")
    return [
        {
            "group": e.modality,
            **{"name": e.name, "recipe": e.recipe, "what": e.summary},
            **{fact: getattr(e, fact) for fact in facts},
        }
        for e in sorted(experiments().values(), key=lambda e: e.modality)
    ]


def _board_lines() -> list[dict[str, Any]]:
    files = sorted((RECIPES / "configs" / "leaderboard").glob("*.yaml"))
    boards = [(file.stem, read_settings(file.read_text())) for file in files]
    return [{"name": name, "title": b["title"], "what": b.get("what", "")} for name, b in boards]


def _show_backbone(name: str) -> None:
    entry = ZOO[name]
    facts = {field.name: getattr(entry, field.name) for field in fields(entry)}
    if entry.parameters is not None:
        facts["parameters"] = f"{entry.parameters:,}"
    if not entry.hub:
        facts["revision"] = ""
    facts["needs_remote_code"] = "yes: --backbone.remote-code" if entry.needs_remote_code else ""
    _print_facts({key: "unknown" if value is None else value for key, value in facts.items()})


def _show_adapter(name: str) -> None:
    adapters = _scan_adapters()
    found = next(a for a in adapters if a.name == name)
    print(f"{found.name}: {found.doc.partition('Args:')[0].strip()}\n")
    options = [
        {"option": f"--adapter.{key.replace('_', '-')}", "type": kind, "default": default,
         "help": found.helps.get(key, "")}
        for key, kind, default in found.options
    ]  # fmt: skip
    print_table("", options)


def _show_data(name: str) -> None:
    from mgen.data.sources.places import local_file
    from mgen.data.zoo import ZOO as DATA
    from mgen.io.files import SHARED_PREFIX

    entry = DATA[name]
    facts = {field.name: getattr(entry, field.name) for field in fields(entry)}
    settings = vars(facts.pop("table"))
    is_absent = (
        settings["path"].startswith(SHARED_PREFIX) and not local_file(settings["path"]).exists()
    )
    facts |= {"rows": entry.rows or "unknown", "place": entry.place + ", absent" * is_absent}
    _print_facts({"name": name, **facts, "command": entry.command})
    print("\nsettings")
    texts = {k: " ".join(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    del texts["name"]
    _print_facts({f"--data.{key.replace('_', '-')}": text for key, text in texts.items()})


def _show_recipe(name: str) -> None:
    print(_recipe_doc(name))


def _show_experiment(name: str) -> None:
    found = experiments()[name]
    flags = f" {shlex.join(found.flags)}, expects {found.expects}" if found.variant else ""
    place = found.file.relative_to(RECIPES.parent)
    print(f"{place}{flags}\n\n{found.file.read_text()}", end="")


def _show_board(name: str) -> None:
    file = RECIPES / "configs" / "leaderboard" / f"{name}.yaml"
    print(f"{file.relative_to(RECIPES.parent)}\n\n{file.read_text()}", end="")


KINDS = {
    "backbones": _backbones,
    "adapters": _adapters,
    "data": _data,
    "recipes": _recipe_lines,
    "experiments": _experiment_lines,
    "boards": _board_lines,
}
DETAILS = {
    "backbones": _show_backbone,
    "adapters": _show_adapter,
    "data": _show_data,
    "recipes": _show_recipe,
    "experiments": _show_experiment,
    "boards": _show_board,
}
COMMANDS = {
    "list": list_names,
    "show": show,
    "check": check,
    "run": run,
    "export": export,
    "sweep": sweep,
    "leaderboard": leaderboard,
    "doctor": doctor,
    "repro": reproduce,
}


# --------------------------------------------------------------------------- reading without torch


@dataclass(frozen=True)
class _AdapterFacts:
    name: str
    doc: str
    options: list[tuple[str, str, str]]  # name, type, default
    helps: dict[str, str]


def _scan_adapters() -> list[_AdapterFacts]:
    """The adapters as their source registers them, sorted by name."""
    trees = [ast.parse(file.read_text()) for file in sorted((PACKAGE / "adapters").glob("*.py"))]
    classes = {node.name: node for tree in trees for node in tree.body if _is_class(node)}
    aliases = {
        ast.unparse(node.targets[0]): ast.unparse(node.value)
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal[")
    }
    shared = [
        (field.target.id, ast.unparse(field.annotation), ast.unparse(field.value))
        for field in classes["Adapter"].body
        if isinstance(field, ast.AnnAssign)
    ]
    found = [
        _AdapterFacts(
            name,
            inspect.cleandoc(ast.get_docstring(node)),
            [
                (key, aliases.get(kind, kind), value)
                for key, kind, value in [*_options(node, classes), *shared]
            ],
            _helps(classes["Adapter"], classes) | _helps(node, classes),
        )
        for node in classes.values()
        for name in _registered(node)
    ]
    return sorted(found, key=lambda adapter: adapter.name)


def _is_class(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef)


def _registered(node: ast.ClassDef) -> Iterator[str]:
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "ADAPTERS.register":
            yield ast.literal_eval(call.args[0])


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[tuple]:
    """The keyword-only parameters of a class or, where it has no constructor, of its base."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            given = statement.args
            for option, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
                yield option.arg, ast.unparse(option.annotation), ast.unparse(default)
            return
    for base in _bases(node, classes):
        yield from _options(base, classes)


def _helps(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, str]:
    """The "Args:" lines of a class and its bases."""
    inherited = [_helps(base, classes) for base in _bases(node, classes)]
    lines = (ast.get_docstring(node) or "").partition("Args:\n")[2]
    own = dict(re.findall(r"^ +(\w+): (.+)$", lines, re.MULTILINE))
    return {key: text for helps in (*inherited, own) for key, text in helps.items()}


def _bases(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    return [classes[base] for base in map(ast.unparse, node.bases) if base in classes]


def _recipes() -> list[str]:
    if not RECIPES.is_dir():
        raise InputError("recipes are part of the repository, not of the package: clone it.")
    return sorted(file.stem for file in RECIPES.glob("*.py"))


def _recipe_doc(name: str) -> str:
    return ast.get_docstring(ast.parse((RECIPES / f"{name}.py").read_text())) or ""


# --------------------------------------------------------------------------- printing


def _text(row: dict[str, Any]) -> str:
    return " ".join(map(str, row.values())).lower()


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in ("", (), {}):
            print(f"{key:{width}}  {value}")
