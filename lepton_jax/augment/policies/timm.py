"""RandAugment as timm has it: levels 0 to 10 with noise, operations that are skipped, its own list and ranges."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.augment.base import Shape, Transform
from lepton_jax.augment.image import Canvas, Fill, product
from lepton_jax.augment.policies.chain import Chain, chained, happens
from lepton_jax.augment.policies.operations import IDENTITY
from lepton_jax.augment.policies.randaugment import check_layers
from lepton_jax.augment.policies.spaces import check_operations
from lepton_jax.augment.warp import Interpolation
from lepton_jax.errors import InputError
from lepton_jax.types import Key

Part = Float[Array, ""]  # the level as a part of 10
Sign = Float[Array, ""]  # 1 or -1
MOST = 10  # the level at which ranges end


class Rule(NamedTuple):
    """An operation, and its amount by (part of 10, sign, the image's (height, width))."""

    operation: str
    amount: Callable[[Part, Sign, Canvas], Array]


def _signed(most: float) -> Callable[[Part, Sign, Canvas], Array]:
    return lambda part, sign, size: sign * (most * part)


def _factor(part: Part, sign: Sign, size: Canvas) -> Array:
    return 0.1 + product(1.8, part)


def _rising_factor(part: Part, sign: Sign, size: Canvas) -> Array:
    return jnp.maximum(0.1, 1 + product(sign, product(0.9, part)))


def _none(part: Part, sign: Sign, size: Canvas) -> Array:
    return jnp.zeros_like(part)


RULES = {
    "autocontrast": Rule("autocontrast", _none),
    "equalize": Rule("equalize", _none),
    "invert": Rule("invert", _none),
    "rotate": Rule("rotate", _signed(30)),
    "posterize": Rule("posterize", lambda part, sign, size: jnp.minimum(jnp.floor(4 * part), 8)),
    "posterize_increasing": Rule("posterize", lambda part, sign, size: jnp.maximum(4 - jnp.floor(4 * part), 0)),
    "solarize": Rule("solarize", lambda part, sign, size: jnp.minimum(jnp.floor(256 * part), 256)),
    "solarize_increasing": Rule("solarize", lambda part, sign, size: jnp.maximum(256 - jnp.floor(256 * part), 0)),
    "solarize_add": Rule("solarize_add", lambda part, sign, size: jnp.minimum(jnp.floor(110 * part), 128)),
    "color": Rule("color", _factor),
    "color_increasing": Rule("color", _rising_factor),
    "contrast": Rule("contrast", _factor),
    "contrast_increasing": Rule("contrast", _rising_factor),
    "brightness": Rule("brightness", _factor),
    "brightness_increasing": Rule("brightness", _rising_factor),
    "sharpness": Rule("sharpness", _factor),
    "sharpness_increasing": Rule("sharpness", _rising_factor),
    "shear_x": Rule("shear_x", _signed(0.3)),
    "shear_y": Rule("shear_y", _signed(0.3)),
    "translate_x": Rule("translate_x", lambda part, sign, size: sign * (0.45 * size[1] * part)),
    "translate_y": Rule("translate_y", lambda part, sign, size: sign * (0.45 * size[0] * part)),
}
INCREASING = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize_increasing", "solarize_increasing", "solarize_add"),
    *("color_increasing", "contrast_increasing", "brightness_increasing", "sharpness_increasing"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
ORIGINAL = tuple(name.removesuffix("_increasing") for name in INCREASING)


def randaugment_timm(
    layers: int = 2,
    magnitude: float = 9,
    deviation: float = 0.5,
    p: float = 0.5,
    most: float = MOST,
    operations: Sequence[str] = INCREASING,
    interpolation: Interpolation = "bilinear",
    fill: Fill | None = None,
) -> Transform:
    """timm's RandAugment, "rand-m9-mstd0.5-inc1" by default: uniformly drawn operations, each skipped with 1 - p.

    magnitude: the mean level, its ranges ending at 10. deviation: of the normal noise on each level, which then is
    clipped to [0, most]; infinity draws levels uniformly up to `magnitude`. operations: INCREASING, whose strength
    grows with the level, or ORIGINAL, or a choice. fill: None is middle gray, 128 of 255. Parameters: a Chain. The
    operations are torchvision's where Pillow's differ, and timm would draw bicubic interpolation for half of the moves.
    Raises InputError. Cubuk et al. 2020, https://arxiv.org/abs/1909.13719; Wightman 2019, https://github.com/huggingface/pytorch-image-models
    """
    check_layers(layers)
    check_operations(tuple(operations), tuple(RULES))
    _check(magnitude, deviation, p, most)
    rules = [RULES[name] for name in operations]
    names = (*(rule.operation for rule in rules), IDENTITY)

    def sample(key: Key, shape: Shape) -> Chain:
        return jax.vmap(lambda key: layer(key, (shape[0], shape[1])))(jax.random.split(key, layers))

    def layer(key: Key, size: Canvas) -> Chain:
        choice, chance, noise, sign = jax.random.split(key, 4)
        part = jnp.clip(_level(noise, magnitude, deviation), 0, most) / MOST
        direction = 1 - 2 * happens(sign, 0.5).astype(jnp.float32)
        amounts = jnp.stack([rule.amount(part, direction, size) for rule in rules] + [jnp.zeros_like(part)])
        operation = jax.random.randint(choice, (), 0, len(rules), jnp.int32)
        operation = jnp.where(happens(chance, p), operation, len(rules))
        return Chain(operation, amounts[operation])

    return chained(sample, names, interpolation, fill)


def _level(key: Key, magnitude: float, deviation: float) -> Float[Array, ""]:
    if math.isinf(deviation):
        return magnitude * jax.random.uniform(key, (), jnp.float32)
    return magnitude + product(deviation, jax.random.normal(key, (), jnp.float32))


def _check(magnitude: float, deviation: float, p: float, most: float) -> None:
    if not 0 <= magnitude <= most:
        raise InputError(f"the magnitude {magnitude} is outside [0, {most}]", "give a level in it; 9 is usual")
    if not deviation >= 0:
        raise InputError(f"the deviation {deviation} of a magnitude is negative", "give 0 for none; 0.5 is usual")
    if not 0 <= p <= 1:
        raise InputError(f"an operation with probability {p} is outside [0, 1]", "give p in it; 0.5 is usual")
