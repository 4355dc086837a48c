"""The matrices that pull: from places (x, y, 1) of the output to places of the input, in pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lepton_jax.augment.image import Canvas, product
from lepton_jax.augment.warp import inverse

Pair = Sequence[ArrayLike] | Array  # along x and along y
Affine = Float[Array, "2 3"]
Corners = Float[Array, "4 2"]  # (x, y) of the upper left, upper right, lower right and lower left corner


def matrix(rows: Sequence[Sequence[ArrayLike]]) -> Float[Array, "_ _"]:
    """Numbers, traced or not, as a matrix in at least float32."""
    kind = jnp.result_type(jnp.float32, *(number for row in rows for number in row))
    return jnp.stack([jnp.stack([jnp.asarray(number, kind) for number in row]) for row in rows])


def shift(x: ArrayLike, y: ArrayLike) -> Affine:
    """The output begins at the place (x, y) of the input."""
    return matrix([[1, 0, x], [0, 1, y]])


def mirror(size: Canvas, horizontally: ArrayLike, vertically: ArrayLike) -> Affine:
    """Left and right, top and bottom exchanged, where so."""
    height, width = size
    sign_x, sign_y = jnp.where(horizontally, -1.0, 1.0), jnp.where(vertically, -1.0, 1.0)
    return matrix([[sign_x, 0, jnp.where(horizontally, width, 0)], [0, sign_y, jnp.where(vertically, height, 0)]])


def window(top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike, size: Canvas) -> Affine:
    """The window of `height` x `width` pixels at (top, left) of the input fills an output of `size`."""
    across, down = (jnp.asarray(side, jnp.float32) for side in (width, height))
    return matrix([[across / size[1], 0, left], [0, down / size[0], top]])


def affine(
    angle: ArrayLike,
    translate: Pair,
    scale: ArrayLike,
    shear: Pair,
    center: Pair,
) -> Affine:
    """torchvision's affine map: shear, turn clockwise and scale about the center, then translate; degrees, pixels."""
    turn, shear_x, shear_y = (jnp.deg2rad(jnp.asarray(a, jnp.float32)) for a in (angle, shear[0], shear[1]))
    tan_x = jnp.tan(shear_x)
    a = jnp.cos(turn - shear_y) / jnp.cos(shear_y)
    c = jnp.sin(turn - shear_y) / jnp.cos(shear_y)
    b = product(a, tan_x) + jnp.sin(turn)
    d = jnp.cos(turn) - product(c, tan_x)
    return about(matrix([[d / scale, b / scale], [-c / scale, a / scale]]), translate, center)


def about(linear: Float[Array, "2 2"], translate: Pair, center: Pair) -> Affine:
    """The affine map with the given linear part that takes `center` + `translate` to `center`."""
    x, y = (jnp.asarray(c + t, linear.dtype) for c, t in zip(center, translate, strict=True))
    rest = [center[i] - (product(row[0], x) + product(row[1], y)) for i, row in enumerate(linear)]
    return matrix([[*row, offset] for row, offset in zip(linear, rest, strict=True)])


def rotation(angle: ArrayLike, center: Pair) -> Affine:
    """A turn counter-clockwise by `angle` degrees about `center`."""
    turn = jnp.deg2rad(jnp.asarray(angle, jnp.float32))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    return about(matrix([[cos, -sin], [sin, cos]]), (0, 0), center)


def stepped(matrix: Affine) -> Affine:
    """An affine map in whole steps of 2^-16 pixels, as Pillow's for the nearest pixel."""
    linear = jnp.round(matrix[:, :2] * 65536) / 65536
    half = (linear[:, 0] + linear[:, 1]) / 2
    first = jnp.round((matrix[:, 2] + (matrix[:, 0] + matrix[:, 1]) / 2) * 65536) / 65536
    return jnp.concatenate([linear, (first - half)[:, None]], axis=1)


def perspective(starts: Corners, ends: Corners) -> Float[Array, "3 3"]:
    """The projection after which the places `starts` lie at `ends`."""
    pulled = _multiply(_square_to(starts), inverse(_square_to(ends)))
    return pulled / pulled[2, 2]  # a depth of 1 at the place (0, 0), and above 0 wherever the image is seen


def _square_to(corners: Corners) -> Float[Array, "3 3"]:
    """The projection of the unit square onto four corners.

    Heckbert 1989, https://www2.eecs.berkeley.edu/Pubs/TechRpts/1989/5504.html
    """
    first, second, third, fourth = corners
    (dx1, dy1), (dx2, dy2) = second - third, fourth - third
    sx, sy = first - second + third - fourth
    determinant = product(dx1, dy2) - product(dx2, dy1)
    g = (product(sx, dy2) - product(dx2, sy)) / determinant
    h = (product(dx1, sy) - product(sx, dy1)) / determinant
    along, aside = second - first + product(g, second), fourth - first + product(h, fourth)
    return matrix([[along[0], aside[0], first[0]], [along[1], aside[1], first[1]], [g, h, 1]])


def _multiply(a: Float[Array, "3 3"], b: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """a @ b in one order of summation."""
    terms = [product(a[:, k, None], b[None, k, :]) for k in range(3)]
    return terms[0] + terms[1] + terms[2]
