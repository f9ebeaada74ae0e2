"""How alike two structures of one protein are: TM-score, RMSD, GDT-TS, lDDT and the precision of contacts.

Both come as arrays whose rows are the same residues; a residue that one of them lacks is NaN there. The model is judged
by what is seen of the reference: what the model lacks counts against it, what the reference lacks does not count.

TM-score (Zhang and Skolnick 2004, doi:10.1002/prot.20264) and GDT-TS (Zemla 2003, doi:10.1093/nar/gkg571) are maxima
over all superpositions. A superposition of all residues is only a lower bound: one bent hinge spoils it. So many are
tried: each starts from a fragment, takes in the residues that came close, is fitted to those, and so on until they stay
the same. Fragments are the whole chain, halves, quarters, down to four residues. The search is steered by the TM-score,
as in the authors' programs, so that GDT-TS may lie a hundredth below the maximum that a search of its own would find.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from xtrimo.chains import CONTACT_ANG, c_betas
from xtrimo.errors import DataError

SHORTEST = 4
"""Residues of the shortest fragments."""
STARTS = 8
"""Fragments that begin within the length of one: an eighth further gives hardly another superposition."""
STEPS = 20
"""Of taking in and fitting; nearly all starts stay the same after five."""
AT_ONCE = 2_000_000
"""Starts times residues held in memory together."""
GDT_CUTOFFS_ANG = (1.0, 2.0, 4.0, 8.0)
LONG_RANGE = 24
"""Residues that a long-range contact is apart at least."""

Points = Float64[np.ndarray, "residue 3"]
Starts = Bool[np.ndarray, "start residue"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A model beside its reference. NaN where there is nothing to measure, such as contacts of a short protein."""

    tm: float
    """TM-score, normalised by `num_reference`."""
    rmsd_ang: float
    """Of the C-alphas that both have, superposed."""
    lddt: float
    """Of C-alphas within 15 A, 0..1: the share of distances kept within 0.5, 1, 2, 4 A."""
    gdt_ts: float
    """Mean share of C-alphas within 1, 2, 4 and 8 A, each superposed as suits it best."""
    precision_l5: float
    """Of the L/5 long-range pairs of C-betas nearest in the model, the share that touches in the reference."""
    precision_l2: float
    precision_l: float
    num_aligned: int
    """Residues whose C-alpha both have."""
    num_reference: int
    """Residues whose C-alpha the reference has."""

    @property
    def coverage(self) -> float:
        """Share of the reference that the model has."""
        return self.num_aligned / self.num_reference


def compare(model: Float[np.ndarray, "length atom 3"], reference: Float[np.ndarray, "length atom 3"]) -> Comparison:
    """All measures.

    Args:
        model: N, CA, C in angstrom, and any further atoms; NaN where not there. Row i is the residue of row i of
            `reference`.
        reference: the same; all its rows, seen or not, so that rows count how far residues are apart.

    Raises:
        DataError: no residue has a C-alpha in both.
    """
    ca, reference_ca = model[:, 1].astype(np.float64), reference[:, 1].astype(np.float64)
    seen = np.isfinite(reference_ca).all(1)
    both = seen & np.isfinite(ca).all(1)
    if not both.any():
        raise DataError(
            f"no residue has a C-alpha in both structures, of {seen.sum()} that the reference has; "
            "compare structures of the same protein"
        )
    tm, gdt_ts = best_scores(ca[both], reference_ca[both], int(seen.sum()))
    precision = {divisor: contact_precision(c_betas(model), c_betas(reference), divisor) for divisor in (5, 2, 1)}
    return Comparison(
        tm=tm, gdt_ts=gdt_ts, rmsd_ang=rmsd(ca[both], reference_ca[both]), lddt=lddt(ca, reference_ca),
        precision_l5=precision[5], precision_l2=precision[2], precision_l=precision[1],
        num_aligned=int(both.sum()), num_reference=int(seen.sum()),
    )  # fmt: skip


def rmsd(model: Points, reference: Points) -> float:
    """Root mean square distance in angstrom, superposed."""
    from biotite import structure

    fitted, _ = structure.superimpose(reference, model)
    return float(structure.rmsd(reference, fitted))


def lddt(model: Points, reference: Points) -> float:
    """lDDT of C-alphas, 0..1 (Mariani et al. 2013, doi:10.1093/bioinformatics/btt473); the model may have NaN."""
    return float(_lddt(model, reference, "all")[0])


def lddt_of_residues(model: Points, reference: Points) -> Float64[np.ndarray, "residue"]:
    """lDDT of each C-alpha, 0..1; NaN where the reference was not seen or has no other within 15 A."""
    found = np.full(len(reference), np.nan)
    found[np.isfinite(reference).all(1)] = _lddt(model, reference, "atom")
    return found


def _lddt(model: Points, reference: Points, aggregation: str) -> Float64[np.ndarray, "value"]:
    from biotite import structure

    seen = np.isfinite(reference).all(1)
    atoms = structure.AtomArray(int(seen.sum()))
    atoms.coord = reference[seen]
    atoms.res_id = np.arange(len(atoms.coord))
    return np.atleast_1d(structure.lddt(atoms, model[seen], aggregation=aggregation)).astype(np.float64)


def contact_precision(model: Points, reference: Points, divisor: int, separation: int = LONG_RANGE) -> float:
    """`ranked_precision` of the pairs nearest in the model; those that the model lacks come last, and are wrong."""
    apart = np.linalg.norm(model[:, None] - model[None], axis=-1)
    return ranked_precision(-apart, reference, divisor, separation)


def ranked_precision(
    scores: Float[np.ndarray, "residue residue"], reference: Points, divisor: int, separation: int = LONG_RANGE
) -> float:
    """Of the L/divisor pairs of the highest scores, the share nearer than 8 A in the reference.

    L counts the residues that the reference has. Pairs are `separation` rows apart or more, and seen in the reference;
    a score of NaN is the lowest, and wrong. Of fewer pairs all are taken; NaN where there is none.
    """
    first, second = np.triu_indices(len(reference), k=separation)
    touch = np.linalg.norm(reference[first] - reference[second], axis=1)
    ranks = -scores[first, second][np.isfinite(touch)]
    touch = touch[np.isfinite(touch)]
    if not len(touch):
        return float("nan")
    wanted = max(1, int(np.isfinite(reference).all(1).sum()) // divisor)
    best = np.argsort(ranks, kind="stable")[:wanted]  # NaN sorts last
    return float((np.isfinite(ranks[best]) & (touch[best] < CONTACT_ANG)).mean())


def tm_scale_ang(num_residues: int) -> float:
    """d0: the distance at which a residue of a protein of this length counts one half (their equation 5)."""
    return max(0.5, 1.24 * float(np.cbrt(num_residues - 15)) - 1.8)


def best_scores(model: Points, reference: Points, num_reference: int) -> tuple[float, float]:
    """TM-score and GDT-TS: the largest over the superpositions tried, normalised by `num_reference`.

    Args:
        model: C-alphas in angstrom, row i the residue of row i of `reference`; no NaN.
        num_reference: residues of the reference, also those that are not among the rows.
    """
    scale_ang = tm_scale_ang(num_reference)
    near_ang = float(np.clip(scale_ang, 4.5, 8.0))  # what is taken in; the first time less, as fragments fit worse
    best_tm, best_within = 0.0, np.zeros(len(GDT_CUTOFFS_ANG))
    for squares, _ in _superpositions(model, reference, near_ang):
        best_tm = max(best_tm, float((1.0 / (1.0 + squares / scale_ang**2)).sum(1).max()))
        within = [(squares <= cutoff**2).sum(1).max() for cutoff in GDT_CUTOFFS_ANG]
        best_within = np.maximum(best_within, within)
    return best_tm / num_reference, float(best_within.mean()) / num_reference


def best_core(model: Points, reference: Points, num_reference: int) -> Bool[np.ndarray, "residue"]:
    """The residues which, laid on each other, give the largest TM-score; arguments as of `best_scores`."""
    scale_ang = tm_scale_ang(num_reference)
    best_tm, best = -1.0, np.ones(len(model), dtype=bool)
    for squares, chosen in _superpositions(model, reference, float(np.clip(scale_ang, 4.5, 8.0))):
        scores = (1.0 / (1.0 + squares / scale_ang**2)).sum(1)
        if scores.max() > best_tm:
            best_tm, best = float(scores.max()), chosen[int(scores.argmax())]
    return best


def _superpositions(
    model: Points, reference: Points, near_ang: float
) -> Iterator[tuple[Float64[np.ndarray, "start residue"], Starts]]:
    """Every superposition tried, many at a time: the squared distances of all residues, and which are superposed."""
    # centred at the origin, where the squares below lose least to rounding
    pair = _Pair(model - model.mean(0), reference - reference.mean(0))
    starts = _fragments(len(model))
    for begin in range(0, len(starts), max(1, AT_ONCE // len(model))):
        chosen = starts[begin : begin + max(1, AT_ONCE // len(model))]
        for step in range(STEPS):
            squares = pair.squares(chosen)
            yield squares, chosen
            taken = _near(squares, near_ang - 1.0 if step == 0 else near_ang + 1.0)
            chosen = np.unique(taken[(taken != chosen).any(1)], axis=0)  # many starts meet
            if not len(chosen):
                break


def _fragments(length: int) -> Starts:
    """Which residues each start is fitted to."""
    rows = []
    size = length
    while True:
        for begin in sorted({*range(0, length - size + 1, max(1, size // STARTS)), length - size}):
            row = np.zeros(length, dtype=bool)
            row[begin : begin + size] = True
            rows.append(row)
        if size <= SHORTEST:
            return np.stack(rows)
        size = max(SHORTEST, size // 2)


def _near(squares: Float64[np.ndarray, "start residue"], cutoff_ang: float) -> Starts:
    """Residues within a distance, and no fewer than the three nearest: fewer fix no superposition."""
    fewest = min(3, squares.shape[1])
    third = np.partition(squares, fewest - 1, axis=1)[:, fewest - 1]
    return squares <= np.maximum(third, cutoff_ang**2)[:, None]


class _Pair:
    """Two sets of points, and how far they are apart once some of them have been superposed.

    With y the reference, x the model, R and t the superposition:
    |R x + t - y|^2 = |x|^2 + |y|^2 + |t|^2 + 2 t.(R x) - 2 y.(R x) - 2 t.y
    is linear in what a superposition is, so that all starts and residues are one matrix product.
    """

    def __init__(self, model: Points, reference: Points) -> None:
        self.x, self.y = model, reference
        outer = np.einsum("ni,nj->nij", reference, model).reshape(-1, 9)
        squares = (model**2).sum(1) + (reference**2).sum(1)
        self.terms = np.column_stack([model, reference, outer, squares, np.ones_like(squares)])

    def squares(self, chosen: Starts) -> Float64[np.ndarray, "start residue"]:
        """Squared distances in angstrom^2, each row superposed on the residues chosen in it (Kabsch 1976)."""
        share = chosen / chosen.sum(1, keepdims=True)
        means = share @ self.terms
        middle, goal = means[:, :3], means[:, 3:6]
        covariance = means[:, 6:15].reshape(-1, 3, 3) - goal[:, :, None] * middle[:, None, :]
        left, _, right = np.linalg.svd(covariance)
        left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]  # no mirror image
        rotation = left @ right
        shift = goal - np.einsum("sij,sj->si", rotation, middle)
        weights = np.column_stack(
            [
                2.0 * np.einsum("sij,si->sj", rotation, shift),
                -2.0 * shift,
                -2.0 * rotation.reshape(-1, 9),
                np.ones(len(chosen)),
                (shift**2).sum(1),
            ]
        )
        return np.maximum(weights @ self.terms.T, 0.0)
