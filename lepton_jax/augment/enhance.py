"""Sharper and softer, as torchvision's v2 functional transforms define it.

Sums over neighbours are written out in one order, so that the bits do not depend on the mesh or the batch.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lepton_jax.augment.color import FloatPlane, Plane, bound, check_dtype, merge, positive, split, working
from lepton_jax.augment.image import Image, product
from lepton_jax.errors import InputError

KernelSize = int | Sequence[int]  # both ways, or (across columns, across rows), in pixels; odd
Blurring = Float[Array, "rows columns channels"]


def adjust_sharpness(image: Image, factor: ArrayLike) -> Image:
    """Away from (factor > 1) or towards (< 1) a smoothed image; 0 is smooth, 1 the image itself. Raises InputError.

    Smoothing weighs a pixel 5 and its eight neighbours 1 each. The border of one pixel stays as it is.
    """
    planes, factor = split(image), positive(factor, "sharpness")
    if min(image.shape[:2]) <= 2:
        return image
    return merge(tuple(_sharpen(plane, factor) for plane in planes))


def _sharpen(plane: Plane, factor: ArrayLike) -> Plane:
    kind = working(plane.dtype)
    pixels = plane.astype(kind)
    smooth = _smooth(pixels)
    if plane.dtype == jnp.uint8:
        smooth = jnp.round(smooth)
    moved = pixels + product(1 - jnp.asarray(factor, kind), smooth - pixels)
    return jnp.clip(moved, 0, bound(plane.dtype)).astype(plane.dtype)


def _smooth(pixels: FloatPlane) -> FloatPlane:
    """The weighted mean around each pixel; the border as it is."""
    height, width = pixels.shape
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = (around + 4 * pixels[1:-1, 1:-1]) / 13
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return jnp.where(inside, jnp.pad(smooth, 1), pixels)


def gaussian_blur(image: Image, kernel_size: KernelSize, sigma: ArrayLike | Sequence[ArrayLike] | None = None) -> Image:
    """Each pixel the mean around it, weighted by a Gaussian; the image is reflected at its border.

    kernel_size: odd; for both ways, or (across columns, across rows), in pixels. sigma: the standard deviation,
    in pixels, in the same form; 0.15 kernel_size + 0.35 where there is none. uint8 is rounded. Raises InputError.
    """
    check_dtype(image)
    sizes = kernel_sizes(kernel_size)
    height, width = image.shape[:2]
    if sizes[0] // 2 >= width or sizes[1] // 2 >= height:
        raise InputError(
            f"a kernel of {sizes[0]}x{sizes[1]} pixels is too wide for an image of {height} rows, {width} columns",
            "use a kernel whose half is smaller than the image",
        )
    blurred = image.astype(working(image.dtype))
    for axis, size, spread in zip((1, 0), sizes, _sigmas(sigma, sizes), strict=True):
        blurred = _blur(blurred, axis, size, jnp.asarray(spread, blurred.dtype))
    return (jnp.round(blurred) if image.dtype == jnp.uint8 else blurred).astype(image.dtype)


def _blur(pixels: Blurring, axis: int, size: int, sigma: Float[Array, ""]) -> Blurring:
    """The weighted mean along one axis, tap by tap: the padded image moves on by one pixel for each."""
    distance = jnp.arange(size, dtype=pixels.dtype) - size // 2
    weights = jnp.exp(-jnp.square(distance / sigma) / 2)
    reach = [(size // 2, size // 2) if side == axis else (0, 0) for side in range(3)]

    def add(carry: tuple[Array, Array, Array], weight: Array) -> tuple[tuple[Array, Array, Array], None]:
        padded, total, sum_of_weights = carry
        part = jax.lax.slice_in_dim(padded, 0, pixels.shape[axis], axis=axis)
        return (jnp.roll(padded, -1, axis), total + product(weight, part), sum_of_weights + weight), None

    start = jnp.pad(pixels, reach, "reflect"), jnp.zeros_like(pixels), jnp.zeros_like(sigma)
    (_, total, sum_of_weights), _ = jax.lax.scan(add, start, weights)
    return total / sum_of_weights


def kernel_sizes(kernel_size: KernelSize) -> tuple[int, int]:
    """A kernel's size (across columns, across rows). Raises InputError."""
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != 2 or any(size < 1 or size % 2 == 0 for size in sizes):
        raise InputError(
            f"the kernel size {kernel_size} is not odd and positive", "give one odd number, or one per direction"
        )
    return sizes


def _sigmas(sigma: ArrayLike | Sequence[ArrayLike] | None, sizes: tuple[int, int]) -> tuple[ArrayLike, ArrayLike]:
    if sigma is None:
        return 0.15 * sizes[0] + 0.35, 0.15 * sizes[1] + 0.35
    across, down = sigma if isinstance(sigma, Sequence) else (sigma, sigma)
    if any(isinstance(spread, int | float) and spread <= 0 for spread in (across, down)):
        raise InputError(f"the sigma {sigma} is not positive", "give a standard deviation in pixels, 0.1 to 2 say")
    return across, down
