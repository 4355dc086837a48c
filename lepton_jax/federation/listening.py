"""The coordinator's end of the transport: a listener, and a thread for every connection."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from lepton_jax.errors import InputError
from lepton_jax.federation import tls
from lepton_jax.federation.frames import FrameError, Kind
from lepton_jax.federation.transport import Answer

LINGER = 1.0  # seconds in which one who was refused may hear why
PULSE = 1.0  # seconds between signs of life of someone whose bytes are on their way
Refused = Callable[[str, str], None]
"""(who: a name or an address, why)"""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on this address, and no other. Raises InputError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        problem = f"--listen {host}:{port} cannot be listened on: {error.strerror or error}"
        raise InputError(problem, "choose another port, or end what listens there") from error


class Listener:
    """Answers those who come to a socket until it is closed. Whatever a connection brings ends that one alone.

    own: the coordinator's. answer: is asked for everyone whose certificate the authority has signed. most: bytes of a
    body. refused: told of what was turned away. heard: told of those whose frames are on their way. connections: that
    may be open at once.
    """

    def __init__(
        self,
        listening: socket.socket,
        own: tls.Identity,
        answer: Answer,
        most: int,
        refused: Refused,
        heard: Callable[[str], None] = lambda name: None,
        connections: int = 256,
    ):
        self._socket, self._context = listening, tls.context(own, server=True)
        self._answer, self._most, self._refused, self._heard = answer, most, refused, heard
        self._ended = threading.Event()
        self._free = threading.BoundedSemaphore(connections)
        self._open: set[socket.socket] = set()
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
        connection.settimeout(tls.HANDSHAKE)
        try:
            # the handshake through a duplicate: where it fails, the socket is left to say why
            secured = self._context.wrap_socket(connection.dup(), server_side=True)
        except OSError as error:
            self._refused(who, f"no handshake: {tls.reason(error)}")
            _let_hear(connection)
            return
        with secured:
            self._open.add(secured)
            try:
                who = tls.name_of(secured)
                self._converse(tls.Stream(secured, self._most, self._pulse(who)), who)
            except EOFError:
                pass
            except (FrameError, OSError) as error:
                if not self._ended.is_set():
                    self._refused(who, tls.reason(error))
            finally:
                self._open.discard(secured)

    def _converse(self, stream: tls.Stream, name: str) -> None:
        while True:
            request = stream.receive(tls.IDLE)
            reply = self._answer(name, request)
            stream.send(reply)
            if reply.kind == Kind.REFUSED:
                return

    def _pulse(self, who: str) -> Callable[[], None]:
        """Tells that someone was heard of, and not for every piece of a frame."""
        last = -PULSE

        def beat() -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= PULSE:
                last = now
                self._heard(who)

        return beat

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        self._ended.set()
        self._thread.join()
        self._socket.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _let_hear(connection: socket.socket) -> None:
    """Close so that the alert arrives: unread bytes would turn the end into a reset, which overtakes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(LINGER)
        for _ in range(64):
            if not connection.recv(4096):
                return
