"""Transforms that draw how to move an image, and move it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lepton_jax.augment import geometry
from lepton_jax.augment.base import Image, Shape, Transform
from lepton_jax.augment.color import product
from lepton_jax.augment.geometry import Fill, Interpolation, Mode, Padding, Size
from lepton_jax.errors import InputError
from lepton_jax.types import Key


class Corner(NamedTuple):
    """Where a crop begins, in pixels of the padded image."""

    top: Int[Array, ""]
    left: Int[Array, ""]


def random_crop(size: Size, padding: Padding = 0, mode: Mode = "constant", fill: Fill = 0) -> Transform:
    """A window of `size` at a uniformly drawn place of the padded image. Parameters: a Corner.

    size: a square's side or (height, width). padding, mode, fill: as for `functional.pad`. Raises InputError
    here for bad arguments, and at the first image if the crop is larger than the padded image.
    """
    height, width = geometry.height_and_width(size)
    left, top, right, bottom = geometry.sides(padding)
    geometry.check_mode(mode)

    def sample(key: Key, shape: Shape) -> Corner:
        padded = (shape[0] + top + bottom, shape[1] + left + right)
        geometry.check_window(padded, (height, width))
        places = jnp.array([padded[0] - height + 1, padded[1] - width + 1], jnp.int32)
        corner = jax.random.randint(key, (2,), 0, places, jnp.int32)
        return Corner(corner[0], corner[1])

    def apply(corner: Corner, image: Image) -> Array:
        padded = geometry.pad(image, (left, top, right, bottom), mode, fill)
        return geometry.crop(padded, corner.top, corner.left, height, width)

    return Transform(sample, apply)


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Left and right exchanged with probability `p`. Parameters: whether. Raises InputError."""
    return _random_flip(geometry.horizontal_flip, p)


def random_vertical_flip(p: float = 0.5) -> Transform:
    """Top and bottom exchanged with probability `p`. Parameters: whether. Raises InputError."""
    return _random_flip(geometry.vertical_flip, p)


def _random_flip(flip: Callable[[Image], Image], p: float) -> Transform:
    if not 0 <= p <= 1:
        raise InputError(f"a flip with probability {p} is outside [0, 1]", "give p from 0 (never) to 1 (always)")

    def sample(key: Key, shape: Shape) -> Bool[Array, ""]:
        return jax.random.uniform(key, (), jnp.float32) < p

    def apply(flipped: Bool[Array, ""], image: Image) -> Image:
        return jnp.where(flipped, flip(image), image)

    return Transform(sample, apply)


def random_rotation(
    degrees: float | Sequence[float], interpolation: Interpolation = "nearest", fill: Fill = 0
) -> Transform:
    """A turn about the center by an angle drawn uniformly. Parameters: the angle in degrees, counter-clockwise.

    degrees: d for [-d, d], or (low, high). interpolation, fill: as for `functional.rotate`. Raises InputError.
    """
    low, high = (-degrees, degrees) if isinstance(degrees, int | float) else degrees
    if not -math.inf < low <= high < math.inf:
        raise InputError(f"the degrees {degrees} leave no angle to draw", "give d >= 0 for [-d, d], or (low, high)")
    geometry.check_interpolation(interpolation)

    def sample(key: Key, shape: Shape) -> Float[Array, ""]:
        return low + product(high - low, jax.random.uniform(key, (), jnp.float32))

    def apply(angle: Float[Array, ""], image: Image) -> Image:
        return geometry.rotate(image, angle, interpolation, fill)

    return Transform(sample, apply)
