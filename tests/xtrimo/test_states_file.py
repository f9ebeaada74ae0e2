"""States in a file: those of the model, found again, and never half of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from xtrimo import embedding_parts, states_file
from xtrimo.backbone import Backbone
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import XtrimoError
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.states_file import CacheKey, cached_states
from xtrimo.testing import toy_config, toy_sequences

PROTEINS = sorted(set(toy_sequences(40)))


def model(seed: int = 0) -> GLM:
    return GLM(toy_config(), seed=seed).eval()


def key(backbone: Backbone, pooled: bool = False, layers: tuple[int, ...] = (-1,)) -> CacheKey:
    return CacheKey(model_hash=fingerprint(backbone), dtype="float32", layers=layers, pooled=pooled)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_parts, "PART_RESIDUES", 300)


@pytest.mark.parametrize("layers", [(-1,), (2, -1)])
@pytest.mark.parametrize("pooled", [False, True])
def test_states_are_those_of_the_model(tmp_path: Path, pooled: bool, layers: tuple[int, ...]) -> None:
    live, read = LiveStates(model(), layers, pooled), model()
    cached = cached_states(tmp_path, read, key(read, pooled, layers), PROTEINS)
    asked = [PROTEINS[i] for i in (7, 3, 7, 0, 39)]
    states, lengths = cached(asked)
    with torch.no_grad():
        expected, expected_lengths = live(asked)
    assert torch.equal(lengths, expected_lengths)
    assert lengths.tolist() == ([1] * 5 if pooled else [len(protein) for protein in asked])
    np.testing.assert_allclose(states, expected, rtol=0 if pooled else 1e-3, atol=2e-5)


def test_a_mean_is_a_mean() -> None:
    protein = PROTEINS[0]
    with torch.no_grad():
        whole, _ = LiveStates(model(), (1, -1), False)([protein])
        mean, lengths = LiveStates(model(), (1, -1), True)([PROTEINS[1], protein])
    torch.testing.assert_close(mean[1], whole.mean(0))
    assert lengths.tolist() == [1, 1]


def test_a_file_is_for_one_model_and_one_list(tmp_path: Path) -> None:
    first = model()
    cached_states(tmp_path, first, key(first), PROTEINS)
    for other, proteins, pooled in ((model(1), PROTEINS, False), (model(), PROTEINS[1:], False),
                                    (model(), PROTEINS, True)):  # fmt: skip
        cached_states(tmp_path, other, key(other, pooled), proteins)
    assert len(list(tmp_path.glob("*.h5"))) == 4


def with_maps(folder: Path, layers: tuple[int, ...] = (0, 2, -1)) -> states_file.CachedStates:
    read = model()
    num_maps = 4 * sum(layer != 0 for layer in layers)
    return cached_states(folder, read, key(read, layers=layers), PROTEINS, num_maps=num_maps)


def test_maps_are_those_of_the_model(tmp_path: Path) -> None:
    cached, live = with_maps(tmp_path), LiveStates(model(), (0, 2, -1), False, maps=True)
    for protein in (PROTEINS[7], PROTEINS[3], PROTEINS[39]):
        states, maps = cached.of_pairs(protein)
        with torch.no_grad():
            expected, expected_maps = live.of_pairs(protein)
        assert maps is not None and maps.shape == (len(protein) * (len(protein) + 1) // 2, 8)
        np.testing.assert_allclose(states, expected, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(maps, expected_maps, rtol=2e-3, atol=2e-3)


def test_maps_are_a_file_of_their_own(tmp_path: Path) -> None:
    """The states are shared with runs that read no maps."""
    read = model()
    without = cached_states(tmp_path, read, key(read), PROTEINS)
    assert without.of_pairs(PROTEINS[0])[1] is None
    with counting() as residues:
        with_maps(tmp_path, (-1,))
    assert len(list(tmp_path.glob("*.h5"))) == 2 and residues == [sum(map(len, PROTEINS))]
    with counting() as residues:
        with_maps(tmp_path, (-1,))
    assert residues == [0]


def test_it_is_hdf5_anybody_reads(tmp_path: Path) -> None:
    read = model()
    cached = cached_states(tmp_path, read, key(read), PROTEINS)
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path) as file:
        start, end = file["offsets"][5:7]
        assert file["done"][:].all() and len(file["done"]) > 2
        np.testing.assert_array_equal(file["states"][start:end], cached([PROTEINS[5]])[0].half())


@contextmanager
def counting(dies_after: int = 1 << 40) -> Iterator[list[int]]:
    """The residues that models read meanwhile; the process dies after so many."""
    tokenize, read = GLM.tokenize, [0]

    def counted(self: GLM, sequence: str, *, name: str = "sequence") -> Any:
        read[0] += len(sequence)
        if read[0] > dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return tokenize(self, sequence, name=name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GLM, "tokenize", counted)
        yield read


DYING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_states_file as t
t.embedding_parts.PART_RESIDUES = 300
with t.counting(700):
    t.cached_states(Path({folder!r}), t.model(), t.key(t.model()), t.PROTEINS)
"""


DYING_WITH_MAPS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_states_file as t
t.embedding_parts.PART_RESIDUES = 3000
with t.counting(500):
    t.with_maps(Path({folder!r}), (0, -1))
"""


def test_a_kill_among_maps_loses_one_part(tmp_path: Path) -> None:
    """Once the states of these layers are there, and some of the maps."""
    states_first = model()
    cached_states(tmp_path, states_first, key(states_first, layers=(0, -1)), PROTEINS)
    code = DYING_WITH_MAPS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_parts, "PART_RESIDUES", 3000)
        with counting() as read:
            cached = with_maps(tmp_path, (0, -1))
        assert 0 < read[0] < sum(map(len, PROTEINS)) - 200
        expected = with_maps(tmp_path / "whole", (0, -1))
    for protein in PROTEINS:
        maps, whole = cached.of_pairs(protein)[1], expected.of_pairs(protein)[1]
        assert maps is not None and whole is not None and torch.equal(maps, whole)


def test_a_kill_loses_one_part(tmp_path: Path) -> None:
    code = DYING.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path) as file:
        flags = file["done"][:]
    assert 0 < flags.sum() < len(flags)
    again, whole = model(), model()
    with counting() as read:
        cached = cached_states(tmp_path, again, key(again), PROTEINS)
    assert 0 < read[0] < sum(map(len, PROTEINS)) - 200
    expected = cached_states(tmp_path / "whole", whole, key(whole), PROTEINS)
    np.testing.assert_array_equal(cached(PROTEINS)[0], expected(PROTEINS)[0])
    with counting() as read:
        cached_states(tmp_path, model(), key(model()), PROTEINS)
    assert read == [0]


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_cut_file_is_made_anew(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    read = model()
    expected = cached_states(tmp_path, read, key(model()), PROTEINS)(PROTEINS)[0].clone()
    (path,) = tmp_path.glob("*.h5")
    path.write_bytes(path.read_bytes()[:size])
    assert torch.equal(cached_states(tmp_path, model(), key(model()), PROTEINS)(PROTEINS)[0], expected)
    assert "made anew" in caplog.text


def test_a_file_under_another_name_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached_states(tmp_path, model(1), key(model(1)), PROTEINS)
    (path,) = tmp_path.glob("*.h5")
    path.rename(tmp_path / f"{key(model()).of(PROTEINS)}.h5")
    cached = cached_states(tmp_path, model(), key(model()), PROTEINS)
    with torch.no_grad():
        np.testing.assert_allclose(
            cached(PROTEINS)[0], LiveStates(model(), (-1,), False)(PROTEINS)[0], rtol=1e-3, atol=2e-5
        )
    assert "something else" in caplog.text


def test_what_fp16_cannot_hold(tmp_path: Path) -> None:
    wide = model()
    with torch.no_grad():
        wide.final_norm.weight.mul_(1e6)
    with pytest.raises(XtrimoError, match="beyond fp16"):
        cached_states(tmp_path, wide, key(wide), PROTEINS)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states_file.os, "pwrite", full)
    with pytest.raises(XtrimoError, match="No space left on device; choose another"):
        cached_states(tmp_path, model(), key(model()), PROTEINS)


def test_a_disk_without_room_is_met_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = model()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(XtrimoError, match=r"states take 0\.0 GB, and 0\.0 are free; ask for fewer layers"):
        cached_states(tmp_path, read, key(read), PROTEINS)
    assert not list(tmp_path.glob("*.h5"))
