"""What the machine offers: torch and its threads, memory, GPUs, places to write to, programs, the Hub."""

import math
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xtrimo import mmseqs
from xtrimo.findings import Finding, State
from xtrimo.free_memory import free_system_bytes

LITTLE_MEMORY = 2 * 10**9
LITTLE_DISK = 10**9
HUB_SECONDS = 5.0


def check_torch() -> Iterator[Finding]:
    """A model of random weights scores a protein: what reads this has a torch that computes."""
    import torch

    from xtrimo import score
    from xtrimo.model import GLM
    from xtrimo.testing import toy_config

    (found,) = score(GLM(toy_config()), ["MKTAYIAKQRQISFVKSHFSRQ"])
    said = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    if math.isfinite(found.ppl):
        yield Finding(name="torch", state="ok", said=said)
    else:
        cure = "install torch again: pip install --force-reinstall torch"
        yield Finding(name="torch", state="broken", said=f"{said}: a small model gives {found.ppl}", cure=cure)


def check_threads() -> Iterator[Finding]:
    """Threads, beside the processors that this process may use."""
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    said = f"{threads} on {cores} processors"
    if threads > cores:
        cure = f"export OMP_NUM_THREADS={cores}"
        yield Finding(name="threads", state="note", said=f"{said}: they wait for each other", cure=cure)
    else:
        yield Finding(name="threads", state="ok", said=said)


def usable_cores() -> int:
    """Processors that this process may use: those it is bound to, or fewer by the quota of its container or job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such group, or "max"
        return cores


def check_memory() -> Iterator[Finding]:
    """Memory that is free to this process."""
    free = free_system_bytes()
    said = f"{free / 1e9:.1f} GB free"
    if free < LITTLE_MEMORY:
        cure = "end other programs, or ask the job or container for more; --precision bf16 halves a model"
        yield Finding(name="memory", state="note", said=said, cure=cure)
    else:
        yield Finding(name="memory", state="ok", said=said)


def check_gpu() -> Iterator[Finding]:
    """GPUs that torch sees, each of which has to compute; or why it sees none."""
    import torch

    if not torch.cuda.is_available():
        if not Path("/proc/driver/nvidia/version").is_file():
            yield Finding(name="gpu", state="ok", said="none; the CPU does all")
        elif torch.version.cuda is None:
            cure = "install a build of torch with CUDA, see pytorch.org/get-started"
            yield Finding(name="gpu", state="note", said=f"torch {torch.__version__} is built without CUDA", cure=cure)
        else:
            cure = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a newer torch may need a newer driver"
            yield Finding(name="gpu", state="note", said=f"CUDA {torch.version.cuda} finds no GPU", cure=cure)
        return
    for number in range(torch.cuda.device_count()):
        name = f"gpu {number}"
        try:
            said, right = _use_gpu(number)
        except RuntimeError as error:
            said, right = str(error).partition("\n")[0], False
        if right:
            yield Finding(name=name, state="ok", said=said)
        else:
            cure = "look at nvidia-smi; this build of torch may be too new or too old for the GPU or its driver"
            yield Finding(name=name, state="broken", said=f"it does not compute: {said}", cure=cure)


def _use_gpu(number: int) -> tuple[str, bool]:
    """What a GPU is, and whether a product of matrices on it comes out right."""
    import torch

    facts = torch.cuda.get_device_properties(number)
    ones = torch.ones(256, 256, device=f"cuda:{number}")
    right = bool((ones @ ones == 256).all())
    free, total = torch.cuda.mem_get_info(number)
    return f"{facts.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, CUDA {torch.version.cuda}", right


class Place(NamedTuple):
    """A folder that is written to."""

    name: str
    path: Path
    state: State
    """Of the finding, where it cannot be written to."""
    cure: str


def check_places() -> Iterator[Finding]:
    """The folders written to: where verbs put files by relative names, what is temporary, what the Hub sends."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    for name, path, state, cure in (
        Place("working folder", Path.cwd(), "broken", "cd to a folder of your own"),
        Place("temporary files", Path(tempfile.gettempdir()), "broken", "set TMPDIR to a folder with room"),
        Place("models of the Hub", cache, "note", "set HF_HOME to a folder with room"),
    ):
        there = next(folder for folder in (path, *path.parents) if folder.exists())  # a cache is made when needed
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"\0")
        except OSError as error:
            said = f"{path} cannot be written to: {error.strerror}"
            yield Finding(name=name, state=state, said=said, cure=cure)
            continue
        free = shutil.disk_usage(there).free
        said = f"{path}, {free / 1e9:.1f} GB free"
        if free < LITTLE_DISK:
            yield Finding(name=name, state="note", said=said, cure=f"free some, or {cure}")
        else:
            yield Finding(name=name, state="ok", said=said)


def check_programs() -> Iterator[Finding]:
    """Programs that some verbs call where they are installed."""
    if mmseqs.is_installed():
        yield Finding(name="mmseqs2", state="ok", said=str(shutil.which("mmseqs")))
    else:
        cure = "install mmseqs2 for exact clusters and near copies, e.g. conda install -c bioconda mmseqs2"
        yield Finding(name="mmseqs2", state="note", said="not on the PATH; 5-mers find near copies instead", cure=cure)


def check_hub() -> Iterator[Finding]:
    """Whether the Hugging Face Hub answers, within HUB_SECONDS; any answer to any question counts."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        cure = "unset HF_HUB_OFFLINE to fetch models"
        said = "HF_HUB_OFFLINE is set: only models fetched before"
        yield Finding(name="hub", state="note", said=said, cure=cure)
        return
    answers: list[str] = []
    # Looking up a host's name knows no time limit, so that a thread does it, and is left behind.
    asking = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT)), daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    problem = answers[0] if answers else f"no answer in {HUB_SECONDS:.0f} s"
    if problem:
        cure = (
            "look at the network, HTTPS_PROXY and SSL_CERT_FILE, or name a mirror in HF_ENDPOINT; models in"
            " directories need no Hub"
        )
        yield Finding(name="hub", state="note", said=f"{constants.ENDPOINT}: {problem}", cure=cure)
    else:
        yield Finding(name="hub", state="ok", said=constants.ENDPOINT)


def _ask(address: str) -> str:
    """What keeps a server from answering; empty where it answers."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError as error:  # it has answered, though perhaps only that it cannot
        return f"status {error.code}" if error.code >= 500 else ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return ""
