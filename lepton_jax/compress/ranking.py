"""Which places are kept, given a score for each: in a layer, over all layers, per output, N of M, in blocks.

The greatest scores are kept, exactly as many as are asked for; of equal ones the first in order of place. Scores that
are no numbers come last. All is done by comparing and counting, so that no bit depends on the mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lepton_jax.compress import densities
from lepton_jax.compress.masks import Masks, Weights
from lepton_jax.errors import InputError

Counting = Callable[[float, int], Any]
"""(final sparsity, size) -> how many of `size` places are kept now; whole, maybe traced."""

Ranking = Callable[[Weights, Counting], Masks]
"""(scores, counting) -> masks. A score is the higher the more the place is worth keeping."""


def whole(sparsity: float, size: int) -> int:
    """The `Counting` of the final sparsity."""
    return round((1 - sparsity) * size)


def top(scores: Any, kept: Any) -> Bool[Array, "..."]:
    """Where the `kept` greatest scores of the last axis are; kept: a whole number, maybe traced."""
    scores = jnp.asarray(scores)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    size = scores.shape[-1]
    least = jnp.take(jnp.sort(scores, -1), jnp.clip(size - kept, 0, size - 1), -1)[..., None]
    above, equal = scores > least, scores == least
    missing = kept - jnp.sum(above, -1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, -1) <= missing))


def within(layers: densities.Layers) -> Ranking:
    """Each layer by itself, as sparse as `layers` says."""

    def ranking(scores: Weights, counting: Counting) -> Masks:
        sparsities = layers({name: score.shape for name, score in scores.items()})
        counts = {name: counting(sparsities[name], score.size) for name, score in scores.items()}
        return {name: top(score.reshape(-1), counts[name]).reshape(score.shape) for name, score in scores.items()}

    return ranking


def across(sparsity: float) -> Ranking:
    """All layers in one ranking. Of equal scores, those of the layer whose name comes first."""
    densities.check(sparsity)

    def ranking(scores: Weights, counting: Counting) -> Masks:
        names = sorted(scores)
        flat = jnp.concatenate([scores[name].reshape(-1) for name in names])
        keep, masks, start = top(flat, counting(sparsity, flat.size)), {}, 0
        for name in names:
            masks[name] = keep[start : start + scores[name].size].reshape(scores[name].shape)
            start += scores[name].size
        return masks

    return ranking


def per_output(sparsity: float) -> Ranking:
    """Each output of each layer by itself: all that share the last index. As Wanda has it."""
    densities.check(sparsity)

    def ranking(scores: Weights, counting: Counting) -> Masks:
        columns = {name: score.reshape(-1, score.shape[-1]).T for name, score in scores.items()}
        tops = {name: top(rows, counting(sparsity, rows.shape[-1])) for name, rows in columns.items()}
        return {name: keep.T.reshape(scores[name].shape) for name, keep in tops.items()}

    return ranking


def n_of_m(n: int = 2, m: int = 4) -> Ranking:
    """n of any m neighbours along the input dimension, the last but one: 2:4 is what GPUs multiply faster.

    Mishra et al. 2021, https://arxiv.org/abs/2104.08378. The number kept does not follow a schedule, only when.
    Raises InputError unless 0 < n <= m, and for a weight whose inputs are not a multiple of m.
    """
    if not 0 < n <= m:
        raise InputError(f"{n} of {m} places cannot be kept", "give 0 < n <= m, such as 2 of 4")

    def mask(name: str, score: Array) -> Array:
        *outer, inputs, outputs = score.shape
        if inputs % m:
            problem = f"{name} has {inputs} inputs, which are not a multiple of {m}"
            raise InputError(problem, "leave it out by a pattern of names, or give another m")
        groups = jnp.swapaxes(score.reshape(*outer, inputs // m, m, outputs), -1, -2)
        return jnp.swapaxes(top(groups, n), -1, -2).reshape(score.shape)

    return lambda scores, counting: {name: mask(name, score) for name, score in scores.items()}


def blocks(shape: tuple[int, ...], ranking: Ranking) -> Ranking:
    """Whole blocks, ranked by the sum of their scores: (4, 4) of inputs and outputs, (3, 3, 1, 1) a filter's kernels.

    A shape of fewer dimensions than a weight is that of its last ones. `ranking` sees an array of blocks for a layer:
    it counts blocks, and densities that depend on shapes are those of the array of blocks. Raises InputError for a
    weight that blocks do not divide.
    """
    if not shape or min(shape) < 1:
        raise InputError(f"the block {shape} has no places", "give positive sizes, such as (4, 4)")

    def ranked(scores: Weights, counting: Counting) -> Masks:
        pooled = {name: _pooled(name, score, shape) for name, score in scores.items()}
        masks = ranking(pooled, counting)
        return {name: _repeated(masks[name], score.shape) for name, score in scores.items()}

    return ranked


def _pooled(name: str, score: Array, block: tuple[int, ...]) -> Array:
    full = (1,) * (score.ndim - len(block)) + block
    if len(full) > score.ndim or any(size % length for size, length in zip(score.shape, full, strict=True)):
        problem = f"blocks of {block} do not divide {name}, which has the shape {score.shape}"
        raise InputError(problem, "give another block, or leave the weight out by a pattern of names")
    split = [part for size, length in zip(score.shape, full, strict=True) for part in (size // length, length)]
    # one place after the other, since the order in which a sum is taken must not depend on the mesh
    parts = jnp.moveaxis(score.reshape(split), range(1, 2 * score.ndim, 2), range(score.ndim))
    parts = parts.reshape(-1, *parts.shape[score.ndim :])
    return jax.lax.scan(lambda total, part: (total + part, None), jnp.zeros_like(parts[0]), parts)[0]


def _repeated(mask: Array, shape: tuple[int, ...]) -> Array:
    for axis, (blocks, size) in enumerate(zip(mask.shape, shape, strict=True)):
        mask = jnp.repeat(mask, size // blocks, axis)
    return mask
