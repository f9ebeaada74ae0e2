"""Predictions as files: PDB, mmCIF by the ModelCIF dictionary, PAE, and a table of scores. Each is whole or not there.

Residues count from 1 in each chain, chains are A, B, ... as in the sequence, and the B column of an atom is its pLDDT,
0..100. A letter that is no amino acid with a name of its own is UNK.
"""

import io
import json
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from structure.prediction import Prediction
from xtrimo import __version__
from xtrimo.chains import ATOMS
from xtrimo.durable import write_json, write_text
from xtrimo.errors import DataError

CHAIN_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
"""What a PDB file has room for: one character a chain."""
MOST_ATOMS = 99_999
MOST_RESIDUES = 9_999
LEAST_ANG, MOST_ANG = -999.999, 9999.999
NAMES = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE", "K": "LYS",
    "L": "LEU", "M": "MET", "N": "ASN", "O": "PYL", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR",
    "U": "SEC", "V": "VAL", "W": "TRP", "Y": "TYR",
}  # fmt: skip
UNKNOWN = "UNK"
MOST_ERROR_ANG = 31.75
"""The largest PAE that the heads of `confidence` can say."""
PAIRS = "loop_\n_ma_qa_metric_local_pairwise."


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """A prediction in numbers."""

    name: str
    sequence: str
    """With ':' between chains."""
    length: int
    """Residues of all chains."""
    num_chains: int
    mean_plddt: float
    """0..100."""
    ptm: float
    num_recycles: int
    model: str
    seconds: float | None = None
    """Spent on folding it."""
    file: str = ""
    """Name of its structure files, without the ending."""

    @classmethod
    def of(cls, prediction: Prediction, seconds: float | None = None, *, file: str = "") -> "Scores":
        """The scores of a prediction."""
        return cls(
            name=prediction.name, sequence=prediction.sequence, length=len(prediction.residues),
            num_chains=len(prediction.chains),
            mean_plddt=prediction.mean_plddt, ptm=prediction.ptm, num_recycles=prediction.num_recycles,
            model=prediction.model, seconds=seconds, file=file,
        )  # fmt: skip


def write_scores(scores: Sequence[Scores], path: Path) -> None:
    """A JSON list, one entry a prediction."""
    write_json(path, [asdict(each) for each in scores])


def read_scores(path: Path) -> list[Scores]:
    """What `write_scores` wrote.

    Raises:
        DataError: no such file.
    """
    try:
        return [Scores(**entry) for entry in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no list of scores ({error}); remove it, and fold again") from error


def write_pae(prediction: Prediction, path: Path) -> None:
    """The expected errors of pairs as JSON, laid out as in AlphaFold's database, which other programs read; 0.01 A."""
    rows = np.round(prediction.pae_ang.astype(np.float64), 2).tolist()
    content = [{"predicted_aligned_error": rows, "max_predicted_aligned_error": MOST_ERROR_ANG}]
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def read_pae(path: Path) -> Float64[np.ndarray, "length length"]:
    """What `write_pae`, or AlphaFold's database, wrote: angstrom.

    Raises:
        DataError: no such file.
    """
    try:
        return np.array(json.loads(path.read_text("utf-8"))[0]["predicted_aligned_error"], dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{path} holds no errors of pairs ({error}); remove it, and fold again") from error


def write_pdb(prediction: Prediction, path: Path) -> None:
    """A PDB file; records end with TER where a chain ends.

    Raises:
        DataError: more chains, residues or atoms than its columns hold, or a place too far off; mmCIF has no limits.
    """
    _check_columns(prediction)
    # mkdssp refuses a file without HEADER
    lines = ["HEADER    PREDICTED STRUCTURE", *_title(prediction.name)]
    lines.append("EXPDTA    THEORETICAL MODEL")
    lines.append(f"REMARK 999 PREDICTED BY {prediction.model[:50].encode('ascii', 'replace').decode()}")
    lines += [line for pair in zip(CHAIN_LETTERS, prediction.chains, strict=False) for line in _sequence_lines(*pair)]
    serial = 0
    for number, letter in enumerate(CHAIN_LETTERS[: len(prediction.chains)]):
        for line in _chain_lines(prediction, number, letter):
            serial += 1
            lines.append(line[:6] + f"{serial:5d}" + line[11:])
        serial += 1  # TER has a number of its own
        lines.append(f"TER   {serial:5d}      {lines[-1][17:26]}")
    write_text(path, "\n".join(f"{line:<80}" for line in [*lines, "END"]) + "\n")


def _sequence_lines(letter: str, sequence: str) -> list[str]:
    """The SEQRES records of one chain, 13 residues each; without them some programs drop unknown residues."""
    names = [NAMES.get(residue, UNKNOWN) for residue in sequence]
    return [
        f"SEQRES {begin // 13 + 1:3d} {letter} {len(names):4d}  {' '.join(names[begin : begin + 13])}"
        for begin in range(0, len(names), 13)
    ]


def _chain_lines(prediction: Prediction, number: int, letter: str) -> list[str]:
    """The ATOM records of one chain."""
    own = prediction.chain == number
    letters = [residue for residue, there in zip(prediction.residues, own, strict=True) if there]
    atoms = np.where(prediction.exists[own][..., None], prediction.atoms[own], np.nan)
    return atom_records(
        letters, atoms, ATOMS, _numbers(prediction)[own], chain=letter, b_factor=prediction.atom_plddt[own]
    )


def atom_records(
    letters: Sequence[str],
    xyz: Float[np.ndarray, "residue atom 3"],
    atoms: Sequence[str],
    numbers: Int[np.ndarray, "residue"],
    *,
    chain: str = "A",
    b_factor: Float[np.ndarray, "residue atom"] | None = None,
) -> list[str]:
    """The ATOM records of a PDB file for residues of one chain, serial numbers from 1; atoms at NaN are left out.

    Args:
        letters: of the amino acids.
        atoms: names of the columns, of C, N, O and S alone.
        numbers: of the residues, -999 to 9999.
    """
    from biotite import structure
    from biotite.structure.io.pdb import PDBFile

    rows, columns = np.nonzero(np.isfinite(xyz).all(-1))
    array = structure.AtomArray(len(rows))
    array.coord = xyz[rows, columns]
    array.chain_id[:] = chain
    array.res_id = numbers[rows]
    array.res_name = np.array([NAMES.get(letters[row], UNKNOWN) for row in rows.tolist()])
    array.atom_name = np.array(atoms)[columns]
    array.element = np.array([name[0] for name in atoms])[columns]
    if b_factor is not None:
        array.set_annotation("b_factor", b_factor[rows, columns].astype(np.float64))
    file = PDBFile()
    file.set_structure(array)
    return [line for line in file.lines if line.startswith("ATOM")]


def _check_columns(prediction: Prediction) -> None:
    """Refuse what a PDB file would garble."""
    counts = {
        "chains": (len(prediction.chains), len(CHAIN_LETTERS)),
        "atoms and ends of chains": (int(prediction.exists.sum()) + len(prediction.chains), MOST_ATOMS),
        "residues in a chain": (max(map(len, prediction.chains)), MOST_RESIDUES),
    }
    for what, (count, most) in counts.items():
        if count > most:
            raise DataError(f"prediction {prediction.name}: {count:,} {what}, a PDB file holds {most:,}; write mmCIF")
    places = prediction.atoms[prediction.exists]
    if places.min() < LEAST_ANG or places.max() > MOST_ANG:
        raise DataError(
            f"prediction {prediction.name}: coordinates from {places.min():.0f} to {places.max():.0f} A, a PDB file "
            f"holds {LEAST_ANG} to {MOST_ANG}; the structure has burst, or write mmCIF"
        )


def _title(name: str) -> list[str]:
    """TITLE records; from the second on they are numbered."""
    text = name.encode("ascii", "replace").decode()
    parts = [text[begin : begin + 69] for begin in range(0, len(text), 69)]
    return [f"TITLE   {f'{row + 1:2d} ' if row else '  '}{part}" for row, part in enumerate(parts[:99])]


def _numbers(prediction: Prediction) -> Int[np.ndarray, "length"]:
    """The number of each residue in its chain, from 1."""
    return np.concatenate([np.arange(1, len(chain) + 1) for chain in prediction.chains])


def write_mmcif(prediction: Prediction, path: Path, *, pae: bool = False) -> None:
    """An mmCIF file by the ModelCIF dictionary, with pLDDT and pTM.

    Args:
        pae: also the expected error of each pair of residues: length^2 lines.
    """
    import modelcif
    from modelcif import data, dumper, model, protocol

    software = modelcif.Software(
        "xtrimo", "model building", "protein structures from a protein language model", None, version=__version__
    )
    system = modelcif.System(
        title=prediction.name,
        model_details=f"Predicted by {prediction.model}; passes after the first: {prediction.num_recycles}.",
    )
    names = [tuple(NAMES.get(letter, UNKNOWN) for letter in chain) for chain in prediction.chains]
    entities = {chain: _entity(chain) for chain in names}  # chains of one sequence are one entity
    units = [modelcif.AsymUnit(entities[chain]) for chain in names]
    system.entities += entities.values()
    built = model.AbInitioModel(modelcif.Assembly(units), name=prediction.name)
    _add_atoms(built, prediction, units)
    _add_scores(built, prediction, units, software, pae=pae)
    system.model_groups.append(model.ModelGroup([built]))
    steps = protocol.Protocol()
    given = data.DataGroup(entities.values())
    steps.steps.append(protocol.ModelingStep(given, built, name="folding", software=software))
    system.protocols.append(steps)
    text = io.StringIO()
    dumper.write(text, [system])
    write_text(path, text.getvalue())


def _entity(names: tuple[str, ...]) -> Any:
    """The sequence of a chain in ModelCIF's terms."""
    import ihm
    import modelcif

    components = {component.id: component for component in ihm.LPeptideAlphabet._comps.values()}
    return modelcif.Entity([components[name] for name in names], description="protein")


def _add_atoms(built: Any, prediction: Prediction, units: Sequence[Any]) -> None:
    from modelcif import model

    numbers = _numbers(prediction)
    for row, column in np.argwhere(prediction.exists).tolist():
        x, y, z = prediction.atoms[row, column].tolist()
        built.add_atom(
            model.Atom(
                asym_unit=units[prediction.chain[row]], seq_id=int(numbers[row]), atom_id=ATOMS[column],
                type_symbol=ATOMS[column][0], x=x, y=y, z=z, occupancy=1.0,
                biso=float(prediction.atom_plddt[row, column]),
            )
        )  # fmt: skip


def _add_scores(built: Any, prediction: Prediction, units: Sequence[Any], software: Any, *, pae: bool) -> None:
    """What the model says of itself, over all residues, for each, and for each pair where `pae`."""
    from modelcif import qa_metric

    def metric(name: str, text: str, *kinds: type) -> Any:
        # of a score the library writes the name of its class, and the first line of its text
        return type(name, kinds, {"__doc__": text, "software": software})

    mean = metric("mean_pLDDT", "Mean over residues of the predicted lDDT", qa_metric.Global, qa_metric.PLDDT)
    ptm = metric("pTM", "Predicted TM-score", qa_metric.Global, qa_metric.PTM)
    plddt = metric("pLDDT", "Predicted lDDT of the C-alpha", qa_metric.Local, qa_metric.PLDDT)
    residues = [unit.residue(number + 1) for unit in units for number in range(len(unit.entity.sequence))]
    built.qa_metrics += [mean(round(prediction.mean_plddt, 2)), ptm(round(prediction.ptm, 4))]
    built.qa_metrics += [
        plddt(residue, round(value, 2)) for residue, value in zip(residues, prediction.plddt.tolist(), strict=True)
    ]
    if pae:
        text = "Error in angstrom of the second residue, superposed on the frame of the first"
        error = metric("PAE", text, qa_metric.LocalPairwise, qa_metric.PAE)
        for residue, row in zip(residues, prediction.pae_ang.tolist(), strict=True):
            built.qa_metrics += [
                error(residue, other, round(value, 2)) for other, value in zip(residues, row, strict=True)
            ]


def without_pairs(text: str) -> str:
    """An mmCIF file of `write_mmcif` without the expected errors of pairs; any other text as it is."""
    before, found, rest = text.partition(PAIRS)
    return before + rest.partition("\n#\n")[2] if found else text
