"""A model beside residue n-grams on the same held-out labels: mean nats, each with a bootstrap interval over clusters.

The rows are those that training validates on (same proteins, same masks), without the labels that ngrams.py leaves
out, the closing words among them. That no closing word comes is given to both sides: the model's softmax runs over all
rows but `<eos>` and `<eop>`, as a span's end is a quarter of its labels, and the n-grams know residues alone. So the
numbers differ from the run's own validation. The proteins of a cluster are no independent
evidence, so whole clusters are drawn again. A corpus built without a cluster file has every protein as its own cluster,
and its intervals do not know of close relatives.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from pretrain.config import BatchConfig, PretrainConfig
from pretrain.corpus import Corpus
from pretrain.data import validation_order, validation_rows
from pretrain.ngrams import ORDERS, Ngrams, fit_ngrams, residue_labels
from xtrimo.config import PRESETS, GLMConfig
from xtrimo.errors import ConfigError, CorpusError
from xtrimo.intervals import Estimate, Sums, bootstrap
from xtrimo.model import GLM
from xtrimo.objectives import ObjectiveConfig
from xtrimo.packing import Row
from xtrimo.tokens import EOP, EOS

JUDGED = ("model", *ORDERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One objective's held-out result."""

    objective: str
    num_labels: int
    num_proteins: int
    num_clusters: int
    nats: dict[str, Estimate]
    """Nats per residue label by JUDGED: the model and each n-gram order."""
    gain: dict[str, Estimate]
    """By ORDERS: nats of the n-gram less the model's, on the same draws; above 0 the model is better."""


def validation_config(
    model: GLMConfig, corpus: Path, *, seed: int, valid_tokens: int, objective: ObjectiveConfig | None = None
) -> PretrainConfig:
    """The run whose validation rows fit `model`, as far as they depend on it.

    Args:
        objective: that of the training run; by default the usual one, read forward alone if the model knows no other.

    Raises:
        ConfigError: if the model has not the shape of a preset.
    """
    if objective is None:
        objective = ObjectiveConfig() if "reverse" in model.directions else ObjectiveConfig(reverse_ratio=0.0)
    for name, known in PRESETS.items():
        if _fixed(known) == _fixed(model):
            return PretrainConfig(
                corpus=corpus, run=corpus, model=name, seed=seed, valid_tokens=valid_tokens,
                batch=BatchConfig(row_length=model.max_length), objective=objective,
            )  # fmt: skip
    raise ConfigError(f"the model has the shape of none of {', '.join(PRESETS)}, so its validation rows are not known")


def _fixed(model: GLMConfig) -> dict[str, Any]:
    """What training leaves as the preset has it."""
    free = ("max_length", "directions", "licence", "source")
    return {name: value for name, value in model.to_dict().items() if name not in free}


def compare(model: GLM, config: PretrainConfig) -> list[Comparison]:
    """Judge `model` on the validation rows of `config`, beside n-grams fitted on the corpus's training proteins.

    Raises:
        CorpusError: if the corpus holds nothing out.
    """
    corpus = Corpus.open(config.corpus)
    if not len(corpus.valid):
        raise CorpusError(f"{corpus.path} has no held-out proteins; build it with --valid-ratio above 0")
    ngrams = fit_ngrams(corpus.train)
    clusters = corpus.valid.clusters[validation_order(corpus, config.seed)]  # in the rows' order
    out = []
    for objective, rows in validation_rows(corpus, config).items():
        proteins = np.concatenate([protein_sums(model, ngrams, row) for row in rows])
        out.append(_summary(objective, proteins, clusters[: len(proteins)]))
    return out


def protein_sums(model: GLM, ngrams: Ngrams, row: Row) -> Sums:
    """For each segment of a row the summed nats of its residue labels under each of JUDGED, then their number."""
    nats = model_nats(model, row)
    return np.array(
        [[nats[labels.tokens].sum(), *ngrams.nats(labels).sum(1), len(labels.tokens)] for labels in residue_labels(row)]
    )


def model_nats(model: GLM, row: Row) -> Float64[np.ndarray, "token"]:
    """Negative log-likelihood of each label, given that it closes nothing; meaningless where it does, or is none."""
    tokens, positions, segments, labels = (
        torch.as_tensor(part, device=model.device) for part in (row.tokens, row.positions, row.segments, row.labels)
    )
    with torch.inference_mode():
        logits = model(tokens, positions, segments).double()
        logits[:, [EOS, EOP]] = -torch.inf
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none").cpu().numpy()


def _summary(objective: str, proteins: Sums, clusters: Int64[np.ndarray, "protein"]) -> Comparison:
    names, cluster = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), proteins.shape[1]))
    np.add.at(sums, cluster, proteins)
    total, drawn = sums.sum(0), bootstrap(sums)
    means, draws = total[:-1] / total[-1], drawn[:, :-1] / drawn[:, -1:]
    nats = {name: Estimate.of(means[i], draws[:, i]) for i, name in enumerate(JUDGED)}
    gain = {name: Estimate.of(means[i] - means[0], draws[:, i] - draws[:, 0]) for i, name in enumerate(JUDGED) if i}
    return Comparison(
        objective=objective, num_labels=round(proteins[:, -1].sum()), num_proteins=len(proteins),
        num_clusters=len(names), nats=nats, gain=gain,
    )  # fmt: skip


def markdown(comparisons: list[Comparison]) -> str:
    """A table with one row an objective."""
    titles = ("objective", "labels", "proteins", "model", *ORDERS, *(f"below {name}" for name in ORDERS[::2]))
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    for result in comparisons:
        counts = (result.objective, f"{result.num_labels:,}", f"{result.num_proteins:,}")
        gains = (result.gain[name] for name in ORDERS[::2])
        lines.append(" | ".join((*counts, *map(str, result.nats.values()), *map(str, gains))))
    return "\n".join(f"| {line} |" for line in lines)
