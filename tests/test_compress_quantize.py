"""Quantized weights: their grids, ranges and blocks, and that what is trained is what is shipped."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax.compress import base, calibrate, grids, leaves, quantize, stepsizes
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)
GRIDS = {
    "int8": lambda: grids.symmetric(8),
    "int4": lambda: grids.symmetric(4),
    "int3": lambda: grids.symmetric(3),
    "int16": lambda: grids.symmetric(16),
    "affine8": lambda: grids.affine(8),
    "affine4": lambda: grids.affine(4),
    "fp8": grids.float8,
}
GRANULARITIES = ("tensor", "channel", "group", 2)


def normal(*shape):
    return np.asarray(RANDOM.normal(size=shape), np.float32)


def model_of(*shapes):
    return {f"layer{i}": {"kernel": normal(*shape), "bias": normal(shape[-1])} for i, shape in enumerate(shapes)}


PARAMS = model_of((6, 5), (3, 3, 4, 8))


def kron(blocks, shape):
    return np.kron(np.asarray(blocks, np.float64), np.ones([n // m for n, m in zip(shape, blocks.shape, strict=True)]))


CASES = [
    *((grid, "channel", "extremes") for grid in GRIDS),
    *(("int4", granularity, "extremes") for granularity in ("tensor", "group", 2)),
    *((grid, "group", calibration) for grid in ("int4", "affine8") for calibration in ("percentile", "least error")),
]


@pytest.mark.parametrize(("grid", "granularity", "calibration"), CASES)
def test_what_is_seen_is_what_is_shipped(grid, granularity, calibration):
    compression = quantize.quantized(GRIDS[grid](), granularity, calibration)
    params, state = compression.init(PARAMS)
    seen = jax.jit(compression.view)(params, state)
    shipped = compression.pack(params, state)
    for layer, part in PARAMS.items():
        leaf = shipped[layer]["kernel"]
        assert isinstance(leaf, leaves.Quantized)
        np.testing.assert_array_equal(leaf.dense(), seen[layer]["kernel"])
        np.testing.assert_array_equal(shipped[layer]["bias"], part["bias"])
        assert seen[layer]["kernel"].dtype == np.float32
    assert compression.stages == ("quantization",)
    again = compression.pack(shipped, state)
    jax.tree.map(np.testing.assert_array_equal, again, shipped)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_levels_are_numpys(bits, granularity):
    shipped = quantize.quantized(bits, granularity).pack(PARAMS, ())
    high = 2 ** (bits - 1) - 1
    for layer, part in PARAMS.items():
        weight, leaf = part["kernel"], shipped[layer]["kernel"]
        cut = [p for m, n in zip(leaf.scale.shape, weight.shape, strict=True) for p in (m, n // m)]
        inner = tuple(range(1, len(cut), 2))
        top = np.abs(weight.reshape(cut)).max(inner)
        # the step is the range's, rounded up to 16 bits
        assert np.all(np.asarray(leaf.scale) * high >= top * (1 - 3e-7))
        np.testing.assert_allclose(leaf.scale, top / high, rtol=2**-15)
        wide = kron(leaf.scale, weight.shape)
        np.testing.assert_array_equal(
            leaf.integers(), np.clip(np.round(weight * (1 / wide.astype(np.float32))), -high, high)
        )
        assert np.max(np.abs(leaf.dense() - weight) / wide) <= 0.5 + 1e-5
        # the other usual convention: round(value * s) + z with s = 1 / scale and z = 0, but for ties
        other = np.round(weight.astype(np.float64) * (1 / wide)) + 0
        assert np.mean(other == leaf.integers()) > 0.99
        assert np.max(np.abs(other - leaf.integers())) <= 1
        expected = {"tensor": 1, "channel": weight.shape[-1]}
        assert leaf.scale.size == expected.get(granularity, leaf.scale.size)


def test_a_zero_point_in_both_conventions():
    weight = np.asarray(RANDOM.uniform(-1, 3, (40, 6)), np.float32)
    leaf = quantize.quantized(grids.affine(8), "tensor").pack({"kernel": weight}, ())["kernel"]
    low, high = weight.min(), weight.max()
    np.testing.assert_allclose(leaf.scale, (high - low) / 255, rtol=2**-15)
    s, z = 1 / np.float64(leaf.scale), np.float64(leaf.zero)
    np.testing.assert_allclose(z, np.round(-128 - low * s))
    whole = np.clip(np.round(weight * s) + z, -128, 127)
    assert np.mean(whole == leaf.integers()) > 0.99
    assert np.max(np.abs(whole - np.asarray(leaf.integers(), np.float64))) <= 1
    np.testing.assert_allclose(leaf.dense(), (np.asarray(leaf.integers(), np.float64) - z) / s, rtol=1e-6)
    assert np.max(np.abs(leaf.dense() - weight)) <= 0.51 * float(leaf.scale[0, 0])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 2])
def test_symmetric_levels_are_qwixs(bits, granularity):
    weight = normal(6, 5)
    leaf = quantize.quantized(bits, granularity).pack({"kernel": weight}, ())["kernel"]
    how = {"tensor": {}, "channel": {"channelwise_axes": [1]}, 2: {"channelwise_axes": [1], "tiled_axes": {0: 2}}}
    other = qwix.quantize(jnp.asarray(weight), jnp.int8 if bits == 8 else jnp.int4, **how[granularity])
    assert other.scale.shape == leaf.scale.shape
    # qwix divides the range by half a step more, 127.5
    np.testing.assert_allclose(other.scale * (2**bits - 1) / 2, leaf.scale * (2 ** (bits - 1) - 1), rtol=2**-14)
    ours = qwix.quantize(jnp.asarray(weight), jnp.int8, **how[granularity])
    ours = type(ours)(leaf.integers(), leaf.scale)
    np.testing.assert_allclose(qwix.dequantize(ours), leaf.dense(), rtol=1e-6)


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=60))
@settings(deadline=None, max_examples=50)
def test_float8_is_the_nearest_of_ml_dtypes(numbers):
    values = np.resize(np.array(numbers, np.float32), 60)
    grid = grids.float8()
    expected = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(grid.levels(jnp.asarray(values), jnp.float32(1)), expected)


def test_float8_on_all_of_its_numbers_and_what_is_between():
    all_ = np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    ordered = np.sort(all_[np.isfinite(all_)])
    between = np.concatenate([ordered, (ordered[1:] + ordered[:-1]) / 2, np.nextafter(ordered, np.float32(0))])
    found = grids.float8().levels(jnp.asarray(between), jnp.float32(1))
    np.testing.assert_array_equal(found, between.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize(("grid", "granularity", "calibration"), CASES)
def test_zeros_survive(grid, granularity, calibration):
    weight = normal(8, 6) + 0.3
    weight[RANDOM.random((8, 6)) < 0.5] = 0
    weight[:, 2] = 0
    params = {"kernel": weight}
    compression = quantize.quantized(GRIDS[grid](), granularity, calibration)
    seen, leaf = compression.view(params, ())["kernel"], compression.pack(params, ())["kernel"]
    assert np.all(np.asarray(seen)[weight == 0] == 0)
    assert np.all(np.asarray(leaf.dense())[weight == 0] == 0)


@pytest.mark.parametrize("grid", [grids.symmetric(16), grids.affine(16)])
def test_sixteen_bits_give_the_weight_back(grid):
    for granularity in GRANULARITIES:
        shipped = leaves.unpacked(quantize.quantized(grid, granularity).pack(PARAMS, ()))
        assert lp.tree.distance(shipped, PARAMS) < 1e-4


def test_ranges_against_numpy():
    rows = np.sort(normal(3, 1000), 1)
    counts = jnp.ones_like(rows)
    grid = grids.symmetric(4)
    low, high = calibrate.extremes(jnp.asarray(rows), counts, grid)
    np.testing.assert_array_equal(np.concatenate([low, high], 1), rows[:, [0, -1]])
    low, high = calibrate.percentile(90.0)(jnp.asarray(rows), counts, grid)
    for row, a, b in zip(rows, low, high, strict=True):
        assert np.mean((row >= a) & (row <= b)) == pytest.approx(0.9, abs=0.002)
    low, high = calibrate.least_error()(jnp.asarray(rows), counts, grid)

    def error(row, top):
        scale = top / 7
        return np.sum((np.clip(np.round(row / scale), -7, 7) * scale - row) ** 2)

    for row, a, b in zip(rows, low[:, 0], high[:, 0], strict=True):
        top = np.abs(row).max()
        least = min(error(row, top * part) for part in np.linspace(0.05, 1, 80))
        assert error(row, max(-float(a), float(b))) <= least * 1.001
        assert least < 0.9 * error(row, top)


@pytest.mark.parametrize("calibration", calibrate.RANGES.values(), ids=calibrate.RANGES)
def test_a_count_of_two_is_the_value_twice(calibration):
    values = normal(2, 50)
    counts = np.asarray(RANDOM.integers(0, 4, (2, 50)), np.float32)
    counts[1] = counts[0]
    twice = np.stack([np.repeat(row, counts[0].astype(int)) for row in values])
    grid = grids.affine(4)
    found = calibration(jnp.asarray(values), jnp.asarray(counts), grid)
    expected = calibration(jnp.asarray(twice), jnp.ones_like(twice), grid)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_goes_straight_through():
    compression = quantize.quantized(4, calibration="percentile")
    weights = {"kernel": normal(6, 5)}
    pull = jax.vjp(lambda params: compression.view(params, ()), weights)[1]
    towards = {"kernel": normal(6, 5)}
    np.testing.assert_array_equal(pull(towards)[0]["kernel"], towards["kernel"])


def test_groups():
    assert quantize.groups(64)((96, 5)) == (2, 5)
    assert quantize.groups(64)((3, 3, 3, 8)) == (1, 1, 1, 8)
    assert quantize.groups(64)((7 * 13, 5)) == (7, 5)
    assert quantize.groups_of(16)((3, 3, 32, 8)) == (1, 1, 2, 8)
    with pytest.raises(InputError, match="groups of 4 do not divide the 6 inputs"):
        quantize.quantized(4, 4).init(PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantize.quantized(1), "1 bits"),
        (lambda: quantize.quantized(17), "17 bits"),
        (lambda: quantize.quantized("fp7"), "fp7"),
        (lambda: quantize.quantized(8, "chanel"), "did you mean 'channel'"),
        (lambda: quantize.quantized(8, 0), "group of 0"),
        (lambda: quantize.quantized(8, calibration="mse"), "calibration"),
        (lambda: calibrate.percentile(0), "percentile 0"),
        (lambda: calibrate.least_error(least=0), "from 0 to 1"),
        (lambda: quantize.quantized(8, pattern="nothing").init(PARAMS), "matches no leaf"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@given(st.floats(2**-60, 2**60, width=32), st.integers(1, 255))
@settings(deadline=None, max_examples=60)
def test_steps_are_rounded_up_and_times_a_level_exact(size, level):
    step = np.float32(grids.steps(jnp.float32(size)))
    assert size <= step <= size * (1 + 2**-15)
    assert np.float64(step) * level == np.float64(np.float32(step * level))


def test_a_pruned_weight_is_quantized_and_sparse():
    mask = RANDOM.random((6, 5)) < 0.5
    weight = np.where(mask, normal(6, 5), 0)
    leaf = quantize.quantized(4).pack({"kernel": weight}, ())["kernel"]
    np.testing.assert_array_equal(leaves.sparse(leaf, mask).dense(), leaf.dense())


# learned steps


def test_learned_steps_are_the_papers():
    compression = stepsizes.learned(4)
    params, state = compression.init(PARAMS)
    for layer, part in PARAMS.items():
        weight = part["kernel"]
        found = params[layer]["kernel"]
        np.testing.assert_array_equal(found["value"], weight)
        mean = np.abs(weight).reshape(-1, weight.shape[-1]).mean(0)
        np.testing.assert_allclose(found["scale"], 2 * mean / np.sqrt(7), rtol=1e-6)
        assert found["scale"].ndim == 1  # so that weight decay leaves it alone
    seen, shipped = jax.jit(compression.view)(params, state), compression.pack(params, state)
    jax.tree.map(np.testing.assert_array_equal, seen, leaves.unpacked(shipped))
    assert shipped["layer1"]["kernel"].values.dtype == np.uint8


@pytest.mark.parametrize("granularity", ["tensor", "channel", 12])
def test_the_gradients_of_learned_steps(granularity):
    weight, towards = normal(24, 4), normal(24, 4)
    compression = stepsizes.learned(2, granularity)
    params, state = compression.init({"kernel": weight})
    part = params["kernel"]
    found = jax.vjp(lambda params: compression.view(params, state), params)[1]({"kernel": towards})[0]["kernel"]
    blocks = quantize.blocks_of(granularity)(weight.shape)
    wide = kron(np.asarray(part["scale"]).reshape(blocks), weight.shape)
    steps = weight / wide
    inside = np.abs(steps) < 1
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(found["value"], towards * inside, rtol=1e-5, atol=1e-6)
    slope = np.where(inside, np.round(steps) - steps, np.sign(steps))
    cut = [p for m, n in zip(blocks, weight.shape, strict=True) for p in (m, n // m)]
    summed = (towards * slope).reshape(cut).sum((1, 3)).reshape(-1)
    damping = 1 / np.sqrt(weight.size / np.prod(blocks))
    # the step is used rounded to 16 bits
    np.testing.assert_allclose(found["scale"], summed * damping, rtol=2e-3, atol=2e-3)


def test_learned_steps_fit_a_weight_better_in_time():
    weight = jnp.asarray(normal(32, 4))
    compression = stepsizes.learned(3)
    params, state = compression.init({"kernel": weight})

    def loss(params):
        return jnp.sum(jnp.square(compression.view(params, state)["kernel"] - weight))

    first, gradient_of = loss(params), jax.jit(jax.grad(loss))
    for _ in range(60):
        gradient = gradient_of(params)
        params = {
            "kernel": {**params["kernel"], "scale": params["kernel"]["scale"] - 0.02 * gradient["kernel"]["scale"]}
        }
    assert loss(params) < 0.9 * first


def test_learned_steps_of_factors():
    params = {"kernel": {"down": normal(6, 2), "up": normal(2, 5)}, "bias": normal(5)}
    compression = stepsizes.learned(4)
    new, state = compression.init(params)
    assert sorted(new["kernel"]["down"]) == ["scale", "value"]
    assert compression.view(new, state)["kernel"]["up"].shape == (2, 5)
    assert base.chain(base.identity(), compression).stages == ("quantization",)
    zeros, state = compression.init({"kernel": np.zeros((3, 2), np.float32)})
    np.testing.assert_array_equal(compression.view(zeros, state)["kernel"], np.zeros((3, 2)))


# on meshes


@pytest.mark.parametrize(
    "make", [lambda: quantize.quantized(8, "channel", "least error"), lambda: stepsizes.learned(4)]
)
def test_scales_are_the_same_bits_on_any_number_of_devices(make):
    compression = make()
    params, state = compression.init(PARAMS)
    found = []
    for axes in ("1x1", "2x1", "8x1"):
        over = lp.mesh.make(axes)
        placed = jax.device_put(params, jax.sharding.NamedSharding(over, jax.sharding.PartitionSpec()))
        found.append(jax.device_get(jax.jit(compression.pack)(placed, state)))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])
