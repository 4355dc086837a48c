"""Inputs in int8: their scales, training with them, and products of whole numbers that agree bit for bit."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax.compress import activations, base, evaluation, grids, inputs, leaves, quantize, stepsizes
from lepton_jax.errors import InputError
from lepton_jax.models.adapters import linen

RANDOM = np.random.default_rng(0)


class Net(nn.Module):
    """Convolutions with strides and padding, plain, by groups and 1x1; dense layers of rank 2 and 3."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)), use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(not train, name="norm1")(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x))
        x = nn.relu(nn.Conv(6, (1, 1), name="conv2")(x))
        x = nn.relu(nn.DenseGeneral((2, 4), name="heads")(x))
        x = nn.DenseGeneral(5, axis=(-2, -1), name="joined")(x)
        return nn.Dense(3, name="head")(jnp.mean(x, (1, 2)))


MODEL = linen(Net())
IMAGES = jnp.asarray(RANDOM.normal(size=(8, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)(jax.random.key(0), IMAGES)


@pytest.fixture(scope="module")
def scales(variables):
    return activations.input_scales(MODEL, variables, [IMAGES[:4], IMAGES[4:]], "extremes")


def outputs(rule, variables, params):
    model = evaluation.applied(MODEL, rule)
    return jax.jit(lambda params: model.apply({**variables, "params": params}, IMAGES, False, None)[0])(params)


def test_scales_are_those_of_the_inputs(variables, scales):
    assert sorted(scales) == sorted(base.chosen(base.WEIGHTS, variables["params"]))
    largest = inputs.measured(MODEL, variables, [IMAGES], lambda site, x, w: jnp.max(jnp.abs(x)), jnp.maximum)
    for name, scale in scales.items():
        assert scale.shape == ()
        np.testing.assert_allclose(scale, largest[name] / 127, rtol=2**-15)
    fewer = activations.input_scales(MODEL, variables, [IMAGES], "percentile", "conv1")
    assert list(fewer) == ["conv1/kernel"]
    sizes = np.sort(np.abs(IMAGES), None)
    np.testing.assert_allclose(fewer["conv1/kernel"] * 127, sizes[int(0.999 * sizes.size)], rtol=2e-2)
    with pytest.raises(InputError, match="no batches"):
        activations.input_scales(MODEL, variables, [])


def test_scales_of_least_error_are_no_worse_than_any(variables):
    values = IMAGES.at[0, 0, 0, 0].set(60.0)
    scale = float(activations.input_scales(MODEL, variables, [values], "least error", "conv1")["conv1/kernel"])

    def error(scale):
        return np.sum((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2)

    tried = [error(60 / 127 * part) for part in np.linspace(0.05, 1, 80)]
    assert error(scale) <= 1.02 * min(tried)


def test_scales_are_the_same_bits_on_any_number_of_devices(variables):
    found = []
    for axes in ("1x1", "2x1", "8x1"):
        over = lp.mesh.make(axes)
        placed = jax.device_put(variables, jax.sharding.NamedSharding(over, jax.sharding.PartitionSpec()))
        images = jax.device_put(IMAGES, jax.sharding.NamedSharding(over, jax.sharding.PartitionSpec("data")))
        found.append(jax.device_get(activations.input_scales(MODEL, placed, [images])))
    assert found[0] == found[1] == found[2]


COMPRESSIONS = {
    "int8": lambda: quantize.quantized(8),
    "int8 tensor": lambda: quantize.quantized(8, "tensor", "percentile"),
    "int4": lambda: quantize.quantized(4, calibration="least error"),
    "learned": lambda: stepsizes.learned(4),
    "affine": lambda: quantize.quantized(grids.affine(8)),
    "groups": lambda: quantize.quantized(8, "group"),
}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_what_is_trained_is_what_whole_numbers_give_bit_for_bit(variables, kind):
    compression = COMPRESSIONS[kind]()
    params, state = compression.init(variables["params"])
    seen = jax.jit(compression.view)(params, state)
    scales = activations.input_scales(MODEL, {**variables, "params": seen}, [IMAGES], "extremes")
    packed = activations.with_inputs(compression.pack(params, state), scales)
    trained = outputs(activations.rounded_inputs(scales), variables, seen)
    shipped = outputs(activations.whole_numbers, variables, packed)
    np.testing.assert_array_equal(shipped, trained)
    np.testing.assert_array_equal(outputs(activations.whole_in_floats, variables, packed), shipped)
    plain = outputs(evaluation.multiplied, variables, seen)
    np.testing.assert_allclose(shipped, plain, atol=0.1 * np.abs(plain).max())
    assert not np.array_equal(shipped, plain)


def test_pruned_weights_too(variables, scales):
    masks = {name: RANDOM.random(base.at(variables["params"], name).shape) < 0.4 for name in scales}
    pruned = {name: base.at(variables["params"], name) * mask for name, mask in masks.items()}
    params = base.put(variables["params"], pruned)
    compression = quantize.quantized(8)
    packed = compression.pack(params, ())
    sparse = base.put(packed, {name: leaves.sparse(base.at(packed, name), mask) for name, mask in masks.items()})
    shipped = outputs(activations.whole_numbers, variables, activations.with_inputs(sparse, scales))
    seen = compression.view(params, ())
    np.testing.assert_array_equal(shipped, outputs(activations.rounded_inputs(scales), variables, seen))


def test_sums_are_of_whole_numbers(variables, scales):
    packed = activations.with_inputs(quantize.quantized(8).pack(variables["params"], ()), scales)
    model = evaluation.applied(MODEL, activations.whole_numbers)
    program = jax.make_jaxpr(lambda params: model.apply({**variables, "params": params}, IMAGES, False, None)[0])
    text = str(program(packed))
    assert text.count("preferred_element_type=int32") == len(scales)
    # without a scale of inputs, weights are made dense
    text = str(program(quantize.quantized(8).pack(variables["params"], ())))
    assert "preferred_element_type=int32" not in text


def test_a_dense_layer_in_numpy(variables, scales):
    leaf = quantize.quantized(8).pack(variables["params"], ())["head"]["kernel"]
    x = np.asarray(RANDOM.normal(size=(7, 5)), np.float32)
    scale = np.float32(0.03)
    whole = np.clip(np.round(x / scale), -127, 127).astype(np.int64) @ np.asarray(leaf.integers(), np.int64)
    expected = whole * np.asarray(leaf.scale, np.float64) * scale
    model = evaluation.applied(linen(nn.Dense(3, use_bias=False)), activations.whole_numbers)
    packed = activations.with_inputs({"kernel": leaf}, {"kernel": jnp.asarray(scale)})
    found = model.apply({"params": packed}, jnp.asarray(x), False, None)[0]
    np.testing.assert_allclose(found, expected, rtol=3e-7)


def test_gradients_of_rounded_inputs_are_about_the_models(variables, scales):
    def gradient(rule):
        model = evaluation.applied(MODEL, rule)

        def loss(params, images):
            return jnp.sum(jnp.sin(model.apply({**variables, "params": params}, images, False, None)[0]))

        return jax.jit(jax.grad(loss, (0, 1)))(variables["params"], IMAGES)

    rounded, plain = gradient(activations.rounded_inputs(scales)), gradient(evaluation.multiplied)
    assert lp.tree.distance(rounded, plain) < 0.1
    # beyond the range there is none
    small = {**scales, "conv1/kernel": jnp.float32(0.5 / 127)}
    towards = gradient(activations.rounded_inputs(small))[1]
    assert np.all(np.asarray(towards)[np.abs(IMAGES) > 0.51] == 0)
    assert np.any(np.asarray(towards) != 0)


@given(st.integers(1, 127), st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_whole_multiples_are_found_again(high, seed):
    draw = np.random.default_rng(seed)
    whole = draw.integers(-high, high + 1, (6, 4)).astype(np.float32)
    step = np.asarray(grids.steps(jnp.asarray(np.exp(draw.normal(size=(1, 4))), jnp.float32)))
    found, unit = activations.multiples(jnp.asarray(whole * step), (0,))
    np.testing.assert_array_equal(found * unit, whole * step)
    np.testing.assert_array_equal(found, np.round(found))
    assert np.max(np.abs(found)) <= 127


def test_values_that_are_no_multiples_stay():
    values = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)
    found, unit = activations.multiples(values, (0,))
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(unit, np.ones((1, 4)))


def test_without_qwix_it_says_what_to_install(variables, scales, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    packed = activations.with_inputs(quantize.quantized(8).pack(variables["params"], ()), scales)
    with pytest.raises(InputError, match=r"lepton-jax\[compress\]"):
        outputs(activations.whole_numbers, variables, packed)
