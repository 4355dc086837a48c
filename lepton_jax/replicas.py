"""Models trained apart and merged now and then: Step -> Step, as local SGD and DiLoCo do it.

    state = replicas.started(lp.step.initial(model, optimizer, key, inputs), outer, 8)
    step = replicas.apart(lp.descend(gradient, optimizer), outer, 8, every=50)
    rules = replicas.rules(model.rules)

Between merges the devices of the data axis exchange nothing but the metrics. With `optax.sgd(1.0)` as `outer` it is
local SGD (Stich 2019, https://arxiv.org/abs/1805.09767); with `optax.sgd(0.7, momentum=0.9, nesterov=True)` and AdamW
inside it is DiLoCo (Douillard et al. 2023, https://arxiv.org/abs/2311.08105).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from lepton_jax import keys, tree
from lepton_jax import mesh as meshes
from lepton_jax.errors import InputError
from lepton_jax.gradients import repeating
from lepton_jax.types import Batch, Metrics, Rule, Step, TrainState

NAME, AXIS = "replicas", "data"


def started(state: TrainState, outer: optax.GradientTransformation, replicas: int) -> TrainState:
    """The state that `apart` begins with, from that of the step inside it.

    `params` are the merged ones, which are evaluated, and `opt_state` is that of `outer`. Each replica's parameters,
    stats and optimizer are in `stats["replicas"]`, with a leading axis [replicas]. Raises InputError for no replica.
    """
    if replicas < 1:
        raise InputError(f"{replicas} replicas cannot train", "give at least 1")
    own = {"params": state.params, "stats": state.stats, "opt_state": state.opt_state}
    own = jax.tree.map(lambda x: jnp.broadcast_to(x, (replicas, *jnp.shape(x))), own)
    return state._replace(stats={**state.stats, NAME: own}, opt_state=outer.init(state.params))


def rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules by which the replicas lie over the data axis, before a model's own."""
    return (*(Rule(f"(^|/){NAME}/", (AXIS, *[None] * rank)) for rank in range(8)), *rules)


def apart(step: Step, outer: optax.GradientTransformation, replicas: int, every: int) -> Step:
    """The step, made by each replica on its own part of the batch, and every so many steps a merge.

    A merge takes the way from the merged parameters to the mean of the replicas as a gradient (a pseudo-gradient) for
    `outer`, and all replicas go on from where that leads, each with its own optimizer state. Stats of floats are then
    averaged for evaluation; each replica keeps its own. The run is the same on any mesh: replica r has the r-th part
    of the batch, and devices on other axes than data repeat its computation. Raises InputError for a merge that never
    comes, for replicas that do not divide the batch, and for a data axis that does not divide the replicas.
    """
    if every < 1:
        raise InputError(f"a merge every {every} steps never comes", "give at least 1")

    def apart_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        own, metrics = _each(step, state, batch, replicas)
        others = {name: value for name, value in state.stats.items() if name != NAME}
        moved = state._replace(step=state.step + 1, stats={**others, NAME: own})
        due = moved.step % every == 0
        return jax.lax.cond(due, lambda state: _merged(state, outer), lambda state: state, moved), metrics

    return apart_step


def _each(step: Step, state: TrainState, batch: Batch, replicas: int) -> tuple[Any, Metrics]:
    """(the replicas after one step of each, the metrics of all together)."""
    devices = _holders(replicas, keys.size(batch))

    def one(own: Any, rows: Batch, number: Any, key: Any) -> tuple[Any, Metrics]:
        # a replica's parameters are all here, whatever the layout of the merged ones is
        with meshes.computing(None), repeating("apart"):
            after, metrics = step(TrainState(number, own["params"], own["stats"], own["opt_state"], key), rows)
        return {"params": after.params, "stats": after.stats, "opt_state": after.opt_state}, metrics

    def on_a_device(own: Any, rows: Batch, number: Any, key: Any) -> tuple[Any, Metrics]:
        parts = jax.tree.map(lambda x: x.reshape(replicas // devices, -1, *x.shape[1:]), dict(rows))
        # one after the other: vmap of convolutions over sharded examples has been wrong (jax 0.10.2)
        own, metrics = jax.lax.map(lambda part: one(part[0], part[1], number, key), (own, parts))
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        return own, jax.lax.psum(metrics, AXIS) if devices > 1 else metrics

    arguments = (state.stats[NAME], {**batch, "index": keys.index(batch)}, state.step, state.key)
    if devices == 1:
        return on_a_device(*arguments)
    laid = (P(AXIS), P(AXIS), P(), P())
    return jax.shard_map(on_a_device, in_specs=laid, out_specs=(P(AXIS), P()), check_vma=False)(*arguments)


def _holders(replicas: int, size: int) -> int:
    """How many devices hold the replicas, those of the mesh's data axis."""
    here = meshes.automatic()
    devices = here.shape.get(AXIS, 1) if here else 1
    if size % replicas:
        near = max(replicas, round(size / replicas) * replicas)
        raise InputError(f"{replicas} replicas do not divide a batch of {size}", f"they divide one of {near}")
    if replicas % devices:
        problem = f"{replicas} replicas do not divide over the {devices} devices of the data axis"
        raise InputError(problem, f"use a multiple of {devices} replicas, or a data axis that divides {replicas}")
    return devices


def _merged(state: TrainState, outer: optax.GradientTransformation) -> TrainState:
    own = state.stats[NAME]
    gradient = jax.tree.map(lambda start, ends: start - jnp.mean(ends, axis=0), state.params, own["params"])
    updates, opt_state = outer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    spread = jax.tree.map(lambda x, ends: jnp.broadcast_to(x, ends.shape), params, own["params"])
    stats = {name: jax.tree.map(_representative, value) for name, value in own["stats"].items()}
    return state._replace(params=params, opt_state=opt_state, stats={**stats, NAME: {**own, "params": spread}})


def _representative(own: Any) -> Any:
    """The mean over replicas of floats; of counts the first replica's."""
    return jnp.mean(own, axis=0) if tree.is_floating(own) else own[0]
