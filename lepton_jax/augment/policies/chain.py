"""A chain of drawn operations: what every policy comes down to, on one image and on a batch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from lepton_jax.augment import geometry
from lepton_jax.augment.base import Shape, Transform
from lepton_jax.augment.image import Canvas, Fill, Image
from lepton_jax.augment.policies.batch import Act, one_by_one
from lepton_jax.augment.policies.operations import kernels, pulled
from lepton_jax.augment.warp import Interpolation, Map
from lepton_jax.types import Key


class Chain(NamedTuple):
    """Operations in the order of action, by their place in the policy's list, and their amounts.

    The units of amounts are those of `operations`.
    """

    operation: Int[Array, "*layers"]
    amount: Float[Array, "*layers"]


def chained(
    sample: Callable[[Key, Shape], Chain], names: Sequence[str], interpolation: Interpolation, fill: Fill | None
) -> Transform:
    """The transform that draws a chain of the operations `names`, and acts by it.

    Masks, boxes and keypoints move as the image does. Raises InputError for an unknown interpolation.
    """
    act = acting(names, interpolation, fill)

    def maps(chain: Chain, size: Canvas) -> list[Map]:
        pulls = [pulled(names, *layer, size) for layer in zip(chain.operation, chain.amount, strict=True)]
        return [geometry.affinity(pull, size, interpolation, 0) for pull in pulls]

    return Transform(sample, act, maps, batch=one_by_one(act))


def acting(names: Sequence[str], interpolation: Interpolation, fill: Fill | None) -> Act:
    """The action of chains of the operations `names` on one image: (chain, image) -> image."""
    branches = kernels(names, interpolation, fill)

    def act(chain: Chain, image: Image) -> Image:
        # A loop, because straight code is fused, and an operation done again for each use by the next one.
        def layer(image: Image, drawn: Chain) -> tuple[Image, None]:
            return jax.lax.switch(drawn.operation, branches, image, drawn.amount), None

        return jax.lax.scan(layer, image, chain)[0]

    return act


def happens(key: Key, p: ArrayLike, shape: tuple[int, ...] = ()) -> Bool[Array, "*shape"]:
    """Whether what has the probability `p` happens, drawn for each element of `shape`."""
    return jax.random.uniform(key, shape, jnp.float32) < p
