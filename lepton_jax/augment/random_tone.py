"""Transforms that draw whether or how much to change levels; torchvision's v2 names, orders and defaults."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lepton_jax.augment import color, enhance, normalization, tone
from lepton_jax.augment.base import Transform, deterministic
from lepton_jax.augment.enhance import KernelSize
from lepton_jax.augment.image import Image, Shape, product
from lepton_jax.augment.normalization import Channels
from lepton_jax.errors import InputError
from lepton_jax.types import Key


def random_grayscale(p: float = 0.1) -> Transform:
    """Gray in as many channels, with probability `p`. Parameters: whether. Raises InputError."""
    return _sometimes(lambda image: color.grayscale(image, image.shape[-1]), p, "graying")


def random_invert(p: float = 0.5) -> Transform:
    """White less the image, with probability `p`. Parameters: whether. Raises InputError."""
    return _sometimes(tone.invert, p, "inverting")


def random_posterize(bits: int, p: float = 0.5) -> Transform:
    """The `bits` highest bits of each level, with probability `p`. Parameters: whether. Raises InputError."""
    tone.check_bits(bits)
    return _sometimes(lambda image: tone.posterize(image, bits), p, "posterizing")


def random_solarize(threshold: float, p: float = 0.5) -> Transform:
    """Levels from `threshold` on inverted, with probability `p`. Parameters: whether. Raises InputError."""
    return _sometimes(lambda image: tone.solarize(image, threshold), p, "solarizing")


def random_adjust_sharpness(sharpness_factor: float, p: float = 0.5) -> Transform:
    """Sharper (factor > 1) or softer (< 1), with probability `p`. Parameters: whether. Raises InputError."""
    color.positive(sharpness_factor, "sharpness")
    return _sometimes(lambda image: enhance.adjust_sharpness(image, sharpness_factor), p, "sharpening")


def random_autocontrast(p: float = 0.5) -> Transform:
    """Each channel stretched to black and white, with probability `p`. Parameters: whether. Raises InputError."""
    return _sometimes(tone.autocontrast, p, "stretching")


def random_equalize(p: float = 0.5) -> Transform:
    """Each channel's levels spread evenly, with probability `p`. Parameters: whether. Raises InputError."""
    return _sometimes(tone.equalize, p, "equalizing")


def gaussian_blur(kernel_size: KernelSize, sigma: float | Sequence[float] = (0.1, 2.0)) -> Transform:
    """Blurred by a Gaussian of drawn width. Parameters: its standard deviation in pixels.

    kernel_size: as for `functional.gaussian_blur`. sigma: drawn uniformly between the two ends, or one number.
    Raises InputError.
    """
    sizes = enhance.kernel_sizes(kernel_size)
    low, high = (sigma, sigma) if isinstance(sigma, int | float) else sigma
    if not 0 < low <= high:
        raise InputError(
            f"the sigma {sigma} is not a range above 0", "give a number, or a pair with the lower one first"
        )

    def sample(key: Key, shape: Shape) -> Float[Array, ""]:
        return low + product(high - low, jax.random.uniform(key, (), jnp.float32))

    return Transform(sample, lambda drawn, image: enhance.gaussian_blur(image, sizes, drawn))


def to_float(dtype: DTypeLike = jnp.float32) -> Transform:
    """The image in floating point, uint8 divided by 255. Parameters: (). Raises InputError."""
    normalization.check_floating(dtype)
    return deterministic(lambda image: normalization.to_float(image, dtype))


def normalize(mean: Channels, std: Channels, dtype: DTypeLike | None = None) -> Transform:
    """(image - mean) / std in floating point `dtype`, last in a chain. Parameters: (). Raises InputError.

    mean, std, dtype: as for `functional.normalize`.
    """
    normalization.check_std(std)
    return deterministic(lambda image: normalization.normalize(image, mean, std, dtype))


def check_probability(p: float, name: str) -> None:
    """Raise InputError for a probability outside [0, 1]."""
    if not 0 <= p <= 1:
        raise InputError(f"{name} with probability {p} is outside [0, 1]", "give p from 0 (never) to 1 (always)")


def _sometimes(function: Callable[[Image], Image], p: float, name: str) -> Transform:
    """The function with probability `p`. It keeps shape and dtype, and moves nothing."""
    check_probability(p, name)

    def sample(key: Key, shape: Shape) -> Bool[Array, ""]:
        return jax.random.uniform(key, (), jnp.float32) < p

    return Transform(sample, lambda chosen, image: jnp.where(chosen, function(image), image))
