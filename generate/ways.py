"""Which way a model writes a prompt, or why it cannot: its config says, never its name.

    forward   from N to C after the model's own prompt; fixed residues behind a gap are forced
    reverse   from C to N after <rev>, likewise
    smask     the gaps one after the other, all that is fixed in view
    mlm       the gaps masked, their places decided round by round
    ends      one gap drafted forward and in reverse, mended, and the likeliest protein taken; only if asked for
    ends+mlm  the same, what mlm holds of the gap being a third expert beside the two directions

A prompt that is open behind is written forward, one that is open in front in reverse. A template, with something fixed
behind a gap whose length is bounded, is filled by smask where the model can, since then a gap knows what follows it.
"""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from generate.limits import Limit
from generate.prompt import Fixed, Gap, Prompt
from generate.writers import PromptedWriter, SpanWriter
from xtrimo.backbone import Backbone, refuse_beyond_places
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.log import warn_once
from xtrimo.model import GLM
from xtrimo.reading import PROMPT_WORDS
from xtrimo.tokens import PUBLISHED_WORDS

Way = Literal["forward", "reverse", "smask", "mlm", "ends", "ends+mlm"]
FROM_ENDS: tuple[Way, ...] = ("ends", "ends+mlm")

logger = logging.getLogger(__name__)

_LONGEST_TRAINED_SPAN = 40


class Task(NamedTuple):
    """A prompt that is written any number of times."""

    name: str
    """What the names of its proteins begin with; empty for none."""
    prompt: Prompt
    way: Way


def choose_way(model: Backbone, prompt: Prompt, among: Sequence[Way]) -> Way:
    """The first of the ways that fits the prompt and that the model has.

    Raises:
        ConfigError: there is none; says for each of `among` why.
    """
    tag_ids(prompt, control_words(model))  # refuses
    if not prompt.gaps:
        raise ConfigError(f"prompt {prompt} leaves nothing to write; give it a gap, such as [8..20]")
    ways = [way for way in _by_preference(prompt) if way in among]
    if prompt.longest is None:  # what needs bounds is no choice, unless it is the only one asked for
        ways = [way for way in ways if way in ("forward", "reverse")] or ways
    reasons: dict[str, Way] = {}
    for way in ways:
        reason = _reason_against(way, model, prompt)
        if not reason:
            return way
        reasons.setdefault(reason, way)
    why = "; ".join(f"by {way}, {reason}" if len(reasons) > 1 else reason for reason, way in reasons.items())
    what = f" '{prompt}'" if str(prompt) else ""
    raise ConfigError(f"this model cannot generate{what}: {why}")


def _by_preference(prompt: Prompt) -> tuple[Way, ...]:
    is_fixed = [isinstance(piece, Fixed) for piece in prompt.pieces]
    if not any(is_fixed[1:]):  # a prefix and gaps
        return ("forward", "smask", "mlm", "reverse", *FROM_ENDS)
    if not any(is_fixed[:-1]):  # gaps and a suffix
        return ("reverse", "smask", "mlm", "forward", *FROM_ENDS)
    return ("smask", "forward", "reverse", "mlm", *FROM_ENDS)  # the last never come up unasked: forward needs less


def _reason_against(way: Way, model: Backbone, prompt: Prompt) -> str:
    """Why the model cannot write the prompt this way; empty if it can."""
    if way == "mlm":
        if model.mask is None:
            return "it was not trained on mlm"
        return "" if prompt.longest is not None else "every gap needs an upper end"
    if not isinstance(model, GLM):
        return "it is an encoder; generation needs a GLM"
    config = model.config
    if way == "smask":
        if "smask" not in config.objectives:
            return "it was not trained on smask"
        return "" if prompt.longest is not None else "every gap needs an upper end"
    if config.prompt_style == "none":
        return (
            f"it was trained on {', '.join(config.objectives)}, which fills gaps in a given protein; generation needs a"
            " model trained on gmask or causal"
        )
    if way in FROM_ENDS:
        return _reason_against_ends(way, model, prompt)
    if way not in config.directions:
        return "it was never trained to write " + ("from C to N, after <rev>" if way == "reverse" else "from N to C")
    begins = prompt.pieces[-1 if way == "reverse" else 0]
    if isinstance(begins, Gap) and begins.longest is None and len(prompt.pieces) > 1:
        return "the open gap would have to come last"
    return ""


def _reason_against_ends(way: Way, model: GLM, prompt: Prompt) -> str:
    if "gmask" not in model.config.objectives or not {"forward", "reverse"} <= set(model.config.directions):
        return "it was not trained on gmask both from N to C and from C to N"
    if way == "ends+mlm" and model.mask is None:
        return "it was not trained on mlm"
    if len(prompt.gaps) > 1:
        return f"one gap is filled, and here are {len(prompt.gaps)}"
    return "" if prompt.longest is not None else "the gap needs an upper end"


def check_task(model: Backbone, task: Task, max_length: int) -> None:
    """Refuse a prompt that is too long for the model or for `max_length` residues; warn of what it was not trained for.

    Ranges before fixed residues shrink to what fits; a last one is cut at `max_length` forward and in reverse, and
    shrinks by the other ways.

    Raises:
        ConfigError: no protein of the prompt fits, or nothing would be written of it.
        SequenceError: more residues than a model of learned places has these.
    """
    prompt = task.prompt
    grows = _is_cut(task) and (prompt.longest is None or prompt.longest > max_length)
    grows |= not any(gap.shortest for gap in prompt.gaps)
    if prompt.shortest > max_length or (grows and prompt.shortest == max_length):
        raise ConfigError(
            f"max_length is {max_length} and the prompt has {prompt.shortest} residues; max_length counts the prompt"
            f" and must be {'larger' if grows else 'as large'}"
        )
    if task.way == "mlm":
        refuse_beyond_places(model, min(max_length, prompt.longest or max_length), name=task.name or "the prompt")
        return
    assert isinstance(model, GLM)
    words = 2 * len(prompt.gaps) + 1 if task.way == "smask" else len(PROMPT_WORDS) + (task.way != "forward")
    words += len(prompt.tags)
    is_closed = prompt.longest is not None or any(gap.shortest for gap in prompt.gaps)
    if prompt.shortest + words > model.config.max_length and is_closed:
        raise ConfigError(
            f"a protein of {prompt.shortest} residues or more takes {prompt.shortest + words} tokens at least, which is"
            f" too long for this model: it was trained on rows of {model.config.max_length}; take a shorter one"
        )
    longest = min(max_length, prompt.longest or max_length)
    if longest + words > model.config.max_length:
        warn_once(
            logger, "max_length %d goes beyond the %d tokens of a training row; what is written there is extrapolated",
            longest, model.config.max_length,
        )  # fmt: skip
    if task.way == "smask" and any(gap.shortest > _LONGEST_TRAINED_SPAN for gap in prompt.gaps):
        warn_once(
            logger, "a gap of more than %d residues is longer than nearly all that smask training leaves to fill",
            _LONGEST_TRAINED_SPAN,
        )  # fmt: skip
    behind = {"forward": prompt.pieces[1:], "reverse": prompt.pieces[:-1]}.get(task.way, ())
    if any(isinstance(piece, Fixed) for piece in behind):
        warn_once(logger, "written %s: what comes before forced residues does not know of them", task.way)


def _is_cut(task: Task) -> bool:
    """Whether the protein ends with a gap that is written to the cut."""
    pieces = task.prompt.pieces
    last = {"forward": pieces[-1], "reverse": pieces[0]}.get(task.way)
    return isinstance(last, Gap) and not last.is_exact


def open_writer(
    task: Task, config: GLMConfig, *, max_length: int, limits: Sequence[Limit], rng: np.random.Generator
) -> PromptedWriter | SpanWriter:
    """The writer of one protein of a task that is written forward, in reverse or by smask.

    Raises:
        ConfigError, SequenceError: as the writers do.
    """
    tags = tag_ids(task.prompt, config.control_words)
    if task.way == "smask":
        return SpanWriter(task.prompt, max_length=max_length, limits=limits, rng=rng, tags=tags)
    return PromptedWriter(
        task.prompt, config, reverse=task.way == "reverse", max_length=max_length, limits=limits, rng=rng, tags=tags
    )


def control_words(model: Backbone) -> tuple[str, ...]:
    """Those of a GLM; an encoder has none."""
    return model.config.control_words if isinstance(model, GLM) else ()


def tag_ids(prompt: Prompt, words: Sequence[str]) -> list[int]:
    """The prompt's tags as tokens, as training has them: in the order of the model's control words, each once.

    Raises:
        ConfigError: the model does not have one of them; names those that it has.
    """
    known = [word for word in words if "=" in word]
    if unknown := [word for word in prompt.tag_words if word not in known]:
        raise ConfigError(
            f"this model has no tag {unknown[0]}; it knows {', '.join(known) or 'none'}: leave it out, or take a model"
            " that was trained with it"
        )
    return sorted({words.index(word) + len(PUBLISHED_WORDS) for word in prompt.tag_words})
