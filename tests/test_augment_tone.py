"""Tone, sharpness and blur against the definitions, written again in numpy, against Pillow and against torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from lepton_jax.augment import functional, tone
from lepton_jax.errors import InputError

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (31, 40, 3), np.uint8)
SMOOTH = np.asarray(PIL.Image.fromarray(NOISE[:5, :6]).resize((40, 31), PIL.Image.Resampling.BICUBIC))
DARK = (RANDOM.beta(0.5, 3, (31, 40, 3)) * 200).astype(np.uint8)
FLAT = np.full((31, 40, 3), (0, 77, 255), np.uint8)
TWO = np.where(NOISE < 128, np.uint8(90), np.uint8(91))
IMAGES = {"noise": NOISE, "smooth": SMOOTH, "dark": DARK, "flat": FLAT, "two levels": TWO, "gray": DARK[..., :1]}
images = pytest.mark.parametrize("image", list(IMAGES.values()), ids=list(IMAGES))

CASES = [("invert",), ("autocontrast",), ("equalize",)]
CASES += [("posterize", bits) for bits in (1, 3, 4, 7, 8)]
CASES += [("solarize", threshold) for threshold in (0, 100, 127.5, 255)]
CASES += [("adjust_sharpness", factor) for factor in (0.0, 0.4, 1.0, 1.9, 3.0)]
CASES += [("gaussian_blur", size, sigma) for size, sigma in ((3, 0.1), (5, 1.3), ((7, 3), (2.0, 0.6)), (9, None))]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
OPERATIONS = {
    name: jax.jit(getattr(functional, name), static_argnums=(1,) if name == "gaussian_blur" else ())
    for name in {case[0] for case in CASES}
}


def floats(levels):
    return (levels / 255).astype(np.float32)


def act(case, image):
    """The operation, with amounts that the compiler does not know."""
    name, *amounts = case
    return np.asarray(OPERATIONS[name](jnp.asarray(image), *amounts))


def blurred(x, size, sigma):
    """Every pixel the sum over its window, weighted by a normalized Gaussian of two dimensions."""
    sizes = (size, size) if isinstance(size, int) else size
    sigmas = [0.15 * side + 0.35 for side in sizes] if sigma is None else np.broadcast_to(sigma, 2)
    across, down = (
        np.exp(-(np.arange(-(n // 2), n // 2 + 1) ** 2) / (2 * s * s)) for n, s in zip(sizes, sigmas, strict=True)
    )
    kernel = np.outer(down, across) / np.outer(down, across).sum()
    reach = [(sizes[1] // 2,) * 2, (sizes[0] // 2,) * 2, (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, reach, "reflect"), kernel.shape, axis=(0, 1))
    return np.einsum("hwcij,ij->hwc", windows, kernel)


def sharpened(x, factor, whole):
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))
    smooth = np.einsum("hwcij,ij->hwc", windows, kernel)
    result = x.copy()
    inner = x[1:-1, 1:-1]
    result[1:-1, 1:-1] = inner + (1 - factor) * ((np.round(smooth) if whole else smooth) - inner)
    return result


def stretched(x, white):
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    return np.where(high == low, x, (x - low) * white / np.where(high == low, 1, high - low))


def equalized(levels):
    """Pillow's table, level by level."""
    result = levels.copy()
    for channel in range(levels.shape[2]):
        counts = np.bincount(levels[..., channel].reshape(-1), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255 if (counts > 0).any() else 0
        if step:
            table = [min((counts[:level].sum() + step // 2) // step, 255) for level in range(256)]
            result[..., channel] = np.array(table, np.uint8)[levels[..., channel]]
    return result


def reference(case, image):
    """The operation in float64, before it is rounded to levels; `image` is uint8, or floating in [0, 1]."""
    name, *amounts = case
    whole = image.dtype == np.uint8
    white, x = (255 if whole else 1), image.astype(np.float64)
    if name == "invert":
        return white - x
    if name == "posterize":
        unit = 256 / 2 ** amounts[0] if whole else 1 / 2 ** amounts[0]
        return np.minimum(np.floor(x / unit) * unit, white if whole else 1 - unit)
    if name == "solarize":
        threshold = amounts[0] if whole else np.float32(amounts[0]).astype(np.float64)
        return np.where(x >= threshold, white - x, x)
    if name == "autocontrast":
        return stretched(x, white)
    if name == "equalize":
        return equalized(image if whole else np.floor(x * 255.999).astype(np.uint8)) / (1 if whole else 255)
    if name == "adjust_sharpness":
        return np.clip(sharpened(x, amounts[0], whole), 0, white)
    return np.round(blurred(x, *amounts)) if whole else blurred(x, *amounts)


@cases
@images
def test_levels_follow_the_definitions(case, image):
    actual = act(case, image)
    assert actual.dtype == np.uint8
    assert actual.shape == image.shape
    off = np.abs(actual.astype(int) - np.floor(reference(case, image) + 1e-9))
    assert off.max() <= 1  # where a number lies on the edge of two levels, rounding decides
    assert (off > 0).mean() < 0.01
    if case[0] in ("invert", "autocontrast", "equalize", "posterize", "solarize"):
        assert off.max() == 0


@cases
@images
def test_floats_follow_the_definitions(case, image):
    part = floats(image)
    case = ("solarize", case[1] / 255) if case[0] == "solarize" else case
    actual = act(case, part)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, reference(case, part), atol=2e-6)


PILLOW = {
    "invert": PIL.ImageOps.invert,
    "autocontrast": PIL.ImageOps.autocontrast,
    "equalize": PIL.ImageOps.equalize,
    "posterize": PIL.ImageOps.posterize,
    "solarize": PIL.ImageOps.solarize,
    "adjust_sharpness": lambda image, factor: PIL.ImageEnhance.Sharpness(image).enhance(factor),
}


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in PILLOW], ids=lambda case: " ".join(map(str, case)))
@images
def test_pillow_agrees(case, image):
    name, *amounts = case
    theirs = np.asarray(PILLOW[name](PIL.Image.fromarray(np.squeeze(image)), *amounts)).reshape(image.shape)
    off = np.abs(act(case, image).astype(int) - theirs)
    exact = name in ("invert", "equalize", "posterize", "solarize")
    assert off.max() <= (0 if exact else 1 if name == "autocontrast" else 2)


@cases
@images
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_torchvision_agrees(case, image, kind):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchvision.transforms.v2").functional
    image = image if kind == "uint8" else floats(image)
    name, *amounts = case
    if name == "solarize" and kind == "float32":
        amounts = [amounts[0] / 255]
    amounts = [list(amount) if isinstance(amount, tuple) else amount for amount in amounts]
    expected = getattr(theirs, name)(torch.tensor(image.transpose(2, 0, 1)), *amounts).numpy().transpose(1, 2, 0)
    off = np.abs(act((name, *(tuple(a) if isinstance(a, list) else a for a in amounts)), image) * 1.0 - expected)
    assert off.max() <= (1 if kind == "uint8" else 2e-6)
    if name != "autocontrast":  # theirs divides by a rounded number and truncates: 254 for a white of 255
        assert (off > 1e-5).mean() < 0.01


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@cases
def test_half_precision_is_computed_in_single_and_kept(case, dtype):
    name, *amounts = case
    if name == "solarize":
        amounts = [0.5]
    half = jnp.asarray(floats(SMOOTH), dtype)
    actual, single = OPERATIONS[name](half, *amounts), OPERATIONS[name](half.astype(jnp.float32), *amounts)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, single.astype(dtype))


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("posterize", np.array([2, 5, 8], np.int32)),
        ("solarize", np.array([10.0, 128.0, 256.0], np.float32)),
        ("adjust_sharpness", np.array([0.1, 1.0, 1.9], np.float32)),
        ("gaussian_blur", np.array([0.3, 1.0, 1.9], np.float32)),
    ],
)
def test_amounts_may_differ_from_image_to_image(name, amounts):
    batch = jnp.stack([jnp.asarray(NOISE), jnp.asarray(SMOOTH), jnp.asarray(DARK)])

    def one(image, amount):
        more = (5, amount) if name == "gaussian_blur" else (amount,)
        return getattr(functional, name)(image, *more)

    together = jax.jit(jax.vmap(one))(batch, amounts)
    alone = [jax.jit(one)(image, amount) for image, amount in zip(batch, amounts, strict=True)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_an_amount_of_nothing_is_the_identity():
    for image in (NOISE, floats(NOISE)):
        np.testing.assert_array_equal(act(("adjust_sharpness", 1.0), image), image)
        np.testing.assert_allclose(act(("gaussian_blur", 5, 0.05), image), image, atol=1e-7)
    np.testing.assert_array_equal(act(("posterize", 8), NOISE), NOISE)
    np.testing.assert_array_equal(act(("autocontrast",), FLAT), FLAT)
    np.testing.assert_array_equal(act(("equalize",), FLAT), FLAT)
    np.testing.assert_array_equal(act(("adjust_sharpness", 3.0), NOISE[:2]), NOISE[:2])


levels = hnp.arrays(np.uint8, (9, 8, 3))


@given(image=levels)
@settings(max_examples=30, deadline=None)
def test_inverting_twice_and_solarizing_all_undo_themselves(image):
    np.testing.assert_array_equal(act(("invert",), act(("invert",), image)), image)
    np.testing.assert_array_equal(act(("solarize", 0), image), act(("invert",), image))


@given(image=levels)
@settings(max_examples=30, deadline=None)
def test_autocontrast_reaches_black_and_white_in_order(image):
    stretched = act(("autocontrast",), image)
    for channel in range(3):
        before, after = image[..., channel].reshape(-1), stretched[..., channel].reshape(-1)
        if before.min() < before.max():
            assert (after.min(), after.max()) == (0, 255)
        assert (np.diff(after[np.argsort(before, kind="stable")].astype(int)) >= 0).all()
    np.testing.assert_array_equal(act(("autocontrast",), stretched), stretched)


COUNTS = [jax.jit(function) for function in (tone.counted, tone.multiplied)]


@given(flat=hnp.arrays(np.uint8, 300))
@settings(max_examples=30, deadline=None)
def test_both_ways_to_count_levels_are_exact(flat):
    for count in COUNTS:
        np.testing.assert_array_equal(count(jnp.asarray(flat)), np.bincount(flat, minlength=256))


def test_histograms_of_a_batch():
    batch = jnp.stack([jnp.asarray(NOISE[..., 0]), jnp.asarray(DARK[..., 0])])
    expected = [np.bincount(np.asarray(plane).reshape(-1), minlength=256) for plane in batch]
    np.testing.assert_array_equal(jax.jit(jax.vmap(tone.histogram))(batch), expected)


def test_double_precision_is_kept(float64):
    part = NOISE / 255
    for case in (("adjust_sharpness", 1.9), ("gaussian_blur", 5, 1.3), ("autocontrast",), ("invert",)):
        actual = getattr(functional, case[0])(jnp.asarray(part), *case[1:])
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, reference(case, part), atol=1e-13)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: functional.posterize(jnp.asarray(NOISE), 9), "posterizing to 9 bits"),
        (lambda: functional.posterize(jnp.asarray(NOISE), -1), "posterizing to -1 bits"),
        (lambda: functional.solarize(jnp.asarray(NOISE), 256), "a threshold of 256 is above white, 255"),
        (lambda: functional.solarize(jnp.asarray(floats(NOISE)), 2.0), "a threshold of 2.0 is above white, 1"),
        (lambda: functional.adjust_sharpness(jnp.asarray(NOISE), -1.0), "a sharpness factor of -1.0 is negative"),
        (lambda: functional.gaussian_blur(jnp.asarray(NOISE), 4), "the kernel size 4 is not odd"),
        (lambda: functional.gaussian_blur(jnp.asarray(NOISE), (3, 5, 7)), "the kernel size (3, 5, 7)"),
        (lambda: functional.gaussian_blur(jnp.asarray(NOISE), 3, 0.0), "the sigma 0.0 is not positive"),
        (lambda: functional.gaussian_blur(jnp.asarray(NOISE[:4]), 9), "a kernel of 9x9 pixels is too wide"),
        (lambda: functional.invert(jnp.zeros((4, 4, 3), jnp.int32)), "dtype int32"),
        (lambda: functional.equalize(jnp.zeros((4, 4, 2), jnp.uint8)), "1 or 3 channels, not 2"),
        (lambda: functional.autocontrast(jnp.zeros((4, 4, 4))), "1 or 3 channels, not 4"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
