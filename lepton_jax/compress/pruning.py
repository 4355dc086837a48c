"""Pruning: what a place is worth, when masks are computed anew, and the compression that both make.

    compression = prune(magnitude, ranking.within(densities.uniform(0.9)), gradual(1000, 9000, 100))

A weight that is hidden keeps its trained value, gets no gradient, and comes back if a later mask wants it, as in Zhu
and Gupta's own program. Under `masks.held` it is zero, so that by magnitude it does not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax import keys
from lepton_jax.compress import base
from lepton_jax.compress.masks import Masks, Weights, masked, named
from lepton_jax.compress.ranking import Counting, Ranking, whole
from lepton_jax.errors import InputError
from lepton_jax.types import Key, Params

Score = Callable[[str, Any, Any], Array]
"""(weight's name, weight, gradient or None) -> scores of the weight's shape; the greatest are kept."""


def magnitude(name: str, weight: Any, gradient: Any) -> Array:
    """|w| (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""
    return jnp.abs(weight)


def saliency(name: str, weight: Any, gradient: Any) -> Array:
    """|w g|, what the loss would move by to first order (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771;
    as SNIP before training, Lee et al. 2019, https://arxiv.org/abs/1810.02340). Raises InputError without a gradient.
    """
    if gradient is None:
        raise InputError("saliency needs a gradient", "give the mean gradient of the loss")
    return jnp.abs(weight * gradient)


def random(key: Key) -> Score:
    """A uniform draw for each place, from the key and the weight's name alone: the same bits on any mesh."""
    return lambda name, weight, gradient: jax.random.uniform(keys.named(key, name), weight.shape)


class Schedule(NamedTuple):
    """When masks are computed anew: at steps begin, begin + every ..., one for each of `shares`.

    shares: the part of the final sparsity that is reached at each.
    """

    begin: int
    every: int
    shares: tuple[float, ...]

    def number(self, step: Any) -> Any:
        """Which of the shares it is at a step."""
        return (step - self.begin) // self.every

    def is_due(self, step: Any) -> Any:
        """Whether masks are computed anew at a step."""
        number = self.number(step)
        return ((step - self.begin) % self.every == 0) & (number >= 0) & (number < len(self.shares))

    def counting(self, step: Any) -> Counting:
        """How many places are kept at a step that is due, counted on the host for each share: exact for any size."""
        return lambda sparsity, size: jnp.asarray([whole(share * sparsity, size) for share in self.shares])[
            self.number(step)
        ]


def once(step: int = 0) -> Schedule:
    """All at once, after the update of that number: masks show from step + 1 on."""
    if step < 0:
        raise InputError(f"the step {step} is negative", "count steps from 0")
    return Schedule(step, 1, (1.0,))


def gradual(begin: int, end: int, every: int = 100, first: float = 0.0) -> Schedule:
    """The final sparsity s approached by a cubic: s_t = s + (s_0 - s) (1 - (t - begin) / (end - begin))^3.

    Zhu and Gupta 2017, https://arxiv.org/abs/1710.01878. t goes from begin to end, every so many steps. first: s_0 / s.
    Raises InputError unless 0 <= begin < end, `every` divides the time between and first is in [0, 1].
    """
    if not 0 <= begin < end or every < 1 or (end - begin) % every:
        problem = f"pruning from step {begin} to {end} cannot go by steps of {every}"
        raise InputError(problem, "give 0 <= begin < end, and a number of steps that divides end - begin")
    if not 0 <= first <= 1:
        raise InputError(f"first = {first} is no share of the final sparsity", "give first between 0 and 1")
    times = (end - begin) // every
    return Schedule(begin, every, tuple(1 + (first - 1) * (1 - t / times) ** 3 for t in range(times + 1)))


def prune(
    score: Score, ranking: Ranking, schedule: Schedule | None = None, pattern: str = base.WEIGHTS
) -> base.Compression:
    """A `Compression` that hides the places of the lowest scores, at the times of the schedule (default: `once()`).

    Before the first of them nothing is hidden. The gradient is that of the batch at hand. Raises InputError where the
    pattern matches no weight, and what the ranking raises.
    """
    times = schedule or once()

    def begin(weights: Weights) -> Masks:
        jax.eval_shape(lambda: ranking(weights, whole))  # raises now, rather than in the first step
        return {name: jnp.ones(weight.shape, bool) for name, weight in weights.items()}

    def move(weights: Weights, masks: Masks, gradients: Weights, step: Any) -> Masks:
        def anew() -> Masks:
            return ranking(scored(score, weights, gradients), times.counting(step))

        return jax.lax.cond(times.is_due(step), anew, lambda: masks)

    return masked(begin, move, pattern)


def pruned(
    params: Params, score: Score, ranking: Ranking, gradient: Params | None = None, pattern: str = base.WEIGHTS
) -> Masks:
    """The masks for these parameters now, for `masks.fixed`: a trained model before it is tuned, or SNIP's start.

    Raises InputError where the pattern matches no weight, and what the score and the ranking raise.
    """
    names = base.chosen(pattern, params)
    gradients = None if gradient is None else named(gradient, names)
    return ranking(scored(score, named(params, names), gradients), whole)


def scored(score: Score, weights: Weights, gradients: Weights | None) -> Weights:
    """The score of each weight."""
    return {name: score(name, w, None if gradients is None else gradients[name]) for name, w in weights.items()}
