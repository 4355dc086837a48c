"""The operations that policies choose from: each takes an image and one number, its amount.

Amounts are a kernel's own argument: pixels a pixel for shears, pixels for translations, degrees counter-clockwise,
factors for brightness, color, contrast and sharpness (1 changes nothing), bits kept for posterize, and levels of 255
for solarize's threshold and solarize_add's addend, whatever the dtype. The others take no notice of theirs.
"""

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from lepton_jax.augment import functional, geometry, matrices
from lepton_jax.augment.image import Canvas, Fill, Image, product
from lepton_jax.augment.warp import Interpolation, check_interpolation, warp

Amount = Float[Array, ""]
Kernel = Callable[[Image, Amount], Image]


def solarize(image: Image, threshold: ArrayLike) -> Image:
    """Inverted where not below `threshold`, in levels of 255."""
    return functional.solarize(image, _levels(image, threshold))


def solarize_add(image: Image, addend: ArrayLike) -> Image:
    """Brighter by `addend`, in levels of 255 and clamped, where below 128 of 255."""
    top = 255 if image.dtype == jnp.uint8 else 1
    kind = jnp.promote_types(image.dtype, jnp.float32)
    added = jnp.minimum(image.astype(kind) + _levels(image, addend).astype(kind), top)
    return jnp.where(image < _levels(image, 128).astype(image.dtype), added.astype(image.dtype), image)


def _levels(image: Image, amount: ArrayLike) -> Array:
    """An amount in levels of 255, in the units of the image."""
    levels = jnp.asarray(amount, jnp.float32)
    # product keeps the quotient apart from a sum that follows
    return levels if image.dtype == jnp.uint8 else product(levels / 255, 1)


# What an output's place pulls from the input, as [2, 3] matrices.
MOVES: dict[str, Callable[[Amount, Canvas], matrices.Affine]] = {
    "shear_x": lambda amount, size: matrices.matrix([[1, amount, 0], [0, 1, 0]]),
    "shear_y": lambda amount, size: matrices.matrix([[1, 0, 0], [amount, 1, 0]]),
    "translate_x": lambda amount, size: matrices.shift(-amount, 0),
    "translate_y": lambda amount, size: matrices.shift(0, -amount),
    "rotate": lambda amount, size: matrices.rotation(amount, (size[1] / 2, size[0] / 2)),
}
COLORS: dict[str, Kernel] = {
    "brightness": lambda image, amount: functional.adjust_brightness(image, amount),
    "color": lambda image, amount: functional.adjust_saturation(image, amount),
    "contrast": lambda image, amount: functional.adjust_contrast(image, amount),
    "sharpness": lambda image, amount: functional.adjust_sharpness(image, amount),
    "posterize": lambda image, amount: functional.posterize(image, amount.astype(jnp.int32)),
    "solarize": solarize,
    "solarize_add": solarize_add,
    "autocontrast": lambda image, amount: functional.autocontrast(image),
    "equalize": lambda image, amount: functional.equalize(image),
    "invert": lambda image, amount: functional.invert(image),
}
IDENTITY = "identity"
NAMES = (IDENTITY, *MOVES, *COLORS)


def kernels(names: Iterable[str], interpolation: Interpolation, fill: Fill | None) -> list[Kernel]:
    """The operations of those names. Outside of the image lies `fill`, None for middle gray.

    Raises InputError for an unknown interpolation.
    """
    check_interpolation(interpolation)
    return [_kernel(name, interpolation, fill) for name in names]


def _kernel(name: str, interpolation: Interpolation, fill: Fill | None) -> Kernel:
    if name == IDENTITY:
        return lambda image, amount: image
    if name not in MOVES:
        return COLORS[name]
    pull = MOVES[name]

    def moved(image: Image, amount: Amount) -> Image:
        size = image.shape[0], image.shape[1]
        outside = (128 if image.dtype == jnp.uint8 else 128 / 255) if fill is None else fill
        return warp(image, [geometry.affinity(pull(amount, size), size, interpolation, outside)], interpolation)

    return moved


def pulled(names: Sequence[str], operation: Int[Array, ""], amount: Amount, size: Canvas) -> matrices.Affine:
    """Which matrix an operation, by its place among `names`, pulls by in an image of `size`; colors move nothing."""
    table = [MOVES[name](amount, size) if name in MOVES else matrices.shift(0, 0) for name in names]
    return jnp.stack(table)[operation]
