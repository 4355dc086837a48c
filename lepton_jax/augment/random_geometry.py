"""Transforms that draw how to move an image, and move it, with what belongs to it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from lepton_jax.augment import geometry, matrices
from lepton_jax.augment.base import EXACT, Shape, Transform, warping
from lepton_jax.augment.geometry import Center, Mode, Padding, Size
from lepton_jax.augment.image import Canvas, Fill, Image, product
from lepton_jax.augment.warp import Interpolation, Map, check_interpolation, projection
from lepton_jax.errors import InputError
from lepton_jax.types import Key

Range = float | Sequence[float]  # x for [-x, x], or (low, high)


class Corner(NamedTuple):
    """Where a crop begins, in pixels of the padded image."""

    top: Int[Array, ""]
    left: Int[Array, ""]


class Affine(NamedTuple):
    """What `random_affine` drew, in the units of `functional.affine`."""

    angle: Float[Array, ""]
    translate: Float[Array, "2"]
    scale: Float[Array, ""]
    shear: Float[Array, "2"]


class Perspective(NamedTuple):
    """Whether `random_perspective` acts, and where the image's corners go to."""

    due: Bool[Array, ""]
    ends: Float[Array, "4 2"]


def random_crop(size: Size, padding: Padding = 0, mode: Mode = "constant", fill: Fill = 0) -> Transform:
    """A window of `size` at a uniformly drawn place of the padded image. Parameters: a Corner.

    size: a square's side or (height, width). padding, mode, fill: as for `functional.pad`. Raises InputError
    here for bad arguments, and at the first image if the crop is larger than the padded image.
    """
    height, width = geometry.height_and_width(size)
    left, top, right, bottom = geometry.sides(padding)
    geometry.check_mode(mode)

    def sample(key: Key, shape: Shape) -> Corner:
        padded = (shape[0] + top + bottom, shape[1] + left + right)
        geometry.check_window(padded, (height, width))
        places = jnp.array([padded[0] - height + 1, padded[1] - width + 1], jnp.int32)
        corner = jax.random.randint(key, (2,), 0, places, jnp.int32)
        return Corner(corner[0], corner[1])

    def act(corner: Corner, image: Image) -> Array:
        padded = geometry.pad(image, (left, top, right, bottom), mode, fill)
        return geometry.crop(padded, corner.top, corner.left, height, width)

    def maps(corner: Corner, canvas: Canvas) -> Sequence[Map]:
        return [projection(matrices.shift(corner.left - left, corner.top - top), (height, width), mode, fill)]

    return Transform(sample, act, maps, EXACT)


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Left and right exchanged with probability `p`. Parameters: whether. Raises InputError."""
    return _random_flip(geometry.horizontal_flip, lambda size, flipped: matrices.mirror(size, flipped, False), p)


def random_vertical_flip(p: float = 0.5) -> Transform:
    """Top and bottom exchanged with probability `p`. Parameters: whether. Raises InputError."""
    return _random_flip(geometry.vertical_flip, lambda size, flipped: matrices.mirror(size, False, flipped), p)


def _random_flip(
    flip: Callable[[Image], Image], mirror: Callable[[Canvas, ArrayLike], matrices.Affine], p: float
) -> Transform:
    check_probability("a flip", p)

    def sample(key: Key, shape: Shape) -> Bool[Array, ""]:
        return jax.random.uniform(key, (), jnp.float32) < p

    def act(flipped: Bool[Array, ""], image: Image) -> Image:
        return jnp.where(flipped, flip(image), image)

    def maps(flipped: Bool[Array, ""], size: Canvas) -> Sequence[Map]:
        return [projection(mirror(size, flipped), size, "edge")]  # nothing comes from beyond the edges

    return Transform(sample, act, maps, EXACT)


def random_rotation(
    degrees: Range, interpolation: Interpolation = "nearest", fill: Fill = 0, center: Center | None = None
) -> Transform:
    """A turn about the center by an angle drawn uniformly. Parameters: the angle in degrees, counter-clockwise.

    degrees: d for [-d, d], or (low, high). interpolation, fill, center: as for `functional.rotate`. Raises InputError.
    """
    ends = _angles("degrees", degrees)
    check_interpolation(interpolation)

    def sample(key: Key, shape: Shape) -> Float[Array, ""]:
        return uniform(key, ends)

    def place(angle: Float[Array, ""], size: Canvas) -> Map:
        matrix = matrices.rotation(angle, geometry.middle(size) if center is None else center)
        return geometry.affinity(matrix, size, interpolation, fill)

    return warping(sample, place, interpolation)


def random_affine(
    degrees: Range,
    translate: Sequence[float] = (0, 0),
    scale: Sequence[float] = (1, 1),
    shear: Range = 0,
    interpolation: Interpolation = "nearest",
    fill: Fill = 0,
    center: Center | None = None,
) -> Transform:
    """A turn, shift, scaling and shear, all drawn uniformly, as torchvision's RandomAffine. Parameters: an Affine.

    degrees: d for angles in [-d, d], or (low, high). translate: the largest shifts as parts of (width, height); the
    drawn ones are whole pixels. scale: (low, high) factors. shear: degrees s for [-s, s] along x, (low, high) along
    x, or (low, high, low, high) along x and y. interpolation, fill, center: as for `functional.affine`.
    Raises InputError.
    """
    angles = _angles("degrees", degrees)
    shears = _shears(shear)
    check_interpolation(interpolation)
    if len(translate) != 2 or not all(0 <= part <= 1 for part in translate):
        raise InputError(
            f"the translation {translate} is not two numbers in [0, 1]", "give the largest shifts as parts of the sides"
        )
    low, high = scale
    if not 0 < low <= high < math.inf:
        raise InputError(f"the scale {scale} is not a range above 0", "give (low, high) factors, such as (0.9, 1.1)")

    def sample(key: Key, shape: Shape) -> Affine:
        turn, right, down, size, along, aside = jax.random.split(key, 6)
        most = [part * side for part, side in zip(translate, (shape[1], shape[0]), strict=True)]
        shift = [jnp.round(uniform(k, (-m, m))) for k, m in zip((right, down), most, strict=True)]
        slants = [uniform(k, ends) for k, ends in zip((along, aside), shears, strict=True)]
        return Affine(uniform(turn, angles), jnp.stack(shift), uniform(size, (low, high)), jnp.stack(slants))

    def place(drawn: Affine, size: Canvas) -> Map:
        middle = geometry.middle(size) if center is None else center
        matrix = matrices.affine(drawn.angle, drawn.translate, drawn.scale, drawn.shear, middle)
        return geometry.affinity(matrix, size, interpolation, fill)

    return warping(sample, place, interpolation)


def random_perspective(
    distortion: float = 0.5, p: float = 0.5, interpolation: Interpolation = "bilinear", fill: Fill = 0
) -> Transform:
    """With probability `p` the corners drawn inwards, as torchvision's RandomPerspective. Parameters: a Perspective.

    distortion: how far, at most, as a part of half of the image, in [0, 1]. interpolation, fill: as for
    `functional.perspective`. Raises InputError.
    """
    check_probability("a perspective", p)
    check_interpolation(interpolation)
    if not 0 <= distortion <= 1:
        raise InputError(f"the distortion {distortion} is outside [0, 1]", "give 0 for none; 0.5 is usual")

    def sample(key: Key, shape: Shape) -> Perspective:
        chance, moves = jax.random.split(key)
        most = jnp.array([int(distortion * (side // 2)) + 1 for side in (shape[1], shape[0])], jnp.int32)
        inward = jax.random.randint(moves, (4, 2), 0, most[None, :], jnp.int32)
        sign = jnp.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], jnp.int32)
        ends = _corners(shape) + (sign * inward).astype(jnp.float32)
        return Perspective(jax.random.uniform(chance, (), jnp.float32) < p, ends)

    def place(drawn: Perspective, size: Canvas) -> Map:
        moved = matrices.perspective(_corners(size), drawn.ends)
        return projection(jnp.where(drawn.due, moved, jnp.eye(3, dtype=moved.dtype)), size, fill=fill)

    return warping(sample, place, interpolation)


def _corners(shape: Sequence[int]) -> matrices.Corners:
    """torchvision's corners of an image: of its last pixels, one short of its sides."""
    right, bottom = shape[1] - 1, shape[0] - 1
    return jnp.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], jnp.float32)


def uniform(key: Key, ends: Sequence[float]) -> Float[Array, ""]:
    """A number drawn between two ends."""
    low, high = ends
    return low + product(high - low, jax.random.uniform(key, (), jnp.float32))


def check_probability(name: str, p: float) -> None:
    """Raise InputError for a number that is no probability."""
    if not 0 <= p <= 1:
        raise InputError(f"{name} with probability {p} is outside [0, 1]", "give p from 0 (never) to 1 (always)")


def _angles(name: str, given: Range) -> tuple[float, float]:
    """The ends of a range of angles. Raises InputError."""
    low, high = (-given, given) if isinstance(given, int | float) else given
    if not -math.inf < low <= high < math.inf:
        raise InputError(f"the {name} {given} leave no angle to draw", "give d >= 0 for [-d, d], or (low, high)")
    return low, high


def _shears(given: Range) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of shear along x and along y, within what does not flatten the image. Raises InputError."""
    numbers = () if isinstance(given, int | float) else tuple(given)
    pair = numbers[2:] if len(numbers) == 4 else (0, 0)
    ranges = _angles("shear", numbers[:2] if len(numbers) == 4 else given), _angles("shear", pair)
    if not all(-90 < end < 90 for ends in ranges for end in ends):
        raise InputError(f"the shear {given} reaches 90 degrees", "stay between -90 and 90 degrees")
    return ranges
