"""A round of federated learning as a gradient: Client -> GradFn over a cohort.

    client = federated.local(lp.descend(lp.plain(loss), local_optimizer), local_optimizer)
    step = lp.descend(federated.federated(client), optax.sgd(1.0))

is federated averaging (McMahan et al. 2017, https://arxiv.org/abs/1602.05629), and with another optimizer any of
`federated.server`. An example of the round's batch is a client: leaves are [clients, steps, batch, ...], beside them
"client" [clients], the clients' numbers, and "participation" [clients], 0 for one that dropped out. Numbers beyond the
last client are padding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from lepton_jax import keys, tree
from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.federated.local import Client
from lepton_jax.types import Aux, Batch, GradFn, Key, Mean, Metrics, Params, Rule, Stats

AXIS = "data"
CLIENTS, CLIENT = "clients", "client"
OF_A_CLIENT = (CLIENT, "participation")  # what a cohort says of each client, beside its batches

Combine = Callable[[Params, Float[Array, " clients"]], Mean[Params]]
"""(updates, weights) -> Mean: how the updates of a cohort, leaves [clients, ...], become one; see `robust`."""


class Sent(NamedTuple):
    """What a client hands back from a round, or many of them together.

    update: its pseudo-gradient. moved: weight * how far its training moved the stats that all share (floats; 0 for
    all else). metrics: of its local steps. own: what it keeps for its next round; it never leaves the client.
    """

    update: Mean
    moved: Stats
    metrics: Metrics
    own: Any


def federated(client: Client, combine: Combine | None = None, together: int | None = None) -> GradFn:
    """A round as a pseudo-gradient: every client of the cohort trains from the same parameters, and updates add up.

    Without `combine` the result is the Mean over clients, each counting by its weight and its participation, summed
    in the order of the cohort. `stats["clients"]` (leaves [all clients, ...]) is what clients keep: each sees its own
    row as `stats["client"]`, and only who took part leaves a new one. Stats of floats that all share move to the mean
    of where clients moved them. Over a mesh the clients are split over the data axis; on each device `together` of
    them are computed side by side: by default all, and on CPUs one after the other. A cohort of weight 0 moves
    nothing. Raises InputError for a cohort that the data axis or `together` does not divide.
    """
    if together is not None and together < 1:
        raise InputError(f"{together} clients side by side are none", "give at least 1, or leave it out")

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        cohort, batches = _parted(batch)
        shared = {name: entry for name, entry in stats.items() if name != CLIENTS}
        own = _rows(stats.get(CLIENTS, {}), cohort[CLIENT])
        sent, updates = _each(client, together, combine is not None)(params, shared, own, batches, cohort, key)
        mean = sent.update if combine is None else combine(updates.total, updates.weight)
        return mean, Aux(_settled(stats, sent, cohort[CLIENT]), sent.metrics)

    return gradient


def key_of(key: Key, client: Any) -> Key:
    """The key of a client in the round of that key, by the client's number."""
    return keys.folded(keys.named(key, CLIENT), client)


def answer(
    client: Client, params: Params, shared: Stats, own: Any, batches: Batch, participation: Any, key: Key
) -> Sent:
    """What one client hands back. key: its own, see `key_of`. A client without weight keeps what it had."""
    mean, aux = client(params, {**shared, CLIENT: own}, batches, key)
    weight = mean.weight * participation
    # where, not *: what never arrived may be anything, NaN included
    update = tree.where(participation == 0, tree.scale(mean.total, 0), tree.scale(mean.total, participation))
    moved = {name: entry for name, entry in aux.stats.items() if name != CLIENT}
    moved = jax.tree.map(lambda new, old: _way(new, old, weight), moved, shared)
    metrics = tree.where(participation == 0, tree.scale(aux.metrics, 0), tree.scale(aux.metrics, participation))
    return Sent(Mean(update, weight), moved, metrics, tree.where(weight == 0, own, aux.stats[CLIENT]))


def settled(shared: Stats, moved: Stats, weight: Any) -> Stats:
    """The stats that all share after a round in which clients of that weight together moved them so far."""
    way = Mean(moved, weight).value()
    return jax.tree.map(lambda old, way: old + way if tree.is_floating(old) else old, shared, way)


def rules(rules: Sequence[Rule] = ()) -> tuple[Rule, ...]:
    """Rules by which what clients keep lies over the data axis, before a model's own."""
    return (*(Rule(f"(^|/){CLIENTS}/", (AXIS, *[None] * rank)) for rank in range(8)), *rules)


def kept(own: Any, clients: int) -> Any:
    """`stats["clients"]` before the first round: a row of `own` for each client."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *jnp.shape(x))), own)


def _parted(batch: Batch) -> tuple[dict[str, Array], dict[str, Any]]:
    """(number and participation of each client, their batches)."""
    batches = {name: column for name, column in batch.items() if name not in OF_A_CLIENT}
    size = keys.size(batches)
    standing = {CLIENT: jnp.arange(size), "participation": jnp.ones(size, jnp.float32)}
    return {name: jnp.asarray(batch.get(name, standing[name])) for name in OF_A_CLIENT}, batches


def _rows(kept: Any, numbers: Array) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, numbers, axis=0, mode="clip"), kept)


def _settled(stats: Stats, sent: Sent, numbers: Array) -> Stats:
    """The stats after a round: what all share, and the new rows of its clients."""
    shared = {name: entry for name, entry in stats.items() if name != CLIENTS}
    after = settled(shared, sent.moved, sent.update.weight)
    if CLIENTS not in stats:
        return after
    put = jax.tree.map(lambda all, new: all.at[numbers].set(new, mode="drop"), stats[CLIENTS], sent.own)
    return {**after, CLIENTS: put}


def _way(new: Array, old: Array, weight: Any) -> Array:
    """weight * (new - old) of floats, so that what did not move adds exactly nothing; 0 for all else."""
    if not tree.is_floating(old):
        return jnp.zeros(jnp.shape(old), jnp.float32)
    return jnp.where(weight == 0, 0, (new - old) * jnp.asarray(weight, old.dtype))


Each = Callable[[Params, Stats, Any, Batch, Batch, Key], tuple[Sent, Mean]]


def _each(client: Client, together: int | None, apart: bool) -> Each:
    """A cohort's answers, added up, with `own` and, where they are wanted apart, the updates on a leading axis."""

    def on_a_device(params: Any, shared: Any, own: Any, batches: Batch, cohort: Batch, key: Any) -> tuple[Sent, Mean]:
        def one(own: Any, batches: Batch, cohort: Batch) -> Sent:
            # a client's parameters are all here, whatever the layout of the global ones is
            with meshes.computing(None):
                number = key_of(key, cohort[CLIENT])
                return answer(client, params, shared, own, batches, cohort["participation"], number)

        return _added(one, (own, batches, cohort), _abreast(together, keys.size(cohort)), apart)

    def each(params: Any, shared: Any, own: Any, batches: Batch, cohort: Batch, key: Any) -> tuple[Sent, Mean]:
        devices = _holders(keys.size(cohort))
        arguments = (params, shared, own, dict(batches), cohort, key)
        if devices == 1:
            return on_a_device(*arguments)

        def part(*arguments: Any) -> tuple[Sent, Mean]:
            sent, updates = on_a_device(*arguments)
            whole = jax.lax.psum(sent._replace(own=()), AXIS)
            return whole._replace(own=sent.own), updates

        laid = (P(), P(), P(AXIS), P(AXIS), P(AXIS), P())
        back = (Sent(P(), P(), P(), P(AXIS)), P(AXIS))  # pyright: ignore[reportArgumentType]
        return jax.shard_map(part, in_specs=laid, out_specs=back, check_vma=False)(*arguments)

    return each


def _added(one: Callable[..., Sent], parts: Any, abreast: int, apart: bool) -> tuple[Sent, Mean]:
    """The answers to `parts`, so many side by side and those one after the other, added in their order."""

    def answers(part: Any) -> tuple[Sent, Any, Any]:
        sent = one(*part) if abreast == 1 else jax.vmap(one)(*part)
        rest = sent._replace(own=())
        whole = rest if abreast == 1 else jax.tree.map(lambda x: jnp.sum(x, axis=0), rest)
        update = Mean(sent.update.value() if abreast == 1 else jax.vmap(Mean.value)(sent.update), sent.update.weight)
        return whole, sent.own, update if apart else ()

    def add(total: Sent, part: Any) -> tuple[Sent, Any]:
        more, own, update = answers(part)
        return tree.add(total, more), (own, update)

    if abreast > 1:
        parts = jax.tree.map(lambda x: x.reshape(-1, abreast, *x.shape[1:]), parts)
    shapes, _, _ = jax.eval_shape(answers, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, each = jax.lax.scan(add, zero, parts)
    own, updates = each if abreast == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
    return total._replace(own=own), updates


def _holders(size: int) -> int:
    """How many devices hold the clients, those of the mesh's data axis."""
    here = meshes.automatic()
    devices = here.shape.get(AXIS, 1) if here else 1
    if size % devices:
        problem = f"a cohort of {size} clients does not divide over the {devices} devices of the data axis"
        raise InputError(problem, f"use a multiple of {devices}, such as {-(-size // devices) * devices}")
    return devices


def _abreast(together: int | None, size: int) -> int:
    """How many of a device's clients are computed side by side."""
    if together is None:
        return 1 if jax.default_backend() == "cpu" else size
    if size % min(together, size):
        problem = f"{together} clients side by side do not divide the {size} of a device"
        raise InputError(problem, "give a divisor, or 1 for one after the other")
    return min(together, size)
