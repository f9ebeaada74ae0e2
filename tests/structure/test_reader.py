"""What a folding model is told of a protein: the states and maps of a language model, chain by chain."""

from pathlib import Path

import numpy as np
import pytest
import torch

from structure.fold_directory import live_reader, with_lm
from structure.reader import Reader, square, with_cache
from tests.structure.models import SMALL
from xtrimo.backbone import attentions
from xtrimo.embedding import embed
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import SequenceError
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.states_file import CacheKey, cached_states
from xtrimo.testing import toy_config

LAYERS = (0, 2, 4)
NUM_MAPS = 2 * 4  # the embedding has no heads
LM = GLM(toy_config(), seed=3).eval()
CONFIG = with_lm(SMALL, LM, LAYERS, NUM_MAPS)
CHAINS = ["MKVLAGDEWY", "GSTPQRN"]


def test_states_are_those_of_each_layer() -> None:
    read = live_reader(LM, LAYERS, CONFIG).read(CHAINS[0])
    (expected,) = embed(LM, [CHAINS[0]], pooling="none", layers=LAYERS)
    assert read.states.shape == (10, 3, 64) and not read.states.requires_grad
    np.testing.assert_allclose(read.states, expected.hidden.swapaxes(0, 1), rtol=1e-5, atol=1e-5)


def test_maps_are_those_of_each_head() -> None:
    """Symmetric, with the average product correction and a spread of 1, from attention that something else computed."""
    read = live_reader(LM, LAYERS, CONFIG).read(CHAINS[0])
    assert read.maps.shape == (10, 10, NUM_MAPS) and not read.maps.requires_grad
    of_blocks = attentions(LM, CHAINS[0])
    for number, weights in enumerate([*of_blocks[1], *of_blocks[3]]):
        both = weights + weights.T
        corrected = both - np.outer(both.sum(0), both.sum(0)) / both.sum()
        np.testing.assert_allclose(read.maps[:, :, number], corrected / corrected.std(ddof=1), rtol=1e-3, atol=1e-3)


def test_a_file_of_states_gives_the_same_protein(tmp_path: Path) -> None:
    """But for the 16 bits of its numbers."""
    key = CacheKey(model_hash=fingerprint(LM), dtype="float32", layers=LAYERS, pooled=False)
    cached = Reader(cached_states(tmp_path, LM, key, CHAINS, num_maps=NUM_MAPS), CONFIG).read(":".join(CHAINS))
    live = live_reader(LM, LAYERS, CONFIG).read(":".join(CHAINS))
    assert np.array_equal(cached.aatype, live.aatype) and np.array_equal(cached.index, live.index)
    torch.testing.assert_close(cached.states, live.states, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(cached.maps, live.maps, rtol=2e-3, atol=2e-3)


def test_the_same_proteins_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = ":".join(CHAINS).lower()
    with_cache(live_reader(LM, LAYERS, CONFIG), tmp_path / "states", [together, CHAINS[0]])
    live = live_reader(LM, LAYERS, CONFIG).read(together)
    monkeypatch.setattr(GLM, "hidden", lambda *_, **__: pytest.fail("the language model is asked again"))
    again = with_cache(live_reader(LM, LAYERS, CONFIG), tmp_path / "states", [together, CHAINS[0]]).read(together)
    torch.testing.assert_close(again.states, live.states, rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(again.maps, live.maps, rtol=2e-3, atol=2e-3)


def test_a_cache_is_for_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(SequenceError):
        with_cache(live_reader(LM, LAYERS, CONFIG), tmp_path, ["MK1"])
    letters = Reader(None, SMALL)
    assert with_cache(letters, tmp_path, CHAINS) is letters and not any(tmp_path.iterdir())


def test_each_chain_is_read_on_its_own() -> None:
    reader = live_reader(LM, LAYERS, CONFIG)
    first, second = (reader.read(chain) for chain in CHAINS)
    both = reader.read(":".join(CHAINS).lower())
    assert torch.equal(both.states, torch.cat([first.states, second.states]))
    assert torch.equal(both.maps[:10, :10], first.maps) and torch.equal(both.maps[10:, 10:], second.maps)
    assert not both.maps[:10, 10:].any() and not both.maps[10:, :10].any()
    joined = reader.read("".join(CHAINS))
    assert (joined.states[10:] - second.states).abs().max() > 1e-2, "the model would have seen the other chain"


def test_a_chain_of_one_residue_has_maps_without_content() -> None:
    read = live_reader(LM, LAYERS, CONFIG).read("MK:V")
    assert torch.isfinite(read.maps).all() and read.maps[2, 2].abs().max() < 1e-6


def test_without_a_language_model_nothing_is_read() -> None:
    read = Reader(None, SMALL).read("MKV:GG")
    assert read.states.shape == (5, 0, 0) and read.maps.shape == (5, 5, 0)
    for source, config in ((None, CONFIG), (LiveStates(LM, LAYERS, pooled=False), SMALL)):
        with pytest.raises(ValueError, match="layers"):
            Reader(source, config)


class Placed(GLM):
    """A model that has learned 11 places, of which its own word needs one."""

    unknown, learned_places = 0, 11


def test_a_chain_has_to_fit_into_the_learned_places() -> None:
    lm = Placed(toy_config(), seed=3)
    reader = live_reader(lm, LAYERS, CONFIG)
    room = 11 - sum(lm.words_around)
    assert reader.max_length == room < 11
    reader.check("A" * room + ":" + "G" * room)
    for read in (reader.read, reader.check):
        with pytest.raises(SequenceError, match=rf"^P1: a chain of {room + 1} residues, .* learned {room} places; cut"):
            read("GG:" + "A" * (room + 1), name="P1")


def test_what_is_read_beyond_training_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(None, SMALL, trained_length=4)
    for sequence in ("MKVL", "MKVLA", "MKVLAG"):
        reader.read(sequence)
    assert live_reader(LM, LAYERS, CONFIG).trained_length == LM.max_length - sum(LM.words_around)
    assert [message.split(";")[0] for message in caplog.messages] == [
        "chains longer than the 4 residues of the language model's training rows"
    ]
    caplog.clear()
    for sequence in ("MK:VL", "MK:VL:AG"):
        reader.read(sequence)
    assert len(caplog.messages) == 1 and "how chains lie to each other is a guess" in caplog.text


def test_rows_of_pairs_as_whole_maps() -> None:
    rows = torch.tensor([[11.0, -11], [12, -12], [13, -13], [22, -22], [23, -23], [33, -33]])
    maps = square(rows, 3)
    assert maps[..., 0].tolist() == [[11, 12, 13], [12, 22, 23], [13, 23, 33]]
    assert torch.equal(maps[..., 1], -maps[..., 0])
