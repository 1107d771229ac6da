"""Run the commands on the pages of README.md and docs/ whose output is shown there; renew it.

    python docs/refresh.py [PAGE ...]
    python docs/refresh.py --examples FOLDER      # the example files alone, to try the commands

Such a command is a bash block followed by a line `<!-- output -->` (or `<!-- demo -->`) and a text
block. The commands of a page run one after the other in one temporary folder that holds the example
files of `write_examples`. Only output is replaced, never a command.
"""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = re.compile(
    r"(?P<head>```bash\n(?P<commands>[^`]*)```\n\n<!-- (?:output|demo) -->\n```text\n).*?(?=```)",
    re.S,
)

UNFREEZE = "0: [adapter.*]\n1: [backbone.encoder.encoder.layer.1.*]\n2: [backbone.*]\n"
SWEEP = """recipe: sequence_regression
flags: --data promoters.tsv --data.y-cols strength --train.epochs 2
search: grid
metric: spearman
vary:
  adapter: [mean_pool_mlp, conv]
  train.lr: [1e-3, 1e-2]
"""
BOARD = """title: Two heads
seeds: 2
flags: --train.epochs 3 --train.workers 0       # of every run that a task's own recipe trains
tasks: [promoters_tiny, peptides_tiny]
entries:
  mean:
    flags: --adapter mean_pool_mlp
    by: {dna: --backbone aido_dna_debug, protein: --backbone aido_protein_debug}
  maximum:
    flags: --adapter max_pool_mlp
    by: {dna: --backbone aido_dna_debug, protein: --backbone aido_protein_debug}
"""
TABLE = """DMS_id,one,two
BLAT_ECOLX_Stiffler_2015,0.71,0.68
DLG4_RAT_McLaughlin_2012,0.52,0.55
PABP_YEAST_Melamed_2013,0.66,
"""


def pages() -> list[Path]:
    """README.md and every page of docs/ that is written by hand."""
    return [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if _by_hand(p))]


def commands(block: str) -> list[str]:
    """The command lines of a bash block: comments dropped, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def argv(command: str) -> list[str]:
    """What to execute for a command as the pages write it, from any folder."""
    if command == "make demo":
        makefile = (ROOT / "Makefile").read_text()
        command = re.search(r"^demo:.*\n\t\$\(BIN\)/(.+)", makefile, re.MULTILINE)[1]
    program, *words = shlex.split(command, comments=True)
    if program == "make":  # make RECIPE ARGS="..." is python recipes/RECIPE.py ...
        flags = [flag for word in words[1:] for flag in shlex.split(word.removeprefix("ARGS="))]
        return [sys.executable, str(ROOT / "recipes" / f"{words[0]}.py"), *flags]
    if program == "mgen":
        return [sys.executable, "-m", "mgen", *_located(words)]
    if program == "accelerate":
        return [sys.executable, "-m", "accelerate.commands.accelerate_cli", *_located(words)]
    if program == "python":
        local = [
            str(ROOT / w) if w.startswith("recipes/") and w.endswith("py") else w for w in words
        ]
        return [sys.executable, *local]
    return [program, *words]


def write_examples(folder: Path) -> None:
    """Example files that the pages name, cut from the simulated tables that come with mgen."""
    bundled = ROOT / "mgen" / "data" / "named" / "bundled"
    shutil.copyfile(bundled / "cells_tiny.h5ad", folder / "cells.h5ad")
    promoters = _bundled("promoters_tiny")
    _tsv(folder / "promoters.tsv", ["id", "sequence", "strength"], promoters[:400])
    _fasta(folder / "new.fasta", promoters[400:420])
    peptides = [
        [*row[:2], "active" if row[2] == "1" else "inactive"] for row in _bundled("peptides_tiny")
    ]
    _tsv(folder / "peptides.tsv", ["id", "sequence", "class"], peptides)
    _fasta(folder / "sequences.fasta", peptides[300:310])
    rnas = _bundled("hairpins_tiny")
    _tsv(folder / "rnas.tsv", ["id", "sequence", "structure", "pairs"], rnas)
    _fasta(folder / "new_rnas.fasta", rnas[400:404])
    mask = "[MASK]"
    _tsv(
        folder / "templates.tsv",
        ["id", "sequence"],
        [["new", 24 * mask], ["loop", f"GGGC{4 * mask}GCCC"]],
    )
    asked = [[f"gc{share}", 24 * mask, str(share)] for share in (0.1, 0.5, 0.9)]
    _tsv(folder / "asked.tsv", ["id", "sequence", "label"], asked)
    _tsv(folder / "sites.tsv", ["id", "sequence"], _bundled("paired_sites_tiny")[:8])
    mutants = [[row[2], row[3]] for row in _bundled("dms_tiny")]
    _tsv(folder / "mutants.tsv", ["mutant", "fitness"], mutants)
    _fasta(folder / "wild_type.fasta", [["peptide", "MKLAEFVRKLGDWIKQHPNSVTAYCE"]])
    _fasta(folder / "genome.fasta", [["chr1", promoters[0][1]]])
    sites = range(len(promoters[0][1]) - 6)
    peaks = [f"chr1\t{i}\t{i + 6}\tpeak{i}\t{i % 7}\t{'+-'[i % 2]}\n" for i in sites]
    (folder / "peaks.bed").write_text("".join(peaks))
    first = promoters[0][1][9]
    others = ",".join(base for base in "ACGT" if base != first)
    records = [
        f"chr1\t10\trs1\t{first}\t{others}\t.\t.\t.",
        f"chr1\t10\t.\t{first}\t<DEL>\t.\t.\t.",
    ]
    (folder / "new.vcf").write_text("##fileformat=VCFv4.2\n" + "\n".join(records) + "\n")
    (folder / "unfreeze.yaml").write_text(UNFREEZE)
    (folder / "sweep.yaml").write_text(SWEEP)
    (folder / "board.yaml").write_text(BOARD)
    (folder / "table.csv").write_text(TABLE)


def refresh(page: Path) -> None:
    """Rewrite the outputs of a page."""
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder))
        text = page.read_text()
        page.write_text(
            SHOWN.sub(lambda shown: shown["head"] + _output(shown["commands"], folder), text)
        )


def _output(block: str, folder: str) -> str:
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    printed = []
    for command in commands(block):
        done = subprocess.run(
            argv(command),
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            check=True,
        )
        printed += [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join(printed).strip("\n") + "\n"


def _located(words: list[str]) -> list[str]:
    """Files of recipes/ from any folder."""
    return [str(ROOT / word) if word.startswith("recipes/") else word for word in words]


def _by_hand(page: Path) -> bool:
    return page.name != "results.md" and page.parent.name != "boards"


def _bundled(name: str) -> list[list[str]]:
    with gzip.open(ROOT / "mgen" / "data" / "named" / "bundled" / f"{name}.tsv.gz", "rt") as file:
        return [line.rstrip("\n").split("\t") for line in file][1:]


def _tsv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    lines = ["\t".join(row[: len(columns)]) for row in [columns, *rows]]
    path.write_text("\n".join(lines) + "\n")


def _fasta(path: Path, rows: list[list[str]]) -> None:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence, *_ in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--examples"]:
        write_examples(Path(sys.argv[2]))
        sys.exit()
    for page in [Path(word) for word in sys.argv[1:]] or pages():
        print(page.resolve().relative_to(ROOT), flush=True)
        refresh(page)
