"""Log-likelihoods of draws by walking them, one after the other."""

import numpy as np
import pytest
import torch

from generate.answers import answer, measured
from generate.preferences import log_likelihoods
from generate.prompt import parse
from xtrimo.config import GLMConfig
from xtrimo.model import GLM
from xtrimo.testing import toy_config
from xtrimo.tokens import EOS, FIRST_RESIDUE, GMASK, REV, SOP, encode_residues

WORDS = ("<rev>", "<family=a>", "<family=b>")
TAGGED = toy_config(control_words=WORDS)
CAUSAL = toy_config(objectives=("causal",), rotary="1d", control_words=WORDS)


def walked(model: GLM, prompt: str, protein: str, finished: bool, temperature: float, reverse: bool = False) -> float:
    """The log of the chance of each draw, one after the other, from a row that holds no more than is known then."""
    spec = parse(prompt)
    tags = sorted(36 + model.config.control_words.index(word) for word in spec.tag_words)
    given = spec.pieces[0].residues if len(spec.pieces) > 1 else ""
    words = [*tags, *[REV] * reverse, GMASK, SOP, EOS]
    lead = len(words) - 3
    two_d = "gmask" in model.config.objectives
    total = 0.0
    drawn = [*encode_residues(protein).tolist()[:: -1 if reverse else 1], *([EOS] if finished else [])]
    for number, word in enumerate(drawn):
        known = [*words, *drawn[:number]]
        if two_d:  # place in the chain stands still at <gmask>; <sop> is 1 in the target
            places = [(min(i, lead), max(0, i - lead)) for i in range(len(known))]
        else:
            places = [(i, 0) for i in range(len(known))]
        segment = torch.tensor([[0, len(known), lead + 1 if two_d else 0]])
        with torch.no_grad():
            logits = model(torch.tensor(known), torch.tensor(places), segment)[-1].double() / temperature
        allowed = [*range(FIRST_RESIDUE, FIRST_RESIDUE + 20), *([EOS] if number else [])]
        if number >= len(given):
            total += float(logits[word] - logits[allowed].logsumexp(0))
    return total


@pytest.mark.parametrize("config", [TAGGED, CAUSAL])
@pytest.mark.parametrize(
    ("prompt", "finished"), [("", True), ("<family=b>", True), ("<family=b><family=a>MK", False), ("MK", True)]
)
def test_log_likelihood_is_that_of_the_draws(config: GLMConfig, prompt: str, finished: bool) -> None:
    model = GLM(config, seed=1)
    proteins = ["MKVLA", "MKWYHHC"]
    answers = [answer(config, parse(prompt), protein, finished=finished) for protein in proteins]
    expected = [walked(model, prompt, protein, finished, 0.7) for protein in proteins]
    np.testing.assert_allclose(measured(model, answers, 0.7), expected, rtol=1e-5)
    np.testing.assert_allclose(log_likelihoods(model, answers, 0.7).detach(), expected, rtol=1e-5)


@pytest.mark.parametrize(("prompt", "finished"), [("<family=b>", True), ("<family=a>[..]MK", False)])
def test_log_likelihood_from_c_to_n(prompt: str, finished: bool) -> None:
    model, proteins = GLM(TAGGED, seed=1), ["AVLMK", "CHHYWMK"]
    answers = [answer(TAGGED, parse(prompt), protein, finished=finished, reverse=True) for protein in proteins]
    given = prompt.replace("[..]MK", "KM")  # in the order of writing
    expected = [walked(model, given, protein, finished, 0.7, reverse=True) for protein in proteins]
    np.testing.assert_allclose(measured(model, answers, 0.7), expected, rtol=1e-5)
