"""One process of benchmarks.resharding: saves a state from meshes, and restores what was saved onto meshes.

    python -m benchmarks.resharded --devices 8 --save DIR --save-meshes 8x1 4x2
    python -m benchmarks.resharded --devices 4 --restore DIR/8x1 DIR/4x2 --meshes 4x1 2x2

Of several processes (LEPTON_COORDINATOR and its kin) each has its share of the devices. Prints a line of JSON for each
restore: {"saved", "mesh", "same"}, same being whether every bit that this process holds is the one that was saved.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

import lepton_jax as lp
from lepton_jax import tree


def main(
    devices: int,
    save: str | None = None,
    save_meshes: tuple[str, ...] = (),
    restore: tuple[str, ...] = (),
    meshes: tuple[str, ...] = (),
) -> None:
    """Save and restore.

    Args:
        devices: Those of all processes together.
        save: Where the checkpoints go, each into a directory named by its mesh.
        save_meshes: From which.
        restore: Directories of checkpoints.
        meshes: Onto which.
    """
    if membership := lp.processes.find({}, os.environ):
        lp.processes.join(membership, devices)
    else:
        lp.mesh.simulate(devices)
    expected, rules = state()
    for axes in save_meshes:
        assert save is not None
        with lp.checkpoint.Checkpoints(pathlib.Path(save) / axes) as checkpoints:
            checkpoints.save(lp.step.place(expected, lp.mesh.make(axes), rules), {}, {})
    for place in restore:
        for axes in meshes:
            with lp.checkpoint.Checkpoints(place) as checkpoints:
                found, _ = checkpoints.restore(expected, lp.mesh.make(axes), rules)
            same = is_same(found, expected) and not checkpoints.aside
            print(json.dumps({"saved": place, "mesh": axes, "same": same}), flush=True)
    lp.processes.part()  # else the first to leave takes the others down
    lp.cli.leave(0)


def state() -> tuple[lp.types.TrainState, tuple[lp.types.Rule, ...]]:
    """(a Vision Transformer's state under AdamW, every leaf of random numbers as after training; its rules)."""
    import jax

    model = lp.models.vit.standard(lp.models.vit.Size(16, 2, 4), 10, patch=4)
    optimizer = lp.optimizers.build("adamw", lambda count: 1e-3)
    begun = lp.step.initial(model, optimizer, lp.keys.seeded(0), jax.ShapeDtypeStruct((8, 8, 8, 1), np.uint8))
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> jax.Array:
        return jax.numpy.asarray(rng.normal(size=leaf.shape) if tree.is_floating(leaf) else leaf, leaf.dtype)

    return jax.tree.map(drawn, begun._replace(key=()))._replace(key=begun.key), model.rules


def is_same(found: lp.types.TrainState, expected: lp.types.TrainState) -> bool:
    """Whether all that lies on this process's devices is bit for bit what it should be."""
    import jax

    pairs = zip(*(jax.tree.leaves(x._replace(key=jax.random.key_data(x.key))) for x in (found, expected)), strict=True)
    return all(
        np.array_equal(np.asarray(shard.data), np.asarray(whole)[shard.index])
        for leaf, whole in pairs
        for shard in leaf.addressable_shards
    )


if __name__ == "__main__":
    lp.cli.command(main)
