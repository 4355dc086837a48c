"""Flips, crops, padding, rotation, affine and perspective maps, by torchvision's conventions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

from lepton_jax.augment import matrices
from lepton_jax.augment.image import Fill, Image
from lepton_jax.augment.warp import Interpolation, Map, fill_color, projection, warp
from lepton_jax.errors import InputError, unknown

Padding = int | Sequence[int]  # all sides; (left and right, top and bottom); (left, top, right, bottom)
Size = int | Sequence[int]  # a square's side, or (height, width)
Pair = Sequence[ArrayLike] | Array  # along x and along y
Center = Sequence[ArrayLike] | Array  # (x, y) in pixels from the upper left corner
Places = ArrayLike | Sequence[Any]  # [4, 2], each (x, y) in pixels from the upper left corner
Mode = str  # one of MODES
MODES = ("constant", "reflect", "edge", "symmetric")
Moved = Shaped[Array, "rows columns channels"]


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
    top, left = margin(image.shape[0], height) + sides[1], margin(image.shape[1], width) + sides[0]
    return pad(image, sides)[top : top + height, left : left + width]


def margin(given: int, side: int) -> int:
    """Where in a side of `given` pixels a middle part of `side` pixels begins; below 0 where that is longer."""
    return round((given - side) / 2) if given > side else -((side - given) // 2)


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


def rotate(
    image: Image,
    angle: ArrayLike,
    interpolation: Interpolation = "nearest",
    fill: Fill = 0,
    center: Center | None = None,
) -> Image:
    """The image turned counter-clockwise by `angle` degrees about its center, in a frame of the same size.

    center: another place to turn about, (x, y) in pixels from the upper left corner. Outside of the image lies
    `fill`, and bilinear interpolation mixes it in at the border, which for 0 is torchvision's functional `rotate`.
    uint8 is rounded to nearest. Raises InputError.
    """
    matrix = matrices.rotation(angle, middle(image.shape) if center is None else center)
    return warp(image, [affinity(matrix, image.shape, interpolation, fill)], interpolation)


def affine(
    image: Image,
    angle: ArrayLike = 0,
    translate: Pair = (0, 0),
    scale: ArrayLike = 1,
    shear: Pair = (0, 0),
    interpolation: Interpolation = "nearest",
    fill: Fill = 0,
    center: Center | None = None,
) -> Image:
    """The image sheared, turned and scaled about its center, then moved, in a frame of the same size.

    angle: degrees clockwise. translate: pixels to the right and down. shear: degrees along x and y. center: another
    place to act about, (x, y) in pixels from the upper left corner. All of these may be traced. fill: as for
    `rotate`. The definition is torchvision's. Raises InputError.
    """
    if isinstance(scale, int | float) and scale <= 0:
        raise InputError(f"the scale {scale} is not above 0", "give a factor such as 0.9; 1 keeps the size")
    matrix = matrices.affine(angle, translate, scale, shear, middle(image.shape) if center is None else center)
    return warp(image, [affinity(matrix, image.shape, interpolation, fill)], interpolation)


def perspective(
    image: Image,
    starts: Places,
    ends: Places,
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0,
) -> Image:
    """The image projected so that the four places `starts` come to lie at `ends`, in a frame of the same size.

    starts, ends: four places (x, y) each, in pixels from the upper left corner, no three of them on one line, and the
    same turn from each to the next; may be traced. fill: as for `rotate`. Raises InputError.
    """
    matrix = matrices.perspective(jnp.asarray(starts, jnp.float32), jnp.asarray(ends, jnp.float32))
    height, width, _ = image.shape
    return warp(image, [projection(matrix, (height, width), fill=fill)], interpolation)


def affinity(matrix: matrices.Affine, shape: Sequence[int], interpolation: Interpolation, fill: Fill) -> Map:
    """The map by an affine matrix in a frame of the same size: for the nearest pixel in Pillow's steps."""
    if interpolation == "nearest":
        matrix = matrices.stepped(matrix)
    return projection(matrix, (shape[0], shape[1]), fill=fill)


def middle(shape: Sequence[int]) -> tuple[float, float]:
    """The place (x, y) of an image's center."""
    return shape[1] / 2, shape[0] / 2


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
