"""Flips, crops, padding and rotation against numpy, Pillow and torch's grid sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import augment
from lepton_jax.augment import functional
from lepton_jax.errors import InputError

LEVELS = np.random.default_rng(1).integers(0, 256, (12, 15, 3), np.uint8)
IMAGE = jnp.asarray(LEVELS)
rotate = jax.jit(functional.rotate, static_argnums=(2, 3))


def test_flips():
    np.testing.assert_array_equal(functional.horizontal_flip(IMAGE), LEVELS[:, ::-1])
    np.testing.assert_array_equal(functional.vertical_flip(IMAGE), LEVELS[::-1])


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_a_drawn_flip_acts_as_drawn_and_twice_is_nothing(seed):
    for transform, flipped in (
        (augment.random_horizontal_flip(), LEVELS[:, ::-1]),
        (augment.random_vertical_flip(), LEVELS[::-1]),
    ):
        drawn = transform.sample(jax.random.key(seed), IMAGE.shape)
        once = transform.apply(drawn, IMAGE)
        np.testing.assert_array_equal(once, flipped if bool(drawn) else LEVELS)
        np.testing.assert_array_equal(transform.apply(drawn, once), LEVELS)


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_a_flip_happens_with_its_probability(p):
    keys = jax.random.split(jax.random.key(0), 4000)
    transform = augment.random_horizontal_flip(p)
    rate = float(jax.vmap(lambda key: transform.sample(key, (2, 2, 3)))(keys).mean())
    assert abs(rate - p) <= 5 * np.sqrt(p * (1 - p) / 4000)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "symmetric"])
@pytest.mark.parametrize(
    ("padding", "sides"), [(3, (3, 3, 3, 3)), ((2, 5), (2, 5, 2, 5)), ((1, 2, 3, 4), (1, 2, 3, 4))]
)
def test_pad_is_numpys(mode, padding, sides):
    left, top, right, bottom = sides
    expected = np.pad(LEVELS, ((top, bottom), (left, right), (0, 0)), mode)
    np.testing.assert_array_equal(functional.pad(IMAGE, padding, mode), expected)


@pytest.mark.parametrize("fill", [7, (10, 20, 30)])
def test_pad_with_a_color(fill):
    expected = np.broadcast_to(np.array(fill, np.uint8), (14, 19, 3)).copy()
    expected[1:-1, 2:-2] = LEVELS
    np.testing.assert_array_equal(functional.pad(IMAGE, (2, 1), fill=fill), expected)


def test_crop_is_a_slice_kept_inside():
    np.testing.assert_array_equal(functional.crop(IMAGE, 3, 4, 5, 6), LEVELS[3:8, 4:10])
    np.testing.assert_array_equal(functional.crop(IMAGE, 100, 100, 5, 6), LEVELS[-5:, -6:])


@pytest.mark.parametrize(
    ("size", "rows", "columns"), [(6, slice(3, 9), slice(4, 10)), ((12, 4), slice(0, 12), slice(6, 10))]
)
def test_center_crop(size, rows, columns):
    np.testing.assert_array_equal(functional.center_crop(IMAGE, size), LEVELS[rows, columns])


def test_center_crop_of_a_small_image_pads():
    expected = np.zeros((15, 15, 3), np.uint8)
    expected[1:13] = LEVELS  # one row above, two below
    np.testing.assert_array_equal(functional.center_crop(IMAGE, 15), expected)


def jitted(transform):
    return jax.jit(lambda key: transform.sample(key, IMAGE.shape)), jax.jit(transform.apply)


CROPS = {mode: jitted(augment.random_crop((7, 9), padding=2, mode=mode)) for mode in ("constant", "reflect")}

ZEROS_AROUND = np.pad(LEVELS, ((2, 2), (2, 2), (0, 0)))
REFLECTED = np.pad(LEVELS, ((2, 2), (2, 2), (0, 0)), "reflect")


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_a_drawn_crop_is_the_slice_at_its_corner(seed):
    for mode, (sample, apply) in CROPS.items():
        corner = sample(jax.random.key(seed))
        top, left = int(corner.top), int(corner.left)
        padded = {"constant": ZEROS_AROUND, "reflect": REFLECTED}[mode]
        expected = padded[top : top + 7, left : left + 9]
        np.testing.assert_array_equal(apply(corner, IMAGE), expected)


def test_crops_fall_everywhere_equally():
    transform = augment.random_crop(10, padding=1)
    corners = jax.vmap(lambda key: transform.sample(key, (10, 12, 3)))(jax.random.split(jax.random.key(0), 3000))
    counts = np.histogram2d(np.asarray(corners.top), np.asarray(corners.left), bins=(range(4), range(6)))[0]
    assert counts.sum() == 3000
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


def torchs_rotation(image, angle, mode):
    """torchvision's definition: an affine grid about the center, sampled with zeros outside; float64 in and out."""
    torch = pytest.importorskip("torch")
    height, width, _ = image.shape
    down, right = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    x, y = cos * right - sin * down, sin * right + cos * down
    grid = torch.tensor(np.stack([x / (width / 2), y / (height / 2)], axis=-1))[None]
    planes = torch.tensor(image.transpose(2, 0, 1).astype(np.float64))[None]
    sampled = torch.nn.functional.grid_sample(planes, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled[0].numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("angle", [17.3, -40.0, 101.0, 213.7])
def test_rotation_is_torchs_grid_sampling(angle):
    nearest, bilinear = (torchs_rotation(LEVELS, angle, mode) for mode in ("nearest", "bilinear"))
    np.testing.assert_array_equal(rotate(IMAGE, angle, "nearest", 0), nearest)
    assert np.abs(np.asarray(rotate(IMAGE, angle, "bilinear", 0), float) - bilinear).max() <= 0.51
    part = jnp.asarray(LEVELS / 255, jnp.float32)
    np.testing.assert_allclose(rotate(part, angle, "bilinear", 0), bilinear / 255, atol=1e-5)


@pytest.mark.parametrize("angle", [10.0, -33.0])
def test_rotation_turns_as_pillow_does(angle):
    smooth = PIL.Image.fromarray(LEVELS).resize((41, 37), PIL.Image.Resampling.BICUBIC)
    for mode, resampling in (("nearest", PIL.Image.Resampling.NEAREST), ("bilinear", PIL.Image.Resampling.BILINEAR)):
        expected = np.asarray(smooth.rotate(angle, resampling), int)
        actual = np.asarray(rotate(jnp.asarray(smooth), angle, mode, 0), int)
        off = np.abs(actual - expected).max(axis=2)
        border = (expected.max(axis=2) == 0) | (actual.max(axis=2) == 0)  # where Pillow does not mix with the fill
        wide = np.asarray(PIL.Image.fromarray(border).convert("L"))
        near = np.array(
            [[wide[max(r - 2, 0) : r + 3, max(c - 2, 0) : c + 3].any() for c in range(41)] for r in range(37)]
        )
        edge = np.zeros_like(near)
        edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = True, True, True, True
        inside = ~(near | edge)
        assert inside.mean() > 0.4
        assert (off[inside] > 1).mean() < 0.01


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4, -1])
def test_quarter_turns_are_exact(interpolation, quarters):
    for side in (12, 11):
        square = LEVELS[:side, :side]
        turned = rotate(jnp.asarray(square), 90.0 * quarters, interpolation)
        np.testing.assert_array_equal(turned, np.rot90(square, quarters))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_fills_with_a_color(interpolation):
    fill = (10, 200, 30)
    turned = np.asarray(rotate(IMAGE, 45.0, interpolation, fill))
    np.testing.assert_array_equal(turned[0, 0], fill)
    plain = jnp.broadcast_to(jnp.array(fill, jnp.uint8), (12, 15, 3))
    np.testing.assert_array_equal(rotate(plain, 31.0, interpolation, fill), plain)


def test_rotation_draws_its_range_and_turns_by_it():
    transform = augment.random_rotation((-10, 40))
    angles = jax.vmap(lambda key: transform.sample(key, (4, 4, 3)))(jax.random.split(jax.random.key(0), 2000))
    assert -10 <= angles.min() < -9.5
    assert 39.5 < angles.max() <= 40
    assert abs(float(angles.mean()) - 15) < 5 * 50 / np.sqrt(12 * 2000)
    np.testing.assert_array_equal(transform.apply(jnp.float32(25), IMAGE), functional.rotate(IMAGE, 25.0))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.random_horizontal_flip(1.5), "a flip with probability 1.5"),
        (lambda: augment.random_vertical_flip(-0.1), "a flip with probability -0.1"),
        (lambda: augment.random_crop(0), "the size 0"),
        (lambda: augment.random_crop(4, padding=-1), "the padding -1"),
        (lambda: augment.random_crop(4, padding=(1, 2, 3)), "the padding (1, 2, 3)"),
        (lambda: augment.random_crop(4, mode="mirror"), "unknown padding mode 'mirror'"),
        (lambda: augment.random_crop(17, padding=2)(jax.random.key(0), IMAGE), "larger than the image of 16x19"),
        (lambda: augment.random_rotation(-5), "the degrees -5"),
        (lambda: augment.random_rotation(5, "cubic"), "unknown interpolation 'cubic'"),
        (lambda: functional.crop(IMAGE, 0, 0, 13, 4), "a crop of 13x4 is larger"),
        (lambda: functional.pad(IMAGE, 12, "reflect"), "padding 12 is more than"),
        (lambda: functional.pad(IMAGE, 1, fill=256), "the fill 256 does not fit uint8"),
        (lambda: functional.rotate(IMAGE, 1.0, fill=(1, 2)), "the fill (1, 2) does not suit 3 channels"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
