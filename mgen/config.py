"""Configs: frozen dataclasses on the command line, choices by name, YAML files as flags.

A config is a frozen dataclass whose fields have defaults. A field may hold a `Choice`: a name out
of a `Registry` together with the options of what it names (`--adapter conv --adapter.channels 64`).
A YAML file is the nested form of the same flags and is read as flags, so that types, spelling hints
and messages are those of the command line. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import tyro

FORMAT = 1  # version of config.yaml
NOT_SAVED = {"saved": False}  # metadata of a field that is about this machine, not about results

T = TypeVar("T")
E = TypeVar("E")


class InputError(ValueError):
    """Wrong input: says what was seen, where, and what to do; commands leave with exit code 2."""


class Absent(InputError):
    """What is asked for is not on this machine, and not to be had from the network now."""


@contextmanager
def flags_of(name: str) -> Iterator[None]:
    """Errors inside name the flags of the backbone in the field `name` of the settings."""
    try:
        yield
    except InputError as error:
        raise type(error)(str(error).replace("--backbone.", f"--{name}.")) from None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """What to say of a name that is not among `names`: the nearest one, and all if they are few."""
    names = sorted(names)
    listed = f" Known: {', '.join(names)}." if len(names) <= 20 else " See mgen list."
    return f"no {kind} '{name}'.{nearest(name, names)}{listed}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A name together with the options of what it names."""

    name: Annotated[str, tyro.conf.arg(name="", metavar="NAME")]

    registry: ClassVar[Registry]

    def switch(self, name: str) -> Choice:
        """The defaults of another name: its own options are reset, those all names share stay."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self.registry.base)}
        del shared["name"]
        return self.registry.choose(name, **shared)


class Registry:
    """Names of interchangeable constructors; keyword-only parameters are a name's options.

    Args:
        base: Choice class with the options that all names share.
        kind: what the names stand for, as messages call it.
        resolve: maps a name to a registered key where many names share one constructor.
    """

    def __init__(
        self, base: type[Choice], kind: str, resolve: Callable[[str], str] | None = None
    ) -> None:
        self.base, self.kind, self.resolve = base, kind, resolve or (lambda name: name)
        self.constructors: dict[str, Callable] = {}
        self.facts: dict[str, set[str]] = {}
        base.registry = self

    def register(self, key: str, *facts: str) -> Callable:
        """Decorate a class or function: `key` names it from now on, and `facts` hold of it."""

        def add(constructor: Callable) -> Callable:
            self.constructors[key], self.facts[key] = constructor, set(facts)
            return constructor

        return add

    def choose(self, name: str, **options: Any) -> Choice:
        """The choice `name` with its options. Raises InputError with the nearest known name."""
        key = self.resolve(name)
        if key not in self.constructors:
            raise InputError(unknown(self.kind, name, self.constructors))
        return self._options(key)(**{"name": name, **options})

    def construct(self, choice: Choice, *args: Any) -> Any:
        """Call the constructor that `choice` names with `args` and the choice's own options."""
        shared = {f.name for f in dataclasses.fields(self.base)}
        own = {f.name for f in dataclasses.fields(choice)} - shared
        constructor = self.constructors[self.resolve(choice.name)]
        return constructor(*args, **{name: getattr(choice, name) for name in own})

    @functools.cache  # noqa: B019  (registries live as long as the process)
    def _options(self, key: str) -> type[Choice]:
        constructor = self.constructors[key]
        function = constructor.__init__ if inspect.isclass(constructor) else constructor
        hints = typing.get_type_hints(function)
        fields = [
            (p.name, hints[p.name], dataclasses.field(default=p.default))
            for p in inspect.signature(function).parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        ]
        options = dataclasses.make_dataclass(
            key,
            fields,
            bases=(self.base,),
            namespace={"__reduce__": _reduce},
            frozen=True,
            kw_only=True,
        )
        # A generated class has no source: tyro finds the help of its options in "Args:" lines.
        doc = inspect.getdoc(constructor) or key
        helps = "\n".join(map(_argument_lines, (inspect.getdoc(self.base) or "", doc)))
        options.__doc__ = f"{doc.splitlines()[0]}\n\nArgs:\n{helps}\n"
        return options


def _reduce(choice: Choice) -> tuple:
    # A generated class is no module's attribute; started processes make the choice anew.
    return _rebuild, (type(choice).registry.base, vars(choice))


def _rebuild(base: type[Choice], options: dict[str, Any]) -> Choice:
    return base.registry.choose(**options)


def _argument_lines(doc: str) -> str:
    return doc.partition("Args:\n")[2].partition("\n\n")[0].rstrip()


# --------------------------------------------------------------------------- flags and files


def parse(
    config: T, launch: E, argv: Sequence[str], prog: str, description: str = ""
) -> tuple[T, E]:
    """Read flags over the defaults `config` (saved with a run) and `launch` (not saved, or None).

    `--config FILE` may be repeated: files apply in order, flags win. Errors leave with exit code 2.
    """
    for file in flag_values(argv, "config"):
        config = from_yaml(config, file)
    config = _switch(config, lambda path: flag_values(argv, path))
    for path in _list_paths(config):  # the last one would win without a word
        if len(flag_values(argv, path)) > 1:
            flag = f"--{path.replace('_', '-')}"
            raise InputError(f"{flag}: given more than once; name all values after one {flag}")
    fields = [
        (name, Annotated[type(value), tyro.conf.arg(name="")], value)
        for name, value in (("settings", config), ("launch", launch))
        if value is not None
    ]
    both = dataclasses.make_dataclass("both", fields, frozen=True)
    parsed = tyro.cli(both, args=list(argv), prog=prog, description=description)
    return parsed.settings, None if launch is None else parsed.launch


def from_yaml(config: T, file: str | Path, backbone: str = "") -> T:
    """`config` with the settings of a YAML file, read as flags under the file's name.

    Every scalar is read as text and given its type by the field it sets (`1e-4` is a number). List
    items that start with "-" and are not numbers are refused, as they are on the command line.
    `backbone` takes the place of the backbone's name, whatever the file has there.
    """
    import yaml

    class Loader(yaml.BaseLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            if twice := {str(key) for key in keys if keys.count(key) > 1}:
                raise InputError(f"--config {file}: set more than once: {', '.join(sorted(twice))}")
            return super().construct_mapping(node, deep)

    try:
        tree = yaml.load(Path(file).read_text(), Loader=Loader) or {}
    except FileNotFoundError:
        raise InputError(f"--config {file}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {file}: cannot be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"--config {file}: expected 'name: value' lines, found {tree!r}")
    version = tree.pop("format", str(FORMAT))
    if version != str(FORMAT):
        raise InputError(f"--config {file}: format {version}, this version reads format {FORMAT}")
    named, beside = tree.get("backbone"), Path(file).parent.resolve()
    if isinstance(named, dict) and backbone:
        named["name"] = backbone
    is_here = isinstance(named, dict) and named.get("name") == "."
    if is_here and (beside / "config.json").is_file():  # an exported run brings its backbone along
        named["name"] = str(beside)
    config = _switch(config, lambda path: _names(tree, path))
    return tyro.cli(type(config), default=config, args=_flags(tree, config), prog=str(file))


def to_yaml(config: Any) -> str:
    """The whole config as YAML; `from_yaml` gives the same config back."""
    import yaml

    return yaml.safe_dump(
        {"format": FORMAT, **plain(config)}, sort_keys=False, allow_unicode=True, width=100
    )


def plain(value: Any) -> Any:
    """Dataclasses as dicts without the fields that are NOT_SAVED, tuples as lists, all the way."""
    if dataclasses.is_dataclass(value):
        saved = [f.name for f in dataclasses.fields(value) if f.metadata.get("saved", True)]
        return {name: plain(getattr(value, name)) for name in saved}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def flag_values(argv: Sequence[str], path: str) -> list[str]:
    """The values that `--path VALUE` or `--path=VALUE` gives in `argv`, in order."""
    flags = {f"--{path}", f"--{path.replace('_', '-')}"}
    values = []
    for word, following in zip_longest(argv, argv[1:]):
        flag, joined, value = word.partition("=")
        if flag in flags and (joined or following is not None):
            values.append(value if joined else following)
    return values


def _names(tree: Any, path: str) -> list[str]:
    for key in path.split("."):
        tree = tree.get(key, {}) if isinstance(tree, dict) else {}
    name = tree.get("name", "") if isinstance(tree, dict) else tree
    return [name] if isinstance(name, str) and name else []


def _switch(config: T, names: Callable[[str], list[str]], prefix: str = "") -> T:
    """Replace each choice that is named anew by the defaults of that name."""
    changed = {}
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if isinstance(value, Choice):
            if found := names(path):
                changed[field.name] = value.switch(found[-1])
        elif dataclasses.is_dataclass(value):
            changed[field.name] = _switch(value, names, path + ".")
    return dataclasses.replace(config, **changed)


def _list_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """The fields of a config that hold several values, with dots."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if isinstance(value, tuple):
            yield path
        elif dataclasses.is_dataclass(value):
            yield from _list_paths(value, path + ".")


def _flags(tree: dict, config: Any, prefix: str = "") -> list[str]:
    """A nested mapping as command-line flags."""
    flags: list[str] = []
    for key, value in tree.items():
        old = getattr(config, key, None) if dataclasses.is_dataclass(config) else None
        path = f"{prefix}{key}".replace("_", "-")
        if isinstance(old, Choice) and isinstance(value, str):
            flags += [f"--{path}={value}"]
        elif isinstance(value, dict):
            flags += _flags(value, old, f"{prefix}{key}.")
        elif isinstance(value, list):
            flags += [f"--{path}", *map(str, value)]
        elif key == "name" and isinstance(config, Choice):
            flags += [f"--{prefix.rstrip('.').replace('_', '-')}={value}"]
        elif isinstance(old, bool) and value.lower() in ("true", "false"):
            head, _, last = path.rpartition(".")
            no = "" if value.lower() == "true" else "no-"
            flags += [f"--{head + '.' if head else ''}{no}{last}"]
        else:
            flags += [f"--{path}={value}"]
    return flags
