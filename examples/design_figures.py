"""What structures say of designs: figures of each protein, and means of a group with their intervals.

A group is proteins with a backbone each: designs as they were folded, native proteins as they were folded, native
structures as they were measured, and what has lost its order. MEASURES is a row a figure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float64

from structure.geometry import Frames, gram_schmidt
from structure.inverse import Backbone
from structure.metrics import LONG_RANGE, best_scores
from structure.prediction import Prediction
from xtrimo import figures
from xtrimo.chains import CONTACT_ANG, c_betas, is_bonded
from xtrimo.intervals import Estimate, bootstrap_ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURE, SAME = 70.0, 0.5
"""Mean pLDDT and self-consistency from which a design counts as foldable, as the field has it."""
CA, OXYGEN = 1, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """A protein and a backbone for it."""

    name: str
    sequence: str
    backbone: Backbone
    prediction: Prediction | None = None
    """What folded it; None where the backbone was not predicted."""
    found: Mapping[str, float] = field(default_factory=dict)
    """Figures that need more than this protein: those of inverse folding, and TM-scores to other structures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Proteins of one origin."""

    name: str
    said: str
    """What they are."""
    proteins: Sequence[Folded]

    def values(self, measure: str) -> Float64[np.ndarray, "protein"]:
        """Of each protein; NaN where it has none."""
        of = MEASURES[measure].of
        return np.array([of(each) for each in self.proteins], dtype=np.float64)

    def estimate(self, measure: str) -> Estimate | None:
        """The mean over proteins; None where no protein has the figure."""
        values = self.values(measure)
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        mean = bootstrap_ratio(values, np.ones_like(values))
        return MEASURES[measure].shown(mean)

    def foldable(self) -> int | None:
        """How many are sure and self-consistent; None where that was not asked."""
        plddt, same = self.values("plddt"), self.values("self_tm")
        known = np.isfinite(plddt) & np.isfinite(same)
        return int(((plddt >= SURE) & (same >= SAME))[known].sum()) if known.any() else None


def plddt(protein: Folded) -> float:
    """Mean over residues, 0..100."""
    return protein.prediction.mean_plddt if protein.prediction else math.nan


def ptm(protein: Folded) -> float:
    """0..1."""
    return protein.prediction.ptm if protein.prediction else math.nan


def size(protein: Folded) -> float:
    """Radius of gyration over what a globular protein of this length has, 2.2 A L^0.38.

    Skolnick et al. 1997, doi:10.1006/jmbi.1996.0720.
    """
    ca = protein.backbone[:, CA].astype(np.float64)
    return float(np.sqrt(((ca - ca.mean(0)) ** 2).sum(1).mean()) / (2.2 * len(ca) ** 0.38))


def contacts(protein: Folded) -> float:
    """Pairs of C-betas nearer than 8 A and 24 residues apart or more, per residue."""
    cb = c_betas(protein.backbone)
    first, second = np.triu_indices(len(cb), k=LONG_RANGE)
    return float((np.linalg.norm(cb[first] - cb[second], axis=1) < CONTACT_ANG).sum() / len(cb))


def regular(protein: Folded) -> float:
    """Share of the residues in helices and strands, by their C-alphas (P-SEA, as biotite has it)."""
    from biotite import structure

    array = structure.AtomArray(len(protein.sequence))
    array.coord = protein.backbone[:, CA].astype(np.float32)
    array.res_id = np.arange(len(protein.sequence))
    array.atom_name[:], array.res_name[:], array.element[:] = "CA", "GLY", "C"
    return float(np.isin(structure.annotate_sse(array), ("a", "b")).mean())


def broken(protein: Folded) -> float:
    """Share of the peptide bonds that are 2 A or longer."""
    places = protein.backbone.astype(np.float32)
    bonds = [is_bonded(one, other) for one, other in zip(places, places[1:], strict=False)]
    return 1 - float(np.mean(bonds)) if bonds else math.nan


def found(name: str) -> Callable[[Folded], float]:
    """A figure that was found before."""
    return lambda protein: protein.found.get(name, math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A column of the table."""

    title: str
    of: Callable[[Folded], float]
    said: str
    """What it means."""
    of_mean: Callable[[float], float] = float
    """From the mean over proteins to what is shown."""

    def shown(self, mean: Estimate) -> Estimate:
        """A mean in the measure's own terms."""
        return Estimate(**{end: self.of_mean(getattr(mean, end)) for end in ("value", "low", "high")})


MEASURES: dict[str, Measure] = {
    "plddt": Measure(title="pLDDT", of=plddt, said="how sure the folding model is, 0 to 100"),
    "ptm": Measure(title="pTM", of=ptm, said="the TM-score that it expects"),
    "size": Measure(title="size", of=size, said="radius of gyration over 2.2 A L^0.38, a globule's"),
    "contacts": Measure(title="contacts", of=contacts, said="long-range pairs that touch, per residue"),
    "regular": Measure(title="regular", of=regular, said="share of residues in helices and strands"),
    "broken": Measure(title="broken", of=broken, said="share of peptide bonds that are 2 A or longer"),
    "perplexity": Measure(
        title="perplexity", of=found("nats"), of_mean=math.exp,
        said="of the sequence on its backbone by inverse folding: exp of the mean nats; 20 knows nothing",
    ),
    "shuffled_perplexity": Measure(
        title="perplexity, shuffled", of=found("shuffled_nats"), of_mean=math.exp,
        said="the floor of that: of the same residues in random order on the same backbone",
    ),
    "recovery": Measure(
        title="recovery", of=found("recovery"), said="residues that inverse folding finds again on the backbone alone"
    ),
    "self_tm": Measure(
        title="self-consistent TM", of=found("self_tm"),
        said="sequences of inverse folding, folded: their mean TM-score to the backbone they were written for",
    ),
    "other_tm": Measure(
        title="TM of its shuffle", of=found("other_tm"),
        said="the floor of that: the TM-score of the same residues in random order, folded, to the backbone",
    ),
    "true_tm": Measure(title="TM to experiment", of=found("true_tm"), said="of a folded native to what was measured"),
}  # fmt: skip
"""By name, in the order of the columns."""


def tm_score(model: Backbone, reference: Backbone) -> float:
    """Of C-alphas, residue by residue; what is not a number counts as unlike."""
    ours, true = (backbone[:, CA].astype(np.float64) for backbone in (model, reference))
    return best_scores(ours, true, len(reference))[0]


def rejoined(backbone: Backbone, rng: np.random.Generator) -> Backbone:
    """The control of backbones: the same steps from residue to residue, in random order.

    A step is where N, CA, C of the next residue and O of this one lie in the frame of this one. So bonds, angles and
    pairs of torsions stay native, and the fold does not.
    """
    frames = _frames(backbone)
    local = np.einsum("iba,inb->ina", frames.rotations[:-1], backbone[1:] - frames.translations[:-1, None])
    own = np.einsum("iba,ib->ia", frames.rotations[:-1], backbone[:-1, OXYGEN] - frames.translations[:-1])
    built = np.zeros(backbone.shape)
    built[0] = backbone[0]
    order = rng.permutation(len(local))
    for place, step in enumerate(order.tolist()):
        frame = _frames(built[place : place + 1])
        rotation, origin = frame.rotations[0], frame.translations[0]
        built[place, OXYGEN] = rotation @ own[step] + origin
        built[place + 1] = local[step] @ rotation.T + origin
    return built


@dataclass(frozen=True, slots=True)
class _Frames:
    rotations: Float64[np.ndarray, "length 3 3"]
    translations: Float64[np.ndarray, "length 3"]


def _frames(backbone: Float[np.ndarray, "length 4 3"]) -> _Frames:
    n, ca, c = (torch.from_numpy(backbone[:, atom].astype(np.float64)) for atom in range(3))
    frames: Frames = gram_schmidt(c - ca, n - ca, ca)
    return _Frames(frames.rotations.numpy(), frames.translations.numpy())


def less(one: Group, other: Group, measure: str) -> Estimate | None:
    """The mean difference of two groups, protein by protein; None where none has both."""
    apart = one.values(measure) - other.values(measure)
    apart = apart[np.isfinite(apart)]
    return bootstrap_ratio(apart, np.ones_like(apart)) if len(apart) else None


def table(groups: Sequence[Group]) -> list[list[str]]:
    """A row a group: means with their intervals."""
    names = [name for name in MEASURES if any(group.estimate(name) for group in groups)]
    rows = [["proteins", "number", *(MEASURES[name].title for name in names), "foldable"]]
    for group in groups:
        estimates = [group.estimate(name) for name in names]
        foldable = group.foldable()
        rows.append([
            group.name, str(len(group.proteins)), *(_short(estimate) for estimate in estimates),
            "" if foldable is None else str(foldable),
        ])  # fmt: skip
    return rows


def _short(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    digits = 1 if abs(estimate.value) >= 10 else 2
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def to_dict(groups: Sequence[Group]) -> dict[str, Any]:
    """All figures, JSON-ready: means, and the values of each protein; null where there is none."""
    content: dict[str, Any] = {}
    for group in groups:
        figures_of: dict[str, Any] = {}
        for name in MEASURES:
            if estimate := group.estimate(name):
                values = [value if math.isfinite(value) else None for value in group.values(name).tolist()]
                ends = {end: getattr(estimate, end) for end in ("value", "low", "high")}
                figures_of[name] = ends | {"values": values}
        names = [protein.name for protein in group.proteins]
        content[group.name] = {"names": names, "foldable": group.foldable(), "figures": figures_of}
    return content


PICTURED = ("plddt", "perplexity", "recovery", "self_tm")


def picture(groups: Sequence[Group]) -> "Figure":
    """Each protein a point, a column of the picture a measure."""
    shown = [name for name in PICTURED if any(group.estimate(name) for group in groups)]
    figure, columns = figures.blank(1.5 + 2.9 * len(shown), 1.2 + 0.45 * len(groups), len(shown))
    rng = np.random.default_rng(0)
    for column, name in enumerate(shown):
        axes = np.atleast_1d(columns)[column]
        for number, group in enumerate(groups):
            values = np.array([MEASURES[name].of_mean(value) for value in group.values(name) if math.isfinite(value)])
            colour = figures.COLOURS[number % len(figures.COLOURS)]
            axes.scatter(values, number + rng.uniform(-0.25, 0.25, len(values)), s=9, color=colour, linewidths=0)
            if estimate := group.estimate(name):
                axes.hlines(number, estimate.low, estimate.high, color="black", linewidth=3)
        axes.set_yticks(range(len(groups)), [group.name if column == 0 else "" for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(MEASURES[name].title)
        axes.set_xscale("log" if name == "perplexity" else "linear")
        axes.grid(axis="x", alpha=0.3)
    return figure
