"""Rounding after training: not each weight to its nearest level, but all so that the layer's outputs change least.

A rounding changes outputs x W by x D, D the error of the weight, and the mean square of that is tr(D^T H D) with H the
second moment of the layer's inputs. Both methods here need nothing else.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lepton_jax.compress import base, grids, leaves
from lepton_jax.compress.calibrate import RANGES, Range
from lepton_jax.compress.evaluation import Rule, Site, multiplied
from lepton_jax.compress.grids import Grid
from lepton_jax.compress.inputs import measured, second_moment
from lepton_jax.compress.quantize import Blocks, blocks_of, fitted, stored, weights
from lepton_jax.errors import InputError, named
from lepton_jax.types import Model, Variables

Matrix = Float[Array, "inputs outputs"]
Moment = Float[Array | np.ndarray, "inputs inputs"]


class Layer(NamedTuple):
    """A weight as a matrix, and what its rounding has to know. zero: 0 where the grid has no zero point."""

    values: Matrix
    scale: Matrix
    zero: Matrix
    grid: Grid

    def shown(self, levels: Matrix) -> Matrix:
        """What levels stand for."""
        return (levels - self.zero) * self.scale

    def nearest(self) -> Matrix:
        """The level nearest to each value."""
        return self.grid.levels(self.values, self.scale, self.zero)


Rounding = Callable[[Layer, Moment], Matrix]
"""(layer, second moment of its inputs) -> levels; a value of zero gets the level that stands for zero."""


def rounded(
    model: Model,
    variables: Variables,
    batches: Iterable[Any],
    rounding: "str | Rounding" = "gptq",
    bits: int | str | Grid = 4,
    granularity: str | int | Blocks = "channel",
    calibration: str | Range = "least error",
    pattern: str = base.WEIGHTS,
    rule: Rule = multiplied,
) -> Any:
    """Parameters with `Quantized` in the place of weights, rounded to fit the layers' inputs over batches.

    rounding: "gptq", "adaround", "nearest", or a function. The rest as in `quantized`, whose pack leaves the result as
    it is. Inputs are those of the model as given; rule: how products are made meanwhile. Zeros stay zeros. Raises
    InputError for weights that are neither dense matrices nor convolutions without groups, where there are no batches,
    and as `quantized` does.
    """
    method, grid = named("rounding", rounding, ROUNDINGS), grids.grid(bits)
    blocks, ranged, params = blocks_of(granularity), named("calibration", calibration, RANGES), variables["params"]
    names = weights(pattern, params)
    moments = measured(model, variables, batches, partial(_moment, frozenset(names)), rule=rule)
    new = {}
    for name in names:
        if name not in moments:
            raise InputError(f"{name} is in no product of the model", "leave it out by a pattern of names")
        weight = base.at(params, name)
        scale, zero = fitted(weight, grid, blocks, ranged)
        layer = as_layer(weight, grid, scale, zero)
        levels = method(layer, moments[name]["sum"] / moments[name]["count"])
        new[name] = stored(levels.reshape(weight.shape), grid, scale, zero)
    return base.put(params, new)


def _moment(names: frozenset[str], site: Site, inputs: Array, weight: Any) -> Any:
    """The second moment of the inputs of the named layers."""
    if site.name not in names:
        return {}
    if not site.is_convolution and (weight.ndim != 2 or site.params["dimension_numbers"][0][1] != (0,)):
        raise InputError(f"{site.name} is no plain matrix of inputs and outputs", "leave it out by a pattern of names")
    return second_moment(site, inputs, weight)


def as_layer(weight: Any, grid: Grid, scale: Array, zero: Array | None = None) -> Layer:
    """A weight [..., outputs] with scales of its blocks as a matrix [inputs, outputs]."""
    zero = jnp.zeros_like(scale) if zero is None else zero
    whole = [jnp.asarray(weight, jnp.float32), leaves.spread(scale, weight.shape), leaves.spread(zero, weight.shape)]
    values, wide, zeros = (jnp.broadcast_to(part, weight.shape).reshape(-1, weight.shape[-1]) for part in whole)
    return Layer(values, wide, zeros, grid)


def nearest(layer: Layer, moment: Moment) -> Matrix:
    """Each value to its nearest level."""
    return layer.nearest()


def as_given(moment: np.ndarray) -> np.ndarray:
    """Inputs in their own order."""
    return np.arange(len(moment))


def largest_first(moment: np.ndarray) -> np.ndarray:
    """Inputs by their mean square, the largest first, while there is most left to make up for them ("act-order")."""
    return np.argsort(-np.diag(moment), kind="stable")


def gptq(damping: float = 0.01, order: Callable[[np.ndarray], np.ndarray] = as_given) -> Rounding:
    """Input by input to the nearest level, each time changing the inputs to come so as to make up for the error.

    damping: added to the moment's diagonal, as a share of its mean. order: in which order inputs are taken, such as
    `largest_first`. Frantar et al. 2022, https://arxiv.org/abs/2210.17323; steps are those of the weight as it was,
    for groups too. Raises InputError for a damping that is not positive.
    """
    if not damping > 0:
        raise InputError(f"the damping {damping} is not positive", "give one such as 0.01")

    def rounding(layer: Layer, moment: Moment) -> Matrix:
        wide = np.asarray(moment, np.float64)
        taken = order(wide)
        # without any input no rounding is better than another
        extra = damping * np.mean(np.diag(wide)) or 1.0
        inverse = np.linalg.inv(wide[np.ix_(taken, taken)] + extra * np.eye(len(wide)))
        factor = np.linalg.cholesky(inverse).T
        ordered = layer._replace(values=layer.values[taken], scale=layer.scale[taken], zero=layer.zero[taken])
        return _made_up(ordered, jnp.asarray(factor, jnp.float32))[np.argsort(taken)]

    return rounding


def _made_up(layer: Layer, factor: Float[Array, "inputs inputs"]) -> Matrix:
    """Levels, taken row by row; factor: the upper Cholesky factor of the inverse moment."""

    @jax.jit
    def made(values: Matrix, scale: Matrix, zero: Matrix, factor: Array) -> Matrix:
        def row(i: Array, state: tuple[Matrix, Matrix]) -> tuple[Matrix, Matrix]:
            current, levels = state
            level = layer.grid.levels(current[i], scale[i], zero[i])
            level = jnp.where(values[i] == 0, zero[i], level)
            error = (current[i] - (level - zero[i]) * scale[i]) / factor[i, i]
            later = jnp.where(jnp.arange(len(factor)) > i, factor[i], 0)
            return current - later[:, None] * error[None], levels.at[i].set(level)

        return jax.lax.fori_loop(0, len(values), row, (values, jnp.zeros_like(values)))[1]

    return made(layer.values, layer.scale, layer.zero, factor)


def adaround(steps: int = 2000, rate: float = 0.05, weight: float = 5.0) -> Rounding:
    """Each value up or down, as a descent on the outputs' error finds best, with a pull away from in between.

    steps, rate: of Adam. weight: of the pull, whose exponent falls from 20 to 2 after a fifth of the steps. The error
    counts as a multiple of nearest rounding's; where an output came out worse than by that, it gets that. Nagel et al.
    2020, https://arxiv.org/abs/2004.10568. Raises InputError, when used, for levels that are not whole numbers.
    """

    def rounding(layer: Layer, moment: Moment) -> Matrix:
        if layer.grid.nearest is not jnp.round:
            raise InputError("adaround rounds up or down to whole numbers, and the grid has floats", "take gptq")
        start = layer.values / layer.scale + layer.zero
        found = _descended(layer, jnp.asarray(moment, jnp.float32), start, steps, rate, weight)
        usual = layer.nearest()
        errors = [output_errors(layer, levels, moment) for levels in (found, usual)]
        return jnp.where((errors[0] <= errors[1])[None], found, usual)

    return rounding


def output_errors(layer: Layer, levels: Matrix, moment: Moment) -> Float[Array, "outputs"]:
    """The mean squared error of each output over the inputs of this second moment."""
    wrong = layer.shown(levels) - layer.values
    return jnp.sum(wrong * (jnp.asarray(moment, jnp.float32) @ wrong), 0)


def _descended(layer: Layer, moment: Array, start: Matrix, steps: int, rate: float, weight: float) -> Matrix:
    grid, down = layer.grid, jnp.floor(start)

    def levels(up: Matrix) -> Matrix:
        return jnp.where(layer.values == 0, layer.zero, jnp.clip(down + up, grid.low, grid.high))

    def share(free: Matrix) -> Matrix:
        return jnp.clip(1.2 * jax.nn.sigmoid(free) - 0.1, 0, 1)

    usual = jnp.sum(output_errors(layer, layer.nearest(), moment))

    def cost(free: Matrix, done: Array) -> Array:
        error = jnp.sum(output_errors(layer, levels(share(free)), moment)) / jnp.where(usual > 0, usual, 1)
        exponent = 2 + 18 * jnp.clip((1 - done) / 0.8, 0, 1)
        between = jnp.mean(1 - jnp.abs(2 * share(free) - 1) ** exponent)
        return error + jnp.where(done < 0.2, 0, weight) * between

    optimizer = optax.adam(rate)

    @jax.jit
    def descended(free: Matrix) -> Matrix:
        def step(state: Any, done: Array) -> tuple[Any, None]:
            moved, state_ = optimizer.update(jax.grad(cost)(state[0], done), state[1])
            return (optax.apply_updates(state[0], moved), state_), None

        (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), jnp.linspace(0, 1, steps))
        return levels((share(free) >= 0.5).astype(jnp.float32))

    return descended(jax.scipy.special.logit((start - down + 0.1) / 1.2))


ROUNDINGS: dict[str, Rounding] = {"gptq": gptq(), "adaround": adaround(), "nearest": nearest}
