"""Arrays of integers out of pickles that nobody vouches for.

A pickle may name any function to be called when it is read, and numpy's own names are not harmless either:
`ndarray`, called with chosen arguments, takes bytes for pointers and ends the process. So nothing of numpy's is
admitted. The few names that arrays are rebuilt with stand for the classes below, which take integers only.
"""

import io
import pickle
from typing import Any

import numpy as np


def loads(content: bytes) -> Any:
    """What `content` holds: plain Python values, with byte strings as bytes, and arrays of integers.

    Raises UnpicklingError for a pickle that asks for anything else, and whatever `pickle` raises for a broken one.
    """
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module = module_name.replace("numpy.core.", "numpy._core.")  # numpy 1 wrote the former
        if (module, global_name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is refused")
        return ADMITTED[module, global_name]


class _Kind:
    """A dtype: the kind and size of integers, then their byte order."""

    __slots__ = ("dtype",)

    def __init__(self, kind: str | bytes, align: int = 0, copy: int = 0):
        self.dtype = np.dtype(kind.decode() if isinstance(kind, bytes) else kind)
        if self.dtype.kind not in "iu":
            raise pickle.UnpicklingError(f"it holds an array of {self.dtype}, which is refused")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array: made empty, then filled from (version, shape, kind, is Fortran order, bytes)."""

    __slots__ = ("values",)

    def __init__(self, subtype: Any = None, shape: Any = None, kind: Any = None):
        self.values = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.values = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


def _from_buffer(content: Any, kind: _Kind, shape: tuple[int, ...], order: str, axes: Any = None) -> _Array:
    """How protocol 5 writes an array."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _latin1(text: str, encoding: str | bytes) -> bytes:
    """How Python 3 writes bytes into the old protocols."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}, which is refused")
    return text.encode("latin1")


ADMITTED = {
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct; as text it cannot be called
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _latin1,
}
