"""Counted mutations against a comparison letter by letter."""

import numpy as np

from heads.mutations import are_peptides, by_one_edit, consensus, fewest_mutations
from xtrimo.fasta import Record
from xtrimo.testing import toy_sequences

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def variants(num: int, wild: str, most: int, seed: int) -> list[str]:
    """With up to `most` residues drawn again at random places."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(num):
        letters = list(wild)
        for place in rng.choice(len(wild), rng.integers(most + 1), replace=False):
            letters[place] = str(rng.choice(LETTERS))
        made.append("".join(letters))
    return made


def hamming(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def edits(one: str, other: str) -> int:
    """Levenshtein's distance, by its recursion."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        previous, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
    return row[-1]


def test_the_nearest_variant() -> None:
    wild = toy_sequences(1, min_length=50, max_length=50)[0]
    for most in (2, 5, 30):
        ours, theirs = variants(60, wild, most, 0), variants(40, wild, most, 1)
        expected = [min(hamming(one, other) for other in theirs) for one in ours]
        assert fewest_mutations(ours, theirs, wild).tolist() == expected
    assert fewest_mutations([wild], [wild], wild).tolist() == [0]
    # all differ at one place, and in nothing else: what is shared decides
    sites = [wild[:7] + letter + wild[8:] for letter in "ACDEFGHIKL"]
    assert fewest_mutations(sites[:3], sites[2:], sites[0]).tolist() == [1, 1, 0]


def test_what_variants_of_one_protein_are() -> None:
    wild = toy_sequences(1, min_length=100, max_length=100)[0]
    assert consensus(set(variants(200, wild, 10, 0))) == wild
    assert consensus(variants(200, wild, 10, 0)[:9]) == "", "too few to tell"
    assert consensus(set(variants(200, wild, 60, 0))) == "", "too far apart"
    assert consensus({*variants(200, wild, 4, 0), wild[1:]}) == "", "of two lengths"
    assert consensus(toy_sequences(50, min_length=100, max_length=100)) == ""


def test_one_edit() -> None:
    rng = np.random.default_rng(0)
    # few letters, so that many are close by chance
    peptides = ["".join(rng.choice(list("ACD"), size=rng.integers(1, 8))) for _ in range(400)]
    ours, theirs = dict.fromkeys(peptides[:150], "ours"), peptides[150:]
    found = by_one_edit(ours, (Record(other, other) for other in theirs))
    least = {one: min(edits(one, other) for other in theirs) for one in ours}
    assert found.keys() == {one for one, distance in least.items() if distance <= 1} and len(found) < len(ours)
    for one, near in found.items():
        assert edits(one, near.other) == least[one]
        assert near.identity == (1.0 if near.other == one else round(1 - 1 / max(len(one), len(near.other)), 3))


def test_peptides() -> None:
    assert are_peptides(["A" * 30, "C"]) and not are_peptides(["A" * 31, "C"])
