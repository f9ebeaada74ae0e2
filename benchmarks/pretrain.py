"""A whole pretraining step against Hugging Face's ESM at the same depth, width and heads, on the same masked proteins.

    python -m benchmarks.pretrain --models glm-35m --rounds 5

One unit of work is one optimizer step over the same proteins: forward, backward, clipping, AdamW (torch's fused one on
every side), one masking drawn beforehand. The sides differ in what is to be compared:

    hf        `EsmForMaskedLM`, batches of 8 padded in list order, gradients accumulated; fp32, and bf16 autocast
    plain     xtrimo.model.GLM over packed rows, in a plain torch loop; fp32, and bf16 with fp32 masters
    megatron  the real trainer at world size 1: its DDP, optimizer, schedule and reductions

ESM has a GELU of 4 widths where ours has a GEGLU of 8/3, so a token costs about the same. MFU counts the FLOPs of real
tokens only (the closing <eos> included), each side's own, against the best square matrix product of the same run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from benchmarks import overheads, protocol
from benchmarks.protocol import PEER_BATCH, Gemm, Machine, Report, Timings
from pretrain.config import BatchConfig, PretrainConfig
from pretrain.data import fill_rows
from pretrain.parallel import process_groups
from pretrain.trainer import Trainer
from xtrimo.attention import attend
from xtrimo.config import GLMConfig
from xtrimo.model import GLM
from xtrimo.objectives import IGNORE, Example, Fragment, ObjectiveConfig, mlm
from xtrimo.packing import Row, pack
from xtrimo.tokens import EOS, FIRST_RESIDUE, MASK, VOCAB_SIZE, encode_residues

PROTEINS = {"glm-1m": 96, "glm-8m": 96, "glm-35m": 32, "glm-150m": 16}
DTYPES: dict[Literal["fp32", "bf16"], torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
# ESM's words: <cls> <pad> <eos> <unk>, then the residues in the order of ours, ".", "-", a null, <mask>
ESM_CLS, ESM_PAD, ESM_EOS, ESM_FIRST_RESIDUE, ESM_MASK, ESM_WORDS = 0, 1, 2, 4, 32, 33
NO_LOSS = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to time."""

    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    models: tuple[str, ...] = ("glm-8m", "glm-35m", "glm-150m")
    """Presets, one table each."""
    sides: tuple[str, ...] = ("hf", "plain", "megatron")
    """Sides to time; ratios to absent ones are left out."""
    rounds: int = 5
    """Timed rounds, after one untimed call of every variant."""
    num_proteins: int = 0
    """Proteins in the step; 0 takes 96, 32, 16 at 8M, 35M, 150M."""
    row_length: int = 4096
    """Most tokens in one of our packed rows."""
    parts: tuple[Literal["step", "data", "save", "layouts"], ...] = ("step",)
    """The step itself, or what surrounds it (benchmarks/overheads.py)."""
    out: Path = Path("runs/benchmarks")
    """Folder of pretrain_MODEL.{json,md} and pretrain_PART.{json,md}."""


@dataclass(frozen=True, slots=True)
class Side:
    """One column of the comparison: a step to call, and the useful FLOPs in it."""

    step: Callable[[], float]
    """One optimizer step; its loss in nats."""
    flops: float
    precision: str


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    parts: dict[str, Callable[[], Report]] = {
        "layouts": lambda: overheads.layouts(config.fasta, config.rounds),  # forks, so before this process computes
        "data": lambda: overheads.data(config.fasta, config.rounds),
        "save": lambda: overheads.save(config.models, config.rounds),
    }
    for part in [part for part in parts if part in config.parts]:
        report = parts[part]()
        report.save(config.out, f"pretrain_{part}")
        print(report.to_markdown(), flush=True)
    for model in config.models if "step" in config.parts else ():
        for report in measure(config, model):
            report.save(config.out, f"pretrain_{model}")
        print(report.to_markdown(), flush=True)


def measure(config: BenchmarkConfig, model: str) -> Iterator[Report]:
    """The report of one model, after each round."""
    proteins = protocol.list_proteins(config.fasta)
    lengths = [len(record.sequence) for record in proteins]
    num_proteins = config.num_proteins or PROTEINS.get(model, 16)
    chosen = protocol.stratified(lengths, num_proteins)
    rng = np.random.default_rng(0)
    examples = [mlm(Fragment(encode_residues(proteins[i].sequence)), rng, ObjectiveConfig()) for i in chosen]
    rows = pack_rows(examples, config.row_length)
    subset = [lengths[i] for i in chosen]
    losses: dict[str, float] = {}
    setting = dict(
        model=model, num_proteins=num_proteins, num_residues=sum(subset), packed_rows=len(rows),
        padding_factor=protocol.padding_factor(subset), padding_factor_of_list=protocol.padding_factor(lengths),
        last_losses=losses,
    )  # fmt: skip
    machine = Machine.here("transformers", "megatron-core")
    products = {f"gemm {name}": protocol.gemm(dtype) for name, dtype in DTYPES.items()}
    with open_sides(config, model, examples, rows) as sides:
        variants = {name: _noting(losses, name, side.step) for name, side in sides.items()}
        variants |= {name: product.run for name, product in products.items()}
        for timings in protocol.interleave(variants, config.rounds):
            yield report_of(machine, setting, timings, sides, products)


def _noting(losses: dict[str, float], name: str, step: Callable[[], float]) -> Callable[[], object]:
    def run() -> None:
        losses[name] = step()

    return run


@contextmanager
def open_sides(
    config: BenchmarkConfig, model: str, examples: Sequence[Example], rows: Sequence[Row]
) -> Iterator[dict[str, Side]]:
    """Every variant by name. megatron's need its process groups, which one precision's config opens for both."""
    runs = {
        precision: PretrainConfig(
            corpus=Path(), run=Path(), model=model, precision=precision, batch=BatchConfig(row_length=config.row_length)
        )
        for precision in DTYPES
    }
    glm, rate = runs["fp32"].glm, runs["fp32"].optimizer.learning_rate
    sides: dict[str, Side] = {}
    if "hf" in config.sides:
        esm, useful = Esm(glm, examples, rate), esm_flops(glm, [len(example.tokens) + 1 for example in examples])
        sides["hf fp32"] = Side(_without_redirection(esm.step), useful, "fp32")
        sides["hf bf16 autocast"] = Side(_without_redirection(lambda: esm.step(autocast=True)), useful, "bf16")
    useful = 3 * sum(len(example.tokens) * glm.flops_per_token(len(example.tokens)) for example in examples)
    if "plain" in config.sides:
        for precision, run in runs.items():
            sides[f"plain {precision}"] = Side(_without_redirection(Plain(run, rows).step), useful, precision)
    if "megatron" not in config.sides:
        yield sides
        return
    with process_groups(runs["fp32"]):
        for precision, run in runs.items():
            sides[f"megatron {precision}"] = Side(_trainer_step(Trainer(run), rows), useful, precision)
        yield sides


def _trainer_step(trainer: Trainer, rows: Sequence[Row]) -> Callable[[], float]:
    return lambda: trainer.step(rows).losses.loss


def _without_redirection(step: Callable[[], float]) -> Callable[[], float]:
    """On a CPU megatron's variants need every torch call intercepted (see pretrain/cuda_names.py); others go free."""

    def run() -> float:
        with torch._C.DisableTorchFunction():
            return step()

    return run


def pack_rows(examples: Sequence[Example], row_length: int) -> list[Row]:
    """The examples in order, as many to a row as fit: the trainer's own rule."""
    starts = fill_rows(np.array([len(example.tokens) for example in examples]), row_length)
    return [pack(examples[a:b]) for a, b in pairwise(starts)]


class Plain:
    """The plain model in a plain torch loop: what megatron's machinery is measured against."""

    def __init__(self, config: PretrainConfig, rows: Sequence[Row]) -> None:
        self.config, self.optimizer_config = config, config.optimizer
        self.model = GLM(config.glm, seed=config.seed).to(DTYPES["bf16" if config.precision == "bf16" else "fp32"])
        self.weights: list[torch.Tensor] = list(self.model.parameters())
        self.masters = self.weights
        if config.precision == "bf16":
            self.masters = [weight.detach().float().requires_grad_() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, self.optimizer_config.learning_rate, fused=True)
        self.rows = [
            tuple(map(torch.from_numpy, (row.tokens, row.positions, row.segments, row.labels, row.weights)))
            for row in rows
        ]
        self.total = sum(float(row.weights.sum()) for row in rows)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = sum(self._backward(*row) for row in self.rows)
        torch.nn.utils.clip_grad_norm_(self.masters, self.optimizer_config.clip_norm)
        self.optimizer.step()
        if self.masters is not self.weights:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return loss

    def _backward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        segments: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> float:
        hidden = self.model.hidden(
            tokens, positions, lambda _, q, k, v: attend(q, k, v, segments),
            input_gradient=self.optimizer_config.embedding_gradient,
        )[-1]  # fmt: skip
        nll = F.cross_entropy(self.model.output(hidden).float(), labels, reduction="none")
        loss = (nll * weights).sum() / self.total
        loss.backward()
        if self.masters is not self.weights:  # fp32 sums of bf16 gradients, as in the trainer
            for master, weight in zip(self.masters, self.weights, strict=True):
                if weight.grad is not None:
                    master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None
        return float(loss.detach())


class Esm:
    """Hugging Face's ESM-2 with the options of its published checkpoints, and the optimizer its Trainer takes."""

    def __init__(self, glm: GLMConfig, examples: Sequence[Example], learning_rate: float) -> None:
        from transformers import EsmConfig, EsmForMaskedLM

        torch.manual_seed(0)
        self.model = EsmForMaskedLM(
            EsmConfig(
                vocab_size=ESM_WORDS, mask_token_id=ESM_MASK, pad_token_id=ESM_PAD, hidden_size=glm.hidden_size,
                num_hidden_layers=glm.num_layers, num_attention_heads=glm.num_heads,
                intermediate_size=4 * glm.hidden_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                max_position_embeddings=1026, layer_norm_eps=1e-5, position_embedding_type="rotary",
                emb_layer_norm_before=False, token_dropout=True,
            )
        ).train()  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), learning_rate, fused=True)
        self.batches = [
            esm_batch(examples[i : i + PEER_BATCH]) for i in range(0, len(examples), PEER_BATCH)
        ]  # (ids, mask, labels)
        self.num_labels = sum(int((labels != NO_LOSS).sum()) for _, _, labels in self.batches)

    def step(self, autocast: bool = False) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        for ids, mask, labels in self.batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                mean = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss = mean * (int((labels != NO_LOSS).sum()) / self.num_labels)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return total


def esm_batch(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, attention mask and labels (batch, length) of the same masked proteins in ESM's words, padded."""
    words = np.arange(VOCAB_SIZE) - FIRST_RESIDUE + ESM_FIRST_RESIDUE
    words[[EOS, MASK]] = ESM_EOS, ESM_MASK
    shape = (len(examples), 1 + max(len(example.tokens) for example in examples))
    ids, mask, labels = np.full(shape, ESM_PAD), np.zeros(shape, dtype=np.int64), np.full(shape, NO_LOSS)
    ids[:, 0] = ESM_CLS
    for i, example in enumerate(examples):
        end = 1 + len(example.tokens)
        ids[i, 1:end], mask[i, :end] = words[example.tokens], 1
        labels[i, 1:end] = np.where(example.labels == IGNORE, NO_LOSS, words[example.labels])
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels)


def esm_flops(glm: GLMConfig, lengths: Sequence[int]) -> float:
    """Useful FLOPs of ESM's training step: 12 width^2 weights a layer, attention, and its two-layer head."""
    h = glm.hidden_size
    weights = glm.num_layers * 12 * h * h + h * h + ESM_WORDS * h
    return 3 * sum(n * (2 * weights + glm.num_layers * 4 * n * h) for n in lengths)


def report_of(
    machine: Machine, setting: dict[str, Any], timings: Timings, sides: dict[str, Side], products: dict[str, Gemm]
) -> Report:
    """The table, and each target with what was reached."""
    rows = []
    for name, side in sides.items():
        peak = f"gemm {side.precision}"
        seconds = timings.spread(name)
        ratios = [str(timings.speedup(name, peer)) if peer in sides else "" for peer in ("hf fp32", "hf bf16 autocast")]
        mfu = timings.share_of_peak(name, side.flops, peak, products[peak].flops)
        rows.append((name, str(seconds), *ratios, f"{side.flops / seconds.median / 1e9:.1f}", str(mfu)))
    for name, product in products.items():
        seconds = timings.spread(name)
        rows.append((name, str(seconds), "", "", f"{product.flops / seconds.low / 1e9:.1f} at best", "1"))
    workload = (
        f"{setting['num_proteins']} proteins, {setting['num_residues']} residues a step, {setting['packed_rows']}"
        f" packed rows; hf pads batches of {PEER_BATCH}, padding factor {setting['padding_factor']:.3f} (of the whole"
        f" list: {setting['padding_factor_of_list']:.3f}); {timings.num_rounds} rounds, median (range)"
    )
    return Report(
        title=f"Training step, {setting['model']}", machine=machine, setting=setting, timings=timings,
        header=("step", "CPU-s", "x hf fp32", "x hf bf16 autocast", "useful GFLOP/s", "MFU"), rows=rows,
        notes=(workload, *(goals(timings, sides, products) if setting["model"] == "glm-35m" else ())),
    )  # fmt: skip


def goals(timings: Timings, sides: dict[str, Side], products: dict[str, Gemm]) -> Iterator[str]:
    """One line a target (stated for glm-35m): asked, reached, met or not."""

    def line(text: str, reached: Any, met: bool) -> str:
        return f"{text}: {reached}, {'met' if met else 'NOT met'}"

    ours = [name for name in ("megatron fp32", "megatron bf16") if name in sides]
    if not ours:
        return
    best = min(ours, key=lambda name: timings.spread(name).median)
    if "hf fp32" in sides:
        for name, peer, goal in (
            (best, "hf fp32", 2.6), (best, "hf bf16 autocast", 2.0), ("megatron fp32", "hf fp32", 1.9)
        ):  # fmt: skip
            reached = timings.speedup(name, peer)
            yield line(f"{name} against {peer}, at least {goal}x", reached, reached.median >= goal)
    for name, goal in (("megatron fp32", 0.70), ("megatron bf16", 0.50)):
        peak = f"gemm {sides[name].precision}"
        reached = timings.share_of_peak(name, sides[name].flops, peak, products[peak].flops)
        yield line(f"MFU of {name}, at least {goal}", reached, reached.median >= goal)
    for precision in DTYPES:
        if f"plain {precision}" in sides:
            cost = timings.speedup(f"plain {precision}", f"megatron {precision}")
            yield line(f"{precision} step of megatron over plain, at most 1.15", cost, cost.median <= 1.15)


if __name__ == "__main__":
    main()
