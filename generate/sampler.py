"""New proteins from a model: `<gmask><sop><eos>PREFIX` is read once, then each row writes one residue a step.

Drawn are the 20 amino acids and `<eos>`, nothing else. A row that draws `<eos>` leaves the batch. Sequence i of seed s
has a random stream of its own, keyed by (s, i), and is the same whatever it is batched with.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor
from tyro.conf import arg

from generate.logits import distribution, draw
from generate.prompt import prompt_residues
from xtrimo.backbone import Backbone
from xtrimo.cache import KVCache
from xtrimo.command import ModelOptions, progress_bar, replacing
from xtrimo.errors import ConfigError
from xtrimo.fasta import Record, write_fasta
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.reading import PROMPT_WORDS, prompted, prompted_positions
from xtrimo.tokens import AMINO_ACIDS, EOS, FIRST_RESIDUE, Tokenizer

logger = logging.getLogger(__name__)

# Matrix products round differently in the remainder of their tiles of 4 rows; in full tiles a row's result is bitwise
# the same whatever rows are beside it. So the model always reads a multiple of 4 rows, the surplus ones for nothing.
_TILE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """What is drawn, and how. Impossible values raise ConfigError."""

    num: int = 1
    """Proteins to draw."""
    prompt: str = ""
    """Residues that each protein starts with."""
    seed: int = 0
    """Protein i of a seed is always the same one, under the same model and settings."""
    temperature: float = 0.9
    """Divides the logits; 0 always takes the likeliest residue."""
    top_p: float = 0.8
    """Draw from the fewest likeliest residues that reach this probability together; 1 draws from all. The end of the
    protein keeps its own probability."""
    max_length: int = 1000
    """Residues, prompt included, at which a protein is cut."""
    batch_size: int = 32
    """Proteins written at a time; changes speed and memory, not the proteins."""

    def __post_init__(self) -> None:
        for name in ("num", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0 and below 2**63")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0 (likeliest residue) or above, and finite"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if len(self.prompt) >= self.max_length:
            raise ConfigError(
                f"max_length is {self.max_length} and the prompt has {len(self.prompt)} residues; max_length counts the"
                " prompt and must be larger"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A drawn protein."""

    name: str
    """s0001 is the first of its seed."""
    sequence: str
    """Residues, those of the prompt included."""
    nll: float
    """Nats per residue of the whole sequence under the model itself (temperature 1, all rows); as xtrimo.score's."""
    seed: int
    """The seed of the run; with the number in the name it gives this protein again."""
    prompt: str
    """The residues it started from."""
    finished: bool
    """Whether the model ended it with `<eos>`; if not, it was cut at max_length."""

    @property
    def ppl(self) -> float:
        """Perplexity per residue, exp(nll)."""
        return exp(self.nll)

    @property
    def record(self) -> Record:
        """As FASTA."""
        facts = f"nll={self.nll:.4f} ppl={self.ppl:.3f} seed={self.seed} prompt={self.prompt}"
        return Record(self.name, self.sequence, facts)


def sample(
    model: Backbone,
    *,
    num: int = 1,
    prompt: str = "",
    seed: int = 0,
    temperature: float = 0.9,
    top_p: float = 0.8,
    max_length: int = 1000,
    batch_size: int = 32,
) -> list[Sample]:
    """Draw proteins; see SamplingConfig for the arguments.

    Raises:
        ConfigError: an impossible setting, or a model that cannot generate.
        SequenceError: a letter of the prompt is no residue.
    """
    config = SamplingConfig(
        num=num, prompt=prompt, seed=seed, temperature=temperature, top_p=top_p, max_length=max_length,
        batch_size=batch_size,
    )  # fmt: skip
    return list(iter_samples(model, config))


def iter_samples(
    model: Backbone, config: SamplingConfig, on_ended: Callable[[int], object] = lambda num: None
) -> Iterator[Sample]:
    """`sample`, batch by batch; `on_ended` hears how many rows have just ended."""
    if not isinstance(model, GLM):
        raise ConfigError("this model cannot generate: it is an encoder; generation needs a GLM")
    residues = prompt_residues(config.prompt, model.config)
    if len(PROMPT_WORDS) + config.max_length > model.config.max_length:
        warn_once(
            logger, "max_length %d goes beyond the %d tokens of a training row; what is written there is extrapolated",
            config.max_length, model.config.max_length,
        )  # fmt: skip
    tokenizer = Tokenizer(model.config.control_words)
    for start in range(0, config.num, config.batch_size):
        numbers = range(start, min(start + config.batch_size, config.num))
        tokens, nll = _write(model, residues, numbers, config, on_ended)
        for number, ids, nats in zip(numbers, tokens.T, nll.T, strict=True):
            length = int((ids != EOS).sum())
            if length == len(ids):
                warn_once(logger, "proteins that did not end within max_length %d were cut there", config.max_length)
            written = np.concatenate((residues, ids[:length]))
            yield Sample(
                name=f"s{number + 1:04}",
                sequence=tokenizer.decode(written),
                nll=float(nats[: len(residues) + length].mean(dtype=np.float64)),
                seed=config.seed,
                prompt=tokenizer.decode(residues),
                finished=length < len(ids),
            )


@torch.inference_mode()
def _write(
    model: GLM,
    residues: UInt8[np.ndarray, "prompt"],
    numbers: range,
    config: SamplingConfig,
    on_ended: Callable[[int], object],
) -> tuple[UInt8[np.ndarray, "step batch"], Float[np.ndarray, "residue batch"]]:
    """One batch: the tokens drawn, `<eos>` from the end on, and the nats of all residues, those of the prompt first."""
    batch, steps, device = len(numbers), config.max_length - len(residues), model.device
    prompt = torch.from_numpy(prompted(residues, model.config).tokens).long().to(device)
    positions = torch.from_numpy(prompted_positions(len(prompt) + steps, model.config)).to(device)
    uniforms = torch.from_numpy(_uniforms(config.seed, numbers, steps)).to(device)
    amino_acids = torch.arange(FIRST_RESIDUE, FIRST_RESIDUE + len(AMINO_ACIDS), device=device)
    choices = torch.cat((amino_acids, torch.tensor([EOS], device=device)))

    cache = KVCache(model.config, batch + -batch % _TILE, len(prompt) + steps, model.dtype, device)
    logits = model.output(model.hidden(prompt, positions[: len(prompt)], cache.prefill)[-1]).float()
    tokens = torch.full((steps, batch), EOS, device=device)
    nll = torch.zeros(len(residues) + steps, batch, device=device)
    nll[: len(residues)] = F.cross_entropy(logits[2:-1], prompt[3:], reduction="none")[:, None]  # <eos> says R1

    rows = torch.arange(batch, device=device)  # of `tokens`; row i of the cache writes column rows[i]
    logits = logits[-1:].expand(batch, -1)
    for step in range(steps):
        allowed = choices if step or len(residues) else amino_acids  # a protein has a residue
        # a protein ends once in hundreds of residues, so that a nucleus over all choices would never let it end
        end = len(amino_acids) if len(allowed) == len(choices) else None
        chances = distribution(logits[:, allowed], config.temperature, config.top_p, keep=end)
        token = allowed[draw(chances, uniforms[step, rows])]
        tokens[step, rows] = token
        nll[len(residues) + step, rows] = F.cross_entropy(logits, token, reduction="none")
        going = token != EOS
        if not going.all():
            kept = _close_ranks(going)
            on_ended(len(going) - len(kept))
            cache.keep(kept)
            rows, token = rows[kept], token[kept]
        if not len(rows) or step + 1 == steps:
            break
        token = F.pad(token, (0, -len(rows) % _TILE))
        place = positions[len(prompt) + step].expand(len(token), 2)
        logits = model.output(model.hidden(token, place, cache.attend)[-1]).float()[: len(rows)]
    on_ended(len(rows))
    return tokens.to(torch.uint8).cpu().numpy(), nll.cpu().numpy()


def _uniforms(seed: int, numbers: range, steps: int) -> Float64[np.ndarray, "step batch"]:
    """Numbers in (0, 1], one a step, from a stream for each protein; a longer stream begins like a shorter one."""
    keys = (np.array((seed, number), dtype=np.uint64) for number in numbers)
    return 1 - np.stack([np.random.Generator(np.random.Philox(key=key)).random(steps) for key in keys], axis=1)


def _close_ranks(going: Bool[Tensor, "row"]) -> Int[Tensor, "kept"]:
    """The rows to go on with, the last ones moved into the places of those that ended: few rows move.

    >>> _close_ranks(torch.tensor([True, False, True, False, True]))
    tensor([0, 4, 2])
    """
    staying = going.nonzero()[:, 0]
    kept = torch.arange(len(staying), device=going.device)
    kept[~going[: len(staying)]] = staying[staying >= len(staying)]
    return kept


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions(ModelOptions):
    """Draw new proteins from a model, as FASTA with nll (nats per residue), ppl, seed and prompt in the header."""

    sampling: Annotated[SamplingConfig, arg(name="")] = SamplingConfig()
    """Its flags carry no prefix."""
    out: Path | None = None
    """FASTA file, gzipped if it ends in .gz; replaced, once the new one is complete. By default stdout."""


def main(args: Sequence[str] | None = None) -> None:
    """`xtrimo generate`."""
    import tyro

    options = tyro.cli(GenerateOptions, prog="xtrimo generate", args=args)
    if options.precision == "int8":
        raise ConfigError("generation runs in fp32 or bf16; int8 is for embed and score")
    model = options.load()
    config = options.sampling
    with progress_bar() as progress:
        task = progress.add_task("generating", total=config.num)
        samples = iter_samples(model, config, lambda num: progress.advance(task, num))
        if options.out:
            with replacing(options.out) as partial:
                write_fasta(partial, (s.record for s in samples))
        else:
            for s in samples:
                print(f">{s.record.name} {s.record.description}\n{s.sequence}")
