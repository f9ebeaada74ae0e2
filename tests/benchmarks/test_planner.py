"""The planner beside published runs: what its two fitted numbers are, and how far they carry."""

import re
import statistics
from pathlib import Path

import pytest

from benchmarks.planner import error, fit, leave_one_out, published, trials, unstated
from pretrain.plan_time import FITTED


@pytest.fixture(scope="module")
def runs():
    return published()


@pytest.fixture(scope="module")
def unseen(runs):
    return leave_one_out(runs)


def test_the_numbers_in_use_are_the_fitted_ones(runs):
    assert tuple(fit(runs)) == pytest.approx(tuple(FITTED), abs=0.002)


def test_runs_that_the_fit_has_not_seen(unseen):
    errors = {name: abs(value) for name, value in unseen.items()}
    assert len(errors) == 22 and max(errors.values()) <= 0.30
    assert statistics.median(errors.values()) <= 0.15
    assert errors["GLM-130B"] <= 0.15


def test_sources_that_the_fit_has_not_seen(runs):
    sources = {run.source for run in runs}
    fits = {source: fit([run for run in runs if run.source != source]) for source in sources}
    assert len(sources) == 5 and max(abs(error(run, fits[run.source])) for run in runs) <= 0.30


def test_checks_take_no_part_in_the_fit():
    errors = [abs(error(run, FITTED)) for run in (*trials(), *unstated())]
    assert statistics.median(errors) <= 0.15 and max(errors) <= 0.30


def test_a_search_would_have_chosen_well():
    """Of seven layouts tried on one cluster, the one predicted fastest loses less than 5 % to the one that was."""
    tried = trials()
    chosen = min(tried, key=lambda run: run.predict(FITTED))
    assert chosen.seconds < 1.05 * min(run.seconds for run in tried)


def test_glm_130b_is_counted_as_its_paper_counts(runs):
    """32.5 % of the peak for the model, 43.3 % with what is computed again (Zeng et al. 2022, section 2.3)."""
    run = next(run for run in runs if run.name == "GLM-130B")
    model, tokens = run.model, 4224 * 2048
    layers = model.num_layers * (model.flops_per_layer + 4 * 2048 * model.hidden_size)
    peak = 768 * run.gpu.teraflops * 1e12
    mfu = tokens * 3 * (layers + 2 * model.vocab_size * model.hidden_size) / run.seconds / peak
    assert mfu == pytest.approx(0.325, abs=0.005)
    assert mfu + tokens * layers / run.seconds / peak == pytest.approx(0.433, abs=0.005)


def test_the_page_says_what_comes_out(runs, unseen):
    page = (Path(__file__).resolve().parents[2] / "docs/planner.md").read_text()
    for run in (*runs, *trials(), *unstated()):
        start = f"| {run.name} | {run.seconds:.2f} | {run.predict(FITTED):.2f} | "
        off = unseen.get(run.name, error(run, FITTED))
        assert re.search(re.escape(f"{start}{off:+.1%} |"), page), run.name
    sizes = [abs(value) for value in unseen.values()]
    assert f"the median error is {100 * statistics.median(sizes):.1f} %, the worst {100 * max(sizes):.1f} %" in page
