"""What saving costs a run that saves every 20 save-times: its step time over that of a run that does not save.

    python -m benchmarks.saving

A save-time is from the call until the step is verified to be on the disk: digests, arrays, record, list of files. Most
of it passes beside the training. Segments with one save and without are run in turn. The value is the greatest of the
models' medians; bar 1.05.
"""

import math
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lepton_jax as lp
from benchmarks import record
from experiments import resnet

BAR, APART = 1.05, 20  # of step time; save-times between saves
MODELS = {"mlp": {}, "resnet8": {}, "resnet20": {"optimizer": "adamw", "learning_rate": 1e-3}}


class Run:
    """A run on digits, driven step by step."""

    def __init__(self, model: str, directory: pathlib.Path):
        import jax

        config = resnet.Config(model=model, batch_size=64, **MODELS[model])
        recipe = resnet.compose(config)
        self.mesh, self.stream, self.number = lp.mesh.make("1x1"), recipe.stream, 0
        state = lp.preparation.prepared(recipe, config, self.mesh)
        with jax.set_mesh(self.mesh):
            self.compiled = lp.step.compile(recipe.step, state, self.stream.batch(0), self.mesh)
        self.state: Any = lp.step.place(state, self.mesh)
        self.checkpoints = lp.checkpoint.Checkpoints(directory / model)

    def steps(self, count: int) -> None:
        """So many updates, awaited."""
        for _ in range(count):
            self.state, metrics = self.compiled(self.state, self.stream.batch(self.number))
            self.number += 1
            if self.number % 8 == 0:
                metrics["loss"].total.block_until_ready()
        self.state.step.block_until_ready()

    def save(self) -> None:
        """As a run does after an evaluation."""
        self.checkpoints.save(self.state, {}, {})

    def saved(self) -> float:
        """Seconds of a save until it is on the disk."""
        before = time.perf_counter()
        self.save()
        while self.checkpoints.committed() is None:
            time.sleep(0.001)
        self.checkpoints.check()
        return time.perf_counter() - before


def measured(run: Run, rounds: int) -> tuple[float, float, np.ndarray]:
    """(seconds of a step, of a save, ratios of segments with a save to those without)."""

    def clocked(work: Callable[[], None]) -> float:
        before = time.perf_counter()
        work()
        return time.perf_counter() - before

    run.steps(20)
    run.saved()  # the first compiles the digests
    step = float(np.median([clocked(lambda: run.steps(10)) / 10 for _ in range(5)]))
    save = float(np.median([(run.steps(1), run.saved())[1] for _ in range(5)]))
    apart = math.ceil(APART * save / step)

    def saving() -> None:
        run.save()
        run.steps(apart)
        run.checkpoints.check()

    seconds = record.interleaved({"without": lambda: run.steps(apart), "with": saving}, rounds)
    return step, save, seconds["with"] / seconds["without"]


def main(rounds: int = 7) -> None:
    """Measure what saving costs.

    Args:
        rounds: Pairs of segments for each model.
    """
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as place:
        for model in MODELS:
            run = Run(model, pathlib.Path(place))
            step, save, found = measured(run, rounds)
            run.checkpoints.close()
            ratio, quartiles = record.spread(found)
            ratios.append(ratio)
            rows.append([model, f"{step * 1e3:.2f} ms", f"{save * 1e3:.0f} ms", f"{ratio:.3f}", quartiles])
    head = ["model", "step", "save", "step time with saves", "quartiles"]
    record.tell("saving", head, rows, max(ratios), BAR, max(ratios) <= BAR)


if __name__ == "__main__":
    lp.cli.command(main)
