"""What folding a protein gives: atoms, and how far they can be trusted."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int

from xtrimo.chains import ATOMS
from xtrimo.errors import DataError
from xtrimo.fasta import CHAIN_BREAK

TOP_PLDDT = 100.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """A predicted structure. `length` counts the residues of all chains, laid end to end."""

    name: str
    sequence: str
    """With ':' between chains."""
    atoms: Float32[np.ndarray, "length 37 3"]
    """In angstrom, in the order of `xtrimo.chains.ATOMS`."""
    exists: Bool[np.ndarray, "length 37"]
    """Which atoms there are: those of the residue, or its backbone and C-beta where a model knows no side chains."""
    plddt: Float32[np.ndarray, "length"]
    """Predicted lDDT of the C-alpha, 0..100."""
    atom_plddt: Float32[np.ndarray, "length 37"]
    """0..100."""
    pae_ang: Float32[np.ndarray, "length length"]
    """Expected error of residue j (column) when the structures are superposed on the frame of residue i (row)."""
    ptm: float
    """Predicted TM-score, 0..1."""
    chain: Int[np.ndarray, "length"]
    """Which chain a residue is in, from 0."""
    num_recycles: int
    """Passes after the first."""
    model: str
    """Name of the model."""

    def __post_init__(self) -> None:
        length = len(self.residues)
        shapes = {
            "atoms": (length, len(ATOMS), 3), "exists": (length, len(ATOMS)), "plddt": (length,),
            "atom_plddt": (length, len(ATOMS)), "pae_ang": (length, length), "chain": (length,),
        }  # fmt: skip
        for field, shape in shapes.items():
            if getattr(self, field).shape != shape:
                raise self._wrong(f"{field} of shape {getattr(self, field).shape}", f"{shape} for its residues")
        if not length or "" in self.chains:
            raise self._wrong("a chain without residues", "letters around each ':'")
        expected = np.repeat(np.arange(len(self.chains)), [len(chain) for chain in self.chains])
        if not np.array_equal(self.chain, expected):
            raise self._wrong("`chain` that does not count the chains of the sequence", "0 for the first, then 1")
        if not self.exists[:, ATOMS.index("CA")].all() or not np.isfinite(self.atoms[self.exists]).all():
            raise self._wrong("atoms without a place", "a C-alpha in each residue and finite coordinates of all atoms")
        for field, top in {"plddt": TOP_PLDDT, "ptm": 1.0, "pae_ang": np.inf}.items():
            self._check_range(field, np.asarray(getattr(self, field)), top)
        self._check_range("atom_plddt", self.atom_plddt[self.exists], TOP_PLDDT)
        if self.num_recycles < 0:
            raise self._wrong(f"num_recycles {self.num_recycles}", "0 or more")

    @property
    def chains(self) -> tuple[str, ...]:
        """The sequence of each chain."""
        return tuple(self.sequence.split(CHAIN_BREAK))

    @property
    def residues(self) -> str:
        """The letters of all chains."""
        return self.sequence.replace(CHAIN_BREAK, "")

    @property
    def mean_plddt(self) -> float:
        """Over residues, 0..100."""
        return float(self.plddt.mean(dtype=np.float64))

    def _check_range(self, field: str, values: np.ndarray, top: float) -> None:
        if not (np.isfinite(values) & (values >= 0) & (values <= top)).all():
            raise self._wrong(f"{field} from {values.min():.4g} to {values.max():.4g}", f"0 to {top:g}")

    def _wrong(self, got: str, expected: str) -> DataError:
        return DataError(f"prediction {self.name}: {got}; expected {expected}")
