"""Elastic deformation: every pixel drawn a little aside, its neighbours with it."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lepton_jax.augment.base import Shape, Transform, warping
from lepton_jax.augment.image import Canvas, Fill, Image, product
from lepton_jax.augment.warp import Coordinates, Interpolation, Map, Places, bilinear, check_interpolation, warp
from lepton_jax.errors import InputError
from lepton_jax.types import Key

Displacement = Float[Array, "height width 2"]  # along x and y, in pixels
Plane = Float[Array, "height width"]
ROUNDS = 10  # of looking for the place that a displacement brings to a given one; each gains about a digit


def elastic(
    image: Image, displacement: Displacement, interpolation: Interpolation = "bilinear", fill: Fill = 0
) -> Image:
    """The image whose pixel at a place is the given image's at the place + displacement.

    displacement: along x and y, in pixels; torchvision's numbers times half the width and half the height. Outside
    of the image lies `fill`. Raises InputError.
    """
    height, width, _ = image.shape
    return warp(image, [flow(displacement, (height, width), fill)], interpolation)


def random_elastic(
    alpha: float | Sequence[float] = 50.0,
    sigma: float | Sequence[float] = 5.0,
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0,
) -> Transform:
    """A smooth random deformation, by torchvision's numbers (Simard et al. 2003, https://doi.org/10.1109/ICDAR.2003.1227801).

    Per pixel and direction, uniform noise in [-1, 1] is smoothed by a Gaussian of `sigma` pixels and scaled by half
    of `alpha`, in pixels; a pair is for x and y. Parameters: the displacement. Raises InputError here for bad
    arguments, and at the first image if that is smaller than the Gaussian's reach of 4 sigma.
    """
    check_interpolation(interpolation)
    strengths, sigmas = _pair("alpha", alpha), _pair("sigma", sigma)

    def sample(key: Key, shape: Shape) -> Displacement:
        height, width = shape[:2]
        noise = 2 * jax.random.uniform(key, (2, height, width), jnp.float32) - 1
        planes = [product(half / 2, smooth(plane, sigmas)) for half, plane in zip(strengths, noise, strict=True)]
        return jnp.stack(planes, axis=-1)

    return warping(sample, lambda displacement, size: flow(displacement, size, fill), interpolation)


def flow(displacement: Displacement, size: Canvas, fill: Fill = 0) -> Map:
    """The map that pulls from the place + displacement. Its inverse is found by iteration."""
    height, width = size

    def at(x: Coordinates, y: Coordinates) -> Places:
        x, y = jnp.broadcast_arrays(jnp.clip(x, 0.5, width - 0.5), jnp.clip(y, 0.5, height - 0.5))
        moved = bilinear(displacement, x, y)
        return moved[..., 0], moved[..., 1]

    def pull(x: Coordinates, y: Coordinates) -> Places:
        aside, down = at(x, y)
        return x + aside, y + down

    def push(x: Coordinates, y: Coordinates) -> Places:
        def closer(_: ArrayLike, guess: Places) -> Places:
            aside, down = at(*guess)
            return x - aside, y - down

        return jax.lax.fori_loop(0, ROUNDS, closer, (x, y))

    return Map(pull, push, size, fill=fill)


def smooth(plane: Plane, sigmas: Sequence[float]) -> Plane:
    """A plane blurred by a Gaussian of (along x, along y) pixels that reaches to 4 sigma, mirrored at its edges."""
    return _smooth_rows(_smooth_rows(plane.T, sigmas[0]).T, sigmas[1])


def _smooth_rows(plane: Plane, sigma: float) -> Plane:
    if sigma == 0:
        return plane
    rows = plane.shape[0]
    reach = (int(8 * sigma + 1) | 1) // 2
    if reach >= rows:
        raise InputError(
            f"a deformation of sigma {sigma} reaches over {reach} pixels, and the image has a side of {rows}",
            f"use a sigma below {rows / 4:g}",
        )
    weights = [math.exp(-((step / sigma) ** 2) / 2) for step in range(-reach, reach + 1)]
    kernel = jnp.array(weights, plane.dtype) / math.fsum(weights)
    wide = jnp.pad(plane, ((reach, reach), (0, 0)), "reflect")

    def add(total: Plane, tap: tuple[Array, Array]) -> tuple[Plane, None]:
        step, weight = tap
        return total + product(weight, jax.lax.dynamic_slice_in_dim(wide, step, rows)), None

    return jax.lax.scan(add, jnp.zeros_like(plane), (jnp.arange(2 * reach + 1), kernel))[0]


def _pair(name: str, given: float | Sequence[float]) -> tuple[float, float]:
    x, y = (given, given) if isinstance(given, int | float) else given
    if not (0 <= x < math.inf and 0 <= y < math.inf):
        raise InputError(f"the {name} {given} of an elastic deformation is not 0 or more", "give one number, or (x, y)")
    return float(x), float(y)
