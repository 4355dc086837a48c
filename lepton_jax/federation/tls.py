"""The transport on sockets: mutual TLS 1.3 (RFC 8446) with certificates of the federation's own authority.

Both sides show a certificate. A client asks for the name `coordinator`, whatever the address; the coordinator takes a
client's name from its certificate. Every read and every write has a deadline.
"""

import contextlib
import pathlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lepton_jax.errors import Exit, InputError
from lepton_jax.federation import frames
from lepton_jax.federation.certificates import AUTHORITY, COORDINATOR
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.transport import Answer
from lepton_jax.launch import verdict

HANDSHAKE = 10.0  # seconds
FRAME = 30.0  # seconds for a frame once it has begun, and one more for every RATE bytes
RATE = 10**6
IDLE = 120.0  # seconds until the next frame begins
LINGER = 1.0  # seconds in which one who was refused may hear why
PATIENCE = 600.0  # seconds for which a client tries to reach its coordinator
BACKOFF = 0.2  # seconds before a client's first retry, doubled at each
Refused = Callable[[str, str], None]
"""(who: a name or an address, why)"""


class UnreachableError(InputError):
    """The coordinator does not answer: worth another try later."""

    code = Exit.INTERNAL


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
    """Frames over a connection, each by its deadline."""

    def __init__(self, connection: ssl.SSLSocket, most: int):
        self._connection, self._most = connection, most

    def send(self, frame: Frame) -> None:
        """Raises OSError where it cannot be sent in time."""
        parts = frames.written(frame)
        deadline = time.monotonic() + FRAME + sum(map(len, parts)) / RATE
        for part in filter(None, parts):
            view = memoryview(part)
            while view:
                self._wait(deadline)
                view = view[self._connection.send(view) :]

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
            return buffer

        return frames.read(exactly, self._most, begun)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)


class Listener:
    """The coordinator's side: a thread for every connection.

    answer: is asked for everyone whose certificate the authority has signed. most: bytes of a body. refused: told of
    what was turned away. Whatever a connection brings, it ends that connection and nothing else.
    """

    def __init__(
        self, host: str, port: int, own: Identity, answer: Answer, most: int, refused: Refused, connections: int = 256
    ):
        self._context = context(own, server=True)
        self._answer, self._most, self._refused = answer, most, refused
        self._ended = threading.Event()
        self._free = threading.BoundedSemaphore(connections)
        self._open: set[socket.socket] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            problem = f"--listen {host}:{port} cannot be listened on: {error.strerror or error}"
            raise InputError(problem, "choose another port, or end what listens there") from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        self._socket.settimeout(0.2)
        while not self._ended.is_set():
            try:
                connection, address = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of descriptors, say
                self._refused("?", f"a connection could not be taken: {error}")
                self._ended.wait(0.2)
                continue
            if not self._free.acquire(blocking=False):
                self._refused(address[0], "too many connections are open")
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection, f"{address[0]}:{address[1]}"), daemon=True).start()

    def _serve(self, connection: socket.socket, who: str) -> None:
        self._open.add(connection)
        try:
            self._talk(connection, who)
        finally:
            self._open.discard(connection)
            with contextlib.suppress(OSError):
                connection.close()
            self._free.release()

    def _talk(self, connection: socket.socket, who: str) -> None:
        connection.settimeout(HANDSHAKE)
        try:
            # the handshake through a duplicate: where it fails, the socket is left to say why
            secured = self._context.wrap_socket(connection.dup(), server_side=True)
        except OSError as error:
            self._refused(who, f"no handshake: {_reason(error)}")
            _let_hear(connection)
            return
        with secured:
            self._open.add(secured)
            try:
                who = name_of(secured)
                self._converse(Stream(secured, self._most), who)
            except EOFError:
                pass
            except (FrameError, OSError) as error:
                if not self._ended.is_set():
                    self._refused(who, _reason(error))
            finally:
                self._open.discard(secured)

    def _converse(self, stream: Stream, name: str) -> None:
        while True:
            request = stream.receive(IDLE)
            reply = self._answer(name, request)
            stream.send(reply)
            if reply.kind == Kind.REFUSED:
                return

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def listening(
    host: str, port: int, own: Identity, answer: Answer, most: int, refused: Refused
) -> Iterator[tuple[str, int]]:
    """Answer on this address, the only one, while it lasts; gives the address. Raises InputError."""
    listener = Listener(host, port, own, answer, most, refused)
    try:
        yield listener.address
    finally:
        listener.close()


class Dialled:
    """A client's side: one connection, made anew with growing pauses where it is lost. A Transport.

    most: bytes of a body; patience: seconds for an exchange, over all tries.
    """

    def __init__(
        self, host: str, port: int, own: Identity, most: int, patience: float = PATIENCE, backoff: float = BACKOFF
    ):
        self._address, self._context, self._most = (host, port), context(own, server=False), most
        self._patience, self._backoff = patience, backoff
        self._stream: Stream | None = None
        self._connection: ssl.SSLSocket | None = None

    def exchange(self, request: Frame) -> Frame:
        """The coordinator's answer.

        Raises InputError where one side will not have the other's certificate, and UnreachableError.
        """
        deadline, failures = time.monotonic() + self._patience, 0
        while True:
            try:
                stream = self._stream or self._dial()
                stream.send(request)
                return stream.receive(IDLE)
            except (OSError, EOFError, FrameError) as error:
                self.close()
                if why := _final(error):
                    raise InputError(f"{self._said()} {why}", "compare --certificates on both sides") from error
                failures += 1
                pause = verdict.delay(failures, self._backoff)
                if time.monotonic() + pause > deadline:
                    problem = f"{self._said()} has not answered for {self._patience:g} s: {_reason(error)}"
                    raise UnreachableError(problem, "start it, then run the same command again") from error
                time.sleep(pause)

    def _dial(self) -> Stream:
        plain = socket.create_connection(self._address, timeout=HANDSHAKE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = self._context.wrap_socket(plain, server_hostname=COORDINATOR)
        self._stream = Stream(self._connection, self._most)
        return self._stream

    def _said(self) -> str:
        return f"the coordinator at {self._address[0]}:{self._address[1]}"

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._stream = None


def _let_hear(connection: socket.socket) -> None:
    """Close so that the alert arrives: unread bytes would turn the end into a reset, which overtakes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(LINGER)
        for _ in range(64):
            if not connection.recv(4096):
                return


def _final(error: BaseException) -> str | None:
    """Why no further try can help, where it is so."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"shows a certificate that is not good: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and re.search("ALERT.*(CERTIFICATE|UNKNOWN_CA)", error.reason or ""):
        return f"refuses this node's certificate: {_reason(error)}"
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__
