"""GradFn -> GradFn: noise once, on the sum; and how it goes over the steps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax import gradients, keys, tree
from lepton_jax.errors import InputError
from lepton_jax.noting import note
from lepton_jax.privacy.rules import NAME, Rule, as_rule
from lepton_jax.quantile import followed
from lepton_jax.types import Aux, Batch, GradFn, Key, Mean, Params, Stats


@dataclass(frozen=True)
class Noise:
    """Gaussian noise over the steps of a run.

    levels: noise multipliers, the noise's standard deviation over the norm of clipping; levels[i] holds from step
    starts[i] on. bands: the first coefficients of the Toeplitz matrix C whose inverse correlates the noise of
    neighboring steps; (1.0,) is independent noise.
    """

    levels: tuple[float, ...]
    starts: tuple[int, ...] = (0,)
    bands: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        for level in self.levels:
            if not 0 <= level < math.inf:
                raise InputError(f"the noise multiplier {level} is negative or not finite", "1.0 is usual")
        if len(self.levels) != len(self.starts) or self.starts[0] != 0 or any(a >= b for a, b in pairwise(self.starts)):
            raise InputError(f"levels of noise that start at {self.starts} do not go on from step 0", "raise the steps")
        if len(self.bands) > 1 and len(self.levels) > 1:
            problem = "noise that is correlated between steps cannot change its level"
            raise InputError(problem, "use banded noise or a schedule")

    def multiplier(self, step: Any) -> Float[Array, ""]:
        """The noise multiplier of a step, which may be traced."""
        level = jnp.searchsorted(jnp.asarray(self.starts), step, side="right") - 1
        return jnp.asarray(self.levels, jnp.float32)[level]

    def spans(self, steps: int) -> Iterator[tuple[float, int]]:
        """(noise multiplier, for how many steps) over a run of so many steps."""
        for level, start, end in zip(self.levels, self.starts, (*self.starts[1:], steps), strict=True):
            if start < min(end, steps):
                yield level, min(end, steps) - start

    def scaled(self, factor: float) -> "Noise":
        """The same course at another height."""
        return replace(self, levels=tuple(level * factor for level in self.levels))


def constant(multiplier: float) -> Noise:
    """The same noise at every step. Raises InputError for a negative multiplier."""
    return Noise((float(multiplier),))


def stepwise(multiplier: float, factor: float, every: int, steps: int) -> Noise:
    """Noise that is multiplied by `factor` every so many steps. Raises InputError for numbers that cannot be."""
    if every < 1 or steps < 1:
        raise InputError(f"noise that changes every {every} of {steps} steps never does", "give at least 1")
    starts = tuple(range(0, steps, every))
    return Noise(tuple(float(multiplier * factor**number) for number in range(len(starts))), starts)


def exponential(first: float, last: float, steps: int, levels: int = 10) -> Noise:
    """From one multiplier to another by equal factors, in so many levels (Yu et al. 2019, section IV,
    https://arxiv.org/abs/1904.02200). Raises InputError for multipliers that are not positive."""
    if not (first > 0 and last > 0):
        raise InputError(f"no factor leads from the noise multiplier {first} to {last}", "give two above 0")
    return _course(steps, levels, lambda share: first * (last / first) ** share)


def linear(first: float, last: float, steps: int, levels: int = 10) -> Noise:
    """From one multiplier to another by equal differences, in so many levels. Raises InputError for negative ones."""
    return _course(steps, levels, lambda share: first + (last - first) * share)


def _course(steps: int, levels: int, at: Callable[[float], float]) -> Noise:
    """Levels and not a curve: the accountant composes each level once, and what it counts is what is drawn."""
    levels = min(levels, steps)
    if levels < 1:
        raise InputError(f"{levels} levels of noise over {steps} steps are none", "give at least 1 of each")
    starts = tuple(steps * number // levels for number in range(levels))
    return Noise(tuple(float(at(number / max(levels - 1, 1))) for number in range(levels)), starts)


def banded(multiplier: float, bands: int) -> Noise:
    """Noise that later steps partly take back, so that sums over steps have less of it.

    The noise of all steps is C^-1 z, where C is the Toeplitz matrix of the first `bands` coefficients of
    (1 - x)^(-1/2), with columns of norm 1 (Kalinin and Lampert 2024, https://arxiv.org/abs/2405.13763), and z is
    independent with the multiplier's standard deviation. An example may take part once in `bands` steps, as `sampling`
    then sees to (Choquette-Choo et al. 2023, https://arxiv.org/abs/2306.08153). Raises InputError for no bands.
    """
    if bands < 1:
        raise InputError(f"{bands} bands of noise are none", "1 is independent noise, and 8 is a good start")
    coefficients = [1.0]
    for number in range(1, bands):
        coefficients.append(coefficients[-1] * (2 * number - 1) / (2 * number))
    norm = math.sqrt(sum(c * c for c in coefficients))
    return Noise((float(multiplier),), bands=tuple(c / norm for c in coefficients))


class Release(NamedTuple):
    """That a step releases a sum of gradients clipped so, with such noise, over `batch`."""

    noise: Noise
    clip: Rule
    batch: float


def started(params: Params, noise: Noise, clip: Rule) -> Stats:
    """What `noised` starts from, the entry "privacy" of the stats: the ledger of steps, the norm where it adapts, and
    the noise of the last steps where it is correlated."""
    own: dict[str, Any] = {"steps": jnp.int32(0)}
    if clip.adaptation is not None:
        own |= {"clip": jnp.float32(clip.clip), "balance": jnp.int32(0)}
    if len(noise.bands) > 1:
        last = len(noise.bands) - 1
        own["noise"] = jax.tree.map(lambda x: jnp.zeros((last, *x.shape), x.dtype), params)
    return own


def noised(grad_fn: GradFn, noise: Noise | float, clip: Rule | float, batch: float) -> GradFn:
    """The same sum with Gaussian noise, over the expected batch size, a constant (Abadi et al. 2016,
    https://arxiv.org/abs/1607.00133).

    The noise's standard deviation is the multiplier times the norm of `clip`, the rule that `grad_fn` clips by. Its key
    is the step's, set apart. `batch` is what the sum is divided by, whatever the number of examples: that one is
    private. Start the stats with `privacy=lambda params: started(params, noise, clip)`. Microbatches go inside,
    `noised(accumulate(clipped(loss, clip), k), ...)`: computing it in parts would add the noise to each. Raises
    InputError for that, and for a batch that is not positive.
    """
    noise, rule = noise if isinstance(noise, Noise) else constant(noise), as_rule(clip)
    if not 0 < batch < math.inf:
        raise InputError(f"an expected batch of {batch} cannot be divided by", "give the mean number of examples")
    if rule.adaptation is not None and len(noise.bands) > 1:
        problem = "a norm that adapts and noise that is correlated between steps have no common accounting"
        raise InputError(problem, "use one of them")

    def gradient(params: Any, stats: Any, rows: Batch, key: Any) -> tuple[Mean, Aux]:
        gradients.require_whole("noise")
        note(Release(noise, rule, batch))
        if NAME not in stats:
            raise InputError("the stats do not hold the ledger of privacy", "start them with privacy=plan.start")
        # inside goes what clipping moves; the rest is once a step, like the noise
        inner = {name: entry for name, entry in stats[NAME].items() if name in ("clip", "balance")}
        others = {name: entry for name, entry in stats.items() if name != NAME}
        mean, aux = grad_fn(params, {**others, NAME: inner} if inner else others, rows, key)
        own, draw = {**stats[NAME], **aux.stats.get(NAME, {})}, keys.named(key, "noise")
        if noise.levels != (0.0,):
            unit = drawn(draw, mean.total)
            if "noise" in own:
                unit, own["noise"] = correlated(unit, own["noise"], noise.bands)
            scale = noise.multiplier(own["steps"]) * rule.current(aux.stats)
            total = tree.add(mean.total, tree.scale(unit, scale))
        else:
            total = mean.total
        metrics = dict(aux.metrics)
        if rule.adaptation is not None:
            metrics["clip"] = Mean(own["clip"], jnp.ones_like(own["clip"]))
            own |= _adapted(own, rule, batch, keys.named(draw, "clip"))
        own["steps"] = own["steps"] + 1
        return Mean(total, jnp.float32(batch)), Aux({**aux.stats, NAME: own}, metrics)

    return gradient


def drawn(key: Key, like: Params) -> Params:
    """A standard normal number for every number, from its leaf's own key."""
    return tree.map_named(lambda name, x: jax.random.normal(keys.named(key, name), x.shape, x.dtype), like)


def correlated(unit: Params, last: Params, bands: tuple[float, ...]) -> tuple[Params, Params]:
    """(the next row of C^-1 z, that and the rows before), from the next row of z and the last rows, newest first."""

    def row(z: Any, before: Any) -> Any:
        rest = jnp.asarray(bands[1:], z.dtype)
        return (z - jnp.tensordot(rest, before, axes=1)) / jnp.asarray(bands[0], z.dtype)

    new = jax.tree.map(row, unit, last)
    return new, jax.tree.map(lambda y, before: jnp.concatenate([y[None], before[:-1]]), new, last)


def _adapted(own: Stats, rule: Rule, batch: float, key: Key) -> Stats:
    """The norm of the next step. An example adds +1/2 to the count where it is not clipped, and -1/2 where it is."""
    assert rule.adaptation is not None
    quantile, rate, noise = rule.adaptation
    count = own["balance"] / 2 + noise * jax.random.normal(key)
    clip = followed(own["clip"], count / batch + 0.5, quantile, rate)
    return {"clip": clip.astype(own["clip"].dtype), "balance": jnp.zeros_like(own["balance"])}
