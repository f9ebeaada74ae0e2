"""Every test runs on one thread, and each call of ours has its types and shapes checked against the signature."""

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # OpenMP reads both when torch loads it

import sys
from types import SimpleNamespace

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int may stand for a float, as mypy has it; the hook takes its checker by name, so that it needs a module.
sys.modules["checks_of_tests"] = SimpleNamespace(check=beartype(conf=BeartypeConf(is_pep484_tower=True)))  # type: ignore[assignment]
install_import_hook(["xtrimo", "generate", "heads", "pretrain", "structure"], "checks_of_tests.check")

import pytest
import torch
from hypothesis import settings

from xtrimo import log

torch.set_num_threads(1)
settings.register_profile("xtrimo", deadline=None)  # the first call of a function pays for its checks
settings.load_profile("xtrimo")


@pytest.fixture(autouse=True)
def _warn_anew() -> None:
    """`warn_once` starts each test with an empty memory."""
    log._warned.clear()
