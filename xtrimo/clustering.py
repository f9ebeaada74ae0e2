"""Clusters of alike proteins: by mmseqs2 where it is installed, else by the 5-mers that proteins share."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from xtrimo import mmseqs
from xtrimo.log import warn_once
from xtrimo.sketch import cluster_by_words

logger = logging.getLogger(__name__)


def cluster(sequences: Sequence[str], identity: float, coverage: float, at_risk: str) -> Int64[np.ndarray, "protein"]:
    """Of each protein the number, from 0, of the one that stands for its cluster.

    Args:
        identity: share of the aligned residues that members of a cluster have in common with the one it stands for.
        coverage: share of either protein that the alignment covers.
        at_risk: what clusters without mmseqs2 may spoil; said in the warning.
    """
    if mmseqs.is_installed():
        return mmseqs.cluster(sequences, identity, coverage)
    warn_once(
        logger,
        "mmseqs2 is not installed: proteins are clustered by common 5-mers, which misses relatives under 40 % identity,"
        f" so that {at_risk}",
    )
    return cluster_by_words(sequences, identity, coverage)
