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
from generate.from_ends import fill
from generate.hooks import Hooks
from generate.limits import Budget, Limit
from generate.prompt import Fixed, Gap, Prompt
from generate.unmasking import Unmasked, UnmaskingConfig, iter_unmasked
from generate.ways import FROM_ENDS, Task, Way, check_task, open_writer
from generate.writers import PromptedWriter, SpanWriter
from xtrimo.backbone import Backbone
from xtrimo.errors import ConfigError, XtrimoError
from xtrimo.fasta import Record
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.tokens import AMINO_ACIDS

logger = logging.getLogger(__name__)

_LENGTHS = 1  # of the random streams of a protein: the engine's is keyed by (seed, number) alone
_STEPWISE = ("guidance", "repetition_penalty", "complexity_penalty")
_NOT_FOR: dict[Way, tuple[str, ...]] = {"mlm": ("top_k", "min_p", *_STEPWISE), **dict.fromkeys(FROM_ENDS, _STEPWISE)}
"""Settings of drawing that a way cannot keep, because it does not decide a protein residue by residue."""


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
    smask or mlm: of the residues that filled the gaps, each as it was drawn; NaN where the gaps got no residue. From
    both ends: of the whole sequence, mean of both directions."""
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
        if task.way in _NOT_FOR:
            self._check_many_at_once(task)
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
        task, i = self._task(number), number % self.config.num
        return f"{task.name}_{i + 1:04}" if task.name else f"s{i + 1:04}"

    def _writer(self, model: Backbone, stream: int, task: Task) -> PromptedWriter | SpanWriter:
        assert isinstance(model, GLM)
        limits = self.config.limits
        return open_writer(task, model.config, max_length=self.max_length, limits=limits, rng=self._rng(stream))

    def _rng(self, stream: int) -> np.random.Generator:
        """What draws the lengths of gaps."""
        return np.random.default_rng([self.config.seed, stream, _LENGTHS])

    def _task(self, number: int) -> Task:
        return self.tasks[number // self.config.num]

    def _check_many_at_once(self, task: Task) -> None:
        usual = DrawingConfig()
        if changed := [name for name in _NOT_FOR[task.way] if getattr(self.config, name) != getattr(usual, name)]:
            raise ConfigError(f"{', '.join(changed)} cannot be had by {task.way}; leave it out, or write by smask")
        if self.hooks.logits:
            raise ConfigError(
                f"by {task.way} many places are decided at once; a function on logits is for the other ways"
            )
        _limited(task, self.config.limits)

    def written(
        self, model: Backbone, done: Collection[int] = (), on_ended: Callable[[int], object] = lambda num: None
    ) -> Iterator[Sample | Refused]:
        """Each protein as soon as it has ended, so in no fixed order.

        Args:
            done: numbers to leave out.
            on_ended: hears how many have just ended.
        """
        self.check(model)
        by: dict[str, list[int]] = {"engine": [], "mlm": [], "ends": []}
        for number in (number for number in range(self.num) if number not in done):
            way = self._task(number).way
            by["ends" if way in FROM_ENDS else "mlm" if way == "mlm" else "engine"].append(number)
        samples = chain(
            self._by_engine(model, by["engine"], on_ended),
            self._told(self._by_masks(model, by["mlm"]), on_ended),
            self._told(self._by_ends(model, by["ends"]), on_ended),
        )
        for sample in samples:
            reason = self.hooks.why_refused(sample.sequence)
            if reason is not None:
                yield Refused(sample.number, reason)
            else:
                yield replace(sample, score=self.hooks.worth(sample.sequence))

    def _by_engine(
        self, model: Backbone, numbers: Sequence[int], on_ended: Callable[[int], object]
    ) -> Iterator[Sample]:
        c = self.config
        if numbers:
            assert isinstance(model, GLM)
            jobs = ((self._stream(i), self._writer(model, self._stream(i), self._task(i))) for i in numbers)
            processors = (*c.penalties, *([self.hooks.logits] if self.hooks.logits else []))
            ended = write(model, jobs, c.decoding, slots=c.batch_size, processors=processors, on_ended=on_ended)
            yield from map(self._from_engine, ended)

    def _by_masks(self, model: Backbone, numbers: Sequence[int]) -> Iterator[Sample]:
        c = self.config
        if numbers:
            prompts = ((self._stream(i), _limited(self._task(i), c.limits)) for i in numbers)
            unmasking = replace(
                self.unmasking, seed=c.seed, temperature=c.temperature, top_p=c.top_p, max_length=self.max_length
            )
            yield from map(self._from_masks, iter_unmasked(model, prompts, unmasking))

    def _by_ends(self, model: Backbone, numbers: Sequence[int]) -> Iterator[Sample]:
        """The random streams of a protein's drafts are keyed by its place among those of its prompt alone."""
        c = self.config
        for number in numbers:
            assert isinstance(model, GLM)
            task = self._task(number)
            prompt = _limited(task, c.limits).drawn(self._rng(self._stream(number)), self.max_length)
            sequence, nll = fill(
                model, prompt, c.decoding, number=number % c.num, slots=c.batch_size, masks=task.way == "ends+mlm"
            )
            yield self._sample(number, sequence, nll, True)

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
        task = self._task(number)
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


def _limited(task: Task, limits: Sequence[Limit]) -> Prompt:
    """The prompt without the letters of which none are allowed, for a way that decides many places at once.

    Raises:
        ConfigError: a limit that lets some pass, that a fixed residue breaks, or that leaves a gap no letter.
    """
    if counted := [str(limit) for limit in limits if limit.most or limit.ratio]:
        raise ConfigError(
            f"limit {', '.join(counted)} cannot be held by {task.way}, which decides many places at once; forbid them"
            " altogether (C=0), or write by smask"
        )
    prompt = task.prompt
    fixed = "".join(piece.residues for piece in prompt.pieces if isinstance(piece, Fixed))
    Budget(limits, fixed, np.zeros((0, len(AMINO_ACIDS)), bool), len(fixed))  # refuses
    excluded = {letter for limit in limits for letter in limit.letters}
    pieces = [
        replace(piece, letters="".join(a for a in piece.letters if a not in excluded))
        if isinstance(piece, Gap) else piece
        for piece in prompt.pieces
    ]  # fmt: skip
    return Prompt(tuple(pieces), prompt.tags)
