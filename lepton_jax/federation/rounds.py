"""A round as the coordinator holds it: stages, in each of which everyone who is left gives one thing.

An update is one stage. A secure sum is four: keys, shares, masked vectors, and the shares that take off the masks. A
stage ends when everyone who is here has given, or when its time is over and a quorum has; whoever has not given is out
of the round. Nothing here knows of sockets, threads or clocks.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from lepton_jax.federation.frames import Frame, Kind

Gifts = Mapping[str, Any]


class Stage(NamedTuple):
    """One thing that everyone gives.

    until: the share of the round's time at which it ends. read: (who, frame, gifts so far by kind) -> what it holds;
    raises FrameError. reply: (who, gifts by kind) -> what one gets for it once the stage is over; None for a thank-you
    at once.
    """

    kind: Kind
    until: float
    read: Callable[[str, Frame, Mapping[Kind, Gifts]], Any]
    reply: Callable[[str, Mapping[Kind, Gifts]], Frame] | None = None


class Round:
    """One attempt at a round.

    task: name -> what it has to do. members: the names of those who take part. end: the last moment, and begun: the
    first, on the coordinator's clock.
    """

    def __init__(
        self,
        number: int,
        members: Collection[str],
        quorum: int,
        stages: tuple[Stage, ...],
        task: Callable[[str, str], Frame],
        begun: float,
        end: float,
    ):
        self.number, self.token = number, secrets.token_hex(16)
        self.begun, self._end = begun, end
        self._parties, self._quorum, self._stages, self._task = set(members), quorum, stages, task
        self._index, self._failed = 0, False
        self.gifts: dict[Kind, dict[str, Any]] = {stage.kind: {} for stage in stages}

    @property
    def over(self) -> bool:
        """Whether nothing more is awaited."""
        return self._failed or self._index == len(self._stages)

    @property
    def complete(self) -> bool:
        """Whether all stages had their quorum."""
        return self._index == len(self._stages)

    @property
    def awaited(self) -> set[str]:
        """Who is still in the round, and has not given what the present stage asks for."""
        return set() if self.over else self._parties - self.gifts[self._stages[self._index].kind].keys()

    def stage(self, name: str, frame: Frame) -> Stage | None:
        """The stage to which a frame gives something new; None where it is late, said before, or of another round."""
        if self.over or frame.head.get("token") != self.token:
            return None
        stage = self._stages[self._index]
        return stage if frame.kind == stage.kind and name in self.awaited else None

    def give(self, name: str, kind: Kind, gift: Any) -> None:
        """Take what was read, unless the stage has ended meanwhile."""
        if not self.over and self._stages[self._index].kind == kind and name in self.awaited:
            self.gifts[kind][name] = gift

    def drop(self, name: str) -> None:
        """Await no more of someone."""
        if name in self.awaited:
            self._parties.discard(name)

    def forget(self) -> None:
        """Keep who has given, and not what: the round is over."""
        self._failed = self._failed or not self.over
        self.gifts = {kind: dict.fromkeys(gifts) for kind, gifts in self.gifts.items()}

    def reply(self, name: str, frame: Frame) -> Frame | None:
        """The answer to a frame; None where there is none yet."""
        if frame.kind == Kind.POLL:
            return self._work(name)
        if frame.head.get("token") != self.token:
            return Frame(Kind.GONE)
        if frame.kind == Kind.ALIVE:
            return Frame(Kind.OK if not self.over and name in self._parties else Kind.GONE)
        kinds = [stage.kind for stage in self._stages]
        if frame.kind not in kinds or name not in self.gifts[frame.kind]:
            return Frame(Kind.GONE)
        place = kinds.index(frame.kind)
        made = self._stages[place].reply
        if made is None:
            return Frame(Kind.OK)
        if self.over:
            return Frame(Kind.GONE)
        return made(name, self.gifts) if self._index > place else None

    def _work(self, name: str) -> Frame | None:
        """What someone who asks for work has to do: the task, in the first stage; later it is out of the round."""
        if self.over or name not in self._parties:
            return None
        if self._index == 0 and name in self.awaited:
            return self._task(name, self.token)
        if len(self._stages) > 1:  # it has forgotten its keys
            self.drop(name)
        return None

    def advance(self, now: float, here: Collection[str]) -> bool:
        """Whether anything changed: stages that have ended are behind, and a round that cannot be had has failed.

        here: who has been heard of lately.
        """
        before = self._index, self._failed
        while not self.over:
            stage = self._stages[self._index]
            late = now >= self.begun + stage.until * (self._end - self.begun)
            given = self.gifts[stage.kind]
            if self.awaited & set(here) and not late:
                break
            if len(given) >= self._quorum:
                self._parties &= given.keys()
                self._index += 1
            elif late:
                self._failed = True
            else:
                break  # who is away may come back
        return before != (self._index, self._failed)
