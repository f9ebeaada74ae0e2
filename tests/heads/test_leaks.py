"""Copies and near copies, on proteins mutated to a known identity."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from heads.leaks import Leaks, Overlap, find_leaks
from heads.rows import Dataset, Row
from heads.tasks import Columns, Level, Task, custom_task
from xtrimo.errors import XtrimoError
from xtrimo.fasta import Record, write_fasta
from xtrimo.tokens import AMINO_ACIDS

SEQ = custom_task("mine", level="sequence", target="classes")
LETTERS = np.array(list(AMINO_ACIDS))
LENGTH = 250


def proteins(num: int, seed: int, length: int = LENGTH) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(seed).choice(LETTERS, (num, length))]


def mutated(sequence: str, identity: float, seed: int = 0) -> str:
    """With this share of the residues kept, at random places."""
    rng, letters = np.random.default_rng(seed), list(sequence)
    for i in rng.choice(len(letters), round(len(letters) * (1 - identity)), replace=False):
        letters[i] = str(rng.choice(LETTERS[letters[i] != LETTERS]))
    return "".join(letters)


def dataset(train: list[str], valid: list[str], test: list[str], task: Task = SEQ, second: str = "") -> Dataset:
    splits = {
        split: tuple(Row(sequence=s, second=second, label=0, name=f"{split}{i}") for i, s in enumerate(sequences))
        for split, sequences in (("train", train), ("valid", valid), ("test", test))
    }
    return Dataset(task=task, **splits, classes=("a", "b"))


METHODS = ["5-mer sketch", *(["mmseqs2"] if shutil.which("mmseqs") else [])]


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_near_copies_are_counted_apart(method: str) -> None:
    a = proteins(10, 1)
    test = [a[0], a[0], mutated(a[1], 0.9), mutated(a[2], 0.6), mutated(a[3], 0.3), *proteins(3, 2)]
    leaks = find_leaks(dataset(a[:5], [a[5], a[4]], test), method=method)
    of_test, of_valid = leaks.overlaps
    assert (of_test.num_proteins, of_test.num_copies, of_test.num_near) == (7, 1, 2)
    assert (of_valid.num_proteins, of_valid.num_copies, of_valid.num_near) == (2, 1, 0)
    assert {(near.name, near.other) for near in of_test.examples} == {("test2", "train1"), ("test3", "train2")}
    assert of_test.examples[1].identity == pytest.approx(0.6, abs=0.07)
    assert str(leaks) == (
        f"leaks ({method}): 1 copies and 2 near copies of 7 test in train or valid;"
        " 1 copies and 0 near copies of 2 valid in train"
    )
    assert leaks.to_dict()["overlaps"][0]["num_near"] == 2


def found(identity: float, *, num: int = 40, length: int = LENGTH) -> int:
    a = proteins(num, 3, length)
    test = [mutated(sequence, identity, seed) for seed, sequence in enumerate(a)]
    return find_leaks(dataset(a, [], test), method="5-mer sketch").overlaps[0].num_near


def test_the_sketch_finds_what_it_says() -> None:
    assert found(0.9) == found(0.7) == 40
    assert found(0.6) >= 38
    assert 30 <= found(0.5) <= 40
    assert found(0.42) == found(0.2) == 0, "an alignment says no"


def test_half_of_either_protein() -> None:
    a, b, noise = proteins(1, 4)[0], proteins(1, 5)[0], proteins(2, 6, 600)
    inside = noise[0][:300] + mutated(a, 0.8) + noise[0][300:]  # covers all of the shorter one
    third = noise[1] + mutated(b, 0.8)[:100]  # 100 of 250 and of 700
    leaks = find_leaks(dataset([inside, third], [], [a, b]), method="5-mer sketch")
    assert [near.name for near in leaks.overlaps[0].examples] == ["test0"] and leaks.overlaps[0].num_near == 1


def test_insertions_do_not_hide_a_copy() -> None:
    a = proteins(1, 7)[0]
    shifted = mutated(a, 0.7)
    shifted = shifted[:80] + "GGSGG" + shifted[80:160] + shifted[166:]
    assert find_leaks(dataset([shifted], [], [a]), method="5-mer sketch").overlaps[0].num_near == 1


def test_low_complexity_is_no_copy() -> None:
    tails = [protein + "Q" * 60 for protein in proteins(2, 8)]
    assert find_leaks(dataset(tails[:1], [], tails[1:]), method="5-mer sketch").overlaps[0].num_near == 0


def test_variants_of_one_protein_are_quick() -> None:
    a = proteins(1, 9)[0]
    variants = [mutated(a, 0.99, seed) for seed in range(600)]
    leaks = find_leaks(dataset(variants[:300], [], variants[300:]), method="5-mer sketch")
    assert leaks.overlaps[0].num_near + leaks.overlaps[0].num_copies == leaks.overlaps[0].num_proteins


def pairs(train: list[tuple[str, str]], test: list[tuple[str, str]], level: Level = "two_sequences") -> Dataset:
    made = custom_task("pairs", level=level, target="classes", columns=Columns(second="b"))
    rows = [
        tuple(Row(sequence=one, second=two, label=0, name=f"{split}{i}") for i, (one, two) in enumerate(both))
        for split, both in (("train", train), ("test", test))
    ]
    return Dataset(task=made, train=rows[0], valid=(), test=rows[1], classes=("a", "b"))


def counts(leaks: Leaks) -> list[tuple[str, int, int, int]]:
    return [(own.of, own.num_proteins, own.num_copies, own.num_near) for own in leaks.overlaps]


def test_of_two_inputs_the_pair_and_either_side_are_judged() -> None:
    a, b, new = proteins(4, 10), proteins(4, 11), proteins(2, 12)
    train = [(a[0], b[0]), (a[1], b[1]), (a[2], b[2])]
    test = [
        (a[0], b[0]),  # a copy of the pair
        (a[0], b[0]),  # again
        (a[1], b[2]),  # both known, as another pair
        (mutated(a[1], 0.8), b[0]),  # a near copy and a copy
        (mutated(a[2], 0.8), new[0]),  # one known
        (new[1], mutated(b[1], 0.8)),  # the other known
    ]
    assert counts(find_leaks(pairs(train, test), method="5-mer sketch")) == [
        ("test pairs", 5, 1, 2), ("test first proteins", 5, 2, 2), ("test second proteins", 4, 2, 1)
    ]  # fmt: skip


def test_peptides_on_molecules_that_repeat_by_design() -> None:
    molecules = proteins(5, 13, 34)
    peptides = sorted(set(proteins(60, 14, 9)))
    train = [(peptide, molecules[i % 5]) for i, peptide in enumerate(peptides[:50])]
    close = [peptides[0][:4] + "W" + peptides[0][5:], peptides[1] + "A", peptides[2][1:]]
    test = [(peptide, molecules[i % 5]) for i, peptide in enumerate((*peptides[50:], *close))]
    leaks = find_leaks(pairs(train, test))
    assert counts(leaks) == [
        ("test pairs", 13, 0, 3), ("test first proteins", 13, 0, 3), ("test second proteins", 5, 5, 0)
    ]  # fmt: skip
    assert leaks.method.startswith("one edit, ")
    assert str(leaks).endswith(
        "): 0 copies and 3 new pairs of known proteins of 13 test pairs in train or valid;"
        " 0 copies and 3 near copies (one edit) of 13 test first proteins in train or valid;"
        " 5 copies and 0 near copies of 5 test second proteins in train or valid"
    )


def test_a_molecule_makes_another_pair_of_the_same_protein() -> None:
    a = proteins(3, 15)
    leaks = find_leaks(
        pairs([(a[0], "CCO"), (a[1], "CCN")], [(a[0], "CCO"), (a[1], "CCO"), (a[2], "CCN")], "molecule"),
        method="5-mer sketch",
    )
    assert counts(leaks) == [("test pairs", 3, 1, 1), ("test proteins", 3, 2, 0)]


def test_variants_are_told_by_their_mutations(tmp_path: Path) -> None:
    """At once, and without a search that would find a near copy for each."""
    wild = proteins(1, 16)[0]

    def variant(*places: int) -> str:
        letters = list(wild)
        for place in places:
            letters[place] = "A" if wild[place] != "A" else "C"
        return "".join(letters)

    train = [variant(i) for i in range(20)]
    test = [variant(0), variant(0, 1), variant(40), variant(5, 50, 60), wild]  # 0, 1, 2, 2, 1 mutations from train
    leaks = find_leaks(dataset(train, [], test))
    (overlap,) = leaks.overlaps
    assert (leaks.method, overlap.within_mutations) == ("counted mutations", (1, 3, 5))
    assert (overlap.num_proteins, overlap.num_copies, overlap.num_near) == (5, 1, 4)
    assert str(overlap) == (
        "variants of one protein: 1 copies of 5 test in train or valid; mutations from the nearest there:"
        " 60.0 % within 1, all within 2"
    )
    assert Overlap(**json.loads(json.dumps(leaks.to_dict()))["overlaps"][0]).within_mutations == [1, 3, 5]
    near = [mutated(wild, 0.8), variant(40), *proteins(3, 17)]
    write_fasta(tmp_path / "corpus.fasta", (Record(f"c{i}", sequence) for i, sequence in enumerate(near)))
    in_corpus = find_leaks(dataset(train, [], test), corpus=tmp_path / "corpus.fasta").overlaps[1]
    assert (in_corpus.num_proteins, in_corpus.num_copies, in_corpus.num_near) == (5, 1, 4)


@pytest.mark.parametrize("method", METHODS)
def test_a_corpus(method: str, tmp_path: Path) -> None:
    a = proteins(6, 11)
    records = [a[0], mutated(a[1], 0.7), mutated(a[1], 0.8, 1), mutated(a[2], 0.2), *proteins(20, 12)]
    write_fasta(tmp_path / "corpus.fasta.gz", (Record(f"c{i}", sequence) for i, sequence in enumerate(records)))
    leaks = find_leaks(dataset([], [], a), corpus=tmp_path / "corpus.fasta.gz", method=method)
    assert isinstance(leaks, Leaks) and len(leaks.overlaps) == 1
    assert str(leaks.overlaps[0]) == "1 copies and 1 near copies of 6 test in corpus.fasta.gz"


def test_short_proteins() -> None:
    leaks = find_leaks(dataset(["GILGFVFTL", "MK"], [], ["GILGFVFTL", "GILGFVFTV", "MKV", "M"]), method="5-mer sketch")
    assert (leaks.overlaps[0].num_copies, leaks.overlaps[0].num_near) == (1, 1)


def test_mmseqs_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in answers with hits below and above the coverage, and shows what it was asked."""
    (tmp_path / "mmseqs").write_text(
        f"#!{sys.executable}\nimport sys\n"
        "open(sys.argv[4], 'w').write('0\\t1\\t0.8\\t0.2\\t0.3\\n1\\t0\\t0.6\\t0.1\\t0.9\\n')\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv) + open(sys.argv[2]).read())\n"
    )
    (tmp_path / "mmseqs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = proteins(4, 18, 40)
    leaks = find_leaks(dataset(made[:2], [], made[2:]))
    assert leaks.method == "mmseqs2" and leaks.overlaps[0].num_near == 1
    assert leaks.overlaps[0].examples[0] == ("test1", "train0", 0.6)
    asked = (tmp_path / "asked").read_text()
    assert "easy-search" in asked and "--min-seq-id 0.5" in asked and f">0\n{made[2]}\n>1\n{made[3]}\n" in asked
    (tmp_path / "mmseqs").write_text("#!/bin/sh\necho out of disk >&2\nexit 3\n")
    with pytest.raises(XtrimoError, match="mmseqs failed with status 3: out of disk"):
        find_leaks(dataset(made[:1], [], made[1:2]))
    (tmp_path / "mmseqs").unlink()
    with pytest.raises(XtrimoError, match="mmseqs2 is not installed"):
        find_leaks(dataset(["MKV"], [], ["GGS"]), method="mmseqs2")
    assert find_leaks(dataset(made[:1], [], made[1:2])).method == "5-mer sketch"


def test_results_are_json(tmp_path: Path) -> None:
    assert json.loads(json.dumps(find_leaks(dataset(["MKV"], [], ["MKV"]), method="5-mer sketch").to_dict()))
