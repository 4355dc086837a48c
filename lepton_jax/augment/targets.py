"""What moves with an image: masks, boxes and keypoints, all by the same maps of places."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lepton_jax.augment.image import Canvas
from lepton_jax.augment.warp import Map, Places, warp
from lepton_jax.errors import InputError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """A label per pixel, of any dtype. array: [height, width], or [height, width, channels]."""

    array: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Boxes:
    """Boxes on an image; `boxes` makes and checks them.

    corners: [n, 4], (left, top, right, bottom) in pixels from the image's upper left corner. size: the image's
    (height, width). valid: [n] booleans, False for padding and for boxes of which nothing is left to see.
    """

    corners: Any
    size: Canvas = field(metadata={"static": True})
    valid: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Keypoints:
    """Places on an image; `keypoints` makes and checks them.

    points: [n, 2], (x, y) in pixels from the image's upper left corner, so that the pixel [row, column] has its
    center at (column + 1/2, row + 1/2). size: the image's (height, width). valid: [n] booleans, False for padding
    and for places that have left the image.
    """

    points: Any
    size: Canvas = field(metadata={"static": True})
    valid: Any


Numbers = ArrayLike | Sequence[Any]  # an array, or lists of numbers
Target = TypeVar("Target", Mask, Boxes, Keypoints)


def boxes(corners: Numbers, size: Sequence[int], valid: Numbers | None = None) -> Boxes:
    """Boxes (left, top, right, bottom) on an image of `size` (height, width).

    corners: [..., n, 4] in pixels. valid: [..., n], by default all. Raises InputError for a shape that is not this,
    and for a valid box that is empty or reaches outside of the image (unless its numbers are traced).
    """
    corners = _floating(corners)
    height, width = size
    if corners.ndim < 2 or corners.shape[-1] != 4:
        raise InputError(f"boxes of shape {corners.shape} are not [n, 4]", "give (left, top, right, bottom) for each")
    flags = _flags(valid, corners.shape[:-1])
    if not isinstance(corners, Tracer) and not isinstance(flags, Tracer):
        listed, marked = np.asarray(corners).reshape(-1, 4), np.asarray(flags).reshape(-1)
        left, top, right, bottom = listed.T
        sound = (left >= 0) & (left < right) & (right <= width) & (top >= 0) & (top < bottom) & (bottom <= height)
        for box in listed[marked & ~sound][:1]:
            raise InputError(
                f"the box {box.tolist()} is empty or reaches outside of the image of {height}x{width} pixels",
                "give 0 <= left < right <= width and 0 <= top < bottom <= height, or mark the box as not valid",
            )
    return Boxes(corners, (height, width), flags)


def keypoints(points: Numbers, size: Sequence[int], valid: Numbers | None = None) -> Keypoints:
    """Places (x, y) on an image of `size` (height, width).

    points: [..., n, 2] in pixels. valid: [..., n], by default all that lie on the image. Raises InputError for a
    shape that is not this.
    """
    points = _floating(points)
    height, width = size
    if points.ndim < 2 or points.shape[-1] != 2:
        raise InputError(f"keypoints of shape {points.shape} are not [n, 2]", "give (x, y) for each")
    inside = _inside((points[..., 0], points[..., 1]), (height, width))
    return Keypoints(points, (height, width), _flags(valid, points.shape[:-1]) & inside)


def move(target: Any, maps: Sequence[Map]) -> Any:
    """The target where the maps, one after the other, take the image.

    A mask is read once, at the nearest pixel, and is 0 where the image has a fill. A box becomes the box around its
    moved corners, as far as the new image shows it.
    """
    if isinstance(target, Mask):
        return _move_mask(target, maps)
    for each in maps:
        target = _move_boxes(target, each) if isinstance(target, Boxes) else _move_keypoints(target, each)
    return target


def canvas(target: Mask | Boxes | Keypoints) -> Canvas:
    """The (height, width) of the image that the target belongs to."""
    if isinstance(target, Mask):
        height, width = target.array.shape[:2]
        return height, width
    return target.size


def _move_mask(mask: Mask, maps: Sequence[Map]) -> Mask:
    flat = mask.array.ndim == 2
    planes = mask.array[..., None] if flat else mask.array
    moved = warp(planes, [each._replace(fill=0) for each in maps], "nearest") if maps else planes
    return Mask(moved[..., 0] if flat else moved)


def _move_boxes(given: Boxes, moved: Map) -> Boxes:
    height, width = moved.size
    left, top, right, bottom = jnp.moveaxis(given.corners, -1, 0)
    x, y = moved.push(jnp.stack([left, right, right, left]), jnp.stack([top, top, bottom, bottom]))
    x, y = jnp.clip(x, 0, width), jnp.clip(y, 0, height)
    left, top, right, bottom = x.min(0), y.min(0), x.max(0), y.max(0)
    corners = jnp.stack([left, top, right, bottom], axis=-1)
    return Boxes(corners, moved.size, given.valid & (left < right) & (top < bottom))


def _move_keypoints(given: Keypoints, moved: Map) -> Keypoints:
    places = moved.push(given.points[..., 0], given.points[..., 1])
    return Keypoints(jnp.stack(places, axis=-1), moved.size, given.valid & _inside(places, moved.size))


def _inside(places: Places, size: Canvas) -> jax.Array:
    (x, y), (height, width) = places, size
    return (x >= 0) & (x <= width) & (y >= 0) & (y <= height)


def _flags(valid: Numbers | None, shape: tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape, bool) if valid is None else jnp.broadcast_to(jnp.asarray(valid, bool), shape)


def _floating(numbers: Numbers) -> jax.Array:
    array = jnp.asarray(numbers)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
