"""Each format to the same rows; what is damaged or dangerous is refused."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from heads.readers_lmdb import loads
from heads.rows import NO_LABEL, Dataset, read
from heads.tasks import custom_task
from xtrimo.errors import DataError
from xtrimo.testing import toy_sequences

NUM = custom_task("mine", level="sequence", target="regression")
SEQ = custom_task("mine", level="sequence", target="classes")
RES = replace(custom_task("mine", level="residue", target="classes"), classes=("H", "E", "C"))
PAIR = custom_task("mine", level="pair", target="classes")
SPLITS = ("train", "valid", "test")
ROWS = [(sequence, round(i / 7, 3), SPLITS[i % 3]) for i, sequence in enumerate(toy_sequences(12))]


def check(dataset: Dataset) -> None:
    """The dataset holds ROWS."""
    held = [(row.sequence, row.label, split) for split, rows in dataset.splits.items() for row in rows]
    assert held == sorted(ROWS, key=lambda row: SPLITS.index(row[2]))


def table(rows: list[tuple[str, float, str]]) -> pyarrow.Table:
    sequences, labels, splits = zip(*rows, strict=True)
    return pyarrow.table({"seq": sequences, "label": labels, "split": splits})


def csv_file(path: Path, rows: list[tuple[str, float, str]], *, with_split: bool = True) -> Path:
    path.parent.mkdir(exist_ok=True)
    header = "seq,label" + ",split" * with_split
    path.write_text("\n".join([header, *(",".join(map(str, row[: 2 + with_split])) for row in rows)]) + "\n")
    return path


def of(split: str) -> list[tuple[str, float, str]]:
    return [row for row in ROWS if row[2] == split]


def lmdb_file(path: Path, values: list[Any], protocol: int = 4) -> Path:
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for i, value in enumerate(values):
            data = value if isinstance(value, bytes) else pickle.dumps(value, protocol)
            transaction.put(str(i).encode(), data)
        transaction.put(b"num_examples", pickle.dumps(len(values)))
    return path


def saved_dataset(folder: Path) -> Path:
    """As `datasets.DatasetDict.save_to_disk` lays it out: a stream in two files for each split."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
    for split in SPLITS:
        (folder / split).mkdir()
        rows = table(of(split)).drop_columns(["split"])
        names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
        for name, part in zip(names, (rows.slice(0, 1), rows.slice(1)), strict=True):
            with (
                pyarrow.OSFile(str(folder / split / name), "wb") as sink,
                pyarrow.ipc.new_stream(sink, part.schema) as w,
            ):
                w.write_table(part)
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def parquet_file(path: Path) -> Path:
    parquet.write_table(table(ROWS), path)
    return path


def hub_folder(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for split in SPLITS:
        rows = table(of(split)).drop_columns(["split"])
        parquet.write_table(rows, folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("a card")
    return folder


def arrow_file(path: Path) -> Path:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table(ROWS).schema) as writer:
        writer.write_table(table(ROWS), max_chunksize=5)
    return path


def fasta_file(path: Path) -> Path:
    path.write_text("".join(f">p{i} label={y} split={split}\n{s}\n" for i, (s, y, split) in enumerate(ROWS)))
    return path


def flip_fasta(path: Path) -> Path:
    """FLIP's header: valid rows are of the train set."""
    lines = []
    for i, (sequence, label, split) in enumerate(ROWS):
        shown = "train" if split == "valid" else split
        lines.append(f">Sequence{i} TARGET={label} SET={shown} VALIDATION={split == 'valid'}\n{sequence}\n")
    path.write_text("".join(lines))
    return path


def flip_csv(path: Path) -> Path:
    rows = (
        f"{s},{y},{'train' if split == 'valid' else split},{'True' if split == 'valid' else ''}" for s, y, split in ROWS
    )
    path.write_text("\n".join(["sequence,target,set,validation", *rows, "MKV,1.0,,"]) + "\n")
    return path


def csv_folder(folder: Path) -> Path:
    for split in SPLITS:
        csv_file(folder / f"{split}.csv", of(split), with_split=False)
    return folder


def tape(folder: Path) -> Path:
    folder.mkdir()
    for split in SPLITS:
        values = [
            {"primary": s, "log_fluorescence": np.array([y]), "id": str(i)} for i, (s, y, _) in enumerate(of(split))
        ]
        lmdb_file(folder / f"fluorescence_{split}.lmdb", values)
    return folder


FORMATS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda folder: csv_file(folder / "rows.csv", ROWS),
    "csv folder": lambda folder: csv_folder(folder / "rows"),
    "parquet": lambda folder: parquet_file(folder / "rows.parquet"),
    "parquet folder": lambda folder: hub_folder(folder / "hub"),
    "arrow": lambda folder: arrow_file(folder / "rows.arrow"),
    "datasets": lambda folder: saved_dataset(folder / "saved"),
    "fasta": lambda folder: fasta_file(folder / "rows.fasta"),
    "FLIP fasta": lambda folder: flip_fasta(folder / "rows.fasta"),
    "FLIP csv": lambda folder: flip_csv(folder / "rows.csv"),
    "TAPE": lambda folder: tape(folder / "fluorescence"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    dataset = read(FORMATS[name](tmp_path), NUM)
    check(dataset)
    assert dataset.left_out == ({"without a split": 1} if name == "FLIP csv" else {})


def test_class_words_of_datasets(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["soluble", "not"], "_type": "ClassLabel"}}}}
    rows = pyarrow.table({"seq": ["MKV", "MKL", "GG"], "label": [1, 0, 1], "split": ["train", "train", "valid"]})
    parquet.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    dataset = read(tmp_path / "a.parquet", SEQ)
    assert dataset.classes == ("not", "soluble") and [row.label for row in dataset.train] == [0, 1]


def test_residue_labels_from_lists(tmp_path: Path) -> None:
    rows = pyarrow.table({"seq": ["MKV", "GG"], "label": [[0, 2, None], [-100, 1]], "split": ["train", "valid"]})
    parquet.write_table(rows, tmp_path / "a.parquet")
    dataset = read(tmp_path / "a.parquet", RES)
    np.testing.assert_array_equal(dataset.train[0].label, [0, 2, NO_LABEL])
    np.testing.assert_array_equal(dataset.valid[0].label, [NO_LABEL, 1])


def test_flip_residue_labels(tmp_path: Path) -> None:
    (tmp_path / "sequences.fasta").write_text(">a\nMKVLA\n>b\nGGS\n>c\nGGT\n")
    labels = (
        ">a SET=train VALIDATION=False\nHHECC\n>b SET=train VALIDATION=True\nCCC\n>c SET=test VALIDATION=False\nEHE\n"
    )
    (tmp_path / "sampled.fasta").write_text(labels)
    (tmp_path / "mask.fasta").write_text(">a\n11011\n>b\n111\n")
    dataset = read(tmp_path, RES)
    np.testing.assert_array_equal(dataset.train[0].label, [0, 0, NO_LABEL, 2, 2])
    assert [(row.name, row.sequence) for row in (*dataset.valid, *dataset.test)] == [("b", "GGS"), ("c", "GGT")]
    (tmp_path / "mask.fasta").write_text(">a\n1101\n")
    with pytest.raises(DataError, match="5 labels, but mask.fasta has 4"):
        read(tmp_path, RES)
    (tmp_path / "sequences.fasta").write_text(">a\nMKVLA\n")
    (tmp_path / "mask.fasta").unlink()
    with pytest.raises(DataError, match="sampled.fasta: b: sequences.fasta has no record"):
        read(tmp_path, RES)


def test_tape_residues_and_contacts(tmp_path: Path) -> None:
    seen = np.array([True, True, False])
    path = lmdb_file(tmp_path / "ss_train.lmdb", [{"primary": "MKV", "ss3": np.array([0, 2, 1]), "valid_mask": seen}])
    np.testing.assert_array_equal(read(path, RES, only="test").test[0].label, [0, 2, NO_LABEL])
    places = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32) * 8
    seen = np.arange(30) != 4
    value = {"primary": "A" * 30, "tertiary": places, "valid_mask": seen}
    label = read(lmdb_file(tmp_path / "net.lmdb", [value]), PAIR, only="test").test[0].label
    for i in range(30):
        for j in range(30):
            near = float(sum((places[i].astype(float) - places[j]) ** 2)) < 64
            assert label[i, j] == (NO_LABEL if 4 in (i, j) else near)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_arrays_are_read(protocol: int) -> None:
    values = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.float32(2.5),
        "c": ["x", 1, None, b"\xff"],
        "d": np.array([True]),
    }
    held = loads(pickle.dumps(values, protocol), "here")
    np.testing.assert_array_equal(held["a"], values["a"])
    assert (held["b"], held["c"]) == (values["b"], values["c"])
    # as numpy 1 wrote it
    old = pickle.dumps(values, protocol).replace(b"numpy._core", b"numpy.core") if protocol < 4 else None
    if old:
        np.testing.assert_array_equal(loads(old, "here")["a"], values["a"])


class Bomb:
    """What an attacker pickles: a call."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call = (call, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused(protocol: int, tmp_path: Path) -> None:
    import os

    harm = tmp_path / "harm"
    for bomb in (Bomb(os.system, f"touch {harm}"), Bomb(eval, f"open({str(harm)!r}, 'w')"), Bomb(np.save, harm, [1])):
        path = lmdb_file(tmp_path / f"train{protocol}.lmdb", [{"primary": bomb, "label": 1.0}], protocol)
        with pytest.raises(DataError, match=r"example 0: refused to unpickle it \(it asks for"):
            read(path, NUM)
    assert not harm.exists()


def test_damaged_lmdb(tmp_path: Path) -> None:
    path = lmdb_file(tmp_path / "a.lmdb", [b"not a pickle"])
    with pytest.raises(DataError, match="example 0: refused"):
        read(path, NUM)
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"0")
    with pytest.raises(DataError, match="example 0 is missing, of 1"):
        read(path, NUM)
    path = lmdb_file(tmp_path / "b.lmdb", [[1, 2]])
    with pytest.raises(DataError, match="example 0 is a list; expected a dict"):
        read(path, NUM)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_damaged_tables(name: str, tmp_path: Path) -> None:
    whole = FORMATS[name.rpartition(".")[2]](tmp_path).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as"):
        read(tmp_path / name, NUM)


def test_files_that_name_no_split(tmp_path: Path) -> None:
    csv_file(tmp_path / "a.csv", ROWS)
    check(read(tmp_path, NUM))  # one file alone
    csv_file(tmp_path / "b.csv", ROWS)
    with pytest.raises(DataError, match="holds 2 files that name no split"):
        read(tmp_path, NUM)
