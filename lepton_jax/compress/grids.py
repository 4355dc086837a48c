"""The levels that values are rounded to: whole numbers around zero or around a zero point, and 8-bit floats."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lepton_jax.errors import InputError


class Grid(NamedTuple):
    """Levels from `low` to `high`; level q stands for (q - zero) * scale.

    bits: what a value takes where it is kept, 4, 8 or 16. dtype: of the levels. nearest: a number of steps to the
    nearest level. fit: (low, high) of the values, low <= 0 <= high -> (scale, zero or None), so that they fit.
    """

    bits: int
    low: float
    high: float
    dtype: Any
    nearest: Callable[[Array], Array]
    fit: Callable[[Array, Array], tuple[Array, Array | None]]

    def levels(self, values: Array, scale: Array, zero: Array | None = None) -> Array:
        """The level nearest to each value, float32; `scale` and `zero` broadcast to the values."""
        # XLA divides by a scalar as it likes, by its inverse or not; so that all programs agree, here by its inverse
        steps = values.astype(jnp.float32) * (1 / scale)
        steps = steps if zero is None else steps + zero
        return self.nearest(jnp.clip(steps, self.low, self.high))

    def shown(self, values: Array, scale: Array, zero: Array | None = None) -> Array:
        """What the nearest levels stand for, float32."""
        levels = self.levels(values, scale, zero)
        return (levels if zero is None else levels - zero) * scale


def symmetric(bits: int = 8) -> Grid:
    """2^bits - 1 whole numbers around zero: -127 to 127 for 8 bits. Raises InputError for bits not from 2 to 16."""
    _require_bits(bits)
    high = 2.0 ** (bits - 1) - 1

    def fit(low: Array, high_: Array) -> tuple[Array, None]:
        return steps(jnp.maximum(-low, high_) * (1 / high)), None

    return _whole(bits, -high, high, fit)


def affine(bits: int = 8) -> Grid:
    """2^bits whole numbers of which one, the zero point, stands for exactly zero.

    For values of which more are on one side. Raises InputError for bits not from 2 to 16.
    """
    _require_bits(bits)
    least, most = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1

    def fit(low: Array, high: Array) -> tuple[Array, Array]:
        scale = steps((high - low) * (1 / (most - least)))
        return scale, jnp.clip(jnp.round(least - low * (1 / scale)), least, most)

    return _whole(bits, least, most, fit)


def float8() -> Grid:
    """Floats of 4 bits exponent and 3 bits mantissa, up to 448 (Micikevicius et al. 2022, e4m3).

    https://arxiv.org/abs/2209.05433.
    """
    high = 448.0

    def fit(low: Array, high_: Array) -> tuple[Array, None]:
        return steps(jnp.maximum(-low, high_) * (1 / high)), None

    return Grid(8, -high, high, jnp.float8_e4m3fn, _nearest_float8, fit)


def grid(bits: "int | str | Grid") -> Grid:
    """A grid by its bits, symmetric, or "fp8"; a grid is itself. Raises InputError for anything else."""
    if isinstance(bits, Grid):
        return bits
    if bits == "fp8":
        return float8()
    if isinstance(bits, str):
        raise InputError(f"there is no grid {bits!r}", "give a number of bits, 'fp8', or a grid such as affine(8)")
    return symmetric(bits)


def steps(size: Array) -> Array:
    """Sizes of steps: float32 rounded up to 16 significant bits, 1 in the place of zero.

    Then a level of up to 8 bits times the step is exact, and the levels can be read off the values again.
    """
    size = size.astype(jnp.float32)
    # below this products of steps would not be normal numbers
    return jnp.where(size > 1e-30, short(size, 0xFF), jnp.float32(1))


def short(size: Array, added: int = 0x7F) -> Array:
    """Positive float32 numbers of 16 significant bits, the nearest, or the next above where 0xFF is added."""
    return jax.lax.bitcast_convert_type((jax.lax.bitcast_convert_type(size, jnp.int32) + added) & ~0xFF, jnp.float32)


def _nearest_float8(values: Array) -> Array:
    """To the nearest of three mantissa bits, ties to even; by arithmetic, as casts may round twice."""
    exponent = jnp.maximum(jnp.frexp(values)[1] - 1, -6)
    unit = jnp.ldexp(jnp.ones_like(values), exponent - 3)
    return jnp.round(values / unit) * unit


def _whole(bits: int, low: float, high: float, fit: Callable[[Array, Array], Any]) -> Grid:
    """A grid of whole numbers, kept in the smallest size that holds them."""
    kept = next(size for size in (4, 8, 16) if bits <= size)
    return Grid(kept, low, high, jnp.int16 if kept == 16 else jnp.int8, jnp.round, fit)


def _require_bits(bits: int) -> None:
    if bits not in range(2, 17):
        raise InputError(f"there are no whole numbers of {bits} bits to quantize to", "give 2 to 16 bits")
