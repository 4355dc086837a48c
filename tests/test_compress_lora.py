"""Low-rank adaptation: the start changes nothing, only the chosen parts move, and merging is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from lepton_jax.compress import adaptation as lora
from lepton_jax.compress import base, leaves
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(3)


def params_of(dtype=np.float32):
    shapes = {"conv": {"kernel": (3, 3, 4, 6)}, "dense": {"kernel": (6, 5), "bias": (5,)}, "norm": {"scale": (6,)}}
    draw = lambda shape: jnp.asarray(RANDOM.normal(size=shape), dtype)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def moved(params):
    """The params with a low-rank part that is not zero."""
    return lp.tree.map_named(
        lambda name, x: jnp.asarray(RANDOM.normal(size=x.shape), x.dtype) if name.endswith("/up") else x, params
    )


def test_the_start_is_the_model_itself():
    params = params_of()
    compression = lora.lora(KEY, 2)
    new, state = compression.init(params)
    jax.tree.map(np.testing.assert_array_equal, compression.view(new, state), params)
    assert new["conv"]["kernel"]["down"].shape == (36, 2)
    assert new["dense"]["kernel"]["up"].shape == (2, 5)
    assert set(new["norm"]) == {"scale"}
    # each weight draws for itself, and the same again
    again, _ = jax.jit(compression.init)(params)
    assert lp.tree.distance(again, new) < 1e-6
    assert not np.allclose(new["conv"]["kernel"]["down"][:6], new["dense"]["kernel"]["down"])


def test_down_has_variance_one_over_inputs():
    new, _ = lora.lora(KEY, 64).init({"kernel": jnp.zeros((400, 100))})
    assert np.std(new["kernel"]["down"]) == pytest.approx(1 / 20, rel=0.02)


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_merged_is_the_weight_and_the_scaled_product(alpha):
    params = params_of()
    compression = lora.lora(KEY, 2, alpha)
    new, state = compression.init(params)
    new = moved(new)
    packed = compression.pack(new, state)
    scale = 2.0 if alpha is None else 1.5
    for name in ("conv", "dense"):
        parts = {part: np.asarray(value, np.float64) for part, value in new[name]["kernel"].items()}
        expected = parts["base"] + scale * (parts["down"] @ parts["up"]).reshape(parts["base"].shape)
        np.testing.assert_allclose(packed[name]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert lp.tree.distance(compression.view(new, state), packed) < 1e-6
    assert jax.tree.map(jnp.shape, packed) == jax.tree.map(jnp.shape, params)


def test_a_convolution_is_a_thin_one_and_a_1x1_beside_it():
    new, state = lora.lora(KEY, 3, 3.0).init({"kernel": jnp.zeros((3, 3, 4, 6))})
    new = moved(new)
    images = jnp.asarray(RANDOM.normal(size=(2, 5, 5, 4)), jnp.float32)

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    thin = convolved(images, new["kernel"]["down"].reshape(3, 3, 4, 3))
    expected = convolved(thin, new["kernel"]["up"].reshape(1, 1, 3, 6))
    whole = lora.lora(KEY, 3, 3.0).view(new, state)["kernel"]
    np.testing.assert_allclose(convolved(images, whole), expected, rtol=1e-4, atol=1e-5)


def test_a_quantized_base_is_merged_dense():
    new, state = lora.lora(KEY, 2).init({"kernel": jnp.asarray(RANDOM.integers(-9, 9, (6, 5)), jnp.float32)})
    new = moved(new)
    whole = lora.lora(KEY, 2).view(new, state)["kernel"]
    values = np.asarray(new["kernel"]["base"], np.int8)
    leaf = leaves.Quantized(values, np.ones((1, 1), np.float32), None, None, (6, 5), 8)
    packed = lora.lora(KEY, 2).pack({"kernel": {**new["kernel"], "base": leaf}}, state)
    np.testing.assert_allclose(packed["kernel"], whole, rtol=1e-6)


def test_the_mask_is_true_for_all_but_the_low_rank_parts_and_the_extras():
    new, _ = lora.lora(KEY, 2, pattern="dense/kernel").init(params_of())
    mask = lora.frozen("scale", "conv")(new)
    free = {name for name, fixed in zip(lp.tree.paths(mask), jax.tree.leaves(mask), strict=True) if not fixed}
    assert free == {"dense/kernel/down", "dense/kernel/up", "norm/scale", "conv/kernel"}
    with pytest.raises(InputError, match="matches no leaf"):
        lora.frozen("head")(new)
    with pytest.raises(InputError, match="no weight has a low-rank part"):
        lora.frozen()(params_of())


@pytest.mark.parametrize("pattern", ["dense1/kernel", base.WEIGHTS])
def test_training_moves_only_what_it_should_and_learns(pattern):
    """Weight decay and momentum included."""
    model = lp.models.mlp((16,), 4)
    batch = {"input": jnp.asarray(RANDOM.normal(size=(32, 6)), jnp.float32), "label": jnp.arange(32) % 4}
    compression = lora.lora(KEY, 2, pattern=pattern)
    params, compress = compression.init(model.init(jax.random.key(0), batch["input"])["params"])
    optimizer = lora.lora_only(optax.adamw(0.03, weight_decay=0.5), "head/bias")
    step = jax.jit(
        lp.descend(base.compressed(lp.plain(lp.supervised(model, lp.cross_entropy())), compression), optimizer)
    )
    state = lp.TrainState(jnp.int32(0), params, {"compress": compress}, optimizer.init(params), jax.random.key(1))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].value()))
    assert losses[-1] < 0.9 * losses[0]
    after = dict(zip(lp.tree.paths(state.params), jax.tree.leaves(state.params), strict=True))
    before = dict(zip(lp.tree.paths(params), jax.tree.leaves(params), strict=True))
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    parts = {name for name in before if name.endswith(("/down", "/up"))}
    assert changed == parts | {"head/bias"}
    # no moments for what does not move
    sizes = 2 * sum(before[name].size for name in changed)
    assert lp.tree.count(state.opt_state) <= sizes + 2


def test_what_cannot_be_adapted_is_said():
    for wrong in [(0, None), (2, -1.0), (2, float("inf"))]:
        with pytest.raises(InputError, match="not both positive"):
            lora.lora(KEY, *wrong)
    with pytest.raises(InputError, match="rank 6 is above the full rank 5 of dense/kernel"):
        lora.lora(KEY, 6, pattern="dense/kernel").init(params_of())
    with pytest.raises(InputError, match="matches no"):
        lora.lora(KEY, 2, pattern="head").init(params_of())
