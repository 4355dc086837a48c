"""RigL: sparse from the start, where small weights make room for those whose gradient is large."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys
from lepton_jax.compress import base, densities, pruning
from lepton_jax.compress.masks import Masks, Weights, masked
from lepton_jax.compress.ranking import top, whole, within
from lepton_jax.errors import InputError
from lepton_jax.types import Key


def rigl(
    layers: densities.Layers,
    key: Key,
    until: int,
    every: int = 100,
    fraction: float = 0.3,
    pattern: str = base.WEIGHTS,
) -> base.Compression:
    """Random masks, of which a part moves every so many steps: dropped by |w|, grown by the dense gradient.

    Evci et al. 2020, https://arxiv.org/abs/1911.11134. At step t < until the part is fraction / 2 (1 + cos(pi t /
    until)) of a layer's places; what was just dropped may be grown again, and then keeps its value.

    Put `masks.held` around the step: a grown weight then starts at zero and at rest, as in the paper, since hidden
    weights are zero and so are the optimizer's moments there. Without it, a grown weight goes on from the value that
    it was hidden with (at first the initial one), as momentum and decay have moved it since. Adam counts its steps for
    a weight as a whole, so that a grown place, whose second moment is small, takes large steps at first.

    Raises InputError where the fraction is not in [0, 1], or steps are not positive.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"the fraction {fraction} to drop is not in [0, 1]", "give one such as 0.3")
    if every < 1 or until < 1:
        raise InputError(f"moving every {every} steps until {until} is not possible", "give positive numbers of steps")

    def begin(weights: Weights) -> Masks:
        return within(layers)(pruning.scored(pruning.random(keys.named(key, "rigl")), weights, None), whole)

    def move(weights: Weights, masks: Masks, gradients: Weights, step: Any) -> Masks:
        sparsities = layers({name: weight.shape for name, weight in weights.items()})

        def anew() -> Masks:
            moved = {}
            for name, weight in weights.items():
                count = whole(sparsities[name], weight.size)
                parts = [parted(count, fraction, number * every, until) for number in range(-(-until // every))]
                moved[name] = exchanged(weight, masks[name], gradients[name], count, jnp.asarray(parts)[step // every])
            return moved

        return jax.lax.cond((step % every == 0) & (step > 0) & (step < until), anew, lambda: masks)

    return masked(begin, move, pattern)


def parted(count: int, fraction: float, step: int, until: int) -> int:
    """How many of `count` places move at a step: the cosine's part, rounded down."""
    return int(fraction / 2 * (1 + math.cos(math.pi * step / until)) * count)


def exchanged(weight: Any, mask: Any, gradient: Any, count: int, moving: Any) -> Array:
    """The mask with the `moving` smallest of its `count` weights dropped, and as many places grown by |gradient|."""
    stays = top(jnp.where(mask, jnp.abs(weight), -1).reshape(-1), count - moving)
    grown = top(jnp.where(stays, -1, jnp.abs(gradient).reshape(-1)), moving)
    return (stays | grown).reshape(mask.shape)
