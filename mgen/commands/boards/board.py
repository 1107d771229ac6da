"""The file of a leaderboard: which tasks, which entries, how often.

    title: One-hot models of promoters
    seeds: 3
    flags: --train.epochs 4              # of every run that a task's own recipe trains
    tasks: [promoters_tiny, peptides_tiny]
    entries:
      debug, frozen:
        flags: --backbone aido_dna_debug --backbone.frozen
        grid: {train.lr: [1e-3, 1e-2]}   # tried each, chosen on validation rows

A task is the name of a data set, which says recipe and metric, or a name with settings of its own
(`TASK`); an entry is what is put to them (`ENTRY`). No torch here.
"""

import fnmatch
import itertools
import re
import shlex
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mgen.backbones.zoo import ZOO
from mgen.commands.sweeps.plan import Value, flags, tree_of
from mgen.config import InputError, flag_values, nearest
from mgen.data.sources.places import local_file
from mgen.data.zoo import ZOO as DATA
from mgen.leaderboards.protocols import find, proteingym

BOARD = ("title", "what", "seeds", "flags", "grid", "tasks", "entries", "references", "protocol")
BOARD += ("resamples", "out", "name", "recipe", "metric")
TASK = ("data", "recipe", "metric", "split", "flags", "modality", "group", "what", "published")
TASK += ("facts",)
ENTRY = ("flags", "recipe", "grid", "tasks", "by", "what")
RIDGE, LOGISTIC = "ridge_regression", "logistic_regression"
CONSTANT, RANDOM = "mean or majority", "random weights"
LINEAR, WORDS, CNN, BLOSUM = "one-hot linear", "k-mer linear", "one-hot CNN", "BLOSUM62"
# Entries that are on every board whose tasks they can do: by the task's recipe, their own recipe
# ("": the task's) and flags. {onehot} and {k} depend on the molecule. Rows are read to their 512th
# letter, which the board says where some are longer: one weight per position has to end somewhere.
ONE_HOT = "--backbone {onehot} --backbone.unknown token --backbone.truncate right"
REFERENCES = {
    "sequence_regression": {
        LINEAR: (RIDGE, f"{ONE_HOT} --pool padded"),
        WORDS: (RIDGE, f"{ONE_HOT} --pool kmers --kmers {{k}}"),
        CNN: ("", f"{ONE_HOT} --adapter conv"),
    },
    "sequence_classification": {
        LINEAR: (LOGISTIC, f"{ONE_HOT} --pool padded"),
        WORDS: (LOGISTIC, f"{ONE_HOT} --pool kmers --kmers {{k}}"),
        CNN: ("", f"{ONE_HOT} --adapter conv"),
    },
    "token_classification": {CNN: ("", f"{ONE_HOT} --adapter token_cnn")},
    "zero_shot_variants": {BLOSUM: ("", "--strategy blosum62")},
}
AUTOMATIC = (CONSTANT, LINEAR, WORDS, CNN, BLOSUM, RANDOM)
KMERS = {"dna": 6, "rna": 6, "protein": 2}  # letters of the longest words
NUCLEIC = ("dna", "rna")
Words = tuple[str, list[str]]  # file:line, and the words that stand there


@dataclass(frozen=True)
class BoardTask:
    """Rows to predict and how well: `published` are others' figures, (value, source) by name."""

    name: str
    data: str
    recipe: str
    metric: str
    place: str  # file:line
    modality: str = ""  # dna, rna or protein; "" if it is not known
    flags: tuple[Words, ...] = ()
    own: tuple[Words, ...] = ()  # flags of its own recipe alone
    group: str = ""
    what: str = ""
    published: dict[str, tuple[float, str]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    def known(self, higher_is_better: bool) -> dict[str, str]:
        """What a protocol may group and weigh it by."""
        assay = proteingym().get(self.facts.get("DMS_id", ""), {})
        return {
            "group": self.group,
            "better": "higher" if higher_is_better else "lower",
            **assay,
            **self.facts,
        }

    @property
    def names(self) -> tuple[str, str, str]:
        """What entries may call it, the most general name first."""
        return self.modality, self.recipe, self.name


@dataclass(frozen=True)
class BoardEntry:
    """What is compared: flags, a recipe of its own by that of the task, and a grid to choose from.

    `only` and `by` name tasks, recipes or molecules. `reference`: the board has put it there.
    """

    name: str
    place: str
    flags: tuple[Words, ...] = ()
    recipes: dict[str, str] = field(default_factory=dict)  # by the task's recipe; "": any other
    grid: dict[str, list[Value]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    by: dict[str, Words] = field(default_factory=dict)  # more flags
    what: str = ""
    reference: bool = False

    def recipe(self, task: BoardTask) -> str:
        return self.recipes.get(task.recipe) or self.recipes.get("") or task.recipe

    def wants(self, task: BoardTask) -> bool:
        return not self.only or bool({*task.names} & {*self.only})

    @cached_property
    def trials(self) -> list[dict[str, Value]]:
        """The settings of the grid; one empty one if there is none."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Board:
    """A leaderboard as its file describes it."""

    file: Path
    title: str
    tasks: dict[str, BoardTask]
    entries: dict[str, BoardEntry]
    what: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    flags: Words = ("", [])
    protocol: str = "mean"
    constants: bool = True  # the mean or the majority is an entry
    resamples: int = 1000
    folder: Path = Path()

    def pieces(self, task: BoardTask, entry: BoardEntry, trial: int = 0) -> list[Words]:
        """The flags of a run, by the places they stand in, later ones first to be kept."""
        shared = [*task.own, self.flags] if entry.recipe(task) == task.recipe else []
        settings = entry.trials[trial]
        own = [(f"{entry.place} (grid)", flags(settings))] if settings else []
        by = [entry.by[name] for name in task.names if name in entry.by]
        return [*task.flags, *shared, *entry.flags, *by, *own]

    def put_to(self, task: BoardTask) -> list[BoardEntry]:
        """The entries that a task is for."""
        return [entry for entry in self.entries.values() if entry.wants(task)]


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def read(file: Path) -> Board:
    """The board of a file, its references put in. Raises InputError that names the line."""
    return _Reader(file).board()


class _Reader:
    """Reads a file; every fault is named with its line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tree, self.lines = tree_of(file)

    def place(self, *path: str) -> str:
        while path and " ".join(path) not in self.lines:  # what is not said stands for its whole
            path = path[:-1]
        return f"{self.file}:{self.lines.get(' '.join(path), 1)}"

    def board(self) -> Board:
        tree = self.tree
        self.known((), tree, BOARD)
        for key in ("title", "tasks"):
            if not tree.get(key):
                raise InputError(f"{self.place(key)}: no {key}: expected '{key}: ...'")
        name = self.text((), tree, "name") or self.file.stem
        if name != Path(name).name or name[0] == ".":
            raise InputError(f"{self.place('name')}: {name}: expected one folder name")
        tasks = self.tasks()
        entries = self.entries(tasks)
        asked = self.texts((), tree, "references") if "references" in tree else list(AUTOMATIC)
        for one in asked:
            if one not in AUTOMATIC:
                said = f"{self.place('references')}: no reference '{one}'."
                raise InputError(said + nearest(one, AUTOMATIC) + f" There are: {AUTOMATIC}")
        entries |= self.references(tasks, entries, asked)
        slugs: dict[str, str] = {}
        for one in (*tasks, *entries):
            if (twin := slugs.setdefault(slug(one), one)) != one:
                kind = "tasks" if one in tasks else "entries"
                raise InputError(
                    f"{self.place(kind, one)}: '{one}' and '{twin}' would be one folder; rename one"
                )
        if not entries:
            raise InputError(f"{self.place('entries')}: no entries that fit the tasks")
        return Board(
            file=self.file,
            title=self.text((), tree, "title"),
            what=self.text((), tree, "what"),
            tasks=tasks,
            entries=entries,
            seeds=self.seeds(),
            flags=self.words((), tree, "flags"),
            protocol=self.protocol(tasks),
            constants=CONSTANT in asked,
            resamples=self.count("resamples", 1000, 100),
            folder=Path(self.text((), tree, "out") or "runs/leaderboards") / name,
        )

    def tasks(self) -> dict[str, BoardTask]:
        given = self.tree["tasks"]
        if isinstance(given, list):
            if not all(isinstance(name, str) for name in given):
                raise InputError(
                    f"{self.place('tasks')}: expected names, or 'name: settings' lines"
                )
            if twice := [name for i, name in enumerate(given) if name in given[:i]]:
                raise InputError(f"{self.place('tasks')}: lists {twice[0]} twice")
            given = dict.fromkeys(given, "")
        found: dict[str, BoardTask] = {}
        for name, settings in self.mapping((), "tasks", given).items():
            path = ("tasks", name)
            if isinstance(settings, str):
                settings = {"data": settings} if settings else {}
            self.known(path, settings, TASK)
            for one, own in self.meant(name, path, settings):
                if one in found:
                    raise InputError(f"{self.place(*path)}: task {one} is there already")
                found[one] = self.task(one, path, own)
        return found

    def meant(self, name: str, path: tuple[str, ...], settings: dict) -> list[tuple[str, dict]]:
        """The tasks that a name stands for: with a `*`, of all such data sets, or files.

        {name} in the settings of a pattern is the name of the data set, or the stem of the file.
        """
        if "*" not in name:
            return [(name, settings)]
        if "/" not in name:
            names = {one: one for one in fnmatch.filter(DATA, name)}
            if not names:
                raise InputError(f"{self.place(*path)}: no data set is called like {name}")
        else:
            place = local_file(name)
            files = sorted(place.parent.glob(place.name))
            names = {file.name.partition(".")[0]: str(file) for file in files} or {name: name}
        return [(one, _filled(settings, one) | {"data": data}) for one, data in names.items()]

    def task(self, name: str, path: tuple[str, ...], settings: dict[str, Any]) -> BoardTask:
        data = self.text(path, settings, "data") or name
        entry = DATA.get(data)
        if not entry and not re.search(r"[/.]", data):
            raise InputError(
                f"{self.place(*path, 'data')}: no data set '{data}'.{nearest(data, DATA)} A file "
                "or a hub data set (owner/name) works too: 'data: ...'"
            )
        modality = self.text(path, settings, "modality") or (entry.modality if entry else "")
        if modality and modality not in KMERS:
            said = f"{self.place(*path, 'modality')}: no modality '{modality}'."
            raise InputError(f"{said}{nearest(modality, KMERS)} There are: {', '.join(KMERS)}")
        facts = {
            key: self.text(path, settings, key)
            or self.text((), self.tree, key)
            or (getattr(entry, key) if entry else "")
            for key in ("recipe", "metric")
        }
        for key, value in facts.items():
            if not value:
                raise InputError(f"{self.place(*path)}: no {key}: expected '{key}: ...'")
        own = shlex.split(entry.flags) if entry and facts["recipe"] == entry.recipe else []
        words = [(self.place(*path), ["--data", data])]
        if split := self.text(path, settings, "split"):
            words.append((self.place(*path, "split"), ["--data.test-split", split]))
        words.append(self.words(path, settings, "flags"))
        more = self.mapping(path, "facts", settings.get("facts", {}))
        return BoardTask(
            name=name,
            data=data,
            place=self.place(*path),
            flags=tuple(words),
            own=((self.place(*path), own),),
            modality=modality,
            group=self.text(path, settings, "group") or modality,
            what=self.text(path, settings, "what") or (entry.task if entry else ""),
            published=self.published(path, settings),
            facts={key: str(value) for key, value in more.items()},
            **facts,
        )

    def published(self, path: tuple[str, ...], settings: dict) -> dict[str, tuple[float, str]]:
        found = {}
        for name, given in self.mapping(path, "published", settings.get("published", {})).items():
            own = (*path, "published", name)
            if isinstance(given, str):
                given = {"value": given}
            self.known(own, given, ("value", "source"))
            try:
                value = float(given["value"])
            except (KeyError, ValueError):
                raise InputError(
                    f"{self.place(*own)}: {name}: expected a number, or value and source"
                ) from None
            found[name] = (value, given.get("source", ""))
        return found

    def entries(self, tasks: dict[str, BoardTask]) -> dict[str, BoardEntry]:
        found = {}
        shared = self.grid((), self.tree)
        for name, settings in self.mapping((), "entries", self.tree.get("entries", {})).items():
            path = ("entries", name)
            if isinstance(settings, str):
                settings = {"flags": settings} if settings else {}
            self.known(path, settings, ENTRY)
            recipe = settings.get("recipe", {})
            recipes = {"": recipe} if isinstance(recipe, str) else recipe
            only = self.texts(path, settings, "tasks") if "tasks" in settings else []
            known = {name for task in tasks.values() for name in task.names if name}
            by = self.mapping(path, "by", settings.get("by", {}))
            for one in (*only, *by):
                if one not in known:
                    place = (
                        self.place(*path, "tasks") if one in only else self.place(*path, "by", one)
                    )
                    said = f"{place}: the board has no task, recipe or molecule '{one}'."
                    raise InputError(said + nearest(one, known))
            found[name] = BoardEntry(
                name=name,
                place=self.place(*path),
                flags=(self.words(path, settings, "flags"),),
                recipes=recipes,
                grid=self.grid(path, settings) or ({} if recipe else shared),
                only=tuple(only),
                by={key: self.words((*path, "by"), by, key) for key in by},
                what=self.text(path, settings, "what"),
            )
        return found

    def references(
        self, tasks: dict[str, BoardTask], entries: dict[str, BoardEntry], asked: list[str]
    ) -> dict[str, BoardEntry]:
        """The automatic entries; one of the file's with such a name stands for it."""
        found: dict[str, BoardEntry] = {}
        for name in (one for one in asked if one not in entries):
            by, recipes = {}, {}
            for task in tasks.values():
                if name not in REFERENCES.get(task.recipe, ()) or not task.modality:
                    continue
                if name == BLOSUM and task.modality != "protein":
                    continue
                recipes[task.recipe], words = REFERENCES[task.recipe][name]
                onehot = "protein_onehot" if task.modality == "protein" else "dna_onehot"
                words = words.format(onehot=onehot, k=KMERS.get(task.modality, 2))
                by[task.name] = (task.place, shlex.split(words))
            if by:
                found[name] = BoardEntry(
                    name=name,
                    place=self.place("tasks"),
                    recipes={key: value for key, value in recipes.items() if value},
                    only=tuple(by),
                    by=by,
                    reference=True,
                )
        for entry in entries.values() if RANDOM in asked else ():
            if any(_is_pretrained(words) for _, words in (*entry.flags, *entry.by.values())):
                bare = (entry.place, ["--backbone.random-weights"])
                name = f"{entry.name}, {RANDOM}"
                twin = replace(entry, name=name, flags=(*entry.flags, bare), reference=True)
                if name not in entries:
                    found[name] = twin
        return found

    def protocol(self, tasks: dict[str, BoardTask]) -> str:
        name = self.text((), self.tree, "protocol") or "mean"
        try:
            needed = find(name).levels
        except InputError as error:
            raise InputError(f"{self.place('protocol')}: {error}") from None
        for task in tasks.values():
            known = task.known(True)
            if lacking := [fact for fact in needed if fact not in known and "*" not in task.name]:
                raise InputError(
                    f"{task.place}: {task.name} has no {', '.join(lacking)}, which protocol {name} "
                    "needs; set facts: {DMS_id: ...} for an assay of ProteinGym, or these"
                )
        return name

    def seeds(self) -> tuple[int, ...]:
        given = self.tree.get("seeds", "3")
        if isinstance(given, str):
            return tuple(range(self.count("seeds", 3, 1)))
        if not all(isinstance(s, str) and s.isdecimal() for s in given) or not given:
            raise InputError(f"{self.place('seeds')}: seeds: expected how many, or a list of them")
        return tuple(map(int, given))

    # ------------------------------------------------------------- values

    def known(self, path: tuple[str, ...], settings: Any, keys: tuple[str, ...]) -> None:
        if not isinstance(settings, dict):
            raise InputError(f"{self.place(*path)}: expected 'name: value' lines")
        for key in settings:
            if key not in keys:
                said = f"{self.place(*path, key)}: no setting '{key}' here.{nearest(key, keys)}"
                raise InputError(f"{said} There are: {', '.join(keys)}")

    def mapping(self, path: tuple[str, ...], key: str, given: Any) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise InputError(f"{self.place(*path, key)}: {key}: expected 'name: ...' lines")
        return given

    def text(self, path: tuple[str, ...], settings: dict[str, Any], key: str) -> str:
        value = settings.get(key, "")
        if not isinstance(value, str):
            raise InputError(f"{self.place(*path, key)}: {key}: expected one value")
        return value

    def texts(self, path: tuple[str, ...], settings: dict[str, Any], key: str) -> list[str]:
        value = settings.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InputError(f"{self.place(*path, key)}: {key}: expected a list of names")
        return value

    def words(self, path: tuple[str, ...], settings: dict[str, Any], key: str) -> Words:
        try:
            return self.place(*path, key), shlex.split(self.text(path, settings, key), True)
        except ValueError as error:
            raise InputError(f"{self.place(*path, key)}: {key}: {error}") from None

    def count(self, key: str, default: int, least: int) -> int:
        text = self.text((), self.tree, key) or str(default)
        if not (text.isdecimal() and int(text) >= least):
            raise InputError(f"{self.place(key)}: {key}: expected a number, at least {least}")
        return int(text)

    def grid(self, path: tuple[str, ...], settings: dict[str, Any]) -> dict[str, list[Value]]:
        grid = self.mapping(path, "grid", settings.get("grid", {}))
        for key, values in grid.items():
            if (
                not isinstance(values, list)
                or not values
                or any(isinstance(v, dict) for v in values)
            ):
                raise InputError(f"{self.place(*path, 'grid', key)}: {key}: expected [values]")
        return grid


def _filled(settings: Any, name: str) -> Any:
    """Settings in which {name} is that name."""
    if isinstance(settings, dict):
        return {key: _filled(value, name) for key, value in settings.items()}
    return settings.replace("{name}", name) if isinstance(settings, str) else settings


def _is_pretrained(words: list[str]) -> bool:
    """Whether these flags name a backbone whose weights come from somewhere."""
    named = flag_values(words, "backbone")
    if not named or "--backbone.random-weights" in words:
        return False
    return bool(ZOO[named[-1]].hub) if named[-1] in ZOO else True
