"""How far float32 runs on two meshes part by rounding: the same recipe and seed, on one device and on eight.

    python -m benchmarks.meshes

Fifty steps on the digits in batches of 16, with crops and color jitter, SGD with momentum, 1x1 against 8x1; once as the
partitioner adds, and once in eight virtual shards (`--bitwise 8`). The value is the share of the runs in shards that
end with the same bits in all of the state. Of the others the table says how many end within 1e-6: behind batch norm
many inputs of ReLUs lie near zero, and a run parts where one rounds to the other side. In float64 all of them agree to
1e-9 (tests/test_laws.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

STEPS, BATCH, AXES, CLOSE, SHARDS = 50, 16, "8x1", 1e-6, 8


def models() -> dict[str, Callable[[], Any]]:
    """By name, each as a function without arguments."""
    from lepton_jax import models

    return {
        "mlp": functools.partial(models.build, "mlp", 10),
        "cnn, dropout": functools.partial(models.cnn, 10, widths=(8, 16), hidden=32, dropout=0.5),
        "vit": functools.partial(models.vit.standard, models.vit.Size(32, 2, 2), 10, patch=2),
        "resnet8": functools.partial(models.build, "resnet8", 10),
    }


def trained(model: Any, axes: str, seeds: int, shards: int | None) -> list[Any]:
    """The state after the run, by seed; the step is compiled once."""
    import jax

    mesh, optimizer = lp.mesh.make(axes), lp.optimizers.build("sgd", 0.05, weight_decay=1e-4)
    dataset = lp.data.load("digits")
    model = lp.models.normalized(model, *lp.data.statistics(dataset.train))
    augment = lp.augment.compose(lp.augment.random_crop(8, padding=1), lp.augment.color_jitter(0.4))
    loss = lp.augmented(lp.supervised(model, lp.cross_entropy()), augment)
    gradient = lp.sharded(lp.plain(loss), shards) if shards else lp.plain(loss)
    step, compiled, ends = lp.descend(gradient, optimizer), None, []
    for seed in range(seeds):
        stream = lp.data.Stream(dataset.train, BATCH, seed)
        state = lp.step.initial(model, optimizer, lp.keys.seeded(seed), stream.batch(0)["input"])
        state = lp.step.place(state, mesh, model.rules)
        compiled = compiled or lp.step.compile(step, state, stream.batch(0), mesh, model.rules)
        for number in range(STEPS):
            state, _ = compiled(state, lp.mesh.place(stream.batch(number), mesh))
        ends.append(jax.device_get(state._replace(key=jax.random.key_data(state.key))))
    return ends


def main(seeds: int = 10) -> None:
    """Compare runs on two meshes.

    Args:
        seeds: Runs of each model on each mesh.
    """
    rows, same = [], []
    lp.mesh.simulate(8)
    for name, build in models().items():
        model = build()
        for shards in (None, SHARDS):
            pairs = list(zip(*(trained(model, axes, seeds, shards) for axes in (AXES, "1x1")), strict=True))
            found = np.array([lp.tree.distance(*(state.params for state in pair)) for pair in pairs])
            bits = [identical(*pair) for pair in pairs]
            counts = [f"{int(np.sum(found < CLOSE))} of {seeds}", f"{sum(bits)} of {seeds}"]
            rows.append([name, shards or "none", *counts, f"{np.median(found):.1e}", f"{found.max():.1e}"])
            same += bits if shards else []
    value = float(np.mean(same))
    head = ["model", "shards", "within 1e-6", "same bits", "median", "largest"]
    record.tell("meshes", head, rows, value, 1.0, value == 1.0)


def identical(state: Any, other: Any) -> bool:
    """Whether two states on the host are the same bits."""
    import jax

    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


if __name__ == "__main__":
    lp.cli.command(main)
