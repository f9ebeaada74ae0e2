"""A generator is tuned on tags: it writes what they ask for, keeps what it was, and survives a kill."""

import importlib
import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xtrimo
from generate import finetune, sample
from generate.finetune import TuningOptions, main, tune
from generate.tuning import Subject, held_out, mean_nats
from xtrimo import checkpoint, mmseqs
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.testing import killed, run_distributed, toy_config, toy_sequences
from xtrimo.tokens import encode_residues
from xtrimo.training_config import EngineOptions
from xtrimo.training_log import read_metrics

LETTERS = {"oily": "AVLI", "charged": "DEKR"}


def proteins(folder: Path) -> Path:
    """Two families that share no letter, some of either held out, a third that is too small, one without a tag."""
    rng = np.random.default_rng(0)
    records = [
        Record(f"{name}{i}", "".join(rng.choice(list(letters), rng.integers(10, 30))),
               f"family={name} kind={name[0]} split={'valid' if i < 6 else 'test' if i < 8 else 'train'}")
        for name, letters in LETTERS.items() for i in range(40)
    ]  # fmt: skip
    records += [Record("rare", "MKV", "family=rare split=train"), Record("bare", "MKV", "split=train")]
    write_fasta(folder / "families.fasta", records)
    write_fasta(folder / "replay.fasta", (Record(f"r{i}", s) for i, s in enumerate(toy_sequences(60))))
    return folder / "families.fasta"


def options(folder: Path, out: str, **changes: Any) -> TuningOptions:
    fasta, model = folder / "families.fasta", folder / "base"
    if not fasta.exists():
        proteins(folder)
        checkpoint.save(GLM(toy_config(max_length=128), seed=1), model)
    facts: dict[str, Any] = dict(
        file=fasta, model=str(model), out=folder / out, method="full", steps=120, batch_size=8, learning_rate=3e-3,
        validate_every=40, least=10,
    )  # fmt: skip
    return TuningOptions(**(facts | changes))


def share(model: GLM, prompt: str, letters: str) -> float:
    text = "".join(each.sequence for each in sample(model, num=12, prompt=prompt, seed=0, max_length=30))
    return sum(letter in letters for letter in text) / len(text)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[GLM, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("tuned")
    asked = options(folder, "full", replay=folder / "replay.fasta", drop_ratio=0.2)
    results = tune(asked)
    model = xtrimo.load(asked.out / "model")
    assert isinstance(model, GLM)
    return model, results, folder


def test_tags_say_what_is_written(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    model, *_ = tuned
    assert model.config.control_words == ("<rev>", "<family=oily>", "<family=charged>")
    for name, letters in LETTERS.items():
        tag = f"<family={name}>"
        assert share(model, tag, letters) > 0.9, tag
        assert share(model, f"{tag}[..]{letters[:2]}", letters) > 0.8  # from C to N
        assert share(model, f"{tag}{letters[:2]}[6]{letters[2:]}", letters) > 0.8  # by smask, what is given counts too


def test_results_tell_what_tags_and_replay_did(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    _, results, folder = tuned
    assert results == json.loads((folder / "full/results.json").read_text())
    assert results["left_out"] == {"in split=test": 4, "longer than 102 residues": 0, "without a tag": 2}
    assert (results["num_train"], results["num_valid"]) == (64, 12) and 50 <= results["num_replay"] < 60
    tagged, replay = results["tagged"], results["replay"]
    for name in ("mlm", "gmask", "smask"):
        assert tagged["after"][name]["value"] < tagged["before"][name]["value"] - 1
        assert (
            replay["after"][name]["value"] < replay["before"][name]["value"]
        )  # of a model that had never been trained
    gain = tagged["after, without tags"]["gmask"]["value"] - tagged["after"]["gmask"]["value"]
    assert gain > np.log(2) / 30  # which family is told once a protein: from 10 to 29 residues


def test_a_finished_run_is_found_and_another_refused(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    _, results, folder = tuned
    asked = options(folder, "full", replay=folder / "replay.fasta", drop_ratio=0.2)
    assert tune(asked) == results
    with pytest.raises(ConfigError, match=r"other settings \(drop_ratio 0.2 to 0.1\)"):
        tune(options(folder, "full", replay=folder / "replay.fasta"))


def test_adapters_are_merged_and_only_new_rows_move(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    base, _, folder = tuned
    asked = options(folder, "lora", model=str(folder / "full/model"), method="lora", tags=("kind",), steps=60)
    tune(asked)
    model = xtrimo.load(asked.out / "model")
    assert isinstance(model, GLM) and model.config.control_words[3:] == ("<kind=o>", "<kind=c>")
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, base.state_dict()[name])}
    linear = ("attention.qkv", "attention.dense", "mlp.up", "mlp.down")
    assert changed == {"embedding.weight"} | {f"blocks.{i}.{name}.weight" for i in range(4) for name in linear}
    moved = (model.embedding.weight != base.embedding.weight).any(1)
    assert torch.nonzero(moved).flatten().tolist() == [39, 40]
    for name, letters in LETTERS.items():
        assert share(model, f"<kind={name[0]}>", letters) > 0.8
    replayed = [Subject(encode_residues(sequence)) for sequence in toy_sequences(60)]
    remembers, forgot = (mean_nats(each, held_out(replayed, "gmask", each.config, 0)).value for each in (base, model))
    assert forgot > remembers + 0.1  # base was tuned with replay


def test_a_tuned_model_is_tuned_on(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    """Tags that a model knows keep their rows, and are refused where it does not know them."""
    model, _, folder = tuned
    with pytest.raises(ConfigError, match="no tag <family=rare>; it knows <family=oily>, <family=charged>"):
        sample(model, prompt="<family=rare>")
    again = options(folder, "again", model=str(folder / "full/model"), tags=("family", "length=20"), steps=1)
    tune(again)
    words = xtrimo.load(again.out / "model").config.control_words
    assert words[:3] == model.config.control_words and set(words[3:]) == {"<length=..20>", "<length=20..>"}


def test_a_killed_run_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = dict(steps=6, validate_every=3, balance=0.5, substitutions=0.2)
    monkeypatch.setattr(finetune, "SAVE_EVERY", 2)
    monkeypatch.setattr(mmseqs, "is_installed", lambda: False)  # its start takes seconds
    tune(options(tmp_path, "unbroken", **changes))
    asked = options(tmp_path, "killed", **changes)
    whole = finetune.Mix.__call__

    def dying(self: finetune.Mix, step: int) -> Any:
        if step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, step)

    assert killed(lambda: monkeypatch.setattr(finetune.Mix, "__call__", dying), lambda: tune(asked))
    assert (asked.out / "training/training.pt").exists() and not (asked.out / "model").exists()
    tune(asked)
    ours, theirs = (checkpoint.load(tmp_path / name / "model").state_dict() for name in ("killed", "unbroken"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (asked.out / "results.json").read_text() == (tmp_path / "unbroken/results.json").read_text()


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra deepspeed is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_ranks_that_share_the_weights_learn_the_same(tmp_path: Path) -> None:
    """Adapters and the rows of new tags, under ZeRO 3."""
    importlib.import_module("deepspeed")  # once, and not in each rank: they are forks of this process
    changes = dict(method="lora", steps=4, validate_every=2)
    tune(options(tmp_path, "alone", **changes))
    shared = options(tmp_path, "shared", engine=EngineOptions(name="deepspeed", zero=3), **changes)
    run_distributed(_tuned, 2, shared, timeout=250)
    ours, theirs = (checkpoint.load(tmp_path / name / "model").state_dict() for name in ("alone", "shared"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-6)


def _tuned(rank: int, asked: TuningOptions) -> None:
    tune(asked)


def test_tuned_for_filling(tuned: tuple[GLM, dict[str, Any], Path]) -> None:
    """Masks over whole spans are what is learned, and what the weights are chosen by."""
    base, _, folder = tuned
    asked = options(folder, "filling", model=str(folder / "full/model"), purpose="filling", steps=80)
    tune(asked)
    model = xtrimo.load(asked.out / "model")
    assert isinstance(model, GLM)
    records = [record for record in read_fasta(asked.file) if "split=valid" in record.description]
    tags = [torch.tensor([37 + record.name.startswith("charged")], dtype=torch.uint8).numpy() for record in records]
    valid = [Subject(encode_residues(record.sequence), tag) for record, tag in zip(records, tags, strict=True)]
    spans = held_out(valid, "mlm", model.config, 0, "filling")
    before, after = (mean_nats(each, spans).value for each in (base, model))
    assert after < before
    chosen = [line["figure"] for line in read_metrics(asked.out / "training/metrics.jsonl") if line["split"] == "valid"]
    assert -max(chosen) == pytest.approx(after, rel=1e-4)


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    asked = options(tmp_path, "out")
    checkpoint.save(GLM(toy_config(objectives=("mlm",), directions=("forward",))), tmp_path / "mlm")
    with pytest.raises(ConfigError, match="does not generate"):
        tune(options(tmp_path, "out", model=str(tmp_path / "mlm")))
    checkpoint.save(GLM(toy_config(objectives=("gmask",))), tmp_path / "gmask")
    with pytest.raises(ConfigError, match="does not fill masks; tune it for writing"):
        tune(options(tmp_path, "out", model=str(tmp_path / "gmask"), purpose="filling"))
    with pytest.raises(DataError, match="has no protein of <family=salty>"):
        tune(options(tmp_path, "out", only=("salty",)))
    with pytest.raises(ConfigError, match="no tag of taxon is had by 10 proteins"):
        tune(options(tmp_path, "out", tags=("taxon",)))
    with pytest.raises(ConfigError, match=r"replay_ratio 0.99 leaves no tagged protein"):
        options(tmp_path, "out", replay=tmp_path / "replay.fasta", replay_ratio=0.99)
    with pytest.raises(ConfigError, match="drop_ratio is 1"):
        options(tmp_path, "out", drop_ratio=1.0)
    with pytest.raises(ConfigError, match="substitutions is -0.1; it must be at least 0 and below 1"):
        options(tmp_path, "out", substitutions=-0.1)
    with pytest.raises(ConfigError, match="balance is 1.5; it must be from 0 to 1"):
        options(tmp_path, "out", balance=1.5)
    with pytest.raises(ConfigError, match="no tag of family is had by 39 proteins"):  # 40 with those of split=test
        tune(options(tmp_path, "out", least=39))
    write_fasta(tmp_path / "all.fasta", [Record(f"p{i}", "MK", "family=a split=train") for i in range(20)])
    with pytest.raises(DataError, match="20 proteins to train on and 0 to validate on"):
        tune(options(tmp_path, "out", file=tmp_path / "all.fasta"))
    assert not asked.out.exists()


def test_the_verb_says_what_tags_brought(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(tmp_path, "verb")
    main([
        str(asked.file), "--model", asked.model, "--out", str(asked.out), "--steps", "2", "--least", "10", "--only",
        "oily", "--tags", "family", "length=20",
    ])  # fmt: skip
    shown = capsys.readouterr().out
    assert "held-out nats, gmask: " in shown and f"{asked.out / 'model'}: <family=oily>" in shown
    assert "<family=charged>" not in shown and "<length=20..>" in shown
