"""Noise, dropout and swaps on rows of numbers, and mosaics of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lepton_jax.augment import Boxes, tabular
from lepton_jax.augment.mosaic import mosaic
from lepton_jax.errors import InputError

KEYS = jax.random.split(jax.random.key(0), 4000)


def test_gaussian_noise_has_its_deviation():
    row = jnp.array([1.0, -2.0, 5.0])
    noisy = np.asarray(jax.vmap(tabular.gaussian_noise([0.5, 1.0, 2.0]), (0, None))(KEYS, row))
    for column, deviation, mean in zip(noisy.T, (0.5, 1.0, 2.0), row, strict=True):
        assert scipy.stats.kstest(column, scipy.stats.norm(float(mean), deviation).cdf).pvalue > 1e-4
    np.testing.assert_array_equal(tabular.gaussian_noise(0.0)(KEYS[0], row), row)


def test_feature_dropout_replaces_its_share():
    row = jnp.array([1.0, -2.0, 5.0])
    dropped = np.asarray(jax.vmap(tabular.feature_dropout(0.3, [9.0, 8.0, 7.0]), (0, None))(KEYS, row))
    gone = dropped == np.array([9.0, 8.0, 7.0])
    assert (gone | (dropped == np.asarray(row))).all()
    assert abs(gone.mean() - 0.3) < 5 * np.sqrt(0.21 / gone.size)


def table(size=64, features=5):
    values = np.arange(size * features, dtype=np.float32).reshape(size, features)
    return {"input": jnp.asarray(values), "label": jnp.arange(size), "index": jnp.arange(size)}


def test_swap_noise_takes_the_same_feature_of_other_rows():
    batch = table()
    before = np.asarray(batch["input"])
    swap = jax.jit(tabular.swap_noise(0.4))
    after = np.stack([np.asarray(swap(key, batch)["input"]) for key in KEYS[:50]])
    np.testing.assert_array_equal(after % 5, np.broadcast_to(before % 5, after.shape))
    moved = (after != before).mean()
    rate = 0.4 * 63 / 64
    assert abs(moved - rate) < 5 * np.sqrt(rate * (1 - rate) / after.size)
    taken = np.bincount((after[after != before] // 5).astype(int), minlength=64)
    assert scipy.stats.chisquare(taken).pvalue > 1e-4
    np.testing.assert_array_equal(swap(KEYS[0], batch)["label"], batch["label"])


def test_swap_noise_never_takes_from_padding():
    batch = {**table(), "weight": (jnp.arange(64) < 9).astype(jnp.float32)}
    after = np.asarray(tabular.swap_noise(1.0)(KEYS[0], batch)["input"])
    assert (after[:9] // 5 < 9).all()


def pictures(size=6, shape=(8, 10, 3)):
    """Images whose every pixel says whose it is, and from where."""
    whose, row, column = np.meshgrid(np.arange(size), np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    images = np.stack([whose, row, column], axis=-1).astype(np.uint8)
    return {"input": jnp.asarray(images), "label": jnp.arange(size) % 4, "index": jnp.arange(size)}


def test_a_mosaic_is_four_images_that_end_at_one_point():
    batch = pictures()
    mixed = jax.jit(mosaic(4))(KEYS[0], batch)
    images, labels = np.asarray(mixed["input"]), np.asarray(mixed["label"])
    for example, (image, label) in enumerate(zip(images, labels, strict=True)):
        # the example's own lower right pixel says where the point is, if no partner is the example too
        top, left = next(
            (y, x)
            for y in range(2, 7)
            for x in range(2, 9)
            if tuple(image[y - 1, x - 1]) == (example, 7, 9) and tuple(image[y, x, 1:]) == (0, 0)
        )
        quadrants = [(slice(0, top), slice(0, left)), (slice(0, top), slice(left, 10))]
        quadrants += [(slice(top, 8), slice(0, left)), (slice(top, 8), slice(left, 10))]
        share = np.zeros(4)
        for rows, columns in quadrants:
            part = image[rows, columns]
            source = int(part[0, 0, 0])
            first = (8 - top if rows.start == 0 else 0, 10 - left if columns.start == 0 else 0)
            expected = np.asarray(batch["input"])[source, first[0] :, first[1] :][: part.shape[0], : part.shape[1]]
            np.testing.assert_array_equal(part, expected)
            share[source % 4] += part.shape[0] * part.shape[1] / 80
        np.testing.assert_allclose(label, share, atol=1e-6)
        assert image[0, 0, 0] == example


def test_padding_stays_and_is_in_no_mosaic():
    batch = {**pictures(), "weight": jnp.array([1.0, 1, 0, 1, 0, 0])}
    for key in KEYS[:10]:
        mixed = mosaic(4)(key, batch)
        images, before = np.asarray(mixed["input"]), np.asarray(batch["input"])
        np.testing.assert_array_equal(images[[2, 4, 5]], before[[2, 4, 5]])
        assert not np.isin(images[[0, 1, 3], ..., 0], (2, 4, 5)).any()
        np.testing.assert_array_equal(np.asarray(mixed["label"])[[2, 4, 5]], np.eye(4)[[2, 0, 1]])


def test_boxes_lie_on_what_they_lay_on():
    batch = pictures()
    corners = np.tile(np.array([[[2.0, 1.0, 7.0, 6.0], [0.0, 0.0, 1.0, 1.0]]], np.float32), (6, 1, 1))
    valid = np.tile(np.array([[True, False]]), (6, 1))
    mixed = jax.jit(mosaic(4))(KEYS[1], {**batch, "boxes": Boxes(jnp.asarray(corners), (8, 10), jnp.asarray(valid))})
    images = np.asarray(mixed["input"])
    assert mixed["boxes"].corners.shape == (6, 8, 4)
    seen = 0
    for image, boxes, flags in zip(images, mixed["boxes"].corners, mixed["boxes"].valid, strict=True):
        assert not np.asarray(flags)[1::2].any()
        inside = np.zeros(image.shape[:2], bool)
        for left, top, right, bottom in np.asarray(boxes)[np.asarray(flags)].astype(int):
            inside[top:bottom, left:right] = True
            seen += 1
        rows, columns = image[..., 1], image[..., 2]
        np.testing.assert_array_equal(inside, (rows >= 1) & (rows < 6) & (columns >= 2) & (columns < 7))
    assert seen > 6


def test_points_are_uniform_within_the_margin():
    from lepton_jax.augment.mosaic import center

    points = np.asarray(jax.vmap(lambda key: center(key, (40, 20, 3), 0.25))(KEYS))
    for column, (low, high) in zip(points.T, ((10, 30), (5, 15)), strict=True):
        counts = np.bincount(column, minlength=high + 1)[low : high + 1]
        assert counts.sum() == len(KEYS)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: tabular.gaussian_noise(-1.0),
        lambda: tabular.gaussian_noise([1.0, 2.0])(KEYS[0], jnp.zeros(3)),
        lambda: tabular.feature_dropout(2),
        lambda: tabular.swap_noise(-0.5),
        lambda: tabular.swap_noise(0.5)(KEYS[0], pictures()),
        lambda: mosaic(4, 0.7),
        lambda: mosaic(4)(KEYS[0], {"input": jnp.zeros((2, 3)), "label": jnp.zeros(2, jnp.int32)}),
    ],
)
def test_bad_input(wrong):
    with pytest.raises(InputError) as error:
        wrong()
    assert error.value.remedy
