"""Where the gradient comes from: Loss -> GradFn, and GradFn -> GradFn."""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from lepton_jax import convolutions, keys, tree
from lepton_jax.errors import InputError
from lepton_jax.types import Aux, Batch, GradFn, Loss, Mean

_REPEATING: ContextVar[str | None] = ContextVar(
    "what computes the gradient that is traced more than once", default=None
)


@contextlib.contextmanager
def repeating(by: str) -> Iterator[None]:
    """While a gradient is traced that one step computes several times, of parts of a batch or at several points."""
    token = _REPEATING.set(by)
    try:
        yield
    finally:
        _REPEATING.reset(token)


def require_whole(what: str) -> None:
    """Raise InputError where what may enter a step but once is traced inside of `repeating`."""
    if by := _REPEATING.get():
        problem = f"{what} inside of {by} would enter a step several times"
        raise InputError(problem, f"put {by} inside: {what} goes around all that computes the gradient")


def plain(loss: Loss) -> GradFn:
    """The gradient of the loss's total, with its weight; the loss itself is in `metrics["loss"]`."""
    convolutions.in_order_on_cpus()

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        def total(params: Any) -> tuple[Array, tuple[Array, Aux]]:
            mean, aux = loss(params, stats, batch, key)
            return mean.total, (mean.weight, aux)

        (value, (weight, aux)), grads = jax.value_and_grad(total, has_aux=True)(params)
        return Mean(grads, weight), Aux(aux.stats, {"loss": Mean(value, weight), **aux.metrics})

    return gradient


def accumulate(grad_fn: GradFn, microbatches: int) -> GradFn:
    """The same gradient, summed over microbatches one after the other: the memory of one, the mean of all.

    Totals and weights add, so ragged and weighted batches stay exact. Batch-norm statistics are each
    microbatch's own and move once per microbatch. Raises InputError where `microbatches` does not divide the batch.
    """
    if microbatches == 1:
        return grad_fn

    def accumulated(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        parts = split({**batch, "index": keys.index(batch)}, microbatches)
        first = jax.tree.map(lambda x: x[0], parts)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            mean, stats, metrics = carry
            more, aux = grad_fn(params, stats, part, key)
            return (mean.merge(more), aux.stats, tree.add(metrics, aux.metrics)), None

        with repeating("accumulate"):
            shapes = jax.eval_shape(grad_fn, params, stats, first, key)
            mean, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (mean, stats, metrics), _ = jax.lax.scan(add, (mean, stats, aux.metrics), parts)
        return mean, Aux(stats, metrics)

    return accumulated


def sharpness_aware(grad_fn: GradFn, radius: float) -> GradFn:
    """The gradient at the point `radius` uphill, where the loss is about the worst of the neighborhood.

    SAM, at twice the cost (Foret et al. 2021, https://arxiv.org/abs/2010.01412). The way up is the mean gradient of
    `grad_fn`, of norm `radius`; both passes have the same key, so they draw alike. Stats move once and metrics are
    measured once, by the first pass, at the parameters themselves. Microbatches go inside, `sharpness_aware(
    accumulate(plain(loss), k), radius)`: the way up is then the whole batch's. Outside, each microbatch would climb
    by itself: another method, whose result depends on k. Raises InputError for a radius that is not positive.
    """
    if not 0 < radius < math.inf:
        raise InputError(f"the radius {radius} of the neighborhood is not positive", "give one such as 0.05")

    def uphill(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        with repeating("sharpness_aware"):
            here, aux = grad_fn(params, stats, batch, key)
            gradient = here.value()
            norm = tree.norm(gradient)
            reach = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1), 0)
            there, after = grad_fn(tree.add(params, tree.scale(gradient, reach)), stats, batch, key)
        # a second gradient of no weight moves nothing, and its stats know why: a loss scale that overflowed
        return there, Aux(tree.where(there.weight == 0, after.stats, aux.stats), aux.metrics)

    return uphill


def sharded(grad_fn: GradFn, shards: int) -> GradFn:
    """The same gradient in `shards` virtual shards of fixed shape, so that no bit of it depends on the mesh.

    Each device computes its own shards one after the other, all by one program; their gradients are added in one
    fixed binary tree, of which a device's own are a branch. Any number of devices that divides the shards then makes
    the same run, bit for bit (the idea of EasyScale, Li et al. 2023, https://arxiv.org/abs/2208.14228): so tested of an
    MLP, a CNN, a ResNet and a Vision Transformer on CPUs. Batch statistics are a shard's own, and what the shards moved
    to is averaged. Microbatches go inside, `sharded(accumulate(plain(loss), k), shards)`, and divide a shard.

    Raises InputError for a number of shards that is not a power of two, that does not divide the batch, or that the
    devices do not divide; for devices on another axis than data, which split sums inside a layer or the update; and
    for stats of whole numbers, such as a loss scale's, which have no mean.
    """
    if shards < 1 or shards & (shards - 1):
        raise InputError(f"{shards} virtual shards are not a power of two", "with 8, runs move between 1, 2, 4 and 8")

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        devices = _holders(shards, keys.size(batch))

        def on_a_device(params: Any, stats: Any, rows: Batch, key: Any) -> tuple[Mean, Aux]:
            parts = jax.tree.map(lambda x: x.reshape(shards // devices, -1, *x.shape[1:]), dict(rows))
            own = tree.pairwise(_mapped(lambda part: grad_fn(params, stats, part, key), parts))
            return tree.pairwise(jax.lax.all_gather(own, "data")) if devices > 1 else own

        if devices > 1:
            laid = (P(), P(), P("data"), P())
            on_a_device = jax.shard_map(on_a_device, in_specs=laid, out_specs=P(), check_vma=False)
        with repeating("sharded"):
            mean, aux = on_a_device(params, stats, {**batch, "index": keys.index(batch)}, key)
        return mean, Aux(tree.map_named(lambda name, total: _averaged(name, total, shards), aux.stats), aux.metrics)

    return gradient


def _holders(shards: int, size: int) -> int:
    """How many devices hold the shards of a batch of `size`, those of the mesh's data axis."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.shape.get("data", 1)
    if size % shards:
        near = max(shards, round(size / shards) * shards)
        raise InputError(f"{shards} virtual shards do not divide a batch of {size}", f"they divide one of {near}")
    if mesh.size > devices:
        names = ",".join(f"{axis}={length}" for axis, length in mesh.shape.items())
        problem = f"virtual shards give the same bits on any data axis, not on the mesh {names}"
        raise InputError(problem, f"put all devices on data, as in {mesh.size}x1, or leave the virtual shards out")
    if shards % devices:
        problem = f"{shards} virtual shards do not divide over {devices} devices"
        raise InputError(problem, f"use at least {devices} shards" if devices > shards else "use 1, 2, 4 ... devices")
    return devices


def _mapped(function: Callable[[Any], Any], parts: Any) -> Any:
    """`jax.lax.map`, by a loop that the compiler treats alike however many parts there are.

    A loop that it knows to run once it dissolves, or leaves its invariants inside; then what is fused, and so
    rounded, is not the same. So the number of rounds comes from the data, and no array gives it away.
    """
    count = keys.size(parts)
    parts = jax.tree.map(lambda x: jnp.concatenate([x, x]) if count == 1 else x, parts)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    empty = jax.tree.map(lambda x: jnp.zeros((max(count, 2), *x.shape), x.dtype), shapes)

    def compute(number: Any, results: Any) -> Any:
        result = function(jax.tree.map(lambda x: x[number], parts))
        return jax.tree.map(lambda all, one: all.at[number].set(one), results, result)

    rounds = count + jnp.minimum(parts["index"].ravel()[0], 0)  # the index of an example is never negative
    return jax.tree.map(lambda x: x[:count], jax.lax.fori_loop(0, rounds, compute, empty))


def _averaged(name: str, total: Array, shards: int) -> Array:
    if name.startswith("clients/"):
        problem = f"{name!r} is what clients keep, of which virtual shards have no mean"
        raise InputError(problem, "use an algorithm of which clients keep nothing, or no virtual shards")
    if not tree.is_floating(total):
        problem = f"the stats {name!r} are whole numbers, of which virtual shards have no mean"
        raise InputError(problem, "use bfloat16 rather than float16, whose loss scale counts steps")
    return total / shards


def split(batch: Batch, microbatches: int) -> dict[str, Any]:
    """A batch [n, ...] as microbatches [k, n/k, ...] by stride, so that every device keeps its own rows."""
    size = keys.size(batch)
    if size % microbatches:
        raise InputError(
            f"{microbatches} microbatches do not divide a batch of {size}",
            f"choose --microbatches that divides the batch, or a batch of {size - size % microbatches}",
        )
    return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), dict(batch))
