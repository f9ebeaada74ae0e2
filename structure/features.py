"""What a folding model reads: proteins of a batch, padded to the longest, with a mask that says what is real.

    proteins MKV, AC      aatype  12 11 19    mask  1 1 1     index  0 1 2
                                   0  4  0          1 1 0            0 1 0

Pairs of residues leave no room for packing: a batch is proteins of about one length, or a single protein.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from structure.openfold import constants
from xtrimo.errors import SequenceError
from xtrimo.fasta import CHAIN_BREAK
from xtrimo.tokens import RESIDUES

CHAIN_GAP = 512
"""Added to the index after each chain, so that the trunk sees residues of two chains as far apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """A batch of proteins."""

    aatype: Int[Tensor, "batch length"]
    """0..19 in the order of `constants.restypes`, 20 for all else."""
    mask: Float[Tensor, "batch length"]
    """1 where there is a residue, 0 for padding."""
    index: Int[Tensor, "batch length"]
    """Place of each residue in its protein; chains are CHAIN_GAP apart."""
    states: Float[Tensor, "batch length layer lm"]
    """Of the language model; of no layer without one."""
    maps: Float[Tensor, "batch length length map"]
    """Attention maps; of no map without them."""

    def to(self, device: torch.device) -> "Features":
        """On another device."""
        return Features(**{name: getattr(self, name).to(device) for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Protein:
    """One protein, before it is padded."""

    aatype: Int[np.ndarray, "length"]
    index: Int[np.ndarray, "length"]
    states: Float[Tensor, "length layer lm"]
    maps: Float[Tensor, "length length map"]


def collate(proteins: Sequence[Protein], length: int = 0) -> Features:
    """A batch of proteins, padded with zeros to the longest, or to `length` where that is more."""
    length = max(length, *(len(protein.aatype) for protein in proteins))
    return Features(
        aatype=padded([torch.as_tensor(protein.aatype).long() for protein in proteins], length),
        mask=padded([torch.ones(len(protein.aatype)) for protein in proteins], length),
        index=padded([torch.as_tensor(protein.index).long() for protein in proteins], length),
        states=padded([protein.states for protein in proteins], length),
        maps=padded([protein.maps for protein in proteins], length, dims=2),
    )


def padded(items: Sequence[Shaped[Tensor, "..."]], length: int, *, dims: int = 1) -> Shaped[Tensor, "batch ..."]:
    """Items one above the other, their first `dims` dimensions filled up with zeros to `length`."""
    batch = items[0].new_zeros(len(items), *[length] * dims, *items[0].shape[dims:])
    for row, item in zip(batch, items, strict=True):
        row[tuple(slice(size) for size in item.shape[:dims])] = item
    return batch


def read_sequence(sequence: str, *, name: str = "sequence") -> tuple[Int[np.ndarray, "length"], ...]:
    """Residue types, index and number of the chain of each residue, of a protein whose chains `:` joins.

    >>> for row in read_sequence("MK:AX"):
    ...     print(row)
    [12 11  0 20]
    [  0   1 514 515]
    [0 0 1 1]

    Raises:
        SequenceError: an empty sequence or chain, or a letter that is no residue.
    """
    chains = sequence.upper().split(CHAIN_BREAK)
    odd = set(sequence) - set(RESIDUES + RESIDUES.lower() + CHAIN_BREAK)
    if odd or not all(chains):
        got = f"the letters {', '.join(map(repr, sorted(odd)))}" if odd else "a chain without residues"
        raise SequenceError(
            f"{name}: {sequence[:40]!r} has {got}; expected {RESIDUES}, and {CHAIN_BREAK!r} between chains; write X for"
            " a residue that is unknown"
        )
    letters = "".join(chains)
    chain = np.repeat(np.arange(len(chains)), [len(part) for part in chains])
    types = np.array([constants.restype_order.get(letter, constants.restype_num) for letter in letters])
    return types, np.arange(len(letters)) + CHAIN_GAP * chain, chain
