"""Fillings of hidden spans in figures: true residues, bits lost, ways against each other, and the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64

from xtrimo import figures
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.pages import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 20
MOODS = DRAWN, LIKELIEST, CHOSEN = "drawn", "likeliest", "chosen"
Filler = Literal["smask", "mlm"]
FromEnds = Literal["ends", "ends+mlm"]
ModelWay = Filler | FromEnds | Literal["guided"]
FILLERS: tuple[Filler, ...] = ("smask", "mlm")
FROM_ENDS: tuple[FromEnds, ...] = ("ends", "ends+mlm")
MODEL_WAYS: tuple[ModelWay, ...] = (*FILLERS, *FROM_ENDS, "guided")
FLOORS = ("composition", "3-gram")
CONSENSUS = "consensus"
WAYS = (*MODEL_WAYS, *FLOORS, CONSENSUS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filling:
    """What a way of filling made of all spans, in their order."""

    way: str
    mood: str
    """One of MOODS."""
    num_right: Float64[np.ndarray, "span"]
    """Residues of each span that are the true ones."""
    bits_lost: Float64[np.ndarray, "span"]
    """Of the whole protein under the family's HMMs, against the true residues."""

    @property
    def identity(self) -> Estimate:
        """Percent of all residues."""
        return bootstrap_ratio(100 * self.num_right, np.full(len(self.num_right), float(LENGTH)))

    @property
    def loss(self) -> Estimate:
        """Bits a protein."""
        return bootstrap_ratio(self.bits_lost, np.ones(len(self.bits_lost)))


def judged(
    way: str, mood: str, truths: Sequence[str], fills: Sequence[str], bits_lost: Float64[np.ndarray, "span"]
) -> Filling:
    """The figures of one way's residues, in the order of the true ones."""
    right = [sum(map(str.__eq__, truth, fill)) for truth, fill in zip(truths, fills, strict=True)]
    return Filling(way=way, mood=mood, num_right=np.array(right, dtype=np.float64), bits_lost=bits_lost)


def differences(fillings: Sequence[Filling]) -> list[Sequence[str]]:
    """The model's ways against the floors, and against each other, in the same mood and on the same proteins."""
    rows: list[Sequence[str]] = [("", "identity, points", "bits lost")]
    for mood in MOODS:
        of = {filling.way: filling for filling in fillings if filling.mood == mood}
        pairs = [(way, other) for way in MODEL_WAYS for other in (*FLOORS, CONSENSUS)]
        pairs += combinations(MODEL_WAYS, 2)
        for one, other in pairs:
            if {one, other} <= of.keys():
                rows.append((f"{one} - {other}, {mood}", *map(str, difference(of[one], of[other]))))
    return rows


def difference(one: Filling, other: Filling) -> tuple[Estimate, Estimate]:
    """Identity, in points, and bits lost: of one way less the other's, protein by protein."""
    num = len(one.num_right)
    right = bootstrap_ratio(100 * (one.num_right - other.num_right), np.full(num, float(LENGTH)))
    return right, bootstrap_ratio(one.bits_lost - other.bits_lost, np.ones(num))


def picture(fillings: Sequence[Filling]) -> "Figure":
    """Two panels of bars; the moods of a way below each other."""
    figure, panels = figures.blank(9.5, 3.6, columns=2)
    ways = sorted({filling.way for filling in fillings}, key=WAYS.index)
    moods = _moods(fillings)
    for axes, name, label in zip(panels, ("identity", "loss"), ("true residues, %", "bits lost"), strict=True):
        for number, mood in enumerate(moods):
            place = 0.8 * ((number + 0.5) / len(moods) - 0.5)
            for filling in fillings:
                if filling.mood != mood:
                    continue
                at, estimate = ways.index(filling.way) + place, getattr(filling, name)
                axes.barh(at, estimate.value, 0.76 / len(moods), color=figures.COLOURS[number], label=mood)
                axes.hlines(at, estimate.low, estimate.high, color="black", linewidth=1)
        axes.set_yticks(range(len(ways)), ways)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    panels[1].legend(unique.values(), unique.keys(), frameon=False, fontsize="small")
    return figure


def _moods(fillings: Sequence[Filling]) -> list[str]:
    there = {filling.mood for filling in fillings}
    return [mood for mood in MOODS if mood in there]


def report(fillings: Sequence[Filling], families: int, out: Path, about: str) -> list[Section]:
    """Of the page; writes its picture.

    Args:
        fillings: of the same spans.
        families: that they are of.
        out: folder of the picture.
        about: settings, in words.
    """
    of, moods = {(filling.way, filling.mood): filling for filling in fillings}, _moods(fillings)
    table: list[Sequence[str]] = [
        ("way", *(f"{what}, {mood}" for mood in moods for what in ("identity %", "bits lost")))
    ]
    for way in sorted({filling.way for filling in fillings}, key=WAYS.index):
        found = [of.get((way, mood)) for mood in moods]
        table.append((way, *(cell for f in found for cell in ((str(f.identity), str(f.loss)) if f else ("", "")))))
    text = (
        f"{len(fillings[0].num_right)} spans of {LENGTH} residues, each in another held-out member, of {families}"
        f" families. {about} identity: the share of the residues that are the true ones. bits lost: of the whole"
        " protein under its family's HMMs. In brackets 95 % bootstrap intervals over proteins; members of a family are"
        " alike, so they hold for these families."
    )
    image = ("identity and bits lost", figures.save(picture(fillings), out / "infilling.png"))
    return [
        Section(title="Infilling of held-out family members", text=text, table=table, images=[image]),
        Section(
            title="Differences on the same spans", text="Paired; of bits, fewer is better.", table=differences(fillings)
        ),
    ]
