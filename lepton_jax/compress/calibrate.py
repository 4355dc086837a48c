"""Which range of values a grid has to reach: all of it, all but outliers, or the one of least squared error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.compress.grids import Grid
from lepton_jax.errors import InputError

Rows = Float[Array, "rows n"]
Ends = Float[Array, "rows 1"]
Range = Callable[[Rows, Rows, Grid], tuple[Ends, Ends]]
"""(values, how often each occurs, grid) -> (low, high) of each row, low <= 0 <= high."""


def extremes(values: Rows, counts: Rows, grid: Grid) -> tuple[Ends, Ends]:
    """From the least to the largest value."""
    seen = jnp.where(counts > 0, values, 0)
    return jnp.min(seen, 1, keepdims=True, initial=0.0), jnp.max(seen, 1, keepdims=True, initial=0.0)


def percentile(percent: float = 99.9) -> Range:
    """So far from zero that `percent` of the values are within; the rest are cut off.

    Raises InputError for one not in (0, 100].
    """
    if not 0 < percent <= 100:
        raise InputError(f"the percentile {percent} is not in (0, 100]", "give one such as 99.9")

    def ranged(values: Rows, counts: Rows, grid: Grid) -> tuple[Ends, Ends]:
        sizes = jnp.abs(values)
        order = jnp.argsort(sizes, 1)
        within = jnp.cumsum(jnp.take_along_axis(counts, order, 1), 1) >= percent / 100 * jnp.sum(
            counts, 1, keepdims=True
        )
        # argmax finds the first True; rounding of the sums may leave none, and then nothing is cut off
        place = jnp.where(jnp.any(within, 1), jnp.argmax(within, 1), values.shape[1] - 1)
        reach = jnp.take_along_axis(jnp.take_along_axis(sizes, order, 1), place[:, None], 1)
        low, high = extremes(values, counts, grid)
        return jnp.maximum(low, -reach), jnp.minimum(high, reach)

    return ranged


def least_error(candidates: int = 80, least: float = 0.05) -> Range:
    """The part of the whole range, from `least` to 1 in equal steps, whose rounding has the least squared error.

    Nagel et al. 2021, section 3.1, https://arxiv.org/abs/2106.08295. Raises InputError for fewer than 1 candidate and
    for a `least` not in (0, 1].
    """
    if candidates < 1 or not 0 < least <= 1:
        raise InputError(f"there are no {candidates} parts from {least} to 1", "give 80 from 0.05, say")

    def ranged(values: Rows, counts: Rows, grid: Grid) -> tuple[Ends, Ends]:
        low, high = extremes(values, counts, grid)

        def error(part: Array) -> Ends:
            shown = grid.shown(values, *grid.fit(low * part, high * part))
            return jnp.sum(counts * jnp.square(shown - values), 1, keepdims=True)

        # from 1 down, so that of equal errors the whole range has it
        parts = jnp.linspace(1.0, least, candidates, dtype=jnp.float32)
        best = parts[jnp.argmin(jax.lax.map(error, parts), 0)]
        return low * best, high * best

    return ranged


RANGES: dict[str, Range] = {"extremes": extremes, "percentile": percentile(), "least error": least_error()}
