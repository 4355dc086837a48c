"""Epsilon against dp-accounting called directly; noise against numpy; runs that do not match their plan."""

import dataclasses

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

import lepton_jax as lp
from lepton_jax import data, privacy, tree
from lepton_jax.errors import InputError
from lepton_jax.privacy.noise import correlated, drawn
from tests import laws

KEY = jax.random.key(3)


def test_the_known_setting():
    plan = privacy.plan(60_000, 256, 14_062, 1.0, 1.12, 1e-5)
    assert abs(plan.epsilon - 2.3102) < 1e-3
    assert plan.epsilon_rdp is not None
    assert abs(plan.epsilon_rdp - 2.5186) < 1e-3
    assert plan.told()["relation"] == "add or remove one example"


def test_epsilon_is_what_dp_accounting_says():
    """Over fifty settings."""
    random = np.random.default_rng(0)
    for _ in range(50):
        examples = int(10 ** random.uniform(2.5, 5))
        batch = max(1, int(examples * 10 ** random.uniform(-2.5, -0.2)))
        steps, noise = int(10 ** random.uniform(0, 3)), float(random.uniform(0.8, 6))
        delta = float(10 ** random.uniform(-8, -4))
        plan = privacy.plan(examples, batch, steps, 1.0, noise, delta)
        event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(batch / examples, dp.GaussianDpEvent(noise)), steps)
        assert abs(plan.epsilon - PLDAccountant().compose(event).get_epsilon(delta)) < 1e-6


def test_other_kinds_of_run_are_other_events():
    schedule = privacy.plan(1000, 100, 30, 1.0, privacy.stepwise(2.0, 0.5, 20, 30), 1e-5)
    parts = [(2.0, 20), (1.0, 10)]
    events = [dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(m)), n) for m, n in parts]
    assert abs(schedule.epsilon - PLDAccountant().compose(dp.ComposedDpEvent(events)).get_epsilon(1e-5)) < 1e-6

    fixed = privacy.plan(1000, 100, 30, 1.0, 4.0, 1e-5, sampling="fixed")
    event = dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(1000, 100, dp.GaussianDpEvent(2.0)), 30)
    replaced = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    assert abs(fixed.epsilon - replaced.compose(event).get_epsilon(1e-5)) < 1e-9

    bands = privacy.plan(1000, 100, 30, 1.0, privacy.banded(2.0, 4), 1e-5)
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.4, dp.GaussianDpEvent(2.0)), 8)
    assert abs(bands.epsilon - PLDAccountant().compose(event).get_epsilon(1e-5)) < 1e-6

    counted = privacy.plan(1000, 100, 30, privacy.adaptive(1.0, noise=5.0), 2.0, 1e-5)
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent((2.0**-2 + 10.0**-2) ** -0.5)), 30)
    assert abs(counted.epsilon - PLDAccountant().compose(event).get_epsilon(1e-5)) < 1e-6

    cut = privacy.plan(1000, 100, 30, 1.0, 2.0, 1e-5, capacity=110)
    assert cut.epsilon > privacy.plan(1000, 100, 30, 1.0, 2.0, 1e-5).epsilon
    assert privacy.plan(1000, 100, 30, 1.0, 0.0, 1e-5).epsilon == float("inf")


@pytest.mark.parametrize("course", [None, privacy.linear(2.0, 1.0, 40, levels=3)])
def test_noise_is_found_for_an_epsilon(course):
    plan = privacy.plan(1000, 100, 40, 1.0, course, 1e-5, epsilon=2.0)
    assert 1.99 < plan.epsilon <= 2.0
    assert plan.spent(40) == plan.epsilon
    assert 0 == plan.spent(0) < plan.spent(10) < plan.epsilon


def test_rows_for_all_but_a_hundred_millionth_of_delta():
    from scipy.stats import binom

    plan = privacy.plan(1000, 100, 50, 1.0, 2.0, 1e-5)
    cost = 50 * binom.sf(plan.capacity, 1000, 0.1) * (1 + np.exp(plan.epsilon))
    assert cost <= 1e-13 < 50 * binom.sf(plan.capacity - 1, 1000, 0.1) * (1 + np.exp(plan.epsilon))
    assert privacy.plan(1000, 100, 50, 1.0, 2.0, 1e-5, multiple=64).capacity % 64 == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"examples": 10, "batch": 20}, "not between 1 and the 10 examples"),
        ({"delta": 0.0}, "delta 0.0"),
        ({"steps": 0}, "0 steps"),
        ({"noise": -1.0}, "multiplier -1.0"),
        ({"clip": 0.0}, "norm 0.0"),
        ({"sampling": "shuffled"}, "unknown sampling"),
        ({"noise": None}, "neither noise nor an epsilon"),
        ({"noise": None, "epsilon": -1.0}, "epsilon -1.0"),
        ({"capacity": 5}, "below the expected batch"),
        ({"noise": privacy.banded(1.0, 20)}, "20 x 100"),
        ({"noise": privacy.banded(1.0, 2), "sampling": "fixed"}, "needs Poisson sampling"),
        ({"noise": privacy.banded(1.0, 2), "clip": privacy.adaptive(1.0)}, "needs a fixed norm"),
    ],
)
def test_plans_that_cannot_be(change, problem):
    given = {"examples": 1000, "batch": 100, "steps": 10, "clip": 1.0, "noise": 1.0, "delta": 1e-5, **change}
    with pytest.raises(InputError, match=problem):
        privacy.plan(**given)


def digits_run(plan, step=None):
    """(step, state, stream) of a run on digits, as planned or as another step does."""
    model, optimizer = lp.models.mlp((8,), 10), laws.optimizer()
    stream = plan.stream(laws.digits(), 0)
    gradient = privacy.private(lp.supervised(model, lp.cross_entropy()), plan)
    inputs = lp.step.shapes(stream.batch(0)["input"])
    state = lp.step.initial(model, optimizer, KEY, inputs, privacy=plan.start)
    return lp.descend(gradient, optimizer), state, stream


def test_a_run_that_does_not_match_its_plan_is_refused():
    plan = privacy.plan(80, 16, 5, 1.0, 1.0, 1e-5)
    step, state, stream = digits_run(plan)
    plan.require(step, state, stream, 5)
    plan.require(lp.step.averaged(step, 0.9), state._replace(stats={**state.stats, "ema": state.params}), stream, 5)
    for other, problem in [
        (dataclasses.replace(plan, noise=privacy.constant(2.0)), "has noise"),
        (dataclasses.replace(plan, clip=privacy.flat(2.0)), "clips by"),
        (dataclasses.replace(plan, clip=privacy.automatic(1.0)), "clips by"),
        (dataclasses.replace(plan, batch=8), "divides by 16"),
        (dataclasses.replace(plan, capacity=80), "sees"),
        (dataclasses.replace(plan, sampling="fixed"), "sees"),
    ]:
        with pytest.raises(InputError, match=problem):
            other.require(step, state, stream, 5)
    with pytest.raises(InputError, match="has 6 steps"):
        plan.require(step, state, stream, 6)
    with pytest.raises(InputError, match="sees shuffled batches of 16 of 80"):
        plan.require(step, state, data.Stream(laws.digits(), 16, 0), 5)
    bare = lp.descend(lp.plain(lp.supervised(lp.models.mlp((8,), 10), lp.cross_entropy())), laws.optimizer())
    with pytest.raises(InputError, match="adds noise 0 times to unclipped"):
        plan.require(bare, state, stream, 5)
    with pytest.raises(InputError, match="has done 0 private steps"):
        plan.require(step, state._replace(step=jnp.int32(3)), stream, 5)
    with pytest.raises(InputError, match="for 80 examples"):
        plan.stream(data.Arrays({"input": np.zeros((3, 8, 8, 1), np.uint8)}), 0)


def test_without_dp_accounting_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"lepton-jax\[private\]"):
        privacy.plan(1000, 100, 10, 1.0, 1.0, 1e-5)


def test_noise_is_normal_and_independent_between_leaves_and_steps():
    like = {"a": jnp.zeros((100, 100)), "b": jnp.zeros((100, 100))}
    draws = [drawn(jax.random.fold_in(KEY, step), like)[name].ravel() for step in range(3) for name in like]
    correlation = np.corrcoef(np.stack(draws)) - np.eye(6)
    assert np.max(np.abs(correlation)) < 5 / 100  # five standard deviations of 10,000 pairs
    for draw in draws:
        assert abs(np.mean(draw)) < 5 / 100
        assert abs(np.var(draw) - 1) < 5 * 2**0.5 / 100


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        (privacy.constant(1.5), [1.5] * 6),
        (privacy.stepwise(2.0, 0.5, 2, 6), [2, 2, 1, 1, 0.5, 0.5]),
        (privacy.linear(3.0, 1.0, 6, levels=3), [3, 3, 2, 2, 1, 1]),
        (privacy.exponential(4.0, 1.0, 6, levels=3), [4, 4, 2, 2, 1, 1]),
    ],
)
def test_the_noise_that_is_added_is_the_noise_that_is_counted(course, expected):
    """The standard deviation over the norm, step by step, as the accountant spans them and as the steps draw it."""
    spans = [level for level, steps in course.spans(6) for _ in range(steps)]
    np.testing.assert_allclose(spans, expected, rtol=1e-6)
    assert sum(steps for _, steps in course.spans(5)) == 5
    params = {"w": jnp.zeros((200, 200))}

    def nothing(params, stats, batch, key):
        return lp.types.Mean(params, jnp.float32(0)), lp.types.Aux(stats, {})

    gradient = jax.jit(privacy.noised(nothing, course, 0.5, 10))
    stats, draws = {"privacy": privacy.started(params, course, privacy.flat(0.5))}, []
    for number in range(6):
        mean, aux = gradient(params, stats, {}, jax.random.fold_in(KEY, number))
        draws.append(np.asarray(mean.total["w"]).ravel())
        stats = aux.stats
    np.testing.assert_allclose(np.std(draws, axis=1), 0.5 * np.array(expected), rtol=0.02)
    assert np.max(np.abs(np.corrcoef(draws) - np.eye(6))) < 5 / 200


def test_banded_noise_is_that_of_the_matrix():
    bands, steps = 4, 12
    noise = privacy.banded(1.0, bands)
    matrix = sum(np.diag(np.full(steps - k, c), -k) for k, c in enumerate(noise.bands))
    assert np.max(np.linalg.norm(matrix, axis=0)) == pytest.approx(1)  # what one taking part moves
    z = np.random.default_rng(0).normal(size=(steps, 3))
    state = {"w": jnp.zeros((bands - 1, 3))}
    rows = []
    for row in z:
        new, state = correlated({"w": jnp.asarray(row, jnp.float32)}, state, noise.bands)
        rows.append(new["w"])
    np.testing.assert_allclose(rows, np.linalg.solve(matrix, z), atol=1e-5)
    sums = np.tril(np.ones((steps, steps)))  # what training sees: sums over steps, with less noise than otherwise
    error = np.linalg.norm(sums @ np.linalg.inv(matrix))
    assert error < 0.9 * np.linalg.norm(sums)


def test_an_adaptive_norm_finds_its_quantile():
    """Against norms that are known: the share of examples below ends at the quantile, within the count's noise."""
    weights = np.linspace(0.1, 4, 64).astype(np.float32)
    rows = {"input": np.ones((64, 1), np.float32), "weight": weights}

    def loss(params, stats, batch, key):
        total = jnp.sum(batch["weight"] * params["w"])
        return lp.types.Mean(total, jnp.sum(batch["weight"])), lp.types.Aux(stats, {})

    rule, params = privacy.adaptive(0.1, 0.75, rate=0.3, noise=2.0), {"w": jnp.float32(0)}
    gradient = privacy.noised(lp.accumulate(privacy.clipped(loss, rule), 2), 0.0, rule, 64)
    stats = {"privacy": privacy.started(params, privacy.constant(0.0), rule)}

    def turn(stats, number):
        _, aux = gradient(params, stats, rows, jax.random.fold_in(KEY, number))
        return aux.stats, (aux.metrics["clip"].value(), aux.metrics["clipped"].value())

    _, (clips, shares) = jax.lax.scan(turn, stats, jnp.arange(200))
    assert clips[0] == pytest.approx(0.1)
    assert np.mean(clips[100:]) == pytest.approx(np.quantile(weights, 0.75), rel=0.05)
    assert np.mean(shares[100:]) == pytest.approx(0.25, abs=0.04)


class Counting(data.Arrays):
    """Examples that say who they are."""

    def __init__(self, examples):
        super().__init__({"input": np.arange(examples, dtype=np.float32)[:, None], "label": np.zeros(examples)})


def test_poisson_batches_have_one_shape_and_every_size():
    stream = privacy.Poisson(Counting(50), 5, 1, capacity=8)
    sizes = []
    for step in range(400):
        batch = stream.batch(step)
        assert {len(column) for column in batch.values()} == {8}
        there = batch["weight"] == 1
        sizes.append(int(there.sum()))
        np.testing.assert_array_equal(batch["input"][there, 0], batch["index"][there])
        assert np.all(batch["input"][~there] == 0)
        assert np.all(batch["index"][~there] >= 50)
        assert len(set(batch["index"])) == 8
    assert min(sizes) == 0 or min(sizes) == 1
    assert max(sizes) == 8
    assert max(int(stream.joining(step).sum()) for step in range(400)) > 8
    empty = privacy.Poisson(Counting(50), 1, 1, capacity=8)
    assert any(not empty.batch(step)["weight"].any() for step in range(20))


def test_poisson_joins_are_independent_and_as_probable_as_said():
    stream = privacy.Poisson(Counting(200), 20, 2, capacity=200)
    joins = np.stack([stream.joining(step) for step in range(2000)])
    assert abs(joins.mean() - 0.1) < 5 * (0.09 / joins.size) ** 0.5
    assert np.var(joins.sum(1)) == pytest.approx(200 * 0.09, rel=0.15)
    assert np.max(np.abs(np.corrcoef(joins[:, :20].T) - np.eye(20))) < 6 / 2000**0.5
    banded = privacy.Poisson(Counting(200), 20, 2, capacity=200, bands=4)
    joins = np.stack([banded.joining(step) for step in range(400)])
    assert joins.mean() == pytest.approx(0.1, rel=0.05)
    apart = [np.diff(np.flatnonzero(column)) % 4 for column in joins.T]
    assert all(np.all(steps == 0) for steps in apart)  # never twice in four steps


@pytest.mark.parametrize(
    "make", [lambda s: privacy.Poisson(s, 6, 3, capacity=12), lambda s: privacy.FixedSize(s, 12, 3)]
)
def test_streams_are_functions_of_the_step_in_parts_and_without(make):
    stream = make(Counting(40))
    whole, again = stream.batch(7), make(Counting(40)).batch(7)
    parts = [stream.part(number, 3).batch(7) for number in range(3)]
    for name, column in whole.items():
        np.testing.assert_array_equal(column, again[name])
        np.testing.assert_array_equal(column, np.concatenate([part[name] for part in parts]))
    skipping = stream.without([7])
    np.testing.assert_array_equal(skipping.batch(7)["index"], stream.batch(8)["index"])
    assert stream.without([7]).part(1, 3).batch(7)["index"].tolist() == stream.part(1, 3).batch(8)["index"].tolist()
    batches = list(stream.batches(3, 5))
    np.testing.assert_array_equal(batches[1]["index"], stream.batch(4)["index"])


def test_fixed_batches_are_drawn_anew():
    stream = privacy.FixedSize(Counting(40), 10, 3)
    draws = [stream.batch(step)["index"] for step in range(400)]
    assert all(len(set(draw)) == 10 for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=40)
    assert np.all(np.abs(counts - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5)
    assert len(set(np.concatenate(draws[:4]).tolist())) < 40  # not an epoch


def test_a_private_run_is_the_same_bits_on_resuming(tmp_path):
    """And no two of its steps draw the same noise."""
    plan = privacy.plan(80, 16, 6, 1.0, privacy.banded(1.0, 2), 1e-5, multiple=8)
    step, state, stream = digits_run(plan)
    compiled = jax.jit(step)
    states = [state]
    for number in range(6):
        states.append(compiled(states[-1], stream.batch(number))[0])
    back = jax.tree.map(jnp.copy, states[3])
    for number in range(3, 6):
        back, _ = compiled(back, stream.batch(number))
    jax.tree.map(np.testing.assert_array_equal, back.params, states[6].params)
    assert int(back.stats["privacy"]["steps"]) == 6
    noises = [np.asarray(s.stats["privacy"]["noise"]["head"]["kernel"])[0].ravel() for s in states[1:]]
    assert np.max(np.abs(np.corrcoef(noises) - np.eye(6))) < 0.7
    assert tree.count(states[0].stats["privacy"]["noise"]) == tree.count(state.params)
