"""What language models make of sets of proteins: perplexities, and a map of mean embeddings.

A model that generates is asked for the likelihood; one that only fills masks for the pseudo-likelihood, which takes a
pass a residue, of a few proteins of each set.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from generate.divergence import UNDEFINED
from generate.measures import Case, Finding
from xtrimo.backbone import Backbone
from xtrimo.command import ModelOptions
from xtrimo.embedding import iter_embeddings
from xtrimo.errors import SequenceError
from xtrimo.fasta import Record
from xtrimo.intervals import Estimate, bootstrap_ratio
from xtrimo.likelihood import choose
from xtrimo.model import GLM
from xtrimo.prepacking import prepack
from xtrimo.scoring import iter_scores

logger = logging.getLogger(__name__)

NUM_BY_MASKS = 50  # proteins of each set


def load(model: str, device: str) -> Backbone:
    """A model, laid out for inference.

    Raises:
        ConfigError: for a device that is not here.
        CheckpointError: for a directory that holds no model, or a damaged one.
    """
    loaded = ModelOptions(model=model, device=device).load()
    return prepack(loaded) if isinstance(loaded, GLM) else loaded


def method_of(model: Backbone) -> str:
    """How perplexity is asked of a model, in words."""
    asking = choose(model, None, None)
    way = asking.method if asking.reading is None else f"{asking.method}, {asking.reading}"
    return f"{way}, {NUM_BY_MASKS} proteins of each set" if asking.method == "pseudo" else way


def of_perplexity(case: Case, model: Backbone, measure: str) -> Iterator[Finding]:
    """Perplexity per residue of each set: exp(sum of nats / sum of residues), drawn by proteins.

    Proteins that the model cannot read are left out, with a warning.
    """
    asking = choose(model, None, None)
    for number, (of, records) in enumerate(case.sets.items()):
        order = np.random.default_rng((case.seed, number)).permutation(len(records))
        asked = sorted(order[:NUM_BY_MASKS].tolist()) if asking.method == "pseudo" else range(len(records))
        readable = [i for i in asked if _is_readable(model, records[i])]
        if len(readable) < len(asked):
            logger.warning("%s: %d of %s are too long for the model", measure, len(asked) - len(readable), of)
        nats, lengths = np.full(len(records), np.nan), np.zeros(len(records))
        for i, score in zip(readable, iter_scores(model, [records[i] for i in readable]), strict=True):
            nats[i] = np.nansum(score.residue_nll, dtype=np.float64)
            lengths[i] = np.isfinite(score.residue_nll).sum()
        known = lengths > 0
        if not known.any():
            yield Finding(measure, of, UNDEFINED, 0)
            continue
        found = bootstrap_ratio(nats[known], lengths[known])
        ends = (float(np.exp(end)) for end in (found.value, found.low, found.high))
        estimate = Estimate(**dict(zip(("value", "low", "high"), ends, strict=True)))
        values = np.exp(np.divide(nats, lengths, out=np.full(len(nats), np.nan), where=known))
        yield Finding(measure, of, estimate, int(known.sum()), values)


def _is_readable(model: Backbone, record: Record) -> bool:
    try:
        choose(model, None, None).check(model, record)
    except SequenceError:
        return False
    return True


def embedding_map(model: Backbone, sets: Mapping[str, Sequence[Record]]) -> dict[str, Float64[np.ndarray, "protein 2"]]:
    """The mean embeddings of all proteins on their first two principal components, those of all sets together."""
    pooled = [record for records in sets.values() for record in records]
    states = iter_embeddings(model, pooled, pooling="mean", long="windows", overlap=0)
    points = np.stack([embedding.hidden for embedding in states]).astype(np.float64)
    points -= points.mean(0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    # A direction and its opposite are one component; the larger side is up, so that runs agree.
    axes = axes[:2] * np.sign(axes[:2].sum(1, keepdims=True))
    flat = points @ axes.T
    if flat.shape[1] < 2:  # of a single protein
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    ends = np.cumsum([len(records) for records in sets.values()])
    return dict(zip(sets, np.split(flat, ends[:-1]), strict=True))
