"""The knapsack against trying everything, sensitivities against their definition, and what an audit says."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_jax as lp
from lepton_jax.compress import comparison, evaluation, leaves
from lepton_jax.compress.allocation import Cost, allocate, sensitivities
from lepton_jax.errors import InputError

costs = st.builds(Cost, st.integers(0, 50), st.integers(0, 9), st.integers(-8, 64).map(lambda n: n / 64))
tables = st.dictionaries(
    st.sampled_from("abcd"), st.dictionaries(st.sampled_from("xyz"), costs, min_size=1), min_size=1
)


def exhaustive(choices, nbytes=math.inf, milliseconds=math.inf):
    """The least loss within the budgets, by trying all combinations."""
    combinations = itertools.product(*(costs.values() for costs in choices.values()))
    sums = (tuple(map(sum, zip(*costs, strict=True))) for costs in combinations)
    return min((loss for size, time, loss in sums if size <= nbytes and time <= milliseconds), default=math.inf)


def spent(choices, chosen):
    return tuple(map(sum, zip(*(choices[name][label] for name, label in chosen.items()), strict=True)))


@given(tables, st.integers(0, 200))
@settings(deadline=None, max_examples=100)
def test_one_budget_is_kept_and_the_best_is_found(choices, budget):
    if exhaustive(choices, budget) == math.inf:
        with pytest.raises(InputError, match="less than"):
            allocate(choices, budget)
        return
    chosen = allocate(choices, budget)
    assert list(chosen) == list(choices)
    size, _, loss = spent(choices, chosen)
    assert size <= budget
    # cells round costs up by less than 1 each: with a little more to spend there is nothing better
    slack = budget * (1 - len(choices) / 2000)
    assert loss <= exhaustive(choices, slack) + 1e-6


@given(tables, st.integers(1, 200), st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_two_budgets_are_kept(choices, size, time):
    if exhaustive(choices, size, time) == math.inf:
        return
    slack = exhaustive(choices, 0.9 * size, 0.9 * time)
    try:
        found = spent(choices, allocate(choices, size, time))
    except InputError:
        assert slack == math.inf  # only where rounding up leaves nothing
        return
    assert found[0] <= size
    assert found[1] <= time
    assert found[2] <= slack + 1e-6


def test_without_a_budget_the_loss_alone_counts():
    choices = {"a": {"x": Cost(1, 0, 1.0), "y": Cost(99, 0, 0.5)}, "b": {"x": Cost(1, 0, -1.0)}}
    assert allocate(choices) == {"a": "y", "b": "x"}


def test_sensitivities_change_one_weight_at_a_time():
    params = {"a": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}, "b": {"kernel": jnp.full((3, 1), 3.0)}}

    def loss(params):
        arrays = leaves.unpacked(params)
        return float(jnp.sum(arrays["a"]["kernel"]) + 10 * jnp.sum(arrays["b"]["kernel"]))

    options = {
        "whole": lambda name, leaf: leaf,
        "half": lambda name, leaf: (leaf / 2).astype(jnp.float16),
        "wide": lambda name, leaf: leaf if leaf.shape[1] > 1 else None,
    }
    found = sensitivities(params, options, loss, milliseconds=lambda name, leaf: leaf.size)
    assert found["a/kernel"] == {"whole": (24, 6, 0), "half": (12, 6, -6), "wide": (24, 6, 0)}
    assert found["b/kernel"] == {"whole": (12, 3, 0), "half": (6, 3, -45)}
    assert allocate(found, 30) == {"a/kernel": "half", "b/kernel": "half"}


@pytest.fixture(scope="module")
def record():
    model = lp.models.build("mlp", 10)
    inputs = jnp.asarray(np.random.default_rng(0).random((16, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), inputs)
    kernel = variables["params"]["dense1"]["kernel"]
    packed = leaves.Quantized((kernel * 100).astype(jnp.int8), jnp.full((1, 1), 0.01), None, None, kernel.shape, 8)
    small = {"params": {**variables["params"], "dense1": {**variables["params"]["dense1"], "kernel": packed}}}
    before = comparison.Subject("dense", model, variables)
    after = comparison.Subject("int8", lp.compress.applied(model), small)
    sizes = {"dense": 100, "int8": 50}
    return comparison.audit(
        before,
        after,
        inputs,
        score=lambda model, variables: 0.9 if variables is small else 0.95,
        macs=lambda model, variables, inputs: sizes["int8" if variables is small else "dense"] * len(inputs),
        batches=(1, 16),
        rounds=3,
    )


def test_an_audit_measures_both(record):
    assert json.loads(json.dumps(record)) == record
    assert 2.5 < record["size"] < 4
    assert record["macs"] == 2
    assert record["points"] == pytest.approx(5)
    assert set(record["speed"]) == {"1", "16"}
    assert all(low <= record["speed"][n] <= high for n, (low, high) in record["quartiles"].items())
    text = comparison.table(record)
    assert "dense" in text.splitlines()[0]
    assert "-5.00 points" in text
    assert len({len(line) for line in text.splitlines()}) == 1


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({"size": 5}, "size is"),
        ({"points": 1}, "points is 5, more than 1"),
        ({"macs": 2.5}, "macs is 2, less"),
        ({"x": 1}, "no budget"),
    ],
)
def test_a_broken_budget_is_an_error(record, budget, problem):
    with pytest.raises(InputError, match=problem):
        comparison.require(record, budget)
    comparison.require(record, {"size": 2.5, "points": 6, "macs": 2, "speed": 1e-6})


def test_both_are_timed_on_one_device():
    """A model that lies on a mesh is not computed on all of it."""
    placed = []

    def apply(variables, inputs, train, keys):
        jax.debug.inspect_array_sharding(inputs, callback=placed.append)
        return inputs @ variables["params"]["kernel"], {}

    over = lp.mesh.make("8x1")
    kernel = jax.device_put(np.ones((4, 2), np.float32), lp.mesh.replicated(over))
    subject = comparison.Subject("a", lp.Model(lambda key, inputs: {}, apply), {"params": {"kernel": kernel}})
    record = comparison.audit(subject, subject, jnp.ones((8, 4)), lambda *_: 1.0, lambda *_: 1, (8,), rounds=2)
    assert record["size"] == 1
    assert placed
    assert all(len(sharding.device_set) == 1 for sharding in placed)


def test_layers_are_timed_on_one_device(monkeypatch):
    """Those that are factored, by themselves, on what the model that lies on a mesh gives them."""
    placed, multiplied = [], evaluation.multiplied

    def seen(site, inputs, weight):
        if isinstance(inputs, jax.core.Tracer):
            jax.debug.inspect_array_sharding(inputs, callback=placed.append)
        return multiplied(site, inputs, weight)

    model = lp.Model(lambda key, inputs: {}, lambda v, inputs, train, keys: (inputs @ v["params"]["kernel"], {}))
    kernel = jax.device_put(np.ones((4, 2), np.float32), lp.mesh.replicated(lp.mesh.make("8x1")))
    factors = leaves.Factored({"down": np.ones((4, 1), np.float32), "up": np.ones((1, 2), np.float32)}, (4, 2))
    before = comparison.Subject("a", model, {"params": {"kernel": kernel}})
    after = comparison.Subject("b", evaluation.applied(model), {"params": {"kernel": factors}})
    monkeypatch.setattr(evaluation, "multiplied", seen)
    record = comparison.audit(before, after, jnp.ones((8, 4)), lambda *_: 1.0, lambda *_: 1, (8,), rounds=2)
    assert record["layers"].keys() == {"8"}
    assert len(placed) == 2
    assert all(len(sharding.device_set) == 1 for sharding in placed)
    assert "the factored layers, batch 8" in comparison.table(record)
