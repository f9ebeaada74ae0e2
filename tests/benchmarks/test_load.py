"""Memory of loading a published checkpoint, on one of 200 MB in fp32."""

from pathlib import Path

import pytest

from benchmarks.load import BF16_BYTES, Layout, anonymous_bytes, measure, write_checkpoint
from xtrimo.testing import toy_config

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_cast_on_loading_takes_hardly_more_than_the_result(tmp_path: Path, layout: Layout) -> None:
    """In fp32 it would be twice that, read as a whole and then cast three times."""
    config = toy_config(hidden_size=1024, num_heads=16, ffn_size=2730, rotary="1d", objectives=("mlm",))
    assert write_checkpoint(config, tmp_path / "model", layout) > 4 * config.num_params > 2e8
    load = measure(tmp_path / "model")
    result = BF16_BYTES * config.num_params
    assert 0.95 * result < load.after - load.before
    assert load.peak - load.before < 1.3 * result


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert anonymous_bytes(2**22 + 1) == 0


def test_a_load_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="failed"):
        measure(tmp_path / "nothing")
