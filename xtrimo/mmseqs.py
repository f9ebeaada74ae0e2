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


def is_installed() -> bool:
    """Whether there is a program mmseqs on the PATH."""
    return shutil.which("mmseqs") is not None


def find_similar(
    queries: Iterable[str], targets: Iterable[str], columns: Sequence[str], options: Sequence[str] = ()
) -> list[tuple[int, int, list[str]]]:
    """Every hit of `mmseqs easy-search`: number of the query, number of the target, both from 0, and `columns` of it.

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
        _run("easy-search", ours, theirs, hits, Path(folder) / "work", "--format-output", wanted, *options)
        rows = [line.split("\t") for line in hits.read_text().splitlines()]
    return [(int(query), int(target), rest) for query, target, *rest in rows]


def cluster(sequences: Sequence[str], identity: float, coverage: float) -> Int64[np.ndarray, "protein"]:
    """Of each protein the number, from 0, of the one that stands for its cluster, by `mmseqs easy-cluster`.

    Args:
        identity: share of the aligned residues that members of a cluster have in common with the one it stands for.
        coverage: share of either protein that the alignment covers.

    Raises:
        XtrimoError: without the program, or where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        ours, found = Path(folder) / "ours.fasta", Path(folder) / "found"
        _write(ours, sequences)
        limits = ("--min-seq-id", str(identity), "-c", str(coverage), "--cov-mode", "0", "--single-step-clustering")
        _run("easy-cluster", ours, found, Path(folder) / "work", *limits)
        lines = Path(f"{found}_cluster.tsv").read_text().splitlines()
    chosen = np.arange(len(sequences), dtype=np.int64)
    for line in lines:
        representative, member = map(int, line.split("\t"))
        chosen[member] = representative
    return chosen


def _write(path: Path, sequences: Iterable[str]) -> None:
    write_fasta(path, (Record(str(number), sequence) for number, sequence in enumerate(sequences)))


def _run(*command: str | Path) -> None:
    program = shutil.which("mmseqs")
    if program is None:
        raise XtrimoError("mmseqs2 is not installed (no program mmseqs on the PATH); install it, or do without")
    done = subprocess.run([program, *map(str, command), "-v", "1"], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip()[-500:]
        raise XtrimoError(f"mmseqs failed with status {done.returncode}: {last}")
