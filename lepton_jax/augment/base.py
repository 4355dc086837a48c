"""What an augmentation is: a draw that knows only the image's shape, and an action that knows no randomness.

Between the two lie the parameters, a plain tree. Keeping them apart lets a draw be replayed, looked at, or
applied to everything that has to move with the image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from lepton_jax.types import Key

Image = Shaped[Array, "height width channels"]  # uint8 in 0..255, or floating point in 0..1
Output = Shaped[Array, "rows columns planes"]  # an image again, of the same dtype; the shape may have changed
Shape = tuple[int, ...]  # (height, width, channels)
Parameters = Any  # a tree of arrays; what a transform drew for one image


@dataclass(frozen=True)  # not a NamedTuple: jax.jit cannot take a tuple for a function
class Transform:
    """A random function of one image.

    sample: (key, shape) -> parameters. `shape` is the image's (height, width, channels).
    apply: (parameters, image) -> image. Deterministic; keeps the dtype, may change the shape.
    """

    sample: Callable[[Key, Shape], Parameters]
    apply: Callable[[Parameters, Image], Output]

    def __call__(self, key: Key, image: Image) -> Output:
        """Draw and apply."""
        return self.apply(self.sample(key, image.shape), image)


def deterministic(function: Callable[[Image], Output]) -> Transform:
    """A function of the image alone, as a Transform; its parameters are ()."""
    return Transform(lambda key, shape: (), lambda parameters, image: function(image))


identity = deterministic(lambda image: image)


def compose(*transforms: Transform) -> Transform:
    """One after the other, in reading order.

    Each part draws from the key folded with its position, so that a change in one part leaves the draws of the
    others as they are. The parameters are the tuple of the parts' parameters.
    """

    def sample(key: Key, shape: Shape) -> tuple[Parameters, ...]:
        drawn = []
        for position, part in enumerate(transforms):
            parameters = part.sample(jax.random.fold_in(key, position), shape)
            drawn.append(parameters)
            shape = output_shape(part, parameters, shape)
        return tuple(drawn)

    def apply(parameters: tuple[Parameters, ...], image: Image) -> Output:
        output = image
        for part, drawn in zip(transforms, parameters, strict=True):
            output = part.apply(drawn, output)
        return output

    return Transform(sample, apply)


def output_shape(transform: Transform, parameters: Parameters, shape: Shape) -> Shape:
    """The shape of the image that `apply` returns for an image of `shape`; nothing is computed."""
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return jax.eval_shape(transform.apply, parameters, image).shape


def batched(transform: Transform) -> Callable[[Shaped[Array, " batch"], Array], Array]:
    """The transform over a batch: (keys [batch], images [batch, height, width, channels]) -> images."""
    return jax.vmap(transform)
