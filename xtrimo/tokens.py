"""The words of the model: 36 published tokens, padded to 128 embedding rows, our control words from row 36.

The order is the one the published ProteinGLM checkpoints were trained with (joined by newlines it is their 112-byte
`tokenizer.model`), so a token id means the same row in their weights and in ours. A protein is one token per residue.

    >>> Tokenizer().encode("MKV").tolist()          # closing <eos>, no opening word
    [17, 12, 4, 34]
    >>> Tokenizer().decode([29, 32, 34, 17, 12])
    '<gmask><sop><eos>MK'
"""

import logging
import re
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from xtrimo.errors import ConfigError, SequenceError
from xtrimo.log import warn_once

logger = logging.getLogger(__name__)

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
RESIDUES = AMINO_ACIDS + "XBUZO"
PUBLISHED_WORDS = (
    "<pad>", *RESIDUES, ".", "-",
    "<mask>", "<gmask>", "<smask>", "<eod>", "<sop>", "<eop>", "<eos>", "<unk>",
)  # fmt: skip
CONTROL_WORDS = ("<rev>",)
VOCAB_SIZE = 128

PAD, MASK, GMASK, SMASK, SOP, EOP, EOS = (
    PUBLISHED_WORDS.index(word) for word in ("<pad>", "<mask>", "<gmask>", "<smask>", "<sop>", "<eop>", "<eos>")
)
X = PUBLISHED_WORDS.index("X")
REV = len(PUBLISHED_WORDS)
FIRST_RESIDUE, LAST_RESIDUE = 1, len(RESIDUES)

Unknown = Literal["error", "x", "skip"]
_NOT_A_RESIDUE = 255
_TABLE = np.full(256, _NOT_A_RESIDUE, dtype=np.uint8)
for _id, _letter in enumerate(RESIDUES, start=FIRST_RESIDUE):
    _TABLE[ord(_letter)] = _TABLE[ord(_letter.lower())] = _id
_WORD = re.compile(r"<[^<>]*>")


def encode_residues(
    sequence: str, *, name: str = "sequence", unknown: Unknown = "error"
) -> UInt8[np.ndarray, "length"]:
    """Token ids of a bare protein sequence, one per letter, without any special word.

    Lower case is folded, a final "*" (a stop codon) dropped with a warning. `unknown` says what happens to a letter
    outside the 20 amino acids and X, B, U, Z, O: "error" raises, "x" reads it as X, "skip" also raises, and the caller
    that walks over records drops the record.

    Raises:
        SequenceError: naming the record, the 1-based position and the letter; or that the sequence is empty.
    """
    if sequence.endswith("*"):
        warn_once(logger, "a final * (stop codon) was dropped")
        sequence = sequence[:-1]
    letters = np.frombuffer(sequence.encode("latin-1", errors="replace"), dtype=np.uint8)
    ids = _TABLE[letters]
    if not len(ids):
        raise SequenceError(f"{name}: the sequence is empty; give at least one residue or drop the record")
    bad = np.flatnonzero(ids == _NOT_A_RESIDUE)
    if len(bad) and unknown != "x":
        where = int(bad[0])
        raise SequenceError(
            f"{name}: position {where + 1} is {sequence[where]!r}, which is not one of {RESIDUES}"
            f" ({len(bad)} such letter{'s' if len(bad) > 1 else ''}); correct it, or read unknown letters as X"
            " (--unknown x) or drop such records (--unknown skip)"
        )
    ids[bad] = X
    return ids


class Tokenizer:
    """Words to token ids and back. `control_words` occupy rows 36, 37, ... in the order given."""

    def __init__(self, control_words: tuple[str, ...] = CONTROL_WORDS) -> None:
        self.words = (*PUBLISHED_WORDS, *control_words)
        if len(self.words) > VOCAB_SIZE or len(set(self.words)) < len(self.words):
            raise ConfigError(
                f"{len(control_words)} control words do not fit: at most {VOCAB_SIZE - len(PUBLISHED_WORDS)}, distinct"
            )
        self._ids = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str, *, eos: bool = True, name: str = "sequence") -> UInt8[np.ndarray, "length"]:
        """Token ids of residues and `<words>`; `eos` appends the closing `<eos>`, as the published tokenizer does.

        Raises:
            SequenceError: for an unknown letter or word, naming it.
        """
        parts: list[UInt8[np.ndarray, "_"]] = []
        end = 0
        for match in _WORD.finditer(text):
            if match.start() > end:
                parts.append(encode_residues(text[end : match.start()], name=name))
            if match.group() not in self._ids:
                known = " ".join(w for w in self.words if len(w) > 1)
                raise SequenceError(f"{name}: unknown word {match.group()}; this model knows {known}")
            parts.append(np.array([self._ids[match.group()]], dtype=np.uint8))
            end = match.end()
        if end < len(text):
            parts.append(encode_residues(text[end:], name=name))
        if eos:
            parts.append(np.array([EOS], dtype=np.uint8))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)

    def decode(self, ids: "UInt8[np.ndarray, 'length'] | list[int]") -> str:
        """The words of `ids` joined without separator; a padding row beyond the words reads `<row 77>`."""
        return "".join(self.words[i] if i < len(self.words) else f"<row {i}>" for i in map(int, ids))
