"""Other sizes: each output pixel a weighted mean over the area that it covers, as in Pillow."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from lepton_jax.augment.image import Canvas, Image, Output, product
from lepton_jax.errors import InputError, named

Places = Float[Array, "..."]
Kernel = Callable[[Places], Places]
Rows = Shaped[Array, "rows columns channels"]
Resampled = Shaped[Array, "size columns channels"]
Size = int | Sequence[int]  # the shorter side, or (height, width)


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


KERNELS: dict[str, tuple[Kernel, int] | None] = {"nearest": None, "bilinear": (triangle, 1), "bicubic": (cubic, 2)}


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


def _resample(
    image: Rows, start: ArrayLike, length: ArrayLike, size: int, kernel: tuple[Kernel, int] | None
) -> Resampled:
    """`size` rows in place of the `length` rows from `start` on."""
    start, length = jnp.int32(start), jnp.int32(length)
    # The centers of the new rows: whole numbers and fractions apart, both exact.
    whole, part = jnp.divmod((2 * jnp.arange(size, dtype=jnp.int32) + 1) * length, 2 * size)
    if kernel is None:
        return image[start + whole]
    kind = jnp.promote_types(image.dtype, jnp.float32)
    scale: Array = jnp.asarray(length, kind) / size
    taps, weights = _weights(part.astype(kind) / (2 * size), scale, image.shape[0] / size, *kernel)
    rows = (start + whole)[None, :] + taps
    weights = jnp.where((rows >= start) & (rows < start + length), weights, 0)
    weights = weights / _sum(lambda weight: weight, weights)[None, :]
    rows = jnp.clip(rows, 0, image.shape[0] - 1)
    if image.dtype != jnp.uint8:
        return _sum(lambda row, weight: product(weight[:, None, None], image[row]), rows, weights).astype(image.dtype)
    # Pillow's arithmetic: 22 binary digits of the weights, and from there on whole numbers.
    digits = jnp.round(weights * 2**22).astype(jnp.int32)
    total = _sum(lambda row, weight: weight[:, None, None] * image[row].astype(jnp.int32), rows, digits)
    return jnp.clip((total + 2**21) >> 22, 0, 255).astype(jnp.uint8)


def _weights(
    fraction: Float[Array, " size"], scale: Float[Array, ""], widest: float, weigh: Kernel, support: int
) -> tuple[Int[Array, "taps size"], Float[Array, "taps size"]]:
    """The rows that a new row is made of, counted from its center's, and their weights before normalization.

    widest: the largest scale that there can be, which bounds the number of rows.
    """
    stretch = jnp.maximum(scale, 1)
    # a little further out, where no weight is: on the edge, two fused copies of this line may round to either side
    first = jnp.floor(fraction - product(support, stretch) + (0.5 - 0.00070711))
    steps = jnp.arange(math.ceil(2 * support * max(widest, 1)) + 1, dtype=fraction.dtype)
    taps = first[None, :] + steps[:, None]
    return taps.astype(jnp.int32), weigh((taps + 0.5 - fraction[None, :]) / stretch)


def _sum(term: Callable[..., Array], *arrays: Array) -> Array:
    """The sum of `term` over the leading axis, from first to last in every program."""
    first = jax.eval_shape(term, *(array[0] for array in arrays))
    start = jnp.zeros(first.shape, first.dtype)
    return jax.lax.scan(lambda total, each: (total + term(*each), None), start, arrays)[0]
