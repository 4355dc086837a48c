"""Learning rates as functions of the step: short names over optax's schedules, and what it lacks.

A schedule maps the number of updates made so far (a Python int or a traced int32 scalar) to a learning rate.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from lepton_jax.errors import InputError, unknown

Schedule = Callable[[Any], Any]


def step(peak: float, steps_per_epoch: int, step_size: int = 30, gamma: float = 0.1) -> Schedule:
    """peak * gamma ** floor(epoch / step_size), over whole epochs."""
    _require(step_size >= 1, f"a step size of {step_size} epochs is not positive", "give step_size >= 1")
    _require_gamma(gamma)
    # Whole numbers stay whole: floor(step / n) in float32 is off by one where the quotient is rounded.
    return lambda count: peak * gamma ** (count // steps_per_epoch // step_size)


def exponential(peak: float, steps_per_epoch: int, gamma: float = 0.95) -> Schedule:
    """peak * gamma ** epoch; the epoch is a whole number, so the rate changes between epochs only."""
    return step(peak, steps_per_epoch, step_size=1, gamma=gamma)


def cyclic(peak: float, steps_per_epoch: int, cycle: float = 10.0, low: float = 0.1) -> Schedule:
    """Up and down in straight lines between low * peak and peak, `cycle` epochs for both ways.

    The triangular policy of Smith 2017, https://arxiv.org/abs/1506.01186.
    """
    steps = round(cycle * steps_per_epoch) if math.isfinite(cycle) else 0
    _require(steps >= 2, f"a cycle of {cycle} epochs is shorter than two steps", "give a longer cycle")
    _require_fraction("low", low)
    return lambda count: peak * (low + (1 - low) * (1 - abs(2 * (count % steps) / steps - 1)))


def constant(peak: float, steps: int) -> Schedule:
    """The same rate for the whole run."""
    return optax.constant_schedule(peak)


def cosine(peak: float, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine wave from peak down to final * peak (Loshchilov and Hutter 2017).

    https://arxiv.org/abs/1608.03983.
    """
    _require_fraction("final", final)
    return optax.cosine_decay_schedule(peak, steps, alpha=final)


def linear(peak: float, steps: int, final: float = 0.0) -> Schedule:
    """A straight line from peak down to final * peak."""
    _require_fraction("final", final)
    return optax.linear_schedule(peak, peak * final, steps)


def polynomial(peak: float, steps: int, power: float = 2.0, final: float = 0.0) -> Schedule:
    """(1 - step / steps) ** power, stretched between peak and final * peak."""
    _require(0 < power < math.inf, f"a polynomial of power {power} does not decay", "give a power > 0")
    _require_fraction("final", final)
    return optax.polynomial_schedule(peak, peak * final, power, steps)


def wsd(peak: float, steps: int, decay: float = 0.2, final: float = 0.0) -> Schedule:
    """Warm-up, stable, decay: peak, then over the last share `decay` of the steps a line to final * peak.

    The warm-up is `build`'s. Hu et al. 2024, https://arxiv.org/abs/2404.06395; Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392.
    """
    _require_fraction("decay", decay)
    _require_fraction("final", final)
    decay_steps = max(1, round(decay * steps))
    line = optax.linear_schedule(peak, peak * final, decay_steps)
    return optax.join_schedules([optax.constant_schedule(peak), line], [steps - decay_steps])


# On the clock of the run's epochs: (peak, steps_per_epoch, **options).
BY_EPOCH: dict[str, Callable[..., Schedule]] = {
    "cyclic": cyclic,
    "exponential": exponential,
    "step": step,
}
# Over the steps that follow the warm-up: (peak, steps, **options). The reduction on a plateau depends on the
# losses and so is a part of the optimizer: `optimizers.reduce_on_plateau`.
BY_STEP: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "plateau": constant,
    "polynomial": polynomial,
    "wsd": wsd,
}


def build(
    name: str, peak: float, steps: int, steps_per_epoch: int, *, warmup_steps: int = 0, **options: Any
) -> Schedule:
    """The schedule of that name for a run of `steps` updates; `options` are those of the function so named.

    The warm-up is a straight line from 0 to the value that the schedule has at `warmup_steps`. After it,
    step, exponential and cyclic count the epochs of the run; the others spread over the steps that are
    left. Raises InputError.
    """
    if name not in BY_EPOCH and name not in BY_STEP:
        raise unknown("schedule", name, [*BY_EPOCH, *BY_STEP])
    _require(0 <= peak < math.inf, f"the learning rate {peak} is not a finite number >= 0", "give one such as 1e-3")
    _require(steps >= 1, f"a run of {steps} steps has nothing to do", "give at least 1 step")
    _require(steps_per_epoch >= 1, f"an epoch of {steps_per_epoch} steps is empty", "give at least 1 step")
    _require(
        0 <= warmup_steps <= steps,
        f"a warm-up of {warmup_steps} steps does not fit into a run of {steps}",
        f"give a warm-up of 0 to {steps} steps, or a longer run",
    )
    if name in BY_EPOCH:
        _require_known(name, BY_EPOCH[name], options)
        return warmed_up(BY_EPOCH[name](peak, steps_per_epoch, **options), warmup_steps)
    _require_known(name, BY_STEP[name], options)
    rest = BY_STEP[name](peak, max(1, steps - warmup_steps), **options)
    return warmed_up(delayed(rest, warmup_steps), warmup_steps)


def sweep(low: float, high: float, steps: int) -> Schedule:
    """low * (high / low) ** (step / (steps - 1)): each rate the same factor above the one before, `high` the last.

    The learning-rate range test of Smith 2017, https://arxiv.org/abs/1506.01186, in even steps of the logarithm.
    """
    _require(0 < low < high < math.inf, f"a sweep from {low} to {high} does not rise", "give 0 < low < high")
    _require(steps >= 2, f"a sweep of {steps} steps has no two rates", "give at least 2 steps")
    return lambda count: low * (high / low) ** (count / (steps - 1))


def delayed(schedule: Schedule, steps: int) -> Schedule:
    """The same schedule, begun `steps` later; its first value until then."""
    return (lambda count: schedule(jnp.maximum(count - steps, 0))) if steps else schedule


def warmed_up(schedule: Schedule, steps: int) -> Schedule:
    """The same schedule, its first `steps` replaced by a straight line from 0 to its value after them.

    Goyal et al. 2017, https://arxiv.org/abs/1706.02677.
    """
    if steps == 0:
        return schedule
    return lambda count: jnp.where(count < steps, schedule(steps) * (count / steps), schedule(count))


def _require(holds: bool, problem: str, remedy: str) -> None:
    if not holds:
        raise InputError(problem, remedy)


def _require_gamma(gamma: float) -> None:
    _require(0 < gamma < math.inf, f"the factor gamma = {gamma} is not positive", "give one such as 0.1")


def _require_fraction(name: str, value: float) -> None:
    _require(0 <= value <= 1, f"{name} = {value} is not a share", f"give {name} between 0 and 1")


def _require_known(name: str, schedule: Callable[..., Any], options: dict[str, Any]) -> None:
    known = list(inspect.signature(schedule).parameters)[2:]
    for option in options:
        if option not in known:
            raise unknown(f"option of the schedule {name!r}:", option, known)
