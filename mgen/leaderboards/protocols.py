"""How published boards average their tasks, and tables of published values averaged anew.

A protocol is data: which facts of a task group it, innermost first, and what is averaged. A mean is
taken within the innermost groups, then of those means within the next, and so on to one number. No
torch.
"""

import csv
import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mgen.config import InputError, nearest, unknown

Values = Mapping[str, Mapping[str, float | None]]  # task -> entry -> value; None: no such cell
Facts = Mapping[str, Mapping[str, str]]  # task -> fact -> what it is of that task

FILE = Path(__file__).with_name("proteingym.tsv")
TYPES = ("Activity", "Binding", "Expression", "OrganismalFitness", "Stability")
SCHEMES = ("fold_random_5", "fold_modulo_5", "fold_contiguous_5")
ASSAY, PROTEIN, TYPE, SCHEME = "DMS_id", "UniProt_ID", "coarse_selection_type", "cv_scheme"
BETTER, WEIGHT = "better", "weight"  # "higher" (unless said) or "lower"; a number
# Columns of tables that are facts of a task and no method's values, by how tables spell them.
COLUMNS = {
    **{name: ASSAY for name in ("DMS ID", ASSAY, "task")},
    **{name: PROTEIN for name in ("UniProt ID", PROTEIN)},
    **{name: TYPE for name in ("Selection Type", TYPE)},
    **{name: name for name in (SCHEME, BETTER, WEIGHT, "group")},
    **{
        name: "" for name in ("Number of Mutants", "number_mutants", "MSA_Neff_L_category", "Taxon")
    },
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to average tasks; `source` says where it is from, and what of it is assumed."""

    source: str
    levels: tuple[str, ...] = ()  # facts that group tasks, innermost first
    shown: tuple[str, ...] = ()  # facts whose groups are averaged on their own besides
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # all there are of a fact
    weight: str = ""  # fact by which tasks weigh in their mean
    of_ranks: bool = False  # 1 / rank among the entries is averaged, not the value
    decimals: int | None = None  # values are rounded first
    known: bool = False  # facts of ProteinGym's assays come with the package


PROTOCOLS = {
    "mean": Protocol(source="the mean over tasks"),
    "proteingym_zero_shot": Protocol(
        source="proteingym/performance_DMS_benchmarks.py of github.com/OATML-Markslab/ProteinGym "
        "at a6fc27f: values rounded to three digits, mean per protein within a selection type, "
        "mean of those per type, mean of the types",
        levels=(PROTEIN, TYPE),
        shown=(TYPE,),
        groups={TYPE: TYPES},
        decimals=3,
        known=True,
    ),
    "proteingym_supervised": Protocol(
        source="proteingym/performance_DMS_supervised_benchmarks.py of github.com/OATML-Markslab/"
        "ProteinGym at 5908390: the same nesting, values not rounded, within each scheme of "
        "cross-validation; mean of the schemes (of indels only the random one)",
        levels=(PROTEIN, TYPE, SCHEME),
        shown=(SCHEME, TYPE),
        groups={SCHEME: SCHEMES, TYPE: TYPES},
        known=True,
    ),
    "flip": Protocol(
        source="Dallago et al. 2021 (FLIP) print one value per split and no average; assumed: the "
        "mean over splits, and that of each data set (fact 'group') besides",
        shown=("group",),
    ),
    "gue": Protocol(
        source="Zhou et al. 2024 (DNABERT-2, arXiv:2306.15006), average scores: assumed to be the "
        "mean over the 28 data sets, MCC but F1 of virus variants; each kind of task (fact "
        "'group') besides",
        shown=("group",),
    ),
    "nt": Protocol(
        source="Dalla-Torre et al. 2024 (Nucleotide Transformer, doi:10.1038/s41592-024-02523-z), "
        "figure 2b: mean MCC of each category (fact 'group'); assumed: the average is that over "
        "all tasks",
        shown=("group",),
    ),
    "peer": Protocol(
        source="Xu et al. 2022 (PEER, arXiv:2206.02096) and its board, the mean reciprocal rank of "
        "a method over tasks; assumed: ties share their mean rank",
        of_ranks=True,
    ),
    "traitgym": Protocol(
        source="Benegas et al. 2025 (TraitGym, doi:10.1101/2025.02.11.637758), metric "
        "AUPRC_by_chrom_weighted_average of github.com/songlab-cal/TraitGym: a task is a "
        "chromosome and weighs by its number of variants (fact 'weight')",
        weight=WEIGHT,
    ),
}


class Row(NamedTuple):
    """What a protocol makes of one entry: values where there are any, else None."""

    entry: str
    rank: int | None  # 1 the best; None: tasks are missing, or their directions differ
    average: float | None
    groups: dict[str, float | None]  # average over the tasks of each group shown
    missing: tuple[str, ...]  # tasks it lacks
    of: int  # tasks there are
    error: float | None = None  # standard error of the difference to the best, see `with_errors`


def find(name: str) -> Protocol:
    """The protocol of that name. Raises InputError with the nearest one."""
    if name not in PROTOCOLS:
        raise InputError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


def aggregate(protocol: Protocol, values: Values, facts: Facts) -> list[Row]:
    """One row per entry, best first, then those without a rank.

    The average of an entry that lacks tasks is over those it has, and it has no rank: a missing
    cell neither helps nor hides. Values of which some are better high and others low have no
    average; their reciprocal ranks do. Raises InputError if a task lacks a fact that is needed.
    """
    table = _table(protocol, values, facts)
    lower = [_fact(facts, task, BETTER) == "lower" for task in values]
    sign = -1 if all(lower) and not protocol.of_ranks else 1
    is_mixed = any(lower) and not all(lower) and not protocol.of_ranks
    rows = []
    for entry in dict.fromkeys(entry for cells in values.values() for entry in cells):
        known = {task: cells[entry] for task, cells in table.items() if entry in cells}
        missing = tuple(task for task in values if task not in known)
        groups = {
            group: _average(protocol, {t: v for t, v in known.items() if t in tasks}, facts)
            for group, tasks in _groups(protocol, values, facts)
        }
        average = None if is_mixed else _average(protocol, known, facts)
        rows.append(Row(entry, None, average, groups, missing, len(values)))
    complete = [row for row in rows if row.average is not None and not row.missing]
    complete.sort(key=lambda row: -sign * row.average)
    ranked = [
        row._replace(rank=1 + sum(sign * other.average > sign * row.average for other in complete))
        for row in complete
    ]
    return [*ranked, *(row for row in rows if row not in complete)]


def with_errors(protocol: Protocol, rows: list[Row], values: Values, facts: Facts) -> list[Row]:
    """Rows with the standard error of the difference of their average to that of the best.

    ProteinGym's: differences are averaged per protein (the first level), proteins are drawn with
    replacement within each selection type (the second), and of several schemes (the third) the
    errors are averaged. Its scripts draw 10,000 times; here is what that tends to, the root of the
    sum over types of variance / proteins, over the number of types. None without two levels, and
    for entries without a rank.
    """
    if len(protocol.levels) < 2 or not rows or rows[0].rank is None:
        return rows
    table = _table(protocol, values, facts)
    best = {task: cells[rows[0].entry] for task, cells in table.items()}
    made = []
    for row in rows:
        if row.rank is None:
            made.append(row)
            continue
        gaps = {task: cells[row.entry] - best[task] for task, cells in table.items()}
        strata: dict[tuple, dict[tuple, list[float]]] = {}
        for (_, *outer), gap, _ in _collapse(_keyed(protocol, gaps, facts), keep=True):
            strata.setdefault(tuple(outer[1:]), {}).setdefault(tuple(outer), []).append(gap)
        errors = [
            math.sqrt(sum(statistics.pvariance(each) / len(each) for each in types.values()))
            / len(types)
            for types in strata.values()
        ]
        made.append(row._replace(error=statistics.fmean(errors)))
    return made


def _table(protocol: Protocol, values: Values, facts: Facts) -> dict[str, dict[str, float]]:
    """What is averaged: task -> entry -> value or reciprocal rank; missing cells are left out."""
    table = {}
    for task, cells in values.items():
        _check(protocol, task, facts)
        known = {e: v for e, v in cells.items() if v is not None and not math.isnan(v)}
        if protocol.decimals is not None:
            known = {entry: round(value, protocol.decimals) for entry, value in known.items()}
        if protocol.of_ranks:
            sign = -1 if _fact(facts, task, BETTER) == "lower" else 1
            ordered = [sign * value for value in known.values()]
            ranks = [sum(o > v for o in ordered) + (ordered.count(v) + 1) / 2 for v in ordered]
            known = {entry: 1 / rank for entry, rank in zip(known, ranks, strict=True)}
        table[task] = known
    return table


def _check(protocol: Protocol, task: str, facts: Facts) -> None:
    for fact in (*protocol.levels, *filter(None, [protocol.weight])):
        if not _fact(facts, task, fact):
            raise InputError(f"{task}: has no '{fact}', which this protocol needs")
    if protocol.weight:
        cell = _fact(facts, task, protocol.weight)
        try:
            is_weight = 0 < float(cell) < math.inf
        except ValueError:
            is_weight = False
        if not is_weight:
            raise InputError(f"{task}: '{protocol.weight}' is {cell!r}, expected a number above 0")


def _average(protocol: Protocol, known: Mapping[str, float], facts: Facts) -> float | None:
    cells = _keyed(protocol, known, facts)
    for _ in range(len(protocol.levels) + 1):
        cells = _collapse(cells)
    return cells[0][1] if cells else None


def _keyed(protocol: Protocol, known: Mapping[str, float], facts: Facts) -> list[tuple]:
    """(groups of the task, innermost first; value; weight) of each task."""
    return [
        (
            tuple(_fact(facts, task, level) for level in protocol.levels),
            value,
            float(_fact(facts, task, protocol.weight) or 1),
        )
        for task, value in known.items()
    ]


def _collapse(cells: list[tuple], keep: bool = False) -> list[tuple]:
    """The weighted mean within each group, under the groups around it (or, `keep`, its own)."""
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for key, value, weight in cells:
        groups.setdefault(key, []).append((value, weight))
    return [
        (
            key if keep else key[1:],
            math.fsum(v * w for v, w in pairs) / math.fsum(w for _, w in pairs),
            1.0,
        )
        for key, pairs in groups.items()
    ]


def _groups(protocol: Protocol, values: Values, facts: Facts) -> Iterator[tuple[str, set[str]]]:
    """The groups that are shown and their tasks, which may be none."""
    for fact in protocol.shown:
        seen = dict.fromkeys(_fact(facts, task, fact) for task in values)
        for group in dict.fromkeys((*protocol.groups.get(fact, ()), *seen)):
            if group:
                yield group, {task for task in values if _fact(facts, task, fact) == group}


def _fact(facts: Facts, task: str, name: str) -> str:
    return facts.get(task, {}).get(name, "")


# --------------------------------------------------------------------------- published tables


@functools.cache
def proteingym() -> dict[str, dict[str, str]]:
    """Facts of ProteinGym's assays: DMS_id -> UniProt_ID and coarse_selection_type.

    217 of substitutions, and 66 of indels whose names end in "_indels".
    """
    lines = (line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    return {row.pop(ASSAY): row for row in csv.DictReader(lines, delimiter="\t")}


class Table(NamedTuple):
    values: dict[str, dict[str, float | None]]  # task -> method -> value
    facts: dict[str, dict[str, str]]  # what the table says of each task besides
    aside: tuple[str, ...]  # columns that are neither


def read_table(file: str | Path) -> Table:
    """A CSV (or .tsv) of published values: a row per task, `DMS_id` or `task`, a column per method.

    Other columns of `COLUMNS` are facts; with `cv_scheme` a task is an assay in a scheme. Empty,
    nan and N/A are missing values. Raises InputError with line and column for anything else that is
    no number, for rows named twice, and for a file without these columns.
    """
    file = Path(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
            rows = [(lines.line_num, row) for row in lines if row]
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: is no CSV file: {error}") from None
    columns = [cell.strip() for cell in rows[0][1]] if rows else []
    _check_columns(file, columns)
    values, facts = {}, {}
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise InputError(f"{file}:{line}: {len(row)} cells, the header has {len(columns)}")
        cells = dict(zip(columns, map(str.strip, row), strict=True))
        about = {COLUMNS[name]: cell for name, cell in cells.items() if COLUMNS.get(name) and cell}
        if not about.get(ASSAY):
            raise InputError(f"{file}:{line}: no name of a task")
        task = f"{about[ASSAY]} {about.get(SCHEME, '')}".strip()
        if task in values:
            raise InputError(f"{file}:{line}: a second row of {task}")
        if about.get(BETTER, "higher") not in ("higher", "lower"):
            raise InputError(f"{file}:{line}, column '{BETTER}': expected higher or lower")
        values[task], facts[task] = _numbers(f"{file}:{line}", cells), about
    if not values:
        raise InputError(f"{file}: no rows")
    return Table(values, facts, tuple(name for name in columns if COLUMNS.get(name) == ""))


def _check_columns(file: Path, columns: list[str]) -> None:
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(f"{file}: columns named more than once: {', '.join(map(repr, twice))}")
    if ASSAY not in map(COLUMNS.get, columns):
        near = nearest(ASSAY, columns)
        raise InputError(f"{file}: no column '{ASSAY}' (or 'task'), which names the rows.{near}")
    if all(name in COLUMNS for name in columns):
        raise InputError(f"{file}: no column of a method besides {', '.join(columns)}")


def _numbers(place: str, cells: Mapping[str, str]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for name, cell in cells.items():
        if name in COLUMNS:
            continue
        try:
            value = None if cell.lower() in ("", "nan", "n/a", "na") else float(cell)
        except ValueError:
            raise InputError(f"{place}, column '{name}': {cell!r} is not a number") from None
        if value is not None and math.isinf(value):
            raise InputError(f"{place}, column '{name}': {cell!r} is not a finite number")
        values[name] = value
    return values


def reaggregate(
    file: str | Path, name: str, better: str = "higher"
) -> tuple[list[dict[str, Any]], list[str]]:
    """A table of published values under a protocol: rows to print, best first, and notes.

    `better` holds for tasks whose table has no such column. Facts that the table lacks are those
    of ProteinGym's assays, where the protocol knows them. Notes say what the averages leave out.
    Raises InputError as `find`, `read_table` and `aggregate`, and for assays that are not known.
    """
    protocol, table = find(name), read_table(file)
    facts = {task: {BETTER: better, **about} for task, about in table.facts.items()}
    if protocol.known:
        for about in facts.values():
            if not (PROTEIN in about and TYPE in about):
                about |= _assay(file, about[ASSAY])
    rows = aggregate(protocol, table.values, facts)
    rows = with_errors(protocol, rows, table.values, facts)
    printed = [
        {
            "rank": row.rank,
            "method": row.entry,
            "average": row.average,
            **({"error": row.error} if len(protocol.levels) > 1 else {}),
            **row.groups,
            "tasks": f"{row.of - len(row.missing)} of {row.of}",
        }
        for row in rows
    ]
    return printed, [*_notes(protocol, table, facts), *_missing(rows)]


def _assay(file: str | Path, name: str) -> dict[str, str]:
    if name not in proteingym():
        raise InputError(f"{file}: no assay '{name}' in ProteinGym.{nearest(name, proteingym())}")
    return proteingym()[name]


def _notes(protocol: Protocol, table: Table, facts: Facts) -> Iterator[str]:
    if table.aside:
        yield f"columns that are no methods: {', '.join(table.aside)}"
    if protocol.known:
        assays = {about[ASSAY] for about in facts.values()}
        for ending, kind in ((False, "substitutions"), (True, "indels")):
            all_ = {name for name in proteingym() if name.endswith("_indels") == ending}
            if assays & all_:
                yield f"{len(assays & all_)} of ProteinGym's {len(all_)} assays of {kind}"
    for fact in protocol.shown:
        tasks = {
            group: sum(_fact(facts, task, fact) == group for task in table.values)
            for group in protocol.groups.get(fact, ())
        }
        if empty := [group for group, count in tasks.items() if not count]:
            left = len(tasks) - len(empty)
            yield f"no task of {', '.join(empty)}: averages are over {left} of {len(tasks)} {fact}s"
    if SCHEME in protocol.levels:
        schemes = {_fact(facts, task, SCHEME) for task in table.values}
        each = Counter(about[ASSAY] for about in facts.values())
        if some := [assay for assay, count in each.items() if count < len(schemes)]:
            yield f"not in every scheme: {_few(some)}"


def _missing(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row.missing:
            has = row.of - len(row.missing)
            yield (
                f"{row.entry}: {has} of {row.of} tasks, no rank; average over these alone; "
                f"missing {_few(row.missing)}"
            )


def _few(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
