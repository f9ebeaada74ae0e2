"""Chains as training examples: atoms in 14 slots, three splits that share no cluster, and crops drawn by step.

A batch is a pure function of (seed, step). Crop i of a step is the one at p = step * batch_size + i of an endless list:
the chains in a new order for each epoch, every chain once. Its window is drawn by (seed, p), so that a run stopped
anywhere goes on with the same crops.

Early on FAPE is not clamped, later in nine crops of ten, as in AlphaFold 2 (supplement 1.11.5): clamped from the start,
a network from scratch gets no pull on what lies far away.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from structure.openfold import constants
from xtrimo.chains import Chain, is_bonded, read_chains
from xtrimo.clustering import cluster
from xtrimo.errors import ConfigError, DataError

NUM_SLOTS = 14
SHORTEST = 16  # residues
MOST_UNSEEN, MOST_UNKNOWN = 0.5, 0.1
BROKEN_ANG = 2.5
"""C and N further apart than this are no bond, whatever the numbers say."""
IDENTITY, COVERAGE = 0.3, 0.5
SPLITS = ("train", "valid", "test")
_UNKNOWN = constants.unk_restype_index
_SLOTS = [
    constants.restype_name_to_atom14_names[constants.restype_1to3.get(letter, "UNK")]
    for letter in constants.restypes_with_x
]
"""Names of the atoms in the slots of each residue type, "" for a slot it does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A chain, or a window of one, as the losses read it."""

    name: str
    aatype: Int64[np.ndarray, "length"]
    """Numbers of `constants.restypes_with_x`."""
    index: Int64[np.ndarray, "length"]
    """Place in the chain, from 0; it skips what was not seen and is no row here, so that only neighbours are bonded."""
    atoms: Float32[np.ndarray, "length slot 3"]
    """In angstrom, in the 14 slots of the residue's type; 0 where not seen. X has no slots, so no atoms."""
    seen: Float32[np.ndarray, "length slot"]
    """1 where the atom exists and was seen."""

    def __len__(self) -> int:
        return len(self.aatype)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Examples to learn from, to watch and to judge by; no two have chains of one cluster."""

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: Mapping[str, int]
    """Why chains are in none, and how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One item of a batch."""

    example: Example
    """The window."""
    chain: int
    """Number of the chain it is cut from."""
    start: int
    """Residue of the chain at which it begins."""
    clamp: bool
    """Whether its backbone FAPE is clamped."""
    num_recycles: int
    """Passes before the last one; the same for all of a step."""


def example(chain: Chain) -> Example:
    """A chain as an example; letters that are none of the twenty are X."""
    aatype = np.array([constants.restype_order.get(letter, _UNKNOWN) for letter in chain.sequence], dtype=np.int64)
    columns = {atom: column for column, atom in enumerate(chain.atoms)}
    table = np.array([[columns.get(atom, -1) for atom in atoms] for atoms in _SLOTS], dtype=np.int64)[aatype]
    atoms = np.take_along_axis(chain.xyz, np.maximum(table, 0)[:, :, None], axis=1)
    seen = (table >= 0) & np.isfinite(atoms).all(-1)
    atoms = np.where(seen[:, :, None], atoms, 0).astype(np.float32)
    return Example(chain.name, aatype, _index(chain), atoms, seen.astype(np.float32))


def _index(chain: Chain) -> Int64[np.ndarray, "length"]:
    """Residues from 0, jumping as the numbers do except over a bond, and by one more where C and N are far apart.

    Some files number as another protein does, and some number on over what was not seen.
    """
    numbers = np.arange(len(chain.sequence)) if chain.numbers is None else chain.numbers
    steps = np.maximum(np.diff(numbers), 1)
    for i in np.flatnonzero(steps > 1).tolist():
        if is_bonded(chain.xyz[i], chain.xyz[i + 1]):
            steps[i] = 1
    apart = np.linalg.norm(chain.xyz[1:, 0] - chain.xyz[:-1, 2], axis=-1)  # NaN where one was not seen
    steps[(steps == 1) & (apart > BROKEN_ANG)] = 2
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(steps)))


def why_unusable(chain: Chain) -> str:
    """Why a chain is no example to learn from; empty if it is one."""
    num = len(chain.sequence)
    if num < SHORTEST:
        return f"shorter than {SHORTEST} residues"
    if np.isnan(chain.xyz[:, 1]).any(-1).sum() > MOST_UNSEEN * num:
        return f"more than {MOST_UNSEEN:.0%} of the CA not seen"
    seen = np.isfinite(chain.xyz[:, 1]).all(-1)  # what was not seen may be X for that alone
    unknown = np.array([letter not in constants.restype_order for letter in chain.sequence])
    if (unknown & seen).sum() > MOST_UNKNOWN * seen.sum():
        return f"more than {MOST_UNKNOWN:.0%} of the seen residues unknown"
    return ""


def read_split(path: Path, *, valid_ratio: float = 0.1, test_ratio: float = 0.0) -> Split:
    """The usable chains of an archive, a structure file or a folder of files, as `split_names` divides them.

    Raises:
        DataError: nothing to learn from, or chains of which some have a split and others none.
    """
    kept: list[Chain] = []
    left_out: Counter[str] = Counter()
    for chain in read_chains(path):
        reason = why_unusable(chain)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(chain)
    if not kept:
        raise DataError(f"{path}: none of its {left_out.total():,} chains can be used: {dict(left_out)}")
    names = split_names(kept, valid_ratio=valid_ratio, test_ratio=test_ratio)
    if "train" not in names:
        raise DataError(f"{path}: all of its {len(kept):,} usable chains are held out; there is none to train on")
    train, valid, test = (
        tuple(example(chain) for chain, name in zip(kept, names, strict=True) if name == split) for split in SPLITS
    )
    return Split(train, valid, test, dict(left_out))


def split_names(chains: Sequence[Chain], *, valid_ratio: float, test_ratio: float = 0.0) -> list[str]:
    """Of each chain train, valid or test: as its source says, else by its cluster.

    Clusters are of 30 % identity over half of either chain, by mmseqs2 where it is installed. The hash of the sequence
    that stands for a cluster decides, so that what is held out hangs on no order. Where a ratio finds no cluster, the
    one next in line is held out, while one is left to train on.

    Raises:
        ConfigError: ratios that leave nothing to train on.
        DataError: an unknown split, or chains of which some have one and others none.
    """
    if min(valid_ratio, test_ratio) < 0 or valid_ratio + test_ratio >= 1:
        raise ConfigError(
            f"valid_ratio {valid_ratio} and test_ratio {test_ratio} must not be negative and add up to less than 1"
        )
    given = [chain.split or "" for chain in chains]
    if any(given):
        unknown = sorted(set(given) - set(SPLITS))
        if unknown:
            raise DataError(
                f"of {len(chains):,} chains {sum(name in unknown for name in given):,} have the split"
                f" {', '.join(map(repr, unknown))}; expected one of {', '.join(SPLITS)}, or none for any chain"
            )
        return given
    sequences = [chain.sequence for chain in chains]
    stands = cluster(sequences, IDENTITY, COVERAGE, "a held-out chain may have some in training").tolist()
    ranked = sorted({sequences[number] for number in stands}, key=_hash)
    edges = [_hash(sequence) for sequence in ranked]
    num_valid = _share(edges, valid_ratio, len(ranked) - 1)
    num_test = _share([edge - valid_ratio for edge in edges[num_valid:]], test_ratio, len(ranked) - 1 - num_valid)
    held = dict.fromkeys(ranked[:num_valid], "valid") | dict.fromkeys(ranked[num_valid:][:num_test], "test")
    return [held.get(sequences[number], "train") for number in stands]


def _share(hashes: list[float], ratio: float, most: int) -> int:
    """How many of the clusters, in the order of their hashes, a ratio takes: at least one if it is not 0."""
    return min(max(sum(value < ratio for value in hashes), int(ratio > 0)), most)


def _hash(sequence: str) -> float:
    """A number in 0..1 that stands for a sequence on every machine."""
    return int.from_bytes(hashlib.blake2b(sequence.encode(), digest_size=8).digest(), "big") / 2**64


def crop(whole: Example, length: int, rng: np.random.Generator) -> tuple[Example, slice]:
    """A window of `length` residues, each as likely, and where it lies; all of a chain that is no longer.

    Windows of which half of the CA were seen come first: any other is taken only where there is none such.
    """
    last = len(whole) - length
    if last <= 0:
        return whole, slice(0, len(whole))
    counts = np.concatenate(([0.0], np.cumsum(whole.seen[:, 1], dtype=np.float64)))
    resolved: Bool[np.ndarray, "start"] = counts[length:] - counts[:-length] >= length / 2
    starts = np.flatnonzero(resolved) if resolved.any() else np.arange(last + 1)
    start = int(rng.choice(starts))
    window = slice(start, start + length)
    parts = {name: getattr(whole, name)[window] for name in ("aatype", "index", "atoms", "seen")}
    return replace(whole, **parts), window


@dataclass(frozen=True, slots=True, eq=False)
class CropSampler:
    """Batches of crops, as the module says."""

    examples: Sequence[Example]
    crop_length: int
    """Residues."""
    seed: int
    clamp_from: int = 0
    """Step before which nothing is clamped."""
    clamp_ratio: float = 0.9
    """Share of the crops that are clamped from then on."""
    max_recycles: int = 0
    """`Crop.num_recycles` is drawn from 0 to this, both included."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("no chain to draw crops from")
        if self.crop_length < 1 or self.max_recycles < 0 or self.seed < 0 or not 0 <= self.clamp_ratio <= 1:
            raise ConfigError(
                f"crop_length {self.crop_length} must be at least 1, max_recycles {self.max_recycles} and seed"
                f" {self.seed} not negative, clamp_ratio {self.clamp_ratio} in 0..1"
            )

    def batch(self, step: int, batch_size: int) -> list[Crop]:
        """The crops of a step, counted from 0. All batches of a run have one size."""
        num = len(self.examples)
        num_recycles = int(np.random.default_rng((self.seed, 0, step)).integers(self.max_recycles + 1))
        crops = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            chain = int(_order(self.seed, place // num, num)[place % num])
            rng = np.random.default_rng((self.seed, 1, place))
            window, where = crop(self.examples[chain], self.crop_length, rng)
            clamp = step >= self.clamp_from and bool(rng.random() < self.clamp_ratio)
            crops.append(Crop(window, chain, where.start, clamp, num_recycles))
        return crops


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num: int) -> Int64[np.ndarray, "chain"]:
    return np.random.default_rng((seed, 2, epoch)).permutation(num)
