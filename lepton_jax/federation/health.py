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
    """What is known of the clients. lost: those that rounds do not wait for.

    A time longer than a heartbeat in which nobody asks anything of this is a pause of the coordinator's own (a machine
    that sleeps, a process that is stopped): it is nobody's silence.
    """

    def __init__(self, clients: Sequence[str], heartbeat: float, lost: Sequence[str] = ()):
        self._clients, self._heartbeat = tuple(clients), heartbeat
        self._seen: dict[str, float] = {}
        self._asked: float | None = None  # when something was last asked of this
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

    def stay(self, name: str, now: float) -> None:
        """Someone who is here is heard of, as far as one can tell from bytes that are on their way."""
        if name in self.here(now):
            self._seen[name] = now

    def here(self, now: float) -> set[str]:
        """Those who have been heard of lately."""
        pause = 0.0 if self._asked is None else now - self._asked
        self._asked = now
        if pause > self._heartbeat:
            self._seen = {name: min(now, seen + pause) for name, seen in self._seen.items()}
        return {name for name, seen in self._seen.items() if now - seen <= MISSED * self._heartbeat}

    def lose(self, now: float) -> list[str]:
        """Those who are not heard of any more, each told once."""
        gone = sorted(self._seen.keys() - self.here(now) - self.lost)
        self.lost |= set(gone)
        return gone

    def missing(self, now: float) -> set[str]:
        """Those who are still waited for: neither here nor lost."""
        return set(self._clients) - self.here(now) - self.lost
