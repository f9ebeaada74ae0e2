"""A made-up family: an ancestor, members with changes, the HMM of their alignment; for tests of the judge."""

from pathlib import Path
from typing import Any

import numpy as np

from xtrimo.fasta import Record, write_fasta

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
LENGTH = 60


def ancestor(seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(LETTERS, LENGTH))


def members(seed: int, num: int, change: float = 0.2) -> list[str]:
    """Copies of an ancestor, each residue changed with some chance."""
    rng = np.random.default_rng((seed, 1))
    text = np.array(list(ancestor(seed)))
    return ["".join(np.where(rng.random(LENGTH) < change, rng.choice(LETTERS, LENGTH), text)) for _ in range(num)]


def build(name: str, sequences: list[str]) -> Any:
    """The HMM of sequences of one length, as they stand."""
    from pyhmmer import easel, plan7

    alphabet = easel.Alphabet.amino()
    rows = [easel.TextSequence(name=str(i), sequence=s) for i, s in enumerate(sequences)]
    alignment = easel.TextMSA(name=name, sequences=rows).digitize(alphabet)
    return plan7.Builder(alphabet).build_msa(alignment, plan7.Background(alphabet))[0]


def write_family(folder: Path) -> dict[str, Path]:
    """Reference, HMMs and thresholds of two families, kinase (two HMMs) and lyase."""
    groups = {"kinase_1": members(1, 30), "kinase_2": members(2, 12), "lyase_1": members(3, 20)}
    hmms = [build(name, own) for name, own in groups.items()]
    with (folder / "f.hmm").open("wb") as file:
        for hmm in hmms:
            hmm.write(file)
    records = []
    for name, own in groups.items():
        for number, sequence in enumerate(own):
            split = "test" if number % 4 == 0 else "valid" if number % 4 == 1 else "train"
            records.append(Record(f"{name}.{number}", sequence, f"family={name[:-2]} split={split} go=GO:1"))
    write_fasta(folder / "reference.fasta", records)
    (folder / "scores.csv").write_text("family,go,threshold_bits\nkinase,GO:1,25.0\nlyase,GO:2,20\n")
    return {name: folder / file for name, file in
            dict(reference="reference.fasta", hmm="f.hmm", thresholds="scores.csv").items()}  # fmt: skip
