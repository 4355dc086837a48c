"""Files whose content is larger than they are, read within bounds.

A file of a few kilobytes may unpack to all the memory there is, by mistake or by malice. Real data shrinks to a
tenth or a twentieth; what claims to be more than a hundred times its file and more than 1 GiB is refused.
"""

import gzip
import io
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lepton_jax.data.paths import reason
from lepton_jax.errors import InputError

ALWAYS_BYTES = 2**30  # what any file may unpack to
RATIO = 100  # of unpacked to packed bytes, past that
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def allowed(packed: int) -> int:
    """The bytes that a file of `packed` bytes may unpack to."""
    return max(ALWAYS_BYTES, RATIO * packed)


def content(path: str | os.PathLike[str]) -> bytes:
    """All of a file, unpacked where its name ends in .gz. Raises InputError for one that is damaged or a bomb."""
    path = Path(path)
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        limit = allowed(path.stat().st_size)
        with gzip.open(path) as file:
            found = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read: {reason(error)}", "get or pack the file again") from error
    if len(found) > limit:
        raise InputError(
            f"{str(path)!r} unpacks to more than {limit:,} bytes, the limit for its {path.stat().st_size:,}",
            "if you trust the file, unpack it yourself and give the result",
        )
    return found


def text(path: str | os.PathLike[str]) -> str:
    """All of a UTF-8 text file, as `content` reads it. Raises InputError for bytes that are not UTF-8."""
    found = content(path)
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line} of {str(path)!r} is not UTF-8 text", "store the file as UTF-8") from error


def arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Pickled ones are refused: reading them could run code.

    Raises ValueError, OSError, EOFError, KeyError, BadZipFile or zlib.error for a file that is none, is damaged, or
    unpacks to more than it may.
    """
    with open(path, "rb") as file:  # opened here, as numpy leaves its own open where the zip is broken
        _check_sizes(file)
        found = np.load(file, allow_pickle=False)
        return {name: found[name] for name in found.files}


def _check_sizes(file: BinaryIO) -> None:
    """Raise ValueError where the members are too large together, or one is smaller than its array says it is."""
    if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
        raise ValueError("it holds a single array")
    with zipfile.ZipFile(file) as archive:
        packed = file.seek(0, io.SEEK_END)
        total = sum(member.file_size for member in archive.infolist())
        if total > allowed(packed):
            raise ValueError(f"it unpacks to {total:,} bytes; the limit for its {packed:,} is {allowed(packed):,}")
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_claim(archive, member)
    file.seek(0)


def _check_claim(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as part:
        version = np.lib.format.read_magic(part)
        if version not in HEADERS:
            raise ValueError(f"{member.filename} has field names, which no data set needs")
        shape, _, dtype = HEADERS[version](part)
        there = member.file_size - part.tell()
    claimed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed > there:
        raise ValueError(f"{member.filename} says that it has {claimed:,} bytes, and {there:,} are there")
