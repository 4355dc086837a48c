"""Rows of a batch, each done by the device that holds it."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from lepton_jax import mesh


def by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of rows, done by each device on the rows that it holds: a loop over all rows would gather them,
    and one that ends when every row is done would ask all devices in each round.

    The devices are those of the mesh that `jax.set_mesh` has set, as `step.compile` does. Where there is none, or the
    rows do not divide over it, or they are one device's own already, the function is called as it is.
    """

    def over_rows(*arrays: Any) -> Any:
        rows = jax.tree.leaves(arrays)[0].shape[0]
        here = mesh.automatic()
        axes = mesh.batch_axes(here) if here else ()
        if not here or not axes or rows % mesh.batch_shards(here):
            return function(*arrays)
        spec = P(axes)
        return jax.shard_map(function, in_specs=spec, out_specs=spec)(*arrays)

    return over_rows
