"""Transforms between image sizes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from lepton_jax.augment import geometry, matrices
from lepton_jax.augment.base import EXACT, Shape, Transform, deterministic
from lepton_jax.augment.image import Canvas, Image, Output, product
from lepton_jax.augment.resampling import KERNELS, resized, resized_crop
from lepton_jax.augment.resampling import resize as resize_image
from lepton_jax.augment.warp import Map, projection
from lepton_jax.errors import InputError, named
from lepton_jax.types import Key

TRIES = 10
Draws = Float[Array, " tries"]
Sides = Int[Array, " tries"]


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: ArrayLike
    left: ArrayLike
    height: ArrayLike
    width: ArrayLike


def resize(size: geometry.Size, interpolation: str = "bilinear") -> Transform:
    """`functional.resize` as a transform."""
    merges = _merges(interpolation)

    def act(image: Image) -> Output:
        return resize_image(image, size, interpolation)

    def maps(canvas: Canvas) -> Sequence[Map]:
        return [_map(Window(0, 0, *canvas), resized(canvas, size))]

    return deterministic(act, maps, merges)


def center_crop(size: geometry.Size) -> Transform:
    """`functional.center_crop` as a transform."""
    height, width = geometry.height_and_width(size)

    def act(image: Image) -> Output:
        return geometry.center_crop(image, size)

    def maps(canvas: Canvas) -> Sequence[Map]:
        left, top = (geometry.margin(given, side) for given, side in ((canvas[1], width), (canvas[0], height)))
        return [projection(matrices.shift(left, top), (height, width))]

    return deterministic(act, maps, EXACT)


def random_resized_crop(
    size: geometry.Size,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Transform:
    """A window of drawn area and shape at a drawn place, resized (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).

    size: a square's side or (height, width). scale: the area as a part of the image's, drawn uniformly. ratio: width
    to height, drawn uniformly in its logarithm. The first of ten draws that fits into the image counts, and else the
    largest middle window whose ratio is in range, as in torchvision. Parameters: a Window. Raises InputError.
    """
    target = geometry.height_and_width(size)
    merges = _merges(interpolation)
    for name, (low, high), most in (("scale", scale, 1), ("ratio", ratio, math.inf)):
        if not 0 < low <= high <= most or math.isinf(high):
            raise InputError(
                f"the {name} ({low}, {high}) of a resized crop is not a range in (0, {most}]", "give (low, high)"
            )

    def sample(key: Key, shape: Shape) -> Window:
        sides, place = jax.random.split(key)
        area, slant = jax.random.uniform(sides, (2, TRIES), jnp.float32)
        height, width, fits = _tries(shape, scale, ratio, area, slant)
        tried = jnp.stack([height, width], axis=1)[jnp.argmax(fits)]
        spare = jnp.array(shape[:2], jnp.int32) - tried
        corner = jax.random.randint(place, (2,), 0, jnp.maximum(spare, 0) + 1, jnp.int32)
        most = jnp.array(_largest(shape, ratio), jnp.int32)
        middle = (jnp.array(shape[:2], jnp.int32) - most) // 2
        (height, width), (top, left) = (
            jnp.where(fits.any(), drawn, whole) for drawn, whole in ((tried, most), (corner, middle))
        )
        return Window(top, left, height, width)

    def act(window: Window, image: Image) -> Output:
        return resized_crop(image, *window, target, interpolation)

    def maps(window: Window, canvas: Canvas) -> Sequence[Map]:
        return [_map(window, target)]

    return Transform(sample, act, maps, merges)


def _tries(
    shape: Shape, scale: Sequence[float], ratio: Sequence[float], area: Draws, slant: Draws
) -> tuple[Sides, Sides, Bool[Array, " tries"]]:
    """The heights and widths that uniform draws stand for, and whether they fit into the image."""
    pixels = shape[0] * shape[1] * (scale[0] + product(scale[1] - scale[0], area))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    wide = jnp.exp(low + product(high - low, slant))
    height, width = (jnp.round(jnp.sqrt(square)).astype(jnp.int32) for square in (pixels / wide, product(pixels, wide)))
    return height, width, (height > 0) & (height <= shape[0]) & (width > 0) & (width <= shape[1])


def _largest(shape: Shape, ratio: Sequence[float]) -> Canvas:
    """The (height, width) of the largest window whose ratio is in range."""
    height, width = shape[:2]
    if width / height < ratio[0]:
        return round(width / ratio[0]), width
    if width / height > ratio[1]:
        return height, round(height * ratio[1])
    return height, width


def _map(window: Window, size: Canvas) -> Map:
    matrix = matrices.window(window.top, window.left, window.height, window.width, size)
    return projection(matrix, size, "edge")  # nothing comes from outside of the window


def _merges(interpolation: str) -> str | None:
    """The interpolation of a resize that is a reading of single places; antialiased ones are not. Raises InputError."""
    return "nearest" if named("interpolation", interpolation, KERNELS) is None else None
