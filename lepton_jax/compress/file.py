"""A packed model as one file: documented, versioned, checked, and with nothing in it that could run.

    8 bytes    "LEPTONPK"
    4 bytes    version, little endian like all numbers here
    8 bytes    length of the header
    32 bytes   SHA-256 of all that follows
    header     JSON, compressed by zlib: {"about": {...}, "arrays": [[dtype, shape], ...], "tree": ...}
    arrays     their bytes in C order, one after the other, in the order of the header

The tree is nested objects by the parts of names; {"$": number} stands for an array, {"$": null} for none, and
{"$": "Quantized", "fields": {...}, "shape": [...], ...} for a packed leaf. Version 1.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lepton_jax import files
from lepton_jax.compress import leaves
from lepton_jax.errors import InputError

MAGIC, VERSION, FIXED = b"LEPTONPK", 1, struct.Struct("<8sIQ32s")
MAXIMUM = 2**24  # bytes of the header when unpacked
EXPANSION = 1000  # times the file's own size that its arrays may stand for, where that is more than a GiB
KINDS = {kind.__name__: kind for kind in leaves.PACKED}
DTYPES = ("bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32", "float8_e4m3fn")


class Packed(NamedTuple):
    """What a file holds. tree: nested dicts of numpy arrays and packed leaves; about: JSON that says what it is."""

    tree: Any
    about: dict[str, Any]


def save(path: str | os.PathLike[str], tree: PyTree, about: Mapping[str, Any] | None = None) -> int:
    """Write nested dicts of arrays and packed leaves to one file; returns its size in bytes.

    The file is complete or, where writing fails, as it was before. Raises InputError for keys that are no text, for
    arrays of other dtypes and where nothing can be written.
    """
    content = encoded(tree, about or {})
    try:
        with files.written(pathlib.Path(path)) as part:
            part.write_bytes(content)
    except OSError as error:
        problem = f"the packed model cannot be written to {path}: {error.strerror}"
        raise InputError(problem, "name a file in a folder that exists and has room") from error
    return len(content)


def load(path: str | os.PathLike[str]) -> Packed:
    """What `save` wrote. Raises InputError for a file that is missing, cut, altered, newer or not of this kind."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"the packed model {path} cannot be read: {error.strerror}", "name a packed file") from error
    return decoded(content, str(path))


def encoded(tree: PyTree, about: Mapping[str, Any]) -> bytes:
    """A tree as the bytes of a file."""
    arrays: list[np.ndarray] = []
    described = _described(tree, arrays, "")
    listed = [[array.dtype.name, list(array.shape)] for array in arrays]
    text = json.dumps({"about": dict(about), "arrays": listed, "tree": described}, separators=(",", ":"))
    header = zlib.compress(text.encode(), 9)
    body = b"".join([header, *(array.tobytes() for array in arrays)])
    return FIXED.pack(MAGIC, VERSION, len(header), hashlib.sha256(body).digest()) + body


def decoded(content: bytes, source: str) -> Packed:
    """The bytes of a file as a tree; nothing is believed that is not checked."""
    header, body = _opened(content, source)
    try:
        described = json.loads(header)
        arrays = _arrays(described["arrays"], body)
        tree, about = _built(described["tree"], arrays), dict(described["about"])
        _require_bounded(tree, len(content))
    except (KeyError, TypeError, ValueError, IndexError, RecursionError, AttributeError, OverflowError) as error:
        problem = f"{source} is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise InputError(problem, "make it again, or copy it again from where it came") from error
    return Packed(tree, about)


def _opened(content: bytes, source: str) -> tuple[bytes, memoryview]:
    """(the header's JSON, the bytes after it), once version and digest are right."""
    if len(content) < FIXED.size or content[: len(MAGIC)] != MAGIC:
        raise InputError(f"{source} is not a packed model", "name a file that `python -m experiments.compress` wrote")
    _, version, length, digest = FIXED.unpack_from(content)
    if version < 1:
        raise InputError(f"{source} is damaged: it is of version {version}", "copy it again from where it came")
    if version > VERSION:
        problem = f"{source} is of version {version}, and this program reads up to {VERSION}"
        raise InputError(problem, "use the newest Lepton")
    body = memoryview(content)[FIXED.size :]
    if hashlib.sha256(body).digest() != digest:
        raise InputError(f"{source} is cut or altered: its digest differs", "copy it again from where it came")
    opener = zlib.decompressobj()
    try:
        header = opener.decompress(bytes(body[:length]), MAXIMUM)
    except zlib.error as error:
        raise InputError(f"{source} is damaged: {error}", "make it again") from error
    if length > len(body) or not opener.eof:
        raise InputError(f"{source} is damaged: its header has no end", "make it again")
    return header, body[length:]


def _described(node: Any, arrays: list[np.ndarray], name: str) -> Any:
    """A tree in the header's terms; its arrays are appended."""
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str) or key == "$" or "/" in key:
                raise InputError(f"the name {key!r} under {name or 'the tree'} cannot be stored", "use plain text")
        return {key: _described(value, arrays, f"{name}/{key}".lstrip("/")) for key, value in node.items()}
    if node is None:
        return {"$": None}
    if leaves.is_packed(node):
        given = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        plain = {key: value for key, value in given.items() if _is_plain(value)}
        fields = {key: _described(given[key], arrays, f"{name}/{key}") for key in given if key not in plain}
        return {"$": type(node).__name__, "fields": fields, **plain}
    array = np.asarray(node, order="C")
    if array.dtype.name not in DTYPES:
        raise InputError(f"{name} is {array.dtype}, which is not stored", f"cast it to one of {', '.join(DTYPES)}")
    arrays.append(array)
    return {"$": len(arrays) - 1}


def _is_plain(value: Any) -> bool:
    """Whether a leaf's field is a number or a shape, and no array."""
    if isinstance(value, tuple):
        return all(isinstance(part, int) for part in value)
    return isinstance(value, int | float | str)


def _arrays(listed: list[Any], body: memoryview) -> list[np.ndarray]:
    arrays, start = [], 0
    for dtype, shape in listed:
        if dtype not in DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"it lists an array {dtype}{shape}")
        kind = jnp.dtype(dtype)
        end = start + kind.itemsize * math.prod(shape)
        if end > len(body):
            raise ValueError(f"it lists {end} bytes of arrays and has {len(body)}")
        arrays.append(np.frombuffer(body[start:end], kind).reshape(shape))
        start = end
    if start != len(body):
        raise ValueError(f"it lists {start} bytes of arrays and has {len(body)}")
    return arrays


def _built(node: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    """The header's tree with its arrays in place."""
    if "$" not in node:
        return {key: _built(value, arrays) for key, value in node.items()}
    kind = node["$"]
    if kind is None:
        return None
    if isinstance(kind, int) and not isinstance(kind, bool):
        if kind < 0:
            raise ValueError(f"it names an array {kind}")
        return arrays[kind]
    plain: dict[Any, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}
    fields = {key: _built(value, arrays) for key, value in plain.pop("fields").items()}
    kind: Any = KINDS[plain.pop("$")]
    return kind(**fields, **plain)


def _require_bounded(tree: Any, size: int) -> None:
    """Raise ValueError where leaves claim more than such a file can stand for, or are not what they claim."""
    import jax

    total = 0
    for leaf in jax.tree.leaves(tree, is_leaf=leaves.is_packed):
        shape = leaf.shape
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"a leaf is of shape {shape}")
        total += math.prod(shape)
        if 4 * total > max(2**30, EXPANSION * size):
            raise ValueError(f"a file of {size} bytes claims arrays of more than {4 * total} bytes")
        if leaves.is_packed(leaf):
            found = jax.eval_shape(leaves.dense, leaf).shape
            if found != shape:
                raise ValueError(f"a leaf of shape {shape} holds {found}")
