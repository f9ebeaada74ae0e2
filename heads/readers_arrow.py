"""Arrow tables: Parquet files, and the folders that Hugging Face `datasets` saves, by pyarrow alone.

`datasets` writes the Arrow stream format, and notes in the schema which integer columns stand for words (`ClassLabel`);
those are turned back into the words.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xtrimo.errors import DataError, MissingExtraError

BATCH_ROWS = 1024


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file.

    Raises:
        DataError: not a whole Parquet file.
        MissingExtraError: without pyarrow.
    """
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        yield from _rows(file.schema_arrow, file.iter_batches(batch_size=BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}); fetch or write it again") from error


def read_arrow(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file, in the stream format or the file format.

    Raises:
        DataError: not a whole Arrow file.
        MissingExtraError: without pyarrow.
    """
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pyarrow.ipc.open_file(source)
                yield from _rows(file.schema, (file.get_batch(i) for i in range(file.num_record_batches)))
            else:
                stream = pyarrow.ipc.open_stream(source)
                yield from _rows(stream.schema, stream)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Arrow ({error}); fetch or write it again") from error


def arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of one saved split in their order, which state.json gives."""
    state = folder / "state.json"
    if not state.is_file():
        return sorted(folder.glob("*.arrow"))
    try:
        return [folder / row["filename"] for row in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} is not what datasets writes ({error}); save the data set again") from error


def _rows(schema: Any, batches: Any) -> Iterator[dict[str, Any]]:
    words = _class_words(schema)
    for batch in batches:
        for row in batch.to_pylist():
            for column, names in words.items():
                number = row[column]
                if isinstance(number, int) and 0 <= number < len(names):
                    row[column] = names[number]
            yield row


def _class_words(schema: Any) -> dict[str, list[str]]:
    """Column -> the words behind its numbers, as `datasets` notes them."""
    noted = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(noted).get("info", {}).get("features", {}) if noted else {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path} needs pyarrow, which is not installed: pip install 'xtrimo[heads]'") from error
    return pyarrow
