"""One sharded save in megatron's `torch_dist` format, at once or by a forked process beside the training.

`dist_checkpointing.save` writes three files on rank 0 while the others wait for it in a collective, collects results in
a manager process that imports the program anew, and waits for ever for a writer that was killed. On a full disk the job
would hang. So its steps are taken one by one here, and after each all ranks know whether any failed:

    plan     who writes which shards (megatron)
    request  the main rank writes what is not sharded; each rank, forked or not, its shards (megatron) with checksums
    finish   the main rank writes the index over all shards
"""

import pickle
import queue
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from pretrain.agreement import gather, on_main_rank, together
from pretrain.checkpoint_files import Stamp, stamp
from xtrimo.errors import CheckpointError

Bucket = tuple[str, str, tuple[list[Any], list[Any]]]
"""megatron's plan of one file: its path and name, objects and tensors with their places."""

# Planning starts a manager process to collect results in unless there is a queue; ours come back through a file.
filesystem_async._results_queue = queue.Queue()


class _Planning(TorchDistSaveShardedStrategy):
    """megatron's plan of a save, without its way to carry it out."""

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, planned: Any) -> Any:
        return writer, planned[1]


class ShardedSave:
    """One save into an empty folder; every method is collective and raises RankError on all ranks alike.

    Args:
        state: from `Trainer.sharded_state`; its tensors are read when the request is carried out.
        content: megatron's metadata on how the state is sharded.

    Attributes:
        num_bytes: size of the shards of all ranks.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        self.folder = folder
        planning = _Planning("torch_dist", 1)
        # megatron's checks fail on rank 0 alone, after their last collective
        shards, self._common = together(lambda: save_preprocess({**state, "content_metadata": dict(content)}))
        plan: tuple[FileSystemWriterAsync, Metadata | None] = together(lambda: planning.async_save(shards, str(folder)))
        self._writer, self._index = plan
        self._format = CheckpointingConfig(planning.backend, planning.version)
        self._report: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (it goes with this object)
        self.num_bytes = sum(gather(lambda: sum(map(_num_bytes, self._writer.write_buckets))))

    def request(self) -> AsyncRequest:
        """This rank's writing, for megatron's queue of forked writers or to be carried out at once.

        What is not sharded is written by now: it is small, and nothing promises that the optimizer leaves it alone.
        """
        on_main_rank(self._write_common)
        buckets = self._writer.write_buckets
        arguments = (self._writer.transforms, buckets, self._report)
        stage = partial(self._writer.preload_tensors, buckets, True)  # buckets off the GPU, before the fork
        return AsyncRequest(_write if buckets else None, arguments, [], preload_fn=stage)

    def finish(self) -> dict[str, Stamp]:
        """Complete the folder once every rank's request is done: size and checksum of each file in it."""
        written = gather(self._written)
        stamps = {name: stamp for _, stamps in written for name, stamp in stamps.items()}
        return stamps | on_main_rank(lambda: self._write_index([results for results, _ in written]))

    def _write_common(self) -> None:
        torch.save(self._common, self.folder / "common.pt")
        save_config(self._format, str(self.folder))

    def _written(self) -> tuple[list[WriteResult], dict[str, Stamp]]:
        if not self._writer.write_buckets:
            return [], {}
        self._report.seek(0)
        try:
            report = pickle.load(self._report)
        except (EOFError, pickle.UnpicklingError):
            temporary = tempfile.gettempdir()
            raise CheckpointError(f"the writer of shards left no report: killed, or {temporary} is full") from None
        if isinstance(report, str):
            raise CheckpointError(report)
        return report

    def _write_index(self, results: list[list[WriteResult]]) -> dict[str, Stamp]:
        self._writer.finish(self._index, results)
        return {name: stamp(self.folder / name) for name in ("common.pt", "metadata.json", ".metadata")}


def _num_bytes(bucket: Bucket) -> int:
    _, _, (objects, tensors) = bucket
    return sum(data.getbuffer().nbytes for _, data in objects) + sum(tensor.nbytes for _, tensor in tensors)


def _write(transforms: Any, buckets: list[Bucket], report: IO[bytes]) -> None:
    """Write a rank's shards, a file a bucket; never raises, for other ranks wait.

    The report is an unnamed file: a pipe would block when full, and a killed writer leaves this empty.
    """
    try:
        with ThreadPoolExecutor(len(buckets)) as pool:
            files = list(pool.map(partial(_write_file, transforms), buckets))
        done: Any = [r for results, _ in files for r in results], dict(stamp for _, stamp in files)
    except Exception as error:
        done = f"{type(error).__name__}: {error}"
    with suppress(OSError):
        pickle.dump(done, report)
        report.flush()


def _write_file(transforms: Any, bucket: Bucket) -> tuple[list[WriteResult], tuple[str, Stamp]]:
    path, name, _ = bucket
    results: queue.Queue[Any] = queue.Queue()
    running: queue.Queue[int] = queue.Queue()  # megatron's count of unfinished writers, of which this is the only one
    running.put(0)
    FileSystemWriterAsync.write_preloaded_data([transforms], 0, bucket, results, running, use_fsync=True)
    _, result = results.get()
    if isinstance(result, Exception):
        raise result
    return result, (name, stamp(Path(path)))
