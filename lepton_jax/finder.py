"""The learning-rate finder: one short run whose rate rises until the loss diverges, and what it suggests.

Smith 2017, https://arxiv.org/abs/1506.01186. The rise is a schedule like any other, so whatever a recipe composes is
tested as it will be trained.
"""

import importlib.util
import io
import math
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lepton_jax import mesh as meshes
from lepton_jax import report, rows, runs, schedules
from lepton_jax import step as steps_
from lepton_jax.data import Batches
from lepton_jax.errors import InputError
from lepton_jax.types import Rule, Step, TrainState

RANGE = (1e-6, 10.0, 100)  # the lowest rate, the highest, and the steps: 14 for each power of ten
DIVERGED = 4.0  # times the least loss so far
MEMORY = 0.9  # of the running mean that is compared with it
WIDTH = 3.0  # steps, the standard deviation of the smoothing


@dataclass(frozen=True)
class Sweep:
    """The losses at rising learning rates, and what follows from them; all by step, as floats."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float  # the rate at which the loss falls fastest by step of the logarithm
    diverged: float | None  # the rate at which the sweep ended early

    @property
    def suggestion(self) -> float:
        """The steepest rate, and at most a tenth of the one that diverged."""
        return self.steepest if self.diverged is None else min(self.steepest, self.diverged / 10)


def sweep(
    step: Step,
    state: TrainState,
    stream: Batches,
    mesh: Mesh,
    schedule: schedules.Schedule,
    steps: int,
    rules: tuple[Rule, ...] = (),
    reporter: report.Reporter | None = None,
) -> Sweep:
    """Train a copy of the state for `steps`, or until the loss diverges, and throw it away.

    schedule: the one of the step's optimizer; `schedules.sweep(low, high, steps)`. Raises InputError where the loss
    falls nowhere.
    """
    reporter = reporter or report.Reporter()
    copied = steps_.place(jax.tree.map(jnp.copy, state), mesh, rules)
    rates, losses, diverged = [], [], None
    with jax.set_mesh(mesh):
        reporter.stage("compiling")
        compiled = steps_.compile(rows.packed(step), copied, stream.batch(0), mesh, rules)
        for number in range(steps):
            copied, seen = compiled(copied, meshes.fed(stream.batch(number), mesh))
            reporter.progress(number + 1)
            rate, loss = float(schedule(number)), _loss(seen)
            if has_diverged([*losses, loss]):
                diverged = rate
                break
            rates, losses = [*rates, rate], [*losses, loss]
    return found(rates, losses, diverged)


def _loss(seen: rows.Seen) -> float:
    return rows.averages(seen.names, np.asarray([seen.values], np.float64))["train/loss"]


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or the running mean is DIVERGED times what it was at best."""
    if not math.isfinite(losses[-1]):
        return True
    means, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**number))
    return means[-1] > DIVERGED * min(means)


def found(rates: list[float], losses: list[float], diverged: float | None) -> Sweep:
    """What the losses say. Raises InputError where they fall nowhere."""
    if len(losses) < 3:
        raise InputError(
            f"the loss diverges within {len(losses) + 1} steps, at a learning rate of {diverged:.3g}",
            "look at the data and the model first: --learning-rate 0 shows the loss without training",
        )
    curve = smooth(losses)
    lowest = int(np.argmin(curve))
    slopes = np.gradient(curve)[: lowest + 1]
    if curve[0] - curve[lowest] <= 1e-6 * abs(curve[0]):
        raise InputError(
            f"the loss falls nowhere between the learning rates {rates[0]:.3g} and {rates[-1]:.3g}",
            "use a larger --batch-size for a quieter loss, or look at the data and the model",
        )
    return Sweep(rates, losses, curve.tolist(), rates[int(np.argmin(slopes))], diverged)


def smooth(losses: Sequence[float]) -> np.ndarray:
    """The losses under a Gaussian of WIDTH steps, centered so that it shifts nothing; at the ends what there is."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * np.square((steps[:, None] - steps) / WIDTH))
    return weights @ np.asarray(losses, np.float64) / weights.sum(axis=1)


def require_drawing() -> None:
    """Raise InputError where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        problem = "the picture of the learning-rate finder needs matplotlib, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[plot]"')


def write(directory: pathlib.Path, swept: Sweep) -> None:
    """learning-rate.json and learning-rate.png, each complete or not at all."""
    record = {"suggestion": swept.suggestion, **asdict(swept)}
    runs.write(directory / "learning-rate.json", record)
    runs.replace(directory / "learning-rate.png", picture(swept))


def picture(swept: Sweep) -> bytes:
    """The losses over the learning rate, with what is suggested, as a PNG."""
    require_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(swept.rates, swept.losses, ".", color="#9aa7b8", markersize=4, label="loss of each step")
    axes.semilogx(swept.rates, swept.smoothed, color="#2468c9", linewidth=2, label="smoothed")
    axes.axvline(swept.suggestion, color="#d9730d", linewidth=1.5, label=f"suggested: {swept.suggestion:.2g}")
    if swept.diverged is not None:
        axes.axvline(swept.diverged, color="#b3261e", linestyle="--", label=f"diverged: {swept.diverged:.2g}")
    axes.set_ylim(*bounds(swept))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def bounds(swept: Sweep) -> tuple[float, float]:
    """What of the losses is drawn: all of the smoothed curve, as far up as where it began and half as much again."""
    low, first = min(swept.smoothed), swept.smoothed[0]
    room = max(first - low, 1e-9)
    return low - 0.1 * room, first + 0.5 * room


def told(swept: Sweep) -> str:
    """The sweep as a table, about two rows for a power of ten, and the suggestion."""
    every = max(1, len(swept.rates) // 14)
    rows = [f"{'':11}{'learning rate':>13}  {'loss':>10}  {'smoothed':>10}"]
    rows += [
        f"{'':11}{rate:>13.3g}  {report.number(loss):>10}  {report.number(mean):>10}"
        for rate, loss, mean in list(zip(swept.rates, swept.losses, swept.smoothed, strict=True))[::every]
    ]
    end = "it did not diverge" if swept.diverged is None else f"it diverged at {swept.diverged:.2g}"
    return "\n".join([*rows, f"found      the loss falls fastest at {swept.steepest:.2g}; {end}"])
