"""Sequences to structures: the function `fold`; and how sure of them the model is, as a reward.

Proteins are folded from short to long, several at once where they are short and of nearly one length, so that hardly
anything is computed for padding. Memory grows with the square of the length: see `memory`.
"""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float64

from structure.confidence import expected_pae, expected_plddt, predicted_tm
from structure.features import Features, Protein, collate, read_sequence
from structure.fold_directory import Pipeline, load_fold
from structure.geometry import to_atom37
from structure.losses import BACKBONE_SLOTS
from structure.memory import Chunks
from structure.model import Folded, with_atoms
from structure.openfold import constants
from structure.prediction import Prediction
from xtrimo.batch import named
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record

PAIRS_AT_ONCE = 256**2
"""Pairs of residues of a batch, padding included; a longer protein is a batch of its own."""
PADDING = 0.1
"""Most that a protein of a batch is shorter than its longest, as a share of that."""


def fold(
    model: str | PathLike[str] | Pipeline,
    sequences: Sequence[str | Record],
    *,
    num_recycles: int | None = None,
    chunk: int | None = None,
) -> list[Prediction]:
    """Predict the structure of each protein; `:` joins chains.

    Args:
        model: a directory of `xtrimo train-fold` or of ESMFold, or what `load_fold` gave for it.
        sequences: residues, or FASTA records, whose names the predictions then have; others are `sequence_1` and so
            on, by their place.
        num_recycles: times that the trunk's output is fed back; by default as many as training did at most.
        chunk: rows of pairs at a time; by default as memory asks, 0 for all at once. It does not change the atoms.

    Returns:
        Predictions in the order of the sequences.

    Raises:
        SequenceError: an empty sequence, letters that are none, a chain too long for the language model, or one
            string in place of a list.
        ConfigError: recycles of a model that has one pass alone, or a chunk below 0.
        CheckpointError: a directory that holds no folding model.
        DataError: a prediction with places that are no numbers.
    """
    pipeline = model if isinstance(model, Pipeline) else load_fold(model)
    records = list(named(sequences))
    batches = iter_folded(pipeline, records, num_recycles=num_recycles, chunk=chunk)
    found: dict[int, Prediction] = {}
    for number, answer in (item for batch in batches for item in batch):
        if isinstance(answer, DataError):
            raise answer
        found[number] = answer
    return [found[number] for number in range(len(records))]


def mean_plddt(
    model: str | PathLike[str] | Pipeline,
) -> Callable[[Sequence[str]], Float64[np.ndarray, "protein"]]:
    """How sure a folding model is of a protein, as a reward: the mean pLDDT, 0..100; NaN where folding fails.

    Args:
        model: as `fold` takes it.
    """
    pipeline = model if isinstance(model, Pipeline) else load_fold(model)

    def reward(proteins: Sequence[str]) -> Float64[np.ndarray, "protein"]:
        values = np.full(len(proteins), np.nan)
        there = [number for number, protein in enumerate(proteins) if protein]
        records = [Record(f"protein {number + 1}", proteins[number]) for number in there]
        for place, answer in (item for batch in iter_folded(pipeline, records) for item in batch):
            values[there[place]] = np.nan if isinstance(answer, DataError) else answer.mean_plddt
        return values

    return reward


def iter_folded(
    pipeline: Pipeline, records: Sequence[Record], *, num_recycles: int | None = None, chunk: int | None = None
) -> Iterator[list[tuple[int, Prediction | DataError]]]:
    """`fold` as it goes, batch by batch: numbers of records and their predictions, from short proteins to long ones.

    In the place of a prediction that is none, such as of places that are no numbers, stands what is wrong with it.
    """
    passes = check_recycles(pipeline, num_recycles)
    for record in records:
        pipeline.reader.check(record.sequence, name=record.name)  # a bad one is met now, not after hours
    device = next(pipeline.model.parameters()).device
    chunks = Chunks(pipeline.model.config, device, chunk)
    for batch in buckets([num_residues(record) for record in records]):
        own = [records[number] for number in batch]
        proteins = [pipeline.reader.read(record.sequence, name=record.name) for record in own]
        features = collate(proteins).to(device)
        length = features.aatype.shape[1]

        def compute(cut: int | None, features: Features = features) -> Folded:
            with torch.no_grad():  # not inference mode: OpenFold keeps tables that a later training reads
                folded: Folded = pipeline.model(features, num_recycles=passes, chunk=cut)
            return folded

        folded = chunks.run(compute, length, len(batch), own[-1].name)
        yield [
            (number, _try_prediction(pipeline, own[place], proteins[place], folded, place, passes))
            for place, number in enumerate(batch)
        ]


def check_recycles(pipeline: Pipeline, num_recycles: int | None) -> int:
    """How many recycles there will be.

    Raises:
        ConfigError: of a model that has one pass alone, or a negative number.
    """
    config = pipeline.model.config
    if num_recycles is None:
        return config.max_recycles
    if num_recycles < 0 or (num_recycles > 0 and config.trunk == "trimul"):
        raise ConfigError(
            f"{num_recycles} recycles of {pipeline.name}, whose trunk is {config.trunk}: expected 0"
            + (", the trunk trimul is a single pass" if config.trunk == "trimul" else " or more")
        )
    return num_recycles


def num_residues(record: Record) -> int:
    """Of all chains."""
    return sum(map(str.isalpha, record.sequence))


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of proteins that are folded together, from short ones to long ones.

    >>> buckets([100, 40, 98, 300, 41])
    [[1, 4], [2, 0], [3]]
    """
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        longest = lengths[number]
        fits = found and (len(found[-1]) + 1) * longest**2 <= PAIRS_AT_ONCE
        if fits and lengths[found[-1][0]] >= (1 - PADDING) * longest:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _try_prediction(
    pipeline: Pipeline, record: Record, protein: Protein, folded: Folded, place: int, passes: int
) -> Prediction | DataError:
    try:
        return _prediction(pipeline, record, protein, folded, place, passes)
    except DataError as error:
        return error


def _prediction(
    pipeline: Pipeline, record: Record, protein: Protein, folded: Folded, place: int, passes: int
) -> Prediction:
    """What a pass says of one protein of a batch."""
    length = len(protein.aatype)
    own = slice(place, place + 1)
    aatype = with_atoms(torch.from_numpy(protein.aatype)[None]).to(folded.pair.device)
    atoms = to_atom37(aatype, folded.atoms[-1, own, :length])[0]
    exists = np.array(constants.restype_atom37_mask[aatype[0].cpu().numpy()], dtype=bool)
    plddt = expected_plddt(folded.lddt[place, :length]).float().cpu().numpy()
    ca, cb = (constants.atom_order[name] for name in ("CA", "CB"))
    if not pipeline.model.config.side_chains:
        exists[:, BACKBONE_SLOTS:] = False  # the first five of 37 atoms are those of the first five slots
        plddt[:, cb] = plddt[:, ca]  # where backbones alone were seen, nobody learned that of CB
    pae = folded.pae[own, :length, :length]
    mask = torch.ones(1, length, device=pae.device)
    _, _, chain = read_sequence(record.sequence)
    return Prediction(
        name=record.name, sequence=record.sequence.upper(), atoms=np.where(exists[..., None], atoms.cpu().numpy(), 0),
        exists=exists, plddt=plddt[:, ca], atom_plddt=np.where(exists, plddt, 0),
        pae_ang=expected_pae(pae)[0].cpu().numpy(), ptm=float(predicted_tm(pae, mask)), chain=chain,
        num_recycles=passes, model=pipeline.name,
    )  # fmt: skip
