"""What an augmentation is: a draw that knows only the image's shape, and an action that knows no randomness.

Between the two lie the parameters, a plain tree. Keeping them apart lets a draw be replayed, looked at, or
applied to everything that has to move with the image.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from lepton_jax.augment.devices import by_device
from lepton_jax.augment.image import Canvas, Image, Output, Shape
from lepton_jax.augment.targets import Boxes, Keypoints, Mask, Target, canvas, move
from lepton_jax.augment.warp import Map, warp
from lepton_jax.types import Key

Parameters = Any  # a tree of arrays; what a transform drew for one image
Images = Shaped[Array, "batch height width channels"]
Batched = Callable[[Parameters, Images], Array]  # (parameters, images) -> images, over the leading axis of both
Maps = Callable[[Parameters, Canvas], Sequence[Map]]  # what the parameters do to the places of an image of that size
EXACT = "exact"  # beside the interpolations: whole pixels are moved and none is changed


@dataclass(frozen=True)  # not a NamedTuple: jax.jit cannot take a tuple for a function
class Transform:
    """A random function of one image, and of what belongs to the image.

    sample: (key, shape) -> parameters. `shape` is the image's (height, width, channels).
    act: (parameters, image) -> image. Deterministic; keeps the dtype, may change the shape.
    maps: where the action moves things; None, as for all colors, leaves them where they are.
    interpolation: how it reads the image, where a reading by `maps` is all that it does: one of
      `warp.INTERPOLATIONS`, or EXACT. Neighbours in `compose` then may become one reading.
    batch: the action on a batch, (parameters [batch], images [batch, ...]) -> images, where there is a faster way than
      `act` under vmap; the same bits as that.
    """

    sample: Callable[[Key, Shape], Parameters]
    act: Callable[[Parameters, Image], Output]
    maps: Maps | None = None
    interpolation: str | None = None
    batch: Batched | None = None

    @overload
    def apply(self, parameters: Parameters, target: Target) -> Target: ...
    @overload
    def apply(self, parameters: Parameters, target: Array) -> Array: ...
    def apply(self, parameters: Parameters, target: Any) -> Any:
        """The drawn action on an image, or on a Mask, Boxes or Keypoints that belong to one."""
        if not isinstance(target, Mask | Boxes | Keypoints):
            return self.act(parameters, target)
        return target if self.maps is None else move(target, self.maps(parameters, canvas(target)))

    def __call__(self, key: Key, image: Image) -> Output:
        """Draw and apply."""
        return self.act(self.sample(key, image.shape), image)


def deterministic(
    function: Callable[[Image], Output],
    maps: Callable[[Canvas], Sequence[Map]] | None = None,
    interpolation: str | None = None,
) -> Transform:
    """A function of the image alone, as a Transform; its parameters are (). A function that moves things has `maps`."""
    moves = None if maps is None else lambda parameters, size: maps(size)
    return Transform(lambda key, shape: (), lambda parameters, image: function(image), moves, interpolation)


def warping(
    sample: Callable[[Key, Shape], Parameters], place: Callable[[Parameters, Canvas], Map], interpolation: str
) -> Transform:
    """A transform that is one reading of the image by a map, which depends on the parameters and the image's size."""

    def maps(parameters: Parameters, size: Canvas) -> Sequence[Map]:
        return [place(parameters, size)]

    def act(parameters: Parameters, image: Image) -> Output:
        return warp(image, maps(parameters, (image.shape[0], image.shape[1])), interpolation)

    return Transform(sample, act, maps, interpolation)


identity = deterministic(lambda image: image, lambda size: (), EXACT)


def compose(*transforms: Transform, merge: bool = True) -> Transform:
    """One after the other, in reading order.

    Each part draws from the key folded with its position, so that a change in one part leaves the draws of the
    others as they are. The parameters are the tuple of the parts' parameters.

    Neighbours that move pixels with one interpolation are merged: the image is read once, through all of their maps,
    which is faster and blurs less. Flips and crops join such a run, and stay slices where nothing is interpolated.
    What any of the merged parts takes from outside of its input is that part's fill, as without merging.
    merge=False acts on the image part by part.
    """
    runs = _runs(transforms) if merge else [[part] for part in transforms]

    def sample(key: Key, shape: Shape) -> tuple[Parameters, ...]:
        drawn = []
        for position, part in enumerate(transforms):
            parameters = part.sample(jax.random.fold_in(key, position), shape)
            drawn.append(parameters)
            shape = output_shape(part, parameters, shape)
        return tuple(drawn)

    def act(parameters: tuple[Parameters, ...], image: Image) -> Output:
        rest = iter(parameters)
        for run in runs:
            image = _act(run, [next(rest) for _ in run], image)
        return image

    def maps(parameters: tuple[Parameters, ...], size: Canvas) -> Sequence[Map]:
        return _maps(transforms, parameters, size)

    def batch(parameters: tuple[Parameters, ...], images: Images) -> Array:
        rest = iter(parameters)
        for run in runs:
            images = _act_on_batch(run, [next(rest) for _ in run], images)
        return images

    moves = any(part.maps is not None for part in transforms)
    return Transform(
        sample,
        act,
        maps if moves else None,
        _interpolation(transforms) if merge else None,
        batch if any(part.batch is not None for part in transforms) else None,
    )


def _runs(transforms: Iterable[Transform]) -> list[list[Transform]]:
    """The transforms in runs of neighbours that one reading can serve."""
    runs: list[list[Transform]] = []
    for part in transforms:
        if runs and _interpolation([*runs[-1], part]) is not None:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _interpolation(run: Sequence[Transform]) -> str | None:
    """The interpolation that the transforms have in common; None where one reading cannot serve them all."""
    given = {part.interpolation for part in run} - {EXACT}
    if not given:
        return EXACT
    return given.pop() if len(given) == 1 else None


def _act(run: Sequence[Transform], parameters: Sequence[Parameters], image: Image) -> Output:
    """The transforms of one run on an image."""
    interpolation = _interpolation(run)
    if len(run) > 1 and interpolation is not None and interpolation != EXACT:
        height, width, _ = image.shape
        return warp(image, _maps(run, parameters, (height, width)), interpolation)
    for part, drawn in zip(run, parameters, strict=True):
        image = part.act(drawn, image)
    return image


def _act_on_batch(run: Sequence[Transform], parameters: Sequence[Parameters], images: Images) -> Array:
    """The transforms of one run on a batch; one with a way of its own is alone in its run."""
    if len(run) == 1 and run[0].batch is not None:
        return run[0].batch(parameters[0], images)
    return jax.vmap(lambda drawn, image: _act(run, drawn, image))(list(parameters), images)


def _maps(transforms: Sequence[Transform], parameters: Sequence[Parameters], size: Canvas) -> list[Map]:
    """The maps of all the transforms on an image of `size`."""
    chain: list[Map] = []
    for part, drawn in zip(transforms, parameters, strict=True):
        if part.maps is not None:
            chain += part.maps(drawn, chain[-1].size if chain else size)
    return chain


def output_shape(transform: Transform, parameters: Parameters, shape: Shape) -> Shape:
    """The shape of the image that `apply` returns for an image of `shape`; nothing is computed."""
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    # the parameters as shapes too: inside `by_device` drawn ones are typed by their device, and the image is not
    drawn = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jax.typeof(leaf).shape, jax.typeof(leaf).dtype), parameters)
    return jax.eval_shape(transform.act, drawn, image).shape


def batched(transform: Callable[[Key, Any], Any]) -> Callable[[Shaped[Array, " batch"], Array], Array]:
    """A transform, or any function of a key and an example, over a batch: (keys [batch], batch) -> batch.

    By the transform's own way with batches where it has one, else under vmap.
    """
    if not isinstance(transform, Transform) or transform.batch is None:
        return jax.vmap(transform)
    act, sample = transform.batch, transform.sample

    def over_batch(keys: Shaped[Array, " batch"], images: Any) -> Array:
        drawn = by_device(jax.vmap(lambda key: sample(key, images.shape[1:])))(keys)  # augmix draws until all accept
        return act(drawn, jnp.asarray(images))  # numpy's too, as vmap takes them

    return over_batch
