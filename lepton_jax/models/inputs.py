"""Model -> Model: raw images in."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lepton_jax import tree
from lepton_jax.errors import InputError
from lepton_jax.types import Key, Keys, Model, Params, Variables

Channels = float | Sequence[float] | np.ndarray  # one number, or one per channel


def normalized(model: Model, mean: Channels, std: Channels) -> Model:
    """The same model on raw images: uint8 in 0..255 or floating in [0, 1], channels last.

    They become (image - mean) / std in float32 or wider and then take the floating dtype of the parameters, so
    that computation follows the parameters. mean, std: of images in [0, 1], one number or one per channel.
    Raises InputError for a std that is not positive, another number of channels or another dtype.
    """
    # numpy, so that making a model does not start JAX
    center, spread = np.atleast_1d(np.asarray(mean)), np.atleast_1d(np.asarray(std))
    if not np.all(spread > 0):
        raise InputError(f"the standard deviation {std} is not positive", "measure it over images in [0, 1]")

    def view(images: Any, dtype: Any) -> Array:
        images = unit(jnp.asarray(images), jnp.promote_types(dtype, jnp.float32))
        for values in (center, spread):
            if values.size not in (1, images.shape[-1]):
                problem = f"{values.size} means or standard deviations for {images.shape[-1]} channels"
                raise InputError(problem, "give one number, or one per channel")
        return ((images - _like(center, images)) / _like(spread, images)).astype(dtype)

    def init(key: Key, inputs: Any) -> Variables:
        return model.init(key, jnp.zeros(inputs.shape, jnp.float32))

    def apply(variables: Variables, inputs: Any, train: bool, keys: Keys | None) -> tuple[Any, dict[str, Any]]:
        return model.apply(variables, view(inputs, compute_dtype(variables["params"])), train, keys)

    return Model(init, apply, model.rules)


def _like(values: np.ndarray, images: Array) -> Array:
    """One value per channel, in the dtype and rank of the images."""
    return jnp.asarray(values, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))


def unit(images: Array, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Images in [0, 1]: uint8 divided by 255 in `dtype`, floating ones as they are and at least that wide.

    Raises InputError for another dtype.
    """
    if images.dtype == jnp.uint8:
        return images.astype(dtype) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images are {images.dtype}", "give uint8 in 0..255 or floating numbers in [0, 1]")
    return images.astype(jnp.promote_types(images.dtype, dtype))


def compute_dtype(params: Params) -> Any:
    """The floating dtype of the parameters, float32 where there is none."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params) if tree.is_floating(leaf)]
    return jnp.result_type(*dtypes) if dtypes else jnp.dtype(jnp.float32)
