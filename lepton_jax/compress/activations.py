"""Layers' inputs in int8: their scales from data, rounded inputs in training, and products of whole numbers."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lepton_jax.compress import base, grids, leaves
from lepton_jax.compress.calibrate import RANGES, Range
from lepton_jax.compress.evaluation import Rule, Site, multiplied
from lepton_jax.compress.inputs import measured
from lepton_jax.compress.quantize import straight
from lepton_jax.errors import InputError, named
from lepton_jax.types import Model, Variables

GRID = grids.symmetric(8)
BINS = 2048


def input_scales(
    model: Model,
    variables: Variables,
    batches: Iterable[Any],
    calibration: str | Range = "least error",
    pattern: str = base.WEIGHTS,
    rule: Rule = multiplied,
) -> dict[str, Array]:
    """{weight's name: the scale of its layer's inputs in int8}, float32 scalars, from batches of model inputs.

    calibration: a range as in `quantized`, of the inputs' histogram (2048 bins from the least to the largest over all
    batches, which are gone through twice). Give the weights as they will be, rounded. rule: how products are made
    meanwhile. Raises InputError where there are no batches and for an unknown calibration.
    """
    ranged, batches = named("calibration", calibration, RANGES), list(batches)

    def ends(site: Site, inputs: Array, weight: Any) -> Any:
        return {"low": jnp.max(-inputs), "high": jnp.max(inputs)} if re.search(pattern, site.name) else {}

    found = measured(model, variables, batches, ends, jnp.maximum, rule)
    nodes = {name: _nodes(-float(end["low"]), float(end["high"])) for name, end in found.items() if end}

    def counts(site: Site, inputs: Array, weight: Any) -> Any:
        return _counts(inputs, *nodes[site.name][[0, -1]]) if site.name in nodes else {}

    # counted in whole numbers, which no mesh adds up otherwise
    counted = measured(model, variables, batches, counts, rule=rule)
    return {name: _scale(nodes[name], np.asarray(counted[name]), ranged) for name in nodes}


def _nodes(low: float, high: float) -> np.ndarray:
    """The middles of the bins, of which the first is the least value and the last the largest."""
    return np.linspace(low, high, BINS + 1, dtype=np.float32)


def _counts(inputs: Array, low: Any, high: Any) -> Array:
    """How many values are next to each node, int32."""
    width = jnp.where(high > low, (high - low) / BINS, 1).astype(inputs.dtype)
    places = jnp.clip(jnp.round((inputs.reshape(-1) - low.astype(inputs.dtype)) / width), 0, BINS).astype(jnp.int32)
    return jnp.zeros(BINS + 1, jnp.int32).at[places].add(1)


def _scale(nodes: np.ndarray, counts: np.ndarray, ranged: Range) -> Array:
    shares = (counts / counts.sum()).astype(np.float32)
    return GRID.fit(*ranged(jnp.asarray(nodes)[None], jnp.asarray(shares)[None], GRID))[0].reshape(())


def with_inputs(packed: PyTree, scales: dict[str, Array]) -> PyTree:
    """Packed parameters with the scale of each layer's inputs in its `Quantized`, for `whole_numbers`.

    Weights that are not quantized, or not as one, stay as they are.
    """

    def given(leaf: Any, scale: Array) -> Any:
        if isinstance(leaf, leaves.Sparse) and isinstance(leaf.inner, leaves.Quantized):
            return replace(leaf, inner=replace(leaf.inner, inputs=scale))
        return replace(leaf, inputs=scale) if isinstance(leaf, leaves.Quantized) else leaf

    return base.put(packed, {name: given(base.at(packed, name), scale) for name, scale in scales.items()})


def rounded_inputs(scales: dict[str, Array]) -> Rule:
    """Products of inputs rounded to int8 as `whole_numbers` has them, in floats and with gradients: for training.

    `evaluation.applied(model, rounded_inputs(scales))` is what to train, with `quantized` weights. Inputs beyond the
    range get no gradient. Where a weight's values are whole multiples of a step in each output channel, sums are of
    whole numbers, and as long as they stay below 2^24 the outputs are those of `whole_numbers` bit for bit.
    """

    def rule(site: Site, inputs: Array, weight: Any) -> Array:
        if site.name not in scales:
            return multiplied(site, inputs, weight)
        scale, values = jnp.asarray(scales[site.name], jnp.float32), jnp.asarray(leaves.dense(weight), inputs.dtype)
        steps = jnp.clip(inputs.astype(jnp.float32) * (1 / scale), GRID.low, GRID.high)
        levels = straight(steps, jnp.round(steps)).astype(inputs.dtype)
        whole, step = multiples(jax.lax.stop_gradient(values), summed(site, values.ndim))
        rescaled = (values * (1 / step)).astype(values.dtype)
        sums = site.multiply(levels, straight(rescaled, whole)).astype(jnp.float32)
        return (sums * outward(site, step) * scale).astype(inputs.dtype)

    return rule


def whole_numbers(site: Site, inputs: Array, weight: Any) -> Array:
    """A `Rule`: int8 times int8 to int32, then the scales, by Qwix, for weights that have the scale of their inputs.

    Weights of one scale per tensor or output channel, symmetric and of whole numbers; others are multiplied in floats
    with inputs rounded alike (groups, zero points, float8), and without a scale of inputs as usual. Qwix:
    https://github.com/google/qwix. Raises InputError where it is not installed.
    """
    return _levels_multiplied(site, inputs, weight, _by_integers)


def whole_in_floats(site: Site, inputs: Array, weight: Any) -> Array:
    """A `Rule`: `whole_numbers` with the whole numbers held in float32, the same bits while sums stay below 2^24.

    For machines that multiply floats faster: XLA's convolutions on CPUs.
    """
    return _levels_multiplied(site, inputs, weight, _by_floats)


def _levels_multiplied(site: Site, inputs: Array, weight: Any, product: Callable[..., Array]) -> Array:
    leaf = _quantized(weight)
    if leaf is None or leaf.inputs is None:
        return multiplied(site, inputs, weight)
    if not _is_whole(site, leaf):
        return rounded_inputs({site.name: leaf.inputs})(site, inputs, weight)
    scale, own = jnp.asarray(leaf.scale, jnp.float32), jnp.asarray(leaf.inputs, jnp.float32)
    sums = product(site, GRID.levels(inputs, own), leaf.values, scale)
    return (sums * own).astype(inputs.dtype)


def _by_floats(site: Site, levels: Array, values: Array, scale: Array) -> Array:
    """The product of whole numbers, times the weight's scale, float32."""
    return site.multiply(levels.astype(jnp.float32), jnp.asarray(values, jnp.float32)) * outward(site, scale)


def _by_integers(site: Site, levels: Array, values: Array, scale: Array) -> Array:
    """The product of whole numbers, times the weight's scale, float32."""
    qarray = _qwix()
    # the inputs' scale comes last, on our side: the weight's first is what floats can repeat exactly
    left = qarray.QArray(levels.astype(jnp.int8), jnp.ones((1,) * levels.ndim, jnp.float32))
    right, params = qarray.QArray(values, scale), site.params
    if not site.is_convolution:
        return qarray.dot_general(left, right, params["dimension_numbers"])
    names = ("padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count", "batch_group_count")
    shape = {name: params[name] for name in names}
    return qarray.conv_general_dilated(left, right, params["window_strides"], **shape)


def _qwix() -> Any:
    try:
        import qwix
    except ImportError:
        problem = "products of whole numbers need the package qwix, which is not installed"
        raise InputError(problem, 'pip install "lepton-jax[compress]"') from None
    return qwix


def _quantized(weight: Any) -> leaves.Quantized | None:
    """The weight with its values as int8 at their places, where it is one, dense or sparse; else None."""
    if isinstance(weight, leaves.Sparse) and isinstance(weight.inner, leaves.Quantized):
        places = leaves.scattered(weight.inner.integers(), weight.places())
        return replace(weight.inner, values=places, shape=weight.shape, bits=8)
    if isinstance(weight, leaves.Quantized):
        return replace(weight, values=weight.integers(), bits=max(weight.bits, 8))
    return None


def _is_whole(site: Site, leaf: leaves.Quantized) -> bool:
    """Whether sums are of whole numbers: int8, symmetric, one step for all that is summed."""
    one = all(leaf.scale.shape[axis] == 1 for axis in summed(site, len(leaf.shape)))
    return one and leaf.zero is None and jnp.asarray(leaf.values).dtype == jnp.int8


def summed(site: Site, rank: int) -> tuple[int, ...]:
    """The dimensions of a weight over which a product sums."""
    numbers = site.params["dimension_numbers"]
    if site.is_convolution:
        return tuple(axis for axis in range(rank) if axis != numbers.rhs_spec[0])
    return tuple(sorted((*numbers[0][1], *numbers[1][1])))


def outward(site: Site, step: Array) -> Array:
    """A step for each output channel, 1 in the dimensions that are summed, as it broadcasts to the outputs."""
    if not site.is_convolution:
        summed_, (left, _) = summed(site, step.ndim), site.params["dimension_numbers"][0]
        free = [step.shape[axis] for axis in range(step.ndim) if axis not in summed_]
        before = site.equation.invars[0].aval.ndim - len(left)
        return step.reshape((1,) * before + tuple(free))
    spec = site.params["dimension_numbers"].out_spec
    shape = [1] * len(spec)
    shape[spec[1]] = step.size
    return step.reshape(shape)


def multiples(values: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """(whole, step) with whole * step = values exactly, |whole| < 128, `step` of length 1 along `axes`.

    Steps have 16 bits (`grids.steps`), so that this is a finding and no rounding. Where there is no such step it is 1
    and `whole` are the values.
    """
    wide, values = values.dtype, values.astype(jnp.float32)
    top = jnp.max(jnp.abs(values), axes, keepdims=True)
    likely = (127, 63, 31, 15, 7, 3, 1)  # the highest levels of so many bits
    most = jnp.asarray([*likely, *(m for m in range(126, 1, -1) if m not in likely)], top.dtype)

    def missing(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < len(most)) & ~jnp.all(state[1])

    def tried(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, found, step = state
        guess = grids.short(top / most[number])
        fits = jnp.all(jnp.round(values / guess) * guess == values, axes, keepdims=True)
        return number + 1, found | fits, jnp.where(fits & ~found, guess, step)

    _, _, step = jax.lax.while_loop(missing, tried, (jnp.int32(0), top == 0, jnp.ones_like(top)))
    whole = jnp.where(step == 1, values, jnp.round(values / step))
    return whole.astype(wide), step
