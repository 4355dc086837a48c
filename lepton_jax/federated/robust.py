"""Ways to make one update of many where some may be wrong or hostile: `federated(client, combine=...)`.

Each is a function over stacked updates, leaves [clients, ...], and their weights [clients]. A weight of 0 says that
the client took no part; otherwise clients count alike, for a weight is what a hostile client would claim.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lepton_jax.errors import InputError, unknown
from lepton_jax.federated.rounds import Combine
from lepton_jax.types import Mean, Params

Weights = Float[Array, " clients"]


def median(updates: Params, weights: Weights) -> Mean:
    """The median of each number (Yin et al. 2018, https://arxiv.org/abs/1803.01498)."""

    def middle(ordered: Array, there: Array) -> Array:
        return (ordered[(there - 1) // 2] + ordered[there // 2]) / 2

    return _ordered(updates, weights, middle)


def trimmed_mean(share: float = 0.1) -> Combine:
    """The mean of each number without the `share` of clients that have the least and that have the greatest of it.

    Yin et al. 2018, https://arxiv.org/abs/1803.01498. Raises InputError for a share outside [0, 0.5).
    """
    if not 0 <= share < 0.5:
        raise InputError(f"a share of {share} trimmed on both sides leaves no client", "give one from 0 to below 0.5")

    def kept(ordered: Array, there: Array) -> Array:
        cut = jnp.floor(share * there + 1e-6).astype(there.dtype)
        place = jnp.arange(len(ordered)).reshape(-1, *[1] * (ordered.ndim - 1))
        inside = (place >= cut) & (place < there - cut)
        return jnp.sum(jnp.where(inside, ordered, 0), axis=0) / jnp.maximum(there - 2 * cut, 1).astype(ordered.dtype)

    return lambda updates, weights: _ordered(updates, weights, kept)


def krum(hostile: int, keep: int = 1) -> Combine:
    """The update, or the mean of the `keep` updates, whose nearest neighbors are nearest: multi-Krum.

    hostile: how many clients may be; a cohort of n judges each update by its n - hostile - 2 nearest ones. Krum bears
    fewer than (n - 2) / 2 of them. Blanchard et al. 2017,
    https://papers.nips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html. Raises InputError for
    numbers that a cohort is too small for, and moves nothing in a round in which too few took part.
    """
    if hostile < 0 or keep < 1:
        raise InputError(f"krum cannot keep {keep} updates of clients of which {hostile} lie", "give 0 up, and 1 up")

    def nearest(updates: Params, weights: Weights) -> Mean:
        clients = len(weights)
        if clients < 2 * hostile + 3 or keep > clients - hostile:
            problem = f"a cohort of {clients} is too small to keep {keep} where {hostile} may be hostile"
            raise InputError(problem, f"take at least {max(2 * hostile + 3, keep + hostile)} clients")
        there = weights > 0
        count = jnp.sum(there)
        flat = jnp.concatenate([x.reshape(clients, -1) for x in jax.tree.leaves(updates)], axis=1)
        scores = _scores(jnp.where(there[:, None], flat, 0), there, jnp.maximum(count - hostile - 2, 1))
        chosen = jnp.argsort(scores)[:keep]
        enough = count >= max(2 * hostile + 3, keep + hostile)
        weight = jnp.where(enough, count, 0).astype(weights.dtype)
        return Mean(jax.tree.map(lambda x: jnp.mean(x[chosen], axis=0) * weight.astype(x.dtype), updates), weight)

    return nearest


def _scores(flat: Array, there: Array, neighbors: Array) -> Array:
    """The sum of squared distances of each client to so many nearest others; infinite for the absent."""
    # differences row by row: the expansion by products would lose what near updates differ by
    distances = jax.lax.map(lambda row: jnp.sum(jnp.square(flat - row[None]), axis=1), flat)
    apart = there[:, None] & there[None] & ~jnp.eye(len(flat), dtype=bool)
    ordered = jnp.sort(jnp.where(apart, distances, math.inf), axis=1)
    near = (jnp.arange(len(flat)) < neighbors)[None]
    return jnp.where(there, jnp.sum(jnp.where(near, ordered, 0), axis=1), math.inf)


def _ordered(updates: Params, weights: Weights, function: Any) -> Mean:
    """`function(values, how many took part)` of each number, its values in rising order, absent ones behind."""
    there = weights > 0
    count = jnp.sum(there)
    weight = count.astype(weights.dtype)

    def one(x: Array) -> Array:
        shown = jnp.where(there.reshape(-1, *[1] * (x.ndim - 1)), x, math.inf)
        value = function(jnp.sort(shown, axis=0), jnp.maximum(count, 1))
        return jnp.where(count > 0, value, 0) * weight.astype(x.dtype)

    return Mean(jax.tree.map(one, updates), weight)


def build(name: str) -> Combine | None:
    """`mean` (None: added up), `median`, `trimmed` (a tenth on both sides), `krum:HOSTILE`. Raises InputError."""
    kind, _, number = name.partition(":")
    known = {"mean": lambda: None, "median": lambda: median, "trimmed": trimmed_mean}
    if kind == "krum":
        if not number.isdecimal():
            raise InputError(f"{name!r} does not say how many clients may be hostile", "write krum:2")
        return krum(int(number))
    if name not in known:
        raise unknown("way to combine updates", name, (*known, "krum:HOSTILE"))
    return known[name]()
