"""The example on toy models: its loss and its best head against their definitions, and the whole page."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import contacts_without_training as example
from heads import contacts
from heads.answers import Predictions
from heads.metrics import figure
from heads.rows import Dataset
from xtrimo import checkpoint
from xtrimo.attention import within
from xtrimo.errors import ConfigError, DataError
from xtrimo.model import GLM
from xtrimo.testing import toy_config, toy_sequences
from xtrimo.tokens import AMINO_ACIDS, MASK

SPLITS = ["train"] * 4 + ["valid"] * 2 + ["test"] * 3


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Chains whose residues lie anywhere in a small box, so that some touch."""
    proteins = toy_sequences(len(SPLITS), min_length=45, max_length=60)
    lengths = np.array([len(protein) for protein in proteins])
    rng = np.random.default_rng(0)
    xyz = rng.uniform(0, 20, (lengths.sum(), 1, 3)) + rng.uniform(0, 1, (lengths.sum(), 4, 3))
    names = [f"chain{i}" for i in range(len(proteins))]
    xyz = xyz.astype(np.float32)
    np.savez(tmp_path / "chains.npz", chain_id=names, length=lengths, seq=proteins, split=SPLITS, xyz=xyz)
    return tmp_path / "chains.npz"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contacts, "NUM_PROTEINS", 4)
    monkeypatch.setattr(contacts, "NUM_VALID", 2)


def dataset(archive: Path) -> Dataset:
    return example.read_dataset(example.Options(archive=archive, models=(), out=archive.parent))


def test_the_page(archive: Path, tmp_path: Path) -> None:
    for number in range(2):
        checkpoint.save(GLM(toy_config(num_layers=2), seed=number), tmp_path / f"m{number}")
    asked = [str(archive), "--models", str(tmp_path / "m0"), str(tmp_path / "m1"), "--out", str(tmp_path / "out")]
    assert example.main(asked) == 0
    page = (tmp_path / "out/contacts.md").read_text()
    points = json.loads((tmp_path / "out/contacts.json").read_text())["points"]
    assert {point["name"] for point in points} == {"m0", "m1", "m0, random 0"}  # one shape, so one twin
    assert [point["is_random"] for point in points].count(True) == 1 and points == sorted(
        points, key=lambda point: -point["nats"]["value"]
    )
    assert all(f"| {point['name']} |" in page for point in points) and "P(contact of separation)" in page
    assert (tmp_path / "out/contacts.png").stat().st_size > 1000
    seen = {point["name"]: point for point in points}
    assert seen["m0"] | {"name": "", "is_random": 0} == seen["m0, random 0"] | {"name": "", "is_random": 0}  # seed 0

    (tmp_path / "out/m0.json").write_text(json.dumps(seen["m0"] | {"note": "as it was"}))
    assert example.main(asked) == 0  # nothing is asked again
    assert "as it was" in (tmp_path / "out/contacts.json").read_text()


def test_the_loss_is_that_of_masked_residues_over_the_amino_acids(archive: Path) -> None:
    model, rows = GLM(toy_config(num_layers=2), seed=3).eval(), dataset(archive).test
    total, num = 0.0, 0
    letters = [int(model.tokenize(letter).tokens[0]) for letter in AMINO_ACIDS]
    with torch.no_grad():
        for row, mask in zip(rows, example._masks(rows, 0), strict=True):
            asked = model.tokenize(row.sequence)
            tokens = torch.from_numpy(asked.tokens.astype(np.int64))
            tokens[: len(mask)][torch.from_numpy(mask)] = MASK
            states = model.hidden(
                tokens, torch.from_numpy(asked.positions), within(torch.tensor([[0, len(tokens), len(tokens)]]))
            )
            said = model.logits(states[-1])[:, letters].double().softmax(-1).numpy()
            for place in np.flatnonzero(mask):
                total -= np.log(said[place, AMINO_ACIDS.index(row.sequence[place])])
                num += 1
    found = example.masked_nats(model, rows, 0)
    assert found.value == pytest.approx(total / num, rel=1e-5) and found.low <= found.value <= found.high
    share = num / sum(len(row.sequence) for row in rows)
    assert 0.08 < share < 0.25 and example.masked_nats(model, rows, 1).value != found.value


def test_the_best_head_is_chosen_in_training_and_judged_in_test(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of maps of which one shows the contacts of training, and another those of all but the training chains."""
    made = dataset(archive)
    labels = {row.sequence: np.asarray(row.label) for part in made.splits.values() for row in part}
    training = {row.sequence for row in made.train}

    def maps(model: object, sequence: str) -> np.ndarray:
        noise = np.random.default_rng(len(sequence)).random((8, len(sequence), len(sequence))).astype(np.float32)
        noise += noise.transpose(0, 2, 1)
        noise[6 if sequence in training else 2] = labels[sequence]
        return noise

    monkeypatch.setattr(contacts, "corrected_attentions", maps)
    said, which = example.best_head(GLM(toy_config(num_layers=2)), made)  # of 4 heads
    assert which == "layer 2, head 3" and figure(example.METRIC, said) < 0.6
    whole = Predictions(truth=said.truth, prediction=said.truth.astype(np.float32), length=said.length)
    assert figure(example.METRIC, whole) == 1


def test_a_twin_has_the_shape_and_none_of_the_weights() -> None:
    model = GLM(toy_config(num_layers=2), seed=1)
    drawn = example.twin(model, 5)
    assert isinstance(drawn, GLM)
    for name, weight in model.state_dict().items():
        own = drawn.state_dict()[name]
        assert own.shape == weight.shape and (weight.std() == 0 or not torch.equal(own, weight))


def test_a_twin_of_another_family() -> None:
    pytest.importorskip("antiberty")
    from xtrimo.backbone import load

    model = load("antiberty")
    drawn = example.twin(model, 5)
    ours, theirs = (one.state_dict() for one in (drawn, model))
    assert ours.keys() == theirs.keys()
    products = [name for name, weight in theirs.items() if weight.ndim == 2]
    assert len(products) > 40
    for name in products:
        assert float(ours[name].std()) == pytest.approx(example.INITIAL_STD, rel=0.1), name
        assert not torch.equal(ours[name], theirs[name])


def test_refusals(archive: Path, tmp_path: Path) -> None:
    with np.load(archive) as held:
        arrays = dict(held)
    arrays["split"] = np.array(["train"] * len(SPLITS))
    np.savez(archive, **arrays)
    with pytest.raises(DataError, match="no chain whose split is valid, test"):
        dataset(archive)
    causal = GLM(toy_config(objectives=("causal",), rotary="1d", directions=("forward",), control_words=()))
    with pytest.raises(ConfigError, match="never predicted a <mask>"):
        example.masked_nats(causal, (), 0)
