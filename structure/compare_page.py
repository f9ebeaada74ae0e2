"""The page of `compare`: models laid on their references, and where the distances within them differ.

They are superposed as gives the largest TM-score, so that a bent hinge leaves the larger part in place. The map of
pairs, | d_ij(model) - d_ij(reference) | of C-alphas, needs no superposition.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from structure.compare import TITLES, Pair
from structure.metrics import best_core
from structure.viewer import Column, Item, Page, Structure, write_page
from structure.writers import atom_records
from xtrimo.chains import Chain

SHOWN = ("tm", "rmsd_ang", "lddt", "gdt_ts")
COLUMNS = (
    Column(title="model"), *(Column(title=TITLES[name], digits=2) for name in SHOWN),
    Column(title="residues", digits=0),
)  # fmt: skip
TOP_ANG = 16.0
LEAST_NUMBER, MOST_NUMBER = -999, 9999
"""What the columns of a PDB file have room for."""
CA = 1


def write_compare_page(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the page of pairs that `compare_paths` has shown."""
    one = pairs[0].row.model
    page = Page(
        title=f"{one} on its reference" if len(pairs) == 1 else f"{len(pairs)} models on their references",
        about="Superposed as gives the largest TM-score.", columns=COLUMNS, order=1,
        quantity="distance of C-alphas differs by", top_ang=TOP_ANG, is_overlay=True,
        matrix_text="How much the distance of two C-alphas differs between model and reference; grey where one of them"
        " lacks a residue.",
        contacts_text="Contacts, C-betas nearer than 8 Å: of the model above the diagonal, of the reference below.",
        hint="Point at a map to see its pair of residues in the structures, or click on residues there.",
        items=[_item(pair) for pair in pairs],
    )  # fmt: skip
    write_page(path, page)


def _item(pair: Pair) -> Item:
    row, model, reference, match = pair
    rows, columns = match.rows.T
    figures = [getattr(row.figures, name) for name in SHOWN]
    cells = (None if math.isnan(value) else value for value in figures)
    numbers = _numbers(reference)
    placed = _superposed(model.xyz, rows, reference.xyz[columns], row.figures.num_reference)
    records = (
        atom_records([model.sequence[each] for each in rows], placed[rows], model.atoms, np.array(numbers)[columns]),
        atom_records(reference.sequence, reference.xyz, reference.atoms, np.array(numbers)),
    )
    apart = np.full((len(numbers), len(numbers)), np.nan)
    own, other = (_distances(xyz[:, CA]) for xyz in (model.xyz[rows], reference.xyz[columns]))
    apart[np.ix_(columns, columns)] = np.abs(own - other)
    return Item(
        name=f"{row.model} on {row.reference}",
        cells=(row.model, *cells, row.figures.num_aligned),
        sequence=reference.sequence, numbers=tuple(numbers), pairs_ang=apart,
        structures=tuple(
            Structure(label=label, ending="pdb", text="\n".join([*lines, "TER", "END"]) + "\n")
            for label, lines in zip(("model", "reference"), records, strict=True)
        ),
    )  # fmt: skip


def _numbers(chain: Chain) -> list[int]:
    """Numbers of residues that tell them apart in a PDB file: its own, or from 1 where those do not."""
    own = [] if chain.numbers is None else chain.numbers.tolist()
    fits = len(set(own)) == len(chain.sequence) and min(own) >= LEAST_NUMBER and max(own) <= MOST_NUMBER
    return own if fits else list(range(1, len(chain.sequence) + 1))


def _superposed(
    xyz: Float[np.ndarray, "length atom 3"],
    rows: np.ndarray,
    reference: Float[np.ndarray, "pair atom 3"],
    num_reference: int,
) -> Float[np.ndarray, "length atom 3"]:
    """All atoms of a model moved onto a reference, whose residues are those of `rows`."""
    from biotite import structure

    own, goal = xyz[rows, CA].astype(np.float64), reference[:, CA].astype(np.float64)
    both = np.isfinite(own).all(1) & np.isfinite(goal).all(1)
    core = best_core(own[both], goal[both], num_reference)
    _, move = structure.superimpose(goal[both][core], own[both][core])
    return np.asarray(move.apply(xyz.reshape(-1, 3).astype(np.float64))).reshape(xyz.shape)


def _distances(points: Float[np.ndarray, "residue 3"]) -> Float64[np.ndarray, "residue residue"]:
    points = points.astype(np.float64)
    return np.linalg.norm(points[:, None] - points[None], axis=-1)
