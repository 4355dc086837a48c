"""How far runs on two meshes part by rounding: the same recipe and seed, on one device and on eight.

    python -m benchmarks.meshes

Fifty steps on the digits in batches of 16, with random crops, SGD with momentum. The table has the relative difference
of the parameters to those of one device, |a - b| / |b|, the median over the seeds: in float64, the proof that nothing
else differs, and in float32. Behind batch norm many inputs of ReLUs lie near zero, and a float32 run parts where one
rounds to the other side. The last row is the share of float32 runs that end with the same bits in all of the state on
8x1 as on 1x1, computed in eight virtual shards (`--bitwise 8`). The value is the largest difference in float64; for
the bar to hold, all runs in shards have to end with the same bits too.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

STEPS, BATCH, BAR, SHARDS = 50, 16, 1e-9, 8
MESHES = ("8x1", "4x2", "2x4", "1x8", "fsdp=8", "data=2,fsdp=2,model=2", "pipe=4,data=2", "sequence=4,data=2")


def models() -> dict[str, Callable[[], Any]]:
    """By name, each as a function without arguments."""
    from lepton_jax import models

    vit = functools.partial(
        models.stacked.vision_transformer, models.vit.Size(32, 4, 8), 10, patch=2, dropout=0.1, stochastic_depth=0.1
    )
    return {
        "mlp": functools.partial(models.build, "mlp", 10),
        "resnet8": functools.partial(models.build, "resnet8", 10),
        "vit": vit,
    }


def trained(model: Any, axes: str, seeds: int, dtype: Any, shards: int | None = None) -> list[Any]:
    """(the state after the run, the samples it saw) by seed; the step is compiled once."""
    import jax

    mesh, optimizer = lp.mesh.make(axes), lp.optimizers.build("sgd", 0.05, weight_decay=1e-4)
    dataset = lp.data.load("digits")
    model = lp.models.normalized(model, *lp.data.statistics(dataset.train))
    loss = lp.augmented(lp.supervised(model, lp.cross_entropy()), lp.augment.random_crop(8, padding=1))
    gradient = lp.sharded(lp.plain(loss), shards) if shards else lp.plain(loss)
    step, compiled, ends = lp.descend(gradient, optimizer), None, []
    for seed in range(seeds):
        stream = lp.data.Stream(dataset.train, BATCH, seed)
        state = lp.step.initial(model, optimizer, lp.keys.seeded(seed), stream.batch(0)["input"])
        parts = {part: lp.tree.cast(getattr(state, part), dtype) for part in ("params", "stats", "opt_state")}
        state = lp.step.place(state._replace(**parts), mesh, model.rules)
        compiled = compiled or lp.step.compile(step, state, stream.batch(0), mesh, model.rules)
        samples = []
        for number in range(STEPS):
            batch = stream.batch(number)
            state, _ = compiled(state, lp.mesh.place(batch, mesh))
            samples.append(batch["index"])
        ends.append((jax.device_get(state._replace(key=jax.random.key_data(state.key))), np.array(samples)))
    return ends


def differences(model: Any, seeds: int, wide: bool) -> dict[str, float]:
    """By mesh, how far from one device's parameters a run ends. Raises ValueError where it saw other samples."""
    import jax

    jax.config.update("jax_enable_x64", wide)
    try:
        run = functools.partial(trained, model, seeds=seeds, dtype="float64" if wide else "float32")
        alone, found = run("1x1"), {}
        for axes in MESHES:
            pairs = list(zip(run(axes), alone, strict=True))
            if any(np.any(samples != others) for (_, samples), (_, others) in pairs):
                raise ValueError(f"the run on {axes} saw other samples than that on one device")
            found[axes] = float(np.median([lp.tree.distance(a.params, b.params) for (a, _), (b, _) in pairs]))
        return found
    finally:
        jax.config.update("jax_enable_x64", False)


def main(seeds: int = 3) -> None:
    """Compare runs on the meshes.

    Args:
        seeds: Runs of each model on each mesh.
    """
    lp.mesh.simulate(8)
    columns: dict[str, list[str]] = {"mesh": [*MESHES, "8x1, same bits in 8 shards"]}
    largest, same = 0.0, []
    for name, build in models().items():
        model = build()
        exact, rounded = (differences(model, seeds, wide) for wide in (True, False))
        largest = max(largest, *exact.values())
        runs = zip(*(trained(model, axes, seeds, "float32", SHARDS) for axes in ("8x1", "1x1")), strict=True)
        bits = [identical(a, b) for (a, _), (b, _) in runs]
        same += bits
        columns[f"{name}, float64"] = [*(f"{exact[axes]:.0e}" for axes in MESHES), ""]
        columns[f"{name}, float32"] = [*(f"{rounded[axes]:.0e}" for axes in MESHES), f"{sum(bits)} of {seeds}"]
    rows = list(zip(*columns.values(), strict=True))
    record.tell("meshes", list(columns), rows, largest, BAR, largest < BAR and all(same))


def identical(state: Any, other: Any) -> bool:
    """Whether two states on the host are the same bits."""
    import jax

    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


if __name__ == "__main__":
    lp.cli.command(main)
