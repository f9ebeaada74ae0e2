"""xtrimo: the protein language model on one device.

The public names load on first use, so that `import xtrimo` is immediate and the command line answers without torch.

    >>> import xtrimo
    >>> xtrimo.Tokenizer().encode("MKV").tolist()
    [17, 12, 4, 34]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtrimo.backbone import Backbone as Backbone
    from xtrimo.backbone import load as load
    from xtrimo.config import GLMConfig as GLMConfig
    from xtrimo.embedding import Embedding as Embedding
    from xtrimo.embedding import embed as embed
    from xtrimo.embedding_parts import read_embeddings as read_embeddings
    from xtrimo.fasta import read_fasta as read_fasta
    from xtrimo.model import GLM as GLM
    from xtrimo.prepacking import prepack as prepack
    from xtrimo.scoring import Score as Score
    from xtrimo.scoring import score as score
    from xtrimo.tokens import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOME = {
    "load": "backbone",
    "Backbone": "backbone",
    "GLM": "model",
    "GLMConfig": "config",
    "Tokenizer": "tokens",
    "read_fasta": "fasta",
    "read_embeddings": "embedding_parts",
    "prepack": "prepacking",
    "embed": "embedding",
    "Embedding": "embedding",
    "score": "scoring",
    "Score": "scoring",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'xtrimo' has no attribute {name!r}; it offers {', '.join(_HOME)}")
    value = getattr(importlib.import_module(f"xtrimo.{_HOME[name]}"), name)
    globals()[name] = value  # the next look-up is a plain one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
