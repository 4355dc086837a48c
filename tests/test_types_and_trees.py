"""The vocabulary: Mean as a monoid, keys by purpose and example, trees by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import errors, keys, tree
from lepton_jax.errors import InputError
from lepton_jax.types import Mean

numbers = st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(0.125, 8, width=32)), min_size=1, max_size=12)


def mean_of(pairs):
    values, weights = np.array(pairs, np.float32).T
    return Mean(jnp.sum(values * weights), jnp.sum(weights))


@given(numbers, numbers)
@settings(max_examples=30, deadline=None)
def test_merging_means_is_the_mean_of_all(a, b):
    both = np.array(a + b, np.float64)
    expected = np.average(both[:, 0], weights=both[:, 1])
    for merged in (mean_of(a).merge(mean_of(b)), mean_of(b).merge(mean_of(a))):
        np.testing.assert_allclose(merged.value(), expected, rtol=1e-4, atol=1e-4)


def test_a_mean_of_nothing_is_zero_and_of_halves_is_float32():
    assert Mean(jnp.zeros(3), jnp.float32(0)).value().tolist() == [0, 0, 0]
    assert Mean(jnp.ones(3, jnp.bfloat16), jnp.float32(3)).value().dtype == jnp.float32


def test_keys_differ_by_purpose_and_example_and_not_by_position():
    key = jax.random.key(0)
    batch = {"input": np.zeros((4, 2)), "index": jnp.array([7, 3, 9, 1])}
    swapped = {"input": np.zeros((4, 2)), "index": jnp.array([1, 9, 3, 7])}
    a, b = (jax.random.key_data(keys.per_example(key, x, "augment")) for x in (batch, swapped))
    np.testing.assert_array_equal(a, b[::-1])
    other = jax.random.key_data(keys.per_example(key, batch, "model"))
    assert len({tuple(row) for row in np.concatenate([a, other]).tolist()}) == 8
    assert keys.index({"input": np.zeros((3, 1))}).tolist() == [0, 1, 2]


def test_named_works_on_arrays_of_keys():
    many = jax.random.split(jax.random.key(1), 3)
    one_by_one = [jax.random.key_data(keys.named(key, "a")) for key in many]
    np.testing.assert_array_equal(jax.random.key_data(keys.named(many, "a")), np.stack(one_by_one))


TREE = {"stage1": {"conv": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}, "count": jnp.int32(5)}


def test_paths_are_the_public_names():
    assert tree.paths(TREE) == ["count", "stage1/conv/bias", "stage1/conv/kernel"]
    assert tree.select("kernel$", TREE)["stage1"]["conv"] == {"kernel": True, "bias": False}
    with pytest.raises(InputError, match=r"matches no leaf.*\n.*stage1/conv/bias"):
        tree.select("kernl$", TREE)


def test_arithmetic_and_norms():
    assert tree.cast(TREE, jnp.bfloat16)["count"].dtype == jnp.int32
    assert tree.cast(TREE, jnp.bfloat16)["stage1"]["conv"]["bias"].dtype == jnp.bfloat16
    floats = TREE["stage1"]
    np.testing.assert_allclose(tree.norm(tree.add(floats, tree.scale(floats, 2.0))), 9.0)
    assert tree.count(TREE) == 10
    assert tree.nbytes(TREE) == 40
    assert bool(tree.is_finite(floats))
    assert not bool(tree.is_finite({"a": jnp.array([1.0, jnp.nan])}))
    both = tree.where(jnp.array(False), floats, tree.scale(floats, 3.0))
    np.testing.assert_allclose(both["conv"]["bias"], 3.0)


def test_an_unknown_name_gets_the_nearest():
    error = errors.unknown("optimizer", "adamv", ["sgd", "adamw", "lion"])
    assert str(error) == "unknown optimizer 'adamv'\ndid you mean 'adamw'? known: adamw, lion, sgd"
    assert errors.named("loss", len, {}) is len
    with pytest.raises(InputError, match="unknown loss 'zz'"):
        errors.named("loss", "zz", {"mse": len})
