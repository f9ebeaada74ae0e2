"""Cells to rows: splits, numbers of classes, what is left out and what is an error."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heads.rows import NO_LABEL, Dataset, data_hash, read
from heads.tasks import EXTRAS, TASKS, Columns, Task, custom_task, task
from xtrimo.errors import DataError
from xtrimo.testing import toy_sequences

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
COUNTS = {
    "contact_map": (2600, 200, 200), "fold_prediction": (4497, 311, 733), "secondary_structure": (9712, 1080, 364),
    "antibiotic_resistance": (3398, 437, 438), "fluorescence": (21006, 5192, 25517), "fitness_gb1": (2691, 299, 5743),
    "localization": (11309, 1630, 1630), "kcat": (4454, 584, 596), "metal_ion_binding": (14134, 2040, 2040),
    "peptide_hla": (47975, 6003, 6022), "tcr_pmhc": (34398, 9834, 9720), "solubility": (7400, 1892, 1818),
    "stability": (7996, 908, 3983), "temperature_stability": (2016, 228, 562), "optimal_temperature": (2336, 265, 292),
    "optimal_ph": (7011, 793, 1970), "cloning_clf": (10195, 1158, 1787), "material_production": (2574, 328, 328),
    "fold_prediction_fold_level": (4505, 313, 268), "fold_prediction_family_level": (4489, 314, 469),
    "cath_superfamily": (12003, 1764, 1776), "localization_psortb": (5040, 645, 645), "kcat_km": (5628, 720, 720),
    "metal_ion_residues": (953, 106, 297), "peptide_hla_ic50": (23409, 2950, 2937),
    "melting_temperature": (5603, 636, 1551),
}  # fmt: skip
CLASSES = {"fold_prediction": 745, "antibiotic_resistance": 21, "localization": 10, "cath_superfamily": 371}
SEQ = custom_task("mine", level="sequence", target="classes")
NUM = custom_task("mine", level="sequence", target="regression")
RES = replace(custom_task("mine", level="residue", target="classes"), classes=("H", "E", "C"))


def write(folder: Path, *lines: str, name: str = "data.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.mark.skipif(not (DATA / "tasks").is_dir(), reason="the data pack is not here")
def test_real_sets_read_whole() -> None:
    """As many rows as their description counts. In a process of its own: checking types takes longer than reading."""
    code = """
import json, sys
from heads import rows, tasks
for name in (*tasks.TASKS, *tasks.EXTRAS):
    task = tasks.task(name)
    held = rows.read(f"{sys.argv[1]}/tasks/{name}.csv.gz", task)
    sizes = [len(split) for split in held.splits.values()]
    longest = max(len(row.sequence) for row in held.train)
    print(json.dumps([name, sizes, len(held.left_out), len(held.classes), longest <= task.max_length]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(DATA)], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name: tuple(sizes) for name, sizes, *_ in found} == COUNTS
    assert {name: num for name, _, _, num, _ in found if name in CLASSES} == CLASSES
    assert all(num_left_out == 0 and fits for _, _, num_left_out, _, fits in found)


def generated(name: str) -> list[str]:
    """Sixty-four rows with the columns of a task's set."""
    row = task(name)
    rng = np.random.default_rng(0)
    header = ",".join(filter(None, ("seq", row.columns.second, "label", "split")))
    lines = [header]
    for i, sequence in enumerate(toy_sequences(64)):
        second = {"two_sequences": "ACDEFGHIK", "molecule": "ATP"}.get(row.level)
        words = row.classes or ("a.1", "b.2")
        label = f"{rng.normal():.4f}" if row.target == "regression" else words[i % len(words)]
        if row.level == "residue":
            label = "".join(rng.choice((*words, "-"), len(sequence)))
        split = ("train", "train", "valid", "test")[i % 4]
        lines.append(",".join(filter(None, (sequence, second, label, split))))
    return lines


@pytest.mark.parametrize("name", [name for name in (*TASKS, *EXTRAS) if name != "contact_map"])
def test_generated_rows_of_the_same_columns(name: str, tmp_path: Path) -> None:
    lines = generated(name)
    dataset = read(write(tmp_path, *lines), task(name))
    assert tuple(map(len, dataset.splits.values())) == (32, 16, 16)
    assert dataset.train[0].sequence == lines[1].split(",")[0][: task(name).max_length]
    if task(name).target == "regression":
        assert dataset.train[0].label == float(lines[1].split(",")[-2])
    if task(name).columns.second:
        assert dataset.train[0].second in ("ACDEFGHIK", "ATP")


def test_labels_become_numbers(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "seq,label,split", "MKV,b,train", "MKL,a,train", "GGA,c,valid", "GGC,b,test"), SEQ)
    assert dataset.classes == ("a", "b", "c")
    assert [row.label for row in (*dataset.train, *dataset.valid, *dataset.test)] == [1, 0, 2, 1]


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    lines = (f"MKV{'A' * i},{i},train" for i in range(1, 12))
    assert read(write(tmp_path, "seq,label,split", *lines, "MG,1,valid"), SEQ).classes == tuple(map(str, range(1, 12)))


def test_residue_labels(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "seq,label,split", "MKVLA,HE-CH,train", "GG,CC,valid"), RES)
    np.testing.assert_array_equal(dataset.train[0].label, [0, 1, NO_LABEL, 2, 0])
    cut = read(tmp_path / "data.csv", replace(RES, max_length=3))
    np.testing.assert_array_equal(cut.train[0].label, [0, 1, NO_LABEL])
    assert (cut.train[0].sequence, cut.num_cut) == ("MKV", 1) and "1 cut to 3 residues" in str(cut)


def test_what_cannot_be_used_is_counted(tmp_path: Path) -> None:
    lines = ("MKV,1,train", ",2,train", "MK?V,3,train", "MKL,,train", "MKA,nan,train", "mkw*,4,train", "GG,5,valid")
    dataset = read(write(tmp_path, "seq,label,split", *lines), NUM)
    assert dataset.left_out == {
        "without a sequence": 1, "with letters in the sequence that are no residues": 1, "without a label": 2,
    }  # fmt: skip
    assert [row.sequence for row in dataset.train] == ["MKV", "MKW"]
    assert str(dataset).endswith(
        "left out 1 without a sequence, 1 with letters in the sequence that are no residues, 2 without a label"
    )


def test_a_class_may_be_called_na(tmp_path: Path) -> None:
    assert read(write(tmp_path, "seq,label,split", "MKV,NA,train", "MKL,K,valid"), SEQ).classes == ("K", "NA")


def test_the_second_input_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "seq,seq_b,label,split", "MKV,,1,train", "MKV,GG7,1,train", "MKV,GG,1,train", "MK,GG,0,test")
    dataset = read(path, TASKS["peptide_hla"])
    assert dataset.left_out == {
        "without a second sequence": 1, "with letters in the second sequence that are no residues": 1,
    }  # fmt: skip
    path = write(tmp_path, "seq,substrate,label,split", "MKV,,1,train", "MKV,H2O,1,train", "MK,ATP,0,test")
    assert read(path, TASKS["kcat"]).left_out == {"without a molecule": 1}


@pytest.mark.parametrize(
    ("row", "lines", "message"),
    [
        (
            TASKS["solubility"],
            ("MKV,1,train", "MKV,maybe,train"),
            r"data.csv, line 3: label 'maybe' is not one of 0, 1",
        ),
        (TASKS["solubility"], ("MKV,2,train",), r"line 2: label '2' is not one of 0, 1"),
        (NUM, ("MKV,fast,train",), r"line 2: label 'fast' is not a number"),
        (NUM, ("MKV,inf,train",), r"line 2: label 'inf' is not a number"),
        (RES, ("MKV,HE,train",), r"line 2: 2 labels 'HE'... for 3 residues"),
        (RES, ("MKV,HEX,train",), r"line 2: label 'X' is not one of H, E, C"),
        (NUM, ("MKV,1,trian",), r"line 2: split 'trian' is not one of train"),
        (NUM, ("MKV,1",), r"line 2: 2 cells where the header has 3"),
        (SEQ, ("MKV,a,train", "MKL,a,test"), r"all labels are a; there is nothing to learn"),
        (NUM, ("7,1,train",), r"no row can be used .*no residues': 1"),
        (
            replace(NUM, columns=Columns(label="y")),
            ("MKV,1,train",),
            r"no label 'y' among seq, label, split; name the column with --label$",
        ),
        (
            replace(NUM, columns=Columns(split="s")),
            ("MKV,1,train",),
            r"no split 's' among seq, label, split; a column must be called 's'$",
        ),
        (TASKS["kcat"], ("MKV,1,train",), r"no second 'substrate' among .*; a column must be called 'substrate'$"),
    ],
)
def test_wrong_labels_name_file_row_and_value(row, lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "seq,label,split", *lines), row)


def test_numbers_stand_for_fixed_words(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "seq,label,split", "MKV,021,train", "GG,HC,test"), RES)
    np.testing.assert_array_equal(dataset.train[0].label, [0, 2, 1])
    path = write(tmp_path, "seq,label,split", "MK,1.0,train", "MV,0.0,valid")
    assert read(path, TASKS["solubility"]).train[0].label == 1


def splits(dataset: Dataset) -> dict[str, set[str]]:
    return {split: {row.sequence for row in rows} for split, rows in dataset.splits.items()}


def test_without_splits_copies_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{sequence},{i}" for i, sequence in enumerate(toy_sequences(300))]
    dataset = read(write(tmp_path, "seq,label", *lines, *lines), NUM)
    held = splits(dataset)
    assert not (held["train"] & held["test"] or held["train"] & held["valid"] or held["valid"] & held["test"])
    assert dataset.split_rule == "random 80/10/10 by sequence, seed 0" and "gives no splits" in caplog.text
    assert 0.72 < len(dataset.train) / 600 < 0.88 and min(len(dataset.valid), len(dataset.test)) > 30
    again = read(write(tmp_path, "seq,label", *reversed(lines)), NUM)
    assert splits(again) == held, "the split is one of the sequence, not of its place"
    assert splits(read(tmp_path / "data.csv", NUM, seed=1)) != held


def test_a_missing_valid_split_is_carved(tmp_path: Path) -> None:
    lines = [f"{sequence},{i},{'test' if i % 5 == 0 else 'train'}" for i, sequence in enumerate(toy_sequences(200))]
    dataset = read(write(tmp_path, "seq,label,split", *lines), NUM)
    assert len(dataset.test) == 40 and 5 < len(dataset.valid) < 30
    assert dataset.split_rule == "as given, valid a random tenth of train, seed 0"


def test_only(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, "seq,label,split", "MKV,1,train", "MKL,2,nonsense"), NUM, only="test")
    assert len(dataset.test) == 2 and not dataset.train and dataset.split_rule == "all test"


def test_the_hash_is_of_what_is_learned_from(tmp_path: Path) -> None:
    def hash_with(row: str, task_: Task = NUM, label: str = "2") -> str:
        others = (f"MKL,{label},train,b", f"MKG,{label},valid,c")
        return data_hash(read(write(tmp_path, "seq,label,split,name", row, *others), task_))

    first = hash_with("MKV,1,train,a")
    assert hash_with("MKV,1,train,other") == first
    assert len({first, *map(hash_with, ("MKA,1,train,a", "MKV,1.5,train,a", "MKV,1,valid,a"))}) == 4
    assert hash_with("MKV,HEC,train,a", RES, "HHH") != hash_with("MKV,HEH,train,a", RES, "HHH")


def test_gzip_and_tsv(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "data.tsv.gz", "wt") as handle:
        handle.write("seq\tlabel\tsplit\nMKV\t1\ttrain\nMKL\t2\ttest\n")
    assert len(read(tmp_path / "data.tsv.gz", NUM).test) == 1


def test_rows_have_names(tmp_path: Path) -> None:
    assert read(write(tmp_path, "seq,label,split", "MKV,1,train"), NUM).train[0].name == "data.csv:2"
    assert read(write(tmp_path, "id,seq,label,split", "p53,MKV,1,train"), NUM).train[0].name == "p53"


def test_train_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its 1 rows is in train"):
        read(write(tmp_path, "seq,label,split", "MKV,1,test"), NUM)


def test_it_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing"):
        read(tmp_path / "none.csv", NUM)
    write(tmp_path, "hello", name="notes.docx")
    with pytest.raises(DataError, match="its name tells no format; expected one of .csv"):
        read(tmp_path / "notes.docx", NUM)
    with pytest.raises(DataError, match="holds no labelled proteins"):
        read(tmp_path, NUM)
    assert os.listdir(tmp_path) == ["notes.docx"]
