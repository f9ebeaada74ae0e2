"""`xtrimo info` on everything it knows, and on what it does not."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from xtrimo import info
from xtrimo.checkpoint import save
from xtrimo.config import GLMConfig
from xtrimo.errors import CorpusError, FastaError, XtrimoError
from xtrimo.model import GLM


def test_model_directory(tmp_path: Path) -> None:
    config = GLMConfig(num_layers=2, hidden_size=64, num_heads=2, ffn_size=64, licence="MIT", source="a test")
    model = GLM(config).to(torch.bfloat16)
    facts = dict(info.facts(str(save(model, tmp_path / "model"))))
    assert facts["kind"] == "model directory"
    assert facts["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert facts["objectives"] == "mlm, gmask, smask" and facts["prompt style"] == "gmask"
    assert (facts["licence"], facts["source"], facts["dtype"]) == ("MIT", "a test", "bfloat16")
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert facts["bytes"].startswith(f"{size:,} ")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(XtrimoError, match="not a safetensors file"):
        dict(info.facts(str(tmp_path / "model")))


def test_the_weights_of_a_package() -> None:
    facts = dict(info.facts("antiberty"))
    assert (facts["kind"], facts["of"], facts["licence"]) == ("model directory", "AntiBERTy", "MIT")
    assert facts["source"] == "the PyPI package antiberty" and "float32" in facts["dtype"]
    assert (facts["num_hidden_layers"], facts["hidden_size"]) == ("8", "512")
    assert Path(facts["directory"]).is_dir()
    assert dict(info.facts(facts["directory"]))["licence"] == "MIT"


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xtrimo import backbone

    directory = tmp_path / "models--facebook--esm2_t6" / "snapshots" / "abc"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "esm", "num_hidden_layers": 6, "hidden_size": 320}')
    save_file({"a": torch.zeros(2, dtype=torch.float16)}, directory / "model.safetensors")
    monkeypatch.setattr(backbone.hub, "download", {"facebook/esm2_t6@main": directory}.__getitem__)
    facts = dict(info.facts("facebook/esm2_t6@main"))
    assert (facts["kind"], facts["of"], facts["licence"]) == ("model directory", "ESM-2", "MIT")
    assert (facts["directory"], facts["source"], facts["dtype"]) == (str(directory), "facebook/esm2_t6@abc", "float16")


def test_preset() -> None:
    facts = dict(info.facts("xtrimopglm-100b"))
    assert facts["kind"] == "preset" and facts["blocks"] == "72" and facts["parameters"].startswith("100,")


def test_corpus(tmp_path: Path) -> None:
    split = {"num_proteins": 1200, "num_residues": 34567, "num_clusters": 7}
    sources = [{"name": "a.fasta", "weight": 0.25, "read": 1300, "duplicate": 0, "train": 1200}]
    meta = {"format": "f1", "split_rule": "by cluster", "train": split, "valid": split, "sources": sources}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    facts = dict(info.facts(str(tmp_path)))
    assert facts["kind"] == "corpus" and facts["split rule"] == "by cluster"
    assert facts["train"] == facts["valid"] == "1,200 proteins, 34,567 residues, 7 clusters"
    assert facts["source a.fasta"] == "weight 0.25, read 1,300, train 1,200"
    for damage in ('{"format": ', "[]", "{}"):
        (tmp_path / "meta.json").write_text(damage)
        with pytest.raises(XtrimoError, match=r"meta\.json"):
            dict(info.facts(str(tmp_path)))
        with pytest.raises(XtrimoError, match=r"meta\.json"):
            dict(info.verify(tmp_path))


def test_only_a_corpus_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it finds: tests/pretrain/test_corpus_damage.py."""
    files = [{"name": "a", "size": 3, "checksum": hashlib.blake2b(b"MKV", digest_size=16).hexdigest()}]
    split = {"num_proteins": 1, "num_residues": 3, "num_clusters": 1, "shards": files, "index": []}
    meta = {"format": "f1", "split_rule": "", "train": split, "valid": split | {"shards": []}, "sources": []}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "a").write_bytes(b"MKV")
    info.main([str(tmp_path), "--verify"])
    assert capsys.readouterr().out.splitlines()[-1] == "verified    1 files, 3 bytes: as they were written"
    (tmp_path / "a").write_bytes(b"MKW")
    with pytest.raises(CorpusError, match="a was altered"):
        info.main([str(tmp_path), "--verify"])
    with pytest.raises(CorpusError, match="glm-1m is no corpus"):
        info.main(["glm-1m", "--verify"])


def test_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"seed": 1, "batch": {"rows": 4}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    facts = dict(info.facts(str(tmp_path)))
    assert (facts["kind"], facts["batch"], facts["metrics"]) == ("training run", '{"rows": 4}', "2 records")
    assert facts["last"] == '{"step": 2}'


def test_fasta(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.gz"
    path.write_bytes(gzip.compress(b"".join(b">p\n" + b"M" * n + b"\n" for n in range(1, 101)) + b">q\nA-C*\n"))
    facts = dict(info.facts(str(path)))
    assert (facts["kind"], facts["records"], facts["residues"]) == ("FASTA file", "101", "5,053")
    assert facts["length"] == "1 to 100; 5 % 5, median 50, 95 % 95"
    assert facts["letters"].startswith("1 records with letters outside")  # the "-"; a final "*" is dropped
    info.main([str(path)])
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["101", "5,053"]


def test_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(XtrimoError, match=r"nothing at .*no; give a model directory.*antiberty.* glm-1m"):
        info.main([str(tmp_path / "no")])
    with pytest.raises(XtrimoError, match=r"none of our directories; .* meta\.json \(corpus\)"):
        info.main([str(tmp_path)])
    (tmp_path / "x.txt").write_text("hello\n")
    with pytest.raises(FastaError, match="starts with 'hello'"):
        info.main([str(tmp_path / "x.txt")])
