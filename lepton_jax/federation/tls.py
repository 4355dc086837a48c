"""Mutual TLS 1.3 (RFC 8446) with certificates of the federation's own authority.

Both sides show a certificate. A client asks for the name `coordinator`, whatever the address; the coordinator takes a
client's name from its certificate. Every read and every write has a deadline.
"""

import pathlib
import re
import ssl
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lepton_jax.errors import InputError
from lepton_jax.federation import frames
from lepton_jax.federation.certificates import AUTHORITY
from lepton_jax.federation.frames import Frame, FrameError

HANDSHAKE = 10.0  # seconds
FRAME = 30.0  # seconds for a frame once it has begun, and one more for every RATE bytes
RATE = 10**6
IDLE = 120.0  # seconds until the next frame begins


class Identity(NamedTuple):
    """A node's files: the authority's certificate, its own, and its private key."""

    authority: pathlib.Path
    certificate: pathlib.Path
    key: pathlib.Path


def identity(directory: pathlib.Path, name: str) -> Identity:
    """The identity of a node in a directory that `certificates` wrote. Raises InputError."""
    found = Identity(directory / f"{AUTHORITY}.pem", directory / f"{name}.pem", directory / f"{name}.key")
    for path in found:
        if not path.is_file():
            remedy = "python -m lepton_jax.federated certificates makes them"
            raise InputError(f"--certificates {directory} has no {path.name}", remedy)
    return found


def context(own: Identity, server: bool) -> ssl.SSLContext:
    """TLS 1.3 alone, the own authority alone, and a certificate asked of the other side. Raises InputError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    if server:
        made.num_tickets = 0  # a session taken up again would show no certificate
    try:
        made.load_verify_locations(own.authority)
        made.load_cert_chain(own.certificate, own.key)
    except (ssl.SSLError, OSError) as error:
        problem = f"the certificate {own.certificate} cannot be used: {error.strerror or error}"
        raise InputError(problem, "python -m lepton_jax.federated certificates makes new ones") from error
    return made


def name_of(connection: ssl.SSLSocket) -> str:
    """The name in the other side's certificate."""
    certificate: Any = connection.getpeercert() or {}
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    if len(names) != 1:
        raise FrameError("its certificate has not one name")
    return names[0]


class Stream:
    """Frames over a connection, each by its deadline. moved: called whenever some bytes of one have gone or come."""

    def __init__(self, connection: ssl.SSLSocket, most: int, moved: Callable[[], None] = lambda: None):
        self._connection, self._most, self._moved = connection, most, moved

    def send(self, frame: Frame) -> None:
        """Raises OSError where it cannot be sent in time."""
        parts = frames.written(frame)
        deadline = time.monotonic() + FRAME + sum(map(len, parts)) / RATE
        for part in filter(None, parts):
            view = memoryview(part)
            while view:
                self._wait(deadline)
                view = view[self._connection.send(view) :]
                self._moved()

    def receive(self, within: float) -> Frame:
        """The next frame, which has to begin within so many seconds. Raises OSError and FrameError."""
        deadline = time.monotonic() + within

        def begun(nbytes: int) -> None:
            nonlocal deadline
            deadline = time.monotonic() + FRAME + nbytes / RATE

        def exactly(nbytes: int) -> bytearray:
            buffer = bytearray(nbytes)
            view = memoryview(buffer)
            while view:
                self._wait(deadline)
                count = self._connection.recv_into(view)
                if not count:
                    begins = nbytes == frames.HEADER.size == len(view)
                    raise EOFError if begins else FrameError("it ends in the middle of a frame")
                view = view[count:]
                self._moved()
            return buffer

        return frames.read(exactly, self._most, begun)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)


def final(error: BaseException) -> str | None:
    """Why no further try can help, where it is so, to follow on the coordinator's name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and re.search("ALERT.*(CERTIFICATE|UNKNOWN_CA)", error.reason or ""):
        return f"refuses this node's certificate: {reason(error)}"
    return None


def reason(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__
