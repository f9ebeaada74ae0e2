"""TAPE's data (Rao et al. 2019, arXiv:1906.08230): LMDB files whose values are pickles of dicts with numpy arrays.

A pickle can run any code, so this one is read by an unpickler that knows plain values and numpy arrays, and refuses
whatever else a file asks for. Keys are b"0", b"1", ... and b"num_examples".
"""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xtrimo.errors import DataError, MissingExtraError

_ARRAYS = ("_reconstruct", "scalar")
ALLOWED = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    # numpy 2 renamed the modules; files are of either time
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in _ARRAYS),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}  # fmt: skip
"""What a pickle may name: how numpy writes arrays and scalars, and how Python 3 writes bytes for Python 2."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def loads(data: bytes, where: str) -> Any:
    """A pickled value made of plain Python values and numpy arrays.

    Raises:
        DataError: anything else in it, or damage.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # damage shows as almost any error
        raise DataError(f"{where}: refused to unpickle it ({error}); do not trust this file") from error


def read_lmdb(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, what it holds) of each example.

    Raises:
        DataError: not such a file, a pickle with anything but plain values and arrays, or missing examples.
        MissingExtraError: without lmdb.
    """
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{path} needs lmdb, which is not installed: pip install 'xtrimo[heads]'") from error
    try:
        environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be read as LMDB ({error}); fetch it again") from error
    with environment, environment.begin() as transaction:
        count = transaction.get(b"num_examples")
        number = loads(count, f"{path}, num_examples") if count is not None else None
        if not isinstance(number, (int, np.integer)):
            raise DataError(f"{path}: key num_examples is {number!r}; expected their number, as TAPE writes it")
        for i in range(int(number)):
            where = f"{path}, example {i}"
            data = transaction.get(str(i).encode())
            if data is None:
                raise DataError(f"{where} is missing, of {number} that the file says it holds; fetch it again")
            values = loads(data, where)
            if not isinstance(values, dict):
                raise DataError(f"{where} is a {type(values).__name__}; expected a dict with the sequence and labels")
            yield where, {str(name): _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Arrays of one number become it, and bytes text."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, np.ndarray) and value.size == 1 and value.ndim < 2:
        return value.reshape(()).item()
    return value.item() if isinstance(value, np.generic) else value
