"""What it costs that a run is the same bits on any number of devices: the step in virtual shards against the plain one.

    python -m benchmarks.bitwise

Steps of both kinds in turn, on one device and on eight. The value is the least ratio of examples/s. No bar is set; the
figure is published for those who choose `--bitwise`. Beside it the bytes of temporary memory per device.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record

SHARDS = 8
CASES = [("cnn", (28, 28, 1)), ("resnet20", (32, 32, 3))]


def repeated(name: str, shape: tuple[int, ...], axes: str, batch: int, shards: int | None) -> tuple[Any, int]:
    """(a function that makes one step after the other, the bytes of temporary memory that a step takes)."""
    import jax

    mesh, model = lp.mesh.make(axes), lp.models.build(name, 10)
    optimizer, random = lp.optimizers.build("sgd", 0.01), np.random.default_rng(0)
    rows = {"input": random.random((batch, *shape), np.float32), "label": random.integers(0, 10, batch, np.int32)}
    rows["index"] = np.arange(batch, dtype=np.int32)
    gradient = lp.plain(lp.supervised(model, lp.cross_entropy()))
    step = lp.descend(lp.sharded(gradient, shards) if shards else gradient, optimizer)
    state = lp.step.initial(model, optimizer, lp.keys.seeded(0), rows["input"])
    state = lp.step.place(state, mesh, model.rules)
    compiled, placed = lp.step.compile(step, state, rows, mesh, model.rules), lp.mesh.place(rows, mesh)

    def one() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, placed)[0])

    return one, compiled.memory_analysis().temp_size_in_bytes


def main(rounds: int = 15, batch: int = 128) -> None:
    """Compare the two steps on two models and two meshes.

    Args:
        rounds: Steps of each.
        batch: Examples per step.
    """
    lp.mesh.simulate(8)
    rows, ratios = [], []
    for name, shape in CASES:
        for axes in ("1x1", "8x1"):
            steps: dict[str, Callable[[], None]] = {}
            memory = {}
            for kind, shards in (("plain", None), ("sharded", SHARDS)):
                steps[kind], memory[kind] = repeated(name, shape, axes, batch, shards)
            seconds = record.interleaved(steps, rounds)
            ratio, quartiles = record.spread(seconds["plain"] / seconds["sharded"])
            rows.append([name, axes, ratio, quartiles, memory["plain"], memory["sharded"]])
            ratios.append(ratio)
    head = ["model", "mesh", "rate", "quartiles", "bytes, plain", "bytes, sharded"]
    record.tell("bitwise", head, rows, min(ratios), None, None)


if __name__ == "__main__":
    lp.cli.command(main)
