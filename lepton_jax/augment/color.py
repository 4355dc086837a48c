"""Color, pixel by pixel, as torchvision's v2 functional transforms define it (weights, clamps, truncation).

Work is done on planes, one [height, width] array per channel: a plane is contiguous, so the compiler
vectorizes over pixels instead of over the three channels. uint8 planes are integers between any two operations, as in
torchvision, so a chain of them truncates after each one.

All results are the same on every mesh, bit for bit. Two things would break this, and both are avoided here: a
product and a sum contracted into one instruction in some programs and not in others (`product`), and a
reduction whose order depends on the batch size (`mean`).
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from lepton_jax.augment.image import Image, Output, product
from lepton_jax.errors import InputError

Plane = Shaped[Array, "height width"]
Planes = tuple[Plane, ...]
FloatPlane = Float[Array, "height width"]


def adjust_brightness(image: Image, factor: ArrayLike) -> Image:
    """`factor` times the image, clamped. 0 is black, 1 the image itself. Raises InputError."""
    return merge(blend(split(image), 0.0, positive(factor, "brightness")))


def adjust_contrast(image: Image, factor: ArrayLike) -> Image:
    """Away from (factor > 1) or towards (< 1) the mean of the image's gray. Raises InputError."""
    planes = split(image)
    return merge(blend(planes, mean(gray(planes)), positive(factor, "contrast")))


def adjust_saturation(image: Image, factor: ArrayLike) -> Image:
    """Away from (factor > 1) or towards (< 1) each pixel's gray; one channel stays as it is. Raises InputError."""
    planes = split(image)
    factor = positive(factor, "saturation")
    return image if len(planes) == 1 else merge(blend(planes, gray(planes), factor))


def adjust_hue(image: Image, shift: ArrayLike) -> Image:
    """Hue turned by `shift` of the color circle, in [-0.5, 0.5]; one channel stays as it is. Raises InputError."""
    if isinstance(shift, int | float) and not -0.5 <= shift <= 0.5:
        raise InputError(f"a hue shift of {shift} is outside [-0.5, 0.5]", "give the part of a full circle to turn by")
    return merge(turn_hue(split(image), shift))


def grayscale(image: Image, channels: int = 1) -> Output:
    """The image's gray in 1 or 3 equal channels; truncated for uint8. Raises InputError."""
    if channels not in (1, 3):
        raise InputError(f"a gray image of {channels} channels is not defined", "ask for 1 or 3 channels")
    plane = gray(split(image)).astype(image.dtype)
    return merge((plane,) * channels)


def split(image: Image) -> Planes:
    """The channels of an image. Raises InputError for a dtype or number of channels that has no color."""
    check_dtype(image)
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise InputError(f"color is defined for 1 or 3 channels, not {channels}", "use gray or RGB images")
    return tuple(image[..., channel] for channel in range(channels))


def merge(planes: Planes) -> Image:
    """The image whose channels are `planes`."""
    return jnp.stack(planes, axis=-1)


def blend(planes: Planes, other: ArrayLike, factor: ArrayLike) -> Planes:
    """factor * planes + (1 - factor) * other, clamped to the range, truncated for uint8.

    `other` is a scalar or one plane, in the units of `planes`. A factor of 1 changes nothing.
    """
    dtype = planes[0].dtype
    kind = working(dtype)
    factor, other = jnp.asarray(factor, kind), jnp.asarray(other, kind)
    rest = product(1 - factor, other)
    return tuple(
        jnp.clip(product(factor, plane.astype(kind)) + rest, 0, bound(dtype)).astype(dtype) for plane in planes
    )


def gray(planes: Planes) -> FloatPlane:
    """0.2989 red + 0.587 green + 0.114 blue in working precision; whole numbers for uint8 (rounded down)."""
    kind = working(planes[0].dtype)
    if len(planes) == 1:
        return planes[0].astype(kind)
    red, green, blue = (plane.astype(kind) for plane in planes)
    if planes[0].dtype == jnp.uint8:
        # Sums of whole numbers below 2^24 are exact in float32, and the half keeps the division clear of the edge.
        return jnp.floor((2989 * red + 5870 * green + 1140 * blue + 0.5) * 1e-4)
    return product(0.2989, red) + product(0.587, green) + product(0.114, blue)


def mean(plane: FloatPlane) -> Float[Array, ""]:
    """The mean of a plane, summed in pairs: one order for every batch size, and less rounding than left to right."""
    length = 1 << (plane.size - 1).bit_length()
    total = jnp.pad(plane.reshape(-1), (0, length - plane.size))
    while length > 2:
        length //= 2
        total = total[:length] + total[length:]
    # The last pair by a reduction: consumers would fuse a chain of sums, and do it again for every pixel.
    return jnp.sum(total) / plane.size


def turn_hue(planes: Planes, shift: ArrayLike) -> Planes:
    """Hue turned by `shift` of the circle at constant saturation and value (Smith 1978, HSV); one plane stays."""
    if len(planes) == 1:
        return planes
    dtype = planes[0].dtype
    kind = working(dtype)
    red, green, blue = (plane.astype(kind) for plane in planes)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1, chroma)
    sixth = jnp.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sixth = jnp.where(value == red, (green - blue) / divisor, sixth) + product(6, jnp.asarray(shift, kind))
    # Each channel is the value less a trapezoid of the hue, six sixths around: one formula in place of six sectors.
    turned = (value - product(chroma, _trapezoid(sixth + start)) for start in (5, 3, 1))
    # torchvision goes from [0, 1] back to uint8 by truncating 255.999 times the value.
    scale = 255.999 / 255 if dtype == jnp.uint8 else 1
    return tuple((scale * plane).astype(dtype) for plane in turned)


def _trapezoid(sixth: FloatPlane) -> FloatPlane:
    """Up over [0, 1], 1 to 3, down to 4, then 0 to 6; periodic."""
    sixth = sixth - 6 * jnp.floor(sixth / 6)
    return jnp.clip(jnp.minimum(sixth, 4 - sixth), 0, 1)


def working(dtype: jnp.dtype) -> jnp.dtype:
    """The precision to compute in: float64 for itself, float32 for all else."""
    return jnp.dtype(jnp.float64) if dtype == jnp.float64 else jnp.dtype(jnp.float32)


def bound(dtype: jnp.dtype) -> int:
    """White in images of that dtype."""
    return 255 if dtype == jnp.uint8 else 1


def check_dtype(image: Image) -> None:
    """Raise InputError for an image that is neither uint8 nor floating point."""
    if image.dtype != jnp.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise InputError(
            f"an image of dtype {image.dtype} has no known range", "use uint8 in 0..255, or floats in 0..1"
        )


def positive(factor: ArrayLike, name: str) -> ArrayLike:
    """The factor itself. Raises InputError for a negative number."""
    if isinstance(factor, int | float) and factor < 0:
        raise InputError(f"a {name} factor of {factor} is negative", "give 0 or more; 1 leaves the image as it is")
    return factor
