"""What of the test proteins has been seen: copies and near copies in other splits, or in a pretraining corpus.

A near copy has at least half of its aligned residues identical, over at least half of either protein: the rule of
30 to 50 % clusters, by which splits are made. mmseqs2 looks for them where it is installed. Otherwise a k-mer sketch
does: pairs that share enough 5-mers on nearly the same diagonal are aligned (local, BLOSUM62) and measured.

The sketch misses some. Where each of L residues stays with chance p, of L - 4 5-mers p^5 stay: 6 of 200 at p = 0.5, of
which 3 are asked, more from 400 residues on. Of made-up pairs with changes at random places it finds

    residues        30      60     100     200     400
    identity 90 %  100 %   100 %   100 %   100 %   100 %
             70 %   70 %    99 %   100 %   100 %   100 %
             60 %   24 %    64 %    87 %   100 %   100 %
             50 %    2 %    28 %    41 %    89 %    98 %

where mmseqs2 finds 93 % and more from 60 residues on. Real families, whose changes lie together, are easier to find;
of peptides it finds close copies alone.
"""

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from heads.rows import Dataset, Row
from xtrimo.errors import DataError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.tokens import RESIDUES

logger = logging.getLogger(__name__)

IDENTITY, COVERAGE = 0.5, 0.5
K = 5
FEWEST_SHARED, SHARED_RATIO = 3, 0.0075
"""5-mers on one diagonal that make a pair worth aligning: at least so many, and of the shorter protein's so large a
share, which is half of what 50 % identity over half of it leaves."""
DIAGONAL_DRIFT = 8
"""Residues that a diagonal may shift between neighbouring shared 5-mers, by insertions and deletions."""
SURE_RATIO = 0.5
"""Of the 5-mers of one protein that the other has: then half its residues are identical, and nothing is aligned."""
NUM_EXAMPLES = 5

Method = Literal["mmseqs2", "5-mer sketch"]


class Near(NamedTuple):
    """A protein and the one it is a near copy of."""

    name: str
    other: str
    identity: float
    """Share of the aligned residues; or of the common 5-mers, which is less, where those told enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What of one set of proteins is in another."""

    of: str
    """The split looked at."""
    within: str
    """Where: other splits, or the corpus."""
    num_proteins: int
    """Different ones in the split."""
    num_copies: int
    """Of them, those that are there letter by letter; of two inputs both."""
    num_near: int
    """Of the others, those with a near copy there; of two inputs the first decides."""
    examples: tuple[Near, ...]

    def __str__(self) -> str:
        found = f"{self.num_copies:,} copies and {self.num_near:,} near copies"
        return f"{found} of {self.num_proteins:,} {self.of} in {self.within}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaks:
    """All overlaps of a data set."""

    method: Method
    overlaps: tuple[Overlap, ...]

    def __str__(self) -> str:
        return f"leaks ({self.method}): {'; '.join(map(str, self.overlaps))}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def find_leaks(dataset: Dataset, *, corpus: str | Path | None = None, method: Method | None = None) -> Leaks:
    """What of test is in train or valid, of valid in train, and of test in a corpus.

    Args:
        corpus: FASTA file that the model was pretrained on.
        method: by default mmseqs2 where it is installed.

    Raises:
        DataError: mmseqs2 that is not installed, or fails.
        FastaError: a corpus that cannot be read.
    """
    method = method or ("mmseqs2" if shutil.which("mmseqs") else "5-mer sketch")
    train, valid, test = dataset.train, dataset.valid, dataset.test
    overlaps = []
    for of, rows, within, others in (("test", test, "train or valid", train + valid), ("valid", valid, "train", train)):
        if rows and others:
            records = (Record(row.name, row.sequence) for row in others)
            copies = {(row.sequence, row.second) for row in others}
            overlaps.append(_overlap(rows, records, method, of=of, within=within, copies=copies))
    if corpus and test:
        overlaps.append(_overlap(test, read_fasta(corpus), method, of="test", within=Path(corpus).name))
    return Leaks(method=method, overlaps=tuple(overlaps))


def _overlap(
    rows: Iterable[Row],
    others: Iterable[Record],
    method: Method,
    *,
    of: str,
    within: str,
    copies: set[tuple[str, str]] | None = None,
) -> Overlap:
    """Of `rows` in `others`, which stream; without `copies` one is a protein found among them, whatever its second."""
    distinct = {(row.sequence, row.second if copies else ""): row.name for row in rows}
    wanted = {sequence for sequence, _ in distinct}
    copies = copies or set()
    search = _by_mmseqs if method == "mmseqs2" else _by_sketch
    left = {sequence: name for (sequence, second), name in distinct.items() if (sequence, second) not in copies}
    near = search(left, _noting(others, wanted, copies))
    num_near = sum(pair not in copies and pair[0] in near for pair in distinct)
    examples = sorted(near.values(), key=lambda pair: -pair.identity)
    return Overlap(
        of=of, within=within, num_proteins=len(distinct), num_copies=len(distinct.keys() & copies), num_near=num_near,
        examples=tuple(examples[:NUM_EXAMPLES]),
    )  # fmt: skip


def _noting(others: Iterable[Record], wanted: set[str], copies: set[tuple[str, str]]) -> Iterator[Record]:
    """The same records; those among `wanted` are added to `copies`."""
    for record in others:
        if record.sequence in wanted:
            copies.add((record.sequence, ""))
        yield record


def _by_sketch(names: Mapping[str, str], others: Iterable[Record]) -> dict[str, Near]:
    """Sequence -> its near copy, for each of `names` (sequence -> name) that has one."""
    found: dict[str, Near] = {}
    index = _Index(list(names))
    for other in others:
        for i in index.candidates(other.sequence):
            query = index.sequences[i]
            identity = _common(query, other.sequence) or _near_identity(query, other.sequence)
            if identity:
                found[query] = Near(names[query], other.name, round(identity, 3))
                index.drop(i)
        # Variants of one protein share nearly all: what is found must not be met again at each of the others.
        if index.num_dropped > len(index.sequences) / 2:
            index = _Index([s for i, s in enumerate(index.sequences) if not index.dropped[i]])
    return found


class _Index:
    """5-mers of many proteins: which have which, and where."""

    def __init__(self, sequences: list[str]) -> None:
        self.sequences = sequences
        self.dropped = np.zeros(len(sequences), dtype=bool)
        self.num_dropped = 0
        words = [_words(sequence) for sequence in sequences]
        self.num_words = np.array([len(own) for own in words], dtype=np.int64)
        codes = np.concatenate(words) if words else np.zeros(0, dtype=np.int64)
        order = np.argsort(codes, kind="stable")
        self.codes = codes[order]
        self.owners = np.repeat(np.arange(len(words)), self.num_words)[order]
        starts = np.cumsum(self.num_words) - self.num_words
        self.places = (np.arange(len(codes)) - np.repeat(starts, self.num_words))[order]

    def drop(self, i: int) -> None:
        """No longer look for protein i."""
        self.dropped[i] = True
        self.num_dropped += 1

    def candidates(self, sequence: str) -> list[int]:
        """Proteins that share enough 5-mers with `sequence` on one diagonal."""
        words = _words(sequence)
        low = np.searchsorted(self.codes, words, "left")
        counts = np.searchsorted(self.codes, words, "right") - low
        total = int(counts.sum())
        if not total:
            return []
        entries = np.repeat(low - (np.cumsum(counts) - counts), counts) + np.arange(total)
        owners, diagonals = self.owners[entries], self.places[entries] - np.repeat(np.arange(len(words)), counts)
        kept = ~self.dropped[owners]
        owners, diagonals = owners[kept], diagonals[kept]
        order = np.lexsort((diagonals, owners))
        owners, diagonals = owners[order], diagonals[order]
        # a run: one owner, each diagonal at most DIAGONAL_DRIFT from the one before
        starts = np.flatnonzero(
            np.append(True, (np.diff(owners) != 0) | (np.diff(diagonals) > DIAGONAL_DRIFT))
        ) if len(owners) else np.zeros(0, dtype=np.int64)  # fmt: skip
        sizes = np.diff(np.append(starts, len(owners)))
        best = owners[starts]
        shorter = np.minimum(self.num_words[best], len(words))
        enough = sizes >= np.maximum(np.minimum(FEWEST_SHARED, shorter), np.ceil(SHARED_RATIO * shorter))
        return np.unique(best[enough]).tolist()


_LETTERS = np.zeros(256, dtype=np.int64)
for _number, _letter in enumerate(RESIDUES):
    _LETTERS[ord(_letter)] = _number


def _words(sequence: str) -> Int64[np.ndarray, "word"]:
    """A number for each 5-mer."""
    letters = _LETTERS[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(letters) < K:
        return np.zeros(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, K)
    return windows @ (len(RESIDUES) ** np.arange(K))


def _common(one: str, other: str) -> float:
    """Share of the different 5-mers of the one with fewer that the other has, or 0 where it does not tell enough."""
    words = np.unique(_words(one)), np.unique(_words(other))
    share = len(np.intersect1d(*words, assume_unique=True)) / max(1, min(map(len, words)))
    return share if share >= SURE_RATIO else 0.0


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    aligner = PairwiseAligner()  # type: ignore[no-untyped-call]
    aligner.mode = "local"
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    return aligner


def _near_identity(one: str, other: str) -> float:
    """Share of identical residues of the best local alignment, or 0 where it is no near copy."""
    one, other = (sequence.translate(str.maketrans("UO", "XX")) for sequence in (one, other))
    alignment = next(iter(_aligner().align(one, other)), None)
    if alignment is None:
        return 0.0
    (from_one, to_one), (from_other, to_other) = ((row.min(), row.max()) for row in alignment.coordinates)
    covered = max((to_one - from_one) / len(one), (to_other - from_other) / len(other))
    identity = alignment.counts().identities / alignment.length
    return float(identity) if identity >= IDENTITY and covered >= COVERAGE else 0.0


def _by_mmseqs(names: Mapping[str, str], others: Iterable[Record]) -> dict[str, Near]:
    """As `_by_sketch`, by the program mmseqs.

    Raises:
        DataError: without the program, or where it fails.
    """
    program = shutil.which("mmseqs")
    if program is None:
        raise DataError("mmseqs2 is not installed (no program mmseqs on the PATH); install it, or use the 5-mer sketch")
    sequences, targets = list(names), list[str]()
    found: dict[str, Near] = {}
    if not sequences:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, hits = (Path(folder) / name for name in ("ours.fasta", "theirs.fasta", "hits.tsv"))
        write_fasta(ours, (Record(str(i), sequence) for i, sequence in enumerate(sequences)))
        write_fasta(theirs, _numbered(others, targets))
        command = [
            program, "easy-search", str(ours), str(theirs), str(hits), f"{folder}/work", "-v", "1",
            "--min-seq-id", str(IDENTITY), "--format-output", "query,target,fident,qcov,tcov",
            # one near copy is enough; variants of one protein would each have hundreds
            "--max-seqs", "50", "--max-accept", "5",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DataError(
                f"mmseqs failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
            )
        for line in hits.read_text().splitlines():
            query, target, identity, *covered = line.split("\t")
            sequence = sequences[int(query)]
            is_best = sequence not in found or float(identity) > found[sequence].identity
            if max(map(float, covered)) >= COVERAGE and is_best:
                found[sequence] = Near(names[sequence], targets[int(target)], float(identity))
    return found


def _numbered(records: Iterable[Record], names: list[str]) -> Iterator[Record]:
    """The records under numbers, which no program can misread; their names go to `names`."""
    for number, record in enumerate(records):
        names.append(record.name)
        yield Record(str(number), record.sequence)
