"""The toy model as a preset, for runs that know models by name."""

from collections.abc import Iterator

import pytest

from xtrimo.config import PRESETS
from xtrimo.testing import toy_config


@pytest.fixture(scope="module", autouse=True)
def toy_preset() -> Iterator[None]:
    """Modules that need another toy override it."""
    PRESETS["toy"] = toy_config()
    yield
    del PRESETS["toy"]
