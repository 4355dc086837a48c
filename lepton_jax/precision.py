"""Precision: parameters stay in float32, computation happens in another type (Micikevicius et al. 2017,
https://arxiv.org/abs/1710.03740)."""

from typing import Any

import jax.numpy as jnp

from lepton_jax import tree
from lepton_jax.gradients import plain
from lepton_jax.losses import through
from lepton_jax.types import Aux, Batch, GradFn, Loss, Mean, Stats


def computed(loss: Loss, dtype: Any) -> Loss:
    """The same loss with parameters and floating inputs seen in `dtype`; gradients return in the parameters' own.

    Losses and batch statistics stay in float32.
    """

    def cast_loss(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        return loss(params, stats, {**batch, "input": tree.cast(batch["input"], dtype)}, key)

    return through(cast_loss, lambda params: tree.cast(params, dtype))


def loss_scale(initial: float = 2.0**15) -> Stats:
    """What `scaled` starts from, the entry "loss_scale" of the stats."""
    return {"scale": jnp.float32(initial), "good_steps": jnp.int32(0)}


def scaled(loss: Loss, growth_interval: int = 2000) -> GradFn:
    """Loss -> GradFn like `plain`, with dynamic loss scaling for float16's narrow range.

    The loss is multiplied by `stats["loss_scale"]["scale"]` and its gradient divided by it. A gradient with a NaN
    or infinity halves the scale and counts as no examples (weight 0), so it moves nothing; `growth_interval`
    finite gradients in a row double the scale. Start the stats with `loss_scale=loss_scale()`.
    """

    def gradient(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        scale = stats["loss_scale"]["scale"]

        def larger(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
            mean, aux = loss(params, stats, batch, key)
            return Mean(mean.total * scale, mean.weight), aux

        mean, aux = plain(larger)(params, stats, batch, key)
        mean, metrics = Mean(tree.scale(mean.total, 1 / scale), mean.weight), dict(aux.metrics)
        metrics["loss"] = Mean(metrics["loss"].total / scale, metrics["loss"].weight)
        finite = tree.is_finite(mean.total)
        nothing = tree.zeros((mean, metrics))
        mean, metrics = tree.where(finite, (mean, metrics), nothing)
        moved = tree.where(finite, aux.stats, stats)
        moved["loss_scale"] = _adjusted(stats["loss_scale"], finite, growth_interval)
        return mean, Aux(moved, {**metrics, "loss_scale": Mean(scale, jnp.ones_like(scale))})

    return gradient


def differentiated(loss: Loss, precision: str) -> tuple[GradFn, Stats]:
    """The gradient of a loss computed in `precision`, and the stats that it starts from: float16 needs scaling."""
    return (scaled(loss), {"loss_scale": loss_scale()}) if precision == "float16" else (plain(loss), {})


def _adjusted(state: Any, finite: Any, growth_interval: int) -> Any:
    steps = jnp.where(finite, state["good_steps"] + 1, 0)
    grows = steps >= growth_interval
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5)
    # between 1 and 2^24: below 1 it no longer helps, above it float16 always overflows
    scale = jnp.clip(state["scale"] * factor, 1.0, 2.0**24).astype(state["scale"].dtype)
    return {"scale": scale, "good_steps": jnp.where(grows, 0, steps).astype(state["good_steps"].dtype)}
