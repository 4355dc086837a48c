"""Moving pixels: flips, crops, padding and rotation, by torchvision's conventions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Shaped

from lepton_jax.augment.base import Image
from lepton_jax.augment.color import product
from lepton_jax.errors import InputError, unknown

Fill = float | Sequence[float]  # one number, or one per channel, in the image's units
Padding = int | Sequence[int]  # all sides; (left and right, top and bottom); (left, top, right, bottom)
Size = int | Sequence[int]  # a square's side, or (height, width)
Mode = str  # one of MODES
Interpolation = str  # one of INTERPOLATIONS
MODES = ("constant", "reflect", "edge", "symmetric")
INTERPOLATIONS = ("nearest", "bilinear")
Moved = Shaped[Array, "rows columns channels"]
Coordinates = Float[Array, "rows columns"]  # in pixels of the original image


def horizontal_flip(image: Image) -> Image:
    """Left and right exchanged."""
    return image[:, ::-1]


def vertical_flip(image: Image) -> Image:
    """Top and bottom exchanged."""
    return image[::-1]


def crop(image: Image, top: ArrayLike, left: ArrayLike, height: int, width: int) -> Moved:
    """The window of `height` x `width` pixels whose corner is (top, left); moved inside where it would stick out.

    Raises InputError for a window larger than the image.
    """
    check_window(image.shape, (height, width))
    corner = (jnp.int32(top), jnp.int32(left), jnp.int32(0))  # of one type, under x64 too
    return jax.lax.dynamic_slice(image, corner, (height, width, image.shape[2]))


def center_crop(image: Image, size: Size) -> Moved:
    """The middle `size` of the image; an image that is smaller is padded with zeros first."""
    height, width = height_and_width(size)
    missing_rows, missing_columns = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    sides = (missing_columns // 2, missing_rows // 2, (missing_columns + 1) // 2, (missing_rows + 1) // 2)
    image = pad(image, sides)
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def pad(image: Image, padding: Padding, mode: Mode = "constant", fill: Fill = 0) -> Moved:
    """The image with `padding` pixels more on its sides: of `fill`, or its own, by numpy's names for modes.

    Raises InputError for an unknown mode, a negative padding, or a reflection wider than the image.
    """
    left, top, right, bottom = sides(padding)
    check_mode(mode)
    reach = {"reflect": 1, "symmetric": 0}.get(mode)
    if reach is not None and (max(top, bottom) > image.shape[0] - reach or max(left, right) > image.shape[1] - reach):
        raise InputError(
            f"padding {padding} is more than an image of {image.shape[0]}x{image.shape[1]} pixels can {mode}",
            "pad less, or use the mode 'edge' or 'constant'",
        )
    widths = ((top, bottom), (left, right), (0, 0))
    if mode != "constant":
        return jnp.pad(image, widths, mode)
    color = fill_color(image, fill)
    if color.size == 1:
        return jnp.pad(image, widths, constant_values=color.reshape(()))
    inside = jnp.pad(jnp.ones((*image.shape[:2], 1), bool), widths)
    return jnp.where(inside, jnp.pad(image, widths), color)


def rotate(image: Image, angle: ArrayLike, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Image:
    """The image turned counter-clockwise by `angle` degrees about its center, in a frame of the same size.

    Outside of the image lies `fill`, and bilinear interpolation mixes it in at the border, which for 0 is
    torchvision's functional `rotate`. uint8 is rounded to nearest. Raises InputError.
    """
    check_interpolation(interpolation)
    height, width, channels = image.shape
    color = fill_color(image, fill)
    radians = jnp.deg2rad(jnp.asarray(angle, jnp.promote_types(image.dtype, jnp.float32)))
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    right = jnp.arange(width, dtype=radians.dtype)[None, :] - (width - 1) / 2

    def turn(down: Float[Array, " rows"]) -> Moved:
        row = product(cos, down[:, None]) + product(sin, right) + (height - 1) / 2
        column = product(cos, right) - product(sin, down[:, None]) + (width - 1) / 2
        return (_nearest if interpolation == "nearest" else _bilinear)(image, row, column, color)

    # In two halves, because straight code is fused with what follows and done again for each of its uses there.
    half = (height + 1) // 2
    down = jnp.arange(2 * half, dtype=radians.dtype).reshape(2, half) - (height - 1) / 2
    return jax.lax.map(turn, down).reshape(2 * half, width, channels)[:height]


def _nearest(image: Image, row: Coordinates, column: Coordinates, color: Array) -> Moved:
    pixels, inside = _pixels(image, jnp.round(row), jnp.round(column))
    return jnp.where(inside[..., None], pixels, color)


def _bilinear(image: Image, row: Coordinates, column: Coordinates, color: Array) -> Moved:
    """The four pixels around each place, weighted by nearness; where one is missing its weight goes to `color`."""
    top, left = jnp.floor(row), jnp.floor(column)
    below, beside = row - top, column - left
    total, known = jnp.zeros((*row.shape, image.shape[2]), row.dtype), jnp.zeros_like(row)
    for down, row_weight in ((0, 1 - below), (1, below)):
        for right, column_weight in ((0, 1 - beside), (1, beside)):
            pixels, inside = _pixels(image, top + down, left + right)
            weight = jnp.where(inside, row_weight * column_weight, 0)
            total += product(weight[..., None], pixels.astype(row.dtype))
            known += weight
    total += product((1 - known)[..., None], color.astype(row.dtype))
    return (jnp.round(total) if image.dtype == jnp.uint8 else total).astype(image.dtype)


def _pixels(image: Image, row: Coordinates, column: Coordinates) -> tuple[Moved, Bool[Array, "rows columns"]]:
    """image[row, column] at whole numbers, and whether that is inside; outside, the nearest pixel of the border.

    One gather of whole pixels from a flat list, which is the fastest form on CPUs.
    """
    height, width, channels = image.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    index = row.astype(jnp.int32) * width + column.astype(jnp.int32)
    pixels = image.reshape(-1, channels).at[index.reshape(-1)].get(mode="promise_in_bounds")
    return pixels.reshape(*row.shape, channels), inside


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


def height_and_width(size: Size) -> tuple[int, int]:
    """A size as (height, width). Raises InputError."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise InputError(f"the size {size} has a side below 1 pixel", "give one side, or (height, width), in pixels")
    return height, width


def sides(padding: Padding) -> tuple[int, int, int, int]:
    """A padding as (left, top, right, bottom). Raises InputError."""
    given = (padding,) if isinstance(padding, int) else tuple(padding)
    if len(given) not in (1, 2, 4) or min(given) < 0:
        raise InputError(
            f"the padding {padding} is not 1, 2 or 4 numbers of 0 or more",
            "give one for all sides, (left and right, top and bottom), or (left, top, right, bottom)",
        )
    left, top, right, bottom = given * (4 // len(given))
    return left, top, right, bottom


def check_window(shape: Sequence[int], size: tuple[int, int]) -> None:
    """Raise InputError where a window of `size` does not lie inside an image of `shape`."""
    if size[0] > shape[0] or size[1] > shape[1]:
        raise InputError(
            f"a crop of {size[0]}x{size[1]} is larger than the image of {shape[0]}x{shape[1]} pixels",
            "crop less, or pad the image first",
        )


def check_mode(mode: str) -> None:
    """Raise InputError for an unknown padding mode."""
    if mode not in MODES:
        raise unknown("padding mode", mode, MODES)


def check_interpolation(interpolation: str) -> None:
    """Raise InputError for an unknown interpolation."""
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
