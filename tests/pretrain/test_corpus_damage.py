"""Damage to a corpus never reaches a model: what opening, reading a protein, and `xtrimo info --verify` notice."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from pretrain.config import BatchConfig, PretrainConfig
from pretrain.corpus import INDEX_DTYPES, Corpus, Split
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.data import Stream, validation_rows
from xtrimo.errors import CorpusError
from xtrimo.info import verify
from xtrimo.testing import toy_sequences

SEQUENCES = toy_sequences(300, seed=1, min_length=30, max_length=60)


def build(folder: Path, **settings) -> Corpus:
    """A corpus in `folder`/out of the sequences, in `folder`/a.fasta."""
    fasta = folder / "a.fasta"
    fasta.write_text("".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(SEQUENCES)))
    build_corpus(CorpusConfig(inputs=(fasta,), out=folder / "out", **settings))
    return Corpus.open(folder / "out")


@pytest.mark.parametrize("name", ["train-00000.residues", "valid.lengths.npy"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    corpus = build(tmp_path, valid_ratio=0.1)
    good = (corpus.path / name).read_bytes()
    (corpus.path / name).write_bytes(good[:-1])
    with pytest.raises(CorpusError, match=rf"{name} holds {len(good) - 1:,} bytes instead of {len(good):,}"):
        Corpus.open(corpus.path)
    (corpus.path / name).unlink()
    with pytest.raises(CorpusError, match=f"{name} is missing"):
        Corpus.open(corpus.path)
    with pytest.raises(CorpusError, match=f"{name} was altered: checksum none .No such file.*copy the corpus again"):
        dict(verify(corpus.path))
    (corpus.path / name).write_bytes(good)
    assert Corpus.open(corpus.path).fingerprint == corpus.fingerprint


def flip(path: Path, byte: int) -> None:
    """Turn one bit, as a failing disk would."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_flipped_bit_in_a_shard_stops_the_read_of_its_protein(tmp_path: Path, split: str) -> None:
    corpus = build(tmp_path, valid_ratio=0.3, shard_residues=1000)
    proteins: Split = getattr(corpus, split)
    protein = len(proteins) // 2
    start = int(proteins.offsets[protein])
    shard = max(shard for shard, first in enumerate(proteins.shard_starts) if first <= start)
    start -= proteins.shard_starts[shard]
    length = int(proteins.lengths[protein])
    name = f"{split}-{shard:05d}.residues"
    assert shard > 0 and start > 0  # a protein of another shard than the first, and not its first
    flip(corpus.path / name, start + length - 1)
    damaged: Split = getattr(Corpus.open(corpus.path), split)
    for index in (protein, protein - len(damaged)):
        with pytest.raises(CorpusError) as error:
            damaged[index]
        assert f"{corpus.path / name} is damaged: protein {protein}, the {length} bytes from {start} on" in str(
            error.value
        )
        assert "copy the corpus again or rebuild it" in str(error.value)
    for index in set(range(len(damaged))) - {protein}:
        assert len(damaged[index]) == damaged.lengths[index]
    with pytest.raises(CorpusError, match=f"{name} was altered"):
        dict(verify(corpus.path))


def test_neither_training_nor_validation_goes_on_with_damage(tmp_path: Path) -> None:
    """Not even with damage that came after the corpus was opened."""
    corpus = build(tmp_path, valid_ratio=0.1)
    batch = BatchConfig(rows=1, row_length=512)
    config = PretrainConfig(corpus=corpus.path, run=tmp_path / "run", model="glm-1m", batch=batch)
    stream = Stream(corpus, config)
    one_epoch = range(len(stream._epoch(0).row_starts) - 1)
    assert sum(len(stream.row(step, 0).segments) for step in one_epoch) == len(corpus.train)
    for split in ("train", "valid"):
        flip(corpus.path / f"{split}-00000.residues", 100)
    with pytest.raises(CorpusError, match="train-00000.residues is damaged"):
        [stream.row(step, 0) for step in one_epoch]
    with pytest.raises(CorpusError, match="valid-00000.residues is damaged"):
        validation_rows(corpus, config)


@pytest.mark.parametrize("column", INDEX_DTYPES)
def test_a_flipped_bit_in_the_index_stops_the_opening(tmp_path: Path, column: str) -> None:
    corpus = build(tmp_path)
    flip(corpus.path / f"train.{column}.npy", -9)
    with pytest.raises(CorpusError, match=rf"train.{column}.npy was altered: checksum .* copy the corpus again"):
        Corpus.open(corpus.path)


def test_a_corpus_of_the_first_versions_is_read_without_the_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = build(tmp_path, valid_ratio=0.1)
    assert "no checksums" not in caplog.text
    meta = json.loads((corpus.path / "meta.json").read_text())
    for split in ("train", "valid"):  # as those versions wrote it
        meta[split]["index"] = [file for file in meta[split]["index"] if "checksums" not in file["name"]]
        (corpus.path / f"{split}.checksums.npy").unlink()
    (corpus.path / "meta.json").write_text(json.dumps(meta))
    for _ in range(2):
        old = Corpus.open(corpus.path)
    assert caplog.text.count("no checksums of its proteins") == 1 and "xtrimo info" in caplog.text
    assert old.train.checksums is None and [x.tobytes() for x in old.train] == [x.tobytes() for x in corpus.train]
    assert old.fingerprint == corpus.fingerprint  # so that a run may go on with the corpus rebuilt
    content = json.dumps([[f["name"], f["size"], f["checksum"]] for split in ("train", "valid")
                          for kind in ("shards", "index") for f in meta[split][kind]])  # fmt: skip
    digest = hashlib.blake2b(f"{content}{old.source_weights}".encode(), digest_size=16).hexdigest()
    assert old.fingerprint == digest  # the formula of those versions, by which runs know their corpus


def test_meta_must_be_whole_and_ours(tmp_path: Path) -> None:
    corpus = build(tmp_path)
    path = corpus.path / "meta.json"
    good = path.read_text()
    assert Corpus.open(corpus.path).meta == corpus.meta
    assert json.loads(good) == json.loads(json.dumps(dataclasses.asdict(corpus.meta)))
    for bad in (good[: len(good) // 2], "[]", "{}", good.replace('"checksum"', '"check"')):
        path.write_text(bad)
        with pytest.raises(CorpusError, match="meta.json is damaged"):
            Corpus.open(corpus.path)
    for changed in (good.replace(corpus.meta.vocabulary, "0" * 32), '{"format": "later", "vocabulary": "0000"}'):
        path.write_text(changed)
        with pytest.raises(CorpusError, match="but found .*'vocabulary': '0000.*build it again"):
            Corpus.open(corpus.path)
    for nothing in (tmp_path / "nothing", tmp_path / "a.fasta"):
        with pytest.raises(CorpusError, match="not a finished corpus"):
            Corpus.open(nothing)
