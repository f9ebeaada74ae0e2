"""What fails on one rank is known to all: none is left waiting in a collective for one that will not come."""

import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from pretrain.parallel import is_main_rank
from xtrimo.errors import XtrimoError

T = TypeVar("T")


class RankError(XtrimoError):
    """Work that failed on some ranks, raised on every one of them; the message names ranks and reasons.

    Attributes:
        foreseen: whether each of them failed with an error of ours, which says what is wrong.
    """

    def __init__(self, message: str, foreseen: bool) -> None:
        super().__init__(message)
        self.foreseen = foreseen


def together(work: Callable[[], T]) -> T:
    """Do `work` on every rank; each gets its own result.

    Work that fails before a collective of its own still leaves the others in that collective.

    Raises:
        RankError: on every rank, when it failed on any.
    """
    cause: BaseException | None = None
    result = None
    try:
        result = work()
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        cause = error
    found = _of_all_ranks((_reason(cause) if cause else "", not cause or isinstance(cause, XtrimoError)))
    failures = [f"rank {rank}: {why}" for rank, (why, _) in enumerate(found) if why]
    if failures:
        message = "; ".join(failures[:3]) + (f"; and {len(failures) - 3} more ranks" if failures[3:] else "")
        raise RankError(message, all(foreseen for _, foreseen in found)) from cause
    return result  # type: ignore[return-value]  # it did not fail


def gather(work: Callable[[], T]) -> list[T]:
    """Do `work` on every rank; each gets the results of all, in rank order. Fails as `together` does."""
    return _of_all_ranks(together(work))


def on_main_rank(work: Callable[[], T]) -> T:
    """Do `work` on the main rank alone; each rank gets its result. Fails as `together` does."""
    result: list[Any] = [together(lambda: work() if is_main_rank() else None)]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def _reason(error: BaseException) -> str:
    """One line on what went wrong; torch wraps it in every rank's traceback, and may list all the weights."""
    if isinstance(error, CheckpointException):
        error, _ = next(iter(error.failures.values()))
    text = str(error) if isinstance(error, XtrimoError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, 400, placeholder=" ...")


def _of_all_ranks(value: T) -> list[T]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
