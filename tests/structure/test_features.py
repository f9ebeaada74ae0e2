"""Sequences as a model reads them, and batches of them."""

import numpy as np
import pytest
import torch

from structure.features import CHAIN_GAP, Protein, collate, read_sequence
from xtrimo.errors import SequenceError


def protein(length: int) -> Protein:
    """Numbers that tell where they come from."""
    states = torch.arange(length * 6.0).reshape(length, 2, 3) + 1
    maps = torch.arange(length * length * 2.0).reshape(length, length, 2) + 1
    return Protein(aatype=np.arange(length) + 3, index=np.arange(length) + 10, states=states, maps=maps)


def test_a_batch_is_padded_with_zeros() -> None:
    long, short = protein(4), protein(2)
    batch = collate([long, short])
    assert batch.aatype.tolist() == [[3, 4, 5, 6], [3, 4, 0, 0]]
    assert batch.index.tolist() == [[10, 11, 12, 13], [10, 11, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]] and batch.mask.dtype == torch.float32
    assert torch.equal(batch.states[0], long.states) and torch.equal(batch.states[1, :2], short.states)
    assert torch.equal(batch.maps[0], long.maps) and torch.equal(batch.maps[1, :2, :2], short.maps)
    assert not batch.states[1, 2:].any() and not batch.maps[1, 2:].any() and not batch.maps[1, :, 2:].any()


@pytest.mark.parametrize(("asked", "length"), [(0, 4), (3, 4), (7, 7)])
def test_a_batch_may_be_longer_than_its_longest(asked: int, length: int) -> None:
    batch = collate([protein(4), protein(2)], asked)
    assert batch.maps.shape == (2, length, length, 2)
    assert batch.mask.sum(1).tolist() == [4, 2]


def test_a_batch_moves_whole() -> None:
    batch = collate([protein(3)]).to(torch.device("meta"))
    assert {getattr(batch, name).device.type for name in batch.__slots__} == {"meta"}


def test_every_letter_has_its_type() -> None:
    """AlphaFold's order of the amino acids is that of their names in three letters; all else is 20."""
    aatype, index, chain = read_sequence("ARNDCQEGHILKMFPSTWYV" + "XBUZO")
    assert aatype.tolist() == [*range(20), 20, 20, 20, 20, 20]
    assert index.tolist() == [*range(25)] and not chain.any()
    assert read_sequence("mkv")[0].tolist() == read_sequence("MKV")[0].tolist() == [12, 11, 19]


def test_chains_are_apart() -> None:
    aatype, index, chain = read_sequence("MK:A:XV")
    assert aatype.tolist() == [12, 11, 0, 20, 19]
    assert index.tolist() == [0, 1, 2 + CHAIN_GAP, 3 + 2 * CHAIN_GAP, 4 + 2 * CHAIN_GAP]
    assert chain.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("sequence", ["", ":", "MK:", ":MK", "MK::AV", "M K", "MK*", "MK-", "MKJ", "MK1", "MKß", "MKÉ"])
def test_what_is_no_protein(sequence: str) -> None:
    with pytest.raises(SequenceError, match=r"^P1: .*expected LAGVSERTIDPKQNFYMHWCXBUZO.* write X"):
        read_sequence(sequence, name="P1")


def test_the_letter_at_fault_is_named() -> None:
    with pytest.raises(SequenceError, match="the letters '1', 'J'; expected"):
        read_sequence("MKJ1")
