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
    """What a client sends back, three sums: those of a cohort are added up.

    update: its pseudo-gradient. moved: weight * how far its training moved the stats that all share (floats; 0 for
    all else). metrics: of its local steps.
    """

    update: Mean
    moved: Stats
    metrics: Metrics


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

    def one(context: Any, part: Any) -> tuple[Sent, Any]:
        (params, shared, key), (own, cohort, batches) = context, part
        number, participation = (cohort[name] for name in OF_A_CLIENT)
        # a client's parameters are all here, whatever the layout of the global ones is
        with meshes.computing(None):
            return answer(client, params, shared, own, batches, participation, key_of(key, number))

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        cohort, batches = _parted(batch)
        shared = {name: entry for name, entry in stats.items() if name != CLIENTS}
        own = _rows(stats.get(CLIENTS, {}), cohort[CLIENT])
        parts = (own, cohort, batches)
        sent, (own, updates) = _over_devices(one, (params, shared, key), parts, together, apart=combine is not None)
        after = settled(shared, sent.moved, sent.update.weight)
        if CLIENTS in stats:
            after[CLIENTS] = _put(stats[CLIENTS], cohort[CLIENT], own)
        return combine(*updates) if combine else sent.update, Aux(after, sent.metrics)

    return gradient


def key_of(key: Key, client: Any) -> Key:
    """The key of a client in the round of that key, by the client's number."""
    return keys.folded(keys.named(key, CLIENT), client)


def answer(
    client: Client, params: Params, shared: Stats, own: Any, batches: Batch, participation: Any, key: Key
) -> tuple[Sent, Any]:
    """(what one client sends, what it keeps for its next round, which never leaves it).

    own: what it kept so far, {} if nothing. participation: 0 for one that dropped out, else 1. key: its own, see
    `key_of`. Without weight it sends zeros, and keeps what it had.
    """
    mean, aux = client(params, {**shared, CLIENT: own}, batches, key)
    weight = mean.weight * participation
    # where, not *: what never arrived may be anything, NaN included
    said = (mean.total, aux.metrics)
    silent = tree.zeros(said)
    update, metrics = tree.where(participation == 0, silent, tree.scale(said, participation))
    moved = {name: entry for name, entry in aux.stats.items() if name != CLIENT}
    moved = jax.tree.map(lambda new, old: _way(new, old, weight), moved, shared)
    return Sent(Mean(update, weight), moved, metrics), tree.where(weight == 0, own, aux.stats[CLIENT])


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


def _rows(kept: Any, numbers: Array) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, numbers, axis=0, mode="clip"), kept)


def _put(kept: Any, numbers: Array, rows: Any) -> Any:
    return jax.tree.map(lambda x, new: x.at[numbers].set(new, mode="drop"), kept, rows)


def _parted(batch: Batch) -> tuple[dict[str, Array], dict[str, Any]]:
    """(number and participation of each client, their batches)."""
    batches = {name: column for name, column in batch.items() if name not in OF_A_CLIENT}
    size = keys.size(batches)
    standing = {CLIENT: jnp.arange(size), "participation": jnp.ones(size, jnp.float32)}
    return {name: jnp.asarray(batch.get(name, standing[name])) for name in OF_A_CLIENT}, batches


def _way(new: Array, old: Array, weight: Any) -> Array:
    """weight * (new - old) of floats, so that what did not move adds exactly nothing; 0 for all else."""
    if not tree.is_floating(old):
        return jnp.zeros(jnp.shape(old), jnp.float32)
    return jnp.where(weight == 0, 0, (new - old) * jnp.asarray(weight, old.dtype))


One = Callable[[Any, Any], tuple[Sent, Any]]


def _over_devices(one: One, context: Any, parts: Any, together: int | None, apart: bool) -> tuple[Sent, Any]:
    """(the sum of what clients send, (what each keeps, (updates, weights) where they are wanted apart)).

    `one(context, part)` is one client; the leaves of `parts` have the clients on their leading axis.
    """
    devices = _holders(len(parts[1][CLIENT]))

    def on_a_device(context: Any, parts: Any) -> tuple[Sent, Any]:
        sent, each = _added(lambda part: one(context, part), parts, together, apart)
        return jax.lax.psum(sent, AXIS) if devices > 1 else sent, each

    if devices == 1:
        return on_a_device(context, parts)
    laid = (P(), P(AXIS))
    return jax.shard_map(on_a_device, in_specs=laid, out_specs=laid, check_vma=False)(context, parts)


def _added(one: Callable[[Any], tuple[Sent, Any]], parts: Any, together: int | None, apart: bool) -> tuple[Sent, Any]:
    """The same on one device: so many clients side by side, and those one after the other, in their order."""
    abreast = _abreast(together, len(parts[1][CLIENT]))

    def some(part: Any) -> tuple[Sent, Any]:
        sent, own = one(part) if abreast == 1 else jax.vmap(one)(part)
        each = (own, _apart(sent.update, abreast) if apart else None)
        return sent if abreast == 1 else jax.tree.map(lambda x: jnp.sum(x, axis=0), sent), each

    def add(total: Sent, part: Any) -> tuple[Sent, Any]:
        sent, each = some(part)
        return tree.add(total, sent), each

    if abreast > 1:
        parts = jax.tree.map(lambda x: x.reshape(-1, abreast, *x.shape[1:]), parts)
    shapes, _ = jax.eval_shape(some, jax.tree.map(lambda x: x[0], parts))
    total, each = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return total, each if abreast == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)


def _apart(update: Mean, abreast: int) -> tuple[Params, Array]:
    return (update.value() if abreast == 1 else jax.vmap(Mean.value)(update)), update.weight


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
