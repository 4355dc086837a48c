"""Rounding after training: less error of outputs than nearest rounding, and trees that pack ships as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax.compress import base, calibrate, evaluation, grids, leaves, quantize, rounding
from lepton_jax.errors import InputError
from lepton_jax.models.adapters import linen

RANDOM = np.random.default_rng(0)
METHODS = {
    "gptq": rounding.gptq(),
    "gptq, largest first": rounding.gptq(order=rounding.largest_first),
    "adaround": rounding.adaround(600),
}
GRIDS = {"3": grids.symmetric(3), "4": grids.symmetric(4), "affine 4": grids.affine(4)}


def correlated(rows, inputs):
    """Inputs as after a ReLU, of few causes."""
    causes = RANDOM.normal(size=(rows, inputs // 2)) @ RANDOM.normal(size=(inputs // 2, inputs))
    return np.asarray(np.maximum(causes + RANDOM.normal(size=(rows, inputs)), 0), np.float32)


X = correlated(400, 32)
MOMENT = X.T @ X / len(X)
WEIGHT = np.asarray(RANDOM.normal(size=(32, 16)), np.float32)


def layer(weight, grid, granularity="channel"):
    scale, zero = quantize.fitted(weight, grid, quantize.blocks_of(granularity), calibrate.least_error())
    return rounding.as_layer(weight, grid, scale, zero)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_are_nearer_than_by_nearest_rounding(method, grid):
    made = layer(WEIGHT, GRIDS[grid])
    levels = METHODS[method](made, MOMENT)

    def error(levels):
        return np.mean((X @ np.asarray(made.shown(levels)) - X @ WEIGHT) ** 2)

    assert error(levels) < 0.75 * error(made.nearest())
    np.testing.assert_allclose(np.mean(rounding.output_errors(made, levels, MOMENT)), error(levels), rtol=1e-2)
    np.testing.assert_array_equal(levels, jnp.round(levels))
    assert levels.min() >= made.grid.low
    assert levels.max() <= made.grid.high


def test_gptq_is_the_papers_loop_in_numpy():
    made = layer(WEIGHT, GRIDS["4"], 8)
    damped = MOMENT + 0.01 * np.mean(np.diag(MOMENT)) * np.eye(32)
    factor = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T
    current, scale = WEIGHT.astype(np.float64), np.asarray(made.scale, np.float64)
    levels = np.zeros((32, 16))
    for i in range(32):
        levels[i] = np.clip(np.round(current[i] / scale[i]), -7, 7)
        error = (current[i] - levels[i] * scale[i]) / factor[i, i]
        current[i:] -= factor[i, i:, None] * error
    found = rounding.gptq()(made, MOMENT)
    assert np.mean(found == levels) > 0.98  # but for ties and float32


def test_with_uncorrelated_inputs_gptq_is_nearest_rounding():
    made = layer(WEIGHT, GRIDS["4"])
    for order in (rounding.as_given, rounding.largest_first):
        levels = rounding.gptq(order=order)(made, np.diag(np.linspace(0.5, 2, 32)).astype(np.float32))
        np.testing.assert_array_equal(levels, made.nearest())


def test_the_largest_inputs_are_taken_first():
    np.testing.assert_array_equal(rounding.largest_first(np.diag([1.0, 3.0, 2.0])), [1, 2, 0])


def test_adaround_goes_up_or_down_and_nowhere_else():
    made = layer(WEIGHT, GRIDS["4"])
    levels = METHODS["adaround"](made, MOMENT)
    steps = np.clip(WEIGHT / np.asarray(made.scale), -7, 7)
    assert np.max(np.abs(levels - steps)) < 1 + 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", ["4", "affine 4"])
def test_zeros_stay_and_inputs_that_are_always_zero_do_no_harm(method, grid):
    weight = np.where(RANDOM.random(WEIGHT.shape) < 0.5, WEIGHT, 0)
    made = layer(weight, GRIDS[grid])
    moment = MOMENT.copy()
    moment[3] = moment[:, 3] = 0
    for each in (moment, np.zeros_like(moment)):
        levels = METHODS[method](made, each)
        assert np.all(np.isfinite(levels))
        assert np.all(np.asarray(made.shown(levels))[weight == 0] == 0)


class Net(nn.Module):
    """A convolution, one by groups and a dense layer."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="grouped")(x))
        return nn.Dense(4, name="head")(x.reshape(len(x), -1))


MODEL = linen(Net())
IMAGES = jnp.asarray(correlated(12, 3 * 36).reshape(12, 6, 6, 3))
PATTERN = r"(conv|head)/kernel$"


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)(jax.random.key(0), IMAGES)


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_a_models_layers_are_rounded_and_shipped_unchanged(variables, method):
    batches = [IMAGES[:6], IMAGES[6:]]
    chosen = METHODS[method]
    found = {
        each: rounding.rounded(MODEL, variables, batches, each, 3, pattern=PATTERN) for each in (chosen, "nearest")
    }
    params = found[chosen]
    assert isinstance(params["conv"]["kernel"], leaves.Quantized)
    assert params["grouped"]["kernel"] is variables["params"]["grouped"]["kernel"]
    shipped = quantize.quantized(3, pattern=PATTERN).pack(params, ())
    jax.tree.map(np.testing.assert_array_equal, shipped, params)
    # the first layer's outputs, whose inputs are those that were measured
    conv = lambda kernel: jax.lax.conv_general_dilated(  # noqa: E731
        IMAGES, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    exact = conv(base.at(variables["params"], "conv/kernel"))
    errors = {each: jnp.mean((conv(leaves.dense(tree["conv"]["kernel"])) - exact) ** 2) for each, tree in found.items()}
    assert errors[chosen] < 0.8 * errors["nearest"]
    packed = evaluation.applied(MODEL).apply({**variables, "params": params}, IMAGES, False, None)[0]
    assert np.all(np.isfinite(packed))
    plain = quantize.quantized(3, calibration="least error", pattern=PATTERN).pack(variables["params"], ())
    jax.tree.map(np.testing.assert_array_equal, found["nearest"], plain)


def test_bad_input(variables):
    with pytest.raises(InputError, match="convolution in groups"):
        rounding.rounded(MODEL, variables, [IMAGES])
    with pytest.raises(InputError, match="unknown rounding 'gtpq'"):
        rounding.rounded(MODEL, variables, [IMAGES], "gtpq", pattern=PATTERN)
    with pytest.raises(InputError, match="no batches"):
        rounding.rounded(MODEL, variables, [], pattern=PATTERN)
    with pytest.raises(InputError, match="damping 0"):
        rounding.gptq(0)
    with pytest.raises(InputError, match="grid has floats"):
        rounding.rounded(MODEL, variables, [IMAGES], "adaround", "fp8", pattern=PATTERN)
