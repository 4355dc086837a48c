"""Privacy for whole clients: two wings that meet as GradFns, and know nothing of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lepton_jax as lp
from lepton_jax import federated
from tests import test_federated_algorithms as linear

privacy = pytest.importorskip("lepton_jax.privacy")

EXPECTED = 4.0


def started(noise, clip):
    params = {"w": jnp.zeros(linear.WIDTH)}
    return {"privacy": privacy.noise.started(params, privacy.noise.constant(noise), privacy.rules.as_rule(clip))}


def clipped_mean(w: np.ndarray, cohort: np.ndarray, clip: float) -> np.ndarray:
    updates = np.stack([w - linear.ALL[number].train(w) for number in cohort])
    factors = np.minimum(1, clip / np.linalg.norm(updates, axis=1))
    return np.sum(updates * factors[:, None], axis=0) / EXPECTED


def test_dp_fedavg_without_noise_is_the_clipped_sum_over_the_expected_clients(float64):
    bounded = federated.federated(federated.clipped(linear.client(), 0.5))
    step = lp.descend(privacy.noised(bounded, 0.0, 0.5, batch=EXPECTED), optax.sgd(1.0))
    state, w = linear.run(step, optax.sgd(1.0), **started(0.0, 0.5)), np.zeros(linear.WIDTH)
    for cohort in linear.COHORTS:
        w = w - clipped_mean(w, cohort, 0.5)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    assert state.stats["privacy"]["steps"] == len(linear.COHORTS)


def test_noise_is_in_units_of_what_a_client_may_add():
    gradient = privacy.noised(federated.federated(federated.clipped(linear.client(), 0.5)), 2.0, 0.5, batch=EXPECTED)
    batch = {name: np.asarray(x, np.float32) for name, x in linear.batch(linear.COHORTS[0]).items()}
    batch["client"] = linear.COHORTS[0]
    params, stats = {"w": jnp.zeros(linear.WIDTH)}, started(2.0, 0.5)
    draw = jax.jit(jax.vmap(lambda key: gradient(params, stats, batch, key)[0].total["w"]))
    totals = draw(jax.random.split(jax.random.key(0), 2000))
    assert abs(np.std(totals, axis=0).mean() - 2.0 * 0.5) < 0.03
    mean = EXPECTED * clipped_mean(np.zeros(linear.WIDTH), linear.COHORTS[0], 0.5)
    np.testing.assert_allclose(totals.mean(axis=0), mean, atol=0.1)


def test_one_noise_covers_the_update_and_the_norm_that_follows_the_quantile(float64):
    bounded = federated.federated(federated.adaptively_clipped(linear.client(), share=0.2))
    reach = federated.sensitivity(0.2)
    quiet, loud = (
        lp.descend(federated.adaptive(privacy.noised(bounded, z, reach, batch=EXPECTED), share=0.2), optax.sgd(1.0))
        for z in (0.0, 1.0)
    )
    start, w, clip = {**started(0.0, reach), "update_clip": jnp.float64(0.3)}, np.zeros(linear.WIDTH), 0.3
    for cohort in linear.COHORTS:
        norms = np.array([np.linalg.norm(w - linear.ALL[number].train(w)) for number in cohort])
        w = w - clipped_mean(w, cohort, clip)
        votes = np.sum(np.where(norms <= clip, 0.5, -0.5)) / EXPECTED + 0.5
        clip *= np.exp(-0.2 * (votes - 0.5))
    state = linear.run(quiet, optax.sgd(1.0), **start)
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)
    np.testing.assert_allclose(state.stats["update_clip"], clip, rtol=1e-6)
    noisy = linear.run(loud, optax.sgd(1.0), **{**start, **started(1.0, reach)})
    assert noisy.stats["update_clip"] != state.stats["update_clip"]
    assert np.all(noisy.params["w"] != state.params["w"])
