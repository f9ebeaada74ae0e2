"""The temperature of pLDDT: against a grid of all temperatures, in the model's forward pass, and in its directory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from structure import fold, load_fold
from structure.calibration import LEAST_SURE, SUREST, apply_temperature, calibrate
from structure.confidence import expected_plddt
from structure.config import FoldConfig
from structure.fold_directory import CONFIG, FoldFacts, save_fold
from structure.judging import Judged
from tests.structure.models import SMALL, model_of, pipeline
from xtrimo.errors import ConfigError


def chains_of(logits: Tensor, bins: Tensor, *, num: int = 3) -> list[Judged]:
    """Some chains whose residues have these logits, and a true lDDT in the middle of these bins."""
    found = []
    for said, true in zip(logits.chunk(num), bins.chunk(num), strict=True):
        found.append(
            Judged(
                lddt=0.5,
                tm=0.5,
                precision=0.5,
                plddt=expected_plddt(said).numpy(),
                logits=said.numpy(),
                true_lddt=(true.numpy() + 0.5) / said.shape[-1] * 100,
            )  # fmt: skip
        )
    return found


def drawn(temperature: float, *, num: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and bins that are drawn as likely as the logits say at this temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, 50, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_bins_were_drawn_at_is_found(true: float) -> None:
    logits, bins = drawn(true)
    found = calibrate(chains_of(logits, bins))
    grid = np.geomspace(0.3, 4, 120)
    nats = [float(F.cross_entropy(logits.double() / t, bins)) for t in grid]
    assert found.temperature == pytest.approx(grid[int(np.argmin(nats))], rel=0.02)
    assert found.temperature == pytest.approx(true, rel=0.1) and found.num_residues == len(bins)
    assert found.nats_before == pytest.approx(float(F.cross_entropy(logits.double(), bins)))
    assert found.nats_after == pytest.approx(min(nats), abs=1e-3) and found.nats_after <= found.nats_before
    assert not found.is_constant and "constant:" not in str(found)


def test_bins_are_those_that_the_loss_teaches() -> None:
    """An lDDT of 100 is in the last one, and what lies on an edge in the upper one."""
    chain = chains_of(torch.zeros(4, 50), torch.zeros(4).long(), num=1)[0]
    object.__setattr__(chain, "true_lddt", np.array([100.0, 2.0, 1.99, 0.0]))
    object.__setattr__(chain, "logits", 10 * np.eye(50, dtype=np.float32)[[49, 1, 0, 0]])
    assert calibrate([chain]).temperature == pytest.approx(SUREST, rel=1e-3)  # each is right, so none can be too sure


def test_a_model_that_is_always_wrong_is_made_unsure() -> None:
    bins = torch.arange(60) % 50
    found = calibrate(chains_of(10 * F.one_hot((bins + 20) % 50, 50).float(), bins))
    assert found.temperature == pytest.approx(LEAST_SURE, rel=1e-3) and found.nats_after < found.nats_before


def test_a_level_that_is_right_is_not_given_up_for_likelihood() -> None:
    """Sharp, a bin or two off each time: to say nothing is likelier, and 40 points from the truth."""
    bins = torch.randint(46, 50, (400,), generator=torch.Generator().manual_seed(0))
    said = 46 + (bins - 46 + 2) % 4
    found = calibrate(chains_of(30 * F.one_hot(said, 50).float(), bins))
    assert found.temperature == 1 and found.nats_after == found.nats_before


def test_a_constant_is_called_one() -> None:
    """Whatever its level; and what varies without telling anything is no better than a constant."""
    _, bins = drawn(1.0)
    same = calibrate(chains_of(torch.randn(50).repeat(len(bins), 1), bins))
    assert same.is_constant and same.spread < 1e-3 and "pLDDT is a constant" in str(same)
    assert same.nats_after >= same.nats_constant
    two, said = (5 + 20 * torch.randint(2, (1000,), generator=torch.Generator().manual_seed(i)) for i in range(2))
    blind = calibrate(chains_of(9 * F.one_hot(said, 50).float(), two))
    assert not blind.is_constant and str(blind).endswith("no better than a constant")
    assert json.loads(json.dumps(same.to_dict()))["said"] == str(same)


def test_without_a_residue_nothing_is_changed() -> None:
    found = calibrate(chains_of(torch.zeros(0, 50), torch.zeros(0).long(), num=1))
    assert found.temperature == 1 and found.num_residues == 0 and "no validation residue" in str(found)


def test_plddt_is_divided_and_atoms_stay() -> None:
    whole = pipeline(SMALL)
    (before,) = fold(whole, ["MKTAYIAKQR"])
    logits: list[Tensor] = []
    hook = whole.model.register_forward_hook(lambda _, __, folded: logits.append(folded.lddt))
    fold(whole, ["MKTAYIAKQR"])
    apply_temperature(whole.model, 4.0)
    apply_temperature(whole.model, 0.5)
    (after,) = fold(whole, ["MKTAYIAKQR"])
    hook.remove()
    assert whole.model.config.lddt_temperature == 2.0
    assert torch.equal(logits[1], logits[0] / 2)
    np.testing.assert_allclose(after.plddt, expected_plddt(logits[0] / 2)[0, :, 1].numpy(), rtol=1e-6)
    assert not np.allclose(after.plddt, before.plddt) and np.array_equal(after.atoms, before.atoms)
    assert after.ptm == before.ptm and np.array_equal(after.pae_ang, before.pae_ang)


def test_a_directory_keeps_its_temperature_and_an_old_one_has_none(tmp_path: Path) -> None:
    model = model_of(SMALL)
    (plain,) = fold(pipeline(SMALL), ["MKTAYIAKQR"])
    apply_temperature(model, 3.0)
    save_fold(tmp_path / "model", model, FoldFacts(config=model.config))
    assert load_fold(tmp_path / "model").model.confidence.temperature == 3.0
    (calibrated,) = fold(tmp_path / "model", ["MKTAYIAKQR"])
    assert not np.allclose(calibrated.plddt, plain.plddt)

    path = tmp_path / "model" / CONFIG
    content = json.loads(path.read_text())
    assert content["config"].pop("lddt_temperature") == 3.0
    path.write_text(json.dumps(content))
    (old,) = fold(tmp_path / "model", ["MKTAYIAKQR"])
    assert np.array_equal(old.plddt, plain.plddt) and np.array_equal(old.atoms, plain.atoms)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(ConfigError, match="lddt_temperature"):
        FoldConfig(lddt_temperature=temperature)
