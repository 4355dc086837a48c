"""Samplers of tone, blur and erasing, and normalization: what they draw, what they do, the same bits everywhere."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from lepton_jax import augment
from lepton_jax.augment import functional
from lepton_jax.errors import InputError

LEVELS = np.random.default_rng(0).integers(0, 256, (16, 24, 20, 3), np.uint8)
FLOATS = (LEVELS / 255).astype(np.float32)
SHAPE = LEVELS.shape[1:]
SOMETIMES = {
    "random_grayscale": (augment.random_grayscale, (), lambda image: functional.grayscale(image, 3), 0.1),
    "random_invert": (augment.random_invert, (), functional.invert, 0.5),
    "random_posterize": (augment.random_posterize, (3,), lambda image: functional.posterize(image, 3), 0.5),
    "random_solarize": (augment.random_solarize, (0.5,), lambda image: functional.solarize(image, 0.5), 0.5),
    "random_autocontrast": (augment.random_autocontrast, (), functional.autocontrast, 0.5),
    "random_equalize": (augment.random_equalize, (), functional.equalize, 0.5),
    "random_adjust_sharpness": (
        augment.random_adjust_sharpness,
        (1.7,),
        lambda image: functional.adjust_sharpness(image, 1.7),
        0.5,
    ),
}
TRANSFORMS = {name: make(*amounts) for name, (make, amounts, _, _) in SOMETIMES.items()}
TRANSFORMS |= {
    "gaussian_blur": augment.gaussian_blur((5, 3)),
    "random_erasing": augment.random_erasing(0.9),
    "random_erasing noise": augment.random_erasing(0.9, value="random"),
    "chain": augment.compose(
        augment.random_grayscale(0.5),
        augment.gaussian_blur(3),
        augment.random_adjust_sharpness(1.5),
        augment.random_equalize(),
        augment.to_float(),
        augment.normalize((0.4, 0.5, 0.6), 0.25),
        augment.random_erasing(value="random"),
    ),
}
each = pytest.mark.parametrize("transform", list(TRANSFORMS.values()), ids=list(TRANSFORMS))
sometimes = pytest.mark.parametrize("name", list(SOMETIMES))


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


@sometimes
@pytest.mark.parametrize("images", [LEVELS, FLOATS], ids=["uint8", "float32"])
def test_the_operation_acts_or_does_not(name, images):
    make, amounts, operation, _ = SOMETIMES[name]
    image = jnp.asarray(images[0])
    always, never = (jax.jit(make(*amounts, p=p))(jax.random.key(0), image) for p in (1.0, 0.0))
    np.testing.assert_array_equal(always, jax.jit(operation)(image))
    np.testing.assert_array_equal(never, image)


@sometimes
def test_the_operation_acts_as_often_as_its_default_says(name):
    *_, p = SOMETIMES[name]
    drawn = jax.vmap(lambda key: TRANSFORMS[name].sample(key, SHAPE))(keys_of(1, 20_000))
    assert stats.binomtest(int(drawn.sum()), 20_000, p).pvalue > 1e-3


def test_gray_of_one_channel_stays():
    image = jnp.asarray(LEVELS[0, :, :, :1])
    np.testing.assert_array_equal(augment.random_grayscale(1.0)(jax.random.key(0), image), image)


def test_blur_draws_its_range_and_blurs_by_it():
    transform = augment.gaussian_blur(5, (0.5, 1.5))
    sigmas = jax.vmap(lambda key: transform.sample(key, SHAPE))(keys_of(2, 20_000))
    assert stats.kstest(np.asarray(sigmas, np.float64), stats.uniform(0.5, 1.0).cdf).pvalue > 1e-3
    image = jnp.asarray(FLOATS[0])
    drawn = transform.sample(jax.random.key(7), SHAPE)
    np.testing.assert_array_equal(
        jax.jit(transform)(jax.random.key(7), image),
        jax.jit(lambda sigma: functional.gaussian_blur(image, 5, sigma))(drawn),
    )


def rectangles(random, count, height, width, scale=(0.02, 0.33), ratio=(0.3, 3.3)):
    """torchvision's lines, with numpy's numbers; a rectangle of no size where none fits in ten draws."""
    found = np.zeros((count, 4), int)
    for row in found:
        for _ in range(10):
            area = height * width * random.uniform(*scale)
            aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                row[:] = random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
                break
    return found


@pytest.mark.parametrize(("size", "scale"), [((24, 20), (0.02, 0.33)), ((16, 16), (0.4, 1.0)), ((8, 8), (0.97, 1.0))])
def test_rectangles_are_drawn_as_in_torchvision(size, scale):
    transform = augment.random_erasing(1.0, scale)
    drawn = jax.jit(jax.vmap(lambda key: transform.sample(key, (*size, 3))))(keys_of(3, 20_000))
    ours = np.stack([drawn.top, drawn.left, drawn.height, drawn.width], axis=1)
    theirs = rectangles(np.random.default_rng(4), 20_000, *size, scale)
    erased, expected = (sides[sides[:, 2] > 0] for sides in (ours, theirs))
    assert abs(len(erased) - len(expected)) < 5 * np.sqrt(20_000 / 2)
    if len(expected):
        for column in range(4):
            assert stats.ks_2samp(erased[:, column], expected[:, column]).pvalue > 1e-3
        assert stats.ks_2samp(erased[:, 2] * erased[:, 3], expected[:, 2] * expected[:, 3]).pvalue > 1e-3
        assert ((erased[:, :2] >= 0) & (erased[:, :2] + erased[:, 2:] <= size)).all()


def test_erasing_happens_with_its_probability():
    drawn = jax.jit(jax.vmap(lambda key: augment.random_erasing(0.3).sample(key, SHAPE).height))(keys_of(5, 20_000))
    assert stats.binomtest(int((drawn > 0).sum()), 20_000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("value", [0, 7, (1, 200, 30), "random"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_what_is_erased_has_the_value_and_the_rest_stays(value, kind):
    if kind == "float32" and value != "random":
        value = np.divide(value, 255).tolist()
    transform, images = augment.random_erasing(1.0, value=value), LEVELS if kind == "uint8" else FLOATS
    drawn = jax.jit(lambda key: transform.sample(key, SHAPE))(jax.random.key(9))
    actual = np.asarray(jax.jit(transform.apply)(drawn, jnp.asarray(images[0])))
    window = slice(drawn.top, drawn.top + drawn.height), slice(drawn.left, drawn.left + drawn.width)
    expected = images[0].copy()
    expected[window] = actual[window] if value == "random" else value
    np.testing.assert_array_equal(actual, expected)
    assert drawn.height > 0
    if value == "random":
        assert len(np.unique(actual[window])) > 3


def test_noise_is_uniform_over_levels_and_normal_in_floats():
    drawn = augment.random_erasing(1.0, value="random").sample(jax.random.key(1), (200, 200, 1))
    drawn = drawn._replace(top=0, left=0, height=200, width=200)
    act = augment.random_erasing(1.0, value="random").apply
    levels, floats = (np.asarray(act(drawn, jnp.zeros((200, 200, 1), dtype))) for dtype in (jnp.uint8, jnp.float32))
    assert stats.chisquare(np.bincount(levels.reshape(-1), minlength=256)).pvalue > 1e-3
    assert stats.kstest(floats.reshape(-1).astype(np.float64), stats.norm.cdf).pvalue > 1e-3


def test_erase_takes_a_picture_and_leaves_out_what_sticks_out():
    picture = jnp.asarray(LEVELS[1])
    erased = np.asarray(jax.jit(functional.erase)(jnp.asarray(LEVELS[0]), 20, 15, 50, 50, picture))
    expected = LEVELS[0].copy()
    expected[20:, 15:] = LEVELS[1, 20:, 15:]
    np.testing.assert_array_equal(erased, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_normalization_is_done_in_single_and_given_in_the_dtype(dtype):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    exact = (LEVELS[0] / 255 - mean) / std
    for image in (LEVELS[0], FLOATS[0]):
        actual = augment.normalize(mean, std, dtype)(jax.random.key(0), jnp.asarray(image))
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.astype(jnp.float32), exact, atol=2e-6 + 3 * float(jnp.finfo(dtype).eps))
    half = jnp.asarray(FLOATS[0], dtype)
    assert functional.normalize(half, 0.5, 0.5).dtype == dtype
    np.testing.assert_array_equal(functional.to_float(half), half.astype(jnp.float32))
    assert functional.to_float(jnp.asarray(LEVELS[0]), dtype).dtype == dtype
    np.testing.assert_allclose(functional.to_float(jnp.asarray(LEVELS[0])), LEVELS[0] / 255, atol=1e-7)


def test_normalization_equals_torchvision():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("torchvision.transforms.v2").functional
    planes = torch.tensor(LEVELS[0].transpose(2, 0, 1))
    unit = theirs.to_dtype(planes, torch.float32, scale=True)
    expected = theirs.normalize(unit, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]).numpy().transpose(1, 2, 0)
    actual = functional.normalize(jnp.asarray(LEVELS[0]), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_masks_boxes_and_points_stay():
    mask = augment.Mask(jnp.asarray(LEVELS[0, :, :, 0]))
    for transform in TRANSFORMS.values():
        parameters = transform.sample(jax.random.key(0), SHAPE)
        assert transform.apply(parameters, mask) is mask


@each
@pytest.mark.parametrize(
    "images", [pytest.param(LEVELS, id="uint8"), pytest.param(FLOATS, id="float32", marks=pytest.mark.long)]
)
def test_the_same_bits_alone_in_parts_and_on_a_mesh(transform, images):
    if transform is TRANSFORMS["random_solarize"] and images.dtype == np.uint8:
        images = images // 2
    keys, run = keys_of(8, len(images)), jax.jit(augment.batched(transform))
    together = np.asarray(run(keys, images))
    assert len({image.tobytes() for image in together - images.astype(together.dtype)}) > 1
    np.testing.assert_array_equal(run(keys[:3], images[:3]), together[:3])
    np.testing.assert_array_equal(jax.jit(transform)(keys[5], jnp.asarray(images[5])), together[5])
    replayed = jax.jit(transform.apply)(transform.sample(keys[1], SHAPE), jnp.asarray(images[1]))
    np.testing.assert_array_equal(replayed, together[1])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((keys, images), NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(run(*spread), together)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.random_invert(1.5), "inverting with probability 1.5"),
        (lambda: augment.random_erasing(-0.1), "erasing with probability -0.1"),
        (lambda: augment.random_posterize(9), "posterizing to 9 bits"),
        (lambda: augment.random_adjust_sharpness(-1.0), "a sharpness factor of -1.0"),
        (lambda: augment.random_solarize(300)(jax.random.key(0), jnp.asarray(LEVELS[0])), "a threshold of 300"),
        (lambda: augment.gaussian_blur(4), "the kernel size 4"),
        (lambda: augment.gaussian_blur(3, (2.0, 1.0)), "the sigma (2.0, 1.0)"),
        (lambda: augment.random_erasing(scale=(0.5, 1.2)), "the scale (0.5, 1.2)"),
        (lambda: augment.random_erasing(ratio=(0.0, 1.0)), "the ratio (0.0, 1.0)"),
        (lambda: augment.random_erasing(value="noise"), "the value 'noise'"),
        (lambda: functional.erase(jnp.asarray(LEVELS[0]), 0, 0, 1, 1, 256), "the fill 256 does not fit uint8"),
        (lambda: augment.normalize(0.5, 0.0), "the standard deviation 0.0"),
        (lambda: functional.normalize(jnp.asarray(LEVELS[0]), (0.1, 0.2), 1.0), "2 means or standard deviations"),
        (lambda: augment.to_float(jnp.int32), "int32 is not floating point"),
        (lambda: functional.to_float(jnp.zeros((2, 2, 1), jnp.int32)), "dtype int32"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
