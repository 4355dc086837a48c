"""Stochastic depth: whole branches of examples, by the example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from lepton_jax import InputError, mesh, models
from lepton_jax.models.layers import Dropout, StochasticDepth, increasing

KEYS = jax.random.split(jax.random.key(0), 64)


def left(x: jax.Array, keys: jax.Array, rate: float = 0.4, name: str = "a") -> jax.Array:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train, keys):
            return StochasticDepth(rate, name=name)(x, train, keys)

    return models.linen(Net()).apply({"params": {}}, x, True, keys)[0]


def test_an_example_is_left_out_as_a_whole():
    out = np.asarray(left(jnp.ones((64, 3, 5)), KEYS)).reshape(64, -1)
    assert all(len(set(row)) == 1 for row in out)
    kept = out[:, 0] != 0
    np.testing.assert_allclose(out[kept], 1 / 0.6, rtol=1e-6)
    assert 0 < kept.sum() < 64


def test_the_decision_belongs_to_the_example_not_to_its_row():
    x = jnp.ones((64, 4))
    whole, order = left(x, KEYS), np.random.default_rng(0).permutation(64)[:16]
    np.testing.assert_array_equal(left(x[order], KEYS[order]), whole[order])
    sharded = jax.device_put((x, KEYS), mesh.batch_sharding(mesh.make("8x1")))
    np.testing.assert_array_equal(jax.jit(left)(*sharded), whole)
    assert not np.array_equal(left(x, KEYS, name="b"), whole)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_is_kept(rate):
    rows = 20_000
    out = left(jnp.ones((rows, 1)), jax.random.split(jax.random.key(1), rows), rate)
    assert abs(float(jnp.mean(out == 0)) - rate) < 5 * np.sqrt(rate * (1 - rate) / rows)


@pytest.mark.parametrize("layer", [StochasticDepth, Dropout])
def test_the_identity_in_evaluation_and_the_impossible(layer):
    x = jnp.ones((2, 3))
    assert layer(0.5).apply({}, x, False) is x
    assert layer(0.0).apply({}, x, True) is x
    with pytest.raises(InputError, match="no keys"):
        layer(0.5).apply({}, x, True)
    with pytest.raises(InputError, match=r"rate 1\.0"):
        layer(1.0).apply({}, x, False)


@given(st.floats(0, 0.99), st.integers(1, 40))
def test_rates_rise_in_equal_steps_from_zero(rate, blocks):
    rates = increasing(rate, blocks)
    assert len(rates) == blocks
    assert rates[0] == 0
    assert rates[-1] == (rate if blocks > 1 else 0)
    np.testing.assert_allclose(np.diff(rates), rate / max(blocks - 1, 1), atol=1e-12)
