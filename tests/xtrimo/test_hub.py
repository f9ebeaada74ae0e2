"""Names on the Hub, against a small server that speaks as much of its protocol as a download needs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.xtrimo.published_reference import random_weights, write
from xtrimo import hub
from xtrimo.backbone import load
from xtrimo.errors import CheckpointError

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
CARD = "---\nlicense: cc-by-nc-4.0\n---\n# A model\n"


class Hub(NamedTuple):
    """A running server: its address, what is in its repositories by commit, and what it was asked."""

    address: str
    files: dict[tuple[str, str], dict[str, bytes]]
    asked: list[tuple[str, str, str | None]]
    """(method, path, Authorization)"""

    def publish(self, name: str, directory: Path, revision: str = "main") -> None:
        self.files[name, COMMITS[revision]] = {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def server() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            running.asked.append((self.command, self.path, self.headers.get("Authorization")))
            org, name, *rest = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
            verb, revision, *path = rest or ["revision", "main"]
            commit = COMMITS.get(revision, revision)
            files = running.files.get((f"{org}/{name}", commit))
            if org == "gated" and not self.headers.get("Authorization"):
                self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            elif files is None:
                code = (
                    "RevisionNotFound" if any(repo == f"{org}/{name}" for repo, _ in running.files) else "RepoNotFound"
                )
                self.answer(404, b"{}", {"X-Error-Code": code})
            elif verb == "resolve":
                content = files["/".join(path)]
                etag = hashlib.sha1(content).hexdigest()
                self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            else:
                listed = [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
                about = {"id": f"{org}/{name}", "sha": commit, "siblings": [{"rfilename": p} for p in files]}
                self.answer(200, json.dumps(listed if verb == "tree" else about).encode(), {})

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Hub(f"http://127.0.0.1:{listener.server_port}", {}, [])
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield running
    listener.shutdown()
    thread.join()
    listener.server_close()


class Fetched(NamedTuple):
    directory: Path
    log: str


def download(name: str, home: Path, address: str, **environment: str) -> Fetched:
    """`hub.download` in a process of its own: huggingface_hub reads its environment once."""
    code = "import sys; from xtrimo.hub import download; print(download(sys.argv[1]))"
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    done = subprocess.run([sys.executable, "-c", code, name], env=kept | settings, capture_output=True, text=True)
    if done.returncode:
        raise CheckpointError(done.stderr)
    return Fetched(Path(done.stdout.strip()), done.stderr)


def test_download_then_offline(server, tmp_path) -> None:
    directory = write(tmp_path / "m", random_weights(False), "safetensors shards")
    (directory / "README.md").write_text(CARD)
    for unwanted in ("modeling_proteinglm.py", "pytorch_model.bin", "training_args.bin", "tf_model.h5"):
        (directory / unwanted).write_bytes(b"not for us")
    server.publish("lab/model", directory)
    home = tmp_path / "home"
    fetched = download("lab/model", home, server.address, HF_TOKEN="hf_secret")
    wanted = {path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".json", ".md")}
    assert {path.name for path in fetched.directory.iterdir()} == wanted and len(wanted) == 6
    assert fetched.log.count("lab/model: licence of the weights: CC-BY-NC-4.0") == 1
    assert {token for _, path, token in server.asked if "lab/model" in path} == {"Bearer hf_secret"}
    model = load(fetched.directory)
    assert model.config.source == f"lab/model@{COMMITS['main']}" and model.config.licence == "CC-BY-NC-4.0"
    num_asked = len(server.asked)
    again = download("lab/model", home, server.address, HF_HUB_OFFLINE="1")
    assert again.directory == fetched.directory and len(server.asked) == num_asked
    assert download("lab/model", home, "http://127.0.0.1:9").directory == fetched.directory  # nobody listens there


def test_torch_files_only_where_there_is_nothing_else(server, tmp_path) -> None:
    server.publish("lab/old", write(tmp_path / "m", random_weights(False), "bin shards"))
    fetched = download("lab/old", tmp_path / "home", server.address)
    assert len(list(fetched.directory.glob("pytorch_model*"))) == 4  # three shards and their index
    assert {token for _, _, token in server.asked} == {None}  # without a token none is sent
    assert load(fetched.directory).config.licence == "CC-BY-NC-4.0"


def test_pinned_revision(server, tmp_path) -> None:
    server.publish("lab/model", write(tmp_path / "new", random_weights(False, seed=2)))
    server.publish("lab/model", write(tmp_path / "old", random_weights(False, seed=1)), "v1")
    for name, commit in (("lab/model@v1", COMMITS["v1"]), (f"lab/model@{COMMITS['main']}", COMMITS["main"])):
        directory = download(name, tmp_path / "home", server.address).directory
        assert directory.name == commit and hub.origin(directory) == f"lab/model@{commit}"
        original = tmp_path / ("old" if commit == COMMITS["v1"] else "new") / "model.safetensors"
        assert (directory / "model.safetensors").read_bytes() == original.read_bytes()
    with pytest.raises(CheckpointError, match="no directory lab/model@v9 is here"):
        download("lab/model@v9", tmp_path / "home", server.address)


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("lab/unknown", {}),
        ("gated/model", {}),
        ("lab/weightless", {}),
        ("lab/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("lab/model", {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_what_cannot_be_had_says_which_files_to_put_where(server, tmp_path, name, environment) -> None:
    directory = write(tmp_path / "m", random_weights(False))
    server.publish("gated/model", directory)
    (directory / "model.safetensors").unlink()
    server.publish("lab/weightless", directory)
    with pytest.raises(CheckpointError) as caught:
        download(name, tmp_path / "home", **{"address": server.address} | environment)
    text = str(caught.value)
    for word in (f"no directory {name} is here", "config.json", "model.safetensors", "give the path", "HF_TOKEN"):
        assert word in text
    assert ("or no weights in safetensors or torch files" in text) == (name == "lab/weightless")
    assert "incomplete" not in text.splitlines()[-2]


@pytest.mark.parametrize("files", ["safetensors", "safetensors shards", "bin shards"])
@pytest.mark.parametrize("is_listed", [False, True])  # older caches do not tell what should be in them
def test_an_interrupted_download_is_called_that(server, tmp_path, files, is_listed) -> None:
    directory = write(tmp_path / "m", random_weights(False), files)
    server.publish("lab/model", directory)
    home = tmp_path / "home"
    snapshot = download("lab/model", home, server.address).directory
    max([*snapshot.glob("*.safetensors"), *snapshot.glob("*.bin")]).unlink()
    if not is_listed:
        shutil.rmtree(snapshot.parents[1] / "trees")
    dead = [{"address": "http://127.0.0.1:9"}] if files == "safetensors" else []  # takes long to be given up
    for offline in ({"HF_HUB_OFFLINE": "1"}, *dead):
        with pytest.raises(CheckpointError) as caught:
            download("lab/model", home, **{"address": server.address} | offline)
        message = str(caught.value).rpartition("CheckpointError: ")[2]
        assert "is incomplete" in message and " network" in message
        assert ("without HF_HUB_OFFLINE" in message) == (not is_listed)
    assert load(download("lab/model", home, server.address).directory).num_layers


def test_names() -> None:
    assert hub.is_name("biomap-research/proteinglm-1b-mlm") and hub.is_name("a/b@refs/pr/1")
    for text in ("esm2", "a/b/c", "/a/b", "../b", "./b", "a/", "a/b@", "a b/c"):
        assert not hub.is_name(text), text


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, "CC-BY-NC-4.0"),
        ("---\nlanguage: en\nlicense: 'mit'\n---\n", "MIT"),
        ("---\nlicense: other\nlicense_name: cambrian-open\n---\ntext", "cambrian-open"),
        ("# A model\nlicense: mit\n", None),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_licence_of_a_card(tmp_path, card, licence) -> None:
    (tmp_path / "README.md").write_text(card)
    assert hub.licence(tmp_path) == licence
    cached = tmp_path / "models--facebook--esm2_t6_8M_UR50D" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "README.md").write_text(card)
    assert hub.licence(cached) == (licence or "MIT")
