"""The coordinator: opens rounds, answers clients, and steps along what they send.

Clients are answered in threads of the transport, rounds are opened and closed in the thread that runs; what both touch
is under one lock. What a client sends is parsed outside of it.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from lepton_jax import progress
from lepton_jax.federated import sampling
from lepton_jax.federation import frames, gathering, job, wire
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.health import ANEW, Health, Standing
from lepton_jax.federation.job import Job
from lepton_jax.federation.masks import ProtocolError
from lepton_jax.federation.rounds import Round
from lepton_jax.federation.terms import Terms
from lepton_jax.types import TrainState

TICK = 0.2  # seconds between looks at the clock
SAID = 100  # refusals that are logged one by one; of those after them every power of two


@runtime_checkable
class Log(Protocol):
    """Where events go: see `launch.ledger.Events`."""

    def write(self, event: str, **fields: Any) -> None:
        """One event."""
        ...


class Coordinator:
    """The rounds of a job. `answer` is the transport's, `run` the thread's that trains.

    standing: the clients' when the run was last saved. say: prints a line.
    """

    def __init__(
        self,
        job_: Job,
        state: TrainState,
        terms: Terms,
        events: Log,
        standing: Standing = ANEW,
        say: Callable[[str], None] = lambda text: None,
    ):
        job.check(job_)
        terms.check(len(job_.clients))
        self._job, self._terms, self._events, self._say = job_, terms, events, say
        self._step = jax.jit(job_.step)
        self._gathering = gathering.chosen(job_, job.sent_like(job_, state), terms)
        self._fingerprint = job.fingerprint(job_, state)
        self._changed = threading.Condition()
        self._health = Health(job_.clients, terms.heartbeat, standing.lost)
        self._taken = dict(standing.taken)
        self._round: Round | None = None
        self._past: Round | None = None  # the one before, for answers that got lost
        self._attempts, self._refusals = 0, 0
        self._done, self._ended, self._told = False, False, set[str]()
        self.state = state

    # --- what clients ask

    def answer(self, name: str, frame: Frame) -> Frame:
        """The transport's `Answer`."""
        if why := self._stranger(name, frame):
            self.refused(name, why)
            return Frame(Kind.REFUSED, {"why": why})
        with self._changed:
            if self._ended:
                return Frame(Kind.WAIT)
            now = time.monotonic()
            if self._health.note(name, now, frame.head):
                self._events.write("joined", client=name, steps=self._health.steps.get(name))
                self._changed.notify_all()
            round_ = self._round
            stage = round_.stage(name, frame) if round_ else None
        if round_ and stage:
            try:
                gift = stage.read(name, frame, round_.gifts)
            except FrameError as error:
                self.refused(name, f"{frame.kind.name.lower()} of round {round_.number}: {error}")
                with self._changed:
                    round_.drop(name)
                    self._advance(round_)
                return Frame(Kind.GONE)
            with self._changed:
                round_.give(name, frame.kind, gift)
                self._tell(round_, frame.kind, name)
                self._advance(round_)
        return self._held(name, frame)

    def heard(self, name: str) -> None:
        """Bytes from or to a client are on their way: however long they take, it is alive."""
        with self._changed:
            self._health.stay(name, time.monotonic())

    def refused(self, who: str, why: str) -> None:
        """Log what was turned away."""
        with self._changed:
            if self._ended:
                return
            self._refusals += 1
            if self._refusals <= SAID or self._refusals & (self._refusals - 1) == 0:
                self._events.write("refused", who=who, why=why, count=self._refusals)

    def _stranger(self, name: str, frame: Frame) -> str | None:
        """Why this client cannot take part at all, where it is so."""
        if name not in self._job.clients:
            return f"{name} is none of this job's clients"
        steps = frame.head.get("steps")
        if steps is not None and (type(steps) is not int or steps < 1):
            return f"a capacity of {str(steps)[:40]} steps is none"
        if frame.kind == Kind.POLL and frame.head.get("job") != self._fingerprint:
            return "it has another job: other flags, or another version"
        if frame.kind >= Kind.WAIT:
            return f"{frame.kind.name} is no question"
        return None

    def _held(self, name: str, frame: Frame) -> Frame:
        """The answer; where there is none yet, as soon as there is one, or WAIT after a heartbeat."""
        until = time.monotonic() + self._terms.heartbeat
        with self._changed:
            while (reply := self._reply(name, frame)) is None:
                left = until - time.monotonic()
                if left <= 0:
                    return Frame(Kind.WAIT)
                self._changed.wait(left)
            return reply

    def _reply(self, name: str, frame: Frame) -> Frame | None:
        if self._done and frame.kind == Kind.POLL:
            self._told.add(name)
            return Frame(Kind.DONE)
        if self._ended:
            return Frame(Kind.WAIT)
        asked = self._past if self._past and frame.head.get("token") == self._past.token else self._round
        if asked is None:
            return None if frame.kind == Kind.POLL else Frame(Kind.GONE)
        return asked.reply(name, frame)

    def _advance(self, round_: Round) -> None:
        now = time.monotonic()
        if round_.advance(now, self._health.here(now)):
            self._changed.notify_all()

    def _tell(self, round_: Round, kind: Kind, name: str) -> None:
        if name in round_.gifts[kind]:
            seconds = round(time.monotonic() - round_.begun, 3)
            self._events.write(kind.name.lower(), round=round_.number, client=name, seconds=seconds)

    # --- rounds

    def run(
        self, save: Callable[[TrainState, Standing, Mapping[str, float]], None], leave: Callable[[int], bool]
    ) -> bool:
        """Round after round: True once all are done, False where `leave` said so, asked with the number of the round.

        save: called with the state, the clients' standing, and the metrics, after each round.
        """
        try:
            while (number := int(self.state.step)) < self._job.rounds:
                round_ = self._opened(number, leave)
                if round_ is None or not self._closed(round_, leave):
                    return False
                if (metrics := self._stepped(round_)) is not None:
                    progress.reporter().progress(number + 1)
                    with self._changed:
                        standing = Standing(sorted(self._health.lost), dict(self._taken))
                    save(self.state, standing, metrics)
            self._finish()
            return True
        finally:
            with self._changed:  # nothing is logged from here on
                self._ended = True
                self._changed.notify_all()

    def _opened(self, number: int, leave: Callable[[int], bool]) -> Round | None:
        """The next round, once there are clients for it; None where it is time to leave."""
        since = time.monotonic()
        while not leave(number):
            progress.reporter().enter("start")  # for a supervisor: waiting is no stall
            with self._changed:
                now = time.monotonic()
                self._note_lost(now)
                here, missing = self._health.here(now), self._health.missing(now)
                if len(here) >= self._terms.quorum and (not missing or now - since > self._terms.gather):
                    self._note_lost(now, missing)
                    return self._open(number, here, now)
                self._changed.wait(TICK)
        return None

    def _note_lost(self, now: float, missing: Collection[str] = ()) -> None:
        self._health.lost |= set(missing)
        for name in [*self._health.lose(now), *sorted(missing)]:
            self._events.write("lost", client=name)

    def _open(self, number: int, here: Collection[str], now: float) -> Round:
        self._attempts += 1
        members = self._chosen(number, here)
        body = frames.packed(wire.arrays({"params": self.state.params, "stats": self.state.stats}))
        key = jax.random.key_data(job.round_key(self.state)).tolist()

        def task(name: str, token: str) -> Frame:
            head = {
                "token": token,
                "round": number,
                "key": key,
                "steps": self._health.steps.get(name),
                "taken": self._taken.get(name),
                "threshold": self._gathering.threshold,
                "parties": len(members),
                "heartbeat": self._terms.heartbeat,
            }
            return Frame(Kind.TASK, head, body)

        end = now + self._terms.deadline
        round_ = Round(number, members, self._terms.quorum, self._gathering.stages, task, now, end)
        steps = {name: self._health.steps.get(name) for name in members}
        self._events.write("round", round=number, attempt=self._attempts, clients=steps)
        self._past, self._round = self._round, round_
        if self._past:
            self._past.forget()
        self._changed.notify_all()
        return round_

    def _chosen(self, number: int, here: Collection[str]) -> list[str]:
        """The clients of a round: those who are here, or a sample of them that the run's key and the round decide."""
        members = [name for name in self._job.clients if name in here]
        if self._terms.cohort is None or len(members) <= self._terms.cohort:
            return members
        seed = int(jax.random.key_data(self.state.key)[-1])
        asked, _ = sampling.fixed_size(len(members), self._terms.cohort, seed)(number)
        return [members[place] for place in asked.tolist()]

    def _closed(self, round_: Round, leave: Callable[[int], bool]) -> bool:
        """Wait for the end of the round; False where it is time to leave before."""
        while True:
            progress.reporter().enter("step")
            with self._changed:
                self._note_lost(time.monotonic())
                self._advance(round_)
                if round_.over:
                    return True
                self._changed.wait(TICK)
            if leave(round_.number):
                return False

    def _stepped(self, round_: Round) -> dict[str, float] | None:
        """Step along what the round has gathered: its metrics; None where it has to be held again."""
        given = sorted(round_.gifts[Kind.UPDATE])
        seconds = round(time.monotonic() - round_.begun, 3)
        said: dict[str, Any] = {"round": round_.number, "clients": given, "seconds": seconds}
        try:
            sent = self._gathering.result(round_) if round_.complete else None
        except ProtocolError as error:
            said["why"], sent = str(error), None
        if sent is None:
            with self._changed:
                self._events.write("short", **said)
            self._say(f"short      round {round_.number + 1}: {len(given)} of {self._terms.quorum} clients; once more")
            return None
        state, found = self._step(self.state, {"sent": sent})
        metrics = {name: float(mean.value()) for name, mean in found.items()}
        with self._changed:
            self.state, self._attempts = state, 0
            self._taken |= dict.fromkeys(given, round_.number)
            self._events.write("closed", **said, metrics=metrics)
        told = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._say(
            f"round      {round_.number + 1} of {self._job.rounds}  {len(given)} clients  {told}  {seconds:.2f} s"
        )
        return metrics

    def _finish(self) -> None:
        """Tell everyone who is not lost that all is done; they have two heartbeats to ask."""
        deadline = time.monotonic() + 2 * self._terms.heartbeat
        with self._changed:
            self._done = True
            self._changed.notify_all()
            while time.monotonic() < deadline and set(self._job.clients) - self._health.lost - self._told:
                self._changed.wait(TICK)
