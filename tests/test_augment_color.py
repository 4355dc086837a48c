"""Color against the definitions, written again in numpy and colorsys, and against Pillow."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import augment
from lepton_jax.augment import color, functional
from lepton_jax.augment.random_color import Jitter
from lepton_jax.errors import InputError

LEVELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
LEVELS[:3] = LEVELS[:3, :, :1]  # gray pixels
LEVELS[3:6] = np.where(LEVELS[3:6] < 128, 0, 255)  # pure colors
FACTORS = (0.0, 0.3, 0.77, 1.0, 1.37, 2.5)
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ADJUST = {name: jax.jit(getattr(functional, f"adjust_{name}")) for name in OPERATIONS}


def reference(name, image, amount):
    """The operation on float64 numbers; `image` is uint8, or floating point in [0, 1]."""
    is_levels = image.dtype == np.uint8
    x = image.astype(np.float64)
    if name == "hue":
        return reference_hue(x / 255 if is_levels else x, amount, is_levels)
    gray = x @ [0.2989, 0.587, 0.114] if image.shape[2] == 3 else x[..., 0]
    gray = np.floor(gray + 1e-9) if is_levels else gray
    other = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray[..., None]}[name]
    mixed = np.clip(amount * x + (1 - amount) * other, 0, 255 if is_levels else 1)
    return np.floor(mixed + 1e-9) if is_levels else mixed


def reference_hue(x, shift, is_levels):
    def turn(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)

    turned = np.array([turn(pixel) for pixel in x.reshape(-1, 3)]).reshape(x.shape)
    return np.floor(turned * 255.999) if is_levels else turned


def assert_levels_agree(actual, expected):
    """At most one level apart, and that only where rounding decides."""
    off = np.abs(np.asarray(actual, np.float64) - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02


CASES = [(name, factor) for name in OPERATIONS[:3] for factor in FACTORS]
CASES += [("hue", shift) for shift in (-0.5, -0.3, 0.0, 0.1, 0.25, 0.5)]


@pytest.mark.parametrize(("name", "amount"), CASES)
def test_adjustments_follow_their_definitions(name, amount):
    adjust = ADJUST[name]
    levels = adjust(jnp.asarray(LEVELS), amount)
    assert levels.dtype == jnp.uint8
    assert_levels_agree(levels, reference(name, LEVELS, amount))
    part = (LEVELS / 255).astype(np.float32)
    np.testing.assert_allclose(adjust(jnp.asarray(part), amount), reference(name, part, amount), atol=3e-6)


@pytest.mark.parametrize(("name", "amount"), [("contrast", 1.37), ("saturation", 0.3), ("hue", 0.1)])
def test_double_precision_is_kept(float64, name, amount):
    part = LEVELS / 255
    adjusted = ADJUST[name](jnp.asarray(part), amount)
    assert adjusted.dtype == jnp.float64
    np.testing.assert_allclose(adjusted, reference(name, part, amount), atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_single_and_kept(dtype):
    half = jnp.asarray(LEVELS / 255, dtype)
    assert jax.eval_shape(augment.color_jitter(0.4, 0.4, 0.4, 0.1), jax.random.key(2), half).dtype == dtype
    contrasted = functional.adjust_contrast(half, 1.5)
    expected = functional.adjust_contrast(half.astype(jnp.float32), 1.5)
    np.testing.assert_array_equal(contrasted, expected.astype(dtype))


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
@pytest.mark.parametrize("factor", FACTORS)
def test_pillow_agrees_within_rounding(name, factor):
    smooth = np.asarray(PIL.Image.fromarray(LEVELS).resize((40, 40), PIL.Image.Resampling.BICUBIC))
    expected = getattr(PIL.ImageEnhance, name)(PIL.Image.fromarray(smooth)).enhance(factor)
    ours = {"Brightness": "brightness", "Contrast": "contrast", "Color": "saturation"}[name]
    actual = ADJUST[ours](jnp.asarray(smooth), factor)
    # Pillow rounds its gray where torchvision rounds down, and the mean of it, too.
    assert np.abs(np.asarray(actual, int) - np.asarray(expected, int)).max() <= 1 + 1.5 * abs(1 - factor)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_amount_of_nothing_is_the_identity(name):
    every_level = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    colors = np.concatenate([every_level, every_level[::-1], np.roll(every_level, 85)], axis=2)
    nothing = 0.0 if name == "hue" else 1.0
    for image in (LEVELS, colors, every_level):
        np.testing.assert_array_equal(ADJUST[name](jnp.asarray(image), nothing), image)


def test_one_channel_has_brightness_and_contrast_only():
    image = LEVELS[..., :1]
    for name in ("brightness", "contrast"):
        actual = ADJUST[name](jnp.asarray(image), 0.6)
        assert_levels_agree(actual, reference(name, image, 0.6))
    np.testing.assert_array_equal(functional.adjust_saturation(jnp.asarray(image), 0.2), image)
    np.testing.assert_array_equal(functional.adjust_hue(jnp.asarray(image), 0.2), image)
    changed = jax.jit(augment.color_jitter(saturation=0.9, hue=0.5))(jax.random.key(0), jnp.asarray(image))
    np.testing.assert_array_equal(changed, image)


def test_grayscale_weighs_and_truncates():
    exact = (LEVELS.astype(int) @ [2989, 5870, 1140]) // 10000
    np.testing.assert_array_equal(functional.grayscale(jnp.asarray(LEVELS))[..., 0], exact)
    three = functional.grayscale(jnp.asarray(LEVELS), channels=3)
    np.testing.assert_array_equal(three, np.repeat(exact[..., None], 3, axis=2))
    part = (LEVELS / 255).astype(np.float32)
    gray = functional.grayscale(jnp.asarray(part))[..., 0]
    np.testing.assert_allclose(gray, part @ np.array([0.2989, 0.587, 0.114], np.float32), atol=1e-6)


apply_jitter = jax.jit(augment.color_jitter(0.5, 0.5, 0.9, 0.2).apply)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_jitter_acts_in_the_drawn_order(order, kind):
    amounts = (0.7, 1.3, 1.6, -0.13)
    image = jnp.asarray(LEVELS if kind == "uint8" else (LEVELS / 255).astype(np.float32))
    expected = image
    for number in order:
        expected = ADJUST[OPERATIONS[number]](expected, amounts[number])
    parameters = Jitter(jnp.array(order, jnp.int32), *map(jnp.float32, amounts))
    actual = apply_jitter(parameters, image)
    np.testing.assert_array_equal(actual, expected)  # bit for bit: `product` keeps rounding the same everywhere


@pytest.mark.parametrize("used", [(0,), (1,), (3,), (0, 2), (1, 3), (0, 1, 2)])
def test_jitter_leaves_out_what_has_no_range(used):
    sizes = [0.4 if number in used else 0.0 for number in range(4)]
    transform = augment.color_jitter(*sizes)
    parameters = transform.sample(jax.random.key(1), LEVELS.shape)
    assert sorted(np.asarray(parameters.order).tolist()) == list(used)
    expected = jnp.asarray(LEVELS)
    for number in np.asarray(parameters.order):
        expected = ADJUST[OPERATIONS[number]](expected, parameters[number + 1])
    np.testing.assert_array_equal(jax.jit(transform.apply)(parameters, jnp.asarray(LEVELS)), expected)
    assert [amount is not None for amount in parameters[1:]] == [number in used for number in range(4)]


def test_jitter_of_nothing_is_the_identity():
    np.testing.assert_array_equal(augment.color_jitter()(jax.random.key(0), jnp.asarray(LEVELS)), LEVELS)


def test_jitter_draws_orders_and_amounts_uniformly():
    transform = augment.color_jitter(0.4, (0.5, 2.0), 1.5, 0.1)
    keys = jax.random.split(jax.random.key(0), 4800)
    drawn = jax.jit(jax.vmap(lambda key: transform.sample(key, (4, 4, 3))))(keys)
    orders, counts = np.unique(np.asarray(drawn.order), axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)
    ends = ((0.6, 1.4), (0.5, 2.0), (0.0, 2.5), (-0.1, 0.1))
    for amounts, (low, high) in zip(drawn[1:], ends, strict=True):
        amounts = np.asarray(amounts)
        assert low - 1e-6 <= amounts.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < amounts.max() <= high + 1e-6
        assert abs(amounts.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert np.abs(np.corrcoef(np.stack(drawn[1:]))[np.triu_indices(4, 1)]).max() < 0.08


@given(factor=st.floats(0, 4, width=32), level=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_brightness_is_a_truncated_product(factor, level):
    product = np.float32(level) * np.float32(factor)
    actual = ADJUST["brightness"](jnp.full((2, 2, 3), level, jnp.uint8), jnp.float32(factor))
    np.testing.assert_array_equal(actual, np.full((2, 2, 3), min(int(product), 255)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.color_jitter(brightness=-0.1), "a brightness jitter of -0.1 is negative"),
        (lambda: augment.color_jitter(hue=0.6), "the hue jitter 0.6 is not a range within [-0.5, 0.5]"),
        (lambda: augment.color_jitter(contrast=(1.2, 0.8)), "the contrast jitter (1.2, 0.8)"),
        (lambda: augment.color_jitter(saturation=(-0.2, 0.8)), "the saturation jitter (-0.2, 0.8)"),
        (lambda: functional.adjust_hue(jnp.asarray(LEVELS), 0.7), "a hue shift of 0.7"),
        (lambda: functional.adjust_contrast(jnp.asarray(LEVELS), -1.0), "a contrast factor of -1.0"),
        (lambda: functional.grayscale(jnp.asarray(LEVELS), 2), "a gray image of 2 channels"),
        (lambda: functional.adjust_brightness(jnp.zeros((4, 4, 3), jnp.int32), 1.0), "dtype int32"),
        (lambda: functional.adjust_contrast(jnp.zeros((4, 4, 4), jnp.uint8), 1.0), "1 or 3 channels, not 4"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem


def test_a_mean_has_one_order_of_summation():
    plane = np.random.default_rng(3).random((16, 31, 33), np.float32)
    means = jax.jit(jax.vmap(color.mean))
    together = np.asarray(means(plane))
    np.testing.assert_allclose(together, plane.mean(axis=(1, 2), dtype=np.float64), rtol=2e-7)
    for size in (1, 2, 3):
        np.testing.assert_array_equal(means(plane[:size]), together[:size])
    assert float(color.mean(jnp.full((1, 1), 0.25))) == 0.25
