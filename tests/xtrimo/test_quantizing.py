"""Models in 8 and 4 bits: the layers by hand, what is judged and stored, what is refused; and every verb on them."""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from generate.infilling import main as infill_main
from generate.sampler import main as generate_main
from tests.xtrimo.published_reference import random_weights, write
from tests.xtrimo.random_models import random_model
from xtrimo import checkpoint, info
from xtrimo.attention import within
from xtrimo.backbone import load
from xtrimo.config import Quantization
from xtrimo.conversion import convert
from xtrimo.embedding_file import main as embed_main
from xtrimo.errors import CheckpointError, ConfigError
from xtrimo.fasta import Record, read_fasta, write_fasta
from xtrimo.model import GLM
from xtrimo.prepacking import MOST_LOST, prepack
from xtrimo.quantization import Int8DynamicLinear, Int8RowLinear, quantize_int8, unpack_int8
from xtrimo.quantizing import EXAMPLES, QuantizeOptions, judge, main, proteins_to_judge, quantized
from xtrimo.scoring import main as score_main
from xtrimo.scoring import score
from xtrimo.testing import toy_config, toy_sequences

KINDS = pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "int4"])
FLAGS = {"int8": ["--bits", "8"], "int8-dynamic": ["--bits", "8", "--dynamic"], "int4": ["--bits", "4"]}
MASKED = dict(rotary="1d", objectives=("mlm",), directions=("forward",), control_words=())
CAUSAL = MASKED | dict(objectives=("causal",))


@pytest.fixture
def model() -> GLM:
    model, generator = GLM(toy_config()).eval(), torch.Generator().manual_seed(5)
    for weight in model.state_dict().values():
        if weight.dim() == 1:  # fresh biases are zero, norms one: a mistake in them would not show
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.output.weight.data *= 20
    return model


@pytest.fixture
def fasta(tmp_path) -> Path:
    write_fasta(tmp_path / "in.fasta", [Record(f"p{i}", s) for i, s in enumerate(toy_sequences(6, min_length=30))])
    return tmp_path / "in.fasta"


def written_out(model: GLM) -> GLM:
    """The same weights as a plain model."""
    config = checkpoint.GLMConfig.from_dict({**model.config.to_dict(), "quantization": "none"})
    state = model.state_dict()
    for name in [name for name in state if name.endswith("_scale")]:
        scale, stem = state.pop(name), name.removesuffix("_scale")
        numbers = state[stem].numpy().astype(np.int64)
        if model.config.quantization == "int4":
            halves = np.stack((numbers >> 4, numbers % 16), axis=2)
            numbers = np.where(halves > 7, halves - 16, halves).reshape(len(numbers), -1)
        state[stem] = torch.from_numpy((numbers * scale.double().numpy()[:, None]).astype(np.float32))
    plain = GLM(config, seed=None)
    plain.load_state_dict(state)
    return plain.eval()


def states(model: GLM, sequence: str) -> torch.Tensor:
    example = model.tokenize(sequence)
    segments = torch.tensor([[0, len(example.tokens), example.prefix]])
    tokens, positions = (torch.from_numpy(x).long() for x in (example.tokens, example.positions))
    with torch.inference_mode():
        return model.hidden(tokens, positions, within(segments))[0].float()


# ---- layers


def test_eight_bits_by_hand() -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    numbers, scale = quantize_int8(weight)
    for row, of, step in zip(weight.tolist(), numbers.tolist(), scale.tolist(), strict=True):
        assert step == float(torch.tensor(max(map(abs, row)) / 127).half())
        assert of == [round(x / step) if step else 0 for x in row]
    assert max(numbers.abs().amax(1).tolist()) == 127 and not numbers[2].any()
    exact = numbers.double() * scale.double()[:, None]
    assert torch.equal(unpack_int8(numbers, scale, torch.float32).double(), exact.float().double())


def filled_layer(kind: type, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    layer, (numbers, scale) = kind(weight.shape[1], weight.shape[0]), quantize_int8(weight)
    layer.load_state_dict({"weight": numbers, "weight_scale": scale, "bias": bias})
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dynamic_layer_by_hand(dtype) -> None:
    """Both sides in whole numbers; each token by its own scale, whatever it is read with."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((300, 48), (40, 48), (40,)))
    x[7] *= 100
    x = x.to(dtype)
    layer = filled_layer(Int8DynamicLinear, weight, bias).to(dtype)
    got = layer(x).detach().float()
    exact, (numbers, scale) = x.float().numpy(), quantize_int8(weight)
    steps = np.abs(exact).max(1, keepdims=True) / 127
    whole = np.rint(exact / steps).astype(np.int64) @ numbers.numpy().astype(np.int64).T
    expected = whole * steps * scale.float().numpy() + bias.to(dtype).float().numpy()
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 0.02, torch.float16: 0.02}[dtype] * np.abs(expected).max(1)[
        :, None
    ]
    assert (np.abs(got.numpy() - expected) < tolerance + 1e-4).mean() > 0.999
    for rows in (slice(7, 8), slice(120, 141)):
        assert torch.equal(layer(x[rows]).detach().float(), got[rows])
    plain = F.linear(x.float(), weight, bias)
    assert (got - plain).norm() / plain.norm() < 0.02


def test_a_dynamic_layer_has_no_gradients() -> None:
    layer = filled_layer(Int8DynamicLinear, torch.ones(3, 4), torch.zeros(3))
    x = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(ConfigError, match="no gradients"):
        layer(x)
    with torch.no_grad():
        layer(x)
    weight_only = filled_layer(Int8RowLinear, torch.ones(3, 4), torch.zeros(3))
    weight_only(x).sum().backward()
    assert x.grad is not None


# ---- models


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("changes", [{}, MASKED, CAUSAL], ids=["mixed", "masked", "causal"])
def test_weight_only_is_the_model_of_its_weights_written_out(kind: Quantization, changes) -> None:
    packed = quantized(random_model(**changes), kind)
    for sequence in toy_sequences(4, seed=2):
        torch.testing.assert_close(states(packed, sequence), states(written_out(packed), sequence), rtol=0, atol=2e-5)


@KINDS
def test_a_quantized_model_is_near_its_own(model, kind) -> None:
    packed = quantized(model, kind)
    assert packed.config.num_params == model.config.num_params and packed.config.quantization == kind
    for sequence in toy_sequences(4, seed=2):
        cosine = F.cosine_similarity(states(packed, sequence), states(model, sequence)).min()
        assert (0.9 if kind == "int4" else 0.999) < cosine < 1 - 1e-7
    assert prepack(packed) is packed  # it has a layout of its own
    assert torch.equal(packed.output.weight, model.output.weight)


@KINDS
def test_bytes(model, kind) -> None:
    def size(of: GLM) -> int:
        return sum(weight.nbytes for name, weight in of.state_dict().items() if name.startswith("blocks."))

    assert size(model) / size(quantized(model, kind)) > (6 if kind == "int4" else 3.6)


# ---- the verb


@KINDS
def test_every_verb_reads_it(tmp_path, model, fasta, kind) -> None:
    checkpoint.save(model, tmp_path / "plain")
    main([f"{tmp_path}/plain", f"{tmp_path}/packed", *FLAGS[kind], "--fasta", str(fasta), "--force"])
    assert load(tmp_path / "packed").config.quantization == kind
    assert dict(info.facts(f"{tmp_path}/packed"))["quantization"] == kind
    found = {}
    for name in ("plain", "packed"):
        flags, out = ["--model", f"{tmp_path}/{name}"], tmp_path / f"out-{name}"
        out.mkdir()
        embed_main([str(fasta), f"{out}/states.h5", *flags])
        score_main([str(fasta), "--out", f"{out}/scores.csv", *flags])
        generate_main(["--num", "3", "--max-length", "20", "--seed", "1", "--out", f"{out}/new.fasta", *flags])
        infill_main(["--prompt", "MKT[5]AYIAKQR", "--num", "2", "--seed", "1", "--out", f"{out}/filled.fasta", *flags])
        with h5py.File(out / "states.h5") as file:
            vectors = {record: file[record][()] for record in file}
        rows = [line.split(",") for line in (out / "scores.csv").read_text().splitlines()]
        found[name] = (vectors, {row[0]: float(row[rows[0].index("nll")]) for row in rows[1:]})
        assert len(list(read_fasta(out / "new.fasta"))) == 3
        assert all(r.sequence.startswith("MKT") and len(r.sequence) == 15 for r in read_fasta(out / "filled.fasta"))
    for record, exact in found["plain"][0].items():
        cosine = F.cosine_similarity(*(torch.from_numpy(x) for x in (exact, found["packed"][0][record])))
        assert cosine.mean() > (0.9 if kind == "int4" else 0.999) and (exact != found["packed"][0][record]).any()
        assert found["packed"][1][record] == pytest.approx(
            found["plain"][1][record], abs=0.3 if kind == "int4" else 0.03
        )


def test_what_is_lost_is_printed_and_stored(tmp_path, model, fasta, capsys) -> None:
    checkpoint.save(model, tmp_path / "plain", notes="Trained for a test.")
    main([f"{tmp_path}/plain", f"{tmp_path}/packed", "--bits", "8", "--fasta", str(fasta)])
    said = capsys.readouterr().out
    stated = checkpoint.read_stated(tmp_path / "packed/config.json")
    lost = stated.quantized["lost"]
    assert lost.keys() == {"masked", "written"} and stated.quantized["proteins"] == 6
    card = (tmp_path / "packed/MODEL_CARD.md").read_text()
    assert "Trained for a test.\n\n## Quantization" in card and "| Quantization | int8 |" in card
    for way, of in lost.items():
        assert of["nll_rise"] == pytest.approx(math.log(of["ppl_after"] / of["ppl_before"]), abs=1e-6)
        for text in (f"{of['ppl_before']:.4f}", f"{of['ppl_after']:.4f}", f"{of['cosine']:.6f}"):
            assert text in said and text in card, way
    convert(tmp_path / "packed", tmp_path / "b", to="proteinglm")  # the figures go along
    again = convert(tmp_path / "b", tmp_path / "again")
    assert again.quantized == stated.quantized
    assert (tmp_path / "again/MODEL_CARD.md").read_text() == card


def test_the_perplexity_of_writing_is_that_of_scores(model) -> None:
    proteins = [Record(f"p{i}", s) for i, s in enumerate(toy_sequences(5, seed=4))]
    written = judge(model, model, proteins)["written"]
    scores = list(score(model, [p.sequence for p in proteins], method="likelihood", direction="forward"))
    words = sum(len(p.sequence) + 1 for p in proteins)  # and <eos>
    expected = math.exp(sum(of.total_nll for of in scores) / words)
    assert written.ppl_before == written.ppl_after == pytest.approx(expected, rel=1e-5)
    assert written.loss.cosine == pytest.approx(1) and written.loss.nll_rise == 0


@pytest.mark.parametrize(
    ("changes", "ways"), [(MASKED, {"masked"}), (CAUSAL, {"written"}), ({}, {"masked", "written"})]
)
def test_a_model_is_judged_in_the_ways_it_was_trained(changes, ways) -> None:
    model = random_model(**changes)
    assert judge(model, model, [Record("p", "MKTAYIAKQR")]).keys() == ways


def test_a_model_that_loses_too_much_is_not_saved(tmp_path, fasta, capsys, caplog) -> None:
    model = random_model()
    with torch.no_grad():  # one huge weight a row takes all the steps, and nothing ever meets it
        for block in model.blocks:
            block.mlp.up.weight[:, 0] = 500
            block.mlp.down.weight *= 100
            block.mlp_norm.weight[0] = block.mlp_norm.bias[0] = 0
    checkpoint.save(model, tmp_path / "plain")
    args = [f"{tmp_path}/plain", f"{tmp_path}/packed", "--bits", "4", "--fasta", str(fasta)]
    with pytest.raises(
        ConfigError, match=r"does not bear int4.*masked: cosine 0\..*allowed are cosine 0\.995.*--force"
    ):
        main(args)
    assert not (tmp_path / "packed").exists() and capsys.readouterr().out == ""
    main([*args, "--force"])
    assert "saved by --force" in caplog.text
    worst = checkpoint.read_stated(tmp_path / "packed/config.json").quantized["lost"]["masked"]
    assert worst["cosine"] < MOST_LOST.cosine and f"{worst['cosine']:.6f}" in capsys.readouterr().out


def test_what_cannot_be(tmp_path, fasta, model) -> None:
    with pytest.raises(ConfigError, match="--dynamic is for --bits 8"):
        QuantizeOptions(model="m", out=tmp_path / "out", bits=4, dynamic=True)
    with pytest.raises(ConfigError, match="is there already"):
        main(["m", str(tmp_path), "--bits", "8"])
    with pytest.raises(ConfigError, match="in int8 already"):
        quantized(quantized(model, "int8"), "int4")
    with pytest.raises(ConfigError, match="hidden_size 24 and ffn_size 9 must be even"):
        quantized(random_model(ffn_size=9), "int4")
    assert quantized(random_model(ffn_size=9), "int8").config.quantization == "int8"
    model.blocks[2].mlp.down.weight.data[0, 0] = math.inf
    with pytest.raises(ConfigError, match=r"blocks.2.mlp.down.weight holds infinities"):
        quantized(model, "int8")
    checkpoint.save(quantized(random_model(), "int8-dynamic"), tmp_path / "dynamic")
    with pytest.raises(ConfigError, match="int8-dynamic weights are for the CPU, not for meta"):
        load(tmp_path / "dynamic", device="meta")
    assert not (tmp_path / "out").exists()


def test_int8_on_the_fly_is_not_for_what_is_quantized(tmp_path, model, fasta) -> None:
    checkpoint.save(quantized(model, "int8-dynamic"), tmp_path / "packed")
    with pytest.raises(ConfigError, match="quantization int8-dynamic; use another precision"):
        embed_main([str(fasta), f"{tmp_path}/x.h5", "--model", f"{tmp_path}/packed", "--precision", "int8"])


def test_published_eight_bits_load_as_four_do(tmp_path) -> None:
    """The field quantization_bit, as the published code has it: 8 is a byte a number."""
    state = {}
    for name, weight in random_weights(True).items():
        if weight.dim() == 2 and ".layers." in name:
            state[name], state[f"{name}_scale"] = quantize_int8(weight)
        else:
            state[name] = weight.half()
    directory = write(tmp_path / "m", state, quantization_bit=8, rotary_embedding_2d=True)
    found = load(directory)
    assert found.config.quantization == "int8"
    name = "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"
    assert torch.equal(found.state_dict()["blocks.1.mlp.up.weight"], state[name])
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**content, "quantization_bit": 4}))
    with pytest.raises(CheckpointError, match=r"has shape \(72, 24\), the config says \(72, 12\)"):
        load(directory)


@pytest.mark.skipif(not EXAMPLES.is_file(), reason="the examples lie in the checkout")
def test_proteins_to_judge(fasta, tmp_path, monkeypatch) -> None:
    chosen = proteins_to_judge(None, 100)
    assert 4000 <= sum(len(p.sequence) for p in chosen) < 4100 and max(len(p.sequence) for p in chosen) == 96
    assert len(proteins_to_judge(fasta, 100)) == 6
    monkeypatch.setattr("xtrimo.quantizing.EXAMPLES", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="give --fasta"):
        proteins_to_judge(None, 100)
