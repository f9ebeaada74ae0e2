"""Floors against loops written out and rules they can and cannot learn; against the published ones where data are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heads import baselines, composition, local_statistics, neighbours, one_hot
from heads.answers import UNSCORED
from heads.baselines import BASELINES, for_task, run
from heads.composition import shares
from heads.metrics import evaluate, figure
from heads.rows import Dataset, Row, read
from heads.tasks import Level, Target, task
from tests.heads.generated import made_dataset, made_task
from xtrimo.errors import ConfigError
from xtrimo.testing import toy_sequences

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"


@pytest.mark.parametrize(
    ("level", "target"),
    [
        ("sequence", "classes"),
        ("sequence", "regression"),
        ("residue", "classes"),
        ("pair", "classes"),
        ("two_sequences", "classes"),
        ("molecule", "regression"),
    ],
)
def test_every_floor_answers_every_row(level: Level, target: Target) -> None:
    dataset = made_dataset(level, target)
    assert len(for_task(dataset)) == (3 if level == "pair" else 2)
    for name in for_task(dataset):
        answer = run(name, dataset)
        assert len(answer.predictions.length) == len(dataset.test) == len(answer.rows)
        assert f"{len(dataset.train) + len(dataset.valid)} rows" in answer.note
        assert np.isfinite(answer.predictions.prediction).all()
        if answer.predictions.prediction.ndim == 2:
            np.testing.assert_allclose(answer.predictions.prediction.sum(1), 1, atol=1e-5)
        again = run(name, dataset)
        np.testing.assert_array_equal(answer.predictions.prediction, again.predictions.prediction)


def test_what_follows_from_composition_is_learned_and_chance_is_not() -> None:
    answer = run("composition", made_dataset("sequence", "regression", num=200))
    assert figure("spearman", answer.predictions) > 0.95
    shuffled = run("composition", made_dataset("sequence", "regression", num=200, shuffled=True))
    estimate = evaluate("spearman", shuffled.predictions)
    assert estimate.low < 0 < estimate.high
    classes = run("composition", made_dataset("sequence", num=200))
    assert figure("accuracy", classes.predictions) > 0.85


def test_the_second_chain_and_the_molecule_are_read() -> None:
    dataset = made_dataset("molecule", "regression", num=200)
    blind = replace(dataset, task=made_task("sequence", "regression"))
    knowing, guessing = (figure("spearman", run("composition", d).predictions) for d in (dataset, blind))
    assert knowing > 0.95 > guessing
    pairs = made_dataset("two_sequences", "regression", num=200)
    blind = replace(pairs, task=made_task("sequence", "regression"))
    knowing, guessing = (figure("spearman", run("composition", d).predictions) for d in (pairs, blind))
    assert knowing > 0.95 > guessing


def test_shares_by_hand() -> None:
    found = shares("LLAXL")  # L 0, A 1: the letters by frequency
    single = np.zeros(20)
    single[[0, 1]] = 3 / 5, 1 / 5
    double = np.zeros((20, 20))
    double[0, 0] = double[0, 1] = 1 / 4  # LL, LA; AX and XL count to none
    np.testing.assert_allclose(found[:20], single)
    np.testing.assert_allclose(found[20:420], double.ravel())
    assert found[420] == pytest.approx(np.log(5))


def test_the_penalty_is_the_one_valid_likes_best() -> None:
    dataset = made_dataset("sequence", "regression")
    truth = np.array([row.label for row in dataset.valid])
    offsets = {1.0: 3.0, 2.0: -0.5, 3.0: 1.0}
    assert composition.best(tuple(offsets), lambda choice: truth + offsets[choice], dataset) == 2.0
    assert composition.best(tuple(offsets), lambda choice: truth, replace(dataset, valid=())) == 1.0


def variants(num: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    parent = list(toy_sequences(1, min_length=30, max_length=30)[0])
    found = []
    for _ in range(num):
        letters = list(parent)
        for place in rng.integers(30, size=4):
            letters[place] = rng.choice(list("ACDEFGHIKLMNPQRSTVWYX"))
        found.append(Row(sequence="".join(letters), label=float(rng.normal())))
    return found


def test_similarity_of_variants_is_the_share_of_equal_residues() -> None:
    known, asked = variants(20, 0), variants(7, 1)
    table = neighbours.Variants(known, asked)
    expected = [[np.mean([a == b for a, b in zip(x.sequence, y.sequence, strict=True)]) for y in known] for x in asked]
    np.testing.assert_allclose(table.similarity(np.arange(7), np.arange(20)), expected, atol=1e-6)


def rows(sequences: list[str], labels: list[float], seconds: list[str] | None = None) -> tuple[Row, ...]:
    seconds = seconds or [""] * len(sequences)
    return tuple(Row(sequence=s, label=y, second=t) for s, y, t in zip(sequences, labels, seconds, strict=True))


def dataset_of(level: Level, train: tuple[Row, ...], test: tuple[Row, ...], target: Target = "regression") -> Dataset:
    classes = ("a", "b", "c") if target == "classes" else ()
    return Dataset(task=made_task(level, target), train=train, valid=(), test=test, classes=classes)


def test_a_copy_in_training_answers() -> None:
    proteins = toy_sequences(40, min_length=25, max_length=60)
    train = rows(proteins, [float(number % 3) for number in range(40)])
    three = tuple(replace(row, label=int(row.label)) for row in train)
    said = run("nearest", dataset_of("sequence", three, three[:9], "classes")).predictions
    assert said.prediction.argmax(1).tolist() == [0, 1, 2] * 3
    assert set(said.prediction.ravel()) == {0.0, 1.0}  # the one nearest alone


def test_five_neighbours_are_weighed() -> None:
    """Of equal similarity: a mean. A test protein like no other gets one too."""
    train = rows(["ACDEFGH"] * 5 + ["LLLLLLLLL"] * 3, [1.0, 2, 3, 4, 5, 100, 100, 100])
    said = run("nearest", dataset_of("sequence", train, rows(["ACDEFGH"], [0.0]))).predictions
    assert said.prediction.tolist() == pytest.approx([3.0])


def test_only_the_same_second_chain_is_looked_at() -> None:
    train = rows(["ACDEFGHI", "ACDEFGHI", "KLMNPQRS"], [1.0, 5.0, 9.0], ["VV", "WW", "WW"])
    test = rows(["ACDEFGHI", "ACDEFGHI", "ACDEFGHI"], [0.0] * 3, ["VV", "WW", "YY"])
    said = run("nearest", dataset_of("two_sequences", train, test)).predictions.prediction
    assert said[0] == pytest.approx(1.0)
    assert 5.0 <= said[1] < 5.01  # the other of WW is unlike, but one of its five
    assert said[2] == pytest.approx(3.0, abs=0.01)  # a chain never seen: all


def test_the_same_molecule_goes_first() -> None:
    train = rows(["ACDEFGHI"] * 5 + ["KLMNPQRST"] * 5, [1.0] * 5 + [7.0] * 5, ["CCO"] * 5 + ["CCN"] * 5)
    test = rows(["ACDEFGHI", "ACDEFGHI", "ACDEFGHI"], [0.0] * 3, ["CCO", "CCN", "CCCCC"])
    said = run("nearest", dataset_of("molecule", train, test)).predictions.prediction
    assert said.tolist() == pytest.approx([1.0, 7.0, 1.0])


def test_windows_learn_a_rule_of_neighbours_and_do_not_see_beyond() -> None:
    def labelled(offset: int, num: int, seed: int) -> tuple[Row, ...]:
        found = []
        for sequence in toy_sequences(num, seed=seed, min_length=30, max_length=50):
            told = [
                sequence[place - offset] in "LAGVSERTID" if place >= offset else None for place in range(len(sequence))
            ]
            label = np.array([UNSCORED if value is None else int(value) for value in told])
            found.append(Row(sequence=sequence, label=label))
        return tuple(found)

    def accuracy(offset: int) -> float:
        dataset = Dataset(
            task=made_task("residue"), train=labelled(offset, 60, 1), valid=labelled(offset, 20, 2),
            test=labelled(offset, 20, 3), classes=("0", "1"),
        )  # fmt: skip
        return figure("accuracy", run("windows", dataset).predictions)

    assert accuracy(7) > 0.98
    assert accuracy(8) < 0.65


def test_fivemers_by_hand() -> None:
    """P(class | word) = (count + 2 P(class | shorter word)) / (count of all + 2)."""
    train = (Row(sequence="ACDEF", label=np.array([0, 0, 1, 1, -1])),)
    test = (Row(sequence="ACDEF", label=np.zeros(5, dtype=np.int64)), Row(sequence="WDW", label=np.array([0, 1, 0])))
    dataset = Dataset(task=made_task("residue"), train=train, valid=(), test=test, classes=("0", "1"))
    said = run("fivemers", dataset).predictions.prediction
    one = (1 + 2 * 0.5) / 3  # D is 1 once; a half of all are
    three = (1 + 2 * one) / 3  # and so is CDE
    assert said[2, 1] == pytest.approx((1 + 2 * three) / 3)
    assert said[6, 1] == pytest.approx(one)  # D between W and W was never seen
    assert said[4, 1] == pytest.approx(0.5)  # F has no label


def contact_rows(num: int, seed: int) -> tuple[Row, ...]:
    """L, A and G touch each other; else by chance, and less with separation."""
    rng = np.random.default_rng(seed)
    found = []
    for sequence in toy_sequences(num, seed=seed, min_length=50, max_length=60):
        place = np.arange(len(sequence))
        touches = np.isin(list(sequence), list("LAG"))
        chance = 0.3 / (1 + np.abs(place[:, None] - place) / 5) + 0.6 * (touches[:, None] & touches)
        upper = np.triu(rng.random((len(sequence),) * 2) < chance, 1)
        found.append(Row(sequence=sequence, label=(upper | upper.T).astype(np.int8)))
    return tuple(found)


def test_contacts_by_separation_and_letters() -> None:
    dataset = Dataset(
        task=made_task("pair"), train=contact_rows(60, 1), valid=(), test=contact_rows(20, 2), classes=("0", "1")
    )
    separation, letters = (run(name, dataset).predictions for name in ("separation", "letters"))
    length = separation.length[0]
    first = separation.prediction[: length**2].reshape(length, length)
    pairs = [
        row.label[i, i + 30] for row in dataset.train for i in range(len(row.sequence) - 30)
    ]  # what is counted, less the smoothing over neighbouring separations
    assert first[0, 30] == first[10, 40] == first[40, 10] == pytest.approx(np.mean(pairs), abs=0.02)
    assert first[0, 10] > first[0, 30]
    assert figure("precision@L/10", letters) > figure("precision@L/10", separation) + 0.2


def test_a_pair_head_learns_of_letters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which touch, whatever the model; of few proteins, and of each once."""
    dataset = Dataset(
        task=made_task("pair"), train=contact_rows(200, 1), valid=(), test=contact_rows(20, 2), classes=("0", "1")
    )
    answer = run("one_hot", dataset)
    assert (
        figure("precision@L/10", answer.predictions)
        > figure("precision@L/10", run("separation", dataset).predictions) + 0.2
    )
    assert "of 200 proteins, each read once" in answer.note
    monkeypatch.setattr(one_hot, "NUM_PROTEINS", 30)
    fewer = run("one_hot", dataset)
    assert "of 30 proteins" in fewer.note
    assert not np.allclose(fewer.predictions.prediction, answer.predictions.prediction)


def test_one_hot_residues() -> None:
    states, lengths = one_hot.OneHot()(["LLX", "A"])  # L 0, A 1: the letters by frequency
    assert states.argmax(1).tolist() == [0, 0, 20, 1] and states.sum() == 4 and lengths.tolist() == [3, 1]
    alone, maps = one_hot.OneHot().of_pairs("LLX")
    assert alone.tolist() == states[:3].tolist() and maps is None


def test_pairs_without_a_label_are_not_counted() -> None:
    known = contact_rows(20, 1)
    hidden = tuple(replace(row, label=np.where(row.label == 1, UNSCORED, row.label).astype(np.int8)) for row in known)
    dataset = Dataset(task=made_task("pair"), train=hidden, valid=(), test=known[:2], classes=("0", "1"))
    assert run("separation", dataset).predictions.prediction.max() < 1e-3


def test_large_sets_are_thinned_alike() -> None:
    dataset = made_dataset("sequence", "regression", num=200)
    answer = run("composition", dataset, max_train=150, max_test=30)
    assert "fitted on 150 rows, 30 test rows" in answer.note
    assert len(set(answer.rows)) == 30 and (np.diff(answer.rows) > 0).all()
    np.testing.assert_array_equal(answer.predictions.truth, [dataset.test[row].label for row in answer.rows])
    np.testing.assert_array_equal(answer.rows, run("nearest", dataset, max_train=150, max_test=30).rows)
    assert (answer.rows != run("nearest", dataset, max_test=30, seed=1).rows).any()
    assert len(run("composition", dataset, max_test=None).rows) == len(dataset.test)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="no baseline 'windows' of level sequence; it has composition, nearest"):
        run("windows", made_dataset("sequence"))
    with pytest.raises(ConfigError, match="0 training and"):
        run("composition", replace(made_dataset("sequence"), train=()))
    assert set(BASELINES) == {name for level in made_levels() for name in for_task(made_dataset(level))}


def made_levels() -> tuple[Level, ...]:
    return ("sequence", "residue", "pair", "two_sequences", "molecule")


FLOORS = [  # what ../shared/data/README.md states, on all its rows
    ("temperature_stability", "composition", 0.865, 0.02),
    ("temperature_stability", "nearest", 0.557, 0.03),
    ("optimal_temperature", "composition", 0.505, 0.02),
    ("optimal_temperature", "nearest", 0.583, 0.03),
    ("contact_map", "letters", 0.080, 0.02),
]


@pytest.mark.skipif(not DATA.is_dir(), reason="the data pack is not here")
@pytest.mark.parametrize(("name", "floor", "published", "tolerance"), FLOORS)
def test_the_published_floors(name: str, floor: str, published: float, tolerance: float) -> None:
    dataset = read(DATA / f"{name}.csv.gz", task(name))
    if name == "contact_map":
        dataset = replace(dataset, train=dataset.train[:600])
    assert figure(dataset.task.metric, run(floor, dataset).predictions) == pytest.approx(published, abs=tolerance)


def test_regressions_see_at_most_so_many_residues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_statistics, "MAX_RESIDUES", 100)
    note = run("windows", made_dataset("residue")).note
    assert int(note.split(", ")[1].split()[0]) < 2 * (100 + 30)


def test_the_table_is_of_known_levels() -> None:
    assert {level for row in baselines.BASELINES.values() for level in row.levels} == set(made_levels())
