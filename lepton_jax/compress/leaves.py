"""Packed leaves: what is shipped in the place of a weight. Each knows the array that it stands for.

Values of a `Quantized` stand for (value - zero) * scale, with `scale` and `zero` blocks of the array's own rank: a
dimension of theirs is 1, or that many equal groups. In the other usual convention, round(value * s) + z, s is
1 / scale.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


@partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale", "zero", "inputs"], meta_fields=["shape", "bits"]
)
@dataclass(frozen=True)
class Quantized:
    """An array of `shape` in few bits.

    values: int8 or float8 of that shape; uint8 [ceil(size / 2)] for 4 bits, two signed values in a byte, the first in
    the low half. scale, zero: see above; no zero for symmetric ones. inputs: the scale of the layer's inputs in int8,
    where activations are quantized too.
    """

    values: Any
    scale: Any
    zero: Any
    inputs: Any
    shape: tuple[int, ...]
    bits: int

    def integers(self) -> Array:
        """The values at their places, int8 or float8 [shape]."""
        if self.bits != 4:
            return jnp.asarray(self.values)
        halves = jnp.stack([self.values & 15, self.values >> 4], axis=1).reshape(-1)
        signed = jnp.where(halves > 7, halves.astype(jnp.int8) - 16, halves.astype(jnp.int8))
        return signed[: int(np.prod(self.shape))].reshape(self.shape)

    def dense(self) -> Array:
        """The array that this stands for, float32 [shape]."""
        return dequantized(self.integers(), self.scale, self.zero)


def nibbles(integers: Any) -> Array:
    """Whole numbers in -8..7 of any shape as bytes of two, uint8 [ceil(size / 2)]."""
    flat = jnp.asarray(integers, jnp.int8).reshape(-1).view(jnp.uint8) & 15
    flat = jnp.pad(flat, (0, flat.size % 2))
    return flat[0::2] | (flat[1::2] << 4)


def dequantized(integers: Any, scale: Any, zero: Any = None) -> Array:
    """(integers - zero) * scale in float32, groups of `scale` and `zero` spread over their part of each dimension."""
    wide = jnp.asarray(integers).astype(jnp.float32)
    if zero is not None:
        wide = wide - spread(zero, wide.shape)
    return wide * spread(scale, wide.shape)


def spread(blocks: Any, shape: tuple[int, ...]) -> Array:
    """Blocks as an array that broadcasts to `shape`: each dimension is 1 or repeated to its full length."""
    blocks = jnp.asarray(blocks, jnp.float32)
    for axis, (groups, length) in enumerate(zip(blocks.shape, shape, strict=True)):
        if groups not in (1, length):
            blocks = jnp.repeat(blocks, length // groups, axis)
    return blocks


@partial(jax.tree_util.register_dataclass, data_fields=["mask", "inner"], meta_fields=["shape"])
@dataclass(frozen=True)
class Sparse:
    """An array of `shape` of which only some values are kept.

    mask: uint8 [ceil(size / 8)], a bit for each place, the first in the highest bit (`numpy.packbits`). inner: the
    values kept, [kept] in order of place, or a `Quantized` of these values whose scale is still the whole array's.
    """

    mask: Any
    inner: Any
    shape: tuple[int, ...]

    def places(self) -> Array:
        """Whether a value is kept, bool [shape]."""
        size = int(np.prod(self.shape))
        return jnp.unpackbits(jnp.asarray(self.mask), count=size).astype(bool).reshape(self.shape)

    def dense(self) -> Array:
        """The array that this stands for, zeros and all."""
        if isinstance(self.inner, Quantized):
            integers = scattered(self.inner.integers(), self.places())
            return jnp.where(self.places(), dequantized(integers, self.inner.scale, self.inner.zero), 0)
        return scattered(self.inner, self.places())


def scattered(kept: Any, places: Array) -> Array:
    """The kept values at their places, zeros elsewhere."""
    kept, order = jnp.asarray(kept), jnp.cumsum(places.reshape(-1)) - 1
    if kept.size == 0:
        return jnp.zeros(places.shape, kept.dtype)
    taken = kept[jnp.clip(order, 0, kept.size - 1)].reshape(places.shape)
    return jnp.where(places, taken, jnp.zeros((), kept.dtype))


def sparse(leaf: Any, mask: Any) -> "Sparse":
    """An array, or a `Quantized`, of which only the places of `mask` are kept."""
    keep = np.asarray(mask, bool)
    if isinstance(leaf, Quantized):
        kept = np.asarray(leaf.integers())[keep]
        values = nibbles(kept) if leaf.bits == 4 else kept
        inner: Any = replace(leaf, values=values, shape=kept.shape)
    else:
        inner = np.asarray(leaf)[keep]
    return Sparse(np.packbits(keep), inner, keep.shape)


@partial(jax.tree_util.register_dataclass, data_fields=["factors"], meta_fields=["shape"])
@dataclass(frozen=True)
class Factored:
    """A weight of `shape` as a product of smaller ones.

    factors: arrays or packed leaves. A dense layer's weight is down [in, r] @ up [r, out]. A convolution's is core
    [height, width, r or in, s] with `down` [in, r] before it, where there is one, and `up` [s, out] after it.
    """

    factors: dict[str, Any]
    shape: tuple[int, ...]

    def dense(self) -> Array:
        """The product, [shape]."""
        return product({name: dense(factor) for name, factor in self.factors.items()})


def product(factors: PyTree) -> Array:
    """The weight that factors stand for; see `Factored`."""
    if "core" not in factors:
        return jnp.asarray(factors["down"]) @ factors["up"]
    core = jnp.asarray(factors["core"])
    if "down" in factors:
        core = jnp.einsum("ir,hwrs->hwis", factors["down"], core)
    return jnp.einsum("hwis,so->hwio", core, factors["up"])


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["value", "shape", "dtype"])
@dataclass(frozen=True)
class Constant:
    """An array of `shape` of which every number is `value`. dtype: its name, "float32".

    The value is known to the compiler, so that a norm which is the identity costs nothing.
    """

    value: Any
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        """Files of before hold the value as an array."""
        object.__setattr__(self, "value", np.asarray(self.value).item())

    def dense(self) -> Array:
        """The array that this stands for."""
        return jnp.full(self.shape, self.value, self.dtype)


PACKED = (Quantized, Sparse, Factored, Constant)


def is_packed(leaf: Any) -> bool:
    """Whether this is a packed leaf."""
    return isinstance(leaf, PACKED)


def dense(leaf: Any) -> Any:
    """The array that a leaf stands for; an array stands for itself."""
    return leaf.dense() if is_packed(leaf) else leaf


def unpacked(params: PyTree) -> PyTree:
    """A tree with packed leaves as a tree of arrays."""
    return jax.tree.map(dense, params, is_leaf=is_packed)
