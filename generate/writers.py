"""The ways in which a GLM writes a protein that a prompt describes, one token a step, as training wrote it.

    PromptedWriter   <gmask><sop><eos>R1 R2 ..      from N to C; the residues that the prompt begins with are read first
                     <rev><gmask><sop><eos>Rn ..    from C to N, for a prompt that ends with them
    SpanWriter       M <smask> G <smask> <eos> | <sop> span <sop> span ..
                     all that is fixed is read first, in both directions; then one span after the other, N to C

Tags stand before all of that. Guidance stresses the tags where there are any, and else what is fixed.

A left-to-right model cannot say that a gap in the middle has ended: there a range is given one of its lengths, drawn
evenly among those with which all that is fixed still fits, and fixed residues are forced. What stands before a forced
motif does not know of it; in a SpanWriter it does. A span ends when the model says <eop>; of several gaps that touch,
the ranges before the last are drawn as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from generate.course import Allowed, Course, Stretch, letters_of, stretch_of, text_of
from generate.limits import Budget, Limit
from generate.prompt import Fixed, Gap, Piece, Prompt
from generate.starts import Start
from xtrimo.config import GLMConfig
from xtrimo.errors import ConfigError
from xtrimo.reading import PROMPT_WORDS
from xtrimo.tokens import EOP, EOS, FIRST_RESIDUE, REV, SMASK, SOP, encode_residues


class PromptedWriter:
    """Left to right from the model's own prompt; a Writer.

    Args:
        prompt: only its last piece, or its first where `reverse`, may be open.
        reverse: C to N.
        max_length: residues at which the protein is cut. Ranges before the last piece get lengths with which all that
            is demanded comes before the cut.
        limits: on the whole protein.
        rng: draws the lengths of gaps that do not come last.
        tags: control words in front, as token ids.

    Raises:
        ConfigError: nothing is to be written, more than max_length is demanded, or the limits leave no protein.
        SequenceError: a forced residue is none of the 20 amino acids.
    """

    end = EOS

    def __init__(
        self, prompt: Prompt, config: GLMConfig, *, reverse: bool, max_length: int, limits: Sequence[Limit] = (),
        rng: np.random.Generator, tags: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._reverse = reverse
        pieces = [_turned(piece) for piece in prompt.pieces[::-1]] if reverse else list(prompt.pieces)
        first = pieces[0]
        self.prefix = first.residues if isinstance(first, Fixed) else ""
        if self.prefix:
            del pieces[0]
        if not pieces:
            raise ConfigError(f"prompt {prompt} leaves nothing to write; give it a gap, such as [8..20]")
        stretch = stretch_of(pieces, rng, _spare(prompt, max_length))
        if not self.prefix and not len(stretch.demanded):  # a protein has a residue
            stretch = Stretch(stretch.further[None], stretch.further, stretch.longest)
        if len(self.prefix) == max_length:  # no room: it can but end
            stretch = Stretch(stretch.demanded, stretch.further, 0)
        longest = max_length if stretch.longest is None else min(max_length, len(self.prefix) + stretch.longest)
        self._course = Course((stretch,), Budget(limits, self.prefix, stretch.demanded, longest))
        self.residues = letters_of(self.prefix)
        words = np.array((*tags, *(REV,) * reverse, *PROMPT_WORDS), dtype=np.uint8)
        given = encode_residues(self.prefix) if self.prefix else np.zeros(0, dtype=np.uint8)
        self.start = _prompted(np.append(words, given), config, len(tags) + reverse)
        self._channel = int("gmask" in config.objectives)
        self._place = self.start.positions[-1].tolist()
        self.unconditioned = None
        if tags or self.prefix:  # moved, so that what follows stands as far from these words as if there were no more
            bare = _prompted(np.append(words, given)[len(tags) :] if tags else words, config, int(reverse))
            bare.positions[:, 0 if tags else self._channel] += len(tags) or len(given)
            self.unconditioned = bare
        self.capacity = len(words) + longest - 1  # the last residue is not read

    def allowed(self) -> Allowed:
        """See Writer."""
        return self._course.allowed()

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        """See Writer."""
        if self._course.take(choice):
            return None
        self.residues.append(choice)
        if self._course.is_full:
            return None
        self._place[self._channel] += 1
        return choice + FIRST_RESIDUE, self._place[0], self._place[1]

    @property
    def sequence(self) -> str:
        """The protein as far as it is written, from N to C."""
        text = self.prefix + text_of(self._course.written[0])
        return text[::-1] if self._reverse else text


class SpanWriter:
    """Fills the gaps between all that is fixed, by the smask objective; a Writer.

    Args:
        prompt: with an upper end to each of its gaps.
        max_length: residues of the protein at most: gaps end where what is left is demanded elsewhere.
        limits: on the whole protein.
        rng: draws the lengths of gaps that another gap follows.
        tags: control words in front, as token ids.

    Raises:
        ConfigError: there is no gap, or an open one, more than max_length is demanded, or the limits leave no protein.
    """

    end = EOP
    prefix = ""

    def __init__(
        self, prompt: Prompt, *, max_length: int | None = None, limits: Sequence[Limit] = (), rng: np.random.Generator,
        tags: Sequence[int] = (),
    ) -> None:  # fmt: skip
        if not prompt.gaps or prompt.longest is None:
            raise ConfigError(
                f"prompt {prompt} cannot be filled in: every gap needs an upper end, and there must be one"
            )
        self._parts = _spans(prompt.pieces)
        max_length = prompt.longest if max_length is None else min(max_length, prompt.longest)
        spare = _spare(prompt, max_length)
        stretches: list[Stretch] = []
        for gaps in (part for part in self._parts if not isinstance(part, Fixed)):
            stretches.append(stretch_of(gaps, rng, spare))
            spare -= len(stretches[-1].demanded) - sum(gap.shortest for gap in gaps)
        given = "".join(part.residues for part in self._parts if isinstance(part, Fixed))
        demanded = np.concatenate([stretch.demanded for stretch in stretches])
        written = min(max_length - len(given), sum(stretch.longest or 0 for stretch in stretches))
        self._course = Course(stretches, Budget(limits, given, demanded, len(given) + written), spare)

        tokens = [np.array([SMASK]) if isinstance(p, list) else encode_residues(p.residues) for p in self._parts]
        known = np.concatenate((tags, *tokens, (EOS,))).astype(np.uint8)
        self._places = np.flatnonzero(known == SMASK).tolist()
        self._step = 1  # counts from the span's <sop>
        chain = np.stack((np.arange(len(known)), np.zeros(len(known))), axis=1).astype(np.int32)
        self.start = self._opened(known, chain)
        # Without tags, else the gaps where they are, and nothing around them.
        kept = chain[:, 0] >= len(tags) if tags else (known == SMASK) | (known == EOS)
        self.unconditioned = self._opened(known[kept], chain[kept]) if tags or given else None
        self.capacity = len(known) + len(stretches) + written
        self.residues: list[int] = []
        self._pass_fixed(0)

    def allowed(self) -> Allowed:
        """See Writer."""
        return self._course.allowed()

    def advance(self, choice: int) -> tuple[int, int, int] | None:
        """See Writer."""
        course = self._course
        if course.take(choice):
            if course.number == len(self._places):
                return None
            self._pass_fixed(course.number)
            self._step = 1
            return SOP, self._places[course.number], self._step
        self.residues.append(choice)
        if course.is_full and course.number + 1 == len(self._places):
            return None
        self._step += 1
        return choice + FIRST_RESIDUE, self._places[course.number], self._step

    @property
    def sequence(self) -> str:
        """The protein as far as it is written, from N to C."""
        written = iter(self._course.written)
        return "".join(part.residues if isinstance(part, Fixed) else text_of(next(written)) for part in self._parts)

    def _opened(self, known: UInt8[np.ndarray, "known"], chain: Int32[np.ndarray, "known 2"]) -> Start:
        """All that is fixed, and the <sop> of the first span."""
        first = np.array([[self._places[0], 1]], dtype=np.int32)
        return Start(np.append(known, np.uint8(SOP)), np.concatenate((chain, first)), prefix=len(known))

    def _pass_fixed(self, number: int) -> None:
        """Let processors see what stands between the spans number - 1 and number."""
        spans = [i for i, part in enumerate(self._parts) if isinstance(part, list)]
        for part in self._parts[spans[number - 1] + 1 if number else 0 : spans[number]]:
            assert isinstance(part, Fixed)
            self.residues += letters_of(part.residues)


def _prompted(tokens: UInt8[np.ndarray, "token"], config: GLMConfig, lead: int) -> Start:
    """As training places a text with an empty source: a gmask model counts from <gmask> in the second channel.

    Args:
        lead: words before <gmask>: tags, <rev>.
    """
    is_gmask = "gmask" in config.objectives
    positions = np.zeros((len(tokens), 2), dtype=np.int32)
    positions[:, 0] = np.arange(len(tokens))
    if is_gmask:
        positions[lead:, 0] = lead
        positions[lead:, 1] = np.arange(len(tokens) - lead)
    return Start(tokens, positions, prefix=(1 + lead) * is_gmask)


def _spans(pieces: Sequence[Piece]) -> list[Fixed | list[Gap]]:
    """Gaps that touch put together: training never had two <smask> side by side."""
    parts: list[Fixed | list[Gap]] = []
    for piece in pieces:
        if isinstance(piece, Fixed):
            parts.append(piece)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(piece)
        else:
            parts.append([piece])
    return parts


def _spare(prompt: Prompt, max_length: int) -> int:
    """Residues that ranges may take beyond the least.

    Raises:
        ConfigError: the least is more than max_length.
    """
    if prompt.shortest > max_length:
        raise ConfigError(
            f"max_length is {max_length} and the prompt has {prompt.shortest} residues; max_length counts the prompt"
            " and must be as large"
        )
    return max_length - prompt.shortest


def _turned(piece: Piece) -> Piece:
    return Fixed(piece.residues[::-1]) if isinstance(piece, Fixed) else piece
