"""A scan against one forward pass for each mutation, through every kind of model and file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from xtrimo.attention import within
from xtrimo.backbone import Backbone, load
from xtrimo.model import GLM
from xtrimo.mutation import read_mutations
from xtrimo.mutation_scan import LETTERS, Scan, scan
from xtrimo.prepacking import prepack
from xtrimo.scan_files import largest, write_csv, write_png
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS
from xtrimo.variants import score_variants

WILD = toy_sequences(1, min_length=24, max_length=24)[0]


def glm(**changes) -> GLM:
    torch.manual_seed(0)
    return GLM(toy_config(**changes)).eval()


def alone(model: Backbone, wild: str, place: int, letter: str, *, masked: bool) -> float:
    """log p(letter) - log p(wild type) at one place, from a pass of its own, by the plain forward of a row."""
    example = model.tokenize(wild)
    before, _ = model.words_around
    tokens = torch.from_numpy(example.tokens.copy()).long()
    words = [int(model.tokenize(own).tokens[before]) for own in (letter, wild[place])]
    if masked:
        tokens[before + place] = model.mask
    segments = torch.tensor([[0, len(tokens), example.prefix]])
    with torch.inference_mode():
        states = model.hidden(tokens, torch.from_numpy(example.positions).long(), within(segments))[-1]
        nats = model.logits(states)[before + place].double().log_softmax(-1)
    return float(nats[words[0]] - nats[words[1]])


@pytest.mark.parametrize("method", ["masked-marginals", "masked-alone", "wild-type-marginals"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_scan_is_one_pass_for_each_mutation(method: str, packed: bool) -> None:
    model = glm()
    found = scan(prepack(model) if packed else model, WILD, method=method)
    masked = method != "wild-type-marginals"
    for own in list(found.substitutions())[::7]:
        expected = alone(model, WILD, own.position - 1, own.mutant, masked=masked)
        assert own.score == pytest.approx(expected, abs=1e-5), own
    assert np.ptp(found.scores) > 0.5 and len(list(found.substitutions())) == 19 * len(WILD)


def test_a_scan_is_the_scores_of_named_variants() -> None:
    model = glm(directions=("forward", "reverse"), control_words=("<rev>",))
    wild = WILD[:6]
    for method in ("likelihood", "masked-marginals"):
        found = list(scan(model, wild, method=method, offset=7).substitutions())
        some = found[::9]
        for own in some:  # each in a call of its own
            mutations = read_mutations(own.mutation, wild, offset=7)
            assert score_variants(model, wild, [mutations], method=method)[0] == pytest.approx(own.score, abs=1e-5)
        assert len({round(own.score, 4) for own in some}) > 10


def test_antiberty() -> None:
    pytest.importorskip("antiberty")
    model, wild = load("antiberty"), "QVQLVQSGAEVK"
    found = scan(model, wild)
    assert found.method == "masked-marginals"
    for place, letter in ((0, "E"), (3, "W"), (11, "R")):
        expected = alone(model, wild, place, letter, masked=True)
        assert found.scores[place, LETTERS.index(letter)] == pytest.approx(expected, abs=1e-5)


def test_long_proteins_are_windowed() -> None:
    model = glm(max_length=13)  # 12 residues and <eos>
    found = scan(model, WILD)
    for place, start in ((0, 0), (5, 0), (12, 6), (23, 12)):  # as near to the middle of a window as the ends allow
        expected = alone(model, WILD[start : start + 12], place - start, "W", masked=True)
        assert found.scores[place, LETTERS.index("W")] == pytest.approx(expected if WILD[place] != "W" else 0, abs=1e-5)
    shown = scan(model, WILD, method="wild-type-marginals")  # windows from 0, 6, 12
    for place, start in ((0, 0), (8, 0), (9, 6), (14, 6), (15, 12), (23, 12)):
        expected = alone(model, WILD[start : start + 12], place - start, "W", masked=False)
        assert shown.scores[place, LETTERS.index("W")] == pytest.approx(expected if WILD[place] != "W" else 0, abs=1e-5)


def test_letters_that_are_none_of_the_twenty_have_no_scores() -> None:
    found = scan(glm(), "MKX" + WILD)
    assert np.isnan(found.scores[2]).all() and np.isfinite(np.delete(found.scores, 2, axis=0)).all()
    assert {own.position for own in found.substitutions()} == {1, 2, *range(4, len(WILD) + 4)}
    assert sorted(LETTERS) == sorted(AMINO_ACIDS)


def made(length: int) -> Scan:
    rng = np.random.default_rng(0)
    sequence = "".join(rng.choice(list(LETTERS), length))
    scores = rng.normal(size=(length, 20))
    scores[range(length), [LETTERS.index(own) for own in sequence]] = 0
    return Scan(name="made", sequence=sequence, scores=scores, method="masked-marginals", offset=40)


def test_files(tmp_path: Path) -> None:
    own = made(130)
    write_csv(tmp_path / "made.csv", own)
    with (tmp_path / "made.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["mutation", "position", "wild", "mutant", "score"] and len(rows) == 19 * 130
    for row in rows[::97]:
        place = int(row["position"]) - 41
        assert row["mutation"] == f"{own.sequence[place]}{place + 41}{row['mutant']}"
        assert float(row["score"]) == pytest.approx(own.scores[place, LETTERS.index(row["mutant"])], abs=1e-6)
    write_png(tmp_path / "made.png", own)
    pixels = imread(tmp_path / "made.png")[..., :3]
    height, width = pixels.shape[:2]
    assert width > height > 300 and np.ptp(pixels.reshape(-1, 3), axis=0).min() > 0.5
    sizes = np.sort(np.abs(own.scores[own.scores != 0]))
    assert (sizes <= largest(own)).mean() == pytest.approx(0.99, abs=0.002)
