"""Lets megatron-core run on the CPU over gloo, through the very code path that GPUs run.

megatron-core spells its device out: `torch.cuda.current_device()`, `device="cuda"`, `.cuda()`, a test for
`param.type() == "torch.cuda.FloatTensor"`, the CUDA random generator. `redirect()` gives those names their CPU meaning;
where CUDA exists it does nothing. No file of megatron-core is edited.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites requests for a CUDA device inside torch calls."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # gradient clipping and the distributed optimizer look for "torch.cuda.FloatTensor"
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return func(*args, **kwargs)


class _FinishedStream:
    """A CUDA stream whose work is always done."""

    def wait_stream(self, _: object) -> None:
        pass

    def wait_event(self, _: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


_installed: list[_CudaMeansCpu] = []


def redirect() -> None:
    """Redirect CUDA names to the CPU for the life of this process; a no-op where CUDA exists or when repeated."""
    if torch.cuda.is_available() or _installed:
        return
    import megatron.core.tensor_parallel.random as megatron_random

    # it warns wherever sequence-parallel dropout swaps the streams, which are the CPU's here
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)

    def stream(*_: object, **__: object) -> _FinishedStream:
        return _FinishedStream()

    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.synchronize = cuda.empty_cache = lambda *_, **__: None
    cuda.current_stream = cuda.default_stream = stream
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    _installed.append(_CudaMeansCpu())
    _installed[0].__enter__()  # type: ignore[no-untyped-call]
