"""Speculation: the law of what is written is the large model's, whatever the small one is."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from generate import speculation
from generate.engine import CHOICES, END, Decoding, History, Start, Writer, chances, history, write
from generate.speculation import speculate
from xtrimo.attention import within
from xtrimo.errors import ConfigError
from xtrimo.model import GLM
from xtrimo.testing import toy_config
from xtrimo.tokens import EOS, FIRST_RESIDUE

LETTERS, LONGEST = (0, 4, 9), 3


class Few:
    """Writes one to LONGEST of three letters, the second of them forced; a Writer."""

    end = EOS
    unconditioned = None

    def __init__(self, longest: int = LONGEST, capacity: int = 50, may_end: bool = True) -> None:
        self.start = Start(
            np.array([29, 32, 34], dtype=np.uint8), np.array([(0, 0), (0, 1), (0, 2)], dtype=np.int32), prefix=1
        )
        self.longest, self.capacity = longest, capacity
        self.residues: list[int] = []
        self.may_end = may_end

    def allowed(self) -> np.ndarray:
        out = np.zeros(len(CHOICES), dtype=bool)
        out[list(LETTERS if len(self.residues) != 1 else LETTERS[:1])] = True
        out[END] = self.may_end and len(self.residues) > 1
        return out

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        if choice == END:
            return None
        self.residues.append(choice)
        if len(self.residues) == self.longest:
            return None
        return choice + FIRST_RESIDUE, 0, 2 + len(self.residues)


def toy(seed: int, sharpness: float) -> GLM:
    model = GLM(toy_config(num_layers=1, hidden_size=16, num_heads=2, ffn_size=16), seed=seed).eval()
    with torch.no_grad():
        model.output.weight *= sharpness
    return model


def no_pairs(logits: torch.Tensor, past: History) -> torch.Tensor:
    """Nats off a letter that stands before it already."""
    if not past.residues.numel():
        return logits
    last = past.residues[torch.arange(len(logits)), (past.lengths - 1).clamp_min(0)]
    return logits - 1.5 * torch.nn.functional.one_hot(last, END + 1) * (past.lengths > 0)[:, None]


def law(model: GLM, decoding: Decoding, processors: list) -> dict[tuple[int, ...], float]:  # type: ignore[type-arg]
    """The probability of each protein, by reading every beginning as a whole."""
    out: dict[tuple[int, ...], float] = {}

    def walk(begun: tuple[int, ...], chance: float) -> None:
        writer: Writer = Few()
        ended = any(writer.advance(choice) is None for choice in begun)
        if ended:
            out[begun] = chance
            return
        tokens = torch.tensor([29, 32, 34, *(choice + FIRST_RESIDUE for choice in begun)])
        positions = torch.stack((torch.zeros(len(tokens)).long(), torch.arange(len(tokens))), dim=1)
        with torch.inference_mode():
            hidden = model.hidden(tokens, positions, within(torch.tensor([[0, len(tokens), 1]])))[-1]
            logits = model.logits(hidden)[-1:].float()
        allowed = torch.from_numpy(writer.allowed())[None]
        past = history([np.array(begun, dtype=np.int64)], model.device)
        (row,) = chances(logits, torch.tensor([EOS]), allowed, decoding, processors, past)
        for choice in range(len(CHOICES)):
            if row[choice] > 0:
                walk((*begun, choice), chance * float(row[choice]))

    walk((), 1.0)
    return out


@pytest.mark.parametrize(("num_proposed", "top_p"), [(1, 1.0), (4, 0.8)])
def test_the_law_is_the_large_models(num_proposed: int, top_p: float) -> None:
    model, draft = toy(1, 6.0), toy(2, 6.0)
    decoding, processors = Decoding(temperature=0.8, top_p=top_p, seed=11), [no_pairs]
    expected, other = law(model, decoding, processors), law(draft, decoding, processors)
    assert sum(expected.values()) == pytest.approx(1)
    overlap = sum(min(expected[x], other.get(x, 0)) for x in expected)
    assert 0.1 < overlap < 0.9  # a draft that is neither right nor useless
    num = 300
    jobs = ((i, Few()) for i in range(num))
    counts: dict[tuple[int, ...], int] = dict.fromkeys(expected, 0)
    for written in speculate(model, draft, jobs, decoding, num_proposed=num_proposed, processors=processors):
        counts[tuple(written.choices.tolist())] += 1  # what the law excludes is a KeyError
    assert agreement(counts, expected) > 1e-3
    assert agreement(counts, other) < 1e-6  # the test could have told


def agreement(counts: dict[tuple[int, ...], int], law: dict[tuple[int, ...], float]) -> float:
    """The p-value of the counts under a law; what is expected less than 5 times is one class."""
    num = sum(counts.values())
    rare = {x for x in counts | law if law.get(x, 0) * num < 5}
    seen = [*(counts[x] for x in counts if x not in rare), sum(counts.get(x, 0) for x in rare)]
    due = [*(law[x] * num for x in counts if x not in rare), sum(law.get(x, 0) * num for x in rare) + 1e-9]
    return float(chisquare(seen, np.array(due) * num / sum(due)).pvalue)


@pytest.mark.parametrize("capacity", [3, 5, 6, 50])
def test_greedy_is_the_engines(capacity: int) -> None:
    model, draft = toy(1, 30.0), toy(2, 30.0)
    greedy = Decoding(temperature=0)
    (theirs,) = write(model, [(0, Few(20, capacity))], greedy, slots=1)
    for num_proposed, small in product((1, 2, 5), (draft, model)):
        (mine,) = speculate(model, small, [(0, Few(20, capacity))], greedy, num_proposed=num_proposed)
        assert mine.choices.tolist() == theirs.choices.tolist() and mine.finished == theirs.finished
        np.testing.assert_allclose(mine.nats, theirs.nats, atol=1e-4)
        np.testing.assert_allclose(mine.start_nats, theirs.start_nats, atol=1e-4)


def test_the_draft_goes_back_to_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft = toy(1, 6.0), toy(2, 6.0)
    usual, rounds = speculation._Pair._round, []

    def checked(self: speculation._Pair, num_proposed: int) -> None:
        usual(self, num_proposed)
        # both know all but the token to come
        assert self.draft.row.length + len(self.draft.unread) == self.model.row.length == 2 + len(self.choices)
        read = [token for token, _, _ in self.draft.unread]
        said = [choice + FIRST_RESIDUE for choice in self.choices[:-1]]
        assert read == said[len(said) - len(read) :]
        rounds.append(len(self.choices))

    monkeypatch.setattr(speculation._Pair, "_round", checked)
    list(speculate(model, draft, [(0, Few(40, may_end=False))], Decoding(seed=2), num_proposed=3))
    assert len(rounds) > 3 and {1, 4} <= set(np.diff([1, *rounds]).tolist())  # nothing taken, and all
    del rounds[:]
    list(speculate(model, model, [(0, Few(40, may_end=False))], Decoding(seed=2), num_proposed=3))
    assert np.diff([1, *rounds])[:-1].tolist() == [4] * (len(rounds) - 1)  # of its own proposals it takes all


def test_refusals() -> None:
    model = toy(1, 1.0)
    with pytest.raises(ConfigError, match="guidance is 2"):
        next(speculate(model, model, [(0, Few())], Decoding(guidance=2.0)))
    with pytest.raises(ConfigError, match="num_proposed is 0"):
        next(speculate(model, model, [(0, Few())], Decoding(), num_proposed=0))
    causal = GLM(toy_config(rotary="1d", objectives=("causal",)))
    with pytest.raises(ConfigError, match="the draft model reads"):
        next(speculate(model, causal, [(0, Few())], Decoding()))
