"""Proteins out of a model directory: prompts, sampling, infilling, FASTA. What is named here loads on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generate.designs import Sample as Sample
    from generate.infilling import infill as infill
    from generate.redesigning import redesign as redesign
    from generate.sampler import sample as sample

_HOME = {"Sample": "designs", "infill": "infilling", "redesign": "redesigning", "sample": "sampler"}
__all__ = ["Sample", "infill", "redesign", "sample"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'generate' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"generate.{_HOME[name]}"), name)
