"""The comparison with n-grams: the right labels, the right proteins, intervals that mean something."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import softmax

from pretrain.config import PretrainConfig
from pretrain.corpus import Corpus
from pretrain.data import validation_rows
from pretrain.held_out import compare, markdown, model_nats, protein_sums, validation_config
from pretrain.ngrams import fit_ngrams
from xtrimo.__main__ import find
from xtrimo.config import preset
from xtrimo.errors import ConfigError, CorpusError
from xtrimo.intervals import bootstrap
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE
from xtrimo.packing import unpack
from xtrimo.testing import toy_sequences
from xtrimo.tokens import EOP, EOS, FIRST_RESIDUE, LAST_RESIDUE, MASK

SEQUENCES = toy_sequences(120, seed=3, min_length=30)


def build(out: Path, clusters: Path | None = None, valid_ratio: float = 0.3) -> Path:
    fasta = out.with_suffix(".fasta")
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(SEQUENCES)))
    known = ["--clusters", str(clusters)] if clusters else []
    find("corpus")([str(fasta), "--out", str(out), "--valid-ratio", str(valid_ratio), *known])
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("held_out") / "corpus")


@pytest.fixture(scope="module")
def model() -> GLM:
    return GLM(replace(preset("glm-1m"), max_length=512))


@pytest.fixture
def config(corpus: Path, model: GLM) -> PretrainConfig:
    return validation_config(model.config, corpus, seed=5, valid_tokens=100_000)


def test_nats_of_the_model(model: GLM, config: PretrainConfig) -> None:
    row = validation_rows(Corpus.open(config.corpus), config)["gmask"][0]
    nats = model_nats(model, row)
    inputs = (torch.from_numpy(part) for part in (row.tokens, row.positions, row.segments))
    with torch.no_grad():
        probability = softmax(model(*inputs), -1)
    asked = np.flatnonzero((row.labels != IGNORE) & (row.labels <= LAST_RESIDUE))
    goes_on = 1 - probability[asked, EOS] - probability[asked, EOP]
    assert np.exp(-nats[asked]) == pytest.approx((probability[asked, row.labels[asked]] / goes_on).numpy(), rel=1e-5)


def test_every_held_out_protein_counts_once(model: GLM, config: PretrainConfig) -> None:
    """Asked for more tokens than there are, every objective uses each protein, and only labels that are hidden."""
    lengths = Corpus.open(config.corpus).valid.lengths
    results = {result.objective: result for result in compare(model, config)}
    assert list(results) == ["mlm", "gmask", "smask"]
    for name, result in results.items():
        assert result.num_proteins == result.num_clusters == len(lengths)
        rows = validation_rows(Corpus.open(config.corpus), config)[name]
        residues = [(row.labels > 0) & (row.labels <= LAST_RESIDUE) for row in rows]
        if name == "mlm":
            residues = [asked & (row.tokens == MASK) for asked, row in zip(residues, rows, strict=True)]
        assert result.num_labels == sum(asked.sum() for asked in residues)
        weighted = sum(model_nats(model, row)[asked].sum() for row, asked in zip(rows, residues, strict=True))
        assert result.nats["model"].value == pytest.approx(weighted / result.num_labels)


def test_clusters_are_those_of_the_rows_proteins(tmp_path: Path, model: GLM) -> None:
    """A protein's sums land in its own cluster: whole chains among the rows name the protein."""
    names = "".join(f"p{i - i % 4}\tp{i}\n" for i in range(len(SEQUENCES)))
    (tmp_path / "clusters.tsv").write_text(names)
    path = build(tmp_path / "corpus", clusters=tmp_path / "clusters.tsv")
    config = validation_config(model.config, path, seed=1, valid_tokens=100_000)
    corpus = Corpus.open(path)
    assert corpus.has_clusters
    ngrams = fit_ngrams(corpus.train)
    by_cluster: dict[int, np.ndarray] = {}
    chains = {bytes(corpus.valid[i]): i for i in range(len(corpus.valid))}
    for row in validation_rows(corpus, config)["gmask"]:
        sums = protein_sums(model, ngrams, row)
        texts, answers = (unpack(part, row.segments) for part in (row.tokens, row.labels))
        for tokens, labels, total in zip(texts, answers, sums, strict=True):
            text = [*tokens, labels[-1]]
            chain = [int(token) for token in text if FIRST_RESIDUE <= token <= LAST_RESIDUE]
            protein = chains.get(bytes(chain), chains.get(bytes(chain[::-1])))
            cluster = int(corpus.valid.clusters[protein])
            by_cluster[cluster] = by_cluster.get(cluster, 0.0) + total
    (result,) = (result for result in compare(model, config) if result.objective == "gmask")
    assert result.num_clusters == len(by_cluster) < len(corpus.valid)
    draws = bootstrap(np.array([by_cluster[cluster] for cluster in sorted(by_cluster)]))
    interval = result.nats["model"].low, result.nats["model"].high
    assert interval == pytest.approx(np.percentile(draws[:, 0] / draws[:, -1], (2.5, 97.5)))


def test_table(model: GLM, config: PretrainConfig) -> None:
    results = compare(model, config)
    lines = markdown(results).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(f"| mlm | {results[0].num_labels:,} |")
    for result in results:  # an untrained model knows nothing, the unigram of random proteins everything
        assert result.nats["model"].value > 4 and 2.9 < result.nats["unigram"].value < 3.1
        assert result.nats["unigram"].low < result.nats["unigram"].value < result.nats["unigram"].high
        assert result.gain["unigram"].high < 0


def test_what_cannot_be_compared(tmp_path: Path, model: GLM) -> None:
    with pytest.raises(ConfigError, match="shape of none of glm-1m"):
        validation_config(replace(model.config, num_layers=4), tmp_path, seed=0, valid_tokens=10)
    whole = build(tmp_path / "whole", valid_ratio=0.0)
    with pytest.raises(CorpusError, match="no held-out proteins"):
        compare(model, validation_config(model.config, whole, seed=0, valid_tokens=10))
