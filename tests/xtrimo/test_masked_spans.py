"""mlm that hides whole spans: examples read back into their protein, and shares with a fixed seed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrimo.errors import ConfigError
from xtrimo.objectives import IGNORE, Fragment, ObjectiveConfig, make_example
from xtrimo.tokens import EOS, MASK


@given(st.integers(1, 30) | st.integers(1, 700), st.booleans(), st.integers(0, 2**32))
def test_masked_spans_hide_what_they_label(length: int, has_end: bool, seed: int) -> None:
    """All of it under a mask, in spans that do not touch, a tenth to half of the protein."""
    fragment = Fragment(np.random.default_rng(seed).integers(1, 26, length).astype(np.uint8), has_end=has_end)
    example = make_example(fragment, "mlm", np.random.default_rng(seed), ObjectiveConfig(masked_span_ratio=1.0))
    hidden = example.labels != IGNORE
    words = np.where(hidden, example.labels, example.tokens).tolist()
    residues = fragment.residues.tolist()
    assert words == [*residues, *([EOS] if fragment.has_end else [])] and not hidden[len(residues) :].any()
    assert ((example.tokens == MASK) == hidden).all()
    assert max(1, math.floor(0.1 * len(residues))) <= hidden.sum() <= max(1, math.ceil(0.5 * len(residues)))
    assert example.positions.tolist() == [[i, 0] for i in range(len(words))] and example.prefix == len(words)


def test_masked_span_shares() -> None:
    """Lengths of Poisson(20), together an even tenth to half; no place is preferred but for the ends, hidden less."""
    rng, config = np.random.default_rng(0), ObjectiveConfig(masked_span_ratio=0.5)
    protein = Fragment(rng.integers(1, 21, 600).astype(np.uint8))
    examples = [make_example(protein, "mlm", rng, config) for _ in range(2000)]
    said = [np.flatnonzero(example.labels) for example in examples]
    masked = [(example.tokens[places] == MASK).all() for example, places in zip(examples, said, strict=True)]
    in_spans = [places for places, all_masked in zip(said, masked, strict=True) if all_masked]
    assert len(in_spans) / len(examples) == pytest.approx(0.5, abs=0.04)  # of 90 chosen residues one stays or changes
    covers = np.array([len(places) / 600 for places in in_spans])
    assert covers.mean() == pytest.approx(0.3, abs=0.01) and 0.1 <= covers.min() < 0.11 and 0.49 < covers.max() <= 0.5
    steps = [np.diff(places, prepend=-9, append=9999) for places in in_spans]
    lengths = np.concatenate([np.diff(np.flatnonzero(step > 1)) for step in steps])
    assert np.median(lengths) == pytest.approx(19, abs=2) and lengths.max() <= 39  # each last one was cut
    hidden = np.bincount(np.concatenate(in_spans), minlength=600) / len(in_spans)
    assert hidden[100:500].mean() == pytest.approx(0.32, abs=0.01) and np.ptp(hidden[100:500]) < 0.12


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="masked_span_ratio is 1.5"):
        ObjectiveConfig(masked_span_ratio=1.5)
