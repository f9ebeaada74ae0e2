"""The program mmseqs2, where it is installed: searches and clusters of proteins that are handed over as strings.

It is called as a program, never linked or copied: its licence is the GPL. Proteins get numbers for names, which no
program can misread.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from xtrimo.errors import XtrimoError
from xtrimo.fasta import Record, write_fasta


class _NoWordError(XtrimoError):
    """No protein has words to look for: all are short, or say the same again and again."""


def is_installed() -> bool:
    """Whether there is a program mmseqs on the PATH."""
    return shutil.which("mmseqs") is not None


def find_similar(
    queries: Iterable[str], targets: Iterable[str], columns: Sequence[str], options: Sequence[str] = ()
) -> list[tuple[int, int, list[str]]]:
    """Every hit of `mmseqs easy-search`: number of the query, number of the target, both from 0, and `columns` of it.

    Proteins in which the program finds no words, such as those under 12 residues, have no hits.

    Args:
        columns: as its --format-output names them, such as fident, nident, qcov.
        options: further flags and their values.

    Raises:
        XtrimoError: without the program, or where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, hits = (Path(folder) / name for name in ("ours.fasta", "theirs.fasta", "hits.tsv"))
        _write(ours, queries)
        _write(theirs, targets)
        wanted = ",".join(("query", "target", *columns))
        try:
            _run("easy-search", ours, theirs, hits, Path(folder) / "work", "--format-output", wanted, *options)
        except _NoWordError:
            return []
        rows = [line.split("\t") for line in hits.read_text().splitlines()]
    return [(int(query), int(target), rest) for query, target, *rest in rows]


def cluster(sequences: Sequence[str], identity: float, coverage: float) -> Int64[np.ndarray, "protein"]:
    """Of each protein the number, from 0, of the one that stands for its cluster, by `mmseqs easy-cluster`.

    Copies are of one cluster. A protein in which the program finds no words (under 12 residues, or the same word again
    and again, such as poly-L) is by itself.

    Args:
        identity: share of the aligned residues that members of a cluster have in common with the one it stands for.
        coverage: share of either protein that the alignment covers.

    Raises:
        XtrimoError: without the program, or where it fails.
    """
    first: dict[str, int] = {}
    for number, sequence in enumerate(sequences):
        first.setdefault(sequence, number)
    with tempfile.TemporaryDirectory() as folder:
        ours, found = Path(folder) / "ours.fasta", Path(folder) / "found"
        _write(ours, first)
        limits = ("--min-seq-id", str(identity), "-c", str(coverage), "--cov-mode", "0", "--single-step-clustering")
        try:
            _run("easy-cluster", ours, found, Path(folder) / "work", *limits, "--mask", "0")
            lines = Path(f"{found}_cluster.tsv").read_text().splitlines()
        except _NoWordError:
            lines = []
    numbers = list(first.values())
    stands = {number: number for number in numbers}
    for line in lines:
        representative, member = map(int, line.split("\t"))
        stands[numbers[member]] = numbers[representative]
    return np.array([stands[first[sequence]] for sequence in sequences], dtype=np.int64)


def _write(path: Path, sequences: Iterable[str]) -> None:
    write_fasta(path, (Record(str(number), sequence) for number, sequence in enumerate(sequences)))


def _run(*command: str | Path) -> None:
    program = shutil.which("mmseqs")
    if program is None:
        raise XtrimoError("mmseqs2 is not installed (no program mmseqs on the PATH); install it, or do without")
    done = subprocess.run([program, *map(str, command), "-v", "1"], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip()[-500:]
        if "No k-mer could be extracted" in done.stderr + done.stdout:
            raise _NoWordError(f"mmseqs found no words: {last}")
        raise XtrimoError(f"mmseqs failed with status {done.returncode}: {last}")
