"""A folding model on chains that it was not trained on, beside itself before training.

Each figure is a mean over chains, with the interval that the luck of the chains leaves:

    lddt, tm            of C-alphas; of the atoms that the model places
    precision@L/5       long-range contacts, 24 residues apart or more, by P(C-betas nearer than 8 A) of the distogram
    correlation         of pLDDT with the true lDDT, over residues (Pearson)
    calibration_error   points that pLDDT is off the true lDDT, on average over tenths of pLDDT
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from structure.confidence import expected_plddt
from structure.data import Example
from structure.distogram import bin_breaks
from structure.features import Protein, collate
from structure.geometry import CA
from structure.lddt import lddt_ca
from structure.memory import Chunks
from structure.metrics import compare, lddt_of_residues, ranked_precision
from structure.model import Folded, FoldModel
from structure.openfold import constants
from xtrimo.chains import CONTACT_ANG, c_betas
from xtrimo.intervals import Estimate, bootstrap_ratio

CA_ATOM = constants.atom_order["CA"]
FIGURES = ("lddt", "tm", "precision")
RELIABILITY_EDGES = tuple(range(0, 101, 10))
Read = Callable[[Example], Protein]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judged:
    """One chain."""

    lddt: float
    tm: float
    precision: float
    """NaN without pairs of long range."""
    plddt: Float[np.ndarray, "residue"]
    """0..100, of the residues that were seen."""
    true_lddt: Float[np.ndarray, "residue"]
    """0..100."""
    logits: Float[np.ndarray, "residue bin"]
    """Of the lDDT of these residues' C-alphas, as the model says them."""


def folded(module: nn.Module, protein: Protein) -> Folded:
    """One pass over one protein, with as many recycles as training had at most."""
    device = next(module.parameters()).device
    assert isinstance(module, FoldModel)
    features, length = collate([protein]).to(device), len(protein.aatype)

    def compute(chunk: int | None) -> Folded:
        answer: Folded = module(features, num_recycles=module.config.max_recycles, chunk=chunk)
        return answer

    return Chunks(module.config, device).run(compute, length, 1, "a held-out chain")


def mean_lddt(module: nn.Module, examples: Sequence[Example], read: Read) -> float:
    """lDDT of C-alphas, 0..1: the mean over chains."""
    figures = []
    for example in examples:
        atoms = folded(module, read(example)).atoms[-1].cpu()
        seen = torch.from_numpy(example.seen)[None, :, CA]
        scores = lddt_ca(atoms[:, :, CA], torch.from_numpy(example.atoms)[None, :, CA], seen)
        figures.append(float(scores.sum() / seen.sum().clamp(min=1)))
    return float(np.mean(figures))


def judge_chain(module: nn.Module, example: Example, read: Read) -> Judged:
    """All figures of one chain."""
    with torch.no_grad():
        found = folded(module, read(example))
    atoms = found.atoms[-1, 0].float().cpu().numpy()
    reference = np.where(example.seen[..., None] > 0, example.atoms, np.nan)
    said = compare(atoms, reference)
    logits = found.lddt[0, :, CA_ATOM].float().cpu()
    plddt = expected_plddt(logits).numpy()
    true = 100 * lddt_of_residues(atoms[:, CA].astype(float), reference[:, CA].astype(float))
    known = np.isfinite(true)
    precision = ranked_precision(contact_probability(found.distogram[0]).cpu().numpy(), c_betas(reference), 5)
    return Judged(
        lddt=said.lddt, tm=said.tm, precision=precision, plddt=plddt[known], true_lddt=true[known],
        logits=logits.numpy()[known],
    )  # fmt: skip


def contact_probability(logits: Float[Tensor, "length length bin"]) -> Float[Tensor, "length length"]:
    """P(C-betas nearer than 8 A); of the bin that 8 falls into, the share that lies below."""
    ends = bin_breaks(logits.shape[-1], logits.float())
    below = ((CONTACT_ANG - ends) / (ends[1] - ends[0]) + 1).clamp(0, 1)
    return logits.float().softmax(-1)[..., :-1] @ below  # the last bin has no end


def judge(
    model: nn.Module, untrained: nn.Module, examples: Sequence[Example], read: Read, *, temperature: float = 1.0
) -> dict[str, Any]:
    """The figures of a trained model and of its twin before training, for results.json.

    Args:
        temperature: by which the model's logits of the lDDT have been divided; what they say without is told as well.
    """
    ours = [judge_chain(model.eval(), example, read) for example in examples]
    before = [judge_chain(untrained.eval(), example, read) for example in examples]
    plddt = np.concatenate([chain.plddt for chain in ours])
    true = np.concatenate([chain.true_lddt for chain in ours])
    logits = torch.from_numpy(np.concatenate([chain.logits for chain in ours]))
    raw = expected_plddt(logits * temperature).numpy()
    return {
        "num_chains": len(ours), "trained": _figures(ours), "untrained": _figures(before),
        "correlation": _correlation(plddt, true), "calibration_error": calibration_error(plddt, true),
        "calibration_error_before": calibration_error(raw, true),
        "reliability": reliability(plddt, true), "reliability_before": reliability(raw, true),
        "chains": [_finite({name: getattr(chain, name) for name in FIGURES}) for chain in ours],
    }  # fmt: skip


def _figures(chains: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Each with its interval; without those that no chain has, such as the precision of short chains."""
    found = {}
    for name in FIGURES:
        values = np.array([getattr(chain, name) for chain in chains])
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = asdict(bootstrap_ratio(values, np.ones_like(values)))
    return found


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    """As JSON has it, which knows no NaN."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


def reliability(plddt: Float[np.ndarray, "residue"], true: Float[np.ndarray, "residue"]) -> list[dict[str, float]]:
    """Of the residues in each tenth of pLDDT: how many, the mean pLDDT, and the mean true lDDT, 0..100."""
    rows = []
    for low, high in zip(RELIABILITY_EDGES, RELIABILITY_EDGES[1:], strict=False):
        inside = (plddt >= low) & (plddt < high)
        if inside.any():
            rows.append({"low": low, "high": high, "num_residues": int(inside.sum()),
                         "plddt": float(plddt[inside].mean()), "lddt": float(true[inside].mean())})  # fmt: skip
    return rows


def calibration_error(plddt: Float[np.ndarray, "residue"], true: Float[np.ndarray, "residue"]) -> float:
    """How far the mean pLDDT of the residues in each tenth of it is off the mean true lDDT, over residues; 0..100."""
    rows = reliability(plddt, true)
    off = sum(row["num_residues"] * abs(row["plddt"] - row["lddt"]) for row in rows)
    return off / max(1, sum(row["num_residues"] for row in rows))


def _correlation(plddt: Float[np.ndarray, "residue"], true: Float[np.ndarray, "residue"]) -> float | None:
    """Pearson; None where one of both is a constant."""
    if len(plddt) < 2 or min(plddt.std(), true.std()) == 0:
        return None
    return float(np.corrcoef(plddt, true)[0, 1])


def report(results: Mapping[str, Any]) -> str:
    """What `train-fold` prints."""
    test = results["test"]
    chosen = "not trained on" if results["judged_on"] == "test" else "that chose the best weights: there were no others"
    lines = [f"{test['num_chains']} chains {chosen}; mean (95 % interval)"]
    for name in test["trained"]:
        trained, before = (Estimate(**test[which][name]) for which in ("trained", "untrained"))
        lines.append(f"  {name:<10}{trained}   untrained {before}")
    correlation = "nothing: one of them is a constant" if test["correlation"] is None else f"{test['correlation']:.2f}"
    lines.append(f"  pLDDT correlates with the true lDDT by {correlation}")
    if "calibration" in results:  # which runs of earlier versions lack
        after, before = test["calibration_error"], test["calibration_error_before"]
        lines.append(f"  pLDDT is off by {after:.1f} points, {before:.1f} before calibration")
        lines.append(f"  {results['calibration']['said']}")
    return "\n".join(lines)
