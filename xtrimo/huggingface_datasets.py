"""Proteins of a `datasets.Dataset`, with what a model makes of them as further columns.

Nothing of `datasets` is imported: who has a Dataset has the package. A table written by these functions is read by
`xtrimo finetune` as any folder that `datasets` saves.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from xtrimo.backbone import Backbone
from xtrimo.embedding import Pooling, embed
from xtrimo.errors import DataError
from xtrimo.fasta import Record
from xtrimo.scoring import score

Columns = Mapping[str, list[Any]]
COLUMN = "sequence"


def with_embeddings(dataset: Any, model: Backbone, *, column: str = COLUMN, pooling: Pooling = "mean") -> Any:
    """The dataset with the column `embedding`, fp32: (dim) a protein, or (length, dim) without pooling.

    Args:
        dataset: a `datasets.Dataset`.
        column: with the proteins.

    Raises:
        DataError: no such column.
        SequenceError: as `xtrimo.embed`, naming the row.
    """

    def columns(records: list[Record]) -> Columns:
        return {"embedding": [one.hidden for one in embed(model, records, pooling=pooling)]}

    return _with(dataset, column, columns)


def with_scores(dataset: Any, model: Backbone, *, column: str = COLUMN) -> Any:
    """The dataset with the columns `nll`, nats per residue, `ppl` and `total_nll`, nats; as `xtrimo.score`.

    Raises:
        DataError: no such column.
        SequenceError: as `xtrimo.score`, naming the row.
    """

    def columns(records: list[Record]) -> Columns:
        scores = score(model, records)
        return {name: [getattr(one, name) for one in scores] for name in ("nll", "ppl", "total_nll")}

    return _with(dataset, column, columns)


def _with(dataset: Any, column: str, columns: Callable[[list[Record]], Columns]) -> Any:
    if column not in dataset.column_names:
        raise DataError(f"the dataset has no column {column!r}; it has {', '.join(dataset.column_names)}")

    def added(rows: Mapping[str, Iterable[str]], places: Iterable[int]) -> dict[str, list[Any]]:
        return dict(columns([Record(f"row {i}", protein) for i, protein in zip(places, rows[column], strict=True)]))

    # A fingerprint of its own: `datasets` would make one by pickling the model.
    return dataset.map(added, batched=True, with_indices=True, new_fingerprint=secrets.token_hex(8))
