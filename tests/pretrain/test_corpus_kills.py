"""A corpus that is killed while it is built: nothing half-valid, and the same command ends in the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import corpus_staging
from pretrain.corpus import Corpus
from pretrain.corpus_building import CorpusConfig, build_corpus
from xtrimo.errors import CorpusError
from xtrimo.fasta import Record, write_fasta
from xtrimo.info import verify
from xtrimo.testing import killed, toy_sequences
from xtrimo.tokens import encode_residues

SEQUENCES = toy_sequences(80, seed=1, min_length=30, max_length=60)
MISFITS = {0: "MKV", 1: "MKVJ", 2: ""}  # too short, unknown, empty: read, and not kept
FIRST, SECOND = (
    [sequence for i in rows for sequence in (SEQUENCES[i], MISFITS.get(i % 7)) if sequence is not None]
    for rows in (range(40), range(20, 80))
)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Two inputs that share 20 proteins, staged in parts of about 10."""
    for name, sequences in {"a": FIRST, "b": SECOND}.items():
        write_fasta(tmp_path / f"{name}.fasta", [Record(f"{name}{i}", s) for i, s in enumerate(sequences)])
    monkeypatch.setattr(corpus_staging, "PART_RESIDUES", 450)
    return dict(inputs=(tmp_path / "a.fasta", tmp_path / "b.fasta"), valid_ratio=0.1, shard_residues=1000)


def killed_at(step: int, run: Callable[[], object]) -> bool:
    """In a fork, run until the `step`-th file is about to appear and die of SIGKILL there; False if it got through."""

    def arm() -> None:
        replace, num_files = os.replace, 0

        def replace_or_die(*paths: Path) -> None:
            nonlocal num_files
            num_files += 1
            if num_files == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = replace_or_die

    return killed(arm, run)


def test_killed_anywhere_the_same_command_continues(tmp_path: Path, settings: dict) -> None:
    build_corpus(CorpusConfig(out=tmp_path / "unbroken", **settings))
    expected = content(tmp_path / "unbroken")
    config = CorpusConfig(out=tmp_path / "broken", **settings)
    step = 1
    while killed_at(step, lambda: build_corpus(config)):
        with pytest.raises(CorpusError, match="not a finished corpus.*same command"):
            Corpus.open(config.out)
        build_corpus(config)
        assert content(config.out) == expected
        shutil.rmtree(config.out)
        step += 1
    assert step > 10  # the settings, about 10 parts, meta.json


def test_killed_again_and_again_it_gets_there(tmp_path: Path, settings: dict) -> None:
    build_corpus(CorpusConfig(out=tmp_path / "unbroken", **settings))
    config = CorpusConfig(out=tmp_path / "broken", **settings)
    num_kills = 0
    while killed_at(2, lambda: build_corpus(config)):
        num_kills += 1
    assert num_kills > 8
    assert content(config.out) == content(tmp_path / "unbroken")


def test_finished_parts_are_not_encoded_again(tmp_path: Path, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CorpusConfig(out=tmp_path / "out", **settings)
    assert killed_at(4, lambda: build_corpus(config))  # the settings and two parts are there
    encoded = []
    monkeypatch.setattr(corpus_staging, "encode_residues", lambda s, **_: encoded.append(s) or encode_residues(s))
    build_corpus(config)
    assert len(FIRST) + len(SECOND) - 40 < len(encoded) < len(FIRST) + len(SECOND) - 20
    assert encoded == [*FIRST, *SECOND][-len(encoded) :]


def test_after_a_kill_other_settings_are_refused(tmp_path: Path, settings: dict) -> None:
    assert killed_at(3, lambda: build_corpus(CorpusConfig(out=tmp_path / "out", **settings)))
    with pytest.raises(CorpusError, match="other settings: min_length was 30, now 31"):
        build_corpus(CorpusConfig(out=tmp_path / "out", min_length=31, **settings))


def test_the_command_killed_from_outside(tmp_path: Path) -> None:
    write_fasta(tmp_path / "big.fasta", [Record(f"p{i}", s) for i, s in enumerate(SEQUENCES * 500)])
    command = [sys.executable, "-m", "xtrimo", "corpus", str(tmp_path / "big.fasta"), "--out", str(tmp_path / "out")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (tmp_path / "out" / "staging" / "settings.json").exists():
        assert first.poll() is None
        time.sleep(0.001)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    with pytest.raises(CorpusError, match="not a finished corpus"):
        Corpus.open(tmp_path / "out")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "continuing the interrupted run" in done.stderr
    assert "40,000 read, 80 kept; left out: 39,920 duplicate" in done.stdout
    assert not (tmp_path / "out" / "staging").exists()
    assert dict(verify(tmp_path / "out"))
