"""The audit: its bound where the answer is known, below epsilon under noise and above it without; and what helps."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lp
from lepton_jax import data, privacy, tree
from lepton_jax.errors import InputError
from lepton_jax.privacy import audit
from tests import laws, privacies

KEY = jax.random.key(0)


def test_bounds_where_they_are_known():
    from scipy.stats import binomtest

    inside = np.arange(200) % 2 == 0
    found = audit.audited(np.where(inside, 1.0, -1.0), inside, 0.0, guesses=100)
    assert found.right == found.guesses == 100
    assert found.epsilon == pytest.approx(np.log(0.05**0.01 / (1 - 0.05**0.01)), abs=1e-3)  # all right: p^100 = 0.05
    half = audit.audited(np.where(np.arange(200) % 4 < 2, 1.0, -1.0), inside, 0.0, guesses=100)
    assert half.epsilon == 0
    share = binomtest(90, 100, alternative="greater").proportion_ci(0.95).low
    scores = np.where(inside, 1.0, -1.0) * np.where(np.arange(200) < 20, -2, 1)
    some = audit.audited(scores, inside, 0.0, guesses=100)
    assert some.right == 80
    assert some.epsilon < np.log(share / (1 - share))
    with_delta = audit.audited(scores, inside, 1e-3, guesses=100)
    assert with_delta.epsilon < some.epsilon


def test_a_randomized_response_is_never_refuted_too_often():
    """Guesses that are right exactly as often as epsilon allows: the bound is above it in one of twenty at most."""
    random, epsilon = np.random.default_rng(0), 1.0
    wrong = 0
    for _ in range(200):
        inside = random.random(300) < 0.5
        told = np.where(random.random(300) < 1 / (1 + np.exp(-epsilon)), inside, ~inside)
        wrong += audit.audited(told + 0.1 * random.random(300), inside, 0.0, guesses=300).epsilon > epsilon
    assert wrong <= 20


def trained(planted, noise, steps):
    """(parameters before, after) of a private run over the planted data, with another noise than its plan's or not."""
    model, optimizer = privacies.models.mlp((64,), 10), lp.optimizers.build("sgd", lambda count: 1.0, weight_decay=0.0)
    loss = lp.supervised(lp.models.normalized(model, 0.5, 0.5), lp.cross_entropy())
    plan = privacy.plan(len(planted.train), 200, steps, 1.0, None, 1e-5, epsilon=1.0, multiple=8)
    stream = plan.stream(planted.train, 0)
    start = lp.models.normalized(model, 0.5, 0.5).init(KEY, stream.batch(0)["input"])["params"]
    gradient = privacy.noised(
        privacy.clipped(loss, plan.clip, privacy.ghost), plan.noise if noise else 0.0, plan.clip, plan.batch
    )
    state = lp.types.TrainState(jnp.int32(0), start, {"privacy": plan.start(start)}, optimizer.init(start), KEY)
    step = jax.jit(lp.descend(gradient, optimizer))
    for number in range(steps):
        state, _ = step(state, stream.batch(number))
    return loss, start, state.params


@pytest.mark.parametrize("noise", [True, False])
def test_the_bound_is_below_epsilon_under_noise_and_above_it_without(noise):
    from sklearn.datasets import load_digits

    digits = load_digits()
    source = data.Arrays({"input": digits.images[:600, ..., None] / 16, "label": digits.target[:600]})
    planted = audit.planted(source, 300, 10, 3)
    found = audit.audited(
        audit.scores(*trained(planted, noise, 150), planted.canaries), planted.inside, 1e-5, guesses=100
    )
    assert (found.epsilon <= 1.0) == noise, found


def test_canaries_are_in_by_a_fair_coin_and_mislabeled():
    source = laws.digits()
    found = audit.planted(source, 40, 10, 0)
    assert len(found.train) == 40 + found.inside.sum()
    assert 8 < found.inside.sum() < 32
    known = {
        image.tobytes(): label for image, label in zip(*(source.columns[n] for n in ("input", "label")), strict=True)
    }
    labels = [known[image.tobytes()] for image in found.canaries.columns["input"]]
    assert not np.any(found.canaries.columns["label"] == labels)
    with pytest.raises(InputError, match="41 canaries"):
        audit.planted(source, 41, 10, 0)
    with pytest.raises(InputError, match="guesses"):
        audit.audited(np.zeros(4), np.zeros(4, bool), 0.0, guesses=5)


def test_copies_are_averaged_before_the_clip():
    model = lp.models.mlp((), privacies.CLASSES)
    rows = {name: jnp.asarray(column) for name, column in privacies.batch("mlp", 4).items()}
    params = model.init(KEY, rows["input"])["params"]
    plain = lp.supervised(model, lp.cross_entropy())

    def jitter(key, image):
        return image + jax.random.normal(key, image.shape)

    loss = lp.augmented(plain, jitter)
    copies = [jax.grad(lambda p, n=n: loss(p, {}, rows, lp.keys.folded(KEY, n))[0].total)(params) for n in range(3)]
    mean, _ = lp.plain(privacy.multiplied(loss, 3))(params, {}, rows, KEY)
    assert tree.distance(mean.total, jax.tree.map(lambda *g: sum(g) / 3, *copies)) < 1e-6
    assert float(mean.weight) == 4
    one, _ = privacy.clipped(privacy.multiplied(loss, 3), 1e-3)(params, {}, {k: v[:1] for k, v in rows.items()}, KEY)
    assert float(tree.norm(one.total)) == pytest.approx(1e-3, rel=1e-5)
    batch_normed = laws.models()["resnet"]()
    variables = batch_normed.init(KEY, np.zeros((1, 8, 8, 1), np.uint8))
    moving = privacy.multiplied(lp.supervised(batch_normed, lp.cross_entropy()), 2)
    images = {"input": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    with pytest.raises(InputError, match="batch norm"):
        jax.eval_shape(moving, variables["params"], {"model": {"batch_stats": variables["batch_stats"]}}, images, KEY)


def test_tempered_activations_are_bounded_and_tanh_by_default():
    x = jnp.linspace(-5, 5, 50)
    np.testing.assert_allclose(privacy.tempered(x), np.tanh(x), atol=1e-6)
    assert float(jnp.max(jnp.abs(privacy.tempered(100 * x, 1.5, 3.0, 0.75)))) <= 0.75


def test_scattering_hardly_changes_with_a_shift_and_tells_directions():
    x = np.arange(32)
    stripes = np.stack([np.sin(1.5 * x)[None, :] * np.ones((32, 1)), np.sin(1.5 * x)[:, None] * np.ones((1, 32))])
    images = jnp.asarray(stripes[..., None], jnp.float32)
    found = privacy.scattering(images, 2, 8)
    assert found.shape == (2, 8, 8, 1 + 16 + 64)
    middle = found[:, 2:6, 2:6]
    first = np.asarray(middle[..., 1:]).mean((1, 2))
    assert np.linalg.norm(first[0] - first[1]) > 0.5 * np.linalg.norm(first[0])
    shifted = privacy.scattering(jnp.roll(images, 2, (1, 2)), 2, 8)[:, 2:6, 2:6]
    assert np.linalg.norm(shifted - middle) < 0.2 * np.linalg.norm(middle)
    assert np.linalg.norm(jnp.roll(images, 2, (1, 2)) - images) > np.linalg.norm(images)
    flat = privacy.scattering(jnp.full((1, 16, 16, 2), 0.7), 2, 4)
    np.testing.assert_allclose(flat[..., :2], 0.7, atol=1e-4)
    np.testing.assert_allclose(flat[..., 2:], 0, atol=1e-4)  # wavelets answer nothing to a constant
    assert privacy.scattering(images, 2, 8, order=1, stride=2).shape == (2, 16, 16, 17)
    with pytest.raises(InputError, match="octaves"):
        privacy.scattering(jnp.zeros((1, 3, 3, 1)), 2)


@pytest.mark.parametrize(("shape", "options"), [((9, 8, 1), (1, 3, 1, 2)), ((8, 11, 2), (2, 2, 2, 3))])
def test_scattering_is_convolutions_and_moduli(shape, options):
    """Against sums over the pixels of the mirrored images, around which they repeat, in float64."""
    images, (scales, angles, order, stride) = np.random.default_rng(0).random((2, *shape)), options
    margin = 2**scales
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    height, width = padded.shape[1:3]
    y, x = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
    y, x = y[:, None], x[None, :]

    def convolved(values, kernel):
        places = itertools.product(range(height), range(width))
        return sum(kernel[place] * np.roll(values, place, (1, 2)) for place in places)

    def wavelet(scale, number):
        angle, sigma = math.pi * number / angles, 0.8 * 2**scale
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        envelope = np.exp(-(along**2 + (4 / angles) ** 2 * across**2) / (2 * sigma**2))
        wave = envelope * np.exp(0.75j * math.pi / 2**scale * along)
        return (wave - envelope * wave.sum() / envelope.sum()) / envelope.sum()

    def averaged(values):
        gaussian = np.exp(-(x**2 + y**2) / (2 * (0.4 * stride) ** 2))
        inside = convolved(values, gaussian / gaussian.sum())[:, margin:-margin, margin:-margin]
        return inside[:, stride // 2 :: stride, stride // 2 :: stride]

    expected = [averaged(padded)]
    for scale, number in itertools.product(range(scales), range(angles)):
        first = abs(convolved(padded, wavelet(scale, number)))
        expected.append(averaged(first))
        for coarser, other in itertools.product(range(scale + 1, scales if order == 2 else 0), range(angles)):
            expected.append(averaged(abs(convolved(first, wavelet(coarser, other)))))
    found = privacy.scattering(jnp.asarray(images, jnp.float32), *options)
    np.testing.assert_allclose(found, np.concatenate(expected, -1), atol=2e-6)
