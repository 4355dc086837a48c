"""Sharpness-aware gradients against Foret's algorithm by hand, and how they compose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import data, mesh, step, tree
from lepton_jax.gradients import sharpness_aware
from lepton_jax.types import Aux, Mean
from tests import laws

RADIUS = 0.05
KEY = jax.random.key(5)


def setting(name="mlp", technique=laws.TECHNIQUES["plain"], size=16):
    model = laws.models()[name]()
    return model, laws.beginning(model, technique), data.Stream(laws.digits(), size, 1).batch(0)


def gradient(model, microbatches=1):
    loss = lp.supervised(model, lp.cross_entropy())
    return sharpness_aware(lp.accumulate(lp.plain(loss), microbatches), RADIUS)


def test_a_quadratic_by_hand():
    """L = sum(a w^2) / 2: the gradient at w + r g / |g|, g = a w."""
    a, w = np.array([1.0, 4.0, 0.5]), np.array([1.0, -2.0, 3.0])

    def loss(params, stats, batch, key):
        return Mean(3 * jnp.sum(a * params**2) / 2, jnp.float32(3)), Aux(stats, {})

    mean, aux = sharpness_aware(lp.plain(loss), 0.1)(jnp.asarray(w, jnp.float32), {}, {"input": jnp.ones(3)}, KEY)
    expected = a * (w + 0.1 * a * w / np.linalg.norm(a * w))
    np.testing.assert_allclose(mean.value(), expected, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["loss"].value(), np.sum(a * w**2) / 2, rtol=1e-6)


def test_a_gradient_of_zero_stays_where_it_is():
    def loss(params, stats, batch, key):
        return Mean(jnp.sum(params**2), jnp.float32(1)), Aux(stats, {})

    mean, _ = sharpness_aware(lp.plain(loss), 0.1)(jnp.zeros(3), {}, {"input": jnp.ones(1)}, KEY)
    np.testing.assert_array_equal(mean.value(), np.zeros(3))


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_both_passes_draw_alike(name):
    """The second gradient is that of the same loss, with the same dropout masks, at the point uphill."""
    model, state, batch = setting(name)
    plain = jax.jit(lp.plain(lp.supervised(model, lp.cross_entropy())))
    first = plain(state.params, state.stats, batch, KEY)[0].value()
    uphill = tree.add(state.params, tree.scale(first, RADIUS / tree.norm(first)))
    mean, aux = jax.jit(gradient(model))(state.params, state.stats, batch, KEY)
    assert lp.tree.distance(mean.value(), plain(uphill, state.stats, batch, KEY)[0].value()) < 1e-5
    assert (
        lp.tree.distance(
            aux.metrics["loss"].value(), plain(state.params, state.stats, batch, KEY)[1].metrics["loss"].value()
        )
        < 1e-6
    )


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_microbatches_go_inside(name):
    """Inside they change nothing; outside each climbs by itself, which is another gradient."""
    model, state, batch = setting(name)
    batch = {**laws.padded(batch, 24)}
    whole, parts, outside = (
        jax.jit(grad_fn)(state.params, state.stats, batch, KEY)[0].value()
        for grad_fn in (gradient(model), gradient(model, 4), lp.accumulate(gradient(model), 4))
    )
    assert lp.tree.distance(parts, whole) < 2e-6
    assert lp.tree.distance(outside, whole) > 1e-3


def test_batch_statistics_move_once():
    model, state, batch = setting("resnet")
    plain = jax.jit(lp.plain(lp.supervised(model, lp.cross_entropy())))
    _, once = plain(state.params, state.stats, batch, KEY)
    _, aux = jax.jit(gradient(model))(state.params, state.stats, batch, KEY)
    assert lp.tree.distance(aux.stats, once.stats) < 1e-6
    assert lp.tree.distance(state.stats, once.stats) > 1e-3


def test_an_overflow_in_the_second_pass_alone_halves_the_scale_and_moves_nothing():
    """The first pass is at the origin, where 1e38 * 2^15 is not reached; the second is uphill, where it is."""

    def loss(params, stats, batch, key):
        far = jnp.sum(jnp.where(params > 0.01, 1e36 * params, params))
        return Mean(far, jnp.float32(1)), Aux(stats, {})

    stats = {"loss_scale": lp.loss_scale(2.0**15)}
    mean, aux = sharpness_aware(lp.scaled(loss), 0.1)(jnp.zeros(2), stats, {"input": jnp.ones(1)}, KEY)
    assert float(mean.weight) == 0
    np.testing.assert_array_equal(mean.value(), np.zeros(2))
    assert float(aux.stats["loss_scale"]["scale"]) == 2.0**14


def test_the_same_run_on_every_mesh(float64):
    def trained(axes):
        model = laws.models()["dropout"]()
        over, stream = mesh.make(axes), data.Stream(laws.digits(), laws.BATCH, 3)
        state = step.place(laws.beginning(model, laws.TECHNIQUES["plain"], jnp.float64), over, model.rules)
        update = lp.descend(gradient(model, 2), laws.optimizer())
        compiled = step.compile(update, state, stream.batch(0), over, model.rules)
        for number in range(3):
            state, _ = compiled(state, mesh.place(stream.batch(number), over))
        return jax.device_get(state.params)

    assert lp.tree.distance(trained("4x2"), trained("1x1")) < 1e-9


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_refusals(radius):
    with pytest.raises(lp.InputError, match="radius"):
        sharpness_aware(lp.plain(lambda *_: None), radius)
