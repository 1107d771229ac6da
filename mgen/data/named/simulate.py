"""Simulated data sets that ship with mgen; `python -m mgen.data.named.simulate` writes them again.

Nothing here was measured. What generated each label is stated below and is known to the table
(column `truth`), so that a model can be compared with the best that is possible:

promoters_tiny          label = truth + N(0, NOISE^2). No model can exceed the Pearson correlation
                        sqrt(var(truth) / (var(truth) + NOISE^2)), the noise ceiling.
promoter_classes_tiny   label = truth, except that a share MISLABELLED of the rows carries one of
                        the other two classes: no model can exceed an accuracy of 1 - MISLABELLED.
peptides_tiny           label ~ Bernoulli(truth): no model can exceed, on average, an accuracy of
                        mean(max(truth, 1 - truth)).
hairpins_tiny           stem-loops of RNA: `structure` in dot-bracket, `pairs` as [i, j] from 0
paired_sites_tiny       DNA in which the positions of PAIRED_SITES are complementary, always
gc_content_tiny         label = share of G and C
modifications_tiny      three 0/1 labels: whether a motif occurs
paired_modalities_tiny  label = truth + N(0, 0.3^2), of a gene's promoter and its protein, either of
                        which may be missing
dms_tiny                label = truth + N(0, 0.3^2), of mutants of WILD_TYPE
cells_tiny              cells of a tissue: simulated_cells.py

All sequences are drawn independently, so that a random split is an honest one.
"""

import gzip
import json
from pathlib import Path

import numpy as np

BUNDLED = Path(__file__).parent / "bundled"
NOISE = 0.5  # standard deviation of the label noise of promoters_tiny
MISLABELLED = 0.03
COMPLEMENT = str.maketrans("ACGT", "TGCA")
WILD_TYPE = "MKLAEFVRKLGDWIKQHPNSVTAYCE"  # of dms_tiny, made up
HYDROPATHY = (1.8, -4.5, -3.5, -3.5, 2.5, -3.5, -3.5, -0.4, -3.2, 4.5)  # of A R N D C Q E G H I
HYDROPATHY += (3.8, -3.9, 1.9, 2.8, -1.6, -0.8, -0.7, -0.9, -1.3, 4.2)  # of L K M F P S T W Y V
ACTIVATOR, REPRESSOR = "GGGCGG", "AAGCTT"

# Upstream and downstream element of three E. coli sigma factors and the spacer between them (bp),
# and the share of A and T around them (made up).
SIGMA = {
    "housekeeping": ("TTGACA", 17, "TATAAT", 0.6),
    "heat_shock": ("CTTGAA", 14, "CCCCAT", 0.5),
    "nitrogen": ("TGGCAC", 5, "TTGCTT", 0.4),
}

# Pairs of positions, counted from 0, that are complementary in paired_sites_tiny.
PAIRED_SITES = ((2, 9), (4, 15), (7, 21), (11, 18), (13, 22))
MOTIFS = ("GGACU", "UGUAA", "CAGCA")  # of modifications_tiny

Row = tuple[str, ...]  # sequence, then what HEADERS names


def promoters(rows: int = 1250, seed: int = 1) -> list[Row]:
    """DNA of about 80-120 bp with a log strength.

    truth = 15 (AT - 0.5)                        AT: share of A and T in the whole sequence
          + 2 exp(-(spacer - 17)^2 / 8)          if it has a core promoter TTGACA-spacer-TATAAT
          + 0.7 per activator site GGGCGG, which works alike on either strand (CCGCCC)
          - 0.7 per repressor site AAGCTT, its own reverse complement,
    where the sites are 0-2 each, upstream of the core, and the core is on the forward strand.
    """
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        at = rng.uniform(0.35, 0.65)
        activators, repressors = rng.integers(0, 3, size=2)
        strands = [
            ACTIVATOR if rng.random() < 0.5 else _other_strand(ACTIVATOR) for _ in range(activators)
        ]
        sites = rng.permutation(strands + [REPRESSOR] * repressors)
        pieces = [_random_dna(rng, at, rng.integers(1, 5))]
        for site in sites:
            pieces += [str(site), _random_dna(rng, at, rng.integers(3, 6))]
        core = 0.0
        if rng.random() < 0.6:
            spacer = int(rng.integers(14, 21))
            pieces += ["TTGACA", _random_dna(rng, at, spacer), "TATAAT"]
            core = 2.0 * np.exp(-((spacer - 17) ** 2) / 8)
        length = int(rng.integers(80, 121))
        sequence = "".join(pieces)
        sequence += _random_dna(rng, at, length - len(sequence))
        share = (sequence.count("A") + sequence.count("T")) / len(sequence)
        truth = 15 * (share - 0.5) + core + 0.7 * (activators - repressors)
        label = truth + rng.normal(0, NOISE)
        table.append((sequence, f"{label:.2f}", f"{truth:.2f}"))
    return table


def promoter_classes(rows: int = 900, seed: int = 2) -> list[Row]:
    """DNA of 60-90 bp with the name of the sigma factor whose two elements it carries.

    The spacer varies by one bp, each base of an element is replaced with probability 0.05, and the
    promoter lies on either strand with equal probability. The composition around the elements
    differs between the factors too: it is the easier, weaker half of the signal.
    """
    rng = np.random.default_rng(seed)
    names = list(SIGMA)
    table = []
    for _ in range(rows):
        truth = int(rng.integers(len(names)))
        upstream, spacer, downstream, at = SIGMA[names[truth]]
        spacer += int(rng.integers(-1, 2))
        core = _mutated(rng, upstream) + _random_dna(rng, at, spacer) + _mutated(rng, downstream)
        left = int(rng.integers(10, 25))
        length = int(rng.integers(60, 91))
        sequence = _random_dna(rng, at, left) + core
        sequence += _random_dna(rng, at, length - len(sequence))
        if rng.random() < 0.5:
            sequence = _other_strand(sequence)
        label = truth
        if rng.random() < MISLABELLED:
            label = (truth + int(rng.integers(1, len(names)))) % len(names)
        table.append((sequence, names[label], names[truth]))
    return table


def peptides(rows: int = 900, seed: int = 3) -> list[Row]:
    """Peptides of 12-30 residues, active (1) or not (0), as antimicrobial peptides roughly are.

    truth = P(active) = 1 / (1 + exp(-1.2 (charge - 2) - 8 (hydrophobic - 0.4))), charge: K + R - D
    - E; hydrophobic: share of A, F, I, L, M, V, W. Residues are drawn from a mixture of two
    compositions, one rich in K, R and L, the other uniform.
    """
    rng = np.random.default_rng(seed)
    residues = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    rich = np.where(np.isin(residues, list("KRL")), 4.0, 1.0)
    table = []
    for _ in range(rows):
        weights = rich if rng.random() < 0.5 else np.ones(len(residues))
        drawn = rng.choice(residues, size=rng.integers(12, 31), p=weights / weights.sum())
        charge = int(np.isin(drawn, list("KR")).sum() - np.isin(drawn, list("DE")).sum())
        hydrophobic = float(np.isin(drawn, list("AFILMVW")).mean())
        truth = 1 / (1 + np.exp(-1.2 * (charge - 2) - 8 * (hydrophobic - 0.4)))
        label = int(rng.random() < truth)
        table.append(("".join(drawn), str(label), f"{truth:.3f}"))
    return table


def hairpins(rows: int = 600, seed: int = 4) -> list[Row]:
    """RNA of 24-48 nt with one or two stem-loops: dot-bracket structure and its pairs.

    A stem has 4-6 pairs, A-U, C-G or (one in five) G-U, around a loop of 4-6 nt. What is unpaired
    is drawn from a composition rich in A, what is paired is not: the easier half of the signal.
    """
    rng = np.random.default_rng(seed)
    partners = {"A": "U", "U": "A", "C": "G", "G": "C"}
    table = []
    for _ in range(rows):
        sequence, structure = _unpaired(rng, int(rng.integers(2, 6))), ""
        for _ in range(int(rng.integers(1, 3))):
            structure += "." * (len(sequence) - len(structure))
            pairs, loop = int(rng.integers(4, 7)), int(rng.integers(4, 7))
            left = "".join(rng.choice(list("ACGU"), size=pairs))
            right = [
                "U" if base == "G" and rng.random() < 0.2 else partners[base] for base in left[::-1]
            ]
            sequence += left + _unpaired(rng, loop) + "".join(right)
            structure += "(" * pairs + "." * loop + ")" * pairs
            sequence += _unpaired(rng, int(rng.integers(2, 6)))
        structure += "." * (len(sequence) - len(structure))
        table.append((sequence, structure, json.dumps(_pairs(structure))))
    return table


def paired_sites(rows: int = 800, seed: int = 5) -> list[Row]:
    """DNA of 24 bp, all letters alike, except that each pair of PAIRED_SITES is complementary."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        letters = list(_random_dna(rng, 0.5, 24))
        for i, j in PAIRED_SITES:
            letters[j] = letters[i].translate(COMPLEMENT)
        table.append(("".join(letters),))
    return table


def gc_content(rows: int = 1000, seed: int = 6) -> list[Row]:
    """DNA of 24 bp and its share of G and C, all shares alike."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        strong = int(rng.integers(0, 25))
        letters = [*rng.choice(list("GC"), size=strong), *rng.choice(list("AT"), size=24 - strong)]
        table.append(("".join(rng.permutation(letters)), f"{strong / 24:.4f}"))
    return table


def modifications(rows: int = 600, seed: int = 7) -> list[Row]:
    """RNA of 30 nt and, for each of MOTIFS, whether it occurs; each does in about 0.4 of rows."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(rows):
        letters = list(rng.choice(list("ACGU"), size=30))
        for place, motif in zip((0, 10, 20), MOTIFS, strict=True):
            if rng.random() < 0.4:
                start = place + int(rng.integers(0, 6))
                letters[start : start + 5] = motif
        sequence = "".join(letters)
        table.append((sequence, *(str(int(motif in sequence)) for motif in MOTIFS)))
    return table


def paired_modalities(rows: int = 800, seed: int = 8) -> list[Row]:
    """A promoter of 30-50 bp and a protein of 15-30 residues; one row in six lacks one of them.

    truth = 6 (AT - 0.5) + 8 charge, where AT is the share of A and T and charge is (K + R - D - E)
    per residue; what a row lacks adds nothing.
    """
    rng = np.random.default_rng(seed)
    residues = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    table = []
    for _ in range(rows):
        promoter = _random_dna(rng, rng.uniform(0.2, 0.8), rng.integers(30, 51))
        weights = np.where(np.isin(residues, list(rng.choice(["KR", "DE", "AG"]))), 4.0, 1.0)
        drawn = rng.choice(residues, size=rng.integers(15, 31), p=weights / weights.sum())
        charge = (np.isin(drawn, list("KR")).sum() - np.isin(drawn, list("DE")).sum()) / len(drawn)
        effects = [6 * (sum(map(promoter.count, "AT")) / len(promoter) - 0.5), 8 * charge]
        cells = [promoter, "".join(drawn)]
        if (lacking := int(rng.integers(12))) < 2:
            cells[lacking], effects[lacking] = "", 0.0
        truth = sum(effects)
        table.append((*cells, f"{truth + rng.normal(0, 0.3):.2f}", f"{truth:.2f}"))
    return table


def mutants(singles: int = 350, doubles: int = 300, seed: int = 9) -> list[Row]:
    """Peptides with one or two substitutions in WILD_TYPE, and which these are (from 1).

    truth = -sum of burial x |change of hydropathy| / 4 over the mutated sites, where burial is 1 at
    three of seven residues, as on one face of a helix, and 0.2 elsewhere; hydropathy after
    Kyte & Doolittle (1982).
    """
    rng = np.random.default_rng(seed)
    hydropathy = dict(zip("ARNDCQEGHILKMFPSTWYV", HYDROPATHY, strict=True))
    every = [(i, new) for i, old in enumerate(WILD_TYPE) for new in hydropathy if new != old]
    chosen = [[every[i]] for i in np.sort(rng.choice(len(every), size=singles, replace=False))]
    for _ in range(doubles):
        first, second = np.sort(rng.choice(len(WILD_TYPE), size=2, replace=False))
        pair = [[c for c in every if c[0] == site] for site in (first, second)]
        chosen.append([c[rng.integers(len(c))] for c in pair])
    table = []
    for edits in chosen:
        letters, truth = list(WILD_TYPE), 0.0
        for site, new in edits:
            burial = 1.0 if site % 7 in (0, 3, 4) else 0.2
            truth -= burial * abs(hydropathy[new] - hydropathy[WILD_TYPE[site]]) / 4
            letters[site] = new
        names = ":".join(f"{WILD_TYPE[site]}{site + 1}{new}" for site, new in edits)
        label = truth + rng.normal(0, 0.3)
        table.append(("".join(letters), names, f"{label:.2f}", f"{truth:.2f}"))
    return table


SETS = {
    "promoters_tiny": promoters,
    "promoter_classes_tiny": promoter_classes,
    "peptides_tiny": peptides,
    "hairpins_tiny": hairpins,
    "paired_sites_tiny": paired_sites,
    "gc_content_tiny": gc_content,
    "modifications_tiny": modifications,
    "paired_modalities_tiny": paired_modalities,
    "dms_tiny": mutants,
}
HEADERS = {  # columns after id and sequence
    "hairpins_tiny": ("structure", "pairs"),
    "paired_sites_tiny": (),
    "gc_content_tiny": ("label",),
    "modifications_tiny": ("motif_a", "motif_b", "motif_c"),
    "paired_modalities_tiny": ("protein", "label", "truth"),
    "dms_tiny": ("mutant", "label", "truth"),
}


def as_tsv(name: str) -> str:
    """The simulated set `name` as the text of its file: id, sequence and its labels."""
    lines = ["\t".join(["id", "sequence", *HEADERS.get(name, ("label", "truth"))])]
    lines += [f"{name[:2]}{i}\t" + "\t".join(row) for i, row in enumerate(SETS[name](), start=1)]
    return "\n".join(lines) + "\n"


def main(folder: Path = BUNDLED) -> None:
    """Write every set; no time goes into the gzip header, so equal data are equal files."""
    for name in SETS:
        packed = gzip.compress(as_tsv(name).encode(), compresslevel=9, mtime=0)
        (folder / f"{name}.tsv.gz").write_bytes(packed)
        print(f"{name}.tsv.gz: {len(packed):,} bytes")
    from mgen.data.named import simulated_cells

    simulated_cells.write(folder / "cells_tiny.h5ad")


def _random_dna(rng: np.random.Generator, at: float, length: int) -> str:
    shares = [at / 2, at / 2, (1 - at) / 2, (1 - at) / 2]
    return "".join(np.array(list("ATCG"))[rng.choice(4, size=length, p=shares)])


def _unpaired(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGU"), size=length, p=[0.55, 0.15, 0.15, 0.15]))


def _pairs(structure: str) -> list[list[int]]:
    """Pairs of a dot-bracket text, from 0, by their first position."""
    opened, pairs = [], []
    for position, letter in enumerate(structure):
        if letter == "(":
            opened.append(position)
        elif letter == ")":
            pairs.append([opened.pop(), position])
    return sorted(pairs)


def _other_strand(sequence: str) -> str:
    """The reverse complement."""
    return sequence.translate(COMPLEMENT)[::-1]


def _mutated(rng: np.random.Generator, element: str) -> str:
    kept = rng.random(len(element)) >= 0.05
    return "".join(
        a if k else str(rng.choice(list("ACGT"))) for a, k in zip(element, kept, strict=True)
    )


if __name__ == "__main__":
    main()
