"""FASTA files become a corpus: what is kept, where it goes, what meta.json says; damage and other settings."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pretrain import corpus_building, corpus_selection, corpus_staging
from pretrain.corpus import Corpus, Split
from pretrain.corpus_building import CorpusConfig, build_corpus
from pretrain.corpus_selection import NO_CLUSTER, Records, as_keys, name_keys, read_clusters, select
from xtrimo.errors import ConfigError, CorpusError, FastaError, SequenceError
from xtrimo.info import verify
from xtrimo.testing import toy_sequences
from xtrimo.tokens import Tokenizer

FATES = (
    "train",
    "valid",
    "empty",
    "unknown",
    "too_short",
    "too_long",
    "duplicate",
    "excluded_exact",
    "excluded_cluster",
)
SEQUENCES = toy_sequences(300, seed=1, min_length=30, max_length=60)
BUNDLED = Path(__file__).parents[2] / "examples" / "proteins.fasta.gz"


def fasta(path: Path, sequences: list[str], prefix: str = "p") -> Path:
    """Write a FASTA file, spelling oddities included, whose records are p0, p1, ..."""
    path.write_text("".join(f">{prefix}{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def build(out: Path, *inputs: Path, **settings) -> Corpus:
    build_corpus(CorpusConfig(inputs=inputs, out=out, **settings))
    return Corpus.open(out)


def texts(split: Split) -> list[str]:
    return [Tokenizer().decode(protein) for protein in split]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_protein_is_there_once_and_in_order(tmp_path: Path) -> None:
    corpus = build(tmp_path / "out", fasta(tmp_path / "a.fasta", SEQUENCES), valid_ratio=0.1)
    train, valid = texts(corpus.train), texts(corpus.valid)
    assert sorted(train + valid) == sorted(SEQUENCES)
    assert 10 < len(valid) < 60
    for split, found in ((corpus.train, train), (corpus.valid, valid)):
        assert found == [sequence for sequence in SEQUENCES if sequence in set(found)]
        assert split.lengths.tolist() == [len(sequence) for sequence in found]
        assert split.clusters.tolist() == list(range(len(found)))
    assert corpus.source_names == ("a.fasta",) and corpus.source_weights == (1.0,) and not corpus.has_clusters
    assert "no clusters" in corpus.meta.split_rule
    assert dict(verify(corpus.path))["verified"].startswith("12 files, ")


def test_an_opened_protein_is_a_read_only_view(tmp_path: Path) -> None:
    corpus = build(tmp_path / "out", fasta(tmp_path / "a.fasta", SEQUENCES))
    protein = corpus.train[3]
    assert protein.dtype == np.uint8 and protein.base is not None and not protein.flags.writeable
    np.testing.assert_array_equal(corpus.train[-1], corpus.train[len(corpus.train) - 1])
    with pytest.raises(IndexError):
        corpus.train[len(corpus.train)]


def test_counts_add_up(tmp_path: Path) -> None:
    good = SEQUENCES[:20]
    odd = [good[0], good[1].lower(), good[2] + "*", "", "MKV", good[3] + "J", good[4][:5] + "-" + good[4], "W" * 90]
    first, second = fasta(tmp_path / "a.fasta", good), fasta(tmp_path / "b.fasta", [*odd, *SEQUENCES[20:40]])
    excluded = fasta(tmp_path / "toxins.fasta", [good[7], SEQUENCES[30], SEQUENCES[250]])
    corpus = build(tmp_path / "out", first, second, max_length=80, exclude=(excluded,))
    a, b = corpus.meta.sources
    assert [a.read, a.excluded_exact, a.train + a.valid] == [20, 1, 19]
    assert [b.read, b.duplicate, b.empty, b.too_short, b.unknown, b.too_long] == [28, 3, 1, 1, 2, 1]
    assert [b.excluded_exact, b.train + b.valid] == [1, 19]
    assert corpus.meta.num_exclusions == 3
    for source in (a, b):
        assert source.read == sum(getattr(source, fate) for fate in FATES)
    for name in ("train", "valid"):
        split, meta = getattr(corpus, name), getattr(corpus.meta, name)
        assert meta.num_proteins == len(split) == sum(getattr(source, name) for source in (a, b))
        assert meta.num_residues == split.lengths.sum() == sum(meta.residue_counts.values())
        assert meta.residue_counts["W"] == "".join(texts(split)).count("W")
        assert meta.length_histogram["0"] + meta.length_histogram["50"] == len(split)
        assert meta.length_histogram["50"] == np.count_nonzero(split.lengths >= 50)
        assert np.bincount(split.sources, minlength=2).tolist() == [getattr(a, name), getattr(b, name)]
    assert sum(corpus.source_weights) == pytest.approx(1)
    assert corpus.source_weights[0] == a.num_train_residues / corpus.meta.train.num_residues


def test_unknown_letters_as_x_or_error(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fasta", [SEQUENCES[0], SEQUENCES[1] + "J", SEQUENCES[1] + "Z"])
    corpus = build(tmp_path / "x", path, unknown="x", valid_ratio=0.0)
    assert texts(corpus.train)[1] == SEQUENCES[1] + "X"
    assert corpus.meta.sources[0].read_as_x == 1
    with pytest.raises(SequenceError, match=r"a.fasta, line 3: p1: position \d+ is 'J'"):
        build(tmp_path / "error", path, unknown="error")


def test_nucleotides_are_refused_unless_forced(tmp_path: Path) -> None:
    path = fasta(tmp_path / "genes.fasta", ["ACGT" * 20, "ACGT" * 21])
    with pytest.raises(SequenceError, match="genes.fasta: 100%.*--force"):
        build(tmp_path / "out", path)
    assert not list((tmp_path / "out").iterdir())  # the cure works in the same place
    assert len(build(tmp_path / "out", path, force=True, valid_ratio=0.0).train) == 2


def test_weights(tmp_path: Path) -> None:
    paths = [fasta(tmp_path / f"{i}.fasta", SEQUENCES[50 * i : 50 * i + 50]) for i in range(2)]
    assert build(tmp_path / "out", *paths, weights=(3.0, 1.0)).source_weights == (0.75, 0.25)
    fasta(paths[1], SEQUENCES[:50])  # nothing new
    with pytest.raises(CorpusError, match=r"1.fasta has weight 1.0 but no protein left"):
        build(tmp_path / "nothing", *paths, weights=(3.0, 1.0))
    assert not list((tmp_path / "nothing").iterdir())
    assert build(tmp_path / "by_size", *paths).source_weights == (1.0, 0.0)


def test_inputs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = fasta(tmp_path / "a" / "p.fasta", SEQUENCES[:50]), fasta(tmp_path / "b" / "p.fasta", SEQUENCES[50:])
    assert build(tmp_path / "out", *paths).source_names == tuple(map(str, paths))


def clustered(tmp_path: Path, sequences: list[str] = SEQUENCES, size: int = 6) -> tuple[Path, Path]:
    """A FASTA file and a cluster file in which neighbours form a cluster."""
    path = fasta(tmp_path / "a.fasta", sequences, "sp|P")  # which mmseqs2 shortens to P0, P1, ...
    lines = [f"P{i // size * size}\tP{i}\n" for i in range(len(sequences))]
    (tmp_path / "cluster.tsv").write_text("".join(np.random.default_rng(0).permutation(lines)))
    return path, tmp_path / "cluster.tsv"


def test_no_cluster_crosses_the_split(tmp_path: Path) -> None:
    path, clusters = clustered(tmp_path)
    corpus = build(tmp_path / "out", path, clusters=clusters, valid_ratio=0.2)
    assert corpus.has_clusters and 0 < len(corpus.valid) < 150
    assert not set(corpus.train.clusters.tolist()) & set(corpus.valid.clusters.tolist())
    expected = {sequence: i // 6 for i, sequence in enumerate(SEQUENCES)}
    pairs = {
        (expected[text], int(cluster))
        for split in (corpus.train, corpus.valid)
        for text, cluster in zip(texts(split), split.clusters, strict=True)
    }
    assert len(pairs) == 50 == len({ours for _, ours in pairs})  # the same partition, numbered without gaps
    assert {ours for _, ours in pairs} == set(range(50))
    assert corpus.meta.train.num_clusters + corpus.meta.valid.num_clusters == 50


def test_exclusion_by_cluster(tmp_path: Path) -> None:
    path, clusters = clustered(tmp_path)
    by_sequence = fasta(tmp_path / "eval.fasta", [SEQUENCES[8]], "another_name")
    by_name = fasta(tmp_path / "toxin.fasta", [SEQUENCES[0][::-1]], "sp|P29")  # sp|P290
    corpus = build(tmp_path / "out", path, clusters=clusters, exclude=(by_sequence, by_name), valid_ratio=0.1)
    assert set(SEQUENCES) - set(texts(corpus.train) + texts(corpus.valid)) == set(SEQUENCES[6:12] + SEQUENCES[288:294])
    assert (corpus.meta.sources[0].excluded_exact, corpus.meta.sources[0].excluded_cluster) == (1, 11)


def test_records_without_a_cluster(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clusters = clustered(tmp_path)
    clusters.write_text("".join(line for line in clusters.open() if not line.endswith("P7\n")))
    assert build(tmp_path / "out", path, clusters=clusters).meta.num_unlisted == 1
    assert "1 records are not in the cluster file" in caplog.text
    clusters.write_text("other\tnames\n")
    with pytest.raises(CorpusError, match="none of the records is named in the cluster file"):
        build(tmp_path / "none", path, clusters=clusters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nonly_one\n", "line 2: got 'only_one'"),
        ("a\t\n", "line 1"),
        ("", "empty"),
        ("a\tx\nb\tx\n", "line 2: this"),
    ],
)
def test_bad_cluster_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.tsv").write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_clusters(tmp_path / "cluster.tsv")


@pytest.mark.parametrize(
    ("name", "accession"),
    [
        ("sp|P69905|HBA_HUMAN", "P69905"),
        ("gi|1|ref|NP_1.1|", "NP_1.1"),
        ("plain", "plain"),
        ("UniRef50_A", "UniRef50_A"),
    ],
)
def test_names_are_found_whole_or_by_accession(name: str, accession: str) -> None:
    assert name_keys(name) == name_keys(name)[:8] + name_keys(accession)[:8]


@given(st.data())
def test_selection_matches_the_rules_read_out_loud(data: st.DataObject) -> None:
    """Against a loop over the records; digests from a range small enough that everything collides."""
    digest = st.tuples(st.integers(0, 9), st.integers(0, 1))
    size = data.draw(st.integers(2, 30))
    digests = data.draw(st.lists(digest, min_size=size, max_size=size))
    excluded = data.draw(st.lists(digest, max_size=3))
    cluster_of = [data.draw(st.integers(0, 5)) for _ in digests]
    rows = np.array([[high << 60, low] for high, low in digests], dtype=np.uint64)
    names = as_keys(b"".join(name_keys(f"r{i}") for i in range(size)))
    bans = np.array([[high << 60, low] for high, low in excluded], dtype=np.uint64).reshape(-1, 2)
    order = np.argsort(names[:, 0])
    clusters = corpus_selection.Clusters(
        names[order, 0], np.array(cluster_of)[order], np.arange(6, dtype=np.uint64) << np.uint64(61)
    )
    banned = {cluster for cluster, digest in zip(cluster_of, digests, strict=True) if digest in excluded}
    expected = []
    for i in range(size):
        if digests[i] in excluded:
            expected.append("excluded_exact")
        elif cluster_of[i] in banned:
            expected.append("excluded_cluster")
        elif digests[i] in digests[:i]:
            expected.append("duplicate")
        else:
            expected.append("valid" if cluster_of[i] < 2 else "train")  # hashes 0 and 1/8 are below 0.2
    assume({"train", "valid"} <= set(expected))
    exclusions = Records(bans, np.zeros_like(bans))
    selection = select(Records(rows, names), exclusions, clusters, 0.2)
    assert [corpus_selection.FATES[fate] for fate in selection.fates] == expected
    assert [cluster == NO_CLUSTER for cluster in selection.clusters] == [
        fate not in ("train", "valid") for fate in expected
    ]


def test_a_held_out_protein_stays_held_out_when_the_corpus_grows(tmp_path: Path) -> None:
    small = build(tmp_path / "small", fasta(tmp_path / "a.fasta", SEQUENCES[:150]), valid_ratio=0.1)
    large = build(tmp_path / "large", fasta(tmp_path / "b.fasta", SEQUENCES[::-1]), valid_ratio=0.1)
    assert set(texts(small.valid)) < set(texts(large.valid))


def test_a_tiny_corpus_still_validates_and_still_trains(tmp_path: Path) -> None:
    corpus = build(tmp_path / "two", fasta(tmp_path / "a.fasta", SEQUENCES[:2]))
    assert (len(corpus.train), len(corpus.valid)) == (1, 1)
    with pytest.raises(CorpusError, match="all 1 clusters .*--valid-ratio 0"):
        build(tmp_path / "one", fasta(tmp_path / "b.fasta", SEQUENCES[:1]))
    corpus = build(tmp_path / "zero", tmp_path / "b.fasta", valid_ratio=0.0)
    assert (len(corpus.train), len(corpus.valid)) == (1, 0)
    assert dict(verify(corpus.path))
    with pytest.raises(CorpusError, match="no record is left"):
        build(tmp_path / "none", fasta(tmp_path / "c.fasta", ["MKV"]))


@pytest.mark.parametrize("shard_residues", [1, 61, 200, 1 << 30])
@pytest.mark.parametrize("part_residues", [1, 300])
def test_shards_and_parts_do_not_change_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_residues: int, part_residues: int
) -> None:
    monkeypatch.setattr(corpus_staging, "PART_RESIDUES", part_residues)
    path = fasta(tmp_path / "a.fasta", SEQUENCES[:20])
    corpus = build(tmp_path / "out", path, shard_residues=shard_residues, valid_ratio=0.1)
    assert [text for text in SEQUENCES[:20] if text in set(texts(corpus.train))] == texts(corpus.train)
    assert all(len(shard) <= max(shard_residues, 60) for shard in corpus.train.shards)
    assert sorted(texts(corpus.train) + texts(corpus.valid)) == sorted(SEQUENCES[:20])


def test_a_finished_corpus_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = fasta(tmp_path / "a.fasta", SEQUENCES)
    before = content(build(tmp_path / "out", path).path)
    build(tmp_path / "out", path)
    assert "complete already" in caplog.text and content(tmp_path / "out") == before
    with pytest.raises(CorpusError, match="other settings: min_length was 30, now 31"):
        build(tmp_path / "out", path, min_length=31)
    fasta(path, SEQUENCES[:-1])
    with pytest.raises(CorpusError, match="other settings: inputs was"):
        build(tmp_path / "out", path)
    assert content(tmp_path / "out") == before


def test_output_directory_must_be_free(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.fasta", SEQUENCES)
    with pytest.raises(CorpusError, match="holds a.fasta, which is no corpus"):
        build(tmp_path, path)
    with pytest.raises(CorpusError, match="cannot be made a directory"):
        build(path, path)
    assert path.exists() and len(list(tmp_path.iterdir())) == 1
    config = CorpusConfig(inputs=(path,), out=tmp_path / "out")
    with corpus_building._locked(config.out), pytest.raises(CorpusError, match="another `xtrimo corpus` is writing"):
        build_corpus(config)


@pytest.mark.parametrize(
    "settings",
    [dict(weights=(1.0, 2.0)), dict(weights=(-1.0,)), dict(weights=(0.0,)), dict(min_length=0), dict(valid_ratio=0.6),
     dict(min_length=50, max_length=40), dict(shard_residues=0), dict(inputs=())],
)  # fmt: skip
def test_impossible_settings(settings: dict) -> None:
    with pytest.raises(ConfigError):
        CorpusConfig(**(dict(inputs=(Path("a"),), out=Path("out")) | settings))


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing.fasta", tmp_path):
        with pytest.raises(FastaError, match="cannot be read"):
            build(tmp_path / "out", bad)
    path = fasta(tmp_path / "a.fasta", SEQUENCES)
    with pytest.raises(FastaError, match="missing.tsv: cannot be read"):
        build(tmp_path / "out", path, clusters=tmp_path / "missing.tsv")


def test_content_does_not_depend_on_hash_randomisation(tmp_path: Path) -> None:
    path, clusters = clustered(tmp_path)
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "xtrimo", "corpus", path, "--out", tmp_path / seed, "--clusters", clusters]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_the_bundled_proteins(tmp_path: Path) -> None:
    """Through the command; all of them are usable."""
    command = [sys.executable, "-m", "xtrimo", "corpus", BUNDLED, "--out", tmp_path / "out", "--valid-ratio", "0.02"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "10,000 read, 10,000 kept; left out: none" in done.stdout
    assert 1e6 < BUNDLED.stat().st_size < 2e6
    lengths = Corpus.open(tmp_path / "out").train.lengths
    assert lengths.min() >= 30 and lengths.max() <= 1022
