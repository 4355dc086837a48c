"""A client: asks for work, computes, and sends its update, as it is or under masks."""

import concurrent.futures
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.errors import InputError
from lepton_jax.federated import Sent
from lepton_jax.federation import certificates, fixed, frames, gathering, job, masks, wire
from lepton_jax.federation.frames import Frame, FrameError, Kind
from lepton_jax.federation.job import Job
from lepton_jax.federation.memory import Memory
from lepton_jax.federation.transport import Transport

T = TypeVar("T")


class GoneError(Exception):
    """The round is over for this client."""


class Participant:
    """One client of a job.

    steps: local steps that it can do in a round, at most; None for all. memory: a directory for what it keeps from
    round to round, so that another process goes on where this one was; None for this process alone.
    """

    def __init__(
        self,
        job_: Job,
        name: str,
        transport: Transport,
        steps: int | None = None,
        memory: pathlib.Path | None = None,
    ):
        job.check(job_)
        if name not in job_.clients:
            raise InputError(f"{name} is none of this job's clients", f"they are: {', '.join(job_.clients)}")
        if steps is not None and steps < 1:
            raise InputError(f"--steps {steps} is not positive", "leave it out to do all steps of a round")
        self._job, self._name, self._transport = job_, name, transport
        self._compute = jax.jit(job.answer(job_))
        like = jax.eval_shape(job_.state)
        self._like = {"params": like.params, "stats": like.stats}
        self._hello = {"job": job.fingerprint(job_, like), "steps": steps}
        begun = jax.jit(lambda: job_.own(job_.state().params))()
        self._memory = Memory(begun, memory, f"{name}.{self._hello['job']}")
        self.rounds: set[int] = set()  # in which its update was taken

    def run(self) -> None:
        """Take part until all rounds are done. Raises InputError where the coordinator will not have this client."""
        with concurrent.futures.ThreadPoolExecutor(1, "compute") as pool:
            while (reply := self._asked(Frame(Kind.POLL, self._hello))).kind != Kind.DONE:
                if reply.kind == Kind.TASK:
                    try:
                        self._contribute(reply, pool)
                    except GoneError:
                        continue
                elif reply.kind != Kind.WAIT:
                    time.sleep(1.0)  # an answer to another question

    def _asked(self, frame: Frame) -> Frame:
        reply = self._transport.exchange(frame)
        if reply.kind == Kind.REFUSED:
            why = str(reply.head.get("why", "it does not say why"))
            raise InputError(f"the coordinator refuses {self._name}: {why}", "start both with the same flags")
        return reply

    def _contribute(self, task: Frame, pool: concurrent.futures.Executor) -> None:
        """One round: compute, and hand it over as it is or under masks."""
        head = task.head
        if head["threshold"] is None:
            sent = self._worked(head, pool, lambda: self._answer(task))
            self._given(Kind.UPDATE, head, frames.packed(wire.arrays(sent)), Kind.OK)
        else:
            self._hidden(task, pool)
        self.rounds.add(head["round"])

    def _hidden(self, task: Frame, pool: concurrent.futures.Executor) -> None:
        """The same as it is done in `masks`."""
        certificates.require_cryptography()
        head = task.head
        party = masks.Party(self._name, head["threshold"], head["token"].encode())

        def worked(work: Callable[[], T]) -> T:
            return self._worked(head, pool, work)

        try:
            keys = worked(lambda: gathering.pieces({self._name: party.keys()}))
            roster = self._pieces(self._given(Kind.KEYS, head, keys, Kind.ROSTER))
            given = worked(lambda: gathering.pieces(party.shares(roster)))
            shares = self._pieces(self._given(Kind.SHARES, head, given, Kind.SHARED))
            vector = worked(lambda: self._masked(task, party, shares))
            reply = self._given(Kind.UPDATE, head, vector, Kind.SURVIVORS)
            revealed = party.revealed(reply.head["survivors"])
            self._given(Kind.REVEAL, head, gathering.pieces(revealed), Kind.OK)
        except masks.ProtocolError as error:
            print(f"left       round {head['round'] + 1}: {error}", flush=True)
            raise GoneError from error

    def _masked(self, task: Frame, party: masks.Party, shares: Mapping[str, bytes]) -> bytes:
        """The answer to a task, under masks."""
        vector = fixed.encoded(wire.arrays(self._answer(task)), task.head["parties"])
        return frames.packed({"vector": party.masked(vector, shares)})

    def _worked(self, head: Mapping[str, Any], pool: concurrent.futures.Executor, work: Callable[[], T]) -> T:
        """What some work comes to; meanwhile the coordinator hears that this client is alive."""
        working = pool.submit(work)
        alive = Frame(Kind.ALIVE, {"token": head["token"]})
        while True:
            try:
                return working.result(head["heartbeat"])
            except concurrent.futures.TimeoutError:
                if self._asked(alive).kind != Kind.OK:
                    working.cancel()
                    raise GoneError from None

    def _answer(self, task: Frame) -> Sent:
        """What it sends. What it then keeps is in its memory before anything is sent, for whether the update is taken
        is the coordinator's to say: the next task has the round of which it was."""
        head = task.head
        try:
            given = wire.restored(task.arrays(), self._like)
        except FrameError as error:
            raise InputError(
                f"the coordinator's task is of another job: {error}", "start both with the same flags"
            ) from error
        batches = self._job.data(self._name, head["round"])
        batches = {name: column[: head["steps"]] for name, column in batches.items()}
        key = jax.random.wrap_key_data(jnp.asarray(head["key"], jnp.uint32))
        own, number = self._memory.after(head["taken"]), self._job.clients.index(self._name)
        sent, own = jax.device_get(self._compute(given["params"], given["stats"], own, batches, key, number))
        self._memory.keep(head["round"], own, head["taken"])
        return sent

    def _given(self, kind: Kind, head: Mapping[str, Any], body: bytes, wanted: Kind) -> Frame:
        """What the coordinator has for it in return. Raises GoneError where it has nothing any more."""
        reply = self._asked(Frame(kind, {"token": head["token"]}, body))
        while reply.kind == Kind.WAIT:  # it has come; what is asked for now is the answer alone
            reply = self._asked(Frame(kind, {"token": head["token"]}))
        if reply.kind != wanted:
            raise GoneError
        return reply

    def _pieces(self, frame: Frame) -> dict[str, bytes]:
        return {name: np.asarray(array).tobytes() for name, array in frame.arrays().items()}
