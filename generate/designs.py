"""Proteins written to order: tasks in, samples out, whichever way each is written. All verbs that write end here."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import exp, isnan, nan
from typing import NamedTuple

import numpy as np

from generate.drawing import DrawingConfig
from generate.engine import END, Written, write
from generate.hooks import Hooks
from generate.limits import Budget, Limit
from generate.prompt import Fixed, Gap, Prompt
from generate.unmasking import Unmasked, UnmaskingConfig, iter_unmasked
from generate.ways import Task, Way, check_task, open_writer
from generate.writers import PromptedWriter, SpanWriter
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError, XtrimoError
from xtrimo.fasta import Record
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.tokens import AMINO_ACIDS

logger = logging.getLogger(__name__)

_LENGTHS = 1  # of the random streams of a protein: the engine's is keyed by (seed, number) alone
_NOT_FOR_MASKS = ("top_k", "min_p", "guidance", "repetition_penalty", "complexity_penalty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A protein that was written."""

    number: int
    """Its place in the run: by prompt, then as they are counted in the name."""
    name: str
    """s0001 is the first of its seed; of a named prompt NAME_0001."""
    sequence: str
    """All residues, those given included."""
    nll: float
    """Nats per residue under the model itself (temperature 1, all rows). Written forward or in reverse: of the whole
    sequence, as xtrimo.score's with direction="forward" or "reverse", but of a protein that was cut without its end. By
    smask or mlm: of the residues that filled the gaps, each as it was drawn; NaN where the gaps got no residue."""
    seed: int
    """The seed of the run."""
    prompt: str
    """What was asked for."""
    way: Way
    """How it was written."""
    finished: bool
    """Whether it came to its end; if not, it was cut at max_length."""
    score: float | None = None
    """Of the function that ranks."""

    @property
    def ppl(self) -> float:
        """Perplexity per residue, exp(nll)."""
        return exp(self.nll)

    @property
    def record(self) -> Record:
        """As FASTA."""
        facts = "" if isnan(self.nll) else f"nll={self.nll:.4f} ppl={self.ppl:.3f} "
        facts += f"seed={self.seed} prompt={self.prompt}"
        if self.way != "forward":
            facts += f" way={self.way}"
        if not self.finished:
            facts += " finished=no"
        if self.score is not None:
            facts += f" score={self.score:.6g}"
        return Record(self.name, self.sequence, facts)


class Refused(NamedTuple):
    """A protein that the screen did not let pass. Its residues are forgotten."""

    number: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Brief:
    """What is to be written, and how."""

    tasks: tuple[Task, ...]
    """Protein i of task t has the number t * num + i. Its random stream is keyed by i * (number of tasks) + t, so that
    it is the same whatever `num` is."""
    config: DrawingConfig
    max_length: int
    """Residues at which a protein is cut."""
    hooks: Hooks = Hooks()
    unmasking: UnmaskingConfig = UnmaskingConfig()
    """For what is written by mlm; seed, temperature and top_p are those of `config`."""

    @property
    def num(self) -> int:
        """Proteins in all."""
        return len(self.tasks) * self.config.num

    def check(self, model: Backbone) -> None:
        """Refuse what cannot be written, before anything is.

        Raises:
            ConfigError, SequenceError: some task cannot be satisfied by the model and the settings; names it.
        """
        for number, task in enumerate(self.tasks):
            try:
                self._check(model, number, task)
            except XtrimoError as error:
                raise type(error)(f"{task.name}: {error}" if task.name else str(error)) from error

    def _check(self, model: Backbone, number: int, task: Task) -> None:
        check_task(model, task, self.max_length)
        if task.way == "mlm":
            self._check_mlm(task.prompt)
            return
        writer = self._writer(model, number, task)
        if self.config.guidance != 1 and writer.unconditioned is None:
            raise ConfigError(
                f"guidance is {self.config.guidance} and prompt '{task.prompt}' gives nothing to stress; leave it at 1"
            )

    def _stream(self, number: int) -> int:
        """What the random streams of a protein are keyed by."""
        t, i = divmod(number, self.config.num)
        return i * len(self.tasks) + t

    def _number(self, stream: int) -> int:
        i, t = divmod(stream, len(self.tasks))
        return t * self.config.num + i

    def name(self, number: int) -> str:
        """What a protein is called."""
        task, i = self.tasks[number // self.config.num], number % self.config.num
        return f"{task.name}_{i + 1:04}" if task.name else f"s{i + 1:04}"

    def _writer(self, model: Backbone, stream: int, task: Task) -> PromptedWriter | SpanWriter:
        assert isinstance(model, GLM)
        rng = np.random.default_rng([self.config.seed, stream, _LENGTHS])
        return open_writer(task, model.config, max_length=self.max_length, limits=self.config.limits, rng=rng)

    def _check_mlm(self, prompt: Prompt) -> None:
        usual = DrawingConfig()
        if changed := [name for name in _NOT_FOR_MASKS if getattr(self.config, name) != getattr(usual, name)]:
            raise ConfigError(f"{', '.join(changed)} cannot be had by mlm; leave it out, or write by smask")
        if self.hooks.logits:
            raise ConfigError("logits of mlm are of many places at once; a function on them is for the other ways")
        _limited(prompt, self.config.limits)

    def written(
        self, model: Backbone, done: Collection[int] = (), on_ended: Callable[[int], object] = lambda num: None
    ) -> Iterator[Sample | Refused]:
        """Each protein as soon as it has ended, so in no fixed order.

        Args:
            done: numbers to leave out.
            on_ended: hears how many have just ended.
        """
        self.check(model)
        c = self.config
        numbers = [number for number in range(self.num) if number not in done]
        tasks = ((self._stream(number), self.tasks[number // c.num]) for number in numbers)
        masked = {number for number in numbers if self.tasks[number // c.num].way == "mlm"}
        samples: list[Iterator[Sample]] = []
        if len(masked) < len(numbers):
            assert isinstance(model, GLM)
            jobs = ((stream, self._writer(model, stream, task)) for stream, task in tasks if task.way != "mlm")
            processors = (*c.penalties, *([self.hooks.logits] if self.hooks.logits else []))
            ended = write(
                model, jobs, c.decoding, slots=c.batch_size, processors=processors, on_ended=on_ended
            )  # fmt: skip
            samples.append(map(self._from_engine, ended))
        if masked:
            prompts = ((self._stream(i), _limited(self.tasks[i // c.num].prompt, c.limits)) for i in sorted(masked))
            unmasking = replace(
                self.unmasking, seed=c.seed, temperature=c.temperature, top_p=c.top_p, max_length=self.max_length
            )
            filled = iter_unmasked(model, prompts, unmasking)
            samples.append(self._told(map(self._from_masks, filled), on_ended))
        for sample in chain(*samples):
            reason = self.hooks.why_refused(sample.sequence)
            if reason is not None:
                yield Refused(sample.number, reason)
            else:
                yield replace(sample, score=self.hooks.worth(sample.sequence))

    def _from_engine(self, written: Written) -> Sample:
        writer = written.writer
        assert isinstance(writer, PromptedWriter | SpanWriter)
        said = written.nats[written.choices != END]
        nats = np.append(written.start_nats[len(written.start_nats) - len(writer.prefix) :], said)
        nll = float(nats.mean(dtype=np.float64)) if len(nats) else nan
        return self._sample(self._number(written.number), writer.sequence, nll, written.finished)

    def _from_masks(self, filled: Unmasked) -> Sample:
        return self._sample(self._number(filled.number), filled.sequence, filled.nll, True)

    def _sample(self, number: int, sequence: str, nll: float, finished: bool) -> Sample:
        task = self.tasks[number // self.config.num]
        if not finished:
            warn_once(logger, "proteins that did not end within max_length %d were cut there", self.max_length)
        return Sample(
            number=number, name=self.name(number), sequence=sequence, nll=nll, seed=self.config.seed,
            prompt=str(task.prompt), way=task.way, finished=finished,
        )  # fmt: skip

    @staticmethod
    def _told(samples: Iterator[Sample], on_ended: Callable[[int], object]) -> Iterator[Sample]:
        for sample in samples:
            on_ended(1)
            yield sample


def passed(ended: Iterable[Sample | Refused], refused: Counter[str] | None = None) -> Iterator[Sample]:
    """Those that the screen let pass; the others are counted by reason, in `refused` or else in the log."""
    counts: Counter[str] = Counter() if refused is None else refused
    for one in ended:
        if isinstance(one, Sample):
            yield one
        else:
            counts[one.reason] += 1
    if counts and refused is None:
        logger.warning("the screen refused %d proteins: %s", counts.total(), dict(counts))


def rank(sample: Sample) -> tuple[float, int]:
    """Smaller for what comes first: by score, the highest first, where they have one; else, and if equal, by number."""
    return -(sample.score or 0.0), sample.number


def ranked(samples: Sequence[Sample]) -> list[Sample]:
    """In the order of `rank`."""
    return sorted(samples, key=rank)


def _limited(prompt: Prompt, limits: Sequence[Limit]) -> Prompt:
    """The prompt without the letters of which none are allowed, for a model of masks, which cannot count.

    Raises:
        ConfigError: a limit that lets some pass, that a fixed residue breaks, or that leaves a gap no letter.
    """
    if counted := [str(limit) for limit in limits if limit.most or limit.ratio]:
        raise ConfigError(
            f"limit {', '.join(counted)} cannot be held by mlm, which decides many places at once; forbid them"
            " altogether (C=0), or write by smask"
        )
    fixed = "".join(piece.residues for piece in prompt.pieces if isinstance(piece, Fixed))
    Budget(limits, fixed, np.zeros((0, len(AMINO_ACIDS)), bool), len(fixed))  # refuses
    excluded = {letter for limit in limits for letter in limit.letters}
    pieces = [
        replace(piece, letters="".join(a for a in piece.letters if a not in excluded))
        if isinstance(piece, Gap) else piece
        for piece in prompt.pieces
    ]  # fmt: skip
    return Prompt(tuple(pieces), prompt.tags)
