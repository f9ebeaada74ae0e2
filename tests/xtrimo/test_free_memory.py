"""Free memory: what the system says, and what is left to a container or a job."""

from pathlib import Path

import pytest
import torch

from xtrimo import free_memory
from xtrimo.free_memory import UNKNOWN_BYTES, free_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("most", "free"), [("5000000", 4_000_000), ("max", 8 << 40), (None, 8 << 40)])
def test_free_memory_is_that_of_the_group(
    most: str | None, free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a container or a job, on a system that has more."""
    monkeypatch.setattr(free_memory, "_system_bytes", lambda: 8 << 40)
    monkeypatch.setattr(free_memory, "Path", lambda _: tmp_path)
    if most:
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text("1000000\n")
    assert free_bytes(CPU) == free


def test_free_memory_is_the_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 2**27 < free_bytes(CPU) < 2**45
    monkeypatch.setattr(free_memory, "_group_bytes", lambda: 8 << 40)
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:       32000000 kB\nMemAvailable:    1234567 kB\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *args: real(said if path == "/proc/meminfo" else path, *args))
    assert free_bytes(CPU) == 1234567 * 1024
    said.write_text("MemTotal:       32000000 kB\n")
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_bytes(CPU) == 4096_000

    def unknown(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert free_bytes(CPU) == UNKNOWN_BYTES
