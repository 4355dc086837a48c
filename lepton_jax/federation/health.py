"""Who is there: when each client was last heard of, and what it says that it can do."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEARTBEAT = 5.0  # seconds between signs of life
MISSED = 3  # heartbeats after which a client is lost


class Standing(NamedTuple):
    """What a coordinator saves of its clients. lost: those that rounds do not wait for. taken: the round in which each
    client's update was last taken."""

    lost: Sequence[str] = ()
    taken: Mapping[str, int] = {}


ANEW = Standing()  # before the first round


class Health:
    """What is known of the clients. lost: those that rounds do not wait for."""

    def __init__(self, clients: Sequence[str], heartbeat: float, lost: Sequence[str] = ()):
        self._clients, self._patience = tuple(clients), MISSED * heartbeat
        self._seen: dict[str, float] = {}
        self.steps: dict[str, int | None] = {}  # local steps of a round that a client can do; None for all
        self.lost = set(lost) & set(clients)

    def note(self, name: str, now: float, head: Any) -> bool:
        """Someone was heard of: whether it is new here, or back. What it can do is in the head of its frame."""
        if "steps" in head:
            self.steps[name] = head["steps"]
        back = name not in self.here(now)
        self._seen[name] = now
        self.lost.discard(name)
        return back

    def here(self, now: float) -> set[str]:
        """Those who have been heard of lately."""
        return {name for name, seen in self._seen.items() if now - seen <= self._patience}

    def lose(self, now: float) -> list[str]:
        """Those who are not heard of any more, each told once."""
        gone = sorted(self._seen.keys() - self.here(now) - self.lost)
        self.lost |= set(gone)
        return gone

    def missing(self, now: float) -> set[str]:
        """Those who are still waited for: neither here nor lost."""
        return set(self._clients) - self.here(now) - self.lost
