"""From levels to the numbers that a model computes with; the last step of a chain, for it changes the dtype."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from lepton_jax.augment.color import bound, check_dtype, working
from lepton_jax.augment.image import Image
from lepton_jax.errors import InputError

Channels = float | Sequence[float] | np.ndarray  # one number, or one per channel
Floats = Float[Array, "height width channels"]


def to_float(image: Image, dtype: DTypeLike = jnp.float32) -> Floats:
    """The image in floating point, uint8 divided by 255; torchvision's `to_dtype` with scale. Raises InputError."""
    check_dtype(image)
    check_floating(dtype)
    if image.dtype != jnp.uint8:
        return image.astype(dtype)
    return (image.astype(working(jnp.dtype(dtype))) / bound(image.dtype)).astype(dtype)


def normalize(image: Image, mean: Channels, std: Channels, dtype: DTypeLike | None = None) -> Floats:
    """(image - mean) / std, with uint8 taken as levels of 255, in floating point `dtype`.

    mean, std: one number or one per channel, of images in [0, 1]. dtype: the image's own by default, float32 for uint8;
    computed in float32 or wider all the same. Raises InputError, for a std that is not positive too.
    """
    center, spread = (_like(values, image) for values in (mean, std))
    check_std(std)
    natural = jnp.dtype(jnp.float32) if image.dtype == jnp.uint8 else image.dtype
    given = natural if dtype is None else jnp.dtype(dtype)
    check_floating(given)
    unit = to_float(image, working(jnp.promote_types(image.dtype, given)))
    return ((unit - jnp.asarray(center, unit.dtype)) / jnp.asarray(spread, unit.dtype)).astype(given)


def check_std(std: Channels) -> None:
    """Raise InputError for a standard deviation that is not positive."""
    if not np.all(np.asarray(std) > 0):
        raise InputError(f"the standard deviation {std} is not positive", "measure it over images in [0, 1]")


def check_floating(dtype: DTypeLike) -> None:
    """Raise InputError for a dtype that is not floating point."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"{jnp.dtype(dtype)} is not floating point", "use float32, bfloat16 or float16")


def _like(values: Channels, image: Image) -> ArrayLike:
    """One number per channel, broadcastable to the image. Raises InputError."""
    numbers = np.asarray(values, np.float64).reshape(-1)
    if numbers.size not in (1, image.shape[-1]):
        raise InputError(
            f"{numbers.size} means or standard deviations for {image.shape[-1]} channels",
            "give one number, or one per channel",
        )
    return numbers.reshape(1, 1, -1)
