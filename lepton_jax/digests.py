"""Digests of parameter trees: a few bytes a leaf that no changed bit leaves as they were, the same on every mesh.

Each element's bits and place are mixed by a function that loses nothing, and the results are added modulo 2^32. A sum
does not care for order, so devices add what they hold; one changed element always changes it. The mixing is that of
MurmurHash3 (Appleby 2011, https://github.com/aappleby/smhasher/wiki/MurmurHash3). It guards against accidents, not
against people.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from lepton_jax import tree as trees

AHEAD = 8  # leaves whose sums may be under way
SEEDS = (0x9E3779B9, 0x85EBCA6B)  # two sums: that both stay as they were by chance is once in 2^64


def digests(tree: PyTree) -> dict[str, str]:
    """{path: its dtype, shape and digest, as `float32[3,3,1,16] 0c64a9d2b0f13e77`}, of every leaf."""
    names, leaves = trees.paths(tree), [data(leaf) for leaf in jax.tree.leaves(tree)]
    # several are launched before the first is fetched, and not all: hundreds of sums over simulated devices at once
    # take each other's threads, and never end
    groups = (leaves[start : start + AHEAD] for start in range(0, len(leaves), AHEAD))
    summed = [sums for group in groups for sums in jax.device_get([digest(leaf) for leaf in group])]
    return {name: said(leaf, sums) for name, leaf, sums in zip(names, leaves, summed, strict=True)}


def described(tree: PyTree) -> dict[str, str]:
    """{path: `float32[3,3,1,16]`} of every leaf, arrays or shapes."""
    return {name: kind(data(leaf)) for name, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True)}


def kind(leaf: Any) -> str:
    """The dtype and shape of a leaf: `float32[3,3,1,16]`."""
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def said(leaf: Any, sums: np.ndarray) -> str:
    """A leaf's dtype, shape and digest."""
    return f"{kind(leaf)} {sums[0]:08x}{sums[1]:08x}"


def data(leaf: Any) -> Any:
    """The numbers of a leaf: of random keys what lies under them."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


@jax.jit
def digest(leaf: Array) -> UInt32[Array, "2"]:
    """The two sums of an array of any dtype and shape."""
    words = _words(leaf)
    places = sum(
        (jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32))
        for axis, stride in enumerate(_strides(words.shape))
    ) + jnp.zeros(words.shape, jnp.uint32)
    return jnp.stack([jnp.sum(_mixed(words ^ _mixed(places + np.uint32(seed))), dtype=jnp.uint32) for seed in SEEDS])


def _words(leaf: Array) -> Array:
    """The bits of every element as uint32: one word, or two along a last axis for wider elements."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return jnp.stack([_words(leaf.real), _words(leaf.imag)], axis=-1)
    bits = jnp.iinfo(leaf.dtype).bits if jnp.issubdtype(leaf.dtype, jnp.integer) else jnp.finfo(leaf.dtype).bits
    if bits < 8:
        return leaf.astype(jnp.int8).astype(jnp.uint32)
    narrow = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}[bits]
    return jax.lax.bitcast_convert_type(leaf, narrow).astype(jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=object)) for axis in range(len(shape))]


def _mixed(x: Array) -> Array:
    """A permutation of the 32-bit words in which every bit of a word moves every bit of its image."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
