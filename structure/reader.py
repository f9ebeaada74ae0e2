"""Proteins as a folding model reads them: a language model's states, from the model itself or from a file of them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from structure.config import FoldConfig
from structure.features import Protein, read_sequence
from xtrimo.embedding_file import fingerprint
from xtrimo.errors import SequenceError
from xtrimo.fasta import CHAIN_BREAK
from xtrimo.log import warn_once
from xtrimo.pair_maps import PairMaps
from xtrimo.states import LiveStates, Source
from xtrimo.states_file import CacheKey, cached_states

logger = logging.getLogger(__name__)


class Reader:
    """Reads proteins with a source of states.

    Args:
        source: gives states of the layers that the config counts, side by side; None for amino acids alone.
        config: of the folding model.
        max_length: residues of the longest chain that the source can read; 0 for any.
        trained_length: residues of the longest chain that it was trained on; 0 for any.
    """

    def __init__(
        self, source: Source | None, config: FoldConfig, *, max_length: int = 0, trained_length: int = 0
    ) -> None:
        if (source is None) != (config.num_lm_layers == 0):
            raise ValueError("a source of states for a model without layers, or none for one that has them")
        self.source, self.config = source, config
        self.max_length, self.trained_length = max_length, trained_length

    def read(self, sequence: str, *, name: str = "sequence") -> Protein:
        """A protein whose chains `:` joins; each chain is read on its own.

        Raises:
            SequenceError: as `check`.
        """
        self.check(sequence, name=name)
        aatype, index, _ = read_sequence(sequence, name=name)
        return Protein(aatype=aatype, index=index, **self._read(sequence.upper().split(CHAIN_BREAK)))

    def check(self, sequence: str, *, name: str = "sequence") -> None:
        """Refuse what cannot be read, without reading it.

        Raises:
            SequenceError: letters that are none, or a chain that is too long for the source.
        """
        _, _, chain = read_sequence(sequence, name=name)
        if chain.any():
            warn_once(logger, "chains joined by %r: models are trained on single chains here, so how chains lie to each"
                " other is a guess", CHAIN_BREAK)  # fmt: skip
        longest = max(map(len, sequence.split(CHAIN_BREAK)))
        if 0 < self.max_length < longest:
            raise SequenceError(
                f"{name}: a chain of {longest:,} residues, where the language model has learned {self.max_length:,}"
                " places; cut it, or take a folding model of another language model"
            )
        if 0 < self.trained_length < longest:
            warn_once(logger, "chains longer than the %d residues of the language model's training rows; its states"
                " there are extrapolated", self.trained_length)  # fmt: skip

    def _read(self, chains: list[str]) -> dict[str, Tensor]:
        length, config = sum(map(len, chains)), self.config
        maps = torch.zeros(length, length, config.num_lm_maps)
        if self.source is None:
            return {"states": torch.zeros(length, 0, 0), "maps": maps}
        states, start = [], 0
        with torch.no_grad():
            for chain in chains:
                read, pairs = self.source.of_pairs(chain)
                states.append(read.detach().cpu().unflatten(-1, (config.num_lm_layers, config.lm_width)))
                if config.num_lm_maps and pairs is not None:
                    own = slice(start, start + len(chain))
                    maps[own, own] = square(pairs.cpu().float(), len(chain))
                start += len(chain)
        return {"states": torch.cat(states), "maps": maps}


def with_cache(reader: Reader, folder: Path, sequences: Sequence[str]) -> Reader:
    """The same reader, with states from a file of `folder`: computed into it, or found there from another time.

    The file is one of the very chains and language model, in fp16, as training reads them. A chain longer than the
    language model's training rows is read in windows.

    Raises:
        SequenceError: as `Reader.check`; before anything is computed.
        XtrimoError: the file cannot be written.
    """
    live = reader.source
    if not isinstance(live, LiveStates):
        return reader
    for sequence in sequences:
        reader.check(sequence)
    chains = list(dict.fromkeys(chain for sequence in sequences for chain in sequence.upper().split(CHAIN_BREAK)))
    key = CacheKey(model_hash=fingerprint(live.backbone), dtype=str(torch.float32), layers=live.layers, pooled=False)
    num_maps = reader.config.num_lm_maps if live.maps else 0
    source = cached_states(folder, live.backbone, key, chains, num_maps=num_maps)
    return Reader(source, reader.config, max_length=reader.max_length, trained_length=reader.trained_length)


def square(pairs: PairMaps, length: int) -> Float[Tensor, "length length map"]:
    """The upper triangle of symmetric maps, row by row, as whole maps."""
    first, second = torch.triu_indices(length, length)
    maps = pairs.new_zeros(length, length, pairs.shape[1])
    maps[first, second] = pairs
    maps[second, first] = pairs
    return maps
