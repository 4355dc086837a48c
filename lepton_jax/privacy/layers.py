"""Layers whose gradient is a product of what goes in and what comes back: its norm, without the gradient itself.

Of one example such a layer has inputs a [positions, in] and cotangents d [positions, out], and its kernel's gradient is
a^T d. That has the squared norm sum((a a^T) * (d d^T)) (Goodfellow 2015, https://arxiv.org/abs/1510.01799; Li et al.
2022, https://arxiv.org/abs/2110.05679), which is cheaper where positions are few; else the gradient is made, layer by
layer (Bu et al. 2022, https://arxiv.org/abs/2205.10683).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lepton_jax.privacy.engine import scaled_sum, squared

Inputs = Float[Array, "examples positions in"]
Cotangents = Float[Array, "examples positions out"]


class Gradient(NamedTuple):
    """A leaf's gradients over examples: their squared norms, and how they are summed by factors."""

    squares: Float[Array, " examples"]
    summed: Callable[[Float[Array, " examples"]], Array]


Taken = Callable[[nn.Module, Any, Any, dict[str, Array]], dict[str, Gradient]]
"""(layer, inputs [examples, 1, ...], cotangents, its parameters) -> the gradient of each parameter."""


def product(a: Inputs, d: Cotangents, shape: tuple[int, ...]) -> Gradient:
    """Of a kernel of `shape`, which is [in, out] when flattened."""
    positions, numbers = a.shape[1], a.shape[2] * d.shape[2]
    if positions == 1:
        squares = jnp.sum(jnp.square(a), (1, 2)) * jnp.sum(jnp.square(d), (1, 2))
    elif 2 * positions**2 < numbers:
        squares = jnp.sum(jnp.einsum("nti,nsi->nts", a, a) * jnp.einsum("nto,nso->nts", d, d), (1, 2))
    else:
        return made(jnp.einsum("nti,nto->nio", a, d), shape)

    def summed(factor: Float[Array, " examples"]) -> Array:
        return jnp.einsum("nti,nto->io", kept(a, factor), scaled(d, factor)).reshape(shape)

    return Gradient(squares, summed)


def made(gradients: Float[Array, "examples ..."], shape: tuple[int, ...]) -> Gradient:
    """Of gradients that are there."""
    return Gradient(squared(gradients), lambda factor: scaled_sum(gradients, factor).reshape(shape))


def kept(x: Float[Array, "examples ..."], factor: Float[Array, " examples"]) -> Array:
    """Nothing of the examples that do not count."""
    return jnp.where(factor.reshape(-1, *[1] * (x.ndim - 1)) == 0, 0, x)


def scaled(x: Float[Array, "examples ..."], factor: Float[Array, " examples"]) -> Array:
    """Each example times its factor."""
    wide = factor.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(wide == 0, 0, wide * x)


def dense(layer: Any, a: Array, d: Array, params: dict[str, Array]) -> dict[str, Gradient]:
    """Of `nn.Dense` and `nn.DenseGeneral`, whose last axes go in and whose last axes come out."""
    kernel, examples = params["kernel"], len(a)
    features = layer.features if isinstance(layer.features, int) else math.prod(layer.features)
    a = a.astype(d.dtype).reshape(examples, -1, kernel.size // features)  # the layer has widened it, too
    return _with_bias(params, d, {"kernel": product(a, d.reshape(examples, -1, features), kernel.shape)})


def convolution(layer: Any, a: Array, d: Array, params: dict[str, Array]) -> dict[str, Gradient]:
    """Of `nn.Conv`: a dense layer on the patches under its window."""
    kernel, examples, features = params["kernel"], len(a), d.shape[-1]
    windows = list(_windows(layer, a[:, 0].astype(d.dtype)))
    d = d.reshape(examples, -1, features)
    if 2 * d.shape[1] ** 2 < kernel.size:
        gradient = product(jnp.concatenate(windows, -1), d, kernel.shape)
    else:  # place by place, without the patches of all
        gradient = made(jnp.stack([jnp.einsum("nti,nto->nio", a, d) for a in windows], 1), kernel.shape)
    return _with_bias(params, d, {"kernel": gradient})


def _windows(layer: Any, x: Float[Array, "examples *space features"]) -> Any:
    """For each place of the kernel the inputs that it meets, [examples, positions, features]."""
    space = len(layer.kernel_size)
    strides, dilation = (_each(value, space) for value in (layer.strides, layer.kernel_dilation))
    reach = [(size - 1) * wide + 1 for size, wide in zip(layer.kernel_size, dilation, strict=True)]
    padding = layer.padding
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    elif isinstance(padding, int):
        padding = [(padding, padding)] * space
    padding = [(pad, pad) if isinstance(pad, int) else tuple(pad) for pad in padding]
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    for place in itertools.product(*map(range, layer.kernel_size)):
        cuts = [
            slice(at * wide, length - far + at * wide + 1, stride)
            for at, wide, length, far, stride in zip(place, dilation, x.shape[1:-1], reach, strides, strict=True)
        ]
        yield x[(slice(None), *cuts)].reshape(len(x), -1, x.shape[-1])


def embedding(layer: Any, ids: Int[Array, "examples ..."], d: Array, params: dict[str, Array]) -> dict[str, Gradient]:
    """Of `nn.Embed`: tokens that occur twice add up before the norm."""
    table, examples = params["embedding"], len(ids)
    ids, d = ids.reshape(examples, -1), d.reshape(examples, -1, d.shape[-1])
    alike = ids[:, :, None] == ids[:, None, :]
    squares = jnp.sum(jnp.where(alike, jnp.einsum("nto,nso->nts", d, d), 0), (1, 2))

    def summed(factor: Float[Array, " examples"]) -> Array:
        return jnp.zeros(table.shape, d.dtype).at[ids].add(scaled(d, factor))

    return {"embedding": Gradient(squares, summed)}


def _with_bias(params: dict[str, Array], d: Array, found: dict[str, Gradient]) -> dict[str, Gradient]:
    if "bias" in params:
        bias = params["bias"]
        found["bias"] = made(jnp.sum(d.reshape(len(d), -1, bias.size), 1), bias.shape)
    return found


def _each(value: Any, count: int) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * count
    return tuple(value)


def taken(layer: nn.Module, x: Any) -> Taken | None:
    """How the gradients of this layer are taken for such an input, None where it is none that is known."""
    if getattr(layer, "dtype", None) is not None:
        return None
    if type(layer) is nn.Embed:
        return embedding if layer.num_embeddings > 1 else None  # of one, Flax does not look at the token
    if type(layer) is nn.Dense and layer.dot_general is None and layer.dot_general_cls is None:
        return dense
    if type(layer) is nn.DenseGeneral:
        axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
        last = tuple(range(x.ndim - len(axes), x.ndim))
        plain = not layer.batch_dims and layer.dot_general is None and layer.dot_general_cls is None
        return dense if plain and tuple(axis % x.ndim for axis in axes) == last else None
    if type(layer) is nn.Conv:
        space = len(layer.kernel_size) if not isinstance(layer.kernel_size, int) else 0
        usual = layer.feature_group_count == 1 and layer.mask is None and set(_each(layer.input_dilation, space)) == {1}
        known = not isinstance(layer.padding, str) or layer.padding in ("SAME", "VALID")
        bare = layer.conv_general_dilated is None and layer.conv_general_dilated_cls is None
        return convolution if usual and known and bare and space and x.ndim == space + 2 else None
    return None
