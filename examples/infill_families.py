"""Infilling judged: spans of 20 residues hidden in held-out family members, filled in several ways, one page.

    python examples/infill_families.py DATA --model MODEL --out OUT

DATA is a folder with families.fasta.gz (headers `family=NAME split=test`), families.hmm.gz (HMMs NAME_1, NAME_2 ..) and
sample.fasta.gz, proteins that the letter statistics are counted in. OUT gets infilling.md and infilling.png.

A span lies inside of what the family's best HMM recognizes, one in a protein. Two figures say how well it was filled:
the share of the residues that are the true ones, and the bits that the protein loses under the family's HMMs. Ways:

    smask        blank filling: the span written from N to C, all around it in view
    mlm          the same model, by its masks: the span decided in rounds
    composition  letters by their shares in the sample: knows nothing of the protein
    3-gram       each letter given the two before it: knows what stands on the left
    consensus    what the family's best HMM finds likeliest in these columns: it has seen the family's training members

Each but the last fills twice: drawn, as the model holds it (temperature 1, or --temperature), and likeliest
(temperature 0). A model that was tuned on families reads the tag of each in front of its protein with --tag family.
Intervals are bootstrap over proteins, paired where ways are compared.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from tyro.conf import Positional

from generate.controls import trigram_table
from generate.infilling import infill
from generate.members import fact
from generate.membership import bit_scores, of_family, read_hmms
from generate.prompt import Fixed, Gap, Prompt
from xtrimo import figures
from xtrimo.backbone import Backbone, load
from xtrimo.errors import DataError
from xtrimo.fasta import Record, read_fasta
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE, encode_residues
from xtrimo.trigrams import EDGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 20
ROUNDS = 10  # of mlm: two residues in each
MOODS = ("drawn", "likeliest")
ModelWay = Literal["smask", "mlm"]
MODEL_WAYS: tuple[ModelWay, ...] = ("smask", "mlm")
FLOORS = ("composition", "3-gram")
WAYS = (*MODEL_WAYS, *FLOORS, "consensus")

logger = logging.getLogger("xtrimo.examples")
Table = Float64[np.ndarray, "word word letter"]


class Span(NamedTuple):
    """20 residues of a protein, to be hidden."""

    protein: Record
    family: str
    start: int
    """Of the first one, counted from 0."""
    tag: str = ""
    """The name of a tag that says the family to the model; empty for none."""

    @property
    def truth(self) -> str:
        """The residues that stand there."""
        return self.protein.sequence[self.start : self.start + LENGTH]

    @property
    def prompt(self) -> Prompt:
        """What is around them, the tag in front."""
        ends = self.protein.sequence[: self.start], self.protein.sequence[self.start + LENGTH :]
        before, after = ([Fixed(end)] if end else [] for end in ends)
        return Prompt((*before, Gap(LENGTH, LENGTH), *after), ((self.tag, self.family),) if self.tag else ())

    def filled(self, residues: str) -> str:
        """The whole protein with other residues there."""
        return self.protein.sequence[: self.start] + residues + self.protein.sequence[self.start + LENGTH :]


class Match(NamedTuple):
    """A protein on the HMM that scores it best."""

    hmm: Any
    bits: float
    start: int
    end: int
    """Residues start .. end - 1 of the protein are in the envelope of its best domain."""
    columns: Mapping[int, int]
    """Residue -> match column of the HMM, both counted from 0; of all domains."""


def best_match(hmms: Sequence[Any], sequence: str) -> Match | None:
    """Where a protein fits the HMM that gives it the most bits; None without a hit."""
    from pyhmmer.easel import Alphabet, DigitalSequenceBlock, TextSequence
    from pyhmmer.hmmer import hmmsearch

    letters = Alphabet.amino()
    block: Any = DigitalSequenceBlock(letters, [TextSequence(name="protein", sequence=sequence).digitize(letters)])
    queries: Any = hmms
    answers = enumerate(hmmsearch(queries, block, cpus=1, Z=1000))
    found = [(hit.score, number, hit) for number, hits in answers for hit in hits]
    if not found:
        return None
    bits, number, hit = max(found, key=lambda item: item[:2])
    columns: dict[int, int] = {}
    for domain in sorted(hit.domains, key=lambda domain: domain.score):  # the best one has the last word
        columns |= _columns(domain.alignment)
    best = hit.best_domain
    return Match(hmms[number], bits, best.env_from - 1, best.env_to, columns)


def _columns(alignment: Any) -> dict[int, int]:
    """Residue -> match column of one domain, from its two rows of text: a dot is an insertion, a dash a deletion."""
    columns = {}
    residue, column = alignment.target_from - 1, alignment.hmm_from - 1
    for of_hmm, of_target in zip(alignment.hmm_sequence, alignment.target_sequence, strict=True):
        if of_hmm != "." and of_target != "-":
            columns[residue] = column
        residue += of_target != "-"
        column += of_hmm != "."
    return columns


def choose_spans(members: Sequence[Record], hmms: Sequence[Any], num: int, seed: int, tag: str = "") -> list[Span]:
    """One span each in `num` members, both drawn evenly; members and places that offer none are passed over.

    Raises:
        DataError: fewer members than asked for have a hit of 20 residues of the 20 amino acids.
    """
    rng = np.random.default_rng(seed)
    spans: list[Span] = []
    for i in rng.permutation(len(members)):
        member = members[i]
        family = fact(member, "family")
        match = best_match([hmms[number] for number in of_family(hmms, family)], member.sequence)
        first, end = (match.start, match.end) if match else (0, 0)
        fits = [
            at for at in range(first, end - LENGTH + 1) if set(member.sequence[at : at + LENGTH]) <= set(AMINO_ACIDS)
        ]
        if fits:
            spans.append(Span(member, family, int(rng.choice(fits)), tag))
        if len(spans) == num:
            return spans
    raise DataError(f"{len(spans)} members have a span of {LENGTH} residues in an HMM's envelope; asked for {num}")


def consensus(span: Span, hmms: Sequence[Any]) -> str:
    """The consensus of the columns that the span's residues would stand in.

    The HMM is aligned with the span hidden (X is all letters at once to it). A residue that it leaves out of the
    alignment goes as far from the next one inside as it stands in the protein.
    """
    match = best_match(hmms, span.filled("X" * LENGTH))
    if match is None:
        return "L" * LENGTH  # of all proteins' residues the most frequent
    residues = ""
    for place in range(span.start, span.start + LENGTH):
        nearest = min(match.columns, key=lambda residue: abs(residue - place))
        column = match.columns[nearest] + place - nearest
        residues += match.hmm.consensus[min(max(column, 0), match.hmm.M - 1)].upper()
    return residues


def by_trigrams(span: Span, table: Table, temperature: float, rng: np.random.Generator) -> str:
    """Left to right, each residue given the two before it, the first ones those of the protein."""
    words = [EDGE, EDGE, *encode_residues("A" + span.protein.sequence[: span.start])[1:].tolist()]
    for _ in range(LENGTH):
        words.append(_pick(table[words[-2], words[-1]], temperature, rng) + FIRST_RESIDUE)
    return "".join(AMINO_ACIDS[word - FIRST_RESIDUE] for word in words[-LENGTH:])


def by_composition(shares: Float64[np.ndarray, "letter"], temperature: float, rng: np.random.Generator) -> str:
    """Each residue by itself."""
    return "".join(AMINO_ACIDS[_pick(shares, temperature, rng)] for _ in range(LENGTH))


def _pick(chances: Float64[np.ndarray, "letter"], temperature: float, rng: np.random.Generator) -> int:
    return int(chances.argmax()) if temperature == 0 else int(rng.choice(len(chances), p=chances))


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
    way: str, mood: str, spans: Sequence[Span], fills: Sequence[str], bits_lost: Float64[np.ndarray, "span"]
) -> Filling:
    """The figures of one way's residues, in the order of `spans`."""
    right = [sum(map(str.__eq__, span.truth, fill)) for span, fill in zip(spans, fills, strict=True)]
    return Filling(way=way, mood=mood, num_right=np.array(right, dtype=np.float64), bits_lost=bits_lost)


def family_bits(spans: Sequence[Span], hmms: Sequence[Any], sequences: Sequence[str]) -> Float64[np.ndarray, "span"]:
    """Best score of each protein over its own family's HMMs; 0 without a hit."""
    bits = np.zeros(len(spans))
    for family in sorted({span.family for span in spans}):
        own = [i for i, span in enumerate(spans) if span.family == family]
        of_it = [hmms[number] for number in of_family(hmms, family)]
        bits[own] = bit_scores(of_it, [sequences[i] for i in own]).max(1)
    return bits


def by_model(model: Backbone, by: ModelWay, spans: Sequence[Span], mood: str, options: "Options") -> list[str]:
    """What the model writes there; by mlm, what is drawn in random order, and the likeliest the surest first."""
    samples = infill(
        model, [span.prompt for span in spans], by=by, temperature=options.temperatures[mood], top_p=1.0,
        seed=options.seed, rounds=ROUNDS, order="random" if mood == "drawn" else "confidence",
    )  # fmt: skip
    return [sample.sequence[span.start : span.start + LENGTH] for sample, span in zip(samples, spans, strict=True)]


def sample_letters(sample: Sequence[str]) -> Float64[np.ndarray, "letter"]:
    """Shares of AMINO_ACIDS among all residues."""
    counts = np.bincount(np.concatenate([encode_residues(protein) for protein in sample]), minlength=256)
    shares = counts[FIRST_RESIDUE : FIRST_RESIDUE + len(AMINO_ACIDS)]
    return shares / shares.sum()


def fill_all(
    model: Backbone, spans: Sequence[Span], hmms: Sequence[Any], sample: Sequence[str], options: "Options"
) -> Iterator[tuple[str, str, list[str]]]:
    """Way, mood and the residues of each span."""
    shares, table = sample_letters(sample), trigram_table(sample)
    for mood, temperature in options.temperatures.items():
        rng = np.random.default_rng(options.seed)
        yield "composition", mood, [by_composition(shares, temperature, rng) for _ in spans]
        yield "3-gram", mood, [by_trigrams(span, table, temperature, rng) for span in spans]
        for by in options.by:
            logger.info("filling by %s, %s", by, mood)
            yield by, mood, by_model(model, by, spans, mood, options)
    yield "consensus", "likeliest", [consensus(span, [hmms[i] for i in of_family(hmms, span.family)]) for span in spans]


def judged_fills(model: Backbone, options: "Options") -> tuple[list[Span], list[Filling]]:
    """The spans, and what each way made of them.

    Raises:
        DataError: as choose_spans.
        FastaError, SequenceError: a file of `options.data` that cannot be read.
    """
    hmms = read_hmms(options.data / "families.hmm.gz")
    records = (r for r in read_fasta(options.data / "families.fasta.gz", unknown="skip") if fact(r, "split") == "test")
    members = [r for r in records if not options.families or fact(r, "family") in options.families]
    spans = choose_spans(members, hmms, options.spans, options.seed, options.tag)
    sample = [record.sequence for record in read_fasta(options.data / "sample.fasta.gz", unknown="skip")]
    bits = partial(family_bits, spans, hmms)
    true_bits = bits([span.protein.sequence for span in spans])
    return spans, [
        judged(way, mood, spans, fills, true_bits - bits([s.filled(f) for s, f in zip(spans, fills, strict=True)]))
        for way, mood, fills in fill_all(model, spans, hmms, sample, options)
    ]


def differences(fillings: Sequence[Filling]) -> list[Sequence[str]]:
    """The model's ways against the floors, and against each other, in the same mood and on the same proteins."""
    rows: list[Sequence[str]] = [("", "identity, points", "bits lost")]
    for mood in MOODS:
        of = {filling.way: filling for filling in fillings if filling.mood == mood}
        pairs = [(way, other) for way in MODEL_WAYS for other in (*FLOORS, "consensus")] + [MODEL_WAYS]
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
    """Two panels of bars; what is drawn beside the likeliest."""
    figure, panels = figures.blank(9.5, 3.6, columns=2)
    ways = sorted({filling.way for filling in fillings}, key=WAYS.index)
    for axes, name, label in zip(panels, ("identity", "loss"), ("true residues, %", "bits lost"), strict=True):
        for number, mood in enumerate(MOODS):
            for filling in fillings:
                if filling.mood != mood:
                    continue
                at, estimate = ways.index(filling.way) + 0.4 * number - 0.2, getattr(filling, name)
                axes.barh(at, estimate.value, 0.38, color=figures.COLOURS[number], label=mood)
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


def report(fillings: Sequence[Filling], spans: Sequence[Span], options: "Options") -> list[Section]:
    """Of the page; writes its picture."""
    of = {(filling.way, filling.mood): filling for filling in fillings}
    table: list[Sequence[str]] = [
        ("way", *(f"{what}, {mood}" for mood in MOODS for what in ("identity %", "bits lost")))
    ]
    for way in sorted({filling.way for filling in fillings}, key=WAYS.index):
        found = [of.get((way, mood)) for mood in MOODS]
        table.append((way, *(cell for f in found for cell in ((str(f.identity), str(f.loss)) if f else ("", "")))))
    rounds = f" mlm takes {ROUNDS} rounds, in random order where it draws, else the surest first."
    rounds = rounds if "mlm" in options.by else ""
    tagged = f", <{options.tag}=..> in front" if options.tag else ""
    text = (
        f"{len(spans)} spans of {LENGTH} residues, each in another held-out member, of"
        f" {len({span.family for span in spans})} families, by seed {options.seed} inside of the HMM's envelope; model"
        f" {options.model}{tagged}. identity: the share of the residues that are the true ones. bits lost: of the whole"
        f" protein under its family's HMMs. drawn: the model at temperature {options.temperature:g}, floors by their"
        f" shares; likeliest: temperature 0.{rounds} In brackets 95 % bootstrap intervals over proteins; members of a"
        " family are alike, so they hold for these families."
    )
    image = ("identity and bits lost", figures.save(picture(fillings), options.out / "infilling.png"))
    return [
        Section(title="Infilling of held-out family members", text=text, table=table, images=[image]),
        Section(
            title="Differences on the same spans", text="Paired; of bits, fewer is better.", table=differences(fillings)
        ),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Judge how a model fills spans of held-out family members."""

    data: Positional[Path]
    """Folder of families.fasta.gz, families.hmm.gz and sample.fasta.gz."""
    model: str
    """Model directory; trained on smask and mlm."""
    out: Path = Path("infill_families")
    """Folder for infilling.md and infilling.png."""
    spans: int = 300
    """How many proteins."""
    families: tuple[str, ...] = ()
    """Members of these alone; of all by default."""
    tag: str = ""
    """Name of a tag that the model was tuned on, such as family: <family=NAME> is put in front of each protein."""
    by: tuple[ModelWay, ...] = MODEL_WAYS
    """Ways of the model's that are judged."""
    temperature: float = 1.0
    """Of what the model draws."""
    seed: int = 0
    """Of the spans and of what is drawn."""

    @property
    def temperatures(self) -> dict[str, float]:
        """Of MOODS."""
        return dict(zip(MOODS, (self.temperature, 0.0), strict=True))


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    spans, fillings = judged_fills(load(options.model), options)
    options.out.mkdir(parents=True, exist_ok=True)
    text = to_markdown(report(fillings, spans, options), options.out)
    (options.out / "infilling.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
