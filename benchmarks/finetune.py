"""A step of LoRA at the shape of ESM-2 35M: this package's beside that of transformers, peft and Trainer.

    python -m benchmarks.finetune

One unit of work is one optimizer step on the same proteins, half of them labelled 1: forward, backward, clipping, AdamW
(torch's fused one). Both sides have adapters of rank 16 beside every linear layer of the blocks, and a small head.

    hf      EsmForSequenceClassification (head on <cls>) under peft's get_peft_model, trained by Trainer: batches of 8
            in list order, padded to their longest, gradients accumulated
    ours    a GLM of the same depth, width and heads (GEGLU of 8/3 widths) under heads.predictor (head on the mean) and
            training.fit: the same proteins, packed

Each is timed as it is used: a call trains a fresh copy for one step more than is timed, and what counts is the time
from the end of the first step to that of the last: with the loop, metrics and schedule, without what a run costs once.
"""

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks import protocol
from benchmarks.embed import CLS, EOS, PAD, glm_config
from benchmarks.protocol import PEER_BATCH, Machine, Report, Timings
from heads.modules import HeadConfig
from heads.predictor import Predictor
from heads.rows import Row
from heads.tasks import custom_task
from xtrimo.adaptation import adapt, freeze_unused
from xtrimo.model import GLM
from xtrimo.states import LiveStates
from xtrimo.tokens import RESIDUES
from xtrimo.training import fit
from xtrimo.training_config import TrainingConfig

RANK, RATE = 16, 1e-4
WORDS = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES)
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
Run = Callable[[int], float]
"""From a number of steps to the CPU-seconds that they took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to time."""

    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    size: str = "35M"
    """Shape of ESM-2."""
    rounds: int = 5
    """Timed rounds, after one untimed call of every variant."""
    steps: int = 2
    """Steps of a timed call."""
    num_proteins: int = 16
    """Proteins of a step."""
    out: Path = Path("runs/benchmarks")
    """Folder of finetune_SIZE.{json,md}."""


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for report in measure(config):
        report.save(config.out, f"finetune_{config.size}")
    print(report.to_markdown(), flush=True)


def measure(config: BenchmarkConfig) -> Iterator[Report]:
    """The report, after each round."""
    proteins = protocol.list_proteins(config.fasta)
    lengths = [len(record.sequence) for record in proteins]
    chosen = protocol.stratified(lengths, config.num_proteins)
    rows = [Row(sequence=proteins[i].sequence, label=n % 2, name=proteins[i].name) for n, i in enumerate(chosen)]
    subset = [lengths[i] for i in chosen]
    runs: dict[str, Run] = {
        "hf fp32": hugging_face(config.size, rows, "fp32"), "hf bf16 autocast": hugging_face(config.size, rows, "bf16"),
        "ours fp32": ours(config.size, rows, "fp32"), "ours bf16 autocast": ours(config.size, rows, "bf16"),
    }  # fmt: skip
    clock = _Clock()
    variants = {name: lambda run=run: clock.add(run(config.steps)) for name, run in runs.items()}
    setting = dict(
        size=config.size, num_proteins=len(rows), num_residues=sum(subset), steps=config.steps,
        padding_factor=protocol.padding_factor(subset), padding_factor_of_list=protocol.padding_factor(lengths),
    )  # fmt: skip
    for timings in protocol.interleave(variants, config.rounds, clock=clock.read):
        yield report_of(Machine.here("transformers", "peft"), setting, timings, config.steps)


class _Clock:
    """A clock that only what is added moves, so that a variant can leave out what is not the step."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.seconds += seconds

    def read(self) -> float:
        return self.seconds


def _stepping(times: list[float]) -> float:
    """CPU-seconds from the first of these times to the last."""
    return times[-1] - times[0]


def ours(size: str, rows: Sequence[Row], precision: Any) -> Run:
    """`heads` and `training.fit`, as `xtrimo finetune --method lora` has them."""
    model = GLM(glm_config(size))
    adapt(model, "lora", rank=RANK, alpha=RANK)
    config = HeadConfig(level="sequence", width=model.width, num_outputs=2, pooling="mean", dropout=0.0)
    predictor = Predictor(
        custom_task("bench", level="sequence", target="classes"), LiveStates(model, (-1,), True), config
    )
    freeze_unused(predictor, lambda: predictor.loss(rows[:2])[0])

    def run(steps: int) -> float:
        ends: list[float] = []
        own = copy.deepcopy(predictor)

        def batches(step: int) -> Sequence[Row]:
            ends.append(time.process_time())  # of the step before
            return rows

        training = TrainingConfig(steps=steps + 1, learning_rate=RATE, precision=precision, accumulate=2, log_every=1,
                                  save_every=10**6)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            fit(own, lambda _, items: own.loss(items), batches, training, folder)
        return _stepping(ends)

    return run


def hugging_face(size: str, rows: Sequence[Row], precision: str) -> Run:
    """Trainer, with the data collator's padding and its own loop."""
    from peft import LoraConfig, get_peft_model
    from transformers import EsmForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(0)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, modules_to_save=["classifier"])
    model = get_peft_model(EsmForSequenceClassification(esm_config(size)), lora)
    examples = [dict(input_ids=esm_ids(row.sequence), labels=int(row.label)) for row in rows]

    class Ends(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.process_time())

    def run(steps: int) -> float:
        ends = Ends()
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps + 1, learning_rate=RATE, per_device_train_batch_size=PEER_BATCH,
                gradient_accumulation_steps=len(rows) // PEER_BATCH, bf16=precision == "bf16", use_cpu=True,
                report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, optim="adamw_torch_fused",
                warmup_steps=0.05, max_grad_norm=1.0,
            )  # fmt: skip
            trainer = in_order(Trainer)(copy.deepcopy(model), args, train_dataset=examples, data_collator=collate,
                                        callbacks=[ends])  # fmt: skip
            trainer.train()
        return _stepping(ends.times)

    return run


def in_order(trainer: Any) -> Any:
    """Trainer that takes the rows in the order of the list, whose padding is that of the whole list."""

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: object) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def log(self, *_: object, **__: object) -> None:
            """Say nothing."""

    return InOrder


def esm_config(size: str) -> Any:
    """ESM-2 at that size, with the options of its published checkpoints."""
    from transformers import EsmConfig

    glm = glm_config(size)
    return EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=PAD, hidden_size=glm.hidden_size,
        num_hidden_layers=glm.num_layers, num_attention_heads=glm.num_heads, intermediate_size=4 * glm.hidden_size,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=1026, layer_norm_eps=1e-5,
        position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True, num_labels=2,
    )  # fmt: skip


def esm_ids(sequence: str) -> list[int]:
    """A protein in ESM's words."""
    return [CLS, *map(WORDS.index, sequence), EOS]


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest."""
    longest = max(len(example["input_ids"]) for example in examples)
    ids = torch.tensor([e["input_ids"] + [PAD] * (longest - len(e["input_ids"])) for e in examples])
    return dict(input_ids=ids, attention_mask=(ids != PAD).long(), labels=torch.tensor([e["labels"] for e in examples]))


def report_of(machine: Machine, setting: dict[str, Any], timings: Timings, steps: int) -> Report:
    """The table, and the target with what was reached."""
    rows = []
    for name in timings.seconds:
        ratios = [str(timings.speedup(name, peer)) for peer in ("hf fp32", "hf bf16 autocast")]
        spread = timings.spread(name)
        rows.append(
            (name, f"{spread.median / steps:.3g} ({spread.low / steps:.3g}..{spread.high / steps:.3g})", *ratios)
        )
    best = {side: min((n for n in timings.seconds if n.startswith(side)), key=lambda n: timings.spread(n).median)
            for side in ("ours", "hf")}  # fmt: skip
    reached = timings.speedup(best["ours"], best["hf"])
    workload = (
        f"{setting['num_proteins']} proteins, {setting['num_residues']} residues a step; hf pads batches of"
        f" {PEER_BATCH}, padding factor {setting['padding_factor']:.3f} (of the whole list:"
        f" {setting['padding_factor_of_list']:.3f}); {timings.num_rounds} rounds of {steps} steps, median (range)"
    )
    goal = f"{best['ours']} against {best['hf']}, at least 2x: {reached}, {'met' if reached.median >= 2 else 'NOT met'}"
    return Report(
        title=f"LoRA step, {setting['size']}", machine=machine, setting=setting, timings=timings,
        header=("step", "CPU-s a step", "x hf fp32", "x hf bf16 autocast"), rows=rows, notes=(workload, goal),
    )  # fmt: skip


if __name__ == "__main__":
    main()
