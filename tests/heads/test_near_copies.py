"""The sketch where words repeat."""

import numpy as np
import pytest

from heads.near_copies import by_sketch
from xtrimo.fasta import Record
from xtrimo.tokens import AMINO_ACIDS


def random(num: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(AMINO_ACIDS), num))


def test_a_linker_in_another_protein_is_no_near_copy_of_linkers() -> None:
    text = random(300)
    linkers, holds_two = "GGGGS" * 12, text[:150] + "GGGGSGGGGS" + text[150:]
    assert by_sketch({linkers: "lk"}, [Record("other", holds_two)]) == {}
    assert by_sketch({holds_two: "other"}, [Record("lk", linkers)]) == {}
    half = text[:150] + linkers[:40] + text[150:]
    found = by_sketch({linkers: "lk"}, [Record("other", half)])
    assert found[linkers].name == "lk" and found[linkers].identity == pytest.approx(1)  # over two thirds of it


def test_a_piece_of_any_kind_is_a_near_copy() -> None:
    for text in (random(300), "GGGGS" * 20):
        assert by_sketch({text[30:80]: "piece"}, [Record("whole", text)])[text[30:80]].identity == 1
