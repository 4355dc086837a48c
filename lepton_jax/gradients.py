"""Where the gradient comes from: Loss -> GradFn, and GradFn -> GradFn."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys, tree
from lepton_jax.errors import InputError
from lepton_jax.types import Aux, Batch, GradFn, Loss, Mean


def plain(loss: Loss) -> GradFn:
    """The gradient of the loss's total, with its weight; the loss itself is in `metrics["loss"]`."""

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
        shapes = jax.eval_shape(grad_fn, params, stats, first, key)
        mean, aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            mean, stats, metrics = carry
            more, aux = grad_fn(params, stats, part, key)
            return (mean.merge(more), aux.stats, tree.add(metrics, aux.metrics)), None

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
        here, aux = grad_fn(params, stats, batch, key)
        gradient = here.value()
        norm = tree.norm(gradient)
        reach = jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1), 0)
        there, after = grad_fn(tree.add(params, tree.scale(gradient, reach)), stats, batch, key)
        # a second gradient of no weight moves nothing, and its stats know why: a loss scale that overflowed
        return there, Aux(tree.where(there.weight == 0, after.stats, aux.stats), aux.metrics)

    return uphill


def split(batch: Batch, microbatches: int) -> dict[str, Any]:
    """A batch [n, ...] as microbatches [k, n/k, ...] by stride, so that every device keeps its own rows."""
    size = keys.size(batch)
    if size % microbatches:
        raise InputError(
            f"{microbatches} microbatches do not divide a batch of {size}",
            f"choose --microbatches that divides the batch, or a batch of {size - size % microbatches}",
        )
    return jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), dict(batch))
