"""How alike structures are, against formulas written out, other libraries and the program TM-align."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from Bio.SVDSuperimposer import SVDSuperimposer
from biotite import structure
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from structure import metrics
from xtrimo.chains import c_betas, read_structure
from xtrimo.errors import DataError

FILES = Path(__file__).parent / "files"


def chain(name: str) -> np.ndarray:
    """Places of a real chain, whole."""
    return next(read_structure(FILES / name)).xyz.astype(np.float64)


def alphas(name: str) -> np.ndarray:
    found = chain(name)[:, 1]
    return found[np.isfinite(found).all(1)]


def moved(points: np.ndarray, seed: int = 0) -> np.ndarray:
    return Rotation.random(rng=np.random.default_rng(seed)).apply(points.reshape(-1, 3)).reshape(points.shape) + 30.0


def noised(points: np.ndarray, size_ang: float, seed: int = 0) -> np.ndarray:
    """Each point about `size_ang` off."""
    return points + np.random.default_rng(seed).normal(size=points.shape) * size_ang / np.sqrt(3)


def hinged(points: np.ndarray) -> np.ndarray:
    """The second half turned against the first."""
    half = len(points) // 2
    return np.concatenate((points[:half], moved(points[half:], seed=3)))


def poor_models() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Models and references, from equal to unlike."""
    small, large = alphas("1A8O.cif"), alphas("4CUP.cif")
    pairs = {f"{len(x)} noise {size}": (noised(moved(x), size), x) for x in (small, large) for size in (2, 4, 6, 8)}
    pairs |= {f"{len(x)} hinge": (hinged(x), x) for x in (small, large)}
    pairs |= {f"{len(x)} hinge, noise 2": (noised(hinged(x), 2), x) for x in (small, large)}
    pairs |= {f"{len(x)} swapped halves": (np.roll(x, len(x) // 2, axis=0), x) for x in (small, large)}
    pairs |= {f"{len(x)} mirror": (x * [-1, 1, 1], x) for x in (small, large)}
    return pairs | {"another fold": (large[:70], small), "the same": (moved(small), small)}


@pytest.mark.parametrize("name", poor_models())
@pytest.mark.skipif(not shutil.which("TMalign"), reason="the program TMalign (Debian: tm-align) is not here")
def test_tm_score_is_that_of_tm_align(name: str, tmp_path: Path) -> None:
    model, reference = poor_models()[name]
    for file, points in (("model.pdb", model), ("reference.pdb", reference)):
        (tmp_path / file).write_text(
            "".join(
                f"ATOM  {row:5d}  CA  ALA A{row:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C  \n"
                for row, (x, y, z) in enumerate(points, start=1)
            )
            + "TER\n"
        )
    letters = "A" * len(model)
    (tmp_path / "pairs.fasta").write_text(f">model\n{letters}\n>reference\n{letters}\n")
    command = ["TMalign", "model.pdb", "reference.pdb", "-I", "pairs.fasta"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"User-specified initial alignment: TM/Lali/rmsd= *([\d.]+), *(\d+), *([\d.]+)", told)
    assert found is not None and int(found[2]) == len(model)
    assert metrics.best_scores(model, reference, len(model))[0] == pytest.approx(float(found[1]), abs=0.001)
    assert metrics.rmsd(model, reference) == pytest.approx(float(found[3]), abs=0.01)


@pytest.mark.parametrize("name", ["70 noise 4", "70 mirror"])
def test_no_superposition_found_otherwise_has_a_larger_tm_score(name: str) -> None:
    model, reference = poor_models()[name]
    model, reference = model - model.mean(0), reference - reference.mean(0)

    def loss(place: np.ndarray) -> float:
        apart = Rotation.from_rotvec(place[:3]).apply(model) + place[3:] - reference
        return -float((1 / (1 + (apart**2).sum(1) / metrics.tm_scale_ang(70) ** 2)).mean())

    rng = np.random.default_rng(0)
    turns = Rotation.random(16, rng=rng).as_rotvec()
    starts = [np.concatenate((turn, rng.normal(size=3) * 3)) for turn in turns]
    largest = max(-minimize(loss, start, method="L-BFGS-B", options={"maxiter": 60}).fun for start in starts)
    found = metrics.best_scores(model, reference, 70)[0]
    assert largest - 0.003 < found
    assert largest > found - 0.05  # the search by gradient works too


@pytest.mark.parametrize("name", poor_models())
def test_tm_score_is_no_less_than_of_one_superposition(name: str) -> None:
    model, reference = poor_models()[name]
    fitted, _ = structure.superimpose(reference, model)
    apart = np.linalg.norm(fitted - reference, axis=1)
    scale = max(0.5, 1.24 * (len(model) - 15) ** (1 / 3) - 1.8)
    by_hand = (1 / (1 + (apart / scale) ** 2)).mean()
    found, gdt_ts = metrics.best_scores(model, reference, len(model))
    assert by_hand - 1e-6 <= found <= 1.0
    assert np.mean([(apart <= cutoff - 1e-4).mean() for cutoff in (1, 2, 4, 8)]) <= gdt_ts <= 1.0


def test_a_bent_hinge_costs_half() -> None:
    reference = alphas("4CUP.cif")
    model = np.concatenate((reference[:60], reference[60:] @ [[0, 1, 0], [0, 0, 1], [1, 0, 0]] + 200.0))
    tm, gdt_ts = metrics.best_scores(model, reference, len(reference))
    assert tm == pytest.approx(60 / len(reference), abs=1e-3)
    assert gdt_ts == pytest.approx(60 / len(reference), abs=1e-9)
    fitted, _ = structure.superimpose(reference, model)
    assert np.linalg.norm(fitted - reference, axis=1).min() > 8  # one superposition of all finds nothing of it


def test_gdt_takes_each_cutoff_by_itself() -> None:
    reference = alphas("4CUP.cif")
    model = reference.copy()
    length = len(reference)
    model[::10] += np.where(np.arange(len(model[::10])) % 2, 3.0, -3.0)[:, None] * [0.0, 0.0, 1.0]  # within 4 and 8
    model[5::10] += [300.0, 0.0, 0.0]
    near, between = length - len(model[::10]) - len(model[5::10]), len(model[::10])
    by_hand = (4 * near + 2 * between) / (4 * length)
    _, gdt_ts = metrics.best_scores(model, reference, length)
    # a superposition that leans to one side holds half of those between within 2 as well
    assert by_hand <= gdt_ts <= by_hand + between / 2 / (4 * length) + 1e-9


@pytest.mark.parametrize(("length", "scale_ang"), [(5, 0.5), (15, 0.5), (21, 0.5), (100, 3.652), (300, 6.360)])
def test_scale_of_the_tm_score(length: int, scale_ang: float) -> None:
    assert metrics.tm_scale_ang(length) == pytest.approx(scale_ang, abs=1e-3)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_few_residues_are_superposed_as_well(length: int) -> None:
    reference = alphas("1A8O.cif")[:length]
    assert metrics.best_scores(moved(reference), reference, length) == pytest.approx((1.0, 1.0))
    line = np.arange(length)[:, None] * np.array([[3.8, 0.0, 0.0]])
    assert metrics.best_scores(moved(line), line, length) == pytest.approx((1.0, 1.0))


def test_distances_are_those_after_superposing_the_chosen() -> None:
    model, reference = noised(alphas("1A8O.cif"), 3), alphas("1A8O.cif")
    model, reference = model - model.mean(0), reference - reference.mean(0)
    chosen = np.random.default_rng(0).random((5, 70)) < 0.3
    squares = metrics._Pair(model, reference).squares(chosen)
    for row, mask in enumerate(chosen):
        other = SVDSuperimposer()
        other.set(reference[mask], model[mask])
        other.run()
        rotation, shift = other.get_rotran()
        np.testing.assert_allclose(squares[row], ((model @ rotation + shift - reference) ** 2).sum(1), atol=1e-6)


def test_rmsd_is_that_of_another_superposition() -> None:
    model, reference = moved(noised(alphas("1A8O.cif"), 3)), alphas("1A8O.cif")
    other = SVDSuperimposer()
    other.set(reference, model)
    other.run()
    assert metrics.rmsd(model, reference) == pytest.approx(other.get_rms(), abs=1e-4)
    assert metrics.rmsd(reference * [-1, 1, 1], reference) > 3


def test_lddt_is_its_formula() -> None:
    model, reference = noised(alphas("1A8O.cif"), 1.5), alphas("1A8O.cif")
    model[5], reference[9] = np.nan, np.nan
    shares: list[list[float]] = [[] for _ in reference]
    for i in range(70):
        for j in range(70):
            apart = np.linalg.norm(reference[i] - reference[j])
            if i != j and apart < 15:  # a comparison with NaN is false
                off = abs(np.linalg.norm(model[i] - model[j]) - apart)
                shares[i].append(np.mean([off < cutoff for cutoff in (0.5, 1, 2, 4)]))
    every = [share for row in shares for share in row]
    assert metrics.lddt(model, reference) == pytest.approx(np.mean(every), abs=1e-5)
    by_residue = metrics.lddt_of_residues(model, reference)
    assert np.isnan(by_residue[9]) and by_residue[5] == 0.0
    expected = [np.mean(row) if row else np.nan for row in shares]
    np.testing.assert_allclose(by_residue, expected, atol=1e-5)


def test_c_betas_are_where_they_are_seen() -> None:
    xyz = chain("1A8O.cif")
    seen = np.isfinite(xyz[:, 3]).all(1)
    assert seen.sum() > 60
    assert np.linalg.norm(c_betas(xyz)[seen] - xyz[seen, 3], axis=1).max() < 0.35


@pytest.mark.parametrize(("divisor", "separation"), [(5, 24), (2, 24), (1, 12), (1, 6)])
def test_contact_precision_is_counted_pair_by_pair(divisor: int, separation: int) -> None:
    reference = c_betas(chain("4CUP.cif"))
    model = noised(reference, 3)
    model[20:25], reference[50] = np.nan, np.nan
    pairs = []
    for i in range(len(model)):
        for j in range(i + separation, len(model)):
            if np.isfinite(reference[[i, j]]).all():
                apart = np.linalg.norm(model[i] - model[j])
                pairs.append((apart if np.isfinite(apart) else 1e9, np.linalg.norm(reference[i] - reference[j]) < 8))
    nearest = sorted(pairs)[: (len(model) - 1) // divisor]
    expected = sum(touch for _, touch in nearest) / len(nearest)
    assert 0 < expected < 1
    assert metrics.contact_precision(model, reference, divisor, separation) == pytest.approx(expected)


def test_a_model_without_places_has_no_contacts_right() -> None:
    reference = c_betas(chain("4CUP.cif"))
    assert metrics.contact_precision(reference, reference, 5) == 1.0
    packed = np.zeros_like(reference)  # all pairs touch, so that none is wrong by chance
    assert metrics.contact_precision(np.full_like(packed, np.nan), packed, 5) == 0.0
    assert np.isnan(metrics.contact_precision(reference[:24], reference[:24], 5))  # no pair is far enough apart


def test_compare_of_a_chain_with_itself() -> None:
    xyz = chain("4CUP.cif")
    found = metrics.compare(moved(xyz), xyz)
    assert (found.tm, found.lddt, found.gdt_ts, found.precision_l5) == pytest.approx((1, 1, 1, 1), abs=1e-6)
    assert found.rmsd_ang < 1e-3 and found.coverage == 1.0


def test_what_the_model_lacks_counts_against_it() -> None:
    xyz = chain("4CUP.cif")
    whole = np.isfinite(xyz[:, 1]).all(1).sum()
    model = xyz.copy()
    model[:40] = np.nan
    lacking = int(np.isfinite(xyz[:40, 1]).all(1).sum())
    found = metrics.compare(model, xyz)
    assert (found.num_aligned, found.num_reference) == (whole - lacking, whole)
    assert found.tm == pytest.approx(found.coverage, abs=1e-6) and found.gdt_ts == pytest.approx(found.coverage)
    assert found.lddt < 1 and found.rmsd_ang < 1e-3


def test_what_the_reference_lacks_does_not_count() -> None:
    xyz = chain("4CUP.cif")
    reference = xyz.copy()
    reference[:40] = np.nan
    model = xyz.copy()
    model[:40] += 100.0
    found = metrics.compare(model, reference)
    assert found.coverage == 1.0 and (found.tm, found.lddt) == pytest.approx((1, 1), abs=1e-6)


def test_nothing_in_common_is_refused() -> None:
    xyz = chain("1A8O.cif")
    with pytest.raises(DataError, match="no residue has a C-alpha in both structures, of 70"):
        metrics.compare(np.full_like(xyz, np.nan), xyz)
