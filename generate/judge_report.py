"""What a judge has found, as files: judge.md, judge.html, their pictures, judge.json, and a row for each protein."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from generate.measures import GENERATED, HELD_OUT, MEASURES, Finding
from xtrimo.durable import write_json, write_text
from xtrimo.fasta import Record
from xtrimo.figures import COLOURS, GREY, blank, save
from xtrimo.pages import Section, to_html, to_markdown
from xtrimo.tokens import AMINO_ACIDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETS = {
    GENERATED: "the proteins that are judged",
    HELD_OUT: "real ones, of the family if there is one, not trained on; distances are between random halves of them",
    "copies": "such ones that were trained on, letter by letter: what a model that only remembers writes",
    "composition": "amino acids drawn one by one by their shares among these",
    "3-gram": "each residue drawn given the two before it, as these have them",
    "HMM": "written by the family's own HMMs, column by column: members by their score where the threshold is low",
}
"""The sets of proteins, in the order of the table's columns."""
_OF_COMPANY = ("distinct", "clusters_90", "clusters_50")  # say nothing of a protein by itself
_SHADES = dict(zip(SETS, (COLOURS[5], COLOURS[0], COLOURS[2], GREY, COLOURS[1], COLOURS[3]), strict=True))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """All figures of all sets."""

    family: str | None
    threshold: float | None
    """Bits from which a protein counts as a member of the family, if there is one."""
    source: str
    """Where the generated proteins come from."""
    sets: Mapping[str, Sequence[Record]]
    """Proteins that could be read, by set."""
    unreadable: tuple[str, ...]
    """Names of the generated records that could not."""
    findings: tuple[Finding, ...]
    methods: Mapping[str, str]
    """How it was done, and what with."""
    places: Mapping[str, Float64[np.ndarray, "protein 2"]] | None
    """On the map of embeddings, by set; None without a model."""

    def finding(self, measure: str, of: str = GENERATED) -> Finding | None:
        """One figure of one set, if it was measured."""
        return next((found for found in self.findings if (found.measure, found.of) == (measure, of)), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: no NaN, null where a figure is not defined."""
        figures: dict[str, dict[str, Any]] = {}
        for found in self.findings:
            ends = {end: _number(getattr(found.estimate, end)) for end in ("value", "low", "high")}
            figures.setdefault(found.measure, {})[found.of] = ends | {"num": found.num}
        return {
            "family": self.family, "threshold_bits": self.threshold, "source": self.source,
            "num": {of: len(records) for of, records in self.sets.items()}, "num_unreadable": len(self.unreadable),
            "methods": dict(self.methods), "measures": {name: figures[name] for name in MEASURES if name in figures},
        }  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_judgement(judgement: Judgement, out: Path) -> list[Path]:
    """All files; judge.md and judge.html first."""
    out.mkdir(parents=True, exist_ok=True)
    sections = list(_sections(judgement, out))
    files = [out / f"judge.{ending}" for ending in ("md", "html", "json", "csv")]
    write_text(files[0], to_markdown(sections, out))
    write_text(files[1], to_html(sections))
    write_json(files[2], judgement.to_dict())
    write_text(files[3], protein_rows(judgement))
    return [*files, *(path for section in sections for _, path in section.images)]


def protein_rows(judgement: Judgement) -> str:
    """A CSV table of the generated proteins: name, and what was measured of each by itself."""
    records = judgement.sets[GENERATED]
    columns = {
        name: found.values[: len(records)]
        for name in MEASURES
        if (found := judgement.finding(name)) and found.values is not None and name not in _OF_COMPANY
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", *columns))
    for number, record in enumerate(records):
        values = (float(column[number]) for column in columns.values())
        writer.writerow((record.name, *("" if math.isnan(value) else f"{value:.6g}" for value in values)))
    for name in judgement.unreadable:
        writer.writerow((name, *("0" if column == "valid" else "" for column in columns)))
    return text.getvalue()


def _sections(judgement: Judgement, out: Path) -> Iterator[Section]:
    left_out = f", of {len(judgement.unreadable)} more records nothing could be read" if judgement.unreadable else ""
    yield Section(
        title=f"{judgement.source} as {judgement.family}" if judgement.family else judgement.source,
        text=f"{len(judgement.sets[GENERATED]):,} proteins{left_out}. A figure stands with its 95 % interval over"
        " proteins. No figure means anything by itself: read it beside those of real members that were held out,"
        " and of the controls.",
        table=_table(judgement),
    )
    rows = [["set", "proteins", "what it is"]]
    rows += [[of, f"{len(records):,}", SETS[of]] for of, records in judgement.sets.items()]
    yield Section(title="Sets", table=rows)
    measured = {found.measure for found in judgement.findings}
    rows = [["measure", "better", "what it is"]]
    rows += [[m.title, m.better, m.says] for name, m in MEASURES.items() if name in measured]
    yield Section(title="Measures", table=rows)
    yield Section(title="Pictures", images=[(what, save(f, out / name)) for what, name, f in _pictures(judgement)])
    yield Section(title="How", table=[["what", "by"], *([what, by] for what, by in judgement.methods.items())])


def _table(judgement: Judgement) -> list[list[str]]:
    rows = [["measure", "better", *judgement.sets]]
    for name, measure in MEASURES.items():
        found = [judgement.finding(name, of) for of in judgement.sets]
        if any(found):
            rows.append([measure.title, measure.better, *(told(one) for one in found)])
    return rows


def told(found: Finding | None) -> str:
    """A figure and its interval, in words."""
    if found is None:
        return ""
    if math.isnan(found.estimate.value):
        return "not defined"
    ends = (found.estimate.value, found.estimate.low, found.estimate.high)
    value, low, high = (f"{end:.1f}" if abs(end) >= 100 else f"{end:.3g}" for end in ends)
    if math.isnan(found.estimate.low):
        return f"{value} (interval not defined)"
    return f"{value} ({low} to {high})" if found.estimate.low < found.estimate.high else value


def _pictures(judgement: Judgement) -> Iterator[tuple[str, str, "Figure"]]:
    """(what it shows, file name, figure)."""
    yield "lengths", "length.png", _lengths(judgement.sets)
    yield "amino acids", "composition.png", _composition(judgement.sets)
    if judgement.threshold is not None:
        what = "nearest training identity and bit score"
        yield what, "identity-bits.png", _identity_and_bits(judgement, judgement.threshold)
    if judgement.places is not None:
        yield "map of mean embeddings", "map.png", _map(judgement.places)


def _lengths(sets: Mapping[str, Sequence[Record]]) -> "Figure":
    figure, axes = blank(7, 3.6)
    lengths = {of: [len(record.sequence) for record in records] for of, records in sets.items()}
    bins = np.histogram_bin_edges(np.concatenate(list(lengths.values())), bins=40)
    for of, own in lengths.items():
        weights = np.full(len(own), 1 / len(own))
        width = 2.5 if of == GENERATED else 1.2
        axes.hist(own, bins, weights=weights, histtype="step", color=_SHADES[of], linewidth=width, label=of)
    axes.set(xlabel="residues", ylabel="share of proteins")
    axes.legend(frameon=False, fontsize="small")
    return figure


def _composition(sets: Mapping[str, Sequence[Record]]) -> "Figure":
    figure, axes = blank(9, 3.6)
    places = np.arange(len(AMINO_ACIDS))
    for number, (of, records) in enumerate(sets.items()):
        pooled = "".join(record.sequence for record in records)
        share = [100 * pooled.count(letter) / len(pooled) for letter in AMINO_ACIDS]
        axes.bar(places + 0.14 * (number - (len(sets) - 1) / 2), share, 0.14, color=_SHADES[of], label=of)
    axes.set_xticks(places, list(AMINO_ACIDS))
    axes.set(ylabel="% of residues")
    axes.legend(frameon=False, fontsize="small", ncols=3)
    return figure


def _identity_and_bits(judgement: Judgement, threshold: float) -> "Figure":
    figure, axes = blank(6.4, 4.8)
    places = {}
    for of in judgement.sets:
        found = [judgement.finding(measure, of) for measure in ("identity", "bits")]
        places[of] = np.stack([one.values for one in found if one is not None and one.values is not None], axis=1)
    _points(axes, places)
    axes.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
    axes.annotate("threshold", (0, threshold), (2, 3), textcoords="offset points", fontsize="x-small")
    axes.set(
        xlabel="identity to the nearest training protein", ylabel="best bit score of the family", xlim=(-0.02, 1.02)
    )
    return figure


def _map(places: Mapping[str, Float64[np.ndarray, "protein 2"]]) -> "Figure":
    figure, axes = blank(6.4, 4.8)
    _points(axes, places)
    axes.set(xlabel="first principal component", ylabel="second principal component", title="mean embeddings")
    return figure


def _points(axes: Any, places: Mapping[str, Float64[np.ndarray, "protein 2"]]) -> None:
    """A dot for each protein, the generated ones on top."""
    for of, own in places.items():
        top = of == GENERATED
        axes.scatter(*own.T, s=20 if top else 10, alpha=0.8, color=_SHADES[of], linewidths=0, zorder=2 + top, label=of)
    axes.legend(frameon=False, fontsize="small")
