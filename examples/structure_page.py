"""A page of `xtrimo fold --page` to look at without a model: experimental structures, their confidence made up.

    python examples/structure_page.py FOLDER

writes FOLDER/page.html of the structures of the tests. What is far from the middle of a protein gets a low pLDDT, and
two residues that are far apart, or of a low one, a large PAE. Nothing was predicted.
"""

import sys
from pathlib import Path

import numpy as np

from structure.fold_page import write_fold_page
from structure.prediction import Prediction
from structure.writers import Scores, write_mmcif, write_pae, write_pdb, write_scores
from xtrimo.chains import ATOMS, Chain, read_structure

FILES = Path(__file__).resolve().parents[1] / "tests/structure/files"
NAMES = ("1A8O.cif", "4CUP.cif")
CA = 1


def made_up(chain: Chain) -> Prediction:
    """A chain with confidence that falls from the middle outwards."""
    seen = np.isfinite(chain.xyz[:, CA]).all(1)
    places = np.full((int(seen.sum()), len(ATOMS), 3), np.nan, dtype=np.float32)
    places[:, : len(chain.atoms)] = chain.xyz[seen]
    ca = places[:, CA].astype(np.float64)
    outside = np.linalg.norm(ca - ca.mean(0), axis=1)
    plddt = (98 - 68 * (outside / outside.max()) ** 2).astype(np.float32)
    apart = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    errors = np.clip(apart * (0.1 + (100 - plddt[None]) / 60), 0, 31.75)  # of j, the column
    exists = np.asarray(np.isfinite(places).all(-1))
    return Prediction(
        name=chain.name, sequence="".join(letter for letter, there in zip(chain.sequence, seen, strict=True) if there),
        atoms=np.nan_to_num(places), exists=exists, plddt=plddt,
        atom_plddt=np.where(exists, plddt[:, None], 0).astype(np.float32), pae_ang=errors.astype(np.float32), ptm=0.8,
        chain=np.zeros(len(places), dtype=np.int64), num_recycles=0, model="nobody: experiments, made-up confidence",
    )  # fmt: skip


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/structure_page.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for name in NAMES:
        prediction = made_up(next(read_structure(FILES / name)))
        write_mmcif(prediction, folder / f"{prediction.name}.cif")
        write_pdb(prediction, folder / f"{prediction.name}.pdb")
        write_pae(prediction, folder / f"{prediction.name}.pae.json")
        scores.append(Scores.of(prediction, file=prediction.name))
    write_scores(scores, folder / "scores.json")
    print(write_fold_page(folder))


if __name__ == "__main__":
    main()
