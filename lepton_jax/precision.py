"""Precision: parameters stay in float32, computation happens in another type (Micikevicius et al. 2017,
https://arxiv.org/abs/1710.03740)."""

from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax import tree
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
    """The state of dynamic loss scaling, an entry of the TrainState's stats."""
    return {"loss_scale": {"scale": jnp.float32(initial), "good_steps": jnp.int32(0)}}


def scaled(make_grad_fn: Any, growth_interval: int = 2000) -> Any:
    """Loss -> GradFn with dynamic loss scaling around another Loss -> GradFn, for float16's narrow range.

    The loss is multiplied by `stats["loss_scale"]["scale"]` and its gradient divided by it. A gradient with a NaN
    or infinity halves the scale and counts as no examples (weight 0), which makes no update; `growth_interval`
    finite gradients in a row double it. Start the stats with `loss_scale()`.
    """

    def scaled_grad_fn(loss: Loss) -> GradFn:
        return lambda params, stats, batch, key: _scaled(
            make_grad_fn, growth_interval, loss, params, stats, batch, key
        )

    return scaled_grad_fn


def _scaled(make: Any, interval: int, loss: Loss, params: Any, stats: Any, batch: Batch, key: Any) -> Any:
    state = stats["loss_scale"]

    def larger(params: Any, stats: Any, batch: Batch, key: Any) -> tuple[Mean, Aux]:
        mean, aux = loss(params, stats, batch, key)
        return Mean(mean.total * state["scale"], mean.weight), aux

    (total, weight), aux = make(larger)(params, stats, batch, key)
    return total, weight, aux
