"""Affine, perspective and elastic maps against float64 numpy, scipy, Pillow and torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_jax import augment
from lepton_jax.augment import elastic, functional, matrices
from lepton_jax.errors import InputError

LEVELS = np.random.default_rng(4).integers(0, 256, (45, 61, 3), np.uint8)
IMAGE = jnp.asarray(LEVELS)
SIZE = (45, 61)
affine = jax.jit(functional.affine, static_argnums=(5, 6))
perspective = jax.jit(functional.perspective, static_argnums=(3, 4))
rotate = jax.jit(functional.rotate, static_argnums=(2, 3))
STARTS = np.array([[0, 0], [60, 0], [60, 44], [0, 44]], float)


def places(matrix):
    """Where in float64 the pixels of the output come from: their centers times a 3x3 matrix."""
    y, x = np.mgrid[:45, :61] + 0.5
    x, y, depth = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), 1)
    return x / depth, y / depth


def off(actual, matrix, interpolation):
    """By how many levels the image differs from the definition, where no edge between two pixels is close."""
    x, y = places(matrix)
    framed = np.pad(LEVELS.astype(float), ((2, 2), (2, 2), (0, 0)))
    order = {"nearest": 0, "bilinear": 1}[interpolation]
    planes = [scipy.ndimage.map_coordinates(framed[..., c], [y + 1.5, x + 1.5], order=order) for c in range(3)]
    clear = np.minimum(np.abs(x - np.round(x)), np.abs(y - np.round(y))) > 2e-3
    differences = np.abs(np.asarray(actual, float) - np.stack(planes, axis=-1)).max(axis=2)
    return np.where(clear | (interpolation == "bilinear"), differences, 0)


def pulling(angle, translate, scale, shear, center):
    """The inverse of torchvision's T C R S Shear C^-1."""
    a, sx, sy = np.deg2rad([angle, *shear])
    turn = np.array([[np.cos(a - sy) / np.cos(sy), -np.cos(a - sy) * np.tan(sx) / np.cos(sy) - np.sin(a)],
                     [np.sin(a - sy) / np.cos(sy), -np.sin(a - sy) * np.tan(sx) / np.cos(sy) + np.cos(a)]])  # fmt: skip
    forward = np.eye(3)
    forward[:2, :2] = scale * turn
    forward[:2, 2] = np.add(center, translate) - scale * turn @ center
    return np.linalg.inv(forward)


angles, shears, shifts = st.floats(-180, 180), st.floats(-30, 30), st.integers(-20, 20)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@given(angle=angles, shear=st.tuples(shears, shears), translate=st.tuples(shifts, shifts), scale=st.floats(0.5, 2))
@settings(max_examples=15, deadline=None)
def test_affine_is_torchvisions_matrix(interpolation, angle, shear, translate, scale):
    for center in ((30.5, 22.5), (0.0, 0.0), (10.0, 40.0)):
        given_center = None if center == (30.5, 22.5) else center
        actual = affine(IMAGE, angle, translate, scale, shear, interpolation, 0, given_center)
        difference = off(actual, pulling(angle, translate, scale, shear, center), interpolation)
        assert difference.max() <= (0 if interpolation == "nearest" else 0.52)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("angle", [13.0, -71.5, 150.0])
def test_affine_with_an_angle_is_rotation_the_other_way(interpolation, angle):
    turned = rotate(IMAGE, -angle, interpolation, 9)
    np.testing.assert_allclose(
        np.asarray(affine(IMAGE, angle, (0, 0), 1.0, (0.0, 0.0), interpolation, 9), int), turned.astype(int), atol=1
    )


@pytest.mark.parametrize("side", [224, 32])
def test_nearest_rotation_is_pillows(side):
    levels = np.random.default_rng(7).integers(0, 256, (side, side, 3), np.uint8)
    picture, image = PIL.Image.fromarray(levels), jnp.asarray(levels)
    for angle in (3.0, 17.3, 30.0, -40.0, 80.92437867847212, 101.0, 173.06539192844593, -111.1233866194079):
        different = (np.asarray(rotate(image, angle, "nearest", 0)) != np.asarray(picture.rotate(angle))).any(axis=2)
        assert different.mean() <= 0.002


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@given(ends=st.lists(st.tuples(st.integers(-8, 12), st.integers(-8, 12)), min_size=4, max_size=4))
@settings(max_examples=15, deadline=None)
def test_perspective_takes_corners_to_corners(interpolation, ends):
    inward = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    goals = STARTS + inward * ends
    actual = perspective(IMAGE, STARTS, goals, interpolation, 0)
    rows = [[x, y, 1, 0, 0, 0, -u * x, -u * y] for (x, y), (u, v) in zip(goals, STARTS, strict=True)]
    rows += [[0, 0, 0, x, y, 1, -v * x, -v * y] for (x, y), (u, v) in zip(goals, STARTS, strict=True)]
    numbers = np.linalg.solve(np.array(rows), np.concatenate([STARTS[:, 0], STARTS[:, 1]]))
    difference = off(actual, np.append(numbers, 1).reshape(3, 3), interpolation)
    assert difference.max() <= (0 if interpolation == "nearest" else 0.55)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_perspective_and_elastic_are_torchvisions(interpolation):
    torch = pytest.importorskip("torch")
    v2 = pytest.importorskip("torchvision.transforms.v2.functional")
    mode = pytest.importorskip("torchvision.transforms").InterpolationMode(interpolation)
    tensor = torch.tensor(LEVELS.transpose(2, 0, 1))
    numbers = (23.0, [3, -5], 1.2, [10.0, -4.0])
    theirs = v2.affine(tensor, *numbers, interpolation=mode).numpy().transpose(1, 2, 0)
    ours = np.asarray(affine(IMAGE, *numbers, interpolation, 0), int)
    assert (np.abs(ours - theirs).max(axis=2) > (interpolation == "bilinear")).mean() <= 0.002
    ends = np.add(STARTS, [[3, 5], [-7, 2], [-1, -9], [4, -4]]).astype(int).tolist()
    theirs = v2.perspective(tensor, STARTS.astype(int).tolist(), ends, interpolation=mode).numpy().transpose(1, 2, 0)
    ours = np.asarray(perspective(IMAGE, STARTS, np.array(ends, float), interpolation, 0), int)
    assert (np.abs(ours - theirs).max(axis=2) > (interpolation == "bilinear")).mean() <= 0.002
    moved = np.asarray(augment.random_elastic(20, 3).sample(jax.random.key(0), IMAGE.shape))
    field = torch.tensor(moved / np.array([61 / 2, 45 / 2], np.float32))[None]
    theirs = v2.elastic(tensor, field, interpolation=mode).numpy().transpose(1, 2, 0)
    ours = np.asarray(functional.elastic(IMAGE, jnp.asarray(moved), interpolation), int)
    assert (np.abs(ours - theirs).max(axis=2) > (interpolation == "bilinear")).mean() <= 0.002


def test_elastic_reads_at_the_place_and_its_displacement():
    moved = np.random.default_rng(0).uniform(-6, 6, (45, 61, 2)).astype(np.float32)
    y, x = np.mgrid[:45, :61] + moved[..., ::-1].transpose(2, 0, 1).astype(float)
    framed = np.pad(LEVELS.astype(float), ((8, 8), (8, 8), (0, 0)), constant_values=7)
    planes = [scipy.ndimage.map_coordinates(framed[..., c], [y + 8, x + 8], order=1) for c in range(3)]
    actual = functional.elastic(IMAGE, jnp.asarray(moved), fill=7)
    assert np.abs(np.asarray(actual, float) - np.stack(planes, axis=-1)).max() <= 0.51


def test_elastic_noise_is_smoothed_as_scipy_does():
    noise = np.random.default_rng(0).uniform(-1, 1, (45, 61)).astype(np.float32)
    expected = scipy.ndimage.gaussian_filter(noise.astype(float), (3, 2), mode="mirror", radius=(12, 8))
    np.testing.assert_allclose(elastic.smooth(jnp.asarray(noise), (2.0, 3.0)), expected, atol=1e-6)
    plain = augment.random_elastic(10, 0).sample(jax.random.key(1), (45, 61, 3))
    assert stats.kstest(np.asarray(plain).reshape(-1), stats.uniform(-5, 10).cdf).pvalue > 1e-3


def drawn(transform, shape, count=100_000):
    return jax.jit(jax.vmap(lambda key: transform.sample(key, shape)))(jax.random.split(jax.random.key(2), count))


def test_affine_draws_are_uniform():
    parameters = drawn(augment.random_affine((-20, 50), (0.1, 0.3), (0.5, 1.5), (-3, 9, 1, 2)), (40, 100, 3))
    for numbers, low, high in (
        (parameters.angle, -20, 50),
        (parameters.scale, 0.5, 1.5),
        (parameters.shear[:, 0], -3, 9),
        (parameters.shear[:, 1], 1, 2),
    ):
        assert stats.kstest(np.asarray(numbers, float), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    for along, most in ((0, 10), (1, 12)):
        shifts = np.asarray(parameters.translate[:, along]).astype(int)
        expected = np.full(2 * most + 1, 1 / (2 * most))
        expected[[0, -1]] /= 2  # whole pixels of a uniform draw: the ends catch half a pixel
        counts = np.bincount(shifts + most, minlength=2 * most + 1)
        assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-3
    still = drawn(augment.random_affine(0), (40, 100, 3), 10)
    assert (still.shear == 0).all()
    assert (still.scale == 1).all()


def test_perspective_draws_corners_as_torchvision_does():
    parameters = drawn(augment.random_perspective(0.3, 0.2), (40, 100, 3))
    assert stats.binomtest(int(parameters.due.sum()), 100_000, 0.2).pvalue > 1e-3
    ends = np.asarray(parameters.ends).astype(int)
    for corner, (x, y) in enumerate([(0, 0), (84, 0), (84, 33), (0, 33)]):
        for along, (first, places) in enumerate(((x, 16), (y, 7))):
            counts = np.bincount(ends[:, corner, along] - first, minlength=places)
            assert counts.size == places
            assert stats.chisquare(counts).pvalue > 1e-4
    np.testing.assert_array_equal(augment.random_perspective(0.5, 0.0)(jax.random.key(0), IMAGE), LEVELS)


def test_a_matrix_and_its_inverse():
    points = np.random.default_rng(0).uniform(0, 60, (2, 50)).astype(np.float32)
    for matrix in (
        matrices.affine(20.0, (3, 4), 1.3, (10.0, 5.0), (30, 20)),
        matrices.perspective(jnp.asarray(STARTS, jnp.float32), jnp.asarray(STARTS * 0.8 + 3, jnp.float32)),
    ):
        move = augment.warp.projection(matrix, SIZE)
        x, y = move.push(*move.pull(jnp.asarray(points[0]), jnp.asarray(points[1])))
        np.testing.assert_allclose(np.stack([x, y]), points, atol=1e-3)


TRANSFORMS = {
    "affine": augment.random_affine(30, (0.2, 0.2), (0.8, 1.2), (-5, 5, -5, 5), "bilinear", fill=0.5),
    "perspective": augment.random_perspective(p=0.7),
    "elastic": augment.random_elastic(20, 1),
    "resized crop": augment.random_resized_crop((9, 11), interpolation="bicubic"),
    "merged": augment.compose(
        augment.random_crop(12, padding=2, mode="reflect"),
        augment.random_horizontal_flip(),
        augment.random_affine(20, interpolation="bilinear"),
        augment.random_perspective(),
        augment.random_elastic(20, 1),
    ),
}


@pytest.mark.parametrize("transform", list(TRANSFORMS.values()), ids=list(TRANSFORMS))
@pytest.mark.parametrize("dtype", ["uint8", pytest.param("float32", marks=pytest.mark.long)])
def test_the_same_bits_for_every_batch_and_mesh(transform, dtype):
    levels = np.random.default_rng(0).integers(0, 256, (16, 13, 14, 3))
    images = jnp.asarray(levels if dtype == "uint8" else levels / 255, dtype)
    keys = jax.random.split(jax.random.key(3), 16)
    run = jax.jit(augment.batched(transform))
    whole = np.asarray(run(keys, images))
    assert whole.dtype == images.dtype
    assert len({image.tobytes() for image in whole}) == 16
    for count in (1, 3):
        np.testing.assert_array_equal(run(keys[:count], images[:count]), whole[:count])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    np.testing.assert_array_equal(run(jax.device_put(keys, split), jax.device_put(images, split)), whole)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: functional.affine(IMAGE, 1.0, scale=0), "the scale 0"),
        (lambda: functional.affine(IMAGE, 1.0, interpolation="cubic"), "unknown interpolation 'cubic'"),
        (lambda: functional.perspective(IMAGE, STARTS, STARTS, fill=300), "the fill 300"),
        (lambda: augment.random_affine(10, (2, 0)), "the translation (2, 0)"),
        (lambda: augment.random_affine(10, scale=(0, 1)), "the scale (0, 1)"),
        (lambda: augment.random_affine(10, shear=95), "the shear 95"),
        (lambda: augment.random_perspective(1.5), "the distortion 1.5"),
        (lambda: augment.random_perspective(p=2), "a perspective with probability 2"),
        (lambda: augment.random_elastic(-1), "the alpha -1"),
        (lambda: augment.random_elastic(1, 20)(jax.random.key(0), IMAGE), "a deformation of sigma 20"),
    ],
)
def test_bad_arguments_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem
