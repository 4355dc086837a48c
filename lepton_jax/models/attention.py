"""Attention, by one device or around a ring of devices that each hold a part of the tokens.

On a mesh with a "sequence" axis a transformer's tokens are laid over it (`laid`), in equal parts behind which the last
ones are padding; all that is done token by token then stays where it is, and attention goes around the ring. The result
is that of one device, padding included, up to rounding.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from lepton_jax import mesh

AXIS = "sequence"

Tokens = Float[Array, "batch tokens width"]
Heads = Float[Array, "batch tokens heads size"]
Scores = Float[Array, "batch heads queries keys"]


def laid(x: Tokens) -> Float[Array, "batch padded width"]:
    """Tokens in equal parts over the mesh's "sequence" axis, zeros after the last one where they do not divide.

    As they are where there is no such axis, or where the batch does not divide over the rest of the mesh.
    """
    here = _splitting(len(x))
    if here is None:
        return x
    rows = mesh.batch_axes(here) or None
    # whole before: else this layout reaches back into the convolution that made them, whose gradient then comes out
    # wrong on meshes of three axes (jax 0.10.2)
    x = jax.lax.with_sharding_constraint(x, P(rows))
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % here.shape[AXIS]), (0, 0)))
    return jax.lax.with_sharding_constraint(padded, P(rows, AXIS))


def attended(query: Heads, key: Heads, value: Heads, tokens: int | None = None) -> Heads:
    """The values of all tokens, weighted for each by the softmax of query times key over the root of their size.

    tokens: how many there are; what lies behind is padding, and no one attends to it. Default: all. Around the ring
    where the mesh has a "sequence" axis over which they divide. Scores and softmax in float32 or wider. Vaswani et
    al. 2017, https://arxiv.org/abs/1706.03762.
    """
    tokens = tokens or key.shape[1]
    here = _splitting(len(query))
    if here is None or query.shape[1] % here.shape[AXIS]:
        return whole(query, key, value, tokens)
    heads = "model" if "model" in here.shape and query.shape[2] % here.shape["model"] == 0 else None
    laid = P(mesh.batch_axes(here) or None, AXIS, heads)
    around = functools.partial(ring, tokens, here.shape[AXIS])
    return jax.shard_map(around, in_specs=(laid,) * 3, out_specs=laid)(query, key, value)


def whole(query: Heads, key: Heads, value: Heads, tokens: int) -> Heads:
    """See `attended`: all tokens at once, by who holds them."""
    # not jax.nn.dot_product_attention, whose softmax is float32 in a float64 run too
    scores = _scores(query, key)
    if tokens < key.shape[1]:
        scores = _hidden(scores, jnp.arange(key.shape[1]) < tokens)
    return jnp.einsum("bhqk,bkhd->bqhd", _softmax(scores).astype(value.dtype), value)


def _softmax(scores: Scores) -> Scores:
    """Of each query over the keys.

    By a product with the reciprocal: XLA makes one of some divisions by a broadcast sum and not of others, in the
    gradient of jax.nn.softmax too, and then a run in virtual shards is not the same bits on every mesh (jax 0.10.2).
    """
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    return weights * (1 / jnp.sum(weights, axis=-1, keepdims=True))


def _splitting(batch: int) -> AbstractMesh | None:
    """The mesh, where it splits the tokens of a batch of this size; None elsewhere."""
    here = mesh.automatic()
    if here is None or here.shape.get(AXIS, 1) == 1 or batch % mesh.batch_shards(here):
        return None
    return here


def _scores(query: Heads, key: Heads) -> Scores:
    """Query times key over the root of their size, in float32 or wider."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype) / query.shape[-1] ** 0.5


def _hidden(scores: Scores, seen: Bool[Array, " keys"]) -> Scores:
    """The scores, those of padding the lowest number: no infinity, of which a difference would be NaN."""
    return jnp.where(seen[None, None, None], scores, jnp.finfo(scores.dtype).min)


class Partial(NamedTuple):
    """A softmax-weighted sum over some of the keys that has not been divided yet; `merge` makes it one over more.

    highest: of the scores, [batch, heads, queries]. weight: the sum of exp(score - highest), alike. total: the sum of
    exp(score - highest) * value, [batch, queries, heads, size]. Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867.
    """

    highest: Array
    weight: Array
    total: Array

    def merge(self, other: "Partial") -> "Partial":
        """The sum over the keys of both."""
        highest = jnp.maximum(self.highest, other.highest)
        own, others = jnp.exp(self.highest - highest), jnp.exp(other.highest - highest)
        total = self.total * _by_query(own) + other.total * _by_query(others)
        return Partial(highest, self.weight * own + other.weight * others, total)


def _by_query(numbers: Array) -> Array:
    """[batch, heads, queries] -> [batch, queries, heads, 1]"""
    return jnp.swapaxes(numbers, 1, 2)[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring(tokens: int, devices: int, query: Heads, key: Heads, value: Heads) -> Heads:
    """See `attended`, of the parts that each device of the "sequence" axis holds, inside `jax.shard_map`.

    Keys and values go round from device to device, and each adds up what its own queries take from those that pass.
    So no device ever holds more than its own part and a passing one, backward neither. Liu et al. 2023,
    https://arxiv.org/abs/2310.01889.
    """
    return _forward(tokens, devices, query, key, value)[0]


def _forward(tokens: int, devices: int, query: Heads, key: Heads, value: Heads) -> tuple[Heads, Any]:
    def part(key: Heads, value: Heads, turn: Any) -> Partial:
        scores = _scores_at(query, key, tokens, devices, turn)
        highest = jnp.max(scores, axis=-1)
        weights = jnp.exp(scores - highest[..., None])
        total = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=weights.dtype)
        return Partial(highest, jnp.sum(weights, axis=-1), total)

    def turned(carry: Any, turn: Any) -> tuple[Any, None]:
        passing, sofar = carry
        key, value = _passed_on(passing, devices)
        return ((key, value), sofar.merge(part(key, value, turn))), None

    start = ((key, value), part(key, value, 0))
    (_, found), _ = jax.lax.scan(turned, start, jnp.arange(1, devices))
    output = (found.total / _by_query(found.weight)).astype(value.dtype)
    return output, (query, key, value, output, found.highest + jnp.log(found.weight))


def _backward(tokens: int, devices: int, kept: Any, gradient: Heads) -> tuple[Heads, Heads, Heads]:
    """The gradient by query, key and value; those by keys and values go round with them, and come home."""
    query, key, value, output, logarithm = kept
    dtype = logarithm.dtype
    gradient, scale = gradient.astype(dtype), query.shape[-1] ** -0.5
    shared = jnp.swapaxes(jnp.sum(gradient * output.astype(dtype), axis=-1), 1, 2)

    def part(key: Heads, value: Heads, turn: Any) -> tuple[Heads, Heads, Heads]:
        scores = _scores_at(query, key, tokens, devices, turn)
        weights = jnp.exp(scores - logarithm[..., None])
        by_value = jnp.einsum("bhqk,bqhd->bkhd", weights, gradient)
        by_weight = jnp.einsum("bqhd,bkhd->bhqk", gradient, value.astype(dtype))
        by_score = weights * (by_weight - shared[..., None]) * scale
        by_query = jnp.einsum("bhqk,bkhd->bqhd", by_score, key.astype(dtype))
        return by_query, jnp.einsum("bhqk,bqhd->bkhd", by_score, query.astype(dtype)), by_value

    def turned(carry: Any, turn: Any) -> tuple[Any, None]:
        by_query, passing = carry
        key, value, by_key, by_value = _passed_on(passing, devices)
        more = part(key, value, turn)
        return (by_query + more[0], (key, value, by_key + more[1], by_value + more[2])), None

    by_query, by_key, by_value = part(key, value, 0)
    start = (by_query, (key, value, by_key, by_value))
    (by_query, (*_, by_key, by_value)), _ = jax.lax.scan(turned, start, jnp.arange(1, devices))
    by_key, by_value = _passed_on((by_key, by_value), devices)
    return by_query.astype(query.dtype), by_key.astype(key.dtype), by_value.astype(value.dtype)


ring.defvjp(_forward, _backward)


def _scores_at(query: Heads, key: Heads, tokens: int, devices: int, turn: Any) -> Scores:
    """The scores of the keys that a device holds after so many turns of the ring."""
    scores, length = _scores(query, key), key.shape[1]
    if tokens == devices * length:
        return scores
    holder = (jax.lax.axis_index(AXIS) - turn) % devices
    return _hidden(scores, holder * length + jnp.arange(length) < tokens)


def _passed_on(arrays: Any, devices: int) -> Any:
    """What the device before this one holds."""
    return jax.lax.ppermute(arrays, AXIS, [(i, (i + 1) % devices) for i in range(devices)])
