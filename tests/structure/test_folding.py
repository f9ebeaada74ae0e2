"""The function `fold`: what is asked for comes back in its order, however it was computed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from structure import fold, folding
from structure.config import FoldConfig
from structure.folding import PADDING, PAIRS_AT_ONCE, buckets, mean_plddt
from structure.openfold import constants
from structure.reader import Reader
from structure.triangle import TriangleMultiplication
from tests.structure.models import SMALL, TRUNKS, batch, pipeline
from xtrimo.chains import ATOMS
from xtrimo.errors import ConfigError, DataError, SequenceError
from xtrimo.fasta import Record
from xtrimo.testing import toy_sequences

WITH_ATOMS = {name: replace(config, side_chains=True) for name, config in TRUNKS.items()}
each_trunk = pytest.mark.parametrize("config", WITH_ATOMS.values(), ids=WITH_ATOMS.keys())
BACKBONE = ["N", "CA", "C", "O"]
MANY = toy_sequences(9, min_length=8, max_length=30)


def names_of(exists: np.ndarray) -> list[str]:
    return [ATOMS[column] for column in np.flatnonzero(exists)]


def test_predictions_come_in_the_order_of_the_sequences() -> None:
    found = fold(pipeline(SMALL), [*MANY, Record("sp|P1", "mkv:gg")])
    assert [each.sequence for each in found] == [*MANY, "MKV:GG"]
    assert [each.name for each in found] == [*(f"sequence_{number}" for number in range(1, 10)), "sp|P1"]
    assert {each.model for each in found} == {"toy"}
    assert fold(pipeline(SMALL), []) == []


@each_trunk
def test_many_are_what_each_is_alone(config: FoldConfig) -> None:
    model = pipeline(config)
    assert max(map(len, buckets([*map(len, MANY)]))) > 1, "some are folded together"
    for together, sequence in zip(fold(model, MANY), MANY, strict=True):
        (alone,) = fold(model, [sequence])
        assert np.array_equal(together.exists, alone.exists)
        for field, most in {"atoms": 1e-4, "plddt": 1e-3, "atom_plddt": 1e-3, "pae_ang": 1e-3, "ptm": 1e-5}.items():
            assert np.abs(getattr(together, field) - getattr(alone, field)).max() <= most, field


@each_trunk
def test_a_chunk_changes_no_bit(config: FoldConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As asked for, and by default, which is uncut for so few residues; what the blocks were told proves it."""
    told: list[int | None] = []
    whole = TriangleMultiplication.forward

    def forward(self, z, mask, chunk):  # type: ignore[no-untyped-def]
        told.append(chunk)
        return whole(self, z, mask, chunk)

    monkeypatch.setattr(TriangleMultiplication, "forward", forward)
    model = pipeline(replace(config, pair_width=32))
    (expected,) = fold(model, MANY[:1])
    assert set(told) == {None}
    for chunk in (0, 1, 7, 64):
        told.clear()
        (found,) = fold(model, MANY[:1], chunk=chunk)
        assert set(told) == {chunk or None}
        for field in ("atoms", "plddt", "atom_plddt", "pae_ang"):
            assert np.array_equal(getattr(found, field), getattr(expected, field)), (field, chunk)


def test_a_chunk_is_a_number_of_rows() -> None:
    with pytest.raises(ConfigError, match=r"chunk -1: expected rows"):
        fold(pipeline(SMALL), MANY, chunk=-1)


def test_recycles_are_those_asked_for() -> None:
    model = pipeline(replace(TRUNKS["esmfold"], max_recycles=2))
    found = {asked: fold(model, MANY[:1], num_recycles=asked)[0] for asked in (None, 0, 1, 2)}
    assert {asked: each.num_recycles for asked, each in found.items()} == {None: 2, 0: 0, 1: 1, 2: 2}
    assert np.array_equal(found[None].atoms, found[2].atoms)
    for first, second in pairwise((0, 1, 2)):
        assert np.abs(found[first].atoms - found[second].atoms).max() > 1e-2


@pytest.mark.parametrize(("trunk", "asked"), [("trimul", 1), ("trimul", -1), ("esmfold", -1)])
def test_recycles_that_cannot_be(trunk: str, asked: int) -> None:
    with pytest.raises(ConfigError, match=f"{asked} recycles of toy, whose trunk is {trunk}: expected 0"):
        fold(pipeline(TRUNKS[trunk]), MANY, num_recycles=asked)


def test_backbones_or_side_chains() -> None:
    """The atoms that there are, by the chemistry of each residue; and each is where the model has put it."""
    letters = "ARNDCQEGHILKMFPSTWYV"
    whole, model = pipeline(replace(SMALL, side_chains=True)), pipeline(SMALL)
    (full,), (bare,) = fold(whole, [letters]), fold(model, [letters])
    with torch.no_grad():
        slots = whole.model(batch(whole.reader.read(letters))).atoms[-1, 0].numpy()
    for row, letter in enumerate(letters):
        name = constants.restype_1to3[letter]
        assert sorted(names_of(full.exists[row])) == sorted(constants.residue_atoms[name])
        assert names_of(bare.exists[row]) == sorted([*BACKBONE, *["CB"] * (letter != "G")], key=ATOMS.index)
        for slot, atom in enumerate(filter(None, constants.restype_name_to_atom14_names[name])):
            np.testing.assert_allclose(full.atoms[row, ATOMS.index(atom)], slots[row, slot], atol=1e-4)
    assert not full.atoms[~full.exists].any() and not full.atom_plddt[~full.exists].any()
    assert full.atom_plddt[full.exists].min() > 0
    ca, cb = ATOMS.index("CA"), ATOMS.index("CB")
    assert np.array_equal(full.plddt, full.atom_plddt[:, ca]) and (full.plddt != full.atom_plddt[:, cb]).any()
    has_cb = bare.exists[:, cb]  # which nobody saw in training
    assert np.array_equal(bare.atom_plddt[has_cb, cb], bare.plddt[has_cb])


@pytest.mark.parametrize("side_chains", [False, True])
def test_an_unknown_residue_has_a_backbone(side_chains: bool) -> None:
    (found,) = fold(pipeline(replace(SMALL, side_chains=side_chains)), ["MKXVUG"])
    for row in (2, 4):
        assert set(names_of(found.exists[row])) == {*BACKBONE, "CB"}
        ends = found.atoms[row, [ATOMS.index(name) for name in BACKBONE]]
        assert 1 < np.linalg.norm(ends[1] - ends[0]) < 2, "N and CA are bound"


def test_chains_are_folded_together_and_apart() -> None:
    joined, chains = fold(pipeline(SMALL), ["MKVLAGDE", "MKVL:AGDE"])
    assert chains.chain.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and chains.chains == ("MKVL", "AGDE")
    assert np.abs(joined.atoms - chains.atoms).max() > 1e-2, "the model knows where a chain ends"


@pytest.mark.parametrize("bad", ["", "MK:", "MKJ", "MK V", "A" * 9])
def test_a_bad_one_is_met_before_any_folding(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pipeline(SMALL)
    model = replace(model, reader=Reader(None, SMALL, max_length=8))
    read: list[str] = []
    monkeypatch.setattr(model.reader, "read", lambda sequence, **_: read.append(sequence))
    with pytest.raises(SequenceError, match="^bad: "):
        fold(model, [Record("good", "MKV"), Record("bad", bad)])
    assert not read


def test_a_list_is_asked_for() -> None:
    with pytest.raises(SequenceError, match="expected a list"):
        fold(pipeline(SMALL), "MKV")


def test_confidence_is_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number for each protein in its place; NaN for one of no residues, or that cannot be folded."""
    reward = mean_plddt(pipeline(SMALL))
    values = reward([*MANY, ""])
    assert values.dtype == np.float64 and np.isnan(values[-1])
    np.testing.assert_allclose(values[:-1], [each.mean_plddt for each in fold(pipeline(SMALL), MANY)], atol=1e-3)
    assert reward([]).shape == (0,)
    real = folding._prediction

    def failing(*args):  # type: ignore[no-untyped-def]
        if args[1].sequence == MANY[3]:
            raise DataError("places that are no numbers")
        return real(*args)

    monkeypatch.setattr(folding, "_prediction", failing)
    assert np.flatnonzero(np.isnan(reward(MANY))).tolist() == [3]


def test_buckets_hold_proteins_of_about_one_length() -> None:
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(5, 250, 200).tolist(), 1058]
    found = buckets(lengths)
    assert sorted(number for bucket in found for number in bucket) == [*range(201)]
    in_order = [lengths[number] for bucket in found for number in bucket]
    assert in_order == sorted(lengths)
    for bucket in found:
        shortest, longest = lengths[bucket[0]], lengths[bucket[-1]]
        assert len(bucket) == 1 or len(bucket) * longest**2 <= PAIRS_AT_ONCE
        assert shortest >= (1 - PADDING) * longest
    for bucket, after in pairwise(found):
        first, following = lengths[bucket[0]], lengths[after[0]]
        assert (len(bucket) + 1) * following**2 > PAIRS_AT_ONCE or first < (1 - PADDING) * following, "it had room"
    assert buckets([100, 40, 98, 300, 41]) == [[1, 4], [2, 0], [3]]
    assert buckets([250, 250]) == [[0], [1]] and buckets([]) == []
