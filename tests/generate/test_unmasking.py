"""Unmasking beside brute force: a model whose conditionals are those of a small joint distribution, known in full."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from generate.prompt import Prompt, parse
from generate.unmasking import Unmasked, UnmaskingConfig, iter_unmasked, marginals, num_decided, unmask
from xtrimo import antiberty
from xtrimo.attention import Attend
from xtrimo.errors import ConfigError, SequenceError
from xtrimo.model import GLM
from xtrimo.objectives import Example, Fragment, ObjectiveConfig, make_example, tagged
from xtrimo.reading import whole
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, MASK, VOCAB_SIZE, encode_residues

NUM_PLACES, LETTERS = 3, "LA"
STATES = list(product(range(len(LETTERS)), repeat=NUM_PLACES))


class Joint:
    """A backbone that knows P(x1 x2 x3) over L and A, and says P(xi | what is not masked), exactly."""

    device, dtype, width, max_length = torch.device("cpu"), torch.float32, VOCAB_SIZE, 100
    num_layers = num_heads = 1
    words_around, cls, mask = (0, 1), None, MASK
    facts: Mapping[str, Any] = {}

    def __init__(self, seed: int) -> None:
        self.joint = np.random.default_rng(seed).dirichlet(np.full(len(STATES), 0.7)) + 0.01
        self.joint /= self.joint.sum()
        self.num_read = 0

    def conditional(self, place: int, seen: dict[int, int]) -> np.ndarray:
        """P(place | the letters seen), by adding up the states that fit."""
        chances = np.zeros(len(LETTERS))
        for state, chance in zip(STATES, self.joint, strict=True):
            if all(state[i] == letter for i, letter in seen.items() if i != place):
                chances[state[place]] += chance
        return chances / chances.sum()

    def tokenize(self, sequence: str, *, name: str = "sequence") -> Example:
        return whole(encode_residues(sequence, name=name))

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, *, layers: tuple[int, ...] = (-1,)) -> Any:
        states = torch.full((len(tokens), VOCAB_SIZE), -40.0)
        starts = torch.nonzero(positions[:, 0] == 0)[:, 0].tolist()
        for start in starts:
            words = tokens[start : start + NUM_PLACES].tolist()
            if positions[start : start + NUM_PLACES, 0].tolist() != list(range(NUM_PLACES)):
                continue  # what fills up the row
            self.num_read += 1
            seen = {i: word - 1 for i, word in enumerate(words) if word != MASK}
            for i in range(NUM_PLACES):  # what is not masked it repeats
                chances = np.eye(len(LETTERS))[seen[i]] if i in seen else self.conditional(i, seen)
                states[start + i, 1 : 1 + len(LETTERS)] = torch.from_numpy(chances).log().float().clamp(min=-40)
        return [states]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def state_dict(self) -> Mapping[str, Any]:
        return {}


def counts(proteins: list[Unmasked]) -> np.ndarray:
    """How often each of STATES came out."""
    found = [tuple(LETTERS.index(letter) for letter in protein.sequence) for protein in proteins]
    return np.array([found.count(state) for state in STATES])


def p_value(model: Joint, expected: np.ndarray, num: int, **settings: Any) -> float:
    proteins = unmask(model, [parse("[3:LA]")] * num, UnmaskingConfig(**settings))
    return float(chisquare(counts(proteins), num * expected).pvalue)


def independent(model: Joint) -> np.ndarray:
    """The product of the three marginals."""
    marginals = [model.conditional(i, {}) for i in range(NUM_PLACES)]
    return np.array([math.prod(marginals[i][letter] for i, letter in enumerate(state)) for state in STATES])


def test_one_place_a_round_draws_from_the_joint_and_all_at_once_from_the_marginals() -> None:
    model = Joint(seed=1)
    assert p_value(model, model.joint, 250, order="random", rounds=3) > 0.01
    assert p_value(model, independent(model), 250, rounds=1) > 0.01
    assert p_value(model, model.joint, 250, rounds=1) < 1e-6


def test_gibbs_sweeps_converge_to_the_joint() -> None:
    model = Joint(seed=1)
    assert p_value(model, model.joint, 250, rounds=1, sweeps=4) > 0.01
    assert p_value(model, model.joint, 250, rounds=1, sweeps=0, seed=1) < 1e-6


def test_temperature_and_letters_shape_the_conditionals() -> None:
    model = Joint(seed=4)
    chances = model.conditional(1, {0: 0, 2: 1})
    proteins = unmask(model, [parse("L_A")] * 200, UnmaskingConfig(temperature=0.5))
    found = np.bincount([LETTERS.index(protein.sequence[1]) for protein in proteins], minlength=2)
    assert chisquare(found, 200 * chances**2 / (chances**2).sum()).pvalue > 0.01
    for letter in LETTERS:  # the nats are those over all words, whatever is allowed
        (only,) = unmask(model, [parse(f"L[1:{letter}]A")])
        assert only.sequence == f"L{letter}A"
        assert only.nll == pytest.approx(-math.log(chances[LETTERS.index(letter)]), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_confidence_at_temperature_0_takes_the_likeliest_of_all_places(seed: int) -> None:
    model = Joint(seed)
    seen: dict[int, int] = {}
    nats = 0.0
    while len(seen) < NUM_PLACES:
        left = {i: model.conditional(i, seen) for i in range(NUM_PLACES) if i not in seen}
        surest = max(left, key=lambda i: left[i].max())
        seen[surest] = int(left[surest].argmax())
        nats -= math.log(left[surest].max())
    (protein,) = unmask(model, [parse("[3:LA]")], UnmaskingConfig(temperature=0))
    assert protein.sequence == "".join(LETTERS[seen[i]] for i in range(NUM_PLACES))
    assert protein.nll == pytest.approx(nats / NUM_PLACES, abs=1e-5)


def test_rounds_are_the_times_that_a_protein_is_read() -> None:
    for rounds, sweeps, expected in ((1, 0, 1), (2, 0, 2), (99, 0, 3), (2, 4, 14)):
        model = Joint(seed=0)
        (protein,) = unmask(model, [parse("[3]")], UnmaskingConfig(rounds=rounds, sweeps=sweeps))
        assert protein.rounds == model.num_read == expected


@given(st.integers(1, 300), st.integers(1, 60), st.sampled_from(["cosine", "linear"]))
def test_each_round_decides_a_place_and_together_they_decide_all(num: int, rounds: int, schedule: Any) -> None:
    decided = num_decided(num, UnmaskingConfig(rounds=rounds, schedule=schedule))
    assert len(decided) == min(rounds, num) and decided.sum() == num and decided.min() >= 1
    if schedule == "linear":
        assert decided.max() - decided.min() <= 1


def test_schedules_by_hand() -> None:
    # still masked of 8, rounded down: 8 cos(pi/8) = 7.4, 8 cos(pi/4) = 5.7, 8 cos(3 pi/8) = 3.1, none
    assert num_decided(8, UnmaskingConfig(rounds=4, schedule="cosine")).tolist() == [1, 2, 2, 3]
    assert num_decided(10, UnmaskingConfig(rounds=5, schedule="linear")).tolist() == [2, 2, 2, 2, 2]
    assert num_decided(4, UnmaskingConfig(rounds=9)).tolist() == [1, 1, 1, 1]


@pytest.fixture(scope="module")
def glm() -> GLM:
    model = GLM(toy_config(initializer_std=0.3), seed=3).eval()  # spread out, so that letters differ in likelihood
    return model


def test_one_gap_of_one_residue_is_the_argmax_under_a_mask_and_its_pseudo_likelihood(glm: GLM) -> None:
    sequence = toy_sequences(1, min_length=15, max_length=20)[0]
    places = (0, 7, 8, len(sequence) - 1)
    prompts = [parse(f"{sequence[:i]}_{sequence[i + 1 :]}") for i in places]
    for i, protein in zip(places, unmask(glm, prompts, UnmaskingConfig(temperature=0)), strict=True):
        example = glm.tokenize(sequence)
        example.tokens[i] = MASK
        row = torch.from_numpy(example.tokens).long(), torch.from_numpy(example.positions)
        with torch.inference_mode():
            logits = glm(*row, torch.tensor([[0, len(example.tokens), len(example.tokens)]]))[i]
        best = AMINO_ACIDS[int(logits[1:21].argmax())]
        assert protein.sequence == sequence[:i] + best + sequence[i + 1 :]
        (scored,) = score(glm, [protein.sequence], method="pseudo")
        assert protein.nll == pytest.approx(float(scored.residue_nll[i]), abs=1e-4)
        assert (protein.number, protein.places, protein.rounds) == (places.index(i), (i,), 1)


def test_marginals_are_what_one_round_draws_from(glm: GLM) -> None:
    """The likeliest letters are those of one round at temperature 0, its nats the marginals' at them."""
    prompts = [parse("MKT[3]AYI[2]GGH"), parse("[4]WWK")]
    for prompt, held in zip(prompts, marginals(glm, prompts), strict=True):
        places = sum(gap.shortest for gap in prompt.gaps)
        assert held.shape == (places, 20) and np.exp(held).sum(1).max() < 1  # other words have some chance
        (once,) = unmask(glm, [prompt], UnmaskingConfig(rounds=1, temperature=0.0))
        drawn = [once.sequence[place] for place in once.places]
        assert drawn == [AMINO_ACIDS[letter] for letter in held.argmax(1)]
        assert once.nll == pytest.approx(-held.max(1).mean(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"prompt 2: .*\[2..3\].* length is not known"):
        marginals(glm, [prompts[0], parse("MK[2..3]A")])


def test_tags_stand_in_front_as_in_training() -> None:
    config = toy_config(initializer_std=0.3, control_words=("<rev>", "<family=a>", "<family=b>"))
    model, sequence, place = GLM(config, seed=3).eval(), "MKTAYIAKQRQ", 4
    masked = make_example(Fragment(encode_residues(sequence)), "mlm", np.random.default_rng(0), ObjectiveConfig())
    masked.tokens[: len(sequence)] = encode_residues(sequence)
    masked.tokens[place] = MASK
    example = tagged(masked, np.array([37, 38], dtype=np.uint8))  # in the order of the model's words
    row = torch.from_numpy(example.tokens).long(), torch.from_numpy(example.positions)
    with torch.inference_mode():
        logits = model(*row, torch.tensor([[0, len(example.tokens), example.prefix]]))[place + 2]
    (one,) = unmask(
        model, [parse(f"<family=b><family=a>{sequence[:4]}_{sequence[5:]}")], UnmaskingConfig(temperature=0)
    )
    best = int(logits[1:21].argmax())
    assert one.sequence == sequence[:4] + AMINO_ACIDS[best] + sequence[5:]
    assert one.nll == pytest.approx(-float(logits.log_softmax(-1)[1 + best]), abs=1e-4)
    (bare,) = unmask(model, [parse(f"{sequence[:4]}_{sequence[5:]}")], UnmaskingConfig(temperature=0))
    assert abs(bare.nll - one.nll) > 1e-3  # the tags say something


PROMPTS = [
    *("MKTAYIAK[5]QRQISFVKSHFSRQ", "[3]XBZ[4..9:AVILMF]GGH_", "[10..20:^C]", "W_W_W", "MK[0..2]V", "_"),
    *(f"{sequence[:9]}[{number % 7}..{number % 7 + 3}]{sequence[9:]}[2:ST]" for number, sequence in enumerate(
        toy_sequences(5, min_length=12, seed=1)
    )),
]  # fmt: skip


def fits(protein: str, prompt: Prompt) -> bool:
    """Whether a regular expression of the prompt says so."""
    import re

    pieces = (f"[{p.letters}]{{{p.shortest},{p.longest}}}" if p in prompt.gaps else str(p) for p in prompt.pieces)
    return re.fullmatch("".join(pieces), protein) is not None


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(order="random", rounds=3, schedule="linear"), dict(sweeps=1, top_p=0.5), dict(temperature=0)],
    ids=str,
)
def test_batching_and_order_change_no_bit_and_fixed_residues_stay(glm: GLM, settings: dict[str, Any]) -> None:
    prompts = [parse(text) for text in PROMPTS]
    together = unmask(glm, prompts, UnmaskingConfig(**settings))
    assert all(fits(protein.sequence, prompt) for protein, prompt in zip(together, prompts, strict=True))
    for protein, prompt in zip(together, prompts, strict=True):
        kept = "".join(letter for i, letter in enumerate(protein.sequence) if i not in protein.places)
        assert kept == "".join(str(piece) for piece in prompt.pieces if piece not in prompt.gaps)
    jobs = list(enumerate(prompts))
    for row_tokens in (1, 97):
        config = UnmaskingConfig(**settings, row_tokens=row_tokens)
        other = sorted(iter_unmasked(glm, reversed(jobs), config), key=lambda protein: protein.number)
        assert repr(other) == repr(together)  # a NaN is not equal to itself


def test_numbers_and_seeds_are_streams_of_their_own(glm: GLM) -> None:
    prompt = parse("MKT[10..30]")
    first, second = unmask(glm, [prompt] * 2)
    assert first.sequence != second.sequence
    assert next(iter_unmasked(glm, [(1, prompt)], UnmaskingConfig())) == second
    assert unmask(glm, [prompt], UnmaskingConfig(seed=1))[0].sequence != first.sequence
    lengths = {len(protein.places) for protein in unmask(glm, [parse("MKT[2..5]")] * 30)}
    assert lengths == {2, 3, 4, 5}


def test_nothing_left_to_fill(glm: GLM) -> None:
    drawn = unmask(glm, [parse("MKV[0..1]")] * 8)
    empty = [protein for protein in drawn if protein.sequence == "MKV"]
    assert 0 < len(empty) < 8
    assert all(protein.rounds == 0 and math.isnan(protein.nll) and protein.places == () for protein in empty)


def test_antiberty_knows_the_end_of_a_heavy_chain() -> None:
    model = antiberty.load(antiberty.installed())
    chain = "QVQLVQSGAEVKKPGASVKVSCKASGYTFTSYGISWVRQAPGQGLEWMGWISAYNGNTNYAQKLQGRVTMTTDTSTSTAYMELRSLRSDDTAVYYC"
    (protein,) = unmask(model, [parse(chain + "AR[6]YFDY[3]GTLVTVSS")], UnmaskingConfig(temperature=0))
    assert protein.sequence.endswith("YFDYWGQGTLVTVSS") and protein.sequence.startswith(chain)
    with pytest.raises(SequenceError, match="512 places"):
        unmask(model, [parse(f"{chain}[600]")])


def test_what_cannot_be_filled_is_refused(glm: GLM) -> None:
    for text, message in (("MKT", "open gap"), ("MKT[0]", "no gap to fill"), ("<organism=yeast>MK_", "organism")):
        with pytest.raises(ConfigError, match=message):
            unmask(glm, [parse(text)])
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        unmask(GLM(toy_config(objectives=("gmask",))).eval(), [parse("M_V")])
    for wrong in (dict(rounds=0), dict(sweeps=-1), dict(temperature=-1), dict(top_p=0), dict(seed=-1)):
        with pytest.raises(ConfigError, match=str(next(iter(wrong)))):
            UnmaskingConfig(**wrong)  # type: ignore[arg-type]
