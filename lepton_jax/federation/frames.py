"""One message on the wire: a fixed header, a head in JSON, a body of arrays in safetensors. Nothing in it can run.

    4 bytes "LPTN" | version | kind | 2 zero bytes | length of the head (4) | length of the body (8) | head | body

all in network order. Lengths are held against their caps before anything of that size is allocated.
"""

import enum
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

MAGIC, VERSION = b"LPTN", 1
HEADER = struct.Struct("!4sBBHIQ")
MOST_HEAD = 2**16  # bytes


class Kind(enum.IntEnum):
    """What a frame says. The first group asks, the second answers."""

    POLL = 1  # is there work?
    ALIVE = 2  # still computing
    KEYS = 3  # public keys, of a secure sum
    SHARES = 4  # encrypted shares for the others
    UPDATE = 5  # what was computed
    REVEAL = 6  # shares that take the masks off the sum
    WAIT = 32  # nothing yet: ask again
    TASK = 33  # parameters, and what to do with them
    ROSTER = 34  # everybody's public keys
    SHARED = 35  # the others' shares for this one
    SURVIVORS = 36  # whose updates have come
    OK = 37  # taken
    GONE = 38  # this round is over for you
    DONE = 39  # all rounds are over
    REFUSED = 40  # and why


class FrameError(ValueError):
    """Bytes that are no frame, or one that is too large."""


class Frame(NamedTuple):
    """A message. head: a small dict that JSON can say; body: safetensors, or nothing."""

    kind: Kind
    head: Mapping[str, Any] = {}
    body: bytes | bytearray = b""

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the body. Raises FrameError."""
        return opened(self.body)


def packed(arrays: Mapping[str, Any]) -> bytes:
    """Arrays as the body of a frame."""
    from safetensors.numpy import save

    return save({name: np.array(array, order="C", ndmin=0, copy=None) for name, array in arrays.items()})


def opened(body: bytes | bytearray) -> dict[str, np.ndarray]:
    """The arrays of a body, by name. Raises FrameError for what is no safetensors, or holds types unknown to numpy."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not body:
        return {}
    try:
        return load(bytes(body))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FrameError(f"the body holds no arrays: {_first_line(error)}") from error


def written(frame: Frame) -> tuple[bytes, bytes | bytearray]:
    """A frame as bytes: header with head, and body. Raises FrameError for a head above its cap."""
    head = json.dumps(dict(frame.head), allow_nan=False).encode() if frame.head else b""
    if len(head) > MOST_HEAD:
        raise FrameError(f"a head of {len(head):,} bytes is above {MOST_HEAD:,}")
    return HEADER.pack(MAGIC, VERSION, frame.kind, 0, len(head), len(frame.body)) + head, frame.body


def read(exactly: Callable[[int], bytearray], most: int, begun: Callable[[int], None] = lambda nbytes: None) -> Frame:
    """The next frame of a stream.

    exactly: gives so many bytes, or raises. most: the cap of a body in bytes. begun: told how many bytes are still to
    come, once a header is there. Raises FrameError.
    """
    magic, version, kind, zero, head_bytes, body_bytes = HEADER.unpack(exactly(HEADER.size))
    if magic != MAGIC:
        raise FrameError("it does not begin as a frame")
    if version != VERSION:
        raise FrameError(f"it speaks version {version}, and this is version {VERSION}")
    if zero or kind not in Kind.__members__.values():
        raise FrameError(f"a frame of kind {kind} is unknown")
    for what, nbytes, cap in (("head", head_bytes, MOST_HEAD), ("body", body_bytes, most)):
        if nbytes > cap:
            raise FrameError(f"a {what} of {nbytes:,} bytes is above {cap:,}")
    begun(head_bytes + body_bytes)
    head = _head(exactly(head_bytes)) if head_bytes else {}
    return Frame(Kind(kind), head, exactly(body_bytes) if body_bytes else b"")


def _head(content: bytearray) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    try:
        head = json.loads(content.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the head is no JSON: {_first_line(error)}") from error
    if not isinstance(head, dict):
        raise FrameError("the head is no dict")
    return head


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
