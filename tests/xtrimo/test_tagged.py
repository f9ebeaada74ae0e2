"""Tags in front of an example of any objective."""

import numpy as np
import pytest

from xtrimo.objectives import IGNORE, OBJECTIVES, Fragment, ObjectiveConfig, make_example, tagged
from xtrimo.tokens import Tokenizer


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tags_are_seen_by_all_and_move_the_rest(name: str) -> None:
    plain = make_example(
        Fragment(Tokenizer().encode("MKTAYIAK", eos=False)), name, np.random.default_rng(1), ObjectiveConfig()
    )
    tags = np.array([38, 50, 51], dtype=np.uint8)
    example = tagged(plain, tags)
    assert example.tokens.tolist() == [38, 50, 51, *plain.tokens.tolist()]
    assert example.labels.tolist() == [IGNORE] * 3 + plain.labels.tolist()
    assert example.positions.tolist() == [[0, 0], [1, 0], [2, 0], *([a + 3, b] for a, b in plain.positions.tolist())]
    assert example.prefix == (plain.prefix + 3 if name != "causal" else 0)
    assert example.objective == name and example.positions.dtype == plain.positions.dtype
