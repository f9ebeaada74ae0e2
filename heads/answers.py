"""What a model said of a test set beside what is true: one array each, proteins one after another.

Three residues of one protein and one of another, two classes, one residue that nobody measured:

    truth       0          1          -1         1
    prediction  0.9 0.1    0.4 0.6    0.5 0.5    0.7 0.3
    length      3                                1

Per protein there is one such item; of a contact map there are length x length, its rows one after another. A preference
is one item of two proteins, whose truth is no class: how likely the first is better.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int, Shaped

from xtrimo.errors import ConfigError, DataError

UNSCORED = -1
"""The truth of an item that nobody measured."""

Of = Literal["classes", "two classes", "values", "contacts", "preferences"]
Truth = Shaped[np.ndarray, "item"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What a model said of every item of a test set beside what is true; proteins one after another."""

    truth: Truth
    """Index of the class, UNSCORED where not known (contacts: 1 and 0); or a float, in the unit of the data; or, for
    preferences, how likely the first protein is better."""
    prediction: Float[np.ndarray, "item *class"]
    """Probability of each class; or the value; or, for contacts, the probability of one or anything that orders so; or,
    for preferences, in one column the probability that the first is better."""
    length: Int[np.ndarray, "protein"]
    """Residues of each protein; of a pair of them, of its first."""
    pairs: Int[np.ndarray, "item 2"] | None = None
    """Of preferences that share proteins: the numbers of the two proteins of each."""

    def __post_init__(self) -> None:
        if len(self.truth) != len(self.prediction):
            raise ConfigError(f"{len(self.truth)} labels, {len(self.prediction)} predictions; expected one for each")
        if len(self.truth) not in self._counts():
            raise ConfigError(
                f"{len(self.truth)} items of {len(self.length)} proteins with {self.length.sum()} residues; expected"
                " one item for each protein, each residue, or each pair of residues of a protein"
            )

    def _counts(self) -> tuple[int, int, int]:
        return len(self.length), int(self.length.sum()), int((self.length.astype(np.int64) ** 2).sum())

    @property
    def sizes(self) -> Int[np.ndarray, "protein"]:
        """Items of each protein: 1, its residues, or their pairs (length x length), whichever there are."""
        power = self._counts().index(len(self.truth))
        return self.length.astype(np.int64) ** power

    @property
    def of(self) -> Of:
        """What the predictions are, as the metrics tell them apart."""
        if self.prediction.ndim == 2 and self.truth.dtype.kind == "f":
            return "preferences"
        if self.prediction.ndim == 2:
            return "two classes" if self.prediction.shape[1] == 2 else "classes"
        return "values" if self.truth.dtype.kind == "f" else "contacts"

    def take(self, proteins: Int[np.ndarray, "chosen"]) -> "Predictions":
        """Those of some proteins, in the order asked."""
        sizes = self.sizes
        ends = np.cumsum(sizes)
        items = np.concatenate([np.arange(ends[p] - sizes[p], ends[p]) for p in proteins])
        return replace(
            self, truth=self.truth[items], prediction=self.prediction[items], length=self.length[proteins],
            pairs=None if self.pairs is None else self.pairs[items],
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write predictions.npz."""
        arrays = {name: getattr(self, name) for name in self.__slots__}
        np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read predictions.npz.

        Raises:
            DataError: no such file, or not one of ours.
        """
        try:
            with np.load(path) as content:
                optional = ("pairs",) if "pairs" in content else ()
                return cls(**{name: content[name] for name in ("truth", "prediction", "length", *optional)})
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            raise DataError(f"{path} holds no predictions ({error}); evaluate the run again") from error
