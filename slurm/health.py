"""One process for each GPU of a node: it has memory, it multiplies right, and it reaches the others.

The products are of ones, so that the sum is known exactly; the exchange is an all-reduce, once with what training needs
to be set up and once more, timed.
"""

import os
import time

import torch
import torch.distributed as dist

WIDTH = 8192
BYTES = 2**28

device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
dist.init_process_group("nccl", device_id=device)
ones = torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16, device=device)
product = ones @ ones
assert bool((product == WIDTH).all()), "a product of ones is wrong"
block = torch.ones(BYTES // 4, device=device)
dist.all_reduce(block)
torch.cuda.synchronize()
began = time.monotonic()
block.fill_(1)
dist.all_reduce(block)
assert bool((block == dist.get_world_size()).all()), "a sum over the GPUs is wrong"
if dist.get_rank() == 0:
    seconds = time.monotonic() - began
    print(f"all-reduce over {dist.get_world_size()} GPUs: {BYTES / seconds / 1e9:.1f} GB/s", flush=True)
dist.destroy_process_group()
