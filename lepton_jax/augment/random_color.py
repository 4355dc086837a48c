"""Transforms that draw how to change colors, and change them."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lepton_jax.augment import color
from lepton_jax.augment.base import Transform
from lepton_jax.augment.image import Image, Shape, product
from lepton_jax.errors import InputError
from lepton_jax.types import Key

Range = float | Sequence[float]
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the numbers in an order


class Jitter(NamedTuple):
    """What `color_jitter` drew: the operations' numbers in the order of action, and their amounts.

    The amount of an operation that the transform leaves out is None.
    """

    order: Int[Array, " operations"]
    brightness: Float[Array, ""] | None
    contrast: Float[Array, ""] | None
    saturation: Float[Array, ""] | None
    hue: Float[Array, ""] | None


def color_jitter(brightness: Range = 0, contrast: Range = 0, saturation: Range = 0, hue: Range = 0) -> Transform:
    """Brightness, contrast, saturation and hue by drawn amounts in a drawn order, as in torchvision.

    A number x stands for factors in [max(0, 1 - x), 1 + x], and for hue for shifts in [-x, x]; a pair gives the
    two ends. What cannot change anything is left out. Parameters: a Jitter. Raises InputError.
    """
    ranges = (
        _range("brightness", brightness, 1, 0, math.inf),
        _range("contrast", contrast, 1, 0, math.inf),
        _range("saturation", saturation, 1, 0, math.inf),
        _range("hue", hue, 0, -0.5, 0.5),
    )
    used = [number for number, ends in enumerate(ranges) if ends != ((0, 0) if number == HUE else (1, 1))]
    orders = np.array(list(itertools.permutations(used)), np.int32)

    def sample(key: Key, shape: Shape) -> Jitter:
        draw = jax.random.uniform(key, (5,), jnp.float32)
        order = jnp.asarray(orders)[(draw[4] * len(orders)).astype(jnp.int32)]
        amounts = [
            low + product(high - low, draw[number]) if number in used else None
            for number, (low, high) in enumerate(ranges)
        ]
        return Jitter(order, *amounts)

    return Transform(sample, jitter)


def jitter(parameters: Jitter, image: Image) -> Image:
    """The drawn operations in the drawn order.

    A branch per example would run every operation at every place of the order. Instead, the three cheap ones,
    which are all blends, share one blend per place, and hue acts once, between the places before and after it.
    A blend that is not due has factor 1, which changes nothing.
    """
    order, planes = parameters.order, color.split(image)
    if len(planes) == 1:
        parameters = parameters._replace(saturation=None)
    if parameters.hue is None:
        return color.merge(_blends(planes, parameters, order, jnp.ones(order.shape, bool)))
    place = jnp.arange(order.size)
    hue_place = jnp.argmax(order == HUE)
    planes = _blends(planes, parameters, order[:-1], place[:-1] < hue_place)
    planes = color.turn_hue(planes, parameters.hue)
    return color.merge(_blends(planes, parameters, order[1:], place[1:] > hue_place))


def _blends(
    planes: color.Planes, parameters: Jitter, order: Int[Array, " places"], due: Bool[Array, " places"]
) -> color.Planes:
    """One blend after the other, where due.

    A loop because straight code is fused: XLA on CPUs recomputes each blend for every use by the next one, which
    grows with a power of the length (measured: 5,000 times slower).
    """

    def blend(planes: color.Planes, place: tuple[Array, Array]) -> tuple[color.Planes, None]:
        return _blend(planes, parameters, *place), None

    return jax.lax.scan(blend, planes, (order, due))[0]


def _blend(planes: color.Planes, parameters: Jitter, number: Int[Array, ""], due: Bool[Array, ""]) -> color.Planes:
    """The brightness, contrast or saturation of that number, where it is due."""
    gray = color.gray(planes)
    factor, other = jnp.ones((), gray.dtype), jnp.zeros((), gray.dtype)
    if parameters.brightness is not None:
        factor = jnp.where(due & (number == BRIGHTNESS), parameters.brightness, factor)
    if parameters.contrast is not None:
        chosen = due & (number == CONTRAST)
        factor = jnp.where(chosen, parameters.contrast, factor)
        other = jnp.where(chosen, color.mean(gray), other)
    if parameters.saturation is not None:
        chosen = due & (number == SATURATION)
        factor = jnp.where(chosen, parameters.saturation, factor)
        other = jnp.where(chosen, gray, other)
    return color.blend(planes, other, factor)


def _range(name: str, given: Range, center: float, least: float, most: float) -> tuple[float, float]:
    """The ends of the amounts to draw from. Raises InputError."""
    if not isinstance(given, int | float):
        low, high = given
    elif given < 0:
        raise InputError(f"a {name} jitter of {given} is negative", "give 0 or more, or a pair (low, high)")
    else:
        low, high = max(center - given, least) if name != "hue" else -given, center + given
    if not least <= low <= high <= most:
        raise InputError(
            f"the {name} jitter {given} is not a range within [{least}, {most}]",
            "give ends that lie inside, the lower one first",
        )
    return float(low), float(high)
