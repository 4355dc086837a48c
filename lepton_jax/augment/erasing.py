"""Random erasing (Zhong et al. 2017, https://arxiv.org/abs/1708.04896), with torchvision's draws."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from lepton_jax.augment.base import Transform
from lepton_jax.augment.image import Fill, Image, Shape, product
from lepton_jax.augment.random_tone import check_probability
from lepton_jax.augment.warp import fill_color
from lepton_jax.errors import InputError
from lepton_jax.types import Key

TRIES = 10  # rectangles drawn until one fits


class Erasing(NamedTuple):
    """What `random_erasing` drew: a rectangle in pixels, of no height where nothing is erased, and the noise's key."""

    top: Int[Array, ""]
    left: Int[Array, ""]
    height: Int[Array, ""]
    width: Int[Array, ""]
    noise: Key


def erase(
    image: Image, top: ArrayLike, left: ArrayLike, height: ArrayLike, width: ArrayLike, value: Fill | Array
) -> Image:
    """The image with `value` in a rectangle, whose size may be traced; what sticks out of the image is ignored.

    value: a number, one per channel, or an array that broadcasts to the image, in its units. Raises InputError.
    """
    row, column = jnp.arange(image.shape[0])[:, None, None], jnp.arange(image.shape[1])[None, :, None]
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    color = value.astype(image.dtype) if isinstance(value, jax.Array) else fill_color(image, value)
    return jnp.where(inside, color, image)


def random_erasing(
    p: float = 0.5,
    scale: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    value: Fill | str = 0,
) -> Transform:
    """With probability `p`, a rectangle of the image is filled. Parameters: an Erasing.

    scale: the range of the share of its area, drawn uniformly. ratio: of height to width, drawn log-uniformly. A
    rectangle that does not fit is drawn again, nine times at most; then nothing is erased. value: a number or
    one per channel, or "random" for noise, uniform over the levels of uint8 and standard normal in floats, which
    suits normalized images. Raises InputError.
    """
    check_probability(p, "erasing")
    low, high = scale
    if not 0 <= low <= high <= 1:
        raise InputError(f"the scale {tuple(scale)} is not a range within [0, 1]", "give shares of the area, low first")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise InputError(f"the ratio {tuple(ratio)} is not a range above 0", "give height / width, the lower one first")
    if isinstance(value, str) and value != "random":
        raise InputError(f"the value {value!r} is not defined", 'give a number, one per channel, or "random"')
    logs = math.log(ratio[0]), math.log(ratio[1])

    def sample(key: Key, shape: Shape) -> Erasing:
        key, corner_key, noise = jax.random.split(key, 3)
        draw = jax.random.uniform(key, (2 * TRIES + 1,), jnp.float32)
        area = shape[0] * shape[1] * (low + product(high - low, draw[:TRIES]))
        aspect = jnp.exp(logs[0] + product(logs[1] - logs[0], draw[TRIES:-1]))
        heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        fits = (heights < shape[0]) & (widths < shape[1])
        erased = jnp.any(fits) & (draw[-1] < p)
        first = jnp.argmax(fits)
        height, width = (jnp.where(erased, sides[first], 0).astype(jnp.int32) for sides in (heights, widths))
        places = jnp.stack([shape[0] - height + 1, shape[1] - width + 1])
        corner = jax.random.randint(corner_key, (2,), 0, places, jnp.int32)
        return Erasing(corner[0], corner[1], height, width, noise)

    def act(drawn: Erasing, image: Image) -> Image:
        color = noise(drawn.noise, image) if isinstance(value, str) else value
        return erase(image, drawn.top, drawn.left, drawn.height, drawn.width, color)

    return Transform(sample, act)


def noise(key: Key, image: Image) -> Image:
    """Noise of an image's shape and dtype: uniform over the levels of uint8, standard normal in floats."""
    if image.dtype == jnp.uint8:
        return jax.random.bits(key, image.shape, jnp.uint8)
    return jax.random.normal(key, image.shape, image.dtype)
