"""Averages of published boards, against pandas and by hand."""

import re

import numpy as np
import pandas as pd
import pytest

from mgen.config import InputError
from mgen.leaderboards.protocols import (
    PROTOCOLS,
    TYPES,
    aggregate,
    proteingym,
    read_table,
    reaggregate,
    with_errors,
)

ZERO_SHOT = PROTOCOLS["proteingym_zero_shot"]


def assays(**kinds):
    """Facts of tasks named by protein and selection type, e.g. a1="P Binding"."""
    names = ("UniProt_ID", "coarse_selection_type", "cv_scheme")
    return {task: dict(zip(names, kind.split(), strict=False)) for task, kind in kinds.items()}


def table(tmp_path, text, name="table.csv"):
    file = tmp_path / name
    file.write_text(text)
    return file


# --------------------------------------------------------------------------- averages by hand


def test_assays_of_a_protein_count_once_and_types_equally():
    facts = assays(a="P Binding", b="P Binding", c="Q Binding", d="P Stability")
    values = {"a": {"x": 0.1}, "b": {"x": 0.3}, "c": {"x": 0.6}, "d": {"x": 0.9}}
    (row,) = aggregate(ZERO_SHOT, values, facts)
    assert row.groups["Binding"] == pytest.approx((0.2 + 0.6) / 2)
    assert row.average == pytest.approx((0.4 + 0.9) / 2)  # not (0.1 + 0.3 + 0.6 + 0.9) / 4
    assert [row.groups[name] for name in TYPES] == [None, row.groups["Binding"], None, None, 0.9]


def test_zero_shot_values_are_rounded_first():
    values, facts = {"a": {"x": 0.12349}, "b": {"x": 0.5}}, assays(a="P Binding", b="Q Binding")
    assert aggregate(ZERO_SHOT, values, facts)[0].average == pytest.approx((0.123 + 0.5) / 2)
    assert aggregate(PROTOCOLS["mean"], values, {})[0].average == pytest.approx(0.311745)


def test_a_missing_cell_costs_the_rank_and_is_named():
    facts = assays(a="P Binding", b="Q Binding", c="P Stability")
    values = {"a": {"x": 0.9, "y": 0.1}, "b": {"y": 0.2, "x": None}, "c": {"x": 0.9, "y": 0.3}}
    first, second = aggregate(ZERO_SHOT, values, facts)
    assert (first.entry, first.rank, first.missing) == ("y", 1, ())
    assert (second.entry, second.rank, second.missing, second.of) == ("x", None, ("b",), 3)
    assert second.average == pytest.approx(0.9)


def test_errors_rank_the_other_way_and_ties_share():
    values = {"a": {"x": 2.0, "y": 1.0, "z": 1.0}}
    rows = aggregate(PROTOCOLS["mean"], values, {"a": {"better": "lower"}})
    assert [(row.entry, row.rank) for row in rows] == [("y", 1), ("z", 1), ("x", 3)]


def test_values_of_different_directions_have_no_mean_but_ranks():
    values = {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 0.5, "y": 0.5}, "c": {"x": 0.2, "y": 0.1}}
    facts = {"a": {"better": "lower"}}
    assert [row.average for row in aggregate(PROTOCOLS["mean"], values, facts)] == [None, None]
    x, y = aggregate(PROTOCOLS["peer"], values, facts)
    assert (x.entry, x.rank, y.rank) == ("x", 1, 2)
    assert x.average == pytest.approx((1 + 1 / 1.5 + 1) / 3)
    assert y.average == pytest.approx((1 / 2 + 1 / 1.5 + 1 / 2) / 3)


def test_chromosomes_weigh_by_their_variants():
    values = {"1": {"x": 0.2}, "2": {"x": 0.8}}
    facts = {"1": {"weight": "30"}, "2": {"weight": "10"}}
    (row,) = aggregate(PROTOCOLS["traitgym"], values, facts)
    assert row.average == pytest.approx((30 * 0.2 + 10 * 0.8) / 40)
    for cell in ("many", "0", "nan"):
        with pytest.raises(InputError, match=f"2: 'weight' is '{cell}', expected a number above 0"):
            aggregate(PROTOCOLS["traitgym"], values, facts | {"2": {"weight": cell}})


@pytest.mark.parametrize("name", ["flip", "gue", "nt"])
def test_groups_are_shown_beside_a_plain_mean(name):
    values = {"a": {"x": 0.2}, "b": {"x": 0.4}, "c": {"x": 0.9}}
    facts = {"a": {"group": "one"}, "b": {"group": "one"}, "c": {"group": "two"}}
    (row,) = aggregate(PROTOCOLS[name], values, facts)
    assert row.average == pytest.approx(0.5)
    assert row.groups == pytest.approx({"one": 0.3, "two": 0.9})


def test_a_fact_that_is_needed_and_missing_is_named():
    with pytest.raises(InputError, match="a: has no 'UniProt_ID', which this protocol needs"):
        aggregate(ZERO_SHOT, {"a": {"x": 1.0}}, {})


def test_standard_error_is_that_of_drawing_proteins_within_types():
    facts = assays(a="P Binding", b="Q Binding", c="R Binding", d="P Stability", e="Q Stability")
    gaps = np.array([[0.0, 0.1, 0.4], [0.2, 0.5, np.nan]])  # by type and protein
    values = {t: {"best": 0.9, "x": 0.9 - g} for t, g in zip("abcde", gaps.flat, strict=False)}
    rows = with_errors(ZERO_SHOT, aggregate(ZERO_SHOT, values, facts), values, facts)
    assert [row.entry for row in rows] == ["best", "x"]
    assert rows[0].error == 0.0
    rng = np.random.default_rng(0)
    binding = gaps[0][rng.integers(0, 3, (200_000, 3))].mean(1)
    stability = gaps[1, :2][rng.integers(0, 2, (200_000, 2))].mean(1)
    assert rows[1].error == pytest.approx(((binding + stability) / 2).std(ddof=1), rel=0.01)


def test_standard_errors_of_schemes_are_averaged():
    protocol = PROTOCOLS["proteingym_supervised"]
    facts = assays(
        a="P Binding fold_random_5",
        b="Q Binding fold_random_5",
        c="P Binding fold_modulo_5",
        d="Q Binding fold_modulo_5",
    )
    values = {t: {"best": 0.9, "x": v} for t, v in zip("abcd", (0.8, 0.6, 0.7, 0.7), strict=True)}
    rows = with_errors(protocol, aggregate(protocol, values, facts), values, facts)
    # gaps 0.1 and 0.3: variance 0.01 over two proteins; gaps 0.2 and 0.2: none
    assert rows[1].error == pytest.approx((np.sqrt(0.01 / 2) + 0) / 2)


# --------------------------------------------------------------------------- ProteinGym


def test_facts_of_all_assays():
    facts = pd.DataFrame(proteingym()).T
    indels = facts.index.str.endswith("_indels")
    types = facts.coarse_selection_type
    # Notin et al. 2023: 217 assays of substitutions, 66 of indels
    assert types[~indels].value_counts().to_dict() == {
        "OrganismalFitness": 77,
        "Stability": 66,
        "Activity": 43,
        "Expression": 18,
        "Binding": 13,
    }
    assert types[indels].value_counts().to_dict() == {
        "Stability": 55,
        "OrganismalFitness": 6,
        "Activity": 3,
        "Expression": 2,
    }
    assert all(name.startswith(row.UniProt_ID) for name, row in facts.iterrows())


def by_pandas(file, decimals=None):
    """A second implementation: the published scripts' nesting in pandas."""
    frame = pd.read_csv(file)
    facts = pd.DataFrame(proteingym()).T
    frame = frame.join(facts, on="DMS_id")
    keys = ["UniProt_ID", "coarse_selection_type"]
    if "cv_scheme" in frame:
        keys.append("cv_scheme")
    methods = frame.columns.difference(["DMS_id", *keys])
    frame[methods] = frame[methods].round(decimals) if decimals else frame[methods]
    while keys:
        frame = frame.groupby(keys)[methods].mean().reset_index()
        keys = keys[1:]
        if keys == ["coarse_selection_type"]:
            by_type = frame.groupby(keys)[methods].mean()
    return frame[methods].mean(), by_type if "by_type" in locals() else None


def test_published_zero_shot_values_are_averaged_as_their_script_does(shared):
    file = shared / "data/dms_substitutions/proteingym_reference_zero_shot_spearman.csv"
    rows, notes = reaggregate(file, "proteingym_zero_shot")
    average, by_type = by_pandas(file, 3)
    assert {row["method"] for row in rows} == set(average.index)
    for row in rows:
        assert row["average"] == pytest.approx(average[row["method"]], abs=5e-4)
        for name in by_type.index:
            assert row[name] == pytest.approx(by_type.loc[name, row["method"]], abs=5e-4)
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows)
    # ESM2-8M by hand: Activity (GFP 0.078, UBE4B 0.399), Binding (DLG4 0.411, B2L11 0.174, SPG1
    # 0.03), OrganismalFitness (BLAT 0.399, PABP 0.476, BRCA1 0.134), Stability (A4 0.382)
    means = (0.477 / 2, 0.615 / 3, 1.009 / 3, 0.382)
    (small,) = [row for row in rows if row["method"] == "ESM2 (8M)"]
    assert small["average"] == pytest.approx(sum(means) / 4, abs=5e-4)
    assert notes == [
        "9 of ProteinGym's 217 assays of substitutions",
        "no task of Expression: averages are over 4 of 5 coarse_selection_types",
    ]


def test_published_supervised_values_are_averaged_as_their_script_does(shared):
    file = shared / "data/dms_substitutions/proteingym_reference_supervised_spearman.csv"
    rows, _ = reaggregate(file, "proteingym_supervised")
    average, _ = by_pandas(file)
    for row in rows:
        assert row["average"] == pytest.approx(average[row["method"]], abs=5e-4)
        assert row["tasks"] == "27 of 27"
    random = pd.read_csv(file).query("cv_scheme == 'fold_random_5'").set_index("DMS_id")
    by_type = random["Kermut"].groupby(lambda assay: proteingym()[assay]["coarse_selection_type"])
    assert rows[0]["method"] == "Kermut"
    assert rows[0]["fold_random_5"] == pytest.approx(by_type.mean().mean(), abs=5e-4)


def test_stated_values_of_single_assays_are_kept(shared):
    """The values that the READMEs of the two data sets state."""
    folder = shared / "data/dms_substitutions"
    values = read_table(folder / "proteingym_reference_zero_shot_spearman.csv").values
    names = ("BLAT_ECOLX_Stif", "DLG4_RAT", "PABP_YEAST", "B2L11_HUMAN")
    stated = {
        "ESM2 (8M)": (0.399, 0.411, 0.476, 0.174),
        "ESM2 (650M)": (0.731, 0.543, 0.716, 0.270),
        "AIDO Protein-RAG (16B)": (0.747, 0.536, 0.723, 0.417),
        "Site-Independent": (0.466, 0.486, 0.663, 0.688),
    }
    for method, expected in stated.items():
        found = [v[method] for name in names for t, v in values.items() if t.startswith(name)]
        assert found == list(expected)
    readme = (folder.parent / "dms_indels/README.md").read_text()
    indels = dict(re.findall(r"(PoET|ProGen2 M|ProtGPT2|HMM) (-?0\.\d+)", readme))
    values = {"A4_HUMAN_Seuma_2022_indels": {name: float(v) for name, v in indels.items()}}
    rows = aggregate(ZERO_SHOT, values, proteingym())
    assert [(row.entry, row.average) for row in rows] == [
        ("ProtGPT2", 0.552),
        ("ProGen2 M", 0.494),
        ("PoET", 0.381),
        ("HMM", -0.207),
    ]
    assert rows[0].groups["Stability"] == 0.552


# --------------------------------------------------------------------------- tables


def test_the_published_layout_brings_its_own_facts(tmp_path):
    text = (
        "DMS ID,M 1,M 2,Number of Mutants,Selection Type,UniProt ID,MSA_Neff_L_category,Taxon\n"
        "NEW_1,0.1,0.2,10,Binding,P,Low,Human\nNEW_2,0.3,,10,Binding,P,,Human\n"
    )
    rows, notes = reaggregate(table(tmp_path, text), "proteingym_zero_shot")
    assert [(row["method"], row["rank"], row["tasks"]) for row in rows] == [
        ("M 1", 1, "2 of 2"),
        ("M 2", None, "1 of 2"),
    ]
    assert rows[0]["average"] == pytest.approx(0.2)
    assert notes[0] == "columns that are no methods: Number of Mutants, MSA_Neff_L_category, Taxon"
    assert notes[-1] == "M 2: 1 of 2 tasks, no rank; average over these alone; missing NEW_2"


def test_an_assay_that_lacks_a_scheme_is_named(tmp_path):
    rows = [
        "DMS_id,cv_scheme,x",
        "BLAT_ECOLX_Stiffler_2015,fold_random_5,0.5",
        "BLAT_ECOLX_Stiffler_2015,fold_modulo_5,0.3",
        "PABP_YEAST_Melamed_2013,fold_random_5,0.4",
    ]
    printed, notes = reaggregate(table(tmp_path, "\n".join(rows)), "proteingym_supervised")
    assert "not in every scheme: PABP_YEAST_Melamed_2013" in notes
    assert "no task of fold_contiguous_5: averages are over 2 of 3 cv_schemes" in notes
    assert printed[0]["average"] == pytest.approx((0.45 + 0.3) / 2)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("task,x\na,1\n", encoding="utf-8-sig")
    assert read_table(file).values == {"a": {"x": 1.0}}


def test_a_board_of_errors_has_the_least_first(tmp_path):
    file = table(tmp_path, "task\tx\ty\none\t2\t1\n", "table.tsv")
    assert [row["method"] for row in reaggregate(file, "mean", better="lower")[0]] == ["y", "x"]
    file = table(tmp_path, "task,better,x,y\none,lower,2,1\n")
    assert [row["method"] for row in reaggregate(file, "mean")[0]] == ["y", "x"]


BLAT = "BLAT_ECOLX_Stiffler_2015"
WRONG = {
    "assay,x\na,1\n": r"table.csv: no column 'DMS_id' \(or 'task'\)",
    "DMS_di,x\na,1\n": r"Did you mean 'DMS_di'\?",
    "": "no column 'DMS_id'",
    "DMS_id,Taxon\na,b\n": "no column of a method besides DMS_id, Taxon",
    "DMS_id,x,x\na,1,2\n": "columns named more than once: 'x'",
    "DMS_id,x\n": "no rows",
    f"DMS_id,x,y\n{BLAT},1,high\n": r"table.csv:2, column 'y': 'high' is not a number",
    f"DMS_id,x\n{BLAT},inf\n": r"table.csv:2, column 'x': 'inf' is not a finite number",
    f"DMS_id,x\n{BLAT},1\n\n{BLAT},2\n": f"table.csv:4: a second row of {BLAT}",
    f"DMS_id,x\n{BLAT},1,2\n": "table.csv:2: 3 cells, the header has 2",
    "DMS_id,x\n,1\n": "table.csv:2: no name of a task",
    f"DMS_id,better,x\n{BLAT},more,1\n": "table.csv:2, column 'better': expected higher or lower",
    "DMS_id,x\nBLAT_ECOLX_Stifler_2015,1\n": f"no assay 'BLAT_.*' in ProteinGym. .*'{BLAT}'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_table_is_refused_with_its_place(tmp_path, text):
    with pytest.raises(InputError, match=WRONG[text]):
        reaggregate(table(tmp_path, text), "proteingym_zero_shot")


def test_wrong_files_and_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no CSV file"):
        read_table(tmp_path / "bytes.csv")
    with pytest.raises(InputError, match="no protocol 'proteingym_zeroshot'. Did you mean"):
        reaggregate(tmp_path / "none.csv", "proteingym_zeroshot")
    file = table(tmp_path, f"DMS_id,x\n{BLAT},1\n")
    with pytest.raises(InputError, match="has no 'cv_scheme'"):
        reaggregate(file, "proteingym_supervised")
