"""GPUs and networks to plan for, by their data sheets: what is promised, not what is reached.

Speeds are dense (data sheets lead with twice that, for sparse matrices) and links count one direction, half of what
data sheets say of NVLink. A node is eight GPUs, each with a network port of its own, as in NVIDIA's DGX systems.
"""

import dataclasses
from dataclasses import dataclass

from xtrimo.errors import ConfigError

NODE = 8
"""GPUs of a node, joined by NVLink."""
FABRICS = {"opa": 6.25, "hdr": 25.0, "ndr": 50.0}
"""Gigabytes a second and GPU between nodes. InfiniBand HDR is 200 Gb/s a port (DGX A100 user guide: eight ConnectX-6
ports), NDR 400 Gb/s (DGX H100/H200 and B200 user guides: eight ConnectX-7 ports). opa: four Omni-Path links of 100 Gb/s
a node of eight, as BLOOM had (huggingface.co/blog/bloom-megatron-deepspeed)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPU:
    """One GPU in its node."""

    name: str
    """What it is called here."""
    memory_gb: float
    """Gigabytes of memory (1e9 bytes)."""
    teraflops: float
    """Dense bf16 or fp16 tensor operations, 1e12 a second."""
    memory_speed: float
    """Gigabytes a second to and from its own memory."""
    nvlink: float
    """Gigabytes a second to the GPUs of its node, one direction."""
    fabric: str
    """What joins the nodes; a row of FABRICS."""
    multiprocessors: int
    """Streaming multiprocessors: tiles of a matrix product that are computed at once."""
    node_kilowatts: float
    """Most power of a node of eight, from the wall."""
    source: str
    """Where the figures are from."""

    def speed_between(self, size: int, stride: int) -> float:
        """Bytes a second that each of `size` ranks, `stride` apart, sends in a collective.

        Within a node it is NVLink's speed. Beyond it, rings run over the ports of all the group's ranks in a node.
        """
        in_node = min(size, max(1, NODE // stride))
        if size <= in_node:
            return self.nvlink * 1e9
        return min(self.nvlink, in_node * FABRICS[self.fabric]) * 1e9


_A100 = "NVIDIA A100 data sheet (nvidia-1758950-r4); DGX A100 user guide (6.5 kW)"
_HOPPER = "NVIDIA H100 and H200 data sheets; DGX H100/H200 user guide (10.2 kW)"
_BLACKWELL = "NVIDIA HGX B200 data sheet (180 GB); the 14.3 kW of a DGX B200 from memory"
_ROWS = (
    GPU(
        name="a100-40g", memory_gb=40, teraflops=312, memory_speed=1555, nvlink=300, fabric="hdr", multiprocessors=108,
        node_kilowatts=6.5, source=_A100,
    ),
    GPU(
        name="a100-80g", memory_gb=80, teraflops=312, memory_speed=2039, nvlink=300, fabric="hdr", multiprocessors=108,
        node_kilowatts=6.5, source=_A100,
    ),
    GPU(
        name="h100", memory_gb=80, teraflops=989, memory_speed=3350, nvlink=450, fabric="ndr", multiprocessors=132,
        node_kilowatts=10.2, source=_HOPPER,
    ),
    GPU(
        name="h200", memory_gb=141, teraflops=989, memory_speed=4800, nvlink=450, fabric="ndr", multiprocessors=132,
        node_kilowatts=10.2, source=_HOPPER,
    ),
    GPU(
        name="b200", memory_gb=180, teraflops=2250, memory_speed=8000, nvlink=900, fabric="ndr", multiprocessors=148,
        node_kilowatts=14.3, source=_BLACKWELL,
    ),
)  # fmt: skip
GPUS = {gpu.name: gpu for gpu in _ROWS}


def find_gpu(name: str, fabric: str | None = None) -> GPU:
    """The GPU called `name`, its nodes joined by `fabric`, if that is not what its data sheet comes with.

    Raises:
        ConfigError: listing the known ones.
    """
    if name not in GPUS:
        raise ConfigError(f"no GPU {name!r}; known: {', '.join(GPUS)}")
    if fabric is None:
        return GPUS[name]
    if fabric not in FABRICS:
        raise ConfigError(f"no fabric {fabric!r}; known: {', '.join(FABRICS)}")
    return dataclasses.replace(GPUS[name], fabric=fabric)
