"""metrics.jsonl to curves, and curves to a picture."""

import json
import struct
from pathlib import Path

import pytest

from pretrain.curves import plot_curves, read_curves
from xtrimo.errors import CheckpointError

ENTRIES = [
    {"split": "train", "step": 10, "nats_mlm": 3.0, "nats_gmask": 3.1, "loss": 3.05},
    {"split": "train", "step": 20, "nats_mlm": 2.8, "loss": 2.8},  # an objective may be missing from a batch
    {"split": "valid", "step": 20, "nats_mlm": 2.9, "nats_gmask": 2.95},
]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in ENTRIES))
    return path


def test_curves_by_split_and_objective(metrics: Path) -> None:
    assert read_curves(metrics) == {
        ("train", "mlm"): [(10, 3.0), (20, 2.8)],
        ("train", "gmask"): [(10, 3.1)],
        ("valid", "mlm"): [(20, 2.9)],
        ("valid", "gmask"): [(20, 2.95)],
    }


def test_the_picture_is_a_png(metrics: Path, tmp_path: Path) -> None:
    plot_curves(metrics, tmp_path / "loss.png")
    content = (tmp_path / "loss.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG") and width > 600 and height > 300


@pytest.mark.parametrize("content", [None, "", '{"split": "train", "step": 1, "loss": 3.0}\n'])
def test_nothing_to_draw(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match="holds no losses"):
        plot_curves(path, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
