"""What is said of a folding model: on predictions made by hand, whose figures are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from structure import judging
from structure.data import Example
from structure.features import Protein
from structure.judging import Judged, contact_probability, folded, judge, judge_chain, mean_lddt, reliability, report
from structure.lddt import lddt_ca
from structure.model import Folded
from structure.openfold import constants
from tests.structure.models import TRUNKS, batch, chain, model_of, protein
from tests.structure.truths import changed, distance_bins, distances, noisy, one_hot, perfect

Says = dict[str, Folded]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """What the model predicts, by the name of the chain."""
    predictions: Says = {}
    monkeypatch.setattr(judging, "folded", lambda _, name: predictions[name])
    return predictions


def name_of(example: Example) -> Any:
    """In place of the protein that a model would read."""
    return example.name


def judged(says: Says, example: Example, prediction: Folded) -> Judged:
    says[example.name] = prediction
    return judge_chain(nn.Identity(), example, name_of)


def with_plddt(prediction: Folded, plddt: np.ndarray) -> Folded:
    """Sure of a pLDDT of each C-alpha; of all other atoms, of the opposite."""
    bins = torch.from_numpy((np.asarray(plddt) / 2).astype(np.int64)).clamp(0, 49)
    each = (49 - bins)[None, :, None].repeat(1, 1, 37)
    each[0, :, constants.atom_order["CA"]] = bins
    return changed(prediction, lddt=one_hot(each, 50))


@pytest.mark.parametrize("file", ["1A8O.cif", "4CUP.cif"])
def test_a_copy_of_the_truth_is_perfect(says: Says, file: str) -> None:
    """Also turned and moved."""
    example = chain(file)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    plain = perfect(example)
    copy = changed(plain, atoms=plain.atoms @ (turn * torch.linalg.det(turn)).T + 7)
    for prediction in (plain, copy):
        found = judged(says, example, prediction)
        assert (found.lddt, found.tm, found.precision) == (pytest.approx(1), pytest.approx(1, abs=1e-4), 1)
        np.testing.assert_allclose(found.plddt, 99, atol=1e-3)
        np.testing.assert_allclose(found.true_lddt, 100)
    mirror = judged(says, example, changed(plain, atoms=plain.atoms * torch.tensor([1.0, 1.0, -1.0])))
    assert mirror.tm < 0.6 and mirror.lddt > 0.9  # which knows no hands


def test_only_the_last_layer_is_judged(says: Says) -> None:
    example = chain()
    right, wrong = perfect(example).atoms[-1], noisy(example).atoms[-1]
    last = judged(says, example, changed(perfect(example), atoms=torch.stack((wrong, right))))
    first = judged(says, example, changed(perfect(example), atoms=torch.stack((right, wrong))))
    assert last.lddt == pytest.approx(1) and first.lddt < 0.8
    assert mean_lddt_of(says, example, torch.stack((wrong, right))) == pytest.approx(1)
    assert mean_lddt_of(says, example, torch.stack((right, wrong))) == pytest.approx(first.lddt, abs=0.02)


def mean_lddt_of(says: Says, example: Example, atoms: torch.Tensor) -> float:
    says[example.name] = changed(perfect(example), atoms=atoms)
    return mean_lddt(nn.Identity(), [example], name_of)


def test_residues_that_were_not_seen_are_not_judged(says: Says) -> None:
    """Whatever is predicted for them; they count neither for nor against."""
    example = chain("4CUP.cif")
    seen = example.seen * (np.arange(len(example)) >= 40)[:, None]
    half = replace(example, seen=seen.astype(np.float32), atoms=(example.atoms * seen[..., None]).astype(np.float32))
    lost = perfect(example).atoms.clone()
    lost[:, :, :40] += 50 * torch.randn(40, 1, 1, generator=torch.Generator().manual_seed(0))
    found = judged(says, half, changed(perfect(example), atoms=lost))
    assert (found.lddt, found.tm, found.precision) == (pytest.approx(1), pytest.approx(1, abs=1e-4), 1)
    assert len(found.plddt) == len(found.true_lddt) == seen[:, 1].sum() < len(example) - 39
    assert mean_lddt_of(says, half, lost) == pytest.approx(1)
    whole = judged(says, example, changed(perfect(example), atoms=lost))
    assert whole.lddt < 0.9 and whole.tm < 0.9


def test_precision_is_that_of_the_best_long_range_pairs(says: Says) -> None:
    """Of L/5 pairs that the distogram is surest of: of so many right and so many wrong ones, and of those no more."""
    example = chain("4CUP.cif")
    apart, length = distances(example), len(example)
    far = np.abs(np.subtract.outer(np.arange(length), np.arange(length))) >= 24
    wanted = int(example.seen[:, 1].sum()) // 5
    touch = [pair for pair in np.argwhere((apart < 7.5) & far) if pair[0] < pair[1]]
    away = [pair for pair in np.argwhere((apart > 9) & far) if pair[0] < pair[1]]
    assert len(touch) > wanted / 2 and wanted > 10
    for num_right in (0, 3, wanted // 2):
        logits = one_hot(torch.full((length, length), 40), 64)
        for first, second in [*touch[:num_right], *away[: wanted - num_right]]:
            logits[first, second] = logits[second, first] = one_hot(torch.tensor(12), 64)
        logits[torch.from_numpy(~far)] = one_hot(torch.tensor(3), 64)  # neighbours touch as well, and are not asked for
        found = judged(says, example, changed(perfect(example), distogram=logits[None]))
        assert found.precision == pytest.approx(num_right / wanted)


def test_a_contact_is_nearer_than_8_angstrom() -> None:
    """Of the bin from 7.9375 to 8.25 a fifth is."""
    sure = contact_probability(one_hot(torch.arange(64).reshape(8, 8), 64)).flatten()
    assert distance_bins(np.array([7.93, 7.95, 8.24, 8.26])).tolist() == [18, 19, 19, 20]
    assert sure.tolist() == pytest.approx([1.0] * 19 + [0.2] + [0.0] * 44, abs=1e-5)
    logits = torch.randn(5, 5, 64, generator=torch.Generator().manual_seed(0))
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(-1, keepdims=True)
    expected = shares[..., :19].sum(-1) + 0.2 * shares[..., 19]
    np.testing.assert_allclose(contact_probability(logits).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(contact_probability(logits.bfloat16()).numpy(), expected, rtol=0.02)


def test_lddt_and_plddt_of_residues(says: Says) -> None:
    example = chain()
    prediction = noisy(example)
    truth = torch.from_numpy(example.atoms)[None, :, 1]
    expected = lddt_ca(prediction.atoms[-1][:, :, 1], truth, torch.ones(1, len(example)))[0]
    wished = np.linspace(2, 98, len(example))
    found = judged(says, example, with_plddt(prediction, wished))
    np.testing.assert_allclose(found.true_lddt, 100 * expected.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.plddt, 2 * (wished // 2) + 1, atol=1e-3)
    assert mean_lddt_of(says, example, prediction.atoms) == pytest.approx(float(expected.mean()))


def chain_of(lddt: float, precision: float = 0.5, size: int = 2) -> Judged:
    rng = np.random.default_rng(int(1000 * lddt))
    true = rng.uniform(0, 100, size)
    plddt = true / 2 + rng.uniform(0, 30, size)
    logits = one_hot(torch.from_numpy(plddt / 2).long(), 50).numpy()
    return Judged(lddt=lddt, tm=lddt / 2, precision=precision, true_lddt=true, plddt=plddt, logits=logits)


THREE = [replace(chain(), name=str(number)) for number in range(3)]


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module, list[Judged]]:
    """A trained one, whose chains are given, and an untrained one."""
    trained, untrained = nn.Linear(1, 1), nn.Linear(1, 1)
    ours = [chain_of(0.9, 0.4, 30), chain_of(0.7, float("nan"), 10), chain_of(0.5, 0.2, 50)]

    def said(module: nn.Module, example: Example, read: Any) -> Judged:
        assert not module.training
        return ours[int(example.name)] if module is trained else chain_of(0.1, 0.0)

    monkeypatch.setattr(judging, "judge_chain", said)
    return trained, untrained, ours


def test_figures_are_means_over_chains(two_models: tuple[nn.Module, nn.Module, list[Judged]]) -> None:
    trained, untrained, ours = two_models
    found = judge(trained, untrained, THREE, name_of)
    assert found["num_chains"] == 3
    values = {name: found["trained"][name]["value"] for name in ("lddt", "tm", "precision")}
    assert values == pytest.approx({"lddt": 0.7, "tm": 0.35, "precision": 0.3})  # of those that have pairs
    assert found["untrained"]["lddt"]["value"] == pytest.approx(0.1)
    assert 0.5 <= found["trained"]["lddt"]["low"] < 0.7 < found["trained"]["lddt"]["high"] <= 0.9
    assert [row["precision"] for row in found["chains"]] == [0.4, None, 0.2]
    plddt, true = (np.concatenate([getattr(one, name) for one in ours]) for name in ("plddt", "true_lddt"))
    assert len(plddt) == 90 and found["correlation"] == pytest.approx(np.corrcoef(plddt, true)[0, 1])
    assert 0.5 < found["correlation"] < 0.99
    assert found["reliability"] == reliability(plddt, true)


def test_a_figure_that_no_chain_has_is_left_out(two_models: tuple[nn.Module, nn.Module, list[Judged]]) -> None:
    trained, untrained, ours = two_models
    ours[:] = [replace(one, precision=float("nan")) for one in ours]
    found = judge(trained, untrained, THREE, name_of)
    assert set(found["trained"]) == {"lddt", "tm"} and "precision" not in report({"judged_on": "test", "test": found})


def test_report(two_models: tuple[nn.Module, nn.Module, list[Judged]]) -> None:
    trained, untrained, _ = two_models
    found = judge(trained, untrained, THREE, name_of)
    said = report({"judged_on": "test", "test": found}).splitlines()
    assert said[0].startswith("3 chains not trained on")
    assert said[1].split()[:2] == ["lddt", "0.700"] and "untrained 0.100" in said[1] and len(said) == 5
    assert said[-1].endswith(f"by {found['correlation']:.2f}")


def test_reliability() -> None:
    plddt = np.array([1.0, 9.9, 10.0, 55.0, 98.0, 99.0])
    true = np.array([0.0, 10.0, 20.0, 60.0, 80.0, 90.0])
    assert reliability(plddt, true) == [
        {"low": 0, "high": 10, "num_residues": 2, "plddt": pytest.approx(5.45), "lddt": 5.0},
        {"low": 10, "high": 20, "num_residues": 1, "plddt": 10.0, "lddt": 20.0},
        {"low": 50, "high": 60, "num_residues": 1, "plddt": 55.0, "lddt": 60.0},
        {"low": 90, "high": 100, "num_residues": 2, "plddt": 98.5, "lddt": 85.0},
    ]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_model_is_judged_with_the_recycles_of_its_training(trunk: str) -> None:
    config = TRUNKS[trunk]
    model, one = model_of(config), protein(13, config=config)
    with torch.no_grad():
        expected = model(batch(one), num_recycles=config.max_recycles).atoms
        assert torch.equal(folded(model, one).atoms, expected)


def test_a_real_model() -> None:
    """From the residues to the figures; what the untrained one says differs."""
    example = chain()

    def read(one: Example) -> Protein:
        return Protein(
            aatype=one.aatype, index=one.index, states=torch.zeros(len(one), 0, 0),
            maps=torch.zeros(len(one), len(one), 0),
        )  # fmt: skip

    found = judge(model_of(TRUNKS["trimul"]).train(), model_of(TRUNKS["trimul"], seed=1).train(), [example], read)
    assert found["num_chains"] == 1 and found["trained"]["lddt"] != found["untrained"]["lddt"]
    assert all(0 <= found["trained"][name]["value"] <= 1 for name in ("lddt", "tm", "precision"))
    assert sum(row["num_residues"] for row in found["reliability"]) == 70
