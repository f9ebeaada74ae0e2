"""Each example is read back into its protein, and written again by a plain statement of the rules."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrimo.errors import ConfigError, SequenceError
from xtrimo.objectives import IGNORE, OBJECTIVES, Example, Fragment, ObjectiveConfig, make_example
from xtrimo.tokens import EOP, EOS, GMASK, MASK, PAD, REV, SMASK, SOP, Tokenizer

TOKENIZER = Tokenizer()


@st.composite
def fragments(draw: st.DrawFn) -> Fragment:
    # A seed, not a list of ids: long proteins stay cheap to draw. Read-only, as the corpus hands them out.
    length = draw(st.integers(1, 30) | st.integers(1, 700))
    residues = np.random.default_rng(draw(st.integers(0, 999))).integers(1, 26, length).astype(np.uint8)
    residues.flags.writeable = False
    return Fragment(residues, draw(st.booleans()), draw(st.booleans()))


@st.composite
def configs(draw: st.DrawFn) -> ObjectiveConfig:
    average_span = draw(st.floats(1, 39))
    densest = min(0.5, average_span / 16)
    ratio = st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0))
    return ObjectiveConfig(
        mask_ratio=draw(st.just(densest) | st.floats(0.01, densest)),
        average_span=average_span,
        unconditional_ratio=draw(ratio),
        min_target_ratio=draw(ratio),
        reverse_ratio=draw(ratio),
        single_span_ratio=draw(ratio),
        long_span_ratio=draw(ratio),
    )


SEEDS = st.integers(0, 2**32)


def protein(length: int) -> Fragment:
    return Fragment(np.random.default_rng(length).integers(1, 21, length).astype(np.uint8))


def configured(config: dict[str, float]) -> ObjectiveConfig:
    return ObjectiveConfig(**{name: float(value) for name, value in config.items()})


def draw(name: str, fragment: Fragment, seed: int = 0, **config: float) -> Example:
    return make_example(fragment, name, np.random.default_rng(seed), configured(config))


def spelled(letters: str, has_start: bool = True, has_end: bool = True) -> Fragment:
    return Fragment(TOKENIZER.encode(letters, eos=False), has_start, has_end)


def draws(name: str, fragment: Fragment, count: int, **config: float) -> list[Example]:
    rng = np.random.default_rng(count)
    return [make_example(fragment, name, rng, configured(config)) for _ in range(count)]


# ---- reading an example back ----


def strip_ends(words: list[int]) -> tuple[list[int], bool, bool]:
    start, end = words[0] == EOS, words[-1] == EOS
    return words[start : len(words) - end], start, end


def read_generation(example: Example) -> tuple[list[int], bool, bool, bool, int]:
    """Residues N to C, has_start, has_end, reversed, residues in the source."""
    words = [*example.tokens.tolist(), int(example.labels[-1])]
    turned = words[0] == REV
    source = words[turned : words.index(GMASK)]
    target = words[words.index(GMASK) + 2 :]
    assert words[words.index(GMASK) + 1] == SOP
    residues, start, end = strip_ends(source + target)
    num_source = sum(word != EOS for word in source)
    return (residues[::-1], end, start, True, num_source) if turned else (residues, start, end, False, num_source)


def read_smask(example: Example) -> tuple[list[int], bool, list[tuple[int, int]]]:
    """Residues, has_end, and the hidden (start, end) in the order of part B."""
    spans: dict[int, list[int]] = {}
    for token, label, place in zip(example.tokens, example.labels, example.positions[:, 0].tolist(), strict=True):
        if token == SOP:
            spans[place] = []
        if label not in (IGNORE, EOP):
            spans[place].append(int(label))
    words: list[int] = []
    found = {}
    for place, word in enumerate(example.tokens[: example.prefix].tolist()):
        found[place] = (len(words), len(words) + len(spans.get(place, ())))
        words += spans[place] if word == SMASK else [word]
    residues, _, end = strip_ends(words)
    return residues, end, [found[place] for place in spans]


# ---- the rules once more, in lists ----

Written = tuple[list[int], list[tuple[int, int]], list[int], int]


def as_lists(example: Example) -> Written:
    positions = [(int(a), int(b)) for a, b in example.positions]
    return example.tokens.tolist(), positions, example.labels.tolist(), example.prefix


def write_gmask(fragment: Fragment, turned: bool, num_source: int) -> Written:
    residues, start, end = fragment.residues.tolist(), fragment.has_start, fragment.has_end
    if turned:
        residues, start, end = residues[::-1], end, start
    part_a = ([REV] if turned else []) + ([EOS] if start and num_source else []) + residues[:num_source] + [GMASK]
    said = residues[num_source:] + ([EOS] if end else [])
    part_b = [SOP] + ([EOS] if start and not num_source else []) + said
    positions = [(i, 0) for i in range(len(part_a))] + [(len(part_a) - 1, j + 1) for j in range(len(part_b) - 1)]
    labels = [PAD] * (len(part_a) + len(part_b) - 1 - len(said)) + said
    return (part_a + part_b)[:-1], positions, labels, len(part_a)


def write_smask(fragment: Fragment, spans: list[tuple[int, int]]) -> Written:
    residues = fragment.residues.tolist()
    part_a, place_of, i = [], {}, 0
    while i < len(residues):
        hidden = [span for span in spans if span[0] == i]
        if hidden:
            place_of[i] = len(part_a)
        part_a.append(SMASK if hidden else residues[i])
        i = hidden[0][1] if hidden else i + 1
    part_a += [EOS] if fragment.has_end else []
    tokens, positions, labels = part_a[:], [(i, 0) for i in range(len(part_a))], [PAD] * len(part_a)
    for start, end in spans:
        tokens += [SOP, *residues[start:end]]
        labels += [*residues[start:end], EOP]
        positions += [(place_of[start], j) for j in range(1, end - start + 2)]
    return tokens, positions, labels, len(part_a)


# ---- every example of every objective ----


@given(fragments(), SEEDS, configs())
def test_mlm_hides_what_it_labels_and_nothing_else(fragment: Fragment, seed: int, config: ObjectiveConfig) -> None:
    example = make_example(fragment, "mlm", np.random.default_rng(seed), config)
    residues, _, end = strip_ends(
        [int(label or token) for token, label in zip(example.tokens, example.labels, strict=True)]
    )
    assert residues == fragment.residues.tolist() and end == fragment.has_end
    num_residues, num_tokens = len(residues), len(example.tokens)
    assert np.count_nonzero(example.labels) == max(1, math.floor(round(config.mask_ratio * num_residues, 6)))
    assert not example.labels[num_residues:].any(), "no loss on <eos>"
    assert set(example.tokens[example.labels != IGNORE].tolist()) <= {MASK, *range(1, 28)}
    assert example.positions.tolist() == [[i, 0] for i in range(num_tokens)]
    assert example.prefix == num_tokens


@given(fragments(), SEEDS, configs())
def test_gmask_is_the_protein_cut_once(fragment: Fragment, seed: int, config: ObjectiveConfig) -> None:
    example = make_example(fragment, "gmask", np.random.default_rng(seed), config)
    residues, start, end, turned, num_source = read_generation(example)
    assert (residues, start, end) == (fragment.residues.tolist(), fragment.has_start, fragment.has_end)
    assert as_lists(example) == write_gmask(fragment, turned, num_source)
    shortest = max(1, math.ceil(round(config.min_target_ratio * len(residues), 6)))
    if num_source:
        assert shortest <= len(residues) - num_source <= len(residues) - 1
    else:
        assert config.unconditional_ratio > 0 or shortest > len(residues) - 1
    assert turned <= (config.reverse_ratio > 0) and (not turned) <= (config.reverse_ratio < 1)


@given(fragments(), SEEDS, configs())
def test_causal_is_the_empty_source_in_one_channel(fragment: Fragment, seed: int, config: ObjectiveConfig) -> None:
    example = make_example(fragment, "causal", np.random.default_rng(seed), config)
    residues, start, end, turned, num_source = read_generation(example)
    assert (residues, start, end) == (fragment.residues.tolist(), fragment.has_start, fragment.has_end)
    tokens, _, labels, _ = write_gmask(fragment, turned, num_source=0)
    assert num_source == 0
    assert as_lists(example) == (tokens, [(i, 0) for i in range(len(tokens))], labels, 0)


@given(fragments(), SEEDS, configs())
def test_smask_is_the_protein_with_spans_moved(fragment: Fragment, seed: int, config: ObjectiveConfig) -> None:
    example = make_example(fragment, "smask", np.random.default_rng(seed), config)
    residues, end, spans = read_smask(example)
    assert residues == fragment.residues.tolist() and end == fragment.has_end
    assert as_lists(example) == write_smask(fragment, spans)

    num_residues, lengths = len(residues), [end - start for start, end in spans]
    assert all(left[1] < right[0] for left, right in pairwise(sorted(spans))), "a visible residue between two spans"
    assert len(spans) <= num_residues // 12 + 4
    short = sum(lengths) == max(1, math.ceil(round(config.mask_ratio * num_residues, 6)))
    short &= len(lengths) == 1 or max(lengths) <= 39
    long = len(lengths) <= 2 and min(lengths) >= 8 and max(lengths) <= 40 and sum(lengths) <= 0.4 * num_residues
    assert (short and config.long_span_ratio < 1) or (short and 0.4 * num_residues < 8) or (long and num_residues >= 20)
    assert short or config.long_span_ratio > 0


@given(fragments(), SEEDS, configs(), st.sampled_from(tuple(OBJECTIVES)))
def test_common_promises(fragment: Fragment, seed: int, config: ObjectiveConfig, name: str) -> None:
    first, again = (make_example(fragment, name, np.random.default_rng(seed), config) for _ in range(2))
    assert as_lists(first) == as_lists(again)
    assert first.objective == name
    assert [first.tokens.dtype, first.labels.dtype, first.positions.dtype] == [np.uint8, np.uint8, np.int32]
    bound = OBJECTIVES[name].max_tokens(np.array([len(fragment.residues), 1]))
    assert len(first.tokens) <= bound[0] and len(bound) == 2
    assert first.labels.any(), "an example without loss would waste its tokens"
    assert PAD not in first.tokens


@pytest.mark.parametrize("name", ["mlm", "gmask", "causal"])
def test_the_token_bound_is_tight(name: str) -> None:
    fragment = protein(50)
    assert len(draw(name, fragment, reverse_ratio=1).tokens) == OBJECTIVES[name].max_tokens(np.array([50]))[0]


# ---- by hand ----


def words(text: str) -> list[int]:
    """Ids of words between blanks; _ is no word (0)."""
    return [PAD if word == "_" else int(TOKENIZER.encode(word, eos=False)[0]) for word in text.split()]


def by_hand(tokens: str, labels: str, positions: str, prefix: int) -> Written:
    return words(tokens), [(int(a), int(b)) for a, b in positions.split()], words(labels), prefix


GOLDEN = [
    # name, has_start, has_end, config, tokens, labels, positions, prefix
    ("gmask", True, True, dict(unconditional_ratio=1, reverse_ratio=0),
     "<gmask> <sop> <eos> M K V A", "_ _ M K V A <eos>", "00 01 02 03 04 05 06", 1),
    ("gmask", True, True, dict(unconditional_ratio=1, reverse_ratio=1),
     "<rev> <gmask> <sop> <eos> A V K M", "_ _ _ A V K M <eos>", "00 10 11 12 13 14 15 16", 2),
    ("gmask", True, True, dict(unconditional_ratio=0, min_target_ratio=0.75, reverse_ratio=0),
     "<eos> M <gmask> <sop> K V A", "_ _ _ K V A <eos>", "00 10 20 21 22 23 24", 3),
    ("gmask", True, True, dict(unconditional_ratio=0, min_target_ratio=0.75, reverse_ratio=1),
     "<rev> <eos> A <gmask> <sop> V K M", "_ _ _ _ V K M <eos>", "00 10 20 30 31 32 33 34", 4),
    ("gmask", False, False, dict(unconditional_ratio=1, reverse_ratio=0),
     "<gmask> <sop> M K V", "_ M K V A", "00 01 02 03 04", 1),
    ("gmask", False, True, dict(unconditional_ratio=1, reverse_ratio=1),
     "<rev> <gmask> <sop> <eos> A V K", "_ _ _ A V K M", "00 10 11 12 13 14 15", 2),
    ("gmask", True, False, dict(unconditional_ratio=0, min_target_ratio=0.75, reverse_ratio=0),
     "<eos> M <gmask> <sop> K V", "_ _ _ K V A", "00 10 20 21 22 23", 3),
    ("gmask", True, False, dict(unconditional_ratio=0, min_target_ratio=0.75, reverse_ratio=1),
     "<rev> A <gmask> <sop> V K M", "_ _ _ V K M <eos>", "00 10 20 21 22 23 24", 3),
    ("causal", True, True, dict(reverse_ratio=0),
     "<gmask> <sop> <eos> M K V A", "_ _ M K V A <eos>", "00 10 20 30 40 50 60", 0),
    ("causal", False, True, dict(reverse_ratio=1),
     "<rev> <gmask> <sop> <eos> A V K", "_ _ _ A V K M", "00 10 20 30 40 50 60", 0),
]  # fmt: skip


@pytest.mark.parametrize("row", GOLDEN)
def test_generation_by_hand(row: tuple[str, bool, bool, dict[str, float], str, str, str, int]) -> None:
    name, has_start, has_end, config, *expected = row
    assert as_lists(draw(name, spelled("MKVA", has_start, has_end), **config)) == by_hand(*expected)


def test_one_residue_has_no_source_to_give() -> None:
    fragment = spelled("M")
    example = draw("gmask", fragment, unconditional_ratio=0, reverse_ratio=0)
    assert example.tokens.tolist() == words("<gmask> <sop> <eos> M")
    assert draw("mlm", fragment).labels.tolist() == words("M _")
    assert draw("smask", fragment).tokens.tolist() == words("<smask> <eos> <sop> M")


def test_mlm_by_hand() -> None:
    seen = {TOKENIZER.decode(example.tokens) for example in draws("mlm", spelled("MKV"), 8000)}
    assert {"<mask>KV<eos>", "M<mask>V<eos>", "MK<mask><eos>", "MKV<eos>", "MWV<eos>", "-KV<eos>"} <= seen
    assert len(seen) == 3 * 27 + 1  # one residue of three: <mask>, 26 others, or itself


def test_smask_by_hand() -> None:
    fragment = spelled("MKVALGSE")
    config = dict(mask_ratio=0.2, average_span=3.2, long_span_ratio=0, single_span_ratio=0)  # hides two residues
    seen = Counter(str(as_lists(example)) for example in draws("smask", fragment, 4000, **config))
    one_span = "M K V <smask> G S E <eos> <sop> A L", "_ _ _ _ _ _ _ _ A L <eop>", "00 10 20 30 40 50 60 70 31 32 33"
    part_a, places = "<smask> K V A L G S <smask> <eos>", "00 10 20 30 40 50 60 70 80"
    in_order = f"{part_a} <sop> M <sop> E", "_ _ _ _ _ _ _ _ _ M <eop> E <eop>", f"{places} 01 02 71 72"
    swapped = f"{part_a} <sop> E <sop> M", "_ _ _ _ _ _ _ _ _ E <eop> M <eop>", f"{places} 71 72 01 02"
    assert {str(by_hand(*one_span, 8)), str(by_hand(*in_order, 9)), str(by_hand(*swapped, 9))} <= set(seen)
    # Seven places for one span of two; 21 non-adjacent pairs of places for two spans of one, in either order.
    pairs = [count for text, count in seen.items() if text.count(f" {SOP},") == 2]
    singles = [count for text, count in seen.items() if text.count(f" {SOP},") == 1]
    assert (len(singles), len(pairs)) == (7, 42)
    for counts in (singles, pairs):
        mean = sum(counts) / len(counts)
        assert max(abs(count - mean) for count in counts) < 4.5 * math.sqrt(mean), "each placing is equally likely"
    first_is_one = 3.2 * math.exp(-3.2) / (1 - math.exp(-3.2))
    assert sum(pairs) / 4000 == pytest.approx(first_is_one, abs=0.015)


# ---- shares, with fixed seeds ----


def test_mlm_shares() -> None:
    fragment = Fragment(np.full(200, 5, dtype=np.uint8))  # a homopolymer shows replacements at once
    examples = draws("mlm", fragment, 1000)
    chosen = np.stack([example.labels[:200] != IGNORE for example in examples])
    said = np.concatenate([example.tokens[example.labels != IGNORE] for example in examples])
    assert (chosen.sum(axis=1) == 30).all()
    assert np.abs(chosen.mean(axis=0) - 0.15).max() < 4.5 * math.sqrt(0.15 * 0.85 / 1000), "no place is preferred"
    assert np.mean(said == MASK) == pytest.approx(0.8, abs=0.01)
    assert np.mean(said == 5) == pytest.approx(0.1 + 0.1 / 27, abs=0.01)
    others = np.bincount(said[(said != MASK) & (said != 5)], minlength=28)[1:]
    assert np.count_nonzero(others) == 26 and others.max() < 1.6 * 30000 * 0.1 / 27


def test_gmask_shares() -> None:
    read = [read_generation(example) for example in draws("gmask", protein(100), 4000)]
    sources = np.array([num_source for *_, num_source in read])
    assert np.mean([turned for *_, turned, _ in read]) == pytest.approx(0.5, abs=0.03)
    assert np.mean(sources == 0) == pytest.approx(0.5, abs=0.03)
    given_some = sources[sources > 0]
    assert (given_some.min(), given_some.max()) == (1, 80)
    assert given_some.mean() == pytest.approx(40.5, abs=1.5)
    turned = [read_generation(example)[3] for example in draws("causal", protein(100), 4000, reverse_ratio=0.25)]
    assert np.mean(turned) == pytest.approx(0.25, abs=0.03)


def test_a_ratio_means_its_whole_number() -> None:
    """In binary 0.28 * 25 is above 7 and 0.29 * 100 below 29."""
    examples = draws("gmask", protein(25), 2000, unconditional_ratio=0, min_target_ratio=0.28)
    assert {25 - read_generation(example)[4] for example in examples} == set(range(7, 25))
    assert np.count_nonzero(draw("mlm", protein(100), mask_ratio=0.29, average_span=5).labels) == 29


def test_smask_shares() -> None:
    lengths = [[end - start for start, end in read_smask(example)[2]] for example in draws("smask", protein(300), 3000)]
    # Short draws hide 45 residues in about 14 spans, so one or two spans are long ones, or the single short one.
    assert np.mean([len(spans) <= 2 for spans in lengths]) == pytest.approx(0.3 + 0.7 * 0.02, abs=0.02)
    assert np.mean([spans == [45] for spans in lengths]) == pytest.approx(0.7 * 0.02, abs=0.006)
    long = [spans for spans in lengths if len(spans) <= 2 and spans != [45]]
    assert np.mean([len(spans) == 2 for spans in long]) == pytest.approx(0.5, abs=0.05)
    flat = np.concatenate(long)
    assert (flat.min(), flat.max()) == (8, 40)
    assert flat.mean() == pytest.approx(24, abs=0.8)


def test_short_spans_follow_the_truncated_poisson_law() -> None:
    config = dict(long_span_ratio=0, single_span_ratio=0)
    examples = draws("smask", protein(2000), 300, **config)
    lengths = np.concatenate([[end - start for start, end in read_smask(example)[2]] for example in examples])
    law = np.array([3.0**k * math.exp(-3) / math.factorial(k) for k in range(1, 40)])
    law /= law.sum()
    shares = np.bincount(lengths, minlength=40)[1:] / len(lengths)
    assert np.abs(shares - law).max() < 0.01
    assert lengths.mean() == pytest.approx(3 / (1 - math.exp(-3)), rel=0.02)


def test_part_b_is_shuffled_and_the_clipped_span_hides_nowhere() -> None:
    spans = [read_smask(example)[2] for example in draws("smask", protein(120), 3000, long_span_ratio=0)]
    in_b = [order for order in spans if len(order) >= 4]
    in_a = [sorted(order) for order in in_b]
    ranks = [a.index(b[0]) / (len(b) - 1) for a, b in zip(in_a, in_b, strict=True)]
    assert np.mean(ranks) == pytest.approx(0.5, abs=0.03)
    for orders in (in_a, in_b):
        first, last = (np.mean([order[i][1] - order[i][0] for order in orders]) for i in (0, -1))
        assert last == pytest.approx(first, abs=0.2)


def test_too_many_spans_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare under every allowed config, so here the law is bent to lengths of 1 and 2."""
    monkeypatch.setattr("xtrimo.objectives._short_span_law", lambda average_span: np.array([0.7]))
    for example in draws("smask", protein(71), 100, long_span_ratio=0, single_span_ratio=0):
        assert 6 <= len(read_smask(example)[2]) <= 71 // 12 + 4


# ---- refusals ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(reverse_ratio=1.5), "reverse_ratio is 1.5"),
        (dict(unconditional_ratio=-0.1), "between 0 and 1"),
        (dict(mask_ratio=0), "mask_ratio is 0.0"),
        (dict(mask_ratio=0.6), "at most 0.5"),
        (dict(average_span=0.5), "average_span is 0.5"),
        (dict(average_span=math.nan), "average_span is nan"),
        (dict(mask_ratio=math.nan), "mask_ratio is nan"),
        (dict(mask_ratio=0.3), r"raise average_span to 4\.8"),
    ],
)
def test_impossible_configs_are_refused(config: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(config)


def test_unknown_objective_and_empty_fragment_are_refused() -> None:
    with pytest.raises(ConfigError, match="known: mlm, gmask, smask, causal"):
        draw("span", protein(5))
    with pytest.raises(SequenceError, match="no residues"):
        Fragment(np.zeros(0, dtype=np.uint8))
