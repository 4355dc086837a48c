"""Resizing and resized crops against Pillow; their draws against torchvision's distribution, again in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_jax import augment
from lepton_jax.augment import functional
from lepton_jax.augment.random_resize import Window
from lepton_jax.errors import InputError

LEVELS = np.random.default_rng(2).integers(0, 256, (45, 61, 3), np.uint8)
LEVELS[5:20, 10:40] = np.where(LEVELS[5:20, 10:40] < 128, 0, 255)  # hard edges, which bicubic overshoots
IMAGE = jnp.asarray(LEVELS)
RESAMPLING = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
}
each_interpolation = pytest.mark.parametrize("interpolation", list(RESAMPLING))
resize = jax.jit(functional.resize, static_argnums=(1, 2))
resized_crop = jax.jit(functional.resized_crop, static_argnums=(5, 6))


def pillows(levels, size, interpolation):
    """Columns first, then rows. (In one call, Pillow from 13 on takes the rows first where they shrink much more.)"""
    wide = PIL.Image.fromarray(levels).resize((size[1], levels.shape[0]), RESAMPLING[interpolation])
    return np.asarray(wide.resize(size[::-1], RESAMPLING[interpolation]), np.int64)


@each_interpolation
@pytest.mark.parametrize("size", [(45, 61), (20, 31), (7, 7), (90, 100), (1, 1), (60, 13)])
def test_resize_is_pillows(interpolation, size):
    off = np.abs(np.asarray(resize(IMAGE, size, interpolation), np.int64) - pillows(LEVELS, size, interpolation))
    assert off.max() <= (1 if interpolation == "bicubic" else 0)
    assert (off > 0).mean() < 0.01  # where half a level decides


@pytest.mark.parametrize("size", [(20, 31), (9, 50), (90, 20)])
def test_bilinear_is_one_level_from_pillows_in_any_order(size):
    expected = np.asarray(PIL.Image.fromarray(LEVELS).resize(size[::-1], RESAMPLING["bilinear"]), np.int64)
    assert np.abs(np.asarray(resize(IMAGE, size, "bilinear"), np.int64) - expected).max() <= 1


@each_interpolation
def test_the_same_size_is_the_image_itself(interpolation):
    np.testing.assert_array_equal(resize(IMAGE, (45, 61), interpolation), LEVELS)
    part = jnp.asarray(LEVELS / 255, jnp.float32)
    np.testing.assert_array_equal(resize(part, (45, 61), interpolation), part)


@pytest.mark.parametrize(("size", "expected"), [(20, (20, 27)), (45, (45, 61)), ((9, 8), (9, 8)), (100, (100, 135))])
def test_one_number_is_the_shorter_side(size, expected):
    def shape(image):
        return jax.eval_shape(lambda image: functional.resize(image, size), image).shape

    assert shape(IMAGE) == (*expected, 3)
    turned = expected[::-1] if isinstance(size, int) else expected
    assert shape(IMAGE.swapaxes(0, 1)) == (*turned, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_floating_point_is_torchs_antialiased_interpolation(interpolation):
    torch = pytest.importorskip("torch")
    part = np.asarray(LEVELS / 255, np.float32)
    for size in ((20, 31), (90, 100)):
        expected = torch.nn.functional.interpolate(
            torch.tensor(part.transpose(2, 0, 1))[None], size, mode=interpolation, antialias=True
        )
        np.testing.assert_allclose(
            resize(jnp.asarray(part), size, interpolation), expected[0].numpy().transpose(1, 2, 0), atol=1e-5
        )


@each_interpolation
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_resized_crop_is_pillows_crop_and_resize(interpolation, data):
    height, width = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 61))
    top, left = data.draw(st.integers(0, 45 - height)), data.draw(st.integers(0, 61 - width))
    cropped = LEVELS[top : top + height, left : left + width]
    actual = np.asarray(resized_crop(IMAGE, top, left, height, width, (16, 24), interpolation), np.int64)
    off = np.abs(actual - pillows(cropped, (16, 24), interpolation)).max(axis=2)
    if interpolation != "nearest":
        assert off.max() <= (1 if interpolation == "bicubic" else 0)
        return
    # Pillow adds up its steps, so a place on the very edge between two pixels may go either way, and no other
    (rows, row_ties), (columns, column_ties) = nearest_places(height, 16), nearest_places(width, 24)
    assert (off[~row_ties][:, ~column_ties] == 0).all()
    choices = [cropped[np.ix_(r, c)] for r in (rows, rows - row_ties) for c in (columns, columns - column_ties)]
    assert np.any([np.all(actual == choice, axis=2) for choice in choices], axis=0).all()


def nearest_places(length, count):
    """Which of `length` pixels each of `count` takes, in whole numbers, and whether on that one's first edge."""
    places, rest = np.divmod((2 * np.arange(count) + 1) * length, 2 * count)
    return places, rest == 0


def pythons_draw(generator, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.make_params, with numpy's generator."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.integers(0, height - h + 1), generator.integers(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def draws(transform, shape, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    window = jax.jit(jax.vmap(lambda key: transform.sample(key, shape)))(keys)
    return np.stack([np.asarray(number) for number in window], axis=1)


@pytest.mark.parametrize("shape", [(96, 128, 3), (60, 200, 3)])
def test_windows_are_drawn_as_torchvision_draws_them(shape):
    count = 100_000
    ours = draws(augment.random_resized_crop(8), shape, count)
    generator = np.random.default_rng(0)
    theirs = np.array([pythons_draw(generator, *shape[:2], (0.08, 1), (3 / 4, 4 / 3)) for _ in range(count // 4)])
    for name, measure in {
        "area": lambda w: w[:, 2] * w[:, 3],
        "ratio": lambda w: w[:, 3] / w[:, 2],
        "top": lambda w: w[:, 0],
        "left": lambda w: w[:, 1],
    }.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3, name
    top, left, height, width = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= shape[0]).all()
    assert (left + width <= shape[1]).all()
    # Given the window's shape, its corner is uniform: chi-square over tenths of the free places.
    roomy = (shape[0] - height >= 20) & (shape[1] - width >= 20)
    for corner, spare in ((top, shape[0] - height), (left, shape[1] - width)):
        place = (corner[roomy] + np.random.default_rng(1).uniform(size=roomy.sum())) / (spare[roomy] + 1)
        counts = np.histogram(place, 10, (0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-3


def test_area_and_ratio_are_uniform_where_every_draw_fits():
    ours = draws(augment.random_resized_crop(8, (0.1, 0.4), (0.5, 2)), (2000, 2000, 3), 100_000, seed=3)
    area, ratio = ours[:, 2] * ours[:, 3] / 4e6, ours[:, 3] / ours[:, 2]
    assert stats.kstest(area, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    assert stats.kstest(np.log(ratio), stats.uniform(-math.log(2), 2 * math.log(2)).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shape", "window"),
    [((10, 100, 3), (0, 43, 10, 13)), ((100, 10, 3), (43, 0, 13, 10)), ((20, 20, 1), (0, 0, 20, 20))],
)
def test_what_never_fits_becomes_the_largest_middle_window(shape, window):
    # A ratio of at least 3/4 and the whole area: for these shapes no draw fits (or only the image itself).
    drawn = draws(augment.random_resized_crop(8, (1, 1), (3 / 4, 4 / 3) if shape[0] != shape[1] else (1, 1)), shape, 50)
    np.testing.assert_array_equal(drawn, np.tile(window, (50, 1)))


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_a_drawn_window_is_resized_as_drawn(seed):
    transform = augment.random_resized_crop((16, 24))
    window = transform.sample(jax.random.key(seed), IMAGE.shape)
    top, left, height, width = (int(number) for number in window)
    cropped = LEVELS[top : top + height, left : left + width]
    np.testing.assert_array_equal(CROP(window, IMAGE), pillows(cropped, (16, 24), "bilinear"))


CROP = jax.jit(augment.random_resized_crop((16, 24)).apply)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_the_dtype_stays_and_a_plain_image_stays_plain(dtype):
    plain = jnp.full((20, 30, 1), 0.75 if dtype != "uint8" else 200).astype(dtype)
    window = Window(jnp.int32(3), jnp.int32(4), jnp.int32(9), jnp.int32(21))
    output = augment.random_resized_crop(8, interpolation="bicubic").apply(window, plain)
    assert output.dtype == plain.dtype
    np.testing.assert_allclose(np.asarray(output, float), float(plain[0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: functional.resize(IMAGE, 0), "the size 0"),
        (lambda: functional.resize(IMAGE, 5, "lanczos"), "unknown interpolation 'lanczos'"),
        (lambda: augment.resize(5, "cubic"), "unknown interpolation 'cubic'"),
        (lambda: augment.random_resized_crop(0), "the size 0"),
        (lambda: augment.random_resized_crop(8, (0.5, 1.5)), "the scale (0.5, 1.5)"),
        (lambda: augment.random_resized_crop(8, (0.5, 0.1)), "the scale (0.5, 0.1)"),
        (lambda: augment.random_resized_crop(8, ratio=(0, 1)), "the ratio (0, 1)"),
        (lambda: augment.random_resized_crop(8, interpolation="box"), "unknown interpolation 'box'"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
