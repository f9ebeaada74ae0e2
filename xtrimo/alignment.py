"""The best local alignment of two proteins (BLOSUM62, gaps 11 and 1), by Biopython."""

from functools import cache
from typing import Any, NamedTuple


class Match(NamedTuple):
    """An alignment."""

    identical: int
    length: int
    """Columns, gaps among them."""
    covered: tuple[float, float]
    """From the first residue aligned to the last, as a share of each protein."""

    @property
    def identity(self) -> float:
        """Identical columns, as a share of all; 0 where nothing aligns."""
        return self.identical / self.length if self.length else 0.0


def align(one: str, other: str) -> Match:
    """The best local alignment; nothing identical where there is none."""
    one, other = (sequence.translate(str.maketrans("UO", "XX")) for sequence in (one, other))  # BLOSUM62 has neither
    alignment = next(iter(_aligner().align(one, other)), None)
    if alignment is None:
        return Match(0, 0, (0.0, 0.0))
    (from_one, to_one), (from_other, to_other) = ((row.min(), row.max()) for row in alignment.coordinates)
    covered = (float(to_one - from_one) / len(one), float(to_other - from_other) / len(other))
    return Match(int(alignment.counts().identities), int(alignment.length), covered)


@cache
def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    aligner = PairwiseAligner()  # type: ignore[no-untyped-call]
    aligner.mode = "local"
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")  # type: ignore[no-untyped-call]
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    return aligner
