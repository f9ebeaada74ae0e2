"""Mean embeddings of proteins at the shapes of ESM-2: this package's beside those of its peers.

    python -m benchmarks.embed --sizes 8M 35M 150M

Peers: Hugging Face's EsmModel one protein at a time (nothing padded: the strong baseline) and in padded batches of 8;
fair-esm's own extraction loop (from .venv/fair-esm, where `make test` puts it); the C++ engine esm-cpp in fp32 and int8
(`pip install --no-deps --target .venv/esm-cpp esm-cpp==0.2.1`). Ours are a GLM of the same depth, width and heads, its
GEGLU 8/3 of the width, so with as many weights. All weights are random: speed does not depend on them, and how far bf16
and int8 turn the states is a figure for random weights. From sequences to pooled arrays, tokens and pooling included.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from benchmarks import protocol
from benchmarks.protocol import PEER_BATCH, Machine, Report, Spread, Timings
from xtrimo.config import GLMConfig
from xtrimo.embedding import iter_embeddings
from xtrimo.model import GLM
from xtrimo.precision_loss import PrecisionLoss
from xtrimo.prepacking import prepack, prepack_int8
from xtrimo.tokens import RESIDUES

SHAPES = {"8M": (6, 320), "35M": (12, 480), "150M": (30, 640)}
NUM_HEADS, FFN_MULTIPLE = 20, 32
PROTEINS = {"8M": 24, "35M": 12, "150M": 8}
TOKENS_PER_BATCH = 4096  # the default of fair-esm's extraction script
STRONG, WEAK = "hf fp32 batch 1", "hf fp32 batch 8"
Variant = Callable[[], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to time."""

    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    sizes: tuple[str, ...] = tuple(SHAPES)
    """Shapes of ESM-2, one table each."""
    rounds: int = 5
    """Timed rounds, after one untimed call of every variant."""
    num_proteins: int = 0
    """0 takes 24, 12, 8 at 8M, 35M, 150M."""
    only: tuple[str, ...] = ()
    """Variants whose names begin with one of these; all by default."""
    out: Path = Path("runs/benchmarks")
    """Folder of embed_SIZE.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    for size in config.sizes:
        for report in measure(config, size):
            report.save(config.out, f"embed_{size}")
        print(report.to_markdown(), flush=True)


def measure(config: BenchmarkConfig, size: str) -> Iterator[Report]:
    """The report of one size, after each round."""
    proteins = protocol.list_proteins(config.fasta)
    lengths = [len(record.sequence) for record in proteins]
    chosen = protocol.stratified(lengths, config.num_proteins or PROTEINS[size])
    sequences = [proteins[i].sequence for i in chosen]
    subset = [lengths[i] for i in chosen]
    machine = Machine.here("transformers")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        models = our_models(size, sequences)
        ours = {name: lambda model=model: pooled(model, sequences) for name, model in models.items()}
        variants = {**ours, **peers(size, sequences, Path(folder))}
        kept = {name: run for name, run in variants.items() if not config.only or name.startswith(config.only)}
        exact = models["ours fp32"]
        turned = {name: least_cosine(models[name], exact, sequences) for name in models if name in kept}
        products = {name: protocol.gemm(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
        setting = dict(
            size=size, num_proteins=len(chosen), num_residues=sum(subset), cosine=turned,
            padding_factor=protocol.padding_factor(subset), padding_factor_of_list=protocol.padding_factor(lengths),
            flops=useful_flops(glm_config(size), subset),
        )  # fmt: skip
        runs: dict[str, Callable[[], object]] = dict(kept)
        for timings in protocol.interleave(runs | {f"gemm {n}": p.run for n, p in products.items()}, config.rounds):
            yield report_of(machine, setting, timings, {n: p.flops for n, p in products.items()})


def glm_config(size: str) -> GLMConfig:
    """A masked GLM of that size; its ffn is the multiple of 32 nearest to 8/3 of the width."""
    layers, width = SHAPES[size]
    return GLMConfig(
        num_layers=layers, hidden_size=width, num_heads=NUM_HEADS, rotary="1d", objectives=("mlm",), max_length=1024,
        ffn_size=FFN_MULTIPLE * round(8 * width / 3 / FFN_MULTIPLE), directions=("forward",), control_words=(),
    )  # fmt: skip


def useful_flops(config: GLMConfig, lengths: Sequence[int]) -> float:
    """Of the blocks, for these proteins with their `<eos>`; no output layer is computed."""
    head = 2 * config.vocab_size * config.hidden_size
    return sum((n + 1) * (config.flops_per_token(n + 1) - head) for n in lengths)


def our_models(size: str, sequences: Sequence[str]) -> dict[str, GLM]:
    """One model in three precisions, as `xtrimo embed` runs it."""
    model = GLM(glm_config(size)).eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    any_loss = PrecisionLoss(cosine=-1.0, nll_rise=float("inf"))
    eight, _ = prepack_int8(copy.deepcopy(half), sequences[:1], bounds=any_loss)
    return {"ours fp32": prepack(model), "ours bf16": prepack(half), "ours int8": eight}


def pooled(model: GLM, sequences: Sequence[str]) -> list[np.ndarray]:
    """The variant that is timed."""
    return [e.hidden for e in iter_embeddings(model, sequences, pooling="mean")]


def least_cosine(model: GLM, exact: GLM, sequences: Sequence[str]) -> float:
    """The smallest cosine between the states of a residue in two models."""
    pairs = zip(iter_embeddings(model, sequences), iter_embeddings(exact, sequences), strict=True)
    return min(
        float(F.cosine_similarity(torch.from_numpy(one.hidden), torch.from_numpy(other.hidden)).min())
        for one, other in pairs
    )


def peers(size: str, sequences: Sequence[str], folder: Path) -> dict[str, Variant]:
    """Those that are installed."""
    from transformers import EsmConfig, EsmForMaskedLM

    layers, width = SHAPES[size]
    torch.manual_seed(0)
    model = EsmForMaskedLM(
        EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=NUM_HEADS, intermediate_size=4 * width, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, max_position_embeddings=1026, layer_norm_eps=1e-5,
            position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True,
        )
    ).eval()  # fmt: skip
    half = copy.deepcopy(model.esm).to(torch.bfloat16)
    return {
        STRONG: lambda: hugging_face(model.esm, sequences, 1),
        WEAK: lambda: hugging_face(model.esm, sequences, PEER_BATCH),
        "hf bf16 batch 1": lambda: hugging_face(half, sequences, 1),
        **_fair_esm(size, sequences),
        **_esm_cpp(model, sequences, folder),
    }


ESM_WORDS = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES)
CLS, PAD, EOS = 0, 1, 2


def esm_ids(sequence: str) -> list[int]:
    """A protein in ESM's words."""
    return [CLS, *map(ESM_WORDS.index, sequence), EOS]


def hugging_face(model: Any, sequences: Sequence[str], batch: int) -> list[np.ndarray]:
    """The usual loop: batches in input order, padded to the longest."""
    out = []
    for start in range(0, len(sequences), batch):
        rows = [esm_ids(sequence) for sequence in sequences[start : start + batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        mask = (ids != PAD).long() if batch > 1 else None
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        out += [state[1 : len(row) - 1].mean(0).float().numpy() for state, row in zip(states, rows, strict=True)]
    return out


def _fair_esm(size: str, sequences: Sequence[str]) -> dict[str, Variant]:
    """The loop of fair-esm's extraction script: sorted by length, padded batches by token budget."""
    if not (place := Path(".venv/fair-esm").resolve()).is_dir():
        return {}
    sys.path.insert(0, str(place))
    import esm
    from esm.model.esm2 import ESM2

    sys.path.remove(str(place))
    layers, width = SHAPES[size]
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    model = ESM2(layers, width, NUM_HEADS, alphabet).eval()
    names = [str(i) for i in range(len(sequences))]
    data = esm.FastaBatchedDataset(names, list(sequences))
    convert = alphabet.get_batch_converter(1022)

    def extract() -> list[np.ndarray]:
        out = {}
        for batch in data.get_batch_indices(TOKENS_PER_BATCH, extra_toks_per_seq=1):
            labels, strings, tokens = convert([data[i] for i in batch])
            states = model(tokens, repr_layers=[layers], return_contacts=False)["representations"][layers]
            for label, string, state in zip(labels, strings, states, strict=True):
                out[label] = state[1 : len(string) + 1].mean(0).numpy()
        return [out[name] for name in names]

    return {"fair-esm extract": extract}


def _esm_cpp(model: Any, sequences: Sequence[str], folder: Path) -> dict[str, Variant]:
    """The C++ engine, on the same weights as the Hugging Face model."""
    if not (place := Path(".venv/esm-cpp").resolve()).is_dir():
        return {}
    sys.path.insert(0, str(place))
    import esm_cpp

    sys.path.remove(str(place))
    from safetensors.torch import save_file

    state = {name: weight.clone().contiguous() for name, weight in model.state_dict().items()}
    shape = model.config
    head_width = shape.hidden_size // NUM_HEADS
    turns = 1.0 / (10000 ** (torch.arange(0, head_width, 2).float() / head_width))
    for i in range(shape.num_hidden_layers):  # as in the checkpoints of its day
        state[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = turns.clone()
    state.setdefault("lm_head.decoder.weight", model.lm_head.decoder.weight.detach().clone())
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    state["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, shape.hidden_size)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(shape.to_dict(), default=str))
    ids = [np.array(esm_ids(sequence), dtype=np.int32) for sequence in sequences]
    engines = {
        name: esm_cpp.Model.load_from_safetensors(str(folder / "model.safetensors")) for name in ("fp32", "int8")
    }
    engines["int8"].quantize_weights()
    return {f"esm-cpp {name}": partial(engine.forward_scheduled, ids) for name, engine in engines.items()}


def report_of(machine: Machine, setting: dict[str, Any], timings: Timings, products: dict[str, float]) -> Report:
    """The table, and each target with what was reached."""
    rows = []
    for name in timings.seconds:
        ratios = [str(timings.speedup(name, peer)) if peer in timings.seconds else "" for peer in (STRONG, WEAK)]
        share = ""
        if name.startswith("ours"):
            precision = "fp32" if name.endswith("fp32") else "bf16"
            share = str(timings.share_of_peak(name, setting["flops"], f"gemm {precision}", products[precision]))
            share += " of bf16" if name.endswith("int8") else ""
        speed = f"{setting['num_residues'] / timings.spread(name).median:,.0f}"
        cosine = f"{setting['cosine'][name]:.6f}" if name in setting["cosine"] else ""
        rows.append((name, str(timings.spread(name)), *ratios, share, cosine, "" if "gemm" in name else speed))
    workload = (
        f"{setting['num_proteins']} proteins, {setting['num_residues']} residues; padding factor in batches of"
        f" {PEER_BATCH} {setting['padding_factor']:.3f} (of the whole list: {setting['padding_factor_of_list']:.3f});"
        f" {timings.num_rounds} rounds, median (range)"
    )
    return Report(
        title=f"Embedding, {setting['size']}", machine=machine, setting=setting, timings=timings,
        header=("variant", "CPU-s", f"x {STRONG}", f"x {WEAK}", "MFU", "least cosine to fp32", "residues/s"), rows=rows,
        notes=(workload, *goals(timings, setting, products)),
    )  # fmt: skip


def goals(timings: Timings, setting: dict[str, Any], products: dict[str, float]) -> Iterator[str]:
    """One line a target: asked, reached, met or not."""

    def line(text: str, reached: Spread | float, asked: float) -> str:
        value = reached.median if isinstance(reached, Spread) else reached
        return f"{text}, at least {asked}: {reached}, {'met' if value >= asked else 'NOT met'}"

    wide = SHAPES[setting["size"]][1] >= 640
    asked = [("ours fp32", STRONG, 1.05), ("ours fp32", "esm-cpp fp32", 1.9), ("ours int8", "esm-cpp int8", 1.0)]
    asked += [("ours bf16", STRONG, 1.7), ("ours bf16", WEAK, 3.5)] if wide else []
    for name, peer, goal in asked:
        if {name, peer} <= timings.seconds.keys():
            yield line(f"{name} against {peer}", timings.speedup(name, peer), goal)
    for precision in ("fp32", *(("bf16",) if wide else ())):
        if f"ours {precision}" in timings.seconds:
            share = timings.share_of_peak(
                f"ours {precision}", setting["flops"], f"gemm {precision}", products[precision]
            )
            yield line(f"share of the {precision} product's rate", share, 0.7)
    if "ours bf16" in setting["cosine"]:
        yield line("cosine of bf16 with our fp32", setting["cosine"]["ours bf16"], 0.9999)


if __name__ == "__main__":
    main()
