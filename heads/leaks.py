"""What of the test proteins has been seen: copies and near copies in other splits, or in a pretraining corpus.

A row of one protein leaks where that protein, or a near copy, is elsewhere; `near_copies` says what one is. In two
kinds of sets every protein would be one, and mutations are counted instead (`mutations`): of variants of one protein is
told how many are how near to one trained on, and near copies of peptides are one edit away.

A row of two inputs leaks where the pair is elsewhere. Beside that, each protein of it is judged alone, for one may
repeat by design: of peptides and HLA molecules all molecules of the test rows are among those trained on, and what is
to be new is the peptide. Pairs that are new, but whose proteins, or near copies, are all known from other pairs, are
counted as near copies of a pair. Of pairs to prefer from each protein is judged alone, whichever of the two it was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from heads.mutations import are_peptides, by_one_edit, consensus, fewest_mutations
from heads.near_copies import Near, by_mmseqs, by_sketch
from heads.rows import Dataset, Row
from xtrimo import mmseqs
from xtrimo.fasta import Record, read_fasta

NUM_EXAMPLES = 5
SHOWN_MUTATIONS = 3

Method = Literal["mmseqs2", "5-mer sketch"]
Kind = Literal["near copies", "near copies (one edit)", "new pairs of known proteins", "variants"]
Search = Callable[[Mapping[str, str], Iterable[Record]], dict[str, Near]]
SEARCHES: dict[str, Search] = {"mmseqs2": by_mmseqs, "5-mer sketch": by_sketch, "one edit": by_one_edit}


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What of one set of proteins is in another."""

    of: str
    """The split looked at; of two inputs also what of them."""
    within: str
    """Where: other splits, or the corpus."""
    num_proteins: int
    """Different ones in the split; of pairs the pairs."""
    num_copies: int
    """Of them, those that are there letter by letter; of a pair both."""
    num_near: int
    """Of the others, those with a near copy there."""
    examples: Sequence[Near] = ()
    kind: Kind = "near copies"
    """What a near copy is here."""
    within_mutations: Sequence[int] = ()
    """Of variants of one protein: how many are at most 0, 1, 2 ... mutations from one there, until all are."""

    def __str__(self) -> str:
        if self.kind == "variants":
            return self._mutations()
        found = f"{self.num_copies:,} copies and {self.num_near:,} {self.kind}"
        return f"{found} of {self.num_proteins:,} {self.of} in {self.within}"

    def _mutations(self) -> str:
        last = len(self.within_mutations) - 1
        shares = [
            f"{100 * number / self.num_proteins:.1f} % within {k}, "
            for k, number in enumerate(self.within_mutations[1:last][:SHOWN_MUTATIONS], start=1)
        ]
        return (
            f"variants of one protein: {self.num_copies:,} copies of {self.num_proteins:,} {self.of} in {self.within};"
            f" mutations from the nearest there: {''.join(shares)}all within {last}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaks:
    """All overlaps of a data set."""

    method: str
    """How near copies were found; several ways are joined by a comma."""
    overlaps: tuple[Overlap, ...]

    def __str__(self) -> str:
        return f"leaks ({self.method}): {'; '.join(map(str, self.overlaps))}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """One of the proteins of each row, and how near copies of it are found."""

    title: str
    get: Callable[[Row], str]
    method: str
    common: str = ""
    """The consensus, if all are variants of one protein."""


def find_leaks(dataset: Dataset, *, corpus: str | Path | None = None, method: Method | None = None) -> Leaks:
    """What of test is in train or valid, of valid in train, and of test in a corpus.

    Args:
        corpus: FASTA file that the model was pretrained on.
        method: by default what the module says, with mmseqs2 where it is installed; if given, it alone is used.

    Raises:
        XtrimoError: mmseqs2 that is not installed, or fails.
        FastaError: a corpus that cannot be read.
    """
    if dataset.task.target == "preference":
        dataset = _as_proteins(dataset)
    sides = _sides(dataset, method)
    methods = [side.method for side in sides]
    train, valid, test = dataset.train, dataset.valid, dataset.test
    overlaps: list[Overlap] = []
    for of, rows, within, others in (("test", test, "train or valid", train + valid), ("valid", valid, "train", train)):
        if rows and others:
            overlaps += _between(sides, rows, others, of=of, within=within)
    if corpus and test:
        general = method or _general_method()
        overlaps.append(_in_corpus(sides, test, Path(corpus), general))
        methods.append(general)
    return Leaks(method=", ".join(dict.fromkeys(methods)), overlaps=tuple(overlaps))


def _as_proteins(dataset: Dataset) -> Dataset:
    """Each protein of the pairs as a row, once in a split."""

    def alone(rows: Sequence[Row]) -> tuple[Row, ...]:
        ends = ((sequence, row) for row in rows for sequence in (row.sequence, row.second))
        return tuple({sequence: replace(row, sequence=sequence, second="") for sequence, row in ends}.values())

    return replace(dataset, train=alone(dataset.train), valid=alone(dataset.valid), test=alone(dataset.test))


def _first(row: Row) -> str:
    return row.sequence


def _second(row: Row) -> str:
    return row.second


TITLES: dict[str, dict[str, Callable[[Row], str]]] = {
    "two_sequences": {" first proteins": _first, " second proteins": _second},
    "molecule": {" proteins": _first},
}
"""Level -> the proteins of a row that are judged one by one beside the pair, as `of` names them."""


def _general_method() -> Method:
    return "mmseqs2" if mmseqs.is_installed() else "5-mer sketch"


def _sides(dataset: Dataset, method: Method | None) -> tuple[_Side, ...]:
    """The proteins of a row."""
    titles = TITLES.get(dataset.task.level, {"": _first})
    found = []
    for title, get in titles.items():
        proteins = {get(row) for rows in dataset.splits.values() for row in rows}
        common = "" if method else consensus(proteins)
        usual = "counted mutations" if common else "one edit" if are_peptides(proteins) else _general_method()
        found.append(_Side(title=title, get=get, method=method or usual, common=common))
    return tuple(found)


def _between(
    sides: Sequence[_Side], rows: Sequence[Row], others: Sequence[Row], *, of: str, within: str
) -> list[Overlap]:
    """Of one split in others: of two inputs the pairs first, then each protein."""
    judged = [_alone(side, rows, others, of=of, within=within) for side in sides]
    overlaps = [overlap for overlap, _ in judged]
    if not sides[0].title:
        return overlaps
    pairs, copies = ({(row.sequence, row.second) for row in some} for some in (rows, others))
    new = {(row.sequence, row.second): row for row in rows if (row.sequence, row.second) not in copies}
    num_near = sum(all(side.get(row) in known for side, (_, known) in zip(sides, judged, strict=True))
                   for row in new.values())  # fmt: skip
    whole = Overlap(
        of=f"{of} pairs", within=within, num_proteins=len(pairs), num_copies=len(pairs & copies), num_near=num_near,
        kind="new pairs of known proteins",
    )  # fmt: skip
    return [whole, *overlaps]


def _alone(
    side: _Side, rows: Sequence[Row], others: Sequence[Row], *, of: str, within: str
) -> tuple[Overlap, Set[str]]:
    """Of the proteins of one side, and which of them are known from the others."""
    wanted, there = ({side.get(row): row.name for row in some} for some in (rows, others))
    copies = wanted.keys() & there.keys()
    made = partial(Overlap, of=of + side.title, within=within, num_proteins=len(wanted), num_copies=len(copies))
    if side.common:
        apart = fewest_mutations(list(wanted), list(there), side.common)
        within_mutations = tuple(np.cumsum(np.bincount(apart)).tolist())
        overlap = made(num_near=len(wanted) - len(copies), kind="variants", within_mutations=within_mutations)
        return overlap, wanted.keys()
    left = {sequence: name for sequence, name in wanted.items() if sequence not in copies}
    near = SEARCHES[side.method](left, (Record(name, sequence) for sequence, name in there.items()))
    kind: Kind = "near copies (one edit)" if side.method == "one edit" else "near copies"
    return made(num_near=len(near), kind=kind, examples=_examples(near)), copies | near.keys()


def _in_corpus(sides: Sequence[_Side], rows: Sequence[Row], corpus: Path, method: Method) -> Overlap:
    """Of the proteins of all sides in a corpus, which streams."""
    names = {side.get(row): row.name for side in sides for row in rows}
    # Variants are near copies of what their consensus is a near copy of, and it alone is looked for.
    shown = {side.common or side.get(row): row.name for side in sides for row in rows}
    copies: set[str] = set()
    near = SEARCHES[method](shown, _noting(read_fasta(corpus), names, copies))
    variants = {side.get(row) for side in sides if side.common in near for row in rows}
    num_near = len(((near.keys() & names.keys()) | variants) - copies)
    return Overlap(
        of="test", within=corpus.name, num_proteins=len(names), num_copies=len(copies), num_near=num_near,
        examples=_examples({sequence: own for sequence, own in near.items() if sequence not in copies}),
    )  # fmt: skip


def _noting(others: Iterable[Record], wanted: Mapping[str, str], copies: set[str]) -> Iterator[Record]:
    """The same records; those among `wanted` are added to `copies`."""
    for record in others:
        if record.sequence in wanted:
            copies.add(record.sequence)
        yield record


def _examples(near: Mapping[str, Near]) -> tuple[Near, ...]:
    return tuple(sorted(near.values(), key=lambda pair: -pair.identity)[:NUM_EXAMPLES])
