"""What `xtrimo doctor` finds where something is missing, old, short or cut off; and that each finding names a cure."""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

import xtrimo
from xtrimo import doctor, installation, machine, mmseqs
from xtrimo.__main__ import main
from xtrimo.doctor import CHECKS, examine
from xtrimo.findings import Finding

PROJECT = """
[project]
dependencies = ["numpy>=1.26", "torch>=99", "not-there>=1"]
[project.optional-dependencies]
heads = ["scipy>=1"]
structure = ["biotite==0.0.1"]
dev = ["not-there-either"]
"""


def found(check: Callable[[], Iterator[Finding]]) -> dict[str, Finding]:
    findings = {finding.name: finding for finding in check()}
    assert all(bool(finding.cure) == (finding.state != "ok") for finding in findings.values()), findings
    return findings


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_where_the_tests_run_nothing_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"python", "xtrimo", "packages", "torch", "threads", "memory", "hub"}
    assert all(row.keys() == {"name", "state", "said", "cure"} and row["state"] in ("ok", "note") for row in rows)
    assert all(row["name"] in said and row["cure"] in said for row in rows)


def test_what_nobody_foresaw_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crashes() -> Iterator[Finding]:
        raise OSError("libtorch_cpu.so: undefined symbol\nand more")
        yield

    monkeypatch.setitem(CHECKS, "torch", crashes)
    assert main(["doctor", "--json"]) == 1
    said = capsys.readouterr()
    assert said.err == "xtrimo: broken: torch; what to do is said beside each\n"
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert rows["torch"]["said"] == "OSError: libtorch_cpu.so: undefined symbol" and rows["torch"]["cure"]
    assert "threads" in rows, "the checks after it are made"


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(installation.check_python)["python"].state == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert found(installation.check_python)["python"].state == "broken"


def test_packages_by_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    packages = found(installation.check_packages)["packages"]
    assert packages.state == "broken" and "numpy" not in packages.said
    assert packages.said == f"torch is {metadata.version('torch')}, expected >=99; not-there is missing"
    extras = found(installation.check_extras)
    assert extras.keys() == {"extra structure", "extras"} and extras["extras"].said == "heads"
    assert extras["extra structure"].state == "note"
    assert (
        "biotite is" in extras["extra structure"].said and "train-fold, fold, compare" in extras["extra structure"].said
    )
    assert extras["extra structure"].cure == "pip install 'xtrimo[structure]'"


def test_packages_by_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a wheel, which brings no pyproject.toml."""
    own = Message()
    own["Provides-Extra"], own["Provides-Extra"] = "heads", "structure"
    for need in ("numpy>=1.26", "torch>=99", 'scipy>=1; extra == "heads"', 'biotite==0.0.1; extra == "structure"'):
        own["Requires-Dist"] = need
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    monkeypatch.setattr(metadata, "metadata", lambda _: own)
    assert found(installation.check_packages)["packages"].said.startswith("torch is ")
    extras = found(installation.check_extras)
    assert extras.keys() == {"extra structure", "extras"} and extras["extras"].said == "heads"

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    assert found(installation.check_packages)["packages"].state == "note"
    assert not found(installation.check_extras)


def test_releases_other_than_those_of_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    assert not found(installation.check_releases), "a wheel brings no constraints.txt"
    here = metadata.version("numpy")
    (tmp_path / "constraints.txt").write_text(f"# note\nnumpy=={here}\nrich==1.0\nnot-there==2\n")
    releases = found(installation.check_releases)["releases"]
    assert releases.said == f"not those of the tests: rich {metadata.version('rich')}, not 1.0"
    monkeypatch.setattr(installation, "_installed", lambda name: f"{here}+cpu" if name == "numpy" else None)
    assert found(installation.check_releases)["releases"].state == "ok", "a build of the release"


def test_a_torch_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(machine.check_torch)["torch"].state == "ok"
    monkeypatch.setattr(xtrimo, "score", lambda *_: [SimpleNamespace(ppl=float("nan"))])
    torch_found = found(machine.check_torch)["torch"]
    assert torch_found.state == "broken" and "nan" in torch_found.said


def test_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    threads = found(machine.check_threads)["threads"]
    assert (threads.state, threads.cure) == ("note", "export OMP_NUM_THREADS=2")
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert found(machine.check_threads)["threads"].state == "ok"


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("300000 100000", 3), ("50000 100000", 1), ("max 100000", 4), (None, 4)]
)
def test_processors_of_a_container(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    said = tmp_path / "cpu.max"
    if quota:
        said.write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "Path", lambda _: said)
    assert machine.usable_cores() == cores


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_system_bytes", lambda: 3 * 10**9)
    assert found(machine.check_memory)["memory"].state == "ok"
    monkeypatch.setattr(machine, "free_system_bytes", lambda: 10**9)
    assert found(machine.check_memory)["memory"].state == "note"


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [(False, None, "none; the CPU does all"), (True, None, "built without CUDA"), (True, "12.8", "finds no GPU")],
)
def test_no_gpu(driver: bool, cuda: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    version = tmp_path / "version"
    if driver:
        version.touch()
    monkeypatch.setattr(machine, "Path", lambda _: version)
    gpu = found(machine.check_gpu)["gpu"]
    assert said in gpu.said and (gpu.state == "note") == driver


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(number: int) -> tuple[str, bool]:
        if number == 2:
            raise RuntimeError("CUDA error: no kernel image is available\nand more")
        return f"GPU of number {number}", number == 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(machine, "_use_gpu", use)
    gpus = found(machine.check_gpu)
    assert [gpu.state for gpu in gpus.values()] == ["ok", "broken", "broken"]
    assert gpus["gpu 2"].said == "it does not compute: CUDA error: no kernel image is available"


def test_folders_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "not/there/yet"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    places = found(machine.check_places)
    assert [place.state for place in places.values()] == ["ok", "ok", "ok"]
    assert places["models of the Hub"].said.startswith(f"{cache}, ") and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(machine, "LITTLE_DISK", 1 << 60)
    assert [place.state for place in found(machine.check_places).values()] == ["note", "note", "note"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/none/hub")
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    monkeypatch.chdir("/proc")
    places = found(machine.check_places)
    assert [place.state for place in places.values()] == ["broken", "broken", "note"]
    assert "cannot be written to" in places["working folder"].said


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, state in ((True, "ok"), (False, "note")):
        monkeypatch.setattr(mmseqs, "is_installed", lambda here=here: here)
        assert found(machine.check_programs)["mmseqs2"].state == state


class Answers(BaseHTTPRequestHandler):
    """A server that answers /STATUS with that status, and /0 never."""

    def do_HEAD(self) -> None:
        status = int(self.path.strip("/"))
        if not status:
            time.sleep(5)
        self.send_response(status or 200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "ok"), (404, "ok"), (503, "note")])
def test_a_hub_that_answers(server: str, status: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"{server}/{status}")
    hub = found(machine.check_hub)["hub"]
    assert hub.state == state and hub.said.startswith(server)


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = found(machine.check_hub)["hub"]
    assert offline.state == "note" and "HF_HUB_OFFLINE" in offline.said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for endpoint, said in ((f"http://127.0.0.1:{port}", "refused"), ("nothing", "unknown url type")):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        hub = found(machine.check_hub)["hub"]
        assert hub.state == "note" and said in hub.said, hub


def test_a_hub_that_never_answers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to who it is: looking up a name has no time limit of its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.3)
    monkeypatch.setattr(machine, "_ask", lambda _: time.sleep(3) or "")
    before = time.monotonic()
    hub = found(machine.check_hub)["hub"]
    assert time.monotonic() - before < 2 and hub.state == "note" and "no answer" in hub.said


def test_every_check_is_made() -> None:
    made = set(CHECKS.values())
    ours = [vars(module).items() for module in (installation, machine)]
    assert made == {value for items in ours for name, value in items if name.startswith("check_")}
    assert [finding.state for finding in examine({})] == [] and doctor.CHECKS is CHECKS
