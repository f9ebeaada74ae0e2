"""What a judge measures: MEASURES, and the groups of functions that fill it in for every set of proteins.

A group is a function of a Case that yields Findings; GROUPS is all of them. Each figure is of one set: the generated
proteins, real ones that were held out, or a control. Real and made-up proteins are measured by the same call, so that
nothing but the proteins differs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from generate import complexity, couplings, divergence, membership, novelty
from generate.divergence import UNDEFINED
from generate.hooks import Hooks
from xtrimo.fasta import Record
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.tokens import AMINO_ACIDS

GENERATED, HELD_OUT = "generated", "held-out"
NEAR_COPY = 0.9
Values = Float64[np.ndarray, "protein"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A row of the judge's table."""

    title: str
    better: Literal["higher", "lower", "as held-out"]
    says: str
    """What it is, in a sentence."""


MEASURES = {
    "valid": Measure(
        title="valid", better="higher", says="share of records that are one chain of the 20 amino acids, at least one"
    ),
    "distinct": Measure(title="distinct", better="higher", says="different proteins, as a share of all"),
    "length": Measure(title="length", better="as held-out", says="mean number of residues"),
    "length_distance": Measure(
        title="length distance", better="lower", says="Wasserstein distance from the held-out lengths, residues"
    ),
    "composition_divergence": Measure(
        title="composition divergence", better="lower",
        says="Jensen-Shannon divergence of the amino acids' shares from those of held-out members, bits",
    ),
    "pair_divergence": Measure(
        title="pair divergence", better="lower", says="the same of pairs of neighbouring amino acids, bits"
    ),
    "low_complexity": Measure(
        title="low complexity", better="as held-out", says="mean share of a protein that SEG finds of low complexity"
    ),
    "longest_run": Measure(
        title="longest run", better="as held-out", says="mean length of a protein's longest run of one residue"
    ),
    "repeats": Measure(
        title="tandem repeats", better="as held-out",
        says="mean share of a protein in three or more copies of a unit of 1 to 10 residues, one after the other",
    ),
    "model_perplexity": Measure(
        title="perplexity, model", better="as held-out", says="per residue, under the model judged"
    ),
    "independent_perplexity": Measure(
        title="perplexity, independent", better="as held-out", says="per residue, under a model that wrote none of them"
    ),
    "identity": Measure(
        title="nearest training identity", better="as held-out",
        says="mean share of a protein's residues identical in its alignment with the nearest training protein",
    ),
    "near_copies": Measure(
        title="near copies", better="lower", says="share of proteins of which that identity is 0.9 or more"
    ),
    "clusters_90": Measure(
        title="clusters at 90 %", better="higher", says="clusters a protein, among as many proteins of each set"
    ),
    "clusters_50": Measure(title="clusters at 50 %", better="higher", says="the same at 50 % identity"),
    "member": Measure(
        title="family members", better="higher", says="share of proteins that reach the threshold of the family"
    ),
    "bits": Measure(
        title="bit score", better="as held-out", says="mean best bit score over the HMMs of the family, 0 without a hit"
    ),
    "other_family": Measure(
        title="members of others", better="lower", says="share of proteins that reach the threshold of another family"
    ),
    "couplings": Measure(
        title="two-site correlation", better="higher",
        says="Pearson's r with held-out members of the covariances of amino acids in any two columns of the HMM",
    ),
    "confidence": Measure(
        title="structure confidence", better="higher", says="mean of what the function given says of each protein"
    ),
}  # fmt: skip
SHARES = frozenset({"valid", "near_copies", "member", "other_family"})
"""Measures that say yes or no, 1 or 0, of each protein."""


class Finding(NamedTuple):
    """One figure of one set."""

    measure: str
    of: str
    """The set."""
    estimate: Estimate
    num: int
    """Proteins it rests on."""
    values: Values | None = None
    """Of each protein, NaN where it was not measured; None where the figure is of the set as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """All that is judged, and what it is held against."""

    sets: Mapping[str, Sequence[Record]]
    """Proteins that can be read, by set; GENERATED and HELD_OUT are among them."""
    num_unreadable: int
    """Generated records that no measure but `valid` can use."""
    training: Sequence[str]
    family: membership.Family | None
    """None for proteins that need not belong to one."""
    method: novelty.Method
    confidence: Hooks
    """Its score is asked, where there is one."""
    seed: int

    def letters(self) -> dict[str, list[str]]:
        """The sequences of each set."""
        return {of: [record.sequence for record in records] for of, records in self.sets.items()}

    def split(self, values: Float[np.ndarray, "protein *column"]) -> dict[str, np.ndarray]:
        """Values of all proteins, set by set in order, to those of each set."""
        ends = np.cumsum([len(records) for records in self.sets.values()])
        return dict(zip(self.sets, np.split(values, ends[:-1]), strict=True))


def mean(measure: str, of: str, values: Sequence[float] | np.ndarray) -> Finding:
    """The mean over the proteins that were measured, with its bootstrap interval; NaN where there is none.

    SHARES have the interval of Wilson (1927, doi:10.1080/01621459.1927.10502953): where all proteins say the same, to
    draw them again says nothing of others. The mean of one protein has no interval but that: its ends are NaN.
    """
    column = np.asarray(values, dtype=np.float64)
    known = column[~np.isnan(column)]
    if not len(known):
        estimate = UNDEFINED
    elif measure in SHARES:
        estimate = _share(known)
    elif len(known) == 1:
        estimate = Estimate(value=float(known[0]), low=np.nan, high=np.nan)
    else:
        estimate = bootstrap_ratio(known, np.ones(len(known)))
    return Finding(measure, of, estimate, len(known), column)


def _share(is_hit: Values) -> Estimate:
    """The share of ones, with its 95 % interval by Wilson."""
    from scipy.stats import binomtest

    ends = binomtest(int(is_hit.sum()), len(is_hit)).proportion_ci(0.95, "wilson")
    return Estimate(value=float(is_hit.mean()), low=float(ends.low), high=float(ends.high))


def of_letters(case: Case) -> Iterator[Finding]:
    """Validity, and what can be said of each protein from its letters alone."""
    for of, sequences in case.letters().items():
        valid = [float(not sequence.strip(AMINO_ACIDS)) for sequence in sequences]
        yield mean("valid", of, valid + [0.0] * (case.num_unreadable if of == GENERATED else 0))
        times = Counter(sequences)
        yield mean("distinct", of, [1 / times[sequence] for sequence in sequences])
        yield mean("length", of, [len(sequence) for sequence in sequences])
        yield mean("low_complexity", of, [complexity.low_complexity(sequence).mean() for sequence in sequences])
        yield mean("longest_run", of, [complexity.longest_run(sequence) for sequence in sequences])
        yield mean("repeats", of, [complexity.tandem_repeats(sequence).mean() for sequence in sequences])


def of_distances(case: Case) -> Iterator[Finding]:
    """Length and composition against held-out members; of these, one half against the other."""
    sets = case.letters()
    lengths = {of: np.array([len(s) for s in own], dtype=np.float64) for of, own in sets.items()}
    counted = {
        "composition_divergence": {of: divergence.letter_counts(own) for of, own in sets.items()},
        "pair_divergence": {of: divergence.pair_counts(own) for of, own in sets.items()},
    }
    for of, own in sets.items():
        if of == HELD_OUT:
            found = divergence.length_distance_of_halves(lengths[of], case.seed)
        else:
            found = divergence.length_distance(lengths[of], lengths[HELD_OUT])
        yield Finding("length_distance", of, found, len(own))
        for measure, counts in counted.items():
            if of == HELD_OUT:
                found = divergence.composition_distance_of_halves(counts[of], case.seed)
            else:
                found = divergence.composition_distance(counts[of], counts[HELD_OUT])
            yield Finding(measure, of, found, len(own))


def of_novelty(case: Case) -> Iterator[Finding]:
    """Nearest training protein, and clusters among as many proteins of each set."""
    sets = case.letters()
    pooled = [sequence for own in sets.values() for sequence in own]
    for of, identity in case.split(novelty.nearest_identity(pooled, case.training, case.method)).items():
        yield mean("identity", of, identity)
        yield mean("near_copies", of, (identity >= NEAR_COPY).astype(np.float64))
    fewest = min(map(len, sets.values()))
    for number, (of, own) in enumerate(sets.items()):
        drawn = np.random.default_rng((case.seed, number)).permutation(len(own))[:fewest]
        for percent in (90, 50):
            values = np.full(len(own), np.nan)
            chosen = novelty.clusters([own[i] for i in drawn], percent / 100, case.method)
            values[drawn] = novelty.cluster_shares(chosen)
            yield mean(f"clusters_{percent}", of, values)


def of_families(case: Case) -> Iterator[Finding]:
    """Bit scores, membership, and two-site correlation on the HMM that fits most held-out members best."""
    family = case.family
    if family is None:
        return
    sets = case.letters()
    pooled = [sequence for own in sets.values() for sequence in own]
    by_set = case.split(membership.bit_scores(family.hmms, pooled))
    for of, bits in by_set.items():
        best = bits[:, family.own].max(1)
        yield mean("bits", of, best)
        yield mean("member", of, (best >= family.threshold).astype(np.float64))
        others = [
            scores >= family.thresholds[name]
            for name, scores in membership.best_of_families(bits, family.hmms, family.thresholds).items()
            if name != family.name
        ]
        if others:
            yield mean("other_family", of, np.any(others, axis=0).astype(np.float64))
    columns = {}
    for of, bits in by_set.items():
        # where another HMM of the family fits better, the columns of this one say nothing
        fits = bits[:, family.main] == bits[:, family.own].max(1)
        kept = [sequence for sequence, is_kept in zip(sets[of], fits, strict=True) if is_kept]
        columns[of] = membership.aligned(family.hmms[family.main], kept)
    for of, own_columns in columns.items():
        if of == HELD_OUT:
            found = couplings.correlation_of_halves(own_columns, case.seed)
        else:
            found = couplings.correlation(own_columns, columns[HELD_OUT])
        yield Finding("couplings", of, found, len(own_columns))


def of_confidence(case: Case) -> Iterator[Finding]:
    """What a function of the user's own says of each protein.

    Raises:
        ConfigError: something that is not a number.
    """
    if case.confidence.score is None:
        return
    for of, sequences in case.letters().items():
        worth = (case.confidence.worth(sequence) for sequence in sequences)
        yield mean("confidence", of, [value for value in worth if value is not None])


GROUPS: dict[str, Callable[[Case], Iterator[Finding]]] = {
    "letters": of_letters,
    "distances from held-out members": of_distances,
    "novelty and diversity": of_novelty,
    "family": of_families,
    "structure confidence": of_confidence,
}
