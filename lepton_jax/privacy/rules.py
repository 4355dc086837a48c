"""How far an example's gradient is scaled down: rules of clipping, as functions of its norms.

Whatever the rule, what one example adds to the sum has at most the norm `clip`; noise is measured by it.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lepton_jax import quantile as norms
from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Params, Stats

NAME = "privacy"  # the wing's entry in the stats

Factor = Callable[[Float[Array, "examples groups"], Float[Array, ""]], Float[Array, "examples groups"]]
"""(norms, the norm that a group may have) -> what the gradients are multiplied by."""


class Adaptation(NamedTuple):
    """How `adaptive` moves the norm: so that the share `quantile` of the examples is not clipped, at a rate of `rate`,
    by a count with noise of standard deviation `noise`."""

    quantile: float
    rate: float
    noise: float


@dataclass(frozen=True)
class Rule:
    """A rule of clipping.

    clip: the greatest norm of what one example adds to the sum; where it adapts, that of the first step.
    groups: the group of each leaf, in tree order, numbered from 0; each group has its own norm and factor.
    factor: of the norms of the groups and of the norm that each may have, clip / sqrt(groups).
    """

    clip: float
    groups: Callable[[Params], tuple[int, ...]]
    factor: Factor
    adaptation: Adaptation | None = None

    def __post_init__(self):
        if not 0 < self.clip < math.inf:
            raise InputError(f"the clipping norm {self.clip} is not positive and finite", "1.0 is usual")

    def current(self, stats: Stats) -> Float[Array, ""]:
        """The clipping norm of this step."""
        if self.adaptation is None:
            return jnp.float32(self.clip)
        if "clip" not in stats.get(NAME, {}):
            raise InputError("the stats do not hold the norm that adapts", "start them with privacy=plan.start")
        return stats[NAME]["clip"]

    def factors(
        self, params: Params, squares: Sequence[Float[Array, " examples"]], clip: Float[Array, ""]
    ) -> tuple[list[Float[Array, " examples"]], Bool[Array, " examples"]]:
        """(a factor for each leaf, whether the example is clipped), from each leaf's squared norms.

        A gradient that is not finite has no norm to be bounded by: its factor is 0.
        """
        groups = self.groups(params)
        count = max(groups) + 1
        sums = [sum(s for s, g in zip(squares, groups, strict=True) if g == group) for group in range(count)]
        norms = jnp.sqrt(jnp.stack(sums, axis=-1))
        bound = (clip / math.sqrt(count)).astype(norms.dtype)
        finite = jnp.all(jnp.isfinite(norms), axis=-1, keepdims=True)
        factors = jnp.where(finite, self.factor(jnp.where(finite, norms, 1), bound), 0)
        each = [factors[:, group] for group in range(count)]
        return [each[group] for group in groups], jnp.any((norms > bound) | ~finite, axis=-1)


def whole(params: Params) -> tuple[int, ...]:
    """All leaves as one group."""
    return (0,) * len(tree.paths(params))


def by_layer(params: Params) -> tuple[int, ...]:
    """A group for each layer: leaves whose paths differ in the last part only, as conv1/kernel and conv1/bias."""
    layers = [re.sub(r"/?[^/]*$", "", path) for path in tree.paths(params)]
    order = list(dict.fromkeys(layers))
    return tuple(order.index(layer) for layer in layers)


def shortened(norms: Float[Array, "examples groups"], bound: Float[Array, ""]) -> Float[Array, "examples groups"]:
    """To the bound where a norm is longer, and as it is where it is not."""
    return bound / jnp.maximum(norms, bound)


@dataclass(frozen=True)
class Normalized:
    """Every norm to bound * norm / (norm + gamma), just below the bound."""

    gamma: float

    def __call__(
        self, norms: Float[Array, "examples groups"], bound: Float[Array, ""]
    ) -> Float[Array, "examples groups"]:
        """What the gradients are multiplied by."""
        return bound / (norms + self.gamma)


def flat(clip: float) -> Rule:
    """The whole gradient of an example to a norm of at most `clip` (Abadi et al. 2016,
    https://arxiv.org/abs/1607.00133). Raises InputError for a norm that is not positive."""
    return Rule(clip, whole, shortened)


def per_layer(clip: float) -> Rule:
    """Each of L layers' gradients to a norm of at most clip / sqrt(L), so that all together have `clip` (McMahan et al.
    2018, https://arxiv.org/abs/1710.06963). Raises InputError for a norm that is not positive."""
    return Rule(clip, by_layer, shortened)


def automatic(clip: float = 1.0, gamma: float = 0.01) -> Rule:
    """AUTO-S: every gradient g as clip * g / (|g| + gamma), so that `clip` but scales the learning rate.

    Bu et al. 2022, https://arxiv.org/abs/2206.07136. Raises InputError for numbers that are not positive.
    """
    if not 0 < gamma < math.inf:
        raise InputError(f"gamma {gamma} is not positive", "0.01 is the paper's")
    return Rule(clip, whole, Normalized(gamma))


def adaptive(clip: float, quantile: float = 0.5, rate: float = 0.2, noise: float = 10.0) -> Rule:
    """Flat clipping to a norm that follows a quantile of the examples' norms, privately.

    Each step counts the examples that are not clipped, adds Gaussian noise of standard deviation `noise` to the count,
    and moves the norm by it, see `quantile.followed` (Andrew et al. 2021, https://arxiv.org/abs/1905.03871). `plan`
    counts that noise in. Raises InputError for a quantile outside (0, 1) and for numbers that are not positive.
    """
    norms.require(quantile, rate)
    if not 0 < noise < math.inf:
        raise InputError(f"a noise of {noise} on the count is not positive", "a twentieth of the batch is usual")
    return Rule(clip, whole, shortened, Adaptation(quantile, rate, noise))


def as_rule(clip: Any) -> Rule:
    """A rule as it is; a number as flat clipping to it."""
    return clip if isinstance(clip, Rule) else flat(clip)
