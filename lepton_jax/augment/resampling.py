"""Other sizes: each output pixel a weighted mean over the area that it covers, as in Pillow."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from lepton_jax.augment.image import Canvas, Image, Output, product
from lepton_jax.errors import InputError, named

Places = Float[Array, "..."]
Rows = Shaped[Array, "rows columns channels"]
Resampled = Shaped[Array, "size columns channels"]
Size = int | Sequence[int]  # the shorter side, or (height, width)


class Kernel(NamedTuple):
    """How much a pixel counts by its distance from the middle.

    weigh: in units of the larger of both grids, 0 beyond `support`. parts: the same up to a factor in whole numbers,
    where they can say it: distances [taps, size] and the reach of the kernel, in equal units.
    """

    weigh: Callable[[Places], Places]
    support: int
    parts: Callable[[Array, Array], Array] | None = None


def triangle(x: Places) -> Places:
    """The kernel of bilinear interpolation, with support [-1, 1]."""
    return jnp.maximum(1 - jnp.abs(x), 0)


def cubic(x: Places) -> Places:
    """The kernel of bicubic interpolation with a = -1/2, with support [-2, 2].

    Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711
    """
    x = jnp.abs(x)
    near = product(product(product(1.5, x) - 2.5, x), x) + 1
    far = product(product(product(-0.5, x) + 2.5, x) - 4, x) + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


DIGITS = 22  # of weights, in Pillow

KERNELS: dict[str, Kernel | None] = {
    "nearest": None,
    "bilinear": Kernel(triangle, 1, lambda distance, reach: jnp.maximum(reach - jnp.abs(distance), 0)),
    "bicubic": Kernel(cubic, 2),
}


def resize(image: Image, size: Size, interpolation: str = "bilinear") -> Output:
    """The image in another size, antialiased where it shrinks.

    size: (height, width), or the length of the shorter side. interpolation: one of KERNELS. uint8 is rounded and
    clipped after each direction, the width first, as in Pillow before 13 (which
    takes the rows first where they shrink much more: at hard edges bicubic results then differ). Raises InputError.
    """
    height, width, _ = image.shape
    return resized_crop(image, 0, 0, height, width, resized((height, width), size), interpolation)


def resized_crop(
    image: Image,
    top: ArrayLike,
    left: ArrayLike,
    height: ArrayLike,
    width: ArrayLike,
    size: Canvas,
    interpolation: str = "bilinear",
) -> Output:
    """The window of `height` x `width` pixels at (top, left), resized to `size` as if it were an image of its own.

    The window lies inside of the image and may be traced. size: (height, width). interpolation: as for `resize`.
    Raises InputError.
    """
    kernel = named("interpolation", interpolation, KERNELS)
    wide = _resample(image.swapaxes(0, 1), left, width, size[1], kernel).swapaxes(0, 1)
    return _resample(wide, top, height, size[0], kernel)


def resized(given: Canvas, size: Size) -> Canvas:
    """The (height, width) that `resize` gives to an image of another. Raises InputError."""
    if isinstance(size, int):
        shorter = min(given)
        height, width = (size if side == shorter else size * side // shorter for side in given)
    else:
        height, width = size
    if min(height, width) < 1:
        raise InputError(
            f"the size {size} has a side below 1 pixel", "give (height, width) or the shorter side, in pixels"
        )
    return height, width


def _resample(image: Rows, start: ArrayLike, length: ArrayLike, size: int, kernel: Kernel | None) -> Resampled:
    """`size` rows in place of the `length` rows from `start` on."""
    start, length = jnp.int32(start), jnp.int32(length)
    # The centers of the new rows: whole numbers and fractions apart, both exact.
    whole, part = jnp.divmod((2 * jnp.arange(size, dtype=jnp.int32) + 1) * length, 2 * size)
    if kernel is None:
        return image[start + whole]
    kind = jnp.promote_types(image.dtype, jnp.float32)
    scale: Array = jnp.asarray(length, kind) / size
    taps, weights = _weights(part.astype(kind) / (2 * size), scale, image.shape[0] / size, kernel)
    rows = (start + whole)[None, :] + taps
    inside = (rows >= start) & (rows < start + length)
    rows = jnp.clip(rows, 0, image.shape[0] - 1)
    if image.dtype == jnp.uint8 and kernel.parts:  # float32 knows 22 digits of a weight, or one less
        parts = kernel.parts((2 * taps + 1) * size - part[None, :], 2 * jnp.maximum(length, size))
        return _in_digits(image, rows, _quotient(jnp.where(inside, parts, 0)))
    weights = jnp.where(inside, weights, 0)
    weights = weights / _sum(lambda weight: weight, weights)[None, :]
    if image.dtype == jnp.uint8:
        return _in_digits(image, rows, jnp.round(weights * 2**DIGITS).astype(jnp.int32))
    return _sum(lambda row, weight: product(weight[:, None, None], image[row]), rows, weights).astype(image.dtype)


def _in_digits(image: Rows, rows: Int[Array, "taps size"], digits: Int[Array, "taps size"]) -> Resampled:
    """Weighted rows of uint8 in Pillow's arithmetic: weights of DIGITS binary digits, and whole numbers throughout."""
    total = _sum(lambda row, weight: weight[:, None, None] * image[row].astype(jnp.int32), rows, digits)
    return jnp.clip((total + 2 ** (DIGITS - 1)) >> DIGITS, 0, 255).astype(jnp.uint8)


def _quotient(parts: Int[Array, "taps size"]) -> Int[Array, "taps size"]:
    """parts / (their sum over taps) in binary digits, rounded to nearest: long division, exact for sums below 2^30."""
    total = jnp.sum(parts, axis=0, keepdims=True)

    def digit(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        quotient, rest = state
        one = 2 * rest >= total
        return 2 * quotient + one, 2 * rest - jnp.where(one, total, 0)

    quotient, rest = jax.lax.fori_loop(0, DIGITS, digit, (parts // total, parts % total))
    return quotient + (2 * rest >= total)


def _weights(
    fraction: Float[Array, " size"], scale: Float[Array, ""], widest: float, kernel: Kernel
) -> tuple[Int[Array, "taps size"], Float[Array, "taps size"]]:
    """The rows that a new row is made of, counted from its center's, and their weights before normalization.

    widest: the largest scale that there can be, which bounds the number of rows.
    """
    stretch = jnp.maximum(scale, 1)
    # a little further out, where no weight is: on the edge, two fused copies of this line may round to either side
    first = jnp.floor(fraction - product(kernel.support, stretch) + (0.5 - 0.00070711))
    steps = jnp.arange(math.ceil(2 * kernel.support * max(widest, 1)) + 1, dtype=fraction.dtype)
    taps = first[None, :] + steps[:, None]
    return taps.astype(jnp.int32), kernel.weigh((taps + 0.5 - fraction[None, :]) / stretch)


def _sum(term: Callable[..., Array], *arrays: Array) -> Array:
    """The sum of `term` over the leading axis, from first to last in every program."""
    first = jax.eval_shape(term, *(array[0] for array in arrays))
    start = jnp.zeros(first.shape, first.dtype)
    return jax.lax.scan(lambda total, each: (total + term(*each), None), start, arrays)[0]
