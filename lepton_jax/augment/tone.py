"""Tone: levels to other levels, as torchvision's v2 functional transforms define it.

Everything here is exact for uint8 (whole numbers, divided once), and so the same on every mesh.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, UInt8

from lepton_jax.augment.color import Plane, bound, check_dtype, merge, split, working
from lepton_jax.augment.image import Image
from lepton_jax.errors import InputError

LEVELS = 256  # of uint8


def invert(image: Image) -> Image:
    """White less the image. Raises InputError."""
    check_dtype(image)
    return bound(image.dtype) - image


def posterize(image: Image, bits: ArrayLike) -> Image:
    """The `bits` highest bits of each level, 0 to 8; floats are rounded down to 2**bits levels. Raises InputError."""
    check_dtype(image)
    check_bits(bits)
    bits = jnp.asarray(bits).astype(jnp.int32)
    if image.dtype == jnp.uint8:
        return image & (0xFF00 >> bits).astype(jnp.uint8)
    kind = working(image.dtype)
    levels = (1 << bits).astype(kind)
    return (jnp.clip(jnp.floor(image.astype(kind) * levels), 0, levels - 1) / levels).astype(image.dtype)


def check_bits(bits: ArrayLike) -> None:
    """Raise InputError for a number of bits that a level does not have."""
    if isinstance(bits, int | float) and not 0 <= bits <= 8:
        raise InputError(f"posterizing to {bits} bits is not defined", "give 0 to 8 bits; 8 keeps every level")


def solarize(image: Image, threshold: ArrayLike) -> Image:
    """Levels of at least `threshold`, in the image's units, inverted. Raises InputError."""
    check_dtype(image)
    white = bound(image.dtype)
    if isinstance(threshold, int | float) and threshold > white:
        raise InputError(
            f"a threshold of {threshold} is above white, {white} for {image.dtype}",
            f"give the level, at most {white}, from which to invert; white itself inverts white only",
        )
    kind = working(image.dtype)
    return jnp.where(image.astype(kind) >= jnp.asarray(threshold, kind), invert(image), image)


def autocontrast(image: Image) -> Image:
    """Each channel stretched, so that its darkest pixel is black and its brightest white. Raises InputError.

    A channel of one level stays as it is. uint8 is truncated.
    """
    return merge(tuple(_stretch(plane) for plane in split(image)))


def _stretch(plane: Plane) -> Plane:
    kind, white = working(plane.dtype), bound(plane.dtype)
    low, high = jnp.min(plane).astype(kind), jnp.max(plane).astype(kind)
    low, span = jnp.where(low == high, 0, low), jnp.where(low == high, white, high - low)
    above = plane.astype(kind) - low
    if plane.dtype == jnp.uint8:
        # The half keeps the quotient of whole numbers clear of the edge, where rounding would decide.
        return jnp.floor((above * white + 0.5) / span).astype(jnp.uint8)
    return jnp.clip(above / span, 0, 1).astype(plane.dtype)


def equalize(image: Image) -> Image:
    """Each channel with its levels spread so that about as many pixels have each of them. Raises InputError.

    Pillow's scheme. Floats go through the 256 levels of uint8.
    """
    planes = split(image)
    if image.dtype != jnp.uint8:
        kind = working(image.dtype)
        # torchvision goes from [0, 1] to uint8 by truncating 255.999 times the value.
        levels = (jnp.clip(image.astype(kind), 0, 1) * 255.999).astype(jnp.uint8)
        return (equalize(levels).astype(kind) / 255).astype(image.dtype)
    tables = jnp.concatenate([_equalizing(plane) for plane in planes])
    table = jnp.arange(len(planes), dtype=jnp.int32)[None, None, :]
    return tables.at[LEVELS * table + image.astype(jnp.int32)].get(mode="promise_in_bounds")


def _equalizing(plane: UInt8[Array, "height width"]) -> UInt8[Array, " levels"]:
    """The new level of each level."""
    counts = histogram(plane)
    brightest = counts[jnp.max(plane).astype(jnp.int32)]
    step = (plane.size - brightest) // (LEVELS - 1)
    spread = (jnp.cumsum(counts) - counts + step // 2) // jnp.maximum(step, 1)
    kept = jnp.arange(LEVELS, dtype=jnp.int32)
    return jnp.where(step == 0, kept, jnp.minimum(spread, LEVELS - 1)).astype(jnp.uint8)


def histogram(plane: UInt8[Array, "height width"]) -> Int[Array, " levels"]:
    """How many pixels have each of the 256 levels; at most 2**24 pixels.

    A CPU adds pixel by pixel, which was 16 times as fast there as a sort and 80 times as a product of matrices. Where
    many threads would meet at one counter, counts are a product of matrices. Both are exact, and so equal.
    """
    return jax.lax.platform_dependent(plane.reshape(-1), cpu=counted, default=multiplied)


def counted(levels: UInt8[Array, " pixels"]) -> Int[Array, " levels"]:
    """The histogram, by adding 1 per pixel."""
    return jnp.zeros(LEVELS, jnp.int32).at[levels.astype(jnp.int32)].add(1, mode="promise_in_bounds")


def multiplied(levels: UInt8[Array, " pixels"]) -> Int[Array, " levels"]:
    """The histogram, by the product of one-hot matrices of the high and the low four bits."""
    digits = jnp.arange(16, dtype=jnp.uint8)[None, :]
    high = (levels[:, None] >> 4 == digits).astype(jnp.bfloat16)
    low = (levels[:, None] & 15 == digits).astype(jnp.bfloat16)
    counts = jnp.einsum("ph,pl->hl", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(LEVELS).astype(jnp.int32)
