"""The n-gram baselines against dictionaries of letters; their contexts against the proteins behind the rows."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus import Corpus
from pretrain.ngrams import ResidueLabels, fit_ngrams, residue_labels
from xtrimo.__main__ import find
from xtrimo.objectives import OBJECTIVES, Fragment, ObjectiveConfig, make_example
from xtrimo.packing import pack
from xtrimo.testing import toy_sequences
from xtrimo.tokens import EOP, EOS, FIRST_RESIDUE, LAST_RESIDUE, MASK, REV, SOP, encode_residues
from xtrimo.trigrams import EDGE, count_trigrams

STRENGTHS = [2.0**power for power in range(-4, 25)]


def build(folder: Path, sequences: list[str]) -> Corpus:
    fasta = folder / "a.fasta"
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    find("corpus")([str(fasta), "--out", str(folder / "corpus"), "--min-length", "1", "--valid-ratio", "0"])
    return Corpus.open(folder / "corpus")


def expected_places(tokens: list[int], labels: list[int], smask_of: list[int]) -> list[int]:
    """Where in its chain each residue label of an smask example stands, by walking the text."""
    start = tokens.index(SOP)
    spans = Counter[int]()
    for place, label in zip(smask_of[start:], labels[start:], strict=True):
        spans[place] += label not in (EOP, EOS)
    before = {
        place: sum(token <= LAST_RESIDUE for token in tokens[:place])
        + sum(size for other, size in spans.items() if other < place)
        for place in spans
    }
    out, told = [], Counter[int]()
    for place, label in zip(smask_of[start:], labels[start:], strict=True):
        if label != EOP:
            out.append(before[place] + told[place])
            told[place] += 1
    return out


@given(
    objective=st.sampled_from(list(OBJECTIVES)),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    ends=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
def test_contexts_are_the_true_residues(objective: str, lengths: list[int], ends: tuple[bool, bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    chains = [rng.integers(FIRST_RESIDUE, LAST_RESIDUE + 1, n).astype(np.uint8) for n in lengths]
    examples = [make_example(Fragment(chain, *ends), objective, rng, ObjectiveConfig()) for chain in chains]
    row = pack(examples, multiple=8)
    segments = residue_labels(row)
    assert len(segments) == len(row.segments)
    assert all(not len(padding.tokens) for padding in segments[len(chains) :])
    for chain, example, found in zip(chains, examples, segments, strict=False):
        tokens, labels = example.tokens.tolist(), example.labels.tolist()
        assert found.reverse == (REV in tokens)
        read = [EDGE, EDGE, *(reversed(chain.tolist()) if found.reverse else chain.tolist())]
        asked = [t for t, label in enumerate(labels) if FIRST_RESIDUE <= label <= LAST_RESIDUE]
        if objective == "mlm":
            places = asked = [t for t in asked if tokens[t] == MASK]
        elif objective == "smask":
            places = expected_places(tokens, labels, example.positions[:, 0].tolist())
        else:  # whatever the source, the target is what is left of the chain
            places = list(range(len(chain) - len(asked), len(chain)))
        start = row.segments[[s is found for s in segments].index(True), 0]
        assert (found.tokens - start).tolist() == asked
        assert found.residues.tolist() == [read[place + 2] for place in places]
        assert found.one_before.tolist() == [read[place + 1] for place in places]
        assert found.two_before.tolist() == [read[place] for place in places]


@given(st.lists(st.lists(st.integers(FIRST_RESIDUE, LAST_RESIDUE), min_size=1, max_size=8), min_size=1, max_size=6))
def test_counts(proteins: list[list[int]]) -> None:
    expected: Counter[tuple[int, ...]] = Counter()
    for protein in proteins:
        padded = [EDGE, EDGE, *protein]
        expected.update(tuple(padded[i : i + 3]) for i in range(len(protein)))
    counts = count_trigrams(np.concatenate(proteins), np.array([len(protein) for protein in proteins]))
    assert {tuple(at): counts[tuple(at)] for at in np.argwhere(counts).tolist()} == expected


def probabilities(words: list[str], order: int) -> dict[str, float]:
    """p(last letter | the letters before it) for every word of `order` letters over the alphabet, by the equation."""
    if order == 0:
        return {"": 1 / 25}
    lower = probabilities([word[1:] for word in words], order - 1)
    counts, contexts = Counter(words), Counter(word[:-1] for word in words)

    def likelihood(kappa: float) -> float:
        return sum(
            n * math.log((n - 1 + kappa * lower[word[1:] if order > 1 else ""]) / (contexts[word[:-1]] - 1 + kappa))
            for word, n in counts.items()
        )

    kappa = max(STRENGTHS, key=likelihood)
    letters = sorted({word[-1] for word in words})
    heads = {word[:-1] for word in words}
    return {
        head + letter: (counts[head + letter] + kappa * lower[(head + letter)[1:] if order > 1 else ""])
        / (contexts[head] + kappa)
        for head in heads
        for letter in letters
    }


@pytest.mark.parametrize("reverse", [False, True])
def test_tables_against_dictionaries(tmp_path: Path, reverse: bool) -> None:
    rng = np.random.default_rng(0)
    alternating = ["M" + "".join(rng.choice(["AK", "VL", "AKK"], size=12)) for _ in range(30)]  # something to learn
    sequences = alternating + toy_sequences(30, seed=4, min_length=10)
    ngrams = fit_ngrams(build(tmp_path, sequences).train)

    read = [sequence[::-1] if reverse else sequence for sequence in sequences]
    words = [("^^" + text)[i : i + 3] for text in read for i in range(len(text))]
    for order in (1, 2, 3):
        for word, probability in probabilities([word[3 - order :] for word in words], order).items():
            two, one, residue = ([EDGE] if c == "^" else encode_residues(c) for c in word.rjust(3, "^"))
            labels = ResidueLabels(np.array([0]), *(np.array(x, dtype=np.int64) for x in (residue, one, two)), reverse)
            assert ngrams.nats(labels)[order - 1, 0] == pytest.approx(-math.log(probability), rel=1e-9)
    for table in (*ngrams.unigram, *ngrams.bigram, *ngrams.trigram):
        assert np.exp(table).sum(-1) == pytest.approx(1)


def test_higher_orders_see_more(tmp_path: Path) -> None:
    """Text that repeats with period three: the 3-gram knows it, the bigram half, the unigram not."""
    corpus = build(tmp_path, ["AKA" * (20 + i) for i in range(20)])
    example = make_example(Fragment(corpus.train[0]), "gmask", np.random.default_rng(0), ObjectiveConfig())
    (labels,) = residue_labels(pack([example]))
    unigram, bigram, trigram = fit_ngrams(corpus.train).nats(labels).mean(1)
    assert unigram > 0.6 > bigram > 0.3 > 0.1 > trigram
