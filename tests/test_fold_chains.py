"""The archive to train folding on: relatives of what is held out are gone, by either search, and nothing else is."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples import fold_chains as example
from structure.data import read_split
from xtrimo import mmseqs
from xtrimo.chains import Chain, read_archive
from xtrimo.errors import DataError
from xtrimo.testing import toy_sequences
from xtrimo.tokens import AMINO_ACIDS

VALID, TEST, *STRANGERS = toy_sequences(8, seed=1, min_length=110, max_length=130)


def changed(sequence: str, ratio: float, *, seed: int = 0) -> str:
    """With some of its residues another amino acid."""
    rng = np.random.default_rng(seed)
    return "".join(str(rng.choice(list(AMINO_ACIDS))) if rng.random() < ratio else letter for letter in sequence)


RELATIVES = {
    "copy": TEST,
    "cousin": changed(VALID, 0.5),
    "half": STRANGERS[0][:30] + TEST[20:85],  # over half of the held-out one
    "domain": STRANGERS[1] + changed(VALID, 0.3)[10:90] + STRANGERS[2],  # as well, though not over half of its own
    "piece": VALID[40:85],  # over all of its own
}
OTHERS = {
    "stranger": STRANGERS[3],
    "little": STRANGERS[4] + TEST[50:80],  # a common part, but too short a one
    "long": STRANGERS[5],
}


def chain(name: str, sequence: str, split: str | None = None) -> Chain:
    rng = np.random.default_rng(len(name))
    xyz = rng.normal(size=(len(sequence), 4, 3)).astype(np.float32)
    return Chain(name, sequence, xyz, split=split, numbers=np.arange(7, 7 + len(sequence)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """All chains, and an archive with splits, whose own training chain is not asked for."""
    every = [chain(name, sequence) for name, sequence in {**OTHERS, **RELATIVES, "short": TEST[:39]}.items()]
    example.write_archive(tmp_path / "all.npz", every, [""] * len(every))
    held_out = [chain("v", VALID, "valid"), chain("t", TEST, "test"), chain("old", STRANGERS[3], "train")]
    example.write_archive(tmp_path / "held_out.npz", held_out, [str(one.split) for one in held_out])
    return tmp_path / "all.npz", tmp_path / "held_out.npz"


def build(files: tuple[Path, Path], out: Path) -> dict[str, int]:
    assert example.main([str(files[0]), "--held-out", str(files[1]), "--out", str(out)]) == 0
    counts: dict[str, int] = json.loads(out.with_suffix(".json").read_text())
    return counts


def test_phmmer_alone_finds_them(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is written is what `train-fold` reads."""
    pytest.importorskip("pyhmmer")
    monkeypatch.setattr(example, "by_mmseqs", lambda held_out, chains: set())
    counts = build(files, tmp_path / "out.npz")
    assert counts["relatives by mmseqs2"] == 0 and counts["relatives that phmmer found besides"] == len(RELATIVES)
    assert counts["chains"] == 9 and counts["shorter than 40 residues"] == 1 and counts["to train on"] == 3
    assert "train on" in capsys.readouterr().out

    split = read_split(tmp_path / "out.npz")
    assert [one.name for one in split.train] == list(OTHERS) and not split.left_out
    assert [one.name for one in (*split.valid, *split.test)] == ["v", "t"]
    before = {one.name: one for path in files for one in read_archive(path)}
    for found in read_archive(tmp_path / "out.npz"):
        one = before[found.name]
        assert found.sequence == one.sequence and np.array_equal(found.xyz, one.xyz)
        assert found.numbers is not None and found.numbers[0] == 7
    assert counts["residues to train on"] == sum(map(len, split.train))


@pytest.mark.skipif(not mmseqs.is_installed(), reason="mmseqs2 is not installed")
def test_mmseqs_alone_finds_them() -> None:
    names = [*OTHERS, *RELATIVES]
    found = example.by_mmseqs([VALID, TEST], [*OTHERS.values(), *RELATIVES.values()])
    assert {names[number] for number in found} == set(RELATIVES)


def test_the_rule() -> None:
    assert example.is_relative(0.3, 0.5, 0.1) and example.is_relative(0.3, 0.1, 0.5)
    assert not example.is_relative(0.299, 1.0, 1.0) and not example.is_relative(1.0, 0.49, 0.49)


def test_refusals(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds no chain out"):
        example.main([str(files[0]), "--held-out", str(files[0]), "--out", str(tmp_path / "out.npz")])
    for search in ("by_mmseqs", "by_phmmer"):
        monkeypatch.setattr(example, search, lambda held_out, chains: set(range(len(chains))))
    with pytest.raises(DataError, match="none is left"):
        build(files, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
