"""From sequence to atoms: a language model's states, a trunk of pairs, a structure module. Names load on first use."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structure.fold_directory import load_fold as load_fold
    from structure.folding import fold as fold
    from structure.prediction import Prediction as Prediction

_HOME = {"Prediction": "prediction", "fold": "folding", "load_fold": "fold_directory"}
__all__ = ["Prediction", "fold", "load_fold"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'structure' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"structure.{_HOME[name]}"), name)
