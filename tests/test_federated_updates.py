"""What becomes of updates on their way: robust means, compression with error feedback, clipping for privacy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats as scipy_stats

import lepton_jax as lp
from lepton_jax import federated
from lepton_jax.federated import robust
from tests import test_federated_algorithms as linear

COHORT = 9


def stacked(there: int = COHORT) -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(3)
    weights = rng.permutation(np.arange(COHORT) < there) * rng.integers(1, 9, COHORT)
    return {"a": rng.normal(size=(COHORT, 4, 3)), "b": rng.normal(size=(COHORT, 2))}, weights.astype(np.float64)


def flat(updates: dict) -> np.ndarray:
    return np.concatenate([np.reshape(x, (COHORT, -1)) for x in updates.values()], axis=1)


@pytest.mark.parametrize("there", [9, 8, 5, 1])
def test_median_and_trimmed_mean(there, float64):
    updates, weights = stacked(there)
    rows = {name: x[weights > 0] for name, x in updates.items()}
    mean = jax.jit(robust.median)(updates, weights)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.median(y, axis=0)), mean.value(), rows)
    assert mean.weight == there
    mean = jax.jit(robust.trimmed_mean(0.2))(updates, weights)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, scipy_stats.trim_mean(y, 0.2, axis=0)), mean.value(), rows)


@pytest.mark.parametrize(("there", "keep"), [(9, 1), (9, 4), (8, 2)])
def test_krum(there, keep, float64):
    updates, weights = stacked(there)
    hostile, present = 2, np.flatnonzero(weights)
    rows = flat(updates)
    scores = []
    for i in present:
        distances = sorted(np.sum((rows[i] - rows[j]) ** 2) for j in present if j != i)
        scores.append(sum(distances[: there - hostile - 2]))
    best = present[np.argsort(scores)[:keep]]
    mean = jax.jit(robust.krum(hostile, keep))(updates, weights)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[best].mean(axis=0)), mean.value(), updates)


def test_nobody_and_too_few_move_nothing():
    updates, _ = stacked()
    for combine in (robust.median, robust.trimmed_mean(0.1), robust.krum(1)):
        assert jax.jit(combine)(updates, jnp.zeros(COHORT)).weight == 0
    few = jnp.asarray(np.arange(COHORT) < 4, jnp.float32)
    assert jax.jit(robust.krum(1))(updates, few).weight == 0


@pytest.mark.parametrize("combine", [robust.median, robust.trimmed_mean(0.25), robust.krum(2), robust.krum(2, 3)])
@pytest.mark.parametrize("lie", [1e6, np.nan])
def test_two_hostile_clients_of_nine_do_not_lead(combine, lie):
    """The mean is led astray, and what is combined stays among what honest clients sent."""
    updates, weights = stacked()
    honest = flat(updates)[2:]
    told = {name: np.concatenate([np.full_like(x[:2], lie), x[2:]]).astype(np.float32) for name, x in updates.items()}
    value = jax.jit(combine)(told, weights.astype(np.float32)).value()
    together = np.concatenate([np.ravel(x) for x in value.values()])
    assert np.all(together >= honest.min(axis=0) - 1e-6)
    assert np.all(together <= honest.max(axis=0) + 1e-6)
    assert not np.all(np.abs(flat(told).mean(axis=0)) < 10)


def test_a_robust_round_over_a_mesh():
    """The updates of all devices are combined together."""
    batch = {name: np.concatenate([x] * 2)[:8] for name, x in linear.batch(np.arange(6)).items()}
    batch = {name: x.astype(np.int32 if name == "client" else np.float32) for name, x in batch.items()}
    by = optax.sgd(1.0)
    step, params = lp.descend(federated.federated(linear.client(), robust.median), by), {"w": jnp.zeros(linear.WIDTH)}
    ends = []
    for axes in ("1x1", "8x1"):
        over = lp.mesh.make(axes)
        begun = lp.TrainState(jnp.int32(0), params, {}, by.init(params), jax.random.key(0))
        begun = lp.step.place(jax.tree.map(jnp.copy, begun), over)
        ends.append(lp.step.compile(step, begun, batch, over)(begun, lp.mesh.place(batch, over))[0].params["w"])
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
    alone = [linear.ALL[number].train(np.zeros(linear.WIDTH)) for number in batch["client"]]
    np.testing.assert_allclose(ends[0], np.median(alone, axis=0), rtol=1e-5)


def shown(code: federated.Code, update: np.ndarray) -> np.ndarray:
    return np.asarray(code.shown({"w": jnp.asarray(update)}, jax.random.key(0))["w"])


def test_codes_are_what_they_say():
    update = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    kept = shown(federated.top_k(0.1), update)
    assert np.count_nonzero(kept) == 20
    np.testing.assert_array_equal(kept[kept != 0], update[kept != 0])
    assert np.abs(kept[kept != 0]).min() >= np.abs(update[kept == 0]).max()
    np.testing.assert_allclose(shown(federated.sign(), update), np.sign(update) * np.abs(update).mean(), rtol=1e-6)
    scale = np.abs(update).max() / 127
    levels = shown(federated.int8(), update) / scale
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert np.abs(levels - update / scale).max() < 1.001
    assert np.abs(levels).max() <= 127.001
    for code, bits in ((federated.top_k(0.1), 20 * (32 + 8)), (federated.sign(), 232), (federated.int8(), 1632)):
        assert code.bits({"w": update}) == bits
    assert np.all(shown(federated.int8(), np.zeros((3,), np.float32)) == 0)


def test_int8_is_right_on_average():
    update = {"w": jnp.linspace(-1, 1, 7)}
    draw = jax.jit(jax.vmap(lambda key: federated.int8().shown(update, key)["w"]))
    mean = draw(jax.random.split(jax.random.key(0), 4000)).mean(axis=0)
    np.testing.assert_allclose(mean, update["w"], atol=4 / 127 / np.sqrt(4000))


@pytest.mark.parametrize(
    "code", [federated.top_k(0.2), federated.sign(), federated.int8()], ids=["top", "sign", "int8"]
)
def test_what_is_not_sent_is_not_lost(code, float64):
    """All that was sent and what is still owed is, client by client, all that was to be sent."""
    sent, wanted = np.zeros((6, linear.WIDTH)), np.zeros((6, linear.WIDTH))
    zero, params = {"w": jnp.zeros(linear.WIDTH)}, {"w": jnp.ones(linear.WIDTH)}
    kept = {"residual": federated.kept(zero, 6)}
    whole, part = linear.client(), federated.compressed(linear.client(), code)
    for number, cohort in enumerate(linear.COHORTS):
        batch, key = linear.batch(cohort), jax.random.key(number)
        for row, client in enumerate(cohort):
            batches = {name: x[row] for name, x in batch.items() if name != "client"}
            own = {"residual": {"w": kept["residual"]["w"][client]}}
            said, _ = federated.answer(part, params, {}, own, batches, 1.0, key)
            wanted[client] += whole(params, {}, batches, key)[0].value()["w"]
            sent[client] += said.update.value()["w"]
        step = jax.jit(federated.federated(part))
        _, aux = step(params, {"clients": kept}, batch, key)
        if number == 0 and code.bits(zero) < 5 * 32 + 64:
            assert np.any(aux.stats["clients"]["residual"]["w"] != 0)
        for row, client in enumerate(cohort):
            batches = {name: x[row] for name, x in batch.items() if name != "client"}
            own = {"residual": {"w": kept["residual"]["w"][client]}}
            _, own = federated.answer(part, params, {}, own, batches, 1.0, key)
            kept["residual"]["w"] = kept["residual"]["w"].at[client].set(own["residual"]["w"])
    np.testing.assert_allclose(sent + kept["residual"]["w"], wanted, rtol=1e-9)


def test_clipped_updates_have_at_most_that_norm(float64):
    cohort = np.array([0, 2, 5])
    mean, _ = jax.jit(federated.federated(federated.clipped(linear.client(), 0.5)))(
        {"w": jnp.zeros(linear.WIDTH)}, {}, linear.batch(cohort), jax.random.key(0)
    )
    total = np.zeros(linear.WIDTH)
    for number in cohort:
        update = -linear.ALL[number].train(np.zeros(linear.WIDTH))
        total += update * min(1, 0.5 / np.linalg.norm(update))
    assert mean.weight == 3
    np.testing.assert_allclose(mean.total["w"], total, rtol=1e-6)


def test_an_update_that_is_no_number_counts_as_zeros():
    def lost(params, stats, batches, key):
        return lp.Mean({"w": jnp.full(3, jnp.nan)}, jnp.float32(5)), lp.Aux(stats, {})

    mean, _ = federated.clipped(lost, 1.0)({"w": jnp.zeros(3)}, {}, {}, jax.random.key(0))
    np.testing.assert_array_equal(mean.total["w"], 0)


def test_the_norm_of_clipping_follows_the_quantile(float64):
    """As Andrew et al. have it; and what one client adds has at most the sensitivity."""
    clip, quantile, rate, w = 0.3, 0.7, 0.4, np.zeros(linear.WIDTH)
    bounded = federated.adaptively_clipped(linear.client(), share=0.2)
    round = federated.adaptive(federated.federated(bounded), quantile, rate, share=0.2)
    step = lp.descend(round, optax.sgd(1.0))
    state = linear.run(step, optax.sgd(1.0), update_clip=jnp.float64(clip))
    for cohort in linear.COHORTS:
        updates = np.stack([w - linear.ALL[number].train(w) for number in cohort])
        norms = np.linalg.norm(updates, axis=1)
        w = w - np.mean(updates * np.minimum(1, clip / norms)[:, None], axis=0)
        clip *= np.exp(-rate * (np.mean(norms <= clip) - quantile))
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    np.testing.assert_allclose(state.stats["update_clip"], clip, rtol=1e-6)
    batches = {name: x[0] for name, x in linear.batch(np.array([2])).items() if name != "client"}
    mean, _ = bounded({"w": jnp.zeros(linear.WIDTH)}, {"update_clip": jnp.float32(0.3)}, batches, jax.random.key(0))
    assert lp.tree.norm(mean.total) <= federated.sensitivity(0.2) + 1e-6


BAD = [
    (lambda: robust.trimmed_mean(0.5), "0.5 trimmed on both sides"),
    (lambda: robust.krum(-1), "clients of which -1 lie"),
    (lambda: jax.jit(robust.krum(4))(*stacked()), "a cohort of 9 is too small"),
    (lambda: federated.top_k(0), "a share of 0"),
    (lambda: federated.clipped(linear.client(), 0), "norm 0 is not positive"),
    (lambda: federated.adaptively_clipped(linear.client(), 0), "a vote of 0"),
    (lambda: federated.adaptive(linear.client(), 1.5), "quantile 1.5"),
]


@pytest.mark.parametrize(("make", "problem"), BAD)
def test_numbers_that_cannot_be_are_refused(make, problem):
    with pytest.raises(lp.InputError, match=problem):
        make()
