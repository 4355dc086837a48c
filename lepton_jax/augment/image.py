"""What an image is, and arithmetic that rounds the same in every program."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

Image = Shaped[Array, "height width channels"]  # uint8 in 0..255, or floating point in 0..1
Output = Shaped[Array, "rows columns planes"]  # an image again, of the same dtype; the shape may have changed
Shape = tuple[int, ...]  # (height, width, channels)
Canvas = tuple[int, int]  # (height, width)
Fill = float | Sequence[float]  # one number, or one per channel, in the image's units


def product(a: ArrayLike, b: ArrayLike) -> Array:
    """a * b for finite results, rounded by itself.

    The minimum changes no number. It stands between the product and a sum that follows, which compilers else
    contract into a fused multiply-add or not, as the surrounding program happens to be.
    """
    exact = jnp.multiply(a, b)
    return jnp.minimum(exact, jnp.finfo(exact.dtype).max)
