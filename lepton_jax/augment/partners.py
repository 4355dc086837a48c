"""With whom an example is mixed: a pairing among the examples of a batch that count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lepton_jax import keys
from lepton_jax.types import Batch, Key

Ranks = Int[Array, " batch"]  # among the examples that count, in the order of the batch, from 0
Pairing = Callable[[Key, Batch, Bool[Array, " batch"]], Ranks]
"""(key, batch, which examples count) -> the rank of each example's partner; of the rest, anything."""


def rows(pairing: Pairing, key: Key, batch: Batch) -> Int[Array, " batch"]:
    """The row of each example's partner; an example of weight 0 has itself, and nobody has it."""
    size = keys.size(batch)
    counts = batch["weight"] != 0 if "weight" in batch else jnp.ones(size, bool)
    by_rank = jnp.argsort(~counts, stable=True)
    return jnp.where(counts, by_rank[pairing(key, batch, counts)], jnp.arange(size, dtype=by_rank.dtype))


def ranks(counts: Bool[Array, " batch"]) -> Ranks:
    """The rank of each example that counts."""
    return jnp.cumsum(counts, dtype=jnp.int32) - 1


def roll(key: Key, batch: Batch, counts: Bool[Array, " batch"]) -> Ranks:
    """The example before; the last one for the first."""
    rank = ranks(counts)
    return jnp.where(rank == 0, jnp.max(rank), rank - 1)


def flip(key: Key, batch: Batch, counts: Bool[Array, " batch"]) -> Ranks:
    """The example as far from the other end."""
    rank = ranks(counts)
    return jnp.max(rank) - rank


def permutation(key: Key, batch: Batch, counts: Bool[Array, " batch"]) -> Ranks:
    """A random permutation: by the order of numbers that the examples draw from their own keys."""
    numbers = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys.per_example(key, batch, "partner"))
    rank = ranks(counts)
    return rank[jnp.lexsort((numbers, ~counts))][rank]


PAIRINGS: dict[str, Pairing] = {"roll": roll, "flip": flip, "permutation": permutation}
