"""The engine: each protein as if it were alone, bitwise; guidance and processors; what is refused."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from generate import starts
from generate.engine import CHOICES, END, Decoding, History, Start, Written, write
from xtrimo.attention import within
from xtrimo.cache import Row
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.precision_loss import PrecisionLoss
from xtrimo.stepping import prepack_int8_to_generate, prepack_to_generate
from xtrimo.testing import toy_config
from xtrimo.tokens import EOP, EOS, FIRST_RESIDUE

CAUSAL = dict(rotary="1d", objectives=("causal",), directions=("forward",), control_words=())


class Toy:
    """A writer of one protein after any start, of a length in a range; `forced` choices come first."""

    end = EOS

    def __init__(
        self, tokens: list[int], *, prefix: int = 1, longest: int = 20, forced: tuple[int, ...] = (),
        bare: list[int] | None = None, capacity: int = 200, two_channels: bool = True,
    ) -> None:  # fmt: skip
        self._channel = int(two_channels)
        self.start = self._start(tokens, prefix)
        self.unconditioned = None if bare is None else self._start(bare, prefix)
        self.capacity, self.longest, self.forced = capacity, longest, forced
        self.residues: list[int] = []
        self.fed = list(tokens)

    def _start(self, tokens: list[int], prefix: int) -> Start:
        positions = np.zeros((len(tokens), 2), dtype=np.int32)
        positions[:, self._channel] = np.arange(len(tokens))
        return Start(np.array(tokens, dtype=np.uint8), positions, prefix if self._channel else 0)

    def allowed(self) -> np.ndarray:
        out = np.zeros(len(CHOICES), dtype=bool)
        step = len(self.residues)
        if step < len(self.forced):
            out[self.forced[step]] = True
        else:
            out[:END] = step < self.longest
            out[END] = step > 0
        return out

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        if choice == END:
            return None
        self.residues.append(choice)
        place = [0, 0]
        place[self._channel] = len(self.fed)
        self.fed.append(choice + FIRST_RESIDUE)
        return self.fed[-1], place[0], place[1]


def sharp(**facts: object) -> GLM:
    """A random model whose opinions differ: fresh weights give all words nearly the same probability."""
    model = GLM(toy_config(**facts)).eval()
    with torch.no_grad():
        model.output.weight *= 10
    return model


@pytest.fixture(scope="module", params=["2d", "1d", "stepping"])
def model(request: pytest.FixtureRequest) -> GLM:
    model = sharp(**(CAUSAL if request.param == "1d" else {}))
    return prepack_to_generate(model) if request.param == "stepping" else model


def some_jobs(model: GLM, num: int, seed: int = 0, **more: object) -> list[tuple[int, Toy]]:
    """Starts of a few kinds, many of them alike, and proteins of mixed lengths."""
    rng = np.random.default_rng(seed)
    kinds = [[29, 32, 34, *rng.integers(1, 21, size=length)] for length in (0, 0, 3, 17, 40)]
    return [
        (
            number,
            Toy(
                [int(x) for x in kinds[int(rng.integers(len(kinds)))]], longest=int(rng.integers(1, 30)),
                two_channels=model.config.rotary == "2d", **more,  # type: ignore[arg-type]
            ),
        )
        for number in range(num)
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_keep_the_random_stream(precision: str) -> None:
    model = sharp()
    half = copy.deepcopy(model).to(torch.bfloat16)
    any_loss = PrecisionLoss(cosine=-1.0, nll_rise=float("inf"))
    lower = (
        prepack_to_generate(half)
        if precision == "bf16"
        else prepack_int8_to_generate(half, ["MKVLAAG"], bounds=any_loss)[0]
    )
    exact, *others = (
        {w.number: w.choices.tolist() for w in write(m, some_jobs(model, 24), Decoding(seed=4), slots=slots)}
        for m, slots in ((model, 8), (lower, 8), (lower, 3))
    )
    for other in others:  # a draw near the edge of two choices may fall on the other side, and then all that follows
        assert sum(other[number] == exact[number] for number in exact) >= 18


def facts(written: Written) -> tuple[object, ...]:
    return (
        written.number, written.choices.tobytes(), written.nats.tobytes(), written.start_nats.tobytes(),
        written.finished,
    )  # fmt: skip


def alone(model: GLM, num: int, decoding: Decoding) -> dict[int, tuple[object, ...]]:
    return {
        number: facts(next(write(model, [(number, toy)], decoding, slots=1)))
        for number, toy in some_jobs(model, num)
    }  # fmt: skip


def logits_of(model: GLM, toy: Toy, num_tokens: int) -> torch.Tensor:
    """At every token of what was read, without a cache."""
    tokens = toy.fed[:num_tokens]
    whole = toy._start(tokens, toy.start.prefix)
    segments = torch.tensor([[0, len(tokens), whole.prefix]])
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor(tokens), torch.from_numpy(whole.positions), within(segments))[-1]
        return model.logits(hidden).float()


SOLO: dict[str, dict[int, tuple[object, ...]]] = {}


@given(seed=st.integers(0, 2**32), slots=st.integers(1, 40), size=st.integers(1, 24))
@settings(max_examples=6, deadline=None)
def test_a_protein_is_bitwise_the_same_in_any_company(model: GLM, seed: int, slots: int, size: int) -> None:
    decoding = Decoding(seed=5, temperature=0.9, top_p=0.9)
    key = f"{type(model).__name__} {model.config.rotary}"
    solo = SOLO.setdefault(key, {}) or SOLO[key]
    if not solo:
        solo.update(alone(model, 24, decoding))
    rng = np.random.default_rng(seed)
    jobs = some_jobs(model, 24)
    mixed = [jobs[i] for i in rng.permutation(24)[:size]]
    got = [facts(written) for written in write(model, mixed, decoding, slots=slots)]
    assert sorted(got) == sorted(solo[number] for number, _ in mixed)


def test_what_is_said_is_what_the_whole_sequence_says(model: GLM) -> None:
    for written in write(model, some_jobs(model, 12), Decoding(seed=1), slots=5):
        toy = written.writer
        assert isinstance(toy, Toy)
        tokens = [EOS if choice == END else choice + FIRST_RESIDUE for choice in written.choices.tolist()]
        every = logits_of(model, toy, len(toy.start.tokens) + len(tokens) - 1)
        targets = torch.tensor([*toy.start.tokens[1:].tolist(), *tokens])
        nats = F.cross_entropy(every, targets, reduction="none").numpy()
        told = np.concatenate((written.start_nats, written.nats))
        np.testing.assert_allclose(told, nats, atol=2e-5)


def test_draws_follow_the_law() -> None:
    model = sharp()
    jobs = [(number, Toy([29, 32, 34], longest=1)) for number in range(2000)]
    counts = np.zeros(END)
    for written in write(model, jobs, Decoding(temperature=0.7, seed=2), slots=500):
        counts[written.choices[0]] += 1
    law = (logits_of(model, Toy([29, 32, 34]), 3)[-1, 1:21].double() / 0.7).softmax(0).numpy()
    assert np.abs(counts / 2000 - law).max() < 4 * np.sqrt(0.25 / 2000)


def test_forced_choices_are_taken_and_spend_a_random_number(model: GLM) -> None:
    two = model.config.rotary == "2d"
    free, forced = (
        next(write(model, [(7, Toy([29, 32, 34], two_channels=two, forced=f))], Decoding(seed=3), slots=1))
        for f in ((), (4, 4, 4))
    )
    assert forced.choices[:3].tolist() == [4, 4, 4]
    again = next(
        write(
            model, [(7, Toy([29, 32, 34], two_channels=two, forced=tuple(free.choices[:3].tolist())))],
            Decoding(seed=3), slots=1,
        )
    )  # fmt: skip
    assert again.choices.tolist() == free.choices.tolist() and again.nats.tobytes() == free.nats.tobytes()


def test_a_start_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp()
    read: list[int] = []
    usual = starts.Reading
    monkeypatch.setattr(starts, "Reading", lambda parts: read.extend(p.num_tokens for p in parts) or usual(parts))
    jobs = [(i, Toy([29, 32, 34, *([5] * (i % 3))], longest=3 + i % 5)) for i in range(30)]
    assert len(list(write(model, jobs, Decoding(), slots=6))) == 30
    assert sorted(read) == [3, 4, 5]


def test_a_row_is_taken_up_where_its_start_ends(model: GLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Row, "copy", None)  # nothing is copied from one row to another
    two = model.config.rotary == "2d"

    def jobs() -> list[tuple[int, Toy]]:
        return [(i, Toy([29, 32, 34, 9, 9], longest=3 + i, two_channels=two)) for i in range(4)]

    got = [facts(written) for written in write(model, jobs(), Decoding(), slots=1)]
    assert got == [facts(next(write(model, [job], Decoding(), slots=1))) for job in jobs()]


def test_slots_are_refilled_and_rows_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = sharp(), []
    usual = Row.__init__
    monkeypatch.setattr(Row, "__init__", lambda self, *args: made.append(args[1]) or usual(self, *args))
    ended: list[int] = []
    jobs = iter([(i, Toy([29, 32, 34], longest=1 + i % 9)) for i in range(50)])
    out = write(model, jobs, Decoding(), slots=4, on_ended=ended.append)
    first = next(out)
    assert len(list(jobs)) >= 40 and first.number < 10  # it streams: what is not needed yet was not taken
    list(out)
    assert made == [256] * 4 and sum(ended) >= 4


@pytest.mark.parametrize("capacity", [3, 10])
def test_capacity_cuts(capacity: int) -> None:
    toy = Toy([29, 32, 34], capacity=capacity, forced=(1,) * 30, longest=30)
    (written,) = write(sharp(), [(0, toy)], Decoding(), slots=2)
    assert not written.finished and len(written.choices) == capacity - 3 + 1 == len(toy.residues)
    (whole,) = write(sharp(), [(0, Toy([29, 32, 34], forced=(1, 2, END)))], Decoding(), slots=2)
    assert whole.finished and whole.choices.tolist() == [1, 2, END]


def test_an_end_is_the_writers_token() -> None:
    model, toy = sharp(), Toy([29, 32, 34], forced=(END,))
    toy.end = EOP
    (written,) = write(model, [(0, toy)], Decoding(), slots=1)
    expected = -logits_of(model, toy, 3)[-1].log_softmax(0)[EOP]
    assert written.nats[0] == pytest.approx(float(expected), abs=1e-5)


def test_guidance(model: GLM) -> None:
    two = model.config.rotary == "2d"
    condition, bare = [29, 32, 34, 7, 7, 3], [29, 32, 34]

    def toys() -> list[tuple[int, Toy]]:
        some = [Toy(condition, bare=bare, two_channels=two, longest=9), Toy(condition, two_channels=two, longest=9)]
        return [(i, some[i % 2]) if i < 2 else (i, Toy(condition, bare=bare, two_channels=two)) for i in range(7)]

    greedy = Decoding(temperature=0, guidance=2.5)
    out = {w.number: w for w in write(model, toys(), greedy, slots=3)}
    assert {i: facts(w) for i, w in out.items()} == {
        i: facts(next(write(model, [(i, toy)], greedy, slots=1))) for i, toy in toys()
    }
    plain = next(write(model, [(1, toys()[1][1])], Decoding(temperature=0), slots=1))
    assert out[1].choices.tolist() == plain.choices.tolist() != out[0].choices[:9].tolist()
    toy, twin = out[0].writer, Toy(bare, two_channels=two)
    assert isinstance(toy, Toy)
    for step, choice in enumerate(out[0].choices.tolist()):
        twin.fed = bare + toy.fed[len(condition) : len(condition) + step]
        c = logits_of(model, toy, len(condition) + step)[-1]
        # the bare start is shorter, and what follows stands where the writer said
        positions = np.concatenate((twin.start.positions, toy._start(toy.fed, 1).positions[6 : 6 + step]))
        segments = torch.tensor([[0, len(twin.fed), twin.start.prefix]])
        with torch.inference_mode():
            hidden = model.hidden(torch.tensor(twin.fed), torch.from_numpy(positions), within(segments))[-1]
            u = model.logits(hidden).float()[-1]
        guided = (u + 2.5 * (c - u))[[*range(1, 21), EOS]]
        guided[END] = guided[END] if step else -np.inf
        guided[:END] = guided[:END] if step < 9 else -np.inf
        assert choice == int(guided.argmax())


def test_processors_see_the_history_and_change_the_law() -> None:
    model = sharp()
    seen: list[tuple[list[int], list[list[int]]]] = []

    def never_again(logits: torch.Tensor, history: History) -> torch.Tensor:
        seen.append((history.lengths.tolist(), history.residues.tolist()))
        used = F.one_hot(history.residues, END + 1).sum(1).bool()
        used[:, END] = False
        return logits.masked_fill(used, -torch.inf)

    jobs = [(i, Toy([29, 32, 34], longest=2 + 6 * (i % 2))) for i in range(9)]
    for written in write(model, jobs, Decoding(temperature=3.0), slots=4, processors=[never_again]):
        residues = [choice for choice in written.choices.tolist() if choice != END]
        assert len(set(residues)) == len(residues)
    for lengths, rows in seen:
        assert {len(row) for row in rows} == {max(lengths)}
        assert all(set(row[length:]) <= {END} for row, length in zip(rows, lengths, strict=True))


def test_refusals() -> None:
    model = sharp()
    for setting, value in (
        ("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.0),
        ("guidance", -0.5), ("guidance", float("inf")), ("seed", -1),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=setting):
            Decoding(**{setting: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="slots is 0"):
        list(write(model, [], Decoding(), slots=0))
    stuck = Toy([29, 32, 34])
    stuck.allowed = lambda: np.zeros(len(CHOICES), dtype=bool)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="protein 3: nothing may come next"):
        list(write(model, [(3, stuck)], Decoding(), slots=1))
    with pytest.raises(ConfigError, match="processor forbids all"):
        list(
            write(
                model, [(0, Toy([29, 32, 34]))], Decoding(), slots=1,
                processors=[lambda logits, _: torch.full_like(logits, -torch.inf)],
            )
        )  # fmt: skip
    for wrong in (torch.nan, torch.inf):  # of one choice alone: the draw would say the first residue, allowed or not
        with pytest.raises(ConfigError, match="returns NaN or infinity"):
            list(
                write(
                    model, [(0, Toy([29, 32, 34]))], Decoding(), slots=1,
                    processors=[lambda logits, _, wrong=wrong: logits.index_fill(1, torch.tensor([11]), wrong)],
                )
            )  # fmt: skip
    assert list(write(model, [], Decoding(), slots=3)) == []
