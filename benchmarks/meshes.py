"""How far float32 runs on two meshes part by rounding: the same recipe and seed, on one device and on eight.

    python -m benchmarks.meshes

Fifty steps on the digits in batches of 16, with crops and color jitter, SGD with momentum, 1x1 against 4x2. The value
is the share of runs, over models whose ReLUs do not follow batch norm, that end within 1e-6 of each other.
Behind batch norm many inputs of ReLUs lie near zero, and a run parts where one rounds to the other side: those rows say
how many did. In float64 all of them agree to 1e-9 (tests/test_laws.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

STEPS, BATCH, AXES, CLOSE = 50, 16, "4x2", 1e-6
KINKED = ("resnet8",)  # batch norm before ReLUs


def models() -> dict[str, Callable[[], Any]]:
    """By name, each as a function without arguments."""
    from lepton_jax import models

    return {
        "mlp": functools.partial(models.build, "mlp", 10),
        "cnn, dropout": functools.partial(models.cnn, 10, widths=(8, 16), hidden=32, dropout=0.5),
        "vit": functools.partial(models.vit.standard, models.vit.Size(32, 2, 2), 10, patch=2),
        "resnet8": functools.partial(models.build, "resnet8", 10),
    }


def trained(model: Any, axes: str, seeds: int) -> list[Any]:
    """The parameters after the run, by seed; the step is compiled once."""
    import jax

    mesh, optimizer = lp.mesh.make(axes), lp.optimizers.build("sgd", 0.05, weight_decay=1e-4)
    dataset = lp.data.load("digits")
    model = lp.models.normalized(model, *lp.data.statistics(dataset.train))
    augment = lp.augment.compose(lp.augment.random_crop(8, padding=1), lp.augment.color_jitter(0.4))
    loss = lp.augmented(lp.supervised(model, lp.cross_entropy()), augment)
    step, compiled, ends = lp.descend(lp.plain(loss), optimizer), None, []
    for seed in range(seeds):
        stream = lp.data.Stream(dataset.train, BATCH, seed)
        state = lp.step.initial(model, optimizer, lp.keys.seeded(seed), stream.batch(0)["input"])
        state = lp.step.place(state, mesh, model.rules)
        compiled = compiled or lp.step.compile(step, state, stream.batch(0), mesh, model.rules)
        for number in range(STEPS):
            state, _ = compiled(state, lp.mesh.place(stream.batch(number), mesh))
        ends.append(jax.device_get(state.params))
    return ends


def main(seeds: int = 10) -> None:
    """Compare runs on two meshes.

    Args:
        seeds: Runs of each model on each mesh.
    """
    rows, close = [], []
    lp.mesh.simulate(8)
    for name, build in models().items():
        model = build()
        pairs = zip(trained(model, AXES, seeds), trained(model, "1x1", seeds), strict=True)
        found = np.array([lp.tree.distance(*pair) for pair in pairs])
        agree = int(np.sum(found < CLOSE))
        rows.append([name, f"{agree} of {seeds}", f"{np.median(found):.1e}", f"{found.max():.1e}"])
        if name not in KINKED:
            close.append(agree / seeds)
    value = float(np.mean(close))
    record.tell("meshes", ["model", "within 1e-6", "median", "largest"], rows, value, 1.0, value == 1.0)


if __name__ == "__main__":
    lp.cli.command(main)
