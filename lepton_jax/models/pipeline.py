"""Layers of one kind one after the other, their parameters stacked: by one device, or in stages over a "pipe" axis.

Compiled once for all layers, so that a deep network compiles as soon as a shallow one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from lepton_jax import mesh
from lepton_jax.errors import InputError
from lepton_jax.types import Keys

AXIS = "pipe"

Layer = Callable[[Any, Array, Keys | None], Array]
"""(parameters of one layer, x [batch, ...], keys [batch]) -> x of the same shape; each example for itself."""


def sequential(layer: Layer, stacked: PyTree, x: Array, keys: Keys | None) -> Array:
    """All layers, one after the other. stacked: a leading axis of layers in every leaf."""
    return jax.lax.scan(lambda x, own: (layer(own, x, keys), None), x, stacked)[0]


def pipelined(layer: Layer, stacked: PyTree, x: Array, keys: Keys | None, microbatches: int | None = None) -> Array:
    """The same layers and the same result; over the mesh's "pipe" axis, where there is one, each device has a stage.

    A stage is an equal share of the layers. The batch goes through in microbatches, one stage behind the other, and
    the gradient back again (GPipe: Huang et al. 2019, https://arxiv.org/abs/1811.06965). Of `rounds` = microbatches +
    stages - 1 each device idles in stages - 1. microbatches: those of a device's share of the batch; by default the
    most up to four per stage that divide it. Other axes than those of batch and pipe are left to the compiler. Raises
    InputError for layers that do not divide over the stages, and for microbatches that do not divide the share.
    """
    here = mesh.automatic()
    if here is None or here.shape.get(AXIS, 1) == 1 or len(x) % mesh.batch_shards(here):
        return sequential(layer, stacked, x, keys)
    stages, depth = here.shape[AXIS], len(jax.tree.leaves(stacked)[0])
    if depth % stages:
        problem = f"{depth} layers do not divide over the {stages} stages of the mesh's pipe axis"
        raise InputError(problem, f"use a multiple of {stages} layers, or a pipe axis that divides {depth}")
    parts = _parts(len(x) // mesh.batch_shards(here), stages, microbatches)
    rows = P(mesh.batch_axes(here) or None)
    axes = {AXIS, *mesh.batch_axes(here)}
    run = jax.shard_map(
        functools.partial(_stage, layer, stages, parts),
        in_specs=(P(AXIS), rows, rows),
        out_specs=rows,
        axis_names=axes,
    )
    return run(stacked, x, keys)


def _parts(share: int, stages: int, microbatches: int | None) -> int:
    if microbatches is None:
        return max(number for number in range(1, 4 * stages + 1) if share % number == 0)
    if share % microbatches:
        problem = f"{microbatches} microbatches of the pipeline do not divide a device's {share} examples"
        raise InputError(problem, "choose a number that does, or leave it out")
    return microbatches


def _stage(layer: Layer, stages: int, parts: int, own: PyTree, x: Array, keys: Keys | None) -> Array:
    """What the device of a stage does: in each round its layers on the microbatch that the stage before has left."""
    stage = jax.lax.axis_index(AXIS)
    waiting, their_keys = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), (x, keys))

    def round(passed: Array, number: Any) -> tuple[Array, Array]:
        # before its first microbatch and after its last a stage computes on what no one reads
        at = jnp.clip(number - stage, 0, parts - 1)
        entering = jnp.where(stage == 0, waiting[at], passed)
        leaving = sequential(layer, own, entering, jax.tree.map(lambda rows: rows[at], their_keys))
        return jax.lax.ppermute(leaving, AXIS, [(i, (i + 1) % stages) for i in range(stages)]), leaving

    start = jax.lax.pcast(jnp.zeros_like(waiting[0]), AXIS, to="varying")
    _, left = jax.lax.scan(round, start, jnp.arange(parts + stages - 1))
    done = left[stages - 1 :].reshape(x.shape)
    return jax.lax.psum(jnp.where(stage == stages - 1, done, jnp.zeros_like(done)), AXIS)
