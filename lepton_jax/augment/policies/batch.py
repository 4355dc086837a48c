"""Acting on a batch in which every image has a branch of its own."""

from collections.abc import Callable
from typing import Any

import jax

from lepton_jax.augment.base import Batched, Images, Parameters
from lepton_jax.augment.devices import by_device
from lepton_jax.augment.image import Image

Act = Callable[[Any, Image], Image]  # (parameters, image) -> image


def one_by_one(act: Act) -> Batched:
    """An action with branches over a batch: on CPUs image after image, so that each runs its own branch alone.

    Under vmap every image runs every branch, which costs CPUs 10 times as much and more; elsewhere it is what keeps
    the device full. Each image comes out the same, bit for bit, whichever images are beside it.
    """

    def batch(parameters: Parameters, images: Images) -> Images:
        return jax.lax.platform_dependent(parameters, images, cpu=in_turn, default=jax.vmap(act))

    def in_turn(parameters: Parameters, images: Images) -> Images:
        return jax.lax.map(lambda pair: act(*pair), (parameters, images))

    return by_device(batch)
