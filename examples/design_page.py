"""The page of designs: what the figures allow to say, tables, and the structures to turn.

The structures are those of `structure.viewer`, as a frame that holds them: the page is one file, and asks for nothing.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.design_figures import MEASURES, SAME, SURE, Folded, Group, less, picture, table
from generate.designs import Sample
from structure.inverse import INSTALL
from structure.viewer import Column, Item, Page, Structure, write_page
from structure.writers import Scores, write_mmcif, write_scores
from xtrimo import figures
from xtrimo.durable import write_text
from xtrimo.fasta import file_names
from xtrimo.pages import Section, to_html

SHOWN = ("plddt", "ptm", "size", "contacts", "perplexity", "recovery", "self_tm")
"""Columns of the table beside the structures."""
LISTED = 20  # designs of the table
FEWEST = 8  # natives that a correlation is made of
TOY = "A toy of random weights took part: the figures show the page, and say nothing of proteins."


def verdict(groups: Sequence[Group], *, is_toy: bool) -> str:
    """What the figures allow to say."""
    by_name = {group.name: group for group in groups}
    designs, lost, natives = (by_name[name] for name in ("designs", "designs, shuffled", "natives"))
    lines = [TOY] if is_toy else []
    for name in ("plddt", "self_tm"):
        if apart := less(designs, lost, name):
            lines.append(f"Designs less their own shuffles, {MEASURES[name].title}: {apart}.")
    if truth := natives.estimate("true_tm"):
        lines.append(
            f"On natives the folding model reaches a TM-score of {truth} ({MEASURES['true_tm'].title}; above 0.5 the"
            f" fold is right){_trust(natives)}: what it says of designs is worth no more than that."
        )
    foldable = designs.foldable()
    if foldable is None:
        lines.append(f"Inverse folding was left out, since its weights are not installed: {INSTALL}")
    else:
        lines.append(
            f"Foldable (pLDDT {SURE:.0f} or more, self-consistent TM {SAME} or more): {foldable} of"
            f" {len(designs.proteins)} designs, {natives.foldable()} of {len(natives.proteins)} natives."
        )
    return " ".join(lines)


def _trust(natives: Group) -> str:
    """How pLDDT goes with the truth; nothing where it is the same for all, or natives are few."""
    plddt, true = natives.values("plddt"), natives.values("true_tm")
    if len(plddt) < FEWEST or np.ptp(plddt) == 0:
        return ""
    spread = f"its pLDDT lies between {plddt.min():.0f} and {plddt.max():.0f}"
    return f", and {spread} and correlates with that by {np.corrcoef(plddt, true)[0, 1]:.2f}"


def design_rows(designs: Group, samples: Sequence[Sample]) -> list[list[str]]:
    """The designs that the folding model is surest of."""
    names = [name for name in MEASURES if designs.estimate(name)]
    perplexity = {sample.name: sample.ppl for sample in samples}
    rows = [["design", "residues", "perplexity by its writer", *(MEASURES[name].title for name in names), "sequence"]]
    for each in sorted(designs.proteins, key=lambda each: -MEASURES["plddt"].of(each))[:LISTED]:
        values = [MEASURES[name].of_mean(MEASURES[name].of(each)) for name in names]
        rows.append([
            each.name, str(len(each.sequence)), f"{perplexity[each.name]:.1f}", *(f"{value:.2f}" for value in values),
            f"{each.sequence[:24]}...",
        ])  # fmt: skip
    return rows


def write_report(path: Path, facts: str, groups: Sequence[Group], samples: Sequence[Sample], *, is_toy: bool) -> None:
    """One HTML file with all in it; the groups that were folded are shown as structures as well.

    Args:
        facts: how the designs were made.
        groups: designs first.
    """
    image = figures.save(picture(groups), path.with_name("figures.png"))
    meaning = [["column", "meaning"], *([measure.title, measure.said] for measure in MEASURES.values())]
    text = to_html([
        Section(title="Designs judged by structure", text=f"{facts} {verdict(groups, is_toy=is_toy)}"),
        Section(title="Figures", table=table(groups), images=[("each protein a point", image)]),
        Section(title="The proteins", table=[["proteins", "what they are"], *([g.name, g.said] for g in groups)]),
        Section(title="The columns", table=meaning),
        Section(title="Designs, the surest first", table=design_rows(groups[0], samples)),
        Section(title="Structures, the surest first"),
    ])  # fmt: skip
    shown = path.with_name("structures.html")
    by_name = {group.name: group for group in groups}
    write_structures([by_name[name] for name in ("designs", "natives")], shown)
    frame = html.escape(shown.read_text("utf-8"))
    text += f'<iframe title="structures" srcdoc="{frame}" style="width:100%;height:1100px;border:0"></iframe>\n'
    write_text(path, text)


def write_structures(groups: Sequence[Group], page: Path) -> None:
    """A folder of structures and scores for each group, beside a page that shows them all."""
    items = []
    for group in groups:
        folder = page.with_suffix("") / group.name
        folder.mkdir(parents=True, exist_ok=True)
        scores = []
        for file, each in zip(file_names([each.name for each in group.proteins]), group.proteins, strict=True):
            assert each.prediction
            write_mmcif(each.prediction, folder / f"{file}.cif")
            scores.append(Scores.of(each.prediction, file=file))
            items.append(_item(group.name, each, (folder / f"{file}.cif").read_text("utf-8")))
        write_scores(scores, folder / "scores.json")
    titles = [Column(title=MEASURES[name].title, digits=2, is_plddt=name == "plddt") for name in SHOWN]
    facts = Page(
        title="Designs and natives, as they were folded",
        about="A prediction is a hypothesis: where pLDDT is below 50, places say nothing.",
        columns=(Column(title="protein"), Column(title="of"), Column(title="residues", digits=0), *titles), order=3,
        quantity="expected error",
        matrix_text="Expected error (PAE) of residue j, across, once they lie on each other at residue i, down.",
        contacts_text="Contacts: C-betas nearer than 8 Å, three or more residues apart.",
        hint="Point at a map to see its pair of residues in the structure, or click on residues there.", items=items,
    )  # fmt: skip
    write_page(page, facts)


def _item(of: str, protein: Folded, text: str) -> Item:
    """A row of the page of structures."""
    assert protein.prediction
    measures = (MEASURES[name] for name in SHOWN)
    values = [measure.of_mean(measure.of(protein)) for measure in measures]
    cells = (value if math.isfinite(value) else None for value in values)
    return Item(
        name=f"{protein.name} ({of})", cells=(protein.name, of, len(protein.sequence), *cells),
        sequence=protein.sequence, structures=(Structure(label="mmCIF", ending="cif", text=text),),
        pairs_ang=protein.prediction.pae_ang,
    )  # fmt: skip
