"""Writing proteins at the shapes of ESM-2: this package's engine beside Hugging Face `generate`.

    python -m benchmarks.generate --sizes 35M 150M                         one protein at a time
    python -m benchmarks.generate --sizes 35M --part many --scale 0.25     many, with 16 and 64 slots

The peer is a Llama of the same depth, width, heads and inner width, with as many weights to a few biases, and a
vocabulary of 128; it samples at temperature 1 from all words, as ours does. Weights are random, so lengths are forced:
to --residues, or in `many` to those of the fixed proteins, stratified by length, times --scale. The peer writes them in
batches of the same size as our slots, in the order of the list, each batch until its longest has ended. A smaller scale
takes less time, and takes from the keys and values their share of the work; the note says which one was used.

"ours bf16" with one slot has the bf16 weights laid out as fp16 and multiplies in fp32 (see HalfProduct); with more
slots it multiplies in bf16. Its keys and values are kept in bf16, and so are those of int8. Random weights may lose
more by int8 than its gate lets pass, and here nothing is judged but speed: the gate is open.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool

from benchmarks import protocol
from benchmarks.protocol import Machine, Report, Timings
from generate.engine import CHOICES, END, Decoding, write
from generate.starts import Start
from xtrimo.cache import bytes_per_token
from xtrimo.config import GLMConfig
from xtrimo.model import GLM
from xtrimo.precision_loss import PrecisionLoss
from xtrimo.reading import PROMPT_WORDS
from xtrimo.stepping import prepack_int8_to_generate, prepack_to_generate
from xtrimo.tokens import EOS, FIRST_RESIDUE, VOCAB_SIZE

SHAPES = {"8M": (6, 320, 864), "35M": (12, 480, 1280), "150M": (30, 640, 1728)}
NUM_HEADS = 20
ANY_LOSS = PrecisionLoss(cosine=-1.0, nll_rise=float("inf"))
PEER = "hf fp32"
GOALS = {("single", "150M"): (2.0, 3.0), ("single", "35M"): (1.9, 2.8), ("many", "150M"): (2.5, 3.0)}
GOALS["many", "35M"] = GOALS["many", "150M"]
Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkConfig:
    """What to time."""

    part: Literal["single", "many"] = "single"
    """One protein at a time, or many."""
    fasta: Path = protocol.FASTA
    """The file that proteins.txt was drawn from."""
    sizes: tuple[str, ...] = ("35M", "150M")
    """Shapes, one table each."""
    rounds: int = 5
    """Timed rounds, after one untimed call of every variant; of the many, with two residues each."""
    residues: int = 64
    """Of the one protein."""
    num: int = 256
    """Of the many."""
    scale: float = 1.0
    """Times the lengths of the many."""
    slots: tuple[int, ...] = (16, 64)
    """Proteins written at a time."""
    only: tuple[str, ...] = ()
    """Variants whose names begin with one of these; all by default."""
    out: Path = Path("runs/benchmarks")
    """Folder of generate_PART_SIZE.{json,md}."""


class Forced:
    """Writes a protein of that many residues; a Writer."""

    end = EOS
    unconditioned = None
    start = Start(
        np.array(PROMPT_WORDS, dtype=np.uint8),
        np.array([(i, 0) for i in range(len(PROMPT_WORDS))], dtype=np.int32), prefix=0,
    )  # fmt: skip
    _letters = np.arange(len(CHOICES)) != END

    def __init__(self, length: int) -> None:
        self.residues: list[int] = []
        self._length = length
        self.capacity = len(PROMPT_WORDS) + length - 1

    def allowed(self) -> Bool[np.ndarray, "choice"]:
        """Any residue."""
        return self._letters

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        """On to the next place of a 1-D model."""
        self.residues.append(choice)
        if len(self.residues) == self._length:
            return None
        return choice + FIRST_RESIDUE, len(PROMPT_WORDS) + len(self.residues) - 1, 0


def main() -> None:
    config = tyro.cli(BenchmarkConfig, description=__doc__)
    protocol.one_thread()
    for size in config.sizes:
        for report in measure(config, size):
            report.save(config.out, f"generate_{config.part}_{size}")
        print(report.to_markdown(), flush=True)


def measure(config: BenchmarkConfig, size: str) -> Iterator[Report]:
    """The report of one size, after each round."""
    lengths = [config.residues]
    if config.part == "many":
        every = [len(record.sequence) for record in protocol.list_proteins(config.fasta)]
        lengths = [max(1, round(config.scale * every[i])) for i in protocol.stratified(every, config.num)]
    slots = config.slots if config.part == "many" else (1,)
    machine = Machine.here("transformers")
    ours, theirs = our_models(size, max(slots)), peers(size)
    models = {name: model for name, model in (theirs | ours).items() if name.startswith(config.only or "")}

    def variants(lengths: Sequence[int]) -> dict[str, Run]:
        return {
            f"{name}, {num}": partial(static if name in theirs else written, m, lengths, num)
            for num in slots for name, m in models.items()
        }  # fmt: skip

    setting = dict(
        part=config.part, size=size, scale=config.scale, lengths=lengths, slots=slots,
        waste={num: waste(lengths, num) for num in slots},
        bytes_per_token={name: bytes_per_token(glm_config(size), m.dtype) for name, m in models.items()},
    )  # fmt: skip
    few = [2] * max(slots)  # a call of the many takes minutes, and the first one seconds more
    warm = variants(few) if config.part == "many" else None
    for timings in protocol.interleave(variants(lengths), config.rounds, warm=warm):
        yield report_of(machine, setting, timings)


def glm_config(size: str) -> GLMConfig:
    """A GLM that only writes, of the peer's shape."""
    layers, width, inner = SHAPES[size]
    return GLMConfig(
        num_layers=layers, hidden_size=width, num_heads=NUM_HEADS, ffn_size=inner, rotary="1d", objectives=("causal",),
        max_length=1024, directions=("forward",), control_words=(),
    )  # fmt: skip


def our_models(size: str, slots: int) -> dict[str, GLM]:
    """One model in three precisions, as generation runs it."""
    model = GLM(glm_config(size)).eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    eight, _ = prepack_int8_to_generate(half, ["MKVLAAGIVGLCAKAYLERE"], bounds=ANY_LOSS)
    return {
        "ours fp32": prepack_to_generate(model),
        "ours bf16": prepack_to_generate(half, slots=slots),
        "ours int8": eight,
    }


def written(model: GLM, lengths: Sequence[int], slots: int) -> int:
    """Our variant that is timed; the residues written."""
    jobs = ((number, Forced(length)) for number, length in enumerate(lengths))
    return sum(len(protein.choices) for protein in write(model, jobs, Decoding(), slots=slots))


def peers(size: str) -> dict[str, Any]:
    """Hugging Face's Llama of the shape, in two precisions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, inner = SHAPES[size]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=NUM_HEADS, num_key_value_heads=NUM_HEADS, max_position_embeddings=2048,
            bos_token_id=1, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    return {PEER: model, "hf bf16": copy.deepcopy(model).to(torch.bfloat16)}


@torch.inference_mode()
def static(model: Any, lengths: Sequence[int], batch: int) -> None:
    """Their variant: batches in order, each as long as its longest."""
    for start in range(0, len(lengths), batch):
        part = lengths[start : start + batch]
        prompt = torch.tensor([PROMPT_WORDS]).expand(len(part), -1)
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max(part), min_new_tokens=max(part),
            do_sample=True, top_k=0, temperature=1.0, pad_token_id=0,
        )  # fmt: skip


def waste(lengths: Sequence[int], batch: int) -> float:
    """Tokens that static batches write for each one that was asked for."""
    parts = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(len(part) * max(part) for part in parts) / sum(lengths)


def report_of(machine: Machine, setting: dict[str, Any], timings: Timings) -> Report:
    """The table, and each target with what was reached."""
    lengths, rows = setting["lengths"], []
    for name in timings.seconds:
        model, _, slots = name.rpartition(", ")
        peer = f"{PEER}, {slots}"
        ratio = str(timings.speedup(name, peer)) if peer in timings.seconds else ""
        kept = setting["bytes_per_token"][model]
        rows.append(
            (
                name, str(timings.spread(name)), ratio, f"{sum(lengths) / timings.spread(name).median:,.0f}",
                f"{kept / 1024:.1f}", f"{kept * int(slots) * (max(lengths) + len(PROMPT_WORDS)) / 2**20:,.1f}",
            )
        )  # fmt: skip
    waste = ", ".join(f"{num}: {factor:.2f}" for num, factor in setting["waste"].items())
    note = (
        f"{len(lengths)} proteins, {sum(lengths)} residues, the longest {max(lengths)}, lengths times"
        f" {setting['scale']}; tokens that static batches write for each one asked, by batch {waste};"
        f" {timings.num_rounds} rounds, median (range)"
    )
    return Report(
        title=f"Generation, {setting['part']}, {setting['size']}", machine=machine, setting=setting, timings=timings,
        header=("variant, slots", "CPU-s", f"x {PEER}", "residues/CPU-s", "KiB a token", "MiB in all slots, at most"),
        rows=rows, notes=(note, *goals(timings, setting)),
    )  # fmt: skip


def goals(timings: Timings, setting: dict[str, Any]) -> Iterator[str]:
    """One line a target: asked, reached, met or not."""
    asked = GOALS.get((setting["part"], setting["size"]), ())
    for slots in setting["slots"]:
        for name, goal in zip(("ours bf16", "ours int8"), asked, strict=False):
            mine, peer = f"{name}, {slots}", f"{PEER}, {slots}"
            if {mine, peer} <= timings.seconds.keys():
                reached = timings.speedup(mine, peer)
                verdict = "met" if reached.median >= goal else "NOT met"
                yield f"{mine} against {peer}, at least {goal}: {reached}, {verdict}"


if __name__ == "__main__":
    main()
