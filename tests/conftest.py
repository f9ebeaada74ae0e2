"""Every test runs on one thread, and each call of ours has its types and shapes checked against the signature."""

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # OpenMP reads both when torch loads it

import sys
from collections.abc import Iterator
from types import SimpleNamespace

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int may stand for a float, as mypy has it; the hook takes its checker by name, so that it needs a module.
sys.modules["checks_of_tests"] = SimpleNamespace(check=beartype(conf=BeartypeConf(is_pep484_tower=True)))  # type: ignore[assignment]
install_import_hook(["xtrimo", "generate", "heads", "pretrain", "structure"], "checks_of_tests.check")

import pytest
import torch
from hypothesis import settings

from xtrimo import intervals, log, mmseqs

torch.set_num_threads(1)
settings.register_profile("xtrimo", deadline=None)  # the first call of a function pays for its checks
settings.load_profile("xtrimo")


@pytest.fixture(autouse=True)
def _warn_anew() -> None:
    """`warn_once` starts each test with an empty memory."""
    log._warned.clear()


@pytest.fixture(scope="module", autouse=True)
def _leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a file's tests have written and imported are forgotten: another file's may have their names. And
    no file's tests leave gradients off."""
    path = sys.path.copy()
    yield
    sys.path[:] = path
    folder = str(tmp_path_factory.getbasetemp())
    for name in [name for name, each in sys.modules.items() if str(getattr(each, "__file__", "")).startswith(folder)]:
        del sys.modules[name]
    assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def quick_judge() -> Iterator[None]:
    """Without mmseqs2, which takes seconds a call and has its tests in test_novelty.py; fewer draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmseqs, "is_installed", lambda: False)
        patch.setattr(intervals, "DRAWS", 200)
        yield
