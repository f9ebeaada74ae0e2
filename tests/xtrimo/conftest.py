"""What the tests of conversion share."""

from pathlib import Path

import jaxtyping
import pytest

from tests.xtrimo.random_models import random_model
from xtrimo import checkpoint


@pytest.fixture
def as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own checks answer: what a file holds reaches them without the tests' type checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return checkpoint.save(random_model(), tmp_path / "ours", notes="Trained for a test.")
