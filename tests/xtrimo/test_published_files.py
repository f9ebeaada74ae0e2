"""Published directories: every layout of files, both spellings, what is refused, and the licence."""

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from safetensors.torch import save_file

from tests.xtrimo.published_reference import HIDDEN, random_weights, write
from xtrimo import checkpoint, info, published
from xtrimo.errors import CheckpointError


@pytest.fixture(autouse=True)
def _as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own checks answer: what a file holds reaches them without the tests' type checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(directory: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        published.load(directory)
    for word in (str(directory), *words):
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "files",
    ["safetensors", "safetensors shards", "safetensors shards without index", "bin", "bin shards",
     "bin shards without index"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_layout_gives_the_same_model(tmp_path, files, dtype):
    state = random_weights(is_2d=False)
    model = published.load(write(tmp_path / "m", state, files), dtype=dtype)
    assert not model.training and all(weight.requires_grad for weight in model.parameters())
    stored = {name: weight for name, weight in state.items() if not name.endswith("inv_freq")}
    loaded = model.state_dict()
    assert len(loaded) == len(stored)
    assert torch.equal(
        loaded["embedding.weight"], stored["transformer.embedding.word_embeddings.weight"].to(dtype or torch.float32)
    )
    assert torch.equal(
        loaded["blocks.2.mlp.down.bias"],
        stored["transformer.encoder.layers.2.mlp.dense_4h_to_h.bias"].to(dtype or torch.float32),
    )


@pytest.mark.parametrize(
    ("changes", "is_causal"),
    [
        (dict(model_type="ProteinPGLM", architectures=["ProteinPGLMForCasualLM"], is_causal=True), True),
        (dict(model_type="proteinglm", architectures=None), False),
        (dict(model_type="xTrimoPGLM", architectures=["xTrimoPGLMForMaskedLM"], is_causal="left out"), False),
        (dict(model_type="left out", architectures=["ProteinGLMForCasualLM"], is_causal="left out"), True),
        (dict(architectures=["ProteinGLMForMaskedLM"], is_causal=True), True),  # the flag, not the class
    ],
)
def test_spellings(tmp_path, changes, is_causal):
    config = published.load(write(tmp_path / "a-clm-in-name-only", random_weights(False), **changes)).config
    assert config.objectives == (("causal",) if is_causal else ("mlm",))
    assert (config.directions, config.control_words, config.max_length) == (("forward",), (), 64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rmsnorm=True), ("rmsnorm is True", "supported is False")),
        (dict(multi_query_attention=True), ("multi_query_attention is True",)),
        (dict(moe=True), ("moe is True",)),
        (dict(post_layer_norm=False), ("post_layer_norm is False", "supported is True")),
        (dict(glu_activation="swiglu"), ("glu_activation is 'swiglu'", "'geglu'")),
        (dict(deepnorm=False), ("deepnorm is False",)),
        (dict(untie_head=True), ("untie_head is True",)),
        (dict(kv_channels=16), ("kv_channels is 16",)),
        (dict(quantization_bit=2), ("quantization_bit is 2", "0, 4, 8")),
        (dict(num_layers="left out"), ("num_layers", "missing")),
        (dict(is_causal="left out", architectures=[]), ("is_causal", "missing")),
        (dict(num_layers=0), ("num_layers is 0",)),
        (dict(model_type="chatglm", architectures=["ChatGLMModel"]), ("ProteinGLM",)),
    ],
)
def test_another_network_is_refused(tmp_path, changes, words):
    refused(write(tmp_path / "m", random_weights(False), **changes), "config.json", *words)


def test_weights_that_do_not_fit(tmp_path):
    state = random_weights(False)
    del state["transformer.encoder.final_layernorm.bias"]
    state["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"] = torch.zeros(3, 5)
    state["classifier.weight"] = torch.zeros(2)
    state["transformer.encoder.layers.0.mlp.dense_4h_to_h.bias"] = torch.zeros(HIDDEN, dtype=torch.int64)
    refused(
        write(tmp_path / "m", state),
        "missing transformer.encoder.final_layernorm.bias",
        "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight has shape (3, 5), the config says (24, 10)",
        "unexpected classifier.weight",
        "transformer.encoder.layers.0.mlp.dense_4h_to_h.bias holds torch.int64",
    )
    deeper = refused(write(tmp_path / "deeper", random_weights(False), num_layers=9), "inv_freq")
    assert deeper.count("missing") == 6
    state = {name: weight for name, weight in random_weights(False).items() if "inv_freq" not in name}
    assert refused(write(tmp_path / "plain", state, num_layers=9)).count("missing") == 10
    state = {name.removeprefix("transformer."): weight for name, weight in random_weights(False).items()}
    assert refused(write(tmp_path / "prefix", state)).count("unexpected") == 10


def test_a_weight_in_two_shards_is_refused(tmp_path):
    directory = write(tmp_path / "m", random_weights(False), "safetensors shards without index")
    save_file({"transformer.output_layer.weight": torch.zeros(128, HIDDEN)}, directory / "another.safetensors")
    refused(directory, "twice transformer.output_layer.weight")


def test_frequencies_that_do_not_fit(tmp_path):
    name = "transformer.encoder.layers.1.self_attention.rotary_emb.inv_freq"
    state = random_weights(False)
    refused(write(tmp_path / "some", {k: w for k, w in state.items() if k != name}), f"missing {name}")
    refused(write(tmp_path / "other", {**state, name: state[name] * 1.5}), f"{name} differs")
    refused(write(tmp_path / "long", {**state, name: torch.ones(7)}), f"{name} has shape (7,)", "(4,)")


def test_files_that_cannot_be_read(tmp_path):
    directory = write(tmp_path / "none", random_weights(False))
    (directory / "model.safetensors").rename(directory / "model.gguf")
    refused(directory, "no weights", "model.safetensors", "pytorch_model.bin")
    directory = write(tmp_path / "cut", random_weights(False))
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-9])
    refused(directory, "model.safetensors")
    directory = write(tmp_path / "shards", random_weights(False), "safetensors shards")
    (directory / "model-00002-of-00003.safetensors").unlink()
    refused(directory, "model-00002-of-00003.safetensors", "missing")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../passwords"}}')
    refused(directory, "'../../passwords'")
    (directory / "model.safetensors.index.json").write_text("{")
    refused(directory, "not an index")


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched_by_a_pickle"),))


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = write(tmp_path / "m", random_weights(False), "bin")
    torch.save({**random_weights(False), "x": _Runs()}, directory / "pytorch_model.bin")
    refused(directory, "pytorch_model.bin", "tensors alone")
    assert not (tmp_path / "touched_by_a_pickle").exists()
    torch.save([1, 2], directory / "pytorch_model.bin")
    refused(directory, "no table of tensors")


# ---- licence and facts


def test_licence_comes_from_the_card_and_goes_along(tmp_path):
    directory = write(tmp_path / "m", random_weights(False))
    config = published.load(directory).config
    assert config.licence == "CC-BY-NC-4.0" and "no card states" in config.source
    (directory / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- biology\n---\n# A model\nlicense: mit\n")
    model = published.load(directory)
    assert model.config.licence == "Apache-2.0" and "no card" not in model.config.source
    saved = checkpoint.save(model, tmp_path / "ours")
    assert checkpoint.load(saved).config == model.config
    assert "| Licence of the weights | Apache-2.0 |" in (saved / "MODEL_CARD.md").read_text()


def test_info(tmp_path):
    facts = dict(info.facts(str(write(tmp_path / "m", random_weights(False), "bin shards"))))
    assert (facts["kind"], facts["of"]) == ("model directory", "ProteinGLM")
    assert (facts["licence"], facts["objectives"], facts["blocks"]) == ("CC-BY-NC-4.0", "mlm", "3")
    assert facts["dtype"] == "float32" and facts["bytes"].endswith("in 3 weights file(s)")
