"""The loss: what was not seen takes no part, a batch is its proteins, and the truth itself costs next to nothing."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from structure.data import Example
from structure.geometry import CA, CB, C, Frames, N, rename_ambiguous
from structure.lddt import lddt_atom37, lddt_ca
from structure.losses import BACKBONE_SLOTS, WEIGHTS, Terms, Truth, terms, total
from structure.model import Folded
from structure.openfold import constants
from tests.structure.models import chain
from tests.structure.truths import changed, crop_of, mapped, noisy, one_hot, perfect, together, truth_of

NAMES = [field.name for field in fields(Terms)]
BACKBONE = ("N", "CA", "C", "CB", "O")
BOTH = pytest.mark.parametrize("side_chains", [True, False])


def found(folded: Folded, truth: Truth, *, side_chains: bool = True, violations: bool = True) -> dict[str, Tensor]:
    result = terms(folded, truth, side_chains=side_chains, violations=violations)
    return {name: getattr(result, name) for name in NAMES}


def with_holes(example: Example, seed: int = 0) -> Example:
    """Some atoms, and all of some residues, were not seen."""
    seen = example.seen * (np.random.default_rng(seed).random(example.seen.shape) > 0.15)
    seen[10:14] = 0
    seen[20, :3], seen[21, 1], seen[22, 4] = (0, 1, 1), 0, 0
    return replace(example, seen=seen.astype(np.float32), atoms=(example.atoms * seen[..., None]).astype(np.float32))


def window(example: Example, start: int, stop: int) -> Example:
    parts = {name: getattr(example, name)[start:stop] for name in ("aatype", "index", "atoms", "seen")}
    return replace(example, **parts)


def with_atoms(truth: Truth, atoms: Tensor) -> Truth:
    return replace(truth, atoms=atoms)


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in NAMES if not torch.equal(one[name], other[name])}


def test_the_truth_of_a_batch() -> None:
    long, short = chain(), window(chain("4CUP.cif"), 3, 30)
    crops = [crop_of(short, clamp=True), crop_of(long)]
    truth = Truth.of(crops, device=torch.device("cpu"))
    assert truth.atoms.shape == (2, 70, 14, 3) and truth.clamp_ang.tolist() == [10.0, float("inf")]
    for row, example in enumerate((short, long)):
        for name in ("aatype", "index", "atoms", "seen"):
            values = getattr(truth, name)[row]
            np.testing.assert_array_equal(values[: len(example)].numpy(), getattr(example, name))
            assert not values[len(example) :].any()
        assert truth.mask[row].tolist() == [1.0] * len(example) + [0.0] * (70 - len(example))
    assert Truth.of(crops, device=torch.device("cpu"), length=81).seen.shape == (2, 81, 14)
    assert Truth.of(crops, device=torch.device("cpu"), length=50).seen.shape == (2, 70, 14)


def test_beta() -> None:
    """CB where it was seen; else where the backbone puts it, glycine's too; else nowhere."""
    example = chain()
    glycine = torch.from_numpy(example.aatype == constants.restype_order["G"])
    without_cb, without_c, blind = np.flatnonzero(~glycine)[:3]
    seen = example.seen.copy()
    seen[without_cb, CB] = seen[without_c, C] = 0
    seen[blind, [N, CB]] = 0
    places, known = truth_of(replace(example, seen=seen)).beta()
    assert known[0].tolist() == [float(at != blind) for at in range(len(example))]
    real, plain = torch.from_numpy(example.atoms[:, CB]), ~glycine
    plain[[without_cb, blind]] = False
    assert torch.equal(places[0, plain], real[plain])
    assert 0 < (places[0, without_cb] - real[without_cb]).norm() < 0.2
    apart = (places[0] - torch.from_numpy(example.atoms[:, CA])).norm(dim=-1)[glycine].tolist()
    assert apart and apart == pytest.approx([1.53] * len(apart), abs=0.05)


@BOTH
@pytest.mark.parametrize("file", ["1A8O.cif", "4CUP.cif"])
def test_the_truth_itself_is_at_the_floor(file: str, side_chains: bool) -> None:
    example = chain(file)
    got = found(perfect(example), truth_of(example), side_chains=side_chains)
    assert float(got["backbone"]) == pytest.approx(1e-3, rel=1e-2)
    assert float(got["all_atom"]) == pytest.approx(1e-3, rel=1e-2)
    assert float(got["torsion"]) < 1e-4
    for name in ("distogram", "plddt", "pae"):
        assert float(got[name]) < 1e-2, name
    assert float(got["violation"]) < 5e-3
    worse = found(noisy(example), truth_of(example), side_chains=side_chains)
    floors = dict(backbone=0.1, all_atom=0.1, torsion=0.1, distogram=0.1, plddt=1, pae=1, violation=0.1)
    assert all(float(worse[name]) > floor for name, floor in floors.items()), worse


def test_a_rigid_motion_costs_nothing_and_a_mirror_much() -> None:
    example = chain()
    truth, plain = truth_of(example), perfect(example)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    turn = turn * torch.linalg.det(turn)
    for matrix, costs in ((turn, False), (torch.diag(torch.tensor([1.0, 1.0, -1.0])), True)):

        def moved(frames: Frames, by: Tensor = matrix) -> Frames:
            kept = by @ frames.rotations @ torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(by))]))
            return Frames(kept, frames.translations @ by.T + 7)

        other = changed(plain, frames=moved(plain.frames), group_frames=moved(plain.group_frames),
                        atoms=plain.atoms @ matrix.T + 7)  # fmt: skip
        got = found(other, truth)
        for name in ("backbone", "all_atom"):
            assert (float(got[name]) > 0.3) if costs else (float(got[name]) == pytest.approx(1e-3, rel=5e-2)), name
        assert (float(got["pae"]) > 1) is costs


@BOTH
def test_a_batch_is_its_proteins_one_by_one(side_chains: bool) -> None:
    """Whatever stands where the shorter ones are padded."""
    examples = [window(chain("4CUP.cif"), 3, 30), with_holes(chain()), window(chain(), 20, 61)]
    folded = [noisy(example, seed=seed) for seed, example in enumerate(examples)]
    batch = found(together(*folded), truth_of(*examples), side_chains=side_chains)
    for at, (example, one) in enumerate(zip(examples, folded, strict=True)):
        alone = found(one, truth_of(example), side_chains=side_chains)
        for name in NAMES:
            assert float(batch[name][at]) == pytest.approx(float(alone[name]), rel=1e-4), (name, at)
    assert all(len(set(batch[name].tolist())) == 3 for name in NAMES)


@BOTH
def test_atoms_that_were_not_seen_take_no_part(side_chains: bool) -> None:
    """Junk in their place changes nothing; in the place of seen ones it changes all terms that read the truth."""
    example = with_holes(chain())
    truth, folded = truth_of(example), noisy(example)
    before = found(folded, truth, side_chains=side_chains)
    junk = 1e3 * torch.randn(truth.atoms.shape, generator=torch.Generator().manual_seed(1))
    unseen = truth.seen[..., None] == 0
    assert unseen[:, 30:].any() and float(truth.backbone.sum()) < 60
    after = found(folded, with_atoms(truth, torch.where(unseen, junk, truth.atoms)), side_chains=side_chains)
    assert differ(before, after) <= {"backbone"}  # whose points are first centred, seen or not: its last bit
    assert float(after["backbone"]) == pytest.approx(float(before["backbone"]), rel=1e-5)
    wrong = found(folded, with_atoms(truth, torch.where(unseen, truth.atoms, junk)), side_chains=side_chains)
    assert differ(before, wrong) == set(NAMES) - {"violation"}  # which needs no truth


def gradients(example: Example) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of all terms together by each tensor of a prediction, and 1 where it stands for something seen."""
    truth = truth_of(example)
    leaves = mapped(noisy(example), lambda value: value.clone().requires_grad_())
    result = terms(leaves, truth, side_chains=True, violations=True)
    total(result, 1.0).sum().backward()
    beta = truth.beta()[1]
    yield "atoms", leaves.atoms.grad[-1], truth.seen[..., None].expand(*truth.seen.shape, 3)
    yield "frames", leaves.frames.translations.grad, truth.backbone[None, ..., None].expand(2, 1, len(example), 3)
    yield (
        "pae",
        leaves.pae.grad,
        (truth.backbone[:, None] * truth.backbone[:, :, None])[..., None].expand(-1, -1, -1, 64),
    )
    yield "distogram", leaves.distogram.grad, (beta[:, None] * beta[:, :, None])[..., None].expand(-1, -1, -1, 64)


def test_no_gradient_reaches_what_was_not_seen() -> None:
    for name, gradient, seen in gradients(with_holes(chain())):
        assert gradient.isfinite().all(), name
        assert gradient[seen == 0].abs().max() < 1e-8 * gradient.abs().max(), name
        assert gradient[seen > 0].ne(0).float().mean() > 0.8, name


@pytest.mark.parametrize("violations", [True, False])
def test_where_nothing_was_seen_nothing_is_learned(violations: bool) -> None:
    example = chain()
    blind = replace(example, seen=np.zeros_like(example.seen), atoms=np.zeros_like(example.atoms))
    leaves = mapped(noisy(example), lambda value: value.clone().requires_grad_())
    result = terms(leaves, truth_of(blind), side_chains=True, violations=violations)
    assert not any(getattr(result, name).detach().any() for name in NAMES if name != "torsion")
    assert 0 < result.torsion.item() < 0.1  # the length of the vectors that stand for angles
    total(result, 1.0).sum().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in (leaves.atoms, *leaves.frames))


def test_without_side_chains_they_are_not_judged() -> None:
    """Neither those of the truth nor the predicted ones; with them they are."""
    example = chain()
    truth, folded = truth_of(example), noisy(example)
    junk = torch.randn(truth.atoms.shape, generator=torch.Generator().manual_seed(2))
    beyond = (torch.arange(14) >= BACKBONE_SLOTS)[:, None] * truth.seen[..., None]
    other = with_atoms(truth, truth.atoms + 5 * junk * beyond)
    shifted = changed(folded, atoms=folded.atoms + 5 * junk * beyond)
    for side_chains in (False, True):
        before = found(folded, truth, side_chains=side_chains)
        said, placed = (
            differ(before, found(*both, side_chains=side_chains)) for both in ((folded, other), (shifted, truth))
        )
        assert said == ({"all_atom", "torsion", "plddt"} if side_chains else set())
        assert placed - {"torsion"} == ({"all_atom", "plddt", "violation"} if side_chains else set())  # other names
    logits = torch.where(
        torch.tensor([atom in BACKBONE for atom in constants.atom_types])[:, None], folded.lddt, junk[0, 0, 0, 0]
    )
    for side_chains, told in ((False, set()), (True, {"plddt"})):
        before = found(folded, truth, side_chains=side_chains)
        assert differ(before, found(changed(folded, lddt=logits), truth, side_chains=side_chains)) == told


def test_names_that_chemistry_cannot_tell_apart() -> None:
    """A prediction with OD1 and OD2 exchanged, and the groups that they define, is as good as the truth."""
    example = chain("4CUP.cif")
    swapped = example.atoms.copy()
    for letter, pairs in {"D": [(6, 7)], "E": [(7, 8)], "F": [(6, 7), (8, 9)], "Y": [(6, 7), (8, 9)]}.items():
        for one, other in pairs:
            rows = np.flatnonzero((example.aatype == constants.restype_order[letter]) & (example.seen[:, other] > 0))
            swapped[rows[:, None], [one, other]] = example.atoms[rows[:, None], [other, one]]
    assert np.abs(swapped - example.atoms).max() > 1
    got = found(perfect(replace(example, atoms=swapped)), truth_of(example))
    assert float(got["all_atom"]) == pytest.approx(1e-3, rel=1e-2) and float(got["torsion"]) < 1e-4
    assert float(got["plddt"]) < 1e-6


def test_each_crop_has_its_clamp() -> None:
    example = chain()
    far = changed(
        noisy(example), frames=Frames(noisy(example).frames.rotations, 300 * noisy(example).frames.translations)
    )
    both = Truth.of([crop_of(example, clamp=True), crop_of(example)], device=torch.device("cpu"))
    clamped, free = found(together(far, far), both)["backbone"].tolist()
    assert 0.9 < clamped <= 1 and free > 50


def test_violations_cost_where_asked() -> None:
    example = chain()
    folded, truth = noisy(example), truth_of(example)
    quiet, loud = (terms(folded, truth, side_chains=True, violations=asked) for asked in (False, True))
    assert float(quiet.violation) == 0 and float(loud.violation) > 0.1
    assert float(total(loud, 0.5) - total(quiet, 0.5)) == pytest.approx(0.5 * float(loud.violation), rel=1e-4)


def test_the_head_of_the_lddt_is_told_of_its_own_atoms() -> None:
    """A prediction that is sure of the true bin of each atom costs nothing; of the next bin, everything."""
    example = chain()
    folded, truth = noisy(example), truth_of(example)
    scores, _ = lddt_atom37(
        truth.aatype, folded.atoms[-1], *rename_ambiguous(truth.aatype, folded.atoms[-1], truth.atoms, truth.seen)
    )
    ca = truth.atoms[..., 1, :]
    scores[..., 1] = lddt_ca(folded.atoms[-1][..., 1, :], ca, truth.seen[..., 1])  # that of the residue: among C-alphas
    bins = (scores * 50).long().clamp(max=49)
    assert len(bins.unique()) > 5
    for shift, low, high in ((0, 0.0, 0.5), (1, 20.0, 40.0)):
        cost = float(found(changed(folded, lddt=one_hot((bins + shift) % 50, 50)), truth)["plddt"])
        assert low <= cost < high


def test_weights() -> None:
    """AlphaFold 2, supplement, equation 7, with the fine-tuning's weight of the PAE."""
    values: dict[str, Any] = {name: torch.tensor([10.0**power, 1.0]) for power, name in enumerate(NAMES)}
    expected = 0.5 * 1 + 0.5 * 10 + 0.5 * 100 + 0.3 * 1e3 + 0.01 * 1e4 + 0.1 * 1e5
    assert NAMES == ["backbone", "all_atom", "torsion", "distogram", "plddt", "pae", "violation"]
    torch.testing.assert_close(total(Terms(**values)), torch.tensor([expected, 1.91]))
    torch.testing.assert_close(total(Terms(**values), 0.25), torch.tensor([expected + 0.25e6, 2.16]))
    assert set(WEIGHTS) == set(NAMES) - {"violation"}
