"""Models trained apart against a loop in numpy, and averages of models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from tests import laws

RATE, REPLICAS, EVERY, STEPS = 0.1, 4, 3, 8


def linear():
    """Least squares, whose gradient numpy writes in a line."""

    def apply(params, inputs):
        return inputs @ params["weight"]

    return lp.models.functions(lambda key, inputs: {"weight": jnp.ones((3, 2), inputs.dtype)}, apply)


def batches():
    random = np.random.default_rng(0)
    return [
        {
            "input": random.normal(size=(8, 3)),
            "label": random.normal(size=(8, 2)),
            "index": np.arange(8, dtype=np.int32),
        }
        for _ in range(STEPS)
    ]


def by_hand(outer_rate: float, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """(merged, each replica's) weights of DiLoCo: Nesterov's momentum on the mean way of the replicas, negated."""
    merged, velocity = np.ones((3, 2)), np.zeros((3, 2))
    own = [merged.copy() for _ in range(REPLICAS)]
    for number, batch in enumerate(batches(), 1):
        for r in range(REPLICAS):
            x, y = batch["input"][2 * r : 2 * r + 2], batch["label"][2 * r : 2 * r + 2]
            own[r] -= RATE * x.T @ (x @ own[r] - y) / 2  # the mean over two examples and two outputs, times two
        if number % EVERY == 0:
            way = merged - np.mean(own, axis=0)
            velocity = momentum * velocity + way
            merged = merged - outer_rate * (way + momentum * velocity)
            own = [merged.copy() for _ in range(REPLICAS)]
    return merged, np.array(own)


def trained(outer, axes: str):
    mesh, inner, rows = lp.mesh.make(axes), optax.sgd(RATE), batches()
    step = lp.descend(lp.plain(lp.supervised(linear(), lp.squared_error)), inner)
    step, rules = lp.replicas.apart(step, outer, REPLICAS, EVERY), lp.replicas.rules(())
    state = lp.step.initial(linear(), inner, jax.random.key(0), rows[0]["input"])
    state = lp.step.place(lp.replicas.started(state, outer, REPLICAS), mesh, rules)
    compiled = lp.step.compile(step, state, rows[0], mesh, rules)
    for batch in rows:
        state, metrics = compiled(state, lp.mesh.place(batch, mesh))
    assert float(metrics["loss"].weight) == 8
    return state, compiled


@pytest.mark.parametrize("axes", ["1x1", "4x2", "data=2,fsdp=2,model=2"])
@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (0.7, 0.9)])
def test_apart_is_the_loop_by_hand(axes, rate, momentum, float64):
    merged, own = by_hand(rate, momentum)
    state, _ = trained(optax.sgd(rate, momentum=momentum or None, nesterov=momentum > 0), axes)
    np.testing.assert_allclose(state.params["weight"], merged, rtol=1e-12)
    np.testing.assert_allclose(state.stats["replicas"]["params"]["weight"], own, rtol=1e-12)


def test_replicas_lie_over_the_data_axis_and_meet_only_to_merge(float64):
    state, compiled = trained(optax.sgd(1.0), "4x2")
    weight = state.stats["replicas"]["params"]["weight"]
    assert weight.addressable_shards[0].data.shape == (1, 3, 2)
    entry = compiled.as_text().split("ENTRY")[1]
    outside = [line for line in entry.splitlines() if " all-reduce(" in line or " all-gather(" in line]
    assert outside  # the metrics alone: scalars
    assert all("[3,2]" not in line for line in outside), outside


def test_one_replica_merged_at_every_step_is_the_step(float64):
    model, row = laws.models()["mlp"](), laws.TECHNIQUES["plain"]
    outer = optax.sgd(1.0)
    apart = row._replace(
        step=lambda step: lp.replicas.apart(step, outer, 1, every=1),
        start=lambda state: lp.replicas.started(state, outer, 1),
        rules=lp.replicas.rules,
    )
    alone, run = (laws.train(model, technique, "1x1", 6, jnp.float64) for technique in (row, apart))
    np.testing.assert_allclose(run.losses, alone.losses, rtol=1e-12)
    assert lp.tree.distance(run.state.params, alone.state.params) < 1e-12


def test_what_cannot_be_apart_is_refused():
    outer, step = optax.sgd(1.0), laws.update(laws.models()["mlp"](), laws.TECHNIQUES["plain"])
    state = laws.beginning(laws.models()["mlp"](), laws.TECHNIQUES["plain"])
    batch = lp.data.Stream(laws.digits(), 16, 0).batch(0)
    with pytest.raises(lp.InputError, match="a merge every 0 steps never comes"):
        lp.replicas.apart(step, outer, 2, every=0)
    with pytest.raises(lp.InputError, match="0 replicas cannot train"):
        lp.replicas.started(state, outer, 0)
    for replicas, words in ((3, "3 replicas do not divide a batch of 16"), (2, "do not divide over the 8 devices")):
        begun = lp.replicas.started(state, outer, replicas)
        with jax.set_mesh(lp.mesh.make("8x1")), pytest.raises(lp.InputError, match=words):
            jax.eval_shape(lp.replicas.apart(step, outer, replicas, 2), begun, batch)


def soup(*values: float):
    return [{"a": jnp.full(2, value, jnp.bfloat16), "n": jnp.int32(value)} for value in values]


def test_a_uniform_soup_is_the_mean():
    found = lp.soups.uniform(soup(1, 2, 6))
    np.testing.assert_array_equal(found["a"], np.full(2, 3.0))
    assert found["a"].dtype == jnp.bfloat16
    assert int(found["n"]) == 1


def test_a_greedy_soup_leaves_out_what_harms():
    """The target is 2: 1.5 is best alone, with 2.75 the mean is nearer, and 9 would spoil it."""

    def score(params):
        return -abs(float(params["a"][0]) - 2)

    found, kept = lp.soups.greedy(soup(9, 2.75, 1.5), score)
    assert kept == [2, 1]
    np.testing.assert_array_equal(found["a"], np.full(2, 2.125))
    assert score(found) >= max(map(score, soup(9, 2.75, 1.5)))


def test_soups_of_what_does_not_match_are_refused():
    with pytest.raises(lp.InputError, match="no parameters to average"):
        lp.soups.uniform([])
    with pytest.raises(lp.InputError, match="candidate 1 have other names"):
        lp.soups.uniform([{"a": jnp.ones(2)}, {"b": jnp.ones(2)}])
