"""What a coordinator and a client need of each other: one asks, the other answers.

Clients do all the asking, so they may sit behind a firewall, and each exchange can be repeated after a lost connection:
the coordinator's answers depend on who asks and what, and never on the connection.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lepton_jax.federation.frames import Frame

Answer = Callable[[str, Frame], Frame]
"""(name of who asks, question) -> answer. Called from many threads; may hold an answer back for some seconds."""


@runtime_checkable
class Transport(Protocol):
    """A client's way to its coordinator."""

    def exchange(self, request: Frame) -> Frame:
        """Ask, and wait for the answer. What got lost on the way is asked again."""
        ...

    def close(self) -> None:
        """Ask nothing more."""
        ...


class InProcess:
    """A coordinator in this very process: a function call."""

    def __init__(self, answer: Answer, name: str):
        self._answer, self._name = answer, name

    def exchange(self, request: Frame) -> Frame:
        """The coordinator's answer."""
        return self._answer(self._name, request)

    def close(self) -> None:
        """Nothing is open."""
