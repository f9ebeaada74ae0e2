"""Clusters with mmseqs2 and without."""

import logging

import numpy as np
import pytest

from xtrimo import mmseqs, sketch
from xtrimo.clustering import cluster

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKR"
NEAR, OTHER = PROTEIN.replace("L", "I"), PROTEIN[::-1]


def test_the_program_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(mmseqs, "is_installed", lambda: True)
    monkeypatch.setattr(mmseqs, "cluster", lambda *facts: asked.append(facts) or np.array([0]))
    assert cluster([PROTEIN], 0.3, 0.7, "nothing").tolist() == [0] and asked == [([PROTEIN], 0.3, 0.7)]


def test_common_words_without_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)
    proteins = [OTHER, NEAR, PROTEIN]
    with caplog.at_level(logging.WARNING):
        stands = cluster(proteins, 0.5, 0.7, "the moon is made of cheese")
    assert stands.tolist() == sketch.cluster_by_words(proteins, 0.5, 0.7).tolist() == [0, 1, 1]
    assert "so that the moon is made of cheese" in caplog.text
