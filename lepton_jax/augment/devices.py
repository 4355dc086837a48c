"""Rows of a batch, each done by the device that holds it."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lepton_jax.mesh import BATCH_AXES


def by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of rows, done by each device on the rows that it holds: a loop over all rows would gather them,
    and one that ends when every row is done would ask all devices in each round.

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
