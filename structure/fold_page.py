"""The page of a run of `fold`: its proteins by confidence, their structures, and the expected errors of their pairs.

It is made of what the run's folder holds, so that it can be made again, or of structures that others wrote there:
scores.json, NAME.cif or NAME.pdb, and NAME.pae.json where there is one.
"""

from collections.abc import Collection
from pathlib import Path

from structure.viewer import Column, Item, Page, Structure, write_page
from structure.writers import Scores, read_pae, read_scores, without_pairs
from xtrimo.errors import DataError

PAGE, ERRORS = "page.html", ".pae.json"
COLUMNS = (
    Column(title="protein"), Column(title="residues", digits=0), Column(title="chains", digits=0),
    Column(title="pLDDT", digits=1, is_plddt=True), Column(title="pTM", digits=2),
)  # fmt: skip


def write_fold_page(folder: Path, names: Collection[str] | None = None) -> Path:
    """Write `page.html` into a folder of structures.

    Args:
        names: of the files to show, without their ends; by default of all in the table of scores.

    Returns:
        Its path.

    Raises:
        DataError: the folder has no scores, or no structure of one of them.
    """
    scores = [each for each in read_scores(folder / "scores.json") if names is None or each.file in names]
    models = sorted({each.model for each in scores})
    page = Page(
        title=f"{len(scores)} structures" if len(scores) != 1 else f"The structure of {scores[0].name}",
        about=f"Predicted by {', '.join(models)}. A prediction is a hypothesis: where pLDDT is below 50, or the error"
        " of a pair is large, places say nothing.",
        columns=COLUMNS, order=3, quantity="expected error",
        matrix_text="Expected error (PAE) of residue j, across, once the structures lie on each other at residue i,"
        " down; in steps of 0.125 Å.",
        contacts_text="Contacts: C-betas nearer than 8 Å, three or more residues apart in their chain.",
        hint="Point at a map to see its pair of residues in the structure, or click on residues there.",
        items=[_item(folder, each) for each in scores],
    )  # fmt: skip
    write_page(folder / PAGE, page)
    return folder / PAGE


def _item(folder: Path, scores: Scores) -> Item:
    structures = []
    for ending in ("cif", "pdb"):
        file = folder / f"{scores.file}.{ending}"
        if file.exists():
            text = file.read_text("utf-8")
            structures.append(Structure(label=ending, ending=ending, text=without_pairs(text)))
    if not structures:
        raise DataError(f"{folder} has scores of {scores.file}, but neither its .cif nor its .pdb file; fold it again")
    errors = folder / f"{scores.file}{ERRORS}"
    return Item(
        name=scores.name, cells=(scores.name, scores.length, scores.num_chains, scores.mean_plddt, scores.ptm),
        sequence=scores.sequence, structures=tuple(structures), pairs_ang=read_pae(errors) if errors.exists() else None,
    )  # fmt: skip
