"""Infilling judged: spans of 20 residues hidden in held-out family members, filled in several ways, one page.

    python examples/infill_families.py DATA --model MODEL --out OUT

DATA is a folder with families.fasta.gz (headers `family=NAME split=test`), families.hmm.gz (HMMs NAME_1, NAME_2 ..) and
sample.fasta.gz, proteins that the letter statistics are counted in. OUT gets infilling.md and infilling.png.

A span lies inside of what the family's best HMM recognizes, one in a protein. Two figures say how well it was filled:
the share of the residues that are the true ones, and the bits that the protein loses under the family's HMMs. Ways:

    smask        blank filling: the span written from N to C, all around it in view
    mlm          the same model, by its masks: the span decided in rounds
    ends         the same model, by gmask: drafts from both ends, mended, and the one with which the model finds the
                 whole protein likeliest (generate/from_ends.py); it chooses by itself, so it fills but once, likeliest
    ends+mlm     the same, what mlm holds of the span being a third expert beside the two directions
    guided       mlm with the family's best HMM as a second voice: the chances that both give a residue, multiplied
    composition  letters by their shares in the sample: knows nothing of the protein
    3-gram       each letter given the two before it: knows what stands on the left
    consensus    what the family's best HMM finds likeliest in these columns: it has seen the family's training members

smask, mlm, composition and 3-gram fill twice: drawn, as the model holds it (temperature 1, or --temperature), and
likeliest (temperature 0); with --draws 16 a third time, chosen: of 16 that are drawn the one that the family's HMMs
score best. A model that was tuned on families reads the tag of each in front of its protein with --tag family.
Intervals are bootstrap over proteins, paired where ways are compared. Figures and page: infill_figures.py.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from tyro.conf import Positional

from examples.infill_figures import (
    CHOSEN,
    CONSENSUS,
    DRAWN,
    FILLERS,
    FROM_ENDS,
    LENGTH,
    LIKELIEST,
    Filler,
    Filling,
    FromEnds,
    ModelWay,
    judged,
    report,
)
from examples.infill_hmms import best_match, emissions, spelled
from generate.controls import trigram_table
from generate.from_ends import DRAFTS, MASKS_WEIGHT
from generate.infilling import infill
from generate.members import fact
from generate.membership import bit_scores, of_family, read_hmms
from generate.prompt import Fixed, Gap, Prompt
from generate.unmasking import marginals
from generate.ways import choose_way
from xtrimo.backbone import Backbone, load
from xtrimo.errors import DataError
from xtrimo.fasta import Record, read_fasta
from xtrimo.log import configure
from xtrimo.pages import Section, to_markdown
from xtrimo.tokens import AMINO_ACIDS, FIRST_RESIDUE, encode_residues
from xtrimo.trigrams import EDGE

ROUNDS = 10  # of mlm: two residues in each
HMM_WEIGHT = 1.5  # of guided: of 0.3 to 2 the one that fills spans of validation members best

logger = logging.getLogger("xtrimo.examples")
Table = Float64[np.ndarray, "word word letter"]
Letters = tuple[Float64[np.ndarray, "letter"], Table]
"""What floors draw from: shares of letters, and of each after two others."""


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
        return self.hidden(self.protein.sequence)

    @property
    def prompt(self) -> Prompt:
        """What is around them, the tag in front."""
        ends = self.protein.sequence[: self.start], self.protein.sequence[self.start + LENGTH :]
        before, after = ([Fixed(end)] if end else [] for end in ends)
        return Prompt((*before, Gap(LENGTH, LENGTH), *after), ((self.tag, self.family),) if self.tag else ())

    def hidden(self, protein: str) -> str:
        """The residues that stand there in another protein as long."""
        return protein[self.start : self.start + LENGTH]

    def filled(self, residues: str) -> str:
        """The whole protein with other residues there."""
        return self.protein.sequence[: self.start] + residues + self.protein.sequence[self.start + LENGTH :]


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
    """The likeliest letters of the columns that the span's residues would stand in."""
    found = emissions(span.filled("X" * LENGTH), span.start, LENGTH, hmms)
    if found is None:
        return "L" * LENGTH  # of all proteins' residues the most frequent
    return spelled(found)


def guided(model: Backbone, spans: Sequence[Span], hmms: Sequence[Any]) -> list[str]:
    """What the model holds of each residue by mlm, all of the span masked, times what its family's best HMM does."""
    fills = []
    for span, held in zip(spans, marginals(model, [span.prompt for span in spans]), strict=True):
        own = [hmms[i] for i in of_family(hmms, span.family)]
        found = emissions(span.filled("X" * LENGTH), span.start, LENGTH, own)
        fills.append(spelled(held if found is None else held + HMM_WEIGHT * found))
    return fills


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


def family_bits(spans: Sequence[Span], hmms: Sequence[Any], sequences: Sequence[str]) -> Float64[np.ndarray, "span"]:
    """Best score of each protein over its own family's HMMs; 0 without a hit."""
    bits = np.zeros(len(spans))
    for family in sorted({span.family for span in spans}):
        own = [i for i, span in enumerate(spans) if span.family == family]
        of_it = [hmms[number] for number in of_family(hmms, family)]
        bits[own] = bit_scores(of_it, [sequences[i] for i in own]).max(1)
    return bits


def by_model(model: Backbone, by: Filler | FromEnds, spans: Sequence[Span], temperature: float, seed: int) -> list[str]:
    """What the model writes there; by mlm, what is drawn in random order, and the likeliest the surest first."""
    samples = infill(
        model, [span.prompt for span in spans], by=by, temperature=temperature, top_p=1.0, seed=seed, rounds=ROUNDS,
        order="random" if temperature else "confidence",
    )  # fmt: skip
    return [span.hidden(sample.sequence) for sample, span in zip(samples, spans, strict=True)]


def sample_letters(sample: Sequence[str]) -> Float64[np.ndarray, "letter"]:
    """Shares of AMINO_ACIDS among all residues."""
    counts = np.bincount(np.concatenate([encode_residues(protein) for protein in sample]), minlength=256)
    shares = counts[FIRST_RESIDUE : FIRST_RESIDUE + len(AMINO_ACIDS)]
    return shares / shares.sum()


def fill_once(
    model: Backbone, spans: Sequence[Span], letters: Letters, by: Sequence[Filler], temperature: float, seed: int
) -> dict[str, list[str]]:
    """Way -> the residues of each span."""
    rng, (shares, table) = np.random.default_rng(seed), letters
    fills = {
        "composition": [by_composition(shares, temperature, rng) for _ in spans],
        "3-gram": [by_trigrams(span, table, temperature, rng) for span in spans],
    }
    return fills | {way: by_model(model, way, spans, temperature, seed) for way in by}


def fill_all(
    model: Backbone, spans: Sequence[Span], hmms: Sequence[Any], sample: Sequence[str], options: "Options"
) -> Iterator[tuple[str, str, list[str]]]:
    """Way, mood and the residues of each span."""
    fillers = [way for way in FILLERS if way in options.by]
    from_ends = [way for way in FROM_ENDS if way in options.by]
    for one in (*fillers, *from_ends):
        choose_way(model, spans[0].prompt, (one,))  # refuses, before anything is filled
    letters = sample_letters(sample), trigram_table(sample)
    for mood, temperature in ((DRAWN, options.temperature), (LIKELIEST, 0.0)):
        logger.info("filling, %s", mood)
        fills = fill_once(model, spans, letters, fillers, temperature, options.seed)
        yield from ((way, mood, own) for way, own in fills.items())
    if "guided" in options.by:
        yield "guided", LIKELIEST, guided(model, spans, hmms)
    for way in from_ends:
        logger.info("filling, %s", way)
        yield way, LIKELIEST, by_model(model, way, spans, options.temperature, options.seed)
    yield CONSENSUS, LIKELIEST, [consensus(span, [hmms[i] for i in of_family(hmms, span.family)]) for span in spans]
    if options.draws:
        logger.info("filling %d times", options.draws)
        seeds = range(options.seed + 1, options.seed + 1 + options.draws)
        drawn = [fill_once(model, spans, letters, fillers, options.temperature, seed) for seed in seeds]
        for filler in drawn[0]:
            yield filler, CHOSEN, choose(spans, hmms, [fills[filler] for fills in drawn])


def choose(spans: Sequence[Span], hmms: Sequence[Any], drawn: Sequence[Sequence[str]]) -> list[str]:
    """Of several fillings of each span the one that the family's HMMs score best."""
    bits = [family_bits(spans, hmms, [s.filled(f) for s, f in zip(spans, fills, strict=True)]) for fills in drawn]
    return [drawn[best][place] for place, best in enumerate(np.argmax(bits, axis=0))]


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
    bits, truths = partial(family_bits, spans, hmms), [span.truth for span in spans]
    true_bits = bits([span.protein.sequence for span in spans])
    return spans, [
        judged(way, mood, truths, fills, true_bits - bits([s.filled(f) for s, f in zip(spans, fills, strict=True)]))
        for way, mood, fills in fill_all(model, spans, hmms, sample, options)
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
    by: tuple[ModelWay, ...] = FILLERS
    """Ways of the model's that are judged."""
    temperature: float = 1.0
    """Of what is drawn, drafts of ends included."""
    draws: int = 0
    """Fillings of each span from which the family's HMMs choose one; 0 leaves that out."""
    seed: int = 0
    """Of the spans and of what is drawn."""


def about(options: Options) -> str:
    """What a reader of the page has to know, on settings."""
    said = {
        f" {CHOSEN}: of {options.draws} that are drawn the one of most bits.": options.draws,
        f" mlm takes {ROUNDS} rounds, in random order where it draws, else the surest first.": "mlm" in options.by,
        f" ends: {DRAFTS} drafts from each, drawn at that temperature, and the likeliest one of each.": (
            set(FROM_ENDS) & set(options.by)
        ),
        f" ends+mlm: what mlm holds, all of a span at once, to the power of {MASKS_WEIGHT:g}.": (
            "ends+mlm" in options.by
        ),
        f" guided: all of a span at once, the HMM's chances to the power of {HMM_WEIGHT:g}.": "guided" in options.by,
    }
    return (
        f"By seed {options.seed} inside of the HMM's envelope; model {options.model}"
        f"{f', <{options.tag}=..> in front' if options.tag else ''}. {DRAWN}: at temperature"
        f" {options.temperature:g}, floors by their shares; {LIKELIEST}: temperature 0."
        f"{''.join(sentence for sentence, is_there in said.items() if is_there)}"
    )


def page_of(spans: Sequence[Span], fillings: Sequence[Filling], options: Options) -> list[Section]:
    """The page's sections; writes their picture."""
    return report(fillings, len({span.family for span in spans}), options.out, about(options))


def main(args: Sequence[str] | None = None) -> int:
    """Write the page; the exit status."""
    import tyro

    options = tyro.cli(Options, args=args)
    configure()
    spans, fillings = judged_fills(load(options.model), options)
    options.out.mkdir(parents=True, exist_ok=True)
    text = to_markdown(page_of(spans, fillings, options), options.out)
    (options.out / "infilling.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
