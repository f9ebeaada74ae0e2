"""Chains as examples, splits that share no cluster, crops as a function of (seed, step)."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structure import data
from structure.data import CropSampler, Example, crop, example, read_split, split_names, why_unusable
from structure.openfold import constants
from xtrimo import mmseqs
from xtrimo.chains import ATOMS, Chain, read_structure
from xtrimo.errors import ConfigError, DataError
from xtrimo.tokens import AMINO_ACIDS

FILES = Path(__file__).parent / "files"


@pytest.fixture
def by_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters without mmseqs2, whose start takes seconds."""
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)


def backbone(sequence: str, *, name: str = "made", split: str | None = None) -> Chain:
    """A chain of N, CA, C, O at made-up places, near enough for every C and N to be bonded."""
    xyz = np.random.default_rng(len(sequence)).normal(scale=0.2, size=(len(sequence), 4, 3)).astype(np.float32)
    return Chain(name, sequence, xyz, split=split)


def numbered(length: int, unseen: slice = slice(0, 0), name: str = "made") -> Example:
    """An example whose CA of residue i lies at x = i."""
    whole = example(backbone("A" * length, name=name))
    atoms, seen = whole.atoms.copy(), whole.seen.copy()
    atoms[:, 1, 0] = np.arange(length)
    seen[unseen] = 0
    return replace(whole, atoms=atoms, seen=seen)


def proteins(num: int, seed: int = 0, length: int = 120) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(AMINO_ACIDS), length)) for _ in range(num)]


def changed(sequence: str, seed: int) -> str:
    """A relative: a fifth of the residues are others."""
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list(AMINO_ACIDS)) if rng.random() < 0.2 else letter for letter in sequence)


def test_the_atoms_that_files_may_have_are_those_of_the_tables() -> None:
    assert tuple(constants.atom_types) == ATOMS


@pytest.mark.parametrize("file", ["1A8O.pdb", "1A8O.cif", "4CUP.cif"])
def test_atoms_stand_in_the_slots_of_their_residue(file: str) -> None:
    (chain,) = read_structure(FILES / file)
    made = example(chain)
    assert made.name == chain.name and len(made) == len(chain.sequence)
    num_placed = 0
    for i, letter in enumerate(chain.sequence):
        assert constants.restypes_with_x[made.aatype[i]] == letter
        for slot, atom in enumerate(constants.restype_name_to_atom14_names[constants.restype_1to3[letter]]):
            place = chain.xyz[i, ATOMS.index(atom)] if atom else np.full(3, np.nan)
            is_seen = bool(np.isfinite(place).all())
            assert made.seen[i, slot] == is_seen
            assert np.array_equal(made.atoms[i, slot], place if is_seen else np.zeros(3))
            num_placed += is_seen
    num_terminal = int(np.isfinite(chain.xyz[:, ATOMS.index("OXT"), 0]).sum())  # no slot holds it
    assert num_placed == np.isfinite(chain.xyz[..., 0]).sum() - num_terminal > 500
    tables = constants.restype_atom14_mask[made.aatype]
    assert (made.seen <= tables).all() and made.seen.sum() / tables.sum() > 0.97


def test_backbones_and_unknown_residues() -> None:
    chain = backbone("GAXUW")
    chain.xyz[1, 3, 2] = np.nan
    made = example(chain)
    assert made.aatype.tolist() == [7, 0, 20, 20, 17] and made.index.tolist() == [0, 1, 2, 3, 4]
    assert made.seen.sum(-1).tolist() == [4, 3, 0, 0, 4] and made.seen[1].tolist() == [1.0, 1.0, 1.0] + [0.0] * 11
    np.testing.assert_array_equal(made.atoms[[0, 4], :4], chain.xyz[[0, 4]])
    assert not made.atoms[made.seen == 0].any() and np.isfinite(made.atoms).all()


def test_the_index_skips_what_the_numbers_skip_but_no_bond_and_what_is_no_bond() -> None:
    chain = backbone("AAAAAA")
    chain.xyz[:, 0] = np.arange(6)[:, None] * 9.0  # N of each far from the C of the one before
    chain.xyz[:, 2] = chain.xyz[:, 0] + 3
    chain.xyz[4, 0] = chain.xyz[3, 2] + 0.7  # but here
    numbers = np.array([5, 6, 306, 306, 400, 2])
    made = example(replace(chain, numbers=numbers))
    assert made.index.tolist() == [0, 2, 302, 304, 305, 307]
    assert example(chain).index.tolist() == [0, 2, 4, 6, 7, 9], "without numbers"


def test_what_is_no_example() -> None:
    chain = backbone("A" * 20)
    assert why_unusable(chain) == "" and why_unusable(backbone("A" * 15)) == "shorter than 16 residues"
    chain.xyz[:10, 1] = np.nan
    assert why_unusable(chain) == ""
    chain.xyz[10, 1, 0] = np.nan
    assert why_unusable(chain) == "more than 50% of the CA not seen"
    assert why_unusable(backbone("XU" + "A" * 18)) == ""
    assert why_unusable(backbone("XUB" + "A" * 17)) == "more than 10% of the seen residues unknown"
    gap = backbone("A" * 15 + "X" * 5 + "A" * 15)
    gap.xyz[15:20] = np.nan
    assert why_unusable(gap) == "", "what was not seen is X for that alone"


def archive(path: Path, sequences: list[str], split: list[str] | None = None) -> Path:
    lengths = [len(sequence) for sequence in sequences]
    xyz = np.random.default_rng(0).normal(size=(sum(lengths), 4, 3)).astype(np.float32)
    names = [f"c{i}" for i in range(len(sequences))]
    np.savez(path, chain_id=names, seq=sequences, length=lengths, xyz=xyz, **({"split": split} if split else {}))  # type: ignore[arg-type]
    return path


def test_the_splits_of_a_source_are_kept(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", [*proteins(4), "MKV"], ["test", "train", "valid", "train", "train"])
    made = read_split(path)
    assert [[one.name for one in part] for part in (made.train, made.valid, made.test)] == [
        ["c1", "c3"],
        ["c2"],
        ["c0"],
    ]
    assert made.left_out == {"shorter than 16 residues": 1}
    chains = [backbone(sequence, split=split) for sequence, split in zip(proteins(2), ("train", None), strict=True)]
    with pytest.raises(DataError, match="of 2 chains 1 have the split ''; expected one of train, valid, test, or none"):
        split_names(chains, valid_ratio=0.1)
    with pytest.raises(DataError, match="the split 'dev'"):
        split_names([replace(chain, split="dev") for chain in chains], valid_ratio=0.1)
    with pytest.raises(DataError, match="all of its 1 usable chains are held out"):
        read_split(archive(tmp_path / "b.npz", proteins(1), ["test"]))
    with pytest.raises(DataError, match="none of its 1 chains can be used: {'shorter than 16 residues': 1}"):
        read_split(archive(tmp_path / "c.npz", ["MKV"]))


def test_a_folder_of_files(by_words: None) -> None:
    made = read_split(FILES, valid_ratio=0.5)
    of_1a8o = {one.name: split for split in ("train", "valid") for one in getattr(made, split) if "1A8O" in one.name}
    assert len(made.train) + len(made.valid) == 3 and len(of_1a8o) == 1  # both files of 1A8O on one side
    assert len(made.train) > 0 < len(made.valid) and made.left_out == {"shorter than 16 residues": 1}


@pytest.mark.parametrize("with_mmseqs", [True, False])
def test_relatives_are_in_one_split(
    with_mmseqs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if with_mmseqs and not mmseqs.is_installed():
        pytest.skip("the program mmseqs is not here")
    monkeypatch.setattr(mmseqs, "is_installed", lambda: with_mmseqs)
    families = proteins(60)
    chains = [backbone(s) for s in (*families, *(changed(s, seed) for seed, s in enumerate(families)))]
    with caplog.at_level(logging.WARNING):
        names = split_names(chains, valid_ratio=0.2, test_ratio=0.2)
    assert names[:60] == names[60:] and caplog.text.count("mmseqs2 is not installed") == (not with_mmseqs)
    counts = Counter(names[:60])
    assert 5 <= counts["valid"] <= 20 and 5 <= counts["test"] <= 20
    assert split_names(chains[::-1], valid_ratio=0.0) == ["train"] * 120


def test_what_is_held_out_hangs_on_no_order_and_no_other_chain(by_words: None) -> None:
    chains = [backbone(sequence) for sequence in proteins(50)]
    names = split_names(chains, valid_ratio=0.2, test_ratio=0.1)
    assert split_names(chains[::-1], valid_ratio=0.2, test_ratio=0.1) == names[::-1]
    assert split_names(chains[:25], valid_ratio=0.2, test_ratio=0.1) == names[:25]
    wider = split_names(chains, valid_ratio=0.4)
    assert all(wide == "valid" for wide, name in zip(wider, names, strict=True) if name == "valid")


def test_few_clusters(by_words: None) -> None:
    few = [backbone(sequence) for sequence in proteins(2)]
    assert sorted(split_names(few, valid_ratio=0.001)) == ["train", "valid"]
    assert sorted(split_names(few, valid_ratio=0.5, test_ratio=0.49)).count("train") == 1
    assert split_names(few[:1], valid_ratio=0.9) == ["train"]
    with pytest.raises(ConfigError, match="valid_ratio 0.5 and test_ratio 0.5 must not be negative"):
        split_names(few, valid_ratio=0.5, test_ratio=0.5)


def test_windows_are_uniform() -> None:
    whole = numbered(30)
    starts: Counter[int] = Counter()
    for seed in range(600):
        window, where = crop(whole, 20, np.random.default_rng(seed))
        assert len(window) == 20 and window.atoms[0, 1, 0] == where.start and where.stop == where.start + 20
        assert window.index.tolist() == list(range(where.start, where.stop))
        starts[where.start] += 1
    assert set(starts) == set(range(11)) and max(starts.values()) < 90 and min(starts.values()) > 25  # 55 expected
    for length in (30, 31):
        assert crop(whole, length, np.random.default_rng(0)) == (whole, slice(0, 30))


def test_windows_with_residues_that_were_seen_come_first() -> None:
    whole = numbered(60, unseen=slice(0, 40))
    starts = {crop(whole, 10, np.random.default_rng(seed))[1].start for seed in range(300)}
    assert starts == set(range(35, 51))  # from half of it seen
    nothing = numbered(12, unseen=slice(0, 12))
    assert {crop(nothing, 10, np.random.default_rng(seed))[1].start for seed in range(50)} == {0, 1, 2}


def sampler(num: int = 7, **settings: Any) -> CropSampler:
    return CropSampler([numbered(20 + i, name=str(i)) for i in range(num)], 16, 3, **settings)


def drawn(crops: list[data.Crop]) -> list[tuple[object, ...]]:
    return [(one.chain, one.start, one.clamp, one.num_recycles, one.example.atoms[0, 1, 0]) for one in crops]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    settings: dict[str, Any] = dict(clamp_from=3, clamp_ratio=0.5, max_recycles=3)
    one, other = sampler(**settings), sampler(**settings)
    forward = [drawn(one.batch(step, 4)) for step in range(12)]
    assert [drawn(other.batch(step, 4)) for step in reversed(range(12))] == forward[::-1]
    assert [drawn(replace(one, seed=4).batch(step, 4)) for step in range(12)] != forward
    assert len({repr(batch) for batch in forward}) == 12
    for crops in forward:
        assert all(at == start and len({row[3] for row in crops}) == 1 for _, start, _, _, at in crops)
    assert {crops[0][3] for crops in forward} == {0, 1, 2, 3}
    (first,) = (crop for crop in one.batch(0, 1))
    assert first.example.name == str(first.chain) and len(first.example) == 16


def test_every_chain_once_an_epoch() -> None:
    chains = [one.chain for step in range(21) for one in sampler().batch(step, 4)]  # 12 epochs of 7
    epochs = [tuple(chains[start : start + 7]) for start in range(0, 84, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(epochs)) > 8


def test_clamping_begins_late() -> None:
    late = sampler(clamp_from=50)
    clamped = [[one.clamp for one in late.batch(step, 8)] for step in range(250)]
    assert not any(map(any, clamped[:50])) and 0.87 < np.mean(clamped[50:]) < 0.93
    assert all(one.clamp for step in range(20) for one in sampler(clamp_ratio=1.0).batch(step, 8))
    assert not any(
        one.clamp or one.num_recycles for step in range(20) for one in sampler(clamp_ratio=0.0).batch(step, 8)
    )


def test_settings_that_cannot_be() -> None:
    wrongs: list[dict[str, Any]] = [dict(clamp_ratio=1.1), dict(max_recycles=-1)]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="crop_length 16 must be at least 1"):
            sampler(**wrong)
    with pytest.raises(DataError, match="no chain to draw crops from"):
        sampler(0)
