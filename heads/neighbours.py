"""The floor of look-up: the labels of the training rows that look most alike.

Alike is the cosine of which 3-mers are there (2-mers for peptides), rare ones weighing more, or, for variants of one
protein, few differing residues. Of two chains the second has to be the same wherever it was seen in training; of an
enzyme and a molecule the same molecule goes first. Five neighbours answer, one where there are more than two classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy import sparse

from heads.composition import numbers
from heads.rows import Dataset, Row

NUM_NEIGHBOURS = 5
PEPTIDE = 20  # residues; no longer than this, all proteins are read as 2-mers
AT_ONCE = 256  # test rows

Similarity = Float32[np.ndarray, "row other"]


def predict(dataset: Dataset) -> tuple[Float[np.ndarray, "row *class"], str]:
    """What the nearest training rows say of the test rows, and what near meant."""
    known, asked = (*dataset.train, *dataset.valid), dataset.test
    labels = np.array([row.label for row in known])
    is_regression = dataset.task.target == "regression"
    num = NUM_NEIGHBOURS if is_regression or len(dataset.classes) == 2 else 1
    outcomes = labels[:, None].astype(np.float64) if is_regression else np.eye(len(dataset.classes))[labels]
    lengths = {len(row.sequence) for row in (*known, *asked)}
    table = Variants(known, asked) if len(lengths) == 1 else Words(known, asked, 2 if max(lengths) <= PEPTIDE else 3)
    answer = np.empty((len(asked), outcomes.shape[1]))
    for rows, candidates, bonus in _groups(known, asked, dataset.task.level):
        for start in range(0, len(rows), AT_ONCE):
            chosen = rows[start : start + AT_ONCE]
            similarity = table.similarity(chosen, candidates) + bonus(chosen, candidates)
            answer[chosen] = _average(similarity, outcomes[candidates], num)
    return answer[:, 0] if is_regression else answer, f"{num} nearest by {table.title}"


def _average(
    similarity: Similarity, outcomes: Float[np.ndarray, "other class"], num: int
) -> Float[np.ndarray, "row class"]:
    """Mean outcome of the `num` most alike, each weighed by its similarity."""
    num = min(num, similarity.shape[1])
    nearest = np.argpartition(-similarity, num - 1, axis=1)[:, :num]
    weights = np.maximum(np.take_along_axis(similarity, nearest, axis=1), 1e-6)
    weighed: Float[np.ndarray, "row class"] = np.einsum("rn,rnc->rc", weights, outcomes[nearest])
    return weighed / weights.sum(1, keepdims=True)


class Words:
    """Cosine of which k-mers are there, each weighted by its inverse document frequency."""

    def __init__(self, known: Sequence[Row], asked: Sequence[Row], k: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.title = f"{k}-mers"
        words = TfidfVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False, binary=True, dtype=np.float32)
        self.known: Any = words.fit_transform([row.sequence for row in known])
        self.asked: Any = words.transform([row.sequence for row in asked])

    def similarity(self, rows: Int64[np.ndarray, "row"], others: Int64[np.ndarray, "other"]) -> Similarity:
        """0 to 1."""
        known = self.known if len(others) == self.known.shape[0] else self.known[others]
        return (self.asked[rows] @ known.T).toarray()


class Variants:
    """Share of equal residues of proteins of one length, by where they leave the most frequent residue.

    With A and B the places where a and b leave it, they differ at |A| + |B| places, less those of A and B both, less
    those of A and B with the same letter.
    """

    def __init__(self, known: Sequence[Row], asked: Sequence[Row]) -> None:
        self.title = "differing residues"
        codes = np.stack([numbers(row.sequence) for row in (*known, *asked)])
        self.length = codes.shape[1]
        usual = np.array([np.bincount(column).argmax() for column in codes.T])
        row, place = np.nonzero(codes != usual)
        on = np.ones(len(row), dtype=np.float32)
        places = sparse.csr_array((on, (row, place)), shape=codes.shape)
        letters = sparse.csr_array((on, (row, 21 * place + codes[row, place])), shape=(len(codes), 21 * self.length))
        both = sparse.hstack((places, letters), format="csr")
        counts = (codes != usual).sum(1).astype(np.float32)
        self.known, self.asked = both[: len(known)], both[len(known) :]
        self.known_counts, self.asked_counts = counts[: len(known)], counts[len(known) :]

    def similarity(self, rows: Int64[np.ndarray, "row"], others: Int64[np.ndarray, "other"]) -> Similarity:
        """0 to 1."""
        shared = (self.asked[rows] @ self.known[others].T).toarray()
        differing = self.asked_counts[rows, None] + self.known_counts[others] - shared
        similarity: Similarity = 1 - differing / np.float32(self.length)
        return similarity


def _groups(known: Sequence[Row], asked: Sequence[Row], level: str) -> list[tuple[Any, Any, Any]]:
    """(test rows, the training rows they may look at, what is added to the similarity) that belong together."""
    everything = np.arange(len(known))
    if level == "two_sequences":
        of_known, of_asked = (_by_second(rows) for rows in (known, asked))
        return [(rows, of_known.get(second, everything), _nothing) for second, rows in of_asked.items()]
    if level == "molecule":
        place = {text: number for number, text in enumerate({row.second for row in (*known, *asked)})}
        molecules = [np.array([place[row.second] for row in rows]) for rows in (asked, known)]
        return [(
            np.arange(len(asked)),
            everything,
            lambda rows, others: (molecules[0][rows][:, None] == molecules[1][others]).astype(np.float32),
        )]  # fmt: skip
    return [(np.arange(len(asked)), everything, _nothing)]


def _by_second(rows: Sequence[Row]) -> dict[str, Int64[np.ndarray, "row"]]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[row.second].append(number)
    return {second: np.array(places) for second, places in found.items()}


def _nothing(rows: Int64[np.ndarray, "row"], others: Int64[np.ndarray, "other"]) -> float:
    return 0.0
