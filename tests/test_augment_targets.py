"""Masks, boxes and keypoints move with the image; merged transforms read it once and put everything in one place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_jax import augment
from lepton_jax.augment import warp
from lepton_jax.errors import InputError

SHAPE = (40, 52, 3)
LEVELS = np.random.default_rng(5).integers(1, 256, SHAPE, np.uint8)  # 0 is for what lies outside
IMAGE = jnp.asarray(LEVELS)
MOVES = {
    "crop": augment.random_crop((31, 44), padding=4),
    "reflecting crop": augment.random_crop((31, 44), padding=6, mode="reflect"),
    "symmetric crop": augment.random_crop((31, 44), padding=6, mode="symmetric"),
    "horizontal flip": augment.random_horizontal_flip(),
    "vertical flip": augment.random_vertical_flip(),
    "center crop": augment.center_crop((45, 30)),
    "rotation": augment.random_rotation(40),
    "affine": augment.random_affine(30, (0.1, 0.1), (0.8, 1.2), 10),
    "perspective": augment.random_perspective(0.3, 1.0, "nearest"),
    "elastic": augment.random_elastic(30, 4, "nearest"),
    "resize": augment.resize((50, 33), "nearest"),
    "resized crop": augment.random_resized_crop((24, 36), (0.3, 1), interpolation="nearest"),
}
MOVES["merged"] = augment.compose(*(MOVES[name] for name in ("crop", "horizontal flip", "rotation", "affine")))
MOVES["with colors"] = augment.compose(MOVES["rotation"], augment.color_jitter(0.2), MOVES["resized crop"])
JITTED = {name: (jax.jit(lambda key, t=t: t.sample(key, SHAPE)), jax.jit(t.apply)) for name, t in MOVES.items()}
each = pytest.mark.parametrize("name", [name for name in MOVES if name != "with colors"])
moves = pytest.mark.parametrize("name", list(MOVES))


@each
def test_a_mask_of_the_image_is_the_moved_image(name):
    sample, apply = JITTED[name]
    for seed in range(3):
        drawn = sample(jax.random.key(seed))
        image, mask = apply(drawn, IMAGE), apply(drawn, augment.Mask(IMAGE))
        np.testing.assert_array_equal(mask.array, image)


@moves
def test_a_mask_keeps_its_dtype_and_rank(name):
    sample, apply = JITTED[name]
    labels = np.arange(40 * 52).reshape(40, 52) + 1  # each pixel its own label, beyond what uint8 holds
    drawn = sample(jax.random.key(1))
    moved = np.asarray(apply(drawn, augment.Mask(jnp.asarray(labels, jnp.int32))).array)
    assert moved.dtype == np.int32
    assert moved.shape == apply(drawn, IMAGE).shape[:2]
    assert np.isin(moved, np.append(labels, 0)).all()
    truth = apply(drawn, augment.Mask(jnp.asarray(labels % 2 == 0))).array
    assert truth.dtype == bool
    np.testing.assert_array_equal(truth, (moved % 2 == 0) & (moved > 0))


@moves
@given(seed=st.integers(0, 2**31 - 1), row=st.integers(12, 27), column=st.integers(14, 37))
@settings(max_examples=8, deadline=None)
def test_a_dot_at_a_keypoint_moves_with_it(name, seed, row, column):
    sample, apply = JITTED[name]
    drawn = sample(jax.random.key(seed))
    dot = np.zeros(SHAPE[:2], np.int32)
    dot[row - 1 : row + 2, column - 1 : column + 2] = 1
    given_points = augment.keypoints([[column + 0.5, row + 0.5]], SHAPE[:2])
    moved = apply(drawn, given_points)
    shown = np.argwhere(np.asarray(apply(drawn, augment.Mask(jnp.asarray(dot))).array))
    height, width = moved.size
    assert (height, width) == apply(drawn, IMAGE).shape[:2]
    x, y = np.asarray(moved.points[0])
    inside = 0 <= x <= width and 0 <= y <= height
    if name not in ("merged", "with colors"):  # between two of their parts a place may leave the canvas
        assert bool(moved.valid[0]) == inside
    if 4 < x < width - 4 and 4 < y < height - 4 and bool(moved.valid[0]) and name[-5:] != " crop":
        assert np.abs(shown.mean(axis=0) + 0.5 - [y, x]).max() < 1


@moves
@given(seed=st.integers(0, 2**31 - 1), left=st.integers(0, 40), top=st.integers(0, 30))
@settings(max_examples=8, deadline=None)
def test_a_box_holds_what_it_held(name, seed, left, top):
    sample, apply = JITTED[name]
    drawn = sample(jax.random.key(seed))
    filled = np.zeros(SHAPE[:2], bool)
    filled[top : top + 10, left : left + 12] = True
    moved = apply(drawn, augment.boxes([[left, top, left + 12, top + 10]], SHAPE[:2]))
    shown = np.argwhere(np.asarray(apply(drawn, augment.Mask(jnp.asarray(filled))).array))
    x1, y1, x2, y2 = np.asarray(moved.corners[0])
    height, width = moved.size
    assert 0 <= x1 <= x2 <= width
    assert 0 <= y1 <= y2 <= height
    if name in ("reflecting crop", "symmetric crop"):
        return  # the box shows up a second time in the mirror
    slack = 3 if name == "elastic" else 0.51  # an elastic side is bent, and the box goes by its corners
    if len(shown):
        centers = shown + 0.5
        assert bool(moved.valid[0]) or name in ("merged", "with colors", "elastic")
        assert (centers.min(axis=0) >= [y1 - slack, x1 - slack]).all()
        assert (centers.max(axis=0) <= [y2 + slack, x2 + slack]).all()


def test_boxes_of_flips_and_crops_are_known():
    boxes = augment.boxes([[2, 3, 10, 20], [30, 3, 40, 9], [0, 0, 4, 4]], SHAPE[:2])
    flipped = MOVES["horizontal flip"].apply(jnp.array(True), boxes)
    np.testing.assert_array_equal(flipped.corners, [[42, 3, 50, 20], [12, 3, 22, 9], [48, 0, 52, 4]])
    crop = augment.random_crop((16, 20))
    corner = jax.tree.map(jnp.int32, crop.sample(jax.random.key(0), SHAPE)._replace(top=4, left=5))
    cropped = crop.apply(corner, boxes)
    np.testing.assert_array_equal(cropped.valid, [True, False, False])
    np.testing.assert_array_equal(cropped.corners[0], [0, 0, 5, 16])
    assert cropped.size == (16, 20)


@pytest.mark.parametrize(
    "target",
    [
        augment.Mask(jnp.asarray(LEVELS[..., 0])),
        augment.boxes([[1, 2, 3, 4]], SHAPE[:2]),
        augment.keypoints([[1, 2]], SHAPE[:2]),
    ],
)
def test_colors_leave_places_alone(target):
    transform = augment.color_jitter(0.4, 0.4, 0.4, 0.1)
    drawn = transform.sample(jax.random.key(0), SHAPE)
    assert transform.apply(drawn, target) is target
    both = augment.compose(transform, augment.identity)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), both.apply((drawn, ()), target), target))


def test_a_batch_of_targets():
    keys = jax.random.split(jax.random.key(0), 4)
    transform = MOVES["merged"]
    drawn = jax.jit(jax.vmap(lambda key: transform.sample(key, SHAPE)))(keys)
    corners = np.tile(np.array([[5, 5, 30, 30], [0, 0, 8, 9]], np.float32), (4, 1, 1))
    moved = jax.jit(jax.vmap(transform.apply))(drawn, augment.boxes(corners, SHAPE[:2]))
    alone = jax.jit(transform.apply)(jax.tree.map(lambda leaf: leaf[2], drawn), augment.boxes(corners[2], SHAPE[:2]))
    np.testing.assert_array_equal(moved.corners[2], alone.corners)
    assert moved.valid.shape == (4, 2)


MERGING = {
    "crop and turn": [augment.random_crop((31, 44), padding=5, fill=9), augment.random_rotation(40, fill=200)],
    "turn and flip": [augment.random_rotation(40, fill=(1, 2, 3)), augment.random_horizontal_flip()],
    "turn and crop": [augment.random_rotation(40), augment.random_crop((33, 33), padding=3, fill=77)],
    "mirrors": [augment.random_crop((48, 60), padding=12, mode="reflect"), augment.random_rotation(40)],
    "symmetry": [augment.random_crop((48, 60), padding=12, mode="symmetric"), augment.random_rotation(40)],
    "edges": [augment.random_crop((48, 60), padding=12, mode="edge"), augment.random_rotation(40)],
}


@pytest.mark.parametrize("name", list(MERGING))
def test_one_resampling_among_slices_is_what_it_was_apart(name):
    merged, apart = (jax.jit(augment.compose(*MERGING[name], merge=merge)) for merge in (True, False))
    for seed in range(5):
        one, other = (np.asarray(run(jax.random.key(seed), IMAGE)) for run in (merged, apart))
        assert (one != other).any(axis=2).mean() <= 0.002


@pytest.mark.parametrize("name", list(MERGING))
def test_bilinear_too(name):
    parts = [
        augment.random_rotation(40, "bilinear", 50) if part.interpolation == "nearest" else part
        for part in MERGING[name]
    ]
    merged, apart = (jax.jit(augment.compose(*parts, merge=merge)) for merge in (True, False))
    for seed in range(3):
        one, other = (np.asarray(run(jax.random.key(seed), IMAGE), int) for run in (merged, apart))
        # Where the border of a later canvas cuts the image, its fill is mixed in by place and not by pixel.
        assert (np.abs(one - other).max(axis=2) > 1).mean() <= (0.002 if name != "turn and crop" else 0.02)


def test_flips_and_crops_alone_are_slices():
    parts = [MOVES["crop"], MOVES["horizontal flip"], MOVES["vertical flip"]]
    drawn = augment.compose(*parts).sample(jax.random.key(0), SHAPE)
    program = str(jax.make_jaxpr(augment.compose(*parts).apply)(drawn, IMAGE))
    assert " gather" not in program
    turned = augment.compose(*parts, MOVES["rotation"], MOVES["affine"])
    drawn = turned.sample(jax.random.key(0), SHAPE)
    assert str(jax.make_jaxpr(turned.apply)(drawn, IMAGE)).count("= gather") == 1


def smooth_picture():
    y, x = np.mgrid[:40, :52]
    return np.stack([120 + 80 * np.sin(x / 7 + c) * np.cos(y / 6) for c in range(3)], axis=-1).astype(np.uint8)


def chained(image, maps, fills):
    """What merging means, in numpy: follow each place from the last map to the first, stopping where it falls out."""
    height, width = maps[-1].size
    y, x = np.mgrid[:height, :width] + 0.5
    sources = [image.shape[:2], *(move.size for move in maps[:-1])]
    colors, open_ = np.zeros((height, width, 3), int), np.ones((height, width), bool)
    for move, (rows, columns), fill in reversed(list(zip(maps, sources, fills, strict=True))):
        x, y = (np.asarray(place, float) for place in move.pull(jnp.asarray(x), jnp.asarray(y)))
        out = (x < 0) | (x >= columns) | (y < 0) | (y >= rows)
        colors[open_ & out] = fill
        open_ &= ~out
    row, column = (np.clip(np.floor(a), 0, n - 1).astype(int) for a, n in ((y, rows), (x, columns)))
    return np.where(open_[..., None], image[row, column], colors)


def test_a_place_outside_of_any_canvas_gets_that_parts_fill():
    parts = [
        augment.random_rotation((30, 60), fill=10),
        augment.random_crop((20, 24), fill=0),
        augment.random_affine((20, 40), fill=20),
        augment.random_perspective(0.5, 1.0, "nearest", fill=30),
    ]
    transform = augment.compose(*parts)
    for seed in range(3):
        drawn = transform.sample(jax.random.key(seed), SHAPE)
        merged = np.asarray(transform.apply(drawn, IMAGE))
        expected = chained(LEVELS, transform.maps(drawn, SHAPE[:2]), [10, 0, 20, 30])
        assert (merged != expected).any(axis=2).mean() <= 0.002
        assert {20, 30} <= set(np.unique(merged[..., 0]))


def test_a_merged_chain_is_its_parts_up_to_rounding_and_sharper():
    parts = [augment.random_rotation((10, 30), "bilinear"), augment.random_affine((-30, -10), interpolation="bilinear")]
    picture = jnp.asarray(smooth_picture())
    merged, apart = (augment.compose(*parts, merge=merge) for merge in (True, False))
    for seed in range(3):
        one, other = (np.asarray(run(jax.random.key(seed), picture), int)[12:28, 16:36] for run in (merged, apart))
        assert np.abs(one - other).max() <= 3  # two readings flatten a curved picture a little


def test_different_interpolations_and_averages_are_not_merged():
    nearest, bilinear = augment.random_rotation(30), augment.random_rotation(30, "bilinear")
    for parts in ([nearest, bilinear], [nearest, augment.random_resized_crop(16)]):
        merged, apart = (jax.jit(augment.compose(*parts, merge=merge)) for merge in (True, False))
        np.testing.assert_array_equal(merged(jax.random.key(0), IMAGE), apart(jax.random.key(0), IMAGE))


def test_merging_reaches_into_a_nested_compose():
    rotation, affine = MOVES["rotation"], MOVES["affine"]
    nested = augment.compose(augment.compose(MOVES["crop"], rotation), affine)
    drawn = nested.sample(jax.random.key(0), SHAPE)
    assert str(jax.make_jaxpr(nested.apply)(drawn, IMAGE)).count("= gather") == 1


def test_a_warp_without_a_move_is_the_image():
    still = warp.projection(jnp.eye(2, 3), SHAPE[:2])
    for interpolation in warp.INTERPOLATIONS:
        np.testing.assert_array_equal(warp.warp(IMAGE, [still] * 3, interpolation), LEVELS)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.boxes([[0, 0, 53, 10]], SHAPE[:2]), "the box [0.0, 0.0, 53.0, 10.0]"),
        (lambda: augment.boxes([[-1, 0, 5, 10]], SHAPE[:2]), "the box [-1.0"),
        (lambda: augment.boxes([[5, 0, 5, 10]], SHAPE[:2]), "the box [5.0"),
        (lambda: augment.boxes([1, 2, 3, 4], SHAPE[:2]), "boxes of shape (4,)"),
        (lambda: augment.keypoints([[1, 2, 3]], SHAPE[:2]), "keypoints of shape (1, 3)"),
    ],
)
def test_bad_targets_are_named(make, says):
    with pytest.raises(InputError) as error:
        make()
    assert says in error.value.problem


def test_padding_boxes_may_lie_anywhere():
    boxes = augment.boxes([[0, 0, 5, 5], [-1, -1, -1, -1]], SHAPE[:2], [True, False])
    np.testing.assert_array_equal(MOVES["vertical flip"].apply(jnp.array(True), boxes).valid, [True, False])
    np.testing.assert_array_equal(augment.keypoints([[1, 1], [60, 1]], SHAPE[:2]).valid, [True, False])
