"""A client's end of the transport: one connection, made again where it is lost."""

import socket
import ssl
import time

from lepton_jax.errors import Exit, InputError
from lepton_jax.federation import tls
from lepton_jax.federation.certificates import COORDINATOR
from lepton_jax.federation.frames import Frame, FrameError
from lepton_jax.launch import verdict

PATIENCE = 600.0  # seconds for which a client tries to reach its coordinator
BACKOFF = 0.2  # seconds before the first retry, doubled at each


class UnreachableError(InputError):
    """The coordinator does not answer: worth another try later."""

    code = Exit.INTERNAL


class Dialled:
    """A client's side: one connection, made anew with growing pauses where it is lost. A Transport.

    most: bytes of a body; patience: seconds for an exchange, over all tries.
    """

    def __init__(
        self, host: str, port: int, own: tls.Identity, most: int, patience: float = PATIENCE, backoff: float = BACKOFF
    ):
        self._address, self._context, self._most = (host, port), tls.context(own, server=False), most
        self._patience, self._backoff = patience, backoff
        self._stream: tls.Stream | None = None
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
                return stream.receive(tls.IDLE)
            except (OSError, EOFError, FrameError) as error:
                self.close()
                if why := tls.final(error):
                    raise InputError(f"{self._said()} {why}", "compare --certificates on both sides") from error
                failures += 1
                pause = verdict.delay(failures, self._backoff)
                if time.monotonic() + pause > deadline:
                    problem = f"{self._said()} has not answered for {self._patience:g} s: {tls.reason(error)}"
                    raise UnreachableError(problem, "start it, then run the same command again") from error
                time.sleep(pause)

    def _dial(self) -> tls.Stream:
        plain = socket.create_connection(self._address, timeout=tls.HANDSHAKE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = self._context.wrap_socket(plain, server_hostname=COORDINATOR)
        self._stream = tls.Stream(self._connection, self._most)
        return self._stream

    def _said(self) -> str:
        return f"the coordinator at {self._address[0]}:{self._address[1]}"

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._stream = None
