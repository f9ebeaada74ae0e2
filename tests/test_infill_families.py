"""The example's parts beside counts by hand, and the whole of it on a family made up here."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyhmmer.easel import Alphabet, TextMSA, TextSequence
from pyhmmer.plan7 import Background, Builder

from examples import infill_families as example
from examples import infill_hmms
from examples.infill_figures import difference, judged
from generate.membership import bit_scores
from generate.unmasking import marginals
from xtrimo import checkpoint
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS

ALPHABET = Alphabet.amino()  # outlives what is made with it, which pyhmmer relies on
CORE = toy_sequences(1, seed=5, min_length=60, max_length=60)[0]


def mutant(sequence: str, rng: np.random.Generator, share: float = 0.15) -> str:
    return "".join(str(rng.choice(list(AMINO_ACIDS))) if rng.random() < share else letter for letter in sequence)


@pytest.fixture(scope="module")
def hmms() -> list[Any]:
    rng = np.random.default_rng(0)
    aligned = [TextSequence(name=f"m{i}", sequence=mutant(CORE, rng)) for i in range(12)]
    msa = TextMSA(name="toy_1", sequences=aligned).digitize(ALPHABET)
    hmm, _, _ = Builder(ALPHABET).build_msa(msa, Background(ALPHABET))
    return [hmm]


@pytest.fixture(scope="module")
def members() -> list[Record]:
    rng = np.random.default_rng(1)
    flanks = toy_sequences(8, seed=6, min_length=5, max_length=30)
    return [Record(f"t{i}", f + mutant(CORE, rng) + f[:3], "family=toy split=test") for i, f in enumerate(flanks)]


def test_a_span_is_a_prompt_of_what_is_around_it() -> None:
    protein = Record("p", "MKT" + "A" * 20 + "GGH")
    for start, text in ((0, "[20]AAAGGH"), (3, "MKT[20]GGH"), (6, "MKTAAA[20]")):
        span = example.Span(protein, "toy", start)
        assert str(span.prompt) == text
        assert span.filled(span.truth) == protein.sequence
        assert len(span.filled("W" * 20)) == 26 and span.filled("W" * 20)[start : start + 20] == "W" * 20


def test_a_tag_stands_in_front() -> None:
    span = example.Span(Record("p", "MKT" + "A" * 20), "toy", 3, "family")
    assert str(span.prompt) == "<family=toy>MKT[20]"


def test_columns_by_hand() -> None:
    #                         hmm column     2 3 . 4 5 6        residue   5 6 7 8 - 9
    alignment = SimpleNamespace(hmm_from=3, hmm_sequence="ab.cde", target_from=6, target_sequence="ABxC-E")
    assert infill_hmms._columns(alignment) == {5: 2, 6: 3, 8: 4, 9: 6}


def test_spans_are_inside_of_the_envelope_and_the_same_each_time(hmms: Sequence[Any], members: list[Record]) -> None:
    stranger = Record("stranger", toy_sequences(1, seed=9, min_length=60)[0], "family=toy split=test")
    spans = example.choose_spans([stranger, *members], hmms, len(members), seed=0)
    assert {span.protein.name for span in spans} == {member.name for member in members}
    for span in spans:
        core = len(span.protein.sequence) - 60 - 3  # where it begins
        assert core - 3 <= span.start <= core + 40 + 3
    assert spans == example.choose_spans([stranger, *members], hmms, len(members), seed=0)
    assert spans != example.choose_spans([stranger, *members], hmms, len(members), seed=1)
    with pytest.raises(DataError, match="8 members have a span"):
        example.choose_spans([stranger, *members], hmms, 9, seed=0)


def test_the_consensus_is_that_of_the_columns_that_are_hidden(hmms: Sequence[Any], members: list[Record]) -> None:
    for member in members:
        core = len(member.sequence) - 60 - 3
        for start in (7, 25, 33):
            span = example.Span(member, "toy", core + start)
            assert example.consensus(span, hmms) == hmms[0].consensus[start : start + 20].upper()
    assert example.consensus(example.Span(Record("p", "W" * 40), "toy", 5), hmms) == "L" * 20


def test_the_model_and_the_hmm_speak_together(hmms: Sequence[Any], members: list[Record], monkeypatch: Any) -> None:
    """Against products by hand; without a hit the model speaks alone."""
    member = members[0]
    span = example.Span(member, "toy", len(member.sequence) - 60 - 3 + 25)
    stranger = example.Span(Record("p", "W" * 40), "toy", 5)
    model = GLM(toy_config(), seed=0).eval()
    held = marginals(model, [span.prompt, stranger.prompt])
    rows = np.array([hmms[0].match_emissions[26 + place] for place in range(20)])
    chances = dict(zip(hmms[0].alphabet.symbols, rows.T, strict=False))
    expected = ""
    for place in range(20):
        product = {
            letter: np.exp(held[0][place, i]) * chances[letter][place] ** 1.5 for i, letter in enumerate(AMINO_ACIDS)
        }
        expected += max(product, key=lambda letter: product[letter])
    alone = "".join(AMINO_ACIDS[i] for i in held[1].argmax(1))
    assert example.guided(model, [span, stranger], hmms) == [expected, alone]


def test_letters_alone() -> None:
    cycle = np.zeros((26, 26, 20))
    for word in range(26):  # whatever came two before, A follows L, G follows A, and so on
        cycle[:, word, word % 20] = 1.0
    span = example.Span(Record("p", AMINO_ACIDS[:3] + "W" * 20), "toy", 3)
    for temperature in (0.0, 1.0):
        rng = np.random.default_rng(0)
        assert example.by_trigrams(span, cycle, temperature, rng) == (AMINO_ACIDS * 2)[3:23]
    first = example.Span(Record("p", "W" * 20), "toy", 0)
    assert example.by_trigrams(first, cycle, 0.0, np.random.default_rng(0)) == AMINO_ACIDS
    shares = example.sample_letters(["LLLA", "LXA", "L"])
    np.testing.assert_allclose(shares[:2], [5 / 7, 2 / 7])
    assert example.by_composition(shares, 0.0, np.random.default_rng(0)) == "L" * 20
    drawn = "".join(example.by_composition(shares, 1.0, np.random.default_rng(i)) for i in range(50))
    assert abs(drawn.count("A") / len(drawn) - 2 / 7) < 0.05 and set(drawn) == {"L", "A"}


def test_figures_by_hand(hmms: Sequence[Any], members: list[Record]) -> None:
    spans = example.choose_spans(members, hmms, 2, seed=0)
    right, wrong = spans[0].truth, "".join("W" if letter != "W" else "A" for letter in spans[1].truth)
    true_bits = example.family_bits(spans, hmms, [span.protein.sequence for span in spans])
    lost = true_bits - example.family_bits(spans, hmms, [spans[0].filled(right), spans[1].filled(wrong)])
    one = judged("mlm", "drawn", [span.truth for span in spans], [right, wrong], lost)
    assert one.num_right.tolist() == [20, 0] and one.identity.value == 50
    expected = bit_scores(hmms, [spans[1].protein.sequence, spans[1].filled(wrong)])[:, 0]
    assert one.loss.value == pytest.approx((expected[0] - expected[1]) / 2) and one.loss.value > 5
    other = judged("3-gram", "drawn", [span.truth for span in spans], [wrong, wrong], lost)
    identity, bits = difference(one, other)
    assert identity.value == 50 and (bits.value, bits.low, bits.high) == (0, 0, 0)


def test_the_filling_of_most_bits_is_chosen(hmms: Sequence[Any], members: list[Record]) -> None:
    spans = example.choose_spans(members, hmms, 2, seed=0)
    wrong = "".join("W" if letter != "W" else "A" for letter in CORE[:20])
    drawn = [[spans[0].truth, wrong], [wrong, spans[1].truth], [wrong, wrong]]
    assert example.choose(spans, hmms, drawn) == [spans[0].truth, spans[1].truth]


def test_the_command_writes_its_page(
    tmp_path: Path, hmms: Sequence[Any], members: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    write_fasta(tmp_path / "families.fasta.gz", [*members, Record("x", CORE, "family=toy split=train")])
    write_fasta(tmp_path / "sample.fasta.gz", [Record(f"s{i}", s) for i, s in enumerate(toy_sequences(20))])
    with (tmp_path / "families.hmm.gz").open("wb") as file:
        hmms[0].write(file)
    checkpoint.save(GLM(toy_config(), seed=0), tmp_path / "model")
    arguments = [
        str(tmp_path), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--spans", "3",
        "--draws", "2", "--by", "smask", "mlm", "ends", "ends+mlm", "guided",
    ]  # fmt: skip
    assert example.main(arguments) == 0
    page = (tmp_path / "out/infilling.md").read_text()
    assert page in capsys.readouterr().out
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert {"smask", "mlm", "ends", "composition", "3-gram", "consensus"} <= rows.keys()
    assert {"smask - mlm, drawn", "smask - ends, likeliest"} <= rows.keys()
    assert rows["smask"].count("(") == rows["composition"].count("(") == 6 and rows["consensus"].count("(") == 2
    assert rows["ends"].count("(") == 2 and "16 drafts from each" in page
    assert rows["ends+mlm"].count("(") == 2 and "to the power of 3." in page
    assert rows["guided"].count("(") == 2 and "to the power of 1.5" in page
    assert (tmp_path / "out/infilling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="0 members have a span"):
        example.main([*arguments, "--families", "other"])
    checkpoint.save(GLM(toy_config(directions=("forward",))), tmp_path / "one")
    with pytest.raises(ConfigError, match="not trained on gmask both"):
        example.main([*arguments, "--model", str(tmp_path / "one")])
    with pytest.raises(ConfigError, match="no tag <family=toy>"):
        example.main([*arguments, "--tag", "family", "--by", "smask"])
