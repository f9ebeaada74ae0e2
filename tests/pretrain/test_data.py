"""Batches: purity, coverage of the corpus, packing into rows, curriculum, weights, ramp."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import BatchConfig, CurriculumConfig, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.data import (
    NAMES,
    Stream,
    crop,
    draw_proteins,
    fill_rows,
    random_stream,
    rows_before,
    rows_in_step,
    validation_rows,
)
from xtrimo.errors import ConfigError
from xtrimo.testing import toy_sequences


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    fastas = []
    for number, sequences in enumerate((toy_sequences(80, max_length=120), toy_sequences(40, seed=1, max_length=60))):
        fastas.append(folder / f"{number}.fasta")
        fastas[-1].write_text("".join(f">{number}_{i}\n{s}\n" for i, s in enumerate(sequences)))
    clusters = folder / "clusters.tsv"  # pairs: 0_0 with 0_1, and so on
    clusters.write_text("".join(f"{n}_{i - i % 2}\t{n}_{i}\n" for n, size in ((0, 80), (1, 40)) for i in range(size)))
    out = folder / "corpus"
    build_corpus(CorpusConfig(inputs=tuple(fastas), out=out, clusters=clusters, min_length=5, valid_ratio=0.1))
    return Corpus.open(out)


def make_config(**changes) -> PretrainConfig:
    batch = BatchConfig(rows=4, row_length=256)
    facts = dict(corpus=Path("corpus"), run=Path("run"), model="glm-1m", seed=7, batch=batch)
    return PretrainConfig(**(facts | changes))


def tokens_of(rows):
    return [row.tokens.tolist() for row in rows]


def test_row_is_a_pure_function_of_step_and_row(corpus):
    config = make_config()
    first, second = Stream(corpus, config), Stream(corpus, config)
    backwards = [second.row(step, row) for step in (9, 3, 0) for row in (3, 0)]
    forwards = [first.row(step, row) for step in (0, 3, 9) for row in (0, 3)]
    assert tokens_of(backwards) == tokens_of([forwards[i] for i in (5, 4, 3, 2, 1, 0)])
    other = Stream(corpus, replace(config, seed=8))
    assert other.row(0, 0).tokens.tolist() != first.row(0, 0).tokens.tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_step_in_order(corpus, ranks):
    stream = Stream(corpus, make_config())
    shared = [row for rank in range(ranks) for row in stream.step(5, rank, ranks)]
    assert tokens_of(shared) == tokens_of([stream.row(5, row) for row in range(4)])


def test_an_epoch_shows_every_protein_once(corpus):
    stream = Stream(corpus, make_config())
    for epoch in (0, 1):
        plan = stream._epoch(epoch) if epoch == 0 else (stream._locate(10**3), stream._epoch(1))[1]
        assert sorted(plan.proteins) == list(range(len(corpus.train)))
    assert stream._epoch(0).proteins.tolist() != stream._epoch(1).proteins.tolist()


def test_rows_never_exceed_their_length_and_are_well_filled(corpus):
    stream = Stream(corpus, make_config())
    sizes = [len(stream.row(step, row).tokens) for step in range(10) for row in range(4)]
    assert max(sizes) <= 256
    assert np.mean(sizes) > 0.75 * 256


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_fill_rows_is_greedy(sizes):
    borders = fill_rows(np.array(sizes), 30).tolist()
    assert borders[0] == 0 and borders[-1] == len(sizes)
    for a, b in zip(borders[:-1], borders[1:], strict=True):
        assert sum(sizes[a:b]) <= 30
        assert b == len(sizes) or sum(sizes[a : b + 1]) > 30


def test_long_proteins_are_cropped_at_random_places():
    residues = np.arange(100, dtype=np.uint8) % 20 + 1
    fragments = [crop(residues, 40, random_stream(0, 0, item)) for item in range(200)]
    assert {len(f.residues) for f in fragments} == {40}
    for fragment in fragments:
        start = next(s for s in range(61) if np.array_equal(residues[s : s + 40], fragment.residues))
        assert fragment.has_start == (start == 0) or start % 20 == 0  # the toy repeats every 20 residues
    whole = crop(residues, 100, random_stream(0, 0, 0))
    assert whole.has_start and whole.has_end and len(whole.residues) == 100


def test_natural_epoch_draws_every_protein_once_and_weights_change_shares(corpus):
    rng = np.random.default_rng(0)
    assert sorted(draw_proteins(corpus, False, rng)) == list(range(len(corpus.train)))
    sources = tuple(replace(s, weight=w) for s, w in zip(corpus.meta.sources, (0.2, 0.8), strict=True))
    weighted = replace(corpus, meta=replace(corpus.meta, sources=sources))
    drawn = draw_proteins(weighted, False, rng)
    residues = np.bincount(corpus.train.sources[drawn], weights=corpus.train.lengths[drawn])
    assert residues[1] / residues.sum() == pytest.approx(0.8, abs=0.03)
    counts = Counter(drawn[corpus.train.sources[drawn] == 1].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1  # whole rounds before repeats


def test_balanced_epoch_draws_one_member_of_each_cluster(corpus):
    drawn = draw_proteins(corpus, True, np.random.default_rng(0))
    clusters = corpus.train.clusters[drawn].tolist()
    assert sorted(clusters) == sorted(set(corpus.train.clusters.tolist()))
    seen = {tuple(sorted(draw_proteins(corpus, True, np.random.default_rng(i)))) for i in range(5)}
    assert len(seen) > 1  # another member another time


def shares(corpus, config, steps):
    stream = Stream(corpus, config)
    counts = np.zeros(len(NAMES))
    for step in steps:
        for row in stream.step(step):
            counts += np.bincount(row.objectives, weights=row.weights, minlength=len(NAMES))
    return dict(zip(NAMES, counts / counts.sum(), strict=True))


def test_curriculum_starts_with_mlm_and_fades_into_the_mixture(corpus):
    config = make_config(curriculum=CurriculumConfig(mlm_tokens=20_000, ramp_tokens=20_000))
    assert shares(corpus, config, range(10)) == {"mlm": 1, "gmask": 0, "smask": 0, "causal": 0}
    middle, late = shares(corpus, config, range(25, 40)), shares(corpus, config, range(80, 180))
    assert 0.3 < middle["mlm"] < 0.9
    assert late["mlm"] == pytest.approx(0.2, abs=0.06)
    assert late["smask"] == pytest.approx(0.2, abs=0.06)
    assert late["gmask"] == pytest.approx(0.6, abs=0.06)


def test_final_shares_go_to_what_the_model_knows():
    curriculum = CurriculumConfig()
    model = make_config().glm
    assert curriculum.final_shares(model) == pytest.approx({"mlm": 0.2, "gmask": 0.6, "smask": 0.2, "causal": 0})
    two = replace(model, objectives=("mlm", "gmask"))
    assert curriculum.final_shares(two) == pytest.approx({"mlm": 0.25, "gmask": 0.75, "smask": 0, "causal": 0})
    causal = replace(model, objectives=("causal",), rotary="1d")
    assert curriculum.final_shares(causal) == {"mlm": 0, "gmask": 0, "smask": 0, "causal": 1}


@settings(max_examples=50, deadline=None)
@given(start=st.integers(1, 4), stages=st.integers(1, 4), increment=st.integers(1, 4), ramp=st.integers(1, 200))
def test_ramp_adds_up(start, stages, increment, ramp):
    batch = BatchConfig(rows=start + stages * increment, start_rows=start, ramp_increment=increment, ramp_rows=ramp)
    sizes = [rows_in_step(batch, step) for step in range(250)]
    assert sizes[0] == start and sizes[-1] == batch.rows and sizes == sorted(sizes)
    assert set(np.diff(sizes)) <= {0, increment}
    assert [rows_before(batch, step) for step in range(251)] == [0, *np.cumsum(sizes).tolist()]


def test_impossible_ramp_is_refused():
    with pytest.raises(ConfigError, match="from 2 to 7 rows by 2"):
        BatchConfig(rows=7, start_rows=2, ramp_increment=2, ramp_rows=10)


def test_validation_rows_are_fixed_and_pure_by_objective(corpus):
    config = make_config(valid_tokens=300)
    first, second = validation_rows(corpus, config), validation_rows(corpus, config)
    assert list(first) == ["mlm", "gmask", "smask"]
    for name, rows in first.items():
        assert tokens_of(rows) == tokens_of(second[name])
        assert {NAMES[i] for row in rows for i in row.objectives} == {name}
        assert sum(len(row.tokens) for row in rows) >= 300
