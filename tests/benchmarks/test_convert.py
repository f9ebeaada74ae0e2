"""A conversion holds no more of a model in memory than 1.25x the largest file it writes; in a process of its own."""

from pathlib import Path

import pytest

from benchmarks.convert import measure
from benchmarks.load import write_checkpoint
from xtrimo.config import GLMConfig


@pytest.mark.parametrize("flags", [(), ("--to", "proteinglm"), ("--dtype", "bf16")], ids=["ours", "published", "cast"])
def test_memory_is_that_of_a_shard(tmp_path: Path, flags: tuple[str, ...]) -> None:
    config = GLMConfig(num_layers=16, hidden_size=512, num_heads=8, ffn_size=1344)
    num_bytes = write_checkpoint(config, tmp_path / "published", "safetensors")
    done = measure(tmp_path / "published", tmp_path / "copy", (*flags, "--shard-size", "40MB"))
    assert num_bytes > 190e6 and 30e6 < done.largest <= 41e6
    assert done.grown <= 1.25 * done.largest, f"{done.grown / 1e6:.1f} MB grown, {done.largest / 1e6:.1f} MB written"
