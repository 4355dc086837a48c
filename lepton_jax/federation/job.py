"""What a federation is to do: the job that coordinator and clients compose, each for itself, from the same flags."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lepton_jax import digests, tree
from lepton_jax import federated as wing
from lepton_jax.errors import InputError
from lepton_jax.federated import Combine, Sent
from lepton_jax.federation import certificates
from lepton_jax.types import Aux, Batch, Key, Mean, Params, Stats, Step, TrainState

SLACK = 2**20  # bytes of a body beside its numbers: names, shapes, and shares


class Job(NamedTuple):
    """A federated job.

    state: gives the state before the first round, the same bits everywhere. client: what each does with its data.
    step: a round, `descend(received, server_optimizer)` or any other Step over what the clients sent. clients: their
    names, as in their certificates, in the order in which updates add up; a client's place is its number. batches: one
    client's in a round, as shapes, [steps, batch, ...]. data: (client's name, round) -> its batches; called on that
    client alone. own: what a client keeps before its first round (`stats["client"]`), of the parameters before it.
    combine: how updates become one, where they are not just added up. evaluate: what the coordinator measures at the
    end, by name. flags: what else coordinator and clients have to agree on.
    """

    name: str
    state: Callable[[], TrainState]
    client: wing.Client
    step: Step
    clients: tuple[str, ...]
    rounds: int
    batches: Batch
    data: Callable[[str, int], Batch]
    own: Callable[[Params], Any] = lambda params: {}
    combine: Combine | None = None
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None
    flags: Mapping[str, Any] = {}


def check(job: Job) -> None:
    """Raise InputError for a job that cannot be one."""
    certificates.check_names(job.clients)
    if job.rounds < 1:
        raise InputError(f"a job of {job.rounds} rounds does nothing", "give at least 1")


def received(params: Params, stats: Stats, batch: Batch, key: Key) -> tuple[Mean[Params], Aux]:
    """The gradient that came over the network: a GradFn whose batch is {"sent": Sent}, the clients' answers as one."""
    sent: Sent = batch["sent"]
    return sent.update, Aux(wing.settled(stats, sent.moved, sent.update.weight), sent.metrics)


def answer(job: Job) -> Callable[[Params, Stats, Any, Batch, Key, Any], tuple[Sent, Any]]:
    """(what a client sends, what it keeps) for (params, stats, own, batches, the round's key, the client's number)."""

    def answer(params: Any, stats: Any, own: Any, batches: Batch, key: Any, number: Any) -> tuple[Sent, Any]:
        return wing.answer(job.client, params, stats, own, dict(batches), jnp.float32(1), wing.key_of(key, number))

    return answer


def round_key(state: TrainState) -> Key:
    """The key of the round after this state, as `descend` has it."""
    return jax.random.fold_in(state.key, state.step)


def sent_like(job: Job, state: TrainState) -> Sent:
    """What a client sends, as shapes."""
    own = jax.eval_shape(job.own, state.params)
    return jax.eval_shape(answer(job), state.params, state.stats, own, dict(job.batches), state.key, 0)[0]


def folded(job: Job, answers: list[Sent]) -> Sent:
    """Many answers as one, added in the order of the list. At least one."""
    # from zero, as the simulation adds: 0 + -0 is 0
    total = tree.zeros(answers[0])
    for sent in answers:
        total = tree.add(total, sent)
    if job.combine is None:
        return total
    values = jax.tree.map(lambda *x: jnp.stack(x), *(sent.update.value() for sent in answers))
    return total._replace(update=job.combine(values, jnp.stack([sent.update.weight for sent in answers])))


def fingerprint(job: Job, state: TrainState) -> str:
    """What coordinator and clients have to agree on, as a short text."""
    shapes = [digests.described(tree) for tree in (state.params, state.stats, sent_like(job, state))]
    said = json.dumps([job.name, job.rounds, job.clients, *shapes, dict(job.flags)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def most_bytes(job: Job, state: TrainState) -> int:
    """The cap of a body in either direction: numbers of up to 8 bytes each, and their names."""
    trees = ((state.params, state.stats), sent_like(job, state))
    leaves = max(len(jax.tree.leaves(each)) for each in trees)
    return 8 * max(tree.count(each) for each in trees) + 512 * (leaves + len(job.clients)) + SLACK
