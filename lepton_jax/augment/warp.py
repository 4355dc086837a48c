"""Moving pixels: maps of places, and one reading of the image through any number of them.

A place is (x, y) in pixels from the upper left corner, so that the pixel [row, column] has its center at
(column + 1/2, row + 1/2), and a crop or a flip moves places by whole numbers, which is exact.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lepton_jax.augment.image import Canvas, Fill, Image, Output, product
from lepton_jax.errors import InputError, unknown

INTERPOLATIONS = ("nearest", "bilinear")
Interpolation = str  # one of INTERPOLATIONS
Coordinates = Float[Array, "..."]  # x or y of places, in pixels
Places = tuple[Coordinates, Coordinates]  # x and y
Colors = Shaped[Array, "... channels"]  # of places
Matrix = Float[Array, "_ 3"]  # [2, 3], or [3, 3] for a projection; times (x, y, 1)


class Map(NamedTuple):
    """How an operation moves places.

    pull: from the output to the input, push: from the input to the output. size: the output's (height, width).
    Beyond the edges of the input lies `fill`, or the image again, by numpy's names for modes of padding.
    """

    pull: Callable[[Coordinates, Coordinates], Places]
    push: Callable[[Coordinates, Coordinates], Places]
    size: Canvas
    mode: str = "constant"
    fill: Fill = 0


def projection(matrix: Matrix, size: Canvas, mode: str = "constant", fill: Fill = 0) -> Map:
    """The map that pulls by a matrix: [2, 3] for affine maps, [3, 3] in homogeneous coordinates for others."""
    return Map(lambda x, y: project(matrix, x, y), lambda x, y: project(inverse(matrix), x, y), size, mode, fill)


def project(matrix: Matrix, x: Coordinates, y: Coordinates) -> Places:
    """Places times a matrix. What lies behind the horizon of a projection goes far outside of every image."""
    kind = jnp.promote_types(x.dtype, matrix.dtype)
    row = [product(m[0].astype(kind), x) + product(m[1].astype(kind), y) + m[2].astype(kind) for m in matrix]
    if len(row) == 2:
        return row[0], row[1]
    visible = row[2] > 1e-6
    depth = jnp.where(visible, row[2], 1)
    return jnp.where(visible, row[0] / depth, -1e6), jnp.where(visible, row[1] / depth, -1e6)


def inverse(matrix: Matrix) -> Matrix:
    """The matrix of the opposite map, by cofactors."""
    (a, b, c), (d, e, f) = matrix[0], matrix[1]
    g, h, i = matrix[2] if len(matrix) == 3 else jnp.array([0, 0, 1], matrix.dtype)

    def minor(p: Array, q: Array, r: Array, s: Array) -> Array:
        return product(p, s) - product(q, r)

    rows = [
        [minor(e, f, h, i), minor(c, b, i, h), minor(b, c, e, f)],
        [minor(f, d, i, g), minor(a, c, g, i), minor(c, a, f, d)],
        [minor(d, e, g, h), minor(b, a, h, g), minor(a, b, d, e)],
    ]
    determinant = product(a, rows[0][0]) + product(b, rows[1][0]) + product(c, rows[2][0])
    return jnp.stack([jnp.stack(row) for row in rows[: len(matrix)]]) / determinant


def warp(image: Image, maps: Sequence[Map], interpolation: Interpolation = "nearest") -> Output:
    """The image moved by `maps`, one after the other, and read once.

    The canvas of each map counts: what a map pulls from outside of its input is its `fill`, also where the image
    itself would have pixels. Bilinear reading mixes the fill in along half a pixel at such a border. uint8 is
    rounded to nearest. Raises InputError for an unknown interpolation, or a fill that does not suit the image.
    """
    check_interpolation(interpolation)
    height, width = maps[-1].size
    kind = jnp.promote_types(image.dtype, jnp.float32)
    across = jnp.arange(width, dtype=kind)[None, :] + 0.5

    def rows(down: Float[Array, " rows"]) -> Output:
        return _read(image, maps, interpolation, across, down[:, None])

    # In two halves, because straight code is fused with what follows and done again for each of its uses there.
    half = (height + 1) // 2
    down = jnp.arange(2 * half, dtype=kind).reshape(2, half) + 0.5
    return jax.lax.map(rows, down).reshape(2 * half, width, image.shape[2])[:height]


def _read(image: Image, maps: Sequence[Map], interpolation: str, x: Coordinates, y: Coordinates) -> Output:
    """The colors that `maps` bring to the places (x, y) of the last one's canvas."""
    sources = [image.shape[:2], *(move.size for move in maps[:-1])]
    borders = []
    for move, (height, width) in zip(reversed(maps), reversed(sources), strict=True):
        x, y = move.pull(x, y)
        if move.mode == "constant":
            borders.append((_cover(x, y, (height, width), interpolation), fill_color(image, move.fill)))
        x, y = (_fold(place, side, move.mode, interpolation) for place, side in ((x, width), (y, height)))
    colors = _pixels(image, y, x) if interpolation == "nearest" else bilinear(image, x, y)
    for cover, fill in reversed(borders):
        colors = jnp.where(cover, colors, fill) if interpolation == "nearest" else _mix(cover, colors, fill)
    return (jnp.round(colors) if image.dtype == jnp.uint8 else colors).astype(image.dtype)


def _cover(x: Coordinates, y: Coordinates, size: Canvas, interpolation: str) -> Shaped[Array, "rows columns 1"]:
    """Whether, or for bilinear reading how much, the places lie inside of a canvas."""
    height, width = size
    if interpolation == "nearest":
        return ((x >= 0) & (x < width) & (y >= 0) & (y < height))[..., None]
    ramps = (jnp.clip(jnp.minimum(a + 0.5, n + 0.5 - a), 0, 1) for a, n in ((x, width), (y, height)))
    return product(*ramps)[..., None]


def _fold(place: Coordinates, length: int, mode: str, interpolation: str) -> Coordinates:
    """Where inside of an image the mode of padding looks a place up."""
    if mode == "symmetric":
        place = _mirror(place, length)
    elif mode == "reflect":
        place = _mirror(place - 0.5, max(length - 1, 1)) + 0.5
    centers = jnp.clip(place, 0.5, length - 0.5)  # beyond the centers of the outer pixels is nothing to interpolate
    return centers if interpolation == "bilinear" else jnp.where((place >= 0) & (place < length), place, centers)


def _mirror(place: Coordinates, length: int) -> Coordinates:
    """A place between two mirrors, at 0 and at `length`."""
    place = place - 2 * length * jnp.floor(place / (2 * length))
    return jnp.minimum(place, 2 * length - place)


def bilinear(image: Image, x: Coordinates, y: Coordinates) -> Colors:
    """The four pixels around each place, weighted by nearness, as floating point; places lie between pixel centers."""
    height, width, _ = image.shape
    left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
    beside, below = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)

    def row(y: Coordinates) -> Colors:
        one, other = (_pixels(image, y, x).astype(x.dtype) for x in (left, right))
        return one + product(beside, other - one)

    above = row(top)
    return above + product(below, row(bottom) - above)


def _mix(cover: Array, colors: Colors, fill: Array) -> Colors:
    return product(cover, colors) + product(1 - cover, fill.astype(colors.dtype))


def _pixels(image: Image, y: Coordinates, x: Coordinates) -> Colors:
    """The pixels that hold the places, which lie inside the image.

    One gather of whole pixels from a flat list, which is the fastest form on CPUs.
    """
    _, width, channels = image.shape
    index = y.astype(jnp.int32) * width + x.astype(jnp.int32)
    pixels = image.reshape(-1, channels).at[index.reshape(-1)].get(mode="promise_in_bounds")
    return pixels.reshape(*index.shape, channels)


def fill_color(image: Image, fill: Fill) -> Shaped[Array, "1 1 _"]:
    """`fill` as one pixel of the image's dtype. Raises InputError where it does not fit."""
    color = np.atleast_1d(np.asarray(fill, np.float64))
    if color.ndim > 1 or color.size not in (1, image.shape[-1]):
        raise InputError(
            f"the fill {fill} does not suit {image.shape[-1]} channels", "give one number, or one per channel"
        )
    if image.dtype == jnp.uint8 and (color.min() < 0 or color.max() > 255):
        raise InputError(f"the fill {fill} does not fit uint8", "give numbers from 0 to 255")
    return jnp.asarray(color.reshape(1, 1, -1), image.dtype)


def check_interpolation(interpolation: str) -> None:
    """Raise InputError for an unknown interpolation."""
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
