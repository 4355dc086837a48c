"""Precision: computed in another type, kept in float32; and float16's scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import data, tree
from tests import laws

MODEL = "mlp"


def gradients(technique, batch):
    return laws.gradient_of(laws.models()[MODEL](), technique, batch)


@pytest.fixture(scope="module")
def batch():
    return data.Stream(laws.digits(), 16, 1).batch(0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 3e-2), ("float16", 3e-3)])
def test_the_gradient_is_float32_and_near(batch, dtype, tolerance):
    computed = laws.Technique(loss=lambda loss: lp.computed(loss, dtype))
    if dtype == "float16":
        computed = computed._replace(gradient=lp.scaled, stats=lambda: {"loss_scale": lp.loss_scale(2.0**7)})
    gradient, _ = gradients(computed, batch)
    exact, _ = gradients(laws.TECHNIQUES["plain"], batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    assert 0 < lp.tree.distance(gradient, exact) < tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_model_computes_in_it(batch, dtype):
    seen = []

    def apply(variables, inputs, train, keys):
        seen.append({leaf.dtype.name for leaf in jax.tree.leaves(variables["params"])} | {inputs.dtype.name})
        return inputs.reshape(16, -1) @ variables["params"]["w"], {}

    model = lp.Model(lambda key, x: {"params": {"w": jnp.ones((64, 10))}}, apply)
    loss = lp.computed(lp.supervised(model, lp.cross_entropy()), dtype)
    floats = jax.tree.map(jnp.asarray, {**batch, "input": batch["input"].astype(np.float32)})
    mean, _ = loss({"w": jnp.ones((64, 10))}, {}, floats, jax.random.key(0))
    assert seen == [{dtype}]
    assert mean.total.dtype == jnp.float32


def scaled_run(scale, factor, steps, growth_interval=2000):
    """A linear model whose gradient is `factor`, in float16, for some steps."""
    model = lp.Model(
        lambda key, x: {"params": {"w": jnp.zeros(())}}, lambda v, x, train, keys: (x * v["params"]["w"], {})
    )

    def loss(params, stats, batch, key):
        outputs, _ = model.apply({"params": params}, batch["input"], True, None)
        return lp.Mean(jnp.sum(outputs.astype(jnp.float32)), jnp.float32(len(batch["input"]))), lp.Aux(stats, {})

    gradient = lp.scaled(lp.computed(loss, "float16"), growth_interval)
    import optax

    update = jax.jit(lp.descend(gradient, optax.sgd(1.0)))
    x = jax.ShapeDtypeStruct((4,), jnp.float32)
    state = lp.initial(model, optax.sgd(1.0), jax.random.key(0), x, loss_scale=lp.loss_scale(scale))
    for _ in range(steps):
        state, metrics = update(state, {"input": jnp.full(4, factor, jnp.float32)})
    return state, metrics


def test_an_overflow_halves_the_scale_and_moves_nothing():
    state, metrics = scaled_run(2.0**15, 100.0, 1)
    assert float(state.params["w"]) == 0
    assert float(state.stats["loss_scale"]["scale"]) == 2.0**14
    assert int(state.step) == 1
    assert float(metrics["loss"].weight) == 0


def test_it_finds_a_scale_that_fits_and_then_learns():
    state, _ = scaled_run(2.0**15, 100.0, 12)
    assert float(state.params["w"]) < 0
    assert float(state.stats["loss_scale"]["scale"]) * 100 < 65504


def test_finite_steps_in_a_row_double_the_scale():
    state, _ = scaled_run(8.0, 1.0, 6, growth_interval=3)
    assert float(state.stats["loss_scale"]["scale"]) == 32.0
    np.testing.assert_allclose(state.params["w"], -6.0)


def test_small_gradients_survive_that_float16_alone_would_lose():
    state, _ = scaled_run(2.0**15, 2.0**-20, 1)
    np.testing.assert_allclose(state.params["w"], -(2.0**-20))
    assert tree.norm(state.params) > 0
