"""Models in other layouts: round trips to the bit, and what the published code finds."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.xtrimo.published_reference import CONFIG, outputs, random_weights, reference, write
from tests.xtrimo.random_models import MODELS, random_model, same, tensors
from xtrimo import checkpoint, hub, layouts, published
from xtrimo.backbone import load
from xtrimo.config import PRESETS
from xtrimo.conversion import convert
from xtrimo.errors import CheckpointError
from xtrimo.model import GLM
from xtrimo.names import pairs
from xtrimo.quantizing import quantized
from xtrimo.testing import toy_sequences

pytestmark = pytest.mark.usefixtures("as_for_users")


def digest_by_hand(state: dict[str, Tensor]) -> str:
    lines = b""
    for name in sorted(state):
        weight = state[name].contiguous()
        own = hashlib.sha256(bytes(weight.flatten().view(torch.uint8).tolist())).hexdigest()
        lines += f"{name} {str(weight.dtype)[6:]} {'x'.join(map(str, weight.shape))} {own}\n".encode()
    return hashlib.sha256(lines).hexdigest()


# ---- round trips


@pytest.mark.parametrize("storage", ["fp32", "bf16", "int4", "int8", "int8-dynamic"])
@pytest.mark.parametrize("kind", MODELS)
def test_ours_to_published_and_back(tmp_path, kind, storage):
    model = random_model(**MODELS[kind])
    if storage.startswith("int"):
        model = quantized(model, storage)
    elif storage == "bf16":
        model.to(torch.bfloat16)
    ours = checkpoint.save(model, tmp_path / "ours", notes="Trained for a test.\n\n## More")
    stated = convert(ours, tmp_path / "b", to="proteinglm", max_bytes=5000)
    again = convert(tmp_path / "b", tmp_path / "again", max_bytes=3000)
    assert stated.weights_sha256 == again.weights_sha256 == digest_by_hand(model.state_dict())
    assert again.config == model.config == load(tmp_path / "b").config
    assert same(load(tmp_path / "again").state_dict(), model.state_dict())
    assert same(tensors(tmp_path / "again"), tensors(ours))
    assert (tmp_path / "again/MODEL_CARD.md").read_bytes() == (ours / "MODEL_CARD.md").read_bytes()
    assert hub.licence(tmp_path / "b") == model.config.licence.replace(" ", "-")
    convert(tmp_path / "again", tmp_path / "twice", to="proteinglm", max_bytes=5000)
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("files", ["safetensors", "safetensors shards", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("is_2d", "is_causal"), [(False, False), (False, True), (True, False), (True, True)])
def test_published_to_ours_and_back(tmp_path, is_2d, is_causal, dtype, files):
    """Frequencies in half precision are half-precision numbers again."""
    state = {name: weight.to(dtype) for name, weight in random_weights(is_2d).items()}
    label = dict(architectures=[f"ProteinGLMFor{'Casual' if is_causal else 'Masked'}LM"], torch_dtype=str(dtype)[6:])
    b = write(tmp_path / "b", state, files, rotary_embedding_2d=is_2d, is_causal=is_causal, **label)
    (b / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [a]\n---\n# A model\n")
    before = load(b)
    convert(b, tmp_path / "ours")
    assert same(load(tmp_path / "ours").state_dict(), before.state_dict())
    convert(tmp_path / "ours", tmp_path / "back", to="proteinglm")
    assert same(tensors(tmp_path / "back"), state)
    theirs, back = (json.loads((folder / "config.json").read_text()) for folder in (b, tmp_path / "back"))
    assert theirs.items() <= back.items()
    for folder in ("ours", "back"):
        card = next(
            (tmp_path / folder / name)
            for name in ("MODEL_CARD.md", "README.md")
            if (tmp_path / folder / name).is_file()
        )
        assert "# A model" in card.read_text() and load(tmp_path / folder).config.licence == "CC-BY-4.0"


def test_published_int4_keeps_its_bytes(tmp_path):
    half = random_model(objectives=("mlm", "gmask"), directions=("forward",), control_words=()).half()
    checkpoint.save(quantized(half, "int4"), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "b", to="proteinglm")
    (tmp_path / "b/xtrimo.json").unlink()  # now as any published one
    assert json.loads((tmp_path / "b/config.json").read_text())["quantization_bit"] == 4
    convert(tmp_path / "b", tmp_path / "again", dtype=torch.bfloat16)
    mine, theirs = tensors(tmp_path / "again"), tensors(tmp_path / "b")
    packed = [name for name, weight in theirs.items() if weight.dtype == torch.int8]
    assert len(packed) == 4 * 3 and published.load(tmp_path / "b").config.objectives == ("mlm", "gmask")
    for ours, name in pairs(load(tmp_path / "again").config, "published").items():
        kept = name in packed or name.endswith("_scale")
        assert torch.equal(mine[ours], theirs[name] if kept else theirs[name].bfloat16()), name


# ---- what the published code finds


@pytest.mark.parametrize("kind", ["mixed", "causal", "masked", "generates"])
def test_the_published_network_computes_the_same(tmp_path, kind):
    model = random_model(**MODELS[kind])
    checkpoint.save(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "b", to="proteinglm")
    content, state = json.loads((tmp_path / "b/config.json").read_text()), tensors(tmp_path / "b")
    sequences = toy_sequences(3, seed=1)
    for sequence, (hidden, logits) in zip(sequences, outputs(model, sequences), strict=True):
        expected = reference(state, sequence, content["rotary_embedding_2d"], content["is_causal"])
        torch.testing.assert_close(hidden, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-5)


def test_keys_shapes_and_fields_of_the_1b_model():
    """As the published one has them: 316 tensors, 4.84 GB."""
    config = PRESETS["proteinglm-1b"]
    names, extras = layouts.PROTEINGLM.names(config), layouts.PROTEINGLM.extras(config, torch.float32)
    with torch.device("meta"):
        shapes = {names[name]: tuple(weight.shape) for name, weight in GLM(config, seed=None).state_dict().items()}
    shapes |= {name: tuple(weight.shape) for name, weight in extras.items()}
    h, f, layer = 2048, 5461, "transformer.encoder.layers.23"
    assert len(shapes) == 316 and round(sum(4e-9 * torch.Size(shape).numel() for shape in shapes.values()), 3) == 4.837
    assert {name: shape for name, shape in shapes.items() if ".layers." not in name or name.startswith(layer)} == {
        "transformer.embedding.word_embeddings.weight": (128, h),
        f"{layer}.input_layernorm.weight": (h,),
        f"{layer}.input_layernorm.bias": (h,),
        f"{layer}.self_attention.query_key_value.weight": (3 * h, h),
        f"{layer}.self_attention.query_key_value.bias": (3 * h,),
        f"{layer}.self_attention.rotary_emb.inv_freq": (32,),
        f"{layer}.self_attention.dense.weight": (h, h),
        f"{layer}.self_attention.dense.bias": (h,),
        f"{layer}.post_attention_layernorm.weight": (h,),
        f"{layer}.post_attention_layernorm.bias": (h,),
        f"{layer}.mlp.dense_h_to_4h.weight": (2 * f, h),
        f"{layer}.mlp.dense_h_to_4h.bias": (2 * f,),
        f"{layer}.mlp.dense_4h_to_h.weight": (h, f),
        f"{layer}.mlp.dense_4h_to_h.bias": (h,),
        "transformer.encoder.final_layernorm.weight": (h,),
        "transformer.encoder.final_layernorm.bias": (h,),
        "transformer.output_layer.weight": (128, h),
    }
    content = published.to_published(config, torch.float32)
    assert {**CONFIG, **dict(
        num_layers=24, hidden_size=2048, num_attention_heads=32, kv_channels=64, ffn_hidden_size=5461, seq_length=1024
    )}.items() <= content.items()  # fmt: skip
    assert content["attention_dropout"] == content["hidden_dropout"] == 0.0 and content["bias_dropout_fusion"] is True


def test_shards_are_indexed_as_transformers_does(ours, tmp_path):
    convert(ours, tmp_path / "b", to="proteinglm", max_bytes=4000)
    index = json.loads((tmp_path / "b/model.safetensors.index.json").read_text())
    files = sorted(file.name for file in (tmp_path / "b").glob("*.safetensors"))
    assert (
        files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)] and len(files) > 3
    )
    for file in files:
        state = load_file(tmp_path / "b" / file)
        assert len(state) == 1 or sum(weight.nbytes for weight in state.values()) <= 4000
        assert sorted(state) == sorted(name for name, place in index["weight_map"].items() if place == file)
        with safe_open(tmp_path / "b" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert index["metadata"] == {"total_size": sum(weight.nbytes for weight in tensors(tmp_path / "b").values())}
    assert (tmp_path / "b/tokenizer.model").stat().st_size == 112
    assert oct((tmp_path / "b" / files[0]).stat().st_mode) == oct((tmp_path / "b/config.json").stat().st_mode)


# ---- precision


def test_a_cast_is_torchs_and_shards_are_of_its_size(ours, tmp_path):
    stated = convert(ours, tmp_path / "half", dtype=torch.bfloat16, max_bytes=4000)
    model = load(ours).to(torch.bfloat16)
    assert same(tensors(tmp_path / "half"), model.state_dict())
    assert stated.weights_sha256 == digest_by_hand(model.state_dict())
    convert(ours, tmp_path / "full", max_bytes=8000)
    assert len(list((tmp_path / "half").iterdir())) == len(list((tmp_path / "full").iterdir()))


def test_a_number_too_large_for_the_precision_is_refused(tmp_path):
    model = random_model()
    model.blocks[1].mlp.up.weight.data[3, 4] = 7e4
    checkpoint.save(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"blocks.1.mlp.up.weight holds 7e\+04.*take bf16"):
        convert(tmp_path / "ours", tmp_path / "half", dtype=torch.float16)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ours"]
    model.blocks[1].mlp.up.weight.data[3, 4] = float("nan")  # what is no number before may be none after
    checkpoint.save(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "half", dtype=torch.float16)
