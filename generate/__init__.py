"""Proteins out of a model directory: prompts, sampling, FASTA. `sample` loads on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generate.sampler import Sample as Sample
    from generate.sampler import sample as sample

__all__ = ["Sample", "sample"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'generate' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module("generate.sampler"), name)
