"""Acting on a batch in which every image has a branch of its own."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.augment.base import Batched, Images, Parameters
from lepton_jax.augment.image import Image
from lepton_jax.mesh import BATCH_AXES

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


def by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of rows, done by each device on the rows that it holds: a loop over all rows would gather them.

    The devices are those of the mesh that `jax.set_mesh` has set, as `step.compile` does. Where there is none, or the
    rows do not divide over it, or they are one device's own already, the function is called as it is.
    """

    def over_rows(*arrays: Any) -> Any:
        rows = jax.tree.leaves(arrays)[0].shape[0]
        here = jax.sharding.get_abstract_mesh()
        automatic = all(kind == AxisType.Auto for kind in here.axis_types)
        axes = tuple(axis for axis in BATCH_AXES if axis in here.shape) if automatic else ()
        if not axes or rows % math.prod(here.shape[axis] for axis in axes):
            return function(*arrays)
        spec = P(axes)
        return jax.shard_map(function, in_specs=spec, out_specs=spec)(*arrays)

    return over_rows
