"""Which of two proteins is better: learned from pairs, as a reward r of each protein alone (Bradley & Terry 1952).

    P(first is better) = sigmoid(r(first) - r(second)),    loss = -p log P - (1 - p) log(1 - P)

with p the label, how likely the first is better: 1 where the file says no more. Pairs fix differences of r alone, so
its zero is arbitrary. A figure that would change if first and second changed places would judge the file's order, and
so all figures here ask of the protein that is held better.

A protein that is on two sides of a split would tell what it is worth from one pair to another. Pairs that share
proteins, by any chain of pairs, therefore go to one side together. Where such a chain holds more than a tenth of all
pairs, its proteins are put on sides one by one, and a pair across sides is left out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int64

Side = TypeVar("Side")
LARGEST = 0.1  # share of all pairs that goes to one side as one

Truth = Float[np.ndarray, "pair"]
"""How likely the first is better."""
Said = Float[np.ndarray, "pair 1"]
"""How likely a head holds it to be."""


def apart(pairs: Sequence[tuple[str, str]], side: Callable[[str], Side]) -> list[Side | None]:
    """The side of each pair, so that no protein is on two; None for a pair that no side can have.

    Args:
        side: of a protein, always the same for the same one.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return []
    ends = _numbers(pairs)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(ends.max() + 1,) * 2)
    chain = connected_components(graph, directed=False)[1][ends[:, 0]]
    is_large = np.bincount(chain) > max(1, LARGEST * len(pairs))
    names: dict[int, str] = {}
    for number, pair in zip(chain.tolist(), pairs, strict=True):
        names[number] = min(*pair, names.get(number, pair[0]))
    found: list[Side | None] = []
    for number, (first, second) in zip(chain.tolist(), pairs, strict=True):
        if is_large[number]:
            found.append(side(first) if side(first) == side(second) else None)
        else:
            found.append(side(names[number]))
    return found


def _numbers(pairs: Sequence[tuple[str, str]]) -> Int64[np.ndarray, "pair 2"]:
    """A number for each different protein, from 0."""
    numbers = {protein: number for number, protein in enumerate(dict.fromkeys(p for pair in pairs for p in pair))}
    return np.array([[numbers[first], numbers[second]] for first, second in pairs], dtype=np.int64)


def shared_proteins(pairs: Sequence[tuple[str, str]]) -> Int64[np.ndarray, "pair 2"] | None:
    """The numbers of the two proteins of each pair, for `Predictions`; None where no protein is in two of them."""
    numbers = _numbers(pairs)
    return numbers if numbers.max() + 1 < numbers.size else None


class Verdicts(NamedTuple):
    """Of each pair, the protein that is held better."""

    belief: Float64[np.ndarray, "pair"]
    """How likely it is held to be better: 0.5 to 1."""
    is_so: Float64[np.ndarray, "pair"]
    """How likely it is."""


def verdicts(truth: Truth, said: Said) -> Verdicts:
    """What was said, whichever of the two stood first; where both are held alike, one half is so."""
    probability = said[:, 0].astype(np.float64)
    is_so = np.where(probability > 0.5, truth, 1 - truth)
    return Verdicts(np.maximum(probability, 1 - probability), np.where(probability == 0.5, 0.5, is_so))


def in_order(truth: Truth, said: Said) -> Float64[np.ndarray, "pair"]:
    """1 for a pair whose better protein is held better, one half for a tie."""
    return np.heaviside(verdicts(truth, said).is_so - 0.5, 0.5)


def log_losses(truth: Truth, said: Said) -> Float64[np.ndarray, "pair"]:
    """-p log P - (1 - p) log(1 - P), in nats; log 2 for who knows nothing."""
    smallest = np.finfo(np.float64).eps  # as scikit-learn has it
    probability = said[:, 0].astype(np.float64).clip(smallest, 1 - smallest)
    losses: Float64[np.ndarray, "pair"] = -(truth * np.log(probability) + (1 - truth) * np.log1p(-probability))
    return losses
