"""What a writer lets the model read is what training read; what comes out is what the prompt and the limits say."""

import re
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from generate.engine import END
from generate.limits import Limit, parse_limit
from generate.prompt import Fixed, Gap, Prompt, parse
from generate.writers import PromptedWriter, SpanWriter
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.objectives import IGNORE, Example, Fragment, ObjectiveConfig, make_example, tagged
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, EOP, EOS, SMASK, SOP, Tokenizer, encode_residues

GMASK = toy_config()
CAUSAL = toy_config(rotary="1d", objectives=("causal",))
Writer = PromptedWriter | SpanWriter


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def read(writer: Writer, said: list[int]) -> tuple[list[int], list[list[int]]]:
    """Tokens and positions that a model reads when it says these words."""
    tokens, positions = writer.start.tokens.tolist(), writer.start.positions.tolist()
    for word in said:
        choice = END if word == writer.end else word - 1
        assert writer.allowed()[choice]
        following = writer.advance(choice)
        if following:
            tokens.append(following[0])
            positions.append([*following[1:]])
    assert following is None
    assert len(tokens) <= writer.capacity
    return tokens, positions


@pytest.mark.parametrize("prefix", [0, 1, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("config", [GMASK, CAUSAL], ids=["gmask", "causal"])
def test_left_to_right_reads_what_training_read(config: GLMConfig, reverse: bool, prefix: int) -> None:
    (sequence,) = toy_sequences(1, min_length=20)
    certain = ObjectiveConfig(unconditional_ratio=1.0, reverse_ratio=float(reverse))
    objective = "gmask" if "gmask" in config.objectives else "causal"
    example = make_example(Fragment(encode_residues(sequence)), objective, rng(), certain)
    text = sequence[: prefix or 0] if not reverse else f"[..]{sequence[len(sequence) - prefix :]}"
    writer = PromptedWriter(parse(text), config, reverse=reverse, max_length=len(sequence) + 1, rng=rng())
    said = example.labels[example.labels != IGNORE].tolist()[prefix:]
    tokens, positions = read(writer, said)
    assert tokens == example.tokens.tolist() and positions == example.positions.tolist()
    assert writer.start.prefix == example.prefix
    assert writer.sequence == sequence
    assert writer.residues == [AMINO_ACIDS.index(a) for a in (sequence[::-1] if reverse else sequence)]
    if not prefix:
        assert writer.unconditioned is None
        return
    bare = PromptedWriter(parse(""), config, reverse=reverse, max_length=9, rng=rng())
    assert writer.unconditioned is not None
    assert writer.unconditioned.tokens.tolist() == bare.start.tokens.tolist()
    moved = writer.unconditioned.positions - bare.start.positions  # all by as much, so that rotary sees no difference
    following = bare.advance(0)
    assert following and (moved == moved[0]).all()
    assert (np.array(example.positions[len(writer.start.tokens)]) - following[1:] == moved[0]).all()


@pytest.mark.parametrize("text", ["", "MK", "[..]GG"])
@pytest.mark.parametrize("config", [GMASK, CAUSAL], ids=["gmask", "causal"])
def test_tags_stand_where_training_has_them(config: GLMConfig, text: str) -> None:
    tags, reverse = [40, 43], text.startswith("[")
    certain = ObjectiveConfig(unconditional_ratio=1.0, reverse_ratio=float(reverse))
    objective = "gmask" if "gmask" in config.objectives else "causal"
    plain = make_example(Fragment(encode_residues("MKTAYIAGG")), objective, rng(), certain)
    example = tagged(plain, np.array(tags, dtype=np.uint8))
    writer = PromptedWriter(parse(text), config, reverse=reverse, max_length=10, rng=rng(), tags=tags)
    bare = writer.unconditioned
    said = example.labels[example.labels != IGNORE].tolist()[len(writer.prefix) :]
    tokens, positions = read(writer, said)
    assert tokens == example.tokens.tolist() and positions == example.positions.tolist()
    assert writer.start.prefix == example.prefix and writer.sequence == "MKTAYIAGG"
    assert bare is not None and bare.prefix == plain.prefix  # guidance takes the tags away, and nothing else
    num = len(bare.tokens)
    assert bare.tokens.tolist() == plain.tokens.tolist()[:num] and num == len(writer.start.tokens) - 2
    assert (bare.positions == example.positions[2 : num + 2]).all()


def test_tags_stand_before_what_infilling_sees() -> None:
    tags = [40, 43]
    fragment = Fragment(encode_residues("MKTAYIAKQRQISFVKSHFSRQ"))
    drawn = (
        make_example(fragment, "smask", np.random.default_rng(i), ObjectiveConfig(long_span_ratio=0)) for i in range(99)
    )
    example = next(e for e in map(by_place, drawn) if e is not None and (e.tokens == SOP).sum() == 2)
    text, said = as_prompt(example, "[{}]")
    plain, writer = SpanWriter(parse(text), rng=rng()), SpanWriter(parse(text), rng=rng(), tags=tags)
    bare, example = writer.unconditioned, tagged(example, np.array(tags, dtype=np.uint8))
    tokens, positions = read(writer, said[:-1])
    assert tokens == example.tokens.tolist()[:-1] and positions == example.positions.tolist()[:-1]
    assert writer.start.prefix == example.prefix
    assert bare is not None and bare.prefix == plain.start.prefix
    assert bare.tokens.tolist() == plain.start.tokens.tolist()
    assert (bare.positions == plain.start.positions + (2, 0)).all()


def by_place(example: Example) -> Example | None:
    """The smask example, if its spans happen to come in order."""
    places = example.positions[example.tokens == SOP, 0]
    return example if (np.diff(places) > 0).all() else None


def as_prompt(example: Example, gap: str) -> tuple[str, list[int]]:
    """The prompt of an smask example, and what the model is to say; `gap` is a form with the span's length."""
    spans, said = [], example.labels[example.labels != IGNORE].tolist()
    for word in said:
        if not spans or spans[-1][-1:] == [EOP]:
            spans.append([])
        spans[-1].append(word)
    text, lengths = "", iter(len(span) - 1 for span in spans)
    for token in example.tokens[: example.prefix - 1].tolist():
        text += gap.format(next(lengths)) if token == SMASK else Tokenizer().decode([token])
    return text, said


@pytest.mark.parametrize("long_spans", [0.0, 1.0])
def test_infilling_reads_what_training_read(long_spans: float) -> None:
    config = ObjectiveConfig(long_span_ratio=long_spans, mask_ratio=0.1)
    num_several = 0
    for seed, sequence in enumerate(toy_sequences(60, min_length=20)):
        example = by_place(
            make_example(Fragment(encode_residues(sequence)), "smask", np.random.default_rng(seed), config)
        )
        if example is None:
            continue
        num_several += (example.tokens == SOP).sum() > 1
        text, said = as_prompt(example, "[1..{}]")
        prompt = parse(text)
        longer = tuple(
            replace(p, longest=p.longest + 1) if isinstance(p, Gap) and p.longest else p for p in prompt.pieces
        )
        writer = SpanWriter(Prompt(longer), rng=rng())
        tokens, positions = read(writer, said)
        assert tokens == example.tokens.tolist() and positions == example.positions.tolist()
        assert writer.start.prefix == example.prefix and writer.sequence == sequence
        assert writer.residues == [AMINO_ACIDS.index(a) for a in sequence][: len(writer.residues)]

        exact = SpanWriter(parse(as_prompt(example, "[{}]")[0]), rng=rng())
        tokens, positions = read(exact, said[:-1])  # of the last span the end is known, so nothing is left to read
        assert tokens == example.tokens.tolist()[:-1] and positions == example.positions.tolist()[:-1]
        assert exact.sequence == sequence
    assert num_several > 3


def test_an_exact_span_says_its_end_to_the_next() -> None:
    writer = SpanWriter(parse("M[2]K[1]"), rng=rng())
    assert writer.start.tokens.tolist() == [17, SMASK, 12, SMASK, EOS, SOP] and writer.start.prefix == 5
    assert writer.start.positions.tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [1, 1]]
    assert [writer.advance(0), writer.advance(0)] == [(1, 1, 2), (1, 1, 3)]
    assert np.flatnonzero(writer.allowed()).tolist() == [END]
    assert writer.advance(END) == (SOP, 3, 1)
    assert writer.advance(4) is None and writer.sequence == "MLLKS"
    bare = writer.unconditioned
    assert bare.tokens.tolist() == [SMASK, SMASK, EOS, SOP] and bare.prefix == 3
    assert bare.positions.tolist() == [[1, 0], [3, 0], [4, 0], [1, 1]]


PIECES = st.lists(
    st.text(AMINO_ACIDS, min_size=1, max_size=4).map(Fixed)
    | st.builds(lambda short, more, letters: Gap(short, short + more, letters), st.integers(0, 6), st.integers(0, 4),
                st.sets(st.sampled_from(AMINO_ACIDS), min_size=2).map("".join) | st.just(AMINO_ACIDS)),
    min_size=1, max_size=5,
)  # fmt: skip
LIMITS = st.lists(
    st.builds(Limit, st.sampled_from(["C", "LAG", "AVILMF", "W"]), most=st.integers(0, 9))
    | st.builds(Limit, st.sampled_from(["KR", "L", "ST"]), ratio=st.sampled_from([0.0, 0.1, 0.5])),
    max_size=3,
)  # fmt: skip


def pattern(prompt: Prompt) -> str:
    return "".join(
        p.residues if isinstance(p, Fixed) else f"[{p.letters}]{{{p.shortest},{p.longest or ''}}}"
        for p in prompt.pieces
    )


@example([Fixed("A")], [], "forward", 0, 1, Random(0))  # an open end without room
@example([Gap(0, 1), Fixed("A")], [], "reverse", None, 1, Random(0))  # a range without room
@given(PIECES, LIMITS, st.sampled_from(["forward", "reverse", "spans"]), st.none() | st.integers(0, 9),
       st.integers(1, 40), st.randoms())  # fmt: skip
def test_prompts_and_limits_hold(
    pieces: list, limits: list[Limit], way: str, end: int | None, max_length: int, random
) -> None:
    if end is not None and way != "spans":
        pieces = [*pieces, Gap(end, None)] if way == "forward" else [Gap(end, None), *pieces]
    try:
        prompt = Prompt(tuple(pieces))
        writer: Writer
        if way == "spans":
            writer = SpanWriter(prompt, max_length=max_length, limits=limits, rng=rng())
        else:
            writer = PromptedWriter(
                prompt, GMASK, reverse=way == "reverse", max_length=max_length, limits=limits, rng=rng()
            )
    except ConfigError:
        return
    assert prompt.shortest <= max_length
    steps, following, is_cut = 0, (0, 0, 0), False
    while following and not is_cut:
        try:
            allowed = np.flatnonzero(writer.allowed())
        except ConfigError as error:  # limits that share letters can still lead nowhere
            assert "allow nothing more" in str(error) and len(limits) > 1
            return
        following = writer.advance(int(random.choice(allowed)))
        steps += following is not None
        is_cut = len(writer.start.tokens) + steps > writer.capacity  # by the engine
    assert re.fullmatch(pattern(prompt), writer.sequence)
    assert len(writer.sequence) <= max_length
    if is_cut:  # it could have gone on, and a limit may wait for that
        assert way != "spans" and len(writer.sequence) == max_length
        return
    for limit in limits:
        assert sum(map(writer.sequence.count, limit.letters)) <= limit.allows(len(writer.sequence))


def test_a_range_before_a_motif_gets_each_of_its_lengths() -> None:
    places = set()
    for number in range(60):
        writer = PromptedWriter(parse("[2..5]WWW[..]"), GMASK, reverse=False, max_length=50,
                                rng=np.random.default_rng(number))  # fmt: skip
        for _ in range(9):
            allowed = np.flatnonzero(writer.allowed())
            writer.advance(int(allowed[-1] if len(allowed) == 1 else 0))
        places.add(writer.sequence.index("WWW"))
        assert writer.allowed().all()
    assert places == {2, 3, 4, 5}


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_a_range_leaves_room_for_what_is_demanded(way: str) -> None:
    """Of 2 to 9 residues twice, 7 more than the least fit: each combination as often as any other."""
    counts: dict[tuple[int, int], int] = {}
    for number in range(600):
        writer = PromptedWriter(parse("[2..9:A]WW[2..9:A]GG[..]" if way == "forward" else "[..]GG[2..9:A]WW[2..9:A]"),
                                GMASK, reverse=way == "reverse", max_length=11,
                                rng=np.random.default_rng(number))  # fmt: skip
        for _ in range(11):
            writer.advance(int(np.flatnonzero(writer.allowed())[0]))
        found = re.fullmatch("(A+)WW(A+)GG(L*)" if way == "forward" else "(L*)GG(A+)WW(A+)", writer.sequence)
        assert found
        lengths = tuple(len(group) for group in found.groups() if "A" in group)
        assert len(lengths) == 2
        counts[lengths] = counts.get(lengths, 0) + 1
    assert set(counts) == {(i, j) for i in range(2, 6) for j in range(2, 6) if i + j <= 7}
    assert max(abs(count - 60) for count in counts.values()) < 4 * 60**0.5


def test_spans_share_what_is_left() -> None:
    lengths = set()
    for number in range(40):
        draw = np.random.default_rng(number)
        writer = SpanWriter(parse("M[1..9]K[2..9][1..9]G"), max_length=10, rng=draw)
        while writer.advance(int(draw.choice(np.flatnonzero(writer.allowed())[-2:]))):
            pass
        assert re.fullmatch("M.{1,9}K.{3,18}G", writer.sequence)
        lengths.add(len(writer.sequence))
    assert max(lengths) == 10 and len(lengths) > 1
    with pytest.raises(ConfigError, match="max_length is 6 and the prompt has 7 residues"):
        SpanWriter(parse("M[1..9]K[2..9][1..9]G"), max_length=6, rng=rng())


def test_guidance_needs_something_fixed() -> None:
    assert SpanWriter(parse("[5..20]"), rng=rng()).unconditioned is None
    assert SpanWriter(parse("[5..20]K"), rng=rng()).unconditioned is not None


@pytest.mark.parametrize(("text", "longest"), [("MKT[5]", 8), ("MKT[2..9]", 12), ("[5]", 5), ("MKT", 1000)])
def test_memory_is_that_of_what_can_be_written(text: str, longest: int) -> None:
    writer = PromptedWriter(parse(text), GMASK, reverse=False, max_length=1000, rng=rng())
    assert writer.capacity == 3 + longest - 1  # <gmask> <sop> <eos>; the last residue is not read


def test_the_first_residue_is_no_end() -> None:
    writer = PromptedWriter(parse(""), GMASK, reverse=False, max_length=5, rng=rng())
    assert np.flatnonzero(~writer.allowed()).tolist() == [END]
    writer.advance(0)
    assert writer.allowed().all()


def test_what_writers_refuse() -> None:
    with pytest.raises(ConfigError, match="nothing to write"):
        PromptedWriter(parse("MK[0]"), GMASK, reverse=False, max_length=5, rng=rng())
    with pytest.raises(SequenceError, match="GXB holds B, X"):
        PromptedWriter(parse("X[5]GXB"), GMASK, reverse=False, max_length=50, rng=rng())
    assert PromptedWriter(parse("XB"), GMASK, reverse=False, max_length=5, rng=rng()).residues == []
    for text in ("MK", "MK[0]", "[..]MK"):
        with pytest.raises(ConfigError, match="upper end"):
            SpanWriter(parse(text), rng=rng())


@pytest.mark.parametrize(
    ("text", "limit", "reason"),
    [("CC[..]", "C=1", "demands 2"), ("M[3..5:CW]", "CW=2", "demands 3"), ("M[5]CC[2]", "C=1", "demands 2"),
     ("CC[..30]", "C=5%", "limit C=5% allows 1"), ("[9:AV]", "A=4 V=4", "allow 8 residues of AV together")],
)  # fmt: skip
def test_limits_that_contradict(text: str, limit: str, reason: str) -> None:
    limits = [parse_limit(part) for part in limit.split()]
    with pytest.raises(ConfigError, match=reason):
        PromptedWriter(parse(text), GMASK, reverse=False, max_length=40, limits=limits, rng=rng())


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("M[1]CC[2]", "C=2", "M[^C]CC[^C]{2}"),
        ("[3:CW]", "CW=3", "[CW]{3}"),
        ("[2][2:CW][1]", "CW=2", "[^CW]{2}[CW]{2}[^CW]"),
    ],
)
def test_limits_that_are_just_met(text: str, limit: str, expected: str) -> None:
    """What a later piece demands is set aside; what a piece demands, it gets."""
    for seed in range(20):
        draw = np.random.default_rng(seed)
        writer = PromptedWriter(
            parse(text), GMASK, reverse=False, max_length=40, limits=[parse_limit(limit)], rng=rng()
        )
        while writer.advance(int(draw.choice(np.flatnonzero(writer.allowed())))):
            pass
        assert re.fullmatch(expected, writer.sequence)


def test_a_share_is_met_before_the_end() -> None:
    writer = PromptedWriter(
        parse("CC[..]"), GMASK, reverse=False, max_length=90, limits=[parse_limit("C=5%")], rng=rng()
    )
    for length in range(2, 60):
        allowed = writer.allowed()
        assert allowed[END] == (length * 0.05 >= 2)
        assert allowed[AMINO_ACIDS.index("C")] == ((length + 1) * 0.05 >= 3)
        writer.advance(0)


@pytest.mark.parametrize("text", ["C=0", "W=2", "AVILMF=40%", "KR=12.5%"])
def test_limits_as_text(text: str) -> None:
    assert str(parse_limit(text)) == text
    assert parse_limit(text.lower()) == parse_limit(text)


@pytest.mark.parametrize("text", ["C", "C=", "C=-1", "X=1", "=3", "C=0.5", "C=101%", "C<3"])
def test_limits_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="limit"):
        parse_limit(text)
