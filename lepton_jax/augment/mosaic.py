"""Mosaic: four images of a batch in one, boxes and labels with them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from lepton_jax import keys
from lepton_jax.augment.image import Shape
from lepton_jax.augment.mixing import Mixing, distributions
from lepton_jax.augment.partners import permutation, rows
from lepton_jax.augment.targets import Boxes
from lepton_jax.errors import InputError
from lepton_jax.types import Batch, Key

Point = Int[Array, "2"]  # (row, column)


def mosaic(classes: int, margin: float = 0.25) -> Mixing:
    """Each image and three others of the batch around a drawn point: (key, batch) -> batch, for `losses.mixed`.

    Inputs are images [batch, height, width, channels]. The example itself is above and left; what is shown of each
    image is the part that ends at the point, unscaled. The point is uniform over whole pixels, at least
    `margin` of each side, in [0, 0.5], away from the border. Labels become distributions [batch, classes] by the areas.
    "boxes", if there, are a Boxes with corners [batch, n, 4] and become [batch, 4 n, 4]: moved, cut, and invalid where
    nothing is left. Partners are drawn as mixup's are: examples of weight 0 stay as they are,
    and appear nowhere. Raises InputError. Bochkovskiy et al. 2020, https://arxiv.org/abs/2004.10934
    """
    if not 0 <= margin <= 0.5:
        raise InputError(f"a margin of {margin} is outside [0, 0.5]", "give 0 for a point anywhere; 0.25 is usual")

    def mixing(key: Key, batch: Batch) -> Batch:
        inputs, labels = batch["input"], distributions(batch["label"], classes)
        if inputs.ndim != 4:
            raise InputError(
                f"a mosaic of inputs of shape {inputs.shape}", "use images [batch, height, width, channels]"
            )
        height, width = inputs.shape[1:3]
        own = jnp.arange(keys.size(batch), dtype=jnp.int32)
        others = [rows(permutation, keys.named(key, f"mosaic {n}"), batch).astype(jnp.int32) for n in (1, 2, 3)]
        sources = jnp.stack([own, *others], axis=1)
        example_keys = keys.per_example(key, batch, "mosaic")
        points = jax.vmap(lambda key: center(key, inputs.shape[1:], margin))(example_keys)
        if "weight" in batch:  # a point in the lower right corner shows the example alone
            whole = jnp.array([[height, width]], jnp.int32)
            points = jnp.where((batch["weight"] != 0)[:, None], points, whole)
        shares = jax.vmap(lambda point: areas(point, height, width))(points)
        pieces: dict[str, Any] = {
            "input": jax.vmap(lambda point, four: pieced(point, inputs[four]))(points, sources),
            "label": jnp.sum(shares[:, :, None] * labels[sources], axis=1),
        }
        if "boxes" in batch:
            taken = jax.tree.map(lambda leaf: leaf[sources], batch["boxes"])  # [batch, 4, n, ...]
            pieces["boxes"] = jax.vmap(moved)(points, taken)
        return {**batch, **pieces}

    return mixing


def center(key: Key, shape: Shape, margin: float) -> Point:
    """The point where the four images meet."""
    least = jnp.array([int(margin * side) for side in shape[:2]], jnp.int32)
    most = jnp.array([side - int(margin * side) + 1 for side in shape[:2]], jnp.int32)
    return jax.random.randint(key, (2,), least, most, jnp.int32)


def pieced(point: Point, four: Shaped[Array, "4 height width channels"]) -> Shaped[Array, "height width channels"]:
    """The image with the ends of `four` at the point: upper left, upper right, lower left, lower right."""
    height, width = four.shape[1:3]
    row, column = jnp.arange(height), jnp.arange(width)
    below, right = row >= point[0], column >= point[1]
    quadrant = 2 * below[:, None] + 1 * right[None, :]
    return four[quadrant, ((row - point[0]) % height)[:, None], ((column - point[1]) % width)[None, :]]


def areas(point: Point, height: int, width: int) -> Float[Array, "4"]:
    """The share of each quadrant in the image."""
    down, across = (jnp.stack([p, n - p]) for p, n in zip(point, (height, width), strict=True))
    return (down[:, None] * across[None, :]).reshape(4).astype(jnp.float32) / (height * width)


def moved(point: Point, boxes: Boxes) -> Boxes:
    """The boxes of four images, [4, n], where they lie in the mosaic, cut to their quadrants, [4 n]."""
    height, width = boxes.size
    kind = boxes.corners.dtype
    y, x = point.astype(kind)
    shifts = [(x - left, y - top) for top, left in ((height, width), (height, 0), (0, width), (0, 0))]
    lows = [(0, 0), (x, 0), (0, y), (x, y)]
    highs = [(x, y), (width, y), (x, height), (width, height)]
    shift, low, high = (_twice(pairs, kind) for pairs in (shifts, lows, highs))
    cut = jnp.clip(boxes.corners + shift, low, high)
    left = (cut[..., 2] > cut[..., 0]) & (cut[..., 3] > cut[..., 1])
    return Boxes(cut.reshape(-1, 4), boxes.size, (boxes.valid & left).reshape(-1))


def _twice(pairs: Sequence[tuple[ArrayLike, ArrayLike]], kind: jnp.dtype) -> Float[Array, "4 1 4"]:
    """(x, y) of each quadrant for both corners of its boxes."""
    return jnp.array([[[*pair, *pair]] for pair in pairs], kind)
