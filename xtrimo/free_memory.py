"""How much memory is free: on a GPU, or to this process on a machine, in a container, in a job."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNKNOWN_BYTES = 4 * 10**9
"""Taken as free where the system does not say."""


def free_bytes(device: "torch.device") -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        return torch.cuda.mem_get_info(device)[0] + kept
    return free_system_bytes()


def free_system_bytes() -> int:
    """Memory that is free to this process, GPUs apart; needs no torch."""
    return min(_system_bytes(), _group_bytes())


def _group_bytes() -> int:
    """Memory that is left to the control group of a container or a job; without one, more than there is."""
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize


def _system_bytes() -> int:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return UNKNOWN_BYTES
